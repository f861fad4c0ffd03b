"""A raw HTTP client for tests: sends bytes as they are, and says how the answer ended."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import httptools


@dataclass
class Answer:
    """What came back. `clean`: the body ended by its own framing."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    clean: bool = False
    interim: int = 0

    @property
    def error(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.body)["error"]
        return told

    @property
    def events(self) -> list[bytes]:
        return [event + b"\n\n" for event in self.body.split(b"\n\n") if event]


class _Reader:
    def __init__(self) -> None:
        self.answer = Answer()
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.answer.headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.answer.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.answer.chunks.append(body)

    def on_message_complete(self) -> None:
        if 100 <= self.answer.status < 200:
            self.answer = Answer(interim=self.answer.interim + 1)
            return
        self.answer.clean = True


class RawClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> "RawClient":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, seconds: float | None = 60.0, begun: bytes = b"") -> Answer:
        """The next answer, to its end or the connection's. `begun`: what of it was read already."""
        parsed = _Reader()
        parsed.parser.feed_data(begun)
        async with asyncio.timeout(seconds):
            while not parsed.answer.clean:
                try:
                    data = await self.reader.read(65536)
                except ConnectionResetError:
                    break
                if not data:
                    break
                parsed.parser.feed_data(data)
        found = parsed.answer
        found.body = b"".join(found.chunks)
        return found

    async def closed(self, seconds: float | None = 60.0) -> bool:
        """Whether the peer closes, with nothing more said."""
        async with asyncio.timeout(seconds):
            try:
                return await self.reader.read(65536) == b""
            except ConnectionResetError:
                return True

    def leave(self) -> None:
        """Close at once."""
        self.writer.transport.abort()


def request(
    body: bytes | dict[str, Any],
    *,
    key: str | None = None,
    path: str = "/v1/chat/completions",
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> bytes:
    """The bytes of one request."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Host": "test", "Content-Type": "application/json", "Content-Length": str(len(raw))}
    if key is not None:
        fields["Authorization"] = f"Bearer {key}"
    fields |= headers or {}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + raw


def chat(**more: Any) -> dict[str, Any]:
    """A chat body for the model `m`."""
    return {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **more}


async def ask(port: int, data: bytes, seconds: float = 60.0) -> Answer:
    """One request on a connection of its own."""
    client = await RawClient.connect(port)
    client.send(data)
    try:
        return await client.answer(seconds)
    finally:
        client.leave()
