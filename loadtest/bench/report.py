"""Rounds → medians, ratios against nginx, bars met or missed, one Markdown table.

A round counts if it can be trusted: the target hardly waited for a core, the client got about one chunk
per read (a starved proxy finds several chunks at once and looks cheaper), the pods kept their pace, and
limits were counted where they should be. If a target has no such round in a scenario its figures are shown
all the same, marked, and no bar is judged by them. A ratio is the median of the ratios of rounds that ran
side by side, so that a slow minute of the host weighs on both.
"""

import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

MAX_WAITED: Final = 0.08
MAX_CHUNKS_PER_READ: Final = 1.1
MIN_ON_PACE: Final = 0.97


@dataclass(frozen=True)
class Round:
    """One target in one round of one scenario. `failed`: why it has no figures; else None."""

    scenario: str
    number: int
    target: str
    values: dict[str, float]
    waited: float
    exact: bool
    failed: str | None = None

    def doubt(self) -> str | None:
        """Why the figures are not to be trusted; None if they are."""
        if self.failed is not None:
            return "failed"
        if self.values.get("chunks_per_read", 1.0) > MAX_CHUNKS_PER_READ:
            return f"{self.values['chunks_per_read']:.2f} chunks per read"
        if self.values.get("on_pace", 1.0) < MIN_ON_PACE:
            return f"only {self.values['on_pace']:.0%} of the pace"
        if not self.values.get("in_mode", 1.0):
            return "limits were not counted where they should be all the time"
        if self.target != "direct" and self.waited > MAX_WAITED:  # client and pods wait for each other by design
            return f"waited {self.waited:.0%} for a core"
        return None


@dataclass(frozen=True)
class Cell:
    """A figure over rounds; `trusted` False if it had to be taken from doubtful ones."""

    median: float
    low: float
    high: float
    rounds: int
    trusted: bool = True


@dataclass(frozen=True)
class Row:
    """A line of the table: the figure `key` of a scenario, and how it is written."""

    scenario: str
    title: str
    key: str
    form: str
    ratio: bool = False
    max_ratio: float | None = None
    max_gateway: float | None = None


ROWS: Final = (
    Row("requests", "CPU µs per request", "cpu_us", ".1f", ratio=True, max_ratio=2.5),
    Row("requests", "requests/s (32 connections)", "per_second", ",.0f", ratio=True),
    Row("requests", "share of its core in use", "busy", ".0%"),
    Row("chunks", "CPU µs per chunk (5,000/s)", "cpu_us", ".1f", ratio=True, max_ratio=1.3),
    Row("chunks", "chunks per read", "chunks_per_read", ".2f"),
    Row("chunks", "chunks/s delivered", "per_second", ",.0f"),
    Row("chunks", "transit p50, µs", "transit_p50_us", ",.0f", ratio=True),
    Row("chunks", "transit p99, µs", "transit_p99_us", ",.0f", ratio=True),
    Row("memory", "KiB per open stream (RSS, 1,000 open)", "kib_per_stream", ".1f", ratio=True, max_gateway=12),
    Row("memory", "MiB idle (RSS)", "idle_mib", ".1f"),
    Row("memory", "MiB with all open (RSS)", "open_mib", ".1f"),
    Row("large 32 KB", "CPU µs per request", "cpu_us", ".1f", ratio=True),
    Row("large 1 MB", "CPU µs per request", "cpu_us", ",.0f", ratio=True),
)


Edges = Callable[[Sequence[float]], tuple[float, float]]
"""What is shown of a figure's range."""


