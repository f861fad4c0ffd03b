"""Is B worse than A? A gate for two runs of one scenario: each measure has a way that is worse, and what it may move.

A measure may move by a share of what it was or by an amount, whichever is more: the share is for the large ones, the
amount keeps a tenth of a millisecond from being news. A percentile is judged only where enough requests lie beyond it,
and times only on the same host. What is not judged is said; a verdict that held and holds no more is always worse.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import yaml

from loadtest.report import wording
from loadtest.report.document import Run
from loadtest.report.measures import Times, about_time, knee
from loadtest.report.side import Figure, Side
from loadtest.report.tables import table

BEYOND: Final = 5
"""So many requests at least lie beyond a percentile that is judged: less is chance."""
FIGURES_MAY: Final = 0.15
"""What a figure of the stand (CPU, memory) may move, as a share."""

Outcome = Literal["same", "better", "worse", "not judged"]


class NotComparable(Exception):
    """The two runs did not ask the same; the message says in what they differ."""


@dataclass(frozen=True, slots=True)
class Line:
    """One measure of both runs, as text; `why`: what it may move, or why it is not judged."""

    measure: str
    before: str
    after: str
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def worse(self) -> bool:
        return any(line.outcome == "worse" for line in self.lines)

    def table(self) -> str:
        """Markdown, as readable in a terminal; what got worse is on top."""
        order = ("worse", "better", "same", "not judged")
        lines = sorted(self.lines, key=lambda line: order.index(line.outcome))
        told = [(each.measure, each.before, each.after, each.outcome, each.why) for each in lines]
        return table(("measure", "before", "after", "", ""), told) + "".join(f"\n- {note}" for note in self.notes)


@dataclass(frozen=True, slots=True)
class Bar:
    """A measure that is judged. `figure` gives None where a side has none. `times`: the distribution that a percentile
    is of, so that it can be asked whether it is more than chance."""

    name: str
    figure: Callable[[Side], float | None]
    told: Callable[[float | None], str]
    better: Literal["lower", "higher"]
    share: float = 0.0
    amount: float = 0.0
    times: Callable[[Side], Times | None] | None = None
    percentile: float = 0.0
    by_host: bool = False


def _number(value: float | None) -> str:
    return "–" if value is None else wording.digits(value)


def _time_bars() -> Iterator[Bar]:
    for words, name in (("TTFT", "ttft_ms"), ("ITL", "itl_ms"), ("TPOT", "tpot_ms"), ("end to end", "e2e_ms")):
        for percentile, share, amount in ((50, 0.15, 1.0), (90, 0.25, 2.0), (99, 0.4, 5.0)):
            yield _time_bar(words, name, percentile, share, amount)


def _time_bar(words: str, name: str, percentile: int, share: float, amount: float) -> Bar:
    def times(side: Side) -> Times | None:
        found: Times | None = getattr(side.measures, name)
        return found

    def figure(side: Side) -> float | None:
        of = times(side)
        return None if of is None else getattr(of, f"p{percentile}")

    return Bar(
        f"{words} p{percentile}",
        figure,
        wording.milliseconds,
        "lower",
        share,
        amount,
        times=times,
        percentile=percentile / 100,
        by_host=True,
    )


def _knee_rate(side: Side) -> float | None:
    if len(side.steps) < 2 or not about_time(side.objectives):
        return None
    last = knee([step.measures for step in side.steps], side.objectives.goodput)
    return 0.0 if last is None else side.steps[last].measures.offered_per_second


def _jain(side: Side) -> float | None:
    return side.spread.jain if side.spread else None


BARS: Final = (
    Bar("failed", lambda side: side.measures.failed_share, wording.share, "lower", amount=0.001),
    Bar("within the objectives", lambda side: side.measures.goodput, wording.share, "higher", amount=0.01),
    Bar("largest rate within the objectives", _knee_rate, _number, "higher", share=0.1, by_host=True),
    Bar("whole, requests/s", lambda side: side.measures.whole_per_second, _number, "higher", share=0.05),
    Bar("output tokens/s", lambda side: side.measures.tokens_per_second, _number, "higher", share=0.05),
    Bar("prompt tokens from a cache", lambda side: side.measures.cached_share, wording.share, "higher", amount=0.05),
    Bar(
        "evenness of pods (Jain)",
        _jain,
        _number,
        "higher",
        amount=0.05,
    ),
    *_time_bars(),
)


def compared(before: Run, after: Run, *, slack: float = 1.0) -> Comparison:
    """`slack`: everything may move by so many times as much, for a host that others use. Raises NotComparable."""
    if differing := [*_differences(before, after)]:
        raise NotComparable(
            f"these runs did not ask the same: {'; '.join(differing)}. Run one scenario on both commits"
        )
    same_host = before.host.name == after.host.name
    notes = [f"before: {before.commit}, {before.begun}", f"after: {after.commit}, {after.begun}"]
    if not same_host:
        notes.append(f"times are not judged: the hosts differ ({before.host.name}; {after.host.name})")
    lines: list[Line] = []
    for old, new in zip(before.sides, after.sides, strict=True):
        of = f", {old.name}" if len(before.sides) > 1 else ""
        lines += [line for bar in BARS if (line := _judged(bar, old, new, of, same_host=same_host, slack=slack))]
        lines += _figures(old, new, of, same_host=same_host, slack=slack)
    return Comparison((*_verdicts(before, after), *lines), tuple(notes))


def _differences(before: Run, after: Run) -> Iterator[str]:
    """What was asked: the scenario without its words, for how long and of what, from which seed."""
    if before.scenario != after.scenario:
        yield f"scenario {before.scenario} and {after.scenario}"
        return
    if _asked(before) != _asked(after):
        yield "the scenario's file was changed between them"
    if before.command != after.command:
        yield f"`{before.command}` and `{after.command}`"
    if before.seed != after.seed:
        yield f"seed {before.seed} and {after.seed}"
    old, new = ([side.name for side in run.sides] for run in (before, after))
    if old != new:
        yield f"sides {', '.join(old)} and {', '.join(new)}"


def _asked(run: Run) -> Any:
    asked = yaml.safe_load(run.text)
    if not isinstance(asked, dict):
        return asked
    return {key: value for key, value in asked.items() if key not in ("question", "expect")}


def _judged(bar: Bar, before: Side, after: Side, of: str, *, same_host: bool, slack: float) -> Line | None:
    old, new = bar.figure(before), bar.figure(after)
    if old is None and new is None:
        return None
    name = bar.name + of
    told = (name, bar.told(old), bar.told(new))
    if old is None:
        return Line(*told, "not judged", "there was none before")
    if new is None:
        return Line(*told, "worse", "there is none any more")
    if bar.by_host and not same_host:
        return Line(*told, "not judged", "another host")
    if bar.times:
        fewest = min(times.count for side in (before, after) if (times := bar.times(side)))
        if fewest * (1 - bar.percentile) < BEYOND:
            return Line(*told, "not judged", f"{fewest} are too few for it")
    outcome = _outcome(old, new, bar.better, bar.share * slack, bar.amount * slack)
    return Line(*told, outcome, f"may move by {may_move(bar, slack)}")


def may_move(bar: Bar, slack: float) -> str:
    """In words: 15 % or 1 ms."""
    share = [wording.share(bar.share * slack)] if bar.share else []
    return " or ".join([*share, *([_amount(bar, bar.amount * slack)] if bar.amount else [])])


def _amount(bar: Bar, amount: float) -> str:
    return f"{100 * amount:.3g} points" if bar.told is wording.share else bar.told(amount)


def _outcome(old: float, new: float, better: str, share: float, amount: float) -> Outcome:
    gained = new - old if better == "higher" else old - new
    if abs(gained) <= max(abs(old) * share, amount) + 1e-9:
        return "same"
    return "better" if gained > 0 else "worse"


def _figures(before: Side, after: Side, of: str, *, same_host: bool, slack: float) -> Iterator[Line]:
    now = {(figure.name, figure.unit): figure for figure in after.figures}
    for figure in before.figures:
        new = now.get((figure.name, figure.unit))
        if new is None or not figure.better:
            continue
        told = (figure.name + of, _with_unit(figure), _with_unit(new))
        if same_host:
            outcome = _outcome(figure.value, new.value, figure.better, FIGURES_MAY * slack, 0.0)
            yield Line(*told, outcome, f"may move by {wording.share(FIGURES_MAY * slack)}")
        else:
            yield Line(*told, "not judged", "another host")


def _with_unit(figure: Figure) -> str:
    return f"{wording.digits(figure.value)} {figure.unit}".strip()


def _verdicts(before: Run, after: Run) -> Iterator[Line]:
    """Held and holds no more: worse, however small the step was. New ones are judged as they are."""
    old = {verdict.expected: verdict for verdict in before.verdicts}
    words = {True: "held", False: "failed", None: "not judged"}
    for new in after.verdicts:
        was = old.get(new.expected)
        held_before = was.held if was else None
        told = (new.expected, words[held_before] if was else "–", words[new.held])
        if new.held is False:
            yield Line(*told, "same" if held_before is False else "worse", new.found)
        elif new.held is None:
            yield Line(*told, "not judged", new.found)
        else:
            yield Line(*told, "better" if held_before is False else "same", new.found)
    for gone in sorted(old.keys() - {verdict.expected for verdict in after.verdicts}):
        yield Line(gone, words[old[gone].held], "–", "not judged", "no longer expected")
