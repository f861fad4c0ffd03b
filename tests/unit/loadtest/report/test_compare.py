"""The gate: the same passes, each kind of regression does not, and what was not asked alike is not compared."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from loadtest.load.record import Ending, Record
from loadtest.report.compare import BARS, Comparison, NotComparable, compared
from loadtest.report.document import Run, Verdict
from loadtest.report.measures import Spread
from loadtest.report.side import Figure, Side, side_of
from tests.unit.loadtest.report.made import HOST, OBJECTIVES, PODS, record, risen, run, schedule

HELD, FAILED, OPEN = (Verdict("only told endings", "found", held) for held in (True, False, None))


def made(change: Callable[[int, Record], Record] = lambda _, same: same, *, count: int = 1000) -> Side:
    records = [change(number, record(number=number, at=number / 100, pod=PODS[number % 3])) for number in range(count)]
    return side_of(
        "gateway",
        records,
        schedule(records),
        OBJECTIVES,
        pods=PODS,
        figures=[Figure("CPU", 10.0, "s", "lower"), Figure("hits", 50, "", "higher"), Figure("replicas", 2)],
    )


def whole(side: Side, *verdicts: Verdict) -> Run:
    return run(side, verdicts=verdicts or (HELD,))


BASE = whole(made())


def outcomes(comparison: Comparison, outcome: str) -> set[str]:
    return {line.measure for line in comparison.lines if line.outcome == outcome}


def test_a_run_is_not_worse_than_itself() -> None:
    for each in (BASE, run(risen(), verdicts=[HELD])):
        found = compared(each, each)
        assert not found.worse
        assert outcomes(found, "worse") == outcomes(found, "better") == set()
        assert outcomes(found, "same")


def slower(number: int, same: Record) -> Record:
    return record(at=same.intended_at, waited=0.12, gap=0.015, pod=same.pod)


def failing(number: int, same: Record) -> Record:
    return record(at=same.intended_at, waited=None, ending=Ending.CUT, pod=same.pod) if number % 500 == 0 else same


def slow_tail(number: int, same: Record) -> Record:
    return record(at=same.intended_at, waited=0.3, pod=same.pod) if number % 50 == 0 else same


def missing_objectives(number: int, same: Record) -> Record:
    return record(at=same.intended_at, waited=0.6, pod=same.pod) if number % 50 == 0 else same


def shorter(number: int, same: Record) -> Record:
    return record(at=same.intended_at, tokens=10, pod=same.pod)


def uncached(number: int, same: Record) -> Record:
    return replace(same, cached_tokens=30)


def uneven(number: int, same: Record) -> Record:
    return replace(same, pod=PODS[0] if number % 2 else same.pod)


def fewer(number: int, same: Record) -> Record:
    return record(at=same.intended_at, ending=Ending.LEFT, pod=same.pod) if number % 10 == 0 else same


@pytest.mark.parametrize(
    ("change", "measures"),
    [
        (slower, {"TTFT p50", "ITL p50", "TPOT p50", "end to end p50"}),
        (failing, {"failed"}),
        (slow_tail, {"TTFT p99", "end to end p99"}),
        (missing_objectives, {"within the objectives"}),
        (shorter, {"output tokens/s"}),
        (uncached, {"prompt tokens from a cache"}),
        (uneven, {"evenness of pods (Jain)"}),
        (fewer, {"whole, requests/s"}),
    ],
)
def test_each_kind_of_regression_is_found_and_its_opposite_is_none(
    change: Callable[[int, Record], Record], measures: set[str]
) -> None:
    changed = whole(made(change))
    there, back = compared(BASE, changed), compared(changed, BASE)
    assert there.worse
    assert measures <= outcomes(there, "worse")
    assert measures <= outcomes(back, "better")
    assert not back.worse


def test_a_knee_that_came_earlier_is_worse() -> None:
    early = run(risen(slower=4.0), verdicts=[HELD])
    late = run(risen(), verdicts=[HELD])
    assert "largest rate within the objectives" in outcomes(compared(late, early), "worse")


def test_every_bar_was_seen_to_fail() -> None:
    """A bar that cannot fail is none: those of p90 move with the others' records."""
    seen = {"largest rate within the objectives"}
    for change in (slower, failing, slow_tail, missing_objectives, shorter, uncached, uneven, fewer, much_slower):
        seen |= outcomes(compared(BASE, whole(made(change))), "worse")
    assert {bar.name for bar in BARS} <= seen


def much_slower(number: int, same: Record) -> Record:
    return record(at=same.intended_at, waited=0.4, gap=0.03, pod=same.pod)


def test_a_figure_of_the_stand_is_judged_by_the_way_that_is_good() -> None:
    side = made()
    dearer = replace(
        side, figures=(Figure("CPU", 12.0, "s", "lower"), Figure("hits", 40, "", "higher"), Figure("replicas", 9))
    )
    there, back = compared(BASE, whole(dearer)), compared(whole(dearer), BASE)
    assert outcomes(there, "worse") == {"CPU", "hits"}
    assert outcomes(back, "better") == {"CPU", "hits"}


