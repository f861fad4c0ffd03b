"""`python -m loadtest.bench`: all rounds in turn, then one table, printed and written to a file.

Every round starts its target anew, so a round inherits no other's heap, connections or caches (the rounds of
`limits` are short and many, and share their gateways); the order of the targets turns round by round, so a
slow minute of the host does not always meet the same one. A target whose program is not installed is left out
and said to be, unless it was asked for by name. Exit code 0 whatever the figures say; 1 if a round of the
gateway, of nginx or of none failed (an answer was not whole) or one of them did not start. That a peer cannot
carry a load is a finding, and stands in the tables.
"""

import argparse
import asyncio
import dataclasses
import gc
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple, TypeVar

import uvloop

from loadtest.bench import limits, looking, report, tables
from loadtest.bench.backend import GRID_US
from loadtest.bench.client import NotWhole
from loadtest.bench.processes import BenchError, allow_many_files, alone, tail
from loadtest.bench.proof import prove
from loadtest.bench.report import Round
from loadtest.bench.scenarios import FULL, QUICK, Bench, Scenario
from loadtest.bench.targets import ESSENTIAL, TARGETS, NotHere, Running, Site, Target, new_key, pods

SCENARIOS: Final = (*dict.fromkeys(scenario.name.split()[0] for scenario in FULL), "limits", "metrics")
_IN_FULL: Final = [each.name for each in (*FULL, *limits.FULL, *looking.FULL) if " " in each.name]
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED: Final = 130
NOTES: Final = (
    "CPU is user and system time of the target's process tree; for `direct`, of the client and the pods.",
    "The gateway runs with keys, metrics and its access line on, all others with their access log off.",
    "A rate with `≥` is what the client offered: that target's core was not full.",
)
ALL: Final = "all"
PEERS: Final = frozenset(TARGETS) - frozenset(ESSENTIAL)
RESULTS: Final = Path(__file__).resolve().parents[1] / "results"


class Chosen(NamedTuple):
    """What is to be measured."""

    scenarios: Sequence[Scenario]
    """Those with the targets."""
    targets: Sequence[Target]
    limited: Sequence[Scenario]
    """Those with gateways that have limits."""
    looked: Sequence[Scenario]
    """Those with a gateway that is looked at."""
    absent: Sequence[str] = ()
    """Targets that are not here, each with how to get it."""


