"""`python -m loadtest.bench`: all rounds in turn, then one table, printed and written to a file.

Every round starts its target anew, so a round inherits no other's heap, connections or caches (the rounds of
`limits` are short and many, and share their gateways); the order of the targets turns round by round, so a
slow minute of the host does not always meet the same one. Exit code 0 whatever the figures say; 1 if a round
failed (an answer was not whole) or a target did not start.
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
from typing import Final, NamedTuple

import uvloop

from loadtest.bench import limits, looking, report
from loadtest.bench.backend import GRID_US
from loadtest.bench.client import NotWhole
from loadtest.bench.processes import BenchError, allow_many_files, alone, tail
from loadtest.bench.report import Round
from loadtest.bench.scenarios import FULL, QUICK, Bench, Figures, Scenario
from loadtest.bench.targets import TARGETS, Running, Site, Target, new_key, pods

SCENARIOS: Final = ("requests", "chunks", "memory", "large", "limits", "metrics")
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED: Final = 130
NOTES: Final = (
    "CPU is user and system time of the target's process tree; for `direct`, of the client and the pods.",
    "The gateway runs with keys, metrics and its access line on, nginx with its access log off.",
)
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


def chosen(scenarios: Sequence[str] | None, targets: Sequence[str] | None, *, quick: bool = False) -> Chosen:
    """By names; None: all. Limits and looking are measured with the gateway, and need no other target."""

    def named(each: Sequence[Scenario]) -> list[Scenario]:
        return [scenario for scenario in each if scenarios is None or scenario.name.split()[0] in scenarios]

    beside_nginx = named(QUICK if quick else FULL)
    wanted = [name for name in TARGETS if targets is None or name in targets]
    limited = named(limits.QUICK if quick else limits.FULL) if "gateway" in wanted else []
    looked = named(looking.QUICK if quick else looking.FULL) if "gateway" in wanted else []
    if not beside_nginx:
        wanted = ["gateway"] if limited or looked else []
    return Chosen(beside_nginx, [TARGETS[name]() for name in wanted], limited, looked)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description="the gateway beside nginx, one table")
    parser.add_argument("--quick", action="store_true", help="a look in about a minute: fewer and shorter rounds")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of every scenario")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS)
    parser.add_argument(
        "--target", action="append", choices=list(TARGETS), help="default: all; limits and metrics: gateway"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round's figures, as JSON")
    parser.add_argument("--grid-us", type=int, default=GRID_US, metavar="N", help=f"default {GRID_US}; 0: no grid")
    asked = parser.parse_args(arguments)
    what = chosen(asked.scenario, asked.target, quick=asked.quick)
    if not what.targets:
        parser.error("limits and metrics are measured with the gateway: add --target gateway")
    listen_for_signals()
    try:
        with alone(Path(tempfile.gettempdir()) / "poolgate-bench.lock"):
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


async def until_signalled(measuring: Coroutine[None, None, Figures]) -> Figures:
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
            for scenario, number, target in in_turn(what.scenarios, what.targets, asked.rounds):
                with _standing([target], bench, target_core) as standing:
                    results.append(_round(scenario, number, target.name, bench, standing))
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
    return Round(scenario.name, number, target, figures.values, figures.waited, figures.exact)


def _page(results: Sequence[Round], targets: Sequence[str], facts: Sequence[str]) -> str:
    limited = [result for result in results if result.target in {target.name for target in limits.LIMITED}]
    looked = [result for result in results if result.target in {target.name for target in looking.LOOKED}]
    others = [result for result in results if result not in (*limited, *looked)]
    tables, notes = [], ["Medians over the rounds that count [min–max]; `?`: no round of that target could be trusted."]
    if others:
        tables.append(report.table(others, targets))
        notes += [*NOTES, *report.remarks(others)]
    if limited:
        tables.append(limits.table(limited))
        notes += [*limits.notes(*limits.arithmetic()), *limits.remarks(limited)]
    if looked:
        tables.append(looking.table(looked))
        notes += looking.notes(looked)
    return "\n\n".join([*tables, "\n".join(f"- {n}" for n in notes), "\n".join(f"- {f}" for f in facts)])


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
    return 1 if stopped or any(result.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
