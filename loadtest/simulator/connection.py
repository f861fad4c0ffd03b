"""One client connection: bytes become requests, answers become bytes.

An asyncio.Protocol on httptools, as uvicorn has it, with uvicorn's habits: an idle connection is closed after
`keep_alive_seconds`, but only once it has had an answer; pipelined requests are answered one after the other;
a client that closes its sending side has left (`eof_received`), and its request is aborted.

Writes go to the socket at once, by the file descriptor: one event is one write, whichever event loop runs (uvloop
joins what is written within one of its turns). Only what the kernel does not take goes through the transport.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

import httptools
import msgspec

from loadtest.simulator import refusals, wire
from loadtest.simulator.settings import PodSettings

_LINGER_NOT = struct.pack("ii", 1, 0)


class ReceivedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it came: `target` and `headers` are the client's bytes, `body` is whole, without framing."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    connection: int  # ordinal, the pod's first is 1

    @property
    def path(self) -> str:
        return self.target.partition(b"?")[0].decode("latin-1")

    def header(self, name: str) -> str | None:
        """The first value of a header, whatever the case of its name."""
        value = self.raw_header(name.lower().encode("latin-1"))
        return None if value is None else value.decode("latin-1")

    def raw_header(self, name: bytes) -> bytes | None:
        """`name` in lower case."""
        for key, value in self.headers:
            if key == name or key.lower() == name:
                return value
        return None


class Host(Protocol):
    """What a connection needs of its pod."""

    @property
    def settings(self) -> PodSettings: ...

    def opened(self, connection: Connection) -> int:
        """Returns the connection's ordinal."""

    def closed(self, connection: Connection) -> None: ...

    def serve(self, exchange: Exchange) -> None: ...

    def http_date(self) -> bytes: ...


