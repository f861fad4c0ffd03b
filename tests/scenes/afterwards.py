"""What must be true when any scene is over, whatever happened in it.

While the gateways still run: nothing is in flight, queued, leased or connected; the ops port answers; each request has
ended once, in one access line; and nothing that is to be kept secret has come out. When all is taken down: the
descriptors and tasks are those of before, and the memory too.
"""

import asyncio
import ctypes
import gc
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import httpx2

from tests.running import Running, in_flight
from tests.scenes.canaries import LOOPBACK, PROMPT
from tests.scenes.scene import SceneFailed, expect
from tests.scenes.stage import Stage
from tests.turns import within

AT_REST_SECONDS = 2.0
GAUGES = frozenset(
    (
        "poolgate_in_flight",
        "poolgate_pod_in_flight",
        "poolgate_queue_depth",
        "poolgate_connections",
        "poolgate_buffered_body_bytes",
    )
)
MOST_GROWN_BYTES = 5 << 20
SPARE_DESCRIPTORS = 2


async def at_rest(stage: Stage, seconds: float = AT_REST_SECONDS) -> None:
    """Raises `SceneFailed` unless the gateways are, so many seconds later at the most, as if nothing had happened."""
    for client in stage.clients:
        client.leave()
    for each in stage.gateways:
        await _nothing_is_left(partial(_left, each), seconds)
        _ended_once(each, stage)
        _counted_once(each)
        await _kept_secret(each, stage)
    await _pods_are_left(stage, seconds)
    broken = stage.watch.broken({f"gateway {place}": each.lines() for place, each in enumerate(stage.gateways)})
    expect(not broken, f"afterwards: invariants are broken: {broken[:5]}")


async def _pods_are_left(stage: Stage, seconds: float) -> None:
    """What has ended for a gateway has ended at the pod as well: it works on until its connection closes (I5)."""
    await _nothing_is_left(lambda: {f"at {pod.name}": pod.works for pod in stage.pods if pod.works}, seconds)


async def _nothing_is_left(left: Callable[[], Mapping[str, object]], seconds: float) -> None:
    try:
        async with within(seconds):
            while left():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise SceneFailed(f"afterwards there is left: {left()}") from None


def _left(running: Running) -> dict[str, object]:
    """What is not as it was before the first request."""
    gateway = running.gateway
    left = in_flight(gateway, GAUGES)
    standings = gateway.admission.standings(gateway.clock.monotonic())
    counts = {
        "leases": sum(each.used for each in standings if each.limit == "concurrent requests"),
        "active": gateway.balancer.active,
        "requests": gateway.pipeline.active,
        "clients": len(gateway.edge.connections),
    }
    return left | {name: count for name, count in counts.items() if count}


def _ended_once(running: Running, stage: Stage) -> None:
    """Exactly one outcome was recorded for each request, in the log and in the metrics."""
    lines = running.lines()
    times = Counter(line["request_id"] for line in lines)
    twice = [request_id for request_id, count in times.items() if count > 1]
    expect(not twice, f"afterwards: requests that ended more than once: {twice}")
    counted = sum(
        sample.value
        for family in running.gateway.metrics.registry.collect()
        if family.name == "poolgate_requests"
        for sample in family.samples
        if sample.name.endswith("_total")
    )
    expect(counted == len(lines), f"afterwards: {counted:g} requests are counted, {len(lines)} are logged")
    if len(stage.gateways) == 1:
        answers = [
            answer.headers["x-request-id"] for client in stage.clients for answer in client.answers if answer.status
        ]
        lost = [request_id for request_id in answers if request_id not in times]
        expect(not lost, f"afterwards: requests that were answered and not logged: {lost}")


def _counted_once(running: Running) -> None:
    """The tokens that are counted are those of the access lines (I6)."""
    families = running.gateway.metrics.registry.collect()
    samples = [each for family in families if family.name == "poolgate_tokens" for each in family.samples]
    lines = running.lines()
    for kind in ("prompt", "completion", "cached"):
        counted = sum(
            each.value for each in samples if each.labels.get("kind") == kind and each.name.endswith("_total")
        )
        told = sum(line[f"{kind}_tokens"] or 0 for line in lines)
        expect(counted == told, f"afterwards: {counted:g} {kind} tokens are counted, {told} are logged")


async def _kept_secret(running: Running, stage: Stage) -> None:
    """The ops port answers; no prompt, key or address is in the logs, the metrics or an error (I12)."""
    transport = httpx2.ASGITransport(running.gateway.ops)
    async with httpx2.AsyncClient(transport=transport, base_url="http://ops") as ops:
        metrics, alive = await ops.get("/metrics"), await ops.get("/livez")
    expect(metrics.status_code == 200, f"afterwards: /metrics answers {metrics.status_code}")
    expect(alive.status_code == 200, f"afterwards: /livez answers {alive.status_code}")
    running.gateway.access_log.sync()
    errors = b"".join(
        answer.body if answer.status >= 400 else b"".join(e for e in answer.events if b'"error"' in e)
        for client in stage.clients
        for answer in client.answers
    )
    told = {
        "the access log": running.out.getvalue().decode(),
        "the log": stage.logged.text,
        "the metrics": metrics.text,
        "an error": errors.decode("utf-8", "replace"),
    }
    for where, text in told.items():
        for secret in (PROMPT, LOOPBACK, *stage.secrets):
            expect(secret not in text, f"afterwards: {secret!r} stands in {where}")


@dataclass(frozen=True)
class Footprint:
    """What this process holds."""

    descriptors: int
    tasks: Counter[str]
    resident_bytes: int

    @classmethod
    def now(cls) -> Self:
        tasks = Counter(getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks())
        return cls(len(os.listdir("/proc/self/fd")), tasks, _resident_bytes())

    @classmethod
    def least(cls) -> Self:
        """The same, once what was freed before is given back: else what is left would fit into it, and not be seen."""
        _give_back()
        return cls.now()

    async def left(self, scene: str, seconds: float = AT_REST_SECONDS) -> None:
        """Raises `SceneFailed` unless what it held is all that is held now, but for memory."""
        try:
            async with within(seconds):
                while any(self._more_now()):
                    await asyncio.sleep(0.005)
        except TimeoutError:
            more, tasks = self._more_now()
            raise SceneFailed(f"{scene}: afterwards: {more} descriptors more, tasks left: {tasks}") from None

    def _more_now(self) -> tuple[int, dict[str, int]]:
        """The descriptors, unless they may be spare ones, and the tasks that there were not."""
        now = Footprint.now()
        more = now.descriptors - self.descriptors
        return more if more > SPARE_DESCRIPTORS else 0, dict(now.tasks - self.tasks)

    def grown_bytes(self) -> int:
        """The memory that is held now and was not then."""
        if _resident_bytes() - self.resident_bytes >= MOST_GROWN_BYTES:
            # What stays is held by somebody.
            _give_back()
        return _resident_bytes() - self.resident_bytes


def _give_back() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
