"""The reports that are committed: one of each scenario and of a commit, and the index says what they say."""

import json
import re

import pytest

from tests.docs.pages import ROOT

FOLDER = ROOT / "docs" / "load-reports"
SCENARIOS = sorted(file.stem for file in (ROOT / "loadtest" / "scenarios").glob("*.yaml"))
ROW = re.compile(r"^\| \[([a-z-]+)\]\(\1\.md\) \| (.+) \| (.+) \|$", re.MULTILINE)


def test_the_index_names_each_scenario_once() -> None:
    index = (FOLDER / "README.md").read_text("utf-8")
    assert sorted(name for name, _, _ in ROW.findall(index)) == SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_report_says_what_its_figures_and_the_index_say(name: str) -> None:
    told = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    page = (FOLDER / f"{name}.md").read_text("utf-8")
    index = {each: (question, said) for each, question, said in ROW.findall((FOLDER / "README.md").read_text("utf-8"))}
    assert told["scenario"] == name
    assert re.fullmatch("[0-9a-f]{7,}", told["commit"]), "not the tree of a commit"
    assert f"commit {told['commit']}" in page
    question, said = index[name]
    assert question == told["question"]
    assert f"**{said}**" in page
    assert said.startswith("Yes") == all(verdict["held"] for verdict in told["verdicts"])
