"""The last requests that have ended, for who asks why one went where it went.

Their trails are kept as they are: a trail holds no body, no key and no address. Those that went smoothly do not push
out the others, which are asked after most. Of the smooth ones at most 64 a second are kept: so each stays for a quarter
of a minute at least, and at thousands a second keeping costs nothing (the memory of one that is forgotten has long left
the processor's caches, which costs more than all else that is done here).

What is not bounded in a trail is bounded here: names that callers and pods choose freely are cut. Who could not be told
leaves no trace here either: without a key nobody can push out what an operator may want to read.
"""

from collections import OrderedDict
from itertools import islice

from gateway.core.call import Outcome, Trail

MAX_TRAILS = 1024
"""Of either kind: smooth ones, and others. One takes some 1.4 kB beside eight pods."""
SMOOTH_A_SECOND = 64
MAX_NAME_CHARACTERS = 256


class Recent:
    """Takes each trail after everyone else has read it. Everything here runs on the loop's thread."""

    def __init__(self, max_trails: int = MAX_TRAILS, smooth_a_second: int = SMOOTH_A_SECOND) -> None:
        self._max_trails = max_trails
        self._smooth_a_second = smooth_a_second
        self._second = 0
        self._left = 0
        self._smooth: OrderedDict[str, Trail] = OrderedDict()
        self._rough: OrderedDict[str, Trail] = OrderedDict()

    def add(self, trail: Trail) -> None:
        """Keep a request that has ended."""
        if trail.tenant is None:
            return
        # No attempt at all: a list of models, which many ask for all day.
        smooth = trail.attempts < 2 and trail.outcome is Outcome.COMPLETED and not trail.queue_seconds
        if smooth:
            if int(trail.ended_at) != self._second:
                self._second, self._left = int(trail.ended_at), self._smooth_a_second
            if not self._left:
                return
            self._left -= 1
        if len(trail.model) > MAX_NAME_CHARACTERS:
            trail.model = trail.model[:MAX_NAME_CHARACTERS]
        if len(trail.finish) > MAX_NAME_CHARACTERS:
            trail.finish = trail.finish[:MAX_NAME_CHARACTERS]
        kept = self._smooth if smooth else self._rough
        kept.pop(trail.request_id, None)
        kept[trail.request_id] = trail
        if len(kept) > self._max_trails:
            kept.popitem(last=False)

    def last(self, count: int) -> list[Trail]:
        """So many of those that ended last, the latest first."""
        latest = [*islice(reversed(self._smooth.values()), count), *islice(reversed(self._rough.values()), count)]
        latest.sort(key=lambda trail: -trail.ended_at)
        return latest[:count]

    def find(self, request_id: str) -> Trail | None:
        """The trail of a request, or None. Callers choose ids: of several with the same one it is the last."""
        found = (self._smooth.get(request_id), self._rough.get(request_id))
        return max(filter(None, found), key=lambda trail: trail.ended_at, default=None)
