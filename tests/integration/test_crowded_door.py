"""The public port when much comes at once: connections, bodies, what is sent behind a request, and a slow loop."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gateway.cli.serve import listen
from gateway.core.clock import Clock
from gateway.edge.bounds import MOST_CONNECTIONS, Bounds
from gateway.edge.port import Edge
from gateway.edge.protocol import ClientConnection
from gateway.parts import THE_USUAL
from gateway.pipeline.aside import OFF_LOOP_BYTES
from gateway.pipeline.body import Steps
from gateway.pipeline.intake import Look, looking
from gateway.pipeline.operations import Operation
from gateway.pipeline.serve import Pipeline
from gateway.telemetry.memory import Memory
from tests.certificates import Pair, certificate
from tests.door import BODY, GOOD, PATIENT, Door, door, refused, turn_the_loop, visitor
from tests.fakes import STREAM_HEAD, Hands, Hang, ScriptedPod, chunk
from tests.raw import Answer, RawClient, chat, request
from tests.running import Running, Side, running
from tests.turns import within

LENGTH = b"Content-Length: %d" % len(BODY)
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


async def until(holds: Any, seconds: float = 5.0) -> None:
    """Wait until it is so."""
    async with within(seconds):
        while not holds():
            await asyncio.sleep(0.002)


def overloaded(came: Answer) -> None:
    """It is the refusal of who has no room."""
    assert (came.status, came.error["code"], came.headers["connection"]) == (503, "overloaded", "close")
    assert came.error["type"] == "overloaded_error"
    assert came.headers["x-request-id"]
    assert 0 < int(came.headers["retry-after"]) <= 5
    assert came.clean


# A body's rate.

SLOW = Bounds(body_grace_seconds=0.3, min_body_rate=2_000, linger_seconds=0.3)


async def trickle(client: RawClient, body: bytes, piece: int, seconds: float) -> Answer:
    """Send a piece, wait, send the next: the answer, which may cut this short."""
    begun = asyncio.create_task(client.answer())
    for start in range(0, len(body), piece):
        client.send(body[start : start + piece])
        await asyncio.wait((begun,), timeout=seconds)
        if begun.done():
            break
    return await begun


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_that_comes_slower_than_its_rate_is_a_408(chunked: bool) -> None:
    async with door(bounds=SLOW) as at:
        body = chat_of(20_000)
        at.client.send(at.post(b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)))
        framed = b"".join(chunk(body[start : start + 2]) for start in range(0, len(body), 2)) if chunked else body
        # 1 kB a second of body; with its framing it would be 3.5.
        async with within(5):
            came = await trickle(at.client, framed, 70 if chunked else 20, 0.02)
        assert (came.status, came.error["code"], came.headers["connection"]) == (408, "request_timeout", "close")
        assert await at.client.closed()
        assert at.asked == 0


async def test_a_body_that_comes_at_its_rate_is_read_however_long_it_takes() -> None:
    hands = Hands()
    async with door(bounds=SLOW, clock=Clock(hands)) as at:
        body, gateway = chat_of(20_000), at.gateway.gateway
        began = hands()
        at.client.send(at.post(b"Content-Length: %d" % len(body)))
        for start in range(0, len(body), 250):
            at.client.send(body[start : start + 250])
            if start + 250 < len(body):
                await until(lambda read=start + 250: gateway.edge.bodies.held == read)
            # 2.5 kB a second: a quarter more than the rate.
            hands.now += 0.1
            gateway.sweep()
        assert (await at.client.answer()).status == 200
        assert hands() - began > 2 * SLOW.body_grace_seconds
        assert at.bodies == [body]


def chat_of(size: int) -> bytes:
    """A chat's body of this size."""
    return BODY[:-1] + b',"user":"' + b"x" * (size - len(BODY) - 10) + b'"}'


