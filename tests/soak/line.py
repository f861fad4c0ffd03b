"""A caller's connection to a gateway, that tells a checker what comes; it may read slowly, and leave at any moment."""

import asyncio
from collections.abc import Callable
from typing import Self

import httptools

from loadtest.invariants import ClientSide
from loadtest.invariants.events import LineLost
from loadtest.invariants.hearing import Hear


class Line(asyncio.Protocol):
    """One answer at a time."""

    def __init__(self, gateway: str, hear: Hear, clock: Callable[[], float]) -> None:
        self.gateway = gateway
        self._hear = hear
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._side: ClientSide | None = None
        self._over: asyncio.Future[None] | None = None
        self._last = ("", 0.0)
        """The request that was answered last, and when."""
        self._pause_seconds = 0.0
        self._resumes: asyncio.TimerHandle | None = None
        self._asked = ""
        self.keeps_alive = True
        self.leaves = False

    @classmethod
    async def connect(cls, gateway: str, port: int, hear: Hear, clock: Callable[[], float]) -> Self:
        """Raises OSError: nobody listens."""
        _, line = await asyncio.get_running_loop().create_connection(
            lambda: cls(gateway, hear, clock), "127.0.0.1", port
        )
        return line

    @property
    def usable(self) -> bool:
        return self.keeps_alive and self._transport is not None and not self._transport.is_closing()

    def send(self, request_id: str, data: bytes, side: ClientSide, pause_seconds: float = 0.0) -> asyncio.Future[None]:
        """What it returns is done when the answer has ended, or the connection. `pause_seconds`: after each read."""
        self._asked, self._side, self._pause_seconds = request_id, side, pause_seconds
        self._over = asyncio.get_running_loop().create_future()
        if self._transport is None:
            self._end(clean=False)
        else:
            self._transport.write(data)
        return self._over

    def leave(self) -> None:
        """Close at once; what runs is left."""
        self.leaves = True
        if self._side is not None:
            self._side.left()
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
            self._end(clean=False)
            self.leave()
            return
        if self._pause_seconds and self._side is not None and self._transport is not None:
            self._transport.pause_reading()
            self._resumes = asyncio.get_running_loop().call_later(self._pause_seconds, self._resume)

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        request_id, at = self._last
        if self._side is None and request_id and self.keeps_alive and not self.leaves:
            self._hear(LineLost(self._clock(), request_id, self._clock() - at))
        self._end(clean=False)

    def on_message_begin(self) -> None:
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._side is not None:
            self._side.head(self._parser.get_status_code(), self._headers)

    def on_body(self, body: bytes) -> None:
        if self._side is not None:
            self._side.body(body)

    def on_message_complete(self) -> None:
        self.keeps_alive = self._parser.should_keep_alive()
        self._end(clean=True)

    def _end(self, *, clean: bool) -> None:
        side, self._side = self._side, None
        if side is not None:
            side.ended(clean=clean)
            self._last = (self._asked, self._clock())
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
