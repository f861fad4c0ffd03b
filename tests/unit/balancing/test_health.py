"""The rules of ejection, return and panic, one promise each; time is a number that the test writes down."""

import pickle
import timeit
from collections.abc import Callable
from itertools import count, pairwise
from random import Random

import pytest

from gateway.balancing.health import PoolHealth, Reason, State


def no_chance() -> float:
    return 0.0


def pool_of(pods: str, now: float = 0.0, chance: Callable[[], float] = no_chance) -> PoolHealth:
    """Pods with names of one letter, all of them warm."""
    health = PoolHealth(chance)
    health.keep(pods, len(pods), now, starting=True)
    return health


def fail(health: PoolHealth, uid: str, now: float, times: int = 3) -> list[Reason | None]:
    return [health.failed(uid, "caller", now) for _ in range(times)]


def bring_back(health: PoolHealth, uid: str, now: float) -> None:
    """An ejected pod is well again: asked, tried, and with its full share thirty seconds later."""
    assert list(health.due(now)) == [uid]
    health.recovered(uid, now)
    health.answered(uid, "caller", now)
    assert health.state(uid) is State.RETURNING
    health.due(now + 30)
    assert health.state(uid) is State.HEALTHY


def length_of_next_ejection(health: PoolHealth, uid: str, now: float) -> float:
    """Fails until it is ejected; how long, in whole seconds, until it is due."""
    assert fail(health, uid, now)[-1] is Reason.CONSECUTIVE
    return next(seconds for seconds in range(1, 400) if uid in health.due(now + seconds))


# Into an ejection.


def test_three_failures_in_a_row_eject() -> None:
    health = pool_of("ab")
    assert fail(health, "a", 1.0) == [None, None, Reason.CONSECUTIVE]
    assert health.state("a") is State.EJECTED
    assert not health.usable("a")
    assert health.usable("b")


def test_one_answer_ends_the_row_of_failures() -> None:
    health = pool_of("ab")
    for now in range(20):
        assert fail(health, "a", now, times=2) == [None, None]
        health.answered("a", "somebody", now)
    assert health.state("a") is State.HEALTHY


def test_the_beginning_of_an_answer_does_not_end_the_row_of_failures() -> None:
    """A pod that begins every stream and cuts it must be found."""
    health = pool_of("ab")
    for now in range(2):
        health.began("a", "caller", now)
        assert health.failed("a", "caller", now) is None
    health.began("a", "caller", 2.0)
    assert health.failed("a", "caller", 2.0) is Reason.CONSECUTIVE


def test_half_of_ten_attempts_failed_ejects() -> None:
    health = pool_of("abc")
    for now in range(4):
        health.answered("a", "caller", now)
        assert health.failed("a", "caller", now) is None
    health.answered("a", "caller", 4.0)
    assert health.failed("a", "caller", 4.0) is Reason.SHARE


def test_fewer_than_ten_attempts_or_fewer_than_half_of_them_do_not_eject() -> None:
    health = pool_of("abc")
    for now in range(4):
        health.answered("a", "caller", now)
        assert health.failed("a", "caller", now) is None
    for now in range(4, 30):
        health.answered("b", "caller", now)
        health.answered("b", "caller", now)
        assert health.failed("b", "caller", now) is None


def test_a_share_of_failures_needs_three_pods_to_compare() -> None:
    health = pool_of("ab")
    for now in range(30):
        health.answered("a", "caller", now)
        assert health.failed("a", "caller", now) is None


@pytest.mark.parametrize(("gap", "reason"), [(29.9, Reason.SHARE), (30.0, None)])
def test_attempts_are_counted_for_thirty_seconds(gap: float, reason: Reason | None) -> None:
    health = pool_of("abc", now=100.0)
    for _ in range(4):
        health.answered("a", "caller", 100.0)
        health.failed("a", "caller", 100.0)
    health.answered("a", "caller", 100.0 + gap)
    assert health.failed("a", "caller", 100.0 + gap) is reason


