"""The small things a page is written with: texts made safe, numbers, times, bars and lines.

A strict content security policy allows no `style` attribute; what is drawn is SVG, whose own attributes it lets be.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import blake2s
from html import escape
from math import log10

from gateway.core.words import how_long

NOTHING = '<span class="none">–</span>'
LINE_WIDTH, LINE_HEIGHT = 87, 16
HIGH = (0.8, 0.95)
"""From where a level is worth a look, and from where it hurts."""
STEPS = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
_AGE = re.compile(r'<time data-age datetime="([^"]+)"></time>')


def text(value: object) -> str:
    """Anything as text that is no HTML, between tags and in attributes."""
    return escape(str(value))


def named(kind: str, *names: str) -> str:
    """An id for what bears these names: the same whenever it is shown."""
    return f"{kind}-{blake2s(chr(0).join(names).encode('utf-8', 'surrogatepass'), digest_size=6).hexdigest()}"


def number(value: float | None, unit: str = "") -> str:
    """A count, or a measure of three digits or so."""
    if value is None:
        return NOTHING
    if isinstance(value, int) or value >= 100:
        return f"{value:,.0f}{unit}"
    return f"{value:.1f}{unit}"


def milliseconds(value: float | None) -> str:
    """A duration that is a few milliseconds or some seconds."""
    if value is None:
        return NOTHING
    if value < 999.5:
        return f"{value:.0f}<small> ms</small>"
    seconds = value / 1000
    return f"{seconds:.{2 if seconds < 10 else 1 if seconds < 100 else 0}f}<small> s</small>"


def percent(share: float) -> str:
    """A share from 0 to 1; what is little is not nothing."""
    return "&lt;1%" if 0 < share < 0.01 else f"{share:.0%}"


def age(since: str | None) -> str:
    """For how long something has been so. Empty until `with_ages` or the page's script writes it: what is only a second
    older is not sent again."""
    return "" if since is None else f'<time data-age datetime="{text(since)}"></time>'


def with_ages(html: str, now: str) -> str:
    """The same HTML with the ages at this moment in it, for whoever has no script."""
    moment = datetime.fromisoformat(now)

    def aged(found: re.Match[str]) -> str:
        seconds = (moment - datetime.fromisoformat(found[1])).total_seconds()
        return f'<time data-age datetime="{found[1]}">{how_long(seconds)}</time>'

    return _AGE.sub(aged, html)


def moment(ts: str) -> str:
    """The time of day of an RFC 3339 time in UTC."""
    return f'<time datetime="{text(ts)}">{text(ts[11:19])}</time>'


def bar(share: float, kind: str = "") -> str:
    """How much of something is used or had. The number stands beside it."""
    width = max(0.0, min(1.0, share)) * 100
    return (
        f'<svg class="bar {kind}" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="all" width="100" height="4"/><rect width="{width:.1f}" height="4"/></svg>'
    )


def meter(share: float, label: str) -> str:
    """A level from 0 to 1 that is better low. Drawn as the bars are: browsers draw theirs each in its own way."""
    level = "error" if share >= HIGH[1] else "warning" if share >= HIGH[0] else ""
    values = f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{share * 100:.0f}"'
    return f'<span role="meter" aria-label="{text(label)}" {values}>{bar(share, level)}</span>'


def ceiling(highest: int) -> int:
    """A round number above: so that a line does not change its scale with each value."""
    if highest <= 5:
        return 5
    step = 10.0 ** int(log10(highest))
    return next(round(step * factor) for factor in STEPS if step * factor >= highest)


def line(history: Sequence[int], highest: int) -> str:
    """A minute's course, the youngest value to the right. The number stands beside it."""
    across, up = LINE_WIDTH / max(1, len(history) - 1), (LINE_HEIGHT - 2) / highest
    points = " ".join(f"{at * across:.0f},{LINE_HEIGHT - 1 - value * up:.1f}" for at, value in enumerate(history))
    return (
        f'<svg class="line" viewBox="0 0 {LINE_WIDTH} {LINE_HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline points="{points}"/></svg>'
    )


def dot(kind: str, word: str) -> str:
    """A state: its colour, and always its word."""
    return f'<span class="dot {text(kind)}">{text(word)}</span>'


def facts(pairs: Mapping[str, str]) -> str:
    """Terms and what is to be said of them, as HTML."""
    return "".join(f"<div><dt>{term}</dt><dd>{said}</dd></div>" for term, said in pairs.items())
