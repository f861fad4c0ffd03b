"""Three gateways, each a process of its own, that count limits in one Redis; who calls them, and what they may get.

The pod is in the test's process, and counts what runs there. What is admitted is compared with the bucket itself, as it
stands in Redis, and with that server's clock. How quick this machine is decides nothing: a gateway that leaves Redis on
its own accord, since the machine is busy, says so, and the bounds of an outage hold then.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.caller import Tenant
from gateway.limits.batch import PREFIX
from gateway.limits.bucket import Bucket
from gateway.limits.keys import digest, new_key
from gateway.limits.rules import Rules
from tests.fakes import ScriptedPod, Step, answer
from tests.integration.rollout.lines import Answer, Line
from tests.integration.test_process import SECONDS, Served, started
from tests.raw import chat, request
from tests.running import NO_LIMITS
from tests.valkey import Valkey

REPLICAS = 3
TEAM = "canary-team"
LEFT = "each replica counts limits for itself"
FOUND = "limits are counted in Redis"
"""What a gateway's log says of Redis."""
ROUNDING = 100.0
"""Microseconds: doubles of this size have fractions of one, and a bucket is a sum of many."""


def says(**usage: int) -> bytes:
    """A pod's answer that reports this usage."""
    told = {"choices": [{"index": 0, "finish_reason": "stop"}], "usage": usage}
    return answer(json.dumps(told).encode())


def costing(tokens: int) -> dict[str, Any]:
    """A chat that is taken for so many tokens, its prompt and its answer together."""
    prompt = len(json.dumps(chat(max_tokens=tokens))) // 4
    body = chat(max_tokens=tokens - prompt)
    assert len(json.dumps(body)) // 4 == prompt
    return body


@dataclass(frozen=True)
class Caller:
    """Who has a key of its own, and limits of its own."""

    key: str
    tenant: Tenant

    @classmethod
    def make(cls, **more: Any) -> Self:
        key_id, key = new_key()
        return cls(key, Tenant(key_id, TEAM, **more))

    @property
    def entry(self) -> dict[str, Any]:
        """Its own in the keys file."""
        tenant = self.tenant
        limits = {name: getattr(tenant, name) for name in NO_LIMITS}
        told = {"id": tenant.key_id, "sha256": digest(self.key.encode()), "team": TEAM}
        return {**told, **limits, "forwards_user": tenant.forwards_user}

    @property
    def bucket(self) -> Bucket:
        """Of the one limit it has."""
        (found,) = Rules().buckets(self.tenant, "", "m")
        return found

    def asks(self, **body: Any) -> bytes:
        """A request of its."""
        return request(chat(**body), key=self.key)


class _Work(asyncio.Event):
    """What a request waits for in the pod; `over` is called before the pod answers."""

    def __init__(self, over: Callable[[], None]) -> None:
        super().__init__()
        self._over = over

    async def wait(self) -> Literal[True]:
        try:
            return await super().wait()
        finally:
            self._over()


class Pod(ScriptedPod):
    """Answers at once, or, while it `holds`, when it is told to."""

    def __init__(self) -> None:
        super().__init__(script_of=self._begin)
        self.answer = says(prompt_tokens=1, completion_tokens=1)
        self.holds = False
        self.running = 0
        self.most = 0
        """So many ran at once."""
        self._held: dict[_Work, bytes] = {}

    def _begin(self, sent: bytes) -> Sequence[Step]:
        work = _Work(self._end)
        self.running += 1
        self.most = max(self.most, self.running)
        if self.holds:
            self._held[work] = sent
        else:
            work.set()
        return work, self.answer

    def _end(self) -> None:
        self.running -= 1

    def let_go(self, most: int | None = None, word: bytes = b"") -> int:
        """Answer the oldest of what it holds, of those with this word in them; how many."""
        found = list(islice((work for work, sent in self._held.items() if word in sent), most))
        for work in found:
            del self._held[work]
            work.set()
        return len(found)


class ServersClock:
    """What the server's clock says, in microseconds, at a moment of our loop's. It is not known to the last one."""

    def __init__(self, server: Valkey) -> None:
        time = asyncio.get_running_loop().time
        before = time()
        seconds, microseconds = server.client.time()
        now = seconds * 1e6 + microseconds
        self._most, self._least = now - before * 1e6, now - time() * 1e6

    def earliest(self, moment: float) -> float:
        return moment * 1e6 + self._least

    def latest(self, moment: float) -> float:
        return moment * 1e6 + self._most


@dataclass
class Load:
    """What callers were answered, with times of the loop."""

    clock: ServersClock
    sent_at: float
    """The first was not sent before."""
    answers: list[Answer] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(each.status for each in self.answers)

    @property
    def admitted(self) -> int:
        return self.statuses[200]

    @property
    def admitted_at(self) -> list[float]:
        """When who was let in had its answer."""
        return sorted(each.ended_at for each in self.answers if each.status == 200)

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return max(each.ended_at for each in self.answers) - self.sent_at

    def assert_answered(self) -> None:
        """Each was let in or refused, and nothing else came of it."""
        assert set(self.statuses) <= {200, 429}, self.statuses
        assert all(each.clean for each in self.answers)


