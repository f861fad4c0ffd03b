"""How long something else is waited for, our own delays left out."""

import asyncio
from types import TracebackType
from typing import Self

LOOP_LATE_SECONDS = 0.005
LAST_TURNS = 4
"""Of the loop, which an answer that is there needs to be read."""


class Patience:
    """A deadline for others, not for ourselves: a loop that was held up finds its timer and the answer at one time, and
    then the answer counts. `slow`: it was not there after so long."""

    def __init__(self, seconds: float, slow_after: float | None = None) -> None:
        self._rest = seconds if slow_after is None else seconds - slow_after
        self._slow_after = slow_after
        self.slow = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._limit = asyncio.timeout(None)
        await self._limit.__aenter__()
        self._wait(self._rest if self._slow_after is None else self._slow_after)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def _wait(self, seconds: float) -> None:
        due = self._loop.time() + seconds
        self._handle: asyncio.Handle = self._loop.call_at(due, self._ring, due, seconds)

    def _ring(self, due: float, seconds: float) -> None:
        if self._loop.time() - due > LOOP_LATE_SECONDS:
            # What was to be sent may have been held up as well. Once more, for as long; not again.
            self._handle = self._loop.call_later(seconds, self._give, LAST_TURNS)
        else:
            self._give(LAST_TURNS)

    def _give(self, turns: int) -> None:
        if turns:
            self._handle = self._loop.call_soon(self._give, turns - 1)
        elif self._slow_after is None or self.slow:
            self._limit.reschedule(self._loop.time())
        else:
            self.slow = True
            self._wait(self._rest)
