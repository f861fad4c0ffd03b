"""Each expectation can be answered with yes and with no, and says so when there is nothing to go by."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.load.arrivals import OpenLoop, Pattern
from loadtest.load.lengths import Fixed
from loadtest.load.plan import (
    EXPECTATIONS,
    Entry,
    Fault,
    Objectives,
    PodPlan,
    Prompt,
    Scenario,
    StandPlan,
    Takes,
)
from loadtest.load.record import Ending, Record
from loadtest.report.side import Mark
from loadtest.stand.pods import Load
from loadtest.stand.verdicts import JUDGES, Evidence, judged, let_in_by_bucket
from loadtest.stand.watching import Sample, Watched
from tests.unit.loadtest.report.made import record

PODS = ("chat-0", "chat-1", "chat-2", "chat-3")
PER_MINUTE = 6
BURST_AND_THREE = PER_MINUTE + 3
"""What a bucket lets in within 30 s."""


def entry(kind: str) -> Entry:
    return Entry(
        kind=kind,
        share=1.0,
        key=kind,
        callers=1,
        path="/v1/chat/completions",
        model="m",
        stream=True,
        prompt=Prompt(Fixed(10)),
        answer=Fixed(10),
        leave=None,
        extra={},
    )


def scenario(faults: Sequence[Fault] = (), objectives: Objectives | None = None, **expect: Any) -> Scenario:
    return Scenario(
        name="made",
        question="Is it so?",
        seed=1,
        seconds=30.0,
        arrivals=OpenLoop(Pattern.CONSTANT, (1.0,)),
        mix=(entry("acme"), entry("other")),
        objectives=objectives or Objectives(),
        stand=StandPlan(
            pods=(PodPlan("m", 4, "generate", "chat", ()),),
            keys={"acme": {"requests_per_minute": PER_MINUTE}, "other": {}},
        ),
        faults=tuple(faults),
        expect=expect,
    )


def of(*records: Record, **more: Any) -> Evidence:
    return Evidence(scenario(), records, **more)


def limited(at: float, wait: float | None = 1.0) -> Record:
    refused = record(at=at, waited=None, ending=Ending.ERROR, status=429, code="rate_limit_exceeded", stream=False)
    return replace(refused, retry_after=wait, ended_at=at)


def at_pods(counts: Mapping[str, int], at: float = 1.0) -> list[Record]:
    return [record(at=at, pod=pod) for pod, count in counts.items() for _ in range(count)]


def watched(*samples: Sample, **more: Any) -> Watched:
    return Watched(samples=list(samples), **more)


def sample(at: float, in_flight: int = 0, memory: float = 100.0) -> Sample:
    return Sample(at, at + 0.01, {"chat-0": Load(in_flight, 0), "chat-1": None}, {"gateway-0": memory})


OVER_AND_OVER = [record(at=place * 0.1, stream=False) for place in range(PER_MINUTE + 6)]
SPARSE = [record(at=place * 20.0) for place in range(3)]
AWAY = (Mark(10.0, "Redis killed"), Mark(20.0, "Redis back"))
KILLED = Fault(at=5.0, what="kill_pod", pod="chat-1", back_after=5.0)
BACK = (Mark(5.0, "chat-1 killed"), Mark(10.0, "chat-1 back"))
SLOWED = Fault(at=5.0, what="slow_pod", pod="chat-3", factor=4.0, seconds=20.0)


def slowed(share: int, at: float = 15.0) -> Evidence:
    return Evidence(scenario([SLOWED]), at_pods({"chat-0": 10 - share, "chat-3": share}, at))


def came_back(share: int, at: float = 20.0) -> Evidence:
    records = [*at_pods({"chat-1": 0, "chat-0": 90}, 7.0), *at_pods({"chat-0": 10 - share, "chat-1": share}, at)]
    return Evidence(scenario([KILLED]), records, marks=BACK)


def cached(acme: int, other: int) -> list[Record]:
    return [
        replace(record(key=key), prompt_tokens=100, cached_tokens=tokens)
        for key, tokens in (("acme", acme), ("other", other))
    ]


def rising(*records: Record) -> Evidence:
    """Two rates, 5 and 10 a second."""
    wanted = scenario(objectives=Objectives(ttft_ms=500))
    return Evidence(replace(wanted, arrivals=OpenLoop(Pattern.CONSTANT, (5.0, 10.0))), records)


CASES: Mapping[str, tuple[Any, Evidence, Evidence, Evidence | None]] = {
    "up_to_per_second": (
        5,
        rising(record(step=0), record(step=1, waited=2.0)),
        rising(record(step=0, waited=2.0), *(record(step=1) for _ in range(200))),
        rising(record(step=1)),
    ),
    "only_whole_endings": (
        True,
        of(record(), record(ending=Ending.LEFT)),
        of(record(), record(ending=Ending.TOLD)),
        of(),
    ),
    "only_told_endings": (
        True,
        of(record(), record(ending=Ending.TOLD), record(ending=Ending.ERROR, status=503)),
        of(record(), record(ending=Ending.CUT)),
        of(),
    ),
    "only_codes": (
        True,
        of(record(ending=Ending.ERROR, status=503, code="queue_full")),
        of(record(ending=Ending.ERROR, status=500, code="oops")),
        of(),
    ),
    "refusals_say_when": (True, of(limited(0.0)), of(limited(0.0, None)), of(record())),
    "admitted_over_limit_at_most": (
        0.03,
        of(*OVER_AND_OVER[:PER_MINUTE], *(limited(1.0) for _ in range(6))),
        of(*OVER_AND_OVER),
        of(*SPARSE),
    ),
    "admitted_under_limit_at_most": (
        0.03,
        of(*OVER_AND_OVER[:PER_MINUTE], *(limited(1.0) for _ in range(6))),
        of(*OVER_AND_OVER[: PER_MINUTE - 1], *(limited(1.0) for _ in range(7))),
        of(*SPARSE),
    ),
    "extra_bursts_at_most": (
        0.5,
        of(*OVER_AND_OVER[: PER_MINUTE + 3], *(limited(1.5) for _ in range(3))),
        of(*OVER_AND_OVER),
        of(*SPARSE),
    ),
    "always_in_redis": (
        True,
        of(watched=watched(times_by_itself=0)),
        of(watched=watched(times_by_itself=1)),
        of(watched=watched()),
    ),
    "true_waits_within_seconds": (
        0.1,
        of(limited(0.0, 5.0), limited(3.0, 2.0), record(at=5.2)),
        of(limited(0.0, 5.0), record(at=3.0), record(at=5.2)),
        of(limited(0.0, 5.0)),
    ),
    "share_of_key_at_least": ({"acme": 0.9}, of(record()), of(record(ending=Ending.CUT)), of(record(key="other"))),
    "ttft_p95_of_key_ms": ({"acme": 200}, of(record(waited=0.1)), of(record(waited=0.3)), of(record(key="other"))),
    "ttft_p50_of_key_at_least_ms": (
        {"acme": 200},
        of(record(waited=0.3)),
        of(record(waited=0.1)),
        of(record(key="other")),
    ),
    "share_of_pod_at_most": ({"chat-3": 0.15}, slowed(1), slowed(3), slowed(3, at=1.0)),
    "share_of_pod_at_least": ({"chat-1": 0.2}, came_back(3), came_back(1), came_back(3, at=8.0)),
    "busiest_pod_at_most": (
        1.5,
        of(*at_pods(dict.fromkeys(PODS, 5))),
        of(*at_pods({"chat-0": 5})),
        of(record()),
    ),
    "recovers_within_seconds": (
        2,
        of(record(at=6.0, ending=Ending.CUT), record(at=8.0), marks=BACK),
        of(record(at=8.0, ending=Ending.CUT), marks=BACK),
        of(record()),
    ),
    "leaving_seen_within_seconds": (
        0.5,
        of(record(ending=Ending.LEFT), watched=watched(sample(0.1, 1), sample(1.0, 0))),
        of(record(ending=Ending.LEFT), watched=watched(sample(0.1, 1), sample(1.0, 1))),
        of(record(ending=Ending.LEFT)),
    ),
    "prefix_hits_at_least": (0.3, of(record()), of(replace(record(), cached_tokens=0)), of(record(waited=None))),
    "prefix_hits_over_others_at_least": (
        {"acme": 1.5},
        of(*cached(80, 40)),
        of(*cached(50, 40)),
        of(*cached(80, 40)[:1]),
    ),
    "added_p50_ms_at_most": (
        10,
        of(record(waited=0.105), direct=[record(waited=0.1)]),
        of(record(waited=0.12), direct=[record(waited=0.1)]),
        of(record()),
    ),
    "added_p99_ms_at_most": (
        10,
        of(record(waited=0.105), direct=[record(waited=0.1)]),
        of(record(waited=0.12), direct=[record(waited=0.1)]),
        of(record()),
    ),
    "in_flight_at_end": (0, of(watched=watched(in_flight_at_end=0.0)), of(watched=watched(in_flight_at_end=1.0)), of()),
    "memory_growth_mib_at_most": (
        10,
        of(watched=watched(*(sample(place, memory=100 + place / 10) for place in range(50)))),
        of(watched=watched(*(sample(place, memory=100 + place) for place in range(50)))),
        of(watched=watched(sample(0.0))),
    ),
    "kib_per_stream_at_most": (
        32,
        of(record(at=1.0, tokens=100), watched=watched(sample(0.0, memory=100.0), sample(1.5, memory=100.01))),
        of(record(at=1.0, tokens=100), watched=watched(sample(0.0, memory=100.0), sample(1.5, memory=101.0))),
        of(record(at=1.0)),
    ),
    "itl_p99_ms_at_most": (50, of(record(gap=0.01)), of(record(gap=0.1)), of(record(tokens=1))),
    "redis_again_within_seconds": (
        5,
        of(marks=AWAY, watched=watched(mode_back_at=22.0)),
        of(marks=AWAY, watched=watched(mode_back_at=None)),
        of(watched=watched()),
    ),
    "ttft_p99_without_redis_ms": (
        500,
        of(record(at=15.0, waited=0.1), record(at=25.0, waited=9.0), marks=AWAY),
        of(record(at=15.0, waited=0.6), marks=AWAY),
        of(record()),
    ),
}


def test_every_expectation_has_one_judge_and_a_case_here() -> None:
    assert set(JUDGES) == set(EXPECTATIONS) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_it_can_be_answered_with_yes_and_with_no(name: str) -> None:
    value, good, bad, _ = CASES[name]
    assert JUDGES[name](good, value).held is True, JUDGES[name](good, value).words
    assert JUDGES[name](bad, value).held is False, JUDGES[name](bad, value).words


@pytest.mark.parametrize("name", CASES)
def test_with_nothing_to_go_by_it_is_not_judged(name: str) -> None:
    value, _, _, nothing = CASES[name]
    if nothing is not None:
        assert JUDGES[name](nothing, value).held is None, JUDGES[name](nothing, value).words


@pytest.mark.parametrize("name", CASES)
def test_a_verdict_says_what_was_expected_and_what_was_found(name: str) -> None:
    value, good, _, _ = CASES[name]
    found = judged(replace(good, scenario=replace(good.scenario, expect={name: value})))[-1]
    assert found.expected.startswith(EXPECTATIONS[name].meaning)
    assert (EXPECTATIONS[name].takes is Takes.TRUE) == (found.expected == EXPECTATIONS[name].meaning)
    assert found.found


def test_the_objectives_are_judged_too() -> None:
    good, slow, failed = record(), record(waited=0.6), record(ending=Ending.CUT)
    wanted = scenario(objectives=Objectives(ttft_ms=500, goodput=0.6, errors=0.3, late_ms=50))

    def held(*records: Record) -> list[bool | None]:
        return [verdict.held for verdict in judged(Evidence(wanted, records))]

    assert held(good, good, slow) == [True, True, True]
    assert held(good, slow, slow) == [False, True, True]
    assert held(good, good, good, failed, failed) == [True, False, True]
    assert held(record(late=0.2)) == [True, True, False]
    assert held() == [None, None, None]


def test_beyond_the_rate_they_are_for_objectives_ask_nothing() -> None:
    told = rising(record(step=0), record(step=1, ending=Ending.CUT))
    wanted = replace(told, scenario=replace(told.scenario, expect={"up_to_per_second": 5}))
    assert [verdict.held for verdict in judged(told)[:2]] == [False, False]
    assert [verdict.held for verdict in judged(wanted)[:2]] == [True, True]


def test_a_fault_that_outlasts_the_load_proves_nothing() -> None:
    wanted = scenario([KILLED])
    seen = watched()
    over = judged(Evidence(wanted, [record()], marks=BACK, watched=seen))[-1]
    not_over = judged(Evidence(wanted, [record()], watched=seen, unfinished=("kill_pod",)))[-1]
    elsewhere = judged(Evidence(wanted, [record()]))[-1]
    assert (over.held, not_over.held, elsewhere.held) == (True, False, None)
    assert "kill_pod" in not_over.found


def test_what_runs_when_the_next_fault_comes_is_not_held_against_the_one_before() -> None:
    cut_by_the_second = record(at=8.0, waited=2.5, ending=Ending.TOLD)
    by_itself = record(at=8.0, waited=0.5, ending=Ending.TOLD)
    later = record(at=13.0)
    assert JUDGES["recovers_within_seconds"](of(cut_by_the_second, later, marks=BACK), 2).held is True
    assert JUDGES["recovers_within_seconds"](of(by_itself, later, marks=BACK), 2).held is False


def test_callers_of_one_entry_stand_for_its_key() -> None:
    many = of(record(key="acme-0"), record(key="acme-17", ending=Ending.CUT), record(key="acme-inc"))
    assert JUDGES["share_of_key_at_least"](many, {"acme": 0.5}).held is True
    assert JUDGES["share_of_key_at_least"](many, {"acme": 0.51}).held is False


def test_a_wait_that_was_longer_than_it_had_to_be_is_told_apart_from_one_too_short() -> None:
    too_long = of(limited(0.0, 5.0), record(at=3.0), record(at=6.0))
    too_short = of(limited(0.0, 1.0), limited(2.0, 1.0), limited(4.0, 1.0))
    assert "0 were too short, 1 longer" in JUDGES["true_waits_within_seconds"](too_long, 0.1).words
    assert "2 were too short, 0 longer" in JUDGES["true_waits_within_seconds"](too_short, 0.1).words


def test_a_place_that_one_got_who_was_waiting_before_makes_no_wait_too_short() -> None:
    told, next_one = replace(limited(0.0, 0.5), ended_at=0.2), limited(1.0, 5.0)
    overtaking = record(at=0.1, waited=0.6)
    before = record(at=0.1, waited=0.05)
    assert "0 were too short" in JUDGES["true_waits_within_seconds"](of(told, overtaking, next_one), 0.1).words
    assert "1 were too short" in JUDGES["true_waits_within_seconds"](of(told, before, next_one), 0.1).words


def test_what_was_long_under_way_may_have_been_counted_late_and_makes_no_wait_too_long() -> None:
    told, last = limited(0.0, 2.0), record(at=3.0)
    counted_late, counted_early = record(at=1.5, waited=0.6), record(at=1.5, waited=0.1)
    assert "0 longer" in JUDGES["true_waits_within_seconds"](of(told, counted_late, last), 0.1).words
    assert "1 longer" in JUDGES["true_waits_within_seconds"](of(told, counted_early, last), 0.1).words


def test_a_place_that_went_to_one_sent_later_and_counted_sooner_makes_no_wait_too_short() -> None:
    """Two replicas: the one that the first is sent to may be the slower."""
    told, overtaken = limited(0.0, 0.5), replace(limited(1.0, 5.0), ended_at=1.4)
    meanwhile, afterwards = record(at=1.2, waited=0.1), record(at=1.5, waited=0.1)
    assert "0 were too short" in JUDGES["true_waits_within_seconds"](of(told, overtaken, meanwhile), 0.1).words
    assert "1 were too short" in JUDGES["true_waits_within_seconds"](of(told, overtaken, afterwards), 0.1).words


def test_what_the_bucket_lets_in_is_what_a_window_may_hold() -> None:
    assert let_in_by_bucket([place / 10 for place in range(300)], PER_MINUTE) == PER_MINUTE + 2
    assert let_in_by_bucket([0.0] * 100, PER_MINUTE) == PER_MINUTE
    assert let_in_by_bucket([], PER_MINUTE) == 0


@given(st.lists(st.floats(0, 120), max_size=80), st.integers(1, 30), st.randoms(use_true_random=False))
def test_no_window_holds_more_than_a_burst_and_what_came_back(times: list[float], limit: int, chance: Random) -> None:
    times.sort()
    counts = [let_in_by_bucket(times[:place], limit) for place in range(len(times) + 1)]
    in_at = [at for at, (before, after) in zip(times, pairwise(counts), strict=True) if after > before]
    for first, begin in enumerate(in_at):
        for last in range(first, len(in_at)):
            span = in_at[last] - begin
            assert last - first + 1 <= math.floor(limit + span * limit / 60 + 1e-6)
