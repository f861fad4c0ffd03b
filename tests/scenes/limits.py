"""What befalls the count of limits, and who tries to get more: nobody has more than is allowed, and nobody waits."""

import time
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from gateway.core.clock import Clock
from gateway.limits.batch import PREFIX
from gateway.limits.bucket import DAY
from gateway.limits.keys import new_key
from gateway.parts import THE_USUAL
from tests.fakes import STREAM_HEAD, Close, Hang, Leaps, chunk
from tests.running import NO_LIMITS, HasUrl, Running
from tests.scenes import says
from tests.scenes.client import Client
from tests.scenes.defences.clients import CANCELLATION
from tests.scenes.defences.limits import (
    FELT_ONCE,
    HEARTBEAT,
    KEYS_END,
    KNOWN_FIRST,
    LEASES_END,
    LOCAL_SHARE,
    NO_WINDOWS,
    OFTEN_TOLD,
    ONE_LOCAL_BOOK,
    QUICK_TO_RETURN,
    REDIS_AGAIN,
    REDIS_DEADLINE,
    SCRIPT_AGAIN,
    SERVERS_CLOCK,
    SHARED_COUNT,
    counts_in_redis,
)
from tests.scenes.defences.mid_stream import ESTIMATED_USAGE, SETTLEMENT
from tests.scenes.promises import Promise
from tests.scenes.scene import Without, expect, scene
from tests.scenes.stage import Stage
from tests.valkey import SlowLine, Valkey

REPLICAS = 3
PATIENT = THE_USUAL._replace(limits=counts_in_redis())
"""They stay with a Redis that is slow because this machine is; one that is dead they leave at once."""
AS_USUAL = THE_USUAL._replace(limits=counts_in_redis(pace=QUICK_TO_RETURN))
"""They wait for Redis as the product does."""


async def replica(stage: Stage, valkey: Valkey | SlowLine, pod: HasUrl, **settings: Any) -> Running:
    """One of three gateways that count in this Redis. `settings`: the `limit`s of the one caller, and what
    `stage.gateway` takes."""
    limit = settings.pop("limit")
    rules = [{"per": "key"} | limit]
    limits = {"redis_url": valkey.url, "replicas": REPLICAS, "default": NO_LIMITS, "rules": rules}
    settings.setdefault("parts", PATIENT)
    gateway = await stage.gateway(pod, limits=limits, tenant={"key_id": "shared"}, **settings)
    # A thousand requests in one moment hold the loop up: no pod is to be passed over for that.
    gateway.gateway.pools.use(connect_seconds=60.0, idle_seconds=3.0, api_key=None)
    await stage.until(lambda: gateway.gateway.limits.mode != "local", "Redis is not used")
    return gateway


async def replicas(stage: Stage, valkey: Valkey | SlowLine, pod: HasUrl, **settings: Any) -> list[Running]:
    """All three."""
    return [await replica(stage, valkey, pod, **settings) for _ in range(REPLICAS)]


async def come_to(stage: Stage, gateways: list[Running], count: int) -> list[Client]:
    """So many callers, connected, spread over the gateways."""
    return [await stage.client(gateways[place % len(gateways)]) for place in range(count)]


async def heard(stage: Stage, clients: Sequence[Client]) -> Counter[int]:
    """The answers of all, by status. Many take their time; but every now and then somebody has one."""
    count = 0

    def answered() -> int:
        return sum(client.has_heard for client in clients)

    def more() -> bool:
        return answered() > count

    while (count := answered()) < len(clients):
        await stage.until(more, "nobody is answered: Redis is waited for")
    return Counter([(await client.answer()).status for client in clients])


async def let_in(stage: Stage, clients: Sequence[Client], times: int = 1) -> int:
    """How many are let in when all ask in one moment, and again, so many times. The others are told why."""
    came: Counter[int] = Counter()
    for _ in range(times):
        for client in clients:
            await client.ask()
        came += await heard(stage, clients)
    expect(set(came) <= {200, 429}, f"there came {dict(came)}")
    return came[200]


def _limits_in(valkey: Valkey, kind: bytes = b"") -> list[bytes]:
    """The names of what is counted there: of rates (`string`), or of what runs (`hash`)."""
    names = [name for name in valkey.names() if not name.startswith(PREFIX + b"probe:")]
    return [name for name in names if kind in valkey.client.type(name)]


