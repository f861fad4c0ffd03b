"""Limits counted in this process: exact for one replica."""

import asyncio
from collections.abc import Callable, Sequence

from gateway.limits.bucket import Book, Bucket, Costs, Taken
from gateway.limits.store import Mode


class MemoryStore:
    """A `Store` that knows everything at once. `clock`: monotonic seconds."""

    mode: Mode = "memory"
    reason = ""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.since = clock()
        self.book = Book()

    def take_nowait(self, buckets: Sequence[Bucket], costs: Costs) -> Taken:
        """See `Store`; always knows."""
        return self.book.take(buckets, costs, self._clock() * 1e6)

    async def take(self, buckets: Sequence[Bucket], costs: Costs) -> Taken:
        """See `Store`."""
        return self.take_nowait(buckets, costs)

    def settle(self, taken: Taken, buckets: Sequence[Bucket], reserved: Costs, used: Costs) -> None:
        """See `Store`."""
        self.book.settle(buckets, reserved, used, self._clock() * 1e6)

    def level(self, bucket: Bucket) -> float:
        """See `Store`; always known."""
        return self.book.level(bucket, self._clock() * 1e6)

    async def run(self) -> None:
        """Nothing runs beside."""
        await asyncio.Event().wait()
