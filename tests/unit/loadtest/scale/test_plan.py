"""The arithmetic of scale: what is put in comes out, more never takes less, and each bound binds when it should."""

import json
import math
import random
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from loadtest.scale.bounds import MOST_CONNECTIONS
from loadtest.scale.capacity import (
    MEMORY_LIMIT_MIB,
    MEMORY_SHARE,
    asking_pods,
    asking_us,
    at_rest,
    call_us,
    choice_us,
    memory_mib,
    one_replica,
    request_us,
)
from loadtest.scale.figures import FILE, BadFigures, Figures, read
from loadtest.scale.plan import Load, TooMuch, calls_of, cores, counting, plan, redis_alone_us, uneven

ROOT = Path(__file__).parents[4]
FIGURES, SOURCES = read()
MILLION = Load("a million", 1e6, 2_300, 30)

loads = st.builds(
    Load,
    name=st.just("drawn"),
    requests_per_hour=st.floats(100, 1e7),
    streams=st.floats(1, 50_000),
    tokens_per_second=st.floats(0.1, 100),
    callers=st.integers(1, 20_000),
)


# The inputs.


def test_every_figure_says_what_measured_it_and_when() -> None:
    assert {source.name for source in SOURCES} == {field.name for field in fields(Figures)}
    for source in SOURCES:
        assert source.what, source.name
        assert source.measured.startswith("2026-"), source.name
        measured_by = source.measured_by
        assert measured_by.startswith(("make bench", "python -m loadtest")) or (ROOT / measured_by).is_file(), (
            source.name
        )


def test_a_file_that_lacks_a_figure_or_has_an_odd_one_is_refused(tmp_path: Path) -> None:
    told = json.loads(FILE.read_text("utf-8"))
    file = tmp_path / "figures.json"
    for broken, why in (
        ({name: each for name, each in told.items() if name != "chunk_us"}, "missing or unknown: chunk_us"),
        (told | {"chunk_ms": told["chunk_us"]}, "missing or unknown: chunk_ms"),
        (told | {"chunk_us": {"value": 1}}, "chunk_us: not the parts of a figure"),
        (told | {"chunk_us": told["chunk_us"] | {"value": 0}}, "chunk_us: 0 is no figure"),
    ):
        file.write_text(json.dumps(broken), "utf-8")
        with pytest.raises(BadFigures, match=why):
            read(file)


