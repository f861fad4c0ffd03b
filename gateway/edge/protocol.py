"""The public port: an asyncio.Protocol on llhttp that uvicorn is given as its HTTP class.

uvicorn keeps the sockets and TLS; from the first byte on a connection is ours, and nothing is handed over, so none
ever leaves these bounds. Bounds and deadlines hold before a request exists: on the head's size, count and time, on
the URL, on the body's size and time. llhttp runs strict, which refuses most of what smuggling is made of; a transfer
coding other than chunked and an upgrade are refused here.

Pipelining: the first request is answered, then the connection closes (RFC 9112 section 9.3.2 allows it).
A half-closed connection counts as closed: the client has gone (vLLM's own server does the same).

No connection ends unannounced: one that closes behind an answer has said so in that answer's head. An answer whose
head went out before the drain began leaves its connection open, and the next one there says it.
"""

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

import httptools

from gateway.core.clock import Clock, http_date
from gateway.core.errors import (
    HeadersTooLarge,
    InvalidRequest,
    PoolgateError,
    RequestTimeout,
    UriTooLong,
)
from gateway.pipeline.exchange import Head, Source
from gateway.pipeline.forward import draining
from gateway.pipeline.reception import Reception, Visit, too_large
from gateway.pipeline.serve import Pipeline

_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    414: b"URI Too Long",
    415: b"Unsupported Media Type",
    417: b"Expectation Failed",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a connection may do before a request exists."""

    max_head_bytes: int = 32_768
    max_url_bytes: int = 8_192
    max_header_count: int = 100
    head_seconds: float = 10.0
    """From the first byte of a head to its last; on a new connection, from the connection."""
    body_seconds: float = 120.0
    idle_seconds: float = 75.0
    """Between two requests: longer than the usual load balancer's 60 s, so that it closes first."""
    stalled_seconds: float = 30.0
    """How long a client may leave a full buffer unread."""
    linger_seconds: float = 2.0
    """How long bytes of a refused body are read and thrown away, so that the client can read the refusal."""
    write_buffer_bytes: int = 65_536


class Edge:
    """All connections of the public port. Its `protocol` is uvicorn's HTTP class."""

    def __init__(self, pipeline: Pipeline, reception: Reception, clock: Clock, bounds: Bounds | None = None) -> None:
        self.pipeline = pipeline
        self.reception = reception
        self.monotonic = clock.monotonic
        self.bounds = bounds or Bounds()
        self.connections: set[ClientConnection] = set()
        self.now = clock.monotonic()
        """The time of the last sweep: precise enough for deadlines."""
        self.date_line = b""
        self.closing = False
        """Every answer that begins from now on says that it closes its connection."""
        self._wall = clock.wall
        self._date_of = -1
        self.sweep(self.now)

    def protocol(self, *_: object, **__: object) -> "ClientConnection":
        """A protocol for one connection; uvicorn's own arguments are not needed."""
        return ClientConnection(self, asyncio.get_running_loop())

    def sweep(self, now: float) -> None:
        """Judge every connection's deadline, and renew the Date header; about four times a second."""
        self.now = now
        wall = self._wall()
        if int(wall) != self._date_of:
            self._date_of = int(wall)
            self.date_line = b"date: " + http_date(wall) + b"\r\n"
        for connection in list(self.connections):
            connection.sweep(now)

    @property
    def busy(self) -> bool:
        """Whether anywhere a request, or a part of one, has come whose answer is not wholly sent."""
        return not all(connection.idle for connection in self.connections)

    def turn_away(self) -> None:
        """Refuse the requests that have come in part: they would not be served any more."""
        for connection in list(self.connections):
            connection.turn_away()

    def let_go(self) -> None:
        """Tell the idle connections that nothing more comes."""
        for connection in list(self.connections):
            connection.let_go()

    def close(self) -> None:
        """Close what is idle at once; what is busy closes with its answer."""
        self.closing = True
        for connection in list(self.connections):
            connection.shutdown()


