"""Chromium, driven through `node/driver.mjs`: one process for all tests, a page with a context of its own for each.

JSON lines go in and come out, each with an id, so that a test may wait for a page and do something else meanwhile.
Every wait has a deadline, there and here.
"""

import asyncio
import json
import os
import shutil
import subprocess
from asyncio import Future
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "node"
SECONDS = 45.0
"""For whatever a browser has to do: generous, and never slept through."""
MAX_LINE_BYTES = 16 << 20

IN_CHROMIUM = [
    pytest.mark.program("chromium"),
    pytest.mark.program("playwright"),
    # One browser, and one gateway for those that only look, live as long as the session's loop.
    pytest.mark.asyncio(loop_scope="session"),
]
"""The marks of a module whose tests want a browser."""


class BrowserFailed(Exception):
    """What the driver said instead of a result."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What a page did so far, beside what it shows."""

    requests: list[str]
    """Their URLs."""
    console: list[str]
    """`error: ...`, `warning: ...`, and whatever else was said there."""
    forbidden: list[str]
    """What the Content-Security-Policy held up: directive and source."""
    errors: list[str]
    """Of scripts, that nobody caught."""
    dialogs: list[str]
    """What `alert` and its kin said."""
    loads: int
    """How often the document was loaded."""


class Page:
    """An open page."""

    def __init__(self, browser: "Browser", name: str, status: int, headers: dict[str, str]) -> None:
        self._browser = browser
        self._name = name
        self.status = status
        self.headers = headers

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, now."""
        return await self._do("evaluate", expression=expression)

    async def until(self, expression: str, seconds: float = SECONDS) -> Any:
        """The expression's value once it is true."""
        return await self._do("until", expression=expression, seconds=seconds)

    async def text(self, selector: str = "body") -> str:
        """What a reader sees there."""
        told: str = await self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
        return told

    async def noted(self) -> Noted:
        """What it did so far."""
        return Noted(**await self._do("noted"))

    async def press(self, *keys: str) -> None:
        """Keys, one after the other: `Tab`, `Enter`."""
        await self._do("press", keys=keys)

    async def violations(self, within: str = "html") -> list[str]:
        """What axe-core finds against it, or a part of it. Of a whole page it finds much to be well."""
        told = await self._do("audit", within=within)
        assert within != "html" or told["passed"] > 10, told
        found: list[str] = told["violations"]
        return found

    async def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is in sight, or of the whole page."""
        await self._do("screenshot", path=str(path), whole=whole)

    async def close(self) -> None:
        """It leaves, with its connections."""
        await self._do("close")

    async def _do(self, does: str, **given: Any) -> Any:
        return await self._browser.do(does, name=self._name, **given)


class Browser:
    """The driver's process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._ids = count(1)
        self._waiting: dict[int, Future[Any]] = {0: asyncio.get_running_loop().create_future()}
        self._reading = asyncio.create_task(self._read())

    async def started(self) -> None:
        """Wait until Chromium is there."""
        async with asyncio.timeout(2 * SECONDS):
            await self._waiting[0]

    @asynccontextmanager
    async def page(self, url: str, **options: Any) -> AsyncIterator[Page]:
        """A page of a context of its own. `options` are those of Playwright's `browser.newContext`."""
        name = f"page-{next(self._ids)}"
        options = {"viewport": {"width": 1280, "height": 900}, **options}
        told = await self.do("open", name=name, url=url, options=options)
        page = Page(self, name, told["status"], told["headers"])
        try:
            yield page
        finally:
            await page.close()

    async def do(self, does: str, seconds: float = SECONDS, **given: Any) -> Any:
        """One thing, and what came of it."""
        number = next(self._ids)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        line = json.dumps({"id": number, "does": does, "seconds": seconds, **given})
        self._process.stdin.write(line.encode() + b"\n")
        try:
            async with asyncio.timeout(seconds + SECONDS):
                return await answer
        finally:
            del self._waiting[number]

    async def end(self) -> None:
        """Chromium goes with its driver."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(SECONDS):
                await self._process.wait()
        finally:
            if self._process.returncode is None:
                self._process.kill()
            await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            told = json.loads(line)
            answer = self._waiting.get(told["id"])
            if answer is None or answer.done():
                continue
            if "error" in told:
                answer.set_exception(BrowserFailed(told["error"]))
            else:
                answer.set_result(told["result"])
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(BrowserFailed("the driver has ended: see its words on stderr"))


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """A running Chromium."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "install it: apt-get install chromium"
    # Chromium's own sandbox wants another user than root.
    told = json.dumps({"executable": chromium, "sandbox": os.geteuid() != 0})
    process = await asyncio.create_subprocess_exec(
        *("node", "driver.mjs", told),
        cwd=FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=MAX_LINE_BYTES,
    )
    running = Browser(process)
    try:
        await running.started()
        yield running
    finally:
        await running.end()