async def test_nobody_is_judged_for_what_had_come_while_the_loop_was_held_up() -> None:
    quick, hands = replace(SLOW, head_seconds=0.3, body_seconds=0.3), Hands()
    async with door(bounds=quick, clock=Clock(hands)) as at:
        body = chat_of(700_000)
        with socket.create_connection(("127.0.0.1", at.gateway.port)) as client:
            client.sendall(at.post(b"Content-Length: %d" % len(body), body=body[:10]))
            await until(lambda: at.gateway.gateway.edge.bodies.held == 10)
            client.setblocking(False)
            client.send(body[10:])
            # More than a read takes; every deadline passes before the loop sees any of it.
            hands.now += 1.0
            at.gateway.gateway.sweep()
            async with within(5):
                came = await asyncio.get_running_loop().sock_recv(client, 65536)
            assert came.startswith(b"HTTP/1.1 200 ")
        assert at.bodies == [body]


# All bodies together.

SMALL = replace(PATIENT, max_buffered_body_bytes=10_000)


@asynccontextmanager
async def held(at: Door, count: int, size: int) -> AsyncIterator[list[RawClient]]:
    """So many requests of two callers with bodies of this size, which their pod has in hand."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(visitor(at.gateway)) for _ in range(count)]
        for client, key in zip(clients, cycle((at.gateway.key, at.gateway.other_key))):
            client.send(request(chat_of(size), key=key))
        await until(lambda: at.asked == count)
        yield clients


def buffered(gateway: Running) -> float:
    return gateway.sample("poolgate_buffered_body_bytes")


@pytest.mark.parametrize("lines", [(), (b"Expect: 100-continue",)], ids=["plain", "expecting"])
async def test_a_body_beyond_what_all_may_take_is_refused_before_it_is_read(lines: tuple[bytes, ...]) -> None:
    may_answer = asyncio.Event()
    async with door(may_answer, GOOD, bounds=SMALL) as at, held(at, 2, 4_000) as clients:
        assert buffered(at.gateway) == 8_000
        at.client.send(at.post(b"Content-Length: 4000", *lines))
        came = await at.client.answer()
        overloaded(came)
        assert came.interim == 0
        assert await at.client.closed()
        may_answer.set()
        for client in clients:
            assert (await client.answer()).status == 200
        assert buffered(at.gateway) == 0
        async with visitor(at.gateway) as later:
            later.send(at.chat())
            assert (await later.answer()).status == 200
        line = next(line for line in at.gateway.lines() if line["status"] == 503)
        assert (line["operation"], line["code"], line["outcome"]) == ("chat", "overloaded", "refused")


async def test_who_announces_a_body_and_sends_none_takes_nothing() -> None:
    async with door(bounds=SMALL) as at, AsyncExitStack() as stack:
        for _ in range(20):
            idler = await stack.enter_async_context(visitor(at.gateway))
            idler.send(at.post(b"Content-Length: 9000", body=b"{"))
        await until(lambda: buffered(at.gateway) == 20)
        at.client.send(request(chat_of(9_000), key=at.gateway.other_key))
        assert (await at.client.answer()).status == 200


@pytest.mark.parametrize("chunked", [True, False])
async def test_bodies_that_come_together_and_do_not_fit_are_refused_while_they_come(chunked: bool) -> None:
    async with door(Hang, bounds=SMALL) as at, visitor(at.gateway) as other:
        for client in (at.client, other):
            client.send(at.post(b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 9000"))
        await turn_the_loop()
        for client in (at.client, other):
            client.send(b"2000\r\n" + b"x" * 6_000 if chunked else b"x" * 6_000)
            await turn_the_loop()
        overloaded(await other.answer())
        assert buffered(at.gateway) == 6_000
        at.client.leave()
        await until(lambda: buffered(at.gateway) == 0)


async def test_of_the_room_for_bodies_one_caller_has_half() -> None:
    """Else bodies of one key that are never whole have everybody else's refused."""
    head = b"Content-Length: 4500"
    async with door(Hang, bounds=SMALL) as at, visitor(at.gateway) as more, visitor(at.gateway) as other:
        at.client.send(at.post(head, body=b"x" * 4_000))
        await until(lambda: buffered(at.gateway) == 4_000)
        more.send(at.post(head, body=b"x" * 4_000))
        overloaded(await more.answer())
        other.send(request(chat_of(4_000), key=at.gateway.other_key))
        await until(lambda: at.asked == 1)
        assert buffered(at.gateway) == 8_000
    bodies = at.gateway.gateway.edge.bodies
    await until(lambda: bodies.held == 0)
    assert not any(account.held for account in bodies._accounts.values())


