"""What a client hears of an answer, recorded or live: the same reading for both, so that they can be compared."""

import asyncio
import gzip
import json
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

from tests.turns import within

_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

Ending = Literal["open", "whole", "cut"]
"""`whole`: by its own framing. `cut`: the connection closed first. `open`: more may come."""


@dataclass(frozen=True)
class Heard:
    """An answer so far."""

    status_line: str
    headers: tuple[tuple[str, str], ...]
    chunk_sizes: tuple[int, ...]
    body: bytes
    ending: Ending

    def header(self, name: str) -> str:
        return dict(self.headers).get(name, "")

    @property
    def plain_body(self) -> bytes:
        return gzip.decompress(self.body) if self.header("Content-Encoding") == "gzip" else self.body

    @property
    def lines(self) -> list[bytes]:
        """Whole lines."""
        return self.body.split(b"\n")[:-1]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def told(self) -> list[tuple[str, str]]:
        """(type, name) of each event."""
        return [(event["type"], event["object"]["metadata"].get("name", "")) for event in self.events]


def hear(raw: bytes, closed: bool = False) -> Heard:
    """Read an answer's bytes; `closed`: the connection ended after them."""
    head, between, rest = raw.partition(b"\r\n\r\n")
    if not between:
        return Heard("", (), (), b"", "cut" if closed else "open")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = tuple((name, value) for name, _, value in (line.partition(": ") for line in lines))
    length = dict(headers).get("Content-Length")
    sizes: list[int] = []
    if length is None:
        body, whole = _chunks(rest, sizes)
    else:
        body, whole = rest, len(rest) == int(length)
    return Heard(status_line, headers, tuple(sizes), body, "whole" if whole else "cut" if closed else "open")


def _chunks(rest: bytes, sizes: list[int]) -> tuple[bytes, bool]:
    body = b""
    while b"\r\n" in rest:
        digits, _, rest = rest.partition(b"\r\n")
        size = int(digits, 16)
        if size == 0:
            return body, True
        if len(rest) >= size:
            sizes.append(size)
        body += rest[:size]
        rest = rest[size + 2 :]
    return body, False


class Caller:
    """One connection that sends bytes as they are and hears the answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.raw = b""
        self.closed = False

    @classmethod
    async def connect(cls, port: int, tls: ssl.SSLContext | None = None) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    def send(self, data: bytes) -> None:
        """Forget what was heard, and ask."""
        self.raw = b""
        self._writer.write(data)

    def get(self, target: str, *headers: str, token: str = "admin-token") -> None:
        lines = [
            f"GET {target} HTTP/1.1",
            "Host: 127.0.0.1",
            "Accept: application/json",
            "User-Agent: test/1",
            *headers,
        ]
        lines += [f"Authorization: Bearer {token}"] if token else []
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    @property
    def heard(self) -> Heard:
        return hear(self.raw, self.closed)

    async def until(self, holds: Callable[[Heard], bool], seconds: float = 10.0) -> Heard:
        """Read until what was heard satisfies this."""
        async with within(seconds):
            while not holds(self.heard):
                assert not self.closed, f"closed after {self.raw!r:.400}"
                await self._read()
        return self.heard

    async def whole(self, seconds: float = 10.0) -> Heard:
        """Read to the end of the answer or of the connection."""
        async with within(seconds):
            while self.heard.ending == "open":
                await self._read()
        return self.heard

    async def _read(self) -> None:
        try:
            data = await self._reader.read(65536)
        except ConnectionError:
            data = b""
        self.raw += data
        self.closed = not data


def normalised(value: Any) -> Any:
    """Without what differs by nature: uids are numbered as they come, times have no value, managedFields no content."""
    uids: dict[str, str] = {}

    def clean(inner: Any, name: str = "") -> Any:
        if name == "managedFields":
            return "managed"
        if isinstance(inner, dict):
            return {key: clean(held, key) for key, held in inner.items()}
        if isinstance(inner, list):
            return [clean(held) for held in inner]
        if isinstance(inner, str) and _STAMP.fullmatch(inner):
            return "time"
        if isinstance(inner, str) and name == "uid" and _UID.fullmatch(inner):
            return uids.setdefault(inner, f"uid {len(uids)}")
        return inner

    return clean(value)
