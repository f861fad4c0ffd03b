"""What hostile clients cost everybody else: `python -m loadtest.bench.hostile`; the table is in docs/performance.md.

One gateway, as an operator starts it, on a core of its own. Meanwhile 100 healthy requests a second pass over
connections that stay open, and one attack after the other is made. Told of each: what a healthy request takes before
and during it, and what memory the gateway has before it, at most during it, and after it.

Latencies are of a wall clock on a machine that may be shared: they compare before and during, in one run. Attackers
come from many addresses of 127.0.0.0/8, as they would.
"""

import argparse
import asyncio
import http.client
import itertools
import json
import math
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, cast

import uvloop

from loadtest.bench.accounting import cpu_of, difference, memory_of
from loadtest.bench.looking import Asker, series_in
from loadtest.bench.processes import BenchError, allow_many_files, alone
from loadtest.bench.report import host_facts
from loadtest.bench.targets import Gateway, Running, Site, new_key, pods, serving
from loadtest.bench.wire import CHAT_PATH, MODEL, chat_body, chat_request
from loadtest.percentiles import percentile

HOST: Final = "127.0.0.1"
FLOOD: Final = "flood"
"""The model of the pod that sends as fast as anybody reads."""
FLOOD_BYTES: Final = 80_000_000
HEALTHY_A_SECOND: Final = 100
HEALTHY_CONNECTIONS: Final = 10
ADDRESSES: Final = 64
OPEN_A_SECOND: Final = 2_000
LOOK_SECONDS: Final = 0.25
FILL_SECONDS: Final = 3.0
AFTER_SECONDS: Final = 3.0
"""How long memory is given to come back."""


@dataclass(frozen=True)
class Scale:
    """How much of each attack."""

    seconds: float
    """Of watching, before and during."""
    slow: int
    idle: int
    header_bytes: int
    readers: int
    names: int


FULL: Final = Scale(seconds=20.0, slow=2_000, idle=10_000, header_bytes=96_000_000, readers=100, names=1_000_000)
QUICK: Final = Scale(seconds=3.0, slow=100, idle=500, header_bytes=8_000_000, readers=10, names=5_000)


@dataclass
class Lab:
    """One gateway, and what is seen of it."""

    target: Running
    key: str
    scale: Scale
    told: Counter[str] = field(default_factory=Counter)
    """What the attackers were told: statuses, and how their connections ended."""

    @property
    def port(self) -> int:
        return self.target.ports[0]

    def rss(self) -> int:
        return memory_of(self.target.processes()).rss

    def metrics(self) -> bytes:
        connection = http.client.HTTPConnection(HOST, self.target.ops_port, timeout=10)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read()
        finally:
            connection.close()


Attack = Callable[[Lab], AbstractAsyncContextManager[None]]
"""Built up when it is entered; at its end everything of it is closed, and what it was told is noted."""


# --- attacks ------------------------------------------------------------------------------------------------


class Slow(asyncio.Protocol):
    """A connection that says `first` and then one byte of `rest` each second, and notes how it ends."""

    def __init__(self, lab: Lab, first: bytes, rest: bytes) -> None:
        self._lab = lab
        self._first = first
        self._rest = iter(rest)
        self._said = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # a stream protocol is only ever given this kind
        self.transport.write(self._first)

    def drip(self) -> None:
        if self.transport is not None:
            for byte in itertools.islice(self._rest, 1):
                self.transport.write(bytes((byte,)))

    def data_received(self, data: bytes) -> None:
        self._said = (self._said + data)[:64]

    def leave(self) -> None:
        """Nobody closed it: nothing to be noted any more."""
        if self.transport is not None:
            self.transport.abort()
            self.transport = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is not None:
            self.transport = None
            self._lab.told[status_in(self._said)] += 1


def status_in(said: bytes) -> str:
    """The status of the first answer, or that there was none."""
    return said[9:12].decode("latin-1") if said.startswith(b"HTTP/1.1 ") else "closed without a word"


async def connected(lab: Lab, make: Callable[[], Slow], number: int) -> Slow | None:
    """A connection from one of many addresses; None: it was refused."""
    loop = asyncio.get_running_loop()
    try:
        _, made = await loop.create_connection(
            make, HOST, lab.port, local_addr=(f"127.0.1.{number % ADDRESSES + 1}", 0)
        )
    except OSError as error:
        lab.told[f"not connected: {error.strerror}"] += 1
        return None
    return made


