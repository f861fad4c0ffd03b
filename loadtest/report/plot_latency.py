"""How long things took: percentiles, not averages, on an axis that stretches the slow end.

90, 99 and 99.9 % are as far apart as 0 and 90: every tail that a histogram would hide stands there in full.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from loadtest.report import drawing as draw
from loadtest.report import wording
from loadtest.report.drawing import LINE, WIDTH, Point, Scale
from loadtest.report.measures import CURVE, Times
from loadtest.report.panel import BELOW, LEFT, MARGIN, PANEL, TOP, Panel, colour, in_sight, level, names
from loadtest.report.side import Side

IN_SIGHT_BELOW: Final = 20.0
"""What is faster than the median by more than this lies on the axis: two events of one read are microseconds apart."""


def latency(sides: Sequence[Side], title: str) -> str | None:
    """A panel for each time, a line for each side; None if nothing was timed."""
    told = [("ttft", "Time to first token (TTFT)"), ("itl", "Between two tokens (ITL)"), ("e2e", "End to end")]
    drawn = [(name, words) for name, words in told if any(name in side.curves for side in sides)]
    if not drawn:
        return None
    wide = (WIDTH - MARGIN - len(drawn) * LEFT - (len(drawn) - 1) * 10) / len(drawn)
    top = TOP + 24.0
    parts = [
        draw.words(MARGIN, 24, title, bold=True),
        *(names([side.name for side in sides]) if len(sides) > 1 else ()),
    ]
    for place, (name, words) in enumerate(drawn):
        left = LEFT + place * (wide + LEFT + 10)
        parts += _distribution(sides, name, words, left, wide, top)
    height = top + PANEL + BELOW + 14 + len(sides) * LINE + 10
    return draw.sheet(title, height, parts)


def _times(side: Side, name: str) -> Times | None:
    found: Times | None = getattr(side.measures, f"{name}_ms")
    return found


def _objective(side: Side, name: str) -> float | None:
    objective: float | None = getattr(side.objectives, f"{name}_ms", None)
    return objective


def _distribution(sides: Sequence[Side], name: str, words: str, left: float, wide: float, top: float) -> Iterator[str]:
    lines = [_tail(side, name) for side in sides]
    farthest = max(2.0, *(place for line in lines for place, _ in line))
    middle = max(times.p50 for side in sides if (times := _times(side, name)))
    every = [max(value, middle / IN_SIGHT_BELOW) for line in lines for _, value in line]
    objective = in_sight(_objective(sides[0], name), every)
    panel = Panel(
        words, Scale(0.0, farthest, left, left + wide), draw.logarithmic([*every, *objective], top + PANEL, top)
    )
    shares = [(math.log10(2), "p50"), (1.0, "p90"), (2.0, "p99"), (3.0, "p99.9"), (4.0, "p99.99")]
    yield from panel.frame(wording.milliseconds, [(at, text) for at, text in shares if at <= farthest + 0.01])
    for value in objective:
        yield from level(panel, value, f"objective {wording.milliseconds(value)}")
    for place, line in enumerate(lines):
        yield draw.line([panel.point(at, value) for at, value in line], colour(place))
    below = panel.bottom + BELOW + LINE + 2
    for place, side in enumerate(sides):
        times = _times(side, name)
        figures = " · ".join(f"{each} {wording.at(times, each)}" for each in ("p50", "p99"))
        yield draw.box(left, below - 9 + place * LINE, 10, 10, colour(place))
        yield draw.words(left + 15, below + place * LINE, figures)


def _tail(side: Side, name: str) -> list[Point]:
    """Where each percentile stands on an axis that stretches the slow end: a tenth of the rest, a unit further.

    The slowest of n stands at log10(n): farther out there is nothing that n requests could tell.
    """
    times = _times(side, name)
    if times is None:
        return []
    known = [
        (share, value) for share, value in zip(CURVE, side.curves[name], strict=True) if share < 1 - 1 / times.count
    ]
    return [*((-math.log10(1 - share), value) for share, value in known), (math.log10(times.count), times.max)]
