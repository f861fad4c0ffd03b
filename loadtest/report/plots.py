"""Which plots a run has, and what each is called."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from loadtest.report.document import Run
from loadtest.report.plot_latency import latency
from loadtest.report.plot_rate import rate
from loadtest.report.plot_timeline import timeline

NAMES: Final = ("latency", "rate", "timeline", "timeline-[0-9]")
"""What a plot can be called, as patterns of files."""


@dataclass(frozen=True, slots=True)
class Plot:
    """`name`: what its file's name ends with."""

    name: str
    title: str
    svg: str


def plots_of(run: Run) -> list[Plot]:
    """Those for which there is something to draw."""
    return [*_drawn(run)]


def _drawn(run: Run) -> Iterator[Plot]:
    for name, title, draw in (("latency", "How long it took", latency), ("rate", "The rising rate", rate)):
        if svg := draw(run.sides, f"{run.scenario}: {title.lower()}"):
            yield Plot(name, title, svg)
    for place, side in enumerate(run.sides):
        title = "What happened when" + (f", {side.name}" if len(run.sides) > 1 else "")
        if svg := timeline(side, f"{run.scenario}: {title.lower()}"):
            yield Plot(f"timeline-{place + 1}" if place else "timeline", title, svg)
