"""The last requests that have ended, for who asks why one went where it went.

Their trails are kept as they are: a trail holds no body, no key and no address. Those that went smoothly do not push
out the others, which are asked after most: at fifty requests a second a smooth one is forgotten in twenty seconds.

What is not bounded in a trail is bounded here: names that callers and pods choose freely are cut, and where very many
pods were weighed for each request, fewer requests are kept. Who could not be told leaves no trace here either: without
a key nobody can push out what an operator may want to read.
"""

from collections import OrderedDict

from gateway.core.call import Outcome, Trail

MAX_TRAILS = 1024
"""Of either kind: smooth ones, and others. One takes some 1.4 kB beside eight pods."""
MAX_CANDIDATES = 100_000
"""Over all trails of a kind: some 4 MiB. With fewer than a hundred pods in a pool it changes nothing."""
MAX_NAME_CHARACTERS = 256


class Recent:
    """Takes each trail after everyone else has read it. Everything here runs on the loop's thread."""

    def __init__(self, max_trails: int = MAX_TRAILS, max_candidates: int = MAX_CANDIDATES) -> None:
        self._smooth = _Kept(max_trails, max_candidates)
        self._rough = _Kept(max_trails, max_candidates)

    def add(self, trail: Trail) -> None:
        """Keep a request that has ended."""
        if trail.tenant is None:
            return
        if len(trail.model) > MAX_NAME_CHARACTERS:
            trail.model = trail.model[:MAX_NAME_CHARACTERS]
        if len(trail.finish) > MAX_NAME_CHARACTERS:
            trail.finish = trail.finish[:MAX_NAME_CHARACTERS]
        if trail.attempts == 1 and trail.outcome is Outcome.COMPLETED and not trail.queue_seconds:
            self._smooth.add(trail)
        else:
            self._rough.add(trail)

    def find(self, request_id: str) -> Trail | None:
        """The trail of a request, or None. Callers choose ids: of several with the same one it is the last."""
        found = (self._smooth.trails.get(request_id), self._rough.trails.get(request_id))
        return max(filter(None, found), key=lambda trail: trail.ended_at, default=None)


class _Kept:
    """The last trails, by their ids, as many as there is room for."""

    def __init__(self, max_trails: int, max_candidates: int) -> None:
        self.trails: OrderedDict[str, Trail] = OrderedDict()
        self._max_trails = max_trails
        self._max_candidates = max_candidates
        self._candidates = 0

    def add(self, trail: Trail) -> None:
        trails = self.trails
        if trail.request_id in trails:
            self._forget(trails.pop(trail.request_id))
        trails[trail.request_id] = trail
        for attempt in trail.tried:
            self._candidates += len(attempt.candidates)
        while len(trails) > self._max_trails or self._candidates > self._max_candidates:
            self._forget(trails.popitem(last=False)[1])

    def _forget(self, trail: Trail) -> None:
        for attempt in trail.tried:
            self._candidates -= len(attempt.candidates)
