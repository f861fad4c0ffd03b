"""What looking at a gateway costs: the scenario `metrics`; the method is in docs/performance.md.

Its callers ask for so many models by name (aliases of one), streamed and not, so that it has as many series as a
gateway of that size has. Then its /metrics is scraped, one text after another, and the CPU time of the whole process
while one is answered is counted, less what it takes in that time when nobody looks. How long the loop is held up
meanwhile is seen from outside: a connection asks for the list of models, answered from memory, every millisecond.

At last its status page is open, once and sixteen times, while such requests pass that change all rows of its longest
table every second; what they take by themselves is counted just before.
"""

import asyncio
import http.client
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from loadtest.bench.accounting import Cpu, cpu_of, difference
from loadtest.bench.client import NotWhole
from loadtest.bench.report import Round, cell, remarks, written
from loadtest.bench.scenarios import Bench, Figures
from loadtest.bench.targets import Gateway, Running, Site, serving
from loadtest.bench.wire import CHAT_PATH, MODEL, Wish, chat_body, stream_body

HOST: Final = "127.0.0.1"
FRESH_SECONDS: Final = 1.05
"""After so long a scrape finds no text that is kept, but has one rendered."""
SCRAPE_EVERY_SECONDS: Final = 15
"""As Prometheus does where nobody says otherwise."""
ASK_EVERY_SECONDS: Final = 0.001
QUIET_SECONDS: Final = 0.03
"""How long it is looked at before each scrape, for comparison: about as long as one takes."""
KEPT_SCRAPES: Final = 20
PAGES: Final = (1, 16)
PASS_EVERY_SECONDS: Final = 0.02

_LENGTH: Final = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


def alias(number: int) -> str:
    """A model's name, as long as they are."""
    return f"acme/instruct-{number:03d}"


@dataclass(frozen=True)
class Looked:
    """`poolgate serve` with so many names of models."""

    models: int
    name: str = "looked at"

    def version(self) -> str:
        return Gateway().version()

    @contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        with serving(site, models=tuple(map(alias, range(self.models)))) as (running, ops_port):
            yield replace(running, ops_port=ops_port)


@dataclass(frozen=True)
class Scrapes:
    """A gateway that has been asked for so many of its models."""

    name: str
    rounds: int
    models: int
    idle_seconds: float
    scrapes: int
    page_seconds: float = 6.0
    direct: bool = False

    async def measure(self, target: Running, bench: Bench) -> Figures:
        await asyncio.to_thread(fill, target.ports[0], bench.key, self.models)
        idle = await _idle(target, self.idle_seconds)
        async with asyncio.timeout(60):
            found = await _scraped(target, self.scrapes, idle)
            kept_us = await _kept(target, idle)
            held = await _held(target, bench.key, self.scrapes)
        pages = await _paged(target, bench.key, self.page_seconds)
        values = {
            "series": float(series_in(found.text)),
            "kib": len(found.text) / 1024,
            "scrape_ms": found.cpu_ms,
            "share": found.cpu_ms / 1000 / SCRAPE_EVERY_SECONDS,
            "kept_ms": kept_us / 1000,
            "wait_ms": 1000 * statistics.median(each.took for each in held),
            "held_ms": 1000 * statistics.median(each.held for each in held),
            "quiet_ms": 1000 * statistics.median(each.quiet for each in held),
        }
        values |= {f"pages_{count}": share for count, share in pages.items()}
        return Figures(values, found.waited, found.exact)


LOOKED: Final = (Looked(120),)
FULL: Final = (
    Scrapes("metrics 12", 3, models=12, idle_seconds=8.0, scrapes=8),
    Scrapes("metrics 120", 3, models=120, idle_seconds=8.0, scrapes=8),
)
QUICK: Final = (Scrapes("metrics 12", 1, models=12, idle_seconds=3.0, scrapes=4, page_seconds=3.0),)


