"""The KV cache: a pool of blocks, of which idle ones still hold prefixes until they are needed.

As in vLLM's automatic prefix caching, a block is named by a hash that covers its own tokens and, through the
chain, all tokens before it; so a hit on the n-th block implies hits on all earlier ones. Blocks of running
sequences are counted references. A block nobody refers to keeps its content and is evicted least recently
used first. Within one sequence the tail goes first, since it is less likely to be shared than the head.

Not here: preemption. When running sequences outgrow the pool it reports more than it has, and usage reads 1.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class BlockPool:
    """Counts blocks in use and remembers which prefixes idle blocks hold. Sizes are in blocks."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a pool needs at least one block, got {capacity}")
        self.capacity = capacity
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._references: dict[int, int] = {}
        self._unnamed = 0

    @property
    def in_use(self) -> int:
        return len(self._references) + self._unnamed

    @property
    def usage(self) -> float:
        """0 to 1, as `vllm:kv_cache_usage_perc`."""
        return min(self.in_use / self.capacity, 1.0)

    @property
    def remembered(self) -> int:
        """Idle blocks whose content can still be found."""
        return len(self._idle)

    def found(self, chain: Sequence[int]) -> int:
        """How many blocks of `chain`, from its start, need not be computed."""
        count = 0
        for block in chain:
            if block not in self._idle and block not in self._references:
                break
            count += 1
        return count

    def has_room(self, chain: Sequence[int], blocks: int) -> bool:
        """Whether a sequence of `blocks` blocks, the first named by `chain`, fits beside the running ones."""
        shared = sum(1 for block in chain if block in self._references)
        return self.in_use + blocks - shared <= self.capacity

    def take(self, chain: Sequence[int], blocks: int) -> None:
        """Hold `blocks` blocks, the first of them named by `chain`."""
        for block in chain:
            references = self._references.get(block, 0)
            if not references:
                self._idle.pop(block, None)
            self._references[block] = references + 1
        self._unnamed += blocks - len(chain)
        self._evict()

    def grow(self) -> None:
        """A running sequence needs one block more."""
        self._unnamed += 1
        self._evict()

    def give_back(self, chain: Sequence[int], blocks: int, answered: Sequence[int] = ()) -> None:
        """Let go of what `take` and `grow` held: `blocks` in all. `answered` names full blocks of the answer."""
        self._unnamed -= blocks - len(chain)
        for block in reversed(answered):
            if block not in self._references:
                self._idle[block] = None
                self._idle.move_to_end(block)
        for block in reversed(chain):
            references = self._references[block] - 1
            if references:
                self._references[block] = references
                continue
            del self._references[block]
            self._idle[block] = None
            self._idle.move_to_end(block)
        self._evict()

    def forget(self) -> bool:
        """Empty the cache, unless blocks are in use; whether it was done."""
        if self.in_use:
            return False
        self._idle.clear()
        return True

    def _evict(self) -> None:
        while self._idle and len(self._idle) + self.in_use > self.capacity:
            self._idle.popitem(last=False)
