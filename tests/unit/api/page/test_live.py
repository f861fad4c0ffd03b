"""Open pages are kept true: by one look a second for all, while anyone looks on, and to the end of the gateway."""

import asyncio
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response

from gateway.api.page import live
from gateway.api.page.document import PAGE_VERSION, page_parts
from gateway.api.page.live import MAX_VIEWERS, Frame, LivePage
from tests.saying import pod_said, said
from tests.turns import within

SECONDS = 5.0
TICK = 0.02


@dataclass
class Gateway:
    """A gateway whose page changes whenever somebody looks, unless it `stands`."""

    looks: int = 0
    stands: bool = False
    fails: bool = False
    port: int = 0
    pods: int = 1
    page: LivePage = field(init=False)
    server: uvicorn.Server = field(init=False)

    def __post_init__(self) -> None:
        self.page = LivePage(self.look)

    def look(self) -> dict[str, Any]:
        if self.fails:
            raise ValueError("no status today")
        self.looks += not self.stands
        return said(pods=[pod_said(f"chat-{at}", in_flight=self.looks) for at in range(self.pods)])


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second is a fiftieth of one."""
    monkeypatch.setattr(live, "SECONDS", TICK)


@asynccontextmanager
async def serving(**more: Any) -> AsyncIterator[Gateway]:
    """A gateway's ops port, served by uvicorn as it is in the process."""
    gateway = Gateway(**more)
    app = FastAPI(openapi_url=None)

    @app.get("/status/events")
    async def events() -> Response:
        return gateway.page.answer()

    listener = socket.create_server(("127.0.0.1", 0))
    gateway.port = listener.getsockname()[1]
    gateway.server = uvicorn.Server(
        uvicorn.Config(app, lifespan="off", log_config=None, ws="none", timeout_graceful_shutdown=1)
    )
    task = asyncio.create_task(gateway.server.serve([listener]))
    while not gateway.server.started:
        await asyncio.sleep(0.001)
    try:
        yield gateway
    finally:
        gateway.page.close()
        gateway.server.should_exit = True
        await task


@dataclass
class Viewer:
    """A browser with the page open."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int = 0

    async def event(self) -> dict[str, Any]:
        """The next event: its name, if it has one, and what it says."""
        async with within(SECONDS):
            lines: list[bytes] = []
            while True:
                size = int(await self.reader.readline(), 16)
                if not size:
                    raise EOFError
                lines += (await self.reader.readexactly(size + 2))[:-2].splitlines()
                if lines[-1] == b"":
                    break
        fields = dict(line.decode().split(": ", 1) for line in lines if line)
        return {"event": fields.get("event"), **json.loads(fields["data"])}

    async def ended(self) -> None:
        """Wait for the stream's end."""
        with suppress(EOFError):
            while True:
                await self.event()


@asynccontextmanager
async def viewing(gateway: Gateway, limit: int = 2**16, holds: int | None = None) -> AsyncIterator[Viewer]:
    """A viewer whose stream has begun, or was refused. Its socket `holds` so much that was not read yet."""
    end = socket.socket()
    if holds is not None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, holds)
    end.setblocking(False)
    await asyncio.get_running_loop().sock_connect(end, ("127.0.0.1", gateway.port))
    reader, writer = await asyncio.open_connection(sock=end, limit=limit)
    writer.write(b"GET /status/events HTTP/1.1\r\nHost: ops\r\n\r\n")
    viewer = Viewer(reader, writer)
    async with within(SECONDS):
        viewer.status = int((await reader.readline()).split()[1])
        while (await reader.readline()).strip():
            pass
    try:
        yield viewer
    finally:
        writer.close()


async def until(holds: Any) -> None:
    async with within(SECONDS):
        while not holds():
            await asyncio.sleep(0.002)


async def test_a_stream_says_hello_then_all_and_then_what_changed() -> None:
    async with serving() as gateway, viewing(gateway) as viewer:
        assert await viewer.event() == {"event": "hello", "page": PAGE_VERSION}
        first, second = await viewer.event(), await viewer.event()
        assert (first["event"], first["now"]) == (None, "2026-01-01T00:00:00Z")
        assert {part.id for part in page_parts(said())} <= set(first["parts"])
        (html,) = second["parts"].values()
        assert 'data-pod="chat-0"' in html


async def test_a_page_that_does_not_change_hears_each_second_that_it_is_true() -> None:
    async with serving(stands=True) as gateway, viewing(gateway) as viewer:
        await viewer.event()
        assert (await viewer.event())["parts"]
        for _ in range(3):
            assert (await viewer.event())["parts"] == {}


async def test_one_look_serves_all_viewers() -> None:
    async with serving() as gateway, viewing(gateway) as one, viewing(gateway) as two:
        for viewer in (one, two):
            await viewer.event()
            await viewer.event()
        await until(lambda: gateway.page.viewers == 2)
        before = gateway.looks
        events = [await one.event() for _ in range(10)], [await two.event() for _ in range(10)]
        assert gateway.looks - before <= 14
        assert [event["parts"] for event in events[0][2:4]]
        shared = [str(event["parts"]) for event in events[0]]
        assert len([True for event in events[1] if str(event["parts"]) in shared]) >= 6