@pytest.mark.parametrize("side", ["edge", "asgi"])
async def test_a_body_is_let_go_of_when_its_answer_begins(side: Side) -> None:
    may_begin, may_end = asyncio.Event(), asyncio.Event()
    script: list[Any] = [may_begin, STREAM_HEAD, chunk(TOKEN), may_end, chunk(END), b"0\r\n\r\n"]
    async with ScriptedPod([script]) as pod, running([pod], side=side, bounds=SMALL) as gateway:
        async with visitor(gateway) as client:
            data = request(chat(stream=True, user="x" * 4_000), key=gateway.key)
            client.send(data)
            await until(lambda: pod.requests)
            assert 4_000 < buffered(gateway) < len(data)
            may_begin.set()
            await client.reader.readuntil(b"content")
            assert buffered(gateway) == 0
            assert gateway.gateway.pipeline.active == 1
            may_end.set()
        await gateway.settled()


@pytest.mark.parametrize("side", ["edge", "asgi"])
async def test_a_body_is_let_go_of_when_its_client_leaves(side: Side) -> None:
    async with ScriptedPod([[Hang]]) as pod, running([pod], side=side, bounds=SMALL) as gateway:
        async with visitor(gateway) as served, visitor(gateway) as sending:
            served.send(request(chat_of(4_000), key=gateway.key))
            await until(lambda: pod.requests)
            sending.send(request(chat_of(4_000), key=gateway.other_key)[:-1_000])
            await until(lambda: buffered(gateway) == 7_000)
        await until(lambda: buffered(gateway) == 0)
        await gateway.settled()


async def test_the_other_side_has_the_same_bound() -> None:
    async with (
        ScriptedPod([[Hang]]) as pod,
        running([pod], side="asgi", bounds=SMALL) as gateway,
        visitor(gateway) as first,
        visitor(gateway) as second,
    ):
        first.send(request(chat_of(6_000), key=gateway.key))
        await until(lambda: pod.requests)
        second.send(request(chat_of(6_000), key=gateway.key))
        came = await second.answer()
        assert (came.status, came.error["code"]) == (503, "overloaded")
        assert len(pod.requests) == 1


class SmallMemory(Memory):
    """Of a container with little of it."""

    def _find_limits(self) -> None:
        super()._find_limits()
        self.limit_bytes = 40_000


async def test_bodies_take_no_more_than_a_quarter_of_the_memory() -> None:
    parts = THE_USUAL._replace(memory=SmallMemory)
    async with ScriptedPod([[GOOD]]) as pod, running([pod], parts=parts) as gateway, visitor(gateway) as client:
        # What would not fit beside nothing would not fit later either.
        for size, status in ((9_000, 200), (11_000, 413)):
            client.send(request(chat_of(size), key=gateway.key))
            assert (await client.answer()).status == status


async def test_a_bound_that_the_memory_does_not_bear_is_told_and_lowered(caplog: pytest.LogCaptureFixture) -> None:
    parts = THE_USUAL._replace(memory=SmallMemory)
    async with ScriptedPod([[GOOD]]) as pod, running([pod], parts=parts, server={"max_body_bytes": 2048}) as gateway:
        told = [line.getMessage() for line in caplog.records if "for all bodies together" in line.getMessage()]
        reception, together = gateway.gateway.reception, gateway.gateway.edge.bodies.limit_bytes
        assert (reception.max_body_bytes, reception.max_upload_bytes) == (2048, together)
        (line,) = told
        assert line.startswith(f"server.max_upload_bytes is 33554432, but the memory allows {together} bytes")


# Connections.

FEW = replace(PATIENT, max_connections=4, spare_seconds=0.3, linger_seconds=0.3)


async def connect_from(gateway: Running, address: str) -> RawClient:
    return RawClient(*await asyncio.open_connection("127.0.0.1", gateway.port, local_addr=(address, 0)))


