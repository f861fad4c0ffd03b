"""A gateway in the test's own process, on real sockets, served by either of its two sides."""

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol

import uvicorn

from gateway.app import Gateway
from gateway.cli.serve import listen
from gateway.config.keys import load_keys
from gateway.config.reading import ConfigFile, load_config
from gateway.core.caller import Tenant
from gateway.core.clock import Clock
from gateway.core.fleet import PodState
from gateway.edge.bounds import Bounds
from gateway.limits.keys import KeyEntry, digest, new_key
from gateway.parts import THE_USUAL, Parts
from gateway.pipeline.overload import Overload
from tests.turns import within

Side = Literal["edge", "asgi"]

NO_LIMITS = {"requests_per_minute": None, "tokens_per_minute": None, "concurrent": None}


class HasUrl(Protocol):
    """A pod of any make."""

    @property
    def url(self) -> str: ...


@dataclass
class Running:
    """A running gateway, and what a test looks at."""

    gateway: Gateway
    port: int
    key: str
    out: io.BytesIO
    side: Side
    other_key: str = ""
    """Another caller's."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def settled(self, seconds: float = 2.0) -> None:
        """Wait until nothing is in flight, and say so if it does not come."""
        async with within(seconds):
            while self.gateway.pipeline.active:
                await asyncio.sleep(0.005)
        assert all(count == 0 for count in self.gateway.balancer.in_flight_by_model().values())

    def lines(self) -> list[dict[str, Any]]:
        """The access lines so far."""
        self.gateway.journal.observe()
        self.gateway.access_log.sync()
        return [json.loads(line) for line in self.out.getvalue().splitlines()]

    async def last_line(self) -> dict[str, Any]:
        """The last request's line, once it has ended."""
        await self.settled()
        return self.lines()[-1]

    def sample(self, name: str, **labels: str) -> float:
        """A series' value now; 0 when there is none."""
        self.gateway.journal.observe()
        return self.gateway.metrics.registry.get_sample_value(name, labels) or 0.0


def in_flight(gateway: Gateway, gauges: Collection[str]) -> dict[str, object]:
    """What these gauges and the pods' seats say is not at an end; idle connections to pods are closed first."""
    gateway.pools.close()
    found: dict[str, object] = {
        f"{sample.name}{sample.labels}": sample.value
        for family in gateway.metrics.registry.collect()
        if family.name in gauges
        for sample in family.samples
        if sample.value
    }
    for pod in gateway.fleet.value.pods:
        seat = gateway.balancer.seat_of(pod.uid)
        if seat is not None and (seat.in_flight or seat.pending_tokens):
            found[f"seat of {pod.name}"] = (seat.in_flight, seat.pending_tokens)
    return found


@asynccontextmanager
async def running(
    pods: Sequence[HasUrl],
    *,
    side: Side = "edge",
    pool: Mapping[str, Any] | None = None,
    tenant: Mapping[str, Any] | None = None,
    server: Mapping[str, Any] | None = None,
    bounds: Bounds | None = None,
    discovery: Mapping[str, Any] | None = None,
    pools: Mapping[str, Any] | None = None,
    models: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    tracing: Mapping[str, Any] | None = None,
    file: Path | None = None,
    keys_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    clock: Clock | None = None,
    rng: Random | None = None,
    parts: Parts = THE_USUAL,
    wait: bool = True,
) -> AsyncIterator[Running]:
    """A gateway before these pods, all of one pool; with a key of its own, and one of another caller's.

    With `discovery` settings it finds its pods by them (`tests.discovering`), and `pools` are the settings of each.
    No limits hold but those in `limits`. With a `file` all settings are those that stand there, now and whenever it
    changes; with a `keys_file` all keys are. Unless the test has its own `overload`, nobody is turned away because the
    machine is busy.
    """
    if parts.overload is THE_USUAL.overload:
        parts = parts._replace(overload=partial(Overload, lag_seconds=(inf, inf)))
    key_id, key = new_key()
    entry = KeyEntry(digest(key.encode()), Tenant(**({"key_id": key_id, "team": "tests"} | dict(tenant or {}))))
    other_id, other_key = new_key()
    other = KeyEntry(digest(other_key.encode()), Tenant(other_id, "others"))
    settings: dict[str, Any] = {
        "discovery": dict(discovery or {"pods": [{"url": pod.url, "pool": "chat"} for pod in pods]}),
        "pools": {"chat": dict(pool or {}), **(pools or {})},
        "models": dict(models or {}),
        "server": dict(server or {}),
        "limits": {"default": NO_LIMITS, **(limits or {})},
        "tracing": dict(tracing or {}),
    }
    followed = None if file is None else ConfigFile(file, {})
    config = load_config(None, {}, settings) if followed is None else followed.load()
    out = io.BytesIO()
    gateway = Gateway(
        config,
        (entry, other) if keys_file is None else load_keys(keys_file),
        file=followed,
        keys_file=keys_file,
        access_out=out,
        environment=environment,
        clock=clock,
        rng=rng,
        parts=parts if bounds is None else parts._replace(bounds=bounds),
    )
    gateway.reload.look_seconds = 0.01
    async with AsyncExitStack() as stack:
        stack.callback(gateway.close)
        keeping = asyncio.create_task(gateway.keep())
        stack.push_async_callback(_cancelled, keeping)
        if wait:
            await _ready(gateway)
        listener = stack.enter_context(closing(listen("127.0.0.1", 0, "")))
        if side == "edge":
            server_ = await asyncio.get_running_loop().create_server(gateway.edge.protocol, sock=listener)
            stack.callback(gateway.edge.close)
            stack.callback(server_.close)
        else:
            await stack.enter_async_context(_asgi(gateway, listener))
        yield Running(gateway, listener.getsockname()[1], key, out, side, other_key)


async def _cancelled(task: asyncio.Task[None]) -> None:
    """End a gateway's `keep()`. Raises what it had died of before."""
    task.cancel()
    (ended,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(ended, Exception):
        raise ended


async def _ready(gateway: Gateway) -> None:
    async with within(5):
        while True:
            fleet = gateway.fleet.value
            if fleet.asked and all(pod.state is PodState.READY for pod in fleet.pods):
                return
            await gateway.fleet.wait_changed()


@asynccontextmanager
async def _asgi(gateway: Gateway, listener: socket.socket) -> AsyncIterator[None]:
    server = uvicorn.Server(
        uvicorn.Config(
            gateway.inference,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
    )
    serving = asyncio.create_task(server.serve([listener]))
    while not server.started:
        await asyncio.sleep(0.001)
    try:
        yield
    finally:
        server.should_exit = True
        await serving


CAPTURES = Path(__file__).parent / "captures" / "vllm"


def captured(name: str) -> tuple[bytes, bytes]:
    """(request body, raw answer) of a captured exchange with a real vLLM."""
    text = (CAPTURES / name).read_bytes()
    sent, _, rest = text.partition(b"### RESPONSE (raw bytes)\n")
    came = rest.rpartition(b"\n### RECV TIMELINE")[0]
    return sent.partition(b"\r\n\r\n")[2].rstrip(b"\n"), came


def captured_events(name: str) -> list[bytes]:
    """The events of a captured stream, each as vLLM wrote it."""
    body = captured(name)[1].partition(b"\r\n\r\n")[2]
    events = []
    while size := int(body.partition(b"\r\n")[0], 16):
        body = body.partition(b"\r\n")[2]
        events.append(body[:size])
        body = body[size + 2 :]
    return events
