"""Work on large bodies is done, one at a time, and none that nobody waits for any more is begun."""

import asyncio
import threading
from functools import partial

import pytest

from gateway.pipeline.aside import MOST_AT_ONCE, OFF_LOOP_BYTES, Aside
from tests.turns import within


async def test_one_is_worked_on_at_a_time_and_none_that_has_been_given_up() -> None:
    may_end = threading.Event()
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        may_end.wait(5)
        return number

    aside = Aside()
    tasks = [asyncio.create_task(aside.run(OFF_LOOP_BYTES + 1, partial(work, number))) for number in range(8)]
    async with within(5):
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
    aside.close()


async def test_a_small_body_is_worked_on_at_once_while_a_large_one_of_another_gateway_holds_its_thread() -> None:
    here, there, may_end = Aside(), Aside(), threading.Event()
    held = asyncio.create_task(there.run(OFF_LOOP_BYTES + 1, partial(may_end.wait, 10)))
    await asyncio.sleep(0)
    async with within(5):
        assert await here.run(OFF_LOOP_BYTES, threading.get_ident) == threading.get_ident()
        assert await here.run(OFF_LOOP_BYTES + 1, threading.get_ident) != threading.get_ident()
    assert not held.done()
    may_end.set()
    assert await held
    for each in (here, there):
        each.close()
