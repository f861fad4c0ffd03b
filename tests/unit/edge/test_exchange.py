"""One answer's bytes, on a connection whose client has just gone."""

import asyncio
from typing import cast

import pytest
import uvloop

from gateway.core.call import Trail
from gateway.edge.exchange import EdgeExchange, Framing
from gateway.pipeline.exchange import Head
from gateway.pipeline.reception import Visit


class Line:
    """Of a client that keeps its connection."""

    stalled = False
    over = False

    def answering(self) -> Framing:
        return Framing(b"", closes=False, chunks=True)

    def answered(self) -> None:
        self.over = True

    def abort(self) -> None:
        raise AssertionError("nobody asked for it")


def visit() -> Visit:
    return Visit(Head(b"POST", b"/v1/chat/completions", {}, frozenset(), 0.0), Trail("r", 0.0), 1)


async def over() -> asyncio.Transport:
    """A connection whose end was told."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[asyncio.Transport] = loop.create_future()
    lost = asyncio.Event()

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.set_result(cast("asyncio.Transport", transport))

        def connection_lost(self, exc: Exception | None) -> None:
            lost.set()

    server = await loop.create_server(Accepted, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    transport = await made
    writer.transport.abort()
    await lost.wait()
    server.close()
    return transport


def test_what_is_written_to_a_client_that_has_gone_raises_nothing_on_the_loop_we_serve_with() -> None:
    async def answered() -> None:
        transport = await over()
        with pytest.raises(RuntimeError):
            transport.write(b"a")
        line = Line()
        exchange = EdgeExchange(line, transport.write, visit())
        exchange.start(200, b"text/event-stream", None)
        exchange.lost()
        exchange.write(b"data: 1\n\n")
        exchange.write(b"data: 2\n\n")
        exchange.finish(b"data: [DONE]\n\n")
        assert line.over
        assert exchange.client_gone

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(answered())
