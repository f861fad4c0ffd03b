"""The caller: raw connections that ask, and note the moment of each piece of the answer.

Cheap on purpose, for what the generator cannot do in time it would blame on the server: protocols instead of
tasks (a task only makes a connection), heads built once per caller and path, kept-alive connections as a real
client keeps them. Nothing is tried twice, nothing waits in a queue of ours: one request, one record.

All that is held is bounded (`Bounds`). A request for which no connection is left is not sent, and its code
says so; it is the generator's failure, not the server's.
"""

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from sys import intern
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

from loadtest.load.hearing import Stream, hear_whole
from loadtest.load.record import Ending, Record

OUT_OF_CONNECTIONS: Final = "generator_out_of_connections"
STALE_CONNECTION: Final = "no_answer_on_a_kept_connection"
_NEVER: Final = 1 << 62
_MAX_HEADS: Final = 4096
_FAREWELL_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Bounds:
    connections: int = 20_000  # open at once, idle ones among them
    connect_seconds: float = 10.0
    patience_seconds: float = 300.0  # from sending to the end of an answer; then it is a TIMEOUT
    idle_seconds: float = 4.0  # a kept connection lasts so long; uvicorn closes after 5, and no request shall meet that
    body_bytes: int = 1 << 20  # of an answer that is no stream; a longer one is heard out, but not read


class BadUrl(ValueError):
    """The text says what is wrong and what would be right."""


@dataclass(frozen=True, eq=False)
class Address:
    """Where a URL leads. Made once for each, and looked up for each request: hence compared by identity."""

    host: str
    port: int
    tls: bool
    authority: str

    @classmethod
    def of(cls, url: str) -> "Address":
        """Of `http://HOST:PORT`, with or without its `/v1`."""
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise BadUrl(f"{url} is no URL: give the server as http://HOST:PORT") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.rstrip("/") not in ("", "/v1"):
            raise BadUrl(f"{url} is no URL of a server: give it as http://HOST:PORT")
        return cls(parts.hostname, port, parts.scheme == "https", parts.netloc.rpartition("@")[2])