@dataclass
class Replicas:
    """See the module's text."""

    gateways: list[Served]
    server: Valkey
    pod: Pod
    callers: list[Caller]
    """All with the same limits."""

    @property
    def clock(self) -> ServersClock:
        return ServersClock(self.server)

    @property
    def outages(self) -> int:
        """So often a gateway has left Redis."""
        return sum("".join(gateway.err).count(LEFT) for gateway in self.gateways)

    async def modes(self) -> list[tuple[str, str]]:
        """(mode, reason) of each gateway, as its metrics and its status say."""
        return await asyncio.gather(*(mode_of(gateway) for gateway in self.gateways))

    async def until(self, mode: str, *reasons: str) -> float:
        """Wait until all gateways are in this mode, for one of these reasons if there are such. How long that took."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(SECONDS):
            while not all(each[0] == mode and each[1] in (reasons or each) for each in await self.modes()):
                await asyncio.sleep(0.01)
            # What it has said comes by another way.
            while mode == "redis" and any(unsettled("".join(gateway.err)) for gateway in self.gateways):
                await asyncio.sleep(0.01)
        return loop.time() - began

    async def at_once(self, data: bytes, count: int, *, to: Sequence[Served] = ()) -> Load:
        """So many requests, spread over the gateways, all sent in one moment, each on a connection of its own."""
        gateways = to or self.gateways
        lines = await asyncio.gather(*(Line.connect(each.port) for each in islice(cycle(gateways), count)))
        load = Load(self.clock, asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(SECONDS):
                load.answers += await asyncio.gather(*(line.ask(data) for line in lines))
        finally:
            for line in lines:
                line.leave()
        load.assert_answered()
        return load

    async def until_refused(self, data: bytes, load: Load) -> float:
        """Ask for more, one after another, until one is refused; when that was sent."""
        loop = asyncio.get_running_loop()
        for gateway in cycle(self.gateways):
            line = await Line.connect(gateway.port)
            sent_at = loop.time()
            load.answers.append(await line.ask(data))
            line.leave()
            if load.answers[-1].status == 429:
                return sent_at
        raise AssertionError

    def full_at(self, bucket: Bucket) -> float:
        """As Redis has it: the server's clock, in microseconds."""
        return float(self.server.client.get(PREFIX + bucket.key) or 0)

    def runs(self, bucket: Bucket) -> dict[bytes, tuple[int, float]]:
        """As Redis has it, for each replica: (how many, until when that holds)."""
        told = self.server.client.hgetall(PREFIX + bucket.key)
        parts = {replica: value.split() for replica, value in told.items()}
        return {replica: (int(count), float(until)) for replica, (count, until) in parts.items()}


def unsettled(log: str) -> bool:
    """A gateway is in Redis, and its log does not say so yet."""
    return log.rfind(FOUND) <= log.rfind(LEFT)


async def mode_of(gateway: Served) -> tuple[str, str]:
    """(mode, reason), where its metrics and its status agree."""
    while True:
        limits = json.loads((await gateway.ops("/status.json")).body)["limits"]
        families = text_string_to_metric_families((await gateway.ops("/metrics")).body.decode())
        (family,) = (each for each in families if each.name == "poolgate_limit_mode")
        shown = {sample.labels["mode"]: sample.value for sample in family.samples}
        assert set(shown) == {"memory", "redis", "local"}
        assert sum(shown.values()) == 1
        if shown[limits["mode"]]:
            assert bool(limits["reason"]) == (limits["mode"] == "local")
            return limits["mode"], limits["reason"]


@asynccontextmanager
async def replicas(
    folder: Path, callers: list[Caller], *, redis_url: str = "", rules: Sequence[dict[str, Any]] = ()
) -> AsyncIterator[Replicas]:
    """The gateways, ready, and in Redis, which is behind `redis_url` or a server of their own."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(Valkey())
        async with serving(folder, callers, server, redis_url or server.url, rules) as found:
            yield found


@asynccontextmanager
async def serving(
    folder: Path, callers: list[Caller], server: Valkey, redis_url: str, rules: Sequence[dict[str, Any]] = ()
) -> AsyncIterator[Replicas]:
    """The gateways, ready, and in Redis."""
    async with AsyncExitStack() as stack:
        pod = await stack.enter_async_context(Pod())
        keys, file = folder / "keys.yaml", folder / "poolgate.yaml"
        keys.write_text(yaml.safe_dump({"keys": [caller.entry for caller in callers]}))
        limits = {"redis_url": redis_url, "replicas": REPLICAS, "default": NO_LIMITS, "rules": list(rules)}
        settings = {
            "server": {"host": "127.0.0.1", "port": 0, "ops_port": 0, "drain_seconds": 5},
            "discovery": {"mode": "static", "pods": [{"url": pod.url, "pool": "chat"}]},
            "pools": {"chat": {"max_in_flight_per_pod": 1000, "queue_limit": 10_000}},
            "auth": {"keys_file": str(keys)},
            "limits": limits,
        }
        file.write_text(yaml.safe_dump(settings))
        processes = await asyncio.gather(
            *(stack.enter_async_context(started("serve", "--config", str(file))) for _ in range(REPLICAS))
        )
        gateways = [await Served.up(process, "") for process in processes]
        for gateway in gateways:
            await gateway.until_ready()
        found = Replicas(gateways, server, pod, callers)
        await found.until("redis")
        yield found
