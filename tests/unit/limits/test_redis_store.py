"""Where there is no Redis, limits hold by what each of them says, and nobody waits."""

import asyncio
import time

import pytest

from gateway.limits.bucket import DAY, Bucket, OnRedisDown
from gateway.limits.redis_store import NOTHING, RedisStore
from tests.fakes import Hands
from tests.stores import ONE, requests, running, storing, take, until

NOWHERE = "redis://127.0.0.1:1/0"


def down(bucket: Bucket, what: OnRedisDown) -> Bucket:
    return Bucket(bucket.key, bucket.name, bucket.amount, bucket.period, on_redis_down=what)


async def test_each_limit_says_what_holds_without_redis() -> None:
    kept, slots = requests(20, DAY, b"kept"), running(1)
    shut, loose = down(requests(9, DAY, b"shut"), "deny"), down(slots, "allow")
    async with storing(NOWHERE, wait=False, replicas=10) as store:
        first, second, third = [await take(store, [loose, kept]) for _ in range(3)]
        assert (first.refused, second.refused, third.refused) == (None, None, kept)
        assert list(first.levels) == [0.0, pytest.approx(kept.interval * 10)]
        refused = await take(store, [kept, shut])
        assert (refused.refused, refused.unchecked, list(refused.levels)) == (shut, True, [0.0, 0.0])
        # What is not looked at runs all the same.
        store.settle(first, [loose, kept], ONE, ONE)
        assert (await take(store, [slots])).refused is slots
        store.settle(second, [loose, kept], ONE, ONE)
        assert (await take(store, [slots])).refused is None


async def test_an_outage_of_any_length_keeps_nothing_but_what_runs() -> None:
    async with storing(NOWHERE, wait=False) as store:
        stays = await take(store, [running(10, b"stays")])
        assert stays.refused is None
        for number in range(300):
            slots = running(10, b"%d" % number)
            store.settle(await take(store, [slots]), [slots], ONE, ONE)
        assert len(store._leases.held) == 301
        await until(lambda: [*store._leases.held] == [b"stays"])


def test_a_url_that_cannot_be_used_is_said_at_the_start_and_not_quoted() -> None:
    for url in (
        "http://:secret@h",
        "redis://:secret/1@h",
        "redis://:secret@h:port",
        "redis://:secret@h/0?no_such_option=secret",
        "redis://:secret@h/0?socket_timeout=secret",
    ):
        with pytest.raises(ValueError, match=r"^Redis' URL cannot be used$"):
            RedisStore(url, replica="r", replicas=lambda: 1, clock=time.monotonic, chance=lambda: 0.5)


def test_a_store_that_does_not_run_answers_and_never_waits() -> None:
    store = RedisStore(NOWHERE, replica="r", replicas=lambda: 4, clock=Hands(), chance=lambda: 0.5)
    bucket, slots = requests(40, DAY), running(8)
    assert (store.mode, store.reason, store.since) == ("local", "connecting", 1000.0)
    taken = [store.take_nowait([bucket, slots], ONE) for _ in range(3)]
    assert [each is not None and each.refused for each in taken] == [None, None, slots]
    for each in taken[:2]:
        assert each is not None
        store.settle(each, [bucket, slots], ONE, NOTHING)
    taken = [store.take_nowait([bucket], ONE) for _ in range(11)]
    assert [each is not None and each.refused for each in taken] == [None] * 10 + [bucket]


def test_the_share_follows_the_number_of_replicas() -> None:
    there = 10
    store = RedisStore(NOWHERE, replica="r", replicas=lambda: there, clock=Hands(), chance=lambda: 0.5)
    slots = running(20)

    def let_in() -> int:
        count = 0
        while (taken := store.take_nowait([slots], ONE)) is not None and taken.refused is None:
            count += 1
        return count

    assert let_in() == 2
    there = 4
    assert let_in() == 3
    there = 0
    assert let_in() == 15


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "loading"),
        (b"-MOVED 866 10.0.0.1:6379\r\n", "error"),
        (b"-ERR unknown command\r\n", "error"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "error"),
        (b"*2\r\n$1\r\n1\r\n$1\r\n1\r\n", "error"),
        (b"$-1\r\n", "error"),
        (b"*2\r\n$-1\r\n*0\r\n", "error"),
        (b"", "refused"),
    ],
)
async def test_what_is_no_redis_is_found_out(answer: bytes, reason: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            if not answer:
                break
            writer.write(answer)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with storing(url, wait=False) as store:
            await until(lambda: store.reason != "connecting")
            assert (store.mode, store.reason) == ("local", reason)
            assert store.take_nowait([requests(1)], ONE) is not None
    finally:
        listener.close()
