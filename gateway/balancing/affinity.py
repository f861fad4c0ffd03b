"""Which requests belong together, and what each pod is believed to have cached. Pure.

vLLM keeps the KV cache of prompts it has seen, in blocks: a pod that has a prompt's beginning skips that part of the
work. We do not know the pods' tokenizers, so we cut the raw bytes instead. A prompt is named by chained hashes: each
stands for all the bytes up to its end, so two prompts begin alike for as long as their hashes are the same. One ends
each of the first blocks, and later each fourth: of a long prompt a smaller part is wrong, and each hash has its price.

Two kinds of hashes, for two purposes. Blocks are compared in this process alone, so they use Python's own `hash`: it is
the fastest there is, and salted at the start of the process, so no caller can make two prompts collide. Keys place a
session or a pod among others, and every replica has to place it alike: those are BLAKE2b.
"""

from bisect import bisect_right
from collections.abc import Collection, Sequence
from hashlib import blake2b
from struct import Struct

BLOCK_BYTES = 512
"""About 128 tokens of English. What is believed of a prompt is wrong by half a block on average, some milliseconds of a
GPU's time; smaller blocks would cost more to hash, and larger ones would miss short system prompts."""

TOKENS_PER_BLOCK = 128
"""As we count them: nobody here knows the pods' tokenizers."""

MAX_BLOCKS = 512
"""Of one prompt. What comes after 256 KiB is not looked at."""

FINE_BLOCKS = 16
"""Of a prompt: each of them ends with a hash."""

BLOCKS_OF_A_RUN = 4
"""What comes behind is cut into runs of so many blocks, and each of those ends with a hash."""

LENGTHS: tuple[int, ...] = (
    *range(FINE_BLOCKS + 1),
    *range(FINE_BLOCKS + BLOCKS_OF_A_RUN, MAX_BLOCKS + 1, BLOCKS_OF_A_RUN),
)
"""Blocks that a prompt's first 0, 1, 2 … hashes stand for."""

KEY_BYTES = 512
"""How much of a session's name, or of a prompt, a key is made of."""

Seed = tuple[str | bytes, ...]
"""What keeps prompts apart that read alike but share no cache: the model, the adapter, the tools, a tenant's salt."""

_FINE_BYTES = FINE_BLOCKS * BLOCK_BYTES
_in_blocks = Struct(f"{BLOCK_BYTES}s").iter_unpack
_in_runs = Struct(f"{BLOCKS_OF_A_RUN * BLOCK_BYTES}s").iter_unpack


