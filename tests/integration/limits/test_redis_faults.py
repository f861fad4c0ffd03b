"""What Redis may do to us, and what callers may notice of it: next to nothing."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import uvloop

from gateway.limits.bucket import DAY, Bucket, Taken
from gateway.limits.redis_store import NOTHING, Pace, RedisStore
from tests.stores import BRISK, ONE, ONE_SWEEP, key, requests, running, stopped, storing, take, until
from tests.turns import Turns
from tests.valkey import SlowLine, Valkey


@pytest.fixture
async def server() -> AsyncIterator[Valkey]:
    async with Valkey() as valkey:
        yield valkey


async def test_a_redis_that_stops_is_waited_for_once_and_not_for_long(server: Valkey) -> None:
    async with storing(server.url, pace=Pace()) as store:
        bucket = requests(1_000_000, DAY)
        longest = 0.0
        answered: list[Taken] = []

        async def ask() -> None:
            nonlocal longest
            began = turns.seconds
            answered.append(await take(store, [bucket, running(32)]))
            longest = max(longest, turns.seconds - began)

        tasks = []
        with Turns() as turns:
            for number in range(200):
                if number == 50:
                    server.pause()
                tasks.append(asyncio.create_task(ask()))
                await asyncio.sleep(0.005)
            await asyncio.gather(*tasks)
        assert len(answered) == 200
        assert longest < 0.15
        assert store.mode == "local"
        assert store.take_nowait([bucket], ONE) is not None
        server.resume()
        await until(lambda: store.mode == "redis")


async def test_whoever_waits_when_redis_fails_is_answered_in_that_moment(server: Valkey) -> None:
    bucket = requests(5, DAY)
    async with storing(server.url, pace=replace(ONE_SWEEP, probe=60.0)) as store:
        with stopped(server, store, answer=0.1), Turns() as turns:
            began = time.monotonic()
            taken = await asyncio.gather(*(take(store, [bucket]) for _ in range(20)))
        assert time.monotonic() - began >= 0.1
        assert turns.seconds < 0.3
        assert [each.refused is None for each in taken] == [True] * 5 + [False] * 15
        assert (store.mode, store.reason) == ("local", "timeout")


async def test_a_killed_redis_is_left_at_once_and_a_new_one_found(server: Valkey) -> None:
    async with storing(server.url) as store:
        bucket, slots = requests(50, DAY), running(10)
        inside = [await take(store, [bucket, slots]) for _ in range(4)]
        server.kill()
        with Turns() as turns:
            inside.append(await take(store, [bucket, slots]))
        assert turns.seconds < 0.3
        assert (store.mode, store.reason) == ("local", "refused")
        await server.start()
        await until(lambda: store.mode == "redis")
        # What runs is told to the new one, whatever it was let in by.
        await until(lambda: server.client.hget(key(slots), "r0") is not None)
        assert server.client.hget(key(slots), "r0").startswith(b"5 ")
        for each in inside:
            store.settle(each, [bucket, slots], ONE, ONE)
        await until(lambda: not server.client.exists(key(slots)))


async def test_an_outage_costs_one_more_burst_and_no_more(server: Valkey) -> None:
    bucket = requests(60, DAY)

    async def admitted(store: RedisStore) -> int:
        taken = await asyncio.gather(*(take(store, [bucket]) for _ in range(200)))
        return sum(each.refused is None for each in taken)

    async with storing(server.url, replicas=3) as store:
        assert await admitted(store) == 60
        server.kill()
        assert await admitted(store) == 60 // 3
        assert await admitted(store) == 0
        await server.start()
        await until(lambda: store.mode == "redis")
        assert await admitted(store) == 60
        # Nor a new share with each outage.
        with stopped(server, store):
            assert await admitted(store) == 0
        await until(lambda: store.mode == "redis")
        assert await admitted(store) == 0


async def test_what_runs_is_counted_through_an_outage(server: Valkey) -> None:
    """Slots taken in Redis, at home, and under the next Redis are the same slots."""
    async with storing(server.url) as store:
        slots = running(6)
        inside = [await take(store, [slots]) for _ in range(4)]
        with stopped(server, store):
            inside += [await take(store, [slots]) for _ in range(2)]
            assert (await take(store, [slots])).refused is slots
            for _ in range(3):
                store.settle(inside.pop(0), [slots], ONE, ONE)
            inside += [await take(store, [slots])]
            assert store.mode == "local"
        await until(lambda: store.mode == "redis")
        assert (await take(store, [slots])).levels == (5,)
        assert (await take(store, [slots])).levels == (6,)
        assert (await take(store, [slots])).refused is slots


async def test_a_late_call_is_void(server: Valkey) -> None:
    """It was answered here, so it must not be counted there as well, when the server wakes."""
    bucket, slots = requests(50, DAY), running(50)
    async with storing(server.url) as store:
        with stopped(server, store, answer=0.2):
            taken = await take(store, [bucket, slots])
            assert taken.refused is None
            assert taken.source is not store
            store.settle(taken, [bucket, slots], ONE, ONE)
            await asyncio.sleep(0.3)
        await until(lambda: store.mode == "redis")
        assert not server.client.exists(key(bucket), key(slots))


async def test_requests_that_end_after_an_outage_are_settled_where_they_were_taken(server: Valkey) -> None:
    bucket = Bucket(b"tokens", "tokens_per_day", 10_000, DAY)
    async with storing(server.url) as store:
        there = [await take(store, [bucket], (1000, 0, 0, 0)) for _ in range(3)]
        with stopped(server, store):
            here = await take(store, [bucket], (5000, 0, 0, 0))
            store.settle(there[0], [bucket], (1000, 0, 0, 0), (100, 0, 0, 0))
            await asyncio.sleep(0.05)
        await until(lambda: store.mode == "redis")
        store.settle(there[1], [bucket], (1000, 0, 0, 0), (200, 0, 0, 0))
        store.settle(here, [bucket], (5000, 0, 0, 0), (9000, 0, 0, 0))
        taken = await take(store, [bucket], (1, 0, 0, 0))
        assert 1300.0 < taken.levels[0] / bucket.interval <= 1301


async def test_what_was_taken_in_one_outage_counts_in_the_next_and_is_settled_there(server: Valkey) -> None:
    bucket = Bucket(b"tokens", "tokens_per_day", 1000, DAY)
    async with storing(server.url) as store:
        with stopped(server, store):
            before = await take(store, [bucket], (1000, 0, 0, 0))
        await until(lambda: store.mode == "redis")
        with stopped(server, store):
            assert (await take(store, [bucket], (1000, 0, 0, 0))).refused is bucket
            store.settle(before, [bucket], (1000, 0, 0, 0), NOTHING)
            assert (await take(store, [bucket], (1000, 0, 0, 0))).refused is None


async def test_the_servers_clock_may_be_set(server: Valkey) -> None:
    """A call of before would be void; so it is asked again."""
    async with storing(server.url) as store:
        for seconds in (3600, -3600):
            store._server_ahead -= seconds * 1e6
            taken = await take(store, [requests(50)])
            assert taken.source is store
        assert store.mode == "redis"


async def test_what_is_swept_is_swept_as_often_after_many_outages(server: Valkey) -> None:
    """Also where each is over before the next sweep."""
    pace = replace(BRISK, probe=0.01, sweep=0.3)
    async with storing(server.url, pace=pace) as store:
        for _ in range(8):
            server.client.client_kill_filter(_type="normal", skipme=True)
            await take(store, [requests(50)])
            assert store.mode == "local"
            await until(lambda: store.mode == "redis")
        sweeps = 0
        sweep = store._leases.sweep

        def counted() -> None:
            nonlocal sweeps
            sweeps += 1
            sweep()

        store._leases.sweep = counted  # type: ignore[method-assign]  # to count, not to replace
        began = time.monotonic()
        await until(lambda: sweeps >= 3)
        # One of them was due at any moment.
        assert sweeps <= 1.1 + (time.monotonic() - began) / pace.sweep


async def test_forgotten_scripts_are_loaded_again_unnoticed(server: Valkey) -> None:
    async with storing(server.url) as store:
        for _ in range(3):
            server.forget_scripts()
            taken = await take(store, [requests(50)])
            assert taken.source is store
        assert store.mode == "redis"


async def test_a_flushed_redis_hears_again_of_what_runs(server: Valkey) -> None:
    pace = replace(BRISK, keep=0.6)
    async with storing(server.url, pace=pace) as store:
        bucket, slots = requests(50, DAY), running(10)
        inside = [await take(store, [bucket, slots]) for _ in range(3)]
        server.flush()
        await until(lambda: server.client.hget(key(slots), "r0") is not None)
        assert server.client.hget(key(slots), "r0").startswith(b"3 ")
        server.flush()
        for each in inside:
            store.settle(each, [bucket, slots], ONE, NOTHING)
        await until(lambda: not server.client.exists(key(bucket), key(slots)))
        assert store.mode == "redis"


async def test_an_evicted_bucket_begins_anew(server: Valkey) -> None:
    async with storing(server.url) as store:
        bucket, other = requests(2, DAY), requests(1, DAY, b"other")
        assert [(await take(store, [bucket, other])).refused for _ in range(2)] == [None, other]
        server.client.delete(key(other))
        assert (await take(store, [bucket, other])).refused is None
        assert (await take(store, [bucket, other])).refused in (bucket, other)


async def test_a_key_of_another_type_is_replaced(server: Valkey) -> None:
    async with storing(server.url) as store:
        bucket, slots = requests(2, DAY), running(1)
        server.client.rpush(key(bucket), "not", "ours")
        server.client.set(key(slots), "nor this")
        assert (await take(store, [bucket, slots])).refused is None
        assert (await take(store, [bucket, slots])).refused is slots
        server.client.set(key(bucket), "no number")
        server.client.hset(key(slots), mapping={"r0": "junk", "r7": "1 not-a-time", "r8": ""})
        taken = await take(store, [bucket])
        assert taken.refused is None
        assert 0 < server.client.pttl(key(bucket)) <= 43_200_010
        assert store.mode == "redis"


def connected_since(server: Valkey, tries: int) -> bool:
    return bool(server.client.info("stats")["total_connections_received"] > tries)


Scene = Coroutine[Any, Any, None]
Befall = Callable[[Valkey], object]


@pytest.mark.parametrize(
    ("reason", "befalls", "mend"),
    [
        pytest.param("readonly", Valkey.refuse_writes, Valkey.accept_writes, id="a failover left a replica"),
        pytest.param(
            "memory",
            lambda server: server.client.config_set("maxmemory", 1),
            lambda server: server.client.config_set("maxmemory", 0),
            id="out of memory",
        ),
        pytest.param(
            "denied",
            lambda server: server.client.acl_setuser(
                "default", enabled=True, nopass=True, commands=["-evalsha", "-eval"]
            ),
            lambda server: server.client.acl_setuser(
                "default", enabled=True, nopass=True, commands=["+evalsha", "+eval"]
            ),
            id="the script is not allowed",
        ),
        pytest.param(
            "error",
            lambda server: server.client.acl_setuser("default", enabled=True, nopass=True, commands=["-set", "-hset"]),
            lambda server: server.client.acl_setuser("default", enabled=True, nopass=True, commands=["+set", "+hset"]),
            id="writing is not allowed",
        ),
    ],
)
async def test_a_redis_that_answers_and_is_of_no_use_is_no_redis(
    server: Valkey, reason: str, befalls: Befall, mend: Befall
) -> None:
    async with storing(server.url) as store:
        bucket, slots = requests(50, DAY), running(10)
        inside = [await take(store, [bucket, slots])]
        befalls(server)
        inside += [await take(store, [bucket, slots]) for _ in range(3)]
        assert all(each.refused is None for each in inside)
        assert (store.mode, store.reason) == ("local", reason)
        # It is tried again and again, and not believed.
        for _ in range(2):
            tries = server.client.info("stats")["total_connections_received"]
            await until(partial(connected_since, server, tries))
        assert (store.mode, store.reason) == ("local", reason)
        mend(server)
        await until(lambda: store.mode == "redis")
        assert (await take(store, [slots])).levels == (5,)


async def test_a_wrong_password_is_denied_and_stands_in_no_log(
    server: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.client.config_set("requirepass", "the-right-one")
    url = server.url.replace("redis://", "redis://:the-wrong-one@")
    async with storing(url, wait=False) as store:
        await until(lambda: store.reason != "connecting")
        assert (store.mode, store.reason) == ("local", "denied")
    async with storing(url.replace("wrong", "right")) as store:
        assert (await take(store, [requests(1)])).source is store
    told = [record.getMessage() for record in caplog.records if record.name.startswith("poolgate")]
    assert told == [
        "Redis does not let us in (AuthenticationError): each replica counts limits for itself, and allows its share",
        "limits are counted in Redis",
    ]
    assert not any("the-" in record.getMessage() or "127.0.0.1" in record.getMessage() for record in caplog.records)


async def test_whoever_has_only_the_rights_that_the_documents_name_can_count(server: Valkey) -> None:
    allowed = ["TIME", "EVALSHA", "EVAL", "GET", "SET", "DEL", "PEXPIRE", "HSET", "HDEL", "HGETALL"]
    server.client.acl_setuser(
        "gateway",
        enabled=True,
        passwords=["+secret"],
        keys=["poolgate:*"],
        commands=["-@all", *(f"+{command.lower()}" for command in allowed)],
    )
    async with storing(server.url.replace("redis://", "redis://gateway:secret@")) as store:
        bucket, slots = requests(50), running(10)
        taken = await take(store, [bucket, slots])
        store.settle(taken, [bucket, slots], ONE, NOTHING)
        await until(lambda: not server.client.exists(key(bucket), key(slots)))
        assert store.mode == "redis"


async def test_one_line_for_each_change(server: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "poolgate")
    async with storing(server.url) as store:
        for _ in range(2):
            with stopped(server, store):
                await asyncio.gather(*(take(store, [requests(5)]) for _ in range(10)))
            await until(lambda: store.mode == "redis")
    lost = "Redis does not answer in time (TimeoutError): each replica counts limits for itself, and allows its share"
    assert [record.getMessage() for record in caplog.records] == [
        "limits are counted in Redis",
        lost,
        "limits are counted in Redis",
        lost,
        "limits are counted in Redis",
    ]


async def test_a_slow_redis_is_left_after_three_calls_and_not_taken_back_while_it_is_slow(server: Valkey) -> None:
    pace = replace(ONE_SWEEP, slow=0.15)
    bucket = requests(50, DAY)
    async with SlowLine(server.port) as line, storing(line.url, pace=pace) as store:
        line.seconds = 0.4
        for calls in range(3):
            assert store.mode == "redis", calls
            assert (await take(store, [bucket])).source is store
        await until(lambda: store.mode == "local")
        assert store.reason == "slow"
        assert (await take(store, [bucket])).source is not store
        await asyncio.sleep(1.0)
        assert store.mode == "local"
        line.seconds = 0.0
        await until(lambda: store.mode == "redis")


async def test_one_slow_call_between_quick_ones_changes_nothing(server: Valkey) -> None:
    pace = replace(ONE_SWEEP, slow=0.5)
    async with SlowLine(server.port) as line, storing(line.url, pace=pace) as store:
        for _ in range(2):
            for seconds in (0.6, 0.6, 0.0):
                line.seconds = seconds
                assert (await take(store, [requests(50)])).source is store
        assert store.mode == "redis"


@pytest.fixture
def standing() -> Iterator[Valkey]:
    """A server for a loop of one's own."""
    server = Valkey()
    server.start_now()
    yield server
    server.stop_now()


