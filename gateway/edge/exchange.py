"""One answer's bytes: its head, how its body is framed, and its end."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from gateway.pipeline.exchange import Headers, Source
from gateway.pipeline.reception import Visit

_REASONS = {
    200: b"OK",
    204: b"No Content",
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


class Framing(NamedTuple):
    """What an answer's head says beside its content."""

    date_line: bytes
    closes: bool
    chunks: bool


class Line(Protocol):
    """The connection that an answer goes to."""

    @property
    def stalled(self) -> bool:
        """Whether the client reads slower than bytes come."""
        ...

    def answering(self) -> Framing:
        """An answer begins: how it is framed."""
        ...

    def answered(self) -> None:
        """The answer's last byte is handed over."""
        ...

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        ...


class EdgeExchange:
    """One answer. Its head waits for the first piece of body, to leave with it in one write."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_flowing",
        "_head",
        "_over",
        "_visit",
        "_write",
        "client_gone",
        "source",
        "write_chunk",
    )

    def __init__(self, connection: Line, write: Callable[[bytes], None], visit: Visit) -> None:
        self._connection = connection
        self._write = write
        self._visit = visit
        self._head = b""
        self._chunked = self._flowing = self._over = self.client_gone = False
        self.source: Source | None = None
        self.write_chunk: Callable[[bytes], None] | None = None

    @property
    def paused(self) -> bool:
        return self._connection.stalled

    def start(self, status: int, content_type: bytes, length: int | None, headers: Headers = ()) -> None:
        date_line, closes, chunks = self._connection.answering()
        if length is not None:
            size = b"content-length: %d\r\n" % length
        elif chunks:
            self._chunked = True
            size = b"transfer-encoding: chunked\r\n"
        else:
            size = b""
        self._head = (
            b"HTTP/1.1 %d %b\r\n%bcontent-type: %b\r\n%bx-request-id: %b\r\n"
            b"x-content-type-options: nosniff\r\n%b%b%b%b\r\n"
            % (
                status,
                _REASONS.get(status, b"Status"),
                date_line,
                content_type,
                size,
                self._visit.trail.request_id.encode("ascii"),
                self._visit.limit_lines,
                self._visit.origin_lines,
                b"".join([b"%b: %b\r\n" % header for header in headers]) if headers else b"",
                b"connection: close\r\n" if closes else b"",
            )
        )
        if status == 204:
            # No content has neither type nor length (RFC 9110, section 8.6).
            self._head = self._head.replace(b"content-type: \r\ncontent-length: 0\r\n", b"", 1)

    def whole(self, content_type: bytes, body: bytes, headers: Headers = ()) -> None:
        connection, visit = self._connection, self._visit
        date_line, closes, _ = connection.answering()
        if closes or headers:
            self.start(200, content_type, len(body), headers)
            self.finish(body)
            return
        self._over = True
        self.write_chunk = to_nobody
        self._write(
            b"HTTP/1.1 200 OK\r\n%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n"
            b"x-content-type-options: nosniff\r\n%b%b\r\n%b"
            % (
                date_line,
                content_type,
                len(body),
                visit.trail.request_id.encode(),
                visit.limit_lines,
                visit.origin_lines,
                body,
            )
        )
        connection.answered()

    def write(self, data: bytes) -> None:
        if self._flowing and data:
            self._write(b"%x\r\n%b\r\n" % (len(data), data))
        elif data and not self._over:
            if self._chunked:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            self._write(self._head + data)
            self._head = b""
            if self._chunked:
                self._flowing = True
                self.write_chunk = self._write

    def finish(self, data: bytes = b"") -> None:
        if self._over:
            return
        self._over = True
        self._flowing = False
        self.write_chunk = to_nobody
        if self._visit.head.method == b"HEAD":
            # It is allowed nowhere, but its refusal must not have a body all the same.
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
            self.write_chunk = to_nobody
            self._connection.abort()

    def lost(self) -> None:
        """The client has gone. What a pod says until the request's task hears of it is for nobody: uvloop raises at a
        write to a connection that is over, through the pod's connection, as if that had failed."""
        self.client_gone = True
        self._write = self.write_chunk = to_nobody


def to_nobody(data: bytes) -> None:
    """The client has gone, or its answer is over."""
