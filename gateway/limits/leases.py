"""What this replica holds of the buckets that all replicas share. Pure.

Far from a limit nobody should wait for Redis. So whoever asks there takes a little more than is needed, a lease, and
what comes after spends that without asking. What is leased counts as taken for everybody. Hence:

- a lease is at most a 64th of a rate, or a 16th of what may run at once, and no more than was spent here of late; small
  limits have none;
- there is one only while less than half of the limit is used. When that is over all of it goes back, before anything
  else is asked;
- what was not spent goes back within a second.

What is to be told to Redis waits here for the next call: of a rate the difference (`owed`), of what runs at once the
number as it is (`running` and `spare`). A number that is told whole mends itself, whatever became of earlier calls.
"""

from collections.abc import Callable, Sequence

from gateway.limits.bucket import Bucket, Costs

PARTS = 64
"""A lease is at most one of so many parts of a rate."""
COUNT_PARTS = 16
"""The same for what runs at once. A lease of one slot would be gone with the first request: then there is none."""
MAX_REMEMBERED = 4096
"""Rates of which nothing is held, and of which it is known where they stood."""


class Lease:
    """What this replica holds of one bucket."""

    __slots__ = ("bucket", "full_at", "low", "near", "others", "owed", "spare", "told", "used", "used_before", "wanted")

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.spare = 0
        """Taken in Redis, and not spent."""
        self.owed = 0
        """Of a rate: to be spent there, or if negative to be given back."""
        self.told = 0
        """Of a count: so many of ours Redis may believe in, at most."""
        self.others = 0.0
        """Of a count: how many ran elsewhere when Redis last answered."""
        self.full_at = 0.0
        """Of a rate: when it will be full again, as Redis last said; microseconds of our own clock."""
        self.near = True
        """Half of the limit is used, or nobody knows. Then nothing is leased."""
        self.wanted = False
        """The next call brings as much as was spent here of late."""
        self.low = 0
        """With less to spare more is wanted."""
        self.used = 0
        """Here, since the last sweep; a request that takes nothing counts as one unit."""
        self.used_before = 0
        """In the interval before that."""

    def wishes(self) -> int:
        """How much more would be good to have."""
        if not self.wanted:
            return 0
        return max(0, min(largest(self.bucket), max(self.used, self.used_before)) - self.spare)


def largest(bucket: Bucket) -> int:
    """The largest lease of a bucket."""
    if bucket.period:
        return bucket.amount // PARTS
    slots = bucket.amount // COUNT_PARTS
    return slots if slots > 1 else 0


def may_lease(buckets: Sequence[Bucket], costs: Costs) -> bool:
    """Whether requests like this one could do without asking: each of the buckets has a lease that is large enough."""
    return all(largest(bucket) >= (costs[bucket.counts] or 1) for bucket in buckets)


