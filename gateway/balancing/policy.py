"""Which of the pods with room takes a request. Pure: `loadtest.policysim` runs this very code over seeded workloads.

A policy is given the pods that have room, at least one, as `Standing`s; whoever owns those keeps them true. Ties are
broken by chance: replicas of the gateway that break them alike would all choose the same pod.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf, sqrt
from typing import NamedTuple, Protocol

from gateway.balancing.affinity import TOKENS_PER_BLOCK
from gateway.core.made import maker


class Standing:
    """One pod as the choice sees it. Written by its owner alone, the balancer (in a simulation: the simulation)."""

    __slots__ = (
        "failed",
        "in_flight",
        "key",
        "name",
        "others",
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


_choice = maker(Choice)


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
        """Counts the choices in this pool that `learn` was told of."""
        self.familiar = 0.0
        """Which part of a prompt was believed cached at some pod, of late; 0 to 1. See `learn`."""


Policy = Callable[[Sequence[Standing], Wish, View], Choice]


BUSY_TOKENS = 200
"""What each request that runs costs the next one, in prompt tokens: their steps are shared."""
TRUST = 0.15
"""How far we believe in what we sent somewhere ourselves: other replicas' requests have used that cache since."""
HOPE = 3.0
"""How much more of a prompt its home has than we know of: other replicas sent it there too."""
WORK_FACTOR = 1.5
"""Work that a cache would have saved weighs more than waiting: it also holds up whoever comes next."""
SHARE_FACTOR = 2.0
SHARE_SLACK = 8.0
"""No pod gets a request because of what it has cached while it has more than so many times the mean, and so many."""
MOST_WEIGHED = 32
TAKEN_BY_CHANCE = 8
"""Of a larger pool so many are weighed by chance, beside the prompt's home and the pod that last got its like."""
MOST_HOPED = 0.9
"""Of a prompt, that its home has it: its end is new to every pod."""
CHANCE_DEVIATIONS = 2.0
"""A pod's count of others' requests means something when it is so many standard deviations above the mean."""
LEARNING = 1 / 64


def auto(pods: Sequence[Standing], wish: Wish, view: View) -> Choice:
    """The pod that has the least to do before this request's first token, in prompt tokens.

    That is what we sent there and still waits for a first token, and of this prompt what is not cached. Requests of
    others count as ours do, as far as there are more of them than chance explains: a pod's count of them is half a
    second old, and the replicas that all believed the least of such counts would go to the same pod.

    What is cached where, a replica knows of its own requests only. But all replicas know which pod is a prompt's *home*
    (its session's, or that of all prompts that begin so): the first in rank of `session`. It is hoped to have more of a
    prompt than prompts were known to share of late: nothing, where they share nothing. So replicas gather what belongs
    together without a word, and where a home is too busy its work goes elsewhere.

    What is not cached weighs more than what waits, since it holds up the next requests too. A warm pod works off all of
    this alike; one with a small weight gets less, since each request in it counts more.
    """
    tokens, blocks, key = wish
    home = _first(pods, key) if key and view.familiar else None
    if len(pods) > MOST_WEIGHED:
        pods = _some(pods, wish, view, home)
    if not (blocks or key):
        choice = least_work(pods, tokens, view)
        if choice is not None:
            return choice
    running = others = 0
    for pod in pods:
        running += pod.in_flight + pod.failed
        others += pod.others
    bound = SHARE_FACTOR * (running + others) / len(pods) + SHARE_SLACK
    cached_at = view.cache.cached
    known = [cached_at(pod.uid, blocks) * TOKENS_PER_BLOCK for pod in pods] if blocks else [0] * len(pods)
    most, trust = max(known), TRUST
    if most:
        # What many pods have is asked for so often that none of them forgets it.
        trust = max(TRUST, (sum([2 * cached > most for cached in known]) - 1) / max(1, len(pods) - 1))
    costs = []
    for pod, cached in zip(pods, known, strict=True):
        believed = cached * trust
        if pod is home:
            believed = max(cached, min(MOST_HOPED, HOPE * view.familiar) * tokens)
        here, weight = pod.in_flight + pod.failed, pod.weight
        if here + pod.others > bound * weight:
            costs.append(inf)
            continue
        cost = pod.pending_tokens + BUSY_TOKENS * (here + 1) / weight
        costs.append(cost + WORK_FACTOR * (tokens - believed) if tokens > believed else cost)
    if others:
        _add_foreign(costs, pods, others)
    lowest = min(costs)
    if lowest == inf:
        # Some are new, and all have more than their share: a matter of moments.
        return least(pods, wish, view)
    place = costs.index(lowest) if costs.count(lowest) == 1 else _any_place_of(lowest, costs, view)
    best, cached = pods[place], known[place]
    if cached:
        return _choice((best, "prefix", cached, most, pods, costs))
    return _choice((best, "home" if best is home else "cheapest", 0, most, pods, costs))


