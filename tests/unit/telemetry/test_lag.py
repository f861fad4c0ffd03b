"""The longest that the loop was held up is not missed between two scrapes, and not told for ever."""

import asyncio
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.telemetry.lag import HALF_SECONDS, SAMPLE_SECONDS, LoopLag
from tests.turns import within


class Hand:
    """A clock whose hand the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def noted(*wakes: tuple[float, float]) -> float:
    """The longest, after wakes at these seconds that came so late."""
    lag = LoopLag(Hand())
    for at, late in wakes:
        lag.note(late, 1000.0 + at)
    return lag.longest()


def test_nothing_has_held_up_a_loop_that_has_just_begun() -> None:
    assert LoopLag(Hand()).longest() == 0


def test_a_stall_is_told_for_half_a_minute_at_least() -> None:
    for began in (0.0, 10.0, 29.9):
        assert noted((began, 0.4), (began + HALF_SECONDS - 0.1, 0.001)) == 0.4


def test_a_stall_is_forgotten_after_a_minute() -> None:
    for began in (0.0, 10.0, 29.9):
        wakes = [(began + half * HALF_SECONDS, 0.001) for half in range(1, 3)]
        assert noted((began, 0.4), *wakes) == 0.001


def test_a_half_that_was_ended_late_makes_the_next_one_no_longer() -> None:
    assert noted((1.0, 0.4), (33.0, 0.001), (62.0, 0.001)) == 0.001


def test_the_longest_counts_not_the_last() -> None:
    assert noted((1.0, 0.1), (2.0, 0.3), (3.0, 0.2)) == 0.3


def test_a_wake_that_comes_early_is_no_negative_lag() -> None:
    assert noted((1.0, -0.001)) == 0


def test_after_a_stall_of_minutes_only_that_is_told() -> None:
    assert noted((1.0, 7.0), (200.0, 190.0)) == 190
    assert noted((1.0, 7.0), (200.0, 0.0)) == 0


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0.05, 40.0), st.floats(0.0, 5.0)), min_size=1, max_size=60))
def test_the_half_minute_is_never_missed_and_nothing_before_the_minute_is_told(
    steps: list[tuple[float, float]],
) -> None:
    lag, wakes, now = LoopLag(Hand()), list[tuple[float, float]](), 1000.0
    for seconds, late in steps:
        now += seconds
        lag.note(late, now)
        wakes.append((now, late))
    longest = lag.longest()
    assert longest >= max(late for at, late in wakes if now - at < HALF_SECONDS)
    assert longest in {late for at, late in wakes if now - at <= 2 * HALF_SECONDS} | {0.0}


async def test_a_loop_that_is_held_up_says_for_how_long() -> None:
    lag = LoopLag(time.monotonic)
    looking = asyncio.create_task(lag.run())
    await asyncio.sleep(2 * SAMPLE_SECONDS)
    time.sleep(4 * SAMPLE_SECONDS)  # what must never be done
    async with within(5):
        while lag.longest() < 3 * SAMPLE_SECONDS - 0.01:
            await asyncio.sleep(0.01)
    looking.cancel()
    with suppress(asyncio.CancelledError):
        await looking


async def test_the_look_goes_on_until_it_is_cancelled() -> None:
    looking = asyncio.create_task(LoopLag(time.monotonic).run())
    await asyncio.sleep(3 * SAMPLE_SECONDS)
    assert not looking.done()
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
