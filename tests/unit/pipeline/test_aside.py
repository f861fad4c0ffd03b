"""Work on large bodies is done, one at a time, and none that nobody waits for any more is begun."""

import asyncio
import threading
from functools import partial

import pytest

from gateway.pipeline.aside import MOST_AT_ONCE, aside


async def test_one_is_worked_on_at_a_time_and_none_that_has_been_given_up() -> None:
    may_end = threading.Event()
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        may_end.wait(5)
        return number

    tasks = [asyncio.create_task(aside(partial(work, number))) for number in range(8)]
    async with asyncio.timeout(5):
        while len(begun) < MOST_AT_ONCE:
            await asyncio.sleep(0.002)
    # The loop's own threads are free.
    assert await asyncio.to_thread(lambda: len(begun)) == MOST_AT_ONCE
    tasks[-1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[-1]
    may_end.set()
    assert await asyncio.gather(*tasks[:-1]) == list(range(7))
    assert sorted(begun) == list(range(7))
