"""Who agrees, who does not, and who played something else."""

from dataclasses import replace

import pytest

from loadtest.referees.figures import E2E, GAP, TPOT, TTFT, Figures, Percentiles, of_ours
from loadtest.referees.judge import FLOOR_MS, TOLERANCE, Word, compared, other_load
from loadtest.referees.page import OURS, Played, agreed, answer, figures_table, page, rounds_table
from loadtest.report.side import side_of
from tests.unit.loadtest.report.made import HOST, OBJECTIVES, record, schedule

FOUND = Figures(
    whole=150,
    failed=0,
    prompt_tokens=90_000,
    output_tokens=9_000,
    requests_per_second=6.0,
    tokens_per_second=360.0,
    times={
        TTFT: Percentiles(100.0, 150.0, 180.0),
        TPOT: Percentiles(15.0, 18.0, 20.0),
        GAP: Percentiles(12.5, 20.0, 90.0),
        E2E: Percentiles(1000.0, 1400.0, 1700.0),
    },
)


def with_time(name: str, p50: float, found: Figures = FOUND) -> Figures:
    return replace(found, times={**found.times, name: replace(found.times[name], p50=p50)})


def word(ours: Figures, theirs: Figures, measure: str) -> Word:
    [row] = [row for row in compared([ours], [theirs]) if row.measure == measure]
    return row.word


def played(*theirs: Figures, ours: Figures = FOUND) -> Played:
    return Played("constant", "150 requests", {OURS: [ours] * len(theirs), "AIPerf": theirs})


def test_the_same_figures_agree() -> None:
    assert {row.word for row in compared([FOUND], [FOUND])} == {Word.AGREE, Word.TOLD}
    assert agreed([played(FOUND)])


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_tenth_is_the_border(sign: int) -> None:
    near, far = (with_time(TTFT, 100.0 * (1 + sign * share)) for share in (TOLERANCE - 0.001, TOLERANCE + 0.011))
    assert word(FOUND, near, "TTFT p50") is Word.AGREE
    assert word(FOUND, far, "TTFT p50") is Word.DIFFER
    assert not agreed([played(far)])


def test_short_times_may_be_a_millisecond_apart() -> None:
    ours = with_time(TPOT, 2.0)
    assert word(ours, with_time(TPOT, 2.0 + 0.9 * FLOOR_MS), "TPOT p50") is Word.FLOOR
    assert word(ours, with_time(TPOT, 2.0 + 1.1 * FLOOR_MS), "TPOT p50") is Word.DIFFER


@pytest.mark.parametrize("field", ["requests_per_second", "tokens_per_second"])
def test_a_rate_has_no_floor(field: str) -> None:
    ours = replace(FOUND, requests_per_second=0.5, tokens_per_second=0.5)
    theirs = replace(ours, **{field: 0.6})  # type: ignore[arg-type]  # each of these fields is a rate
    assert not agreed([played(theirs, ours=ours)])


def test_the_rounds_means_are_compared() -> None:
    rounds = with_time(TTFT, 96.0), with_time(TTFT, 104.0)
    [row] = [row for row in compared(rounds, [FOUND, FOUND]) if row.measure == "TTFT p50"]
    assert (row.ours, row.theirs, row.word) == (100.0, 100.0, Word.AGREE)
    assert row.between_own == pytest.approx(0.08)
    assert row.between_theirs == 0


def test_a_median_that_is_unsteady_is_no_agreement_though_the_means_are_the_same() -> None:
    rounds = with_time(TTFT, 80.0), with_time(TTFT, 120.0)
    for found in ({OURS: rounds, "AIPerf": [FOUND] * 2}, {OURS: [FOUND] * 2, "AIPerf": rounds}):
        told = Played("constant", "150 requests", found)
        assert not agreed([told])
        assert "8 of 9 agree; too unsteady to be judged: TTFT p50." in answer([told])


def test_a_p90_that_is_unsteady_is_not_judged() -> None:
    rounds = [replace(FOUND, times={**FOUND.times, TTFT: Percentiles(100.0, p90, 180.0)}) for p90 in (120.0, 240.0)]
    told = played(*rounds)
    assert agreed([told])
    assert "8 of 9 agree; too unsteady to be judged: TTFT p90." in answer([told])
    assert "unsteady: its rounds 66.7%" in figures_table([told])