class Client:
    """Asks, and calls `ended` once for each record. `zero`: the instant of `time.monotonic()` records count from."""

    def __init__(self, zero: float, bounds: Bounds, ended: Callable[[Record], None]) -> None:
        self.zero = zero
        self.bounds = bounds
        self.reads = 0
        """That brought something of an answer."""
        self.tokens = 0
        self.connections_made = 0
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._lines: set[Line] = set()
        self._idle: dict[Address, dict[Line, None]] = {}
        """Those last used stand last."""
        self._asking: dict[Line, None] = {}
        """In the order of sending."""
        self._connecting: set[asyncio.Task[None]] = set()
        self._heads: dict[tuple[Address, str, str], bytes] = {}
        self._resolved: dict[str, str] = {}
        self._tls: ssl.SSLContext | None = None

    def now(self) -> float:
        return time.monotonic() - self.zero

    @property
    def open_connections(self) -> int:
        """Idle ones among them."""
        return len(self._lines) + len(self._connecting)

    def ask(self, address: Address, key: str, record: Record) -> None:
        """Send it now, or as soon as there is a connection."""
        idle = self._idle.get(address)
        while idle:
            line, _ = idle.popitem()
            if line.is_open:
                line.ask(self._bytes(address, key, record), record)
                return
        if self.open_connections >= self.bounds.connections and not self._close_an_idle_one():
            self._refused(record, OUT_OF_CONNECTIONS)
            return
        task = self._loop.create_task(self._connect(address, key, record))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def sweep(self) -> None:
        """End what has lasted too long; to be called now and then."""
        now = self.now()
        while self._asking and now - (line := _first(self._asking)).record.sent_at > self.bounds.patience_seconds:
            line.give_up(Ending.TIMEOUT)
        for idle in self._idle.values():
            while idle and now - (line := _first(idle)).idle_since > self.bounds.idle_seconds:
                del idle[line]
                line.close()

    async def close(self) -> None:
        """End every connection; what is under way ends as a TIMEOUT."""
        for task in list(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for line in list(self._lines):
            line.give_up(Ending.TIMEOUT)
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                while self._lines:
                    await asyncio.sleep(0.001)

    def _bytes(self, address: Address, key: str, record: Record) -> bytes:
        path, body = record.planned.path, record.planned.body
        head = self._heads.get((address, key, path))
        if head is None:
            caller = f"Authorization: Bearer {key}\r\n" if key else ""
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {address.authority}\r\n{caller}Accept: */*\r\n"
                "Content-Type: application/json\r\nUser-Agent: poolgate-loadtest\r\nContent-Length: "
            ).encode()
            if len(self._heads) < _MAX_HEADS:
                self._heads[address, key, path] = head
        return b"%b%d\r\n\r\n%b" % (head, len(body), body)

    async def _connect(self, address: Address, key: str, record: Record) -> None:
        line = Line(self, address)
        try:
            async with asyncio.timeout(self.bounds.connect_seconds):
                await self._loop.create_connection(
                    lambda: line,
                    await self._resolve(address),
                    address.port,
                    ssl=self._tls_context() if address.tls else None,
                    server_hostname=address.host if address.tls else None,
                )
        except TimeoutError:
            self._not_connected(line, record, "connect_timeout")
        except ssl.SSLError:
            self._not_connected(line, record, "tls")
        except OSError as error:
            self._not_connected(line, record, errno.errorcode.get(error.errno or 0, "no_address"))
        except asyncio.CancelledError:
            self._not_connected(line, record, "stopped")
            raise
        else:
            self.connections_made += 1
            line.ask(self._bytes(address, key, record), record)

    def _not_connected(self, line: "Line", record: Record, code: str) -> None:
        """uvloop, when it is cancelled on the last step, tells a line of its beginning and not of its end."""
        line.close()
        self.lost(line)
        self._refused(record, code)

    async def _resolve(self, address: Address) -> str:
        """Once per host: what a name costs is none of the server's doing."""
        found = self._resolved.get(address.host)
        if found is None:
            infos = await self._loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            found = self._resolved[address.host] = str(infos[0][4][0])
        return found

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def _close_an_idle_one(self) -> bool:
        for idle in self._idle.values():
            if idle:
                line = _first(idle)
                del idle[line]
                line.close()
                return True
        return False

    def _refused(self, record: Record, code: str) -> None:
        record.sent_at = self.now()
        record.ending, record.code = Ending.REFUSED, code
        record.ended_at = record.sent_at
        self._ended(record)

    def began(self, line: "Line") -> None:
        self._asking[line] = None

    def over(self, line: "Line", record: Record) -> None:
        del self._asking[line]
        if line.is_open:
            self._idle.setdefault(line.address, {})[line] = None
        self._ended(record)

    def opened(self, line: "Line") -> None:
        self._lines.add(line)

    def lost(self, line: "Line") -> None:
        self._lines.discard(line)
        self._idle.get(line.address, {}).pop(line, None)


def _first(lines: "dict[Line, None]") -> "Line":
    return next(iter(lines))


class Line(asyncio.Protocol):
    """One connection, and the exchange on it if there is one."""

    record: Record
    """Of the exchange under way, or of the last."""

    def __init__(self, client: Client, address: Address) -> None:
        self.address = address
        self.is_open = False
        self.idle_since = 0.0
        self._client = client
        self._zero = client.zero
        self._parser = httptools.HttpResponseParser(self)
        self._asks = False
        self._used = False
        self._stream: Stream | None = None
        self._body = bytearray()
        self._retry_after_ms: float | None = None
        self._framed = False
        self._leave_at = _NEVER
        self._leaving: asyncio.TimerHandle | None = None

    def ask(self, request: bytes, record: Record) -> None:
        planned = record.planned
        self.record = record
        self._asks = True
        self._stream = None
        self._retry_after_ms = None
        self._framed = False
        record.ending = Ending.CUT  # so far
        record.sent_at = self._client.now()
        self._transport.write(request)
        self._client.began(self)
        self._leave_at = _NEVER if planned.leave_after_tokens is None else planned.leave_after_tokens
        if planned.leave_after is not None:
            loop = asyncio.get_running_loop()
            self._leaving = loop.call_later(planned.leave_after, self.give_up, Ending.LEFT)

    def give_up(self, ending: Ending) -> None:
        """Go away, whatever is still to come."""
        self.close()
        self._end(ending)

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._transport.abort()

    # --- what the transport calls ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # a stream protocol is only ever given this kind
        self.is_open = True
        self._client.opened(self)

    def data_received(self, data: bytes) -> None:
        if not self._asks:
            self.close()  # nothing was asked: what is said is not for us
            return
        self._client.reads += 1
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._asks:
                self.record.code = "not_http"
                self.give_up(Ending.CUT)

    def eof_received(self) -> None:
        """Closes; `connection_lost` judges."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._asks:
            if exc is None and self.record.status and not self._framed:
                self._answered()  # such a body ends with its connection
            elif not self.record.status and self._used:
                self.record.code = STALE_CONNECTION
            self._end(Ending.CUT)
        self._client.lost(self)
        del self._parser  # it holds this object, as this object holds it

    # --- what the parser calls ------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"content-length" | b"transfer-encoding":
                self._framed = True
            case b"x-poolgate-pod":
                self.record.pod = intern(value.decode("latin-1"))
            case b"retry-after" if self._retry_after_ms is None:
                with suppress(ValueError):  # a date: nobody here sends one
                    self.record.retry_after = float(value)
            case b"retry-after-ms":
                with suppress(ValueError):
                    self._retry_after_ms = float(value)
                    self.record.retry_after = self._retry_after_ms / 1000

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        self.record.status = status
        if status < 400 and self.record.planned.stream:
            self._stream = Stream(self.record)

    def on_body(self, data: bytes) -> None:
        if not self._asks:
            return  # we went away in the middle of this read
        now = time.monotonic() - self._zero
        record = self.record
        if self._stream is None:
            if record.first_at is None:
                record.first_at = now
            if len(self._body) <= self._client.bounds.body_bytes:
                self._body += data
            return
        before = record.tokens
        self._stream.feed(data, now)
        self._client.tokens += record.tokens - before
        if record.tokens >= self._leave_at:
            self.give_up(Ending.LEFT)
        elif self._stream.fault:
            record.code = self._stream.fault
            self.give_up(Ending.CUT)

    def on_message_complete(self) -> None:
        if not self._asks or self._parser.get_status_code() < 200:
            return
        self._used = True
        if not self._parser.should_keep_alive():
            self.close()
        self._answered()

    def _answered(self) -> None:
        """The HTTP message is over."""
        record, body = self.record, self._body
        if self._stream is not None:
            self._end(self._stream.ending())
            return
        read = len(body) > self._client.bounds.body_bytes or hear_whole(bytes(body), record)
        if record.status >= 400:
            self._end(Ending.ERROR)
        elif read:
            self._end(Ending.WHOLE)
        else:
            record.code = "not_json"
            self._end(Ending.CUT)

    def _end(self, ending: Ending) -> None:
        if not self._asks:
            return
        self._asks = False
        record = self.record
        record.ended_at = self.idle_since = self._client.now()
        if self._stream is not None and ending in (Ending.CUT, Ending.TIMEOUT) and record.status:
            told = self._stream.ending()
            ending = told if told is Ending.TOLD else ending
        record.ending = ending
        self._stream = None
        self._body.clear()
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        self._client.over(self, record)