def test_failures_long_past_do_not_add_up() -> None:
    health = pool_of("abc", now=100.0)
    for _ in range(4):
        health.answered("a", "caller", 100.0)
        health.failed("a", "caller", 100.0)
    health.answered("a", "caller", 100.0)
    assert health.failed("a", "caller", 131.0) is None


def test_good_times_long_past_do_not_excuse_a_pod() -> None:
    health = pool_of("abc", now=100.0)
    for _ in range(1000):
        health.answered("a", "caller", 100.0)
    for now in range(200, 204):
        health.answered("a", "caller", now)
        assert health.failed("a", "caller", now) is None
    health.answered("a", "caller", 204.0)
    assert health.failed("a", "caller", 204.0) is Reason.SHARE


def test_a_wedged_pod_is_ejected_at_once() -> None:
    health = pool_of("ab")
    assert health.wedged("a", 1.0) is Reason.WEDGED
    assert health.state("a") is State.EJECTED
    assert health.wedged("a", 1.0) is None


def test_an_ejected_pods_outcomes_change_nothing() -> None:
    """Two hundred streams that one death cuts are one ejection."""
    health = pool_of("abcd")
    assert [reason for reason in fail(health, "a", 1.0, times=200) if reason] == [Reason.CONSECUTIVE]
    health.answered("a", "caller", 2.0)
    health.began("a", "caller", 2.0)
    assert health.erred("a", "other", 2.0) is None
    assert health.state("a") is State.EJECTED
    assert list(health.due(10.9)) == []
    assert list(health.due(11.0)) == ["a"]


# At most half.


@pytest.mark.parametrize(("pods", "most"), [("a", 0), ("ab", 1), ("abc", 1), ("abcd", 2), ("abcdefghi", 4)])
def test_at_most_half_of_the_ready_pods_are_ejected_and_never_the_only_one(pods: str, most: int) -> None:
    health = pool_of(pods)
    for uid in pods:
        fail(health, uid, 1.0, times=10)
        health.wedged(uid, 1.0)
    ejected = [uid for uid in pods if health.state(uid) is State.EJECTED]
    assert ejected == list(pods[:most])
    assert not health.panic


def test_a_pod_on_trial_counts_among_the_half() -> None:
    health = pool_of("abcd")
    fail(health, "a", 0.0)
    fail(health, "b", 0.0)
    for uid in health.due(10.0):
        health.recovered(uid, 10.0)
    assert fail(health, "c", 10.0) == [None, None, None]
    health.answered("a", "caller", 10.0)
    assert health.failed("c", "caller", 10.0) is Reason.CONSECUTIVE


def test_a_sick_pod_that_could_not_be_ejected_is_with_the_next_failure_once_there_is_room() -> None:
    health = pool_of("ab")
    fail(health, "a", 0.0)
    assert fail(health, "b", 0.0, times=5) == [None] * 5
    bring_back(health, "a", 10.0)
    assert health.failed("b", "caller", 41.0) is Reason.CONSECUTIVE


# Whose fault is a 500?


def test_one_callers_bad_requests_eject_nobody() -> None:
    health = pool_of("abc")
    for now in range(20):
        for uid in "abc":
            health.answered(uid, "other", now)
            assert health.erred(uid, "bad", now) is None
    assert {health.state(uid) for uid in "abc"} == {State.HEALTHY}


@pytest.mark.parametrize("pods", ["a", "ab", "abc", "abcdefgh"])
def test_twenty_500s_for_a_caller_that_nobody_else_uses_eject_nobody(pods: str) -> None:
    rng = Random(7)
    health = pool_of(pods)
    for now in range(20):
        assert health.erred(rng.choice(pods), "bad", now) is None


@pytest.mark.parametrize("pods", ["ab", "abc", "abcdefgh"])
def test_a_caller_that_was_answered_and_turns_bad_ejects_nobody_once_the_others_send_it_500s_too(pods: str) -> None:
    health = pool_of(pods)
    for uid in pods:
        health.answered(uid, "turns bad", 0.0)
    for now in range(1, 21):
        for uid in pods:
            assert health.erred(uid, "turns bad", now) is None