def fill(port: int, key: str, models: int) -> None:
    """Two chats for each model, one of them a stream. Raises `NotWhole`."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        for number in range(models):
            for body in (chat_body(400), stream_body(Wish(4, 1000, 0))):
                asked = body.replace(b'"model":"%b"' % MODEL.encode(), b'"model":"%b"' % alias(number).encode(), 1)
                connection.request(
                    "POST", CHAT_PATH, asked, {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
                )
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200:
                    raise NotWhole(f"status {answer.status} for {alias(number)}: {text[:200]!r}")
    finally:
        connection.close()


def series_in(text: bytes) -> int:
    """The samples of an exposition."""
    return sum(1 for line in text.splitlines() if line and not line.startswith(b"#"))


# --- connections --------------------------------------------------------------------------------------------


class Asker:
    """One connection that stays open, and one question that is asked over and over."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, question: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._question = question

    @classmethod
    async def to(cls, port: int, path: str, key: str = "") -> "Asker":
        reader, writer = await asyncio.open_connection(HOST, port, limit=2**24)
        bearer = f"Authorization: Bearer {key}\r\n" if key else ""
        return cls(reader, writer, f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{bearer}\r\n".encode())

    async def ask(self) -> bytes:
        """The body. Raises `NotWhole`."""
        self._writer.write(self._question)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 200 ") or length is None:
            raise NotWhole(f"not an answer of a known length: {head[:200]!r}")
        return await self._reader.readexactly(int(length[1]))

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


# --- what it costs ------------------------------------------------------------------------------------------


class _Scraped(NamedTuple):
    text: bytes
    """Of the last one."""
    cpu_ms: float
    """Of each, all threads together."""
    waited: float
    exact: bool


class _Window(NamedTuple):
    cpu: Cpu
    at: float

    @staticmethod
    def open(target: Running) -> "_Window":
        return _Window(cpu_of(target.processes()), time.monotonic())

    def close(self, target: Running) -> tuple[float, float, float, bool]:
        """(CPU seconds, seconds, seconds waited for a core, whether it was counted exactly)."""
        spent = difference(self.cpu, cpu_of(target.processes()))
        return spent.cpu_ns / 1e9, time.monotonic() - self.at, spent.waited_ns / 1e9, spent.exact


async def _idle(target: Running, seconds: float) -> float:
    """CPU seconds a second when nobody looks."""
    window = _Window.open(target)
    await asyncio.sleep(seconds)
    spent, lasted, _, _ = window.close(target)
    return spent / lasted


async def _scraped(target: Running, scrapes: int, idle: float) -> _Scraped:
    """Each so long after the one before that it has a text rendered."""
    asker = await Asker.to(target.ops_port, "/metrics")
    await asker.ask()
    await asyncio.sleep(FRESH_SECONDS)
    each = []
    for _ in range(scrapes):
        window = _Window.open(target)
        text = await asker.ask()
        each.append(window.close(target))
        await asyncio.sleep(FRESH_SECONDS)
    await asker.close()
    lasted = sum(seconds for _, seconds, _, _ in each)
    return _Scraped(
        text,
        1000 * statistics.median(max(0.0, spent - idle * seconds) for spent, seconds, _, _ in each),
        sum(waited for _, _, waited, _ in each) / lasted,
        all(exact for *_, exact in each),
    )


async def _kept(target: Running, idle: float) -> float:
    """CPU µs of a scrape that finds a text."""
    asker = await Asker.to(target.ops_port, "/metrics")
    await asker.ask()
    window = _Window.open(target)
    for _ in range(KEPT_SCRAPES):
        await asker.ask()
    spent, lasted, _, _ = window.close(target)
    await asker.close()
    if lasted > FRESH_SECONDS:
        raise NotWhole(f"{KEPT_SCRAPES} scrapes took {lasted:.1f} s: some of them had a text rendered")
    return 1e6 * max(0.0, spent - idle * lasted) / KEPT_SCRAPES


class _Held(NamedTuple):
    took: float
    """What the scraper waited, in seconds."""
    held: float
    """The longest answer to somebody else meanwhile."""
    quiet: float
    """The same before."""


async def _held(target: Running, key: str, scrapes: int) -> list[_Held]:
    """How long others wait while a text is rendered."""
    scraper = await Asker.to(target.ops_port, "/metrics")
    other = await Asker.to(target.ports[0], "/v1/models", key)
    await other.ask()
    found = []
    for _ in range(scrapes):
        await asyncio.sleep(FRESH_SECONDS)
        quiet = await _longest(other, asyncio.create_task(asyncio.sleep(QUIET_SECONDS)))
        began = time.monotonic()
        scraping = asyncio.create_task(_timed(scraper))
        held = await _longest(other, scraping)
        found.append(_Held(await scraping - began, held, quiet))
    await scraper.close()
    await other.close()
    return found


async def _paged(target: Running, key: str, seconds: float) -> dict[int, float]:
    """By how many pages are open: CPU seconds a second that they take, beside requests that pass."""
    passing = asyncio.create_task(_pass(target.ports[0], key))
    without = await _idle(target, seconds)
    found = {}
    for count in PAGES:
        viewers = [asyncio.create_task(_watch(target.ops_port)) for _ in range(count)]
        await asyncio.sleep(FRESH_SECONDS)
        found[count] = max(0.0, await _idle(target, seconds) - without)
        if any(viewer.done() for viewer in viewers):
            raise NotWhole("a status page's stream has ended")
        for viewer in viewers:
            viewer.cancel()
        await asyncio.gather(*viewers, return_exceptions=True)
    passing.cancel()
    await asyncio.gather(passing, return_exceptions=True)
    return found


async def _pass(port: int, key: str) -> None:
    """Requests, until it is cancelled."""
    asker = await Asker.to(port, "/v1/models", key)
    try:
        while True:
            await asker.ask()
            await asyncio.sleep(PASS_EVERY_SECONDS)
    finally:
        await asker.close()


async def _watch(port: int) -> None:
    """An open page: reads its events until it is cancelled, or they end."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(f"GET /status/events HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        while await reader.read(65_536):
            pass
    finally:
        writer.close()
        await writer.wait_closed()


async def _timed(asker: Asker) -> float:
    await asker.ask()
    return time.monotonic()


async def _longest(asker: Asker, until: "asyncio.Task[float] | asyncio.Task[None]") -> float:
    longest = 0.0
    while not until.done():
        began = time.monotonic()
        await asker.ask()
        took = time.monotonic() - began
        longest = max(longest, took)
        await asyncio.sleep(max(0.0, ASK_EVERY_SECONDS - took))
    return longest


# --- the report ---------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A figure, and how it is written."""

    title: str
    key: str
    form: str


LINES: Final = (
    Line("series", "series", ",.0f"),
    Line("KiB of text", "kib", ".0f"),
    Line("CPU ms of a scrape", "scrape_ms", ".1f"),
    Line(f"the same every {SCRAPE_EVERY_SECONDS} s: share of a core", "share", ".3%"),
    Line("CPU ms of a scrape that shares a text", "kept_ms", ".2f"),
    Line("the scraper waits, ms", "wait_ms", ".1f"),
    Line("others wait meanwhile: the longest, ms", "held_ms", ".1f"),
    Line("others wait when nobody looks: the longest, ms", "quiet_ms", ".1f"),
    Line("a status page is open: share of a core", "pages_1", ".1%"),
    Line("16 are open", "pages_16", ".1%"),
)
NOTES: Final = (
    "Metrics: a gateway that was asked for so many models, scraped so that each scrape has a text rendered.",
    "CPU is that of the whole process, less what it takes when nobody looks. Others: the list of models, every 1 ms.",
)


def table(rounds: Sequence[Round]) -> str:
    """A Markdown table: a line for each figure, a column for each number of models."""
    scenarios = list(dict.fromkeys(r.scenario for r in rounds))
    rows = [["", *(f"{name.split()[-1]} models" for name in scenarios)], ["---"] * (1 + len(scenarios))]
    for line in LINES:
        shown = []
        for name in scenarios:
            mine = [r for r in rounds if r.scenario == name and line.key in r.values]
            shown.append(written(cell(mine, lambda r, key=line.key: r.values[key]), line.form))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        rows.append([line.title, *shown])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def notes(rounds: Sequence[Round]) -> list[str]:
    """What a reader of the table must know."""
    return [*NOTES, *remarks(rounds)]
