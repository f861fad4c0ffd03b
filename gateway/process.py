"""One gateway as a process: two sockets, two uvicorn servers, and the drain between the signal and the exit.

uvicorn keeps sockets, and TLS where there is any. It is not let near the signals: it would stop listening and cut
what runs, where a drain goes on serving until nothing runs any more, or its limit is reached. An idle gateway exits
at once; whoever takes it out of rotation first does so before the signal (a preStop sleep).
"""

import asyncio
import gc
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from gateway.app import Gateway

BACKLOG = 2048
YOUNG_OBJECTS = 20_000
LAST_WORDS_SECONDS = 1.0
"""For the error events of the streams that the drain's limit cut."""


async def run(
    gateway: Gateway, public: socket.socket, ops: socket.socket, stop: asyncio.Event, started: Callable[[], None]
) -> None:
    """Serve on two bound sockets until `stop` is set, then drain; set again, `stop` ends the drain at once.

    Raises whatever ended a part of the gateway before its time.
    """
    servers = (_server(gateway.edge.protocol, _no_application), _server("httptools", gateway.ops))
    serving = [
        asyncio.create_task(server.serve(sockets=[listener]))
        for server, listener in zip(servers, (public, ops), strict=True)
    ]
    keeping = asyncio.create_task(gateway.keep())
    try:
        while not all(server.started for server in servers):
            await asyncio.sleep(0.005)
        _calm_the_collector()
        started()
        await _until(stop, [keeping, *serving])
        await _drain(gateway, stop)
        gateway.edge.close()
        # The last to start first: each puts back the signal handlers that it found.
        for server, task in reversed(list(zip(servers, serving, strict=True))):
            server.should_exit = True
            await task
    finally:
        tasks = [keeping, *serving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        gateway.close()


def _calm_the_collector() -> None:
    """What lives until the exit is never looked at again, and the young are looked at seldom.

    A request leaves no reference cycles behind (a test counts them), so collecting is a precaution; with the
    imports' hundred thousand objects in the oldest generation, each full collection would stop the loop for 50 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)


async def _until(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Wait for `stop`; a task that ends before brings its error here."""
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait((stopping, *tasks), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    for task in done - {stopping}:
        task.result()


async def _drain(gateway: Gateway, stop: asyncio.Event) -> None:
    """Finish what runs, up to the limit; what is left gets its error event."""
    gateway.edge.closing = True
    stop.clear()
    with suppress(TimeoutError):
        async with asyncio.timeout(gateway.drain_seconds):
            while gateway.pipeline.active and not stop.is_set():
                await asyncio.sleep(0.02)
    gateway.pipeline.end_all()
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORDS_SECONDS):
            while gateway.pipeline.active:
                await asyncio.sleep(0.01)


def _server(http: object, application: object) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app=application,  # type: ignore[arg-type]  # FastAPI is one; the public port's protocol never calls its own
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


async def _no_application(scope: object, receive: object, send: object) -> None:
    raise AssertionError("the public port has its own protocol")