def test_one_callers_bad_requests_among_good_ones_of_others_eject_nobody() -> None:
    for seed in range(50):
        rng = Random(seed)
        health = pool_of("abcd")
        for step in range(400):
            uid = rng.choice("abcd")
            if step % 20 == 0:
                assert health.erred(uid, "bad", step * 0.1) is None
            else:
                health.answered(uid, "good", step * 0.1)


def test_where_more_pods_send_a_caller_500s_than_answer_it_the_requests_are_at_fault() -> None:
    health = pool_of("abcdef")
    for uid in "bcdef":
        health.answered(uid, "turns bad", 0.0)
    for uid in "bcd":
        assert health.erred(uid, "turns bad", 1.0) is None
    assert [health.erred("a", "turns bad", 2.0) for _ in range(20)] == [None] * 20


@pytest.mark.parametrize("pods", ["ab", "abc", "abcdefgh"])
def test_a_pod_that_fails_whatever_it_is_asked_is_found_behind_one_shared_key(pods: str) -> None:
    """Within five requests as soon as another pod has answered, however many it failed before."""
    health = pool_of(pods)
    for step in range(30):
        assert health.erred("a", "shared", step * 0.001) is None
    health.began("b", "shared", 1.0)
    outcomes = [health.erred("a", "shared", 1.0 + step * 0.001) for step in range(3)]
    assert outcomes == [None, None, Reason.CONSECUTIVE]


def test_two_such_pods_of_three_do_not_excuse_each_other() -> None:
    health = pool_of("abc")
    health.answered("c", "shared", 0.0)
    found = [health.erred(uid, "shared", 0.1) for _ in range(3) for uid in "ab"]
    assert found == [None, None, None, None, Reason.CONSECUTIVE, None]


@pytest.mark.parametrize(("at", "reason"), [(60.0, Reason.CONSECUTIVE), (60.1, None)])
def test_what_other_pods_answered_speaks_against_a_pod_for_a_minute(at: float, reason: Reason | None) -> None:
    health = pool_of("abc")
    health.answered("b", "shared", 0.0)
    assert [health.erred("a", "shared", at) for _ in range(3)][-1] is reason


def test_the_last_word_counts() -> None:
    """A pod that answered a caller and then sent it a 500 does not answer it; nor one that cut it off."""
    health = pool_of("abc")
    health.answered("b", "mixes", 0.0)
    health.erred("b", "mixes", 1.0)
    assert [health.erred("a", "mixes", 2.0) for _ in range(3)] == [None, None, None]
    health.answered("b", "mixes", 3.0)
    assert [health.erred("a", "mixes", 3.0) for _ in range(2)] == [None, None]
    health.failed("b", "mixes", 4.0)
    assert [health.erred("a", "mixes", 4.0) for _ in range(2)] == [None, None]
    health.answered("c", "mixes", 5.0)
    assert health.erred("a", "mixes", 5.0) is Reason.CONSECUTIVE


def test_what_a_pod_answered_itself_does_not_speak_against_it() -> None:
    health = pool_of("ab")
    health.answered("a", "caller", 0.0)
    assert [health.erred("a", "caller", 1.0) for _ in range(20)] == [None] * 20


def test_what_others_were_answered_does_not_speak_against_a_pod() -> None:
    health = pool_of("ab")
    health.answered("b", "other", 0.0)
    assert [health.erred("a", "caller", 1.0) for _ in range(20)] == [None] * 20


@pytest.mark.parametrize("gone", ["ejected", "away for a moment"])
def test_what_a_pod_answered_before_it_was_out_speaks_against_nobody(gone: str) -> None:
    health = pool_of("abcd")
    health.answered("b", "caller", 0.0)
    if gone == "ejected":
        health.wedged("b", 1.0)
    else:
        health.keep("acd", 4, 1.0)
        health.keep("abcd", 4, 2.0)
    assert [health.erred("a", "caller", 3.0) for _ in range(20)] == [None] * 20


@pytest.mark.parametrize(("gap", "reason"), [(60.0, Reason.CONSECUTIVE), (60.1, None)])
def test_500s_that_several_callers_see_within_a_minute_count(gap: float, reason: Reason | None) -> None:
    health = pool_of("ab")
    assert health.erred("a", "one", 0.0) is None
    outcomes = [health.erred("a", "other", gap) for _ in range(3)]
    assert outcomes == [None, None, reason]


