"""One round of one scenario: warm up, watch a window, end cleanly.

A scenario is frozen numbers and a `measure`, which gets a target that answers and gives the figures of the
round. A window's edges are two readings of /proc with the client's counters read beside them; no stream
begins or ends inside it, so the cost of chunks holds nothing of the cost of requests.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from loadtest.bench.accounting import Cpu, Spent, cpu_of, difference, memory_of
from loadtest.bench.backend import FINISH_PATH
from loadtest.bench.client import NotWhole, RequestLoad, StreamLoad, open_loops, open_streams
from loadtest.bench.targets import Running
from loadtest.bench.wire import Wish, chat_body, chat_request, spread, stream_body

_HOST: Final = "127.0.0.1"
_END_SECONDS: Final = 15.0
_UNTIL_FINISHED: Final = 1_000_000  # tokens: more than any round has time for; the pods are told when to finish


@dataclass(frozen=True)
class Bench:
    """What a round needs beside its target: a caller's key, the apparatus' processes, the pods' ports."""

    key: str
    apparatus: tuple[int, ...]
    pods: tuple[int, ...]


@dataclass(frozen=True)
class Figures:
    """A round's result. `waited`: the share of the window in which the target was ready but had no core."""

    values: dict[str, float]
    waited: float = 0.0
    exact: bool = True


class Scenario(Protocol):
    """`rounds` is how often it is worth repeating; `direct` whether it says anything without a proxy."""

    @property
    def name(self) -> str: ...
    @property
    def rounds(self) -> int: ...
    @property
    def direct(self) -> bool: ...
    async def measure(self, target: Running, bench: Bench) -> Figures: ...


@dataclass(frozen=True)
class Requests:
    """Closed loops: as many requests at any time as there are connections, none streamed."""

    name: str
    rounds: int
    body_bytes: int
    connections: int
    warm_seconds: float
    window_seconds: float
    direct: bool = True

    async def measure(self, target: Running, bench: Bench) -> Figures:
        load = RequestLoad()
        await _loops(load, target, bench, self.body_bytes, self.connections)
        await load.watch(self.warm_seconds)
        watched = target.watch()
        before, begin = load.answered, _Edge.of(target, bench)
        await load.watch(self.window_seconds)
        answered, window = load.answered - before, begin.until(_Edge.of(target, bench))
        more = watched(answered)
        load.stop()
        await load.ended(_END_SECONDS)
        # Each connection always waits for one answer, so this is how long one takes.
        answer_us = 1e6 * self.connections * window.seconds / max(1, answered)
        return window.figures(answered, answer_us=answer_us, **more)


@dataclass(frozen=True)
class Chunks:
    """Open streams at a steady pace, their beats spread evenly over the period."""

    name: str
    rounds: int
    streams: int
    tokens_per_second: float
    warm_seconds: float
    window_seconds: float
    direct: bool = True

    async def measure(self, target: Running, bench: Bench) -> Figures:
        load = StreamLoad()
        await _streams(load, target, bench, self.streams, self.tokens_per_second)
        await load.watch(self.warm_seconds)
        tokens, reads, seen = load.tokens, load.reads, len(load.transit_us)
        begin = _Edge.of(target, bench)
        await load.watch(self.window_seconds)
        window = begin.until(_Edge.of(target, bench))
        tokens, reads, transit = load.tokens - tokens, load.reads - reads, sorted(load.transit_us[seen:])
        await _finish(load, bench, self.streams)
        return window.figures(
            tokens,
            chunks_per_read=tokens / max(1, reads),
            on_pace=tokens / window.seconds / (self.streams * self.tokens_per_second),
            transit_p50_us=percentile(transit, 0.50),
            transit_p99_us=percentile(transit, 0.99),
        )


@dataclass(frozen=True)
class OpenStreams:
    """Memory: a warm and idle target, then the same with all streams open. It must have just been started.

    Judged by RSS: PSS and USS of a process change when another that shares its libraries comes or goes.
    """

    name: str
    rounds: int
    streams: int
    tokens_per_second: float
    warm_seconds: float
    hold_seconds: float
    direct: bool = False

    async def measure(self, target: Running, bench: Bench) -> Figures:
        await self._warm_up(target, bench)
        idle = memory_of(target.processes())
        load = StreamLoad()
        await _streams(load, target, bench, self.streams, self.tokens_per_second)
        await load.watch(self.hold_seconds)
        if not load.begun == load.open == self.streams:
            raise NotWhole(f"{load.begun} of {self.streams} streams had begun, {load.open} were open")
        opened = memory_of(target.processes())
        await _finish(load, bench, self.streams)
        return Figures(
            {
                "kib_per_stream": (opened.rss - idle.rss) / 1024 / self.streams,
                "idle_mib": idle.rss / 2**20,
                "open_mib": opened.rss / 2**20,
                "pss_kib_per_stream": (opened.pss - idle.pss) / 1024 / self.streams,
                "uss_kib_per_stream": (opened.uss - idle.uss) / 1024 / self.streams,
            }
        )

    async def _warm_up(self, target: Running, bench: Bench) -> None:
        """So that what a target allocates once, on its first requests, is not counted for the streams."""
        requests = RequestLoad()
        await _loops(requests, target, bench, body_bytes=400, connections=8)
        await requests.watch(self.warm_seconds)
        requests.stop()
        await requests.ended(_END_SECONDS)
        streams = StreamLoad()
        await _streams(streams, target, bench, streams=20, tokens_per_second=20)
        await streams.watch(self.warm_seconds)
        await _finish(streams, bench, 20)
        await asyncio.sleep(self.warm_seconds)