class Leases:
    """All leases. `wake` is called when Redis should be told soon; what waits without that goes with the next call."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.held: dict[bytes, Lease] = {}
        """By bucket: of what runs here, of what Redis must be told, and of what was used within the last second."""
        self.running: dict[bytes, int] = {}
        """How many of each count run here, wherever they were let in."""
        self.untold: dict[Lease, None] = {}
        """What the next call tells Redis, the oldest first."""
        self._full_at: dict[bytes, float] = {}
        """When a rate of which nothing is held will be full again, as Redis last said; the oldest first."""

    def of(self, bucket: Bucket) -> Lease:
        """The bucket's lease, perhaps an empty one."""
        lease = self.held.get(bucket.key)
        if lease is None:
            lease = self.held[bucket.key] = Lease(bucket)
        else:
            lease.bucket = bucket
        return lease

    def spend(self, buckets: Sequence[Bucket], costs: Costs, now: float) -> list[float] | None:
        """Take from what is to spare of each bucket, and return their levels; None, and nothing is taken, if of one
        there is not enough. `now`: microseconds."""
        held = self.held
        for bucket in buckets:
            lease = held.get(bucket.key)
            if lease is None or lease.spare < (costs[bucket.counts] or 1):
                return None
        levels: list[float] = []
        for bucket in buckets:
            lease = held[bucket.key]
            cost = costs[bucket.counts]
            lease.spare -= cost
            lease.used += cost or 1
            if bucket.period:
                levels.append(max(0.0, lease.full_at - now + (lease.owed - lease.spare) * bucket.interval))
            else:
                running = self.running[bucket.key] = self.running.get(bucket.key, 0) + 1
                levels.append(lease.others + running)
            if lease.spare < lease.low and not lease.wanted:
                lease.wanted = True
                self.tell(lease)
                self._wake()
        return levels

    def level(self, bucket: Bucket, now: float) -> float | None:
        """Where it stands; None: nobody knows. `now`: microseconds."""
        lease = self.held.get(bucket.key)
        if lease is not None:
            return self._level(lease, now)
        full_at = self._full_at.get(bucket.key)
        return None if full_at is None else max(0.0, full_at - now)

    def _level(self, lease: Lease, now: float) -> float:
        bucket = lease.bucket
        if bucket.period:
            return max(0.0, lease.full_at - now + (lease.owed - lease.spare) * bucket.interval)
        return lease.others + self.running.get(bucket.key, 0)

    def began(self, bucket: Bucket) -> Lease:
        """One more of a count runs here."""
        self.running[bucket.key] = self.running.get(bucket.key, 0) + 1
        return self.of(bucket)

    def ended(self, bucket: Bucket) -> None:
        """One fewer of a count runs here. Its place is kept to spare if there are such, else it is given back."""
        left = self.running.get(bucket.key, 0) - 1
        if left > 0:
            self.running[bucket.key] = left
        else:
            self.running.pop(bucket.key, None)
        lease = self.of(bucket)
        if self._room_to_spare(lease):
            lease.spare += 1
        else:
            self.tell(lease)
            self._wake()

    def correct(self, bucket: Bucket, more: int) -> None:
        """Spend so much more of a rate that was taken in Redis, or less: from what is to spare, or into it, if there is
        something to spare."""
        lease = self.of(bucket)
        kept = min(more, lease.spare) if more > 0 else -min(-more, self._room_to_spare(lease))
        lease.spare -= kept
        if more != kept:
            lease.owed += more - kept
            self.tell(lease)
            if lease.near:
                self._wake()

    def tell(self, lease: Lease) -> None:
        """The next call tells Redis of it."""
        self.untold[lease] = None

    def next_untold(self, most: int) -> list[Lease]:
        """What the next call tells Redis."""
        return [lease for lease, _ in zip(self.untold, range(most), strict=False)]

    def send(self, lease: Lease) -> tuple[int, int]:
        """What a call tells of it: (what is owed of a rate, or how many there are of a count; how much more is wanted).

        What is owed is told once: if the call fails, nobody knows whether it was heard, and it is not told again.
        """
        self.untold.pop(lease, None)
        wanted = lease.wishes()
        lease.wanted = False
        if lease.bucket.period:
            own, lease.owed = lease.owed, 0
        else:
            own = self.running.get(lease.bucket.key, 0) + lease.spare
            lease.told = max(lease.told, own + wanted)
        return own, wanted

    def learn(self, lease: Lease, own: int, level: float, granted: int, now: float) -> None:
        """What a call has brought: the level, and a lease or none. `own`, of a count: what `send` had told, and what
        was let in since."""
        bucket = lease.bucket
        lease.spare += granted
        if bucket.period:
            lease.full_at = now + level
            lease.near = 2 * level >= bucket.period
        else:
            lease.told = own + granted
            lease.others = level - lease.told
            lease.near = 2 * level >= bucket.amount
        lease.low = lease.spare // 2
        if lease.near and lease.spare:
            self.give_back(lease, lease.spare)
            self._wake()

    def came_back(self, bucket: Bucket) -> bool:
        """Whether Redis, which has just refused, does not know yet of something that it could have given."""
        lease = self.of(bucket)
        return lease.owed < 0 or self.running.get(bucket.key, 0) + lease.spare < lease.told

    def give_back(self, lease: Lease, units: int) -> None:
        """So much is not to spare any more; the next call tells."""
        lease.spare -= units
        lease.low = lease.spare // 2
        if lease.bucket.period:
            lease.owed -= units
        self.tell(lease)

    def sweep(self) -> None:
        """An interval is over: what of a lease exceeds what was spent in it goes back, and what is idle is forgotten.

        Not while a call is under way: it may bring something for a lease that seems idle.
        """
        for lease in list(self.held.values()):
            if lease.spare > lease.used:
                self.give_back(lease, lease.spare - lease.used)
            if lease.used or lease.used_before:
                lease.used_before, lease.used = lease.used, 0
            elif not (lease.spare or lease.owed or lease.told or lease in self.untold) and (
                lease.bucket.key not in self.running
            ):
                del self.held[lease.bucket.key]
                if lease.bucket.period and lease.full_at:
                    self._remember(lease)
        if self.untold:
            self._wake()

    def _remember(self, lease: Lease) -> None:
        self._full_at.pop(lease.bucket.key, None)
        self._full_at[lease.bucket.key] = lease.full_at
        if len(self._full_at) > MAX_REMEMBERED:
            del self._full_at[next(iter(self._full_at))]

    def give_up(self) -> None:
        """Redis is away: nothing is to spare, and nothing can be told. What is owed waits."""
        for lease in self.held.values():
            if lease.bucket.period:
                lease.owed -= lease.spare
            lease.spare = lease.low = 0
            lease.near, lease.wanted = True, False
        self.untold.clear()

    def tell_all(self) -> None:
        """Redis is to hear of everything that it may not know: it is there again, or may have forgotten."""
        for lease in self.held.values():
            if lease.owed or lease.told or lease.bucket.key in self.running:
                self.tell(lease)
        if self.untold:
            self._wake()

    def _room_to_spare(self, lease: Lease) -> int:
        """How much may be kept to spare instead of going back."""
        if not lease.spare or lease.near:
            return 0
        return max(0, largest(lease.bucket) - lease.spare)
