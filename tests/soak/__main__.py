"""`python -m tests.soak`: a soak, its table on stdout, its JSON in a file, and 1 as exit code if anything was wrong."""

import argparse
import asyncio
import json
import secrets
import sys
from pathlib import Path

from loadtest.invariants import RULES
from tests.soak.resting import Rest, percentile
from tests.soak.soak import Plan, Report, soak

SHOWN = 30


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=None, help="draws the same requests and faults again")
    parser.add_argument("--rps", type=float, default=Plan.rps, help="requests a second")
    parser.add_argument("--every", type=float, default=Plan.every_seconds, help="seconds from fault to fault")
    parser.add_argument("--fault", action="append", help="only this one; repeatable")
    parser.add_argument("--lag-ms", type=float, default=Plan.lag_seconds * 1e3, help="bound of the event loop's lag")
    parser.add_argument("--json", type=Path, default=None, help="where the report goes")
    asked = parser.parse_args()
    seed = secrets.randbits(32) if asked.seed is None else asked.seed
    plan = Plan(
        seed,
        asked.minutes * 60,
        asked.rps,
        every_seconds=asked.every,
        lag_seconds=asked.lag_ms / 1e3,
        calm_seconds=min(Plan.calm_seconds, asked.minutes * 20),
        faults=asked.fault or Plan.faults,
    )
    print(f"seed {seed}, {asked.minutes:g} minutes, {plan.rps:g} requests a second", flush=True)
    report = asyncio.run(soak(plan, lambda words: print(words, flush=True)))
    print(table(report))
    if asked.json is not None:
        asked.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    return 0 if report.passed else 1


def table(report: Report) -> str:
    """For people."""
    checker = report.checker
    lines = ["", f"{sum(report.kinds.values())} requests: {_listed(report.kinds)}"]
    lines += ["", "How they ended:", *(f"  {count:7} {name}" for name, count in checker.endings.most_common())]
    lines += ["", "Faults, and how often with effect:"]
    lines += [f"  {sum(each):3} of {len(each):3}  {name}" for name, each in sorted(report.faults.items())]
    lines += ["", "Invariants:"]
    lines += [f"  {rule.name:4} {checker.counts[rule.name]:5}  {_sentence(rule)}" for rule in RULES]
    lines += ["", "Gateways:           memory, KiB   KiB/min (at least)      descriptors  lag p99, ms"]
    lines += [_of(rest) for rest in report.rests]
    machine = percentile(report.machine_lags, 0.99) * 1e3
    lines += [f"  the machine itself: lag p99 {machine:.1f} ms", ""]
    lines += [f"The pods' shares were judged {report.shares_judged} times.", ""]
    lines += [f"wrong: {words}" for words in report.wrong]
    lines += [f"violation: {violation}" for violation in checker.violations[:SHOWN]]
    verdict = "passed" if report.passed else "FAILED"
    return "\n".join([*lines, f"{verdict}; again with: make soak SEED={report.plan.seed}"])


def _of(rest: Rest) -> str:
    begun, ended = rest.rss_kib
    slope = rest.slope
    least = f"({slope.lowest:.1f})" if slope.is_judged else "(too short)"
    return (
        f"  {rest.gateway:12} {begun:9.0f} → {ended:6.0f}  {slope.per_minute:7.1f} {least:>12}  "
        f"{rest.descriptors[0]:4} → {rest.descriptors[1]:4}  {rest.lag_p99_seconds * 1e3:8.1f}"
    )


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda each: -each[1]))


def _sentence(rule: type) -> str:
    words = " ".join((rule.__doc__ or "").split())
    return words.partition(". ")[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