@pytest.mark.parametrize("seen", [{0: "one", 90: "two"}, {0: "one", 10: "two", 90: "one"}])
def test_of_the_callers_that_saw_500s_the_last_one_counts(seen: dict[int, str]) -> None:
    health = pool_of("ab")
    for at, caller in seen.items():
        health.erred("a", caller, at)
    health.answered("a", "somebody", 100.0)
    assert [health.erred("a", "three", 105.0) for _ in range(3)][-1] is Reason.CONSECUTIVE


def test_a_caller_that_mixes_good_and_bad_requests_hardly_harms_the_pods_that_others_use_too() -> None:
    """A tenth of the traffic is its, and of that half is bad: the others' answers end each row of failures."""
    rng = Random(3)
    health = pool_of("abcd")
    ejections = 0
    for step in range(20_000):
        uid, now = rng.choice("abcd"), step * 0.05
        for back in health.due(now):
            health.recovered(back, now)
        mixes = rng.random() < 0.1
        if mixes and rng.random() < 0.5:
            ejections += health.erred(uid, "mixes", now) is not None
        else:
            health.answered(uid, "mixes" if mixes else "good", now)
    assert ejections <= 5, "of a thousand seconds less than one in twenty, of one pod in four"


# The way back.


def test_a_pod_comes_back_in_three_steps() -> None:
    health = pool_of("ab")
    fail(health, "a", 0.0)
    assert list(health.due(9.9)) == []
    assert list(health.due(10.0)) == ["a"]
    assert health.state("a") is State.EJECTED, "until its /health said so"
    health.recovered("a", 10.1)
    assert health.state("a") is State.PROBING
    assert health.usable("a")
    health.answered("a", "caller", 11.0)
    assert health.state("a") is State.RETURNING
    health.due(40.9)
    assert health.state("a") is State.RETURNING
    health.due(41.0)
    assert health.state("a") is State.HEALTHY
    assert health.weight("a", 41.0) == 1


def test_the_beginning_of_an_answer_ends_the_trial() -> None:
    """The stream's end may be minutes away."""
    health = pool_of("ab")
    fail(health, "a", 0.0)
    health.due(10.0)
    health.recovered("a", 10.0)
    health.began("a", "caller", 11.0)
    assert health.state("a") is State.RETURNING


def test_a_500_that_says_nothing_of_the_pod_neither_ends_nor_fails_the_trial() -> None:
    health = pool_of("ab")
    fail(health, "a", 0.0)
    health.due(10.0)
    health.recovered("a", 10.0)
    assert health.erred("a", "bad", 11.0) is None
    assert health.state("a") is State.PROBING


def test_a_due_pod_is_due_once_until_it_is_told_of_or_half_a_minute_has_passed() -> None:
    health = pool_of("abcd")
    fail(health, "a", 0.0)
    fail(health, "b", 1.0)
    assert list(health.due(10.0)) == ["a"]
    assert list(health.due(11.0)) == ["b"]
    assert list(health.due(39.9)) == []
    assert list(health.due(40.0)) == ["a"], "whoever asked has not said a word"


def test_how_long_an_ejection_still_lasts_is_told() -> None:
    health = pool_of("ab")
    assert health.seconds_left("a", 0.0) == 0
    fail(health, "a", 0.0)
    assert [health.seconds_left("a", now) for now in (0.0, 4.0, 10.0, 11.0)] == [10, 6, 0, 0]
    health.recovered("a", 5.0)
    assert health.seconds_left("a", 5.0) == 0
    assert health.seconds_left("nobody", 5.0) == 0


def test_a_pod_whose_health_says_no_stays_out_and_longer() -> None:
    health = pool_of("ab")
    fail(health, "a", 0.0)
    assert list(health.due(10.0)) == ["a"]
    health.still_sick("a", 10.0)
    assert health.state("a") is State.EJECTED
    assert list(health.due(29.9)) == []
    assert list(health.due(30.0)) == ["a"]


