"""The pods of the soak: each simulated in a process of its own, a tap before it, and its object in the cluster."""

import asyncio
import json
import signal
from collections.abc import Callable
from typing import Any

import orjson

from loadtest.invariants.events import PodMarked
from loadtest.invariants.hearing import Hear
from loadtest.tap import Tap
from tests.apiserver import cluster
from tests.apiserver.server import ApiServer
from tests.discovering import appear
from tests.integration.rollout.processes import PodProcess
from tests.raw import ask

SEEN_SECONDS = 1.0
"""Within so long every gateway knows what the API server has said."""
TOKEN_MS = 20.0


class Pod:
    """One place in a pool: processes come and go there, its tap stays."""

    def __init__(self, server: ApiServer, tap: Tap, pool: str, model: str, flags: tuple[str, ...]) -> None:
        self.tap = tap
        self.pool = pool
        self._server = server
        self._model = model
        self._flags = flags
        self._process: PodProcess | None = None
        self._object: cluster.Pod | None = None
        self._generation = 0
        self.state = "gone"
        self.disturbed_at = 0.0
        """When a fault has last chosen it."""

    @property
    def name(self) -> str:
        return self.tap.name

    async def start(self) -> None:
        """A new process that serves behind the tap."""
        self._process = await PodProcess.start(*self._flags, token_ms=TOKEN_MS, model=self._model)
        await self.tap.listen(self._process.port)

    def appear(self, known_by: float | None = None) -> None:
        """A new object in the cluster, ready."""
        self._generation += 1
        self.tap.name = f"{self.pool}-{self.tap.port}-{self._generation}"
        self._object = appear(self._server, self.name, self.tap, pool=self.pool)
        self.mark("ready", known_by)

    def mark(self, state: str, known_by: float | None = None) -> None:
        """Tell the checker what the cluster says now."""
        self.state = state
        now = self.tap.clock()
        if known_by is None:
            known_by = now if state == "ready" else now + SEEN_SECONDS
        self.tap.hear(PodMarked(now, self.name, self.pool, state, known_by))

    # What befalls the process.

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.signal(number)

    async def kill(self) -> None:
        """SIGKILL."""
        self.tap.refuse()
        assert self._process is not None
        await self._process.kill()

    async def ended(self) -> int:
        """Wait for its exit."""
        assert self._process is not None
        code = await self._process.ended()
        self.tap.refuse()
        return code

    async def set_fault(self, **fault: Any) -> None:
        await self._control("POST", orjson.dumps(fault))

    async def clear_faults(self) -> None:
        await self._control("DELETE", b"")

    async def told(self) -> dict[str, Any]:
        """Its state, as the simulator tells it."""
        return await self._sim("GET", "/sim/state", b"")

    async def _control(self, method: str, body: bytes) -> None:
        await self._sim(method, "/sim/fault", body)

    async def _sim(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        head = f"{method} {path} HTTP/1.1\r\nHost: sim\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        answer = await ask(self.tap.to_port, head + body)
        assert answer.status == 200, answer.body
        told: dict[str, Any] = json.loads(answer.body or b"{}")
        return told

    # What befalls the object.

    def crash(self, known_by: float | None = None) -> None:
        """Its container is gone; the kubelet will make a new one."""
        assert self._object is not None
        self._object.crash()
        self.mark("not_ready", known_by)

    def recover(self) -> None:
        """The container serves again."""
        assert self._object is not None
        self._object.become_ready()
        self.mark("ready")

    def become_unready(self, known_by: float | None = None) -> None:
        assert self._object is not None
        self._object.become_unready()
        self.mark("not_ready", known_by)

    def delete(self) -> None:
        """It is terminating."""
        assert self._object is not None
        self._object.delete()
        self.mark("terminating")

    def vanish(self, known_by: float | None = None) -> None:
        """Its object is gone."""
        assert self._object is not None
        self._object.kill()
        self.mark("gone", known_by)

    async def close(self) -> None:
        self.tap.close()
        if self._process is not None:
            self._process.signal(signal.SIGCONT)
            await self._process.kill()


class Fleet:
    """All pods, by pool."""

    def __init__(self, pods: list[Pod]) -> None:
        self.pods = pods

    @classmethod
    async def start(
        cls,
        server: ApiServer,
        pools: dict[str, tuple[int, str, tuple[str, ...]]],
        hear: Hear,
        clock: Callable[[], float],
    ) -> "Fleet":
        """`pools`: by name, how many pods, of which model, with which flags."""
        pods = [
            Pod(server, Tap(pool, hear, clock), pool, model, flags)
            for pool, (count, model, flags) in pools.items()
            for _ in range(count)
        ]
        fleet = cls(pods)
        try:
            await asyncio.gather(*(pod.start() for pod in pods))
        except BaseException:
            await fleet.close()
            raise
        for pod in pods:
            pod.appear()
        return fleet

    async def close(self) -> None:
        await asyncio.gather(*(pod.close() for pod in self.pods))
