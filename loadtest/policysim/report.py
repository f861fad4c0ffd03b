"""Results as Markdown and as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from loadtest.policysim.cells import Cell, Condition
from loadtest.policysim.figures import Figures, as_dict
from loadtest.policysim.judge import MOSTLY, Miss, Result
from loadtest.policysim.profiles import LARGE, MEASURED


def markdown(results: Sequence[Result]) -> str:
    """A table for each measure, a row for each cell; the best of a row is bold."""
    policies = list(dict.fromkeys(name for result in results for name in result.policies))
    parts = [
        "Mean time to first token, ms (`!`: unstable in most runs)",
        _table(results, policies, "mean", 1e3, ",.0f"),
        "p99 of the time to first token, ms",
        _table(results, policies, "p99", 1e3, ",.0f"),
        "Prompt tokens found in a cache, %",
        _table(results, policies, "hits", 1e2, ".0f", lowest=False),
        "Requests in the fullest pod, divided by the mean of the pods",
        _table(results, policies, "imbalance", 1, ".2f"),
    ]
    return "\n\n".join(parts) + "\n"


MARKS = "<!-- tables -->", "<!-- end of tables -->"


def on_page(page: str, tables: str) -> str:
    """The page with these tables between its marks."""
    before, _, rest = page.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    return f"{before}{MARKS[0]}\n\n{tables}\n{MARKS[1]}{after}"


def times(results: Sequence[Result]) -> str:
    """Of `markdown` what is about the time to first token."""
    return markdown(results).partition("Prompt tokens found in a cache")[0].rstrip() + "\n"


def from_json(told: Mapping[str, Any]) -> list[Result]:
    """The results that `as_json` wrote."""
    profiles = {profile.name: profile for profile in (LARGE, MEASURED)}
    return [
        Result(
            Cell(
                each["workload"],
                each["pods"],
                each["replicas"],
                each["load"],
                Condition(each["condition"]),
                profiles[each["profile"]],
            ),
            {name: Figures(**figures) for name, figures in each["policies"].items()},
        )
        for each in told["cells"]
    ]


def verdict(misses: Sequence[Miss], *, judged: bool) -> str:
    if not judged:
        return "auto: not among the policies, so not judged"
    if not misses:
        return "auto: every bar met"
    return "\n".join(["auto misses:", *(f"- {miss.cell.name}: {miss.what}" for miss in misses)])


def as_json(results: Sequence[Result], misses: Sequence[Miss], seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "seeds": list(seeds),
        "cells": [
            {
                "workload": result.cell.workload,
                "profile": result.cell.profile.name,
                "pods": result.cell.pods,
                "replicas": result.cell.replicas,
                "load": result.cell.load,
                "condition": result.cell.condition.value,
                "policies": {name: as_dict(figures) for name, figures in result.policies.items()},
            }
            for result in results
        ],
        "misses": [{"cell": miss.cell.name, "what": miss.what} for miss in misses],
    }


def _table(
    results: Sequence[Result], policies: Sequence[str], measure: str, scale: float, form: str, *, lowest: bool = True
) -> str:
    lines = [
        "| workload | pod | pods | gateways | load | condition | " + " | ".join(policies) + " |",
        "|---|---|--:|--:|--:|---|" + "--:|" * len(policies),
    ]
    for result in results:
        cell = result.cell
        values = {name: float(getattr(figures, measure)) for name, figures in result.policies.items()}
        best = (min if lowest else max)(values.values())
        row = [_written(result.policies.get(name), values.get(name), best, scale, form) for name in policies]
        where = [cell.workload, cell.profile.name, cell.pods, cell.replicas, f"{cell.load:g}", cell.condition.value]
        lines.append("| " + " | ".join(map(str, [*where, *row])) + " |")
    return "\n".join(lines)


def _written(figures: Figures | None, value: float | None, best: float, scale: float, form: str) -> str:
    if figures is None or value is None:
        return ""
    text = format(value * scale, form)
    if value == best:
        text = f"**{text}**"
    return text + " !" * (figures.unstable > MOSTLY)
