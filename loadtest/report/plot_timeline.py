"""What happened when: slot by slot, with what was done to the stand marked across all of it."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from loadtest.report import drawing as draw
from loadtest.report import wording
from loadtest.report.drawing import LINE, WIDTH, Point, Scale
from loadtest.report.panel import LEFT, MARGIN, TOP, Panel, colour, in_sight, level
from loadtest.report.side import Mark, Side

MOST_MARKS: Final = 12
"""As many are told under a timeline; all are drawn."""
MARK_LETTERS: Final = 48
_HOW: Final = (
    ("whole", "blue", "whole"),
    ("left", "grey", "left by the client"),
    ("limited", "amber", "refused by own limit"),
    ("failed", "red", "failed"),
)


def timeline(side: Side, title: str) -> str | None:
    """Endings, times to first token, what was open and the tokens, over time; None with less than two slots."""
    told = side.timeline
    if len(told.sent) < 2:
        return None
    seconds = len(told.sent) * told.width
    x = Scale(0.0, float(seconds), LEFT, WIDTH - MARGIN)
    marks = [mark for mark in side.marks if 0 <= mark.at <= seconds]
    top = TOP + 28.0 + (18 if marks else 0)
    tall, flat, between = 130.0, 80.0, 44.0
    ticks = [(value, f"{value:g}") for value in x.ticks(10)]
    parts = [draw.words(MARGIN, 24, title, bold=True)]
    begun = top
    for panel_of, height in ((_endings, tall), (_waits, tall), (_open, flat), (_tokens, flat)):
        parts += panel_of(side, x, top, height, ticks)
        top += height + between
    bottom = top - between
    parts.append(
        draw.words((x.begin + x.end) / 2, bottom + 2 * LINE + 2, "seconds from the start", "soft", anchor="middle")
    )
    parts += _marked(marks, x, begun, bottom)
    return draw.sheet(title, bottom + 2 * LINE + 14 + _legend_height(marks), parts)


Ticks = Sequence[tuple[float, str]]


def _endings(side: Side, x: Scale, top: float, height: float, ticks: Ticks) -> Iterator[str]:
    told = side.timeline
    per = [count / told.width for count in told.sent]
    ended = [sum(each) / told.width for each in zip(told.whole, told.failed, told.limited, told.left, strict=True)]
    panel = Panel("Requests/s by how they ended", x, draw.even([*per, *ended], top + height, top))
    yield from panel.frame(wording.digits)
    wide = (x.end - x.begin) / len(per)
    base = [0.0] * len(per)
    right = panel.right
    for name, ink, words in reversed(_HOW):
        if any(getattr(told, name)):
            right -= draw.width_of(words) + 26
            yield draw.box(right, top - 21, 10, 10, ink)
            yield draw.words(right + 14, top - 12, words, "soft")
    yield draw.line([(right - 60, top - 16), (right - 48, top - 16)], "ink", width=1.5)
    yield draw.words(right - 44, top - 12, "sent", "soft")
    for name, ink, _ in _HOW:
        for slot, count in enumerate(getattr(told, name)):
            if count:
                above = base[slot] + count / told.width
                left, upper = x.begin + slot * wide, panel.y(above)
                yield draw.box(left, upper, wide - min(1.0, wide / 5), panel.y(base[slot]) - upper, ink)
                base[slot] = above
    stairs: list[Point | None] = []
    for slot, value in enumerate(per):
        stairs += [(x.begin + (slot + each) * wide, panel.y(value)) for each in (0, 1)]
    yield draw.line(stairs, "ink", width=1.5)


def _waits(side: Side, x: Scale, top: float, height: float, ticks: Ticks) -> Iterator[str]:
    told = side.timeline
    every = [value for value in (*told.ttft_p50_ms, *told.ttft_p99_ms) if value]
    if not every:
        return
    objective = in_sight(side.objectives.ttft_ms, every)
    panel = Panel("Time to first token (TTFT)", x, draw.logarithmic([*every, *objective], top + height, top))
    yield from panel.frame(wording.milliseconds)
    for value in objective:
        yield from level(panel, value, f"objective {wording.milliseconds(value)}")
    for place, (series, words) in enumerate(((told.ttft_p99_ms, "p99"), (told.ttft_p50_ms, "p50"))):
        middle = [
            None if value is None else panel.point((slot + 0.5) * told.width, value)
            for slot, value in enumerate(series)
        ]
        yield draw.line(middle, colour(1 - place))
        left = panel.right - 86 + place * 46
        yield draw.box(left, top - 21, 10, 10, colour(1 - place))
        yield draw.words(left + 14, top - 12, words, "soft")


def _open(side: Side, x: Scale, top: float, height: float, ticks: Ticks) -> Iterator[str]:
    told = side.timeline
    yield from _series(Panel("Open requests", x, draw.even(told.open, top + height, top)), told.open, told.width)


def _tokens(side: Side, x: Scale, top: float, height: float, ticks: Ticks) -> Iterator[str]:
    told = side.timeline
    per = [count / told.width for count in told.tokens]
    yield from _series(Panel("Tokens/s", x, draw.even(per, top + height, top)), per, told.width, ticks)


def _series(panel: Panel, values: Sequence[float], width: int, ticks: Ticks = ()) -> Iterator[str]:
    yield from panel.frame(wording.digits, ticks)
    yield draw.line([panel.point((slot + 0.5) * width, value) for slot, value in enumerate(values)], "blue")


def _marked(marks: Sequence[Mark], x: Scale, top: float, bottom: float) -> Iterator[str]:
    """A line across all panels for each, with its number; what it was is told below."""
    before = -math.inf
    for number, mark in enumerate(marks, 1):
        at = x(mark.at)
        yield draw.line([(at, top), (at, bottom)], "violet", width=1.5, dashes="3 3")
        if at - before >= 18:
            yield draw.line([(at, top - 33), (at, top - 26)], "violet", width=1.5)
            yield draw.box(at - 8, top - 48, 16, 15, "violet")
            yield draw.words(at, top - 36, str(number), "paper", anchor="middle", bold=True)
            before = at
    below = bottom + 3 * LINE + 8
    for number, mark in enumerate(marks[:MOST_MARKS], 1):
        column, row = (number - 1) % 2, (number - 1) // 2
        left, height = LEFT + column * (WIDTH - LEFT) / 2, below + row * LINE
        yield draw.words(left, height, str(number), "violet", bold=True)
        yield draw.words(left + 62, height, f"{mark.at:.1f} s", "soft", anchor="end")
        yield draw.words(
            left + 72, height, mark.what if len(mark.what) <= MARK_LETTERS else f"{mark.what[:MARK_LETTERS]}…"
        )
    if (more := len(marks) - MOST_MARKS) > 0:
        yield draw.words(LEFT, below + MOST_MARKS // 2 * LINE, f"and {more} more", "soft")


def _legend_height(marks: Sequence[Mark]) -> float:
    return math.ceil(min(len(marks), MOST_MARKS) / 2) * LINE + (LINE if len(marks) > MOST_MARKS else 0) + 8
