"""The last requests are found by their ids; what is kept of them is bounded, whatever callers send."""

import io
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.call import Attempt, Outcome, Trail
from gateway.core.clock import Clock
from gateway.telemetry.access_log import AccessLog
from gateway.telemetry.journal import BATCH, Journal
from gateway.telemetry.lately import Lately
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.recent import MAX_NAME_CHARACTERS, MAX_TRAILS, Recent
from tests.unit.telemetry.trails import refused, trail

ROUGH: list[dict[str, Any]] = [
    {"outcome": Outcome.TRUNCATED},
    {"outcome": Outcome.REFUSED, "attempts": 0},
    {"attempts": 2},
    {"queue_seconds": 0.001},
]


def named(request_id: str, **more: Any) -> Trail:
    return trail(request_id=request_id, **more)


def weighed(request_id: str, candidates: int, **more: Any) -> Trail:
    """A request for which so many pods were weighed."""
    names = tuple(f"chat-{number}" for number in range(candidates))
    return named(request_id, tried=(Attempt("chat-0", "cheapest", names, [1.5] * candidates, 0, "completed"),), **more)


def known(recent: Recent, *ids: str) -> list[str]:
    return [each for each in ids if recent.find(each) is not None]


def test_a_request_is_found_by_its_id() -> None:
    recent = Recent()
    one, other = named("one"), named("other", outcome=Outcome.CLIENT_LEFT)
    recent.add(one)
    recent.add(other)
    assert (recent.find("one"), recent.find("other"), recent.find("third")) == (one, other, None)


def test_of_very_many_smooth_ones_in_a_second_the_first_are_kept_and_every_other_one() -> None:
    recent = Recent(smooth_a_second=2)
    for number in range(4):
        recent.add(named(f"smooth-{number}", ended_at=1000.25 + number / 100))
        recent.add(named(f"rough-{number}", ended_at=1000.25 + number / 100, attempts=2))
    recent.add(named("next", ended_at=1001.0))
    assert known(recent, *(f"smooth-{number}" for number in range(4)), "next") == ["smooth-0", "smooth-1", "next"]
    assert len(known(recent, *(f"rough-{number}" for number in range(4)))) == 4


def test_the_oldest_is_forgotten_first() -> None:
    recent = Recent(smooth_a_second=10_000, max_trails=2)
    for request_id in ("a", "b", "c"):
        recent.add(named(request_id))
    assert known(recent, "a", "b", "c") == ["b", "c"]


@pytest.mark.parametrize("rough", ROUGH)
def test_requests_that_went_smoothly_do_not_push_out_the_others(rough: dict[str, Any]) -> None:
    recent = Recent(smooth_a_second=10_000, max_trails=2)
    recent.add(named("rough", **rough))
    for number in range(10):
        recent.add(named(f"smooth-{number}"))
        recent.add(named(f"list-{number}", attempts=0))
    recent.add(named("smooth-9"))
    assert known(recent, "rough", "smooth-0", "smooth-9") == ["rough", "smooth-9"]
    recent.add(named("rough-1", **rough))
    recent.add(named("rough-2", **rough))
    assert known(recent, "rough", "rough-1", "rough-2", "smooth-9") == ["rough-1", "rough-2", "smooth-9"]


@pytest.mark.parametrize("first", [{}, {"attempts": 2}])
@pytest.mark.parametrize("second", [{}, {"attempts": 2}])
def test_of_several_with_the_same_id_the_last_is_found(first: dict[str, Any], second: dict[str, Any]) -> None:
    recent = Recent()
    recent.add(named("id", ended_at=1000.5, **first))
    last = named("id", ended_at=1000.6, **second)
    recent.add(last)
    assert recent.find("id") is last


def test_a_repeated_id_is_as_young_as_its_last_request() -> None:
    recent = Recent(smooth_a_second=10_000, max_trails=2)
    for request_id in ("a", "b", "a", "c"):
        recent.add(named(request_id))
    assert known(recent, "a", "b", "c") == ["a", "c"]


def test_who_has_no_key_pushes_nobody_out() -> None:
    recent = Recent(smooth_a_second=10_000, max_trails=2)
    recent.add(named("known", outcome=Outcome.REFUSED))
    for number in range(10):
        recent.add(refused(request_id=f"stranger-{number}"))
    recent.add(refused(request_id="known"))
    found = recent.find("known")
    assert found is not None
    assert found.tenant is not None
    assert recent.find("stranger-9") is None


@pytest.mark.parametrize("name", ["model", "finish"])
def test_names_that_callers_and_pods_make_up_are_cut(name: str) -> None:
    recent = Recent()
    recent.add(named("id", **{name: "x" * 100_000}))
    assert getattr(recent.find("id"), name) == "x" * MAX_NAME_CHARACTERS


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.booleans()),
        max_size=60,
    )
)
def test_what_is_kept_is_what_the_bounds_leave_of_the_last_ones(requests: list[tuple[int, bool]]) -> None:
    recent = Recent(smooth_a_second=10_000, max_trails=3)
    kept: dict[bool, list[Trail]] = {False: [], True: []}
    for number, (name, smooth) in enumerate(requests):
        ended = named(f"id-{name}", ended_at=1000.0 + number, attempts=1 if smooth else 2)
        recent.add(ended)
        mine = [each for each in kept[smooth] if each.request_id != ended.request_id] + [ended]
        kept[smooth] = mine[-3:]
    for name in range(6):
        same = [each for each in (*kept[False], *kept[True]) if each.request_id == f"id-{name}"]
        assert recent.find(f"id-{name}") is max(same, key=lambda each: each.ended_at, default=None)


def test_a_kept_request_takes_little_memory_and_there_is_a_bound() -> None:
    recent = Recent(smooth_a_second=10_000)
    tracemalloc.start()
    try:
        for number in range(3 * MAX_TRAILS):
            recent.add(weighed(f"smooth-{number}", 8))
            recent.add(weighed(f"rough-{number}" + "y" * 40, 8, attempts=2, model="z" * 10_000))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 2 * MAX_TRAILS * 2500


# Who feeds it.


def test_a_request_is_kept_when_it_is_observed_and_after_it_was_counted_and_written() -> None:
    recent, metrics, out = Recent(), Metrics(), io.BytesIO()
    log = AccessLog(out)
    journal = Journal(metrics, log, Lately(0.0), recent, Clock())
    journal.add(named("one", model="m" * 1000))
    assert recent.find("one") is None
    journal.observe()
    assert recent.find("one") is not None
    for number in range(BATCH):
        journal.add(named(f"id-{number}"))
    assert recent.find("id-0") is not None
    log.close()
    assert b"m" * 1000 in metrics.exposition()
    assert len(out.getvalue().splitlines()) == 1 + BATCH