FULL: Final[tuple[Scenario, ...]] = (
    Requests("requests", 5, body_bytes=400, connections=32, warm_seconds=1.0, window_seconds=5.0),
    Chunks("chunks", 5, streams=100, tokens_per_second=50, warm_seconds=1.5, window_seconds=8.0),
    OpenStreams("memory", 3, streams=1000, tokens_per_second=0.2, warm_seconds=0.5, hold_seconds=8.0),
    Requests("large 32 KB", 3, body_bytes=32 * 1024, connections=16, warm_seconds=0.5, window_seconds=3.0),
    Requests("large 1 MB", 3, body_bytes=2**20, connections=4, warm_seconds=0.5, window_seconds=3.0),
)
QUICK: Final[tuple[Scenario, ...]] = (
    Requests("requests", 2, body_bytes=400, connections=32, warm_seconds=0.4, window_seconds=1.3),
    Chunks("chunks", 2, streams=100, tokens_per_second=50, warm_seconds=0.6, window_seconds=1.5, direct=False),
    OpenStreams("memory", 1, streams=1000, tokens_per_second=0.2, warm_seconds=0.3, hold_seconds=1.5),
    Requests(
        "large 32 KB",
        1,
        body_bytes=32 * 1024,
        connections=16,
        warm_seconds=0.3,
        window_seconds=1.0,
        direct=False,
    ),
    Requests("large 1 MB", 1, body_bytes=2**20, connections=4, warm_seconds=0.3, window_seconds=1.0, direct=False),
)


def percentile(ordered: Sequence[int], share: float) -> float:
    """Of values in order; 0 if there are none."""
    return float(ordered[min(len(ordered) - 1, int(len(ordered) * share))]) if ordered else 0.0


@dataclass(frozen=True)
class _Window:
    seconds: float
    target: Spent
    apparatus: Spent

    def figures(self, count: int, **more: float) -> Figures:
        values = {
            "cpu_us": self.target.cpu_ns / 1000 / max(1, count),
            "per_second": count / self.seconds,
            "busy": self.target.cpu_ns / 1e9 / self.seconds,
            "apparatus_busy": self.apparatus.cpu_ns / 1e9 / self.seconds,
        }
        return Figures(values | more, waited=self.target.waited_ns / 1e9 / self.seconds, exact=self.target.exact)


@dataclass(frozen=True)
class _Edge:
    """One edge of a window: the target's reading is the last taken, for it is the one that counts."""

    apparatus: Cpu
    target: Cpu
    at: float = field(default_factory=time.monotonic)

    @staticmethod
    def of(target: Running, bench: Bench) -> "_Edge":
        return _Edge(cpu_of(bench.apparatus), cpu_of(target.processes()))

    def until(self, end: "_Edge") -> _Window:
        return _Window(end.at - self.at, difference(self.target, end.target), difference(self.apparatus, end.apparatus))


async def _loops(load: RequestLoad, target: Running, bench: Bench, body_bytes: int, connections: int) -> None:
    body = chat_body(body_bytes)
    requests = tuple(chat_request(_HOST, port, bench.key, body) for port in target.ports)
    await open_loops(load, target.ports, requests, connections)


async def _streams(load: StreamLoad, target: Running, bench: Bench, streams: int, tokens_per_second: float) -> None:
    period_us = round(1_000_000 / tokens_per_second)
    requests = tuple(
        chat_request(
            _HOST,
            target.ports[index % len(target.ports)],
            bench.key,
            stream_body(Wish(_UNTIL_FINISHED, period_us, phase_us)),
        )
        for index, phase_us in enumerate(spread(streams, period_us))
    )
    await open_streams(load, target.ports, requests, per_second=1000)


async def _finish(load: StreamLoad, bench: Bench, streams: int) -> None:
    """Has the pods end all streams, and sees each to its whole end."""
    reader, writer = await asyncio.open_connection(_HOST, bench.pods[0])
    writer.write(b"POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n\r\n" % (FINISH_PATH, _HOST.encode()))
    await reader.readuntil(b"{}")
    writer.close()
    await load.ended(_END_SECONDS)
    if load.whole != streams:
        raise NotWhole(f"{load.whole} of {streams} streams came whole")
