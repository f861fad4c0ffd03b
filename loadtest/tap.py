"""A wire-tap before a pod: gateways connect to it, and it to the pod; what it reads on the way it tells a checker.

Bytes pass as they are and as they come. A side that closes is closed to the other, a reset stays a reset, and a side
that does not read is not read from. While the pod's port refuses, so does the tap's: its listener is closed with the
first connection that came for nothing, and by `refuse` for who knows beforehand.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import cast

import httptools

from loadtest.invariants.hearing import Hear, PodSide
from loadtest.invariants.pieces import shape_of

_LINGER_NOT = struct.pack("ii", 1, 0)


class Tap:
    """Of the pod that is called `name` and listens on `to_port`, which may change while the tap refuses."""

    def __init__(self, name: str, hear: Hear, clock: Callable[[], float]) -> None:
        self.name = name
        self.hear = hear
        self.clock = clock
        self.port = 0
        self.to_port = 0
        self.refused = 0
        """Connections that came for nothing before the listener was closed."""
        self._listener: asyncio.Server | None = None
        self._lines: set[_FromGateway] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def listen(self, to_port: int) -> None:
        """Lead to a pod that listens. The port stays the same through all its lives."""
        self.to_port = to_port
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: _FromGateway(self), "127.0.0.1", self.port, backlog=512)
        self.port = self._listener.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Take no connection any more; those that are open end with the pod."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def close(self) -> None:
        self.refuse()
        for line in list(self._lines):
            line.reset()

    def opened(self, line: "_FromGateway") -> None:
        self._lines.add(line)

    def ended(self, line: "_FromGateway") -> None:
        self._lines.discard(line)

    def came_for_nothing(self) -> None:
        self.refused += 1
        self.refuse()


class _Side(asyncio.Protocol):
    """One end of a connection; what it gets goes to `other`."""

    transport: asyncio.Transport | None = None
    other: "_Side | None" = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are transports in all but their class.
        self.transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        other = self.other
        if other is None or other.transport is None:
            return
        if isinstance(exc, ConnectionError):
            other.reset()
        else:
            other.transport.close()

    def reset(self) -> None:
        """Close with RST."""
        if self.transport is not None and not self.transport.is_closing():
            there = self.transport.get_extra_info("socket")
            there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            self.transport.abort()

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)


class _FromGateway(_Side):
    """Where a gateway has connected: its requests, one after another."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._pending: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._target = b""
        self._connecting: asyncio.Task[None] | None = None
        self.asked: PodSide | None = None
        """The attempt that runs."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.tap.opened(self)
        self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, pod = await loop.create_connection(lambda: _FromPod(self), "127.0.0.1", self.tap.to_port)
        except OSError:
            self.tap.came_for_nothing()
            self.reset()
            return
        if self.transport is None:
            pod.reset()
            return
        self.other = pod
        for data in self._pending:
            pod.write(data)
        self._pending.clear()

    def data_received(self, data: bytes) -> None:
        if self._parser is not None:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError:
                self._parser = None
        if self.other is None:
            self._pending.append(data)
        else:
            self.other.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.tap.ended(self)
        if self.asked is not None:
            self.asked.closed(by_gateway=not isinstance(self.other, _FromPod) or self.other.transport is not None)
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._headers, self._target = {}, b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        attempt_id = self._headers.get(b"x-request-id")
        self.asked = None
        # What gateways ask for themselves has no id.
        if attempt_id is not None:
            path = self._target.decode("latin-1")
            shape = shape_of(path, stream=True)
            self.asked = PodSide(self.tap.hear, self.tap.clock, self.tap.name, attempt_id.decode("latin-1"), shape)


class _FromPod(_Side):
    """Where the tap has connected to the pod: its answers."""

    def __init__(self, gateway: _FromGateway) -> None:
        self.other: _FromGateway = gateway
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}

    def data_received(self, data: bytes) -> None:
        # First what it means, then where it goes: nobody may see a byte before the checker has heard of it.
        if self._parser is not None:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError:
                self._parser = None
        self.other.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other.asked is not None:
            self.other.asked.closed(by_gateway=self.other.transport is None)
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self.other.asked is not None and self._final:
            assert self._parser is not None
            self.other.asked.head(self._parser.get_status_code(), self._headers)

    def on_body(self, body: bytes) -> None:
        if self.other.asked is not None:
            self.other.asked.body(body)

    def on_message_complete(self) -> None:
        if self.other.asked is not None and self._final:
            self.other.asked.answered()

    @property
    def _final(self) -> bool:
        """This is the answer, and none of the interim ones before it."""
        return self._parser is not None and self._parser.get_status_code() >= 200