@asynccontextmanager
async def slowloris(lab: Lab) -> AsyncIterator[None]:
    """Four kinds of slow: silent, a head by the byte, a body by the byte, and a byte after a whole request."""
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n" % (CHAT_PATH.encode(), lab.key.encode())
    whole = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n\r\n" % lab.key.encode()
    long = b"x-a: b\r\n" * 200
    kinds = (
        (b"", b""),
        (b"", head + long),
        (head + b"Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n{", b" " * 4_000),
        (whole, b"POST /v1/chat"),
    )
    async with many(lab, lab.scale.slow, lambda number: kinds[number % len(kinds)]) as made:
        dripping = asyncio.create_task(_drip(made))
        try:
            yield
        finally:
            dripping.cancel()


@asynccontextmanager
async def idle(lab: Lab) -> AsyncIterator[None]:
    """Connections that have had one answer and stay open."""
    whole = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n\r\n" % lab.key.encode()
    async with many(lab, lab.scale.idle, lambda number: (whole, b"")):
        yield


@asynccontextmanager
async def many(lab: Lab, count: int, says: Callable[[int], tuple[bytes, bytes]]) -> AsyncIterator[list[Slow]]:
    """That many slow connections."""
    made: list[Slow] = []
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / OPEN_A_SECOND - loop.time()))
        first, rest = says(number)
        one = await connected(lab, lambda first=first, rest=rest: Slow(lab, first, rest), number)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        if one is not None:
            made.append(one)
    try:
        yield made
    finally:
        for one in made:
            if one.transport is not None:
                lab.told["still open at the end"] += 1
                one.leave()


async def _drip(made: list[Slow]) -> None:
    while True:
        await asyncio.sleep(1.0)
        for one in made:
            one.drip()


@asynccontextmanager
async def headers(lab: Lab) -> AsyncIterator[None]:
    """Header lines without end on one connection, again and again until all of them were sent or refused."""
    flooding = asyncio.create_task(_flood_headers(lab))
    try:
        yield
        lab.told["MB that the connection took"] = round(await flooding / 1e6)
    finally:
        flooding.cancel()


async def _flood_headers(lab: Lab) -> int:
    line = b"x-filler: %b\r\n" % (b"a" * 1000)
    block = line * 64
    reader, writer = await asyncio.open_connection(HOST, lab.port)
    sent = 0
    try:
        writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\n" % CHAT_PATH.encode())
        while sent < lab.scale.header_bytes:
            writer.write(block)
            await writer.drain()
            sent += len(block)
    except ConnectionError:
        pass
    said = b""
    with suppress(ConnectionError):
        said = await reader.read(64)
    lab.told[status_in(said)] += 1
    writer.close()
    return sent


@asynccontextmanager
async def readers(lab: Lab) -> AsyncIterator[None]:
    """Streams of 80 MB each, read a byte a second through the smallest window the kernel allows."""
    begun = [asyncio.Event() for _ in range(lab.scale.readers)]
    reading = [asyncio.create_task(_reader(lab, each)) for each in begun]
    for each in begun:
        await each.wait()
    # Until all that the sockets hold is full, the pod is busy, which lives on the core of the healthy clients.
    await asyncio.sleep(FILL_SECONDS)
    try:
        yield
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def _reader(lab: Lab, begun: asyncio.Event) -> None:
    """`begun`: set when it was told something, or will not be."""
    try:
        await _read_slowly(lab, begun)
    finally:
        begun.set()


async def _read_slowly(lab: Lab, begun: asyncio.Event) -> None:
    body = chat_body(400).replace(MODEL.encode(), FLOOD.encode(), 1).replace(b"{", b'{"stream":true,', 1)
    reader, writer = await asyncio.open_connection(HOST, lab.port, limit=1)
    try:
        writer.write(chat_request(HOST, lab.port, lab.key, body))
        first = await reader.read(64)
        lab.told[status_in(first)] += 1
        begun.set()
        while await reader.read(1):
            await asyncio.sleep(1.0)
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()


