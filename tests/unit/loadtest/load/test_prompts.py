"""What is said: texts of the length that was asked, alike at the beginning only where they are meant to be."""

import random

from hypothesis import example, given
from hypothesis import strategies as st

from loadtest.load.lengths import Even, Fixed
from loadtest.load.plan import Prompt
from loadtest.load.prompts import BYTES_PER_TOKEN, SEA_WORDS, WORDS, Message, Sea, Talk

SEA = Sea(random.Random("sea"))


def talk(prompt: Prompt, *callers: str) -> Talk:
    return Talk(prompt, callers or ("me",), SEA, random.Random("talk"))


@given(st.integers(1, 3 * SEA_WORDS), st.integers())
def test_a_text_has_so_many_words_and_four_bytes_each(tokens: int, seed: int) -> None:
    text = SEA.text(tokens, random.Random(seed))
    assert len(text) == tokens * BYTES_PER_TOKEN - 1
    assert set(text.split(" ")) <= set(WORDS)


def test_texts_begin_differently() -> None:
    rng = random.Random(1)
    beginnings = {SEA.text(100, rng)[: 16 * BYTES_PER_TOKEN] for _ in range(20_000)}
    assert len(beginnings) == 20_000


def test_each_word_has_three_letters_and_stands_once() -> None:
    assert {len(word) for word in WORDS} == {3}
    assert len(set(WORDS)) == len(WORDS)


def test_without_families_and_turns_each_prompt_is_one_new_question() -> None:
    alone = talk(Prompt(Fixed(50)))
    said = [alone.speak(None, 10)[1] for _ in range(50)]
    assert {len(messages) for messages in said} == {1}
    assert {(messages[0].role, messages[0].tokens) for messages in said} == {("user", 50)}
    assert len({messages[0].text for messages in said}) == 50


def test_a_family_shares_its_system_prompt() -> None:
    families = talk(Prompt(Fixed(5), families=3, system_tokens=Fixed(64)))
    said = [families.speak(None, 10)[1] for _ in range(100)]
    systems = {messages[0].text for messages in said}
    assert len(systems) == 3
    assert {messages[0].role for messages in said} == {"system"}


def test_zipf_asks_the_first_family_most() -> None:
    families = talk(Prompt(Fixed(5), families=10, popularity="zipf"))
    said = [families.speak(None, 10)[1][0].text for _ in range(5000)]
    counts = sorted((said.count(text) for text in set(said)), reverse=True)
    harmonic = sum(1 / place for place in range(1, 11))
    assert abs(counts[0] - 5000 / harmonic) < 300
    assert counts[0] > 1.5 * counts[1]


@example(turns=2, conversations=7, families=0, seed=1363)
@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 2), st.integers())
def test_a_turn_begins_with_the_turn_before_and_no_conversation_is_longer_than_its_turns(
    turns: int, conversations: int, families: int, seed: int
) -> None:
    prompt = Prompt(Even(1, 9), families=families, turns=turns, conversations=conversations)
    talking = Talk(prompt, ("a", "b"), SEA, random.Random(seed))
    head = min(families, 1)
    heard: dict[tuple[Message, ...], list[str]] = {}
    for _ in range(80):
        caller, messages = talking.speak(None, 4)
        assert [message.role for message in messages[head:]] == (["user", "assistant"] * turns)[: len(messages) - head]
        assert len(messages) - head <= 2 * turns - 1
        if len(messages) - head > 1:
            # The turn before was said by the same caller, and nobody goes on from it a second time. Of texts so short
            # two may begin alike.
            heard[messages[:-2]].remove(caller)
        heard.setdefault(messages, []).append(caller)


def test_nobody_goes_on_before_they_have_thought() -> None:
    talking = talk(Prompt(Fixed(3), turns=50, conversations=2, thinking_seconds=5.0))
    spoke: dict[tuple[Message, ...], float] = {}
    for tick in range(200):
        at = tick * 0.1
        _, messages = talking.speak(at, 4)
        if len(messages) > 1:
            assert at >= spoke[messages[:-2]] + 5.0
        spoke[messages] = at
    assert any(len(messages) > 3 for messages in spoke)