class Exchange:
    """A request and the answer it gets. Once the client has gone, writing does nothing."""

    __slots__ = ("_connection", "_host", "close", "done", "on_gone", "request", "without_body", "write")

    def __init__(self, connection: Connection, host: Host, request: ReceivedRequest, close: bool) -> None:
        self._connection = connection
        self._host = host
        self.write = connection.write
        self.request = request
        self.close = close
        self.without_body = request.method == "HEAD"
        self.done = False
        self.on_gone: Callable[[], None] | None = None

    def answer(self, reply: wire.Reply) -> None:
        date = self._host.http_date()
        self.write(wire.whole(reply, date=date, close=self.close, without_body=self.without_body))
        self.finish()

    def cut(self, reply: wire.Reply) -> None:
        """Head and half of the body, then the end of the connection."""
        text = wire.whole(reply, date=self._host.http_date(), close=self.close)
        self.write(text[: len(text) - len(reply.body) + len(reply.body) // 2])
        self.hang_up()

    def start_stream(self, request_id: bytes | None) -> None:
        self.write(wire.stream_head(date=self._host.http_date(), close=self.close, request_id=request_id))

    def end_stream(self) -> None:
        self.write(wire.LAST_CHUNK)
        self.finish()

    def finish(self) -> None:
        """The answer is complete."""
        self.done = True
        self.on_gone = None
        self._connection.answered(self)

    def hang_up(self, *, reset: bool = False) -> None:
        """End the connection with the answer as it is: FIN, or RST."""
        self.done = True
        self.on_gone = None
        self._connection.hang_up(reset=reset)


class Connection(asyncio.Protocol):
    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self._host = host
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._buffering = False
        self._ordinal = 0
        self._exchange: Exchange | None = None
        self._queue: deque[Exchange] = deque()
        self._target: list[bytes] = []
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._in_head = True
        self._head_bytes = 0
        self._body_bytes = 0
        self._refused = False
        self._idle_since: float | None = None
        self._idle_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        return self._exchange is None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are transports in all but their class.
        self._transport = cast("asyncio.Transport", transport)
        self._fd = transport.get_extra_info("socket").fileno()
        self._ordinal = self._host.opened(self)

    def data_received(self, data: bytes) -> None:
        self._idle_since = None
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # no upgrade is on offer; like uvicorn, answer the request as it is
        except httptools.HttpParserError:
            self._refuse(refusals.not_http())
            return
        if self._in_head and self._head_bytes > self._host.settings.max_head_bytes:
            self._refuse(refusals.not_http())

    def eof_received(self) -> bool:
        # The transport may still have something to flush before it tells us; the generation must end now.
        self._client_left()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._fd = -1
        self._client_left()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._host.closed(self)

    # httptools

    def on_message_begin(self) -> None:
        self._target = []
        self._headers = []
        self._body = []
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._target.append(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        for name, value in self._headers:
            if len(name) == 6 and name.lower() == b"expect" and value.lower() == b"100-continue":
                self.write(wire.CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes <= self._host.settings.max_body_bytes:
            self._body.append(body)
        elif not self._refused:
            self._refuse(refusals.body_too_large(self._host.settings.max_body_bytes))

    def on_message_complete(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        if self._refused or self._fd < 0:
            return  # what was sent behind an answer that ended the connection
        body = self._body
        request = ReceivedRequest(
            method=self._parser.get_method().decode("latin-1"),
            target=self._target[0] if len(self._target) == 1 else b"".join(self._target),
            headers=tuple(self._headers),
            body=body[0] if len(body) == 1 else b"".join(body),
            connection=self._ordinal,
        )
        exchange = Exchange(self, self._host, request, close=not self._parser.should_keep_alive())
        if self._exchange is None:
            self._exchange = exchange
            self._host.serve(exchange)
        elif len(self._queue) < self._host.settings.max_pipelined_requests:
            self._queue.append(exchange)
        else:
            self.hang_up(reset=False)

    # for Exchange and the pod

    def write(self, data: bytes) -> None:
        if self._fd < 0 or self._transport is None:
            return
        if self._buffering:
            if self._transport.get_write_buffer_size():
                self._transport.write(data)
                return
            self._buffering = False
        try:
            sent = os.write(self._fd, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # reset by the client; the reading side will tell
        if sent < len(data):
            self._buffering = True
            self._transport.write(data[sent:])

    def answered(self, exchange: Exchange) -> None:
        if exchange is not self._exchange:
            return
        self._exchange = None
        if exchange.close:
            self.hang_up(reset=False)
        elif self._queue:
            self._loop.call_soon(self._serve_next)
        else:
            self._idle_since = self._loop.time()
            if self._idle_timer is None:
                self._arm_idle_timer(self._host.settings.keep_alive_seconds)

    def hang_up(self, *, reset: bool) -> None:
        """FIN once all is flushed; RST at once, whatever was flushed. An open request ends as if its client left."""
        transport = self._transport
        if transport is None or self._fd < 0:
            return
        self._client_left()
        if not reset:
            transport.close()
        else:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            transport.abort()
        self._fd = -1

    def kill(self) -> None:
        """Close as the kernel does for a killed process: at once, what is unsent is lost, nobody is told."""
        self._fd = -1
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    # own

    def _serve_next(self) -> None:
        if self._exchange is None and self._queue and self._fd >= 0:
            self._exchange = self._queue.popleft()
            self._host.serve(self._exchange)

    def _client_left(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None and exchange.on_gone is not None:
            gone, exchange.on_gone = exchange.on_gone, None
            gone()

    def _refuse(self, reply: wire.Reply) -> None:
        """Bytes that cannot be answered as a request: say so and close."""
        self._refused = True
        if self._exchange is None:
            self.write(wire.whole(reply, date=self._host.http_date(), close=True))
        self.hang_up(reset=False)

    def _arm_idle_timer(self, seconds: float) -> None:
        self._idle_timer = self._loop.call_later(seconds, self._check_idle)

    def _check_idle(self) -> None:
        """One timer per connection, not per request: it looks how long the connection has been idle by now."""
        self._idle_timer = None
        if self._idle_since is None:
            return  # busy; the end of the answer arms it again
        left = self._idle_since + self._host.settings.keep_alive_seconds - self._loop.time()
        if left > 0.001:
            self._arm_idle_timer(left)
        else:
            self.hang_up(reset=False)
