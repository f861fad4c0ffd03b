"""What replicas count together in Redis: exactly near a limit, without waiting far from it, and nothing stays."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from random import Random

import pytest

from gateway.limits.bucket import DAY, MINUTE, Bucket, Costs, Counts
from gateway.limits.redis_store import NOTHING, RedisStore
from tests.stores import BRISK, ONE, ONE_SWEEP, key, requests, running, storing, take, until
from tests.turns import within
from tests.valkey import ClusterValkey, SlowLine, Valkey

THREE = ("r0", "r1", "r2")


@pytest.fixture(scope="module", params=[Valkey, ClusterValkey])
def one_server(request: pytest.FixtureRequest) -> Iterator[Valkey]:
    valkey: Valkey = request.param()
    valkey.start_now()
    yield valkey
    valkey.stop_now()


@pytest.fixture
def server(one_server: Valkey) -> Iterator[Valkey]:
    one_server.flush()
    yield one_server
    assert one_server.denied() == []


@pytest.fixture
async def stores(server: Valkey) -> AsyncIterator[list[RedisStore]]:
    """Three replicas."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(storing(server.url, name, pace=ONE_SWEEP)) for name in THREE]


async def test_of_a_thousand_at_once_at_three_replicas_exactly_the_limit_is_let_in(stores: list[RedisStore]) -> None:
    began = time.monotonic()
    bucket = requests(100)
    taken = await asyncio.gather(*(take(stores[number % 3], [bucket]) for number in range(1000)))
    admitted = sum(each.refused is None for each in taken)
    assert 100 <= admitted <= 100 + (time.monotonic() - began) * 100 / 60
    waits = [each.wait for each in taken if each.refused is bucket]
    assert len(waits) == 1000 - admitted
    assert 0 < min(waits) <= max(waits) <= MINUTE / 100


async def test_with_leases_not_one_more_is_let_in_and_not_one_is_lost(stores: list[RedisStore]) -> None:
    began = time.monotonic()
    bucket = requests(1280)
    admitted = at_once = 0
    while admitted < 600:
        # Far from the limit, some at each replica: there are leases.
        for store in stores:
            for _ in range(5):
                found = store.take_nowait([bucket], ONE)
                at_once += found is not None
                assert (found or await store.take([bucket], ONE)).refused is None
                admitted += 1
    assert at_once > 300
    taken = await asyncio.gather(*(take(stores[number % 3], [bucket]) for number in range(3000)))
    admitted += sum(each.refused is None for each in taken)
    assert 1280 <= admitted <= 1280 + (time.monotonic() - began) * 1280 / 60


async def test_nobody_is_refused_for_what_the_same_replica_has_to_spare(server: Valkey) -> None:
    """It cannot be spent at once, since another of the request's limits must be asked for."""
    pace = replace(ONE_SWEEP, probe=60.0)
    wide, narrow = requests(640, DAY), requests(50, DAY, b"narrow")
    async with storing(server.url, "r0", pace=pace) as store, storing(server.url, "r1", pace=pace) as other:
        admitted = spare = 0
        while spare < 3:
            assert (await take(store, [wide])).refused is None
            admitted += 1
            spare = store._leases.held[wide.key].spare
        while (await take(other, [wide])).refused is None:
            admitted += 1
        assert admitted == 640 - spare
        for _ in range(spare):
            assert (await take(store, [wide, narrow])).refused is None
        assert (await take(store, [wide, narrow])).refused is wide


async def test_a_refusal_is_asked_again_once_and_not_for_as_long_as_something_comes_back(server: Valkey) -> None:
    tokens = Bucket(b"tokens", "tokens_per_day", 1000, DAY, Counts.BOTH)

    def calls() -> int:
        return int(server.client.info("commandstats")["cmdstat_evalsha"]["calls"])

    async with SlowLine(server.port, server.login) as line, storing(line.url) as store:
        inside = [await take(store, [tokens], (1, 0, 0, 10)) for _ in range(100)]
        line.seconds = 0.03
        asking = asyncio.create_task(take(store, [tokens], (1, 0, 0, 900)))
        while not asking.done():
            # In each call's time a little is given back, and it is never enough.
            store.settle(inside.pop(), [tokens], (1, 0, 0, 10), (1, 0, 0, 9))
            before = calls()
            await until(lambda: asking.done() or calls() > before)  # noqa: B023  # waited for here
        assert asking.result().refused is tokens
        assert len(inside) > 90


async def test_what_runs_at_once_is_limited_across_replicas_and_a_free_slot_is_anyones(
    stores: list[RedisStore],
) -> None:
    bucket = running(10)
    taken = await asyncio.gather(*(take(stores[number % 3], [bucket]) for number in range(30)))
    inside = [(stores[number % 3], each) for number, each in enumerate(taken) if each.refused is None]
    assert len(inside) == 10
    assert all(each.levels == (10,) for each in taken if each.refused)
    for store, each in inside[:4]:
        store.settle(each, [bucket], ONE, ONE)
    other = next(store for store in stores if store is not inside[0][0])
    async with within(20):
        while (await take(other, [bucket])).refused is not None:
            await asyncio.sleep(0.001)


