"""The last minute is told of each pod, pool and tenant, and is the last minute only."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.call import Attempt, Outcome, Usage
from gateway.core.caller import Tenant
from gateway.telemetry.lately import MAX_KINDS, SLOT_SECONDS, SLOTS, WINDOW_SECONDS, Counted, Lately, Minute
from tests.unit.telemetry.trails import refused, trail

START = 1000.0


def lately(*trails: Any, at: float = START) -> Lately:
    """What is known after these requests, which all end at one moment."""
    counts = Lately(START)
    counts.turn(at)
    for each in trails:
        counts.add(each)
    return counts


def of_pod(minute: Minute, name: str) -> Counted:
    return minute.pods["chat", name].sums


def test_a_request_counts_at_once_for_all_its_subjects() -> None:
    minute = lately(trail()).minute(START + 1)
    for lastly in (minute.total, minute.pools["chat"], minute.pods["chat", "chat-0"], minute.tenants["acme"]):
        assert (lastly.sums.requests, lastly.sums.failed, lastly.sums.tokens) == (1, 0, 44)


@pytest.mark.parametrize(
    ("outcome", "counted"),
    [
        (Outcome.COMPLETED, (0, 0, 0)),
        (Outcome.CLIENT_LEFT, (0, 0, 1)),
        (Outcome.REFUSED, (0, 1, 0)),
        (Outcome.UPSTREAM_FAILED, (1, 0, 0)),
        (Outcome.UPSTREAM_TIMEOUT, (1, 0, 0)),
        (Outcome.TRUNCATED, (1, 0, 0)),
        (Outcome.INTERNAL, (1, 0, 0)),
    ],
)
def test_how_it_ended_is_counted(outcome: Outcome, counted: tuple[int, int, int]) -> None:
    sums = lately(trail(outcome=outcome)).minute(START).pods["chat", "chat-0"].sums
    assert (sums.failed, sums.refused, sums.left) == counted


def test_who_could_not_be_told_counts_for_the_gateway_alone() -> None:
    minute = lately(refused()).minute(START)
    assert minute.total.sums.refused == 1
    assert (minute.pools, minute.pods, minute.tenants) == ({}, {}, {})


def test_two_keys_of_a_team_are_one_tenant() -> None:
    minute = lately(trail(tenant=Tenant("k1", "acme")), trail(tenant=Tenant("k2", "acme"))).minute(START)
    assert minute.tenants["acme"].sums.requests == 2


def test_an_attempt_that_failed_counts_at_the_pod_where_it_did() -> None:
    lost, won = (
        Attempt(pod, "least", (), (), 0, ended) for pod, ended in (("chat-1", "reset"), ("chat-0", "completed"))
    )
    minute = lately(trail(attempts=2, tried=(lost, won))).minute(START)
    assert (of_pod(minute, "chat-1").requests, of_pod(minute, "chat-1").failed) == (1, 1)
    assert (of_pod(minute, "chat-0").requests, of_pod(minute, "chat-0").failed) == (1, 0)
    assert minute.total.sums.requests == minute.pools["chat"].sums.requests == 1


@pytest.mark.parametrize(
    ("outcome", "ended", "failed"),
    [
        # Of a pool's only pod: its caller is told that there is no pod to be reached.
        (Outcome.REFUSED, "connect", 1),
        (Outcome.REFUSED, "busy", 1),
        # It left while the request waited for another pod.
        (Outcome.CLIENT_LEFT, "reset", 1),
        (Outcome.CLIENT_LEFT, "client_left", 0),
        (Outcome.CLIENT_LEFT, "abandoned", 0),
        (Outcome.REFUSED, "refused", 0),
        (Outcome.UPSTREAM_FAILED, "server_error", 1),
    ],
)
def test_a_pod_is_judged_by_how_its_attempt_ended(outcome: Outcome, ended: str, failed: int) -> None:
    tried = (Attempt("chat-0", "only", (), (), 0, ended),)
    minute = lately(trail(outcome=outcome, tried=tried, attempt_outcomes=(("chat", ended),))).minute(START)
    assert (of_pod(minute, "chat-0").requests, of_pod(minute, "chat-0").failed) == (1, failed)
    sums = minute.pools["chat"].sums
    assert sums.requests == 1
    assert (sums.failed, sums.refused, sums.left) == (
        outcome is Outcome.UPSTREAM_FAILED,
        outcome is Outcome.REFUSED,
        outcome is Outcome.CLIENT_LEFT,
    )


def test_an_attempt_counts_in_the_pool_where_it_was_made() -> None:
    # Its alias led to another pool's model then, whose pod answered, or which had no room.
    lost, won = (
        Attempt(pod, "least", (), (), 0, ended) for pod, ended in (("chat-1", "connect"), ("large-0", "completed"))
    )
    made = (("chat", "connect"), ("large", "completed"))
    won_there = trail(attempts=2, pool="large", pod="large-0", tried=(lost, won), attempt_outcomes=made)
    told = lately(won_there).minute(START)
    assert set(told.pods) == {("chat", "chat-1"), ("large", "large-0")}
    full = trail(
        pool="large", pod="chat-1", outcome=Outcome.REFUSED, stream=False, tried=(lost,), attempt_outcomes=made[:1]
    )
    told = lately(full).minute(START)
    assert {where: (lastly.sums.requests, lastly.sums.failed) for where, lastly in told.pods.items()} == {
        ("chat", "chat-1"): (1, 1)
    }
    assert told.pools["large"].sums.refused == 1


def test_a_pods_first_token_is_timed_from_when_it_was_asked() -> None:
    minute = lately(trail(received_at=990.0, sent_at=1000.0, first_content_at=1000.5)).minute(START)
    assert of_pod(minute, "chat-0").ttft_seconds(0.5) == pytest.approx(0.5, rel=0.03)
    assert minute.total.sums.ttft_seconds(0.5) == pytest.approx(10.5, rel=0.03)


def test_what_is_no_stream_has_no_first_token() -> None:
    assert lately(trail(stream=False)).minute(START).total.sums.ttft_seconds(0.5) is None


@given(st.lists(st.floats(0.0001, 1000.0), min_size=1, max_size=50), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_is_right_to_three_in_a_hundred(seconds: list[float], quantile: float) -> None:
    counts = lately(*(trail(received_at=0.0, sent_at=0.0, first_content_at=each) for each in seconds))
    told = counts.minute(START).total.sums.ttft_seconds(quantile)
    at = max(0, -(-len(seconds) * quantile // 1) - 1)
    assert told == pytest.approx(sorted(seconds)[int(at)], rel=0.03)


def test_the_history_ends_with_the_last_whole_slot() -> None:
    counts = lately(trail(), trail(), trail())
    counts.turn(START + SLOT_SECONDS)
    counts.add(trail())
    # Nobody looked for two slots.
    counts.turn(START + 3 * SLOT_SECONDS)
    counts.add(trail())
    minute = counts.minute(START + 3 * SLOT_SECONDS)
    assert minute.total.history == (0,) * (SLOTS - 3) + (3, 1, 0)
    assert minute.total.sums.requests == 5


def test_after_a_minute_nothing_is_left() -> None:
    counts = lately(trail())
    assert counts.minute(START + WINDOW_SECONDS).total.sums.requests == 1
    minute = counts.minute(START + WINDOW_SECONDS + SLOT_SECONDS)
    assert (minute.total.sums.requests, minute.pods, minute.tenants) == (0, {}, {})


def test_a_minute_is_shorter_after_a_start_and_never_much_longer() -> None:
    counts = Lately(START)
    assert counts.minute(START + 5).seconds == 5
    for later in range(70, 100):
        assert WINDOW_SECONDS <= counts.minute(START + later).seconds < WINDOW_SECONDS + SLOT_SECONDS


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.sampled_from(["a", "b"])), max_size=60))
def test_each_request_is_in_the_sums_for_a_minute_and_in_the_history_once(steps: list[tuple[float, str]]) -> None:
    counts, now, ended = Lately(START), START, []
    for wait, pod in steps:
        now += wait
        counts.turn(now)
        counts.add(trail(pod=pod))
        ended.append(now)
        minute = counts.minute(now)
        expected = [at for at in ended if int(now / SLOT_SECONDS) - int(at / SLOT_SECONDS) <= SLOTS]
        assert minute.total.sums.requests == len(expected)
        assert sum(lastly.sums.requests for lastly in minute.pods.values()) == len(expected)
        in_open = [at for at in expected if int(at / SLOT_SECONDS) == int(now / SLOT_SECONDS)]
        assert sum(minute.total.history) == len(expected) - len(in_open)


def test_more_kinds_than_there_is_room_for_still_count() -> None:
    trails = (trail(tenant=Tenant(f"k{number}", f"team-{number}")) for number in range(MAX_KINDS + 10))
    minute = lately(*trails).minute(START)
    assert minute.total.sums.requests == MAX_KINDS + 10
    assert len(minute.tenants) == MAX_KINDS


def test_usage_that_was_never_told_is_no_tokens() -> None:
    assert lately(trail(usage=None), trail(usage=Usage(3, 4))).minute(START).total.sums.tokens == 7
