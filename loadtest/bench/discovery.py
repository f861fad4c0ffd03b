"""What discovery costs with 1,000 pods: `python -m loadtest.bench.discovery`; the method is in docs/performance.md.

A gateway that has three pods in its file, and one that watches a thousand through a stand-in for the API server, in
turns. In the second the same three pods have all the requests: they are in a pool of their own, `few`, older than the
pool `many` and therefore the owner of the one model name that all pods list. So the request path is the same in both,
and what differs is discovery. One process answers for all pods, on one port of every address of 127.1.0.0/16.

Two more gateways watch a cluster whose pods lose their readiness and get it back, and one has a stream open at every
pod, for only then is each pod's `/load` read as often as it may be.
"""

import argparse
import asyncio
import dataclasses
import gc
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

import uvloop
import yaml

# The rounds of this bench end as those of the other do, whatever ends them.
from loadtest.bench.__main__ import STOPPED, listen_for_signals, publish, until_signalled
from loadtest.bench.accounting import Cpu, cpu_of, difference, memory_of, process_tree
from loadtest.bench.backend import FINISH_PATH
from loadtest.bench.client import ClosedLoop, NotWhole, RequestLoad, StreamLoad, open_streams
from loadtest.bench.processes import BenchError, allow_many_files, alone, child, free_port, tail, wait_until
from loadtest.bench.report import Cell, Round, cell, host_facts, remarks, side_by_side, written
from loadtest.bench.scenarios import Bench, Figures, Requests
from loadtest.bench.targets import (
    NO_LIMITS,
    Gateway,
    Running,
    keys_entry,
    new_key,
    serve_command,
    status_of,
    told_by,
)
from loadtest.bench.wire import Wish, chat_body, chat_request, spread, stream_body
from loadtest.percentiles import percentile

REPOSITORY: Final = Path(__file__).resolve().parents[2]
HOST: Final = "127.0.0.1"
NETWORK: Final = "127.1.0.0/16"
FEW: Final = 3
"""Pods that get the requests."""
READY_SECONDS: Final = 30.0
END_SECONDS: Final = 15.0
ENDLESS: Final = 1_000_000
TOKEN_EVERY_US: Final = 60_000_000

