"""`poolgate top` on a real terminal: it follows the gateway, fits, outlives a restart, and gives the terminal back."""

import asyncio
import fcntl
import json
import os
import pty
import signal
import socket
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass

import pytest

from gateway.api.status import status_of
from tests.integration.test_pods_command import Terminal, answering, assert_refused, command, ops_port, reply
from tests.integration.test_process import ROOT, SECONDS, environment
from tests.seeing import seen

WHOLE_SCREEN, AS_BEFORE = b"\x1b[?1049h", b"\x1b[?1049l"
SHOWN_CURSOR = b"\x1b[?25h"


@dataclass
class OnTerminal:
    """A command on a terminal, and who sits before it."""

    process: asyncio.subprocess.Process
    terminal: Terminal
    keyboard: int

    def strike(self, keys: bytes) -> None:
        os.write(self.keyboard, keys)

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    @property
    def echoes(self) -> bool:
        """Whether keys that are struck are shown, as before the command."""
        return bool(termios.tcgetattr(self.keyboard)[3] & termios.ECHO)

    async def ended(self) -> int:
        async with asyncio.timeout(SECONDS):
            return await self.process.wait()


@asynccontextmanager
async def on_terminal(*arguments: str, lines: int = 40, columns: int = 160) -> AsyncIterator[OnTerminal]:
    """The command, with a terminal of its own for all it reads and says."""
    near, far = pty.openpty()
    fcntl.ioctl(near, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    without_size = {name: value for name, value in environment().items() if name not in ("COLUMNS", "LINES")}
    with closing(Terminal(near)) as terminal:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", *arguments),
            cwd=ROOT,
            env=without_size | {"TERM": "xterm"},
            stdin=far,
            stdout=far,
            stderr=far,
        )
        try:
            yield OnTerminal(process, terminal, near)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            os.close(far)


@pytest.mark.parametrize("how", [b"q", b"Q", signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=str)
async def test_it_is_renewed_until_it_is_told_to_leave_and_the_terminal_is_as_before(
    how: bytes | signal.Signals,
) -> None:
    async with ops_port() as port, on_terminal("top", "--url", port.url) as there:
        await there.terminal.drawn(WHOLE_SCREEN)
        await there.terminal.drawn(b"its readiness probe fails")
        assert not there.echoes
        await port.asked_again(2)
        if isinstance(how, bytes):
            there.strike(how)
        else:
            there.process.send_signal(how)
        assert await there.ended() == 0
        await there.terminal.drawn(AS_BEFORE)
        await there.terminal.drawn(SHOWN_CURSOR)
        assert there.echoes


async def test_other_keys_change_nothing() -> None:
    async with ops_port() as port, on_terminal("top", "--url", port.url) as there:
        await there.terminal.drawn(b"its readiness probe fails")
        there.strike(b"x\x1b[A \n")
        await port.asked_again(1)
        assert there.process.returncode is None


async def test_it_outlives_a_gateway_that_restarts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first:
        at = first.getsockname()
        url = f"http://127.0.0.1:{at[1]}"
        async with AsyncExitStack() as gateway:
            await gateway.enter_async_context(ops_port(listener=first))
            async with on_terminal("top", "--url", url) as there:
                await there.terminal.drawn(b"its readiness probe fails")
                await gateway.aclose()
                first.close()
                await there.terminal.drawn(b"not renewed for ")
                await there.terminal.drawn(b"nothing answers at " + url.encode())
                async with ops_port(listener=socket.create_server(at)) as again:
                    await again.asked_again(2)
                    there.strike(b"q")
                    assert await there.ended() == 0


async def test_another_size_is_drawn_as_it_is() -> None:
    async with ops_port() as port, on_terminal("top", "--url", port.url, lines=40, columns=160) as there:
        await there.terminal.drawn(b"its readiness probe fails")
        drawn_before = there.terminal.size
        there.resize(10, 50)
        await there.terminal.drawn(b" more", after=drawn_before)
        there.strike(b"q")
        assert await there.ended() == 0


@pytest.mark.parametrize("flags", [[], ["--once"]], ids=["piped", "once"])
async def test_everything_is_printed_once(flags: list[str]) -> None:
    async with ops_port() as port:
        ended = await command("top", "--url", port.url, *flags)
    assert (ended.code, ended.err, port.asked) == (0, "", 1)
    assert "req/s" in ended.out
    assert "its readiness probe fails" in ended.out
    assert "\x1b" not in ended.out


async def test_json_is_what_the_gateway_said() -> None:
    async with ops_port() as port:
        ended = await command("top", "--url", port.url, "--once", "--json")
    assert (ended.code, ended.err, port.asked) == (0, "", 1)
    assert json.loads(ended.out) == json.loads(json.dumps(status_of(seen())))


async def test_a_gateway_that_tells_nothing_of_its_traffic_is_too_old() -> None:
    told = {name: each for name, each in status_of(seen()).items() if name != "traffic"}
    async with answering(reply("200 OK", json.dumps(told).encode())) as url:
        ended = await command("top", "--url", url)
    assert_refused(ended, f"the gateway at {url} is older than this command")
