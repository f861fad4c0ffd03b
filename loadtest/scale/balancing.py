"""What many replicas do to the choice of pods: `python -m loadtest.scale.balancing`, some five minutes of a core.

The same requests, at the same pods, through one replica and through many (`loadtest.policysim`). What each knows
exactly is its own; of what the others sent it knows what `/load` told last, and that is read the less often the more
replicas there are. Then the same pods and replicas, cut into groups that know nothing of each other.
"""

import argparse
import functools
import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gateway.balancing.policy import POLICIES
from loadtest.policysim.cells import Cell
from loadtest.policysim.figures import Figures, as_dict, figures_of, together
from loadtest.policysim.run import asked_of, run

FILE: Final = Path(__file__).with_name("balancing.json")
PODS: Final = 32
REPLICAS: Final = (1, 2, 4, 8, 16, 32)
WORKLOADS: Final = ("chats", "mixed", "sessions", "tenants")
GROUPS: Final = ((1, 16), (2, 8), (4, 4), (8, 2))
"""So many groups of so many replicas, over `GROUPED_PODS` pods."""
GROUPED_PODS: Final = 64
POLICY: Final = "auto"
SEEDS: Final = (7001, 7002, 7003)
"""Of nothing else."""


@dataclass(frozen=True, slots=True)
class Row:
    """What came of a cell; `groups`: as many of it stand side by side."""

    cell: Cell
    groups: int
    figures: Figures


def cells() -> Sequence[tuple[Cell, int]]:
    """All that is run, and how many of each would stand side by side."""
    together = [(Cell(name, pods=PODS, replicas=replicas), 1) for name in WORKLOADS for replicas in REPLICAS]
    apart = [
        (Cell(name, pods=GROUPED_PODS // groups, replicas=replicas), groups)
        for name in WORKLOADS
        for groups, replicas in GROUPS
    ]
    return [*together, *apart]


def figures(cell: Cell, seeds: Sequence[int] = SEEDS) -> Figures:
    """Over the seeds. The requests are those of the cell with one replica: the same for any number of them."""
    runs = []
    for seed in seeds:
        asked = asked_of(replace(cell, replicas=1), seed)
        runs.append(figures_of(run(cell, POLICIES[POLICY], asked, seed)))
    return together(runs)


def rows(seeds: Sequence[int] = SEEDS, *, processes: int = 1) -> Sequence[Row]:
    chosen = cells()
    work = functools.partial(figures, seeds=seeds)
    with multiprocessing.Pool(processes) as pool:
        found = pool.map(work, [cell for cell, _ in chosen], chunksize=1)
    return [Row(cell, groups, each) for (cell, groups), each in zip(chosen, found, strict=True)]


def as_json(found: Sequence[Row]) -> Mapping[str, Any]:
    return {
        "seeds": list(SEEDS),
        "policy": POLICY,
        "rows": [
            {
                "workload": row.cell.workload,
                "pods": row.cell.pods,
                "replicas": row.cell.replicas,
                "load": row.cell.load,
                "groups": row.groups,
                "figures": as_dict(row.figures),
            }
            for row in found
        ],
    }


def read(file: Path = FILE) -> Sequence[Row]:
    """What `as_json` wrote."""
    told = json.loads(file.read_text("utf-8"))
    return [
        Row(
            Cell(each["workload"], pods=each["pods"], replicas=each["replicas"], load=each["load"]),
            each["groups"],
            Figures(**each["figures"]),
        )
        for each in told["rows"]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.scale.balancing", description="many replicas, same pods")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE", help=f"default: {FILE.name} of the module")
    asked = parser.parse_args(arguments)
    told = as_json(rows(processes=asked.processes))
    asked.json.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
