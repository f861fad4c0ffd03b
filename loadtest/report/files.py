"""A run on the disk: its page, the plots that the page shows, and the figures for a script."""

import glob
from pathlib import Path

from loadtest.report import document
from loadtest.report.document import Run
from loadtest.report.markdown import page
from loadtest.report.plots import NAMES, plots_of


def write_report(run: Run, directory: Path) -> Path:
    """NAME.md, NAME.json and NAME-PLOT.svg, in place of an earlier run's. Gives the page's path."""
    directory.mkdir(parents=True, exist_ok=True)
    plots = {f"{run.scenario}-{plot.name}.svg": plot for plot in plots_of(run)}
    for name in NAMES:
        # A plot that this run does not have would be believed to be of it.
        for earlier in directory.glob(f"{glob.escape(run.scenario)}-{name}.svg"):
            earlier.unlink()
    for name, plot in plots.items():
        (directory / name).write_text(plot.svg, "utf-8")
    document.write(run, directory / f"{run.scenario}.json")
    told = directory / f"{run.scenario}.md"
    told.write_text(page(run, plots), "utf-8")
    return told
