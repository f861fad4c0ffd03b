"""The page: the answer first, every plot linked beside it, and what makes its figures weaker said."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from loadtest.load.plan import Objectives
from loadtest.load.record import Record
from loadtest.report.document import Run, Verdict
from loadtest.report.files import write_report
from loadtest.report.markdown import answer, caveats, knee_told, page
from loadtest.report.side import Side, side_of
from loadtest.report.where import Host
from tests.unit.loadtest.report.made import HOST, OBJECTIVES, record, risen, run, schedule

HELD, FAILED, OPEN = (Verdict(name, "found", held) for name, held in (("a", True), ("b", False), ("c", None)))


def side(records: list[Record], *, workers: int | None = None) -> Side:
    return side_of("gateway", records, schedule(records, workers=workers), OBJECTIVES)


def test_every_plot_is_linked_by_its_name_alone_and_is_there(tmp_path: Path) -> None:
    told = write_report(run(risen(), risen(2)), tmp_path)
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", told.read_text("utf-8"))
    assert sorted(links) == sorted(file.name for file in tmp_path.glob("*.svg"))
    assert len(links) == 4
    assert all("/" not in link for link in links)


def test_every_table_has_as_many_cells_in_each_row() -> None:
    lines = page(run(replace(risen(2), name="direct"), risen()), {}).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) > 60
    for before, line in pairwise(lines):
        if before.startswith("|") and line.startswith("|"):
            assert before.count(" | ") == line.count(" | ")


@pytest.mark.parametrize(
    ("verdicts", "begins"),
    [
        ([HELD], "Yes."),
        ([HELD, HELD], "Yes: all 2"),
        ([HELD, FAILED, OPEN], "No: 1 of 3"),
        ([HELD, OPEN], "This run cannot tell: 1 of 2"),
        ([], "Nothing was expected"),
    ],
)
def test_the_answer_is_no_where_one_verdict_is(verdicts: list[Verdict], begins: str) -> None:
    assert answer(verdicts).startswith(begins)
    assert f"**{begins}" in page(run(risen(rates=(5,)), verdicts=verdicts), {})


def test_each_verdict_is_told_with_what_was_found() -> None:
    told = page(run(risen(rates=(5,))), {})
    assert "| only told endings | 41 streams were cut | **failed** |" in told


def test_what_was_run_where_is_told() -> None:
    told = page(run(risen()), {})
    for fact in ("abc1234", "seed 7", "2 cores, a cpu", "load average 0.5 before and 1.5 after", "gateway: 0.1.0"):
        assert fact in told
    assert "```sh\npython -m loadtest run rising\n```" in told
    assert "open loop" in told
    assert "closed loop: 8 asked at once" in page(run(side([record()], workers=8)), {})


def test_the_figures_are_those_of_the_measures() -> None:
    told = page(run(side([record(waited=0.25, gap=0.01, tokens=11)])), {})
    assert "| TTFT | 250 ms | 250 ms | 250 ms | 250 ms | 250 ms | 250 ms | 1 |" in told
    assert "| end to end | 350 ms |" in told
    assert "| within the objectives | 100 % of 1 judged |" in told


def test_a_second_side_is_told_against_the_first() -> None:
    direct, through = side([record(waited=0.1)]), side([record(waited=0.102)])
    told = page(run(replace(direct, name="direct"), through), {})
    assert "| TTFT, gateway minus direct | +2 ms |" in told
    assert "| TTFT, gateway minus direct |" not in page(run(through), {})


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (risen(), "The knee is at 10 requests/s"),
        (risen(rates=(5, 10), slower=0.1), "No knee: 99 %"),
        (risen(rates=(5, 10), slower=99), "At no rate 99 %"),
        (risen(rates=(5,)), ""),
        (replace(risen(), objectives=Objectives()), ""),
    ],
)
def test_the_knee_is_told_in_words(made: Side, words: str) -> None:
    assert knee_told(made).startswith(words)
    assert bool(knee_told(made)) == bool(words)


def test_groups_are_told_where_there_are_several_and_only_what_there_is_of_them() -> None:
    alike = page(run(side([record(kind=name, key=name) for name in ("chat", "whole")])), {})
    assert "## By kind" in alike
    assert "## By caller" not in alike, "each kind has a caller of its own"
    assert "| kind | requests | whole | within |" in alike, "none failed, none was refused"
    apart = page(run(side([record(key=name, pod=name) for name in ("acme", "zeta")])), {})
    assert "## By kind" not in apart
    assert "## By caller" in apart
    assert "The fullest pod had 1.00 × the mean" in apart


def test_a_cell_cannot_break_its_table() -> None:
    assert "| a\\|b | found | held |" in page(run(risen(rates=(5,)), verdicts=[Verdict("a|b", "found", True)]), {})


# Caveats.

LATE = side([record(late=0.2 * number / 200) for number in range(200)])
QUIET = replace(run(risen()), notes=())


def test_a_run_without_weaknesses_claims_none() -> None:
    assert [*caveats(QUIET)] == []
    assert "## Caveats" not in page(QUIET, {})


@pytest.mark.parametrize(
    ("weak", "words"),
    [
        (replace(QUIET, sides=(LATE,)), "The generator was late itself"),
        (replace(QUIET, sides=(side([record()] * 99),)), "Only 99 requests were timed"),
        (replace(QUIET, commit="abc1234 and changes not committed"), "not exactly a commit"),
        (replace(QUIET, commit="unknown"), "not exactly a commit"),
        (replace(QUIET, host=replace(HOST, load=(1.5, 2.0))), "other work"),
        (replace(QUIET, notes=("a note",)), "a note"),
    ],
    ids=["late", "few", "changed", "unknown", "busy", "noted"],
)
def test_what_makes_figures_weak_is_said(weak: Run, words: str) -> None:
    (told,) = caveats(weak)
    assert words in told
    assert told in page(weak, {})


def test_a_host_is_named_by_what_makes_times_comparable() -> None:
    assert Host(2, "a cpu", "6.1", "3.11", (0, 0)).name == Host(2, "a cpu", "6.2", "3.12", (9, 9)).name
