"""HTTP/1.1 as Go's net/http speaks it: header order, Content-Length or chunks of 2,048 bytes, and ways to break it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

_GO_BUFFER = 2048
FLOW_HEADERS = {
    "X-Kubernetes-Pf-Flowschema-Uid": "163dcf47-73e4-4d5a-8e6b-97730b4c3f23",
    "X-Kubernetes-Pf-Prioritylevel-Uid": "71eca618-1a43-4601-891d-e0bb4242ff50",
}
"""On every answer to a request that was let in; a 401 has none."""


@dataclass(frozen=True)
class Request:
    """One request. `headers` has lower-case names."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def token(self) -> str:
        """The bearer token, empty without one."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else ""


async def read_request(reader: asyncio.StreamReader) -> Request:
    """The next request of a connection. Raises IncompleteReadError when there is none."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *rest = head.rstrip("\r\n").split("\r\n")
    method, target, _ = line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (entry.partition(":") for entry in rest)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    parts = urlsplit(target)
    return Request(method, parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)), headers, body)


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    let_in: bool = True
    """Whether the request came as far as flow control, which signs its answers."""


@dataclass(frozen=True)
class Delivery:
    """How bytes leave; by default as Go writes them."""

    chunk_bytes: int | None = None
    """Size of HTTP chunks, whatever they hold; None: Go's."""
    piece_bytes: int | None = None
    """Bytes per write to the socket; None: all at once."""
    pause_seconds: float = 0.0
    """After each piece, in real seconds."""


class Cut(Exception):
    """The connection is to be closed here, in the middle."""


class Wire:
    """A connection's way out. Nothing passes while the server is frozen."""

    def __init__(self, writer: asyncio.StreamWriter, thawed: asyncio.Event) -> None:
        self.writer = writer
        self.thawed = thawed
        self.delivery = Delivery()
        self.left_bytes: int | None = None
        """Of a body that a fault cuts: how many more go out."""

    async def send(self, data: bytes) -> None:
        size = self.delivery.piece_bytes or len(data) or 1
        for start in range(0, len(data), size):
            await self.thawed.wait()
            self.writer.write(data[start : start + size])
            await self.writer.drain()
            if self.delivery.pause_seconds:
                await asyncio.sleep(self.delivery.pause_seconds)

    async def send_head(self, status: int, headers: Mapping[str, str], let_in: bool = True) -> None:
        """Names in order, then Date and the framing, as Go has it."""
        framing = ("Content-Length", "Transfer-Encoding")
        named = {
            "Audit-Id": str(uuid4()),
            "Cache-Control": "no-cache, private",
            "Content-Type": "application/json",
            **(FLOW_HEADERS if let_in else {}),
            **{name: value for name, value in headers.items() if name not in framing},
        }
        last = {"Date": f"{datetime.now(UTC):%a, %d %b %Y %H:%M:%S} GMT"}
        last |= {name: headers[name] for name in framing if name in headers}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in (dict(sorted(named.items())) | last).items()]
        await self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def send_answer(self, answer: Answer) -> None:
        length = {"Content-Length": str(len(answer.body))}
        await self.send_head(answer.status, {**answer.headers, **length}, answer.let_in)
        await self.send_body(answer.body)

    async def send_body(self, data: bytes) -> None:
        """Bytes that count for a cut."""
        if self.left_bytes is not None:
            data = data[: self.left_bytes]
            self.left_bytes -= len(data)
        await self.send(data)
        if self.left_bytes == 0:
            raise Cut


class GoBuffer:
    """The buffer before Go's chunks. Pure: bytes in, chunks out.

    What does not fit is cut where the buffer is full, and a write larger than an empty buffer is one chunk. So several
    events may share a chunk and one event may span many: chunks mean nothing.
    """

    def __init__(self) -> None:
        self._held = b""

    def write(self, data: bytes) -> list[bytes]:
        chunks: list[bytes] = []
        while len(data) > _GO_BUFFER - len(self._held):
            if not self._held:
                return [*chunks, data]
            room = _GO_BUFFER - len(self._held)
            chunks.append(self._held + data[:room])
            self._held, data = b"", data[room:]
        self._held += data
        return chunks

    def flush(self) -> list[bytes]:
        held, self._held = self._held, b""
        return [held] if held else []


class ChunkedBody:
    """A body of unknown length."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._buffer = GoBuffer()

    async def write(self, data: bytes) -> None:
        await self._send(self._buffer.write(data))

    async def flush(self) -> None:
        await self._send(self._buffer.flush())

    async def end(self) -> None:
        await self.flush()
        await self._wire.send(b"0\r\n\r\n")

    async def _send(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            size = self._wire.delivery.chunk_bytes or len(chunk)
            for start in range(0, len(chunk), size):
                part = chunk[start : start + size]
                await self._wire.send_body(b"%x\r\n%b\r\n" % (len(part), part))


async def send_pieces(wire: Wire, pieces: list[bytes], headers: Mapping[str, str]) -> None:
    """A 200 written piece by piece: Content-Length if all fits Go's buffer, else chunked."""
    if sum(map(len, pieces)) <= _GO_BUFFER:
        await wire.send_answer(Answer(200, b"".join(pieces), headers))
        return
    await wire.send_head(200, {**headers, "Transfer-Encoding": "chunked"})
    body = ChunkedBody(wire)
    for piece in pieces:
        await body.write(piece)
    await body.end()
