"""Redis is stopped, killed, emptied, made read-only and slow, again and again, while three replicas have much to do. It
shows nowhere but in what is counted meanwhile, and afterwards nothing of it is left."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import pytest
import uvloop

from gateway.limits.bucket import DAY, Bucket, Costs, Counts
from gateway.limits.redis_store import NOTHING, Pace, RedisStore
from tests.stores import key, storing, until
from tests.turns import Turns
from tests.valkey import SlowLine, Valkey

SECONDS = 4.0
ENOUGH = 1000
PACE = Pace(connect=0.5, answer=0.1, slow=0.08, probe=0.1, sweep=0.05)
"""What runs is not told again in time to mend anything."""
COSTS: Costs = (1, 10, 40, 50)


def of(tenant: int) -> list[Bucket]:
    """Some tenants have leases, some are near their limits."""
    amount = (1_000_000, 2_000, 300)[tenant]
    name = b"%d" % tenant
    return [
        Bucket(name + b"requests", "requests_per_day", amount, DAY),
        Bucket(name + b"tokens", "tokens_per_day", amount * 50, DAY, Counts.BOTH),
        Bucket(name + b"running", "concurrent", (6400, 640, 6)[tenant], 0.0),
    ]


class Callers:
    """Take, hold, give back, or leave before they have an answer."""

    def __init__(self, rng: Random, stores: list[RedisStore], turns: Turns) -> None:
        self.rng = rng
        self.stores = stores
        self.turns = turns
        self.longest = 0.0
        self.taken = 0

    async def work(self, until_when: float) -> None:
        # A busy machine takes longer for as many.
        while time.monotonic() < until_when or self.taken <= ENOUGH:
            await self.one(self.rng.choice(self.stores), of(self.rng.randrange(3)))

    async def one(self, store: RedisStore, buckets: list[Bucket]) -> None:
        began = self.turns.seconds
        found = store.take_nowait(buckets, COSTS)
        if found is None:
            taking = asyncio.create_task(store.take(buckets, COSTS))
            if self.rng.random() < 0.2:
                await asyncio.sleep(self.rng.random() * 0.002)
                taking.cancel()
            (answer,) = await asyncio.gather(taking, return_exceptions=True)
            if isinstance(answer, asyncio.CancelledError):
                return
            assert not isinstance(answer, BaseException)
            found = answer
        self.longest = max(self.longest, self.turns.seconds - began)
        await asyncio.sleep(self.rng.random() * 0.02)
        if found.refused is None:
            self.taken += 1
            store.settle(found, buckets, COSTS, NOTHING)


async def befall(rng: Random, server: Valkey, line: SlowLine) -> None:
    """One thing after the other, each for a while."""
    kind = rng.choice(["pause", "pause", "kill", "flush", "scripts", "readonly", "slow", "cut"])
    seconds = rng.random() * 0.3
    if kind == "pause":
        server.pause()
        await asyncio.sleep(seconds)
        server.resume()
    elif kind == "kill":
        server.kill()
        await asyncio.sleep(seconds)
        await server.start()
    elif kind == "flush":
        server.flush()
    elif kind == "scripts":
        server.forget_scripts()
    elif kind == "readonly":
        server.refuse_writes()
        await asyncio.sleep(seconds)
        server.accept_writes()
    elif kind == "slow":
        line.seconds = 0.09
        await asyncio.sleep(seconds)
        line.seconds = 0.0
    else:
        await line.cut()
        await asyncio.sleep(seconds)
        await line.open()
    await asyncio.sleep(rng.random() * 0.5)


@pytest.mark.parametrize(("run", "seed"), [(asyncio.run, 1), (uvloop.run, 2)])
def test_whatever_befalls_redis_nobody_waits_long_and_nothing_stays_taken(
    run: Callable[[Coroutine[Any, Any, None]], None], seed: int
) -> None:
    run(scene(Random(seed)))


async def scene(rng: Random) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(Valkey())
        line = await stack.enter_async_context(SlowLine(server.port))
        urls = (server.url, server.url, line.url)
        stores = [
            await stack.enter_async_context(storing(url, f"r{number}", pace=PACE, replicas=3))
            for number, url in enumerate(urls)
        ]
        callers = Callers(rng, stores, stack.enter_context(Turns()))
        ends_at = time.monotonic() + SECONDS
        work = asyncio.gather(*(callers.work(ends_at) for _ in range(30)))
        while not work.done():
            await befall(rng, server, line)
        await work
        await until(lambda: all(store.mode == "redis" for store in stores))
        await until(lambda: all(not store._leases.held and not store._leases.running for store in stores))
        for tenant in range(3):
            requests, tokens, running = of(tenant)
            assert not server.client.exists(key(running))
            # A call may be carried out and its answer be lost: what it took is not given back, but comes back in time.
            for bucket in (requests, tokens):
                assert _used(server, bucket) <= 0.02 * callers.taken * COSTS[bucket.counts]
        assert callers.taken > ENOUGH
        assert callers.longest < 3 * PACE.answer + 0.2


def _used(server: Valkey, bucket: Bucket) -> float:
    full_at = float(server.client.get(key(bucket)) or 0)
    return max(0.0, full_at - server.now()) / bucket.interval
