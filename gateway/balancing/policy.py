"""Which of the pods with room takes a request. Pure: `loadtest.policysim` runs this very code over seeded workloads.

A policy is given the pods that have room, at least one, as `Standing`s; whoever owns those keeps them true. Ties are
broken by chance: replicas of the gateway that break them alike would all choose the same pod.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import NamedTuple, Protocol

from gateway.balancing.affinity import TOKENS_PER_BLOCK


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
    known_tokens: int = 0
    """The same of the pod that has most of them."""
    weighed: Sequence[Standing] = ()
    """The pods that were weighed against each other, for who asks why; empty where nothing was."""
    costs: Sequence[float] = ()
    """What each of them would have cost, in their order."""


class Cached(Protocol):
    """What is believed of the pods' prefix caches: `affinity.PrefixIndex`."""

    def cached(self, uid: str, blocks: Sequence[int]) -> int:
        """How many of the leading blocks the pod has."""
        ...

    def holder(self, blocks: Sequence[int]) -> str | None:
        """The pod that last got the longest known beginning of these blocks."""
        ...


class View:
    """What a policy may look at beside the pods."""

    __slots__ = ("cache", "chance", "familiar", "turn")

    def __init__(self, cache: Cached, chance: Callable[[], float], turn: int = 0) -> None:
        self.cache = cache
        self.chance = chance
        """Uniform in [0, 1)."""
        self.turn = turn
        """Counts the choices in this pool."""
        self.familiar = 0.0
        """Which part of a prompt was believed cached at some pod, of late; 0 to 1. See `learn`."""


Policy = Callable[[Sequence[Standing], Wish, View], Choice]


BUSY_TOKENS = 64
"""What a request that runs costs the next one, in prompt tokens."""
SHARE_FACTOR = 1.5
SHARE_SLACK = 2.0


def auto(pods: Sequence[Standing], wish: Wish, view: View) -> Choice:
    """The pod that has the least to do before this request's first token."""
    cache, blocks, tokens, key = view.cache, wish.blocks, wish.tokens, wish.key
    own = pending = busy = 0
    home, highest = pods[0], -1
    for pod in pods:
        own += pod.in_flight
        pending += pod.pending_tokens
        busy += pod.in_flight + pod.failed + pod.others
        rank = pod.key * key & _64_BITS
        if rank > highest:
            home, highest = pod, rank
    assumed = min(1.0, HOPE * view.familiar) * tokens if key else 0.0
    each = pending / own if own else 0.0
    bound = SHARE_FACTOR * busy / len(pods) + SHARE_SLACK
    best = pods[0]
    lowest = inf
    equals = 1
    costs = []
    mostk = max(cache.cached(pod.uid, blocks) * TOKENS_PER_BLOCK for pod in pods) if blocks else 0
    most = best_cached = 0
    for pod in pods:
        cached = cache.cached(pod.uid, blocks) * TOKENS_PER_BLOCK if blocks else 0
        if cached > most:
            most = cached
        running = pod.in_flight + pod.failed + pod.others
        hoped = max(cached, assumed, KNOWN * mostk) if pod is home else cached * TRUST
        work = pod.pending_tokens + pod.others * each + max(0.0, tokens - hoped)
        if WMODE:
            cost = work + BUSY_TOKENS * (running + 1) / pod.weight
        else:
            cost = (work + BUSY_TOKENS * (running + 1)) / pod.weight
        if running > bound * (pod.weight if WMODE else 1):
            cost += _OVER
        costs.append(cost)
        if cost < lowest:
            best, lowest, equals, best_cached = pod, cost, 1, cached
        elif cost == lowest:
            equals += 1
            if view.chance() * equals < 1:
                best, best_cached = pod, cached
    return Choice(best, "prefix" if best_cached else "cheapest", best_cached, most, pods, costs)


LEARN = 1 / 64
TRUST = 1.0
KNOWN = 0.0
HOPE = 1.0
WMODE = 0.0


def learn(view: View, wish: Wish, choice: Choice) -> None:
    """What the next choices may know of this one."""
    view.turn += 1
    if wish.tokens and choice.weighed:
        view.familiar += LEARN * (min(1.0, choice.known_tokens / wish.tokens) - view.familiar)


_OVER = 1e9
"""More than any work: a pod with more than its share is taken only where all have more."""


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


def session(pods: Sequence[Standing], wish: Wish, view: View) -> Choice:
    """The same pod for each request of a session, on every replica: consistent hashing with bounded loads.

    The wish's key ranks the pods (highest random weight), so a pod that leaves or joins moves only its own sessions. A
    pod that has its share of what we have in flight, and a quarter more, is passed over for the next in rank. Source:
    Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads".
    """
    return _first_in_rank(pods, wish, view, "session")


def prefix(pods: Sequence[Standing], wish: Wish, view: View) -> Choice:
    """As `session`; the wish's key is made of the prompt's beginning, whatever session it belongs to."""
    return _first_in_rank(pods, wish, view, "prefix")


SPREAD = 1.25
"""How many times its share of what is in flight a pod may carry before its sessions go to another."""
_64_BITS = (1 << 64) - 1


def _first_in_rank(pods: Sequence[Standing], wish: Wish, view: View, reason: str) -> Choice:
    key = wish.key
    if not key:
        return least(pods, wish, view)
    # A pod's rank is the product of two keys that are hashes already. That spreads sessions as evenly as a full mixing
    # function does, at a third of its cost. `hash((key, pod.key))` does not: one pod of eight gets twice its share.
    best, highest = pods[0], -1
    for pod in pods:
        rank = pod.key * key & _64_BITS
        if rank > highest:
            best, highest = pod, rank
    if best.in_flight + best.failed <= 1:
        # No bound is lower: the others need not be looked at.
        return Choice(best, reason)
    total, weights = 0, 0.0
    for pod in pods:
        total += pod.in_flight + pod.failed
        weights += pod.weight
    share = total / weights
    if best.in_flight + best.failed < SPREAD * (share * best.weight + 1):
        return Choice(best, reason)
    # The next in rank is the first of those below their bound, and one is: not all have more than their share.
    highest = -1
    for pod in pods:
        rank = pod.key * key & _64_BITS
        if rank > highest and pod.in_flight + pod.failed < SPREAD * (share * pod.weight + 1):
            best, highest = pod, rank
    return Choice(best, "spill")


POLICIES: Mapping[str, Policy] = {
    "auto": auto,
    "least": least,
    "p2c": p2c,
    "round_robin": round_robin,
    "session": session,
    "prefix": prefix,
}
