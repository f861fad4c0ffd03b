"""One round of one scenario: warm up, watch a window, end cleanly.

A scenario is frozen numbers and a `measure`, which gets a target that answers and gives the figures of the
round. A window's edges are two readings of /proc with the client's counters read beside them; no stream
begins or ends inside it, so the cost of chunks holds nothing of the cost of requests.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from loadtest.bench.accounting import Cpu, Spent, affinity_of, busy_ns, cpu_of, difference, memory_of
from loadtest.bench.backend import FINISH_PATH
from loadtest.bench.client import (
    ClosedLoop,
    NotWhole,
    Repeated,
    RequestLoad,
    Streamed,
    StreamLoad,
    Timed,
    TimedLoad,
    open_loops,
    open_streams,
)
from loadtest.bench.meaning import ClosedLoopByMeaning, RepeatedByMeaning, StreamedByMeaning, TimedByMeaning
from loadtest.bench.pacer import Pacer
from loadtest.bench.processes import files_allowed
from loadtest.bench.report import MIN_ON_PACE
from loadtest.bench.targets import Running
from loadtest.bench.wire import Wish, chat_body, chat_request, spread, stream_body
from loadtest.percentiles import percentile

_HOST: Final = "127.0.0.1"
_BEGIN_SECONDS: Final = 60.0
_END_SECONDS: Final = 30.0
_OTHER_FILES: Final = 100
_WARM_ANSWERS: Final = 500
_WARM_SECONDS: Final = 8.0
"""So many answers come before it counts, if they come in that time: some runtimes compile what is used often."""
SHORT_STREAM: Final = Wish(tokens=4, period_us=1000, phase_us=0)
HALF_LOAD: Final = 2500.0
"""Short streams a second: about half of what the gateway can take on its core."""
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
        await load.all_answered(_WARM_ANSWERS, _WARM_SECONDS)
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
        await load.all_begun(self.streams, _BEGIN_SECONDS)
        await load.watch(self.warm_seconds)
        tokens, reads, seen = load.tokens, load.reads, len(load.transit_us)
        begin = _Edge.of(target, bench)
        await load.watch(self.window_seconds)
        window = begin.until(_Edge.of(target, bench))
        tokens, reads, transit = load.tokens - tokens, load.reads - reads, sorted(load.transit_us[seen:])
        on_pace = tokens / window.seconds / (self.streams * self.tokens_per_second)
        if on_pace < MIN_ON_PACE:
            await load.abandon()  # what has piled up before it would take minutes
        else:
            await _finish(load, bench, self.streams)
        return window.figures(
            tokens,
            chunks_per_read=tokens / max(1, reads),
            on_pace=on_pace,
            transit_p50_us=percentile(transit, 0.50),
            transit_p99_us=percentile(transit, 0.99),
        )


@dataclass(frozen=True)
class OpenStreams:
    """Memory: a warm and idle target, then the same with all streams open. It must have just been started.

    Where the host allows a process fewer files than that takes, there are fewer streams.

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
        streams = min(self.streams, (files_allowed() - _OTHER_FILES) // 2)  # two sockets of the target's each
        await self._warm_up(target, bench)
        idle = memory_of(target.processes())
        load = StreamLoad()
        await _streams(load, target, bench, streams, self.tokens_per_second)
        await load.all_begun(streams, _BEGIN_SECONDS)
        await load.watch(self.hold_seconds)
        if not load.begun == load.open == streams:
            raise NotWhole(f"{load.begun} of {streams} streams had begun, {load.open} were open")
        opened = memory_of(target.processes())
        await _finish(load, bench, streams)
        return Figures(
            {
                "streams": streams,
                "left_out": self.streams - streams,
                "kib_per_stream": (opened.rss - idle.rss) / 1024 / streams,
                "idle_mib": idle.rss / 2**20,
                "open_mib": opened.rss / 2**20,
                "pss_kib_per_stream": (opened.pss - idle.pss) / 1024 / streams,
                "uss_kib_per_stream": (opened.uss - idle.uss) / 1024 / streams,
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
        await streams.all_begun(20, _BEGIN_SECONDS)
        await streams.watch(self.warm_seconds)
        await _finish(streams, bench, 20)
        await asyncio.sleep(self.warm_seconds)


@dataclass(frozen=True)
class Unpaced:
    """Streams whose tokens come as fast as they are taken: each connection asks for the next as soon as one is whole.

    The pod sends a burst in one write, so that a read brings many chunks whoever reads.
    """

    name: str
    rounds: int
    connections: int
    tokens: int
    warm_seconds: float
    window_seconds: float
    direct: bool = True

    async def measure(self, target: Running, bench: Bench) -> Figures:
        load = StreamLoad()
        wishes = [Wish(self.tokens, period_us=0, phase_us=0)] * self.connections
        kind = Repeated if target.verbatim else RepeatedByMeaning
        await open_streams(load, target.ports, _requests(target, bench, wishes), per_second=1000, kind=kind)
        await load.watch(self.warm_seconds)
        tokens, reads, begin = load.tokens, load.reads, _Edge.of(target, bench)
        await load.watch(self.window_seconds)
        tokens, reads, window = load.tokens - tokens, load.reads - reads, begin.until(_Edge.of(target, bench))
        load.stop()
        await load.ended(_END_SECONDS)
        return window.figures(tokens, bundled=tokens / max(1, reads))


@dataclass(frozen=True)
class FirstTokens:
    """How long a stream's first event takes from the instant it was due: an open loop of short streams.

    The instants are drawn before the start, the same for every target and round: arrivals of people who know nothing
    of each other.
    """

    name: str
    rounds: int
    streams_per_second: float
    wish: Wish
    connections: int
    warm_seconds: float
    window_seconds: float
    direct: bool = True

    async def measure(self, target: Running, bench: Bench) -> Figures:
        load = TimedLoad()
        requests = _requests(target, bench, [self.wish] * self.connections)
        kind = Timed if target.verbatim else TimedByMeaning
        await open_streams(load, target.ports, requests, per_second=1000, kind=kind)
        pacer = Pacer(asyncio.get_running_loop(), grid_ns=1)
        try:
            self._schedule(pacer, load)
            await load.watch(self.warm_seconds)
            seen, begun, begin = len(load.ttft_us), load.begun, _Edge.of(target, bench)
            await load.watch(self.window_seconds)
            begun, window = load.begun - begun, begin.until(_Edge.of(target, bench))
            ttft = sorted(load.ttft_us[seen:])
        finally:
            pacer.close()
        load.stop()
        await load.ended(_END_SECONDS)
        return window.figures(
            begun,
            on_pace=begun / window.seconds / self.streams_per_second,
            ttft_p50_us=percentile(ttft, 0.50),
            ttft_p99_us=percentile(ttft, 0.99),
        )

    def _schedule(self, pacer: Pacer, load: TimedLoad) -> None:
        chance = random.Random(self.name)
        due_ns = time.monotonic_ns()

        def beat() -> int:
            nonlocal due_ns
            load.due(due_ns // 1000)
            pause_ns = round(1e9 * chance.expovariate(self.streams_per_second))
            due_ns += pause_ns
            return pause_ns

        pacer.add(due_ns, beat)


FULL: Final[tuple[Scenario, ...]] = (
    Requests("requests", 5, body_bytes=400, connections=32, warm_seconds=1.0, window_seconds=5.0),
    Chunks("chunks", 5, streams=100, tokens_per_second=50, warm_seconds=1.5, window_seconds=8.0),
    Chunks("chunks 25k", 3, streams=500, tokens_per_second=50, warm_seconds=1.5, window_seconds=8.0),
    Unpaced("unpaced", 3, connections=8, tokens=4000, warm_seconds=1.0, window_seconds=5.0),
    FirstTokens("ttft", 3, HALF_LOAD, SHORT_STREAM, connections=256, warm_seconds=1.5, window_seconds=8.0),
    OpenStreams("memory", 3, streams=1000, tokens_per_second=0.2, warm_seconds=0.5, hold_seconds=8.0),
    OpenStreams("memory 5k", 2, streams=5000, tokens_per_second=0.2, warm_seconds=0.5, hold_seconds=8.0),
    OpenStreams("memory 10k", 1, streams=10_000, tokens_per_second=0.2, warm_seconds=0.5, hold_seconds=8.0),
    Requests("large 32 KB", 3, body_bytes=32 * 1024, connections=16, warm_seconds=0.5, window_seconds=3.0),
    Requests("large 1 MB", 3, body_bytes=2**20, connections=4, warm_seconds=0.5, window_seconds=3.0),
)
QUICK: Final[tuple[Scenario, ...]] = (
    Requests("requests", 2, body_bytes=400, connections=32, warm_seconds=0.4, window_seconds=1.3),
    Chunks("chunks", 2, streams=100, tokens_per_second=50, warm_seconds=0.6, window_seconds=1.5, direct=False),
    Chunks("chunks 25k", 1, streams=500, tokens_per_second=50, warm_seconds=0.6, window_seconds=1.5, direct=False),
    Unpaced("unpaced", 1, connections=8, tokens=4000, warm_seconds=0.4, window_seconds=1.3, direct=False),
    FirstTokens("ttft", 1, HALF_LOAD, SHORT_STREAM, connections=256, warm_seconds=0.5, window_seconds=2.0),
    OpenStreams("memory", 1, streams=1000, tokens_per_second=0.2, warm_seconds=0.3, hold_seconds=1.5),
    OpenStreams("memory 5k", 1, streams=5000, tokens_per_second=0.2, warm_seconds=0.3, hold_seconds=1.0),
    OpenStreams("memory 10k", 1, streams=10_000, tokens_per_second=0.2, warm_seconds=0.3, hold_seconds=1.0),
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


@dataclass(frozen=True)
class _Window:
    seconds: float
    target: Spent
    apparatus: Spent
    core_ns: int
    """How long the target's core worked, for whomever."""

    def figures(self, count: int, **more: float) -> Figures:
        values = {
            "cpu_us": self.target.cpu_ns / 1000 / max(1, count),
            "per_second": count / self.seconds,
            "busy": self.target.cpu_ns / 1e9 / self.seconds,
            "apparatus_busy": self.apparatus.cpu_ns / 1e9 / self.seconds,
        }
        for_others_ns = max(0, self.core_ns - self.target.cpu_ns)  # its own threads wait for each other as well
        waited = min(self.target.waited_ns, for_others_ns) / 1e9 / self.seconds
        return Figures(values | more, waited=waited, exact=self.target.exact)


@dataclass(frozen=True)
class _Edge:
    """One edge of a window: the target's reading is the last taken, for it is the one that counts."""

    apparatus: Cpu
    core_ns: int
    target: Cpu
    at: float = field(default_factory=time.monotonic)

    @staticmethod
    def of(target: Running, bench: Bench) -> "_Edge":
        processes = target.processes()
        return _Edge(cpu_of(bench.apparatus), busy_ns(affinity_of(processes)), cpu_of(processes))

    def until(self, end: "_Edge") -> _Window:
        return _Window(
            end.at - self.at,
            difference(self.target, end.target),
            difference(self.apparatus, end.apparatus),
            end.core_ns - self.core_ns,
        )


async def _loops(load: RequestLoad, target: Running, bench: Bench, body_bytes: int, connections: int) -> None:
    body = chat_body(body_bytes)
    requests = tuple(chat_request(_HOST, port, bench.key, body, target.headers) for port in target.ports)
    kind = ClosedLoop if target.verbatim else ClosedLoopByMeaning
    await open_loops(load, target.ports, requests, connections, kind)


async def _streams(load: StreamLoad, target: Running, bench: Bench, streams: int, tokens_per_second: float) -> None:
    period_us = round(1_000_000 / tokens_per_second)
    wishes = [Wish(_UNTIL_FINISHED, period_us, phase_us) for phase_us in spread(streams, period_us)]
    kind = Streamed if target.verbatim else StreamedByMeaning
    try:
        async with asyncio.timeout(_BEGIN_SECONDS):
            await open_streams(load, target.ports, _requests(target, bench, wishes), per_second=1000, kind=kind)
    except TimeoutError:
        raise NotWhole(f"{load.open} of {streams} connections were open after {_BEGIN_SECONDS:.0f} s") from None


def _requests(target: Running, bench: Bench, wishes: Sequence[Wish]) -> tuple[bytes, ...]:
    """One per wish, dealt out over the ports."""
    ports = target.ports
    return tuple(
        chat_request(_HOST, ports[index % len(ports)], bench.key, stream_body(wish), target.headers)
        for index, wish in enumerate(wishes)
    )


async def _finish(load: StreamLoad, bench: Bench, streams: int) -> None:
    """Has the pods end all streams, and sees each to its whole end."""
    reader, writer = await asyncio.open_connection(_HOST, bench.pods[0])
    writer.write(b"POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n\r\n" % (FINISH_PATH, _HOST.encode()))
    await reader.readuntil(b"{}")
    writer.close()
    await load.ended(_END_SECONDS)
    if load.whole != streams:
        raise NotWhole(f"{load.whole} of {streams} streams came whole")
