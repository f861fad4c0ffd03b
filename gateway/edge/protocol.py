"""The public port: an asyncio.Protocol on llhttp that uvicorn is given as its HTTP class.

uvicorn keeps the sockets and TLS; from the first byte on a connection is ours, and nothing is handed over, so none
ever leaves these bounds. Bounds and deadlines hold before a request exists: on the head's size, count and time, on
the URL, on the body's size and time. llhttp runs strict, which refuses most of what smuggling is made of; a transfer
coding other than chunked and an upgrade are refused here.

Pipelining: the first request is answered, then the connection closes (RFC 9112 section 9.3.2 allows it).
A half-closed connection counts as closed: the client has gone (vLLM's own server does the same).
"""

import asyncio
from dataclasses import dataclass

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
from gateway.pipeline.reception import Reception, Visit
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
        self.clock = clock
        self.bounds = bounds or Bounds()
        self.connections: set[ClientConnection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.date_line = b""
        self._date_of = -1
        self.closing = False
        """Every answer from now on closes its connection."""
        self.sweep(clock.monotonic())

    def protocol(self, *_: object, **__: object) -> "ClientConnection":
        """A protocol for one connection; uvicorn's own arguments are not needed."""
        return ClientConnection(self, asyncio.get_running_loop())

    def sweep(self, now: float) -> None:
        """Judge every connection's deadline, and renew the Date header; about four times a second."""
        wall = self.clock.wall()
        if int(wall) != self._date_of:
            self._date_of = int(wall)
            self.date_line = b"date: " + http_date(wall) + b"\r\n"
        for connection in list(self.connections):
            connection.sweep(now)

    @property
    def active(self) -> int:
        """Requests being served now."""
        return len(self.tasks)

    def close(self) -> None:
        """Close what is idle at once; what is busy closes with its answer."""
        self.closing = True
        for connection in list(self.connections):
            connection.shutdown()


class ClientConnection(asyncio.Protocol):
    """One client's connection: a parser, at most one request at a time, and one deadline."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_deadline",
        "_deadline_error",
        "_edge",
        "_exchange",
        "_fields",
        "_head_bytes",
        "_header_count",
        "_in_head",
        "_keep_alive",
        "_lingering",
        "_loop",
        "_old_http",
        "_parser",
        "_refusal",
        "_repeated",
        "_stalled_since",
        "_task",
        "_transport",
        "_url",
        "_visit",
    )

    def __init__(self, edge: Edge, loop: asyncio.AbstractEventLoop) -> None:
        self._edge = edge
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._exchange: EdgeExchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._lingering = False
        self._stalled_since: float | None = None
        self._deadline = 0.0
        self._deadline_error: PoolgateError | None = None
        self._expect_head()

    def _expect_head(self) -> None:
        """Ready for a request's head."""
        self._in_head = True
        self._head_bytes = 0
        self._header_count = 0
        self._url = b""
        self._fields: dict[bytes, bytes] = {}
        self._repeated: set[bytes] | None = None
        self._visit: Visit | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._refusal: PoolgateError | None = None
        self._keep_alive = False
        self._old_http = False

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a server gives a Transport
        transport.set_write_buffer_limits(high=self._edge.bounds.write_buffer_bytes)  # type: ignore[attr-defined]
        self._edge.connections.add(self)
        self._deadline = self._edge.clock.monotonic() + self._edge.bounds.head_seconds

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if self._exchange is not None:
            # The next request before this one's answer: it will not be answered here.
            self._keep_alive = False
            return
        if self._in_head:
            bounds = self._edge.bounds
            if not self._head_bytes:
                self._deadline = self._edge.clock.monotonic() + bounds.head_seconds
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._refusal = self._refusal or InvalidRequest("the request is not valid HTTP/1.1")
        except httptools.HttpParserUpgrade:
            self._refusal = self._refusal or _UPGRADE
        if self._exchange is not None:
            self._keep_alive = self._keep_alive and self._refusal is None
            return
        if self._refusal is None and self._in_head and self._head_bytes > self._edge.bounds.max_head_bytes:
            self._refusal = _HEAD_TOO_LARGE
        if self._refusal is not None:
            self._refuse(self._refusal)

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
        self._stalled_since = self._edge.clock.monotonic()
        if self._exchange is not None and self._exchange.source is not None:
            self._exchange.source.pause()

    def resume_writing(self) -> None:
        self._stalled_since = None
        if self._exchange is not None and self._exchange.source is not None:
            self._exchange.source.resume()

    # llhttp's callbacks.

    def on_message_begin(self) -> None:
        if self._exchange is not None:
            self._keep_alive = False

    def on_url(self, url: bytes) -> None:
        if not self._in_head:
            return
        self._url += url
        if len(self._url) > self._edge.bounds.max_url_bytes:
            self._refusal = UriTooLong("the request's URL is longer than 8 KiB")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # A trailer, or a request that is pipelined behind the one in hand.
            return
        self._header_count += 1
        if self._header_count > self._edge.bounds.max_header_count:
            self._refusal = self._refusal or HeadersTooLarge("the request has more than 100 headers")
            return
        name = name.lower()
        if self._fields.setdefault(name, value) is not value:
            if self._repeated is None:
                self._repeated = set()
            self._repeated.add(name)

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser, edge = self._parser, self._edge
        if self._refusal is not None or self._exchange is not None:
            return
        if (
            self._head_bytes > edge.bounds.max_head_bytes
            and len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._fields.items())
            > edge.bounds.max_head_bytes
        ):
            self._refusal = _HEAD_TOO_LARGE
            return
        if parser.should_upgrade():
            self._refusal = _UPGRADE
            return
        fields = self._fields
        version = parser.get_http_version()
        coding = fields.get(b"transfer-encoding")
        if version not in ("1.1", "1.0"):
            self._refusal = InvalidRequest("speak HTTP/1.1")
            return
        if coding is not None and (coding.strip().lower() != b"chunked" or version == "1.0"):
            self._refusal = InvalidRequest("the only transfer coding that is read is chunked")
            return
        self._old_http = version == "1.0"
        self._keep_alive = parser.should_keep_alive() and not self._old_http
        now = edge.clock.monotonic()
        head = Head(parser.get_method(), self._url, fields, frozenset(self._repeated or ()), now)
        visit = self._visit = edge.reception.receive(head)
        if visit.error is not None:
            self._refusal = visit.error
            return
        self._deadline = now + edge.bounds.body_seconds
        if b"expect" in fields and visit.operation.has_body and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        if self._refusal is not None or self._exchange is not None or self._visit is None:
            return
        self._body_bytes += len(data)
        if self._body_bytes > self._edge.reception.max_body_bytes:
            self._refusal = self._edge.reception.too_large()
            return
        self._body.append(data)

    def on_message_complete(self) -> None:
        visit = self._visit
        if self._exchange is not None:
            self._keep_alive = False
            return
        if self._refusal is not None or visit is None:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        edge = self._edge
        visit.trail.received_at = edge.clock.monotonic()
        exchange = self._exchange = EdgeExchange(self, visit.trail.request_id)
        task = self._task = self._loop.create_task(edge.pipeline.serve(visit, body, exchange))
        edge.tasks.add(task)
        task.add_done_callback(edge.tasks.discard)

    # Endings.

    def _refuse(self, error: PoolgateError) -> None:
        """Answer before the request was whole, then close: what is left of it is not read as a request."""
        self._refusal = error
        self._keep_alive = False
        visit = self._visit
        if visit is None:
            visit = self._edge.reception.stranger(self._edge.clock.monotonic(), error)
        exchange = self._exchange = EdgeExchange(self, visit.trail.request_id)
        self._lingering = True
        self._edge.pipeline.refuse(visit, exchange, error)

    def answered(self) -> None:
        """The answer's last byte is handed over."""
        self._exchange = self._task = None
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        now = self._edge.clock.monotonic()
        if self._lingering:
            # Closing with bytes unread would reset the connection, and the client might never see the refusal.
            self._deadline = now + self._edge.bounds.linger_seconds
            if transport.can_write_eof():
                transport.write_eof()
            return
        if self.closes:
            self._lingering = True
            self._deadline = now + self._edge.bounds.stalled_seconds
            transport.close()
            return
        self._deadline = now + self._edge.bounds.idle_seconds
        self._expect_head()

    @property
    def closes(self) -> bool:
        """Whether the connection ends with the answer that is being written."""
        return not self._keep_alive or self._edge.closing

    @property
    def old_http(self) -> bool:
        """Whether the client speaks HTTP/1.0, which knows no chunks."""
        return self._old_http

    @property
    def date_line(self) -> bytes:
        """The Date header, with its line end."""
        return self._edge.date_line

    def write(self, data: bytes) -> None:
        """Hand bytes to the transport, if the client is still there."""
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        if self._transport is not None:
            self._transport.abort()

    def shutdown(self) -> None:
        """Close if idle; a busy connection closes with its answer. uvicorn calls it too, at its own end."""
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


