"""A lease is small, is there only far from a limit, and what is told to Redis of it is never more than is true."""

import pytest

from gateway.limits.bucket import DAY, Bucket, Costs, Counts
from gateway.limits.leases import MAX_REMEMBERED, Lease, Leases, may_lease

RATE = Bucket(b"rate", "requests_per_day", 6400, DAY)
SLOTS = Bucket(b"slots", "concurrent", 6400, 0.0)
SMALL = Bucket(b"small", "concurrent", 31, 0.0)
TOKENS = Bucket(b"tokens", "tokens_per_day", 64_000, DAY, Counts.BOTH)
ONE: Costs = (1, 0, 0, 0)


class Woken:
    """Counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def leases() -> tuple[Leases, Woken]:
    woken = Woken()
    return Leases(woken), woken


def leased(found: Leases, bucket: Bucket, units: int, used: int = 0) -> Lease:
    """As after a call that brought so many."""
    lease = found.of(bucket)
    own, _ = found.send(lease)
    lease.used = used
    found.learn(lease, own, 0.0 if bucket.period else own + units, units, 0.0)
    return lease


def test_a_request_may_do_without_asking_if_each_of_its_limits_is_large_enough() -> None:
    assert may_lease([RATE, SLOTS], ONE)
    assert not may_lease([RATE, SLOTS, SMALL], ONE)
    assert may_lease([TOKENS], (1, 0, 0, 1000))
    assert not may_lease([TOKENS], (1, 0, 0, 1001))
    # What takes nothing must still be known to be far from its limit.
    assert may_lease([TOKENS], (1, 0, 0, 0))
    assert not may_lease([Bucket(b"x", "tokens_per_day", 63, DAY, Counts.BOTH)], (1, 0, 0, 0))


def test_as_much_is_wanted_as_was_spent_here_of_late_and_a_64th_of_a_rate_at_most() -> None:
    found, _ = leases()
    lease = found.of(RATE)
    lease.used = 30
    assert lease.wishes() == 0
    lease.wanted = True
    assert lease.wishes() == 30
    lease.spare = 12
    assert lease.wishes() == 18
    lease.used_before = 500
    assert lease.wishes() == 88
    lease.spare = 200
    assert lease.wishes() == 0


def test_of_what_runs_at_once_a_16th_is_leased_at_most() -> None:
    found, _ = leases()
    lease = found.of(Bucket(b"default", "concurrent", 32, 0.0))
    lease.used, lease.wanted = 30, True
    assert lease.wishes() == 2


def test_where_a_rate_stood_is_known_when_nothing_is_held_of_it_any_more() -> None:
    found, _ = leases()
    lease = found.of(TOKENS)
    own, _ = found.send(lease)
    found.learn(lease, own, 4000 * TOKENS.interval, 0, 0.0)
    # The answer was shorter than was thought.
    found.correct(TOKENS, -3900)
    own, _ = found.send(lease)
    found.learn(lease, own, 100 * TOKENS.interval, 0, 0.0)
    found.sweep()
    assert found.held == {}
    assert found.level(TOKENS, 0.0) == 100 * TOKENS.interval
    assert found.level(TOKENS, 40 * TOKENS.interval) == pytest.approx(60 * TOKENS.interval)
    assert found.level(TOKENS, 200 * TOKENS.interval) == 0.0
    assert found.level(RATE, 0.0) is None


def test_of_those_that_nothing_is_held_of_the_latest_are_known() -> None:
    found, _ = leases()
    for at in range(MAX_REMEMBERED + 5):
        found.of(Bucket(b"%d" % at, "tokens_per_day", 64_000, DAY)).full_at = 9e6
    # Redis never said where this one stands.
    found.of(RATE)
    found.sweep()
    assert [found.level(Bucket(b"%d" % at, "tokens_per_day", 64_000, DAY), 0.0) for at in (4, 5)] == [None, 9e6]
    assert found.level(RATE, 0.0) is None


def test_all_buckets_are_spent_from_or_none() -> None:
    found, _ = leases()
    rate, slots = leased(found, RATE, 2), leased(found, SLOTS, 1)
    assert found.spend([RATE, TOKENS], ONE, 0.0) is None
    assert found.spend([RATE, SLOTS], ONE, 0.0) == [0.0, 1]
    assert (rate.spare, slots.spare, found.running) == (1, 0, {b"slots": 1})
    assert found.spend([RATE, SLOTS], ONE, 0.0) is None
    assert rate.spare == 1


def test_what_takes_nothing_needs_a_lease_too() -> None:
    found, _ = leases()
    assert found.spend([TOKENS], ONE, 0.0) is None
    lease = leased(found, TOKENS, 1)
    assert found.spend([TOKENS], ONE, 0.0) == [0.0]
    assert (lease.spare, lease.used) == (1, 1)


def test_levels_are_the_last_ones_less_what_time_has_brought_and_what_is_not_spent() -> None:
    found, _ = leases()
    lease = found.of(RATE)
    found.send(lease)
    found.learn(lease, 0, 100 * RATE.interval, 10, 5e6)
    assert found.spend([RATE], ONE, 5e6) == [91 * RATE.interval]
    assert found.spend([RATE], ONE, 5e6 + RATE.interval) == [91 * RATE.interval]
    assert found.spend([RATE], ONE, 5e6 + DAY) == [0.0]
    slots = found.of(SLOTS)
    found.send(slots)
    found.learn(slots, 0, 40 + 5, 5, 0.0)
    assert found.spend([SLOTS], ONE, 0.0) == [41]
    assert found.spend([SLOTS], ONE, 0.0) == [42]
    found.ended(SLOTS)
    assert found.spend([SLOTS], ONE, 0.0) == [42]


def test_more_is_asked_for_before_a_lease_is_empty_and_once() -> None:
    found, woken = leases()
    lease = leased(found, RATE, 10, used=10)
    for _ in range(5):
        assert found.spend([RATE], ONE, 0.0) is not None
    assert (lease.wanted, woken.times) == (False, 0)
    for _ in range(5):
        assert found.spend([RATE], ONE, 0.0) is not None
    assert (lease.wanted, woken.times) == (True, 1)
    assert found.next_untold(9) == [lease]
    assert found.send(lease) == (0, 20)
    assert (lease.wanted, found.next_untold(9)) == (False, [])


def test_near_the_limit_all_goes_back_at_once() -> None:
    found, woken = leases()
    rate, slots = leased(found, RATE, 50), leased(found, SLOTS, 50)
    found.learn(rate, 0, DAY / 2 - 1, 0, 0.0)
    found.learn(slots, 50, 3199, 0, 0.0)
    assert (rate.spare, slots.spare, woken.times) == (50, 50, 0)
    found.learn(rate, 0, DAY / 2, 0, 0.0)
    found.learn(slots, 50, 3200, 0, 0.0)
    assert (rate.spare, slots.spare, woken.times) == (0, 0, 2)
    assert found.came_back(RATE)
    assert found.came_back(SLOTS)
    assert found.send(rate) == (-50, 0)
    assert found.send(slots) == (0, 0)


def test_what_a_request_did_not_use_is_kept_to_spare_as_far_as_a_lease_goes() -> None:
    found, woken = leases()
    lease = leased(found, TOKENS, 900)
    found.correct(TOKENS, -60)
    assert (lease.spare, lease.owed, found.next_untold(9)) == (960, 0, [])
    found.correct(TOKENS, -60)
    assert (lease.spare, lease.owed) == (1000, -20)
    # Far from the limit it need not be told at once.
    assert (found.next_untold(9), woken.times) == ([lease], 0)


def test_without_a_lease_it_is_told_and_soon_where_it_may_matter() -> None:
    found, woken = leases()
    lease = found.of(TOKENS)
    found.correct(TOKENS, -60)
    assert (lease.spare, lease.owed, woken.times) == (0, -60, 1)
    found.send(lease)
    found.learn(lease, 0, 0.0, 0, 0.0)
    found.correct(TOKENS, -60)
    assert (lease.spare, lease.owed, woken.times) == (0, -60, 1)


def test_a_debt_is_paid_from_what_is_to_spare_first() -> None:
    found, _ = leases()
    lease = leased(found, TOKENS, 900)
    found.correct(TOKENS, 800)
    assert (lease.spare, lease.owed) == (100, 0)
    found.correct(TOKENS, 800)
    assert (lease.spare, lease.owed) == (0, 700)


def test_a_slot_that_is_free_again_is_kept_if_others_are_and_else_given_back_at_once() -> None:
    found, woken = leases()
    lease = leased(found, SLOTS, 3)
    found.spend([SLOTS, SLOTS], ONE, 0.0)
    woken.times = 0
    found.ended(SLOTS)
    assert (lease.spare, found.running, woken.times) == (2, {b"slots": 1}, 0)
    lease.spare = 0
    found.ended(SLOTS)
    assert (lease.spare, found.running, woken.times) == (0, {}, 1)
    assert found.send(lease) == (0, 0)
    found.ended(SLOTS)
    assert found.running == {}


def test_what_is_owed_is_told_once_and_what_runs_as_it_is() -> None:
    found, _ = leases()
    rate, slots = found.of(RATE), found.began(SLOTS)
    found.correct(RATE, 7)
    assert [found.send(rate)[0], found.send(rate)[0]] == [7, 0]
    assert [found.send(slots)[0], found.send(slots)[0]] == [1, 1]


def test_until_an_answer_comes_redis_may_believe_in_whatever_it_was_ever_told() -> None:
    found, _ = leases()
    lease = found.began(SLOTS)
    found.send(lease)
    found.ended(SLOTS)
    found.send(lease)
    assert lease.told == 1
    found.give_up()
    found.sweep()
    found.tell_all()
    assert found.next_untold(9) == [lease]
    own, _ = found.send(lease)
    found.learn(lease, own, 0, 0, 0.0)
    assert lease.told == 0
    found.sweep()
    assert found.held == {}


def test_an_interval_over_what_was_not_spent_goes_back_and_what_is_idle_is_forgotten() -> None:
    found, woken = leases()
    lease = leased(found, RATE, 50)
    for _ in range(20):
        found.spend([RATE], ONE, 0.0)
    found.sweep()
    assert (lease.spare, lease.owed) == (20, -10)
    assert woken.times > 0
    found.sweep()
    assert (lease.spare, lease.owed) == (0, -30)
    found.sweep()
    assert found.next_untold(9) == [lease]
    found.learn(lease, found.send(lease)[0], 0.0, 0, 0.0)
    assert found.held == {b"rate": lease}
    found.sweep()
    assert found.held == {}


def test_what_runs_or_is_owed_is_not_forgotten() -> None:
    found, _ = leases()
    running = found.began(SMALL)
    owing = found.of(RATE)
    owing.owed = -3
    for _ in range(3):
        found.give_up()
        found.sweep()
    assert found.held == {b"small": running, b"rate": owing}
    found.tell_all()
    assert found.next_untold(9) == [running, owing]
    assert found.next_untold(1) == [running]


def test_without_redis_nothing_is_to_spare() -> None:
    found, _ = leases()
    rate, slots = leased(found, RATE, 50), leased(found, SLOTS, 5)
    found.spend([SLOTS], ONE, 0.0)
    found.give_up()
    assert found.spend([RATE], ONE, 0.0) is None
    assert (rate.owed, found.send(slots)) == (-50, (1, 0))


def test_a_level_is_what_redis_said_and_what_was_spent_since() -> None:
    found, _ = leases()
    # Sixty are spent there, fifty of them by this lease, of which none is used yet.
    leased(found, RATE, 50).full_at = 60 * RATE.interval
    assert found.level(RATE, 0.0) == pytest.approx(10 * RATE.interval)
    found.spend([RATE], ONE, 0.0)
    assert found.level(RATE, 0.0) == pytest.approx(11 * RATE.interval)
    assert found.level(RATE, 2 * RATE.interval) == pytest.approx(9 * RATE.interval)
    leased(found, SLOTS, 5)
    found.spend([SLOTS], ONE, 0.0)
    assert found.level(SLOTS, 0.0) == 1
    assert found.level(SMALL, 0.0) is None
