"""What takes long with a large body, off the loop's thread and on one of its own.

Such work has the interpreter's lock for nearly all of its time, so more threads make nothing faster, but each of them
keeps the loop waiting for that lock once more, and holds what it makes of 8 MiB: tens of times that, for who means it.
And on the loop's own threads it would keep waiting what else goes there, such as the lookup of a name. A request that
is cancelled while it waits is not worked on.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MOST_AT_ONCE = 1
OFF_LOOP_BYTES = 262_144
"""From here on a look at a body, or a copy of it, may hold the loop for milliseconds."""

T = TypeVar("T")


class Aside:
    """One gateway's thread for large bodies."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MOST_AT_ONCE, "bodies")

    async def run(self, size: int, work: Callable[[], T]) -> T:
        """What `work` on a body of this size returns: at once, if it is small."""
        if size <= OFF_LOOP_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Nothing more comes; waits for nothing."""
        self._threads.shutdown(wait=False)