def test_what_moves_within_its_tolerance_is_the_same() -> None:
    side = made()
    found = compared(BASE, whole(replace(side, figures=(Figure("CPU", 11.0, "s", "lower"),))))
    assert "CPU" in outcomes(found, "same")
    assert not found.worse


def test_slack_allows_more() -> None:
    found = compared(BASE, whole(made(slower)), slack=4)
    assert not found.worse
    assert "may move by 60 % or 4 ms" in found.table()


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (HELD, HELD, "same"),
        (HELD, FAILED, "worse"),
        (OPEN, FAILED, "worse"),
        (FAILED, FAILED, "same"),
        (FAILED, HELD, "better"),
        (HELD, OPEN, "not judged"),
    ],
)
def test_a_verdict_that_holds_no_more_is_worse(before: Verdict, after: Verdict, outcome: str) -> None:
    found = compared(whole(made(), before), whole(made(), after))
    assert found.lines[0].outcome == outcome
    assert found.worse is (outcome == "worse")


def test_an_expectation_that_is_new_and_fails_is_worse_and_one_that_went_is_told() -> None:
    found = compared(whole(made(), HELD), whole(made(), Verdict("another", "found", False)))
    assert outcomes(found, "worse") == {"another"}
    assert "only told endings" in outcomes(found, "not judged")


def test_what_is_measured_no_more_is_worse() -> None:
    silent = made(lambda _, same: replace(same, pod=""))
    assert "evenness of pods (Jain)" in outcomes(compared(BASE, whole(silent)), "worse")
    assert "evenness of pods (Jain)" in outcomes(compared(whole(silent), BASE), "not judged")


def test_a_percentile_of_too_few_is_not_judged() -> None:
    few, few_slower = whole(made(count=100)), whole(made(slower, count=100))
    found = compared(few, few_slower)
    assert {"TTFT p50", "TTFT p90"} <= outcomes(found, "worse") | outcomes(found, "same")
    assert "TTFT p99" in outcomes(found, "not judged")
    assert "100 are too few for it" in found.table()


def test_on_another_host_times_are_not_judged_and_the_rest_is() -> None:
    elsewhere = replace(whole(made(slower)), host=replace(HOST, cpu="another"))
    found = compared(BASE, elsewhere)
    assert not found.worse
    assert {"TTFT p50", "CPU"} <= outcomes(found, "not judged")
    assert "the hosts differ" in found.table()
    broken = replace(whole(made(failing)), host=replace(HOST, cpu="another"))
    assert compared(BASE, broken).worse


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (replace(BASE, scenario="burst"), "scenario rising and burst"),
        (replace(BASE, seed=8), "seed 7 and 8"),
        (replace(BASE, command="python -m loadtest run rising --seconds 5"), "--seconds 5"),
        (replace(BASE, text="name: rising\nseconds: 61\n"), "file was changed"),
        (replace(BASE, text="name: rising\nseconds: 60\nobjectives: {ttft_ms: 9}\n"), "file was changed"),
        (replace(BASE, sides=(replace(made(), name="direct"),)), "sides gateway and direct"),
        (replace(BASE, sides=(made(), made())), "sides gateway and gateway, gateway"),
    ],
    ids=["scenario", "seed", "command", "text", "objectives", "side", "sides"],
)
def test_runs_that_did_not_ask_the_same_are_not_compared(other: Run, why: str) -> None:
    with pytest.raises(NotComparable, match=why):
        compared(BASE, other)


def test_a_scenario_may_be_told_in_other_words() -> None:
    told = "# a comment\nname: rising\nquestion: In other words?\nseconds: 60\nexpect: {only_told_endings: true}\n"
    assert not compared(BASE, replace(BASE, text=told)).worse


def test_what_got_worse_stands_on_top_of_the_table() -> None:
    told = compared(BASE, whole(made(slow_tail), FAILED)).table().splitlines()
    assert "| only told endings | held | failed | worse | found |" in told[:6]
    assert "worse" in told[2]
    assert "before: abc1234" in told[-2]


def test_each_side_is_judged() -> None:
    two = run(replace(made(), name="direct"), made(), verdicts=[HELD])
    slow = run(replace(made(), name="direct"), made(slower), verdicts=[HELD])
    assert outcomes(compared(two, slow), "worse") <= {f"{bar.name}, gateway" for bar in BARS}
    assert compared(two, slow).worse


def test_evenness_is_judged_where_both_know_it() -> None:
    side = made()
    worse = replace(side, spread=Spread(max_over_mean=2.0, jain=0.6))
    assert outcomes(compared(BASE, whole(worse)), "worse") == {"evenness of pods (Jain)"}
