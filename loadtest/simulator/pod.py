"""One simulated pod: a listener, its connections, an engine, and a life that can end in several ways.

    async with SimulatedPod(PodSettings(model="m")) as pod:
        ...  # pod.url serves
        await pod.until(lambda p: p.aborts == 1, seconds=2)

A pod that died or was shut down can be started again on its port; it begins with an empty cache and new
counts.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from types import TracebackType
from typing import Self

from loadtest.simulator import routes, wire
from loadtest.simulator.connection import Connection, Exchange, ReceivedRequest
from loadtest.simulator.engine import Engine
from loadtest.simulator.faults import OF_THE_WHOLE_POD, Fault, fault_from_text
from loadtest.simulator.sabotage import strike_pod
from loadtest.simulator.settings import PodSettings, Shutdown

_SLEEPING_PARTS = ("weights", "kv_cache")


class Stage(enum.StrEnum):
    """Where a pod is in its life."""

    DOWN = "down"
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    SILENT = "silent"
    ENGINE_DEAD = "engine_dead"


class SimulatedPod:
    """`wall_clock` gives Unix time, for `created` and `date`; with a fixed one, the same seed gives the same
    bytes.

    `neighbours` are the pods of the same process by name, for the control routes.
    """

    def __init__(
        self,
        settings: PodSettings,
        *,
        wall_clock: Callable[[], float] = time.time,
        neighbours: Mapping[str, SimulatedPod] | None = None,
    ) -> None:
        self.settings = settings
        self.name = settings.name or settings.model
        self.port = settings.port
        self.adapter_roots = {name: f"/models/{name}" for name in settings.lora_adapters}
        self._settings_at_start = settings
        self._asleep_parts: frozenset[str] = frozenset()
        self._sleep_level = 0
        self.wall_clock = wall_clock
        self.neighbours: Mapping[str, SimulatedPod] = {self.name: self} if neighbours is None else neighbours
        self.stage = Stage.DOWN
        self.terminating = False
        self.requests: deque[ReceivedRequest] = deque()
        self.aborts = 0
        self.in_flight = 0
        self.served = 0
        self.started_at = 0.0
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._connections_made = 0
        self._recorded_bytes = 0
        self._requests_seen = 0
        self._faults: dict[str | None, _SetFault] = {}
        self._waiters: list[tuple[Callable[[SimulatedPod], bool], asyncio.Future[None]]] = []
        self._timers: list[asyncio.TimerHandle] = []
        self._date = (-1, b"")
        self._engine: Engine | None = None
        self._down = asyncio.Event()

    # what it is and what it does

    @property
    def host(self) -> str:
        return self.settings.host

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def running(self) -> int:
        """Sequences in the batch now; `/metrics` says what it was at the last step."""
        return 0 if self._engine is None or self.stage is Stage.DOWN else self._engine.running

    @property
    def waiting(self) -> int:
        return 0 if self._engine is None or self.stage is Stage.DOWN else self._engine.waiting

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    @property
    def connections_made(self) -> int:
        return self._connections_made

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError(f"pod {self.name} was not started: use `async with pod:` or `await pod.start()`")
        return self._engine

    @property
    def timers(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def until(self, condition: Callable[[SimulatedPod], bool], seconds: float | None = 60.0) -> None:
        """Wait for a condition on this pod. It is looked at whenever a count moves, not in intervals.

        Raises TimeoutError, with the pod's state in it.
        """
        if condition(self):
            return
        future = asyncio.get_running_loop().create_future()
        waiter = (condition, future)
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            raise TimeoutError(f"not within {seconds} s; the pod is at {self.state()}") from None
        finally:
            self._waiters.remove(waiter)

    def state(self) -> dict[str, object]:
        """What `GET /sim/state` tells."""
        return {
            "name": self.name,
            "url": self.url,
            "model": self.settings.model,
            "task": self.settings.task.value,
            "stage": self.stage.value,
            "running": self.running,
            "waiting": self.waiting,
            "in_flight": self.in_flight,
            "aborts": self.aborts,
            "served": self.served,
            "requests": self._requests_seen,
            "open_connections": self.open_connections,
            "connections_made": self._connections_made,
            "steps": 0 if self._engine is None else self._engine.stats.steps,
            "faults": [{"kind": held.fault.kind.value, "left": held.left} for held in self._faults.values()],
        }

    # faults

    def set_fault(self, fault: Fault | str) -> None:
        """Set a fault, or replace the one set for the same path. Text is as for `--fault`; raises BadFault.

        One that strikes the whole pod strikes now, unless it says after how many events.
        """
        if isinstance(fault, str):
            fault = fault_from_text(fault)
        if fault.kind in OF_THE_WHOLE_POD and fault.after is None:
            asyncio.get_running_loop().call_soon(strike_pod, fault, self)
        else:
            self._faults[fault.path] = _SetFault(fault)

    def clear_fault(self) -> None:
        self._faults.clear()

    def draw_fault(self, path: str, *, generates: bool) -> Fault | None:
        """The fault that strikes the request at hand, if one does; it is counted."""
        if not self._faults:
            return None
        wanted = (path, None, "*") if generates else (path, "*")
        for key in wanted:
            held = self._faults.get(key)
            if held is None or not held.strikes(self.settings.seed, self._requests_seen):
                continue
            if held.left == 0:
                del self._faults[key]
            return held.fault
        return None

    # life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Load, then listen. Until then connections are refused, as with vLLM."""
        loop = asyncio.get_running_loop()
        self._down.clear()
        self.terminating = False
        self.stage = Stage.LOADING
        self.changed()
        if self.settings.loading_seconds:
            await asyncio.sleep(self.settings.loading_seconds)
            if self._down.is_set():
                return  # told to end while it loaded
        self.requests.clear()
        self._recorded_bytes = self._requests_seen = self._connections_made = 0
        self.aborts = self.in_flight = self.served = 0
        self._faults = {fault.path: _SetFault(fault) for fault in self.settings.faults}
        self.settings = self._settings_at_start
        self.adapter_roots = {name: f"/models/{name}" for name in self.settings.lora_adapters}
        self._asleep_parts = frozenset()
        self._engine = Engine(self.settings, loop, self.changed)
        self.started_at = self.wall_clock()
        self._server = await loop.create_server(
            lambda: Connection(self, loop), self.settings.host, self.port, backlog=2048
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self.stage = Stage.SERVING
        self.changed()

    async def close(self) -> None:
        """End at once and wait until every connection is gone."""
        self.die()
        if self._connections:
            await self.until(lambda pod: not pod.open_connections, seconds=5)

    async def wait_down(self) -> None:
        await self._down.wait()

    def pause(self) -> None:
        """As a sleeping vLLM: requests get their head and wait."""
        self.sleep(1, aborts=False)

    def resume(self) -> None:
        self.wake_up()

    def sleep(self, level: int = 1, *, aborts: bool = True) -> None:
        """`POST /sleep`: no step begins any more. `aborts` ends what runs or waits with what it has by then."""
        self._sleep_level = level
        self._asleep_parts = frozenset(_SLEEPING_PARTS)
        self.engine.pause()
        if aborts:
            self.engine.cut_all_off()
        self.changed()

    def wake_up(self, tags: Sequence[str] | None = None) -> bool:
        """`POST /wake_up`, with the parts to wake or all; whether the pod is awake then."""
        self._asleep_parts -= frozenset(_SLEEPING_PARTS if tags is None else tags)
        if not self._asleep_parts:
            self.engine.resume()
        self.changed()
        return not self._asleep_parts

    @property
    def sleep_level(self) -> int | None:
        """None: awake."""
        return self._sleep_level if self._asleep_parts else None

    def set_slowness(self, factor: float) -> None:
        """From the next step on a step takes so many times what the time model says: a throttled accelerator, a noisy
        neighbour. A start forgets it. Raises ValueError."""
        if not 0 < factor <= 1000:
            raise ValueError(f"a factor is above 0 and at most 1000, got {factor}")
        self.engine.slowness = factor

    def load_adapter(self, name: str, path: str | None = None) -> None:
        """As `POST /v1/load_lora_adapter`, with or without the route."""
        names = dict.fromkeys((*self.settings.lora_adapters, name))
        self.settings = replace(self.settings, lora_adapters=tuple(names))
        self.adapter_roots[name] = f"/models/{name}" if path is None else path
        self.engine.serves_adapters = True
        self.changed()

    def unload_adapter(self, name: str) -> None:
        """Requests that it has are finished. Raises KeyError if it is not loaded."""
        del self.adapter_roots[name]
        self.settings = replace(self.settings, lora_adapters=tuple(self.adapter_roots))
        self.changed()

    def terminate(self) -> None:
        """SIGTERM."""
        self.terminating = True
        if self.stage is Stage.LOADING:
            self.die()
        elif self.settings.shutdown is Shutdown.SILENT:
            self.fall_silent()
        elif self.stage is Stage.SERVING:
            self.stage = Stage.DRAINING
            self._later(self.settings.shutdown_timeout_seconds, self._drain_is_over)
            self._linger_if_drained()
            self.changed()

    def fall_silent(self) -> None:
        """The port closes, idle connections too; the engine is gone, and open requests hear nothing more."""
        if self.stage in (Stage.DOWN, Stage.SILENT):
            return
        self.stage = Stage.SILENT
        self._stop_listening()
        self.engine.freeze()
        for connection in list(self._connections):
            if connection.is_idle:
                connection.hang_up(reset=False)
        self._later(self.settings.silence_seconds, self.die)
        self._down_if_deserted()
        self.changed()

    def engine_dies(self, exit_seconds: float | None = None) -> None:
        """Every open request gets its error; /health says 503; the process exits a while later."""
        if self.stage not in (Stage.SERVING, Stage.DRAINING):
            return
        self.stage = Stage.ENGINE_DEAD
        self.engine.die()
        self._later(self.settings.engine_death_exit_seconds if exit_seconds is None else exit_seconds, self.die)
        self.changed()

    def die(self) -> None:
        """SIGKILL: listener and connections close at once."""
        self.stage = Stage.DOWN
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._stop_listening()
        if self._engine is not None:
            self._engine.freeze()
        for connection in list(self._connections):
            connection.kill()
        self.in_flight = 0
        self._down.set()
        self.changed()

    # for connections and routes

    def opened(self, connection: Connection) -> int:
        self._connections.add(connection)
        self._connections_made += 1
        if self._server is None:
            connection.kill()  # accepted by the kernel just before the port closed
        self.changed()
        return self._connections_made

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._down_if_deserted()
        self.changed()

    def serve(self, exchange: Exchange) -> None:
        routes.serve(exchange, self)
        if self._waiters:
            self.changed()

    def record(self, request: ReceivedRequest) -> None:
        self._requests_seen += 1
        self._recorded_bytes += len(request.body)
        self.requests.append(request)
        settings = self.settings
        while len(self.requests) > settings.recorded_requests or (
            self._recorded_bytes > settings.recorded_body_bytes and len(self.requests) > 1
        ):
            self._recorded_bytes -= len(self.requests.popleft().body)

    def generation_left(self) -> None:
        self.aborts += 1

    def generation_over(self) -> None:
        self.in_flight -= 1
        self.served += 1
        self._linger_if_drained()
        self.changed()

    def next_id(self) -> str:
        """Sixteen hex digits, random to look at, the same under the same seed."""
        text = f"{self.settings.seed}/{self.name}/{self._requests_seen}"
        return blake2b(text.encode(), digest_size=8).hexdigest()

    def http_date(self) -> bytes:
        second = int(self.wall_clock())
        if second != self._date[0]:
            self._date = (second, wire.http_date(second))
        return self._date[1]

    def changed(self) -> None:
        """Look at every condition that is waited for. One that raises does so where it is awaited, not here."""
        for condition, future in self._waiters:
            if future.done():
                continue
            try:
                if condition(self):
                    future.set_result(None)
            except Exception as error:
                future.set_exception(error)

    # own

    def _linger_if_drained(self) -> None:
        if self.stage is Stage.DRAINING and not self.in_flight:
            self._later(self.settings.shutdown_linger_seconds, self.die)

    def _down_if_deserted(self) -> None:
        """A silent vLLM lives until the last of its clients has closed."""
        if self.stage is Stage.SILENT and not self._connections:
            self.die()

    def _drain_is_over(self) -> None:
        if self.stage is Stage.DRAINING and self.in_flight:
            self.fall_silent()
        elif self.stage is Stage.DRAINING:
            self.die()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _later(self, seconds: float, callback: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, callback))


class _SetFault:
    """A fault set on a pod, and how many requests it has left to strike."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.left = fault.count

    def strikes(self, seed: int, request: int) -> bool:
        if self.fault.share < 1:
            digest = blake2b(b"%d/fault/%d" % (seed, request), digest_size=8).digest()
            if int.from_bytes(digest, "little") >= self.fault.share * 2**64:
                return False
        if self.left is not None:
            self.left -= 1
        return True
