"""Figures as people read them: three digits, and the unit that keeps them small."""

from loadtest.report.measures import Times


def digits(value: float) -> str:
    """Three significant digits, whole numbers from a hundred on: 0.52, 12.3, 1,240."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return "< 0.001" if 0 < value < 0.001 else f"{value:.3g}"


def milliseconds(value: float | None) -> str:
    """12.3 ms, 1.24 s; a dash for what there is none of."""
    if value is None:
        return "–"
    return f"{digits(value)} ms" if value < 999.5 else f"{digits(value / 1e3)} s"


def share(value: float | None) -> str:
    """Per cent; never 100 % for what is a little less, nor 0 % for a little more."""
    if value is None:
        return "–"
    text = f"{100 * value:.3g} %"
    if text == "100 %" and value < 1:
        return "> 99.9 %"
    return "< 0.01 %" if 0 < value < 0.0001 else text


def at(times: Times | None, name: str) -> str:
    """One of a distribution's figures, as time."""
    return milliseconds(getattr(times, name)) if times else "–"