async def until_all(stage: Stage, gateways: list[Running], mode: str, told: str) -> None:
    await stage.until(lambda: all(each.gateway.limits.mode == mode for each in gateways), told)


OF_A_DAY = {"requests_per_day": 30}
"""Nothing of it comes back while a scene is played."""
LIMIT = 30


@scene(
    "F61",
    "A Redis that stands still is felt once: then each replica allows its share, and nobody waits or is told of it",
    promise=Promise.LIMITS,
    without=(
        Without(REDIS_DEADLINE, red="Redis is waited for"),
        Without(FELT_ONCE, red=r"\d\d times Redis was waited for"),
        Without(LOCAL_SHARE, red="90 were let in without Redis"),
    ),
)
async def redis_stands_still(stage: Stage) -> None:
    valkey = await stage.valkey()
    pod = await stage.pod()
    gateways = await replicas(stage, valkey, pod, limit=OF_A_DAY, parts=AS_USUAL)
    clients = await come_to(stage, gateways, 30)
    since = [each.gateway.limits.since for each in gateways]
    before = await let_in(stage, clients[:12])
    # A machine that is busy may make Redis slow, and what is counted here meanwhile is none that Redis knows of.
    known = sum(12 // REPLICAS for each, at in zip(gateways, since, strict=True) if each.gateway.limits.since == at)
    valkey.pause()
    stage.step("Redis stands still")
    meanwhile = await let_in(stage, clients, times=7)
    expect(meanwhile <= LIMIT, f"{meanwhile} were let in without Redis")
    expect(before == 12 and meanwhile >= LIMIT - 12, f"only {before} and {meanwhile} were let in")
    waits = stage.logged.text.count("does not answer in time")
    expect(waits <= 3 * REPLICAS, f"{waits} times Redis was waited for in vain")
    valkey.resume()
    await until_all(stage, gateways, "redis", "Redis is not used again")
    after = await let_in(stage, clients, times=2)
    expect(known + after <= LIMIT, f"{known} and {after} were let in with Redis")


@scene(
    "F62",
    "A Redis that dies and comes back empty, and again, costs one share of each replica, and one burst each time",
    promise=Promise.LIMITS,
    without=(
        Without(REDIS_AGAIN, red="Redis is not used again"),
        Without(ONE_LOCAL_BOOK, red="30 more were let in"),
    ),
)
async def redis_dies(stage: Stage) -> None:
    valkey = await stage.valkey()
    pod = await stage.pod()
    gateways = await replicas(stage, valkey, pod, limit=OF_A_DAY)
    clients = await come_to(stage, gateways, 30)
    expect(await let_in(stage, clients[:12]) == 12, "a request was refused within its limit")
    for expected in (LIMIT, 0):
        valkey.kill()
        stage.step("Redis dies")
        await until_all(stage, gateways, "local", "Redis is dead, and used")
        more = await let_in(stage, clients, times=2)
        expect(more == expected, f"{more} more were let in without Redis, not {expected}")
        await valkey.start()
        await until_all(stage, gateways, "redis", "Redis is not used again")
        more = await let_in(stage, clients, times=2)
        expect(more == LIMIT, f"{more} were let in by a Redis that has forgotten, not {LIMIT}")


@scene(
    "F63",
    "A Redis that forgets its scripts is told them again, and nobody notices",
    promise=Promise.LIMITS,
    without=(Without(SCRIPT_AGAIN, red="Redis was left"),),
)
async def redis_forgets_its_scripts(stage: Stage) -> None:
    valkey = await stage.valkey()
    gateways = await replicas(stage, valkey, await stage.pod(), limit=OF_A_DAY)
    clients = await come_to(stage, gateways, REPLICAS)
    since = [each.gateway.limits.since for each in gateways]
    for _ in range(LIMIT // REPLICAS):
        valkey.forget_scripts()
        expect(await let_in(stage, clients) == REPLICAS, "a request was refused within its limit")
        expect([each.gateway.limits.since for each in gateways] == since, "Redis was left")
    valkey.forget_scripts()
    expect(await let_in(stage, clients) == 0, "more were let in than the limit allows")


@scene(
    "F65",
    "Replicas whose clocks are days apart count alike, every key ends, and one that is evicted costs one burst",
    promise=Promise.LIMITS,
    without=(Without(SERVERS_CLOCK, red=r"\d\d were let in"), Without(KEYS_END, red="never ends")),
)
async def clocks_are_wrong_and_keys_are_evicted(stage: Stage) -> None:
    valkey = await stage.valkey()
    pod = await stage.pod(script_of=lambda sent: (Hang,) if b"holds" in sent else (says.GOOD,))
    limit = OF_A_DAY | {"concurrent": 31}
    ahead, behind = (Clock(Leaps(time.monotonic, days), Leaps(time.time, days)) for days in (4 * 86_400.0, 1.0))
    gateways = [await replica(stage, valkey, pod, limit=limit, clock=clock) for clock in (None, ahead, behind)]
    clients = await come_to(stage, gateways, 30)
    held = await stage.client(gateways[0])
    await held.ask(user="holds")
    await stage.until(lambda: pod.requests, "the pod was not asked")
    names = _limits_in(valkey)
    expect(len(names) == 2, f"there are {names}")
    for name in names:
        valkey.client.persist(name)
    admitted = 1 + await let_in(stage, clients[:5])
    admitted += await let_in(stage, clients, times=2)
    expect(admitted == LIMIT, f"{admitted} were let in")
    for name in names:
        expect(valkey.client.pttl(name) > 0, f"{name.decode()} never ends")
    stage.step("Redis evicts all keys")
    valkey.flush()
    admitted = await let_in(stage, clients, times=2)
    expect(admitted == LIMIT, f"{admitted} were let in by a Redis that has forgotten")
    runs = _limits_in(valkey, b"hash")
    expect(len(runs) == 1, "what runs was not told again")
    held.leave()
    await stage.until(lambda: not valkey.client.exists(*runs), "what has ended is still held")


@scene(
    "F66",
    "Three replicas together let in what one limit allows, of a thousand that ask in one moment",
    promise=Promise.LIMITS,
    without=(Without(SHARED_COUNT, red=r"3\d\d were let in"),),
)
async def replicas_share_one_limit(stage: Stage) -> None:
    valkey = await stage.valkey()
    pod = await stage.pod()
    gateways = await replicas(stage, valkey, pod, limit={"requests_per_minute": 100}, pool=SOME_AT_ONCE)
    clients = await come_to(stage, gateways, 999)
    began = valkey.now()
    admitted = await let_in(stage, clients)
    refilled = (valkey.now() - began) * 100 / 60e6
    expect(100 <= admitted <= 100 + refilled + 1, f"{admitted} were let in, the limit is 100")
    expect(len(pod.requests) == admitted, f"{admitted} were let in, the pod was asked {len(pod.requests)} times")


SOME_AT_ONCE = {"max_in_flight_per_pod": 10, "queue_limit": 1000}
"""The pod takes no thousand connections in one moment."""


@scene(
    "F66b",
    "When Redis is lost in the middle of such a burst, one limit more is let in, and no more",
    promise=Promise.LIMITS,
    without=(Without(LOCAL_SHARE, red=r"[34]\d\d were let in"),),
)
async def redis_is_lost_in_the_middle(stage: Stage) -> None:
    valkey = await stage.valkey()
    pod = await stage.pod()
    limit = {"requests_per_minute": 100}
    gateways = await replicas(stage, valkey, pod, limit=limit, pool=SOME_AT_ONCE, parts=AS_USUAL)
    clients = await come_to(stage, gateways, 480)
    began, began_here = time.monotonic(), stage.clock()
    for client in clients[:60]:
        await client.ask()
    await stage.until(lambda: pod.requests, "nobody was let in")
    valkey.pause()
    stage.step("Redis stands still")
    for client in clients[60:]:
        await client.ask()
    came = await heard(stage, clients)
    refilled = (time.monotonic() - began + stage.clock() - began_here) * 100 / 60
    expect(came[200] <= 200 + refilled + 2, f"{came[200]} were let in, the limit is 100")
    expect(set(came) == {200, 429}, f"there came {dict(came)}")


@scene(
    "F67",
    "A place among those that run at once is free again, for all replicas, when its client is gone",
    promise=Promise.LIMITS,
    without=(Without(CANCELLATION, red="the place is held for nobody"),),
)
async def a_client_is_killed(stage: Stage) -> None:
    valkey = await stage.valkey()
    pod = await stage.pod(Hang)
    here, there = [await replica(stage, valkey, pod, limit={"concurrent": 1}) for _ in range(2)]
    for stream in (True, False):
        pod.requests.clear()
        client = await stage.asks(here, stream=stream)
        await stage.until(lambda: pod.requests, "the pod was not asked")
        await (await stage.asks(there)).expect(429, "rate_limit_exceeded")
        client.leave()
        await stage.until(lambda: not _runs(valkey), "the place is held for nobody")


def _runs(valkey: Valkey) -> dict[bytes, tuple[int, float]]:
    """What runs, as Redis has it: for each replica (how many, for how many seconds that still holds)."""
    (name, *_) = _limits_in(valkey, b"hash") or [b""]
    told, now = valkey.client.hgetall(name), valkey.now()
    found = {replica: value.split() for replica, value in told.items()}
    return {replica: (int(count), (float(until) - now) / 1e6) for replica, (count, until) in found.items()}


@scene(
    "F67b",
    "What a gateway ran that was killed is free again within half a minute",
    promise=Promise.LIMITS,
    without=(Without(LEASES_END, red="is held for 86"),),
)
async def a_gateway_is_killed(stage: Stage) -> None:
    valkey = await stage.valkey()
    line = await stage.enter(SlowLine(valkey.port))
    pod = await stage.pod(script_of=lambda sent: (Hang,) if b"holds" in sent else (says.GOOD,))
    killed, other = [await replica(stage, through, pod, limit={"concurrent": 1}) for through in (line, valkey)]
    await stage.asks(killed, user="holds")
    await stage.until(lambda: pod.requests, "the pod was not asked")
    await line.cut()
    stage.step("Redis hears no more of a gateway")
    ((name, (count, seconds)),) = _runs(valkey).items()
    expect(count == 1 and 0 < seconds <= 30, f"the place is held for {seconds:.0f} s")
    client = await stage.asks(other)
    await client.expect(429, "rate_limit_exceeded")
    (key,) = _limits_in(valkey, b"hash")
    valkey.client.hset(key, name, f"1 {valkey.now():.0f}")
    stage.step("half a minute is over")
    await client.ask()
    await client.expect(200)


@scene(
    "F67c",
    "A stream keeps its place among those that run at once for as long as it runs: Redis is told of it again",
    promise=Promise.LIMITS,
    without=(Without(HEARTBEAT, red="the place was not told again"),),
)
async def a_long_stream_keeps_its_place(stage: Stage) -> None:
    valkey = await stage.valkey()
    pod = await stage.pod(Hang)
    often = THE_USUAL._replace(limits=counts_in_redis(pace=OFTEN_TOLD))
    here, there = [await replica(stage, valkey, pod, limit={"concurrent": 1}, parts=often) for _ in range(2)]
    await stage.asks(here, stream=True)
    await stage.until(lambda: _runs(valkey), "it is not told")
    ends_at = valkey.now() / 1e6 + next(iter(_runs(valkey).values()))[1]

    def told_again() -> bool:
        return any(valkey.now() / 1e6 + seconds > ends_at + 0.1 for _, seconds in _runs(valkey).values())

    await stage.until(told_again, "the place was not told again")
    await (await stage.asks(there)).expect(429, "rate_limit_exceeded")


@scene(
    "F68",
    "What Redis counts of tokens is what was used, whatever was reserved and whoever left half-way",
    promise=Promise.LIMITS,
    without=(
        Without(SETTLEMENT, red="another number is counted"),
        Without(ESTIMATED_USAGE, red=r"of those that left \[0, 0, 0, 0, 0, 0\] tokens are noted"),
    ),
)
async def tokens_are_what_was_used(stage: Stage) -> None:
    valkey = await stage.valkey()
    half = STREAM_HEAD + b"".join(chunk(says.token(text)) for text in "abcdefgh")
    pods = {
        b"leaves": (half, Hang),
        b"silent": (Hang,),
        b"cut": (half, Close),
        b"fails": (says.failure("no"),),
        b"streams": (says.stream("a", "b"),),
    }
    pod = await stage.pod(
        script_of=lambda sent: next((script for word, script in pods.items() if word in sent), (says.GOOD,))
    )
    gateways = await replicas(stage, valkey, pod, limit={"tokens_per_day": 10_000})
    for gateway in gateways:
        for user, stream in (("whole", False), ("streams", True), ("cut", True), ("fails", True)):
            client = await stage.asks(gateway, user=user, stream=stream, max_tokens=500)
            await client.answer()
        client = await stage.asks(gateway, user="leaves", stream=True, max_tokens=500)
        await client.read_until(says.token("h"))
        client.leave()
        pod.requests.clear()
        client = await stage.asks(gateway, user="silent", max_tokens=500)
        await stage.until(lambda: pod.requests, "the pod was not asked")
        client.leave()
        await stage.line(gateway)
    lines = [line for gateway in gateways for line in gateway.lines()]
    used = sum((line["prompt_tokens"] or 0) + (line["completion_tokens"] or 0) for line in lines)
    left = [line["completion_tokens"] or 0 for line in lines if line["outcome"] == "client_left"]
    expect(sorted(left) == [0] * REPLICAS + [8] * REPLICAS, f"of those that left {left} tokens are noted")
    told = f"of {used} tokens another number is counted"
    await stage.until(lambda: abs(_spent(valkey, 10_000) - used) < 1, told)


def _spent(valkey: Valkey, amount: int) -> float:
    """Of the one rate that is counted there."""
    levels = [float(valkey.client.get(name)) - valkey.now() for name in _limits_in(valkey, b"string")]
    return sum(levels) / (DAY / amount)


STRANGERS = 400


@scene(
    "F69",
    "Keys that nobody has are refused for less than a request costs, and leave nothing behind, in Redis or elsewhere",
    promise=Promise.LIMITS,
    without=(Without(KNOWN_FIRST, red="keys are in Redis"),),
)
async def unknown_keys_leave_nothing(stage: Stage) -> None:
    valkey = await stage.valkey()
    gateway = await replica(stage, valkey, await stage.pod(), limit={"requests_per_day": 1_000_000})
    keys = [new_key()[1] for _ in range(STRANGERS)]
    keys[1::10] = [f"e.{key}.e" for key in keys[1::10]]
    keys[2::10] = [f"sk-{place}" * 9 for place in range(STRANGERS // 10)]
    stage.secrets |= set(keys[:20])

    async def cost_of(key: str | None, status: int, code: str | None) -> float:
        """Of one request on a connection of its own: the processor's seconds."""
        began = time.thread_time()
        client = await stage.client(key=key)
        await client.ask()
        await client.expect(status, code)
        return time.thread_time() - began

    await cost_of(keys[0], 401, "invalid_api_key")
    series = _series(gateway)
    for key in keys:
        await cost_of(key, 401, "invalid_api_key")
    await stage.until(lambda: not gateway.gateway.limits._leases.untold, "Redis is to be told something")  # type: ignore[attr-defined]
    expect(not _limits_in(valkey), f"{len(_limits_in(valkey))} keys are in Redis")
    expect(_series(gateway) == series, f"of {series} series {_series(gateway)} were made")
    expect(not gateway.gateway.admission._plans, "limits were looked up")
    # One by one in turn: what else the machine does makes both dear.
    costs = [(await cost_of(key, 401, "invalid_api_key"), await cost_of(None, 200, None)) for key in keys[:200]]
    stranger, caller = map(median, zip(*costs, strict=True))
    expect(stranger < caller, f"an unknown key costs {stranger / caller:.2f} of a request")


def _series(gateway: Running) -> int:
    gateway.gateway.journal.observe()
    return sum(len(family.samples) for family in gateway.gateway.metrics.registry.collect())


@scene(
    "F70",
    "A burst before and behind the edge of a minute is one burst",
    promise=Promise.LIMITS,
    without=(Without(NO_WINDOWS, red="199 were let in"),),
)
async def a_minute_has_no_edge(stage: Stage) -> None:
    gateway = await stage.gateway(await stage.pod(), limits={"default": NO_LIMITS | {"requests_per_minute": 100}})
    await let_in(stage, await come_to(stage, [gateway], 1))
    await stage.leap(58)
    began = stage.clock()
    clients = await come_to(stage, [gateway], 50)
    admitted = await let_in(stage, clients, times=2)
    await stage.leap(4)
    admitted += await let_in(stage, clients, times=2)
    refilled = (stage.clock() - began) * 100 / 60
    expect(100 <= admitted <= 100 + refilled + 1, f"{admitted} were let in within {refilled * 0.6:.1f} s")