class EdgeExchange:
    """One answer on a `ClientConnection`. The head waits for the first piece of body, to leave with it in one write."""

    __slots__ = ("_chunked", "_connection", "_head", "_over", "_request_id", "client_gone", "source")

    def __init__(self, connection: ClientConnection, request_id: str) -> None:
        self._connection = connection
        self._request_id = request_id
        self._head = b""
        self._chunked = False
        self._over = False
        self.client_gone = False
        self.source: Source | None = None

    def start(
        self, status: int, content_type: bytes, length: int | None, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        connection = self._connection
        lines = b"".join([b"%b: %b\r\n" % header for header in headers]) if headers else b""
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        elif connection.old_http:
            framing = b""
        else:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        self._head = (
            b"HTTP/1.1 %d %b\r\n%bcontent-type: %b\r\n%bx-request-id: %b\r\nx-content-type-options: nosniff\r\n%b%b\r\n"
            % (
                status,
                _REASONS.get(status, b"Status"),
                connection.date_line,
                content_type,
                framing,
                self._request_id.encode("ascii"),
                lines,
                b"connection: close\r\n" if connection.closes else b"",
            )
        )

    def write(self, data: bytes) -> None:
        if self._over or not data:
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head:
            data = self._head + data
            self._head = b""
        self._connection.write(data)

    def finish(self, data: bytes = b"") -> None:
        if self._over:
            return
        self._over = True
        if self._chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        data = self._head + data
        if data:
            self._connection.write(data)
        self._connection.answered()

    def abort(self) -> None:
        if not self._over:
            self._over = True
            self._connection.abort()


_UPGRADE = InvalidRequest("this server does not upgrade connections: set the client to HTTP/1.1")
_HEAD_TOO_LARGE = HeadersTooLarge("the request's head is larger than 32 KiB")
