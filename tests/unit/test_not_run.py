"""A machine without Node.js or curl runs the rest of the tests, and is told what it did not run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MENDS, NODE_PACKAGES, PEERS, VALIDATING

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("test_curl.py", "tests that use curl"),
        ("test_openai_node.py", "tests of openai-node, the status page and the Helm chart; install Node.js 20"),
    ],
)
def test_what_a_missing_program_leaves_out_is_named(file: str, words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", f"tests/integration/clients/{file}"],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},  # nothing is found there
        capture_output=True,
        text=True,
    )
    assert "not run: " in done.stdout, done.stdout + done.stderr
    assert words in done.stdout
    assert "::" not in done.stdout


BUILDING = re.compile(r"^from tests\.manifests\.building import (\([^)]*\)|.*)", re.MULTILINE)
MARKS = re.compile(r"mark\.program\(\"([\w -]+)\"\)")
SILENT = re.compile(r"\bskip(if)?\(|importorskip")


def test_whoever_asks_a_judge_of_manifests_says_so() -> None:
    """Else he fails where the judges are not installed."""
    asking = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        text = file.read_text("utf-8")
        names = {name for found in BUILDING.findall(text) for name in re.findall(r"\w+", found)}
        if names & {"build", "without", "validator"}:
            asking.add(file.name)
            assert VALIDATING & set(MARKS.findall(text)), file
    assert len(asking) > 10


def test_each_program_that_a_test_wants_has_a_mend() -> None:
    texts = [file.read_text("utf-8") for file in (ROOT / "tests").rglob("*.py")]
    wanted = {name for text in texts for name in MARKS.findall(text)}
    assert wanted - VALIDATING - PEERS - NODE_PACKAGES.keys() <= MENDS.keys()
    assert {"validators", "peers", "node", "npm"} <= MENDS.keys()  # what those others come by


def test_nothing_is_skipped_in_silence() -> None:
    """The summary names what a mark of a program leaves out, and no other skip."""
    others = set((ROOT / "tests").rglob("*.py")) - {Path(__file__)}
    assert [file for file in others if SILENT.search(file.read_text("utf-8"))] == []