def blocks_of(text: bytes, seed: Seed, start: int = 0, end: int | None = None) -> tuple[int, ...]:
    """Chained hashes of a prompt's whole blocks, at most `MAX_BLOCKS`, and of its runs. They mean nothing outside this
    process.

    The prompt is what stands in the text from `start` to `end`: a large one is copied nowhere.
    """
    previous = hash(seed)
    count = min(((len(text) if end is None else end) - start) // BLOCK_BYTES, MAX_BLOCKS)
    whole = memoryview(text)[start : start + count * BLOCK_BYTES]
    if count <= FINE_BLOCKS:
        return tuple([previous := hash((previous, block)) for block in _in_blocks(whole)])
    hashes = [previous := hash((previous, block)) for block in _in_blocks(whole[:_FINE_BYTES])]
    runs = whole[_FINE_BYTES : len(whole) - (count - FINE_BLOCKS) % BLOCKS_OF_A_RUN * BLOCK_BYTES]
    hashes += [previous := hash((previous, run)) for run in _in_runs(runs)]
    return tuple(hashes)


def ends_of(chain: Sequence[int]) -> tuple[int, ...]:
    """Of hashes that end each single block, those that `blocks_of` would have made."""
    return tuple([chain[length - 1] for length in LENGTHS[1:] if length <= len(chain)])


def session_key(tenant: str, session: str) -> int:
    """64 bits of a session's name, for `Wish.key`; 0 without a name. One tenant's sessions are never another's."""
    return _key(b"session", tenant, session) if session else 0


def beginning_key(prompt: bytes, seed: Seed) -> int:
    """64 bits of the prompt's beginning, for `Wish.key` where there is no session; 0 without a prompt."""
    return _key(b"beginning", prompt, *seed) if prompt else 0


def uid_key(uid: str) -> int:
    """64 bits of a pod's uid, for `Standing.key`."""
    return _key(b"pod", uid)


def _key(purpose: bytes, *parts: str | bytes) -> int:
    said: list[bytes] = []
    for part in parts:
        # Cut before it is read: a name may be as long as a body. One out of JSON may hold half of a surrogate pair.
        raw = part[:KEY_BYTES].encode("utf-8", "surrogatepass") if isinstance(part, str) else part[:KEY_BYTES]
        said += b"%d:" % len(raw), raw
    digest = blake2b(b"".join(said), digest_size=8, person=purpose)
    # Odd, and so never 0, and the product of two keys (see `policy.session`) loses no bit of either.
    return int.from_bytes(digest.digest(), "big") | 1


_NOTED = tuple([(1 << power) - 1 for power in range(32)])
"""Places of the last hashes of a prompt's beginnings that are noted: those of 1, 2, 4, 8 … hashes."""


class _Believed:
    """One pod's cache."""

    __slots__ = ("blocks", "capacity", "gone", "held", "uid")

    def __init__(self, uid: str, capacity: int) -> None:
        self.uid = uid
        self.capacity = capacity
        self.blocks: dict[int, int] = {}
        """Hashes, and how many blocks each of them ends. The least recently used first."""
        self.held = 0
        """Blocks in all."""
        self.gone = False

    def shrink(self, most: int) -> None:
        """Forget the oldest, down to `most` blocks or some fewer."""
        if self.held <= most:
            return
        # Many at once: the first entry of a dict is found by walking over the gaps that earlier ones left.
        enough = most - most // 8
        oldest = []
        for block, length in self.blocks.items():
            oldest.append(block)
            self.held -= length
            if self.held <= enough:
                break
        for block in oldest:
            del self.blocks[block]


class PrefixIndex:
    """What each pod is believed to have cached, from what was sent there.

    A pod's blocks are a list by last use, as vLLM's are, and forgotten in the same order. A prompt's blocks are touched
    from the last to the first. So a block is always older than the one it follows, and is forgotten before it: whoever
    has a block has all before it, and the longest known beginning is found by halving.

    Bounded twice: a pod has at most its `capacity`, and the pods together at most `in_all`; where that is too little
    for all, each gets the same share. No pod gets more than a sixteenth, since a larger dict would hold up the event
    loop for a millisecond whenever Python rebuilds it.

    `holder` has a memory of its own, for pools too large to ask about each pod. To remember many prompts rather than
    every block of a few, it notes a prompt's end and the beginnings of 1, 2, 4, 8 … hashes. It is two dicts, of an
    eighth of `in_all` each: when the young one is full it becomes the old one, and the old one is dropped.
    """

    def __init__(self, capacity: int = 4096, in_all: int = 1 << 18) -> None:
        self._capacity = capacity
        self._in_all = in_all
        self._pods: dict[str, _Believed] = {}
        self._share = in_all // 16
        self._generation = in_all // 8
        self._young: dict[int, _Believed] = {}
        self._old: dict[int, _Believed] = {}

    def sent(self, uid: str, blocks: Sequence[int]) -> None:
        """A prompt of these hashes, as `blocks_of` makes them, went to the pod."""
        if not blocks:
            return
        pod = self._pod(uid)
        most = min(pod.capacity, self._share)
        if BLOCKS_OF_A_RUN * len(blocks) > most:
            blocks = blocks[: bisect_right(LENGTHS, most) - 1]
        known = pod.blocks
        forget = known.pop
        before = len(known)
        for block in reversed(blocks[FINE_BLOCKS:]):
            forget(block, 0)
            known[block] = BLOCKS_OF_A_RUN
        between = len(known)
        for block in reversed(blocks[:FINE_BLOCKS]):
            forget(block, 0)
            known[block] = 1
        pod.held += (between - before) * BLOCKS_OF_A_RUN + len(known) - between
        if pod.held > most:
            pod.shrink(most)
        if blocks:
            self._note(pod, blocks)

    def cached(self, uid: str, blocks: Sequence[int]) -> int:
        """How many blocks of the prompt's beginning the pod is believed to have."""
        pod = self._pods.get(uid)
        if pod is None or not blocks:
            return 0
        known = pod.blocks
        if blocks[0] not in known:
            return 0
        if blocks[-1] in known:
            return LENGTHS[len(blocks)]
        low, high = 1, len(blocks) - 1
        while low < high:
            middle = (low + high) >> 1
            if blocks[middle] in known:
                low = middle + 1
            else:
                high = middle
        return LENGTHS[low]

    def holder(self, blocks: Sequence[int]) -> str | None:
        """The pod that last got the longest beginning of these blocks that was noted, if it is still there."""
        young, old = self._young, self._old
        # A prompt's first block is noted whenever a later one is.
        if not blocks or (blocks[0] not in young and blocks[0] not in old):
            return None
        for block in reversed(blocks):
            pod = young.get(block) or old.get(block)
            if pod is not None and not pod.gone:
                return pod.uid
        return None

    def resize(self, uid: str, blocks: int) -> None:
        """The pod told how much its KV cache holds: so many blocks of `BLOCK_BYTES`."""
        pod = self._pod(uid)
        pod.capacity = blocks
        pod.shrink(min(blocks, self._share))

    def keep(self, uids: Collection[str]) -> None:
        """These are the pods there are. What is known of any other is forgotten: should it return, it starts anew."""
        left = self._pods.keys() - set(uids)
        for uid in left:
            pod = self._pods.pop(uid)
            pod.gone = True
            pod.blocks.clear()
            pod.held = 0
        if left:
            self._share_out()

    def _pod(self, uid: str) -> _Believed:
        pod = self._pods.get(uid)
        if pod is None:
            pod = self._pods[uid] = _Believed(uid, self._capacity)
            self._share_out()
        return pod

    def _share_out(self) -> None:
        self._share = self._in_all // max(16, len(self._pods))
        for pod in self._pods.values():
            pod.shrink(min(pod.capacity, self._share))

    def _note(self, pod: _Believed, blocks: Sequence[int]) -> None:
        if len(self._young) >= self._generation:
            self._old, self._young = self._young, {}
        young = self._young
        last = len(blocks) - 1
        for place in _NOTED:
            if place >= last:
                break
            young[blocks[place]] = pod
        young[blocks[last]] = pod