BOTH_LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])


@BOTH_LOOPS
def test_a_gateway_that_was_held_up_itself_does_not_blame_redis(run: Callable[[Scene], None], standing: Valkey) -> None:
    """Its timer has run out, and the answer has been there for long, or the question has not even left."""
    pace = replace(ONE_SWEEP, answer=0.5, slow=0.4)

    async def scene() -> None:
        async with storing(standing.url, pace=pace) as store:
            for turns in range(5):
                asking = asyncio.create_task(take(store, [requests(50)]))
                for _ in range(turns):
                    await asyncio.sleep(0)
                time.sleep(0.6)
                assert (await asking).source is store
            assert store.mode == "redis"

    run(scene())


@BOTH_LOOPS
def test_a_connection_that_breaks_while_it_is_idle_is_made_anew(run: Callable[[Scene], None], standing: Valkey) -> None:
    async def scene() -> None:
        async with SlowLine(standing.port) as line, storing(line.url) as store:
            for break_all in (line.reset, line.cut):
                await break_all()
                taken = await take(store, [requests(50)])
                assert (taken.refused, store.mode, store.reason) == (None, "local", "refused")
                await line.open()
                await until(lambda: store.mode == "redis")

    run(scene())


async def test_without_redis_from_the_start_limits_hold_all_the_same() -> None:
    server = Valkey()
    async with storing(server.url, wait=False, replicas=4) as store:
        assert (store.mode, store.reason) == ("local", "connecting")
        bucket = requests(40, DAY)
        admitted = [store.take_nowait([bucket], ONE) for _ in range(100)]
        assert sum(each is not None and each.refused is None for each in admitted) == 10
        await until(lambda: store.reason == "refused")
        await server.start()
        try:
            await until(lambda: store.mode == "redis")
            assert store.reason == ""
            taken = await take(store, [bucket])
            # Nothing was made good.
            assert taken.levels[0] <= bucket.interval
        finally:
            await server.stop()
