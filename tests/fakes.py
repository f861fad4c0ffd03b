"""Fakes at ports we own, and a pod that plays a script on a real socket."""

import asyncio
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6, SO_LINGER, SO_REUSEADDR, SO_SNDBUF, SOL_SOCKET, socket
from types import TracebackType
from typing import Self

from gateway.pipeline.exchange import Source

MODELS = b'{"object":"list","data":[{"id":"m","object":"model","created":1,"owned_by":"vllm"}]}'
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def answer(
    body: bytes, status: bytes = b"200 OK", content_type: bytes = b"application/json", more: bytes = b""
) -> bytes:
    """One whole HTTP answer."""
    return b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b" % (
        status,
        content_type,
        len(body),
        more,
        body,
    )


class Close:
    """Script step: close in an orderly way."""


class Reset:
    """Script step: close with RST."""


class Hang:
    """Script step: nothing more, until the peer leaves."""


class Die:
    """Script step: the whole pod dies (`ScriptedPod.die`)."""


Step = bytes | float | type[Close] | type[Reset] | type[Hang] | type[Die] | asyncio.Event
"""Bytes are sent, an event is waited for, a number is so many seconds of work."""


@dataclass
class ScriptedPod:
    """Plays `script` for each POST, as long as the list lasts, then its last one; or what `script_of` says for its
    bytes. `/v1/models` lists `m`, `/health` says what `health` is (nothing, ever, if that is empty), and there is
    nothing else to GET.

    After a script without an ending step the connection stays open for the next request.
    """

    scripts: Sequence[Sequence[Step]] = ()
    models: bytes = MODELS
    health: bytes = b"200 OK"
    script_of: Callable[[bytes], Sequence[Step]] | None = None
    asked: list[bytes] = field(default_factory=list)
    """The paths of the GETs."""
    requests: list[bytes] = field(default_factory=list)
    peer_left: asyncio.Event = field(default_factory=asyncio.Event)
    """The gateway closed a connection while a script ran, or hung."""
    port: int = 0
    host: str = "127.0.0.1"
    send_buffer: int | None = None
    """So many bytes its kernel takes at most while nobody reads, or some more."""
    _server: asyncio.Server | None = None
    _kept: socket | None = None
    """Bound to the port, which nobody else is given while the pod does not listen."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _open: dict[asyncio.StreamWriter, bool] = field(default_factory=dict)
    """The connections, and whether a script runs there."""
    _heard: dict[asyncio.StreamWriter, asyncio.StreamReader] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def start(self) -> None:
        """Listen; again, after `die` or `refuse`."""
        if self._kept is None:
            self._kept = socket(AF_INET6 if ":" in self.host else AF_INET)
            self._kept.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            self._kept.bind((self.host, self.port))
            self.port = self._kept.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        listener = self._server.sockets[0]
        if self.send_buffer is not None:
            listener.setsockopt(SOL_SOCKET, SO_SNDBUF, self.send_buffer)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """Open now."""
        return len(self._open)

    @property
    def works(self) -> int:
        """How many scripts run for a peer that has not left."""
        return sum(plays and not self._heard[writer].at_eof() for writer, plays in self._open.items())

    def close_idle(self) -> None:
        """End the connections on which no script runs."""
        for writer, plays in self._open.items():
            if not plays:
                writer.transport.abort()

    def refuse(self) -> None:
        """Take no connection any more, and end the idle ones; scripts go on."""
        assert self._server is not None
        self._server.close()
        self.close_idle()

    def die(self) -> None:
        """Take no connection any more, and break every one there is."""
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            _break(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._heard[writer] = reader
        plays = False
        try:
            while True:
                plays = self._open[writer] = False
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET "):
                    self.asked.append(head.split(b" ")[1])
                if head.startswith(b"GET /v1/models "):
                    writer.write(answer(self.models))
                    continue
                if head.startswith(b"GET /health "):
                    if not self.health:
                        await reader.read(1)
                        return
                    writer.write(answer(b"", self.health))
                    continue
                if head.startswith(b"GET "):
                    writer.write(answer(b'{"detail":"Not Found"}', b"404 Not Found"))
                    continue
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
                plays = self._open[writer] = True
                request = head + await reader.readexactly(length)
                self.requests.append(request)
                for step in self._script(request):
                    if isinstance(step, bytes):
                        if writer.transport.is_closing():
                            # uvloop would take the write for a fault of ours.
                            raise ConnectionResetError
                        writer.write(step)
                        await writer.drain()
                    elif isinstance(step, asyncio.Event):
                        await step.wait()
                    elif isinstance(step, float):
                        await asyncio.sleep(step)
                    elif step is Hang:
                        await reader.read(1)
                        self.peer_left.set()
                        return
                    else:
                        if step is Reset:
                            _break(writer)
                        elif step is Die:
                            self.die()
                        return
        except (asyncio.IncompleteReadError, ConnectionError):
            if plays:
                self.peer_left.set()
        except asyncio.CancelledError:
            # The pod goes; asyncio.streams would log the cancellation of its own task as an error.
            return
        finally:
            self._tasks.discard(task)
            self._open.pop(writer, None)
            self._heard.pop(writer, None)
            writer.close()

    def _script(self, request: bytes) -> Iterable[Step]:
        if self.script_of is not None:
            return self.script_of(request)
        return self.scripts[min(len(self.requests), len(self.scripts)) - 1]


def _break(writer: asyncio.StreamWriter) -> None:
    """Close with RST."""
    if not writer.transport.is_closing():
        writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


class FakeExchange:
    """Records what the pipeline tells a client."""

    def __init__(self) -> None:
        self.status = 0
        self.content_type = b""
        self.length: int | None = None
        self.headers: tuple[tuple[bytes, bytes], ...] = ()
        self.writes: list[bytes] = []
        self.finished = False
        self.aborted = False
        self.client_gone = False
        self.write_chunk: Callable[[bytes], None] | None = None
        self.paused = False
        self.source: Source | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.writes)

    def start(
        self, status: int, content_type: bytes, length: int | None, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        self.status, self.content_type, self.length, self.headers = status, content_type, length, headers

    def whole(self, content_type: bytes, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.start(200, content_type, len(body), headers)
        self.finish(body)

    def write(self, data: bytes) -> None:
        assert not self.finished
        self.writes.append(data)

    def finish(self, data: bytes = b"") -> None:
        assert not self.finished
        self.writes.append(data)
        self.finished = True

    def abort(self) -> None:
        self.aborted = True


class Leaps:
    """A clock of the machine's, and what a test adds to it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, ahead: float = 0.0) -> None:
        self._clock = clock
        self.ahead = ahead

    def __call__(self) -> float:
        return self._clock() + self.ahead


class Hands:
    """A clock whose hands a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
