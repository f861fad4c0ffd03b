"""A caller's connection, kept alive as long as the gateway lets it: one answer at a time, and when what of it came."""

import asyncio
from dataclasses import dataclass, field
from typing import Self

import httptools


@dataclass
class Answer:
    """What came of an answer, and when, in the loop's time; 0: it did not come."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    begun_at: float = 0.0
    """The first byte of its body."""
    ended_at: float = 0.0
    """Its end, or the connection's."""
    clean: bool = False
    """It ended by its own framing."""

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)


class Line(asyncio.Protocol):
    """See the module's text."""

    def __init__(self, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.port = port
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer()
        self._over: asyncio.Future[None] | None = None
        self._keeps_alive = True

    @classmethod
    async def connect(cls, port: int) -> Self:
        """Raises OSError: nobody listens."""
        loop = asyncio.get_running_loop()
        _, line = await loop.create_connection(lambda: cls(port, loop), "127.0.0.1", port)
        return line

    @property
    def usable(self) -> bool:
        """For a further request: as HTTP clients do, a connection that is seen to be closed is not tried."""
        return self._keeps_alive and self._transport is not None and not self._transport.is_closing()

    @property
    def begun(self) -> bool:
        """The body of an answer has begun to come."""
        return self._answer.begun_at != 0

    @property
    def events(self) -> int:
        """How many pieces of that body have come."""
        return len(self._answer.parts)

    async def ask(self, data: bytes) -> Answer:
        """Send a request, and wait for the end of its answer."""
        assert self._over is None
        self._answer, self._over = Answer(), self._loop.create_future()
        if self._transport is None:
            self._end()
        else:
            self._transport.write(data)
        await self._over
        self._over = None
        return self._answer

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # asyncio's callbacks, and the parser's.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._answer.begun_at = self._answer.begun_at or self._loop.time()
        self._answer.parts.append(body)

    def on_message_complete(self) -> None:
        self._answer.clean = True
        self._keeps_alive = self._parser.should_keep_alive()
        self._end()

    def _end(self) -> None:
        if self._over is not None and not self._over.done():
            self._answer.ended_at = self._loop.time()
            self._over.set_result(None)
