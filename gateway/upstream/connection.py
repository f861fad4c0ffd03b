"""An HTTP/1.1 client connection on asyncio.Protocol and llhttp (through httptools).

One exchange at a time. The answer is pushed at a `Receiver`: head, pieces of body, end or loss; whatever one
read of the socket completes arrives as one piece. A connection may be used again only after a complete exchange:
the request was written whole, the answer ended by its own framing, the pod keeps the connection, nothing followed.
Bytes or an end of file on an idle connection close it.

llhttp runs in its strict mode; what it lets through and we don't (RFC 9112 section 6.3): an answer with both
Content-Length and Transfer-Encoding, a transfer coding other than chunked, 101, more than 16 interim answers.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import httptools

MAX_INTERIM_ANSWERS = 16
MAX_HEAD_BYTES = 65536
MAX_HEADER_COUNT = 200


class Loss(StrEnum):
    """Why an exchange ended without its answer's end."""

    STALE = "stale"
    """A reused connection died before the first byte of the answer: the pod had closed it while it was idle."""
    CUT = "cut"
    """The pod closed in an orderly way (FIN), too early."""
    RESET = "reset"
    """The connection broke (RST)."""
    JUNK = "junk"
    """What came is not HTTP, or not HTTP that means one thing."""


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """Status and the headers we look at; names lower case, the first of each name."""

    status: int
    fields: dict[bytes, bytes]
    content_length: int | None

    @property
    def content_type(self) -> bytes:
        """Media type without parameters, lower case; empty when missing."""
        return self.fields.get(b"content-type", b"").partition(b";")[0].strip().lower()


class Receiver(Protocol):
    """Who takes an answer. Called from the socket's callbacks: none of these may wait."""

    def head_received(self, head: AnswerHead) -> None: ...
    def body_received(self, data: bytes) -> None: ...
    def answer_ended(self, by_close: bool) -> None:
        """The answer is whole by its framing; `by_close`: it had none, and the pod closed."""
        ...

    def answer_lost(self, loss: Loss) -> None: ...


