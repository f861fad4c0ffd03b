"""One client's connection to the public port: an asyncio.Protocol on llhttp.

uvicorn keeps the sockets; from the first byte on a connection is ours, and nothing is handed over, so none ever leaves
these bounds. Bounds and deadlines hold before a request exists: on how many connections there are, on the head's size,
count and time, on the URL, on the body's size, time and rate, and on all bodies together. llhttp runs strict, which
refuses most of what smuggling is made of; what it lets through is refused by `heads`. A head with the bytes of one that
passed all this before is not parsed again (see `known`), and its body is measured by its length alone.

Pipelining: the first request is answered, then the connection closes (RFC 9112 section 9.3.2 allows it). What comes
behind it is thrown away, up to a bound; from there on the socket is not read until the answer has ended, which costs
nothing however much is sent. A client that leaves is then no longer seen by an end of what it sends, so the kernel is
asked for the connection's state now and then.
A half-closed connection counts as closed: the client has gone (vLLM's own server does the same).

No connection ends unannounced: one that closes behind an answer has said so in that answer's head. An answer whose
head went out before the drain began leaves its connection open, and the next one there says it.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

import httptools

from gateway.core.caller import ANONYMOUS
from gateway.core.errors import InternalError, InvalidRequest, PoolgateError, RequestTimeout
from gateway.edge.exchange import EdgeExchange, Framing, to_nobody
from gateway.edge.heads import (
    HEAD_TOO_LARGE,
    NO_NAMES,
    NOT_HTTP,
    UPGRADE,
    URL_TOO_LONG,
    ill_framed,
    repeated_names,
    too_much,
)
from gateway.edge.known import KnownHead, known_head, said_again
from gateway.pipeline.body_budget import Account
from gateway.pipeline.errand import Errand
from gateway.pipeline.exchange import Head
from gateway.pipeline.forward import draining
from gateway.pipeline.proxies import peer_of
from gateway.pipeline.reception import Visit, too_large

if TYPE_CHECKING:
    # It makes these, and each knows it.
    from gateway.edge.port import Edge

_MANY_PIECES = 64
_LEFT = (7, 8)
"""TCP_CLOSE and TCP_CLOSE_WAIT in Linux's tcp_states.h: reset, and ended by the peer."""

_MOST_UNLIKE = 4
"""A client that says something new so often in a row has none of its heads kept any more."""

log = logging.getLogger("poolgate.edge")


