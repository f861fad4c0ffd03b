"""However many ask for the metrics at once, they are rendered once, off the loop, and never older than a second."""

import asyncio
import threading

import pytest

from gateway.telemetry.exposition import KEEP_SECONDS, Exposition
from tests.turns import within


class Rendered:
    """What is rendered: how often, in which thread, and not before it may."""

    def __init__(self) -> None:
        self.now = 100.0
        self.value = 0
        self.renderings = 0
        self.threads: set[int] = set()
        self.may = threading.Event()
        self.may.set()
        self.fails = False
        self.exposition = Exposition(self.observe, self.render, lambda: self.now)

    def observe(self) -> None:
        self.value += 1
        assert threading.get_ident() == threading.main_thread().ident

    def render(self) -> bytes:
        self.renderings += 1
        self.threads.add(threading.get_ident())
        self.may.wait(5)
        if self.fails:
            raise RuntimeError("no text")
        return b"%d" % self.value


async def started(rendered: Rendered, scrapers: int) -> list[asyncio.Task[bytes]]:
    """So many scrapes that wait for a rendering which has begun."""
    tasks = [asyncio.create_task(rendered.exposition.text()) for _ in range(scrapers)]
    async with within(5):
        while not rendered.renderings:
            await asyncio.sleep(0.001)
    return tasks


async def test_many_who_ask_at_once_share_one_rendering() -> None:
    rendered = Rendered()
    rendered.may.clear()
    tasks = await started(rendered, 50)
    late = asyncio.create_task(rendered.exposition.text())
    await asyncio.sleep(0)
    rendered.may.set()
    assert await asyncio.gather(*tasks, late) == [b"1"] * 51
    assert rendered.renderings == rendered.value == 1


async def test_a_text_is_kept_for_a_second_and_no_longer() -> None:
    rendered = Rendered()
    texts = []
    for moment in (0.0, 0.5, KEEP_SECONDS - 0.001, KEEP_SECONDS, KEEP_SECONDS + 0.5, 100.0):
        rendered.now = 100.0 + moment
        texts.append(await rendered.exposition.text())
    assert texts == [b"1", b"1", b"1", b"2", b"2", b"3"]


async def test_its_age_is_counted_from_before_it_was_rendered() -> None:
    rendered = Rendered()
    rendered.may.clear()
    (task,) = await started(rendered, 1)
    rendered.now += 0.9
    rendered.may.set()
    assert await task == b"1"
    rendered.now += 0.1
    assert await rendered.exposition.text() == b"2"


async def test_it_is_rendered_off_the_loop() -> None:
    rendered = Rendered()
    await rendered.exposition.text()
    assert threading.get_ident() not in rendered.threads


async def test_the_loop_turns_while_it_is_rendered() -> None:
    rendered = Rendered()
    rendered.may.clear()
    (task,) = await started(rendered, 1)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    rendered.may.set()
    await task


async def test_who_hangs_up_takes_nothing_from_the_others() -> None:
    rendered = Rendered()
    rendered.may.clear()
    first, second = await started(rendered, 2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    rendered.may.set()
    assert await second == b"1"
    assert rendered.renderings == 1


async def test_a_failure_is_told_to_all_who_wait_and_kept_for_nobody() -> None:
    rendered = Rendered()
    rendered.may.clear()
    rendered.fails = True
    tasks = await started(rendered, 3)
    rendered.may.set()
    assert {str(error) for error in await asyncio.gather(*tasks, return_exceptions=True)} == {"no text"}
    rendered.fails = False
    assert await rendered.exposition.text() == b"2"
