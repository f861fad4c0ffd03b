"""A text for a regular expression."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.simulator.patterns import BadPattern, check_pattern, matching

PIECES = st.sampled_from(
    ["a", r"\d", r"\w", "[A-C]", "[^x]", r"\.", "(?:b|c)", "(d)", r"[\d_-]", "[a-z0-9]", r"\n", "."]
)
QUANTIFIERS = st.sampled_from(["", "?", "*", "+", "{2}", "{1,3}", "{2,}", "+?"])
PATTERNS = st.lists(st.tuples(PIECES, QUANTIFIERS).map("".join), min_size=1, max_size=5).map("".join)


@given(PATTERNS, PATTERNS, st.integers())
def test_the_text_matches_whatever_the_luck(one: str, other: str, seed: int) -> None:
    pattern = f"{one}|({other}){{1,2}}"

    assert re.fullmatch(pattern, matching(pattern, Random(seed)), re.DOTALL)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\d{4}-\d{2}$",
        r"(?P<year>\d+)",
        r"\x41é",
        r"\bcat\b",
        "",
        "[]a]",
        "[a-]",
        r"\{\"city\": \"[A-Z][a-z]{2,9}\"\}",
    ],
)
def test_what_schemas_and_grammars_use_is_understood(pattern: str) -> None:
    for seed in range(20):
        assert re.fullmatch(pattern, matching(pattern, Random(seed)))


def test_the_same_chance_gives_the_same_text() -> None:
    assert matching(r"\w{12}", Random(3)) == matching(r"\w{12}", Random(3))


def test_what_is_no_pattern_is_refused_with_its_place() -> None:
    with pytest.raises(BadPattern, match=r"(?s)invalid regex \"a\[\".*\n     \^\nerror: "):
        check_pattern("a[")
