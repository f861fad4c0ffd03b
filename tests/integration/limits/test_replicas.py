"""Limits across replicas: three gateway processes on one Redis, whatever becomes of it or of them.

Figures are printed (`pytest -s`). What is asserted are counts, order, and the server's clock.
"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from math import ceil, floor, inf
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway.limits.batch import PREFIX
from tests.discovering import eventually
from tests.integration.limits.replicas import LEFT, REPLICAS, Caller, Kind, Load, Replicas, Told, replicas, says
from tests.integration.test_process import SECONDS, Served
from tests.turns import Turns
from tests.valkey import SlowLine, Valkey

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUESTS = Kind({"requests_per_minute": 100})
TOKENS = Kind.of_tokens(per_minute=60_000, each=1000)
LEASED = Kind({"requests_per_minute": 6000})
RUNNING = Kind({"concurrent": 30})
PATIENT = Kind({"concurrent": 31})
"""They have no lease, and never come to their limit: each request waits for Redis, and has room."""
ROOMY = Kind({"requests_per_minute": 640})
"""They have leases, and it takes long until what they took has come back."""
NAMED = Kind({"requests_per_minute": 20}, body={"messages": [{"role": "user", "content": "canary-prompt"}]})
RULES: tuple[dict[str, Any], ...] = (
    {"per": "user", "match": "canary*", "requests_per_minute": 30, "concurrent": 15},
    {"per": "tenant", "match": "canary*", "tokens_per_minute": 10_000_000, "concurrent": 1000},
)
EASY = Kind({"requests_per_minute": 600_000})
"""They have leases, and never come to their limit."""
TRIES = 6
"""On a busy machine a gateway may leave Redis because it is slow; then there is another try, with another caller."""
LONGEST_SECONDS = 2.0
"""That a request may take, in turns of the caller's loop: on a busy machine that one has to wait as well."""
Fault = Callable[[Valkey], None]
FAULTS: dict[str, Fault] = {"stopped": Valkey.pause, "killed": Valkey.kill}
WHY: dict[Fault, tuple[str, ...]] = {Valkey.pause: ("timeout",), Valkey.kill: ("refused", "timeout")}


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    valkey = Valkey()
    valkey.start_now()
    yield valkey
    valkey.stop_now()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(server: Valkey, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replicas]:
    kinds = {REQUESTS: 3 * TRIES, TOKENS: 4 * TRIES, LEASED: TRIES, RUNNING: 3 * TRIES, PATIENT: 1, EASY: 1}
    callers = [Caller.of(kind) for kind, count in kinds.items() for _ in range(count)]
    callers.append(Caller.of(NAMED, "canary-team", forwards_user=True))
    async with replicas(tmp_path_factory.mktemp("replicas"), callers, server, rules=RULES) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def found(shared: Replicas) -> Replicas:
    """The gateways, in Redis, with nothing running."""
    await shared.until("redis")
    shared.pod.holds, shared.pod.most = False, 0
    assert shared.pod.running == 0
    return shared


async def tries(found: Replicas, kind: Kind) -> AsyncIterator[Caller]:
    """Each with a caller of its own, in Redis."""
    for number, caller in enumerate(found.callers(kind)):
        assert number < TRIES, "Redis was too slow on this machine for any of them"
        await found.until("redis")
        yield caller


def most(caller: Caller, load: Load, outages: int, full_buckets: int = 1) -> float:
    """What may be let in: full buckets, and what comes back meanwhile; and with each outage of a gateway its share."""
    full, back = caller.kind.at_once, load.seconds * 1e6 / caller.step
    shares = outages * full / REPLICAS + back if outages else 0.0
    return full_buckets * full + back + shares


def first_taken(found: Replicas, caller: Caller, requests: int) -> float:
    """When the first was taken of so many that were, if not one was taken too much or too little: a bucket that never
    was full since will be full so many steps later."""
    return found.full_at(caller) - requests * caller.step


async def taken_in_all(found: Replicas, caller: Caller, load: Load, requests: int | None = None) -> None:
    """Wait until Redis has as many of a caller's requests as were let in, or so many."""
    since, until = load.first_taken_within(caller.step)
    taken = load.admitted if requests is None else requests
    await eventually(lambda: since < first_taken(found, caller, taken) < until, SECONDS)


async def what_runs_is_told(found: Replicas, caller: Caller) -> None:
    """Wait until Redis knows of all that run."""
    await eventually(lambda: sum(count for count, _ in found.runs(caller).values()) == found.pod.running, SECONDS)