@asynccontextmanager
async def busy(at: Door, *addresses: str) -> AsyncIterator[list[RawClient]]:
    """A connection from each of these, on which a request is served."""
    clients = [await connect_from(at.gateway, address) for address in addresses]
    for client in clients:
        client.send(at.chat())
    await until(lambda: at.asked == len(addresses))
    try:
        yield clients
    finally:
        for client in clients:
            client.leave()


async def test_one_connection_too_many_is_told_so_and_closed() -> None:
    async with door(Hang, bounds=FEW) as at:
        at.client.leave()
        edge = at.gateway.gateway.edge
        await until(lambda: not edge.connections)
        async with busy(at, "127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2") as clients:
            assert at.gateway.sample("poolgate_connections") == 4
            newcomer = await connect_from(at.gateway, "127.0.0.3")
            newcomer.send(at.chat())
            overloaded(await newcomer.answer())
            assert await newcomer.closed()
            newcomer.leave()
            assert at.asked == 4
            at.gateway.gateway.journal.observe()
            assert at.gateway.sample("poolgate_turned_away_total", pool="other", code="overloaded") == 1
            clients[0].leave()
            await until(lambda: len(edge.connections) == 3)
            at.pod.scripts = [[GOOD]]
            later = await connect_from(at.gateway, "127.0.0.3")
            later.send(at.chat())
            assert (await later.answer()).status == 200
            later.leave()
        await until(lambda: at.gateway.sample("poolgate_connections") == 0)


async def test_connections_far_too_many_are_cut_without_a_word() -> None:
    # Who is told so keeps a place for as long as it lingers, and all others come meanwhile.
    async with door(Hang, bounds=replace(FEW, linger_seconds=30)) as at:
        edge = at.gateway.gateway.edge
        at.client.leave()
        await until(lambda: not edge.connections)
        async with busy(at, "127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"):
            flood = [await connect_from(at.gateway, "127.0.0.3") for _ in range(20)]
            ended = [await client.answer() for client in flood]
            assert {answer.status for answer in ended} == {503, 0}
            assert len(edge.connections) <= FEW.most_sockets()
            for client in flood:
                client.leave()


async def test_a_newcomer_gets_the_place_of_who_has_waited_the_longest() -> None:
    async with door(bounds=FEW) as at, AsyncExitStack() as stack:
        edge = at.gateway.gateway.edge
        at.client.leave()
        clients = []
        for number in range(4):
            clients.append(await connect_from(at.gateway, f"127.0.0.{number + 1}"))
            stack.callback(clients[-1].leave)
            clients[-1].send(at.chat())
            assert (await clients[-1].answer()).status == 200
            swept = edge.now
            await until(lambda swept=swept: edge.now > swept)
        # The first is used once more, so the second has waited the longest.
        clients[0].send(at.chat())
        assert (await clients[0].answer()).status == 200
        await until(lambda: edge.now > swept + 2 * FEW.spare_seconds)
        newcomer = await connect_from(at.gateway, "127.0.0.9")
        stack.callback(newcomer.leave)
        newcomer.send(at.chat())
        assert (await newcomer.answer()).status == 200
        assert await clients[1].closed()
        for client in (clients[0], clients[2], clients[3]):
            client.send(at.chat())
            assert (await client.answer()).status == 200


@pytest.mark.parametrize("sent", [b"G", b"GET /v1/models HTTP/1.1\r\nHost: test\r\nA: b\r\n"])
async def test_no_part_of_a_head_keeps_a_place(sent: bytes) -> None:
    """Else two addresses have all of the room, with one byte on each connection, as long as a head may take."""
    async with door(bounds=FEW) as at, AsyncExitStack() as stack:
        edge = at.gateway.gateway.edge
        at.client.leave()
        await until(lambda: not edge.connections)
        for address in ("127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3"):
            slow = await connect_from(at.gateway, address)
            stack.callback(slow.leave)
            slow.send(sent)
        await until(lambda: len(edge.connections) == 4 and not any(each.idle for each in edge.connections))
        since = edge.now
        await until(lambda: edge.now > since + 2 * FEW.spare_seconds)
        newcomer = await connect_from(at.gateway, "127.0.0.9")
        stack.callback(newcomer.leave)
        newcomer.send(at.chat())
        assert (await newcomer.answer()).status == 200


