"""When memory counts as growing, and when it does not."""

from random import Random
from types import SimpleNamespace
from typing import Any

from tests.soak.resting import SPARE_DESCRIPTORS, WARM_UP_SECONDS, Rest, percentile, slope_of
from tests.soak.soak import Plan

MINUTES = 20


def samples(per_minute: float, noise: float, *, warm_up: float = 0.0) -> list[tuple[float, float]]:
    """KiB each second: a steady growth, upward noise, and what is taken in the warm-up."""
    chance = Random(1)
    return [
        (
            1000.0 + second,
            90_000
            + per_minute * second / 60
            + abs(chance.gauss(0, noise))
            + min(second / WARM_UP_SECONDS, 1) * warm_up,
        )
        for second in range(MINUTES * 60)
    ]


def test_growth_is_found_in_noise() -> None:
    slope = slope_of(samples(100, noise=800))
    assert slope.surely_above(64)
    assert abs(slope.per_minute - 100) < 30


def test_flat_memory_is_flat_whatever_the_noise_and_the_warm_up() -> None:
    for noise in (10, 800, 5000):
        assert not slope_of(samples(0, noise, warm_up=20_000)).surely_above(16)


def test_a_step_is_no_slope_and_steps_again_and_again_are_one() -> None:
    def stepped(every: int) -> list[tuple[float, float]]:
        return [(at, value + 2048 * ((at - 1000) // every)) for at, value in samples(0, noise=100)]

    assert not slope_of(stepped(MINUTES * 60 * 2 // 3)).surely_above(16)
    assert slope_of(stepped(120)).surely_above(64)


def test_a_bound_is_not_exceeded_by_what_noise_may_be() -> None:
    slope = slope_of(samples(20, noise=20_000))
    assert not slope.surely_above(20)


def test_a_short_run_says_nothing() -> None:
    assert not slope_of(samples(10_000, noise=1)[:540]).surely_above(0)
    assert not slope_of([]).surely_above(0)


def test_what_would_be_kept_of_each_request_is_above_the_bound() -> None:
    plan = Plan(1, MINUTES * 60)
    assert slope_of(samples(plan.rps * 60 / plan.replicas * 104 / 1024, noise=800)).surely_above(
        plan.most_kib_per_minute
    )


def replica(descriptors: tuple[int, int], per_minute: float = 0.0) -> Any:
    found: list[tuple[float, dict[str, float]]] = []
    for at, memory in samples(per_minute, noise=100):
        fds = descriptors[0 if not found else 1]
        told = {"process_resident_memory_bytes": memory * 1024, "process_open_fds": fds}
        found.append((at, told | {"poolgate_loop_lag_seconds": 0.004}))
    return SimpleNamespace(name="gateway-0", samples=found)


def test_what_does_not_come_back_is_named() -> None:
    assert Rest.of(replica((30, 30 + SPARE_DESCRIPTORS))).wrong(128) == []
    (told,) = Rest.of(replica((30, 31 + SPARE_DESCRIPTORS))).wrong(128)
    assert "descriptors" in told
    (told,) = Rest.of(replica((30, 30), per_minute=500)).wrong(128)
    assert "memory grows" in told


def test_a_percentile_is_a_value_that_so_many_do_not_exceed() -> None:
    assert percentile([], 0.99) == 0
    assert percentile([1, 2, 3, 4], 0.5) == 3
    assert percentile([1, 2, 3, 4], 0.99) == 4
