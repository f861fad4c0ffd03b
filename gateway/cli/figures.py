"""Numbers as operators read them at a glance."""

from collections.abc import Sequence
from math import ceil

UNKNOWN = "-"

BARS = "▁▂▃▄▅▆▇█"


def number(value: float | None) -> str:
    """A whole number with thousands apart, or the sign of one that is not known."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def counted(count: int, name: str) -> str:
    """`1 pod`, `0 pods`."""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def percent(part: float | None) -> str:
    """Of a whole that is 1."""
    return UNKNOWN if part is None else f"{100 * part:.0f}"


def rate(value: float | None) -> str:
    """A number that may be small: `0.4`, `20.6`, `5,120`."""
    if value is None:
        return UNKNOWN
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def duration(milliseconds: float | None) -> str:
    """`812 ms`, `0.35 ms`, `12.3 s`."""
    if milliseconds is None:
        return UNKNOWN
    if milliseconds < 10:
        return f"{milliseconds:.2g} ms"
    return f"{milliseconds:.0f} ms" if milliseconds < 9999.5 else f"{milliseconds / 1000:.1f} s"


def sparkline(history: Sequence[float], width: int) -> str:
    """The last values as bars, the tallest of them whole; none at all is the lowest bar."""
    shown = history[-width:] if width else ()
    top = max(shown, default=0)
    highest = len(BARS) - 1
    return "".join(BARS[ceil(each / top * highest) if each > 0 else 0] for each in shown)


def meter(part: float, width: int) -> str:
    """A bar that is full at 1."""
    full = round(max(0.0, min(1.0, part)) * width)
    return "█" * full + "·" * (width - full)
