"""Requests that were in flight at a pod's death.

A request that makes vLLM's process die would, sent again and again, walk through a whole pool. One that was in flight
at the deaths of two pods is not sent to a third. It is told by its caller and its body; what is kept is a hash of both,
by a secret of this process. A body that a pod has answered since is let go: it was there by chance.
"""

from collections.abc import Hashable, Sequence

MAX_KEPT = 10_000
KEPT_SECONDS = 600.0
DEATHS = 2

Mark = int
"""Tells a body and its caller."""


def mark_of(caller: Hashable, body: Sequence[bytes | memoryview]) -> Mark:
    """The same for the same body of the same caller, in this process."""
    return hash((caller, *body))


class Quarantine:
    """See the module's text. Falsy while it knows of no death."""

    def __init__(self) -> None:
        self._deaths: dict[Mark, tuple[float, frozenset[str]]] = {}
        """When the last death was, and the pods that died (by uid); in the order of that time."""

    def __bool__(self) -> bool:
        return bool(self._deaths)

    def died(self, mark: Mark, uid: str, now: float) -> None:
        """A pod died with this request in hand."""
        held = self._deaths.pop(mark, None)
        uids = held[1] if held is not None and now - held[0] < KEPT_SECONDS else frozenset()
        self._deaths[mark] = (now, uids | {uid})
        if len(self._deaths) > MAX_KEPT:
            del self._deaths[next(iter(self._deaths))]

    def holds(self, mark: Mark, now: float) -> bool:
        """Whether the request may not be sent any more."""
        while self._deaths:
            oldest = next(iter(self._deaths))
            if now - self._deaths[oldest][0] < KEPT_SECONDS:
                break
            del self._deaths[oldest]
        held = self._deaths.get(mark)
        return held is not None and len(held[1]) >= DEATHS

    def answered(self, mark: Mark) -> None:
        """A pod has answered it."""
        self._deaths.pop(mark, None)
