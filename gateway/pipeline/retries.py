"""The contract's retry table, for what can happen before the first byte reached the client. Pure.

vLLM answers every POST from scratch, so a request may be sent again as long as nothing of its answer was shown.
Prefill is expensive and the SDKs above us retry as well, so we do it rarely: refused connections cost nothing and
may be tried on two more pods; anything else once, within a budget.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from gateway.balancing.balancer import Blame
from gateway.upstream.failure import Failure

MAX_CONNECT_RETRIES = 2


class Again(Enum):
    """Where the next attempt goes."""

    SAME_POD = "same pod, fresh connection"
    OTHER_POD = "other pod"


_ONCE_ELSEWHERE = frozenset(
    (
        Failure.STALE,
        Failure.RESET,
        Failure.BUSY,
        Failure.DYING,
        Failure.ENGINE_DEAD,
        Failure.SIDECAR,
        Failure.SILENT,
        Failure.MODEL_GONE,
    )
)

BLAME: Mapping[Failure, Blame] = {
    Failure.CONNECT: Blame.POD,
    Failure.STALE: Blame.NONE,
    Failure.RESET: Blame.POD,
    Failure.BUSY: Blame.BUSY,
    Failure.DYING: Blame.POD,
    Failure.ENGINE_DEAD: Blame.POD,
    Failure.SIDECAR: Blame.POD,
    Failure.SILENT: Blame.NONE,
    Failure.SERVER_ERROR: Blame.IN_DOUBT,
    Failure.JUNK: Blame.POD,
    Failure.TIMEOUT: Blame.POD,
    Failure.MODEL_GONE: Blame.NONE,
}
"""What each failure says of its pod. Where none stands here the pod answered as it should, or was not asked."""


@dataclass(slots=True)
class Retries:
    """The attempts one request has behind it."""

    max_connects: ClassVar[int] = MAX_CONNECT_RETRIES

    excluded: set[str] = field(default_factory=set)
    """Pods that get no further attempt, by uid."""
    _connects: int = 0
    _stale: bool = False
    _replayed: bool = False

    def again(self, failure: Failure, uid: str, budget_left: bool) -> Again | None:
        """What to do after a failure at a pod; None: give up."""
        if failure is Failure.CONNECT:
            self.excluded.add(uid)
            self._connects += 1
            return Again.OTHER_POD if self._connects <= self.max_connects else None
        if failure is Failure.STALE and not self._stale:
            self._stale = True
            return Again.SAME_POD
        if failure in _ONCE_ELSEWHERE:
            self.excluded.add(uid)
            if self._replayed or not budget_left:
                return None
            self._replayed = True
            return Again.OTHER_POD
        return None

    @property
    def on_budget(self) -> bool:
        """Whether the attempt that runs now draws on the retry budget."""
        return self._replayed
