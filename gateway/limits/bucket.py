"""What a limit is, and the arithmetic of spending from it. Pure; all times are microseconds.

Rates are kept by GCRA, the generic cell rate algorithm (ITU-T I.371). A bucket is one number: the moment at which it
will be full again (the theoretical arrival time, TAT). Spending moves that moment into the future, by one interval
(period ÷ amount) for each unit; time does the rest. There is no window, so no edge at which twice the limit would pass.

Tokens are known when an answer has ended. So they are reserved before, as if they had been spent, and settled after:
what was too much moves the moment back, never beyond now; what was too little is a debt, which new requests wait for.

What runs at once is counted, and given back at its end.

A request touches several buckets. They are looked at together, and taken together or not at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import floor, inf
from typing import Literal, NamedTuple

from gateway.core.made import maker

MINUTE = 60e6
DAY = 86_400e6
SLACK = 1.0
"""So much later than allowed is on time: sums of fractions are not exact."""
MAX_BUCKETS = 200_000
"""Those that are not full; what is full is not kept."""
FIRST_SWEEP = 1024

OnRedisDown = Literal["local", "allow", "deny"]


class Counts(IntEnum):
    """What of a request a bucket counts: an index into its `Costs`."""

    REQUESTS = 0
    PROMPT = 1
    COMPLETION = 2
    BOTH = 3


Costs = tuple[int, int, int, int]
"""What a request takes: itself, once; its prompt's tokens; its answer's; both together."""


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """One limit for one subject."""

    key: bytes
    """Its name in the store, the same on every replica: a digest, so that it tells of nobody."""
    name: str
    """Which limit: a key of the configuration, such as `tokens_per_minute`."""
    amount: int
    """What may be spent in a period, and at once; or how many may run at once."""
    period: float
    """Of a rate; 0: it counts what runs at once."""
    counts: Counts = Counts.REQUESTS
    on_redis_down: OnRedisDown = "local"
    of: str = "this key"
    """Whose limit, for who is refused."""
    interval: float = field(init=False)
    """What one unit costs of a rate, in time."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", self.period / self.amount)


class Taken(NamedTuple):
    """What became of one try to take from all of a request's buckets."""

    levels: Sequence[float]
    """Of each bucket, in their order, as they are now: until it is full again, or how many run. If one refused, nothing
    was taken."""
    refused: Bucket | None = None
    wait: float = 0.0
    """Until this very request would be let in, if nobody else came; 0: nobody knows; infinite: it never will."""
    unchecked: bool = False
    """It was refused because the limit could not be looked at."""
    source: object = None
    """Where it was taken, and is settled: a store's own affair."""


_taken = maker(Taken)


def interval_of(bucket: Bucket, share: float) -> float:
    """What one unit costs of a rate of which only this share may be spent here."""
    return bucket.interval if share == 1.0 else bucket.period / max(1.0, bucket.amount * share)


class Book:
    """Buckets, by key. What is not in it is full, or runs nothing."""

    __slots__ = ("_sweep_at", "held", "tats")

    def __init__(self) -> None:
        self.tats: dict[bytes, float] = {}
        self.held: dict[bytes, int] = {}
        """How many of each count run now."""
        self._sweep_at = FIRST_SWEEP

    def take(self, buckets: Sequence[Bucket], costs: Costs, now: float, share: float = 1.0) -> Taken:
        """Take from all, or from none and say which refused, and for how long: the one that makes wait longest.

        With a `share` below 1 each amount is that part of its own, but at least 1. What is larger than such a part at
        once is let in when the bucket is full, and leaves a debt.
        """
        tats, held = self.tats, self.held
        levels: list[float] = []
        taken: list[float] = []
        """What the levels are if it is let in."""
        refused: Bucket | None = None
        longest = 0.0
        for bucket in buckets:
            period = bucket.period
            if not period:
                running = held.get(bucket.key, 0)
                levels.append(running)
                taken.append(running + 1)
                if running + 1 > (bucket.amount if share == 1.0 else max(1, floor(bucket.amount * share + 1e-9))):
                    refused = refused or bucket
                continue
            tat = tats.get(bucket.key, 0.0)
            backlog = tat - now if tat > now else 0.0
            levels.append(backlog)
            cost = costs[bucket.counts]
            spent = cost * bucket.interval if share == 1.0 else cost * interval_of(bucket, share)
            taken.append(backlog + spent)
            if not cost:
                # Whoever owes tokens may still ask for what takes none.
                continue
            if cost > bucket.amount:
                refused, longest = bucket, inf
                continue
            over = backlog + (spent if share == 1.0 or spent < period else period) - period
            if over > SLACK and over > longest:
                refused, longest = bucket, over
        if refused is not None:
            return Taken(levels, refused, longest, source=self)
        for bucket, level in zip(buckets, taken, strict=True):
            if not bucket.period:
                held[bucket.key] = held.get(bucket.key, 0) + 1
            elif costs[bucket.counts]:
                tats[bucket.key] = now + level
        if len(tats) >= self._sweep_at:
            self._sweep(now)
        return _taken((taken, None, 0.0, False, self))

    def level(self, bucket: Bucket, now: float) -> float:
        """Until it is full again, or how many run; nothing is taken."""
        if not bucket.period:
            return self.held.get(bucket.key, 0)
        return max(0.0, self.tats.get(bucket.key, 0.0) - now)

    def settle(self, buckets: Sequence[Bucket], reserved: Costs, used: Costs, now: float, share: float = 1.0) -> None:
        """The request has ended: what it runs is given back, and what it took is made what it used."""
        for bucket in buckets:
            if not bucket.period:
                self.give_back(bucket)
            elif more := used[bucket.counts] - reserved[bucket.counts]:
                self.correct(bucket, more, now, share)

    def correct(self, bucket: Bucket, more: int, now: float, share: float = 1.0) -> None:
        """Spend so much more from a rate, or less; nothing makes a bucket more than full."""
        tat = self.tats.get(bucket.key, 0.0)
        level = (tat - now if tat > now else 0.0) + more * (
            bucket.interval if share == 1.0 else interval_of(bucket, share)
        )
        if level > 0.0:
            self.tats[bucket.key] = now + level
        else:
            self.tats.pop(bucket.key, None)

    def give_back(self, bucket: Bucket) -> None:
        """One fewer of them runs."""
        left = self.held.get(bucket.key, 0) - 1
        if left > 0:
            self.held[bucket.key] = left
        else:
            self.held.pop(bucket.key, None)

    def _sweep(self, now: float) -> None:
        """Forget what is full; of too many that are not, those that will be soonest."""
        kept = {key: tat for key, tat in self.tats.items() if tat > now}
        if len(kept) > MAX_BUCKETS // 2:
            kept = dict(sorted(kept.items(), key=lambda item: -item[1])[: MAX_BUCKETS // 2])
        self.tats = kept
        self._sweep_at = max(FIRST_SWEEP, 2 * len(kept))
