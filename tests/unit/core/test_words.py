"""Durations have two units; a string from outside can be written as UTF-8."""

import pytest

from gateway.core.words import how_long, readable


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0s"),
        (0, "0s"),
        (0.9, "0s"),
        (59.9, "59s"),
        (60, "1m 0s"),
        (200, "3m 20s"),
        (3599, "59m 59s"),
        (3600, "1h 0m"),
        (86_399, "23h 59m"),
        (86_400, "1d 0h"),
        (90_061, "1d 1h"),
        (10_000_000, "115d 17h"),
    ],
)
def test_a_duration_has_two_units(seconds: float, words: str) -> None:
    assert how_long(seconds) == words


def test_what_utf8_cannot_say_is_replaced_and_what_is_too_long_is_cut() -> None:
    assert readable("a\ud800b") == "a?b"
    assert readable("a\ud800bc", 3) == "a?b"
