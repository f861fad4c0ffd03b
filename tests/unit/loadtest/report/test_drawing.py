"""Scales and ticks: round, in sight, and where they say they are."""

import itertools
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.report import drawing as draw

VALUES = st.floats(min_value=1e-3, max_value=1e6)


@given(st.lists(VALUES, min_size=1))
def test_every_value_lies_on_its_scale(values: list[float]) -> None:
    for scale in (draw.even(values, 200, 20), draw.logarithmic(values, 200, 20)):
        assert scale.low <= min(values) * 1.002
        assert scale.high >= max(values) * 0.998
        assert all(20 <= scale(value) <= 200 for value in values)
        drawn = [scale(value) for value in sorted(values)]
        assert drawn == sorted(drawn, reverse=True)


@given(st.lists(VALUES, min_size=1), st.integers(min_value=4, max_value=10))
def test_a_scale_has_a_few_ticks_and_all_lie_on_it(values: list[float], most: int) -> None:
    for scale in (draw.even(values, 0, 100), draw.logarithmic(values, 0, 100)):
        ticks = scale.ticks(most)
        assert 1 < len(ticks) <= 12
        assert all(scale.low * 0.999 <= tick <= scale.high * 1.001 for tick in ticks)


def test_ticks_are_round() -> None:
    assert draw.even([57], 0, 1).ticks() == [0, 10, 20, 30, 40, 50, 60]
    assert draw.even([0.3], 0, 1).ticks(4) == [0, 0.1, 0.2, 0.3]
    assert draw.logarithmic([3, 40], 0, 1).ticks() == [2, 5, 10, 20, 50]
    assert draw.logarithmic([3, 40_000], 0, 1).ticks() == [10, 100, 1000, 10_000]


def test_a_small_difference_does_not_fill_a_logarithmic_scale() -> None:
    scale = draw.logarithmic([10.0, 10.1], 0, 100)
    assert scale.high / scale.low >= 5


def test_nothing_at_all_still_has_a_scale() -> None:
    assert draw.even([], 0, 1).high > 0
    assert draw.logarithmic([], 0, 1).high > draw.logarithmic([], 0, 1).low > 0


@given(st.lists(st.floats(min_value=0, max_value=500), min_size=1, max_size=8))
def test_words_at_the_ends_of_lines_do_not_lie_on_each_other(places: list[float]) -> None:
    moved = draw.apart(places, 14)
    assert all(b - a >= 14 - 1e-6 for a, b in itertools.pairwise(sorted(moved)))
    order = sorted(range(len(places)), key=lambda number: places[number])
    assert [moved[number] for number in order] == sorted(moved)


def test_words_that_are_far_apart_stay_where_they_are() -> None:
    assert draw.apart([10, 100, 50], 14) == [10, 100, 50]
    assert draw.apart([], 14) == []


def test_a_gap_lifts_the_pen_and_a_lonely_point_is_seen() -> None:
    assert 'd="M0 0L1 1M3 3h2"' in draw.line([(0, 0), (1, 1), None, (3, 3)], "blue")


@pytest.mark.parametrize("hostile", ["<script>", "a & b", '"quoted"', "]]>"])
def test_words_cannot_become_markup(hostile: str) -> None:
    drawn = draw.sheet(hostile, 100, [draw.words(0, 0, hostile)])
    root = ET.fromstring(drawn)
    assert [element.text for element in root if element.tag.endswith(("title", "text"))] == [hostile, hostile]


def test_pixels_are_short_and_have_no_negative_zero() -> None:
    assert [draw.px(value) for value in (1.0, 1.26, 100.04, -0.01)] == ["1", "1.3", "100", "0"]


def test_every_ink_has_a_colour_in_both_themes() -> None:
    drawn = draw.sheet("themes", 10, [])
    light, _, dark = drawn.partition("prefers-color-scheme:dark")
    for ink in (*draw.SERIES, "paper", "ink", "soft", "grid", "red", "amber", "grey"):
        assert f".f-{ink}{{" in light
        assert f".f-{ink}{{" in dark
