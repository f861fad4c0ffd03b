"""Which of the pods with room takes a request. Pure: `loadtest.policysim` runs this very code over seeded workloads.

A policy is given the pods that have room, at least one, as `Standing`s; whoever owns those keeps them true. Ties are
broken by chance: replicas of the gateway that break them alike would all choose the same pod.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from gateway.core.fleet import Pod


class Standing:
    """One pod as the choice sees it. Written by its owner alone, the balancer (in a simulation: the simulation)."""

    __slots__ = (
        "failed",
        "in_flight",
        "key",
        "name",
        "others",
        "pace",
        "pending_tokens",
        "room",
        "uid",
        "weight",
    )

    def __init__(self, uid: str, name: str, key: int = 0) -> None:
        self.uid = uid
        self.name = name
        self.key = key
        """64 bits made of the uid, the same on every replica: its place among the others for a given session."""
        self.in_flight = 0
        """Our own attempts there now: exact."""
        self.failed = 0
        """Our own attempts that failed there within the last second: a pod that fails fast must not look idle."""
        self.others = 0
        """Requests of others there, by the pod's own count; 0 when nothing fresh is known."""
        self.pending_tokens = 0
        """Prompt tokens that we sent and that were not believed cached there, of requests without a first token yet."""
        self.room = 1
        """It gets no request more while `in_flight + others` is not below this."""
        self.weight = 1.0
        """0.1 to 1: less while it is new, or back from an ejection, and its caches are cold."""
        self.pace = 1.0
        """How long it took to first tokens of late, as a multiple of what its pool takes for the same work."""


class Wish(NamedTuple):
    """What a request brings to the choice."""

    tokens: int = 0
    """Of its prompt, estimated."""
    blocks: tuple[int, ...] = ()
    """Chained hashes of the prompt's blocks (`affinity.blocks_of`); empty where nothing can be shared."""
    key: int = 0
    """64 bits of its session, or else of its prompt's beginning, the same on every replica; 0: it has none."""


class Choice(NamedTuple):
    """The pod chosen, and why."""

    standing: Standing
    reason: str
    """One word of a closed set, for the access line."""
    cached_tokens: int = 0
    """How many of the prompt's tokens are believed cached there."""
    costs: Sequence[float] = ()
    """What each candidate would have cost, in their order, for who asks why; empty where nothing was weighed."""


class Cached(Protocol):
    """What is believed of the pods' prefix caches: `affinity.PrefixIndex`."""

    def cached(self, uid: str, blocks: Sequence[int]) -> int:
        """How many of the leading blocks the pod has."""
        ...

    def holder(self, blocks: Sequence[int]) -> str | None:
        """The pod that last got the longest known beginning of these blocks."""
        ...


class View(NamedTuple):
    """What a policy may look at beside the pods."""

    cache: Cached
    chance: Callable[[], float]
    """Uniform in [0, 1)."""
    turn: int = 0
    """Counts the choices in this pool."""


Policy = Callable[[Sequence[Standing], Wish, View], Choice]


def least(pods: Sequence[Standing], wish: Wish, view: View) -> Choice:
    """The pod with the fewest requests in flight."""
    best = pods[0]
    fewest = best.in_flight + best.failed
    equals = 1
    for pod in pods[1:]:
        count = pod.in_flight + pod.failed
        if count < fewest:
            best, fewest, equals = pod, count, 1
        elif count == fewest:
            # Each of k equals wins with probability 1/k, without a list of them.
            equals += 1
            if view.chance() * equals < 1:
                best = pod
    return Choice(best, "least")


def p2c(pods: Sequence[Standing], wish: Wish, view: View) -> Choice:
    """The less loaded of two pods taken by chance."""
    count = len(pods)
    one = int(view.chance() * count)
    other = (one + 1 + int(view.chance() * (count - 1))) % count
    first, second = pods[one], pods[other]
    better = first if first.in_flight + first.failed <= second.in_flight + second.failed else second
    return Choice(better, "p2c")


def round_robin(pods: Sequence[Standing], wish: Wish, view: View) -> Choice:
    """One after the other."""
    return Choice(pods[view.turn % len(pods)], "round_robin")


POLICIES: Mapping[str, Policy] = {"least": least, "p2c": p2c, "round_robin": round_robin}


def least_in_flight(pods: Sequence[Pod], in_flight: Mapping[str, int], chance: Callable[[], float]) -> Pod | None:
    """The least loaded pod, or None when there is none. `in_flight` counts by pod uid; absent means 0.
    `chance()` is uniform in [0, 1)."""
    fewest = -1
    best: Pod | None = None
    equals = 1
    for pod in pods:
        count = in_flight.get(pod.uid, 0)
        if best is None or count < fewest:
            best, fewest, equals = pod, count, 1
        elif count == fewest:
            # Each of k equals wins with probability 1/k, without a list of them.
            equals += 1
            if chance() * equals < 1:
                best = pod
    return best
