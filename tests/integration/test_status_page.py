"""The status page of a whole gateway: its last moment, and that it and the JSON say the same."""

import asyncio
import base64
import io
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.api.page.concerns import concerns_of
from gateway.api.status import status_of
from gateway.app import Gateway
from gateway.cli import process
from gateway.cli.process import Stop
from gateway.config.reading import ConfigFile, load_config
from tests.fakes import ScriptedPod
from tests.raw import ask, chat, request
from tests.running import running
from tests.turns import within

SECONDS = 10.0
"""In turns of the loop: all of it is in the test's own process."""
TOKEN = "s3cret:with a colon"
PODS = {"pods": [{"name": "chat-0", "url": "http://127.0.0.1:1", "pool": "chat"}]}


@dataclass
class Served:
    """A gateway as its process runs it."""

    gateway: Gateway
    port: int
    stop: Stop
    running: asyncio.Task[None]

    async def opened(self, path: str, authorization: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: ops\r\n{authorization}\r\n".encode())
        return reader, writer

    async def answer(self, path: str, authorization: str = "") -> tuple[str, str]:
        """An answer's head and body."""
        async with within(SECONDS):
            reader, writer = await self.opened(path, f"Connection: close\r\n{authorization}")
            head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
            writer.close()
        return head, body


@asynccontextmanager
async def served(file: ConfigFile | None = None) -> AsyncIterator[Served]:
    flags = {"discovery": PODS, "server": {"ops_token": TOKEN}}
    config = load_config(None, {}, flags) if file is None else file.load()
    gateway, stop, up = Gateway(config, None, file=file, access_out=io.BytesIO()), Stop(), asyncio.Event()
    public, ops = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    running = asyncio.create_task(process.run(gateway, public, ops, stop, up.set))
    try:
        async with within(SECONDS):
            await up.wait()
        yield Served(gateway, ops.getsockname()[1], stop, running)
    finally:
        stop.ask()
        async with within(SECONDS):
            await running


def basic(password: str) -> str:
    return f"Authorization: Basic {base64.b64encode(f'someone:{password}'.encode()).decode()}\r\n"


async def test_an_open_page_is_told_the_end_and_does_not_hold_it_up() -> None:
    async with served() as each:
        async with within(SECONDS):
            reader, writer = await each.opened("/status/events", basic(TOKEN))
            await reader.readuntil(b"event: hello")
            await reader.readuntil(b'"parts":')
            each.stop.ask()
            # Whoever is cut by a deadline reads no end of the body.
            assert (await reader.read()).endswith(b"0\r\n\r\n")
            await each.running
            writer.close()
        assert each.gateway.live_page.viewers == 0


async def test_a_pool_whose_only_pod_has_died_is_not_told_to_be_well() -> None:
    async with ScriptedPod() as pod, running([pod]) as each:
        pod.die()
        async with within(SECONDS):
            for _ in range(4):
                assert (await ask(each.port, request(chat(), key=each.key))).status == 503
        await each.settled()
        each.gateway.journal.observe()
        status = status_of(each.gateway.seen())
        # It is never ejected, since it is the last one.
        assert [(told["state"], told["attempts"], told["failed"]) for told in status["pods"]] == [("ready", 4, 4)]
        (concern,) = concerns_of(status)
        assert (concern.level, concern.what) == ("error", "Most requests fail at the pods of pool chat")


async def test_the_page_says_what_the_json_says() -> None:
    async with served() as each:
        head, html = await each.answer("/status", basic(TOKEN))
        told = json.loads((await each.answer("/status.json", f"Authorization: Bearer {TOKEN}\r\n"))[1])
    assert "200 OK" in head
    assert told["pods"][0]["name"] == "chat-0"
    for words in (told["replica"], told["started_at"], told["pods"][0]["state"], told["reason"]):
        assert words in html


async def test_an_open_page_ends_when_its_token_is_not_valid_any_more(tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    file.write_text(f"server: {{ops_token: '{TOKEN}'}}\n")
    async with served(ConfigFile(file, {}, {"discovery": PODS})) as each:
        each.gateway.reload.look_seconds = 0.01
        async with within(SECONDS):
            reader, writer = await each.opened("/status/events", basic(TOKEN))
            await reader.readuntil(b'"parts":')
            file.write_text("server: {ops_token: another}\n")
            await reader.readuntil(b"\r\n0\r\n\r\n")
            writer.close()
        assert "401 Unauthorized" in (await each.answer("/status/events", basic(TOKEN)))[0]


@pytest.mark.parametrize("path", ["/status", "/status/events", "/status.json", "/docs"])
async def test_a_browser_is_asked_for_the_token(path: str) -> None:
    async with served() as each:
        for authorization in ("", basic("other")):
            head, _ = await each.answer(path, authorization)
            assert "401 Unauthorized" in head
            assert 'www-authenticate: Basic realm="Poolgate operations", charset="UTF-8"' in head
