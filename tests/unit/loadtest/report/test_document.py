"""A run on the disk is the run that was: to the last figure, small, and refused where it cannot be understood."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.report import document
from loadtest.report.document import SCHEMA, NotAReport, Verdict
from loadtest.report.files import write_report
from loadtest.report.side import side_of
from tests.unit.loadtest.report.made import OBJECTIVES, record, risen, run, schedule


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    for number, written in enumerate(
        [run(risen()), run(risen(2), risen(3)), run(side_of("none", [], schedule([]), OBJECTIVES))]
    ):
        path = tmp_path / f"{number}.json"
        document.write(written, path)
        assert document.read(path) == written


def test_the_same_run_is_written_in_the_same_bytes(tmp_path: Path) -> None:
    document.write(run(risen()), tmp_path / "a.json")
    document.write(run(risen()), tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_document_is_small_however_many_requests_there_were(tmp_path: Path) -> None:
    many = [
        record(
            at=number / 50, kind=f"kind-{number % 40}", key=f"key-{number % 500}", pod=f"pod-{number % 90}", tokens=3
        )
        for number in range(20_000)
    ]
    document.write(run(side_of("gateway", many, schedule(many), OBJECTIVES)), tmp_path / "many.json")
    assert (tmp_path / "many.json").stat().st_size < 100_000


def test_a_document_says_its_schema_and_is_read_in_lines(tmp_path: Path) -> None:
    document.write(run(risen()), tmp_path / "run.json")
    text = (tmp_path / "run.json").read_text("utf-8")
    assert json.loads(text)["schema"] == SCHEMA
    assert len(text.splitlines()) > 50
    assert max(map(len, text.splitlines())) < 2_000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no report of a load test"),
        ("[1]", "no report of a load test"),
        ('{"name": "smoke"}', "no report of a load test"),
        (f'{{"schema": {SCHEMA + 1}}}', f"schema {SCHEMA + 1}, this version reads {SCHEMA}"),
        (f'{{"schema": {SCHEMA}}}', "missing required field"),
    ],
)
def test_what_is_no_report_is_refused_with_the_reason(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text, "utf-8")
    with pytest.raises(NotAReport, match=why) as refused:
        document.read(path)
    assert str(path) in str(refused.value)


def test_a_file_that_is_not_there_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(NotAReport, match=r"gone\.json: No such file"):
        document.read(tmp_path / "gone.json")


@pytest.mark.parametrize(("held", "all_held"), [([True, None], True), ([True, False], False), ([], True)])
def test_a_run_failed_where_one_verdict_did(held: list[bool | None], all_held: bool) -> None:
    verdicts = [Verdict(f"{number}", "", each) for number, each in enumerate(held)]
    assert run(risen(rates=(5,)), verdicts=verdicts).held is all_held


# Files.


def test_a_report_is_a_page_its_plots_and_its_figures(tmp_path: Path) -> None:
    page = write_report(run(risen()), tmp_path / "made" / "here")
    assert page == tmp_path / "made" / "here" / "rising.md"
    assert {file.name for file in page.parent.iterdir()} == {
        *("rising.md", "rising.json", "rising-latency.svg", "rising-rate.svg", "rising-timeline.svg")
    }


def test_an_earlier_runs_plots_do_not_stay_and_other_files_do(tmp_path: Path) -> None:
    write_report(run(risen(), risen(2)), tmp_path)
    others = [tmp_path / name for name in ("rising-note.txt", "rising-high-latency.svg", "README.md")]
    for other in others:
        other.write_text("stays", "utf-8")
    write_report(run(risen(rates=(5,))), tmp_path)
    assert not (tmp_path / "rising-rate.svg").exists()
    assert not (tmp_path / "rising-timeline-2.svg").exists()
    assert all(other.exists() for other in others)


def test_a_later_report_stands_in_place_of_the_earlier(tmp_path: Path) -> None:
    write_report(run(risen()), tmp_path)
    later = replace(run(risen(2)), commit="later")
    write_report(later, tmp_path)
    assert document.read(tmp_path / "rising.json") == later
    assert "later" in (tmp_path / "rising.md").read_text("utf-8")
