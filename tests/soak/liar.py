"""A tiny gateway before one pod that lies in one way, or in none: what the checker must find, and what it must not."""

import asyncio
from enum import StrEnum
from typing import Self

import httptools

from loadtest.tap import Tap

CUT = b'data: {"error":{"message":"cut","type":"upstream_error","param":null,"code":"upstream_truncated"}}\n\n'
DONE = b"data: [DONE]\n\n"


class Lie(StrEnum):
    NONE = "none"
    ENDS_WELL = "a cut stream ends as if it were whole"
    ENDS_WITHOUT_A_WORD = "a cut stream's body just ends"
    SAYS_TWICE = "an event comes twice"
    WORKS_ON = "the pod works on when the client has left"
    ASKS_TWICE = "the pod gets each request five times"


class Liar:
    """`async with Liar(tap, lie) as liar`. One request a connection; answers as they come, event by event."""

    def __init__(self, tap: Tap, lie: Lie) -> None:
        self._tap = tap
        self._lie = lie
        self._made = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = False
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._over = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            await self._forward(reader, writers)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
            # It ends, or its client has left; asyncio.streams would log the cancellation of its own task as an error.
            return
        finally:
            self._tasks.discard(task)
            for each in writers:
                if self._over:
                    each.transport.abort()
                else:
                    each.close()

    async def _forward(self, reader: asyncio.StreamReader, writers: list[asyncio.StreamWriter]) -> None:
        """`writers` has the client's at first, then those to the pod as well."""
        head = await reader.readuntil(b"\r\n\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(b": ") for line in head.split(b"\r\n"))}
        body = await reader.readexactly(int(fields[b"content-length"]))
        for _ in range(4 if self._lie is Lie.ASKS_TWICE else 0):
            _, extra = await self._asked(head, body, fields[b"x-request-id"])
            extra.close()
        pod, to_pod = await self._asked(head, body, fields[b"x-request-id"])
        writers.append(to_pod)
        left = asyncio.create_task(reader.read(1))
        answering = asyncio.create_task(self._answer(pod, writers[0]))
        try:
            waits_for = {answering} if self._lie is Lie.WORKS_ON else {answering, left}
            await asyncio.wait(waits_for, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (left, answering):
                task.cancel()
            await asyncio.gather(left, answering, return_exceptions=True)

    async def _asked(
        self, head: bytes, body: bytes, request_id: bytes
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._made += 1
        ours = b"%b-liar-%d" % (request_id, self._made)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._tap.port)
        writer.write(head.replace(request_id, ours, 1) + body)
        return reader, writer

    async def _answer(self, pod: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        heard = _Heard()
        parser = httptools.HttpResponseParser(heard)
        begun = said_twice = False
        while not heard.over:
            try:
                data = await pod.read(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                break
            parser.feed_data(data)
            *whole, rest = b"".join(heard.parts).split(b"\n\n")
            heard.parts = [rest]
            if whole and not begun:
                begun = True
                client.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
                    b"connection: close\r\n\r\n"
                )
            for event in whole:
                _say(client, event + b"\n\n")
                if self._lie is Lie.SAYS_TWICE and not said_twice:
                    said_twice = True
                    _say(client, event + b"\n\n")
        if begun and not heard.over:
            _say(client, {Lie.ENDS_WELL: DONE, Lie.ENDS_WITHOUT_A_WORD: b""}.get(self._lie, CUT + DONE))
        client.write(b"0\r\n\r\n")


class _Heard:
    """What the pod has said of its answer."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.over = False

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        self.over = True


def _say(client: asyncio.StreamWriter, data: bytes) -> None:
    if data:
        client.write(b"%x\r\n%b\r\n" % (len(data), data))
