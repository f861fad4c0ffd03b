"""What is known comes out: percentiles, goodput, endings, lateness, the knee."""

import math
import statistics
from array import array
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.load.plan import Objectives
from loadtest.load.record import Ending
from loadtest.percentiles import percentile
from loadtest.report import measures
from loadtest.report.measures import CURVE, Measures, curve_of, knee, measured, meets, spread, times_of
from tests.unit.loadtest.report.made import OBJECTIVES, record

SECONDS = st.floats(min_value=1e-6, max_value=1e4)


# Distributions.


def test_of_one_to_a_hundred_the_99th_percentile_is_99() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0.0, 0.01, 0.07, 0.5, 0.9, 0.95, 0.99, 1.0)] == [
        *(1, 1, 7, 50, 90, 95, 99, 100)
    ]


@given(st.lists(SECONDS, min_size=1), st.floats(min_value=0.001, max_value=1))
def test_a_percentile_is_a_time_that_somebody_had_and_that_share_did_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(sorted(values), share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) < share * len(values)


def test_times_are_told_in_milliseconds() -> None:
    told = times_of([0.1, 0.2, 0.6])
    assert told is not None
    assert (told.count, told.mean, told.p50, told.p99, told.max) == (3, 300.0, 200.0, 600.0, 600.0)


def test_where_nothing_was_timed_nothing_is_told() -> None:
    assert times_of([]) is None
    assert curve_of([]) == ()


@given(st.lists(SECONDS, min_size=1))
def test_a_curve_rises_from_the_fastest_to_the_slowest(values: list[float]) -> None:
    curve = curve_of(values)
    assert len(curve) == len(CURVE)
    assert list(curve) == sorted(curve)
    assert (curve[0], curve[-1]) == pytest.approx((1e3 * min(values), 1e3 * max(values)), rel=1e-4)


# Times of a request.


def test_a_late_generator_does_not_shorten_the_time_to_first_token() -> None:
    assert measures.ttft(record(at=5.0, late=0.3, waited=0.4)) == pytest.approx(0.4)
    assert measures.end_to_end(record(at=5.0, late=0.3, waited=0.4, gap=0.1, tokens=3)) == pytest.approx(0.6)


def test_the_time_per_token_leaves_the_first_one_out() -> None:
    assert measures.tpot(record(waited=3.0, gap=0.02, tokens=11)) == pytest.approx(0.02)
    assert measures.tpot(record(tokens=1)) is None


def test_tokens_are_those_of_the_usage_where_events_carry_several() -> None:
    several = replace(record(waited=1.0, gap=0.1, tokens=11), completion_tokens=21)
    assert measures.tpot(several) == pytest.approx(0.05)
    assert measures.output_tokens(several) == 21
    assert measures.output_tokens(replace(several, completion_tokens=None)) == 11


def test_gaps_lie_within_streams_and_not_between_them() -> None:
    first, second = record(tokens=0), record(tokens=0)
    first.token_times, second.token_times = array("d", [1.0, 1.1, 1.4]), array("d", [9.0, 9.5])
    assert list(measures.gaps([first, second])) == pytest.approx([0.1, 0.3, 0.5])


@pytest.mark.parametrize("ending", [ending for ending in Ending if ending is not Ending.WHOLE])
def test_only_whole_answers_are_timed_to_their_end(ending: Ending) -> None:
    broken = record(ending=ending)
    assert measures.end_to_end(broken) is None
    assert measures.tpot(broken) is None


def test_what_is_no_stream_has_no_first_token() -> None:
    assert measures.ttft(record(stream=False)) is None
    assert measures.tpot(record(stream=False)) is None
    assert measures.end_to_end(record(stream=False)) is not None
    assert measures.ttft(record(status=503, ending=Ending.ERROR)) is None


# Goodput.


@pytest.mark.parametrize(
    ("waited", "gap", "tokens", "good"),
    [(0.499, 0.05, 11, True), (0.501, 0.01, 11, False), (0.1, 0.051, 11, False), (0.1, 0.01, 1, True)],
)
def test_a_request_is_good_within_every_objective(waited: float, gap: float, tokens: int, good: bool) -> None:
    assert meets(record(waited=waited, gap=gap, tokens=tokens), OBJECTIVES) is good


def test_the_whole_answer_has_an_objective_too() -> None:
    within = Objectives(e2e_ms=1000)
    assert meets(record(waited=0.5, gap=0.04, tokens=11, stream=False), within) is True
    assert meets(record(waited=0.5, gap=0.06, tokens=11, stream=False), within) is False


@pytest.mark.parametrize("ending", [Ending.ERROR, Ending.TOLD, Ending.CUT, Ending.REFUSED, Ending.TIMEOUT])
def test_what_did_not_come_whole_is_not_good_however_fast(ending: Ending) -> None:
    assert meets(record(waited=0.001, ending=ending), Objectives()) is False


def test_a_refusal_by_the_callers_own_limit_is_not_judged_and_no_failure() -> None:
    own = record(waited=None, status=429, code="rate_limit_exceeded", ending=Ending.ERROR)
    others = record(waited=None, status=429, code="overloaded", ending=Ending.ERROR)
    assert meets(own, OBJECTIVES) is None
    assert meets(others, OBJECTIVES) is False
    told = measured([own, others], OBJECTIVES, seconds=1)
    assert (told.limited, told.failed, told.judged) == (1, 1, 1)


