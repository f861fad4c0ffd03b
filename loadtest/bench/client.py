"""The load: closed loops and streams, as cheap as Python allows, and every answer checked to be whole.

The client shares a core with the pods, so what it costs bounds what it can offer; hence raw protocols,
requests built once, and no header ever looked at. What it checks: status 200; of an answer that is not
streamed each byte; of a stream the exact shape of each event in its order (role, tokens, the last with a
finish reason, `[DONE]`), that as many tokens came as the pod says it sent, and that the HTTP message ended
properly. The first fault ends the load with `NotWhole`, for a proxy that loses bytes is not to be called
fast.
"""

import asyncio
import time
from array import array
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast

import httptools

from loadtest.bench.wire import (
    COMPLETION,
    DONE,
    EVENT_END,
    LAST_ENDS_WITH,
    NUMBER_WIDTH,
    ROLE_ENDS_WITH,
    TOKEN_ENDS_WITH,
)

_TOKEN_NUMBER = slice(-len(TOKEN_ENDS_WITH) - NUMBER_WIDTH, -len(TOKEN_ENDS_WITH))
_LAST_NUMBER = slice(-len(LAST_ENDS_WITH) - NUMBER_WIDTH, -len(LAST_ENDS_WITH))
_HOST = "127.0.0.1"
_ADDRESSES = 4
"""That streams come from: the gateway lets one have half of its connections at most."""


class NotWhole(Exception):
    """An answer was not what the pod sent; the message says in which way."""


class Load:
    """The state all connections of one load share: how many are open, and the first fault."""

    def __init__(self) -> None:
        self.open = 0
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, fault: str) -> None:
        if not self._ended.done():
            self._ended.set_exception(NotWhole(fault))

    def opened(self) -> None:
        self.open += 1

    def closed(self) -> None:
        self.open -= 1
        if self.open == 0 and not self._ended.done():
            self._ended.set_result(None)

    async def watch(self, seconds: float) -> None:
        """Waits; raises NotWhole as soon as an answer is not whole."""
        await asyncio.wait([self._ended], timeout=seconds)
        if self._ended.done():
            self._ended.result()
            raise NotWhole("all connections ended before the round was over")

    async def ended(self, seconds: float) -> None:
        """Waits until every connection has ended, each with a whole answer."""
        try:
            await asyncio.wait_for(asyncio.shield(self._ended), seconds)
        except TimeoutError:
            raise NotWhole(f"{self.open} answers had not ended after {seconds:.0f} s") from None


class RequestLoad(Load):
    """Closed loops: `answered` counts whole answers; after `stop()` each connection ends at its next."""

    def __init__(self) -> None:
        super().__init__()
        self.answered = 0
        self.stopping = False

    def stop(self) -> None:
        self.stopping = True

    async def all_answered(self, answers: int, seconds: float) -> None:
        """Waits until so many are, or that time is over."""
        until = time.monotonic() + seconds
        while self.answered < answers and time.monotonic() < until:
            await self.watch(0.02)


class ClosedLoop(asyncio.Protocol):
    """One connection that asks again as soon as its answer is whole."""

    def __init__(self, load: RequestLoad, request: bytes) -> None:
        self._load = load
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # a stream protocol is only ever given this kind
        self._load.opened()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._load.fail(f"the answer is not HTTP: {error!r}: {data[:200]!r}")

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        status = self._parser.get_status_code()
        if status != 200 or not self.is_whole(body):
            self._load.fail(f"status {status}, {len(body)} bytes: {body[:300]!r}")
            self._transport.abort()
            return
        self._load.answered += 1
        if not self._load.stopping:
            self._transport.write(self._request)
            return
        self._over = True
        self._transport.close()

    @staticmethod
    def is_whole(body: bytes) -> bool:
        """Whether it is what the pod sent."""
        return body == COMPLETION

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._over:
            self._load.fail(f"a kept-alive connection was closed by the other side: {exc!r}")
        self._load.closed()


