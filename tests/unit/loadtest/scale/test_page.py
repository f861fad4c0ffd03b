"""docs/scale.md says what the code says, and the commands do what they are asked for."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from loadtest.policysim.cells import Cell
from loadtest.scale import balancing
from loadtest.scale.__main__ import main
from loadtest.scale.autoscaling import MANIFEST, autoscaler_of
from loadtest.scale.figures import FILE, Figures, read
from loadtest.scale.page import GROUP, on_page, tables

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs" / "scale.md"


def test_the_page_is_what_the_code_says() -> None:
    figures, sources = read()
    made = tables(figures, sources, autoscaler_of(MANIFEST.read_text("utf-8")), balancing.read())
    page = PAGE.read_text("utf-8")
    assert on_page(page, made) == page, "run .venv/bin/python -m loadtest.scale --page docs/scale.md"
    begun = re.findall(r"^<!-- (?!end of )(.*) -->$", page, re.MULTILINE)
    assert sorted(begun) == sorted(made)


def test_every_figure_is_reckoned_with() -> None:
    code = "".join(file.read_text("utf-8") for file in FILE.parent.glob("*.py"))
    assert [field.name for field in fields(Figures) if f"figures.{field.name}" not in code] == []


def test_a_table_without_a_place_is_no_silence() -> None:
    with pytest.raises(ValueError, match="no place for 'pods'"):
        on_page("<!-- pods -->\n", {"pods": "|"})


def test_the_target_of_the_chart_and_the_page_are_the_manifests() -> None:
    target = autoscaler_of(MANIFEST.read_text("utf-8")).target
    chart = (ROOT / "deploy/helm/poolgate/templates/gateway/autoscaler.yaml").read_text("utf-8")
    assert f"averageUtilization: {100 * target:.0f}}}" in chart
    assert f"In the manifests: {target:.0%}." in PAGE.read_text("utf-8")


def test_another_figure_is_another_page(tmp_path: Path) -> None:
    told = json.loads(FILE.read_text("utf-8"))
    told["chunk_us"]["value"] *= 2
    file, page = tmp_path / "figures.json", tmp_path / "scale.md"
    file.write_text(json.dumps(told), "utf-8")
    page.write_text(PAGE.read_text("utf-8"), "utf-8")
    assert main(["--figures", str(file), "--page", str(page)]) == 0
    assert page.read_text("utf-8") != PAGE.read_text("utf-8")


def test_the_command_tells_what_a_load_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--requests-per-hour", "1e6", "--streams", "2000", "--tokens-per-second", "50", "--pods", "8"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^\| chunks/s \| 100,000 \|$", told, re.MULTILINE)
    assert re.search(r"^\| \*\*replicas\*\* \| \*\*\d+\*\* \|$", told, re.MULTILINE)


def test_the_command_says_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--streams", "1e9"]) == 1
    assert "scale: needs: more than" in capsys.readouterr().err
    file = tmp_path / "figures.json"
    file.write_text("{}", "utf-8")
    assert main(["--figures", str(file)]) == 1
    assert "missing or unknown" in capsys.readouterr().err
    for wrong in (["--streams", "0"], ["--streams", "nan"], ["--target", "-1"]):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)


# Many replicas.


def test_the_rows_that_are_kept_are_those_that_would_be_run() -> None:
    assert [(row.cell, row.groups) for row in balancing.read()] == [*balancing.cells()]
    assert json.loads(balancing.FILE.read_text("utf-8"))["seeds"] == list(balancing.SEEDS)


def test_any_number_of_replicas_gets_the_same_requests_and_the_same_seed_says_the_same() -> None:
    cell = Cell("mixed", pods=4, replicas=2)
    first = balancing.figures(cell, seeds=(1,))
    assert balancing.figures(cell, seeds=(1,)) == first
    assert balancing.figures(replace(cell, replicas=16), seeds=(1,)).mean > first.mean


def test_what_the_page_says_of_groups_and_of_many_replicas_is_what_came_out() -> None:
    rows = {(row.cell.workload, row.cell.pods, row.cell.replicas, row.groups): row.figures for row in balancing.read()}
    for workload in balancing.WORKLOADS:
        means = [rows[workload, balancing.PODS, each, 1].mean for each in balancing.REPLICAS]
        assert means[0] < means[-1]
        assert max(row.unstable for key, row in rows.items() if key[0] == workload) <= 0.5
        whole, cut = (rows[workload, 64 // groups, 16 // groups, groups] for groups in (1, 16 // GROUP))
        assert cut.mean < whole.mean
        assert cut.p99 < whole.p99
    shared, alone = (
        rows[name, balancing.PODS, GROUP, 1].mean / rows[name, balancing.PODS, 1, 1].mean
        for name in ("tenants", "mixed")
    )
    assert alone > shared
