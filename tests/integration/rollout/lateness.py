"""How long the machine kept processes waiting: what a promise "within a second" is not measured by.

Linux counts for each thread how long it was ready to work and had no processor. On a machine with nothing else to do
that is next to nothing, and a bound is what it says.
"""

import asyncio
import os
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

SAMPLE_SECONDS = 0.01


class Lateness:
    """Of this process and others, which may come and go; by the loop's time."""

    def __init__(self, others: Callable[[], Iterable[int]]) -> None:
        self._others = others
        self._waited: dict[int, float] = {}
        self._moments: list[float] = []
        self._sums: list[float] = []
        """Of all seconds before each of these moments in which one of them waited."""

    def note(self) -> None:
        """Look at them all."""
        now, waited = asyncio.get_running_loop().time(), 0.0
        for pid in (os.getpid(), *self._others()):
            # One that is gone waits no more; and where the kernel does not count, nobody was kept waiting.
            with suppress(OSError):
                told = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
                waited += told - self._waited.get(pid, told)
                self._waited[pid] = told
        if self._moments:
            self._sums.append(self._sums[-1] + min(waited, now - self._moments[-1]))
        else:
            self._sums.append(0.0)
        self._moments.append(now)

    def between(self, since: float, until: float) -> float:
        """So many seconds between these moments one or the other of them waited, or a sample's time more."""
        first = max(0, bisect_right(self._moments, since) - 1)
        last = min(len(self._moments) - 1, bisect_left(self._moments, until))
        return self._sums[last] - self._sums[first]


@asynccontextmanager
async def lateness(others: Callable[[], Iterable[int]]) -> AsyncIterator[Lateness]:
    """Of this process and those with these ids, all through the block."""
    late = Lateness(others)
    late.note()

    async def look() -> None:
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            late.note()

    looking = asyncio.create_task(look())
    try:
        yield late
    finally:
        looking.cancel()
        late.note()
