"""The autoscaler's loop in simulation: its rules are Kubernetes', no work is lost or made, and deploy/ follows."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.scale.autoscaling import (
    GROWS_AT,
    HERE_SECONDS,
    MANIFEST,
    METRIC_SECONDS,
    SYNC_SECONDS,
    TOLERANCE,
    Autoscaler,
    Case,
    autoscaler_of,
    cases,
    highest_target,
    ramp,
    simulate,
    wanted,
)

DEPLOYED = autoscaler_of(MANIFEST.read_text("utf-8"))
SCALER = Autoscaler(target=0.5, least=1, most=100, down_window_seconds=300, down_pods=1, down_period_seconds=60)


def steady(cores: float, replicas: int, **changes: object) -> Case:
    return replace(Case("steady", ramp(cores, 1.0, 0.0), replicas), **changes)  # type: ignore[arg-type]  # fields of Case


# Its rules.


@pytest.mark.parametrize(
    ("used", "replicas"),
    [
        ([0.5, 0.5], 2),
        ([0.54, 0.54], 2),  # within a tenth
        ([0.46, 0.46], 2),
        ([0.56, 0.56], 3),
        ([1.0, 1.0], 4),
        ([0.2, 0.2, 0.2], 2),
        ([1.0, 0.0], 2),  # the mean decides
        ([], 0),
        ([None, None], 2),
        ([1.0, 1.0, None], 4),  # a new one counts as idle: 2 ÷ 3 ÷ 0.5 × 3
        ([0.6, 0.6, None], 3),  # it will do: more would be too many
        ([0.2, None], 2),  # it may be busy: nothing is taken away
        ([0.1, 0.1, 0.1, 0.1, None], 3),
    ],
)
def test_it_wants_what_kubernetes_would(used: list[float | None], replicas: int) -> None:
    assert wanted(0.5, used) == replicas


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.3, 0.9))
def test_what_it_wants_brings_the_mean_to_the_target(used: list[float], target: float) -> None:
    found = wanted(target, [*used])
    if found != len(used):
        assert (found - 1) * target - 1e-6 <= sum(used) <= found * target + 1e-6


def test_an_autoscaler_that_is_not_the_one_simulated_is_refused() -> None:
    text = MANIFEST.read_text("utf-8")
    with pytest.raises(ValueError, match="not simulated"):
        autoscaler_of(text.replace("name: cpu", "name: memory"))


# The loop.


def test_what_is_at_its_target_stays_as_it_is() -> None:
    came = simulate(SCALER, steady(2.0, 4, seconds=3600))
    assert (came.changes, came.most_replicas, came.late_seconds) == (0, 4, 0)
    assert came.fullest == pytest.approx(0.5)


def test_what_a_replica_has_open_is_not_moved_when_another_comes() -> None:
    """Only what is new goes to the new ones: the longer streams are, the later the old one is relieved."""

    def full(stream_seconds: float) -> int:
        return simulate(SCALER, steady(0.95, 1, stream_seconds=stream_seconds, seconds=1200)).full_seconds

    assert full(500.0) > 2 * full(10.0)


def test_a_new_replica_comes_one_metric_one_look_and_its_start_after_the_load() -> None:
    """At once twice as much: the old ones are too full until then, and not much longer."""
    delays = METRIC_SECONDS + SYNC_SECONDS + HERE_SECONDS
    came = simulate(SCALER, Case("step", ramp(1.0, 2.1, 0.0), 2, stream_seconds=5.0))
    assert 0 < came.late_seconds <= delays + 10
    late = simulate(SCALER, Case("step", ramp(1.0, 2.1, 0.0), 2, stream_seconds=5.0, start_seconds=100))
    assert late.late_seconds - came.late_seconds >= 80


def test_more_than_a_core_makes_streams_last_longer_and_is_not_forgotten() -> None:
    """With nobody to help, work piles up by what comes beyond a core, whatever the streams' length."""
    alone = replace(SCALER, most=1)
    came = simulate(alone, steady(1.5, 1, stream_seconds=30.0, seconds=300))
    assert came.fullest == pytest.approx(1.5 + 0.5 * 300 / 30.0, rel=0.02)
    assert came.late_seconds == 300


def test_a_lost_replica_leaves_its_work_to_the_others_until_another_is_there() -> None:
    fixed = replace(SCALER, least=3, most=3)
    came = simulate(fixed, steady(1.8, 3, lost_at=GROWS_AT, stream_seconds=10.0))
    assert came.fullest == pytest.approx(0.9, rel=0.02)
    assert came.most_replicas == 3


def test_it_takes_away_one_at_a_time_and_only_after_its_window() -> None:
    falls = Case("falls", lambda now: 4.0 if now < 100 else 0.4, 8)
    assert simulate(SCALER, replace(falls, seconds=100 + 300)).changes == 0
    assert simulate(SCALER, replace(falls, seconds=100 + 300 + 30 + 30 + 60 * 3)).changes in (3, 4)


def test_a_wave_within_the_window_is_ridden_without_taking_any_away() -> None:
    wave = Case("wave", lambda now: 2.0 * (1 + 0.3 * math.sin(now / 30)), 4, seconds=3600)
    assert simulate(SCALER, wave).changes <= 2


@settings(max_examples=10)
@given(st.floats(0.3, 0.8), st.integers(1, 6))
def test_no_case_is_easier_at_a_higher_target(target: float, replicas: int) -> None:
    lower, higher = (replace(SCALER, target=each, most=1000) for each in (target, min(0.95, target + 0.1)))
    for low, high in zip(cases(lower.target, replicas), cases(higher.target, replicas), strict=True):
        assert simulate(lower, low).fullest <= simulate(higher, high).fullest + 0.02, low.name


# What follows.


def test_each_case_begins_where_a_full_state_can_last() -> None:
    for case in cases(0.6, 3):
        begins = case.load(0.0) / case.replicas
        assert begins <= 0.6 * (1 + TOLERANCE) + 1e-9
        assert wanted(0.6, [begins] * case.replicas) == case.replicas


def test_the_target_of_the_manifests_is_the_highest_that_holds() -> None:
    assert DEPLOYED.target == highest_target(DEPLOYED)
    late = [
        case.name
        for case in cases(DEPLOYED.target + 0.1, 3)
        if simulate(replace(DEPLOYED, target=DEPLOYED.target + 0.1, most=100), case).late_seconds
    ]
    assert {"half as much again, at once", "one replica is lost"} <= set(late)


def test_three_replicas_carry_the_loss_of_one_and_two_do_not() -> None:
    for replicas, holds in ((3, True), (2, False)):
        (case,) = (each for each in cases(DEPLOYED.target, replicas) if each.lost_at)
        assert (simulate(DEPLOYED, case).late_seconds == 0) == holds
