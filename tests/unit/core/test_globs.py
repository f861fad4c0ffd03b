"""Whether two globs overlap, by example; for any two of them: tests/property/test_globs.py."""

import pytest

from gateway.core.globs import Overlap, name_in_both, overlaps, parts_of


@pytest.mark.parametrize(
    ("glob", "parts"),
    [
        ("", []),
        ("a*?", ["a", "*", "?"]),
        ("[a-c]x", ["[a-c]", "x"]),
        ("[!a]]", ["[!a]", "]"]),
        ("[]a]b", ["[]a]", "b"]),
        ("[!]a]b", ["[!]a]", "b"]),
        ("[abc", ["[", "a", "b", "c"]),
        ("[]", ["[", "]"]),
        ("[!]", ["[", "!", "]"]),
        ("[", ["["]),
        ("[*]", ["[*]"]),
    ],
)
def test_a_glob_is_cut_as_fnmatch_reads_it(glob: str, parts: list[str]) -> None:
    assert list(parts_of(glob)) == parts


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        ("qwen*", "*8b", "qwen8b"),
        ("qwen*", "*wen3", "qwen3"),
        ("qwen3-8b", "qwen*", "qwen3-8b"),
        ("qwen3-8b", "qwen3-8b", "qwen3-8b"),
        ("a?c", "ab?", "abc"),
        ("*", "?", "x"),
        ("*a*", "*b*", "ab"),
        ("[a-c]", "[c-e]", "c"),
        ("[!a]", "[!b]", "x"),
        ("[!\0-y]", "[!{-\U0010ffff]", "z"),
        ("[*]", "?", "*"),
        ("*", "", ""),
    ],
)
def test_globs_that_overlap_give_a_name(one: str, other: str, name: str) -> None:
    assert name_in_both(one, other) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("qwen*", "llama*"),
        ("*-8b", "*-4b"),
        ("qwen", "Qwen"),
        ("a", ""),
        ("?", "??"),
        ("a*b", "a*c"),
        ("[a-c]", "[d-f]"),
        ("[!a]", "a"),
        ("[!a-z]", "[a-z]"),
        ("[z-a]", "*"),
        ("*[z-a]", "*"),
    ],
)
def test_globs_apart_give_none(one: str, other: str) -> None:
    assert name_in_both(one, other) is None
    assert name_in_both(other, one) is None


def test_long_globs_of_many_stars_are_told_quickly() -> None:
    assert name_in_both("*a" * 60 + "x", "*b" * 60 + "y") is None


def test_every_overlap_between_two_pools_is_told_and_none_within_one() -> None:
    found = overlaps({"a": ("qwen*", "qwen3-*"), "b": ("llama*",), "c": ("*-8b",)})
    assert found == (
        Overlap("a", "qwen*", "c", "*-8b", "qwen-8b"),
        Overlap("a", "qwen3-*", "c", "*-8b", "qwen3-8b"),
        Overlap("b", "llama*", "c", "*-8b", "llama-8b"),
    )
    assert overlaps({"a": ("x",), "b": ("y",)}) == overlaps({}) == ()
