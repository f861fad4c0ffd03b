"""One page for a run: the answer first, then the figures, what happened, and how it can be repeated.

Plots are linked by their names alone, so that the page can stand in any folder with them beside it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from loadtest.report import wording
from loadtest.report.document import Run, Verdict
from loadtest.report.measures import about_time, knee
from loadtest.report.plots import Plot
from loadtest.report.side import Side
from loadtest.report.tables import (
    counts_table,
    endings_table,
    figures_table,
    groups_table,
    steps_table,
    table,
    times_table,
)

FEW: Final = 100
"""Of fewer, the p99 is just the slowest."""
MOST_MARKS: Final = 40


def page(run: Run, plots: Mapping[str, Plot]) -> str:
    """`plots`: by the names of the files they are written to."""
    return "\n".join(_page(run, plots)).rstrip() + "\n"


def _page(run: Run, plots: Mapping[str, Plot]) -> Iterator[str]:
    yield f"# {run.scenario}\n"
    yield f"{run.question}\n"
    yield f"**{answer(run.verdicts)}**\n"
    if run.verdicts:
        yield table(("expected", "found", ""), [(each.expected, each.found, _mark(each)) for each in run.verdicts])
    yield "## Figures\n"
    yield times_table(run.sides)
    yield counts_table(run.sides)
    yield from _pictures(plots, "latency")
    if any(len(side.steps) > 1 for side in run.sides):
        yield "## By rate\n"
        for side in run.sides:
            yield _named(run, side) + steps_table(side)
            if told := knee_told(side):
                yield f"{told}\n"
        yield from _pictures(plots, "rate")
    yield from _over_time(run, plots)
    yield "## How requests ended\n"
    for side in run.sides:
        yield _named(run, side) + endings_table(side.measures)
    yield from _groups(run)
    if took := figures_table(run.sides):
        yield "## What it took\n"
        yield took
    yield "## How it was run\n"
    yield f"*Wants two idle cores.*\n\n```sh\n{run.command}\n```\n"
    yield "\n".join(f"- {fact}" for fact in _facts(run)) + "\n"
    yield f"```text\n{run.text.strip()}\n```\n"
    if weak := [*caveats(run)]:
        yield "## Caveats\n"
        yield "\n".join(f"- {caveat}" for caveat in weak) + "\n"


def answer(verdicts: Sequence[Verdict]) -> str:
    """The page's first sentence."""
    failed, open_ = (sum(each.held is wanted for each in verdicts) for wanted in (False, None))
    if not verdicts:
        return "Nothing was expected of this run."
    if failed:
        return f"No: {failed} of {len(verdicts)} expectations failed."
    if open_:
        return f"This run cannot tell: {open_} of {len(verdicts)} expectations were not judged."
    return f"Yes: all {len(verdicts)} expectations held." if len(verdicts) > 1 else "Yes."


def _mark(verdict: Verdict) -> str:
    return {True: "held", False: "**failed**", None: "not judged"}[verdict.held]


def _named(run: Run, side: Side) -> str:
    return f"{side.name}:\n\n" if len(run.sides) > 1 else ""


def _pictures(plots: Mapping[str, Plot], name: str) -> Iterator[str]:
    for file, plot in plots.items():
        if plot.name == name:
            yield f"![{plot.title}]({file})\n"


def knee_told(side: Side) -> str:
    """Where goodput broke; empty where no rate rose, or nothing is asked of the times."""
    if len(side.steps) < 2 or not about_time(side.objectives):
        return ""
    steps = sorted((step.measures for step in side.steps), key=lambda measures: measures.offered_per_second)
    last, share = knee(steps, side.objectives.goodput), wording.share(side.objectives.goodput)
    if last is None:
        return f"At no rate {share} of the requests were within the objectives."
    held = f"{wording.digits(steps[last].offered_per_second)} requests/s"
    if last == len(steps) - 1:
        return f"No knee: {share} of the requests were within the objectives up to the highest rate, {held}."
    return f"The knee is at {held}: the last rate at which {share} of the requests were within the objectives."


def _over_time(run: Run, plots: Mapping[str, Plot]) -> Iterator[str]:
    told: list[str] = []
    for place, side in enumerate(run.sides):
        told += _pictures(plots, f"timeline-{place + 1}" if place else "timeline")
        told += _marks(side)
    if told:
        yield "## What happened when\n"
        yield from told


def _marks(side: Side) -> Iterator[str]:
    if side.marks:
        told = [(f"{mark.at:.1f} s", mark.what) for mark in side.marks[:MOST_MARKS]]
        yield table(("at", "what was done"), told)
    if (more := len(side.marks) - MOST_MARKS) > 0:
        yield f"And {more} more.\n"


def _groups(run: Run) -> Iterator[str]:
    for title, of in (("kind", "kinds"), ("caller", "keys"), ("pod", "pods")):
        told = [(side, groups) for side in run.sides if len(groups := getattr(side, of)) > 1]
        if of == "keys" and all(side.keys == side.kinds for side in run.sides):
            continue  # each kind has a caller of its own
        if told:
            yield f"## By {title}\n"
        for side, groups in told:
            yield _named(run, side) + groups_table(title, groups)
            if of == "pods" and side.spread:
                yield (
                    f"The fullest pod had {side.spread.max_over_mean:.2f} × the mean of the pods; "
                    f"Jain's index {side.spread.jain:.3f}.\n"
                )


def _facts(run: Run) -> Iterator[str]:
    yield f"commit {run.commit}, {run.begun}, seed {run.seed}, {run.seconds:g} s"
    yield (
        f"{run.host.name}, kernel {run.host.kernel}, Python {run.host.python}, "
        f"load average {run.host.load[0]:g} before and {run.host.load[1]:g} after"
    )
    workers = run.sides[0].workers
    yield (
        "open loop: the whole schedule was fixed before the start, times count from the intended send time"
        if workers is None
        else f"closed loop: {workers} asked at once, each as soon as its last answer had come"
    )
    yield from (f"{name}: {version}" for name, version in run.versions.items())


def caveats(run: Run) -> Iterator[str]:
    """What makes a figure weaker than it looks."""
    yield from run.notes
    if "not committed" in run.commit or run.commit == "unknown":
        yield "What was measured is not exactly a commit."
    if run.host.load[0] > run.host.cores / 2:
        yield "The host had other work when the run began: times are upper bounds, counts and verdicts stand."
    for side in run.sides:
        measures, late = side.measures, side.measures.late_ms
        if late and late.p99 > side.objectives.late_ms:
            yield (
                f"The generator was late itself ({wording.milliseconds(late.p99)} at p99, {side.name}): "
                "the times say as much of it as of what it measured."
            )
        timed = measures.ttft_ms or measures.e2e_ms
        if timed and timed.count < FEW:
            yield f"Only {timed.count} requests were timed ({side.name}): the p99 is the slowest of them."
