"""Second by second, nothing is lost: what was sent ends somewhere, and what is open at the end is nothing."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.load.record import Ending, Record
from loadtest.report.timeline import MOST_SLOTS, timeline_of, width_for
from tests.unit.loadtest.report.made import record


def test_requests_stand_where_they_were_meant_to_be_sent_and_ends_where_they_happened() -> None:
    told = timeline_of([record(at=0.5, late=1.0, waited=2.0, gap=1.0, tokens=3)], 5)
    assert told.sent == (1, 0, 0, 0, 0)
    assert told.ttft_p50_ms == (2000.0, None, None, None, None)
    assert told.whole == (0, 0, 0, 0, 1)
    assert told.open == (0, 1, 1, 1, 0)
    assert told.tokens == (0, 0, 1, 1, 1)


@pytest.mark.parametrize(
    ("ending", "status", "code", "name"),
    [
        (Ending.WHOLE, 200, "", "whole"),
        (Ending.LEFT, 200, "", "left"),
        (Ending.ERROR, 429, "rate_limit_exceeded", "limited"),
        (Ending.ERROR, 503, "queue_full", "failed"),
        (Ending.CUT, 200, "", "failed"),
        (Ending.REFUSED, 0, "", "failed"),
    ],
)
def test_each_ending_has_its_series(ending: Ending, status: int, code: str, name: str) -> None:
    told = timeline_of([record(ending=ending, status=status, code=code)], 1)
    assert {each for each in ("whole", "failed", "limited", "left") if sum(getattr(told, each))} == {name}


def test_the_line_goes_on_until_the_last_answer() -> None:
    assert len(timeline_of([record(at=1.0, waited=8.5, tokens=1)], 5).sent) == 10


def test_a_long_run_has_wider_slots_and_no_more_of_them() -> None:
    assert [width_for(seconds) for seconds in (10, 240, 241, 1200, 3600)] == [1, 1, 2, 5, 15]
    assert len(timeline_of([], 1200).sent) <= MOST_SLOTS


def drawn(seed: int, count: int) -> list[Record]:
    rng = Random(seed)
    return [
        record(
            at=rng.uniform(0, 30),
            late=rng.uniform(0, 1),
            waited=rng.choice([None, rng.uniform(1, 20)]),
            tokens=rng.randint(1, 9),
            ending=rng.choice(list(Ending)),
        )
        for _ in range(count)
    ]


@given(st.integers(), st.integers(min_value=0, max_value=40))
def test_all_that_was_sent_ended_and_nothing_stays_open(seed: int, count: int) -> None:
    records = drawn(seed, count)
    told = timeline_of(records, 30)
    assert sum(told.sent) == count
    assert sum(map(sum, (told.whole, told.failed, told.limited, told.left))) == count
    assert sum(told.tokens) == sum(len(each.token_times) for each in records)
    assert told.open[-1] == 0
    assert min(told.open) >= 0
