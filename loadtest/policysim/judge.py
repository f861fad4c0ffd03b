"""The bars for `auto`, and whether a set of results meets them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtest.policysim.cells import Cell
from loadtest.policysim.figures import Figures
from loadtest.policysim.workloads import WORKLOADS

BEHIND = 0.05
"""In no cell is its mean time to the first token further behind that of the best other policy."""
AHEAD = 0.30
"""Where prompts share what does not fit into every cache, it is so far ahead of `least`."""
MOSTLY = 0.5
"""A policy is unstable in a cell where more than this part of its runs are."""


@dataclass(frozen=True, slots=True)
class Result:
    """A cell, and what each policy came to in it, over its seeds."""

    cell: Cell
    policies: Mapping[str, Figures]


@dataclass(frozen=True, slots=True)
class Miss:
    """A bar not met."""

    cell: Cell
    what: str


def auto_check(results: Sequence[Result]) -> list[Miss]:
    """The bars that `auto` misses; of cells that have it and `least`."""
    misses = []
    for result in results:
        auto, least = result.policies.get("auto"), result.policies.get("least")
        if auto is None or least is None:
            continue
        best, figures = min(
            ((name, figures) for name, figures in result.policies.items() if name != "auto"),
            key=lambda each: each[1].mean,
        )
        if auto.mean > figures.mean * (1 + BEHIND):
            misses.append(Miss(result.cell, f"{auto.mean / figures.mean - 1:.1%} behind {best}"))
        if WORKLOADS[result.cell.workload].shares and auto.mean > least.mean * (1 - AHEAD):
            misses.append(Miss(result.cell, f"only {1 - auto.mean / least.mean:.1%} ahead of least"))
        if auto.unstable > MOSTLY >= least.unstable:
            misses.append(Miss(result.cell, "unstable, where least is stable"))
    return misses
