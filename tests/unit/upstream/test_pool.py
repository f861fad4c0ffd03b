"""What we ask pods ourselves (their models, load, metrics, health) is suspected like any answer."""

import asyncio
import gc
import gzip
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import FrameType

import pytest

from gateway.core.fleet import Pod
from gateway.core.ports import FetchFailed
from gateway.pipeline.forward import _opened
from gateway.upstream.connection import PodConnection
from gateway.upstream.pool import PodPool, Pools
from tests.fakes import MODELS, ScriptedPod, answer
from tests.turns import within

PACKED = gzip.compress(MODELS)
ENDLESS = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"


class Server:
    """Answers every request with the same bytes; then, if it is `endless`, with `x`s for as long as it may."""

    def __init__(self, says: bytes, *, endless: bool = False) -> None:
        self.says = says
        self.endless = endless
        self.asked: list[bytes] = []
        self.came = 0
        self.left = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came += 1
        try:
            while True:
                self.asked.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.says)
                while self.endless:
                    writer.write(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        finally:
            writer.close()


@asynccontextmanager
async def listening(says: bytes = b"", *, endless: bool = False) -> AsyncIterator[Server]:
    found = Server(says, endless=endless)
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    async with server:
        yield found


def pools(api_key: str | None = None) -> Pools:
    return Pools(connect_seconds=1, idle_seconds=3, clock=lambda: 0.0, api_key=api_key)


def pod_at(server: Server | ScriptedPod) -> Pod:
    return Pod("u", "p", "p", "127.0.0.1", server.port)


async def failed(made: Pools, server: Server) -> str:
    with pytest.raises(FetchFailed) as told:
        await made.fetch(pod_at(server), b"/v1/models", 5)
    async with within(2):
        await server.left.wait()
    assert made.of(pod_at(server)).take() is None
    return str(told.value)


async def test_a_plain_answer_is_fetched_and_its_connection_used_again() -> None:
    async with ScriptedPod() as pod:
        made = pools()
        for _ in range(3):
            assert await made.fetch(pod_at(pod), b"/v1/models", 5) == MODELS
        assert pod.connections == made.of(pod_at(pod)).live == 1
        made.close()


@pytest.mark.parametrize(
    "status", [b"301 Moved", b"302 Found", b"304 Not Modified", b"307 Temporary", b"308 Permanent"]
)
async def test_a_redirect_is_not_followed(status: bytes) -> None:
    async with listening(answer(MODELS)) as elsewhere:
        there = b"location: http://127.0.0.1:%d/v1/models\r\n" % elsewhere.port
        async with listening(b"HTTP/1.1 %b\r\n%bcontent-length: 0\r\n\r\n" % (status, there)) as server:
            assert "never followed" in await failed(pools("the-pods-own-key"), server)
        assert elsewhere.came == 0


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"deflate", b"identity, gzip", b"x"])
async def test_a_compressed_answer_is_neither_read_nor_unpacked(coding: bytes) -> None:
    async with listening(answer(PACKED, more=b"content-encoding: %b\r\n" % coding)) as server:
        assert "compressed" in await failed(pools(), server)
        assert b"\r\naccept-encoding: identity\r\n" in server.asked[0]


async def test_an_answer_that_says_it_is_as_it_is_passes() -> None:
    async with listening(answer(MODELS, more=b"content-encoding: Identity\r\n")) as server:
        made = pools()
        assert await made.fetch(pod_at(server), b"/v1/models", 5) == MODELS
        made.close()


async def test_an_answer_without_end_is_cut_at_its_bound() -> None:
    async with listening(ENDLESS, endless=True) as server:
        assert "too large" in await failed(pools(), server)


async def test_the_bound_is_what_a_subclass_says() -> None:
    class Small(Pools):
        max_fetch_bytes = 10

    async with listening(answer(MODELS)) as server:
        made = Small(connect_seconds=1, idle_seconds=3, clock=lambda: 0.0)
        with pytest.raises(FetchFailed, match="too large"):
            await made.fetch(pod_at(server), b"/v1/models", 5)


@pytest.mark.parametrize(
    "says",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nCANARY",
        b"CANARY",
        answer(b"CANARY") + answer(b"CANARY"),
        answer(b"CANARY").replace(b"content-length", b"transfer-encoding: chunked\r\ncontent-length"),
    ],
    ids=["upgrade", "no-head", "two-answers", "two-framings"],
)
async def test_junk_is_a_failure_that_says_nothing_of_what_came(says: bytes) -> None:
    async with listening(says) as server:
        assert "CANARY" not in await failed(pools(), server)


async def test_a_loop_that_was_held_up_takes_no_pod_for_one_that_is_not_there() -> None:
    """Else every pod that is asked in that moment would be left out for it."""
    async with listening(answer(MODELS)) as server:
        made = Pools(connect_seconds=0.05, idle_seconds=3, clock=lambda: 0.0)
        asking = asyncio.create_task(made.fetch(pod_at(server), b"/v1/models", 60))
        await asyncio.sleep(0)
        time.sleep(0.3)
        assert await asking == MODELS
        made.close()


async def test_nor_for_one_that_does_not_answer() -> None:
    asked, held_up = threading.Event(), threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            asked.set()
            held_up.wait(60)
            connection.sendall(answer(MODELS))
            connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        pod = Pod("u", "p", "p", *listener.getsockname())
        made = pools()
        serving = asyncio.get_running_loop().run_in_executor(None, serve, listener)
        asking = asyncio.create_task(made.fetch(pod, b"/v1/models", 2.0))
        while not asked.is_set():
            await asyncio.sleep(0.001)
        held_up.set()
        time.sleep(2.5)
        assert await asking == MODELS
        made.close()
        await serving


async def test_a_connection_that_its_pod_closes_before_anything_is_sent_is_none() -> None:
    """In the turn of the loop between its coming and its use, too: nothing was asked of that pod."""

    class ClosedMeanwhile(PodPool):
        async def connect(self) -> PodConnection:
            connection = await super().connect()
            connection.abort()
            return connection

    async with listening() as server:
        assert await _opened(PodPool(pod_at(server), 5, lambda: 0.0)) is not None
        assert await _opened(ClosedMeanwhile(pod_at(server), 5, lambda: 0.0)) is None


@pytest.mark.parametrize("says", [answer(b"{}", b"503 Busy"), b"", answer(MODELS)], ids=["refused", "silent", "good"])
async def test_a_fetch_leaves_nothing_to_the_collector_however_it_ends(says: bytes) -> None:
    """A replica asks its pods ten times a second, and some may fail for hours."""
    async with listening(says) as server:
        made = pools()

        async def asked() -> None:
            with suppress(FetchFailed):
                await made.fetch(pod_at(server), b"/load", 5 if says else 0.05)

        await asked()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await asked()
            gc.collect()
            left = [each for each in gc.garbage if isinstance(each, FrameType | BaseException)]
        finally:
            gc.set_debug(0)
            gc.enable()
            gc.garbage.clear()
        assert left == []
        made.close()
