"""The pool of KV blocks and what it remembers."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from loadtest.simulator.blocks import BlockPool


def test_a_prefix_is_found_again_after_its_sequence_has_ended() -> None:
    pool = BlockPool(10)
    pool.take([1, 2, 3], 4)
    pool.give_back([1, 2, 3], 4)

    assert pool.found([1, 2, 9]) == 2
    assert pool.in_use == 0


def test_a_prefix_is_shared_while_its_sequence_still_runs() -> None:
    pool = BlockPool(10)
    pool.take([1, 2], 3)
    pool.take([1, 2], 3)

    assert pool.found([1, 2]) == 2
    assert pool.in_use == 4  # two shared, two with the rest of each prompt


def test_a_hit_ends_at_the_first_block_that_differs() -> None:
    pool = BlockPool(10)
    pool.take([1, 2, 3], 3)

    assert pool.found([1, 7, 3]) == 1
    assert pool.found([7, 2, 3]) == 0


def test_the_blocks_of_an_answer_are_found_by_the_next_turn() -> None:
    pool = BlockPool(10)
    pool.take([1], 2)
    pool.grow()
    pool.give_back([1], 3, answered=[2, 3])

    assert pool.found([1, 2, 3, 4]) == 3


def test_the_least_recently_used_prefix_is_forgotten_first() -> None:
    pool = BlockPool(4)
    for chain in ([1, 2], [3, 4], [1, 2]):
        pool.take(chain, 2)
        pool.give_back(chain, 2)
    pool.take([5], 1)

    assert pool.found([1, 2]) == 2
    assert pool.found([3, 4]) == 1  # the tail went before the head


def test_blocks_in_use_are_never_forgotten() -> None:
    pool = BlockPool(2)
    pool.take([1, 2], 2)
    pool.take([3], 1)  # one too many: the pool reports more than it has

    assert pool.found([1, 2]) == 2
    assert pool.usage == 1.0


def test_usage_is_the_part_of_the_pool_that_running_sequences_hold() -> None:
    pool = BlockPool(8)
    pool.take([1], 2)

    assert pool.usage == 0.25


def test_room_counts_shared_blocks_once() -> None:
    pool = BlockPool(4)
    pool.take([1, 2], 3)

    assert pool.has_room([1, 2], 3)
    assert not pool.has_room([7, 8], 3)


def test_a_pool_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        BlockPool(0)


class PoolMachine(RuleBasedStateMachine):
    """Any order of arrivals, growth and ends: counts stay true and nothing in use is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12)
        self.held: list[tuple[tuple[int, ...], int]] = []

    sequences = Bundle("sequences")

    @rule(target=sequences, chain=st.lists(st.integers(0, 5), max_size=5, unique=True), more=st.integers(0, 3))
    def arrive(self, chain: list[int], more: int) -> list[object]:
        self.pool.take(chain, len(chain) + more)
        self.held.append((tuple(chain), len(chain) + more))
        return [tuple(chain), len(chain) + more]

    @rule(sequence=sequences)
    def grow(self, sequence: list[object]) -> None:
        chain, blocks = sequence
        assert isinstance(chain, tuple)
        assert isinstance(blocks, int)
        self.pool.grow()
        self.held.remove((chain, blocks))
        self.held.append((chain, blocks + 1))
        sequence[1] = blocks + 1

    @rule(sequence=consumes(sequences), answered=st.lists(st.integers(6, 12), max_size=3, unique=True))
    def end(self, sequence: list[object], answered: list[int]) -> None:
        chain, blocks = sequence
        assert isinstance(chain, tuple)
        assert isinstance(blocks, int)
        self.pool.give_back(chain, blocks, answered)
        self.held.remove((chain, blocks))

    @invariant()
    def what_is_held_is_counted_once_and_found(self) -> None:
        named = {block for chain, _ in self.held for block in chain}
        unnamed = sum(blocks - len(chain) for chain, blocks in self.held)
        assert self.pool.in_use == len(named) + unnamed
        assert all(self.pool.found(chain) == len(chain) for chain, _ in self.held)

    @invariant()
    def idle_blocks_only_fill_what_is_left(self) -> None:
        assert self.pool.remembered <= max(self.pool.capacity - self.pool.in_use, 0)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=30)