async def nothing_runs(found: Replicas, caller: Caller) -> None:
    """Wait until Redis knows of nothing that runs."""
    await eventually(lambda: not found.runs(caller), SECONDS)


# Exact.


@pytest.mark.parametrize("kind", [REQUESTS, TOKENS], ids=["requests", "tokens"])
async def test_of_a_thousand_at_once_exactly_the_limit_is_let_in_and_what_came_back_meanwhile(
    found: Replicas, kind: Kind
) -> None:
    async for caller in tries(found, kind):
        outages, reached = found.outages, len(found.pod.requests)
        async with found.load() as load:
            await load.send(caller.asks(), 1000)
            await load.answered()
            refused_at = await found.until_refused(caller.asks(), load)
        assert len(found.pod.requests) - reached == load.admitted
        first = first_taken(found, caller, load.admitted)
        await found.until("redis")
        assert load.admitted <= most(caller, load, found.outages - outages)
        if found.outages > outages:
            continue
        since, until = load.first_taken_within(caller.step)
        assert since < first < until
        came_back = (load.clock.latest(load.admitted_at[-1]) - first) / caller.step
        assert load.admitted <= kind.at_once + came_back + 0.01
        came_back = (load.clock.earliest(refused_at) - first) / caller.step
        assert load.admitted > kind.at_once - 1 + came_back - 0.01
        print(f"\n{load.admitted} of {len(load.told)} in {load.seconds:.3f} s, {came_back:.2f} came back")
        return


async def test_with_leases_never_more_is_let_in_and_none_is_lost(found: Replicas) -> None:
    def calls() -> int:
        told = found.server.client.info("commandstats")
        return int(told["cmdstat_evalsha"]["calls"])

    async for caller in tries(found, LEASED):
        outages = found.outages
        async with found.load() as load:
            await load.ask_in_turn(caller.asks(), 300, lines=300)
            before = calls()
            await load.ask_in_turn(caller.asks(), 300, lines=3)
            asked = calls() - before
            await load.ask_in_turn(caller.asks(), 9400, lines=300)
            refused_at = await found.until_refused(caller.asks(), load)
        await found.until("redis")
        assert load.admitted <= most(caller, load, found.outages - outages)
        if found.outages > outages:
            continue
        assert asked < 200, "far from a limit they waited"
        lease = caller.bucket.amount // 64
        await taken_in_all(found, caller, load)
        first = first_taken(found, caller, load.admitted)
        assert load.admitted <= LEASED.at_once + (load.clock.latest(load.admitted_at[-1]) - first) / caller.step + 0.01
        came_back = (load.clock.earliest(refused_at) - first) / caller.step
        assert load.admitted > LEASED.at_once - 1 + came_back - REPLICAS * lease
        less = LEASED.at_once + came_back - load.admitted
        print(
            f"\n{load.admitted} of {len(load.told)} in {load.seconds:.2f} s, {came_back:.2f} came back, {less:.2f} less"
        )
        print(f"far from the limit 300 requests made {asked} calls")
        return


async def test_tokens_become_what_was_used_wherever_they_were_reserved(found: Replicas) -> None:
    async for caller in tries(found, TOKENS):
        found.pod.answer = says(50, 200)
        outages = found.outages
        async with found.load() as load:
            await load.send(caller.asks(), 40)
        await found.until("redis")
        if found.outages > outages:
            continue
        assert load.admitted == 40
        # A quarter of what was reserved.
        await taken_in_all(found, caller, load, 10)
        return


async def test_never_more_run_at_once_and_a_slot_that_is_free_is_anyones(found: Replicas) -> None:
    async for caller in tries(found, RUNNING):
        outages, found.pod.most, found.pod.holds = found.outages, 0, True
        async with found.load() as load:
            await all_slots_taken(found, load, caller)
            for count in (1, 7, 30):
                found.pod.let_go(count)
                await all_slots_taken(found, load, caller)
            most_at_once = found.pod.most
            found.pod.holds = False
            found.pod.let_go()
        assert most_at_once <= 30 + (found.outages - outages) * 10
        await nothing_runs(found, caller)
        if found.outages > outages:
            continue
        assert most_at_once == 30
        return


async def all_slots_taken(found: Replicas, load: Load, caller: Caller) -> None:
    """Ask for more until so many run, each of which is held by the pod; all others have been refused."""
    await load.send(caller.asks(), 300)
    await eventually(lambda: load.open == found.pod.running, SECONDS)
    while found.pod.running < caller.kind.at_once:
        # It takes a moment until a slot that is free is known to be.
        await load.send(caller.asks(), 3)
        await eventually(lambda: load.open == found.pod.running, SECONDS)