def test_a_failed_trial_ejects_at_once_and_longer() -> None:
    health = pool_of("ab")
    fail(health, "a", 0.0)
    health.due(10.0)
    health.recovered("a", 10.0)
    assert health.failed("a", "caller", 11.0) is Reason.PROBE
    assert health.state("a") is State.EJECTED
    assert list(health.due(30.9)) == []
    assert list(health.due(31.0)) == ["a"]


def test_after_the_trial_the_ordinary_rules_hold() -> None:
    health = pool_of("ab")
    fail(health, "a", 0.0)
    health.due(10.0)
    health.recovered("a", 10.0)
    health.answered("a", "caller", 11.0)
    assert fail(health, "a", 12.0) == [None, None, Reason.CONSECUTIVE]
    assert not health.ramping


def test_failures_before_an_ejection_do_not_add_to_those_after_it() -> None:
    health = pool_of("ab")
    fail(health, "a", 0.0)
    health.due(10.0)
    health.recovered("a", 10.0)
    health.began("a", "caller", 11.0)
    assert fail(health, "a", 11.0) == [None, None, Reason.CONSECUTIVE]


@pytest.mark.parametrize("last", [0.0, 6.0])
def test_a_bad_share_before_an_ejection_is_forgotten_with_it(last: float) -> None:
    health = pool_of("abc")
    for _ in range(3):
        health.answered("a", "caller", 0.0)
        assert fail(health, "a", 0.0, times=2) == [None, None]
    assert health.failed("a", "caller", last) is not None
    health.due(last + 10)
    health.recovered("a", last + 10)
    health.answered("a", "caller", last + 10)
    assert health.failed("a", "caller", last + 10) is None


def test_failures_of_what_was_sent_before_the_return_do_not_count() -> None:
    """A network that broke for a moment: what hung in it runs into its deadline when the pod has long come back."""
    health = pool_of("ab")
    fail(health, "a", 0.0)
    health.due(10.0)
    health.recovered("a", 10.0)
    assert [health.failed("a", "caller", 11.0, sent_at=-5.0) for _ in range(50)] == [None] * 50
    assert health.erred("a", "caller", 11.0, sent_at=9.9) is None
    assert health.state("a") is State.PROBING
    assert health.failed("a", "caller", 11.0, sent_at=10.0) is Reason.PROBE


def test_nobody_comes_back_that_was_not_out() -> None:
    health = pool_of("ab")
    health.recovered("a", 1.0)
    health.still_sick("a", 1.0)
    health.recovered("nobody", 1.0)
    health.still_sick("nobody", 1.0)
    assert health.state("a") is State.HEALTHY
    fail(health, "a", 1.0)
    health.due(11.0)
    health.recovered("a", 11.0)
    health.still_sick("a", 11.5)
    assert health.state("a") is State.PROBING, "an answer that came late"
    health.recovered("a", 13.0)
    assert health.failed("a", "caller", 14.0, sent_at=12.0) is Reason.PROBE


def test_each_ejection_is_longer_up_to_five_minutes() -> None:
    health = pool_of("ab")
    now = 0.0
    lengths = []
    for _ in range(33):
        lengths.append(length_of_next_ejection(health, "a", now))
        now += lengths[-1]
        health.recovered("a", now)
        health.answered("a", "caller", now)
    assert lengths == [min(10 * k, 300) for k in range(1, 34)]


def test_chance_lengthens_an_ejection_by_two_seconds_at_most() -> None:
    health = pool_of("ab", chance=lambda: 0.75)
    fail(health, "a", 0.0)
    assert list(health.due(11.4)) == []
    assert list(health.due(11.5)) == ["a"]


@pytest.mark.parametrize(("clean", "length"), [(59.0, 40), (60.0, 30), (119.0, 30), (120.0, 20), (10_000.0, 10)])
def test_each_clean_minute_after_the_return_takes_one_ejection_off(clean: float, length: int) -> None:
    health = pool_of("ab")
    now = 0.0
    for _ in range(3):
        now += length_of_next_ejection(health, "a", now)
        health.recovered("a", now)
        health.answered("a", "caller", now)
    health.due(now + clean)
    assert length_of_next_ejection(health, "a", now + clean) == length