def test_who_left_before_an_objective_was_missed_is_not_judged() -> None:
    patient = record(waited=None, ending=Ending.LEFT)
    patient.ended_at = 0.6
    assert meets(patient, OBJECTIVES) is False
    patient.ended_at = 0.4
    assert meets(patient, OBJECTIVES) is None
    assert meets(record(waited=0.2, ending=Ending.LEFT), OBJECTIVES) is None
    assert meets(record(waited=0.7, ending=Ending.LEFT), OBJECTIVES) is False


def test_goodput_is_a_share_of_the_judged_and_a_rate() -> None:
    told = measured([record(), record(), record(waited=2.0), record(ending=Ending.LEFT)], OBJECTIVES, seconds=2)
    assert told.goodput == pytest.approx(2 / 3)
    assert told.goodput_per_second == 1.0
    assert told.offered_per_second == 2.0
    assert measured([], OBJECTIVES, seconds=2).goodput is None


# All together.


@given(st.lists(st.sampled_from(list(Ending))), st.integers(min_value=0, max_value=9))
def test_every_request_ended_in_one_way(endings: list[Ending], limited: int) -> None:
    own = [record(waited=None, status=429, code="quota_exceeded", ending=Ending.ERROR)] * limited
    told = measured([*(record(ending=ending) for ending in endings), *own], OBJECTIVES, seconds=1)
    assert told.whole + told.failed + told.limited + told.left == told.requests == len(endings) + limited
    assert sum(each.requests for each in told.endings) == told.requests
    assert told.met <= told.judged <= told.requests


def test_endings_are_told_with_status_and_code_and_the_rare_ones_together() -> None:
    records = [record()] * 3 + [
        record(waited=None, status=503, code=f"code-{number:02}", ending=Ending.ERROR) for number in range(30)
    ]
    told = measured(records, OBJECTIVES, seconds=1).endings
    assert (told[0].ending, told[0].status, told[0].requests) == ("whole", 200, 3)
    assert (told[1].ending, told[1].status, told[1].code) == ("error", 503, "code-00")
    assert (told[-1].ending, told[-1].requests) == ("others", 11)
    assert len(told) == measures.MOST_ENDINGS + 1


def test_lateness_is_the_generators_own() -> None:
    told = measured([record(late=0.001 * number) for number in range(1, 101)], OBJECTIVES, seconds=1)
    assert told.late_ms is not None
    assert (told.late_ms.p50, told.late_ms.p99, told.late_ms.max) == (50.0, 99.0, 100.0)
    connected = replace(record(late=0.5), taken_at=0.002)
    late = measured([connected], OBJECTIVES, seconds=1).late_ms
    assert late is not None
    assert late.max == 2.0, "making the connection is the server's part"


def test_a_closed_loop_has_no_time_to_be_late_for() -> None:
    assert measured([record(late=1.0)], OBJECTIVES, seconds=1, open_loop=False).late_ms is None


def test_tokens_are_summed_and_the_cached_ones_a_share_of_the_prompts() -> None:
    told = measured([record(tokens=10), record(tokens=20)], OBJECTIVES, seconds=3)
    assert (told.prompt_tokens, told.output_tokens, told.tokens_per_second) == (200, 30, 10.0)
    assert told.cached_share == pytest.approx(0.4)


# Evenness.


def test_evenness_is_known_at_its_ends() -> None:
    even, one = spread(dict.fromkeys("abcd", 5)), spread({"a": 20, "b": 0, "c": 0, "d": 0})
    assert even is not None
    assert one is not None
    assert (even.max_over_mean, even.jain) == (1.0, 1.0)
    assert (one.max_over_mean, one.jain) == (4.0, 0.25)
    assert spread({"a": 0}) is None


@given(st.dictionaries(st.text(), st.integers(min_value=0, max_value=10**6), min_size=1))
def test_evenness_lies_between_one_pod_for_all_and_all_alike(counts: dict[str, int]) -> None:
    found = spread(counts)
    assert (found is None) == (sum(counts.values()) == 0)
    if found:
        assert 1 / len(counts) - 1e-4 <= found.jain <= 1 + 1e-4
        assert 1 - 1e-4 <= found.max_over_mean <= len(counts) + 1e-4


# The knee.


def steps(*told: tuple[float, float]) -> list[Measures]:
    """Of rates and shares that met the objectives."""
    made = []
    for rate, share in told:
        of_step = measured([record()] * 100, OBJECTIVES, seconds=100 / rate)
        made.append(replace(of_step, judged=1000, met=round(1000 * share)))
    return made


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ([(10, 1.0), (20, 0.995), (40, 0.9), (80, 0.1)], 1),
        ([(10, 1.0), (20, 1.0)], 1),
        ([(10, 0.5), (20, 0.4)], None),
        ([(10, 1.0), (20, 0.9), (40, 1.0)], 0),
        ([(40, 0.9), (20, 1.0), (10, 1.0)], 1),
        ([], None),
    ],
)
def test_the_knee_is_the_last_rate_before_goodput_falls(told: Sequence[tuple[float, float]], place: int | None) -> None:
    assert knee(steps(*told), 0.99) == place


def test_a_step_in_which_nothing_was_judged_says_nothing_of_the_knee() -> None:
    first, second, third = steps((10, 1.0), (20, 1.0), (40, 1.0))
    silent = replace(second, judged=0, met=0)
    assert knee([first, silent], 0.99) == 0
    assert knee([first, silent, third], 0.99) == 2


def test_a_mean_is_that_of_the_values() -> None:
    values = [0.001 * number**2 for number in range(1, 50)]
    told = times_of(values)
    assert told is not None
    assert math.isclose(told.mean, 1e3 * statistics.fmean(values), rel_tol=1e-4)