class PodConnection(asyncio.Protocol):
    """See the module's text. `on_idle` and `on_closed` are the pool's."""

    __slots__ = (
        "_ended",
        "_fields",
        "_head_bytes",
        "_header_count",
        "_interim",
        "_junk",
        "_keep_alive",
        "_on_closed",
        "_on_idle",
        "_parser",
        "_pieces",
        "_receiver",
        "_reused",
        "_started",
        "_status",
        "_transport",
        "idle_since",
        "on_body",
    )

    def __init__(
        self, on_idle: "Callable[[PodConnection], None]", on_closed: "Callable[[PodConnection], None]"
    ) -> None:
        self._on_idle = on_idle
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._pieces: list[bytes] = []
        # llhttp calls this for each piece of body: an append of the list itself costs no Python frame.
        self.on_body: Callable[[bytes], None] = self._pieces.append
        self._parser = httptools.HttpResponseParser(self)
        self._reused = False
        self.idle_since = 0.0
        self._begin()

    def _begin(self) -> None:
        self._fields: dict[bytes, bytes] = {}
        self._status = 0
        self._header_count = 0
        self._head_bytes = 0
        self._interim = 0
        self._started = False
        self._ended = False
        self._keep_alive = False
        self._junk = ""

    # What the pool and the pipeline call.

    @property
    def usable(self) -> bool:
        """Whether a request may be sent now."""
        return self._transport is not None and self._receiver is None and not self._transport.is_closing()

    def send(self, parts: Sequence[bytes | memoryview], receiver: Receiver) -> None:
        """Send one request, its head and body in `parts`, and push the answer at `receiver`."""
        assert self._transport is not None
        assert self._receiver is None
        self._receiver = receiver
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)

    # The pod's side of an exchange. Each names its receiver, since the connection may serve another one already.

    def pause(self, receiver: Receiver) -> None:
        """Stop reading from the pod: the client is slower than it."""
        if self._receiver is receiver and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self, receiver: Receiver) -> None:
        """Read on."""
        if self._receiver is receiver and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def release(self, receiver: Receiver) -> bool:
        """The receiver has what it wanted. Whether the answer's end, which makes it free, is still to come."""
        if self._receiver is not receiver:
            return False
        self.resume(receiver)
        self._receiver = _NOTHING_MORE
        return True

    def drop(self, receiver: Receiver) -> None:
        """Close at once, if the exchange still runs. vLLM aborts a generation only when its connection closes."""
        if self._receiver is receiver:
            self.abort()

    def abort(self) -> None:
        """Close at once, whatever runs."""
        self._receiver = None
        if self._transport is not None:
            self._transport.abort()

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # create_connection gives a Transport

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:
            self.abort()
            return
        self._started = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._junk = self._junk or "not HTTP"
        if self._status == 0:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._junk = "head too large"
        pieces = self._pieces
        if pieces:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            if receiver is _NOTHING_MORE:
                self._junk = "a body that goes on after its end"
            receiver.body_received(body)
        if self._junk:
            self._lose(Loss.JUNK)
        elif self._ended:
            self._complete()

    def eof_received(self) -> None:
        receiver = self._receiver
        if receiver is None:
            return
        if not self._started:
            self._lose(Loss.STALE if self._reused else Loss.CUT)
        elif self._status and b"content-length" not in self._fields and b"transfer-encoding" not in self._fields:
            self._receiver = None
            receiver.answer_ended(by_close=True)
        else:
            self._lose(Loss.CUT)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_closed(self)
        if self._receiver is not None:
            if not self._started and self._reused:
                self._lose(Loss.STALE)
            else:
                self._lose(Loss.CUT if exc is None else Loss.RESET)

    # llhttp's callbacks. `on_body` is set in __init__.

    def on_message_begin(self) -> None:
        if self._ended:
            self._junk = "bytes after the answer"

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        if self._header_count > MAX_HEADER_COUNT:
            self._junk = "too many headers"
            return
        name = name.lower()
        if self._fields.setdefault(name, value) is not value and name in _ONCE:
            self._junk = "a framing header twice"

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        fields = self._fields
        if 100 <= status < 200:
            self._interim += 1
            if status == 101 or self._interim > MAX_INTERIM_ANSWERS:
                self._junk = "interim answers"
            return
        coding = fields.get(b"transfer-encoding")
        length = fields.get(b"content-length")
        if (
            not 200 <= status < 600
            or (coding is not None and (length is not None or coding.strip().lower() != b"chunked"))
            or (length is not None and not (length.isdigit() and len(length) < 16))
        ):
            self._junk = "framing"
            return
        self._status = status
        if self._receiver is not None:
            self._receiver.head_received(AnswerHead(status, fields, int(length) if length is not None else None))

    def on_message_complete(self) -> None:
        if self._status == 0:
            # The end of an interim answer: the answer itself is still to come.
            self._fields = {}
            self._header_count = 0
            return
        self._ended = True
        self._keep_alive = self._parser.should_keep_alive()

    def _complete(self) -> None:
        receiver, self._receiver = self._receiver, None
        transport = self._transport
        if self._keep_alive and transport is not None and transport.get_write_buffer_size() == 0:
            self._reused = True
            self._begin()
            self._on_idle(self)
        else:
            self.abort()
        if receiver is not None:
            receiver.answer_ended(by_close=False)

    def _lose(self, loss: Loss) -> None:
        receiver, self._receiver = self._receiver, None
        self.abort()
        if receiver is not None:
            receiver.answer_lost(loss)


_ONCE = frozenset((b"content-length", b"transfer-encoding", b"content-type", b"content-encoding"))


class _NothingMore:
    """Takes the end of an answer whose receiver has gone; an end that does not come is the pool's sweep's matter."""

    def head_received(self, head: AnswerHead) -> None: ...
    def body_received(self, data: bytes) -> None: ...
    def answer_ended(self, by_close: bool) -> None: ...
    def answer_lost(self, loss: Loss) -> None: ...


_NOTHING_MORE: Receiver = _NothingMore()