async def test_who_was_answered_just_now_keeps_its_place() -> None:
    async with door(bounds=replace(FEW, spare_seconds=30)) as at, AsyncExitStack() as stack:
        at.client.leave()
        for number in range(4):
            client = await connect_from(at.gateway, f"127.0.0.{number + 1}")
            stack.callback(client.leave)
            client.send(at.chat())
            assert (await client.answer()).status == 200
        newcomer = await connect_from(at.gateway, "127.0.0.9")
        stack.callback(newcomer.leave)
        overloaded(await newcomer.answer())


@pytest.mark.parametrize("trusted", [True, False])
async def test_one_address_takes_half_of_all_connections_unless_it_is_a_proxy(trusted: bool) -> None:
    async with door(Hang, bounds=FEW, trusted_proxies=["127.0.0.2/32"] if trusted else []) as at:
        at.client.leave()
        await until(lambda: not at.gateway.gateway.edge.connections)
        async with busy(at, "127.0.0.2", "127.0.0.2"):
            at.pod.scripts = [[GOOD]]
            for address in ("127.0.0.2", "127.0.0.3"):
                client = await connect_from(at.gateway, address)
                client.send(at.chat())
                came = await client.answer()
                if trusted or address == "127.0.0.3":
                    assert came.status == 200
                else:
                    overloaded(came)
                client.leave()
        await until(lambda: not at.gateway.gateway.edge.room._of_networks)


async def test_an_address_makes_room_for_itself_first() -> None:
    async with door(bounds=FEW) as at, AsyncExitStack() as stack:
        edge = at.gateway.gateway.edge
        at.client.leave()
        await until(lambda: not edge.connections)
        clients = []
        for _ in range(4):
            clients.append(await connect_from(at.gateway, "127.0.0.2"))
            stack.callback(clients[-1].leave)
            since = edge.now
            await until(lambda since=since: edge.now > since + 2 * FEW.spare_seconds)
        clients[3].send(at.chat())
        assert (await clients[3].answer()).status == 200
        assert len(edge.connections) == 2
        assert await clients[0].closed()


def test_half_of_the_descriptors_are_for_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, most in ((64, 32), (1, 1), (1024, 512), (1 << 20, MOST_CONNECTIONS), (-1, MOST_CONNECTIONS)):
        monkeypatch.setattr("resource.getrlimit", lambda _, soft=soft: (soft, soft))
        assert Bounds().most_connections() == most


# Behind a request that is served.


class LooksNotingTheTurn(Pipeline):
    """Notes at which turn of the loop it looked at a body."""

    turn = 0
    turns: ClassVar[list[int]] = []

    @staticmethod
    def looking(body: bytes, operation: Operation) -> Steps[Look]:
        cls = LooksNotingTheTurn
        steps = looking(body, operation)
        while True:
            cls.turns.append(cls.turn)
            try:
                next(steps)
            except StopIteration as last:
                seen: Look = last.value
                return seen
            yield


async def test_of_large_bodies_that_are_whole_at_once_one_takes_one_step_in_each_turn_of_the_loop() -> None:
    """Together they would hold the loop for so long that it looks like overload, and others are turned away for it."""
    loop, noted = asyncio.get_running_loop(), LooksNotingTheTurn
    noted.turns.clear()

    def count() -> None:
        noted.turn += 1
        if gateway.gateway.pipeline.active or not noted.turns:
            loop.call_soon(count)

    async with (
        ScriptedPod([[GOOD]]) as pod,
        running([pod], parts=THE_USUAL._replace(pipeline=LooksNotingTheTurn)) as gateway,
        AsyncExitStack() as stack,
    ):
        clients = [await RawClient.connect(gateway.port) for _ in range(4)]
        for client in clients:
            stack.callback(client.leave)
            client.send(request(chat_of(OFF_LOOP_BYTES + 1), key=gateway.key)[:-1])
        await until(lambda: gateway.gateway.edge.bodies.held > 4 * OFF_LOOP_BYTES - 4)
        loop.call_soon(count)
        for client in clients:
            client.send(b"}")
        for client in clients:
            assert (await client.answer()).status == 200
    assert len(noted.turns) > 4 * 4
    assert len(set(noted.turns)) == len(noted.turns)


