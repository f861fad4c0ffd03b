"""HTTP on the wire: writes, reuse, pipelining, bounds, disconnects."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from loadtest.simulator import PodSettings, SimulatedPod
from loadtest.simulator.connection import Connection
from tests.unit.loadtest.hand_clock import HandClock
from tests.unit.loadtest.talking import ask, chat, get, post, talk_to

M = PodSettings(model="m")


class PairTransport(asyncio.Transport):
    """A transport on one end of a pair of sockets. SEQPACKET keeps writes apart, as TCP does not."""

    def __init__(self, kind: socket.SocketKind = socket.SOCK_SEQPACKET) -> None:
        super().__init__()
        self.mine, self.theirs = socket.socketpair(socket.AF_UNIX, kind)
        self.mine.setblocking(False)
        self.theirs.setblocking(False)
        self.buffered = b""
        self.closed = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self.mine if name == "socket" else default

    def get_write_buffer_size(self) -> int:
        return len(self.buffered)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.buffered += bytes(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def arrived(self) -> list[bytes]:
        """What the socket holds by now, read by read."""
        found = []
        while True:
            try:
                found.append(os.read(self.theirs.fileno(), 65536))
            except BlockingIOError:
                return found


@pytest.fixture
def paired() -> Iterator[Callable[..., PairTransport]]:
    """Makes transports and closes their sockets."""
    made: list[PairTransport] = []

    def make(kind: socket.SocketKind = socket.SOCK_SEQPACKET) -> PairTransport:
        made.append(PairTransport(kind))
        return made[-1]

    yield make
    for transport in made:
        transport.mine.close()
        transport.theirs.close()


async def test_each_event_is_a_chunk_and_a_write_of_its_own_and_so_are_done_and_the_last_chunk(
    paired: Callable[..., PairTransport],
) -> None:
    transport = paired()
    body = chat(stream=True, max_tokens=3, stream_options={"include_usage": True})
    async with SimulatedPod(M) as pod:
        connection = Connection(pod, asyncio.get_running_loop())
        connection.connection_made(transport)
        connection.data_received(post(body, close=False))
        await pod.until(lambda p: p.served == 1)
        head, *chunks = transport.arrived()
        connection.connection_lost(None)

    assert head.endswith(b"transfer-encoding: chunked\r\n\r\n")
    assert [chunk.count(b"data: ") for chunk in chunks] == [1, 1, 1, 1, 1, 1, 0]
    assert chunks[-2:] == [b"e\r\ndata: [DONE]\n\n\r\n", b"0\r\n\r\n"]
    for chunk in chunks:
        size, _, rest = chunk.partition(b"\r\n")
        assert len(rest) == int(size, 16) + 2


async def test_bytes_stay_in_order_when_the_socket_was_full_for_a_while(
    paired: Callable[..., PairTransport],
) -> None:
    transport = paired(socket.SOCK_STREAM)
    async with SimulatedPod(M) as pod:
        connection = Connection(pod, asyncio.get_running_loop())
        connection.connection_made(transport)
        sent: list[bytes] = []
        while not transport.buffered:
            sent.append(b"%08d" % len(sent) * 1000)
            connection.write(sent[-1])
        arrived = b"".join(transport.arrived())
        connection.write(b"behind what is buffered")
        assert transport.arrived() == []
        arrived += transport.buffered
        transport.buffered = b""
        connection.write(b"direct again")
        direct = transport.arrived()
        connection.connection_lost(None)

    assert arrived == b"".join(sent) + b"behind what is buffered"
    assert direct == [b"direct again"]


async def test_idleness_is_counted_from_the_last_answer(paired: Callable[..., PairTransport]) -> None:
    transport, clock = paired(), HandClock()
    async with SimulatedPod(M) as pod:
        connection = Connection(pod, cast("asyncio.AbstractEventLoop", clock))
        connection.connection_made(transport)
        clock.move(60)
        assert not transport.closed
        for _ in range(3):
            connection.data_received(get("/health", close=False))
            clock.move(4.9)
            assert not transport.closed
        clock.move(0.2)
        assert transport.closed
        connection.connection_lost(None)


async def test_a_connection_with_an_open_request_is_never_idle(paired: Callable[..., PairTransport]) -> None:
    transport, clock = paired(), HandClock()
    async with SimulatedPod(M) as pod:
        pod.pause()
        connection = Connection(pod, cast("asyncio.AbstractEventLoop", clock))
        connection.connection_made(transport)
        connection.data_received(get("/health", close=False))
        clock.move(1)
        connection.data_received(post(chat(max_tokens=1), close=False))
        clock.move(60)
        assert not transport.closed
        pod.resume()
        await pod.until(lambda p: p.served == 1)
        clock.move(5.1)
        assert transport.closed
        connection.connection_lost(None)


async def test_a_connection_accepted_while_the_port_closes_is_dropped(paired: Callable[..., PairTransport]) -> None:
    transport = paired()
    async with SimulatedPod(M) as pod:
        pod.fall_silent()
        connection = Connection(pod, asyncio.get_running_loop())
        connection.connection_made(transport)

        assert transport.closed
        connection.connection_lost(None)


async def test_what_is_sent_behind_a_last_request_is_not_served() -> None:
    async with SimulatedPod(M) as pod, talk_to(pod) as talk:
        talk.send(get("/health") + get("/version"))
        await talk.how_it_ends()

    assert [request.path for request in pod.requests] == ["/health"]


async def test_a_connection_is_used_again() -> None:
    async with SimulatedPod(M) as pod, talk_to(pod) as talk:
        for _ in range(3):
            talk.heard = b""
            talk.send(post(chat(stream=True, max_tokens=2), close=False))
            await talk.hear_until(b"0\r\n\r\n")

        assert pod.connections_made == 1
        assert [request.connection for request in pod.requests] == [1, 1, 1]
        assert pod.open_connections == 1


async def test_an_idle_connection_is_closed_after_its_time_and_not_before_its_first_request() -> None:
    loop = asyncio.get_running_loop()
    async with (
        SimulatedPod(PodSettings(model="m", keep_alive_seconds=0.05)) as pod,
        talk_to(pod) as used,
        talk_to(pod) as unused,
    ):
        began = loop.time()
        used.send(get("/health", close=False))
        await used.hear_until(b"\r\n\r\n")
        await used.hear_out()
        assert loop.time() - began > 0.04
        assert pod.open_connections == 1
        unused.send(get("/health", close=False))
        await unused.hear_until(b"\r\n\r\n")


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with SimulatedPod(M) as pod, talk_to(pod) as talk:
        talk.send(post(chat(max_tokens=5), close=False) + get("/version", close=False) + get("/health"))
        heard = (await talk.hear_out()).raw

    assert heard.count(b"HTTP/1.1 200 OK") == 3
    assert heard.index(b"chat.completion") < heard.index(b'"version"') < heard.index(b"connection: close")


async def test_too_many_pipelined_requests_end_the_connection() -> None:
    async with SimulatedPod(PodSettings(model="m", max_pipelined_requests=3)) as pod, talk_to(pod) as talk:
        pod.pause()
        talk.send(post(chat(), close=False) * 6)

        assert await talk.how_it_ends() == "end"
        await pod.until(lambda p: p.waiting == 0)

    assert len(pod.requests) == 1


async def test_a_chunked_request_body_is_read() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":1}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:10], body[10:40], body[40:]))
    async with SimulatedPod(M) as pod:
        heard = await ask(pod, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")

    assert heard.status == 200
    assert pod.requests[0].body == body


async def test_a_body_in_small_pieces_is_read() -> None:
    request = post(chat(max_tokens=1))
    async with SimulatedPod(M) as pod, talk_to(pod) as talk:
        for at in range(0, len(request), 7):
            talk.send(request[at : at + 7])
            await asyncio.sleep(0)
        heard = await talk.hear_out()

    assert heard.status == 200


async def test_a_client_may_wait_for_100_continue() -> None:
    request = post(chat(max_tokens=1), headers={"Expect": "100-continue"})
    head, _, body = request.partition(b"\r\n\r\n")
    async with SimulatedPod(M) as pod, talk_to(pod) as talk:
        talk.send(head + b"\r\n\r\n")
        assert await talk.hear_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        talk.send(body)
        await talk.hear_until(b"HTTP/1.1 200 OK")


async def test_a_large_head_is_read_and_a_huge_one_refused() -> None:
    async with SimulatedPod(M) as pod:
        large = await ask(pod, b"GET /health HTTP/1.1\r\nConnection: close\r\nX: %b\r\n\r\n" % (b"x" * 70_000))
        async with talk_to(pod) as talk:
            talk.send(b"GET /health HTTP/1.1\r\nX: %b" % (b"x" * 1_000_000))
            await talk.how_it_ends()

    assert large.status == 200
    assert len(pod.requests) == 1


async def test_a_body_above_the_bound_is_refused() -> None:
    async with SimulatedPod(PodSettings(model="m", max_body_bytes=1000)) as pod, talk_to(pod) as talk:
        talk.send(post(b"x" * 1001))
        await talk.how_it_ends()

    assert talk.heard.startswith(b"HTTP/1.1 413") or talk.heard == b""
    assert len(pod.requests) == 0


@pytest.mark.parametrize("nonsense", [b"\x16\x03\x01\x02\x00", b"HELLO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
async def test_what_is_not_http_is_refused_and_hung_up_on(nonsense: bytes) -> None:
    async with SimulatedPod(M) as pod:
        heard = await ask(pod, nonsense)

    assert heard.status == 400
    assert heard.body == b"Invalid HTTP request received."


async def test_a_client_that_reads_slowly_still_gets_every_byte() -> None:
    body = chat(stream=True, max_tokens=8000, ignore_eos=True)
    async with SimulatedPod(M) as pod:
        small = socket.socket()
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        small.setblocking(False)
        await asyncio.get_running_loop().sock_connect(small, (pod.host, pod.port))
        reader, writer = await asyncio.open_connection(sock=small, limit=16384)
        writer.write(post(body))
        await pod.until(lambda p: p.served == 1)
        heard = await reader.read(-1)
        writer.close()

    assert heard.count(b"data: {") == 8001
    assert heard.endswith(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


async def test_an_upgrade_is_not_taken_up_and_the_request_answered() -> None:
    async with SimulatedPod(M) as pod, talk_to(pod) as talk:
        talk.send(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")

        assert b"200 OK" in await talk.hear_until(b'"version"')


async def test_http_1_0_gets_an_answer_and_a_close() -> None:
    async with SimulatedPod(M) as pod:
        heard = await ask(pod, b"GET /health HTTP/1.0\r\n\r\n")

    assert heard.status == 200
    assert ("connection", "close") in heard.headers
