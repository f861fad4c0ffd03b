"""Figures as tables of Markdown, which can be read in a terminal too."""

from collections.abc import Callable, Sequence
from typing import Final

from loadtest.report import wording
from loadtest.report.measures import Measures, Times
from loadtest.report.side import Group, Side

NOTHING: Final = frozenset({"0", "0 %", "–"})
"""A column of nothing but these is left out of a table of groups."""
TIMES: Final = (
    ("TTFT", "ttft_ms"),
    ("ITL", "itl_ms"),
    ("TPOT", "tpot_ms"),
    ("end to end", "e2e_ms"),
    ("generator late", "late_ms"),
)
COMPARED: Final = ("ttft_ms", "itl_ms", "e2e_ms")
"""Times whose difference is told where there are several sides."""
PERCENTILES: Final = ("p50", "p90", "p95", "p99", "max", "mean")
COUNTS: Final[Sequence[tuple[str, Callable[[Measures], str]]]] = (
    ("requests", lambda m: f"{m.requests:,}"),
    ("whole", lambda m: f"{m.whole:,}"),
    ("failed", lambda m: f"{m.failed:,}"),
    ("refused by the caller's own limit", lambda m: f"{m.limited:,}"),
    ("left by the client", lambda m: f"{m.left:,}"),
    ("within the objectives", lambda m: f"{wording.share(m.goodput)} of {m.judged:,} judged"),
    ("offered, requests/s", lambda m: wording.digits(m.offered_per_second)),
    ("whole, requests/s", lambda m: wording.digits(m.whole_per_second)),
    ("goodput, requests/s", lambda m: wording.digits(m.goodput_per_second)),
    ("output tokens/s", lambda m: wording.digits(m.tokens_per_second)),
    ("prompt tokens found in a cache", lambda m: wording.share(m.cached_share)),
)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """`numbers`: all columns but the first are aligned to the right."""
    lines = [head, ["---", *(["--:" if numbers else "---"] * (len(head) - 1))], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def times_table(sides: Sequence[Side]) -> str:
    rows = []
    for words, name in TIMES:
        of_sides: list[Times | None] = [getattr(side.measures, name) for side in sides]
        for side, times in zip(sides, of_sides, strict=True):
            if times:
                label = f"{words}, {side.name}" if len(sides) > 1 else words
                figures = [wording.at(times, each) for each in PERCENTILES]
                rows.append([label, *figures, f"{times.count:,}"])
        rows += [
            [f"{words}, {side.name} minus {sides[0].name}", *_less(times, of_sides[0]), ""]
            for side, times in zip(sides[1:], of_sides[1:], strict=True)
            if times and of_sides[0] and name in COMPARED
        ]
    return table(("", *PERCENTILES, "of"), rows, numbers=True)


def _less(times: Times, first: Times) -> list[str]:
    """By how much each percentile is above the other's: the difference of percentiles, not of single requests."""
    moved = [getattr(times, each) - getattr(first, each) for each in PERCENTILES]
    return [("+" if by >= 0 else "−") + wording.milliseconds(abs(by)) for by in moved]


def counts_table(sides: Sequence[Side]) -> str:
    head = ("", *(side.name for side in sides))
    return table(head, [(words, *(told(side.measures) for side in sides)) for words, told in COUNTS], numbers=True)


def steps_table(side: Side) -> str:
    head = ("step", "offered/s", "goodput/s", "within", "failed", "TTFT p50", "TTFT p99", "ITL p99", "end to end p99")
    rows = [
        (
            step.name,
            wording.digits(step.measures.offered_per_second),
            wording.digits(step.measures.goodput_per_second),
            wording.share(step.measures.goodput),
            f"{step.measures.failed:,}",
            wording.at(step.measures.ttft_ms, "p50"),
            wording.at(step.measures.ttft_ms, "p99"),
            wording.at(step.measures.itl_ms, "p99"),
            wording.at(step.measures.e2e_ms, "p99"),
        )
        for step in side.steps
    ]
    return table(head, rows, numbers=True)


def endings_table(measures: Measures) -> str:
    rows = [
        (each.ending, str(each.status) if each.status else "–", each.code or "–", f"{each.requests:,}")
        for each in measures.endings
    ]
    return table(("ending", "status", "code", "requests"), rows)


def groups_table(title: str, groups: Sequence[Group]) -> str:
    head = [title, "requests", "whole", "failed", "own limit", "within", "TTFT p50", "TTFT p99"]
    head += ["end to end p99", "tokens/s", "cached"]
    rows = [
        (
            group.name,
            f"{group.measures.requests:,}",
            f"{group.measures.whole:,}",
            f"{group.measures.failed:,}",
            f"{group.measures.limited:,}",
            wording.share(group.measures.goodput),
            wording.at(group.measures.ttft_ms, "p50"),
            wording.at(group.measures.ttft_ms, "p99"),
            wording.at(group.measures.e2e_ms, "p99"),
            wording.digits(group.measures.tokens_per_second),
            wording.share(group.measures.cached_share),
        )
        for group in groups
    ]
    told = [place for place, cells in enumerate(zip(*rows, strict=True)) if not NOTHING.issuperset(cells)]
    return table([head[place] for place in told], [[row[place] for place in told] for row in rows], numbers=True)


def figures_table(sides: Sequence[Side]) -> str:
    """What the stand measured; empty if it measured nothing."""
    names = dict.fromkeys((figure.name, figure.unit) for side in sides for figure in side.figures)
    if not names:
        return ""
    told = [{(figure.name, figure.unit): figure.value for figure in side.figures} for side in sides]
    rows = [
        (
            name,
            *(f"{wording.digits(of[name, unit])} {unit}".strip() if (name, unit) in of else "–" for of in told),
        )
        for name, unit in names
    ]
    return table(("", *(side.name for side in sides)), rows, numbers=True)