class ClientConnection(asyncio.Protocol):
    """One client's connection: a parser, at most one request at a time, and one deadline."""

    __slots__ = (
        "_body",
        "_deadline",
        "_edge",
        "_exchange",
        "_head_bytes",
        "_headers",
        "_in_head",
        "_keep_alive",
        "_lingering",
        "_loop",
        "_old_http",
        "_parser",
        "_raw_bytes",
        "_refusal",
        "_stalled_since",
        "_task",
        "_transport",
        "_url",
        "_visit",
        "on_body",
        "on_url",
    )

    def __init__(self, edge: Edge, loop: asyncio.AbstractEventLoop) -> None:
        self._edge = edge
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._exchange: EdgeExchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._lingering = False
        self._stalled_since: float | None = None
        self._deadline = edge.now + edge.bounds.head_seconds
        self._in_head = True
        self._head_bytes = 0
        self._raw_bytes = 0
        """Bytes of the message behind its head."""
        self._headers: list[tuple[bytes, bytes]] = []
        self._visit: Visit | None = None
        self._refusal: PoolgateError | None = None
        self._keep_alive = False
        self._old_http = False
        self._body: list[bytes] = []
        self._url: list[bytes] = []
        # llhttp calls these for each piece; the lists' own methods cost no Python frame.
        self.on_body = self._body.append
        self.on_url = self._url.append
        self._parser = httptools.HttpRequestParser(self)

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a server gives a Transport
        transport.set_write_buffer_limits(high=self._edge.bounds.write_buffer_bytes)  # type: ignore[attr-defined]
        self._edge.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if self._exchange is not None:
            # The next request before this one's answer: it will not be answered here.
            self._keep_alive = False
            return
        edge = self._edge
        if self._in_head:
            if not self._head_bytes and self._keep_alive:
                # A later request's time begins with its first byte; a connection's first has run since the beginning.
                self._deadline = edge.now + edge.bounds.head_seconds
            self._head_bytes += len(data)
        else:
            self._raw_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._refusal = self._refusal or InvalidRequest("the request is not valid HTTP/1.1")
        except httptools.HttpParserUpgrade:
            self._refusal = self._refusal or _UPGRADE
        if self._exchange is not None:
            if self._refusal is not None or self._url:
                # What came behind the request is the beginning of another one, or of nothing good.
                self._keep_alive = False
            return
        if self._in_head and self._head_bytes > edge.bounds.max_head_bytes:
            self._refusal = self._refusal or _HEAD_TOO_LARGE
        elif self._visit is not None and self._raw_bytes > self._most_raw_bytes(self._visit):
            # Chunk extensions and trailers are no body, and llhttp sets them no bound.
            self._refusal = self._refusal or too_large(self._visit)
        elif self._in_head and self._url and len(self._url[0]) > edge.bounds.max_url_bytes:
            self._refusal = self._refusal or UriTooLong("the request's URL is longer than 8 KiB")
        if self._refusal is not None:
            self._refuse(self._refusal)

    def _most_raw_bytes(self, visit: Visit) -> int:
        """Bytes that may follow a head: the body, its framing in chunks of a sensible size, trailers."""
        return visit.max_body_bytes + visit.max_body_bytes // 8 + self._edge.bounds.max_head_bytes

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._edge.connections.discard(self)
        self._transport = None
        exchange, task = self._exchange, self._task
        self._exchange = self._task = None
        if exchange is not None:
            exchange.client_gone = True
        if task is not None:
            # Not at once: a task that is cancelled before its first step would never run, and its trail be lost.
            self._loop.call_soon(task.cancel)

    def pause_writing(self) -> None:
        self._stalled_since = self._edge.now
        if self._exchange is not None and self._exchange.source is not None:
            self._exchange.source.pause()

    def resume_writing(self) -> None:
        self._stalled_since = None
        if self._exchange is not None and self._exchange.source is not None:
            self._exchange.source.resume()

    # llhttp's callbacks. While a request is served, the parser may see a second one, pipelined behind it in the same
    # read: what it says is ignored, and the connection closes with the answer.

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come here as well, and what is pipelined behind a request: neither is kept.
        if self._in_head:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if not self._in_head:
            return
        self._in_head = False
        headers, self._headers = self._headers, []
        url = self._url[0] if len(self._url) == 1 else b"".join(self._url)
        self._url.clear()
        if self._refusal is not None:
            return
        edge, parser = self._edge, self._parser
        fields = dict(headers)
        version = parser.get_http_version()
        repeated = _NONE
        if len(fields) != len(headers):
            # The first of each name counts, as it does under ASGI.
            repeated, fields = _repeated(headers), dict(reversed(headers))
        if (
            version != "1.1"
            or repeated
            or b"host" not in fields
            or b"transfer-encoding" in fields
            or self._head_bytes > edge.bounds.max_url_bytes
            or len(headers) > edge.bounds.max_header_count
            or parser.should_upgrade()
        ):
            self._refusal = self._improper(url, headers, version, fields, repeated)
            if self._refusal is not None:
                return
        self._old_http = version == "1.0"
        self._keep_alive = parser.should_keep_alive() and not self._old_http
        now = edge.monotonic()
        visit = edge.reception.receive(Head(parser.get_method(), url, fields, repeated, now))
        self._visit = visit
        self._refusal = visit.error
        self._deadline = now + edge.bounds.body_seconds
        if b"expect" in fields and visit.error is None and not self._old_http and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _improper(
        self,
        url: bytes,
        headers: list[tuple[bytes, bytes]],
        version: str,
        fields: dict[bytes, bytes],
        repeated: frozenset[bytes],
    ) -> PoolgateError | None:
        """What is wrong with a head that llhttp let through."""
        bounds = self._edge.bounds
        if len(url) > bounds.max_url_bytes:
            return UriTooLong("the request's URL is longer than 8 KiB")
        if len(headers) > bounds.max_header_count:
            return HeadersTooLarge("the request has more than 100 headers")
        # The read that brought the head's end may have brought body as well: only then is the head worth measuring.
        if self._head_bytes > bounds.max_head_bytes:
            size = len(url) + sum(len(name) + len(value) + 4 for name, value in headers)
            if size > bounds.max_head_bytes:
                return _HEAD_TOO_LARGE
        if version != "1.1" and version != "1.0":
            return InvalidRequest("speak HTTP/1.1")
        if b"host" in repeated or (version == "1.1" and b"host" not in fields):
            return InvalidRequest("name one Host")
        coding = fields.get(b"transfer-encoding", b"chunked")
        if coding.strip().lower() != b"chunked" or b"transfer-encoding" in repeated:
            return InvalidRequest("the only transfer coding that is read is chunked")
        if version == "1.0" and b"transfer-encoding" in fields:
            return InvalidRequest("the only transfer coding that is read is chunked")
        return _UPGRADE if self._parser.should_upgrade() else None

    def on_message_complete(self) -> None:
        visit = self._visit
        if self._refusal is not None or self._exchange is not None or visit is None:
            return
        edge = self._edge
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        if len(body) > visit.max_body_bytes:
            self._refusal = too_large(visit)
            return
        self._visit = None
        if self._raw_bytes:
            # The body came later than the head: the clock starts when the request is whole.
            visit.trail.received_at = edge.monotonic()
        exchange = self._exchange = EdgeExchange(self, self._transport, visit)
        self._task = self._loop.create_task(edge.pipeline.serve(visit, body, exchange))

    # Endings.

    def _refuse(self, error: PoolgateError) -> None:
        """Answer before the request was whole, then close: what is left of it is not read as a request."""
        self._refusal = error
        self._keep_alive = False
        visit = self._visit
        if visit is None:
            visit = self._edge.reception.stranger(self._edge.monotonic(), error)
        exchange = self._exchange = EdgeExchange(self, self._transport, visit)
        self._lingering = True
        self._body.clear()
        self._edge.pipeline.refuse(visit, exchange, error)

    def answered(self) -> None:
        """The answer's last byte is handed over."""
        self._exchange = self._task = None
        transport, edge = self._transport, self._edge
        if transport is None or transport.is_closing():
            return
        if self._lingering:
            self._half_close(transport)
        elif not self._keep_alive:
            self._lingering = True
            self._deadline = edge.now + edge.bounds.stalled_seconds
            transport.close()
        else:
            self._deadline = edge.now + edge.bounds.idle_seconds
            self._in_head = True
            self._head_bytes = self._raw_bytes = 0

    def _half_close(self, transport: asyncio.Transport) -> None:
        """Say that nothing more comes, and throw away what does for a while: closing with bytes unread would reset the
        connection, and the client might never see what was said before."""
        self._lingering = True
        self._deadline = self._edge.now + self._edge.bounds.linger_seconds
        if transport.can_write_eof():
            transport.write_eof()

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has come, and nothing of an answer is left to send."""
        transport = self._transport
        return not self._head_bytes and (transport is None or not transport.get_write_buffer_size())

    @property
    def stalled(self) -> bool:
        """Whether the client reads slower than bytes come."""
        return self._stalled_since is not None

    def framing(self) -> "Framing":
        """How the answer that begins now is framed."""
        if self._edge.closing:
            self._keep_alive = False
        return Framing(self._edge.date_line, not self._keep_alive, not self._old_http)

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        if self._transport is not None:
            self._transport.abort()

    def turn_away(self) -> None:
        """Refuse a request that has come in part."""
        if self._exchange is None and not self._lingering and not self.idle:
            self._refuse(draining())

    def let_go(self) -> None:
        """Half-close if idle: a request that is on its way already finds an orderly end instead of a reset."""
        transport = self._transport
        if transport is not None and self.idle:
            self._half_close(transport)

    def shutdown(self) -> None:
        """Close if idle; a busy connection closes with its answer."""
        self._keep_alive = False
        if self._exchange is None and self._transport is not None:
            self._transport.close()

    def sweep(self, now: float) -> None:
        """Judge this connection's deadline."""
        if self._stalled_since is not None and now - self._stalled_since >= self._edge.bounds.stalled_seconds:
            self.abort()
        elif self._exchange is None and now >= self._deadline:
            if self._lingering:
                self.abort()
            elif self._in_head and not self._head_bytes:
                self.shutdown()
            else:
                self._refuse(RequestTimeout("the request did not arrive in time"))


