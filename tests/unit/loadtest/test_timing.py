"""The arithmetic of time, by itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.simulator.timing import TimeModel, prefill_shares

TENTHS = TimeModel(step_seconds=0.1, step_seconds_per_sequence=0.01, prefill_seconds_per_token=0.001)


def test_a_step_costs_its_fixed_part_its_sequences_and_its_prompt_tokens() -> None:
    assert TENTHS.step(decoding=0, prefill_tokens=0) == pytest.approx(0.1)
    assert TENTHS.step(decoding=5, prefill_tokens=0) == pytest.approx(0.15)
    assert TENTHS.step(decoding=5, prefill_tokens=200) == pytest.approx(0.35)


def test_a_larger_batch_makes_each_token_later_but_more_of_them() -> None:
    alone, crowded = TENTHS.step(decoding=1, prefill_tokens=0), TENTHS.step(decoding=100, prefill_tokens=0)

    assert crowded > alone
    assert 100 / crowded > 1 / alone


def test_a_slower_engine_is_slower_in_every_part() -> None:
    assert TENTHS.scaled(3).step(decoding=7, prefill_tokens=70) == pytest.approx(
        3 * TENTHS.step(decoding=7, prefill_tokens=70)
    )


def test_negative_times_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        TimeModel(step_seconds=-1)


def test_a_long_prompt_is_computed_in_several_steps() -> None:
    assert prefill_shares([1000], decoding=0, max_batched_tokens=400) == [400]


def test_sequences_that_decode_take_their_token_from_the_step_s_budget() -> None:
    assert prefill_shares([1000], decoding=100, max_batched_tokens=400) == [300]


def test_the_first_prompt_is_served_before_the_second() -> None:
    assert prefill_shares([300, 300], decoding=0, max_batched_tokens=400) == [300, 100]


def test_a_prompt_moves_on_even_if_decoding_takes_the_whole_budget() -> None:
    assert prefill_shares([300], decoding=500, max_batched_tokens=400) == [1]


@given(st.lists(st.integers(1, 5000), max_size=20), st.integers(0, 300), st.integers(1, 8192))
def test_shares_never_exceed_the_budget_nor_the_prompt_nor_jump_the_line(
    left: list[int], decoding: int, budget: int
) -> None:
    shares = prefill_shares(left, decoding=decoding, max_batched_tokens=budget)

    assert sum(shares) <= max(budget - decoding, 1)
    assert all(0 <= share <= tokens for share, tokens in zip(shares, left, strict=True))
    unfinished = [share < tokens for share, tokens in zip(shares, left, strict=True)]
    assert all(share == 0 for share in shares[unfinished.index(True) + 1 :]) if any(unfinished) else True
    assert sum(shares) >= 1 if left else shares == []