def test_clean_minutes_count_for_a_pod_that_is_then_found_wedged() -> None:
    health = pool_of("ab")
    now = length_of_next_ejection(health, "a", 0.0)
    health.recovered("a", now)
    health.answered("a", "caller", now)
    assert health.wedged("a", now + 60) is Reason.WEDGED
    assert list(health.due(now + 70)) == ["a"]


def test_a_failure_begins_the_clean_minute_anew() -> None:
    health = pool_of("ab")
    now = length_of_next_ejection(health, "a", 0.0)
    health.recovered("a", now)
    for _ in range(10):
        health.answered("a", "caller", now)
        assert health.failed("a", "caller", now) is None
        now += 50
    health.answered("a", "caller", now)
    assert length_of_next_ejection(health, "a", now) == 20


def test_time_spent_ejected_or_on_trial_is_not_clean() -> None:
    health = pool_of("ab")
    now = 0.0
    for k in range(1, 20):
        # A trial fails whenever it comes, minutes after the last failure.
        assert (health.failed("a", "caller", now) or fail(health, "a", now, times=2)[-1]) is not None
        assert list(health.due(now + 10 * k - 0.1)) == []
        now += 10 * k
        assert list(health.due(now)) == ["a"]
        health.recovered("a", now)
        now += 100


def test_a_pod_that_comes_and_goes_does_ever_less_harm() -> None:
    """Five seconds well, five seconds dead, in a pool of three: under one request in a hundred fails there after the
    first minute."""
    rng = Random(11)
    health = pool_of("abc", chance=rng.random)
    failed: list[float] = []
    ejected: list[float] = []
    for step in range(30 * 600):
        now = step / 30
        well = now % 10 < 5
        for uid in health.due(now):
            (health.recovered if well else health.still_sick)(uid, now)
        pods = [uid for uid in "abc" if health.usable(uid)]
        uid = rng.choices(pods, [health.weight(uid, now) for uid in pods])[0]
        if uid != "a" or well:
            health.answered(uid, "caller", now)
        else:
            failed.append(now)
            if health.failed(uid, "caller", now):
                ejected.append(now)
    late = [at for at in failed if at >= 60]
    assert len(late) / (30 * 540) < 0.01
    gaps = [after - before for before, after in pairwise(ejected)]
    assert len(gaps) >= 2
    assert all(after > 2 * before for before, after in pairwise(gaps))


# Shares.


def test_a_new_pod_gets_a_tenth_and_thirty_seconds_later_its_full_share() -> None:
    health = pool_of("abcdefgh")
    health.keep("abcdefghi", 9, 100.0)
    assert health.state("i") is State.HEALTHY
    assert health.ramping
    shares = [round(health.weight("i", 100.0 + seconds), 6) for seconds in (0, 10, 20, 29.9, 30, 31)]
    assert shares == [0.1, 0.4, 0.7, 0.997, 1.0, 1.0]
    assert health.weight("a", 100.0) == 1
    health.due(130.0)
    assert not health.ramping


def test_a_pod_that_comes_back_gets_a_tenth_first() -> None:
    health = pool_of("ab")
    fail(health, "a", 0.0)
    health.due(10.0)
    health.recovered("a", 10.0)
    assert health.weight("a", 10.0) == 1, "one request at a time is little enough"
    health.answered("a", "caller", 20.0)
    assert health.weight("a", 20.0) == pytest.approx(0.1)
    assert health.weight("a", 35.0) == pytest.approx(0.55)


def test_pods_that_a_start_of_the_gateway_meets_one_by_one_are_warm() -> None:
    health = PoolHealth(no_chance)
    health.keep("a", 3, 0.0, starting=True)
    health.keep("abc", 3, 5.0, starting=True)
    assert [health.weight(uid, 5.0) for uid in "abc"] == [1, 1, 1]
    health.keep("abcd", 4, 6.0)
    assert [health.weight(uid, 6.0) for uid in "abcd"] == [1, 1, 1, pytest.approx(0.1)]