class ClientConnection(asyncio.Protocol):
    """One client's connection: a parser, at most one request at a time, and one deadline."""

    __slots__ = (
        "_account",
        "_awaited",
        "_behind_bytes",
        "_body",
        "_body_left",
        "_body_since",
        "_chunked",
        "_deadline",
        "_edge",
        "_errand",
        "_exchange",
        "_head_bytes",
        "_headers",
        "_held_bytes",
        "_in_head",
        "_keep_alive",
        "_known",
        "_lingering",
        "_loop",
        "_old_http",
        "_parser",
        "_pieces",
        "_raw_bytes",
        "_read",
        "_refusal",
        "_stalled_since",
        "_transport",
        "_unlike",
        "_url",
        "_visit",
        "_write",
        "due",
        "network",
        "on_body",
        "on_url",
    )

    def __init__(self, edge: "Edge", loop: asyncio.AbstractEventLoop) -> None:
        self._edge = edge
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._write: Callable[[bytes], None] = to_nobody
        self._exchange: EdgeExchange | None = None
        self._errand: Errand | None = None
        self._lingering = False
        self._stalled_since: float | None = None
        self._deadline = edge.now + edge.bounds.head_seconds
        self.due = self._deadline
        """When to judge it next; too early is no harm."""
        self.network = ""
        """Where it comes from, if it is counted for that."""
        self._in_head = True
        self._head_bytes = 0
        self._raw_bytes = 0
        """Bytes of the message behind its head."""
        self._behind_bytes = 0
        """Bytes behind the message, read while it was served."""
        self._headers: list[tuple[bytes, bytes]] = []
        self._known: KnownHead | None = None
        """The head that came last, if it may come again."""
        self._awaited: KnownHead | None = None
        """The same, while nothing of the next request has come."""
        self._unlike = 0
        """How many came in a row that were not alike."""
        self._read = b""
        """What was read last, if a head begins there."""
        self._visit: Visit | None = None
        self._refusal: PoolgateError | None = None
        self._keep_alive = False
        self._old_http = False
        self._chunked = False
        self._parser: httptools.HttpRequestParser | None = None
        """There while it has read something, or soon will."""
        self._pieces: list[bytes] = []
        """Of the body, as they came; joined when it is whole."""
        self._body: bytearray | None = None
        """What came before them, of one that comes in very many."""
        self._body_left = 0
        """What is still to come of the body behind a head that was known."""
        self._body_since = 0.0
        self._held_bytes = 0
        """What its body has of the budget, from its first byte until the answer begins."""
        self._account = edge.bodies.anybody
        """Whose it is; without authentication all are one."""
        self._url: list[bytes] = []
        # llhttp calls these for each piece; a method of the container's own costs no Python frame.
        self.on_body = self._pieces.append
        self.on_url = self._url.append

    # asyncio's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a server gives a Transport
        self._write = transport.write  # type: ignore[attr-defined]
        transport.set_write_buffer_limits(high=self._edge.bounds.write_buffer_bytes)  # type: ignore[attr-defined]
        self._edge.enter(self, peer_of(transport))

    def data_received(self, data: bytes) -> None:
        # First what nearly every request is: a head that is known, with the whole of its body and nothing more. llhttp
        # does not see it.
        last = self._awaited
        if last is None:
            self._read_on(data)
            return
        self._awaited = None
        edge = self._edge
        said = said_again(edge.known, last, data)
        if said is None:
            self._unlike += 1
            if self._unlike >= _MOST_UNLIKE:
                self._known = None
            self._read_on(data)
            return
        self._unlike = 0
        regular, account, length, body_at = said
        visit = edge.reception.receive_again(regular, edge.monotonic())
        body = data[body_at:]
        if (
            visit is None
            or len(body) != length
            or length > visit.max_body_bytes
            or not edge.bodies.take(length, account)
        ):
            self._take_known(data, visit, account, length, body)
            return
        self._account = account
        self._held_bytes = length
        exchange = self._exchange = EdgeExchange(self, self._write, visit)
        errand = self._errand = Errand(edge.pipeline.serve(visit, body, exchange), self._loop)
        errand.go_on()

    def _take_known(self, data: bytes, visit: Visit | None, account: Account, length: int, came: bytes) -> None:
        """Go on with a head that was known, whose body has not come whole, or finds no room. Where more came than the
        body, or what was decided does not hold any more, all of it is read."""
        edge = self._edge
        if visit is None or len(came) > length or length > min(visit.max_body_bytes, edge.bodies.left):
            self._read_on(data)
            return
        self._in_head = False
        self._head_bytes = len(data)
        self._account = account
        self._visit = visit
        self._body_left = length
        self.due = self._body_since = edge.now
        self._deadline = edge.now + edge.bounds.body_seconds
        self._take_body(came)

    def _read_on(self, data: bytes) -> None:
        """Read a head the long way, or what it said will come."""
        if self._lingering:
            return
        if self._exchange is not None:
            self._came_behind(len(data))
            return
        edge = self._edge
        if self._in_head:
            if not self._head_bytes:
                if self._keep_alive:
                    # A later request's time begins with its first byte; a connection's first has run since it is there.
                    self.due = self._deadline = edge.now + edge.bounds.head_seconds
                self._read = data
            else:
                self._read = b""
            self._head_bytes += len(data)
        else:
            self._raw_bytes += len(data)
            if self._body_left:
                self._take_body(data)
                return
        parser = self._parser
        if parser is None:
            parser = self._parser = self.new_parser()
        try:
            parser.feed_data(data)
        except httptools.HttpParserCallbackError as failed:
            self._refusal = self._refusal or self._our_own(failed.__context__)
        except httptools.HttpParserError:
            self._refusal = self._refusal or NOT_HTTP
        except httptools.HttpParserUpgrade:
            self._refusal = self._refusal or UPGRADE
        if self._exchange is not None:
            if self._known is not None:
                # The next request is likely not to need it, and an answer may take long.
                self._parser = None
            if self._refusal is not None or self._url:
                # What came behind the request is the beginning of another one, or of nothing good.
                self._came_behind(1)
            if self._errand is not None:
                # Not in llhttp's callback: it may be answered at once.
                self._errand.go_on()
            return
        if self._refusal is None:
            if not self._in_head:
                self._refusal = self.improper_body(self._visit)
            elif self._head_bytes > edge.bounds.max_head_bytes:
                self._refusal = HEAD_TOO_LARGE
            elif self._url and len(self._url[0]) > edge.bounds.max_url_bytes:
                self._refusal = URL_TOO_LONG
        if self._refusal is not None:
            self.refuse(self._refusal)

    def new_parser(self) -> httptools.HttpRequestParser:
        """A strict one. Not before there is something to read: it and we hold each other, and a handshake of TLS that
        comes to nothing is never lost."""
        return httptools.HttpRequestParser(self)

    def _take_body(self, data: bytes) -> None:
        """A piece of the body behind a head that was known."""
        behind = len(data) - self._body_left
        if data:
            self._pieces.append(data if behind <= 0 else data[:-behind])
        self._body_left = max(0, -behind)
        self._refusal = self.improper_body(self._visit)
        if self._refusal is None and not self._body_left:
            self.on_message_complete()
        if self._refusal is not None:
            self._body_left = 0
            self.refuse(self._refusal)
        elif self._errand is not None:
            if behind > 0 and data[-behind:].strip(b"\r\n"):
                # llhttp skips line ends before a request, as RFC 9112 has it (section 2.2).
                self._came_behind(behind)
            self._errand.go_on()

    def _our_own(self, failed: BaseException | None) -> PoolgateError:
        """What is said when reading a request failed through no fault of its own."""
        if isinstance(failed, MemoryError):
            return self._edge.bodies.refusal()
        log.error("reading a request failed inside the gateway", exc_info=failed)
        return InternalError("the gateway failed; the request may be sent again")

    def _came_behind(self, count: int) -> None:
        """The next request before this one's answer: it will not be answered here, and little of it is even read."""
        self._keep_alive = False
        before, bound = self._behind_bytes, self._edge.bounds.max_bytes_behind
        self._behind_bytes += count
        if before <= bound < self._behind_bytes and self._transport is not None:
            self._transport.pause_reading()
            self.due = self._edge.now

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._edge.room.leave(self)
        self._transport = None
        # Cycles otherwise, that only the collector would end, for each connection there was.
        self._write = to_nobody
        self._parser = None
        self._let_go_of_body()
        if self._visit is not None:
            self._edge.pipeline.left(self._visit)
        exchange, errand = self._exchange, self._errand
        self._exchange = self._errand = None
        if exchange is not None:
            exchange.lost()
        if errand is not None:
            errand.cancel()

    def pause_writing(self) -> None:
        self._stalled_since = self._edge.now
        self.due = min(self.due, self._edge.now + self._edge.bounds.stalled_seconds)
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
        assert parser is not None  # noqa: S101  # it calls this
        fields = dict(headers)
        version = parser.get_http_version()
        repeated = NO_NAMES
        if len(fields) != len(headers):
            # The first of each name counts, as it does under ASGI.
            repeated, fields = repeated_names(headers), dict(reversed(headers))
        if (
            version != "1.1"
            or repeated
            or fields.get(b"host") not in edge.hosts
            or b"transfer-encoding" in fields
            or self._head_bytes > edge.bounds.max_url_bytes
            or len(headers) > edge.bounds.max_header_count
            or parser.should_upgrade()
        ):
            self._refusal = self.improper_head(url, headers, version, fields, repeated)
            if self._refusal is not None:
                self._visit = edge.reception.stranger(edge.monotonic(), self._refusal, fields)
                return
        self._old_http = version == "1.0"
        self._keep_alive = parser.should_keep_alive() and not self._old_http
        head = Head(parser.get_method(), url, fields, repeated, edge.monotonic(), self._transport)
        visit = self._visit = edge.reception.receive(head)
        self._refusal = visit.error
        bodies = edge.bodies
        self._account = bodies.anybody if visit.tenant is ANONYMOUS else bodies.account_of(visit.tenant.key_id)
        self.due = self._body_since = edge.now
        self._deadline = edge.now + edge.bounds.body_seconds
        if bodies.left < visit.max_body_bytes and self._refusal is None:
            self._refusal = self.no_room_for(int(fields.get(b"content-length", 0)))
        if self._read and self._keep_alive and self._unlike < _MOST_UNLIKE:
            regular = edge.reception.regular_of(visit)
            known = None if regular is None else known_head(self._read, regular, self._account)
            if known is not None:
                self._known = edge.remember_head(known)
        self._read = b""
        if b"expect" in fields and self._refusal is None and not self._old_http and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_message_complete(self) -> None:
        visit = self._visit
        if self._refusal is not None or self._exchange is not None or visit is None:
            return
        edge = self._edge
        size = self._body_bytes()
        if size > visit.max_body_bytes or self._chunked:
            self._refusal = self.improper_body(visit)
            if self._refusal is not None:
                return
        body = self._taken_body()
        if not edge.bodies.take(len(body) - self._held_bytes, self._account, self._held_bytes):
            self._refusal = edge.bodies.refusal()
            return
        self._held_bytes = len(body)
        if self._raw_bytes:
            # The body came later than the head: the clock starts when the request is whole.
            visit.trail.received_at = edge.monotonic()
        exchange = self._answer(visit)
        self._errand = Errand(edge.pipeline.serve(visit, body, exchange), self._loop)
        # Last: what fails before this is answered as what came in part.
        self._exchange, self._visit = exchange, None

    def _body_bytes(self) -> int:
        """How much of the body there is."""
        pieces = self._pieces
        if len(pieces) == 1 and self._body is None:
            return len(pieces[0])
        if len(pieces) > _MANY_PIECES:
            # A body in pieces of a byte each would else take many times its size.
            self._body = bytearray() if self._body is None else self._body
            self._body += b"".join(pieces)
            pieces.clear()
        return sum(map(len, pieces)) + (0 if self._body is None else len(self._body))

    def _taken_body(self) -> bytes:
        """The body, taken from here. Nearly every one came in one piece, which is not copied."""
        pieces = self._pieces
        if self._body is not None:
            pieces.insert(0, bytes(self._body))
            self._body = None
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return body

    # What is wrong with what came; each may be asked for more than once.

    def improper_head(
        self,
        url: bytes,
        headers: list[tuple[bytes, bytes]],
        version: str,
        fields: dict[bytes, bytes],
        repeated: frozenset[bytes],
    ) -> PoolgateError | None:
        """What is wrong with a head that llhttp let through."""
        edge = self._edge
        error = too_much(url, headers, edge.bounds) or ill_framed(version, fields, repeated)
        if error is not None:
            return error
        if self._parser is not None and self._parser.should_upgrade():
            return UPGRADE
        edge.remember_host(fields.get(b"host"))
        if b"transfer-encoding" in fields:
            self._chunked = True
            # What came with the head's end is a part of the body's framing.
            self._raw_bytes = self._head_bytes - sum(len(name) + len(value) for name, value in headers)
        return None

    def improper_body(self, visit: Visit | None) -> PoolgateError | None:
        """What is wrong with a body, of which there is this much so far."""
        if visit is None:
            return None
        size, bounds = self._body_bytes(), self._edge.bounds
        # Chunk extensions and trailers are no body, and llhttp sets them no bound.
        if size > visit.max_body_bytes or self._raw_bytes > visit.max_body_bytes * 9 // 8 + bounds.max_head_bytes:
            return too_large(visit)
        if self._chunked and self._raw_bytes > 9 * size + bounds.max_head_bytes:
            return InvalidRequest("the chunks of the body say more of themselves than they bring")
        if not self._edge.bodies.take(size - self._held_bytes, self._account, self._held_bytes):
            return self._edge.bodies.refusal()
        self._held_bytes = size
        return None

    def no_room_for(self, length: int) -> PoolgateError | None:
        """Whether all bodies together would be too much with another one of this length."""
        bodies = self._edge.bodies
        return bodies.refusal() if length > bodies.left else None

    def too_slow(self, now: float) -> PoolgateError | None:
        """Whether a request that has come in part may take no longer. Says when to ask again, if it may."""
        bounds = self._edge.bounds
        self.due = self._deadline
        if not self._in_head and bounds.min_body_rate:
            paid_for = bounds.body_grace_seconds + self._body_bytes() / bounds.min_body_rate
            self.due = min(self.due, self._body_since + paid_for)
        return RequestTimeout("the request did not arrive in time") if now >= self.due else None

    # Endings.

    def refuse(self, error: PoolgateError) -> None:
        """Answer before the request was whole, then close: what is left of it is not read as a request."""
        self._refusal = error
        self._keep_alive = False
        visit, self._visit = self._visit, None
        if visit is None:
            visit = self._edge.reception.stranger(self._edge.monotonic(), error)
        exchange = self._exchange = self._answer(visit)
        self._lingering = True
        self._taken_body()
        self._edge.pipeline.refuse(visit, exchange, error)

    def _answer(self, visit: Visit) -> EdgeExchange:
        return EdgeExchange(self, self._write, visit)

    def answering(self) -> Framing:
        """An answer begins: the body is let go of, since no other pod will be asked. Says how to frame the answer."""
        edge = self._edge
        held = self._held_bytes
        if held:
            edge.bodies.give_back(held, self._account)
            self._held_bytes = 0
        if self._keep_alive and not edge.closing and not edge.short_of_memory:
            return edge.framing
        self._keep_alive = False
        return Framing(edge.framing.date_line, closes=True, chunks=not self._old_http)

    def _let_go_of_body(self) -> None:
        self._edge.bodies.give_back(self._held_bytes, self._account)
        self._held_bytes = 0

    def answered(self) -> None:
        """The answer's last byte is handed over."""
        self._exchange = self._errand = None
        edge = self._edge
        if self._keep_alive:
            self.due = self._deadline = edge.now + edge.bounds.idle_seconds
            self._awaited = self._known
            if self._stalled_since is not None:
                self.due = edge.now
            if self._head_bytes:
                self._in_head = True
                self._chunked = False
                self._head_bytes = self._raw_bytes = 0
            return
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._lingering:
            self._half_close(transport)
        elif self._behind_bytes:
            if self._behind_bytes > edge.bounds.max_bytes_behind:
                transport.resume_reading()
            self._half_close(transport)
        else:
            self._lingering = True
            self.due = self._deadline = edge.now + edge.bounds.stalled_seconds
            transport.close()

    def _half_close(self, transport: asyncio.Transport) -> None:
        """Say that nothing more comes, and throw away what does for a while: closing with bytes unread would reset the
        connection, and the client might never see what was said before. TLS has no half of a close: there the answer's
        head alone has said it."""
        edge = self._edge
        self._lingering = True
        self._awaited = None
        unsent = transport.get_write_buffer_size() > 0
        self._deadline = edge.now + (edge.bounds.stalled_seconds if unsent else edge.bounds.linger_seconds)
        self.due = self._deadline if self._stalled_since is None else edge.now
        if transport.can_write_eof():
            transport.write_eof()

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has come, and nothing of an answer is left to send."""
        transport = self._transport
        return (
            not self._head_bytes
            and not self._behind_bytes
            and self._exchange is None
            and (transport is None or not transport.get_write_buffer_size())
        )

    @property
    def waits_since(self) -> float:
        """Since when it has waited for a request's head, or has been refused; infinite: neither.

        A head that comes in part counts as none: else two addresses, with one byte on each connection, would have all
        of the room for as long as a head may take."""
        transport, bounds = self._transport, self._edge.bounds
        if self._exchange is not None or (transport is not None and transport.get_write_buffer_size()):
            return inf
        if self._lingering:
            return self._deadline - bounds.linger_seconds
        if not self._in_head:
            return inf
        waits = self._keep_alive and not self._head_bytes
        return self._deadline - (bounds.idle_seconds if waits else bounds.head_seconds)

    @property
    def stalled(self) -> bool:
        """Whether the client reads slower than bytes come."""
        return self._stalled_since is not None

    def abort(self) -> None:
        """Close at once; what was not sent is lost."""
        if self._transport is not None:
            self._transport.abort()

    def turn_away(self) -> None:
        """Refuse a request that has come in part."""
        if self._exchange is None and not self._lingering and self._head_bytes:
            self.refuse(draining())

    def let_go(self) -> None:
        """Half-close if idle: a request that is on its way already finds an orderly end instead of a reset."""
        transport = self._transport
        if transport is None or not self.idle:
            return
        if transport.can_write_eof():
            self._half_close(transport)
        else:
            transport.close()

    def shutdown(self) -> None:
        """Close if idle; a busy connection closes with its answer."""
        self._keep_alive = False
        if self._exchange is None and self._transport is not None:
            self._transport.close()

    def judge(self, now: float) -> None:
        """End what has waited too long, and say in `due` when to look again."""
        transport, bounds = self._transport, self._edge.bounds
        if transport is None:
            self.due = inf
        elif self._stalled_since is not None and now - self._stalled_since >= bounds.stalled_seconds:
            transport.abort()
        elif self._exchange is not None:
            self.due = inf
            if self._behind_bytes > bounds.max_bytes_behind:
                self.due = now
                if _has_left(transport):
                    transport.abort()
        elif self._lingering:
            self.due = self._deadline
            if now >= self._deadline:
                self._end(transport)
        elif self._in_head and not self._head_bytes:
            self.due = self._deadline
            if now >= self._deadline:
                self.shutdown()
        elif (error := self.too_slow(now)) is not None:
            self.refuse(error)
        if self._stalled_since is not None:
            self.due = min(self.due, self._stalled_since + bounds.stalled_seconds)

    def _end(self, transport: asyncio.Transport) -> None:
        """It has lingered for long enough. TLS says goodbye, and gets as long for it once more."""
        if transport.is_closing() or transport.can_write_eof() or transport.get_write_buffer_size():
            transport.abort()
        else:
            self.due = self._deadline = self._edge.now + self._edge.bounds.linger_seconds
            transport.close()


def _has_left(transport: asyncio.Transport) -> bool:
    """Whether the client has ended or reset a connection that is not read. Known on Linux alone; elsewhere, and where a
    client leaves with more unsent than fits, it is only seen when the answer is written."""
    sock = transport.get_extra_info("socket")
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _LEFT
    except (AttributeError, OSError):
        return False
