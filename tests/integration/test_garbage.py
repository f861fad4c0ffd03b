"""A connection that is gone is gone: nothing of it waits for the collector, which we let look seldom."""

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from gateway.core.fleet import Pod
from gateway.edge.protocol import ClientConnection
from gateway.upstream.connection import PodConnection
from gateway.upstream.pool import ConnectFailed, PodPool
from tests.certificates import certificate
from tests.fakes import STREAM_HEAD, Hang, ScriptedPod, Step, answer, chunk
from tests.raw import RawClient, ask, chat, request
from tests.running import Running, running
from tests.turns import within

VISITS = 20
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
WHOLE = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')


async def left_to_the_collector(
    kind: type, visit: Callable[[], Awaitable[object]], left: Callable[[], object] = lambda: False
) -> list[object]:
    """Objects of a kind that many visits left behind, and that only the collector would find. `left`: whether the
    gateway has still to hear of the end of one.
    """

    async def over() -> None:
        async with within(5):
            while left():
                await asyncio.sleep(0.001)
            # What its end brings about comes in the turns after it.
            for _ in range(50):
                await asyncio.sleep(0.001)

    await visit()
    await over()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(VISITS):
            await visit()
        await over()
        gc.collect()
        return [each for each in gc.garbage if isinstance(each, kind)]
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()


async def closes(gateway: Running) -> None:
    """Told to close with the answer."""
    asked = request(chat(), key=gateway.key, headers={"Connection": "close"})
    assert (await ask(gateway.port, asked)).status == 200


async def is_refused(gateway: Running) -> None:
    assert (await ask(gateway.port, request(chat(), key="nobody's"))).status == 401


async def leaves(gateway: Running) -> None:
    """In the middle of a stream."""
    client = await RawClient.connect(gateway.port)
    client.send(request(chat(stream=True), key=gateway.key))
    await client.reader.readuntil(b"\r\n\r\n")
    client.leave()
    await gateway.settled()


@pytest.mark.parametrize("visit", [closes, is_refused, leaves])
async def test_a_client_that_is_gone_leaves_nothing_to_the_collector(
    visit: Callable[[Running], Awaitable[None]],
) -> None:
    def script_of(asked: bytes) -> list[Step]:
        return [STREAM_HEAD, chunk(TOKEN), Hang] if b"stream" in asked else [WHOLE]

    async with ScriptedPod(script_of=script_of) as pod, running([pod]) as gateway:
        connections = gateway.gateway.edge.connections
        assert await left_to_the_collector(ClientConnection, lambda: visit(gateway), lambda: connections) == []


async def test_a_handshake_that_comes_to_nothing_leaves_nothing_to_the_collector(tmp_path: Path) -> None:
    pair = certificate(tmp_path)

    async def comes_and_goes(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.transport.abort()

    async with ScriptedPod() as pod, running([pod], server={"tls": pair.settings}) as gateway:
        tls = gateway.gateway.edge.tls
        assert tls is not None
        found = await left_to_the_collector(ClientConnection, lambda: comes_and_goes(gateway.port), lambda: tls.sockets)
        assert found == []


def test_a_pod_that_takes_no_connection_leaves_nothing_to_the_collector() -> None:
    async def left(port: int) -> list[object]:
        pool = PodPool(Pod("u", "p", "p", "127.0.0.1", port), 1.0, lambda: 0.0)

        async def in_vain() -> None:
            with pytest.raises(ConnectFailed):
                await pool.connect()

        return await left_to_the_collector(PodConnection, in_vain)

    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        # asyncio makes the protocol when there is a connection, uvloop before.
        assert uvloop.run(left(mute.getsockname()[1])) == []
