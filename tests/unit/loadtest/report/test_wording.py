"""Figures are short, and no rounding says more than is true."""

import pytest

from loadtest.report import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5234, "0.523"),
        (12.34, "12.3"),
        (99.97, "100"),
        (1234.5, "1,234"),
        (0.0001, "< 0.001"),
        (-0.5, "-0.5"),
    ],
)
def test_three_digits_are_enough(value: float, text: str) -> None:
    assert wording.digits(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5 ms"), (999.4, "999 ms"), (1500, "1.5 s"), (123_456, "123 s"), (None, "–")]
)
def test_a_long_time_is_told_in_seconds(value: float | None, text: str) -> None:
    assert wording.milliseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "100 %"), (0.9999, "> 99.9 %"), (0.99, "99 %"), (0.0, "0 %"), (0.00001, "< 0.01 %"), (None, "–")],
)
def test_nearly_all_is_not_all_and_nearly_nothing_not_nothing(value: float | None, text: str) -> None:
    assert wording.share(value) == text