# Redis goes, and comes back.


@asynccontextmanager
async def out_of_order(found: Replicas, fault: Fault) -> AsyncIterator[None]:
    """Redis, for the length of a block. What is new there has forgotten everything."""
    fault(found.server)
    try:
        yield
    finally:
        if fault is Valkey.kill:
            await found.server.start()
        else:
            found.server.resume()


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("kind", [REQUESTS, TOKENS], ids=["requests", "tokens"])
async def test_an_outage_costs_a_share_at_each_replica_and_no_request(
    found: Replicas, kind: Kind, fault: Fault
) -> None:
    caller = next(found.callers(kind))
    outages, share = found.outages, kind.at_once // REPLICAS
    async with found.load() as load:
        load.keep_asking([caller.asks()], per_second=400)
        await eventually(lambda: load.admitted >= kind.at_once // 2, SECONDS)
        async with out_of_order(found, fault):
            before = load.admitted
            left = await found.until("local", *WHY[fault])
            reasons = {reason for _, reason in await found.modes()}
            await eventually(lambda: load.admitted >= before + REPLICAS * share, SECONDS)
            refused = load.statuses[429]
            await eventually(lambda: load.statuses[429] > refused + 50, SECONDS)
            meanwhile = load.admitted - before
        back = await found.until("redis")
        refused = load.statuses[429]
        await eventually(lambda: load.statuses[429] > refused + 50, SECONDS)
    outages = found.outages - outages
    assert outages >= REPLICAS
    bound = most(caller, load, outages, 2 if fault is Valkey.kill else 1)
    assert load.admitted <= bound
    print(
        f"\nlocal after {left:.3f} s ({', '.join(reasons)}), in Redis again {back:.3f} s after it was back, {outages} "
        f"times a gateway left; of {len(load.told)} let in: {before} before, {meanwhile} meanwhile, "
        f"{load.admitted - before - meanwhile} after; {bound:.1f} might be"
    )
    print_latency("all of it", load.told)


async def test_without_redis_each_replica_allows_its_share(found: Replicas) -> None:
    caller = next(found.callers(REQUESTS))
    async with out_of_order(found, Valkey.pause):
        await found.until("local")
        for gateway in found.gateways:
            assert json.loads((await gateway.ops("/status.json")).body)["replicas"] == REPLICAS
            async with found.load() as load:
                await load.send(caller.asks(), 200, to=[gateway])
            share = REQUESTS.at_once / REPLICAS
            assert int(share) <= load.admitted <= share + load.seconds * 1e6 / caller.step / REPLICAS


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_what_runs_is_known_through_an_outage(found: Replicas, fault: Fault) -> None:
    async for caller in tries(found, RUNNING):
        outages, found.pod.holds = found.outages, True
        async with found.load() as load:
            await all_slots_taken(found, load, caller)
            await what_runs_is_told(found, caller)
            counts = [count for count, _ in found.runs(caller).values()]
            async with out_of_order(found, fault):
                await load.send(caller.asks(), 300)
                await eventually(lambda: load.open == found.pod.running, SECONDS)
                # Those with more than their share took none, the others what was left of it.
                share = RUNNING.at_once // REPLICAS
                expected = sum(max(count, share) for count in counts) + share * (REPLICAS - len(counts))
                meanwhile = found.pod.running
            await found.until("redis")
            await what_runs_is_told(found, caller)
            await load.send(caller.asks(), 60)
            await eventually(lambda: load.open == found.pod.running, SECONDS)
            afterwards = found.pod.running
            found.pod.let_go()
            await nothing_runs(found, caller)
            await all_slots_taken(found, load, caller)
            found.pod.most = found.pod.running
            found.pod.let_go(15)
            await all_slots_taken(found, load, caller)
            most_in_the_end = found.pod.most
            found.pod.holds = False
            found.pod.let_go()
        assert meanwhile <= RUNNING.at_once + (found.outages - outages) * share
        if found.outages - outages != REPLICAS:
            continue
        assert meanwhile == afterwards == expected
        assert most_in_the_end == RUNNING.at_once
        print(f"\n{counts} ran, and {meanwhile} without Redis")
        return


async def test_a_redis_that_stops_is_felt_once_and_briefly(found: Replicas) -> None:
    (patient,), (easy,) = found.callers(PATIENT), found.callers(EASY)
    marks: list[tuple[str, float]] = []
    now = asyncio.get_running_loop().time
    async with found.load() as load:
        load.keep_asking([patient.asks(), easy.asks()], per_second=200)
        marks.append(("starting", now()))
        await more_answers(load, 50)
        marks.append(("before", now()))
        await more_answers(load, 250)
        async with out_of_order(found, Valkey.pause):
            # Who had asked already waits as well.
            marks.append(("as it stops", now() - 0.05))
            left = await found.until("local")
            await more_answers(load, 20)
            marks.append(("while it is stopped", now()))
            await more_answers(load, 500)
        marks.append(("as it comes back", now()))
        back = await found.until("redis")
        marks.append(("after", now()))
        await more_answers(load, 250)
    assert max(each.turns for each in load.told) < LONGEST_SECONDS
    print_phases(load, marks)
    print(f"200 requests a second; local after {left:.3f} s, in Redis again after {back:.3f} s")


async def more_answers(load: Load, count: int) -> None:
    count += len(load.told)
    await eventually(lambda: len(load.told) >= count, SECONDS)


def print_latency(name: str, told: Sequence[Told]) -> None:
    took = sorted(1000 * (each.ended_at - each.sent_at) for each in told) or [0.0]
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    late = 1000 * max((each.late for each in told), default=0.0)
    print(
        f"{name:>35}: {len(told):4} requests, p50 {p50:6.1f} ms, p99 {p99:6.1f} ms, at most {took[-1]:6.1f} ms; "
        f"callers were late by {late:.1f} ms at most"
    )


async def test_a_redis_that_is_slow_holds_nobody_up(server: Valkey, tmp_path: Path) -> None:
    caller = Caller.of(PATIENT)
    now = asyncio.get_running_loop().time
    marks: list[tuple[str, float]] = []

    async def becomes(name: str, mode: str, *reasons: str) -> None:
        marks.append((f"{name}: not {mode} yet", now()))
        with Turns() as turns:
            await found.until(mode, *reasons)
        assert mode == "redis" or turns.seconds < 5, "they were patient for too long"
        marks.append((f"{name}: {mode}", now()))
        await more_answers(load, 150)

    async with (
        SlowLine(server.port) as line,
        replicas(tmp_path, [caller], server, redis_url=line.url) as found,
        found.load() as load,
    ):
        load.keep_asking([caller.asks()], per_second=200)
        await becomes("quick", "redis")
        line.seconds = 0.03
        await becomes("30 ms", "local", "slow", "timeout")
        line.seconds = 0.01
        await becomes("10 ms", "redis")
        line.seconds = 0.1
        await becomes("100 ms", "local", "timeout")
        line.seconds = 0.0
        await becomes("quick again", "redis")
        line.seconds = 3600.0
        await becomes("no answer", "local", "timeout")
        await line.cut()
        await becomes("cut", "local", "refused")
        line.seconds = 0.0
        await line.open()
        await becomes("there again", "redis")
        await line.cut()
        await becomes("cut at once", "local", "refused")
    assert max(each.turns for each in load.told) < LONGEST_SECONDS
    print_phases(load, marks)


def print_phases(load: Load, marks: Sequence[tuple[str, float]]) -> None:
    print()
    for (name, since), (_, until) in pairwise([*marks, ("", inf)]):
        told = [each for each in load.told if since <= each.sent_at < until]
        if until < inf:
            name = f"{name} ({until - since:.2f} s)"
        print_latency(name, told)


# A gateway goes.


async def test_a_gateway_that_goes_gives_back_what_it_holds_and_a_killed_one_loses_it(
    server: Valkey, tmp_path: Path
) -> None:
    for further in reversed(range(TRIES // 2)):
        callers = [Caller.of(kind) for kind in (ROOMY, ROOMY, RUNNING)]
        async with replicas(tmp_path, callers, server) as found:
            try:
                await one_goes_and_one_is_killed(found, *callers)
            except AssertionError:
                if not found.outages or not further:
                    raise
            else:
                return


async def one_goes_and_one_is_killed(found: Replicas, of_leaving: Caller, of_killed: Caller, slots: Caller) -> None:
    leaving, killed, staying = found.gateways
    found.pod.holds = True
    async with found.load() as held:
        held.cut = {0, 503}
        for gateway, word in ((leaving, "leaving"), (killed, "killed"), (staying, "staying")):
            await held.send(slots.asks(user=word), 10, to=[gateway])
        await eventually(lambda: found.pod.running == 30, SECONDS)
        assert [count for count, _ in found.runs(slots).values()] == [10, 10, 10]
        found.pod.holds = False

        async with leased(found, of_leaving, leaving) as load:
            leaving.signal(signal.SIGTERM)
            leaving.signal(signal.SIGINT)
            await leaving.ended_well()
        assert 0 in lost(found, of_leaving, load)
        assert [count for count, _ in found.runs(slots).values()] == [10, 10]
        found.pod.let_go(word=b"leaving")

        async with leased(found, of_killed, killed) as load:
            killed.signal(signal.SIGKILL)
            await killed.ended()
        gone = lost(found, of_killed, load)
        print(f"\nof {of_killed.bucket.amount} requests a minute {max(gone)} went with the gateway that was killed")
        assert max(gone) >= 0
        assert min(gone) <= of_killed.bucket.amount // 64
        now = load.clock.latest(asyncio.get_running_loop().time())
        assert all(count == 10 and now < until < now + 30e6 for count, until in found.runs(slots).values())
        found.pod.let_go(word=b"killed")
        await eventually(lambda: found.pod.running == 10, SECONDS)

        # What the one had that went is free, what the other had is not, until that is over.
        found.pod.holds = True
        for expected in (20, 30):
            while found.pod.running < expected:
                await held.send(slots.asks(), 20, to=[staying])
                await eventually(lambda: held.open == found.pod.running, SECONDS)
            assert found.pod.running == expected
            assert (await held.ask(slots.asks(), staying)).status == 429
            for replica, (count, _) in found.runs(slots).items():
                if count == 10:
                    found.server.client.hset(PREFIX + slots.bucket.key, replica, f"{count} {now:.0f}")
        found.pod.holds = False
        found.pod.let_go()
    await nothing_runs(found, slots)


@asynccontextmanager
async def leased(found: Replicas, caller: Caller, gateway: Served) -> AsyncIterator[Load]:
    """A load on one gateway, which has a lease at its end; after it the block, in which the gateway goes."""
    async with found.load() as load:
        await load.send(caller.asks(), 50, to=[gateway])
        await load.answered()
        await load.ask_in_turn(caller.asks(), 50, 1, to=[gateway])
    assert load.admitted == 100
    yield load


def lost(found: Replicas, caller: Caller, load: Load) -> range:
    """So many requests were taken and let nobody in. One number, unless the first answer took longer than a step."""
    since, until = load.first_taken_within(caller.step)
    full_at = found.full_at(caller)
    first, last = ceil((full_at - until) / caller.step), floor((full_at - since) / caller.step)
    return range(first - load.admitted, last - load.admitted + 1)


# What is told of callers.


async def test_nothing_in_redis_or_in_a_log_tells_who_asks_or_what(found: Replicas) -> None:
    (caller,) = found.callers(NAMED)
    data = caller.asks(headers={"X-OpenWebUI-User-Id": "canary-user"})
    found.pod.holds = True
    async with heard_by(found.server) as traffic, found.load() as load:
        await load.send(data, 30)
        await eventually(lambda: 0 < load.open == found.pod.running, SECONDS)
        client = found.server.client
        names = found.server.names()
        assert len(names) >= 5
        held = [(name, client.dump(name)) for name in names]
        assert -1 not in [client.pttl(name) for name in names], "a key that never ends"
        async with out_of_order(found, Valkey.pause):
            await load.send(data, 30)
            await found.until("local")
        await found.until("redis")
        found.pod.holds = False
        found.pod.let_go()
    assert 0 < load.admitted < 60

    def told() -> list[str]:
        return [line for gateway in found.gateways for line in gateway.out if "canary-team" in line]

    await eventually(lambda: len(told()) == 60, SECONDS)
    assert traffic.count(b"poolgate:{limits}:") > len(names)
    lines = "".join(told()).encode()
    logs = ["".join(gateway.err) for gateway in found.gateways]
    assert all(LEFT in log for log in logs)
    rest = bytes(traffic) + repr(held).encode() + "".join(logs).encode()
    for secret in (caller.key, caller.key[15:], "canary-user", "canary-prompt"):
        assert secret.encode() not in lines + rest
    for name in ("canary", caller.tenant.key_id):
        assert name.encode() not in rest


@asynccontextmanager
async def heard_by(server: Valkey) -> AsyncIterator[bytearray]:
    """All that the server is asked."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    heard = bytearray()

    async def listen() -> None:
        while data := await reader.read(1 << 16):
            heard.extend(data)

    writer.write(b"MONITOR\r\n")
    listening = asyncio.create_task(listen())
    try:
        await eventually(lambda: heard.startswith(b"+OK"), SECONDS)
        yield heard
    finally:
        listening.cancel()
        writer.close()
