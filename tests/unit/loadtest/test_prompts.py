"""Prompts as an engine sees them."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from loadtest.simulator.answers import draw_answer
from loadtest.simulator.prompts import Prompt, answered_chain, read_prompt, render_chat, render_token_ids

SYSTEM = ("system", "You are a helpful assistant who answers at some length. " * 4)


def prompt_of(*messages: tuple[str, str], salt: object = None) -> Prompt:
    return read_prompt(render_chat(list(messages)), block_size_tokens=16, salt=salt)


def test_four_bytes_are_a_token_and_a_message_costs_a_few_more() -> None:
    short, long = prompt_of(("user", "x" * 40)), prompt_of(("user", "x" * 80))

    assert long.tokens - short.tokens == 10
    assert 10 < short.tokens < 30


def test_token_ids_count_as_themselves() -> None:
    assert read_prompt(render_token_ids([5, 6, 7]), block_size_tokens=16, salt=None).tokens == 3


def test_full_blocks_have_names_and_the_rest_is_the_tail() -> None:
    prompt = read_prompt(b"x" * 150, block_size_tokens=16, salt=None)

    assert len(prompt.chain) == 2
    assert prompt.tail == b"x" * 22


def test_prompts_with_the_same_beginning_share_names_up_to_where_they_part() -> None:
    one, other = prompt_of(SYSTEM, ("user", "one")), prompt_of(SYSTEM, ("user", "other"))

    shared = len(SYSTEM[1]) // 64
    assert one.chain[:shared] == other.chain[:shared]
    assert one.key != other.key


def test_a_name_covers_all_that_came_before() -> None:
    one = read_prompt(b"a" * 64 + b"same" * 16, block_size_tokens=16, salt=None)
    other = read_prompt(b"b" * 64 + b"same" * 16, block_size_tokens=16, salt=None)

    assert one.chain[1] != other.chain[1]


def test_another_salt_shares_nothing() -> None:
    assert not set(prompt_of(SYSTEM, salt="a").chain) & set(prompt_of(SYSTEM, salt="b").chain)


@given(
    st.lists(
        st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text(max_size=200)), min_size=1, max_size=4
    ),
    st.text(max_size=50),
    st.integers(1, 120),
)
def test_the_next_turn_begins_with_this_turn_and_its_answer(
    messages: list[tuple[str, str]], follow_up: str, tokens: int
) -> None:
    prompt = prompt_of(*messages)
    answer = draw_answer(seed=1, prompt_key=prompt.key, choice=0, max_tokens=tokens, natural_tokens=None)
    text = "".join(_plain(piece) for piece in answer.pieces)

    turn = (*prompt.chain, *answered_chain(prompt, answer.pieces, block_size_tokens=16))
    next_turn = prompt_of(*messages, ("assistant", text), ("user", follow_up))

    assert next_turn.chain[: len(turn)] == turn


def _plain(piece: bytes) -> str:
    text: str = json.loads(b'"%b"' % piece)
    return text