async def test_a_caller_with_one_slot_may_ask_again_at_once_at_the_same_replica(server: Valkey) -> None:
    async with storing(server.url) as store:
        bucket = running(1)
        for _ in range(50):
            taken = await take(store, [bucket])
            assert taken.refused is None
            store.settle(taken, [bucket], ONE, ONE)


async def test_all_of_a_requests_buckets_are_taken_or_none(server: Valkey) -> None:
    async with storing(server.url) as store:
        plenty, scarce, slots = requests(1000, DAY), requests(1, DAY, b"scarce"), running(50)
        assert (await take(store, [plenty, slots, scarce])).refused is None
        for _ in range(20):
            taken = await take(store, [plenty, slots, scarce])
            assert taken.refused is scarce
        taken = await take(store, [plenty, slots])
        assert 1 * plenty.interval < taken.levels[0] <= 2 * plenty.interval
        assert taken.levels[1] == 2


async def test_far_from_a_limit_nobody_waits(server: Valkey) -> None:
    async with storing(server.url, pace=ONE_SWEEP) as store:
        buckets = [requests(1_000_000), Bucket(b"t", "tokens_per_minute", 10**9, MINUTE, Counts.BOTH), running(100_000)]
        costs: Costs = (1, 200, 300, 500)
        waited = 0
        server.client.config_resetstat()
        for _ in range(300):
            taken = store.take_nowait(buckets, costs)
            if taken is None:
                waited += 1
                taken = await store.take(buckets, costs)
            assert taken.refused is None
            store.settle(taken, buckets, costs, (1, 200, 100, 300))
            await asyncio.sleep(0.001)
        # The first, and some while the lease grows.
        assert waited < 60
        assert server.client.info("commandstats")["cmdstat_evalsha"]["calls"] < 300


async def test_levels_go_on_while_a_lease_is_spent(server: Valkey) -> None:
    async with storing(server.url, pace=ONE_SWEEP) as store:
        bucket, slots = requests(64_000, DAY), running(64_000)
        at_once = 0
        for number in range(1, 200):
            taken = store.take_nowait([bucket, slots], ONE)
            at_once += taken is not None
            taken = taken or await store.take([bucket, slots], ONE)
            # Whoever asks is told of what is leased as well.
            assert number - 0.1 <= taken.levels[0] / bucket.interval <= 2 * number
            assert number <= taken.levels[1] <= 2 * number
        assert at_once > 150
        last = store.take_nowait([bucket, slots], ONE)
        assert last is not None
        assert last.levels[0] / bucket.interval == pytest.approx(200, abs=0.1)
        assert last.levels[1] == 200


async def test_what_was_leased_and_not_spent_is_given_back(server: Valkey) -> None:
    async with storing(server.url) as store:
        bucket, slots = requests(640_000, DAY), running(64_000)
        for _ in range(200):
            taken = await take(store, [bucket, slots])
            store.settle(taken, [bucket, slots], ONE, NOTHING)
        await until(lambda: not server.client.exists(key(bucket), key(slots)))


async def test_a_small_limit_has_no_lease(server: Valkey) -> None:
    async with storing(server.url) as store:
        buckets = [requests(6000, DAY), running(31)]
        for number in range(1, 10):
            assert (await take(store, buckets)).refused is None
            assert server.client.hgetall(key(buckets[1]))[b"r0"].startswith(b"%d " % number)
            assert number - 0.5 < used(server, buckets[0]) <= number


def used(server: Valkey, bucket: Bucket) -> float:
    return (float(server.client.get(key(bucket))) - server.now()) / bucket.interval


async def test_tokens_are_made_what_was_used(server: Valkey) -> None:
    async with storing(server.url) as store:
        bucket = Bucket(b"tokens", "tokens_per_day", 10_000, DAY, Counts.BOTH)
        reserved: Costs = (1, 500, 1000, 1500)
        first = await take(store, [bucket], reserved)
        second = await take(store, [bucket], reserved)
        store.settle(first, [bucket], reserved, (1, 400, 100, 500))
        store.settle(second, [bucket], reserved, (1, 400, 2000, 2400))
        taken = await take(store, [bucket], (1, 0, 0, 1))
        assert 2900.0 < taken.levels[0] / bucket.interval <= 2901


async def test_every_key_ends_by_itself_and_what_is_full_has_none(server: Valkey) -> None:
    async with storing(server.url) as store:
        for number in range(100):
            name = b"%d" % number
            buckets = [requests(10, name=b"rate" + name), running(10, b"count" + name)]
            taken = await take(store, buckets)
            store.settle(taken, buckets, ONE, NOTHING if number % 2 else ONE)
        kept = requests(10, DAY, b"kept"), running(10, b"kept too")
        taken_at = time.monotonic()
        await take(store, kept)
        await until(lambda: not any(b"count" in name for name in server.names()))
        names = server.names()
        assert sum(b"rate" in name for name in names) == 50
        assert all(name.startswith(b"poolgate:{limits}:") for name in names)
        assert all(0 < server.client.pttl(name) <= 8_640_010 for name in names)
        passed = 1000 * (time.monotonic() - taken_at)
        assert 29_990 - passed < server.client.pttl(key(kept[1])) <= 30_010