def test_p99_is_told_and_not_judged() -> None:
    theirs = replace(FOUND, times={**FOUND.times, TTFT: Percentiles(100.0, 150.0, 900.0)})
    assert word(FOUND, theirs, "TTFT p99") is Word.TOLD
    assert agreed([played(theirs)])
    assert "not judged" in figures_table([played(theirs)])


@pytest.mark.parametrize(("place", "differs"), [("p50", True), ("p90", False)])
def test_of_single_gaps_only_the_median_is_judged(place: str, differs: bool) -> None:
    theirs = replace(FOUND, times={**FOUND.times, GAP: replace(FOUND.times[GAP], **{place: 60.0})})
    assert (word(FOUND, theirs, f"ITL {place}") is Word.DIFFER) is differs
    assert agreed([played(theirs)]) is not differs


def test_a_figure_that_one_of_both_has_not_is_left_out() -> None:
    theirs = replace(FOUND, times={name: times for name, times in FOUND.times.items() if name != GAP})
    assert not [row for row in compared([FOUND], [theirs]) if row.measure.startswith(GAP)]
    assert agreed([played(theirs)])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"whole": 149}, "whole: 149, 150"),
        ({"prompt_tokens": 91_000}, "prompt tokens: 90,000, 91,000"),
        ({"output_tokens": 8_999}, "output tokens: 8,999, 9,000"),
        ({"failed": 2}, "2 requests failed"),
    ],
)
def test_another_load_is_no_agreement(changed: dict[str, int], told: str) -> None:
    theirs = replace(FOUND, **changed)  # type: ignore[arg-type]  # each of these fields is a count
    assert list(other_load([FOUND], [theirs])) == [told]
    assert not agreed([played(FOUND, theirs)])
    assert f"did not play the same load ({told})" in answer([played(theirs)])


def test_nothing_that_was_compared_is_no_agreement() -> None:
    assert not agreed([])
    assert not agreed([Played("constant", "150 requests", {OURS: [FOUND]})])
    nothing = replace(FOUND, whole=0)
    assert not agreed([played(nothing, ours=nothing)])


def test_our_figures_are_those_of_our_report() -> None:
    records = [record(number=number, at=number / 10, tokens=21) for number in range(10)]
    measures = side_of("ours", records, schedule(records), OBJECTIVES).measures
    found = of_ours(measures)
    assert (found.whole, found.failed, found.output_tokens) == (10, 0, 210)
    assert found.times[TTFT].p50 == pytest.approx(100)
    assert found.times[TPOT].p50 == found.times[GAP].p50 == pytest.approx(10)
    assert found.times[E2E].p90 == pytest.approx(300)
    assert found.requests_per_second == measures.whole_per_second


def test_the_page_says_first_whether_they_agree_and_where_not() -> None:
    def told(theirs: Figures) -> str:
        return page(
            [played(theirs, theirs)],
            commit="abc1234",
            host=HOST,
            begun="2026-11-30T13:00:00Z",
            versions={"AIPerf": "0.13.0"},
            command="python -m loadtest.referees",
            notes=["GuideLLM was left out: no torch."],
        )

    good, bad = told(FOUND), told(with_time(TTFT, 150.0))
    assert "**They agree.**" in good
    assert "9 of 9 agree." in good
    assert "**They do not agree.**" in bad
    assert "8 of 9 agree; differ: TTFT p50." in bad
    assert "**+50.0%**" in bad
    for words in ("abc1234", "AIPerf: 0.13.0", "2026-11-30T13:00:00Z", "left out", HOST.cpu):
        assert words in good
    assert "The host had other work" not in good
    assert rounds_table([played(FOUND, FOUND)]).count("AIPerf") == 2


def test_the_page_says_what_makes_it_weaker_than_it_looks() -> None:
    told = page(
        [played(FOUND)],
        commit="abc1234 and changes not committed",
        host=replace(HOST, load=(4.0, 4.0)),
        begun="2026-11-30T13:00:00Z",
        versions={},
        command="python -m loadtest.referees",
    )
    assert "not exactly a commit" in told
    assert "The host had other work" in told
