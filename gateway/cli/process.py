"""One gateway as a process: two sockets, two uvicorn servers, and the drain between the signal and the exit.

uvicorn keeps the sockets; what is spoken on the public one, TLS included, is the edge's. It is not let near the
signals: it would stop listening and cut what runs, where a drain goes on serving until nothing runs any more, or its
limit is reached.

A replica that is told to stop is still in rotation: whoever balances before it hears of it later. So after SIGTERM it
goes on listening for a while even when nothing runs, and each answer tells its client to connect anew, elsewhere. On a
terminal (Ctrl-C, hang-up) nobody balances, and an idle gateway ends at once.
"""

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress

import uvicorn

from gateway.app import Gateway
from gateway.cli.serve import BACKLOG

YOUNG_OBJECTS = 20_000
LINGER_SECONDS = 5.0
"""After SIGTERM. A pod's endpoint is withdrawn while the pod is being told already, and every node and load balancer
takes its own time to hear of it: a second or two, with thousands of endpoints some more."""
LAST_WORDS_SECONDS = 1.0
"""For the error events of the streams that the drain's limit cut."""
GOODBYE_SECONDS = 0.2
"""A round trip: what clients sent on idle connections before they heard of the end is still read."""
LOOK_SECONDS = 0.02


class Stop:
    """What the signals ask of a running gateway: once to drain, once more to end at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once = False
        self.linger_seconds = 0.0

    def ask(self, linger_seconds: float = 0.0) -> None:
        """`linger_seconds`: how long to go on even when nothing runs."""
        self.at_once = self.asked.is_set()
        self.linger_seconds = linger_seconds
        self.asked.set()


async def run(
    gateway: Gateway, public: socket.socket, ops: socket.socket, stop: Stop, started: Callable[[], None]
) -> None:
    """Serve on two bound sockets until asked to stop, then drain.

    Raises whatever ended a part of the gateway before its time.
    """
    front, back = _Port(public, gateway.edge.protocol, _no_application), _Port(ops, "httptools", gateway.ops)
    keeping = asyncio.create_task(gateway.keep())
    calming = asyncio.create_task(_calm_when_ready(gateway))
    parts = [keeping, front.serving, back.serving]
    try:
        while not (front.started and back.started):
            await asyncio.sleep(0.005)
        _calm_the_collector()
        started()
        await _until(stop.asked, parts)
        await drain(gateway, front.close, stop)
        # Streams of open pages have no end of their own, and would hold up that of their port.
        gateway.live_page.close()
        await back.close()
    finally:
        for task in (calming, *parts):
            task.cancel()
        await asyncio.gather(calming, *parts, return_exceptions=True)
        gateway.close()


def _calm_the_collector() -> None:
    """What lives until the exit is never looked at again, and the young are looked at seldom.

    A request leaves no reference cycles behind (a test counts them), so collecting is a precaution; with the
    imports' hundred thousand objects in the oldest generation, each full collection would stop the loop for 50 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)


async def _calm_when_ready(gateway: Gateway) -> None:
    """What is kept of the pods is there when all were asked, and readiness is told after this: nobody waits for it."""
    while not gateway.fleet.value.asked:
        await gateway.fleet.wait_changed()
    _calm_the_collector()


async def _until(asked: asyncio.Event, parts: list[asyncio.Task[None]]) -> None:
    """Wait until asked; a part that ends before brings its error here."""
    asking = asyncio.create_task(asked.wait())
    done, _ = await asyncio.wait((asking, *parts), return_when=asyncio.FIRST_COMPLETED)
    asking.cancel()
    for task in done - {asking}:
        task.result()


async def drain(gateway: Gateway, stop_listening: Callable[[], Awaitable[None]], stop: Stop) -> None:
    """Finish what runs, up to the limit; what is left gets its error event."""
    edge, monotonic = gateway.edge, gateway.clock.monotonic
    began = monotonic()
    edge.closing = True

    def runs() -> bool:
        return bool(gateway.pipeline.active) or edge.busy

    def lingers() -> bool:
        return monotonic() - began < stop.linger_seconds

    def in_time() -> bool:
        # Looked at anew each time: the limit can be changed while it runs.
        return not stop.at_once and monotonic() - began < gateway.drain_seconds

    while in_time() and (lingers() or runs()):
        await asyncio.sleep(LOOK_SECONDS)
    # The listener goes first: idle connections are still answered, and so is who came through it in the last moment.
    await stop_listening()
    while in_time() and runs():
        await asyncio.sleep(LOOK_SECONDS)
    if runs():
        gateway.pipeline.end_all()
        edge.turn_away()
        await _while(runs, LAST_WORDS_SECONDS)
    edge.let_go()
    await _while(lambda: bool(edge.connections), GOODBYE_SECONDS)
    edge.close()


async def _while(holds: Callable[[], bool], seconds: float) -> None:
    """Wait for something to be over, for so long at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while holds():
                await asyncio.sleep(LOOK_SECONDS)


class _Port:
    """A uvicorn server on one socket."""

    def __init__(self, listener: socket.socket, http: object, application: object) -> None:
        self._server = uvicorn.Server(
            uvicorn.Config(
                app=application,  # type: ignore[arg-type]  # FastAPI is one; the public port's is never called
                http=http,  # type: ignore[arg-type]  # a factory serves as well as a class
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=1,
            )
        )
        # It would take the signals for as long as it serves, and at its end give itself those that came.
        self._server.capture_signals = nullcontext  # type: ignore[method-assign,assignment]  # nothing, as a context
        self.serving = asyncio.create_task(self._server.serve(sockets=[listener]))

    @property
    def started(self) -> bool:
        """Raises what kept it from starting."""
        if self.serving.done():
            self.serving.result()
        return self._server.started

    async def close(self) -> None:
        """Stop listening; the ops port's connections end as well, the public port's are the edge's."""
        self._server.should_exit = True
        await self.serving


async def _no_application(scope: object, receive: object, send: object) -> None:
    raise AssertionError("the public port has its own protocol")