async def test_of_what_is_sent_behind_a_request_little_is_read() -> None:
    may_end = asyncio.Event()
    script = [STREAM_HEAD, chunk(TOKEN), may_end, chunk(END), b"0\r\n\r\n"]
    async with door(*script, bounds=PATIENT) as at:
        at.client.send(at.chat(stream=True))
        begun = await at.client.reader.readuntil(b"content")
        (connection,) = at.gateway.gateway.edge.connections
        for _ in range(400):
            at.client.send(at.chat(user="x" * 50_000))
        await until(lambda: connection._behind_bytes > PATIENT.max_bytes_behind)
        swept = at.gateway.gateway.edge.now
        await until(lambda: at.gateway.gateway.edge.now > swept + 0.5)
        # The socket's buffers are full, and the rest waits with the client.
        assert connection._behind_bytes <= PATIENT.max_bytes_behind + (1 << 18)
        assert at.client.writer.transport.get_write_buffer_size() > 0
        may_end.set()
        came = await at.client.answer(begun=begun)
        assert (came.clean, came.events[-1]) == (True, b"data: [DONE]\n\n")
        assert at.asked == 1


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_who_sends_much_behind_a_request_and_leaves_is_seen_to_leave(how: str) -> None:
    async with door(Hang, bounds=PATIENT) as at:
        with socket.create_connection(("127.0.0.1", at.gateway.port)) as client:
            client.sendall(at.chat())
            await until(lambda: at.asked)
            edge = at.gateway.gateway.edge
            for _ in range(2):
                client.sendall(b"x" * 40_000)
                await turn_the_loop()
            await until(lambda: any(each._behind_bytes > PATIENT.max_bytes_behind for each in edge.connections))
            client.sendall(b"x" * 10_000)
            if how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        async with within(2):
            await at.pod.peer_left.wait()
        assert (await at.gateway.last_line())["outcome"] == "client_left"


async def test_a_client_that_ends_its_half_behind_its_request_has_left() -> None:
    async with door(Hang, bounds=PATIENT) as at:
        at.client.send(at.chat())
        await until(lambda: at.asked)
        at.client.writer.write_eof()
        async with within(2):
            await at.pod.peer_left.wait()
        assert (await at.gateway.last_line())["outcome"] == "client_left"
        assert await at.client.closed()


async def test_a_body_shorter_than_its_length_and_then_an_end_is_a_client_that_left() -> None:
    async with door(bounds=PATIENT) as at:
        at.client.send(at.post(b"Content-Length: 9000", body=BODY))
        at.client.writer.write_eof()
        assert await at.client.closed()
        assert at.asked == 0
        assert buffered(at.gateway) == 0
        (line,) = at.gateway.lines()
        assert (line["outcome"], line["attempts"]) == ("client_left", 0)


async def test_bytes_behind_an_answer_are_the_next_request_or_refused() -> None:
    async with door() as at:
        at.client.send(at.chat())
        assert (await at.client.answer()).status == 200
        at.pod.requests.clear()
        at.client.send(b"the rest of a body that was longer than its length\r\n\r\n")
        await refused(at, 400, "invalid_request")


# What is our own fault.


class Fails(ClientConnection):
    """Cannot go on in the middle of a read."""

    __slots__ = ()
    error: BaseException = MemoryError()

    def on_headers_complete(self) -> None:
        raise self.error


class Full(Fails):
    """Has no room for a body."""

    __slots__ = ()

    def on_headers_complete(self) -> None:
        ClientConnection.on_headers_complete(self)

    def on_message_complete(self) -> None:
        raise self.error


