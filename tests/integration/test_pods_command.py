"""`poolgate pods` before an ops port of a real gateway's shape, and what it says when there is none."""

import asyncio
import json
import os
import pty
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field

import pytest
import uvicorn

from gateway.api.ops import ops_app
from gateway.api.page.live import LivePage
from gateway.api.seen import Seen
from gateway.api.status import status_of
from gateway.cli.ops_client import ANSWER_SECONDS, NoStatus, connect, read_status
from gateway.core.call import Trail
from tests.integration.test_process import ROOT, SECONDS, environment
from tests.seeing import seen
from tests.turns import within

TOKEN = "s3cret-ünïque"


@dataclass
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


async def command(*arguments: str, more: Mapping[str, str] | None = None) -> Ended:
    """A command, to its end, its output in pipes."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments),
        cwd=ROOT,
        env=environment() | dict(more or {}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(SECONDS):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def pods(*arguments: str, more: Mapping[str, str] | None = None) -> Ended:
    return await command("pods", *arguments, more=more)


@dataclass
class OpsPort:
    """A real ops port, without a gateway behind it."""

    url: str = ""
    asked: int = 0
    trails: dict[str, Trail] = field(default_factory=dict)
    """The requests that it remembers."""
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def seen(self) -> Seen:
        self.asked += 1
        self.news.set()
        return seen()

    async def asked_again(self, times: int) -> None:
        """Wait until it was asked so many times more."""
        wanted = self.asked + times
        async with asyncio.timeout(SECONDS):
            while self.asked < wanted:
                self.news.clear()
                await self.news.wait()


async def no_metrics() -> bytes:
    return b""


@asynccontextmanager
async def ops_port(token: str | None = None, listener: socket.socket | None = None) -> AsyncIterator[OpsPort]:
    """An ops port on loopback, on this socket or on one of its own."""
    port = OpsPort()
    app = ops_app(
        seen=port.seen,
        ops_token=lambda: token,
        observe=lambda: None,
        exposition=no_metrics,
        recent=port.trails.get,
        live=LivePage(lambda: status_of(port.seen())),
    )
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
    own = listener or socket.create_server(("127.0.0.1", 0))
    port.url = f"http://127.0.0.1:{own.getsockname()[1]}"
    serving = asyncio.create_task(server.serve([own]))
    try:
        while not server.started:
            await asyncio.sleep(0.001)
        yield port
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[str]:
    """A server that gives everyone these bytes and closes; None: it never answers. Its URL."""
    leave = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            if answer is None:
                await leave.wait()
            else:
                writer.write(answer)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        leave.set()


def reply(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status.encode(), len(body)) + body


@pytest.fixture
def nobody() -> Iterator[str]:
    """The URL of a port on which nobody listens, and that nobody else takes."""
    with closing(socket.socket()) as unheard:
        unheard.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unheard.getsockname()[1]}"


# What it shows.


@pytest.mark.parametrize("flags", [[], ["--once"]], ids=["piped", "once"])
async def test_the_table_is_printed_once(flags: list[str]) -> None:
    async with ops_port() as port:
        ended = await pods("--url", port.url + "/", *flags)
    assert (ended.code, ended.err, port.asked) == (0, "", 1)
    assert "its readiness probe fails" in ended.out
    assert "qwen3-8b (claimed by pool chat)" in ended.out
    assert "refused: stray: it has no label poolgate.dev/pool" in ended.out
    assert "\x1b" not in ended.out


async def test_json_is_what_the_gateway_said() -> None:
    async with ops_port() as port:
        ended = await pods("--url", port.url, "--json")
    assert (ended.code, ended.err, port.asked) == (0, "", 1)
    assert json.loads(ended.out) == json.loads(json.dumps(status_of(seen())))


@pytest.mark.parametrize(
    ("flags", "more"),
    [(["--token", TOKEN], {}), ([], {"POOLGATE_OPS_TOKEN": f"{TOKEN}\n"})],
    ids=["flag", "environment"],
)
async def test_the_token_comes_by_flag_or_environment(flags: list[str], more: dict[str, str]) -> None:
    async with ops_port(TOKEN) as port:
        assert (await pods("--url", port.url, "--json", *flags, more=more)).code == 0


async def test_a_proxy_in_the_environment_is_not_asked(nobody: str) -> None:
    async with ops_port() as port:
        assert (await pods("--url", port.url, more={"HTTP_PROXY": nobody, "http_proxy": nobody})).code == 0


class Terminal:
    """The far end of a terminal: what a command has drawn there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._drawn = bytearray()
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def _read(self) -> None:
        try:
            self._drawn += os.read(self._descriptor, 65536)
        except OSError:  # Linux says EIO when the other end has closed
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self._news.set()

    @property
    def size(self) -> int:
        """Of all that was drawn so far."""
        return len(self._drawn)

    async def drawn(self, words: bytes, after: int = 0) -> None:
        """Wait for words on it; `after`: not among the first so many bytes."""
        async with asyncio.timeout(SECONDS):
            while words not in self._drawn[after:]:
                self._news.clear()
                await self._news.wait()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)


