"""Numbers, ages and lines as a reader sees them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.page.drawing import (
    NOTHING,
    age,
    bar,
    ceiling,
    dot,
    line,
    meter,
    milliseconds,
    moment,
    named,
    number,
    percent,
    text,
    with_ages,
)
from tests.saying import EVIL


def test_text_from_outside_is_never_html() -> None:
    for written in (text(EVIL), dot(EVIL, EVIL), meter(0.5, EVIL), age(EVIL), moment(EVIL)):
        assert "<img" not in written
        assert '"alert' not in written


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, NOTHING), (0, "0"), (1234567, "1,234,567"), (0.0, "0.0"), (20.567, "20.6"), (5120.4, "5,120")],
)
def test_a_number_has_as_many_digits_as_one_reads(value: float | None, words: str) -> None:
    assert number(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, NOTHING),
        (0.4, "0<small> ms</small>"),
        (81.2, "81<small> ms</small>"),
        (999.6, "1.00<small> s</small>"),
        (1412.5, "1.41<small> s</small>"),
        (12_000.0, "12.0<small> s</small>"),
        (600_000.0, "600<small> s</small>"),
    ],
)
def test_a_duration_is_in_the_unit_one_would_say_it_in(value: float | None, words: str) -> None:
    assert milliseconds(value) == words


@pytest.mark.parametrize(("share", "words"), [(0.0, "0%"), (0.004, "&lt;1%"), (0.515, "52%"), (1.0, "100%")])
def test_a_little_is_not_nothing(share: float, words: str) -> None:
    assert percent(share) == words


def test_an_age_is_left_to_the_reader_and_written_for_who_has_no_script() -> None:
    since = age("2026-01-01T00:00:00Z")
    assert since == '<time data-age datetime="2026-01-01T00:00:00Z"></time>'
    assert with_ages(f"up {since}.", "2026-01-01T00:03:20Z") == (
        'up <time data-age datetime="2026-01-01T00:00:00Z">3m 20s</time>.'
    )
    assert age(None) == ""


@given(st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_ids_are_the_same_for_the_same_names_only(names: list[str], others: list[str]) -> None:
    assert (named("pod", *names) == named("pod", *others)) == (chr(0).join(names) == chr(0).join(others))
    assert named("pod", *names).removeprefix("pod-").isalnum()


@pytest.mark.parametrize(
    ("highest", "top"),
    [(0, 5), (5, 5), (6, 6), (7, 8), (11, 12), (13, 15), (55, 60), (100, 100), (101, 120), (999, 1000)],
)
def test_a_scale_ends_at_a_round_number(highest: int, top: int) -> None:
    assert ceiling(highest) == top


@given(st.integers(0, 10**9))
def test_a_scale_holds_what_it_is_for(highest: int) -> None:
    assert highest <= ceiling(highest) <= max(5, 1.4 * highest)


@given(st.lists(st.integers(0, 1000), max_size=40))
def test_a_line_stays_within_its_box(history: list[int]) -> None:
    points = line(history, ceiling(max(history, default=0))).partition('points="')[2].partition('"')[0]
    for point in points.split():
        x, y = map(float, point.split(","))
        assert 0 <= x <= 87
        assert 1 <= y <= 15


@pytest.mark.parametrize(("share", "level"), [(0.5, ""), (0.8, "warning"), (0.949, "warning"), (0.95, "error")])
def test_a_meter_tells_its_level_to_the_eye_and_to_the_ear(share: float, level: str) -> None:
    drawn = meter(share, "KV cache of chat-0")
    assert f'class="bar {level}"' in drawn
    assert f'aria-valuenow="{share * 100:.0f}"' in drawn


def test_a_bar_is_no_longer_than_its_whole() -> None:
    assert 'width="43.0"' in bar(0.43)
    assert 'width="100.0"' in bar(3.0)
    assert 'width="0.0"' in bar(-1.0)
