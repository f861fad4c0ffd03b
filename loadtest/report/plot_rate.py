"""What a rising rate did: time to first token and goodput against the rate that was offered, one point a step.

The knee is the last step before goodput falls below the objective (`measures.knee`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from loadtest.report import drawing as draw
from loadtest.report import wording
from loadtest.report.drawing import LINE, WIDTH, Point, Scale
from loadtest.report.measures import Measures, about_time, knee
from loadtest.report.panel import BELOW, LEFT, MARGIN, PANEL, TOP, Panel, colour, level
from loadtest.report.side import Group, Side

AFTER: Final = 72
"""What the words at the ends of lines need."""


def rate(sides: Sequence[Side], title: str) -> str | None:
    """TTFT and goodput against the rate offered, a row for each side; None with less than two steps."""
    risen = [side for side in sides if len(side.steps) > 1]
    if not risen:
        return None
    row = PANEL + BELOW + 52
    parts = [draw.words(MARGIN, 24, title, bold=True)]
    for place, side in enumerate(risen):
        parts += _row(side, TOP + 24 + place * row, named=len(sides) > 1)
    return draw.sheet(title, TOP + 24 + len(risen) * row - 28, parts)


def _row(side: Side, top: float, *, named: bool) -> Iterator[str]:
    steps = sorted(side.steps, key=lambda step: step.measures.offered_per_second)
    rates = [step.measures.offered_per_second for step in steps]
    half = (WIDTH - 2 * LEFT - 2 * AFTER) / 2
    last = knee([step.measures for step in steps], side.objectives.goodput) if about_time(side.objectives) else None
    of = f", {side.name}" if named else ""
    for place, panel_of in enumerate((_ttft_by_rate, _goodput_by_rate)):
        left = LEFT + place * (half + LEFT + AFTER)
        x = draw.even(rates, left, left + half)
        panel, drawn = panel_of(side, steps, x, top, of)
        yield from panel.frame(
            wording.milliseconds if panel.y.log else wording.digits, [(at, wording.digits(at)) for at in x.ticks()]
        )
        yield draw.words(
            (left + left + half) / 2, panel.bottom + 2 * LINE + 3, "requests/s offered", "soft", anchor="middle"
        )
        if last is not None:
            at = x(rates[last])
            yield draw.line([(at, panel.top), (at, panel.bottom)], "green", width=1.5, dashes="2 3")
            if place:
                text = f"knee: {wording.digits(rates[last])}/s" if last < len(steps) - 1 else "no knee up to here"
                near_edge = at > (panel.left + panel.right) / 2
                yield draw.words(
                    at + (-5 if near_edge else 5),
                    panel.bottom - 8,
                    text,
                    "green",
                    anchor="end" if near_edge else "start",
                    bold=True,
                )
        elif place and about_time(side.objectives):
            share = wording.share(side.objectives.goodput)
            yield draw.words(panel.left + 6, panel.top + 14, f"at no rate {share} within the objectives", "red")
        yield from drawn


def _ttft_by_rate(side: Side, steps: Sequence[Group], x: Scale, top: float, of: str) -> tuple[Panel, list[str]]:
    names = ("p99", "p90", "p50")
    every = [getattr(step.measures.ttft_ms, name) for step in steps if step.measures.ttft_ms for name in names]
    objective = side.objectives.ttft_ms
    if objective is not None:
        every.append(objective)
    panel = Panel(f"Time to first token (TTFT){of}", x, draw.logarithmic(every, top + PANEL, top))
    drawn: list[str] = []
    ends: list[Point] = []
    for place, name in enumerate(names):
        points = [
            panel.point(step.measures.offered_per_second, getattr(step.measures.ttft_ms, name))
            if step.measures.ttft_ms
            else None
            for step in steps
        ]
        there = [point for point in points if point]
        drawn += [draw.line(points, colour(place)), *(draw.dot(point, colour(place)) for point in there)]
        ends += there[-1:]
    heights = draw.apart([y for _, y in ends], LINE - 2)
    drawn += [
        draw.words(x_end + 8, height + 4, name, colour(place))
        for place, ((x_end, _), height, name) in enumerate(zip(ends, heights, names[: len(ends)], strict=True))
    ]
    if objective is not None:
        drawn += level(panel, objective, f"objective {wording.milliseconds(objective)}")
    return panel, drawn


def _goodput_by_rate(side: Side, steps: Sequence[Group], x: Scale, top: float, of: str) -> tuple[Panel, list[str]]:
    every = [max(step.measures.offered_per_second, step.measures.whole_per_second) for step in steps]
    panel = Panel(f"Goodput: requests/s within the objectives{of}", x, draw.even(every, top + PANEL, top))
    end = min(panel.x.high, panel.y.high)

    def points(figure: Callable[[Measures], float]) -> list[Point]:
        return [panel.point(step.measures.offered_per_second, figure(step.measures)) for step in steps]

    good = points(lambda measures: measures.goodput_per_second)
    whole = points(lambda measures: measures.whole_per_second)
    drawn = [
        draw.line([panel.point(0, 0), panel.point(end, end)], "axis", width=1.5, dashes="5 4"),
        draw.line(whole, "grey"),
        draw.line(good, "blue"),
        *(draw.dot(point, "blue") for point in good),
    ]
    names = [("offered", "soft", panel.point(end, end)), ("whole", "soft", whole[-1]), ("good", "blue", good[-1])]
    heights = draw.apart([point[1] for _, _, point in names], LINE - 2)
    drawn += [
        draw.words(point[0] + 8, height + 4, text, ink)
        for (text, ink, point), height in zip(names, heights, strict=True)
    ]
    return panel, drawn