def test_where_every_pod_is_new_there_is_nothing_to_compare() -> None:
    health = PoolHealth(no_chance)
    health.keep("ab", 2, 0.0)
    assert [health.weight(uid, 0.0) for uid in "ab"] == [1, 1]
    health.keep("abc", 3, 10.0)
    assert [health.weight(uid, 10.0) for uid in "abc"] == [1, 1, pytest.approx(0.1 / 0.4)]


def test_when_the_last_warm_pod_is_gone_the_new_ones_are_not_held_back() -> None:
    health = pool_of("a")
    health.keep("ab", 2, 100.0)
    assert health.weight("b", 100.0) == pytest.approx(0.1)
    health.keep("b", 1, 101.0)
    assert health.weight("b", 101.0) == 1


@pytest.mark.parametrize("on_trial", [False, True])
def test_a_pod_that_is_out_is_nothing_to_compare_with(on_trial: bool) -> None:
    health = pool_of("a")
    health.keep("ab", 2, 100.0)
    fail(health, "a", 100.0)
    if on_trial:
        health.recovered("a", 100.0)
    assert health.weight("b", 100.0) == 1


# Panic.


def test_panic_when_fewer_than_half_of_the_pool_are_left() -> None:
    """One of three ejected, one not ready."""
    health = pool_of("abc")
    fail(health, "a", 0.0)
    assert not health.panic
    health.keep("ab", 3, 1.0)
    assert health.panic
    assert health.usable("a")
    health.keep("abc", 3, 2.0)
    assert not health.panic
    assert not health.usable("a")


def test_panic_begins_with_the_ejection_that_leaves_too_few() -> None:
    health = pool_of("ab")
    health.keep("ab", 3, 1.0)
    fail(health, "a", 1.0)
    assert health.panic


def test_no_panic_while_nobody_is_ejected() -> None:
    """Many pods that start are no reason to mistrust the few that are ready."""
    health = PoolHealth(no_chance)
    health.keep("a", 10, 0.0)
    assert not health.panic


def test_panic_lasts_through_the_trial_and_ends_with_it() -> None:
    """Else the pod that carries half of the load would get one request at a time."""
    health = pool_of("abc")
    fail(health, "a", 0.0)
    health.keep("ab", 3, 1.0)
    health.due(10.0)
    health.recovered("a", 10.0)
    assert health.panic
    health.answered("a", "caller", 10.5)
    assert not health.panic
    assert health.state("a") is State.RETURNING


def test_when_all_that_is_left_is_ejected_it_is_used() -> None:
    health = pool_of("abcd")
    fail(health, "a", 0.0)
    fail(health, "b", 0.0)
    health.keep("ab", 2, 1.0)
    assert health.panic
    assert health.state("a") is State.EJECTED, "a shrinking pool pardons nobody"
    assert health.usable("a")
    assert health.usable("b")


def test_a_failed_trial_does_not_eject_beyond_half_of_a_pool_that_shrank() -> None:
    health = pool_of("abcd")
    fail(health, "a", 0.0)
    fail(health, "b", 0.0)
    health.keep("abc", 3, 1.0)
    health.recovered("a", 10.0)
    assert health.failed("a", "caller", 11.0) is None
    assert health.state("a") is State.PROBING


# Pods that are not ready, and pods that are gone.


def test_what_is_told_of_a_pod_that_is_not_ready_is_ignored() -> None:
    health = pool_of("abc")
    health.keep("bc", 3, 1.0)
    assert fail(health, "a", 1.0) == [None, None, None]
    assert health.erred("a", "caller", 1.0) is None
    assert health.wedged("a", 1.0) is None
    health.answered("a", "caller", 1.0)
    health.began("a", "caller", 1.0)
    assert [health.erred("b", "caller", 1.0) for _ in range(3)] == [None, None, None]


def test_a_pod_that_is_ready_again_keeps_its_ejection_and_its_count() -> None:
    health = pool_of("ab")
    fail(health, "a", 0.0)
    health.keep("b", 2, 1.0)
    assert list(health.due(10.0)) == [], "nobody asks a pod that is not ready"
    health.recovered("a", 10.0)
    health.keep("ab", 2, 11.0)
    assert health.state("a") is State.EJECTED
    assert list(health.due(11.0)) == ["a"]
    health.recovered("a", 11.0)
    health.answered("a", "caller", 11.0)
    assert length_of_next_ejection(health, "a", 12.0) == 20