class StreamLoad(Load):
    """Streams: tokens so far and their `transit_us`, reads that brought one, streams begun and come whole."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0
        self.reads = 0
        self.begun = 0
        self.whole = 0
        self.transit_us = array("q")
        self.stopping = False
        self.transports: set[asyncio.Transport] = set()

    def stop(self) -> None:
        """Those that ask again end with the stream they are at."""
        self.stopping = True

    async def all_begun(self, streams: int, seconds: float) -> None:
        """Waits until so many have, or that time is over."""
        until = time.monotonic() + seconds
        while self.begun < streams and time.monotonic() < until:
            await self.watch(0.02)

    async def abandon(self) -> None:
        """Cuts all that are open, for nobody will wait for their ends."""
        if self._ended.done():
            self._ended.exception()  # whatever it is, it comes too late
        self._ended = asyncio.get_running_loop().create_future()  # no cut counts as a fault now
        self._ended.set_result(None)
        for transport in tuple(self.transports):
            transport.abort()
        while self.open:
            await asyncio.sleep(0)  # each leaves in its connection_lost


class Streamed(asyncio.Protocol):
    """One connection with one stream, closed at its end."""

    def __init__(self, load: StreamLoad, request: bytes) -> None:
        self._load = load
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._tail = b""
        self._tokens = 0
        self._stage = "role"  # what must come next: role, token, done, end; "over" when whole

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # a stream protocol is only ever given this kind
        self._load.transports.add(self._transport)
        self._load.opened()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        before = self._tokens
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._load.fail(f"the stream is not HTTP: {error!r}: {data[:200]!r}")
        if self._tokens > before:
            self._load.reads += 1

    def on_body(self, data: bytes) -> None:
        now_us = time.monotonic_ns() // 1000
        *events, self._tail = (self._tail + data).split(EVENT_END)
        for event in events:
            if event.endswith(TOKEN_ENDS_WITH) and self._stage == "token":
                self._count()
                self._load.transit_us.append(now_us - int(event[_TOKEN_NUMBER]))
            else:
                self._rare_event(event)

    def _rare_event(self, event: bytes) -> None:
        if self._stage == "role" and event.endswith(ROLE_ENDS_WITH):
            self._begins()
        elif self._stage == "token" and event.endswith(LAST_ENDS_WITH):
            self._count()
            self._stage = "done"
            if int(event[_LAST_NUMBER]) != self._tokens:
                self._load.fail(f"{self._tokens} tokens came of {int(event[_LAST_NUMBER])} sent")
        elif self._stage == "done" and event == DONE:
            self._stage = "end"
        else:
            status = self._parser.get_status_code()
            self._load.fail(f"status {status}, instead of {self._stage}: {event[:300]!r}")

    def _begins(self) -> None:
        self._stage = "token"
        self._load.begun += 1

    def _count(self) -> None:
        self._tokens += 1
        self._load.tokens += 1

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200 or self._stage != "end" or self._tail:
            self._load.fail(f"status {status}, ended instead of {self._stage}; unread: {self._tail[:300]!r}")
            return
        self._load.whole += 1
        self._came_whole()

    def _came_whole(self) -> None:
        self._stage = "over"
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stage != "over":
            self._load.fail(f"a stream was cut instead of {self._stage}, after {self._tokens} tokens: {exc!r}")
        self._load.transports.discard(self._transport)
        self._load.closed()


class Repeated(Streamed):
    """One connection that asks for the next stream as soon as one is whole."""

    def _came_whole(self) -> None:
        if self._load.stopping:
            super()._came_whole()
        else:
            self._ask()

    def _ask(self) -> None:
        self._stage = "role"
        self._tokens = 0
        self._transport.write(self._request)


class TimedLoad(StreamLoad):
    """An open loop: streams are due at given instants, and `ttft_us` is the time from there to the first event.

    One that finds no connection free waits for one, and that counts as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ttft_us = array("q")
        self.idle: list[Timed] = []
        self._waiting = deque[int]()

    def stop(self) -> None:
        super().stop()
        self._waiting.clear()
        while self.idle:
            self.idle.pop().close()

    def due(self, due_us: int) -> None:
        """A stream is to begin now."""
        if self.idle:
            self.idle.pop().ask(due_us)
        else:
            self._waiting.append(due_us)

    def free(self, connection: "Timed") -> None:
        if self.stopping:
            connection.close()
        elif self._waiting:
            connection.ask(self._waiting.popleft())
        else:
            self.idle.append(connection)


class Timed(Repeated):
    """One connection of an open loop."""

    _load: TimedLoad

    def __init__(self, load: TimedLoad, request: bytes) -> None:
        super().__init__(load, request)
        self._due_us = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # a stream protocol is only ever given this kind
        self._load.transports.add(self._transport)
        self._load.opened()
        self._stage = "idle"
        self._load.free(self)

    def ask(self, due_us: int) -> None:
        self._due_us = due_us
        self._ask()

    def _begins(self) -> None:
        super()._begins()
        self._load.ttft_us.append(time.monotonic_ns() // 1000 - self._due_us)

    def _came_whole(self) -> None:
        self._stage = "idle"
        self._load.free(self)

    def close(self) -> None:
        self._stage = "over"
        self._transport.close()


LoadOf = TypeVar("LoadOf", bound=StreamLoad)


async def open_loops(
    load: RequestLoad,
    ports: tuple[int, ...],
    requests: tuple[bytes, ...],
    connections: int,
    kind: Callable[[RequestLoad, bytes], ClosedLoop] = ClosedLoop,
) -> None:
    """`requests`: one per port, for the Host header differs."""
    loop = asyncio.get_running_loop()
    for index in range(connections):
        turn = index % len(ports)
        await loop.create_connection(partial(kind, load, requests[turn]), _HOST, ports[turn])


async def open_streams(
    load: LoadOf,
    ports: tuple[int, ...],
    requests: tuple[bytes, ...],
    *,
    per_second: int,
    kind: Callable[[LoadOf, bytes], Streamed] = Streamed,
) -> None:
    """One stream per request, connections dealt out over the ports, at a pace no accept queue minds."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for index, request in enumerate(requests):
        await asyncio.sleep(max(0.0, start + index / per_second - loop.time()))
        port, address = ports[index % len(ports)], f"127.0.0.{1 + index % _ADDRESSES}"
        await loop.create_connection(partial(kind, load, request), _HOST, port, local_addr=(address, 0))
