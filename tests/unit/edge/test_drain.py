"""Connections while a gateway drains: none ends unannounced, and none is reset."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.edge.bounds import Bounds
from gateway.edge.port import Edge
from tests.fakes import STREAM_HEAD, ScriptedPod, answer, chunk
from tests.raw import RawClient, chat, request
from tests.running import Running, running
from tests.turns import within

GOOD = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
LARGE = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"x":"' + b"x" * 900_000 + b'"}')
TOKEN = chunk(b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n')
END = chunk(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n') + b"0\r\n\r\n"
PATIENT = Bounds(head_seconds=30, body_seconds=30, linger_seconds=30, stalled_seconds=30)


@asynccontextmanager
async def gateway_of(*scripts: Any) -> AsyncIterator[Running]:
    """A gateway before a pod that plays these; no deadline passes in between."""
    async with ScriptedPod(scripts or [[GOOD]]) as pod, running([pod], bounds=PATIENT) as gateway:
        yield gateway


@asynccontextmanager
async def visitor(gateway: Running) -> AsyncIterator[RawClient]:
    client = await RawClient.connect(gateway.port)
    try:
        await until(lambda: len(gateway.gateway.edge.connections) > 0)
        yield client
    finally:
        client.leave()


async def until(holds: Any) -> None:
    """Loopback delivers at once: turns of the loop are all there is to wait for."""
    async with within(5):
        while not holds():
            await asyncio.sleep(0)


async def turn_the_loop() -> None:
    """What is ready happens."""
    for _ in range(5):
        await asyncio.sleep(0)


async def asked_well(gateway: Running, client: RawClient) -> str | None:
    """A request that is answered with 200; the answer's Connection header."""
    client.send(request(chat(), key=gateway.key))
    came = await client.answer()
    assert (came.status, came.clean) == (200, True)
    return came.headers.get("connection")


async def test_an_idle_connection_is_answered_once_and_closes() -> None:
    async with gateway_of() as gateway, visitor(gateway) as client:
        assert await asked_well(gateway, client) is None
        gateway.gateway.edge.closing = True
        assert await asked_well(gateway, client) == "close"
        assert await client.closed()


async def test_a_new_connection_is_answered_once_and_closes() -> None:
    async with gateway_of() as gateway:
        gateway.gateway.edge.closing = True
        async with visitor(gateway) as client:
            assert await asked_well(gateway, client) == "close"
            assert await client.closed()


async def test_a_connection_whose_answer_began_before_the_drain_does_not_end_unannounced() -> None:
    may_end = asyncio.Event()
    async with gateway_of([STREAM_HEAD, TOKEN, may_end, END], [GOOD]) as gateway, visitor(gateway) as client:
        client.send(request(chat(stream=True), key=gateway.key))
        begun = await client.reader.readuntil(b"content")
        assert b"connection: close" not in begun
        gateway.gateway.edge.closing = True
        may_end.set()
        assert (await client.answer(begun=begun)).events[-1] == b"data: [DONE]\n\n"
        # The client was told nothing of an end, so it may send again on this connection.
        assert await asked_well(gateway, client) == "close"
        assert await client.closed()


async def test_who_is_let_go_reads_an_end_and_no_reset_whatever_it_had_sent() -> None:
    async with gateway_of() as gateway, visitor(gateway) as client:
        await asked_well(gateway, client)
        # On its way when the gateway decides: it lies in the socket, unread.
        client.send(request(chat(), key=gateway.key))
        edge = gateway.gateway.edge
        edge.let_go()
        assert await client.reader.read() == b""
        await turn_the_loop()
        assert not gateway.gateway.pipeline.active
        client.leave()
        await until(lambda: not edge.connections)
        assert len(gateway.lines()) == 1


# Busy is what a drain waits for.


async def busy_with(gateway: Running, client: RawClient, *pieces: bytes) -> Edge:
    """Whether the edge is busy only because of what this client sends, piece by piece."""
    edge = gateway.gateway.edge
    assert not edge.busy
    for piece in pieces:
        client.send(piece)
        await until(lambda: edge.busy)
    return edge


@pytest.mark.parametrize("used", [True, False], ids=["later-request", "first-request"])
@pytest.mark.parametrize("part", [10, -10], ids=["head", "body"])
async def test_a_request_that_has_come_in_part_is_waited_for(part: int, used: bool) -> None:
    async with gateway_of() as gateway, visitor(gateway) as client:
        if used:
            await asked_well(gateway, client)
        whole = request(chat(), key=gateway.key)
        edge = await busy_with(gateway, client, whole[:part])
        client.send(whole[part:])
        assert (await client.answer()).status == 200
        await until(lambda: not edge.busy)


