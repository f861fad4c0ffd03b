"""Stores as replicas have them, each with its own connection to a real server."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from random import Random

from gateway.limits.batch import PREFIX
from gateway.limits.bucket import MINUTE, Bucket, Costs, Taken
from gateway.limits.redis_store import Pace, RedisStore
from tests.turns import within
from tests.valkey import Valkey

ONE: Costs = (1, 0, 0, 0)
BRISK = Pace(connect=20.0, answer=20.0, slow=19.0, probe=0.1, sweep=0.05)
"""Patient with a machine that does other things as well, and quick in all else. Where a test wants Redis to be late,
it has it `stopped`."""
ONE_SWEEP = replace(BRISK, sweep=60.0)
"""What is leased is not given back, however long the machine takes to spend it."""


def requests(amount: int, period: float = MINUTE, name: bytes = b"requests") -> Bucket:
    return Bucket(name, "requests_per_minute", amount, period)


def running(amount: int, name: bytes = b"running") -> Bucket:
    return Bucket(name, "concurrent", amount, 0.0)


@asynccontextmanager
async def storing(
    url: str,
    replica: str = "r0",
    *,
    pace: Pace = BRISK,
    replicas: int = 1,
    clock: Callable[[], float] = time.monotonic,
    wait: bool = True,
) -> AsyncIterator[RedisStore]:
    """A store at work; counting in Redis, unless nobody waits for that."""
    store = RedisStore(url, replica=replica, replicas=lambda: replicas, clock=clock, chance=Random(7).random, pace=pace)
    task = asyncio.create_task(store.run())
    try:
        if wait:
            await until(lambda: store.mode == "redis")
        yield store
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@contextmanager
def stopped(server: Valkey, store: RedisStore, answer: float = 0.2) -> Iterator[None]:
    """The server is, in this block, and so long the store waits for an answer meanwhile."""
    patient = store._pace
    store._pace = replace(patient, connect=answer, answer=answer, slow=0.9 * answer)
    server.pause()
    try:
        yield
    finally:
        server.resume()
        store._pace = patient


async def until(seen: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until it is so, and say so if it does not come."""
    async with within(seconds):
        while not seen():
            await asyncio.sleep(0.002)


async def take(store: RedisStore, buckets: Sequence[Bucket], costs: Costs = ONE) -> Taken:
    """As admission does."""
    return store.take_nowait(buckets, costs) or await store.take(buckets, costs)


def key(bucket: Bucket) -> bytes:
    """Its name in Redis."""
    return PREFIX + bucket.key
