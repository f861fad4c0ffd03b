"""What every plot is made of: a sheet, scales, panels, lines, words. The same values give the same bytes.

The sheet brings its own paper, so that it can be read on any page; where the reader chose dark, paper and ink change
places.
Nothing is fetched: no font, no script, no reference to anything outside.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 900
LINE: Final = 16
"""Pixels from one line of words to the next."""

_INK: Final = {
    # class: (on light, on dark), for both fill and stroke
    "paper": ("#ffffff", "#161b22"),
    "ink": ("#1f2328", "#e6edf3"),
    "soft": ("#59636e", "#9aa4af"),
    "grid": ("#e3e7ec", "#2b323b"),
    "axis": ("#aeb7c1", "#4c5561"),
    "blue": ("#1f6feb", "#6cb0ff"),
    "orange": ("#c4520a", "#ffa25c"),
    "green": ("#0c7c6b", "#4dd0b1"),
    "violet": ("#7b3fc9", "#c8a2ff"),
    "red": ("#cf222e", "#ff7b72"),
    "amber": ("#b98300", "#e3b341"),
    "grey": ("#a4adb7", "#6b7580"),
}
SERIES: Final = ("blue", "orange", "green", "violet")

Point = tuple[float, float]


def sheet(title: str, height: float, parts: Sequence[str]) -> str:
    """The whole SVG. `title` is what a screen reader says."""
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {px(height)}" '
                'font-family="system-ui, sans-serif" font-size="12" role="img">'
            ),
            f"<title>{escape(title)}</title>",
            f"<style>{_style()}</style>",
            f'<rect class="f-paper" width="{WIDTH}" height="{px(height)}" rx="6"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _style() -> str:
    def rules(theme: int) -> str:
        return "".join(f".f-{name}{{fill:{c[theme]}}}.s-{name}{{stroke:{c[theme]}}}" for name, c in _INK.items())

    return f"path{{fill:none}}{rules(0)}@media (prefers-color-scheme:dark){{{rules(1)}}}"


def px(value: float) -> str:
    """A tenth of a pixel is enough."""
    return f"{round(value, 1) + 0.0:g}"


def words(x: float, y: float, text: str, ink: str = "ink", *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text class="f-{ink}" x="{px(x)}" y="{px(y)}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def width_of(text: str) -> float:
    """About, and rather more: the reader's font is not known."""
    return 6.8 * len(text)


def line(points: Sequence[Point | None], ink: str, *, width: float = 2, dashes: str = "") -> str:
    """Through the points; None lifts the pen. A point between two gaps becomes a dash."""
    drawn, pen_down = [], False
    for place, point in enumerate(points):
        if point is None:
            pen_down = False
            continue
        drawn.append(f"{'L' if pen_down else 'M'}{px(point[0])} {px(point[1])}")
        if not pen_down and (place + 1 == len(points) or points[place + 1] is None):
            drawn.append("h2")
        pen_down = True
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path class="s-{ink}" stroke-width="{width:g}" stroke-linejoin="round"{dashed} d="{"".join(drawn)}"/>'


def dot(point: Point, ink: str, radius: float = 3.5) -> str:
    """With a rim of paper, so that it stands out from its line."""
    return (
        f'<circle class="f-{ink} s-paper" stroke-width="1.5" cx="{px(point[0])}" cy="{px(point[1])}" r="{radius:g}"/>'
    )


def box(x: float, y: float, width: float, height: float, ink: str) -> str:
    return f'<rect class="f-{ink}" x="{px(x)}" y="{px(y)}" width="{px(width)}" height="{px(height)}"/>'


def apart(places: Sequence[float], least: float) -> list[float]:
    """The places moved as little as keeps them so far apart, in their order: words at the ends of lines."""
    order = sorted(range(len(places)), key=lambda number: places[number])
    moved = list(places)
    for before, number in itertools.pairwise(order):
        moved[number] = max(moved[number], moved[before] + least)
    too_low = max(moved[order[-1]] - places[order[-1]], 0.0) / 2 if order else 0.0
    return [place - too_low for place in moved]


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to pixels; what lies outside is put on the edge."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        held = min(max(value, self.low), self.high)
        if self.log:
            part = math.log(held / self.low) / math.log(self.high / self.low)
        else:
            part = (held - self.low) / (self.high - self.low)
        return self.begin + part * (self.end - self.begin)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values in it, at most about so many."""
        return [*self._log_ticks(most)] if self.log else [*self._even_ticks(most)]

    def _even_ticks(self, most: int) -> Iterator[float]:
        step = round_step((self.high - self.low) / most)
        for number in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1):
            yield float(f"{number * step:.10g}")

    def _log_ticks(self, most: int) -> Iterator[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for of_decade in ((1, 2, 5), (1, 3), (1,)):
            found = [each * 10.0**decade for decade in decades for each in of_decade]
            kept = [value for value in found if self.low * 0.999 <= value <= self.high * 1.001]
            if len(kept) <= most:
                break
        yield from kept


def round_step(value: float) -> float:
    """1, 2 or 5 times a power of ten, and not less than the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(each * power for each in (1, 2, 5, 10) if each * power >= value * 0.999)


def even(values: Sequence[float], begin: float, end: float) -> Scale:
    """From zero to a round value above all."""
    most = max([*values, 0.0]) or 1.0
    step = round_step(most / 4)
    return Scale(0.0, step * math.ceil(most / step - 1e-9), begin, end)


def logarithmic(values: Sequence[float], begin: float, end: float) -> Scale:
    """Round at both ends, and half a decade at least: a small difference shall not look like a large one."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = _down(min(positive)), _up(max(positive))
    while high / low < 5:
        low, high = _down(low * 0.9), _up(high * 1.1)
    return Scale(low, high, begin, end, log=True)


def _down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return max(each for each in (1, 2, 5) if each * power <= value * 1.001) * power


def _up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return min(each for each in (1, 2, 5, 10) if each * power >= value * 0.999) * power
