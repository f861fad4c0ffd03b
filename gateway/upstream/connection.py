"""An HTTP/1.1 client connection on asyncio.Protocol and llhttp (through httptools).

One exchange at a time. The answer is pushed at a `Receiver`: head, pieces of body, end or loss; whatever one
read of the socket completes arrives as one piece. A connection may be used again only after a complete exchange:
the request was written whole, the answer ended by its own framing, the pod keeps the connection, nothing followed.
Bytes or an end of file on an idle connection close it.

A pod is suspected of everything. llhttp runs in its strict mode; what it lets through and `_is_proper` doesn't (RFC
9112 sections 2.3, 6.1 and 6.3): another protocol or version, a status outside HTTP, 101, more than 16 interim answers,
both Content-Length and Transfer-Encoding, a transfer coding other than one `chunked`, any in HTTP/1.0, a head without
measure. Junk ends the parsing on the spot: nothing behind it is taken for an answer, or for a piece of one. An answer
that came in one read, whole, with the bytes of a head that passed all this before, is not parsed again (see `known`).
"""

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import ClassVar, NamedTuple, Protocol

import httptools

from gateway.upstream.known import Shape, body_within, shape_of
from gateway.upstream.passage import LARGEST_PASSED, SIZE_LINES, Passage, is_one_chunk

LARGE_BODY_BYTES = 16384
_WITHOUT_TRANSPORT: Callable[[], bool] = True.__bool__
"""Whether a connection is closing that is not open."""

_QUICK_ACKNOWLEDGEMENTS: int | None = getattr(socket, "TCP_QUICKACK", None)
"""Linux alone has it."""
_USUAL_OPENING = b"HTTP/1.1 "
_ONCE = (b"content-encoding", b"content-length", b"content-type", b"retry-after", b"transfer-encoding")
"""What has one meaning or none."""


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

    @property
    def is_encoded(self) -> bool:
        """Whether the body is compressed, or whatever else a content coding may be."""
        coding = self.fields.get(b"content-encoding")
        return coding is not None and coding.strip().lower() != b"identity"


class Receiver(Protocol):
    """Who takes an answer. Called from the socket's callbacks: none of these may wait."""

    __slots__ = ()

    def whole_received(self, content_type: bytes, body: bytes) -> bool:
        """A whole answer at once: a 200, not encoded, of this media type. False, and nothing done: it is to be told in
        its parts."""
        return False

    def head_received(self, head: AnswerHead) -> None: ...
    def body_received(self, data: bytes) -> None: ...
    def answer_ended(self, by_close: bool) -> None:
        """The answer is whole by its framing; `by_close`: it had none, and the pod closed."""
        ...

    def answer_lost(self, loss: Loss) -> None: ...


class NotOneAnswer(Exception):
    """What came is not HTTP that means one thing. Raised in llhttp's callbacks, which stops it."""


_KnownHead = tuple[Shape, bytes, dict[bytes, bytes]]
"""The head of a 200 but for its length: its shape, its media type, its fields."""


