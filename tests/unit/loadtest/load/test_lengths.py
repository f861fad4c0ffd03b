"""How long prompts and answers are, and that the profiles are what their page says."""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.load import lengths
from loadtest.load.lengths import PROFILES, Even, Fixed, Lengths, LogNormal

DRAWN = 40_000


def drawn(of: Lengths, count: int = DRAWN) -> list[int]:
    rng = random.Random("lengths")
    return [of.draw(rng) for _ in range(count)]


def test_fixed_is_always_the_same() -> None:
    assert set(drawn(Fixed(7), 10)) == {7}


def test_even_reaches_both_ends_and_nothing_else() -> None:
    assert set(drawn(Even(3, 5), 200)) == {3, 4, 5}


def test_a_log_normal_has_its_median_and_its_sigma() -> None:
    logarithms = [math.log(each) for each in drawn(LogNormal(1000, 0.7))]
    assert math.exp(statistics.median(logarithms)) == pytest.approx(1000, rel=0.02)
    assert statistics.stdev(logarithms) == pytest.approx(0.7, rel=0.02)


@given(st.floats(0.1, 1e5), st.floats(0, 4), st.integers(1, 50), st.integers(0, 100), st.integers())
def test_what_falls_outside_is_set_to_the_bounds(median: float, sigma: float, least: int, more: int, seed: int) -> None:
    bounded = LogNormal(median, sigma, least, least + more)
    assert least <= bounded.draw(random.Random(seed)) <= least + more


@given(st.floats(0.001, 1e5), st.integers())
def test_nothing_is_shorter_than_a_token(median: float, seed: int) -> None:
    assert LogNormal(median, 3.0).draw(random.Random(seed)) >= 1


def test_scaling_keeps_the_shape() -> None:
    scaled = LogNormal(1000, 0.7, at_most=4000).scaled(0.25)
    assert (scaled.median, scaled.sigma, scaled.at_most) == (250, 0.7, 1000)


@pytest.mark.parametrize("name", PROFILES)
def test_the_page_tells_the_means_of_the_profiles(name: str) -> None:
    [row] = [line for line in (lengths.__doc__ or "").splitlines() if line.startswith(f"| {name} ")]
    told = [int(each.replace(",", "")) for each in row.split("|")[4].split(" and ")]
    profile = PROFILES[name]
    means = [statistics.mean(drawn(side)) for side in (profile.prompt, profile.answer)]
    assert means == pytest.approx(told, rel=0.03)
