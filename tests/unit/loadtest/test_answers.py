"""What the simulated model says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.simulator.answers import VOCABULARY, Answer, draw_answer


def draw(
    key: bytes = b"prompt",
    *,
    seed: int = 0,
    choice: int = 0,
    max_tokens: int = 50,
    natural_tokens: tuple[int, int] | None = None,
    stop: tuple[str, ...] = (),
) -> Answer:
    return draw_answer(
        seed=seed, prompt_key=key, choice=choice, max_tokens=max_tokens, natural_tokens=natural_tokens, stop=stop
    )


def text_of(answer: Answer) -> str:
    return "".join(json.loads(b'"%b"' % piece) for piece in answer.pieces)


def test_one_byte_draws_one_word() -> None:
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 256


def test_some_words_are_hard_to_carry() -> None:
    everything = "".join(VOCABULARY)

    assert any(ord(letter) > 0xFFFF for letter in everything)
    assert any(0x7F < ord(letter) <= 0xFFFF for letter in everything)
    assert all(hard in everything for hard in ('"', "\\", "\n", "[DONE]", "data:"))


def test_the_same_seed_and_prompt_give_the_same_answer() -> None:
    assert draw() == draw()


@pytest.mark.parametrize("other", [draw(b"another"), draw(seed=1), draw(choice=1)])
def test_another_prompt_seed_or_choice_gives_another_answer(other: Answer) -> None:
    assert other != draw()


def test_a_longer_answer_begins_with_the_shorter_one() -> None:
    assert text_of(draw(max_tokens=80)).startswith(text_of(draw(max_tokens=20)))


def test_a_limit_alone_is_met_exactly() -> None:
    answer = draw(max_tokens=33)

    assert (len(answer.pieces), answer.finish_reason) == (33, "length")


@given(st.binary(max_size=20), st.integers(1, 40), st.integers(0, 40))
def test_natural_lengths_stay_in_their_range(key: bytes, shortest: int, more: int) -> None:
    answer = draw(key, max_tokens=1000, natural_tokens=(shortest, shortest + more))

    assert shortest <= len(answer.pieces) <= shortest + more
    assert answer.finish_reason == "stop"


def test_natural_lengths_differ_from_prompt_to_prompt() -> None:
    lengths = {len(draw(b"%d" % n, max_tokens=1000, natural_tokens=(10, 60)).pieces) for n in range(200)}

    assert len(lengths) > 40


def test_a_limit_below_the_natural_length_wins() -> None:
    assert draw(max_tokens=5, natural_tokens=(10, 20)).finish_reason == "length"


@given(st.integers(0, 45), st.integers(1, 6), st.integers(0, 1000))
def test_an_answer_ends_before_its_stop_string_and_counts_the_token_that_completed_it(
    start: int, width: int, seed: int
) -> None:
    whole = text_of(draw(seed=seed))
    stop = whole[start : start + width]

    answer = draw(seed=seed, stop=(stop,))

    expected = whole[: whole.find(stop)] if stop else whole
    assert text_of(answer) == expected
    if stop:
        assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
        ends = whole.find(stop) + len(stop)
        assert len(text_of(draw(seed=seed, max_tokens=len(answer.pieces)))) >= ends
        assert (
            len(text_of(draw(seed=seed, max_tokens=len(answer.pieces) - 1))) < ends if len(answer.pieces) > 1 else True
        )


def test_of_several_stop_strings_the_one_that_ends_first_counts() -> None:
    whole = text_of(draw())
    late, early = whole[60:64], whole[20:24]

    assert draw(stop=(late, early)).stop_reason == draw(stop=(early, late)).stop_reason == early


def test_a_stop_string_that_never_comes_changes_nothing() -> None:
    assert draw(stop=("§",)) == draw()
