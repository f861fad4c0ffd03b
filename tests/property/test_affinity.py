"""What is believed of the pods' caches, after any history; and where sessions go, whatever the pods carry."""

from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancing.affinity import BLOCK_BYTES, PrefixIndex, beginning_key, blocks_of, session_key, uid_key
from gateway.balancing.policy import POLICIES, Standing, View, Wish

Path = tuple[int, ...]
"""A prompt, as the way to it in a tree in which each block has two that may follow."""

paths = st.lists(st.integers(1, 2), min_size=1, max_size=12).map(tuple)
uids = st.integers(0, 20).map(str)


def chain(path: Path) -> Path:
    """The path's chained blocks: each has a number that no other node of the tree has."""
    node, blocks = 0, []
    for step in path:
        node = node * 3 + step
        blocks.append(node)
    return tuple(blocks)


@dataclass(frozen=True)
class Sent:
    uid: str
    path: Path


@dataclass(frozen=True)
class Told:
    uid: str
    blocks: int


@dataclass(frozen=True)
class Kept:
    uids: frozenset[str]


Event = Sent | Told | Kept
events = st.lists(
    st.one_of(
        st.builds(Sent, uids, paths),
        st.builds(Sent, st.sampled_from("01"), paths),
        st.builds(Told, uids, st.integers(0, 10)),
        st.builds(Kept, st.frozensets(uids, min_size=8)),
    ),
    max_size=60,
)


@dataclass
class Lists:
    """The same beliefs, said plainly: each pod has a list of blocks, the last touched first."""

    in_all: int
    capacity: int
    pods: dict[str, list[int]] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)

    def apply(self, event: Event) -> None:
        if isinstance(event, Kept):
            self.pods = {uid: blocks for uid, blocks in self.pods.items() if uid in event.uids}
            self.told = {uid: blocks for uid, blocks in self.told.items() if uid in event.uids}
        else:
            self.pods.setdefault(event.uid, [])
            self.shrink()
        if isinstance(event, Told):
            self.told[event.uid] = event.blocks
        if isinstance(event, Sent):
            blocks = list(chain(event.path))[: self.most(event.uid)]
            self.pods[event.uid] = blocks + [block for block in self.pods[event.uid] if block not in blocks]
        self.shrink()

    def most(self, uid: str) -> int:
        return min(self.told.get(uid, self.capacity), self.in_all // max(16, len(self.pods)))

    def shrink(self) -> None:
        for uid, blocks in self.pods.items():
            del blocks[self.most(uid) :]


def apply(index: PrefixIndex, event: Event) -> None:
    if isinstance(event, Sent):
        index.sent(event.uid, chain(event.path))
    elif isinstance(event, Told):
        index.resize(event.uid, event.blocks)
    else:
        index.keep(event.uids)


@settings(max_examples=300)
@given(events)
def test_a_pod_is_believed_to_have_the_blocks_last_touched_and_all_before_each(history: list[Event]) -> None:
    index, lists = PrefixIndex(capacity=5, in_all=112), Lists(in_all=112, capacity=5)
    seen: set[Path] = set()
    for event in history:
        apply(index, event)
        lists.apply(event)
        if isinstance(event, Sent):
            seen.update(event.path[:length] for length in range(1, len(event.path) + 1))
        held: dict[str, set[Path]] = {
            uid: {path for path in seen if index.cached(uid, chain(path)[-1:])} for uid in map(str, range(21))
        }
        for uid, prefixes in held.items():
            assert sorted(chain(path)[-1] for path in prefixes) == sorted(lists.pods.get(uid, []))
            assert all(path[:-1] in prefixes for path in prefixes if len(path) > 1)
            for path in seen:
                assert index.cached(uid, chain(path)) == sum(path[: n + 1] in prefixes for n in range(len(path)))
        assert sum(map(len, held.values())) <= 112


@settings(max_examples=200)
@given(events, st.sampled_from([16, 112, 10_000]))
def test_the_holder_is_a_pod_that_is_there_and_got_such_a_prompt(history: list[Event], in_all: int) -> None:
    index = PrefixIndex(capacity=10_000, in_all=in_all)
    got: dict[str, set[Path]] = {}
    for event in history:
        apply(index, event)
        if isinstance(event, Kept):
            got = {uid: had for uid, had in got.items() if uid in event.uids}
        elif isinstance(event, Sent):
            got.setdefault(event.uid, set()).add(event.path)
            if index.cached(event.uid, chain(event.path)) == len(event.path):
                assert index.holder(chain(event.path)) == event.uid
                assert index.holder((*chain(event.path), -1, -2)) == event.uid
        for path in {path for had in got.values() for path in had}:
            holder = index.holder(chain(path))
            assert holder is None or any(path[0] == had[0] for had in got[holder])


@settings(max_examples=200)
@given(st.lists(st.builds(Sent, uids, paths), min_size=1, max_size=40), paths)
def test_the_holder_has_more_than_half_of_what_any_pod_has(history: list[Sent], path: Path) -> None:
    index = PrefixIndex(in_all=100_000)
    shared: dict[str, int] = {}
    for event in history:
        apply(index, event)
        alike = [one == other for one, other in zip(path, event.path, strict=False)]
        length = alike.index(False) if False in alike else len(alike)
        shared[event.uid] = max(shared.get(event.uid, 0), length)
    longest = max(shared.values())
    holder = index.holder(chain(path))
    assert (holder is None) == (longest == 0)
    assert holder is None or shared[holder] > longest / 2


@given(st.binary(max_size=4 * BLOCK_BYTES), st.binary(max_size=BLOCK_BYTES), st.binary(max_size=BLOCK_BYTES))
def test_prompts_share_exactly_the_blocks_of_their_common_beginning(common: bytes, one: bytes, other: bytes) -> None:
    first, second = common + one, common + other
    blocks, others = blocks_of(first, ("m",)), blocks_of(second, ("m",))
    assert len(blocks) == len(first) // BLOCK_BYTES
    for number in range(min(len(blocks), len(others))):
        end = (number + 1) * BLOCK_BYTES
        assert (blocks[number] == others[number]) == (first[:end] == second[:end])


def no_chance() -> float:
    raise AssertionError("chance would differ from replica to replica")


def pods_of(loads: list[tuple[int, int, float]]) -> list[Standing]:
    pods = []
    for number, (in_flight, failed, weight) in enumerate(loads):
        pod = Standing(f"uid-{number}", f"pod-{number}", uid_key(f"uid-{number}"))
        pod.in_flight, pod.failed, pod.weight = in_flight, failed, weight
        pods.append(pod)
    return pods


loaded = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5), st.floats(0.1, 1.0)), min_size=1, max_size=12).map(
    pods_of
)
keys = st.text(min_size=1, max_size=5).map(lambda session: session_key("acme", session))
view = View(PrefixIndex(), no_chance)


