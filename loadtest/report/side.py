"""All that is kept of one thing that was measured: the gateway, or the pod itself beside it, or one policy.

Records are many and go; what stays is bounded whatever the run was: groups with the fewest requests are told together.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from loadtest.load.plan import Objectives
from loadtest.load.record import Record
from loadtest.load.schedule import Schedule
from loadtest.report.measures import Measures, Spread, curves, measured, spread
from loadtest.report.timeline import Timeline, timeline_of

MOST_GROUPS: Final = 24
OTHERS: Final = "others"


@dataclass(frozen=True, slots=True)
class Mark:
    """Something was done to what is measured, `at` so many seconds from the start."""

    at: float
    what: str


@dataclass(frozen=True, slots=True)
class Figure:
    """What the stand measured itself: CPU seconds, memory, a counter. `better`: which way a change is good news; empty:
    it is only told, never judged."""

    name: str
    value: float
    unit: str = ""
    better: Literal["lower", "higher", ""] = ""


@dataclass(frozen=True, slots=True)
class Group:
    name: str
    measures: Measures


@dataclass(frozen=True, slots=True)
class Side:
    name: str
    objectives: Objectives
    workers: int | None
    """How many asked at once in a closed loop; None: an open loop."""
    measures: Measures
    """Of all requests, over the whole time, to the last answer."""
    curves: Mapping[str, tuple[float, ...]]
    """The whole distributions of `ttft`, `itl` and `e2e`, milliseconds at each share of `measures.CURVE`."""
    steps: tuple[Group, ...]
    """Requests by the step they were sent in, over the length of the step."""
    kinds: tuple[Group, ...]
    keys: tuple[Group, ...]
    pods: tuple[Group, ...]
    """Empty where no answer named its pod."""
    spread: Spread | None
    timeline: Timeline
    marks: tuple[Mark, ...]
    figures: tuple[Figure, ...]


def side_of(
    name: str,
    records: Sequence[Record],
    schedule: Schedule,
    objectives: Objectives,
    *,
    pods: Collection[str] = (),
    marks: Sequence[Mark] = (),
    figures: Sequence[Figure] = (),
) -> Side:
    """`pods`: the names of all there are, for one that got nothing is the news."""
    open_loop = schedule.workers is None
    last = max((record.ended_at or record.sent_at for record in records), default=0.0)
    over = max(schedule.seconds, last) if open_loop else last

    def of(some: Sequence[Record], seconds: float = over) -> Measures:
        return measured(some, objectives, seconds=seconds, open_loop=open_loop)

    def by(word: Callable[[Record], str], known: Collection[str] = ()) -> tuple[Group, ...]:
        return tuple(Group(name, of(some)) for name, some in _grouped(records, word, known))

    named = by(lambda record: record.pod, pods) if any(record.pod for record in records) else ()
    return Side(
        name=name,
        objectives=objectives,
        workers=schedule.workers,
        measures=of(records),
        curves=curves(records),
        steps=tuple(
            Group(
                step.name,
                of([each for each in records if each.planned.step == place], min(step.end, over) - step.begin),
            )
            for place, step in enumerate(schedule.steps)
            if step.begin < over
        ),
        kinds=by(lambda record: record.planned.kind),
        keys=by(lambda record: record.planned.key),
        pods=named,
        spread=_spread(records, pods),
        timeline=timeline_of(records, over),
        marks=tuple(sorted(marks, key=lambda mark: mark.at)),
        figures=tuple(figures),
    )


def _grouped(
    records: Sequence[Record], word: Callable[[Record], str], known: Collection[str]
) -> list[tuple[str, list[Record]]]:
    """In order of their names; beyond `MOST_GROUPS` the smallest are one. What has no name is left out."""
    found: defaultdict[str, list[Record]] = defaultdict(list, {name: [] for name in known})
    for record in records:
        if name := word(record):
            found[name].append(record)
    if len(found) <= MOST_GROUPS:
        return sorted(found.items())
    largest = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    rest = [record for _, some in largest[MOST_GROUPS - 1 :] for record in some]
    return [*sorted(largest[: MOST_GROUPS - 1]), (f"{len(largest) - MOST_GROUPS + 1} {OTHERS}", rest)]


def _spread(records: Sequence[Record], pods: Collection[str]) -> Spread | None:
    counts = dict.fromkeys(pods, 0)
    for record in records:
        if record.pod:
            counts[record.pod] = counts.get(record.pod, 0) + 1
    return spread(counts)
