"""`python -m loadtest.policysim`: run the cells, print the tables, judge `auto`.

Exit code 1 when `auto` misses a bar. Without `--report` the seeds are those for tuning: the report's are for results
that stand, and no policy is to be changed by what they show.
"""

import argparse
import functools
import json
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.balancing.policy import POLICIES
from loadtest.policysim import cells
from loadtest.policysim.cells import Cell
from loadtest.policysim.figures import Figures, figures_of, together
from loadtest.policysim.judge import Result, auto_check
from loadtest.policysim.plot import svg
from loadtest.policysim.report import as_json, from_json, markdown, on_page, times, verdict
from loadtest.policysim.run import asked_of, run

Task = tuple[Cell, int]


def compare(task: Task, policies: Sequence[str]) -> dict[str, Figures]:
    """All policies on the same requests."""
    cell, seed = task
    asked = asked_of(cell, seed)
    return {name: figures_of(run(cell, POLICIES[name], asked, seed)) for name in policies}


def compare_all(
    chosen: Sequence[Cell], seeds: Sequence[int], policies: Sequence[str], *, processes: int
) -> list[Result]:
    tasks: list[Task] = [(cell, seed) for cell in chosen for seed in seeds]
    work = functools.partial(compare, policies=policies)
    if processes == 1:
        done: list[Mapping[str, Figures]] = [*map(work, tasks)]
    else:
        with multiprocessing.Pool(processes) as pool:
            done = [*pool.imap(work, tasks)]
    results = []
    for number, cell in enumerate(chosen):
        runs = done[number * len(seeds) : (number + 1) * len(seeds)]
        results.append(Result(cell, {name: together([each[name] for each in runs]) for name in policies}))
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.policysim", description="which policy, by simulation")
    parser.add_argument("--quick", action="store_true", help="a few cells, two seeds")
    parser.add_argument("--report", action="store_true", help="with the seeds that are kept for the report")
    parser.add_argument("--policy", action="append", choices=list(POLICIES), help="default: all")
    parser.add_argument("--cells", default="", metavar="TEXT", help="only those whose name holds this")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="default: printed")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the tables of times between this page's marks")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draws the cells with 8 pods at the usual load")
    asked = parser.parse_args(arguments)

    chosen = [cell for cell in (cells.quick() if asked.quick else cells.full()) if asked.cells in cell.name]
    if not chosen:
        parser.error(f"no cell's name holds {asked.cells!r}")
    seeds: Sequence[int] = cells.REPORT_SEEDS if asked.report else cells.TUNING_SEEDS
    if asked.quick:
        seeds = seeds[:2]
    policies = asked.policy or list(POLICIES)
    results = compare_all(chosen, seeds, policies, processes=asked.processes)
    misses = auto_check(results)

    if asked.markdown:
        asked.markdown.write_text(markdown(results))
    else:
        print(markdown(results))
    told = as_json(results, misses, seeds)
    if asked.page:
        # As they stand in the JSON, so that the one can be checked against the other.
        asked.page.write_text(on_page(asked.page.read_text("utf-8"), times(from_json(told))), "utf-8")
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")
    if asked.svg:
        drawn = [result for result in results if _is_drawn(result.cell)]
        asked.svg.write_text(svg(drawn or results, "Time to first token: mean (bar) and p99 (line), logarithmic"))
    print(verdict(misses, judged={"auto", "least"} <= set(policies)), file=sys.stderr)
    return 1 if misses else 0


def _is_drawn(cell: Cell) -> bool:
    return cell.pods == 8 and cell.replicas == cells.MANY_REPLICAS and cell.load == cells.USUAL_LOAD


if __name__ == "__main__":
    raise SystemExit(main())