@asynccontextmanager
async def failing(kind: type[Fails], failed: BaseException) -> AsyncIterator[Door]:
    """A gateway whose connections fail so."""
    failing_so = type("FailsSo", (kind,), {"__slots__": (), "error": failed})
    edge = type("FailingEdge", (Edge,), {"connection": failing_so})
    async with (
        ScriptedPod([[GOOD]]) as pod,
        running([pod], parts=THE_USUAL._replace(edge=edge)) as gateway,
        visitor(gateway) as client,
    ):
        yield Door(pod, gateway, client)


@pytest.mark.parametrize("kind", [Fails, Full], ids=["head", "body"])
async def test_a_request_for_which_there_is_no_memory_is_refused_as_such(kind: type[Fails]) -> None:
    async with failing(kind, MemoryError()) as at:
        at.client.send(at.chat())
        overloaded(await refused(at, 503, "overloaded"))
        assert (await at.gateway.last_line())["code"] == "overloaded"
        assert buffered(at.gateway) == 0


@pytest.mark.parametrize("kind", [Fails, Full], ids=["head", "body"])
async def test_an_error_of_ours_while_a_request_is_read_is_not_said_to_be_the_clients(
    kind: type[Fails], caplog: pytest.LogCaptureFixture
) -> None:
    async with failing(kind, RuntimeError("a mistake")) as at:
        at.client.send(at.chat())
        await refused(at, 500, "internal_error")
        assert (await at.gateway.last_line())["outcome"] == "internal"
    (told,) = [record for record in caplog.records if record.name == "poolgate.edge"]
    assert told.exc_info is not None
    assert isinstance(told.exc_info[1], RuntimeError)


# Memory that is not ours to see.


def test_the_kernel_keeps_little_for_a_client_that_does_not_read() -> None:
    with (
        listen("127.0.0.1", 0, "--port") as listener,
        socket.create_connection(listener.getsockname()),
    ):
        connection, _ = listener.accept()
        with connection:
            connection.setblocking(False)
            taken = 0
            with suppress(BlockingIOError):
                while taken < 1 << 20:
                    taken += connection.send(bytes(65536))
            assert taken < 1 << 20


# The same with TLS, where a connection cannot be closed by half.


@asynccontextmanager
async def secured(gateway: Running, pair: Pair) -> AsyncIterator[RawClient]:
    client = RawClient(*await asyncio.open_connection("127.0.0.1", gateway.port, ssl=pair.believed()))
    try:
        yield client
    finally:
        client.leave()


async def test_who_is_refused_over_tls_is_told_and_bidden_farewell(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    bounds = replace(FEW, max_connections=2)
    async with (
        ScriptedPod([[Hang]]) as pod,
        running([pod], bounds=bounds, server={"tls": pair.settings, "trusted_proxies": ["127.0.0.1"]}) as gateway,
        secured(gateway, pair) as first,
        secured(gateway, pair) as second,
    ):
        for client in (first, second):
            client.send(request(chat(), key=gateway.key))
        await until(lambda: len(pod.requests) == 2)
        async with secured(gateway, pair) as newcomer:
            newcomer.send(request(chat(), key=gateway.key))
            overloaded(await newcomer.answer())
            # An end, not a reset: that would be an exception here.
            async with within(5):
                assert await newcomer.reader.read() == b""
        await until(lambda: len(gateway.gateway.edge.connections) == 2)


async def test_who_sends_much_over_tls_and_leaves_is_seen_to_leave(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    async with (
        ScriptedPod([[Hang]]) as pod,
        running([pod], bounds=PATIENT, server={"tls": pair.settings}) as gateway,
        secured(gateway, pair) as client,
    ):
        client.send(request(chat(), key=gateway.key))
        await until(lambda: pod.requests)
        (connection,) = gateway.gateway.edge.connections
        client.send(b"x" * 90_000)
        await until(lambda: connection._behind_bytes > PATIENT.max_bytes_behind)
        client.send(b"x" * 10_000)
        # Without a goodbye: that would stand behind what is not read, and be read with it.
        client.leave()
        async with within(3):
            await pod.peer_left.wait()
        assert (await gateway.last_line())["outcome"] == "client_left"