_LAG = re.compile(rb"^poolgate_loop_lag_seconds (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Variant:
    """A gateway to be measured. `churn`: pods that lose their readiness each second."""

    name: str
    pools: tuple[tuple[str, int], ...]
    churn: int = 0
    kubernetes: bool = True
    busy: bool = False
    """A stream is open at every pod, and nothing else is measured."""

    @property
    def pods(self) -> int:
        return sum(count for _, count in self.pools)


def variants_of(pods: int) -> tuple[Variant, ...]:
    """All that is measured; pods that churn are never those with the requests."""
    pools = (("few", FEW), ("many", pods - FEW))
    some = max(1, pods // 10)
    return (
        Variant("static", pools[:1], kubernetes=False),
        Variant("kubernetes", pools),
        Variant(f"{some} flip", pools, churn=min(some, pods - FEW)),
        Variant("all flip", pools, churn=pods - FEW),
        Variant("all busy", (("few", pods),), busy=True),
    )


@dataclass(frozen=True)
class Lengths:
    """How long, in seconds: to settle after the start, to look at an idle gateway, at requests, at a slow beat."""

    settle: float
    idle: float
    churn: float
    requests: float
    paced: float


# Two of the longest intervals of discovery with 1,000 pods are 20 s: /metrics and /v1/models, every 10 s.
FULL: Final = Lengths(settle=12.0, idle=20.0, churn=10.0, requests=5.0, paced=10.0)
QUICK: Final = Lengths(settle=2.0, idle=3.0, churn=3.0, requests=1.3, paced=2.0)


@dataclass(frozen=True)
class Lab:
    """What all rounds share."""

    folder: Path
    core: int
    apparatus_core: int
    backend: int
    """Its process."""
    pod_port: int
    key: str
    lengths: Lengths


@dataclass(frozen=True)
class Started:
    """A gateway with all its pods, and what it took until then."""

    port: int
    ops_port: int
    pid: int
    apparatus: tuple[int, ...]
    seconds: float
    cpu_seconds: float

    def cpu(self) -> Cpu:
        return cpu_of(process_tree(self.pid))


# --- processes ------------------------------------------------------------------------------------------------


@contextmanager
def backend(core: int, folder: Path) -> Iterator[tuple[int, int]]:
    """All pods: (pid, port)."""
    log = folder / "backend.log"
    command = [sys.executable, "-m", "loadtest.bench.backend", "--all-addresses", "--port", str(free_port())]
    with child(command, core=core, log=log, cwd=REPOSITORY, pipe=True) as process:
        assert process.stdout is not None  # pipe=True
        line = process.stdout.readline()
        if not line:
            raise BenchError(f"the pods did not start:\n{tail(log)}")
        (port,) = json.loads(line)
        yield process.pid, port


@contextmanager
def api_server(variant: Variant, lab: Lab, kubeconfig: Path) -> Iterator[int]:
    """The stand-in for the API server: its pid. It has the pods, and says where it is in `kubeconfig`."""
    if not (REPOSITORY / "tests" / "apiserver" / "__main__.py").is_file():
        raise BenchError(
            f"there is no tests/apiserver in {REPOSITORY}: the stand-in for the API server exists in a checkout of the "
            "repository only; run this from there"
        )
    command = [
        sys.executable, "-m", "tests.apiserver", "--port-of-pods", str(lab.pod_port), "--network", NETWORK,
        "--kubeconfig", str(kubeconfig), "--churn", str(variant.churn),
        *(word for name, count in variant.pools for word in ("--pool", f"{name}:{count}")),
    ]  # fmt: skip
    log = kubeconfig.with_suffix(".log")
    with child(command, core=lab.apparatus_core, log=log, cwd=REPOSITORY, pipe=True) as process:
        assert process.stdout is not None  # pipe=True
        if not process.stdout.readline():
            raise BenchError(f"the stand-in for the API server, tests/apiserver, did not start:\n{tail(log)}")
        yield process.pid


def config_of(variant: Variant, pod_port: int, keys: Path) -> dict[str, object]:
    """The gateway's configuration. Its three pods in a file are those that have the requests in a cluster."""
    given = [{"url": f"http://127.1.0.{number}:{pod_port}", "pool": "few"} for number in range(1, variant.pods + 1)]
    discovery = {"namespaces": ["vllm"], "pod_networks": [NETWORK]}
    return {
        "server": {"host": HOST, "ops_host": HOST, "drain_seconds": 0},
        "discovery": discovery if variant.kubernetes else {"mode": "static", "pods": given},
        "auth": {"mode": "keys", "keys_file": str(keys)},
        "limits": {"default": NO_LIMITS},
    }


@contextmanager
def gateway(variant: Variant, lab: Lab, folder: Path) -> Iterator[Started]:
    """`poolgate serve`, with keys, metrics and its access line on; it has all its pods, and the log is in `folder`."""
    keys, config, kubeconfig, log = (folder / name for name in ("keys.yaml", "poolgate.yaml", "kube", "gateway.log"))
    keys.write_text(yaml.safe_dump({"keys": [keys_entry(lab.key)]}, sort_keys=False))
    config.write_text(yaml.safe_dump(config_of(variant, lab.pod_port, keys), sort_keys=False))
    if not variant.kubernetes:
        with _serving(variant, lab, config, kubeconfig, log, (lab.backend,)) as started:
            yield started
        return
    with (
        api_server(variant, lab, kubeconfig) as pid,
        _serving(variant, lab, config, kubeconfig, log, (lab.backend, pid)) as started,
    ):
        yield started


@contextmanager
def _serving(
    variant: Variant, lab: Lab, config: Path, kubeconfig: Path, log: Path, apparatus: tuple[int, ...]
) -> Iterator[Started]:
    port = ops_port = free_port()
    while ops_port == port:  # it is free until somebody listens there
        ops_port = free_port()
    # Compiled modules are kept, as where an operator has installed it; whoever runs the bench may have that off.
    command = [
        "env", "-u", "PYTHONDONTWRITEBYTECODE", f"PYTHONPYCACHEPREFIX={lab.folder / 'compiled'}",
        f"KUBECONFIG={kubeconfig}",
        *serve_command(config, port, ops_port),
    ]  # fmt: skip
    began = time.monotonic()
    with child(command, core=lab.core, log=log, cwd=REPOSITORY) as process:

        def ready() -> bool:
            return status_of(ops_port, "/readyz") == 200

        wait_until(ready, process, log, seconds=READY_SECONDS)
        seconds, cpu = time.monotonic() - began, cpu_of(process_tree(process.pid))
        if not variant.churn:
            _see_all_ready(variant, ops_port)
        # In ticks, for threads that served the start may have ended.
        cpu_seconds = sum(cpu.ticks.values()) / os.sysconf("SC_CLK_TCK")
        yield Started(port, ops_port, process.pid, (os.getpid(), *apparatus), seconds, cpu_seconds)


def _see_all_ready(variant: Variant, ops_port: int) -> None:
    """Raises `BenchError` when ready did not mean that all pods are."""
    pools = told_by(ops_port)["pools"]
    if {name: counts["ready"] for name, counts in pools.items()} != dict(variant.pools):
        raise BenchError(f"{variant.name}: /readyz said 200, but not all pods were ready: {pools}")


# --- the load -------------------------------------------------------------------------------------------------


class PacedLoop(ClosedLoop):
    """One connection that asks on a beat. How long each answer took, in microseconds, is counted from the sending, or
    from the beat if the answer before came only after it: who is kept waiting does not wait unseen.
    """

    def __init__(self, load: RequestLoad, request: bytes, first_at: float, every: float, took_us: list[int]) -> None:
        super().__init__(load, b"")  # what it would write by itself is nothing: the beat says when
        self._asked = request
        self._due = first_at
        self._every = every
        self._took_us = took_us
        self._since = 0.0
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._loop.call_at(self._due, self._ask)

    def _ask(self) -> None:
        self._since = time.monotonic()  # a loop's own time has milliseconds
        self._transport.write(self._asked)

    def on_message_complete(self) -> None:
        self._took_us.append(round(1e6 * (time.monotonic() - self._since)))
        super().on_message_complete()
        if self._transport.is_closing():
            return
        self._due += self._every
        if self._due > self._loop.time():
            self._loop.call_at(self._due, self._ask)
        else:
            self._ask()
            self._since = self._due


@dataclass(frozen=True)
class Beat:
    """So many connections, each with so many requests a second, their beats spread evenly."""

    connections: int
    per_second: float

    async def begin(self, load: RequestLoad, port: int, key: str, took_us: list[int]) -> None:
        """Opens all of them."""
        loop = asyncio.get_running_loop()
        request = chat_request(HOST, port, key, chat_body(400))
        every = 1 / self.per_second
        first = loop.time() + 0.1
        for index in range(self.connections):
            at = first + every * index / self.connections
            await loop.create_connection(lambda at=at: PacedLoop(load, request, at, every, took_us), HOST, port)  # type: ignore[misc]  # mypy cannot infer a lambda with a default


THROUGH: Final = Beat(connections=8, per_second=25)
PAST: Final = Beat(connections=4, per_second=25)


async def paced(started: Started, lab: Lab, seconds: float) -> Figures:
    """A slow beat of requests through the gateway, and a slower one past it: what those wait is the apparatus' own."""
    through, past = RequestLoad(), RequestLoad()
    through_us: list[int] = []
    past_us: list[int] = []
    await THROUGH.begin(through, started.port, lab.key, through_us)
    await PAST.begin(past, lab.pod_port, lab.key, past_us)
    await through.watch(1.0)
    seen, seen_past, before, began = len(through_us), len(past_us), started.cpu(), time.monotonic()
    await asyncio.gather(through.watch(seconds), past.watch(seconds))
    spent, lasted = difference(before, started.cpu()), time.monotonic() - began
    asked, directly = sorted(through_us[seen:]), sorted(past_us[seen_past:])
    # Afterwards, for whoever looks at /metrics adds to what requests wait.
    lag = await _lag(started.ops_port)
    for load in (through, past):
        load.stop()
        await load.ended(END_SECONDS)
    values = {
        "p50_ms": percentile(asked, 0.5) / 1000,
        "p99_ms": percentile(asked, 0.99) / 1000,
        "longest_ms": asked[-1] / 1000,
        "past_p99_ms": percentile(directly, 0.99) / 1000,
        "lag_ms": 1000 * lag,
        "answered": float(len(asked)),
    }
    return Figures(values, spent.waited_ns / 1e9 / lasted, spent.exact)


async def _lag(ops_port: int) -> float:
    """The loop's lag, in seconds: the largest of the last half minute, and of no more than the last minute."""
    reader, writer = await asyncio.open_connection(HOST, ops_port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n")
    told = lag_in(await reader.read(-1))
    writer.close()
    return told


def lag_in(exposition: bytes) -> float:
    """The loop's lag in seconds. Raises `NotWhole` where it is missing."""
    told = _LAG.search(exposition)
    if told is None:
        raise NotWhole("/metrics has no poolgate_loop_lag_seconds")
    return float(told[1])


async def all_busy(started: Started, lab: Lab, pods: int) -> Figures:
    """A stream at every pod, with hardly a token: what the gateway does then is to ask the pods how they are."""
    load = StreamLoad()
    beats = spread(pods, TOKEN_EVERY_US)
    wishes = (stream_body(Wish(ENDLESS, TOKEN_EVERY_US, phase_us)) for phase_us in beats)
    requests = tuple(chat_request(HOST, started.port, lab.key, body) for body in wishes)
    await open_streams(load, (started.port,), requests, per_second=500)
    await load.watch(lab.lengths.settle)
    before, began = started.cpu(), time.monotonic()
    await load.watch(lab.lengths.idle)
    spent, lasted = difference(before, started.cpu()), time.monotonic() - began
    told = await asyncio.to_thread(told_by, started.ops_port)
    believed = sum(pod["load"]["in_flight"] is not None for pod in told["pods"])
    if not load.begun == load.open == pods:
        raise NotWhole(f"{load.begun} of {pods} streams had begun, {load.open} were open")
    reader, writer = await asyncio.open_connection(HOST, lab.pod_port)
    writer.write(b"POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n\r\n" % (FINISH_PATH, HOST.encode()))
    await reader.readuntil(b"{}")
    writer.close()
    await load.ended(END_SECONDS)
    values = {"cpu_ms": spent.cpu_ns / 1e6 / lasted, "believed": believed / pods}
    return Figures(values, spent.waited_ns / 1e9 / lasted, spent.exact)


# --- rounds ---------------------------------------------------------------------------------------------------


def idle(started: Started, seconds: float) -> Figures:
    """Memory, and CPU while nobody asks anything."""
    before, began = started.cpu(), time.monotonic()
    time.sleep(seconds)
    spent, lasted = difference(before, started.cpu()), time.monotonic() - began
    memory = memory_of(process_tree(started.pid))
    values = {"cpu_ms": spent.cpu_ns / 1e6 / lasted, "rss_mib": memory.rss / 2**20}
    return Figures(values, spent.waited_ns / 1e9 / lasted, spent.exact)


def without(cpu_us: float, idle_ms: float, per_second: float) -> float:
    """What is left of a request's CPU time when what the gateway does anyway, in each second, is taken off."""
    return cpu_us - idle_ms * 1000 / per_second


def requests(started: Started, lab: Lab, idle_ms: float) -> Figures:
    """The closed loops of `python -m loadtest.bench`'s scenario `requests`."""
    scenario = Requests("requests", 1, 400, connections=32, warm_seconds=1.0, window_seconds=lab.lengths.requests)
    running = Running((started.port,), lambda: process_tree(started.pid), None)
    found = _run(scenario.measure(running, Bench(lab.key, started.apparatus, (lab.pod_port,))))
    alone_us = without(found.values["cpu_us"], idle_ms, found.values["per_second"])
    return dataclasses.replace(found, values={**found.values, "alone_us": alone_us})


def _run(measuring: Coroutine[None, None, Figures]) -> Figures:
    try:
        return uvloop.run(until_signalled(measuring))
    except asyncio.CancelledError:
        raise SystemExit(STOPPED) from None
    finally:
        listen_for_signals()  # the loop has put the defaults back


def measured(variant: Variant, number: int, lab: Lab) -> Iterator[Round]:
    """All that is measured of one gateway, one part after the other. A part that does not come whole is the last."""
    gc.collect()
    with tempfile.TemporaryDirectory(prefix="poolgate-bench-discovery-") as folder:
        log = Path(folder) / "gateway.log"
        with gateway(variant, lab, Path(folder)) as started:
            values = {"seconds": started.seconds, "cpu_seconds": started.cpu_seconds}
            yield _shown(Round("start", number, variant.name, values, 0.0, True))
            part, idle_ms = "", 0.0
            try:
                for part in ("busy",) if variant.busy else ("idle", "paced") if variant.churn else PARTS:
                    found = _part(part, variant, started, lab, idle_ms)
                    if part == "idle":
                        idle_ms = found.values["cpu_ms"]
                    yield _shown(Round(part, number, variant.name, found.values, found.waited, found.exact))
            except (NotWhole, OSError) as fault:
                print(f"the end of {log.name}:\n{tail(log)}", file=sys.stderr)
                yield _shown(Round(part, number, variant.name, {}, 0.0, True, failed=str(fault)))


PARTS: Final = ("idle", "requests", "paced")


def _part(part: str, variant: Variant, started: Started, lab: Lab, idle_ms: float) -> Figures:
    lengths = lab.lengths
    if part == "busy":
        return _run(all_busy(started, lab, variant.pods))
    if part == "requests":
        return requests(started, lab, idle_ms)
    if part == "paced":
        return _run(paced(started, lab, lengths.paced))
    time.sleep(lengths.settle)
    return idle(started, lengths.churn if variant.churn else lengths.idle)


def _shown(result: Round) -> Round:
    figures = " ".join(f"{key}={value:.4g}" for key, value in result.values.items())
    note = f"  NOT COUNTED: {result.failed or doubt}" if (doubt := result.doubt()) else ""
    print(
        f"{result.scenario} {result.number} {result.target}: {figures} waited={result.waited:.3f}{note}",
        file=sys.stderr,
        flush=True,
    )
    return result


# --- the report -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A figure of a part, and how it is written. `beside`: how two variants are compared: `-`, `/`, or not."""

    title: str
    part: str
    key: str
    form: str
    beside: str = ""


LINES: Final = (
    Line("start until ready, all pods asked: seconds", "start", "seconds", ".2f", "-"),
    Line("start until ready: CPU seconds", "start", "cpu_seconds", ".2f", "-"),
    Line("idle: memory (RSS), MiB", "idle", "rss_mib", ".1f", "-"),
    Line("idle: CPU ms a second", "idle", "cpu_ms", ".1f", "-"),
    Line("requests: CPU µs per request, discovery in it", "requests", "cpu_us", ".1f", "/"),
    Line("requests: the same less the idle CPU", "requests", "alone_us", ".1f", "/"),
    Line("requests/s (32 connections)", "requests", "per_second", ",.0f", "/"),
)
CHURN_LINES: Final = (
    Line("no requests: CPU ms a second", "idle", "cpu_ms", ".0f"),
    Line("200 requests/s: p50, ms", "paced", "p50_ms", ".2f"),
    Line("200 requests/s: p99, ms", "paced", "p99_ms", ".1f"),
    Line("200 requests/s: the longest, ms", "paced", "longest_ms", ".0f"),
    Line("past the gateway: p99, ms", "paced", "past_p99_ms", ".1f"),
    Line("largest lag of the loop in the minute before, ms", "paced", "lag_ms", ".0f"),
)


def beside(rounds: Sequence[Round], line: Line) -> Cell | None:
    """kubernetes against static."""
    sign: Literal["-", "/"] = "-" if line.beside == "-" else "/"
    return side_by_side(rounds, line.part, line.key, ours="kubernetes", theirs="static", sign=sign)


def _over(rounds: Sequence[Round], line: Line, variant: str) -> str:
    mine = [r for r in rounds if r.scenario == line.part and r.target == variant]
    return written(cell(mine, lambda r: r.values[line.key]), line.form)


def table(rounds: Sequence[Round], variants: Sequence[Variant]) -> str:
    """Two Markdown tables: discovery at rest, and with churn."""
    static, kubernetes, *churning = [variant for variant in variants if not variant.busy]
    (busy,) = [variant for variant in variants if variant.busy]
    rows = [
        ["", f"static, {static.pods} pods", f"kubernetes, {kubernetes.pods:,} pods", "difference or ratio"],
        ["---"] * 4,
    ]
    for line in LINES:
        sign, form = ("+", line.form) if line.beside == "-" else ("× ", ".3f")
        against = written(beside(rounds, line), form)
        shown = against if against == "–" else f"{sign}{against}"
        rows.append([line.title, *(_over(rounds, line, each.name) for each in (static, kubernetes)), shown])
    line = Line("a stream at each pod, `/load` read everywhere: CPU ms a second", "busy", "cpu_ms", ".0f")
    rows.append([line.title, "–", _over(rounds, line, busy.name), ""])
    flips = [f"{each.churn:,} flip each second" for each in churning]
    more = [["", "static", "kubernetes, quiet", *flips], ["---"] * (3 + len(flips))]
    more += [
        [line.title, *(_over(rounds, line, each.name) for each in (static, kubernetes, *churning))]
        for line in CHURN_LINES
    ]
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in part) for part in (rows, more))


def notes(rounds: Sequence[Round], variants: Sequence[Variant]) -> list[str]:
    """What a reader of the tables must know."""
    pods = variants[1].pods
    believed = [r.values["believed"] for r in rounds if r.scenario == "busy" and r.failed is None]
    share = f" ({min(believed):.0%} of them believed at the end of a window)" if believed else ""
    return [
        "Medians over the rounds that count [min–max]; `?`: no round could be trusted.",
        "Differences and ratios are those of rounds that ran side by side.",
        "CPU is user and system time of the whole gateway. It runs with keys, metrics and its access line on.",
        f"`kubernetes`: {FEW} pods in a pool that has all requests; the others list the same model in another pool.",
        f"Each of {pods:,} pods is asked for `/metrics` every {max(5.0, 0.01 * pods):g} s, for its models every 10 s.",
        "`/load` is read often only where it is believed; these pods count streams alone, not the requests measured.",
        f"With a stream at each pod `/load` is read up to 500 times a second in all{share}.",
        "A pod that flips loses its readiness at the beginning of a second, and has it again half a second later.",
        "The 200 requests a second go to the pool that does not flip. An error, or half an answer, fails the round.",
        "Past the gateway: requests to a pod directly, in the same seconds. What the busy apparatus adds.",
        "The lag is the largest of the last half minute at least; how a start held the loop up may be in it.",
        *remarks(rounds),
    ]


# --- the command ----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.discovery", description="discovery with many pods")
    parser.add_argument("--pods", type=int, default=1000, metavar="N", help="default 1000")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument("--quick", action="store_true", help="one short round: whether it works, not what it costs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round's figures, as JSON")
    asked = parser.parse_args(arguments)
    if not FEW < asked.pods < 60_000:
        parser.error(f"--pods {asked.pods}: more than {FEW}, and fewer than 60000")
    listen_for_signals()
    try:
        with alone():
            return _bench(asked)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _bench(asked: argparse.Namespace) -> int:
    variants = variants_of(asked.pods)
    allow_many_files()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    gc.disable()  # a pause of the client's would be measured as the gateway's; collected between rounds
    results: list[Round] = []
    stopped: BenchError | None = None
    with (
        tempfile.TemporaryDirectory(prefix="poolgate-bench-discovery-") as folder,
        backend(cores[-1], Path(folder)) as (pid, port),
    ):
        lab = Lab(Path(folder), cores[0], cores[-1], pid, port, new_key(), QUICK if asked.quick else FULL)
        try:
            _warm_up(variants[1], lab)
            for number in range(1, (1 if asked.quick else asked.rounds) + 1):
                for variant in variants if number % 2 else reversed(variants):
                    results.extend(measured(variant, number, lab))
        except BenchError as error:
            if not results:
                raise
            stopped = error  # what was measured before is still worth its table
    facts = host_facts(_versions(), {"gateway": cores[0], "API server, pods and client": cores[-1]})
    text = "\n".join([table(results, variants), "", *(f"- {n}" for n in (*notes(results, variants), *facts))])
    return publish("discovery", text, facts, results, asked.json, stopped)


def _warm_up(variant: Variant, lab: Lab) -> None:
    """A start that is not counted: all modules are compiled and in the page cache from then on."""
    with tempfile.TemporaryDirectory(prefix="poolgate-bench-discovery-") as folder, gateway(variant, lab, Path(folder)):
        pass


def _versions() -> dict[str, str]:
    try:
        package = version("kubernetes")
    except PackageNotFoundError:
        package = "not installed"
    client = f"uvloop {version('uvloop')}, httptools {version('httptools')}"
    return {"gateway": Gateway().version(), "kubernetes package": package, "client and pods": client}


if __name__ == "__main__":
    sys.exit(main())
