"""What the last minute was like: for the whole gateway, each pool, each pod and each tenant.

Each request adds to one small count, found by where it went, whose it was and how it ended. Every two seconds these are
added up for each subject and kept for a minute. So a request costs a look-up, and who looks pays for the rest.

Times to the first token are counted in bins of equal ratio, 16 to a doubling: a percentile read off them is right to
two in a hundred, at any rate of requests.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import floor, log2

from gateway.core.call import BLAMELESS, FAULTS, Attempt, Outcome, Trail
from gateway.core.caller import Tenant

SLOT_SECONDS = 2.0
SLOTS = 30
WINDOW_SECONDS = SLOT_SECONDS * SLOTS
BINS_PER_OCTAVE = 16
MAX_KINDS = 4096
"""Counts in a slot; what comes beyond is counted for the whole gateway only."""
_LEAST_SECONDS = 1e-6
_AFTERWARDS = (Outcome.REFUSED, Outcome.CLIENT_LEFT)
"""How a request may end that no pod has any more."""


@dataclass(slots=True)
class Counted:
    """What was counted of one subject in some time."""

    requests: int = 0
    """That ended; of a pod: attempts."""
    failed: int = 0
    """By a fault of the pods or the gateway."""
    refused: int = 0
    left: int = 0
    """By their clients."""
    tokens: int = 0
    """Of prompts and answers."""
    ttft: dict[int, int] = field(default_factory=dict)
    """How many first tokens came in each bin of time; of a pod: from the moment at which it was asked."""

    def add(self, other: "Counted") -> None:
        """Count what another one has counted."""
        self.requests += other.requests
        self.failed += other.failed
        self.refused += other.refused
        self.left += other.left
        self.tokens += other.tokens
        _add_bins(self.ttft, other.ttft)

    def take_away(self, other: "Counted") -> None:
        """Forget what was added."""
        self.requests -= other.requests
        self.failed -= other.failed
        self.refused -= other.refused
        self.left -= other.left
        self.tokens -= other.tokens
        for place, count in other.ttft.items():
            self.ttft[place] -= count
            if not self.ttft[place]:
                del self.ttft[place]

    def ttft_seconds(self, quantile: float) -> float | None:
        """The time within which this part of the streams, from 0 to 1, had their first token."""
        wanted = quantile * sum(self.ttft.values())
        seen = 0
        for place in sorted(self.ttft):
            seen += self.ttft[place]
            if seen >= wanted:
                return float(2 ** ((place + 0.5) / BINS_PER_OCTAVE))
        return None


@dataclass(frozen=True, slots=True)
class Lastly:
    """The last minute of one subject."""

    sums: Counted
    history: tuple[int, ...]
    """Requests that ended in each of the last whole slots, the oldest first."""


NOTHING = Lastly(Counted(), (0,) * SLOTS)


@dataclass(frozen=True, slots=True)
class Minute:
    """The last minute of all. Who is not there had nothing."""

    seconds: float
    """How much time that is: shorter after a start."""
    total: Lastly
    pools: Mapping[str, Lastly]
    pods: Mapping[tuple[str, str], Lastly]
    """By pool and name."""
    tenants: Mapping[str, Lastly]
    """By team."""


_Kind = tuple[str, str, Tenant | None, Outcome]
_Subject = tuple[str, ...]
"""("total",), ("pool", NAME), ("pod", POOL, NAME) or ("tenant", TEAM)."""


class _Count:
    """What many requests have in common is their kind; this is what they add to."""

    __slots__ = ("asked", "requests", "tokens", "ttft")

    def __init__(self) -> None:
        self.requests = 0
        self.tokens = 0
        self.ttft: dict[int, int] = {}
        """As callers saw it."""
        self.asked: dict[int, int] = {}
        """From when the pod was asked."""


class Lately:
    """Takes each trail at its end; `now` is monotonic seconds. Everything here runs on the loop's thread."""

    def __init__(self, now: float) -> None:
        self._began_at = now
        self._slot = _slot(now)
        self._open: dict[_Kind, _Count] = {}
        self._lost: dict[tuple[str, str], int] = {}
        """Attempts that failed and whose request ended otherwise, by pool and pod."""
        self._closed: deque[dict[_Subject, Counted]] = deque()
        self._sums: dict[_Subject, Counted] = {}
        """Of the closed slots: with a thousand pods adding them up at each look would hold the loop up."""

    def add(self, trail: Trail) -> None:
        """Count a request that has ended."""
        pod = trail.pod
        lost = _lost(trail) if trail.attempts > 1 or trail.outcome in _AFTERWARDS else ()
        if lost and len(lost) == len(trail.tried):
            pod = ""
        kind = (trail.pool, pod, trail.tenant, trail.outcome)
        count = self._open.get(kind)
        if count is None:
            if len(self._open) >= MAX_KINDS:
                kind = ("", "", None, trail.outcome)
            count = self._open.setdefault(kind, _Count())
        count.requests += 1
        usage = trail.usage
        if usage is not None:
            count.tokens += usage.prompt_tokens + usage.completion_tokens
        if trail.stream and trail.first_content_at is not None and trail.sent_at is not None:
            at = trail.first_content_at
            _count(count.ttft, at - trail.received_at)
            _count(count.asked, at - trail.sent_at)
        if lost:
            # An alias may have led on to another pool.
            for attempt, (pool, _) in zip(lost, trail.attempt_outcomes, strict=False):
                where = (pool, attempt.pod)
                if where in self._lost or len(self._lost) < MAX_KINDS:
                    self._lost[where] = self._lost.get(where, 0) + 1

    def turn(self, now: float) -> None:
        """Close the slots that are over; about four times a second."""
        slot = _slot(now)
        if slot == self._slot:
            return
        self._close(self._added_up())
        self._open, self._lost = {}, {}
        for _ in range(min(slot - self._slot - 1, SLOTS)):
            self._close({})
        self._slot = slot

    def minute(self, now: float) -> Minute:
        """The last minute, and what has been counted since the last slot was closed."""
        self.turn(now)
        sums = dict(self._sums)
        for subject, counted in self._added_up().items():
            if subject in sums:
                counted.add(sums[subject])
            sums[subject] = counted
        history: dict[_Subject, list[int]] = {}
        for place, slot in enumerate(self._closed, SLOTS - len(self._closed)):
            for subject, counted in slot.items():
                history.setdefault(subject, [0] * SLOTS)[place] = counted.requests
        all_of_them = {
            subject: Lastly(counted, tuple(history.get(subject, NOTHING.history))) for subject, counted in sums.items()
        }
        return Minute(
            min(now - self._began_at, now - (self._slot - SLOTS) * SLOT_SECONDS),
            all_of_them.get(("total",), NOTHING),
            {subject[1]: lastly for subject, lastly in all_of_them.items() if subject[0] == "pool"},
            {(subject[1], subject[2]): lastly for subject, lastly in all_of_them.items() if subject[0] == "pod"},
            {subject[1]: lastly for subject, lastly in all_of_them.items() if subject[0] == "tenant"},
        )

    def _close(self, slot: dict[_Subject, Counted]) -> None:
        if len(self._closed) == SLOTS:
            for subject, counted in self._closed.popleft().items():
                left = self._sums[subject]
                left.take_away(counted)
                if not left.requests:
                    del self._sums[subject]
        self._closed.append(slot)
        for subject, counted in slot.items():
            self._sums.setdefault(subject, Counted()).add(counted)

    def _added_up(self) -> dict[_Subject, Counted]:
        """The open slot, by subject."""
        sums: dict[_Subject, Counted] = {}
        for (pool, pod, tenant, outcome), count in self._open.items():
            counted = Counted(
                count.requests,
                count.requests if outcome in FAULTS else 0,
                count.requests if outcome is Outcome.REFUSED else 0,
                count.requests if outcome is Outcome.CLIENT_LEFT else 0,
                count.tokens,
                count.ttft,
            )
            for subject in _subjects(pool, tenant):
                sums.setdefault(subject, Counted()).add(counted)
            if pod:
                counted.ttft = count.asked
                sums.setdefault(("pod", pool, pod), Counted()).add(counted)
        for (pool, pod), attempts in self._lost.items():
            sums.setdefault(("pod", pool, pod), Counted()).add(Counted(attempts, attempts))
        return sums


def _lost(trail: Trail) -> tuple[Attempt, ...]:
    """The attempts that failed and whose request ended otherwise: all before the last one, and that one too where the
    request was turned away after it, or its client left.
    """
    if trail.outcome in _AFTERWARDS and trail.tried and trail.tried[-1].ended not in BLAMELESS:
        return trail.tried
    return trail.tried[:-1] if trail.attempts > 1 else ()


def _subjects(pool: str, tenant: Tenant | None) -> Iterable[_Subject]:
    yield ("total",)
    if pool:
        yield "pool", pool
    if tenant is not None:
        yield "tenant", tenant.team


def _slot(now: float) -> int:
    return int(now / SLOT_SECONDS)


def _count(bins: dict[int, int], seconds: float) -> None:
    place = floor(log2(max(seconds, _LEAST_SECONDS)) * BINS_PER_OCTAVE)
    bins[place] = bins.get(place, 0) + 1


def _add_bins(bins: dict[int, int], more: Mapping[int, int]) -> None:
    for place, count in more.items():
        bins[place] = bins.get(place, 0) + count
