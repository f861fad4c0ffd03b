"""When requests come: at the rate that was asked, as bursty as was asked, and the same for the same seed."""

import random
import statistics
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.load.arrivals import RAMP_STEPS, ClosedLoop, OpenLoop, Pattern

RATES = st.lists(st.floats(0, 200), min_size=1, max_size=5).map(tuple)
LOOPS = st.builds(OpenLoop, st.sampled_from(Pattern), RATES, st.just(False), st.floats(0.2, 3)) | st.builds(
    OpenLoop, st.sampled_from(Pattern), st.tuples(st.floats(0, 200), st.floats(0, 200)), st.just(True)
)


def times(loop: OpenLoop, seconds: float, seed: str = "a seed") -> list[float]:
    return loop.times(seconds, random.Random(seed))


@given(LOOPS, st.floats(0.1, 20), st.integers())
def test_all_times_rise_and_lie_within_the_run(loop: OpenLoop, seconds: float, seed: int) -> None:
    drawn = times(loop, seconds, str(seed))
    assert drawn == sorted(drawn)
    assert all(0 <= at < seconds for at in drawn)


@given(LOOPS, st.floats(0.1, 20), st.integers())
def test_the_same_seed_gives_the_same_times(loop: OpenLoop, seconds: float, seed: int) -> None:
    assert times(loop, seconds, str(seed)) == times(loop, seconds, str(seed))


def test_another_seed_gives_other_times() -> None:
    loop = OpenLoop(Pattern.POISSON, (50,))
    assert times(loop, 10, "one") != times(loop, 10, "two")


@given(st.integers(1, 50), st.integers(1, 20))
def test_a_constant_rate_is_kept_to_the_request(rate: int, seconds: int) -> None:
    drawn = times(OpenLoop(Pattern.CONSTANT, (rate,)), seconds)
    assert len(drawn) == rate * seconds
    assert all(later - earlier == pytest.approx(1 / rate) for earlier, later in pairwise(drawn))


@settings(max_examples=30)
@given(st.sampled_from(Pattern), st.lists(st.floats(20, 100), min_size=1, max_size=4), st.floats(0.3, 1.5))
def test_each_step_has_its_rate(pattern: Pattern, rates: list[float], burstiness: float) -> None:
    seconds = 100.0 * len(rates)
    loop = OpenLoop(pattern, tuple(rates), burstiness=burstiness)
    drawn = times(loop, seconds)
    for step in loop.steps(seconds):
        came = sum(step.begin <= at < step.end for at in drawn)
        assert step.rate is not None
        expected = step.rate * (step.end - step.begin)
        # The count of a renewal process scatters by its gaps' variation; six deviations are no chance.
        assert abs(came - expected) <= 6 * max(burstiness, 1.0) * expected**0.5 + 1


@settings(max_examples=30)
@given(st.floats(0, 60), st.floats(0, 60))
def test_a_ramp_has_the_rate_of_each_moment(first: float, last: float) -> None:
    loop = OpenLoop(Pattern.POISSON, (first, last), rises=True)
    drawn = times(loop, 200)
    steps = loop.steps(200)
    assert len(steps) == RAMP_STEPS
    for step in steps:
        middle = first + (last - first) * (step.begin + step.end) / 2 / 200
        assert step.rate == pytest.approx(middle, abs=1e-9)
        came = sum(step.begin <= at < step.end for at in drawn)
        assert abs(came - middle * 20) <= 6 * (middle * 20) ** 0.5 + 1


def test_a_ramp_between_equal_rates_is_that_rate() -> None:
    level = times(OpenLoop(Pattern.GAMMA, (30, 30), rises=True, burstiness=2), 20)
    assert level == pytest.approx(times(OpenLoop(Pattern.GAMMA, (30,), burstiness=2), 20))


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 1.5, 3.0])
def test_gamma_gaps_vary_as_much_as_was_asked(burstiness: float) -> None:
    drawn = times(OpenLoop(Pattern.GAMMA, (100,), burstiness=burstiness), 1000)
    gaps = [later - earlier for earlier, later in pairwise(drawn)]
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(burstiness, rel=0.05)


def test_a_step_of_rate_zero_is_a_pause() -> None:
    drawn = times(OpenLoop(Pattern.POISSON, (50, 0, 50)), 30)
    assert not any(10 <= at < 20 for at in drawn)
    assert any(at >= 20 for at in drawn)


def test_steps_lie_one_after_the_other_and_fill_the_run() -> None:
    steps = OpenLoop(Pattern.POISSON, (10, 20.5, 30)).steps(9)
    assert [(step.name, step.begin, step.end, step.rate) for step in steps] == [
        ("10/s", 0, 3, 10),
        ("20.5/s", 3, 6, 20.5),
        ("30/s", 6, 9, 30),
    ]


def test_scaling_multiplies_the_rate_or_the_workers() -> None:
    assert OpenLoop(Pattern.POISSON, (10, 20)).scaled(0.5).rates == (5, 10)
    assert ClosedLoop(4, 100).scaled(0.1) == ClosedLoop(1, 10)
