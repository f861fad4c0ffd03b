"""HTTP/1.1 as uvicorn writes it for vLLM: heads, whole answers, chunks. Pure.

Header order is part of the look: date and server first, then the answer's own headers, `vary` from the CORS
middleware, what the request-id middleware adds, and `connection: close` at the end.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus

import msgspec

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"
LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE_COMMENT = b": keep-alive\n\n"

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


class Reply(msgspec.Struct, frozen=True):
    """An answer that is sent whole. `before` and `after` are headers before and after the body's own."""

    status: int
    body: bytes = b""
    content_type: bytes | None = JSON
    before: tuple[tuple[bytes, bytes], ...] = ()
    after: tuple[tuple[bytes, bytes], ...] = ((b"vary", b"Origin"),)
    chunked: bool = False  # one chunk instead of a length, as starlette sends what it takes for a stream

    def with_request_id(self, request_id: bytes) -> Reply:
        return msgspec.structs.replace(self, after=(*self.after, (b"x-request-id", request_id)))


def http_date(seconds: float) -> bytes:
    return formatdate(seconds, usegmt=True).encode()


def status_line(status: int) -> bytes:
    return b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, b""))


def whole(reply: Reply, *, date: bytes, close: bool, without_body: bool = False) -> bytes:
    """Head and body. `without_body` is for HEAD: the length is still told."""
    parts = [status_line(reply.status), b"date: ", date, b"\r\nserver: uvicorn\r\n"]
    parts += [b"%b: %b\r\n" % field for field in reply.before]
    if not reply.chunked:
        parts.append(b"content-length: %d\r\n" % len(reply.body))
    if reply.content_type is not None:
        parts.append(b"content-type: %b\r\n" % reply.content_type)
    parts += [b"%b: %b\r\n" % field for field in reply.after]
    if close:
        parts.append(b"connection: close\r\n")
    parts.append(b"transfer-encoding: chunked\r\n\r\n" if reply.chunked else b"\r\n")
    if not without_body:
        parts.append(chunk(reply.body) + LAST_CHUNK if reply.chunked else reply.body)
    return b"".join(parts)


def stream_head(*, date: bytes, close: bool, request_id: bytes | None = None) -> bytes:
    return b"".join(
        [
            b"HTTP/1.1 200 OK\r\ndate: ",
            date,
            b"\r\nserver: uvicorn\r\ncontent-type: ",
            EVENT_STREAM,
            b"\r\nvary: Origin\r\n",
            b"" if request_id is None else b"x-request-id: %b\r\n" % request_id,
            b"connection: close\r\n" if close else b"",
            b"transfer-encoding: chunked\r\n\r\n",
        ]
    )


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(payload: bytes) -> bytes:
    return b"data: %b\n\n" % payload