async def test_the_servers_clock_counts_and_no_replicas(server: Valkey) -> None:
    bucket = requests(5, DAY)
    async with (
        storing(server.url, "r0", clock=lambda: 0.0) as early,
        storing(server.url, "r1", clock=lambda: time.monotonic() + 3600) as late,
    ):
        for _ in range(5):
            assert (await take(early, [bucket])).refused is None
        taken = await take(late, [bucket])
        assert taken.refused is bucket
        assert 0.99 * DAY / 5 < taken.wait <= DAY / 5


async def test_a_stream_keeps_its_slot_and_a_replica_that_is_gone_does_not(server: Valkey) -> None:
    bucket = running(2)
    pace = replace(BRISK, keep=1.5)

    def told() -> dict[bytes, float]:
        """Until when each replica's slot is kept, by the server's clock."""
        return {name: float(value.split()[1]) for name, value in server.client.hgetall(key(bucket)).items()}

    def kept() -> bool:
        """Both slots, by now for longer than one is kept of which nobody speaks."""
        now = told()
        assert set(now) == {b"r0", b"r1"}
        return all(now[name] > until + pace.keep * 1e6 for name, until in first.items())

    async with (
        SlowLine(server.port, server.login) as line,
        storing(server.url, "r0", pace=pace) as stays,
        storing(line.url, "r1", pace=pace) as gone,
    ):
        assert (await take(stays, [bucket])).refused is None
        assert (await take(gone, [bucket])).refused is None
        first = told()
        await until(kept)
        await line.cut()
        now, kept_until = server.now(), told()[b"r1"]
        assert now < kept_until <= now + pace.keep * 1e6
        async with within(20):
            while (await take(stays, [bucket])).refused is bucket:
                await asyncio.sleep(0.01)
        assert server.now() >= kept_until
        assert [*server.client.hgetall(key(bucket))] == [b"r0"]


async def test_whoever_leaves_holds_nothing_afterwards(server: Valkey) -> None:
    buckets = [requests(640_000, DAY), running(64_000)]
    async with storing(server.url) as store:
        for _ in range(100):
            await take(store, buckets)
        await until(lambda: server.client.exists(key(buckets[1])) == 1)
    assert not server.client.exists(key(buckets[1]))
    assert 99.0 < used(server, buckets[0]) <= 100
    # What comes after is answered, all the same.
    assert (await take(store, buckets)).refused is None


async def test_a_storm_of_cancellations_leaves_nothing_taken(server: Valkey) -> None:
    rng = Random(5)
    bucket, slots = requests(10_000, DAY), running(63)
    async with storing(server.url, "r0") as store:

        async def leaves() -> None:
            task = asyncio.create_task(store.take([bucket, slots], ONE))
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            if rng.random() < 0.3:
                await asyncio.wait([task], timeout=rng.random() * 0.002)
            task.cancel()
            try:
                taken = await task
            except asyncio.CancelledError:
                return
            if taken.refused is None:
                store.settle(taken, [bucket, slots], ONE, NOTHING)

        for _ in range(30):
            await asyncio.gather(*(leaves() for _ in range(40)))
        await until(lambda: not server.client.exists(key(bucket), key(slots)))
        assert store.mode == "redis"


async def test_a_burst_larger_than_a_call_is_answered_in_its_order(server: Valkey) -> None:
    async with storing(server.url, pace=replace(ONE_SWEEP, probe=60.0)) as store:
        buckets = [requests(2000, DAY), running(1_000_000), requests(1_000_000, name=b"more")]
        taken = await asyncio.gather(*(take(store, buckets) for _ in range(3000)))
        assert [each.refused is None for each in taken] == [True] * 2000 + [False] * 1000


async def test_what_no_call_can_hold_is_decided_here(server: Valkey) -> None:
    async with storing(server.url) as store:
        bucket = requests(10_000, DAY)
        slots = running(100_000)
        taken = await asyncio.gather(*(store.take([bucket, slots], ONE) for _ in range(5000)))
        here = [each for each in taken if each.source is not store]
        assert len(here) == 5000 - 4096
        for each in taken:
            store.settle(each, [bucket, slots], ONE, NOTHING)
        await until(lambda: not server.client.exists(key(bucket), key(slots)))
        assert store.mode == "redis"


async def test_an_evicting_server_is_warned_of_once(server: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    server.client.config_set("maxmemory", "100mb")
    server.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        async with SlowLine(server.port, server.login) as line, storing(line.url) as store:
            await line.cut()
            await until(lambda: store.mode == "local")
            await line.open()
            await until(lambda: store.mode == "redis")
    finally:
        server.client.config_set("maxmemory-policy", "noeviction")
        server.client.config_set("maxmemory", "0")
    told = [record.getMessage() for record in caplog.records if "noeviction" in record.getMessage()]
    assert len(told) == 1
    assert "maxmemory-policy allkeys-lru" in told[0]
