"""One call of `take.lua`: what it asks, and what it has brought. Pure. The script's head describes all numbers."""

from collections.abc import Iterable, Sequence
from math import isfinite, isnan
from struct import calcsize, pack, unpack
from typing import NamedTuple

from gateway.limits.bucket import Bucket, Costs
from gateway.limits.leases import Lease, Leases, may_lease

PREFIX = b"poolgate:{limits}:"
"""Of every key. The part in braces is all that a cluster looks at: so it keeps the buckets of a request together."""
MAX_TOLD = 64
MAX_LOOKS = 256
"""So many buckets one call looks at for its requests. The server does nothing else meanwhile."""
_DOUBLE = calcsize("<d")


class Garbled(Exception):
    """What came is no answer of the script."""


class Request(NamedTuple):
    """Whoever asks."""

    buckets: Sequence[Bucket]
    costs: Costs


class Decided(NamedTuple):
    """What became of a request."""

    levels: Sequence[float]
    refused: Bucket | None
    wait: float


class Batch:
    """Tells what of the leases is untold, and asks for some requests, in their order."""

    def __init__(self, leases: Leases, requests: Sequence[Request], untold: Iterable[Lease] = ()) -> None:
        self._leases = leases
        self._requests = requests
        rows = {lease: row for row, lease in enumerate(untold, 1)}
        asked: list[float] = []
        counts: list[Lease] = []
        for buckets, costs in requests:
            leased = may_lease(buckets, costs)
            asked.append(len(buckets))
            for bucket in buckets:
                lease = leases.of(bucket)
                cost = costs[bucket.counts]
                asked += (rows.setdefault(lease, len(rows) + 1), cost)
                if leased:
                    lease.wanted = True
                    lease.used += cost or 1
                if not bucket.period:
                    counts.append(lease)
        self._rows: list[tuple[Lease, int]] = []
        """Each bucket's lease, and what was told of it."""
        numbers: list[float] = []
        for lease in rows:
            own, wanted = leases.send(lease)
            numbers += (lease.bucket.amount, lease.bucket.period, own, wanted)
            self._rows.append((lease, own))
        for lease in counts:
            lease.told += 1  # if the call fails, Redis may have let in all of them
        self._numbers = numbers + asked

    @property
    def keys(self) -> list[bytes]:
        """The script's KEYS."""
        return [PREFIX + lease.bucket.key for lease, _ in self._rows]

    def asked(self, keep: float, not_after: float) -> bytes:
        """What the script is asked. `keep`: how long counts hold without being told again; `not_after`: from when on
        the call is void, by the server's clock. Both microseconds."""
        return pack(f"<{2 + len(self._numbers)}d", keep, not_after, *self._numbers)

    def learn(self, answer: bytes, now: float) -> tuple[float, list[Decided] | None]:
        """The server's time, and what became of each request, which the leases know by now; None: the call was void.
        `now`: our own time. Both microseconds. Raises `Garbled`."""
        rows = self._rows
        size = 1 + 2 * len(rows) + sum(2 + len(buckets) for buckets, _ in self._requests)
        if not isinstance(answer, bytes) or len(answer) not in (_DOUBLE, _DOUBLE * size):
            raise Garbled
        numbers = unpack(f"<{len(answer) // _DOUBLE}d", answer)
        if any(map(isnan, numbers)):
            raise Garbled
        if len(numbers) != size:
            return numbers[0], None
        if not all(map(isfinite, numbers[2 : 1 + 2 * len(rows) : 2])):  # what is granted
            raise Garbled
        admitted: dict[Lease, int] = {}
        decided: list[Decided] = []
        place = 1 + 2 * len(rows)
        for buckets, _ in self._requests:
            if not 0 <= numbers[place] <= len(buckets):
                raise Garbled
            refused, wait = int(numbers[place]), numbers[place + 1]
            levels = numbers[place + 2 : place + 2 + len(buckets)]
            place += 2 + len(buckets)
            decided.append(Decided(levels, buckets[refused - 1] if refused else None, wait))
        for (buckets, _), told in zip(self._requests, decided, strict=True):
            for bucket in () if told.refused is not None else buckets:
                if not bucket.period:
                    lease = self._leases.began(bucket)
                    admitted[lease] = admitted.get(lease, 0) + 1
        for row, (lease, own) in enumerate(rows):
            level, granted = numbers[1 + 2 * row], int(numbers[2 + 2 * row])
            self._leases.learn(lease, own + admitted.get(lease, 0), level, granted, now)
        return numbers[0], decided
