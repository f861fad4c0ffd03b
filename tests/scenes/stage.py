"""Where a scene is played: gateways before scripted pods, clients, and a clock that may leap.

All of it is in the test's process and on real sockets. The gateways are composed of the usual parts, or of all but the
one defence that a scene is played without. What is put on the stage is taken down by it.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import process_time, time
from typing import Any

from gateway.app import Gateway
from gateway.core.clock import Clock
from gateway.edge.bounds import Bounds
from gateway.parts import THE_USUAL, Parts
from gateway.pipeline.overload import Overload
from tests import discovering
from tests.apiserver.server import ApiServer
from tests.fakes import Leaps, ScriptedPod, Step
from tests.running import HasUrl, Running, running
from tests.scenes.client import Client
from tests.scenes.said import LogLines
from tests.scenes.says import GOOD
from tests.scenes.scene import Defence, SceneFailed
from tests.scenes.transcript import Transcript
from tests.scenes.watching import Watch
from tests.turns import within
from tests.valkey import Valkey

PATIENCE_SECONDS = 5.0
"""How long something may take that is to happen, in turns of the loop: a bound, not a measure."""
WITHOUT_SECONDS = 1.0
"""The same where it is to be shown that it does not happen."""
TURN_SECONDS = 0.002
"""So short, that a machine on which each turn is late leaves enough of them for what has to happen before that."""
_UNMOVED = partial(Overload, lag_seconds=(inf, inf))
"""A leap of the clock looks as if the loop had been held up. A scene about that gives `partial(Overload)` itself."""
_TURNS_TO_JUDGE = 40
"""After a leap the edge reads what waits in its sockets before it judges anybody: that takes it some turns."""


@dataclass
class Pod(ScriptedPod):
    """A scripted pod whose sayings are noted."""

    name: str = ""
    lies: bool = False
    """Its usage is not to be believed."""
    transcript: Transcript = field(default_factory=Transcript)
    watch: Watch = field(default_factory=Watch)

    def _script(self, request: bytes) -> Iterator[Step]:
        self.transcript.heard(self.name, request)
        answering = self.watch.reached(self.name, request, lies=self.lies)
        try:
            for step in super()._script(request):
                if isinstance(step, bytes):
                    self.transcript.sent(self.name, step)
                    answering.says(step)
                else:
                    self.transcript.did(self.name, getattr(step, "__name__", str(step)).lower())
                yield step
        finally:
            answering.ends()


class Stage:
    """See the module's text. `defence`: the one that the gateways are built without."""

    def __init__(self, defence: Defence | None = None) -> None:
        self.defence = defence
        self.clock = Leaps(process_time)
        """The gateways' monotonic clock: what this process works, and what a scene lets pass. A scene leaps to just
        before a deadline, so what others take of the machine meanwhile must be none of its time."""
        self.wall = Leaps(time)
        """The machine's wall clock, which somebody may set."""
        self.transcript = Transcript()
        self.watch = Watch()
        self.patience = PATIENCE_SECONDS if defence is None else WITHOUT_SECONDS
        self.gateways: list[Running] = []
        self.pods: list[Pod] = []
        self.clients: list[Client] = []
        self.logged = LogLines()
        self.secrets: set[str] = set()
        """What must not come out anywhere, beside the canaries: keys."""
        self._stack = AsyncExitStack()
        self._stack.enter_context(self.logged)

    # What is put there.

    async def gateway(
        self,
        *pods: HasUrl,
        parts: Parts = THE_USUAL,
        bounds: Bounds | None = None,
        clock: Clock | None = None,
        **settings: Any,
    ) -> Running:
        """A gateway before these pods, which take turns unless a policy is named; `settings` as for `running`. `clock`:
        it is on a machine whose clock is another one."""
        parts = self.built_of(parts if bounds is None else parts._replace(bounds=bounds))
        settings["pool"] = {"policy": "round_robin"} | dict(settings.get("pool", {}))
        return await self._enter(
            running(pods, clock=clock or Clock(self.clock, self.wall), rng=Random(1), parts=parts, **settings)
        )

    async def gateway_in(
        self, server: ApiServer, *, parts: Parts = THE_USUAL, bounds: Bounds | None = None, **settings: Any
    ) -> Running:
        """A gateway that finds its pods in this cluster; `settings` as for `tests.discovering.gateway`, whose
        `appear(server, "name", pod)` makes a pod there."""
        parts = self.built_of(parts if bounds is None else parts._replace(bounds=bounds))
        return await self._enter(
            discovering.gateway(server, clock=Clock(self.clock, self.wall), parts=parts, **settings)
        )

    def built_of(self, parts: Parts) -> Parts:
        """The same parts, less the defence that is taken away; and their picks are watched."""
        if parts.overload is Overload:
            parts = parts._replace(overload=_UNMOVED)
        if self.defence is not None:
            parts = self.defence.removed(parts)
        return parts._replace(balancer=self.watch.picking(parts.balancer))

    async def _enter(self, entered: Any) -> Running:
        found: Running = await self._stack.enter_async_context(entered)
        self.gateways.append(found)
        self.secrets |= {found.key, found.other_key}
        return found

    async def pod(self, *script: Step, **given: Any) -> Pod:
        """A pod that plays these steps for each request; without any it answers well. Or as `ScriptedPod` has it:
        `scripts=` one after another, `script_of=` by the request."""
        if not given.keys() & {"scripts", "script_of"}:
            given["scripts"] = [script or (GOOD,)]
        made = Pod(name=f"pod {len(self.pods)}", transcript=self.transcript, watch=self.watch, **given)
        self.pods.append(made)
        found: Pod = await self._stack.enter_async_context(made)
        return found

    async def some_pods(self, count: int, *script: Step, **given: Any) -> list[Pod]:
        """So many alike."""
        return [await self.pod(*script, **given) for _ in range(count)]

    async def client(self, gateway: Running | None = None, *, key: str | None = None, **given: Any) -> Client:
        """A client that is connected, to the first gateway unless another is given. `given` as for
        `Client.connect`."""
        gateway = gateway or self.gateways[0]
        made = Client(
            self, f"client {len(self.clients)}", f"gateway {self.gateways.index(gateway)}", key or gateway.key
        )
        await made.connect(gateway.port, **given)
        self.clients.append(made)
        return made

    async def asks(self, gateway: Running | None = None, **body: Any) -> Client:
        """A client that has asked for a chat."""
        client = await self.client(gateway)
        await client.ask(**body)
        return client

    async def api_server(self, **given: Any) -> ApiServer:
        """A stand-in for a cluster's API server."""
        found: ApiServer = await self._stack.enter_async_context(ApiServer(**given))
        return found

    async def valkey(self) -> Valkey:
        """A real server of Redis' protocol."""
        found: Valkey = await self._stack.enter_async_context(Valkey())
        return found

    def folder(self) -> Path:
        """An empty one, until the scene is over."""
        return Path(self._stack.enter_context(TemporaryDirectory()))

    async def enter(self, other: Any) -> Any:
        """Anything else that is an async context, until the scene is over."""
        return await self._stack.enter_async_context(other)

    # What happens.

    def step(self, told: str) -> None:
        """Note where the scene is: it stands in a failure's transcript."""
        self.transcript.step(told)

    async def leap(self, seconds: float) -> None:
        """Let so many seconds pass on the gateways' clock, and the gateways look at every deadline."""
        if seconds:
            self.transcript.did("clock", f"+{seconds:g} s")
        self.clock.ahead += seconds
        await self.turns()
        self.sweep(0)
        await self.turns()

    async def swept(self) -> None:
        """Wait until every gateway has looked at every deadline once more."""
        then = self.clock()
        await self.until(lambda: all(each.gateway.edge.now >= then for each in self.gateways), "the gateway stands")
        await self.turns()

    def sweep(self, seconds: float) -> None:
        """Let so many seconds pass, and have the gateways look at every deadline in this moment. What stands in a
        socket then, nobody has read: a scene in which that matters leaps."""
        self.clock.ahead += seconds
        for each in self.gateways:
            each.gateway.sweep()

    async def turns(self) -> None:
        """Let the loop turn until what stands in sockets is read."""
        for _ in range(_TURNS_TO_JUDGE):
            await asyncio.sleep(0)

    async def until(self, holds: Callable[[], object], told: str) -> None:
        """Wait until it is so. Raises `SceneFailed` with this text if that does not come."""
        try:
            async with self.bounded():
                while not holds():
                    await asyncio.sleep(TURN_SECONDS)
        except TimeoutError:
            raise SceneFailed(told) from None

    def bounded(self) -> AbstractAsyncContextManager[None]:
        """For what may take so long as this stage has patience. Raises `TimeoutError`."""
        return within(self.patience, TURN_SECONDS)

    async def line(self, gateway: Running | None = None) -> dict[str, Any]:
        """The access line of the last request, once none runs any more."""
        gateway = gateway or self.gateways[0]
        await self.until(lambda: not gateway.gateway.pipeline.active, "a request never ended")
        lines = gateway.lines()
        if not lines:
            raise SceneFailed("no request was logged")
        return lines[-1]

    # The end.

    async def close(self) -> None:
        """Take everything down, whatever is left of it."""
        for client in self.clients:
            client.leave()
        # What they were told is no memory of the gateways'.
        self.clients.clear()
        for each in self.gateways:
            _let_go(each.gateway)
        await self._stack.aclose()
        # What was closed is told to its owner by the loop, in its next turns.
        for _ in range(5):
            await asyncio.sleep(0)


def _let_go(gateway: Gateway) -> None:
    """Break what a scene that failed may have left: nobody waits for it."""
    for connection in list(gateway.edge.connections):
        connection.abort()
    gateway.pools.close()
