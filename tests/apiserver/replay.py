"""Recordings of a real API server, and a server that plays them byte by byte, in their own time or faster."""

import asyncio
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.apiserver.http import Request, read_request

CAPTURES = Path(__file__).parents[1] / "captures" / "kubernetes"


@dataclass(frozen=True)
class Read:
    """One read of the client that recorded: seconds since the request, and size."""

    at_seconds: float
    size: int


@dataclass(frozen=True)
class Recording:
    """One exchange. `sent` is the request; `closed`: the server closed the connection when all was said."""

    name: str
    sent: bytes
    came: bytes
    reads: tuple[Read, ...]
    closed: bool

    @classmethod
    def load(cls, name: str) -> Self:
        packed = CAPTURES / f"{name}.resp.gz"
        came = gzip.decompress(packed.read_bytes()) if packed.exists() else (CAPTURES / f"{name}.resp").read_bytes()
        told = json.loads((CAPTURES / f"{name}.timing.json").read_text())["chunks"]
        reads = tuple(Read(entry["t"], entry["n"]) for entry in told if "n" in entry)
        assert sum(read.size for read in reads) == len(came), name
        return cls(name, (CAPTURES / f"{name}.req").read_bytes(), came, reads, "eof" in told[-1])

    @classmethod
    def names(cls) -> list[str]:
        return sorted(path.name.removesuffix(".req") for path in CAPTURES.glob("*.req"))


@dataclass
class ReplayServer:
    """Plays `lists` for requests that list and `watches` for those that watch, one after another.

    When there is no more to play it reads the request and says nothing. `speed` 0 plays without waiting;
    `piece_bytes` cuts the bytes anew instead of as they were read.
    """

    lists: Sequence[Recording] = ()
    watches: Sequence[Recording] = ()
    speed: float = 0.0
    """Seconds here for one second there."""
    piece_bytes: int | None = None
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: "set[asyncio.Task[None]]" = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while recording := self._next(await read_request(reader)):
                await self._play(recording, writer)
                if recording.closed:
                    return
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except asyncio.CancelledError:
            # The server goes; asyncio.streams would log the cancellation of its own task as an error.
            return
        finally:
            self._tasks.discard(task)
            writer.close()

    def _next(self, request: Request) -> Recording | None:
        script = self.watches if "watch" in request.query else self.lists
        asked_before = sum(("watch" in earlier.query) == ("watch" in request.query) for earlier in self.requests)
        self.requests.append(request)
        return script[asked_before] if asked_before < len(script) else None

    async def _play(self, recording: Recording, writer: asyncio.StreamWriter) -> None:
        begun = asyncio.get_running_loop().time()
        start = 0
        for read in recording.reads:
            due = begun + read.at_seconds * self.speed
            if (wait := due - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(wait)
            data = recording.came[start : start + read.size]
            start += read.size
            size = self.piece_bytes or len(data)
            for place in range(0, len(data), size):
                writer.write(data[place : place + size])
                await writer.drain()
                if self.piece_bytes:
                    await asyncio.sleep(0)  # so that the pieces arrive apart