class PodConnection(asyncio.Protocol):
    """See the module's text. `on_idle` and `on_closed` are the pool's."""

    max_interim_answers: ClassVar[int] = 16
    max_head_bytes: ClassVar[int] = 65_536
    """Of all of an answer's heads; and of what may come between two pieces of body: chunk extensions, trailers."""
    max_header_lines: ClassVar[int] = 128

    __slots__ = (
        "_bare_bytes",
        "_by_close",
        "_head",
        "_head_bytes",
        "_header_bytes",
        "_headers",
        "_interim",
        "_junk",
        "_keep_alive",
        "_known",
        "_on_closed",
        "_on_idle",
        "_over",
        "_parser",
        "_passage",
        "_paused",
        "_pieces",
        "_receiver",
        "_reused",
        "_started",
        "_status",
        "_transport",
        "_usual",
        "idle_since",
        "is_closing",
        "on_body",
    )

    def __init__(
        self, on_idle: "Callable[[PodConnection], None]", on_closed: "Callable[[PodConnection], None]"
    ) -> None:
        self._on_idle = on_idle
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self.is_closing = _WITHOUT_TRANSPORT
        """The transport's own answer: it costs no Python frame."""
        self._receiver: Receiver | None = None
        self._pieces: list[bytes] = []
        self._headers: list[tuple[bytes, bytes]] = []
        # llhttp calls this for each piece of body; the list's own method costs no Python frame.
        self.on_body: Callable[[bytes], None] = self._pieces.append
        self._reused = False
        self._paused = False
        self.idle_since = 0.0
        self._known: _KnownHead | None = None
        """The head of the last answer that came in one read."""
        self._begin()

    def _begin(self) -> None:
        self._status = 0
        self._by_close = False
        self._head_bytes = 0
        """Of the reads up to the head's end, whatever else they brought."""
        self._header_bytes = 0
        self._bare_bytes = 0
        """Since the last piece of body."""
        self._usual = True
        """It begins as nearly every answer does."""
        self._interim = 0
        self._started = False
        self._over = False
        self._keep_alive = False
        self._junk = False
        self._head: AnswerHead | None = None
        """Of an answer that says its length."""
        self._passage: Passage | None = None
        """While it is there, the next read begins with a chunk of the answer."""

    # What the pool and the pipeline call.

    @property
    def usable(self) -> bool:
        """Whether a request may be sent now."""
        return self._receiver is None and not self.is_closing()

    def send(self, head: bytes, body: Sequence[bytes | memoryview], receiver: Receiver) -> None:
        """Send one request and push the answer at `receiver`."""
        transport = self._transport
        assert transport is not None and self._receiver is None  # noqa: PT018
        self._receiver = receiver
        if len(body) == 1:
            only = body[0]
            if len(only) <= LARGE_BODY_BYTES:
                transport.write(head + only)
            else:
                transport.writelines((head, only))
        elif any(len(part) > LARGE_BODY_BYTES for part in body):
            transport.writelines((head, *body))
        else:
            # Joining is cheaper than handing over each part, up to a size.
            transport.write(b"".join((head, *body)))

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

    def offer_passage(self, receiver: Receiver, passage: Passage) -> None:
        """What is plain need not be read. Called while the receiver takes a piece of body."""
        if self._receiver is receiver:
            self._passage = passage

    def acknowledge_seldom(self) -> None:
        """Many small pieces are to come: have the kernel acknowledge every other one, not each as it is read.

        A packet less for each two tokens, which is a tenth of what they cost. The kernel goes back to its old ways if
        the next piece is late, so a pod that waits for acknowledgements (Nagle's algorithm) is held up once.
        """
        if _QUICK_ACKNOWLEDGEMENTS is not None and self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.IPPROTO_TCP, _QUICK_ACKNOWLEDGEMENTS, 0)

    def release(self, receiver: Receiver) -> bool:
        """The receiver has what it wanted. Whether the answer's end, which makes it free, is still to come."""
        if self._receiver is not receiver:
            return False
        self.resume(receiver)
        self._passage = None
        self._receiver = _NothingMore(self)
        return True

    def drop(self, receiver: Receiver) -> None:
        """Close at once, if the exchange still runs. vLLM aborts a generation only when its connection closes."""
        if self._receiver is receiver:
            self.abort()

    def abort(self) -> None:
        """Close at once, whatever runs."""
        self._receiver = self._passage = None
        if self._transport is not None:
            self._transport.abort()

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # create_connection gives a Transport
        self.is_closing = transport.is_closing
        # Not before: it and we hold each other, and a connection that does not come about is never lost.
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        passage = self._passage
        if passage is not None:
            # See `passage`. In this frame, and by local names: here is where the tokens come by.
            if (size := len(data)) <= LARGEST_PASSED:
                line, opening, is_rest = SIZE_LINES[size], passage.opening, passage.is_rest
                if (
                    data.startswith(line)
                    and data.startswith(opening, len(line))
                    and is_rest(data, len(line) + len(opening)) is not None
                ):
                    passage.reader.content_events += 1
                    write = passage.outlet.write_chunk
                    write(data)  # type: ignore[misc]  # None only before the first chunk
                    return
            self._passage = None
        receiver = self._receiver
        if receiver is None:
            self.abort()
            return
        begins = False
        if not self._status:
            begins = not self._head_bytes
            if begins and self._known is not None and self._came_again(receiver, data, self._known):
                return
            if begins and not data.startswith(_USUAL_OPENING):
                # llhttp reads RTSP as well, and skips blank lines. It sees to the rest of the name.
                if data[0] != _USUAL_OPENING[0]:
                    self._lose(Loss.JUNK)
                    return
                self._usual = False
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # What came is no answer: the exchange ends when the read at hand is through.
            self._junk = self._over = True
        pieces = self._pieces
        if pieces:
            self._bare_bytes = 0
            body = pieces.pop()
            if pieces:
                pieces.append(body)
                body = b"".join(pieces)
                pieces.clear()
            receiver.body_received(body)
            if self._passage is not None and not is_one_chunk(data, body):
                self._passage = None
        else:
            # A head, a chunk's extensions, trailers: of none may there be much.
            self._bare_bytes += len(data)
            if self._bare_bytes > self.max_head_bytes:
                self._junk = self._over = True
        if self._over:
            if self._junk:
                self._lose(Loss.JUNK)
            else:
                if begins and self._keep_alive and self._head is not None and self._usual:
                    shape, head = shape_of(data), self._head
                    fields = {name: value for name, value in head.fields.items() if name != b"content-length"}
                    self._known = None if shape is None or head.is_encoded else (shape, head.content_type, fields)
                self._complete()

    def _came_again(self, receiver: Receiver, data: bytes, known: _KnownHead) -> bool:
        """Take a whole answer whose head is known."""
        shape, content_type, fields = known
        transport = self._transport
        body = body_within(data, shape)
        if not body or self._paused or transport is None:
            return False
        is_told = receiver.whole_received(content_type, body)
        if not is_told:
            receiver.head_received(AnswerHead(200, fields, len(body), content_type))
            receiver.body_received(body)
        dropped, self._receiver = self._receiver is not receiver, None
        if dropped or transport.get_write_buffer_size():
            self.abort()
        else:
            self._reused = True
            self._on_idle(self)
        if not is_told and not dropped:
            receiver.answer_ended(by_close=False)
        return True

    def eof_received(self) -> None:
        receiver = self._receiver
        if receiver is None:
            return
        if not self._started:
            self._lose(Loss.STALE if self._reused else Loss.CUT)
        elif self._status and self._by_close:
            self._receiver = self._passage = None
            receiver.answer_ended(by_close=True)
        else:
            self._lose(Loss.CUT)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.is_closing = _WITHOUT_TRANSPORT
        # A cycle otherwise, that only the collector would end, for each connection there was.
        del self._parser
        self._on_closed(self)
        if self._receiver is not None:
            if not self._started and self._reused:
                self._lose(Loss.STALE)
            else:
                self._lose(Loss.CUT if exc is None else Loss.RESET)

    # llhttp's callbacks; one more is set in __init__.

    def on_message_begin(self) -> None:
        self._started = True
        if self._over:
            raise NotOneAnswer("bytes behind the answer: whatever they are, nobody asked for them")

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come here as well, and are not kept: they would stand in the next answer's head.
        if not self._status:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, []
        fields = dict(headers)
        coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
        if (
            status < 200
            or status >= 600
            or (coding is not None and (length is not None or coding != b"chunked"))
            or len(fields) != len(headers)
            or len(headers) > self.max_header_lines
            or self._head_bytes > self.max_head_bytes
            or not self._usual
        ) and not self._is_proper(status, headers, fields):
            raise NotOneAnswer("an answer that may mean several things, or none")
        if status < 200:
            # Another head follows: that of the answer, or of one more of these.
            self._usual = False
            return
        self._status = status
        self._by_close = coding is None and length is None
        if self._receiver is not None:
            # llhttp has seen to it that a length is a number.
            media = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
            head = AnswerHead(status, fields, int(length) if length is not None else None, media)
            self._head = head if status == 200 and length is not None else None
            self._receiver.head_received(head)

    def _is_proper(self, status: int, headers: Sequence[tuple[bytes, bytes]], fields: Mapping[bytes, bytes]) -> bool:
        """Whether a head that llhttp let through, and that is not quite usual, means one thing."""
        if not 100 <= status < 600 or status == 101:
            return False
        if status < 200:
            self._interim += 1
            if self._interim > self.max_interim_answers:
                return False
            # It has no body (RFC 9110, section 15.2): the one llhttp would read would come before the answer's head.
            if b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0":
                return False
        if len(headers) > self.max_header_lines:
            return False
        self._header_bytes += sum(len(name) + len(value) + 4 for name, value in headers)
        if self._header_bytes > self.max_head_bytes:
            return False
        names = [name for name, _ in headers]
        if any(names.count(name) > 1 for name in _ONCE):
            return False
        version = self._parser.get_http_version()
        coding = fields.get(b"transfer-encoding")
        if coding is None:
            return version in ("1.1", "1.0")
        return version == "1.1" and coding.strip().lower() == b"chunked" and b"content-length" not in fields

    def on_message_complete(self) -> None:
        if self._status == 0:
            # The end of an interim answer: the answer itself is still to come.
            return
        self._over = True
        self._keep_alive = self._parser.should_keep_alive()

    def _complete(self) -> None:
        receiver, self._receiver = self._receiver, None
        transport = self._transport
        # Without a receiver it was dropped by the very read that brought the end.
        if (
            receiver is not None
            and self._keep_alive
            and transport is not None
            and transport.get_write_buffer_size() == 0
        ):
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


class _NothingMore(Receiver):
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