@settings(max_examples=300)
@given(loaded, keys, st.sampled_from(["session", "prefix"]), st.randoms(use_true_random=False))
def test_no_pod_gets_more_than_its_share_and_a_quarter(
    pods: list[Standing], key: int, policy: str, order: Random
) -> None:
    loads = {pod: pod.in_flight + pod.failed for pod in pods}
    share = sum(loads.values()) / sum(pod.weight for pod in pods)
    ranked = sorted(pods, key=lambda pod: pod.key * key % 2**64, reverse=True)
    below = [pod for pod in ranked if loads[pod] < 1.25 * (share * pod.weight + 1)]
    choice = POLICIES[policy](pods, Wish(key=key), view)
    assert choice.standing is below[0]
    assert choice.reason == (policy if below[0] is ranked[0] else "spill")
    shuffled = list(pods)
    order.shuffle(shuffled)
    assert POLICIES[policy](shuffled, Wish(key=key), view).standing is choice.standing


@settings(max_examples=300)
@given(st.integers(2, 40), keys, st.data())
def test_a_pod_that_leaves_or_joins_moves_only_its_own_sessions(count: int, key: int, data: st.DataObject) -> None:
    pods = pods_of([(0, 0, 1.0)] * count)
    gone = data.draw(st.sampled_from(pods))
    with_it = POLICIES["session"](pods, Wish(key=key), view).standing
    without = POLICIES["session"]([pod for pod in pods if pod is not gone], Wish(key=key), view).standing
    assert with_it is without or with_it is gone


@given(st.text(max_size=4), st.text(min_size=1, max_size=4), st.text(max_size=4), st.text(min_size=1, max_size=4))
def test_only_the_same_session_of_the_same_tenant_has_the_same_key(a: str, b: str, c: str, d: str) -> None:
    assert (session_key(a, b) == session_key(c, d)) == ((a, b) == (c, d))
    assert beginning_key(b.encode("utf-8", "replace"), (a,)) != session_key(a, b)
