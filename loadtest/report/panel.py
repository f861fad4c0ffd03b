"""A panel: a rectangle in a plot with an axis on two sides, and what may be drawn across it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from loadtest.report import drawing as draw
from loadtest.report.drawing import LINE, SERIES, WIDTH, Point, Scale

LEFT: Final = 62
"""What the words at an upright axis need."""
MARGIN: Final = 20
TOP: Final = 34
"""What a plot's title needs."""
PANEL: Final = 210
"""The height of what is drawn in."""
BELOW: Final = 24
"""What the words under an axis need."""
IN_SIGHT: Final = 4.0
"""An objective farther above all times than this is not drawn, or the times would lie flat on the axis."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A rectangle with an axis on two sides."""

    title: str
    x: Scale
    y: Scale

    @property
    def left(self) -> float:
        return self.x.begin

    @property
    def right(self) -> float:
        return self.x.end

    @property
    def top(self) -> float:
        return self.y.end

    @property
    def bottom(self) -> float:
        return self.y.begin

    def frame(self, told_y: Callable[[float], str], ticks_x: Sequence[tuple[float, str]] = ()) -> Iterator[str]:
        """Title, grid, and the words at both axes."""
        yield draw.words(self.left, self.top - 12, self.title, bold=True)
        for value in self.y.ticks(6 if self.bottom - self.top > 120 else 4):
            at = self.y(value)
            yield draw.line([(self.left, at), (self.right, at)], "grid", width=1)
            yield draw.words(self.left - 6, at + 4, told_y(value), "soft", anchor="end")
        for value, text in ticks_x:
            at = self.x(value)
            yield draw.line([(at, self.bottom), (at, self.bottom + 4)], "axis", width=1)
            yield draw.words(at, self.bottom + LINE + 2, text, "soft", anchor="middle")
        yield draw.line([(self.left, self.bottom), (self.right, self.bottom)], "axis", width=1)

    def point(self, x: float, y: float) -> Point:
        return self.x(x), self.y(y)


def colour(place: int) -> str:
    return SERIES[place % len(SERIES)]


def in_sight(objective: float | None, values: Sequence[float]) -> list[float]:
    """The objective, where it can be drawn beside these values."""
    return [objective] if objective is not None and values and objective <= IN_SIGHT * max(values) else []


def level(panel: Panel, value: float, text: str) -> Iterator[str]:
    """A line that is not to be crossed."""
    at = panel.y(value)
    yield draw.line([(panel.left, at), (panel.right, at)], "soft", width=1.5, dashes="5 4")
    yield draw.words(panel.left + 4, at + 13 if at - panel.top < LINE else at - 5, text, "soft")


def names(told: Sequence[str]) -> Iterator[str]:
    """Whose colour is which, at the right of the title."""
    right = float(WIDTH - MARGIN)
    for place, name in reversed([*enumerate(told)]):
        right -= draw.width_of(name) + 15
        yield draw.box(right, 14, 10, 10, colour(place))
        yield draw.words(right + 15, 24, name)
        right -= 18