class Framing(NamedTuple):
    """What an answer's head says beside its content."""

    date_line: bytes
    closes: bool
    chunks: bool


class EdgeExchange:
    """One answer on a `ClientConnection`. The head waits for the first piece of body, to leave with it in one write."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_flowing",
        "_head",
        "_head_only",
        "_over",
        "_visit",
        "_write",
        "client_gone",
        "source",
    )

    def __init__(self, connection: ClientConnection, transport: asyncio.Transport | None, visit: Visit) -> None:
        self._connection = connection
        self._write = transport.write if transport is not None else _to_nobody
        self._visit = visit
        # HEAD is allowed nowhere, but its refusal must not have a body all the same.
        self._head_only = visit.head.method == b"HEAD"
        self._head = b""
        self._chunked = False
        self._flowing = False
        self._over = False
        self.client_gone = False
        self.source: Source | None = None

    @property
    def paused(self) -> bool:
        return self._connection.stalled

    def start(
        self, status: int, content_type: bytes, length: int | None, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        date_line, closes, chunks = self._connection.framing()
        if length is not None:
            size = b"content-length: %d\r\n" % length
        elif chunks:
            self._chunked = True
            size = b"transfer-encoding: chunked\r\n"
        else:
            size = b""
        self._head = (
            b"HTTP/1.1 %d %b\r\n%bcontent-type: %b\r\n%bx-request-id: %b\r\n"
            b"x-content-type-options: nosniff\r\n%b%b%b\r\n"
            % (
                status,
                _REASONS.get(status, b"Status"),
                date_line,
                content_type,
                size,
                self._visit.trail.request_id.encode("ascii"),
                self._visit.limit_lines,
                b"".join([b"%b: %b\r\n" % header for header in headers]) if headers else b"",
                b"connection: close\r\n" if closes else b"",
            )
        )

    def write(self, data: bytes) -> None:
        if self._flowing and data:
            self._write(b"%x\r\n%b\r\n" % (len(data), data))
        elif data and not self._over:
            if self._chunked:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            self._write(self._head + data)
            self._head = b""
            self._flowing = self._chunked

    def finish(self, data: bytes = b"") -> None:
        if self._over:
            return
        self._over = True
        self._flowing = False
        if self._head_only:
            data = b""
        elif self._chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        data = self._head + data
        if data:
            self._write(data)
        self._connection.answered()

    def abort(self) -> None:
        if not self._over:
            self._over = True
            self._flowing = False
            self._connection.abort()


def _to_nobody(data: bytes) -> None:
    """The client had gone before its answer began."""


def _repeated(headers: list[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The names that stand in a head more than once."""
    names = [name for name, _ in headers]
    return frozenset(name for name in names if names.count(name) > 1)


_NONE: frozenset[bytes] = frozenset()
_UPGRADE = InvalidRequest("this server does not upgrade connections: set the client to HTTP/1.1")
_HEAD_TOO_LARGE = HeadersTooLarge("the request's head is larger than 32 KiB")
