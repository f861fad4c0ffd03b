"""A connection to a pod, on real sockets: what one exchange leaves behind is no burden for the next."""

import asyncio
import gc
import socket

import pytest

from gateway.core.fleet import Pod
from gateway.upstream.connection import AnswerHead, Loss, PodConnection, Receiver
from gateway.upstream.pool import PodPool
from tests.fakes import ScriptedPod, answer
from tests.turns import within

POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"


class SlowReader(Receiver):
    """A receiver whose client is behind as soon as anything comes."""

    def __init__(self, connection: PodConnection) -> None:
        self._connection = connection
        self.body = b""
        self.ended: asyncio.Future[Loss | None] = asyncio.get_running_loop().create_future()

    def head_received(self, head: AnswerHead) -> None: ...

    def body_received(self, data: bytes) -> None:
        self.body += data
        self._connection.pause(self)

    def answer_ended(self, by_close: bool) -> None:
        self.ended.set_result(None)

    def answer_lost(self, loss: Loss) -> None:
        self.ended.set_result(loss)


async def test_a_connection_that_was_paused_by_the_last_of_an_answer_reads_the_next_one() -> None:
    async with ScriptedPod([[answer(b"one")], [answer(b"two")]]) as pod:
        pool = PodPool(Pod("u", "p", "p", "127.0.0.1", pod.port), 1.0, lambda: 0.0)
        connection = await pool.connect()
        bodies = []
        for _ in range(2):
            reader = SlowReader(connection)
            connection.send(POST, (), reader)
            async with within(5):
                assert await reader.ended is None
            # Its client has caught up, too late: the answer is over.
            connection.resume(reader)
            bodies.append(reader.body)
            assert pool.take() is connection
        assert bodies == [b"one", b"two"]
        connection.abort()


@pytest.mark.program("linux")
async def test_many_small_pieces_are_acknowledged_by_twos() -> None:
    async with ScriptedPod([[answer(b"one")]]) as pod:
        pool = PodPool(Pod("u", "p", "p", "127.0.0.1", pod.port), 1.0, lambda: 0.0)
        connection = await pool.connect()
        assert connection._transport is not None
        sock = connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1
        connection.acknowledge_seldom()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 0
        connection.abort()


async def test_a_connection_that_is_gone_leaves_nothing_to_the_collector() -> None:
    async with ScriptedPod([[answer(b"one")]]) as pod:
        pool = PodPool(Pod("u", "p", "p", "127.0.0.1", pod.port), 1.0, lambda: 0.0)

        async def come_and_go() -> None:
            connection = await pool.connect()
            connection.abort()
            while pool.live:
                await asyncio.sleep(0)

        await come_and_go()
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                await come_and_go()
            # The pod of the test, on asyncio's streams, leaves some; each of ours would leave several.
            found = [each for each in unreachable() if isinstance(each, PodConnection)]
        finally:
            gc.enable()
        assert not found


def unreachable() -> list[object]:
    """What only the collector can end."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return list(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