@asynccontextmanager
async def names(lab: Lab) -> AsyncIterator[None]:
    """Requests, each for a model that nobody has heard of."""
    numbers = iter(range(lab.scale.names))
    asking = [asyncio.create_task(_ask_for_names(lab, numbers)) for _ in range(16)]
    yield
    await asyncio.gather(*asking)


async def _ask_for_names(lab: Lab, numbers: Iterator[int]) -> None:
    reader, writer = await asyncio.open_connection(HOST, lab.port)
    for number in numbers:
        body = chat_body(200).replace(MODEL.encode(), b"nobody-has-%08d" % number, 1)
        writer.write(chat_request(HOST, lab.port, lab.key, body))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        lab.told[status_in(head)] += 1
    writer.close()


def outcomes_in(exposition: bytes) -> Counter[str]:
    """How the gateway's requests ended, so far."""
    found: Counter[str] = Counter()
    for outcome, count in _OUTCOME.findall(exposition):
        found[outcome.decode()] += int(float(count))
    return found


_OUTCOME: Final = re.compile(rb'^poolgate_requests_total\{[^}]*outcome="(\w+)"[^}]*\} (\S+)$', re.MULTILINE)


class Named(NamedTuple):
    """An attack, and how the table calls it."""

    title: Callable[[Scale], str]
    attack: Attack
    windows: int = 1
    """How many times as long as the others it is watched."""


ATTACKS: Final = {
    "slowloris": Named(lambda scale: f"{scale.slow:,} slow connections", slowloris),
    "idle": Named(lambda scale: f"{scale.idle:,} idle connections", idle),
    "headers": Named(lambda scale: f"{scale.header_bytes / 1e6:,.0f} MB of headers on one connection", headers),
    "readers": Named(lambda scale: f"{scale.readers} readers, 1 B/s of {FLOOD_BYTES / 1e6:.0f} MB each", readers, 2),
    "names": Named(lambda scale: f"{scale.names:,} names of models", names),
}


# --- what is seen -------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """A window: healthy requests in ms, and the gateway's memory and CPU."""

    p50: float
    p99: float
    most_rss: int
    cpu_share: float
    """Seconds of CPU a second."""


async def watch(lab: Lab, seconds: float) -> Seen:
    """Healthy requests at their pace, for so long. Raises `NotWhole` if one of them is not answered."""
    askers = [await Asker.to(lab.port, "/v1/models", lab.key) for _ in range(HEALTHY_CONNECTIONS)]
    took_us: list[int] = []
    most = 0
    before, began = cpu_of(lab.target.processes()), time.monotonic()

    async def ask(asker: Asker, number: int) -> None:
        every = HEALTHY_CONNECTIONS / HEALTHY_A_SECOND
        due = began + number * every / HEALTHY_CONNECTIONS
        while due < began + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            asked = time.monotonic()
            await asker.ask()
            took_us.append(round(1e6 * (time.monotonic() - asked)))
            due += every

    asking = [asyncio.create_task(ask(asker, number)) for number, asker in enumerate(askers)]
    while not all(task.done() for task in asking):
        most = max(most, lab.rss())
        await asyncio.sleep(LOOK_SECONDS)
    await asyncio.gather(*asking)
    spent = difference(before, cpu_of(lab.target.processes()))
    for asker in askers:
        await asker.close()
    took_us.sort()
    return Seen(
        percentile(took_us, 0.5) / 1000,
        percentile(took_us, 0.99) / 1000,
        most,
        spent.cpu_ns / 1e9 / (time.monotonic() - began),
    )


@dataclass(frozen=True)
class Row:
    """One attack: before, during and after."""

    title: str
    before: Seen
    during: Seen
    rss_before: int
    rss_after: int
    series: tuple[int, int]
    metrics_bytes: tuple[int, int]
    told: dict[str, int]


async def measure(lab: Lab, named: Named) -> Row:
    """One attack."""
    lab.told.clear()
    before = await watch(lab, lab.scale.seconds)
    rss_before, metrics_before = lab.rss(), await asyncio.to_thread(lab.metrics)
    async with named.attack(lab):
        during = await watch(lab, lab.scale.seconds * named.windows)
    await asyncio.sleep(AFTER_SECONDS)
    metrics_after = await asyncio.to_thread(lab.metrics)
    ended = outcomes_in(metrics_after)
    ended.subtract(outcomes_in(metrics_before))
    lab.told.update({f"ended as {outcome}": count for outcome, count in ended.items() if outcome != "completed"})
    return Row(
        named.title(lab.scale),
        before,
        during,
        rss_before,
        lab.rss(),
        (series_in(metrics_before), series_in(metrics_after)),
        (len(metrics_before), len(metrics_after)),
        {word: count for word, count in sorted(lab.told.items()) if count},
    )


