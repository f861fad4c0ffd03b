"""Who is turned away when a replica has too much to do, from when on, and until when."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import Busy
from gateway.pipeline.overload import (
    CAUSES,
    LAG_SECONDS,
    LEAST_WAIT_SECONDS,
    LONG_ENOUGH_SECONDS,
    MEMORY_SHARES,
    MOST_WAIT_SECONDS,
    Mark,
    Overload,
)
from gateway.telemetry.definitions import SHED_CAUSES

TICK = 0.25
CALM = 0.0


def overloaded(*looks: tuple[float, float], chance: Callable[[], float] = lambda: 0.5) -> Overload:
    """After these looks (lag, memory), a tick between them."""
    overload = Overload(chance)
    for place, (lag, memory) in enumerate(looks):
        overload.look(100.0 + place * TICK, lag, memory)
    return overload


def levels(looks: Sequence[tuple[float, float]]) -> list[int]:
    overload = Overload(lambda: 0.5)
    found = []
    for place, (lag, memory) in enumerate(looks):
        overload.look(100.0 + place * TICK, lag, memory)
        found.append(overload.level)
    return found


def ticks(seconds: float) -> int:
    """Looks that it takes until so many seconds lie between the first and the last."""
    return round(seconds / TICK) + 1


def admitted(overload: Overload, priority: int) -> bool:
    """As the reception asks."""
    if not overload.level:
        return True
    try:
        overload.check(priority)
    except Busy:
        return False
    return True


def test_causes_are_those_that_the_metric_counts_by() -> None:
    assert CAUSES == SHED_CAUSES


def test_a_replica_with_little_to_do_takes_everything() -> None:
    overload = overloaded(*[(0.2, 0.8)] * 100)
    assert overload.level == 0
    assert all(admitted(overload, priority) for priority in (-5, 0, 10))
    assert not overload.short_of_memory


def test_memory_above_its_first_mark_turns_away_what_can_wait_at_once() -> None:
    overload = overloaded((CALM, 0.86))
    assert (overload.level, overload.cause) == (1, "memory")
    assert [admitted(overload, priority) for priority in (-1, 0, 1, 10)] == [True, True, False, False]
    assert overload.shed == {"lag": 0, "memory": 2}


def test_memory_above_its_second_mark_turns_everything_away() -> None:
    overload = overloaded((CALM, 0.96))
    assert overload.level == 2
    assert not any(admitted(overload, priority) for priority in (-1000, 0, 10))


def test_lag_counts_when_it_has_lasted_for_two_seconds() -> None:
    need = ticks(LONG_ENOUGH_SECONDS)
    assert levels([(0.3, CALM)] * (need + 1)) == [0] * (need - 1) + [1, 1]
    assert levels([(1.5, CALM)] * (need + 1)) == [0] * (need - 1) + [2, 2]


@pytest.mark.parametrize("seconds", [0.3, 2.0, 60.0])
def test_one_stall_however_long_turns_nobody_away(seconds: float) -> None:
    overload = Overload(lambda: 0.5)
    overload.look(100.0, CALM, CALM)
    # The tick itself comes so late, and the next one finds the loop well.
    for place in range(20):
        overload.look(100.0 + seconds + place * TICK, seconds if not place else CALM, CALM)
        assert overload.level == 0


def test_a_stall_in_every_second_look_is_no_lag_that_lasts() -> None:
    assert max(levels([(2.0, CALM), (CALM, CALM)] * 100)) == 0


def test_a_level_is_left_when_two_seconds_of_looks_were_below_its_mark() -> None:
    need = ticks(LONG_ENOUGH_SECONDS)
    assert levels([(CALM, 0.9)] + [(CALM, 0.5)] * (need + 1)) == [1] * need + [0, 0]
    # From the second level it goes by way of the first one where that still holds.
    assert levels([(CALM, 0.97)] + [(CALM, 0.9)] * (need + 1)) == [2] * need + [1, 1]


def test_a_value_that_swings_about_a_mark_does_not_make_the_level_flap() -> None:
    found = levels([(CALM, 0.86), (CALM, 0.84)] * 200)
    assert set(found) == {1}


def test_connections_are_closed_for_want_of_memory_and_not_of_cpu() -> None:
    assert overloaded((CALM, 0.9)).short_of_memory
    assert not overloaded(*[(3.0, CALM)] * 20).short_of_memory


def test_with_both_scarce_the_higher_level_says_of_what() -> None:
    assert overloaded(*[(3.0, 0.9)] * 20).cause == "lag"
    assert overloaded(*[(3.0, 0.99)] * 20).cause == "memory"


def test_the_wait_is_as_long_as_it_has_lasted_within_bounds_and_with_jitter() -> None:
    def wait(seconds: float, chance: float) -> float:
        overload = overloaded(*[(CALM, 0.99)] * ticks(seconds), chance=lambda: chance)
        with pytest.raises(Busy) as refused:
            overload.check(0)
        return refused.value.retry_after_seconds

    assert wait(0.0, 0.5) == LEAST_WAIT_SECONDS
    assert wait(10.0, 0.5) == pytest.approx(10.0)
    assert wait(600.0, 0.5) == MOST_WAIT_SECONDS
    assert wait(10.0, 0.0) == pytest.approx(8.0)
    assert wait(10.0, 1.0) == pytest.approx(12.0)


def test_the_refusal_says_what_is_short_and_what_to_do() -> None:
    for looks, priority, words in (
        ([(CALM, 0.9)], 10, "this gateway is short of memory: requests that can wait are not taken now"),
        ([(CALM, 0.99)], 0, "this gateway is short of memory: no request is taken now"),
        ([(3.0, CALM)] * 20, 0, "this gateway is short of CPU: no request is taken now"),
    ):
        with pytest.raises(Busy, match=words) as refused:
            overloaded(*looks).check(priority)
        assert (refused.value.http_status, refused.value.code) == (503, "overloaded")


def test_marks_and_times_may_be_others() -> None:
    overload = Overload(lambda: 0.5, memory_shares=(2.0, 3.0), lag_seconds=(0.1, 9.0), pass_seconds=0.0)
    overload.look(1.0, 0.2, 0.99)
    assert (overload.level, overload.cause) == (1, "lag")


value = st.tuples(st.sampled_from([0.0, 0.2, 0.3, 0.9, 1.1]), st.sampled_from([0.0, 0.84, 0.86, 0.94, 0.96]))


@settings(max_examples=200)
@given(st.lists(value, max_size=80))
def test_a_level_has_its_reason_within_the_time_after_which_it_is_left(looks: list[tuple[float, float]]) -> None:
    window = ticks(LONG_ENOUGH_SECONDS)
    for place, level in enumerate(levels(looks)):
        near = looks[max(0, place - window + 1) : place + 1]
        if level:
            assert any(lag > LAG_SECONDS[level - 1] or memory > MEMORY_SHARES[level - 1] for lag, memory in near), (
                place,
                level,
            )
        if any(memory > MEMORY_SHARES[1] for _, memory in near[-1:]):
            assert level == 2


@given(st.lists(st.booleans(), max_size=60), st.floats(0.0, 3.0), st.floats(0.0, 3.0))
def test_a_mark_turns_only_after_its_time_and_always_after_it(
    above: list[bool], pass_seconds: float, leave_seconds: float
) -> None:
    mark, run, before = Mark(1.0, pass_seconds, leave_seconds), 0, False
    for place, each in enumerate(above):
        run = run + 1 if place and each == above[place - 1] else 1
        passed = mark.look(place * TICK, 2.0 if each else 0.5)
        if each != before:
            needed = leave_seconds if before else pass_seconds
            assert (passed != before) == ((run - 1) * TICK >= needed)
        else:
            assert passed == before
        before = passed
