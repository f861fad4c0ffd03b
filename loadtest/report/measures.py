"""Records -> `Measures`: how long, how much, how good, and what went wrong.

- **TTFT** (streams): from the *intended* send time to the first content event, so that a generator or a server that
  falls behind cannot hide it. **ITL**: each gap between two content events. **TPOT** (streams): the time from the
  first content to the end, divided by the tokens after the first. **End to end**: intended send time to the last byte.
- Times are of what happened: a TTFT of every stream that began, the others of answers that came whole. What did not
  come is not in them, it is in goodput and in the endings. A percentile is a time that somebody had (nearest rank).
- **Goodput**: requests that came whole within every objective, by second and as a share of those judged. Not judged are
  requests that their caller's own limit refused, and ones that the client gave up before an objective was missed.

The words are those of GuideLLM, AIPerf and `vllm bench serve`.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from loadtest.load.plan import Objectives
from loadtest.load.record import Ending, Record
from loadtest.percentiles import percentile

OWN_LIMIT: Final = frozenset({"rate_limit_exceeded", "quota_exceeded"})
"""Codes of a 429 that is the caller's own doing."""
MOST_ENDINGS: Final = 20
CURVE: Final = (
    *(step / 100 for step in range(0, 90, 5)),
    *(0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 1.0),
)
"""The shares at which a distribution is kept."""
SIGNIFICANT: Final = 5
"""Digits that are kept of a figure: more would be noise, and weight in the repository."""


@dataclass(frozen=True, slots=True)
class Times:
    """A distribution, in milliseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Ended:
    """So many requests ended like this; `status` 0: no answer."""

    ending: str
    status: int
    code: str
    requests: int


@dataclass(frozen=True, slots=True)
class Measures:
    """Of some requests and the stretch of time they were sent in. `whole`, `failed`, `limited`, `left`: how they ended,
    each in one of them. Rates are per second of the stretch."""

    seconds: float
    requests: int
    whole: int
    failed: int
    limited: int
    """Refused by their caller's own limit."""
    left: int
    """Given up by the client, as planned."""
    judged: int
    met: int
    """Of the judged: whole, and within every objective."""
    prompt_tokens: int
    """This and the next two: by the answers' own usage, where it says."""
    cached_tokens: int
    output_tokens: int
    """By usage, else content events."""
    ttft_ms: Times | None
    itl_ms: Times | None
    tpot_ms: Times | None
    e2e_ms: Times | None
    late_ms: Times | None
    """How long after the intended time the generator took a request up; None in a closed loop."""
    endings: tuple[Ended, ...]
    """Most frequent first."""

    @property
    def goodput(self) -> float | None:
        """The share of the judged that met the objectives."""
        return self.met / self.judged if self.judged else None

    @property
    def goodput_per_second(self) -> float:
        return self.met / self.seconds

    @property
    def offered_per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def whole_per_second(self) -> float:
        return self.whole / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds

    @property
    def failed_share(self) -> float:
        return self.failed / self.requests if self.requests else 0.0

    @property
    def cached_share(self) -> float | None:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None


@dataclass(frozen=True, slots=True)
class Spread:
    """How evenly pods were used, by requests."""

    max_over_mean: float
    jain: float
    """Jain's index (DEC-TR-301, 1984): 1 if all have the same, 1/n if one has everything."""


def rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT}g}")


def times_of(seconds: Iterable[float]) -> Times | None:
    """None if there are none."""
    in_order = sorted(seconds)
    if not in_order:
        return None
    named = {f"p{share}": rounded(1e3 * percentile(in_order, share / 100)) for share in (50, 90, 95, 99)}
    return Times(
        count=len(in_order),
        mean=rounded(1e3 * math.fsum(in_order) / len(in_order)),
        max=rounded(1e3 * in_order[-1]),
        **named,
    )


def curve_of(seconds: Iterable[float]) -> tuple[float, ...]:
    """The distribution in milliseconds, at each share of `CURVE`; empty if there is nothing."""
    in_order = sorted(seconds)
    return tuple(rounded(1e3 * percentile(in_order, share)) for share in CURVE) if in_order else ()


def ttft(record: Record) -> float | None:
    """None where it has no meaning: not a stream, refused, or nothing came."""
    if not record.planned.stream or record.status >= 400 or record.first_at is None:
        return None
    return record.first_at - record.intended_at


def tpot(record: Record) -> float | None:
    if record.ending is not Ending.WHOLE or not record.planned.stream:
        return None
    tokens = output_tokens(record)
    if record.first_at is None or record.ended_at is None or tokens < 2:
        return None
    return (record.ended_at - record.first_at) / (tokens - 1)