@asynccontextmanager
async def flooding_pod() -> AsyncIterator[int]:
    """A pod that answers each chat with a stream of 80 MB, as fast as it is read."""
    event = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"%b","choices":[%b]}\n\n' % (
        FLOOD.encode(),
        b'{"index":0,"delta":{"content":"%b"},"logprobs":null,"finish_reason":null}' % (b"z" * 900),
    )
    piece = event * 16
    chunk = b"%x\r\n%b\r\n" % (len(piece), piece)
    models = json.dumps({"object": "list", "data": [{"id": FLOOD, "object": "model", "owned_by": "vllm"}]}).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"POST"):
                    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                    await reader.readexactly(length)
                    writer.write(
                        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                    )
                    for _ in range(FLOOD_BYTES // len(piece)):
                        writer.write(chunk)
                        await writer.drain()
                body = models if b"/v1/models" in head else b"{}"
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                    % (len(body), body)
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


# --- the report ---------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each attack."""
    head = (
        "attack", "p50 / p99 before, ms", "during, ms", "MiB before", "at most", "after", "CPU before", "during",
        "series before", "after", "what attackers were told",
    )  # fmt: skip
    lines = [head, ("---",) * len(head)]
    for row in rows:
        told = "; ".join(f"{word}: {count:,}" for word, count in row.told.items())
        lines.append(
            (
                row.title,
                f"{row.before.p50:.2f} / {row.before.p99:.2f}",
                f"{row.during.p50:.2f} / {row.during.p99:.2f}",
                f"{row.rss_before / 2**20:.1f}",
                f"{row.during.most_rss / 2**20:.1f}",
                f"{row.rss_after / 2**20:.1f}",
                f"{row.before.cpu_share:.1%}",
                f"{row.during.cpu_share:.1%}",
                f"{row.series[0]:,}",
                f"{row.series[1]:,}",
                told,
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


async def _run(site: Site, target: Running, key: str, scale: Scale, wanted: Sequence[str]) -> list[Row]:
    lab = Lab(target, key, scale)
    rows = []
    for name in wanted:
        rows.append(await measure(lab, ATTACKS[name]))
        print(f"  {rows[-1].title}: done", file=sys.stderr, flush=True)
    return rows


async def _bench(scale: Scale, wanted: Sequence[str]) -> list[Row]:
    cores = sorted(os.sched_getaffinity(0))
    own, theirs = cores[0], cores[-1]
    os.sched_setaffinity(0, {own})
    key = new_key()
    with tempfile.TemporaryDirectory() as folder:
        async with flooding_pod() as flood:
            with pods(1, grid_us=1000, core=own, folder=Path(folder)) as (pid, ports):
                site = Site(Path(folder), theirs, (*ports, flood), (pid, os.getpid()), key)
                # The gateway asks the pod that lives in this loop, so its start must not hold the loop.
                starting = serving(site)
                running, ops_port = await asyncio.to_thread(starting.__enter__)
                try:
                    target = Running(running.ports, running.processes, running.log, ops_port)
                    return await _run(site, target, key, scale, wanted)
                finally:
                    await asyncio.to_thread(starting.__exit__, None, None, None)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.hostile", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small run, to see that all of it works")
    parser.add_argument("--attack", action="append", choices=tuple(ATTACKS), help="only this one; may be repeated")
    asked = parser.parse_args(arguments)
    scale = QUICK if asked.quick else FULL
    allow_many_files()
    with alone():
        try:
            rows = uvloop.run(_bench(scale, asked.attack or tuple(ATTACKS)))
        except BenchError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    print(table(rows))
    print("\n" + "\n".join(f"- {fact}" for fact in host_facts({"poolgate": Gateway().version()}, {})))
    return 0 if all(math.isfinite(row.during.p99) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
