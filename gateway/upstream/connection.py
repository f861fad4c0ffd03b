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
from enum import StrEnum
from typing import NamedTuple, Protocol

import httptools

MAX_INTERIM_ANSWERS = 16
MAX_HEAD_BYTES = 65536
LARGE_BODY_BYTES = 16384


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


class AnswerHead(NamedTuple):
    """Status and headers, names lower case, the last of each name."""

    status: int
    fields: dict[bytes, bytes]
    content_length: int | None
    content_type: bytes
    """Media type without parameters, lower case; empty when missing."""


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
        "_by_close",
        "_head_bytes",
        "_headers",
        "_interim",
        "_junk",
        "_keep_alive",
        "_on_closed",
        "_on_idle",
        "_over",
        "_parser",
        "_paused",
        "_pieces",
        "_receiver",
        "_reused",
        "_started",
        "_status",
        "_transport",
        "idle_since",
        "on_body",
        "on_header",
    )

    def __init__(
        self, on_idle: "Callable[[PodConnection], None]", on_closed: "Callable[[PodConnection], None]"
    ) -> None:
        self._on_idle = on_idle
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._pieces: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        # llhttp calls these for each piece of body and each header; the containers' own methods cost no Python frame.
        self.on_body: Callable[[bytes], None] = self._pieces.append
        self.on_header: Callable[[bytes, bytes], None] = self._headers.__setitem__
        self._parser = httptools.HttpResponseParser(self)
        self._reused = False
        self._paused = False
        self.idle_since = 0.0
        self._begin()

    def _begin(self) -> None:
        self._status = 0
        self._by_close = False
        self._head_bytes = 0
        self._interim = 0
        self._started = False
        self._over = False
        self._keep_alive = False
        self._junk = False

    # What the pool and the pipeline call.

    @property
    def usable(self) -> bool:
        """Whether a request may be sent now."""
        return self._transport is not None and self._receiver is None and not self._transport.is_closing()

    def send(self, head: bytes, body: Sequence[bytes | memoryview], receiver: Receiver) -> None:
        """Send one request and push the answer at `receiver`."""
        assert self._transport is not None
        assert self._receiver is None
        self._receiver = receiver
        if any(len(part) > LARGE_BODY_BYTES for part in body):
            self._transport.writelines((head, *body))
        else:
            # Joining is cheaper than handing over each part, up to a size.
            self._transport.write(b"".join((head, *body)))

    # The pod's side of an exchange. Each names its receiver, since the connection may serve another one already.

    def pause(self, receiver: Receiver) -> None:
        """Stop reading from the pod: the client is slower than it."""
        if self._receiver is receiver and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self, receiver: Receiver) -> None:
        """Read on."""
        if self._receiver is receiver and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def release(self, receiver: Receiver) -> bool:
        """The receiver has what it wanted. Whether the answer's end, which makes it free, is still to come."""
        if self._receiver is not receiver:
            return False
        self.resume(receiver)
        self._receiver = _NothingMore(self)
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
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._spoil()
        pieces = self._pieces
        if pieces:
            body = pieces.pop()
            if pieces:
                pieces.append(body)
                body = b"".join(pieces)
                pieces.clear()
            receiver.body_received(body)
        else:
            # The head, or trailers: of neither may there be much.
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._spoil()
        if self._over:
            if self._junk:
                self._lose(Loss.JUNK)
            else:
                self._complete()

    def eof_received(self) -> None:
        receiver = self._receiver
        if receiver is None:
            return
        if not self._started:
            self._lose(Loss.STALE if self._reused else Loss.CUT)
        elif self._status and self._by_close:
            self._receiver = None
            receiver.answer_ended(by_close=True)
        else:
            self._lose(Loss.CUT)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        # It and we hold each other: a cycle that only the collector would end, for each connection there was.
        del self._parser
        self._on_closed(self)
        if self._receiver is not None:
            if not self._started and self._reused:
                self._lose(Loss.STALE)
            else:
                self._lose(Loss.CUT if exc is None else Loss.RESET)

    # llhttp's callbacks; two more are set in __init__.

    def on_message_begin(self) -> None:
        self._started = True
        if self._over:
            # Bytes behind the answer: whatever they are, nobody asked for them.
            self._spoil()

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers = self._headers
        # Pods write their header names in lower case; a proxy before them may not.
        named = headers.copy() if b"".join(headers).islower() else {n.lower(): v for n, v in headers.items()}
        headers.clear()
        if status < 200:
            self._interim += 1
            if status == 101 or self._interim > MAX_INTERIM_ANSWERS:
                self._spoil()
            return
        coding = named.get(b"transfer-encoding")
        length = named.get(b"content-length")
        if status >= 600 or (coding is not None and (length is not None or coding.strip().lower() != b"chunked")):
            self._spoil()
            return
        self._status = status
        self._by_close = coding is None and length is None
        if self._receiver is not None:
            # llhttp has seen to it that a length is a number, and given once.
            media = named.get(b"content-type", b"").partition(b";")[0].strip().lower()
            self._receiver.head_received(AnswerHead(status, named, int(length) if length is not None else None, media))

    def on_message_complete(self) -> None:
        if self._status == 0:
            # The end of an interim answer: the answer itself is still to come.
            return
        self._over = True
        self._keep_alive = self._parser.should_keep_alive()

    def _spoil(self) -> None:
        """What came is no answer: the exchange ends when the read at hand is through."""
        self._junk = self._over = True

    def _complete(self) -> None:
        receiver, self._receiver = self._receiver, None
        transport = self._transport
        if self._keep_alive and transport is not None and transport.get_write_buffer_size() == 0:
            if self._paused:
                # By the read that brought the end: nobody would resume it any more, and the next answer never come.
                self._paused = False
                transport.resume_reading()
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


class _NothingMore:
    """Takes the end of an answer whose receiver has gone; an end that does not come is the pool's sweep's matter."""

    __slots__ = ("_connection",)

    def __init__(self, connection: PodConnection) -> None:
        self._connection = connection

    def head_received(self, head: AnswerHead) -> None: ...
    def body_received(self, data: bytes) -> None:
        """A body that goes on after its end is no answer."""
        self._connection.abort()

    def answer_ended(self, by_close: bool) -> None: ...
    def answer_lost(self, loss: Loss) -> None: ...
