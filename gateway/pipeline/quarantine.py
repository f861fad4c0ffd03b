"""Requests that were in flight at a pod's death.

A request that makes vLLM's process die would, sent again and again, walk through a whole pool. One that was in flight
at the deaths of two pods is not sent to a third. It is told by its caller and its body; what is kept is a hash of both,
by a secret of this process. A body that a pod has answered since, to the end, is let go: it was there by chance.
"""

from collections.abc import Hashable, Sequence
from typing import ClassVar, NamedTuple

MAX_KEPT = 10_000
KEPT_SECONDS = 600.0
DEATHS = 2
ONE_DEATH_SECONDS = 5.0
"""A body that was sent many times hears of one death many times; no pod is back, and dead again, so soon."""

Mark = int
"""Tells a body and its caller."""


def mark_of(caller: Hashable, body: Sequence[bytes | memoryview]) -> Mark:
    """The same for the same body of the same caller, in this process: the same bytes are always cut into the same
    parts."""
    return hash((caller, *body))


class _Known(NamedTuple):
    """How many pods died with one body in hand; when the last one did, and which it was."""

    deaths: int
    at: float
    uid: str


class Quarantine:
    """See the module's text. Falsy while it knows of no death."""

    max_deaths: ClassVar[int] = DEATHS
    max_kept: ClassVar[int] = MAX_KEPT

    def __init__(self) -> None:
        self.deaths: dict[Mark, _Known] = {}
        """In the order of the last death of each; empty while it knows of none."""

    def __bool__(self) -> bool:
        return bool(self.deaths)

    def died(self, mark: Mark, uid: str, now: float) -> None:
        """A pod died with this request in hand."""
        held = self.deaths.get(mark)
        if held is not None and held.uid == uid and now - held.at < ONE_DEATH_SECONDS:
            return
        before = held.deaths if held is not None and now - held.at < KEPT_SECONDS else 0
        self.deaths.pop(mark, None)
        self.deaths[mark] = _Known(before + 1, now, uid)
        if len(self.deaths) > self.max_kept:
            del self.deaths[next(iter(self.deaths))]

    def holds(self, mark: Mark, now: float) -> bool:
        """Whether the request may not be sent any more."""
        while self.deaths:
            oldest = next(iter(self.deaths))
            if now - self.deaths[oldest].at < KEPT_SECONDS:
                break
            del self.deaths[oldest]
        held = self.deaths.get(mark)
        return held is not None and held.deaths >= self.max_deaths

    def answered(self, mark: Mark) -> None:
        """A pod has answered it, to the end."""
        self.deaths.pop(mark, None)
