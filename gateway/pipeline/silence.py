"""Tells a pod that will never answer again from one that is slow. Pure.

vLLM on its way down keeps its connections open and says nothing for a minute and more (its default on SIGTERM); and
its `/health` says 200 while its GPU is stuck. Both show in the same way: no content event comes from the *whole* pod,
while requests of ours wait there. What one stream does says little: a tool call may be held back for long.
"""

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple, Protocol

LEAVING_SECONDS = 10.0
"""So long may a terminating pod be silent as a whole: its streams are given up then."""
LEAVING_ASK_SECONDS = 2.0
"""After so long its `/health` is asked: a pod that does not answer any more is given up at once."""
WEDGED_SECONDS = 10.0
WEDGED_FACTOR = 5.0
"""A pod is stuck if nothing came for this many times its slowest first token of late, and 10 s more."""
SLOWEST_PREFILL = 2000.0
"""Prompt tokens a second of a pod of which nothing is known."""


class Listening(Protocol):
    """A pod, as the balancer sees it: `balancing.balancer.Seat`."""

    heard_at: float
    leaving_since: float | None
    slowest: float


class Running(NamedTuple):
    """One request at a pod that nothing has come for lately, or ever. Times are monotonic seconds."""

    streams: bool
    begun: bool
    """Its client has content already."""
    sent_at: float
    tokens: int
    """Of its prompt, that the pod had not cached."""


class Suspicion(Enum):
    """What a pod's silence calls for."""

    NONE = "none"
    ASK = "ask"
    """It terminates: give it up if its `/health` does not answer."""
    LOST = "lost"
    """It terminates: give its streams up."""
    WEDGED = "wedged"
    """Its engine is stuck: eject it, and give its streams up."""


def suspicion(pod: Listening, running: Iterable[Running], now: float) -> Suspicion:
    """What to think of a pod with these requests of ours."""
    if pod.leaving_since is not None:
        quiet = now - max(pod.heard_at, pod.leaving_since)
        if quiet >= LEAVING_SECONDS:
            return Suspicion.LOST
        return Suspicion.ASK if quiet >= LEAVING_ASK_SECONDS else Suspicion.NONE
    streams = sorted((each for each in running if each.streams), key=lambda each: each.sent_at)
    waiting = [each.tokens for each in streams if not each.begun]
    # One alone may be a prompt such as the pod never had.
    if len(streams) < 2 or not waiting:
        return Suspicion.NONE
    quiet = now - max(pod.heard_at, streams[1].sent_at)
    usual = max(WEDGED_FACTOR * pod.slowest, max(waiting) / SLOWEST_PREFILL)
    return Suspicion.WEDGED if quiet >= WEDGED_SECONDS + usual else Suspicion.NONE
