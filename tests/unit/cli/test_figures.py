"""Numbers as operators read them."""

import pytest

from gateway.cli.figures import BARS, counted, duration, meter, number, percent, rate, sparkline


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (number(None), "-"),
        (number(0), "0"),
        (number(1234567), "1,234,567"),
        (counted(0, "pod"), "0 pods"),
        (counted(1, "pod"), "1 pod"),
        (counted(2, "pod"), "2 pods"),
        (percent(None), "-"),
        (percent(0.876), "88"),
        (rate(None), "-"),
        (rate(0.04), "0.0"),
        (rate(20.567), "20.6"),
        (rate(99.94), "99.9"),
        (rate(99.96), "100"),
        (rate(5120.4), "5,120"),
        (duration(None), "-"),
        (duration(812.4), "812 ms"),
    ],
)
def test_a_figure_is_short_and_what_is_not_known_has_a_sign(shown: str, words: str) -> None:
    assert shown == words


@pytest.mark.parametrize(
    ("history", "width", "bars"),
    [
        ([], 5, ""),
        ([0, 0], 5, "▁▁"),
        ([1, 2, 3, 4, 5, 6, 7], 9, "▂▃▄▅▆▇█"),
        ([9, 0, 1], 2, "▁█"),
        ([1000, 1], 2, "█▂"),
        ([1, 2], 0, ""),
    ],
)
def test_bars_are_as_tall_as_what_they_stand_for(history: list[int], width: int, bars: str) -> None:
    assert sparkline(history, width) == bars
    assert set(bars) <= set(BARS)


@pytest.mark.parametrize(("part", "shown"), [(0, "····"), (0.5, "██··"), (1, "████"), (7, "████"), (-1, "····")])
def test_a_meter_is_full_at_one_and_never_longer(part: float, shown: str) -> None:
    assert meter(part, 4) == shown
