"""Deadlines by a clock that stands still while the machine does other things.

A process that has to wait for the processor is late with everything, its own promises and what a test expects of them
alike. So a deadline here is so many turns of the event loop, a hundredth of a second each if nobody is in the way, and
whatever the machine makes of it. What would be late on an idle machine is late on a busy one; nothing else is. It is
for what happens in the test's own process; and not for a loop that holds itself up, which makes no turns meanwhile:
whoever wants to know that asks for the processor's time.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

TURN_SECONDS = 0.01


class Turns:
    """How much time has passed so far, in a `with` block on a loop."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._loop = asyncio.get_running_loop()

    def _turn(self) -> None:
        self.seconds += TURN_SECONDS
        self._next = self._loop.call_later(TURN_SECONDS, self._turn)

    def __enter__(self) -> Self:
        self._next = self._loop.call_later(TURN_SECONDS, self._turn)
        return self

    def __exit__(self, *_: object) -> None:
        self._next.cancel()


@asynccontextmanager
async def within(seconds: float, turn_seconds: float = TURN_SECONDS) -> AsyncIterator[None]:
    """As `asyncio.timeout`, for so many seconds' turns, each of so many. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    left = max(1, round(seconds / turn_seconds))
    timer: asyncio.TimerHandle

    def turn() -> None:
        nonlocal left, timer
        left -= 1
        if left:
            timer = loop.call_later(turn_seconds, turn)
        else:
            deadline.reschedule(loop.time())

    async with asyncio.timeout(None) as deadline:
        timer = loop.call_later(turn_seconds, turn)
        try:
            yield
        finally:
            timer.cancel()


class Ticks(threading.Thread):
    """The same for what holds up its thread, the block of a `with`: another thread counts hundredths of a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seconds = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(TURN_SECONDS):
            self.seconds += TURN_SECONDS

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
