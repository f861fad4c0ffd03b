"""A client of a scene: one connection, bytes as they are, and what must come back."""

import asyncio
import json
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httptools

from loadtest.invariants import ClientSide
from tests.raw import Answer, RawClient, chat, request
from tests.scenes.canaries import PROMPT
from tests.scenes.scene import SceneFailed, expect
from tests.scenes.transcript import Transcript

if TYPE_CHECKING:
    from tests.scenes.stage import Stage

ERROR_FIELDS = {"message", "type", "param", "code"}


class Client:
    """`send` and `drip` say something, `expect…` hears the answer and judges it, `leave` and `half_close` go.

    Expectations raise `SceneFailed`, and wait for `stage.patience` at most. Every answer that is an error is looked at
    as the contract wants it, whoever expects it.
    """

    def __init__(self, stage: "Stage", name: str, gateway: str, key: str) -> None:
        self._stage = stage
        self.name = name
        self._gateway = gateway
        self.key = key
        self.answers: list[Answer] = []
        self._bodyless = False
        self._watched: deque[ClientSide] = deque()
        """The chats that were asked for and are not answered."""
        self._raw: RawClient

    async def connect(self, port: int, *, host: str = "127.0.0.1", receive_buffer: int | None = None) -> None:
        """`receive_buffer`: so many bytes the kernel takes at most while nobody reads, or some more."""
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await loop.sock_connect(sock, (host, port))
        except OSError:
            sock.close()
            raise
        reader = _Reader(self._stage.transcript, self.name, limit=receive_buffer or 65536)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
        self._raw = RawClient(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    # What it says.

    async def ask(self, **body: Any) -> None:
        """One chat, with the key. `stream=True` and what else a body may have."""
        if not body.keys() & {"headers", "path"}:
            request_id = self._stage.watch.next_id()
            self._watched.append(self._stage.watch.asked(request_id, self._gateway, body))
            body["headers"] = {"X-Request-Id": request_id}
        self.send(self.request(**body))

    def request(self, *, headers: dict[str, str] | None = None, path: str | None = None, **body: Any) -> bytes:
        """The bytes of that chat, for who sends them otherwise."""
        where = {} if path is None else {"path": path}
        told = chat(**({"messages": [{"role": "user", "content": PROMPT}]} | body))
        return request(told, key=self.key, headers=headers, **where)

    def send(self, data: bytes) -> None:
        """These bytes, at once."""
        self._stage.transcript.sent(self.name, data)
        self._bodyless = data.startswith(b"HEAD ")
        self._raw.send(data)

    async def drip(self, data: bytes, seconds: float) -> None:
        """Byte for byte, with so many seconds of the gateway's clock after each; until the gateway has heard enough."""
        for place in range(len(data)):
            if self._raw.reader.at_eof() or self.has_heard:
                return
            self.send(data[place : place + 1])
            await self._stage.leap(seconds)

    def half_close(self) -> None:
        """Say that nothing more comes."""
        self._stage.transcript.did(self.name, "half-closes")
        self._raw.writer.write_eof()

    def leave(self) -> None:
        """Close at once."""
        while self._watched:
            self._watched.popleft().left()
        if not self._raw.writer.transport.is_closing():
            self._stage.transcript.did(self.name, "leaves")
            self._raw.leave()

    # What it hears.

    @property
    def has_heard(self) -> bool:
        """Whether something has come that nobody has looked at."""
        return bool(self._raw.reader._buffer)  # type: ignore[attr-defined]  # nothing else tells

    async def hears(self, told: str) -> None:
        """Something comes. Raises `SceneFailed` with this text if nothing does."""
        await self._stage.until(lambda: self.has_heard, told)

    async def answer(self) -> Answer:
        """The next answer, whole or not. Raises `SceneFailed` where none comes, or what is none."""
        try:
            async with self._stage.bounded():
                came = await self._raw.answer(seconds=None)
        except TimeoutError:
            raise SceneFailed(f"{self.name} waited for an answer, and none came to an end") from None
        except httptools.HttpParserError as error:
            raise SceneFailed(f"{self.name} was sent what is no answer: {error}") from None
        self.answers.append(came)
        if self._watched:
            watched = self._watched.popleft()
            if came.status:
                watched.head(came.status, came.headers)
                watched.body(came.body)
            watched.ended(clean=came.clean)
        self._judge(came)
        return came

    async def expect(self, status: int = 200, code: str | None = None, **headers: str) -> Answer:
        """A whole answer with this status; an error's code; and headers, a dash written as `_`."""
        wanted = f"{status} {code or ''}".strip()
        try:
            came = await self.answer()
        except SceneFailed as failed:
            raise SceneFailed(f"expected {wanted}: {failed}") from None
        found = f"{came.status} {came.error['code'] if came.status >= 400 and came.body else ''}".strip()
        expect(came.status != 0, f"expected {wanted}: {self.name} was let go without an answer")
        expect(came.status == status and (code is None or found == wanted), f"expected {wanted}, {found} came")
        expect(came.clean or self._bodyless, f"expected {wanted}: it came, but not to its end")
        for name, value in headers.items():
            given = came.headers.get(name.replace("_", "-"))
            expect(given == value, f"expected {name}: {value} with the {wanted}, it is {given}")
        return came

    async def expect_stream(self) -> Answer:
        """A whole stream: 200, every event whole, no error, and [DONE] at its end."""
        came = await self.expect(200)
        expect(b'data: {"error"' not in came.body, f"expected a whole stream, it has an error: {came.events[-2:]!r}")
        expect(came.body.endswith(b"data: [DONE]\n\n"), f"expected a whole stream, it ends with {came.body[-80:]!r}")
        return came

    async def expect_stream_error(self, code: str) -> Answer:
        """A stream that ends with the truth: one error event of this code, then [DONE], then the body's own end."""
        came = await self.answer()
        expect(came.status == 200, f"expected a stream that ends with {code}, {came.status} came")
        told = [json.loads(event[6:])["error"] for event in came.events if event.startswith(b'data: {"error"')]
        codes = [each["code"] for each in told]
        expect(codes == [code], f"expected a stream that ends with {code}, its error events are {codes}")
        expect(set(told[0]) >= ERROR_FIELDS, f"the error event lacks {ERROR_FIELDS - set(told[0])}")
        ends = came.events[-1] == b"data: [DONE]\n\n" and came.events[-2].startswith(b'data: {"error"')
        expect(ends, f"expected the error event and [DONE] at the end, there is {came.body[-160:]!r}")
        expect(came.clean, "the stream's error was told, but the body has no end of its own")
        return came

    async def expect_close(self) -> None:
        """The gateway closes, and says nothing more."""
        try:
            async with self._stage.bounded():
                closed = await self._raw.closed(seconds=None)
        except TimeoutError:
            raise SceneFailed(f"expected the gateway to let {self.name} go, it is still connected") from None
        expect(closed, f"expected the gateway to let {self.name} go in silence, it said something")

    async def expect_silence(self) -> None:
        """Nothing comes, and nothing closes, before the gateway has looked at every deadline once more."""
        await self._stage.swept()
        expect(not self.has_heard, f"{self.name} was told something too early")
        expect(not self._raw.reader.at_eof(), f"{self.name} was let go too early")

    async def read(self, most: int) -> bytes:
        """What has come, so many bytes at most; empty at the end. Waits until there is something."""
        try:
            async with self._stage.bounded():
                return await self._raw.reader.read(most)
        except TimeoutError:
            raise SceneFailed(f"{self.name} waited for bytes, and none came") from None
        except ConnectionResetError:
            return b""

    async def read_until(self, mark: bytes) -> bytes:
        """What comes, up to this."""
        came = b""
        while mark not in came:
            more = await self.read(65536)
            expect(more, f"{self.name} waited for {mark!r}, and was let go")
            came += more
        return came

    def _judge(self, came: Answer) -> None:
        """An error is JSON in OpenAI's shape and bears an id, whatever it is (I13)."""
        if came.status == 0:
            return
        expect(came.headers.get("x-request-id"), f"the {came.status} bears no x-request-id")
        if came.status < 400 or self._bodyless:
            return
        told = came.headers.get("content-type")
        expect(told == "application/json", f"the {came.status} is of type {told}")
        try:
            error = came.error
        except (ValueError, KeyError, TypeError):
            raise SceneFailed(f"the {came.status} is no error in OpenAI's shape: {came.body[:200]!r}") from None
        expect(set(error) >= {"message", "type", "code"}, f"the {came.status} has only {sorted(error)}")


class _Reader(asyncio.StreamReader):
    """Notes what comes."""

    def __init__(self, transcript: Transcript, name: str, limit: int) -> None:
        super().__init__(limit=limit)
        self._noted: Callable[[bytes], None] = lambda data: transcript.heard(name, data)

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # a transport gives bytes
        self._noted(data)
        super().feed_data(data)

    def feed_eof(self) -> None:
        self._noted(b"")
        super().feed_eof()
