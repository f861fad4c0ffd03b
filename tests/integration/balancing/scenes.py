"""A scene: a gateway before scripted pods, whose clock stands still but for a test's leaps, and what must be true when
the scene is over."""

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from random import Random
from typing import Any

from gateway.app import Gateway
from gateway.balancing.balancer import Seat
from gateway.core.clock import Clock
from gateway.core.fleet import Pod, PodHealth, PodState
from gateway.discovery.source import Given
from gateway.parts import THE_USUAL
from gateway.pipeline.overload import Overload
from tests.discovering import eventually
from tests.fakes import STREAM_HEAD, Die, Hands, Leaps, ScriptedPod, Step, answer, chunk
from tests.raw import Answer, RawClient, chat, request
from tests.running import Running, Side, in_flight, running

GOOD = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
TOKEN = chunk(b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n')
ENDING = (
    chunk(b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n')
    + chunk(b"data: [DONE]\n\n")
    + b"0\r\n\r\n"
)
STREAM = STREAM_HEAD + TOKEN + ENDING
FAILED = answer(b'{"error":{"message":"bad luck","type":"x","code":500}}', b"500 Internal Server Error")
SIDECAR = answer(b"no", b"502 Bad Gateway", b"text/plain")
GAUGES = ("poolgate_in_flight", "poolgate_pod_in_flight", "poolgate_queue_depth")
AT_REST_SECONDS = 2.0
MOMENT = 1e-3
"""So much later it is when all deadlines were looked at."""


def pods(count: int, *script: Step) -> list[ScriptedPod]:
    """So many pods that play the script for every request; without one they answer well."""
    return [ScriptedPod([script or (GOOD,)]) for _ in range(count)]


def dying_of(word: bytes, *script: Step) -> Callable[[bytes], Sequence[Step]]:
    """The script of a pod that dies of a body with this word."""
    return lambda sent: (Die,) if word in sent else script or (GOOD,)


@dataclass
class Scene:
    """A running gateway whose requests are counted. Pods are told apart by their place in the list."""

    running: Running
    clock: Leaps
    clients: list[RawClient] = field(default_factory=list)
    sent: int = 0
    """Requests that clients have sent."""
    _seen: list[int] = field(default_factory=list)
    """Where the requests went that `arrival` has told of."""

    @property
    def gateway(self) -> Gateway:
        return self.running.gateway

    async def begin(self, *, key: str | None = None, headers: dict[str, str] | None = None, **body: Any) -> RawClient:
        """Send one chat."""
        return await self.send(request(chat(**body), key=key or self.running.key, headers=headers))

    async def send(self, data: bytes) -> RawClient:
        """Send one request as it is, on a connection of its own."""
        client = await RawClient.connect(self.running.port)
        self.clients.append(client)
        self.sent += 1
        client.send(data)
        return client

    async def ask(self, **given: Any) -> Answer:
        """Send one chat and hear its answer."""
        client = await self.begin(**given)
        try:
            return await client.answer()
        except TimeoutError:
            raise AssertionError(self.picture()) from None
        finally:
            client.leave()

    def asking(self, **given: Any) -> "asyncio.Task[Answer]":
        """The same, meanwhile."""
        return asyncio.create_task(self.ask(**given))

    async def ask_briefly(self, asking: "asyncio.Task[Answer]") -> Answer | None:
        """What a request has come to when the gateway has looked at every deadline once more; None: nothing yet."""
        await self.swept()
        return asking.result() if asking.done() else None

    async def swept(self) -> None:
        """Wait until the gateway has looked at every deadline once more."""
        self.leap(MOMENT)
        edge, then = self.gateway.edge, self.clock()
        await self.until(lambda: edge.now >= then)

    def leap(self, seconds: float) -> None:
        """Let time pass; none passes otherwise."""
        self.clock.ahead += seconds

    async def until(self, holds: Callable[[], bool], seconds: float = 5.0) -> None:
        """Look until it is so."""
        await eventually(holds, seconds, self.picture)

    def picture(self) -> str:
        """How it is, for who has to find out why a test failed."""
        seats = [
            f"{pod.name} {pod.state.value}: {self.gateway.balancer.health_of(pod.uid)}, {seat and picture_of(seat)}"
            for pod in self.gateway.fleet.value.pods
            for seat in [self.gateway.balancer.seat_of(pod.uid)]
        ]
        return "\n".join([*seats, f"{self.waiting:g} wait", *map(str, self.running.lines()[-3:])])

    # The pods.

    async def arrival(self, given: Sequence[ScriptedPod]) -> int:
        """Wait until one more request has reached a pod; which one."""
        await self.until(lambda: sum(len(pod.requests) for pod in given) > len(self._seen))
        (place,) = (place for place, pod in enumerate(given) for _ in pod.requests[self._seen.count(place) :])
        self._seen.append(place)
        return place

    def pod(self, place: int) -> Pod:
        return next(pod for pod in self.gateway.fleet.value.pods if pod.name == f"chat-{place}")

    def seat(self, place: int) -> Seat:
        seat = self.gateway.balancer.seat_of(self.pod(place).uid)
        assert seat is not None
        return seat

    def health(self, place: int) -> PodHealth:
        return self.gateway.balancer.health_of(self.pod(place).uid)

    async def becomes(self, place: int, state: PodState) -> None:
        """The source sees this pod in another state."""
        source = self.gateway.source
        assert isinstance(source, Given)
        asked = state is PodState.READY
        source.give(
            tuple(
                replace(pod, state=state, askable=asked) if pod.name == f"chat-{place}" else pod
                for pod in source.seen().pods
            )
        )
        await self.until(lambda: self.pod(place).state is state)
        await self._balancer_has_heard()

    async def exist(self, seen: tuple[Pod, ...]) -> None:
        """The source sees these pods and no others."""
        source = self.gateway.source
        assert isinstance(source, Given)
        source.give(seen)
        names = {pod.name for pod in seen}
        await self.until(
            lambda: {pod.name for pod in self.gateway.fleet.value.pods if pod.state is PodState.READY} == names
        )
        await self._balancer_has_heard()

    async def _balancer_has_heard(self) -> None:
        """When a pod came or went is when the balancer heard of it: a leap before that would be no time at all."""
        await self.until(lambda: self.gateway.balancer._seen is self.gateway.fleet.value)

    # What operators see.

    def sample(self, name: str, **labels: str) -> float:
        return self.running.sample(name, **labels)

    @property
    def waiting(self) -> float:
        return self.sample("poolgate_queue_depth", pool="chat")

    def ejections(self, reason: str) -> float:
        return self.sample("poolgate_ejections_total", pool="chat", reason=reason)

    def all_ejections(self) -> float:
        return sum(self.ejections(reason) for reason in ("consecutive", "share", "wedged", "probe"))

    def quarantined(self) -> float:
        return self.sample("poolgate_quarantined_total")


@asynccontextmanager
async def scene(
    given: Sequence[ScriptedPod], *, side: Side = "edge", policy: str = "round_robin", **more: Any
) -> AsyncIterator[Scene]:
    """A gateway before these pods, which run already. `more` as for `running`.

    The pods take turns unless another policy is named: so a test knows who is next. At the end nothing may be left.
    """
    clock = Leaps(Hands())
    more["pool"] = {"policy": policy} | more.get("pool", {})
    # A leap of the clock looks as if the loop had been held up.
    more.setdefault("parts", THE_USUAL._replace(overload=partial(Overload, lag_seconds=(inf, inf))))
    async with running(given, side=side, clock=Clock(monotonic=clock), rng=Random(1), **more) as gateway:
        gateway.gateway.pools.close()
        await _quiet(given)
        files, tasks = _open_files(given), _tasks()
        found = Scene(gateway, clock)
        try:
            yield found
        finally:
            for client in found.clients:
                client.leave()
        await gateway.settled()

        def left() -> dict[str, object]:
            return _left(found, given, files, tasks)

        await eventually(lambda: not left(), AT_REST_SECONDS, left)
        ids = [line["request_id"] for line in gateway.lines()]
        assert len(ids) == len(set(ids)) == found.sent


async def _quiet(given: Sequence[ScriptedPod]) -> None:
    """Wait until the pods have no connection open."""
    await eventually(lambda: not any(pod.connections for pod in given))


def _left(found: Scene, given: Sequence[ScriptedPod], files: int, tasks: Counter[str]) -> dict[str, object]:
    """What is not as it was before the scene."""
    gateway = found.gateway
    left = in_flight(gateway, GAUGES)
    if gateway.balancer.active:
        left["active"] = gateway.balancer.active
    if gateway.pipeline.active:
        left["requests"] = gateway.pipeline.active
    if _open_files(given) > files:
        left["files"] = _open_files(given) - files
    if more := _tasks() - tasks:
        left["tasks"] = more
    return left


def _open_files(given: Sequence[ScriptedPod]) -> int:
    """But for the pods' own: one that waits for an event does not see that its peer has left."""
    return len(os.listdir("/proc/self/fd")) - sum(pod.connections for pod in given)


def _tasks() -> Counter[str]:
    """The tasks there are, but for the pods' own, by what they run."""
    running_now = (getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks())
    return Counter(name for name in running_now if not name.startswith("ScriptedPod."))


def picture_of(seat: Seat) -> str:
    """What a choice sees of a pod."""
    return f"in flight {seat.in_flight}, failed {seat.failed}, others {seat.others}, room {seat.room}"


def body_of(sent: bytes) -> Any:
    """The JSON that a pod was sent."""
    return json.loads(sent.partition(b"\r\n\r\n")[2])
