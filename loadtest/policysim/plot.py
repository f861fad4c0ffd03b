"""Bars of mean and p99 time to first token, for each cell and policy, as an SVG. Both themes of a page can show it."""

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from loadtest.policysim.judge import Result

COLOURS = ("#0b6e99", "#d9730d", "#6b7280", "#0f7b6c", "#ad1a72", "#b59a00")
LEFT, RIGHT, TOP, BOTTOM = 250, 40, 60, 40
BAR, GAP, WIDTH = 9, 14, 900


def svg(results: Sequence[Result], title: str) -> str:
    """A group of bars for each result, on a logarithmic scale: the bar is the mean, the line goes on to p99."""
    policies = list(dict.fromkeys(name for result in results for name in result.policies))
    every = [figures for result in results for figures in result.policies.values()]
    low = 10 ** math.floor(math.log10(min(figures.mean for figures in every)))
    high = 10 ** math.ceil(math.log10(max(figures.p99 for figures in every)))
    inner = WIDTH - LEFT - RIGHT
    height = TOP + BOTTOM + sum(len(result.policies) * BAR + GAP for result in results)

    def x(seconds: float) -> float:
        return LEFT + inner * math.log10(max(seconds, low) / low) / math.log10(high / low)

    def parts() -> Iterator[str]:
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
            f'font-size="11" role="img"><title>{escape(title)}</title>'
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
        )
        yield _text(LEFT, 18, title, size=14)
        for place, name in enumerate(policies):
            left = LEFT + place * 100
            yield f'<rect x="{left}" y="30" width="10" height="10" fill="{_colour(place)}"/>' + _text(
                left + 14, 39, name
            )
        seconds = low
        while seconds <= high * 1.001:
            at = x(seconds)
            yield f'<path d="M{at:.1f} {TOP - 6}V{height - BOTTOM}" stroke="#d1d5db"/>'
            yield _text(at, height - BOTTOM + 16, f"{seconds:g} s", anchor="middle")
            seconds *= 10
        y = float(TOP)
        for result in results:
            cell = result.cell
            middle = y + len(result.policies) * BAR / 2
            yield _text(LEFT - 10, middle, f"{cell.workload}, {cell.condition.value}", anchor="end")
            where = f"{cell.profile.name}, {cell.pods} pods, {cell.replicas} gateways, load {cell.load:g}"
            yield _text(LEFT - 10, middle + 12, where, anchor="end", size=9)
            for name, figures in result.policies.items():
                colour, line = _colour(policies.index(name)), y + BAR / 2
                yield (
                    f'<rect x="{LEFT}" y="{y:.1f}" width="{x(figures.mean) - LEFT:.1f}" height="{BAR - 1}" '
                    f'fill="{colour}"/><path d="M{x(figures.mean):.1f} {line:.1f}H{x(figures.p99):.1f}m0 -3v6" '
                    f'stroke="{colour}" fill="none"/>'
                )
                y += BAR
            y += GAP
        yield "</svg>"

    return "\n".join(parts()) + "\n"


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#111827">{escape(text)}</text>'
    )