def test_the_memory_limit_is_that_of_the_manifest() -> None:
    deployment = yaml.safe_load((ROOT / "deploy/kustomize/base/deployment.yaml").read_text("utf-8"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == f"{MEMORY_LIMIT_MIB / 1024:g}Gi"
    assert container["resources"]["requests"]["cpu"] == "1"


# One replica.


def test_what_was_measured_comes_out_again() -> None:
    assert [choice_us(FIGURES, pods) for pods in (2, 8, 64, 512)] == pytest.approx(
        [FIGURES.choice_8_us, FIGURES.choice_8_us, FIGURES.choice_64_us, FIGURES.choice_512_us]
    )
    assert request_us(FIGURES, 2) == FIGURES.request_us
    # A request that shares calls, and one that has two for itself: the two measurements that the split is made of.
    for calls, us in ((FIGURES.asked_calls, FIGURES.asked_us), (2.0, FIGURES.asked_alone_us)):
        assert asking_us(FIGURES) + calls * call_us(FIGURES) == pytest.approx(us)
    quiet = replace(FIGURES, pods_load_us=1e-12)
    assert asking_pods(quiet, 1000, 1) == pytest.approx(FIGURES.pods_quiet_ms / 1000)


def test_asking_is_bounded_however_many_pods_there_are() -> None:
    assert asking_pods(FIGURES, 10, 1) < asking_pods(FIGURES, 100, 1) < asking_pods(FIGURES, 1000, 1)
    assert asking_pods(FIGURES, 10_000, 1) == pytest.approx(asking_pods(FIGURES, 1000, 1))


def test_a_full_replica_is_full_and_one_at_the_target_leaves_the_rest() -> None:
    rest = at_rest(FIGURES, 32, 1)
    for each in one_replica(FIGURES, 0.5):
        if each.what == "streamed chunks/s":
            assert each.whole * FIGURES.chunk_us / 1e6 + rest == pytest.approx(1.0)
            assert each.at_target * FIGURES.chunk_us / 1e6 + rest == pytest.approx(0.5)
        if "by memory" in each.what:
            assert memory_mib(FIGURES, 32, each.whole) == pytest.approx(MEMORY_LIMIT_MIB * MEMORY_SHARE)


# Calls.


@pytest.mark.parametrize("events", [10, 300, 1000, 5000])
def test_calls_are_as_many_as_a_replica_that_waits_for_each_answer_makes(events: float) -> None:
    """Played out: what comes during a call goes with the next."""
    rng, seconds = random.Random(7), 0.001
    arrives, free_at, calls = 0.0, 0.0, 0
    until = 20_000 / events
    waiting = False
    while arrives < until:
        arrives += rng.expovariate(events)
        if waiting and free_at <= arrives:
            calls, free_at, waiting = calls + 1, free_at + seconds, False
        if arrives >= free_at:
            calls, free_at = calls + 1, arrives + seconds
        else:
            waiting = True
    assert calls / until == pytest.approx(calls_of(events, seconds), rel=0.03)


def test_a_replica_makes_a_call_for_each_thing_to_tell_or_as_many_as_fit_in_a_second() -> None:
    assert calls_of(0, 0.001) == 0
    assert calls_of(1, 0.001) == pytest.approx(1, rel=0.01)
    assert calls_of(1e6, 0.001) == pytest.approx(1000)


def test_redis_is_dearer_with_each_replica_on_which_a_caller_runs() -> None:
    assert redis_alone_us(FIGURES, 100) - redis_alone_us(FIGURES, 1) == pytest.approx(198 * FIGURES.redis_replica_us)
    few, many = (counting(FIGURES, replace(MILLION, streams=streams, callers=1), 50) for streams in (1, 10_000))
    assert few.fields == pytest.approx(1)
    assert many.fields == pytest.approx(50)
    assert many.mib > few.mib


# Plans.


@given(loads, st.floats(0.3, 0.9))
def test_a_plan_is_the_fewest_replicas_that_keep_every_bound(load: Load, target: float) -> None:
    found = plan(FIGURES, load, target, least=1)
    assert found.cores <= found.replicas * target
    assert found.fullest <= MOST_CONNECTIONS
    assert found.memory_mib <= MEMORY_LIMIT_MIB * MEMORY_SHARE
    if found.replicas > 1:
        fewer = found.replicas - 1
        fullest = load.streams / fewer * (1 + uneven(fewer, load.streams))
        assert (
            cores(FIGURES, load, fewer)[0] > fewer * target
            or fullest > MOST_CONNECTIONS
            or memory_mib(FIGURES, load.all_pods, fullest) > MEMORY_LIMIT_MIB * MEMORY_SHARE
        )


@given(loads, st.floats(1.0, 3.0))
def test_more_of_anything_never_takes_fewer(load: Load, times: float) -> None:
    before = plan(FIGURES, load, 0.6).replicas
    assert plan(FIGURES, replace(load, requests_per_hour=times * load.requests_per_hour), 0.6).replicas >= before
    assert plan(FIGURES, replace(load, tokens_per_second=times * load.tokens_per_second), 0.6).replicas >= before
    assert plan(replace(FIGURES, chunk_us=times * FIGURES.chunk_us), load, 0.6).replicas >= before


def test_streams_on_which_nothing_comes_are_bound_by_connections_and_fast_ones_by_cpu() -> None:
    idle = plan(FIGURES, Load("idle", 3600, 100_000, 0.01), 0.6)
    fast = plan(FIGURES, Load("fast", 3600, 100_000, 50), 0.6)
    assert idle.fullest > 0.8 * MOST_CONNECTIONS
    assert idle.replicas < fast.replicas
    assert fast.cores == pytest.approx(fast.replicas * 0.6, rel=0.02)


def test_tokens_that_come_together_are_one_chunk() -> None:
    load = Load("alone", 3600, 10_000, 48)
    assert replace(load, tokens_per_chunk=4).chunks == load.chunks / 4


def test_the_fullest_replica_has_what_chance_gives_it() -> None:
    """Drawn: the mean of the largest of 50 counts."""
    rng, replicas, streams = random.Random(3), 50, 20_000
    largest = []
    for _ in range(30):
        counts = [0] * replicas
        for _ in range(streams):
            counts[rng.randrange(replicas)] += 1
        largest.append(max(counts))
    drawn = sum(largest) / len(largest) / (streams / replicas) - 1
    # Our figure is the bound that the mean comes near to from below.
    assert 0.7 * uneven(replicas, streams) < drawn < uneven(replicas, streams)
    assert uneven(1, 1000) == 0


def test_what_nobody_carries_is_said() -> None:
    with pytest.raises(TooMuch, match="too much: more than"):
        plan(FIGURES, Load("too much", 1e6, 1e8, 100), 0.6)


def test_a_stream_lasts_as_long_as_the_load_says() -> None:
    assert MILLION.stream_seconds == pytest.approx(8.28)
    assert math.isclose(MILLION.requests * MILLION.stream_seconds, MILLION.streams)
