"""For any two globs: the name that is given matches both, and if none is given no name does."""

from fnmatch import fnmatchcase
from itertools import product

from hypothesis import assume, example, given
from hypothesis import strategies as st

from gateway.core.globs import name_in_both

LETTERS = "abc-!]["
GLOBS = st.lists(
    st.sampled_from(["*", "?", *LETTERS, "[ab]", "[!a]", "[b-]", "[a-b]", "[c-a]", "[]b]", "[!]", "[!c-a]", "[a-c-]"]),
    max_size=6,
).map("".join)
NAMES = st.text(LETTERS, max_size=6)
SHORT_NAMES = ["".join(letters) for length in range(5) for letters in product("abcx-]", repeat=length)]


ODD_GLOBS = st.text("*?[]!-abc\\^&~|", max_size=8)


@given(GLOBS | ODD_GLOBS, GLOBS | ODD_GLOBS)
@example("[--a]", "[!-]")
def test_a_name_that_is_given_matches_both_and_else_no_short_one_does(one: str, other: str) -> None:
    name = name_in_both(one, other)
    if name is not None:
        assert fnmatchcase(name, one)
        assert fnmatchcase(name, other)
    else:
        assert [name for name in SHORT_NAMES if fnmatchcase(name, one) and fnmatchcase(name, other)] == []


@given(GLOBS, GLOBS, NAMES)
def test_globs_that_one_name_matches_overlap(one: str, other: str, name: str) -> None:
    if fnmatchcase(name, one) and fnmatchcase(name, other):
        assert name_in_both(one, other) is not None


@given(NAMES, st.data())
def test_two_globs_made_from_one_name_overlap(name: str, data: st.DataObject) -> None:
    def glob() -> str:
        choices = [st.sampled_from(["?", "*", "**", "[!y]", f"[{letter}x]"]) for letter in name]
        return "".join(data.draw(choice) for choice in choices)

    one, other = glob(), glob()
    assume(fnmatchcase(name, one) and fnmatchcase(name, other))
    assert name_in_both(one, other) is not None


@given(NAMES.filter(lambda name: not set(name) & set("*?[")), GLOBS)
def test_a_literal_overlaps_with_what_matches_it(name: str, glob: str) -> None:
    assert (name_in_both(name, glob) is not None) == fnmatchcase(name, glob)


@given(GLOBS, GLOBS)
def test_it_does_not_matter_which_comes_first(one: str, other: str) -> None:
    assert (name_in_both(one, other) is None) == (name_in_both(other, one) is None)
