"""Somebody else is waited for until a deadline; a loop that was held up itself leaves that out."""

import asyncio
from collections.abc import Iterator

import pytest

from gateway.core.patience import Patience
from tests.jumping import JumpingLoop


@pytest.fixture
def loop() -> Iterator[JumpingLoop]:
    made = JumpingLoop()
    yield made
    made.close()


async def after(loop: JumpingLoop, seconds: float) -> float:
    """An answer that comes so late."""
    began = loop.time()
    await asyncio.sleep(seconds)
    return loop.time() - began


def test_an_answer_in_time_is_waited_for(loop: JumpingLoop) -> None:
    async def scene() -> None:
        async with Patience(0.05, 0.025) as patience:
            await after(loop, 0.02)
        assert not patience.slow
        async with Patience(0.05, 0.025) as patience:
            await after(loop, 0.045)
        assert patience.slow
        # The timer of one that is over hurts nobody.
        await asyncio.sleep(1)

    loop.run_until_complete(scene())


@pytest.mark.parametrize("slow_after", [None, 0.025])
def test_one_that_is_late_is_not(loop: JumpingLoop, slow_after: float | None) -> None:
    async def scene() -> None:
        began = loop.time()
        with pytest.raises(TimeoutError):
            async with Patience(0.05, slow_after):
                await after(loop, 0.06)
        assert loop.time() - began == pytest.approx(0.05)

    loop.run_until_complete(scene())


def test_an_answer_that_was_there_before_we_looked_counts(loop: JumpingLoop) -> None:
    async def scene() -> None:
        answer = loop.create_future()
        loop.call_later(0.01, answer.set_result, "in time")
        loop.call_later(0.009, hold_up, loop, 3.0)
        async with Patience(0.05, 0.025) as patience:
            assert await answer == "in time"
        assert not patience.slow

    loop.run_until_complete(scene())


def test_an_answer_that_is_being_read_when_the_time_is_over_counts(loop: JumpingLoop) -> None:
    async def scene() -> None:
        answer = loop.create_future()
        loop.call_later(0.05, loop.call_soon, loop.call_soon, answer.set_result, "just so")
        async with Patience(0.05):
            assert await answer == "just so"

    loop.run_until_complete(scene())


def test_a_loop_that_was_held_up_waits_once_more_and_no_longer(loop: JumpingLoop) -> None:
    async def scene(seconds: float) -> None:
        loop.call_later(0.001, hold_up, loop, 0.06)
        async with Patience(0.05):
            await asyncio.sleep(0.061 + seconds)

    loop.run_until_complete(scene(0.045))
    with pytest.raises(TimeoutError):
        loop.run_until_complete(scene(0.055))


def test_a_cancellation_from_outside_stays_one(loop: JumpingLoop) -> None:
    async def scene() -> None:
        async def waits() -> None:
            async with Patience(0.05):
                await asyncio.sleep(1)

        task = asyncio.create_task(waits())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    loop.run_until_complete(scene())


def hold_up(loop: JumpingLoop, seconds: float) -> None:
    """The loop does something else for so long."""
    loop.jumping.now += seconds
