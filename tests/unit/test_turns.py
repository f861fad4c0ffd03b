"""A deadline in turns of the loop comes, comes no sooner than its seconds, and leaves out what the loop was held up."""

import asyncio
import time

import pytest

from tests.turns import TURN_SECONDS, Ticks, Turns, within


async def test_what_does_not_come_is_given_up_after_its_turns_and_no_sooner() -> None:
    began = time.monotonic()
    with Turns() as turns, pytest.raises(TimeoutError):
        async with within(0.2):
            await asyncio.Event().wait()
    assert time.monotonic() - began >= 0.2 - TURN_SECONDS
    assert turns.seconds <= 0.2 + TURN_SECONDS


async def test_what_comes_in_time_is_not_and_nothing_rings_afterwards() -> None:
    async with within(0.05):
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)


async def test_a_loop_that_is_held_up_makes_one_turn_meanwhile() -> None:
    with Turns() as turns:
        async with within(0.2):
            for _ in range(3):
                await asyncio.sleep(0)
                time.sleep(0.3)  # as a machine does that has other work
    assert turns.seconds <= 4 * TURN_SECONDS


def test_ticks_go_on_while_their_thread_waits() -> None:
    with Ticks() as ticks:
        give_up_at = time.monotonic() + 30
        while ticks.seconds < 0.1 and time.monotonic() < give_up_at:
            time.sleep(0.01)
    assert ticks.seconds >= 0.1