def chosen(scenarios: Sequence[str] | None, targets: Sequence[str] | None, *, quick: bool = False) -> Chosen:
    """By names; None: all that are here, in a quick run the essential ones. Limits and looking are measured with the
    gateway, and need no other target. Raises NotHere for one that is named and not here."""

    def named(each: Sequence[Scenario]) -> list[Scenario]:
        """A first word names all that begin with it."""
        return [s for s in each if scenarios is None or {s.name, s.name.split()[0]} & {*scenarios}]

    beside_nginx = named(QUICK if quick else FULL)
    asked_for = [*TARGETS] if targets is None and not quick else targets or ESSENTIAL
    asked_for = [*TARGETS] if ALL in asked_for else asked_for
    wanted = [name for name in TARGETS if name in asked_for]
    limited = named(limits.QUICK if quick else limits.FULL) if "gateway" in wanted else []
    looked = named(looking.QUICK if quick else looking.FULL) if "gateway" in wanted else []
    if not beside_nginx:
        wanted = ["gateway"] if limited or looked else []
    here, absent = [], []
    for target in (TARGETS[name]() for name in wanted):
        try:
            target.version()
            here.append(target)
        except NotHere as error:
            if targets is not None and target.name in targets:
                raise
            absent.append(str(error))
    return Chosen(beside_nginx, here, limited, looked, absent)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description="the gateway beside its peers")
    parser.add_argument("--quick", action="store_true", help="a look in minutes: fewer and shorter rounds")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of every scenario")
    parser.add_argument("--scenario", action="append", choices=[*SCENARIOS, *_IN_FULL])
    parser.add_argument(
        "--target",
        action="append",
        choices=[*TARGETS, ALL],
        help=f"default: {ALL} that are installed, with --quick {', '.join(ESSENTIAL)}; limits and metrics: gateway",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round's figures, as JSON")
    parser.add_argument("--grid-us", type=int, default=GRID_US, metavar="N", help=f"default {GRID_US}; 0: no grid")
    asked = parser.parse_args(arguments)
    try:
        what = chosen(asked.scenario, asked.target, quick=asked.quick)
    except NotHere as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if not what.targets:
        parser.error("limits and metrics are measured with the gateway: add --target gateway")
    for absent in what.absent:
        print(f"bench: not measured: {absent}", file=sys.stderr)
    listen_for_signals()
    try:
        with alone():
            return _run(asked, what)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def listen_for_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # a second one must not interrupt the clearing up
    raise SystemExit(STOPPED)  # so that every `with` on the way out stops what it started


_Result = TypeVar("_Result")


async def until_signalled(measuring: Coroutine[None, None, _Result]) -> _Result:
    """As a cancellation, because an event loop swallows what a signal's handler raises in one of its callbacks."""
    task = asyncio.current_task()
    assert task is not None  # this is a coroutine
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await measuring


def _run(asked: argparse.Namespace, what: Chosen) -> int:
    versions = {target.name: target.version() for target in what.targets}
    if what.limited:
        versions["Redis"] = limits.redis_version()
    versions["client and pods"] = f"uvloop {version('uvloop')}, httptools {version('httptools')}"
    allow_many_files()
    cores = sorted(os.sched_getaffinity(0))
    target_core, apparatus_core = cores[0], cores[-1]
    if target_core == apparatus_core:
        print("bench: only one core: target and apparatus share it; read the ratios alone", file=sys.stderr)
    os.sched_setaffinity(0, {apparatus_core})
    gc.disable()  # a pause of the client's would be measured as the target's; collected between rounds

    results: list[Round] = []
    stopped: BenchError | None = None
    with (
        tempfile.TemporaryDirectory(prefix="poolgate-bench-") as folder,
        pods(2, grid_us=asked.grid_us, core=apparatus_core, folder=Path(folder)) as (pod_pid, ports),
    ):
        bench = Bench(new_key(), apparatus=(os.getpid(), pod_pid), pods=ports)
        try:
            seen = Seen()
            for scenario, number, target in in_turn(what.scenarios, what.targets, asked.rounds):
                results.append(round_of(scenario, number, target, bench, target_core, seen))
            if what.limited:
                with _standing(limits.LIMITED, bench, target_core) as standing:
                    for scenario, number, target in in_turn(what.limited, limits.LIMITED, asked.rounds):
                        results.append(_round(scenario, number, target.name, bench, standing))
            if what.looked:
                with _standing(looking.LOOKED, bench, target_core) as standing:
                    for scenario, number, target in in_turn(what.looked, looking.LOOKED, asked.rounds):
                        results.append(_round(scenario, number, target.name, bench, standing))
        except BenchError as error:
            if not results:
                raise
            stopped = error  # what was measured before is still worth its table
    facts = report.host_facts(versions, {"target": target_core, "client and pods": apparatus_core})
    facts.append(f"tokens sent on a grid of {asked.grid_us} µs, phases spread evenly")
    facts += [f"not measured: {absent}" for absent in what.absent]
    text = _page(results, [target.name for target in what.targets], facts)
    return publish("bench", text, facts, results, asked.json, stopped)


def in_turn(
    scenarios: Sequence[Scenario], targets: Sequence[Target], rounds: int | None
) -> Iterator[tuple[Scenario, int, Target]]:
    """Every round to be run; within a scenario the order of the targets turns with each round."""
    for scenario in scenarios:
        for number in range(1, (rounds or scenario.rounds) + 1):
            for target in targets if number % 2 else reversed(targets):
                if target.name != "direct" or scenario.direct:
                    yield scenario, number, target


@contextmanager
def _standing(targets: Sequence[Target], bench: Bench, core: int) -> Iterator[Mapping[str, Running]]:
    """Targets that answer, by name."""
    with ExitStack() as stack:
        standing = {}
        for target in targets:
            name = f"poolgate-bench-{target.name}-"
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=name))
            site = Site(Path(folder), core, bench.pods, bench.apparatus, bench.key)
            standing[target.name] = stack.enter_context(target.running(site))
        yield standing


@dataclasses.dataclass
class Seen:
    """What is known of the targets of a run."""

    proven: set[str] = dataclasses.field(default_factory=set)
    out: dict[str, str] = dataclasses.field(default_factory=dict)
    """Those that are not started again, and why."""


