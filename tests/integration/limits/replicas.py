"""Three gateways, each a process of its own, that count limits in one Redis; who calls them, and what they may get.

The pod is in the test's process, and counts what runs there. What was let in is compared with the bucket itself, as it
stands in Redis, and with that server's clock. How quick this machine is decides nothing: a gateway that leaves Redis
because everything is slow says so, and a test then knows that other bounds hold, those of an outage.
"""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.caller import Tenant
from gateway.limits.batch import PREFIX
from gateway.limits.bucket import Bucket
from gateway.limits.keys import digest, new_key
from gateway.limits.rules import Rules
from tests.fakes import ScriptedPod, Step, answer
from tests.integration.rollout.lines import Line
from tests.integration.test_process import SECONDS, Served, started
from tests.raw import chat, request
from tests.running import NO_LIMITS
from tests.turns import Turns, within
from tests.valkey import Valkey

REPLICAS = 3
LEFT = "each replica counts limits for itself"
FOUND = "limits are counted in Redis"
"""What a gateway's log says of Redis."""
ROUNDING = 100.0
"""Microseconds. A bucket is a sum of many numbers that have no more than fractions of one."""


def says(prompt: int, completion: int) -> bytes:
    """A pod's answer that reports so many tokens."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    told = {"choices": [{"index": 0, "finish_reason": "stop"}], "usage": usage}
    return answer(json.dumps(told).encode())


@dataclass(frozen=True, eq=False)
class Kind:
    """Callers with one limit, and what each of their requests takes of it."""

    limits: Mapping[str, int]
    cost: int = 1
    body: Mapping[str, Any] = field(default_factory=dict)
    answer: bytes = says(1, 1)

    @classmethod
    def of_tokens(cls, per_minute: int, each: int) -> Self:
        """Each request is taken for so many tokens, and uses them."""
        prompt = len(json.dumps(chat(max_tokens=each))) // 4
        body = {"max_tokens": each - prompt}
        assert len(json.dumps(chat(**body))) // 4 == prompt
        return cls({"tokens_per_minute": per_minute}, each, body, says(prompt, each - prompt))

    @property
    def at_once(self) -> int:
        """So many requests a full bucket lets in."""
        (amount,) = self.limits.values()
        return amount // self.cost


@dataclass(frozen=True, eq=False)
class Caller:
    """Who has a key of its own, and so buckets of its own."""

    kind: Kind
    key: str
    tenant: Tenant

    @classmethod
    def of(cls, kind: Kind, team: str = "acme", **more: Any) -> Self:
        key_id, key = new_key()
        own: dict[str, Any] = {**kind.limits, **more}
        return cls(kind, key, Tenant(key_id, team, **own))

    @property
    def entry(self) -> dict[str, Any]:
        """Its own in the keys file."""
        tenant = self.tenant
        told = {"id": tenant.key_id, "sha256": digest(self.key.encode()), "team": tenant.team}
        return {**told, **self.kind.limits, "forwards_user": tenant.forwards_user}

    @property
    def bucket(self) -> Bucket:
        """Of the one limit it has."""
        (found,) = Rules().buckets(self.tenant, "", "m")
        return found

    @property
    def step(self) -> float:
        """What one of its requests costs of a rate, in microseconds."""
        return self.bucket.interval * self.kind.cost

    def asks(self, *, headers: dict[str, str] | None = None, **body: Any) -> bytes:
        """A request of its own."""
        return request(chat(**{**self.kind.body, **body}), key=self.key, headers=headers)


class _Work(asyncio.Event):
    """What a request waits for in the pod. `over` is called before the pod answers."""

    def __init__(self, over: Callable[[], None]) -> None:
        super().__init__()
        self._over = over

    async def wait(self) -> Literal[True]:
        try:
            return await super().wait()
        finally:
            self._over()


class Pod(ScriptedPod):
    """Answers at once; while it `holds`, when it is told to."""

    def __init__(self) -> None:
        super().__init__(script_of=self._begin)
        self.answer = says(1, 1)
        self.holds = False
        self.running = 0
        self.most = 0
        """So many ran at once."""
        self._held: dict[_Work, bytes] = {}

    async def start(self) -> None:
        # As many connections as gateways open in one moment: asyncio's own backlog is a hundred.
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=2048)
        self.port = self._server.sockets[0].getsockname()[1]

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

    def let_go(self, most: int | None = None, word: bytes = b"") -> None:
        """Answer the oldest of those that it holds with this word in them."""
        for work in list(islice((work for work, sent in self._held.items() if word in sent), most)):
            del self._held[work]
            work.set()


class ServersClock:
    """What the server's clock says at a moment of our loop's, in microseconds: no earlier, and no later than that."""

    def __init__(self, server: Valkey) -> None:
        # The quickest answer tells most.
        self._least, self._most = min((self._look(server) for _ in range(5)), key=lambda ahead: ahead[1] - ahead[0])

    def _look(self, server: Valkey) -> tuple[float, float]:
        """How far it is ahead of ours, at least and at most."""
        time = asyncio.get_running_loop().time
        before = time()
        now = server.now()
        after = time()
        return now - after * 1e6, now - before * 1e6

    def earliest(self, moment: float) -> float:
        return moment * 1e6 + self._least

    def latest(self, moment: float) -> float:
        return moment * 1e6 + self._most


class Told(NamedTuple):
    """One request, with times of the loop."""

    status: int
    sent_at: float
    ended_at: float
    clean: bool
    late: float
    """So much later it was sent than it should have been: the caller was held up itself."""
    turns: float
    """So long it took, in seconds of `tests.turns`."""


class Load:
    """What callers ask, and are told. In a `with` block: at its end all have their answers, which are 200 or 429; of
    those that a gateway has left behind, what `cut` says."""

    def __init__(self, gateways: Sequence[Served], clock: ServersClock) -> None:
        self._gateways = gateways
        self.clock = clock
        self.told: list[Told] = []
        self.over = False
        """Nobody asks any more."""
        self.cut: set[int] = set()
        """What else may come of a request: 0, a lost connection, and 503, where a gateway goes."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._lines: set[Line] = set()
        self._idle: defaultdict[int, list[Line]] = defaultdict(list)
        self._turns = Turns()

    async def __aenter__(self) -> Self:
        self._turns.__enter__()
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                await self.answered()
                assert set(self.statuses) <= {200, 429} | self.cut, self.statuses
                assert all(each.clean for each in self.told if each.status)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for line in self._lines:
                line.leave()
            self._turns.__exit__()

    async def send(self, data: bytes, count: int, *, to: Sequence[Served] = ()) -> None:
        """So many requests, spread over the gateways, in one moment, each on a connection of its own."""
        for line in await self._spread(count, to):
            self._start(self._ask(line, data))

    async def ask(self, data: bytes, to: Served) -> Told:
        """One request, to its end."""
        async with within(SECONDS):
            return await self._ask(await self._line(to.port), data)

    async def ask_in_turn(self, data: bytes, count: int, lines: int, *, to: Sequence[Served] = ()) -> None:
        """So many requests on so many connections, each of which asks again when it has its answer."""
        left = iter(range(count))
        await asyncio.gather(*(self._repeat(line, data, left) for line in await self._spread(lines, to)))

    def keep_asking(self, asked: Iterable[bytes], per_second: float) -> None:
        """From now on, one request after the other in even steps, whether the ones before have their answers or not."""
        self._start(self._pace(cycle(asked), 1 / per_second))

    async def answered(self) -> None:
        """Wait until everybody has an answer; who keeps asking ends with it."""
        self.over = True
        async with within(SECONDS):
            while self._tasks:
                await asyncio.gather(*self._tasks)

    @property
    def open(self) -> int:
        """Requests without an answer."""
        return len(self._tasks)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(each.status for each in self.told)

    @property
    def admitted(self) -> int:
        return self.statuses[200]

    def first_taken_within(self, step: float) -> tuple[float, float]:
        """When the first of them was taken, by the server's clock, or, if the bucket has been full again since, the
        first after that. Each takes it this much further from being full."""
        sent_at = self.clock.earliest(min(each.sent_at for each in self.told)) - ROUNDING
        answered_at = [self.clock.latest(moment) + ROUNDING for moment in self.admitted_at]
        first = 0
        # When so many have their answers, as many have been taken. Was the next one in time?
        for count, moment in enumerate(answered_at[1:], 1):
            if moment >= sent_at + count * step:
                first = count
        return sent_at, answered_at[first]

    @property
    def admitted_at(self) -> list[float]:
        """When those that were let in had their answers."""
        return sorted(each.ended_at for each in self.told if each.status == 200)

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return max(each.ended_at for each in self.told) - min(each.sent_at for each in self.told)

    async def _spread(self, count: int, to: Sequence[Served]) -> list[Line]:
        return await asyncio.gather(*(self._line(each.port) for each in islice(cycle(to or self._gateways), count)))

    async def _line(self, port: int) -> Line:
        while idle := self._idle[port]:
            if (line := idle.pop()).usable:
                return line
        line = await Line.connect(port)
        self._lines.add(line)
        return line

    async def _ask(self, line: Line, data: bytes, due: float | None = None) -> Told:
        told = await self._told(line, data, due)
        self._idle[line.port].append(line)
        return told

    async def _repeat(self, line: Line, data: bytes, left: Iterator[int]) -> None:
        for _ in left:
            await self._told(line, data)
        self._idle[line.port].append(line)

    async def _told(self, line: Line, data: bytes, due: float | None = None) -> Told:
        sent_at, turns = asyncio.get_running_loop().time(), self._turns.seconds
        came = await line.ask(data)
        late = 0.0 if due is None else sent_at - due
        self.told.append(Told(came.status, sent_at, came.ended_at, came.clean, late, self._turns.seconds - turns))
        return self.told[-1]

    async def _pace(self, asked: Iterator[bytes], step: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        for gateway in cycle(self._gateways):
            if self.over:
                return
            self._start(self._ask(await self._line(gateway.port), next(asked), due))
            due += step
            await asyncio.sleep(due - loop.time())

    def _start(self, work: Coroutine[Any, Any, object]) -> None:
        async def run() -> None:
            await work

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass
class Replicas:
    """See the module's text."""

    gateways: list[Served]
    server: Valkey
    pod: Pod
    _clock: ServersClock
    _callers: dict[Kind, list[Caller]]

    def callers(self, kind: Kind) -> Iterator[Caller]:
        """Callers nobody has heard of yet, and the pod answers them as it should."""
        self.pod.answer = kind.answer
        while self._callers[kind]:
            yield self._callers[kind].pop()

    def load(self) -> Load:
        return Load(self.gateways, self._clock)

    @property
    def outages(self) -> int:
        """So often a gateway has left Redis."""
        return sum("".join(gateway.err).count(LEFT) for gateway in self.gateways)

    async def modes(self) -> list[tuple[str, str]]:
        """(mode, reason) of each gateway, as its metrics and its status say."""
        return await asyncio.gather(*(mode_of(gateway) for gateway in self.gateways))

    async def until(self, mode: str, *reasons: str) -> float:
        """Wait until all gateways are in this mode, for one of these reasons if any are given. How long that took."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        # A machine on which everything takes 25 ms has a slow Redis for so long.
        async with within(3 * SECONDS):
            while not all(each[0] == mode and each[1] in (reasons or each) for each in await self.modes()):
                await asyncio.sleep(0.01)
            took = loop.time() - began
            # What they say of it comes by another way.
            while mode == "redis" and any(_left_last("".join(gateway.err)) for gateway in self.gateways):
                await asyncio.sleep(0.01)
        return took

    async def until_refused(self, data: bytes, load: Load) -> float:
        """Ask for more, one after another, until one is refused. When that one was sent."""
        for gateway in cycle(self.gateways):
            told = await load.ask(data, gateway)
            if told.status == 429:
                return told.sent_at
        raise AssertionError

    def full_at(self, caller: Caller) -> float:
        """When its bucket will be full, as Redis has it: in microseconds of the server's clock."""
        return float(self.server.client.get(PREFIX + caller.bucket.key) or 0)

    def runs(self, caller: Caller) -> dict[bytes, tuple[int, float]]:
        """What runs, as Redis has it, for each replica: (how many, until when that holds)."""
        told = self.server.client.hgetall(PREFIX + caller.bucket.key)
        parts = {replica: value.split() for replica, value in told.items()}
        return {replica: (int(count), float(until)) for replica, (count, until) in parts.items()}


def _left_last(log: str) -> bool:
    return log.rfind(FOUND) <= log.rfind(LEFT)


async def mode_of(gateway: Served) -> tuple[str, str]:
    """(mode, reason), once its metrics and its status agree."""
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
    folder: Path,
    callers: Iterable[Caller],
    server: Valkey,
    *,
    redis_url: str = "",
    rules: Sequence[Mapping[str, Any]] = (),
) -> AsyncIterator[Replicas]:
    """The gateways, ready, and in this Redis, by another way than the straight one if a URL says so."""
    known: defaultdict[Kind, list[Caller]] = defaultdict(list)
    for caller in callers:
        known[caller.kind].append(caller)
    keys, file = folder / "keys.yaml", folder / "poolgate.yaml"
    keys.write_text(yaml.safe_dump({"keys": [caller.entry for each in known.values() for caller in each]}))
    async with AsyncExitStack() as stack:
        pod = await stack.enter_async_context(Pod())
        settings = {
            "server": {"host": "127.0.0.1", "port": 0, "ops_port": 0},
            "discovery": {"mode": "static", "pods": [{"url": pod.url, "pool": "chat"}]},
            "pools": {"chat": {"max_in_flight_per_pod": 1000, "queue_limit": 10_000}},
            "upstream": {"connect_seconds": 10},
            "auth": {"keys_file": str(keys)},
            "limits": {
                "redis_url": redis_url or server.url,
                "replicas": REPLICAS,
                "default": NO_LIMITS,
                "rules": [dict(rule) for rule in rules],
            },
        }
        file.write_text(yaml.safe_dump(settings))
        starting = (stack.enter_async_context(started("serve", "--config", str(file))) for _ in range(REPLICAS))
        gateways = [await Served.up(process, "") for process in await asyncio.gather(*starting)]
        for gateway in gateways:
            await gateway.until_ready()
        found = Replicas(gateways, server, pod, ServersClock(server), known)
        await found.until("redis")
        yield found