def end_to_end(record: Record) -> float | None:
    if record.ending is not Ending.WHOLE or record.ended_at is None:
        return None
    return record.ended_at - record.intended_at


def gaps(records: Iterable[Record]) -> "array[float]":
    """Every gap between two content events of one stream."""
    found = array("d")
    for record in records:
        found.extend(later - earlier for earlier, later in pairwise(record.token_times))
    return found


def output_tokens(record: Record) -> int:
    return record.tokens if record.completion_tokens is None else record.completion_tokens


def is_limited(record: Record) -> bool:
    """Refused by the caller's own limit: that is what was asked for, and no failure."""
    return record.status == 429 and record.code in OWN_LIMIT


def about_time(objectives: Objectives) -> bool:
    """Whether an answer can come whole and yet too late."""
    return any(each is not None for each in (objectives.ttft_ms, objectives.tpot_ms, objectives.e2e_ms))


def meets(record: Record, objectives: Objectives) -> bool | None:
    """Whether it came whole and in time; None: not to be judged."""
    if is_limited(record):
        return None
    begun = ttft(record)
    if record.ending is Ending.LEFT:
        waited = begun if begun is not None else (record.ended_at or record.sent_at) - record.intended_at
        late = record.planned.stream and not _within(waited, objectives.ttft_ms)
        return False if late else None
    if record.ending is not Ending.WHOLE:
        return False
    return (
        _within(begun, objectives.ttft_ms)
        and _within(tpot(record), objectives.tpot_ms)
        and _within(end_to_end(record), objectives.e2e_ms)
    )


def _within(seconds: float | None, most_ms: float | None) -> bool:
    return seconds is None or most_ms is None or seconds * 1e3 <= most_ms


def measured(records: Sequence[Record], objectives: Objectives, *, seconds: float, open_loop: bool = True) -> Measures:
    """Of requests that were sent in a stretch of so many seconds."""
    judged = [verdict for record in records if (verdict := meets(record, objectives)) is not None]
    limited = sum(map(is_limited, records))
    by_ending = Counter(record.ending for record in records)
    whole, left = by_ending[Ending.WHOLE], by_ending[Ending.LEFT]
    return Measures(
        seconds=rounded(seconds),
        requests=len(records),
        whole=whole,
        failed=len(records) - whole - left - limited,
        limited=limited,
        left=left,
        judged=len(judged),
        met=sum(judged),
        prompt_tokens=sum(record.prompt_tokens or 0 for record in records),
        cached_tokens=sum(record.cached_tokens or 0 for record in records),
        output_tokens=sum(map(output_tokens, records)),
        ttft_ms=times_of(_known(map(ttft, records))),
        itl_ms=times_of(gaps(records)),
        tpot_ms=times_of(_known(map(tpot, records))),
        e2e_ms=times_of(_known(map(end_to_end, records))),
        late_ms=times_of(record.own_lateness for record in records) if open_loop else None,
        endings=_endings(records),
    )


def curves(records: Sequence[Record]) -> dict[str, tuple[float, ...]]:
    """Whole distributions, for the plots: those that are not empty."""
    every = {
        "ttft": curve_of(_known(map(ttft, records))),
        "itl": curve_of(gaps(records)),
        "e2e": curve_of(_known(map(end_to_end, records))),
    }
    return {name: curve for name, curve in every.items() if curve}


def _known(values: Iterable[float | None]) -> Iterable[float]:
    return (value for value in values if value is not None)


def _endings(records: Sequence[Record]) -> tuple[Ended, ...]:
    counted = Counter((record.ending.value, record.status, record.code) for record in records)
    in_order = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    kept = [Ended(*how, requests) for how, requests in in_order[:MOST_ENDINGS]]
    if others := sum(requests for _, requests in in_order[MOST_ENDINGS:]):
        kept.append(Ended("others", 0, "", others))
    return tuple(kept)


def spread(requests: Mapping[str, int]) -> Spread | None:
    """Over all pods there are, also those that got nothing. None: there is nothing to spread."""
    counts = list(requests.values())
    total = sum(counts)
    if not total:
        return None
    return Spread(
        max_over_mean=rounded(max(counts) * len(counts) / total),
        jain=rounded(total**2 / (len(counts) * sum(count**2 for count in counts))),
    )


def knee(steps: Sequence[Measures], share: float) -> int | None:
    """The place of the last step before goodput falls below this share of the requests; None: it never had it.

    In order of the rate: a step that holds behind one that does not proves nothing, for what had piled up helps it or
    hurts it.
    """
    held = None
    for place in sorted(range(len(steps)), key=lambda place: steps[place].offered_per_second):
        good = steps[place].goodput
        if good is None:
            continue
        if good < share:
            break
        held = place
    return held