async def test_nobody_looks_while_nobody_looks_on() -> None:
    async with serving() as gateway:
        async with viewing(gateway) as viewer:
            await viewer.event()
            await viewer.event()
        await until(lambda: gateway.page.viewers == 0)
        before = gateway.looks
        await asyncio.sleep(10 * TICK)
        assert gateway.looks == before
        # And who comes then is not shown what was.
        async with viewing(gateway) as viewer:
            await viewer.event()
            parts = (await viewer.event())["parts"]
            assert f"{before + 1}<small> / 128</small>" in str(parts)


async def test_a_viewer_too_many_is_refused_in_words_and_let_in_when_one_leaves() -> None:
    async with serving() as gateway:
        places = [viewing(gateway) for _ in range(MAX_VIEWERS)]
        for place in places:
            assert (await place.__aenter__()).status == 200
        async with viewing(gateway) as viewer:
            assert viewer.status == 503
            assert b"16 status pages are open already" in await viewer.reader.readline()
        await places.pop().__aexit__(None, None, None)
        await until(lambda: gateway.page.viewers == MAX_VIEWERS - 1)
        async with viewing(gateway) as viewer:
            assert viewer.status == 200
        for place in places:
            await place.__aexit__(None, None, None)
        await until(lambda: gateway.page.viewers == 0)


async def test_who_is_slow_is_sent_the_latest_and_nothing_is_queued() -> None:
    # Of a page so large a socket's buffers hold a few only.
    async with (
        serving(pods=200) as gateway,
        viewing(gateway, limit=2**10, holds=2**14) as slow,
        viewing(gateway, limit=2**22) as quick,
    ):
        while gateway.looks < 40:
            await quick.event()
        latest, events = gateway.looks, 0
        while look_of(await slow.event()) < latest:
            events += 1
        assert events < 30


def look_of(event: dict[str, Any]) -> int:
    """Which look at the gateway an event tells of."""
    found = re.search(r"(\d+)<small> / 128", str(event.get("parts")))
    return int(found[1]) if found else 0


async def test_who_takes_nothing_for_long_loses_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SEND_SECONDS", 0.2)
    async with serving(pods=200) as gateway, viewing(gateway, limit=2**10):
        await until(lambda: gateway.page.viewers == 1)
        await until(lambda: gateway.page.viewers == 0)


async def test_who_was_let_in_by_what_is_valid_no_more_has_to_come_again() -> None:
    # One that takes nothing at that moment does not see that its stream is over before it goes on.
    async with (
        serving(pods=200) as gateway,
        viewing(gateway, limit=2**10, holds=2**14) as slow,
        viewing(gateway, limit=2**22) as quick,
    ):
        while gateway.looks < 10:
            await quick.event()
        gateway.page.end_streams()
        async with viewing(gateway, limit=2**22) as fresh:
            for _ in range(3):
                await fresh.event()
            async with within(SECONDS):
                await quick.ended()
                await slow.ended()
            assert gateway.page.viewers == 1
            assert (await fresh.event())["parts"]


async def test_an_open_page_does_not_hold_up_the_end() -> None:
    async with serving() as gateway, viewing(gateway) as viewer:
        await viewer.event()
        await viewer.event()
        async with within(0.5):
            gateway.page.close()
            await viewer.ended()
            gateway.server.should_exit = True
            servers = gateway.server.servers
            await until(lambda: not servers or not any(each.is_serving() for each in servers))
        assert gateway.page.viewers == 0


async def test_who_comes_at_the_end_is_refused() -> None:
    async with serving() as gateway:
        gateway.page.close()
        async with viewing(gateway) as viewer:
            assert viewer.status == 503
        assert gateway.looks == 0


async def test_a_page_that_cannot_be_made_ends_its_streams_and_not_the_gateway(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(fails=True) as gateway:
        with caplog.at_level(logging.ERROR, "poolgate.status"):
            async with viewing(gateway) as viewer:
                await viewer.event()
                await viewer.ended()
        assert "the status page could not be made" in caplog.text
        await until(lambda: gateway.page.viewers == 0)
        gateway.fails = False
        async with viewing(gateway) as viewer:
            await viewer.event()
            assert (await viewer.event())["parts"]


def test_what_two_viewers_miss_alike_is_worked_out_once() -> None:
    older, newer = Frame(said()), Frame(said(pods=[pod_said("chat-0", in_flight=99)]), 2)
    assert newer.since(older) is newer.since(older)
    assert newer.since(None) is newer.since(None)
    assert len(newer.since(older)) < len(newer.since(None)) / 4


@contextmanager
def taken(page: LivePage, places: int) -> Iterator[None]:
    """So many places at the page are taken."""
    with page.seat() as seated:
        assert seated
        if places > 1:
            with taken(page, places - 1):
                yield
        else:
            yield


async def test_places_are_given_back_whatever_happens() -> None:
    gateway = Gateway()
    with suppress(ZeroDivisionError), taken(gateway.page, MAX_VIEWERS):
        with gateway.page.seat() as seated:
            assert not seated
        raise ZeroDivisionError
    assert gateway.page.viewers == 0
