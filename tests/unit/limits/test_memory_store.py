"""Limits of one replica: what was let in is known at once."""

import asyncio

import pytest

from gateway.limits.bucket import MINUTE, Bucket, Costs, Counts
from gateway.limits.memory_store import MemoryStore
from gateway.limits.store import Store
from tests.fakes import Hands

RATE = Bucket(b"rate", "tokens_per_minute", 60, MINUTE, Counts.BOTH)
SLOTS = Bucket(b"slots", "concurrent", 1, 0.0)
TEN: Costs = (1, 4, 6, 10)


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def store(clock: Hands) -> Store:
    return MemoryStore(clock)


def refused(store: Store, buckets: list[Bucket]) -> Bucket | None:
    taken = store.take_nowait(buckets, TEN)
    assert taken is not None
    return taken.refused


def test_a_limit_is_counted_by_the_clock_it_is_given(store: Store, clock: Hands) -> None:
    assert [refused(store, [RATE]) for _ in range(7)] == [None] * 6 + [RATE]
    clock.now += 9.9
    assert refused(store, [RATE]) is RATE
    clock.now += 0.1
    assert [refused(store, [RATE]) for _ in range(2)] == [None, RATE]


async def test_who_asks_and_waits_is_told_the_same(store: Store) -> None:
    assert (await store.take([RATE, SLOTS], TEN)).refused is None
    taken = await store.take([RATE, SLOTS], TEN)
    assert (taken.refused, list(taken.levels)) == (SLOTS, [10e6, 1])


def test_settling_gives_back_what_ran_and_what_was_not_used(store: Store, clock: Hands) -> None:
    taken = store.take_nowait([RATE, SLOTS], TEN)
    assert taken is not None
    clock.now += 2.0
    store.settle(taken, [RATE, SLOTS], TEN, (1, 4, 1, 5))
    after = store.take_nowait([RATE, SLOTS], TEN)
    assert after is not None
    assert (after.refused, list(after.levels)) == (None, [13e6, 1])


def test_what_turns_out_to_be_more_is_spent_when_it_is_known(store: Store, clock: Hands) -> None:
    taken = store.take_nowait([RATE], TEN)
    assert taken is not None
    clock.now += 600.0
    store.settle(taken, [RATE], TEN, (1, 4, 66, 70))
    after = store.take_nowait([RATE], (1, 1, 0, 1))
    assert after is not None
    assert (after.refused, after.wait) == (RATE, 1e6)


def test_two_stores_share_nothing(store: Store, clock: Hands) -> None:
    assert refused(store, [SLOTS]) is None
    assert refused(MemoryStore(clock), [SLOTS]) is None


def test_it_says_that_this_replica_counts_for_itself_and_since_when(store: Store, clock: Hands) -> None:
    clock.now += 5.0
    assert (store.mode, store.since, store.reason) == ("memory", 1000.0, "")


async def test_nothing_runs_beside_until_it_is_cancelled(store: Store) -> None:
    running = asyncio.create_task(store.run())
    await asyncio.sleep(0)
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