def test_a_pod_on_trial_that_was_away_is_still_on_trial() -> None:
    health = pool_of("ab")
    fail(health, "a", 0.0)
    health.recovered("a", 10.0)
    health.keep("b", 2, 11.0)
    health.keep("ab", 2, 12.0)
    assert health.state("a") is State.PROBING
    assert fail(health, "b", 12.0) == [None, None, None], "still among the half"
    health.answered("a", "caller", 12.0)
    assert health.state("a") is State.RETURNING


def test_a_warm_pod_that_was_away_for_a_moment_is_warm() -> None:
    """It must not get a tenth of the work each time that its readiness flickers: the others would go down."""
    health = pool_of("ab")
    health.keep("b", 2, 100.0)
    health.keep("ab", 2, 129.9)
    assert health.weight("a", 129.9) == 1


def test_a_pod_that_was_away_for_long_is_cold_and_begins_anew() -> None:
    health = pool_of("ab")
    fail(health, "a", 99.0, times=2)
    health.keep("b", 2, 100.0)
    health.keep("ab", 2, 130.0)
    assert health.weight("a", 130.0) == pytest.approx(0.1)
    assert health.failed("a", "caller", 131.0, sent_at=99.0) is None
    assert fail(health, "a", 131.0) == [None, None, Reason.CONSECUTIVE]


def test_a_cold_pod_that_was_away_for_a_moment_begins_its_ramp_anew() -> None:
    health = pool_of("a")
    health.keep("ab", 2, 100.0)
    health.keep("abc", 3, 110.0)
    health.keep("ac", 3, 120.0)
    health.keep("abc", 3, 121.0)
    assert health.weight("b", 121.0) == pytest.approx(0.1)
    health.due(140.0)
    assert health.ramping
    health.due(151.0)
    assert not health.ramping


def test_a_pod_that_is_gone_for_ten_minutes_is_forgotten() -> None:
    health = pool_of("ab")
    fail(health, "a", 0.0)
    health.keep("b", 1, 1.0)
    health.keep("b", 1, 600.9)
    assert health.state("a") is State.EJECTED
    health.keep("b", 1, 601.0)
    assert health.state("a") is State.HEALTHY
    health.keep("ab", 2, 602.0)
    assert length_of_next_ejection(health, "a", 603.0) == 10


def test_of_the_pods_that_are_gone_only_so_many_are_remembered() -> None:
    health = pool_of("ab")
    fail(health, "a", 0.0)
    health.keep("b", 1, 0.0)
    for each in range(256):
        health.keep(("b", f"pod-{each}"), 2, 0.0)
        health.keep("b", 1, 0.0)
    assert health.state("a") is State.HEALTHY


# Bounds and cost.


def test_what_is_held_does_not_grow_with_callers_time_or_pods_that_came_and_went() -> None:
    def size(rounds: int) -> int:
        health = pool_of("abc")
        names = count()
        for now in range(rounds):
            health.keep(("a", "b", "c", f"pod-{now % 10_000:05}"), 4, now)
            for uid in "abc":
                for _ in range(2):
                    caller = f"caller-{next(names):09}"
                    health.answered(uid, caller, now)
                    health.erred(uid, caller, now)
                    health.answered(uid, caller, now)
        return len(pickle.dumps(health))

    assert size(20_000) < 1.5 * size(2_000)


def test_an_answer_costs_next_to_nothing() -> None:
    """Judged by a ratio: to tell of an answer is not more than some ten calls of an empty function."""
    health = pool_of("abcdefgh")

    def nothing(uid: str, caller: str, now: float) -> None:
        pass

    def least(call: Callable[[str, str, float], None]) -> float:
        return min(timeit.repeat(lambda: call("c", "acme", 1.0), number=5000, repeat=9))

    assert least(health.answered) < 10 * least(nothing)