def _add_foreign(costs: list[float], pods: Sequence[Standing], others: int) -> None:
    """What requests of others cost beside ours, as far as there are more of them than chance explains."""
    own = sum([pod.in_flight for pod in pods])
    each = sum([pod.pending_tokens for pod in pods]) / own if own else 0.0
    usual = others / len(pods)
    usual += CHANCE_DEVIATIONS * sqrt(usual)
    for place, pod in enumerate(pods):
        if pod.others > usual:
            costs[place] += (pod.others - usual) * (each + BUSY_TOKENS / pod.weight)


def _any_place_of(lowest: float, costs: list[float], view: View) -> int:
    """One of the places at which it stands, each as often as any other."""
    place = costs.index(lowest)
    passed_over = int(view.chance() * costs.count(lowest))
    while passed_over:
        place = costs.index(lowest, place + 1)
        passed_over -= 1
    return place


def least_work(pods: Sequence[Standing], tokens: int, view: View) -> Choice | None:
    """What `auto` comes to for a prompt that shares nothing, at warm pods that all have room and no requests but ours,
    in one pass: most requests are short. None: it takes a second look."""
    work = WORK_FACTOR * tokens + BUSY_TOKENS
    costs = []
    for pod in pods:
        running = pod.in_flight
        if running >= pod.room or pod.others or pod.weight != 1.0:
            return None
        costs.append(pod.pending_tokens + work + BUSY_TOKENS * (running + pod.failed))
    # Of two pods neither can have more than its share, and who costs little has few.
    if len(pods) > 2 and max(costs) > work + BUSY_TOKENS * SHARE_SLACK:
        running_at = [pod.in_flight + pod.failed for pod in pods]
        if max(running_at) > SHARE_FACTOR * sum(running_at) / len(pods) + SHARE_SLACK:
            return None
    lowest = min(costs)
    place = costs.index(lowest) if costs.count(lowest) == 1 else _any_place_of(lowest, costs, view)
    return _choice((pods[place], "cheapest", 0, 0, pods, costs))


def _some(pods: Sequence[Standing], wish: Wish, view: View, home: Standing | None) -> Sequence[Standing]:
    """A few of many pods: those that may have the prompt cached, and some by chance."""
    some = [] if home is None else [home]
    holder = view.cache.holder(wish.blocks) if wish.blocks else None
    if holder is not None and (home is None or holder != home.uid):
        some += [pod for pod in pods if pod.uid == holder]
    some += [pods[int(view.chance() * len(pods))] for _ in range(TAKEN_BY_CHANCE)]
    return list(dict.fromkeys(some))


def learn(view: View, wish: Wish, choice: Choice) -> None:
    """Note what the next choices are to know of this one. Called by who owns the view, after each choice."""
    view.turn += 1
    if wish.tokens and choice.weighed:
        view.familiar += LEARNING * (min(1.0, choice.known_tokens / wish.tokens) - view.familiar)


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


def _first(pods: Sequence[Standing], key: int) -> Standing:
    """The first of the pods in rank for a key, on every replica.

    A pod's rank is the product of two keys that are hashes already. That spreads sessions as evenly as a full mixing
    function does, at a third of its cost. `hash((key, pod.key))` does not: one pod of eight gets twice its share.
    """
    best, highest = pods[0], -1
    for pod in pods:
        rank = pod.key * key & _64_BITS
        if rank > highest:
            best, highest = pod, rank
    return best


def _first_in_rank(pods: Sequence[Standing], wish: Wish, view: View, reason: str) -> Choice:
    key = wish.key
    if not key:
        return least(pods, wish, view)
    best = _first(pods, key)
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
