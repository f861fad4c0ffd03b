"""Rounds → medians, and differences and ratios between targets.

A round counts if it can be trusted: the target hardly waited for a core, the client got about one chunk
per read (a starved proxy finds several chunks at once and looks cheaper), the pods kept their pace, and
limits were counted where they should be. If a target has no such round in a scenario its figures are shown
all the same, marked, and nothing is judged by them. A ratio is the median of the ratios of rounds that ran
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
CORE_FULL: Final = 0.95
"""Share of its core from which on a target, and not the client or the pods, is what sets the rate."""


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

    def fell_behind(self) -> bool:
        """Whether it did not keep the pods' pace with a whole core, and that one full: then it cannot."""
        behind, full = self.values.get("on_pace", 1.0) < MIN_ON_PACE, self.values.get("busy", 0.0) >= CORE_FULL
        return behind and full and self.waited <= MAX_WAITED


@dataclass(frozen=True)
class Cell:
    """A figure over rounds; `trusted` False if it had to be taken from doubtful ones."""

    median: float
    low: float
    high: float
    rounds: int
    trusted: bool = True


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
