"""The pipeline as an ASGI application, for other servers and for tests.

ASGI's `send` is awaited and knows no abort, so this side owns a bounded buffer and one pump task per answer. What
ASGI cannot express: an answer that must not end cleanly ends by an exception, which servers turn into a closed
connection; and bounds on a head are the server's.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gateway.core.clock import Clock
from gateway.core.errors import PoolgateError
from gateway.pipeline.body_budget import BodyBudget, Share
from gateway.pipeline.exchange import Head, Headers, Source
from gateway.pipeline.reception import Reception, Visit, too_large
from gateway.pipeline.serve import Pipeline

HIGH_WATER_BYTES = 65_536

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class AnswerAborted(Exception):
    """The answer was cut on purpose: the server must close the connection."""


class InferenceApp:
    """`app(scope, receive, send)` for the public routes."""

    def __init__(self, pipeline: Pipeline, reception: Reception, clock: Clock, bodies: BodyBudget) -> None:
        self._pipeline = pipeline
        self._reception = reception
        self._clock = clock
        self._bodies = bodies

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Serve one HTTP request; other scopes (lifespan, websocket) are refused as the specification says."""
        if scope["type"] != "http":
            raise NotImplementedError(f"scope {scope['type']}")
        fields: dict[bytes, bytes] = {}
        repeated = set()
        for name, value in scope["headers"]:
            if fields.setdefault(name, value) is not value:
                repeated.add(name)
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        now = self._clock.monotonic()
        head = Head(scope["method"].encode("ascii"), target, fields, frozenset(repeated), now, _Connection(scope))
        visit = self._reception.receive(head)
        share = Share(self._bodies)
        exchange = AsgiExchange(visit, share)
        error: PoolgateError | None = visit.error
        body = b""
        if error is None:
            try:
                body = await _whole_body(visit, share, receive)
            except PoolgateError as refusal:
                error = refusal
            except asyncio.IncompleteReadError:
                exchange.client_gone = True
        pump = asyncio.create_task(exchange.pump(send))
        try:
            if error is not None:
                self._pipeline.refuse(visit, exchange, error)
            else:
                await self._serve(visit, body, exchange, receive)
            if not exchange.client_gone:
                await pump
        finally:
            share.release()
            pump.cancel()

    async def _serve(self, visit: Visit, body: bytes, exchange: "AsgiExchange", receive: _Receive) -> None:
        """Serve while watching for the client to leave."""
        visit.trail.received_at = self._clock.monotonic()
        serving = asyncio.create_task(self._pipeline.serve(visit, body, exchange))
        leaving = asyncio.create_task(_disconnect(receive))
        try:
            await asyncio.wait((serving, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                exchange.client_gone = True
                serving.cancel()
            await serving
        finally:
            leaving.cancel()
            serving.cancel()


class _Connection:
    """What the server says of the connection."""

    def __init__(self, scope: _Message) -> None:
        self._scope = scope

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._scope.get("client", default) if name == "peername" else default


async def _whole_body(visit: Visit, share: Share, receive: _Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.IncompleteReadError(b"", None)
        part = message.get("body", b"")
        size += len(part)
        if size > visit.max_body_bytes:
            raise too_large(visit)
        share.grow(len(part))
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _disconnect(receive: _Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class AsgiExchange:
    """One answer through ASGI's `send`."""

    def __init__(self, visit: Visit, share: Share) -> None:
        self._visit = visit
        self._share = share
        self._waiting: list[_Message] = []
        self._waiting_bytes = 0
        self._paused = False
        self._wake = asyncio.Event()
        self._over = False
        self._aborted = False
        self.client_gone = False
        self.write_chunk: Callable[[bytes], None] | None = None
        self.source: Source | None = None

    @property
    def paused(self) -> bool:
        return self._paused

    def start(self, status: int, content_type: bytes, length: int | None, headers: Headers = ()) -> None:
        # The body is let go of when its answer begins.
        self._share.release()
        lines = [
            (b"content-type", content_type),
            (b"x-request-id", self._visit.trail.request_id.encode("ascii")),
            (b"x-content-type-options", b"nosniff"),
            *headers,
            *_pairs(self._visit.limit_lines),
            *_pairs(self._visit.origin_lines),
        ]
        if status == 204:
            lines.remove((b"content-type", content_type))
        elif length is not None:
            lines.append((b"content-length", b"%d" % length))
        self._put({"type": "http.response.start", "status": status, "headers": lines})

    def whole(self, content_type: bytes, body: bytes, headers: Headers = ()) -> None:
        self.start(200, content_type, len(body), headers)
        self.finish(body)

    def write(self, data: bytes) -> None:
        if self._over or not data:
            return
        self._put({"type": "http.response.body", "body": data, "more_body": True})
        self._waiting_bytes += len(data)
        if self._waiting_bytes > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            if self.source is not None:
                self.source.pause()

    def finish(self, data: bytes = b"") -> None:
        if not self._over:
            self._over = True
            self._put({"type": "http.response.body", "body": data, "more_body": False})

    def abort(self) -> None:
        self._over = self._aborted = True
        self._wake.set()

    def _put(self, message: _Message) -> None:
        self._waiting.append(message)
        self._wake.set()

    async def pump(self, send: _Send) -> None:
        """Send what is put, in order, until the answer's end.

        Raises `AnswerAborted` when the answer was cut on purpose.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            messages, self._waiting = self._waiting, []
            self._waiting_bytes = 0
            for message in messages:
                await send(message)
            if self._aborted:
                raise AnswerAborted
            if self._paused and not self._waiting:
                self._paused = False
                if self.source is not None:
                    self.source.resume()
            if self._over and not self._waiting:
                return


def _pairs(lines: bytes) -> list[tuple[bytes, bytes]]:
    """Header lines, taken apart."""
    told = (line.partition(b": ") for line in lines.split(b"\r\n") if line)
    return [(name, value) for name, _, value in told]