def extremes(values: Sequence[float]) -> tuple[float, float]:
    """For a handful of rounds."""
    return min(values), max(values)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """For many: one bad round is not seen."""
    low, _, high = statistics.quantiles(values, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return low, high


def cell(rounds: Iterable[Round], figure: Callable[[Round], float], edges: Edges = extremes) -> Cell | None:
    """The figure over the trusted rounds, or over all that have one; None if no round has one."""
    whole = [round_ for round_ in rounds if round_.failed is None]
    trusted = [round_ for round_ in whole if round_.doubt() is None]
    values = [figure(round_) for round_ in trusted or whole]
    if not values:
        return None
    return Cell(statistics.median(values), *edges(values), len(values), trusted=bool(trusted))


def side_by_side(
    rounds: Sequence[Round],
    scenario: str,
    key: str,
    *,
    ours: str,
    theirs: str,
    sign: Literal["-", "/"],
    edges: Edges = extremes,
) -> Cell | None:
    """One target's figure less another's, or divided by it, over the rounds in which both can be trusted, else over
    all that both came through."""
    whole = {(r.target, r.number): r for r in rounds if r.scenario == scenario and r.failed is None}
    pairs = [
        (round_, whole[theirs, number])
        for (target, number), round_ in whole.items()
        if target == ours and (theirs, number) in whole
    ]
    trusted = [pair for pair in pairs if all(r.doubt() is None for r in pair)]
    both = [(mine.values[key], other.values[key]) for mine, other in trusted or pairs]
    values = [mine - other for mine, other in both] if sign == "-" else [mine / other for mine, other in both if other]
    if not values:
        return None
    return Cell(statistics.median(values), *edges(values), len(values), trusted=bool(trusted))


def ratios(rounds: Sequence[Round], scenario: str, key: str) -> Cell | None:
    """gateway ÷ nginx."""
    return side_by_side(rounds, scenario, key, ours="gateway", theirs="nginx", sign="/")


def verdict(row: Row, ratio: Cell | None, gateway: Cell | None) -> str:
    """Met or missed, and by which bar; not judged where no quiet round stands behind the figure."""
    if row.max_ratio is not None:
        bar, limit, measured = f"≤ {row.max_ratio:g} × nginx", row.max_ratio, ratio
    elif row.max_gateway is not None:
        bar, limit, measured = f"≤ {row.max_gateway:g}", row.max_gateway, gateway
    else:
        return ""
    if measured is None:
        return f"{bar}: not measured"
    if not measured.trusted:
        return f"{bar}: not judged (no quiet round)"
    return f"{bar}: {'met' if measured.median <= limit else '**missed**'}"


def table(rounds: Sequence[Round], targets: Sequence[str]) -> str:
    """One Markdown table: a line per figure, a column per target."""
    lines = [
        "| scenario | figure | " + " | ".join(targets) + " | gateway ÷ nginx | bar |",
        "|" + "---|" * (len(targets) + 4),
    ]
    for scenario in dict.fromkeys(row.scenario for row in ROWS):
        of_scenario = [round_ for round_ in rounds if round_.scenario == scenario]
        if not of_scenario:
            continue
        lines += [_line(row, of_scenario, targets) for row in ROWS if row.scenario == scenario]
        if scenario != "memory":
            lines.append(_waiting_line(scenario, of_scenario, targets))
    return "\n".join(lines)


def _line(row: Row, rounds: Sequence[Round], targets: Sequence[str]) -> str:
    def over(target: str) -> Cell | None:
        return cell((r for r in rounds if r.target == target), lambda r: r.values[row.key])

    ratio = ratios(rounds, row.scenario, row.key) if row.ratio else None
    cells = [written(over(target), row.form) for target in targets]
    tail = [written(ratio, ".2f") if row.ratio else "", verdict(row, ratio, over("gateway"))]
    return "| " + " | ".join([row.scenario, row.title, *cells, *tail]) + " |"


def _waiting_line(scenario: str, rounds: Sequence[Round], targets: Sequence[str]) -> str:
    def most(target: str) -> str:
        whole = [r for r in rounds if r.target == target and r.failed is None]
        if target == "direct" or not whole:
            return "–"
        waits = [r.waited for r in whole]
        return written(Cell(statistics.median(waits), min(waits), max(waits), len(waits)), ".1%")

    return f"| {scenario} | waited for a core (all rounds) | " + " | ".join(map(most, targets)) + " | | |"


def written(value: Cell | None, form: str) -> str:
    """`median [min–max]`; the range only if there is one, a `?` after what no trusted round stands behind."""
    if value is None:
        return "–"
    spread = f" [{value.low:{form}}–{value.high:{form}}]" if value.rounds > 1 else ""
    return f"{value.median:{form}}{spread}{'' if value.trusted else ' ?'}"


def remarks(rounds: Sequence[Round]) -> list[str]:
    """What the table leaves out: rounds not counted, and why; CPU that had to be counted in ticks."""
    found = []
    for r in rounds:
        if doubt := r.doubt():
            why = f"failed: {r.failed}" if r.failed else f"not counted: {doubt}"
            found.append(f"{r.target}, {r.scenario}, round {r.number}: {why}")
    inexact = sum(not r.exact for r in rounds)
    if inexact:
        found.append(f"{inexact} rounds counted CPU in ticks of 10 ms, because a thread ended in them")
    return found


def host_facts(versions: dict[str, str], cores: dict[str, int]) -> list[str]:
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return [
        f"{os.cpu_count()} cores ({_cpu_model()})" + "".join(f", {name} on core {n}" for name, n in cores.items()),
        f"kernel {platform.release()}, Python {platform.python_version()}, load average {load} at the end",
        *(f"{name}: {version}" for name, version in versions.items()),
    ]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
