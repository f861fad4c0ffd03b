"""A client that sends bytes as they are and reads bytes as they come, for tests of the simulator."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from loadtest.simulator import SimulatedPod

SECONDS = 60.0
"""Nothing that comes takes so long, on a busy machine too."""


@dataclass(frozen=True)
class Heard:
    """What came back on a connection, up to its end."""

    raw: bytes

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    @property
    def headers(self) -> list[tuple[str, str]]:
        head = self.raw.partition(b"\r\n\r\n")[0].decode("latin-1")
        return [(name, value) for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])]

    @property
    def body(self) -> bytes:
        """As it came, framing included."""
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def json(self) -> dict[str, object]:
        value: dict[str, object] = json.loads(self.body)
        return value

    @property
    def chunks(self) -> list[bytes]:
        """The whole chunks of the body; an unfinished one at its end is left out."""
        return _chunks(self.body)[0]

    @property
    def is_whole(self) -> bool:
        """Whether the last chunk came."""
        return _chunks(self.body)[1]

    @property
    def events(self) -> list[dict[str, object]]:
        """The JSON of all `data:` events but `[DONE]`."""
        datas = [chunk.removeprefix(b"data: ") for chunk in self.chunks if chunk.startswith(b"data: ")]
        return [json.loads(data) for data in datas if data != b"[DONE]\n\n"]


def _chunks(body: bytes) -> tuple[list[bytes], bool]:
    chunks: list[bytes] = []
    while b"\r\n" in body:
        size_text, _, rest = body.partition(b"\r\n")
        size = int(size_text, 16)
        if len(rest) < size + 2:
            break
        if size == 0:
            return chunks, True
        chunks.append(rest[:size])
        assert rest[size : size + 2] == b"\r\n"
        body = rest[size + 2 :]
    return chunks, False


class Talk:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.heard = b""

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def hear_until(self, mark: bytes, seconds: float = SECONDS) -> bytes:
        """All that came so far, `mark` in it. Raises EOFError if the connection ends first."""
        async with asyncio.timeout(seconds):
            while mark not in self.heard:
                data = await self._reader.read(65536)
                if not data:
                    raise EOFError(f"ended without {mark!r}: {self.heard!r}")
                self.heard += data
        return self.heard

    async def hear_chunks(self, count: int, seconds: float = SECONDS) -> None:
        """Until so many chunks have come whole."""
        async with asyncio.timeout(seconds):
            while len(Heard(self.heard).chunks) < count:
                data = await self._reader.read(65536)
                if not data:
                    raise EOFError(f"ended before chunk {count}: {self.heard!r}")
                self.heard += data

    async def hear_out(self, seconds: float = SECONDS) -> Heard:
        """All until the connection ends. Raises ConnectionResetError if it ends with a reset."""
        async with asyncio.timeout(seconds):
            while data := await self._reader.read(65536):
                self.heard += data
        return Heard(self.heard)

    async def how_it_ends(self, seconds: float = SECONDS) -> str:
        """ "end" or "reset"; what came before is in `heard`."""
        try:
            await self.hear_out(seconds)
        except ConnectionResetError:
            return "reset"
        return "end"

    def leave(self) -> None:
        self.writer.transport.abort()


@asynccontextmanager
async def talk_to(pod: SimulatedPod) -> AsyncIterator[Talk]:
    talk = Talk(*await asyncio.open_connection(pod.host, pod.port))
    try:
        yield talk
    finally:
        talk.leave()


def post(
    body: dict[str, object] | bytes,
    path: str = "/v1/chat/completions",
    headers: dict[str, str] | None = None,
    *,
    close: bool = True,
) -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Host": "x", "Content-Type": "application/json", "Content-Length": str(len(text))}
    if close:
        fields["Connection"] = "close"
    fields.update(headers or {})
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + text


def get(path: str, *, close: bool = True, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{'Connection: close' if close else 'Accept: */*'}\r\n\r\n".encode()


def chat(**more: object) -> dict[str, object]:
    """A chat body, for model `m`, with further fields."""
    return {"model": "m", "messages": [{"role": "user", "content": "Name three colours."}], **more}


async def ask(pod: SimulatedPod, request: bytes) -> Heard:
    """One request on its own connection, heard to the end of the connection."""
    async with talk_to(pod) as talk:
        talk.send(request)
        return await talk.hear_out()