def round_of(scenario: Scenario, number: int, target: Target, bench: Bench, core: int, seen: Seen) -> Round:
    """A round of a target that is started for it; the first time it also has to show that it does what others do."""
    if target.name not in seen.out:
        try:
            with _standing([target], bench, core) as standing:
                if target.name not in seen.proven:
                    _prove(standing[target.name], bench)
                    seen.proven.add(target.name)
                return _round(scenario, number, target.name, bench, standing)
        except BenchError as error:
            seen.out[target.name] = f"did not start: {error}"
        except NotWhole as fault:
            seen.out[target.name] = str(fault)
        print(f"{target.name}: {seen.out[target.name]}", file=sys.stderr)
    why = seen.out[target.name].splitlines()[0]
    return Round(scenario.name, number, target.name, {}, 0.0, True, failed=why)


def _prove(running: Running, bench: Bench) -> None:
    try:
        uvloop.run(until_signalled(prove(running, bench.key, bench.pods)))
    except asyncio.CancelledError:
        raise SystemExit(STOPPED) from None
    finally:
        listen_for_signals()  # the loop has put the defaults back


def _round(scenario: Scenario, number: int, target: str, bench: Bench, standing: Mapping[str, Running]) -> Round:
    gc.collect()
    result = _measured(scenario, number, target, bench, standing[target])
    shown = " ".join(f"{key}={value:.4g}" for key, value in result.values.items())
    note = f"  NOT COUNTED: {result.failed or doubt}" if (doubt := result.doubt()) else ""
    print(f"{scenario.name} {number} {target}: {shown} waited={result.waited:.3f}{note}", file=sys.stderr)
    return result


def _measured(scenario: Scenario, number: int, target: str, bench: Bench, running: Running) -> Round:
    try:
        figures = uvloop.run(until_signalled(scenario.measure(running, bench)))
    except asyncio.CancelledError:
        raise SystemExit(STOPPED) from None
    except (NotWhole, OSError) as fault:
        if running.log is not None:
            print(f"the end of {running.log.name}:\n{tail(running.log)}", file=sys.stderr)
        return Round(scenario.name, number, target, {}, 0.0, True, failed=str(fault))
    finally:
        listen_for_signals()  # the loop has put the defaults back
    if figures.values.get("per_second") == 0:
        return Round(scenario.name, number, target, {}, 0.0, True, failed="nothing came in the window")
    return Round(scenario.name, number, target, figures.values, figures.waited, figures.exact)


def _page(results: Sequence[Round], targets: Sequence[str], facts: Sequence[str]) -> str:
    limited = [result for result in results if result.target in {target.name for target in limits.LIMITED}]
    looked = [result for result in results if result.target in {target.name for target in looking.LOOKED}]
    others = [result for result in results if result not in (*limited, *looked)]
    found, notes = [], ["Medians over the rounds that count [min–max]; `?`: no round of that target could be trusted."]
    if others:
        found.append(tables.tables(others, targets))
        notes += [*NOTES, *report.remarks(others)]
    if limited:
        found.append(limits.table(limited))
        notes += [*limits.notes(*limits.arithmetic()), *limits.remarks(limited)]
    if looked:
        found.append(looking.table(looked))
        notes += looking.notes(looked)
    return "\n\n".join([*found, "\n".join(f"- {n}" for n in notes), "\n".join(f"- {f}" for f in facts)])


def publish(
    name: str,
    text: str,
    facts: Sequence[str],
    results: Sequence[Round],
    json_file: Path | None,
    stopped: BenchError | None,
) -> int:
    """Print and write a page, and every round's figures where they are wanted. The exit code."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    file = RESULTS / f"{name}-{stamp}.md"
    file.write_text(f"# {name.capitalize()} of {stamp}\n\n{text}\n")
    print(f"\nwritten to {file}", file=sys.stderr)
    if json_file is not None:
        content = {"host": list(facts), "rounds": [dataclasses.asdict(result) for result in results]}
        json_file.write_text(json.dumps(content, indent=1))
    if stopped is not None:
        print(f"bench: stopped early: {stopped}", file=sys.stderr)
    return 1 if stopped or any(result.failed and result.target not in PEERS for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