async def test_on_a_terminal_it_is_renewed_until_ctrl_c_and_outlives_the_gateway() -> None:
    near, far = pty.openpty()
    with closing(Terminal(near)) as terminal:
        async with ops_port() as port:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", "pods", "--url", port.url),
                cwd=ROOT,
                env=environment() | {"TERM": "xterm", "COLUMNS": "200", "LINES": "50"},
                stdout=far,
                stderr=asyncio.subprocess.PIPE,
            )
            os.close(far)
            await port.asked_again(2)
            await terminal.drawn(b"its readiness probe fails")
        await terminal.drawn(b"not renewed for ")
        await terminal.drawn(b"nothing answers at " + port.url.encode())
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(SECONDS):
            _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")


# What it says when it cannot.


def assert_refused(ended: Ended, *words: str) -> None:
    """It was refused with one line that says why."""
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("poolgate: ")
    assert ended.err.count("\n") == 1, ended.err
    for word in words:
        assert word in ended.err


async def test_where_nobody_listens_it_asks_for_the_ops_port(nobody: str) -> None:
    words = f"nothing answers at {nobody}: is the gateway running, and is this its ops port?"
    assert_refused(await pods("--url", nobody), words)


@pytest.mark.parametrize("flags", [[], ["--token", "wrong"]], ids=["none", "wrong"])
async def test_without_the_right_token_it_says_where_to_give_it(flags: list[str]) -> None:
    async with ops_port(TOKEN) as port:
        ended = await pods("--url", port.url, *flags)
    assert_refused(ended, "the ops port wants a token: --token or POOLGATE_OPS_TOKEN")


async def ask(url: str, token: str | None = None, seconds: float = SECONDS) -> object:
    async with connect(url, token) as client:
        return await read_status(client, seconds=seconds)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply("404 Not Found", b"{}"), "answers with status 404: is this the gateway's ops port?"),
        (reply("302 Found", b""), "answers with status 302"),
        (reply("200 OK", b"<html>"), "is not a gateway's status"),
        (reply("200 OK", b"\xff"), "is not a gateway's status"),
        (reply("200 OK", b"[]"), "is not a gateway's status"),
        (reply("200 OK", b'{"pods": []}'), "is not a gateway's status"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"", "breaks off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "breaks off"),
    ],
)
async def test_an_answer_that_is_no_status_is_told_in_words(answer: bytes, words: str) -> None:
    async with answering(answer) as url:
        with pytest.raises(NoStatus) as caught:
            await ask(url)
    assert words in str(caught.value)
    assert url in str(caught.value)


async def test_an_ops_port_that_does_not_answer_is_not_waited_for() -> None:
    async with answering(None) as url, within(ANSWER_SECONDS - 1):
        with pytest.raises(NoStatus, match=r"does not answer within 0\.05 seconds"):
            await ask(url, seconds=0.05)


@pytest.mark.parametrize("url", ["localhost:9090", "127.0.0.1", "", "ftp://x", "http://", "http://x:port"])
def test_what_is_no_url_is_told(url: str) -> None:
    with pytest.raises(NoStatus, match="give the ops port as http://HOST:PORT"):
        connect(url, None)


async def test_a_token_that_fits_no_header_is_not_repeated() -> None:
    async with ops_port(TOKEN) as port:
        with pytest.raises(NoStatus) as caught:
            await ask(port.url, "two\r\nlines")
    assert "lines" not in str(caught.value)