async def test_a_request_that_is_served_is_waited_for() -> None:
    may_end = asyncio.Event()
    async with gateway_of([may_end, GOOD]) as gateway, visitor(gateway) as client:
        edge = await busy_with(gateway, client, request(chat(), key=gateway.key))
        await until(lambda: gateway.gateway.pipeline.active)
        assert edge.busy
        may_end.set()
        assert (await client.answer()).status == 200
        await until(lambda: not edge.busy)


@asynccontextmanager
async def narrow_door(edge: Edge) -> AsyncIterator[int]:
    """A further port of a gateway, whose sockets hold little: of an answer that is not read, most stays with it."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    async with await asyncio.get_running_loop().create_server(edge.protocol, sock=listener):
        yield listener.getsockname()[1]


@pytest.mark.parametrize("closing", [True, False], ids=["that-closes", "that-keeps-alive"])
async def test_an_answer_that_its_client_has_not_read_is_waited_for(closing: bool) -> None:
    async with gateway_of([LARGE]) as gateway, narrow_door(gateway.gateway.edge) as port:
        edge, client = gateway.gateway.edge, await RawClient.connect(port)
        edge.closing = closing
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport can
        client.send(request(chat(), key=gateway.key))
        await until(lambda: len(gateway.lines()) == 1)
        await turn_the_loop()
        assert not gateway.gateway.pipeline.active
        assert edge.busy
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]  # as above
        came = await client.answer()
        assert (came.clean, len(came.body) > 900_000) == (True, True)
        await until(lambda: not edge.busy)
        client.leave()


async def test_a_refusal_that_its_client_has_not_read_is_waited_for() -> None:
    async with gateway_of() as gateway, visitor(gateway) as client:
        edge = await busy_with(gateway, client, b"no HTTP\r\n\r\n")
        assert (await client.answer()).status == 400
        assert edge.busy
        client.leave()
        await until(lambda: not edge.busy)


async def test_who_sent_more_behind_a_request_has_time_to_read_its_answer() -> None:
    may_end = asyncio.Event()
    async with gateway_of([GOOD], [may_end, GOOD]) as gateway, visitor(gateway) as client:
        await asked_well(gateway, client)
        edge = await busy_with(gateway, client, request(chat(), key=gateway.key))
        await until(lambda: gateway.gateway.pipeline.active)
        client.send(b"more")
        await turn_the_loop()
        may_end.set()
        came = await client.answer()
        assert (came.status, came.headers["connection"]) == (200, "close")
        await turn_the_loop()
        assert edge.busy
        client.leave()
        await until(lambda: not edge.busy)


# At the limit.


async def test_who_still_reads_an_answer_and_asks_nothing_is_told_nothing_else() -> None:
    async with gateway_of([LARGE]) as gateway, narrow_door(gateway.gateway.edge) as port:
        edge, client = gateway.gateway.edge, await RawClient.connect(port)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport can
        client.send(request(chat(), key=gateway.key))
        await until(lambda: len(gateway.lines()) == 1)
        await turn_the_loop()
        assert edge.busy
        edge.turn_away()
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]  # as above
        assert (await client.answer()).clean
        await until(lambda: not edge.busy)
        edge.let_go()
        assert await client.closed()
        assert len(gateway.lines()) == 1
        client.leave()


@pytest.mark.parametrize("part", [10, -10], ids=["head", "body"])
async def test_a_request_that_has_come_in_part_is_told_that_the_gateway_goes(part: int) -> None:
    async with gateway_of() as gateway, visitor(gateway) as client, visitor(gateway) as idle:
        await asked_well(gateway, idle)
        edge = await busy_with(gateway, client, request(chat(), key=gateway.key)[:part])
        edge.turn_away()
        came = await client.answer()
        assert (came.status, came.error["code"], came.headers["connection"]) == (503, "draining", "close")
        assert int(came.headers["retry-after"]) > 0
        assert await client.closed()
        line = gateway.lines()[-1]
        assert (line["status"], line["outcome"], line["code"]) == (503, "refused", "draining")
        # Who sent nothing is told nothing.
        assert await asked_well(gateway, idle) is None


async def test_who_was_refused_already_is_not_told_twice() -> None:
    async with gateway_of() as gateway, visitor(gateway) as client:
        edge = await busy_with(gateway, client, b"no HTTP\r\n\r\n")
        edge.turn_away()
        assert (await client.answer()).status == 400
        assert await client.closed()
        assert len(gateway.lines()) == 1


async def test_an_answer_that_runs_is_not_turned_away() -> None:
    may_end = asyncio.Event()
    async with gateway_of([may_end, GOOD]) as gateway, visitor(gateway) as client:
        edge = await busy_with(gateway, client, request(chat(), key=gateway.key))
        await until(lambda: gateway.gateway.pipeline.active)
        edge.turn_away()
        edge.let_go()
        may_end.set()
        assert (await client.answer()).status == 200
