"""What the balancer promises, one by one; time is a number that the test moves. For any interleaving of it all see
tests/property/test_leases.py."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf

import pytest

from gateway.balancing.affinity import TOKENS_PER_BLOCK, ends_of
from gateway.balancing.balancer import (
    Balancer,
    Blame,
    Lease,
    Seat,
)
from gateway.balancing.policy import Wish
from gateway.core.cell import Cell
from gateway.core.errors import QueueFull, QueueTimeout
from gateway.core.fleet import Fleet, Gauges, Pod, PodHealth, PodLoad, PodState, Policy, Pool, Route
from tests.fakes import Hands

COUNT_FRESH_SECONDS = 1.2
"""As a pod is asked for its count now: three intervals."""

READY, STARTING, DRAINING = PodState.READY, PodState.STARTING, PodState.DRAINING
SMALL = Pool("p", policy="least", max_in_flight_per_pod=2, queue_limit=8)


class World:
    """A balancer, and a fleet whose pods are named by a letter. All models are served by all pods of the pool `p`,
    unless `models` says otherwise."""

    def __init__(
        self, pods: str, pool: Pool = SMALL, *, models: Mapping[str, str] | None = None, chance: float = 0.5
    ) -> None:
        self.clock = Hands()
        self.pool = pool
        self.states = dict.fromkeys(pods, READY)
        self.models = models
        self.limits: dict[str, int] = {}
        self.ejections: list[tuple[str, str]] = []
        # Who is there before the fleet is known whole is warm.
        self.fleet = Cell(replace(self._published(), asked=False))
        self.balancer = Balancer(
            self.fleet,
            clock=self.clock,
            chance=lambda: chance,
            ejected=lambda pool, reason: self.ejections.append((pool, reason)),
        )
        self.balancer.update()
        self.publish()

    def _published(self) -> Fleet:
        pods = tuple(
            Pod(uid, f"pod-{uid}", self.pool.name, "h", 1, state, max_in_flight=self.limits.get(uid))
            for uid, state in self.states.items()
        )
        served = {"m": "".join(self.states)} if self.models is None else self.models
        routes = {
            model: Route(
                model, self.pool, tuple(pod for pod in pods if pod.uid in uids and pod.state is PodState.READY)
            )
            for model, uids in served.items()
        }
        return Fleet(pods, routes, listed=True, asked=True)

    def publish(self, *, told: bool = True, **states: PodState | None) -> None:
        """These pods are in these states now, or gone (None)."""
        for uid, state in states.items():
            self.states.pop(uid, None)
            if state is not None:
                self.states[uid] = state
        self.fleet.set(self._published())
        if told:
            self.balancer.update()

    def route(self, model: str = "m") -> Route:
        return self.fleet.value.routes[model]

    def lease(self, *, without: str = "", retry: bool = False, model: str = "m") -> Lease | None:
        return self.balancer.lease_nowait(model, Wish(), tuple(without), retry=retry)

    def take(self, uid: str | None = None, *, retry: bool = False, model: str = "m") -> Lease:
        """A lease; of this pod."""
        others = "" if uid is None else "".join(self.states).replace(uid, "")
        lease = self.lease(without=others, retry=retry, model=model)
        assert lease is not None
        return lease

    def fill(self) -> list[Lease]:
        """Take all the room there is."""
        taken = []
        while (lease := self.lease()) is not None:
            taken.append(lease)
        return taken

    def room(self, uid: str) -> int:
        """How many leases a pod gives now; they are given back."""
        taken = []
        while (lease := self.lease(without="".join(self.states).replace(uid, ""))) is not None:
            taken.append(lease)
        for lease in taken:
            lease.close()
        return len(taken)

    def seat(self, uid: str) -> Seat:
        seat = self.balancer.seat_of(uid)
        assert seat is not None
        return seat

    def wait(
        self, *, caller: str = "caller", retry: bool = False, model: str = "m", seconds: float = 10.0
    ) -> "asyncio.Task[Lease]":
        waiting = self.balancer.wait_for_room(
            self.route(model), Wish(), (), retry=retry, caller=caller, deadline=self.clock() + seconds
        )
        return asyncio.create_task(waiting)

    def pass_time(self, seconds: float) -> None:
        """Time passes, and is noticed."""
        self.clock.now += seconds
        self.balancer.sweep(self.clock())

    def fail(self, uid: str, blame: Blame = Blame.POD, times: int = 1, caller: str = "caller") -> None:
        for _ in range(times):
            with (lease := self.take(uid)):
                lease.failed(blame, caller)

    def eject(self, uid: str) -> None:
        self.fail(uid, times=3)
        assert uid in self.balancer.ejected

    def judge(self, *, alive: bool) -> list[str]:
        """Ask the pods that are due, all with this answer; their uids."""
        due = self.balancer.due(self.clock())
        for pod in due:
            self.balancer.judged(pod, alive=alive)
        return [pod.uid for pod in due]

    def try_out(self, uid: str) -> None:
        """An ejected pod's time is over, and its `/health` says 200."""
        self.pass_time(13.0)
        assert self.judge(alive=True) == [uid]

    def read(self, uid: str, count: int | None, own: int = 0) -> None:
        load = PodLoad(in_flight=count, in_flight_own=own, in_flight_read_at=self.clock())
        self.balancer.load_read(uid, load, self.clock() + COUNT_FRESH_SECONDS)

    def depth(self) -> int:
        return dict(self.balancer.waiting())[self.pool.name]


async def turn() -> None:
    """Let whoever can run do so."""
    for _ in range(3):
        await asyncio.sleep(0)


class TestRoom:
    def test_a_pod_takes_its_limit_and_no_more(self) -> None:
        world = World("ab")
        taken = world.fill()
        assert len(taken) == 4
        assert world.balancer.in_flight("a") == world.balancer.in_flight("b") == 2
        taken[0].close()
        again = world.lease()
        assert again is not None
        assert again.seat is taken[0].seat
        assert world.lease() is None

    def test_a_pods_own_annotation_wins_over_its_pools_limit(self) -> None:
        world = World("ab")
        world.limits["a"] = 5
        world.publish()
        assert (world.room("a"), world.room("b")) == (5, 2)

    def test_another_limit_of_the_pool_holds_at_once(self) -> None:
        world = World("a")
        world.pool = replace(SMALL, max_in_flight_per_pod=3)
        world.publish()
        assert world.room("a") == 3

    def test_none_of_the_excluded_pods_is_given(self) -> None:
        world = World("ab")
        assert {world.take("a").seat.uid for _ in range(2)} == {"a"}
        assert world.lease(without="b") is None
        assert world.lease(without="ab") is None

    def test_a_model_gets_its_own_pods_alone(self) -> None:
        world = World("ab", models={"m": "ab", "adapter": "b"})
        assert [world.take(model="adapter").seat.uid for _ in range(2)] == ["b", "b"]
        assert world.lease(model="adapter") is None
        assert world.take().seat.uid == "a"

    def test_a_model_without_a_route_gets_nothing(self) -> None:
        world = World("a")
        assert world.balancer.lease_nowait("unknown", Wish()) is None

    def test_what_others_have_there_counts_against_a_pods_limit_while_it_is_fresh(self) -> None:
        world = World("ab")
        world.read("a", count=3, own=2)
        assert (world.room("a"), world.room("b")) == (1, 2)
        world.pass_time(COUNT_FRESH_SECONDS - 0.01)
        assert world.room("a") == 1
        world.pass_time(0.01)
        assert world.room("a") == 2

    def test_our_own_requests_are_not_counted_twice(self) -> None:
        world = World("ab")
        world.read("a", count=2, own=2)
        assert world.room("a") == 2
        world.read("a", count=1, own=2)
        assert world.room("a") == 2
        assert world.seat("a").others == 0

    def test_a_pod_whose_count_is_not_believed_any_more_has_none(self) -> None:
        world = World("ab")
        world.read("a", count=1)
        world.read("a", count=None)
        assert world.room("a") == 2
        world.read("nobody", count=7)

    def test_a_new_pod_gets_a_growing_share_of_its_limit(self) -> None:
        world = World("a", replace(SMALL, max_in_flight_per_pod=20))
        world.publish(b=READY)
        assert (world.room("a"), world.room("b")) == (20, 2)
        world.pass_time(15.0)
        assert world.room("b") == 11
        world.pass_time(15.0)
        world.balancer.due(world.clock())
        assert world.room("b") == 20

    def test_however_new_a_pod_is_it_gets_one_request(self) -> None:
        world = World("a")
        world.publish(b=READY)
        assert world.room("b") == 1


class TestChoosing:
    def test_the_pools_policy_chooses(self) -> None:
        world = World("abc", replace(SMALL, policy="round_robin", max_in_flight_per_pod=3))
        leases = [world.take() for _ in range(6)]
        assert [lease.choice.reason for lease in leases] == ["round_robin"] * 6
        assert [lease.seat.uid for lease in leases[:3]] == [lease.seat.uid for lease in leases[3:]]
        assert {lease.seat.uid for lease in leases} == {*"abc"}

    def test_where_only_one_pod_has_room_nothing_is_weighed(self) -> None:
        world = World("ab")
        assert world.take("a").choice.reason == "only"

    def test_what_was_chosen_is_counted_before_anything_else_can_run(self) -> None:
        world = World("abcd")
        assert {world.take().seat.uid for _ in range(4)} == {*"abcd"}

    def test_a_failed_attempt_counts_for_a_second_more_in_the_choice_alone(self) -> None:
        world = World("ab")
        with world.take("a"):
            pass
        world.fail("a", Blame.NONE)
        assert (world.seat("a").failed, world.balancer.in_flight("a"), world.balancer.active) == (1, 0, 0)
        assert world.room("a") == 2
        for _ in range(5):
            with world.take() as pod:
                assert pod.uid == "b"
        world.clock.now += 1.0
        world.take().close()
        assert world.seat("a").failed == 0

    def test_a_failure_is_forgotten_without_any_choice(self) -> None:
        world = World("ab")
        world.fail("a", Blame.NONE)
        world.pass_time(0.99)
        assert world.seat("a").failed == 1
        world.pass_time(0.01)
        assert world.seat("a").failed == 0

    def test_what_a_prompt_leaves_in_a_cache_is_known(self) -> None:
        world = World("ab")
        blocks = (1, 2, 3)
        lease = world.balancer.lease_nowait("m", Wish(100, blocks), ())
        assert lease is not None
        assert world.balancer._cache.cached(lease.seat.uid, blocks) == 3
        uid = lease.seat.uid
        lease.close()
        world.states.pop(uid)
        world.publish()
        assert world.balancer._cache.cached(uid, blocks) == 0

    def test_a_cache_is_believed_to_hold_no_more_than_it_can(self) -> None:
        world = World("ab")
        blocks = ends_of(range(100, 164))

        def believed() -> int:
            with (lease := world.take("a")) as pod:
                assert pod.uid == "a"
                world.balancer._cache.sent(lease.seat.uid, blocks)
            return world.balancer._cache.cached("a", blocks)

        def tell(tokens: int | None) -> None:
            load = PodLoad(gauges=Gauges(cache_tokens=tokens))
            world.balancer.load_read("a", load, 0.0)

        tell(None)
        assert believed() == 64
        tell(10 * TOKENS_PER_BLOCK)
        assert believed() == 10
        tell(36 * TOKENS_PER_BLOCK)
        assert believed() == 36
        tell(0)
        assert believed() == 0

    def test_what_is_cached_is_no_work(self) -> None:
        world = World("ab", replace(SMALL, policy="auto"))
        wish = Wish(3 * TOKENS_PER_BLOCK + 10, (1, 2, 3))
        left = []
        for _ in range(5):
            lease = world.balancer.lease_nowait("m", wish, ())
            assert lease is not None
            assert world.seat(lease.seat.uid).pending_tokens == wish.tokens - lease.choice.cached_tokens
            left.append(lease.tokens)
            lease.close()
        assert {*left} == {wish.tokens, 10}

    def test_the_prompt_is_work_ahead_until_the_first_token(self) -> None:
        world = World("a")
        one, other = (world.balancer.lease_nowait("m", Wish(tokens), ()) for tokens in (100, 30))
        assert one is not None
        assert other is not None
        assert world.seat("a").pending_tokens == 130
        one.began(world.clock())
        assert world.seat("a").pending_tokens == 30
        one.close()
        other.close()
        assert world.seat("a").pending_tokens == 0


class TestLeases:
    def test_a_lease_gives_back_once_whatever_happens(self) -> None:
        world = World("ab")
        lease = world.take("a")
        assert world.balancer.in_flight("a") == world.balancer.active == 1
        assert world.balancer.in_flight_by_model() == {"m": 1}
        with pytest.raises(KeyError), lease:
            raise KeyError("whatever happens")
        assert world.balancer.in_flight("a") == world.balancer.active == 0
        lease.close()
        lease.close()
        assert world.balancer.in_flight("a") == world.balancer.active == 0
        assert world.balancer.in_flight_by_model() == {"m": 0}

    def test_a_model_without_requests_is_known_as_long_as_there_is_a_route_to_it(self) -> None:
        world = World("a")
        world.take().close()
        world.publish()
        assert world.balancer.in_flight_by_model() == {"m": 0}

    def test_a_model_is_forgotten_with_its_route(self) -> None:
        world = World("a", models={"m": "a", "adapter": "a"})
        running = world.take(model="adapter")
        world.take().close()
        world.models = {}
        world.publish()
        assert world.balancer.in_flight_by_model() == {"adapter": 1}
        running.close()
        world.publish()
        assert world.balancer.in_flight_by_model() == {}

    def test_when_a_pod_was_last_heard_of_is_known(self) -> None:
        world = World("a")
        assert world.seat("a").heard_at == world.clock()
        lease = world.take()
        lease.began(1234.5)
        assert world.seat("a").heard_at == 1234.5

    def test_the_slowest_first_token_of_late_fades(self) -> None:
        world = World("a", replace(SMALL, max_in_flight_per_pod=10))
        slow, *quick = [world.take() for _ in range(4)]
        for lease in (slow, *quick):
            lease.sent_at = world.clock()
        slow.streams("caller", world.clock() + 8.0)
        assert world.seat("a").slowest == 8.0
        for lease in quick:
            lease.streams("caller", world.clock() + 1.0)
        assert world.seat("a").slowest == pytest.approx(8.0 * 0.98**3)

    def test_until_it_is_sent_a_lease_says_so(self) -> None:
        assert World("a").take().sent_at == inf


class TestRetryBudget:
    def test_a_few_retries_are_allowed_in_any_case(self) -> None:
        world = World("a", replace(SMALL, max_in_flight_per_pod=100))
        retries = [world.take(retry=True) for _ in range(10)]
        assert not world.balancer.may_retry
        retries[0].close()
        assert world.balancer.may_retry

    def test_with_many_requests_a_tenth_of_them_may_be_retries(self) -> None:
        world = World("a", replace(SMALL, max_in_flight_per_pod=1000))
        for _ in range(180):
            world.take()
        for _ in range(20):
            assert world.balancer.may_retry
            world.take(retry=True)
        assert not world.balancer.may_retry

    def test_a_retry_counts_until_its_first_byte(self) -> None:
        world = World("a", replace(SMALL, max_in_flight_per_pod=100))
        retries = [world.take(retry=True) for _ in range(10)]
        retries[0].began(world.clock())
        assert world.balancer.may_retry
        world.take(retry=True)
        assert not world.balancer.may_retry
        retries[0].close()
        assert not world.balancer.may_retry

    async def test_a_retry_that_waits_for_room_counts_too(self) -> None:
        """A pod that dies when all are full puts no more of its requests in the line than the budget allows."""
        world = World("a", replace(SMALL, queue_limit=100))
        running = world.fill()
        waiting = [world.wait(retry=True) for _ in range(10)]
        await turn()
        assert not world.balancer.may_retry
        waiting[0].cancel()
        await turn()
        assert world.balancer.may_retry
        running[0].close()
        await turn()
        # Given a slot it counts as before: once.
        assert (await waiting[1]).retry
        assert world.balancer._retrying == 10 - 1
        world.pass_time(11.0)
        await turn()
        assert world.balancer._retrying == 1


class TestRest:
    def test_a_busy_pod_is_left_alone_as_long_as_it_asked_for(self) -> None:
        world = World("ab")
        lease = world.take("a")
        lease.failed(Blame.BUSY, "caller", 2.0)
        lease.close()
        assert (world.room("a"), world.room("b")) == (0, 2)
        world.pass_time(1.99)
        assert world.room("a") == 0
        world.pass_time(0.02)
        assert world.room("a") == 2

    def test_no_pod_rests_for_longer_than_a_moment(self) -> None:
        world = World("a")
        lease = world.take()
        lease.failed(Blame.BUSY, "caller", 60.0)
        lease.close()
        world.pass_time(4.99)
        assert world.room("a") == 0
        world.pass_time(0.02)
        assert world.room("a") == 2

    def test_a_busy_pod_is_not_ejected(self) -> None:
        world = World("ab")
        for _ in range(10):
            lease = world.take("a")
            lease.failed(Blame.BUSY, "caller", 0.0)
            lease.close()
            world.pass_time(0.1)
        assert not world.ejections
        assert world.room("a") == 2

    async def test_who_waits_while_every_pod_rests_is_served_when_the_first_has_rested(self) -> None:
        world = World("ab")
        for uid, seconds in (("a", 3.0), ("b", 1.0)):
            lease = world.take(uid)
            lease.failed(Blame.BUSY, "caller", seconds)
            lease.close()
        assert world.lease() is None
        waiting = world.wait()
        await turn()
        assert not waiting.done()
        world.pass_time(1.01)
        assert (await waiting).seat.uid == "b"


class TestEjection:
    def test_a_pod_that_failed_three_times_gets_nothing_and_its_pool_is_told(self) -> None:
        world = World("ab")
        world.fail("a", times=2)
        assert not world.ejections
        world.fail("a")
        assert world.ejections == [("p", "consecutive")]
        assert list(world.balancer.ejected) == ["a"]
        assert (world.room("a"), world.room("b")) == (0, 2)

    def test_what_is_not_a_pods_fault_does_not_eject_it(self) -> None:
        world = World("ab")
        # A 500 of which nothing says that it is the pod's.
        world.fail("a", Blame.IN_DOUBT, times=5)
        with (lease := world.take("b")):
            lease.answered("caller")
        world.fail("a", Blame.NONE, times=5)
        assert not world.ejections

    def test_a_doubt_is_settled_by_what_others_answer_the_same_caller(self) -> None:
        world = World("ab")
        with (lease := world.take("b")):
            lease.answered("caller")
        world.fail("a", Blame.IN_DOUBT, times=3)
        assert world.ejections == [("p", "consecutive")]

    def test_an_answer_ends_the_row_of_failures(self) -> None:
        world = World("ab")
        world.fail("a", times=2)
        with (lease := world.take("a")):
            lease.answered("caller")
        world.fail("a", times=2)
        assert not world.ejections

    def test_a_failure_of_what_was_sent_before_the_pods_return_does_not_count(self) -> None:
        world = World("ab")
        old = world.take("a")
        old.sent_at = world.clock()
        world.eject("a")
        world.try_out("a")
        old.failed(Blame.POD, "caller")
        assert world.balancer.health_of("a").state == "probing"
        fresh = world.take("a")
        fresh.sent_at = world.clock()
        fresh.failed(Blame.POD, "caller")
        assert world.ejections == [("p", "consecutive"), ("p", "probe")]

    def test_how_a_pod_fares_can_be_looked_at(self) -> None:
        world = World("ab", chance=0.0)
        assert world.balancer.health_of("a") == PodHealth()
        assert world.balancer.health_of("nobody") == PodHealth()
        world.eject("a")
        at = world.clock.now
        world.clock.now += 1.0
        assert world.balancer.health_of("a") == PodHealth("ejected", "consecutive", 9.0, 1.0, at)
        world.try_out("a")
        assert world.balancer.health_of("a") == PodHealth("probing", "consecutive", 0.0, 1.0, at)
        with (lease := world.take("a")):
            lease.answered("caller")
        assert world.balancer.health_of("a") == PodHealth("returning", "consecutive", 0.0, 0.1, at)
        assert world.balancer.health_of("b") == PodHealth()

    def test_a_wedged_pod_is_ejected_and_says_so_again_when_asked_again(self) -> None:
        world = World("ab")
        assert world.balancer.wedged(world.seat("a"))
        assert world.balancer.wedged(world.seat("a"))
        assert world.ejections == [("p", "wedged")]
        assert world.room("a") == 0
        # More than half of the pods are not ejected.
        assert not world.balancer.wedged(world.seat("b"))
        assert world.room("b") == 2

    def test_a_pod_that_is_still_sick_stays_out(self) -> None:
        world = World("ab")
        world.eject("a")
        world.pass_time(13.0)
        assert world.judge(alive=False) == ["a"]
        assert world.room("a") == 0
        world.pass_time(13.0)
        assert world.judge(alive=True) == []
        world.pass_time(13.0)
        assert world.judge(alive=True) == ["a"]

    @pytest.mark.parametrize("policy", ["least", "auto"])
    def test_with_too_few_others_left_the_ejected_ones_are_used_all_the_same(self, policy: Policy) -> None:
        world = World("abcd", replace(SMALL, policy=policy))
        world.eject("a")
        world.eject("b")
        assert dict(world.balancer.panics()) == {"p": False}
        world.publish(c=STARTING, d=STARTING)
        assert dict(world.balancer.panics()) == {"p": True}
        assert (world.room("a"), world.room("b")) == (2, 2)
        assert world.take().choice.reason == "panic"
        world.publish(d=READY)
        assert dict(world.balancer.panics()) == {"p": True}
        assert (world.take("a").choice.reason, world.take("d").choice.reason) == ("panic", "only")
        world.publish(c=READY)
        assert dict(world.balancer.panics()) == {"p": False}
        assert world.room("a") == 0
        assert world.take("c").choice.reason == "only"

    def test_pods_that_sleep_are_not_missed(self) -> None:
        world = World("abcd")
        world.eject("a")
        world.publish(c=PodState.ASLEEP, d=PodState.ASLEEP)
        assert dict(world.balancer.panics()) == {"p": False}
        world.publish(c=STARTING)
        assert dict(world.balancer.panics()) == {"p": True}

    def test_in_panic_a_pod_on_trial_gets_its_whole_limit(self) -> None:
        world = World("abcd")
        world.eject("a")
        world.eject("b")
        world.pass_time(13.0)
        assert world.judge(alive=True) == ["a", "b"]
        world.publish(c=STARTING, d=None)
        assert dict(world.balancer.panics()) == {"p": True}
        assert world.room("a") == 2
        assert world.take("a").choice.reason == "panic"


class TestTrial:
    """A pod that came back from an ejection gets one request at a time."""

    @pytest.fixture(params=["least", "auto"])
    def world(self, request: pytest.FixtureRequest) -> World:
        world = World("abc", replace(SMALL, max_in_flight_per_pod=30, policy=request.param))
        world.eject("a")
        world.try_out("a")
        return world

    def test_the_next_request_tries_it_and_no_second_one_meanwhile(self, world: World) -> None:
        probe = world.take()
        assert (probe.seat.uid, probe.choice.reason) == ("a", "probe")
        assert {world.take().seat.uid for _ in range(6)} == {*"bc"}
        probe.began(world.clock())
        probe.answered("caller")
        assert world.balancer.health_of("a").state == "returning"
        # It has a tenth of its limit, at once, and one of them runs.
        assert world.room("a") == 2
        probe.close()
        assert world.room("a") == 3
        assert world.take("a").choice.reason == "only"

    def test_it_is_tried_although_older_requests_fill_it(self) -> None:
        world = World("ab")
        world.take("a")
        world.take("a")
        world.balancer.wedged(world.seat("a"))
        world.try_out("a")
        assert world.take("a").seat.uid == "a"
        assert world.lease(without="b") is None

    def test_a_failed_trial_ejects_it_again(self, world: World) -> None:
        with (probe := world.take()):
            probe.failed(Blame.POD, "caller")
        assert world.ejections[-1] == ("p", "probe")
        assert world.room("a") == 0

    def test_a_trial_that_ends_without_a_word_is_repeated(self, world: World) -> None:
        """Its client left: that says nothing of the pod."""
        for _ in range(3):
            with (probe := world.take()) as pod:
                assert (pod.uid, probe.choice.reason) == ("a", "probe")

    def test_the_first_token_of_a_stream_is_a_success(self, world: World) -> None:
        probe = world.take()
        probe.sent_at = world.clock()
        probe.began(world.clock())
        probe.streams("caller", world.clock())
        assert world.balancer.health_of("a").state == "returning"
        assert world.room("a") == 2
        world.pass_time(10.0)
        assert world.room("a") == 11

    def test_a_retry_does_not_try_it_while_another_pod_has_room(self, world: World) -> None:
        retries = [world.take(retry=True) for _ in range(60)]
        assert {lease.seat.uid for lease in retries} == {*"bc"}
        last = world.take(retry=True)
        assert (last.seat.uid, last.choice.reason) == ("a", "only")
        assert world.lease() is None

    def test_a_trial_without_end_does_not_keep_the_pod_out_of_the_next_one(self, world: World) -> None:
        """A request hangs there; found wedged, the pod is ejected and comes back before its last deadline."""
        hangs = world.take()
        assert world.balancer.wedged(world.seat("a"))
        world.pass_time(23.0)
        assert world.judge(alive=True) == ["a"]
        again = world.take()
        assert (again.seat.uid, again.choice.reason) == ("a", "probe")
        # The end of the first one is not that of the second.
        hangs.close()
        assert world.lease(without="bc") is None
        again.close()
        assert world.room("a") == 1

    def test_a_pod_that_went_away_during_its_trial_can_be_tried_when_it_is_back(self) -> None:
        world = World("abc")
        old = world.take("a")
        world.balancer.wedged(world.seat("a"))
        world.try_out("a")
        trial = world.take()
        world.publish(a=None)
        world.publish(a=READY)
        assert world.lease(without="bc") is None
        world.publish(a=None)
        trial.close()
        # Its seat is kept: there is a request yet.
        assert world.seat("a") is old.seat
        world.publish(a=READY)
        assert world.take("a").choice.reason == "probe"


class TestWaiting:
    async def test_a_slot_that_comes_free_reaches_the_first_in_line(self) -> None:
        world = World("a")
        one, other = world.fill()
        first, second = world.wait(), world.wait()
        await turn()
        assert world.depth() == 2
        one.close()
        # Counted for the waiter before it wakes: nobody else gets it.
        assert world.balancer.in_flight("a") == 2
        assert world.lease() is None
        assert (await first).seat.uid == "a"
        assert not second.done()
        other.close()
        await second
        assert world.depth() == 0

    async def test_what_a_waiter_wished_for_is_what_its_slot_is_chosen_by(self) -> None:
        world = World("a")
        (one, other) = world.fill()
        waiting = world.balancer.wait_for_room(world.route(), Wish(123), (), retry=False, caller="caller", deadline=1e9)
        task = asyncio.create_task(waiting)
        await turn()
        one.close()
        await task
        assert world.seat("a").pending_tokens == 123
        other.close()

    async def test_a_waiter_is_not_given_the_pods_that_failed_it(self) -> None:
        world = World("ab")
        leases = {lease.seat.uid: lease for lease in world.fill()}
        waiting = world.balancer.wait_for_room(world.route(), Wish(), {"a"}, retry=True, caller="c", deadline=1e9)
        task = asyncio.create_task(waiting)
        await turn()
        leases["a"].close()
        await turn()
        assert not task.done()
        leases["b"].close()
        assert (await task).seat.uid == "b"

    async def test_an_ended_lease_hands_out_one_slot(self) -> None:
        world = World("ab")
        leases = world.fill()
        waiting = [world.wait() for _ in range(3)]
        await turn()
        leases[0].close()
        await turn()
        assert [task.done() for task in waiting] == [True, False, False]

    async def test_who_cannot_wait_any_longer_is_told_so(self) -> None:
        world = World("a")
        world.fill()
        waiting = world.wait(seconds=10.0)
        await turn()
        world.pass_time(9.9)
        await turn()
        assert not waiting.done()
        world.pass_time(0.1)
        with pytest.raises(QueueTimeout) as told:
            await waiting
        assert told.value.code == "queue_timeout"
        assert world.depth() == 0

    async def test_a_full_line_takes_nobody_more(self) -> None:
        world = World("a", replace(SMALL, queue_limit=1))
        world.fill()
        waiting = world.wait()
        await turn()
        with pytest.raises(QueueFull):
            await world.wait()
        assert not waiting.done()
        assert world.depth() == 1
        waiting.cancel()

    async def test_the_newest_settings_of_the_pool_bound_the_line(self) -> None:
        world = World("a", replace(SMALL, queue_limit=0))
        world.fill()
        with pytest.raises(QueueFull):
            await world.wait()
        world.pool = replace(SMALL, queue_limit=1)
        world.publish()
        waiting = world.wait()
        await turn()
        assert not waiting.done()
        waiting.cancel()

    async def test_who_made_way_is_told_that_the_line_is_full(self) -> None:
        world = World("a", replace(SMALL, queue_limit=2))
        world.fill()
        greedy = [world.wait(caller="greedy") for _ in range(2)]
        await turn()
        modest = world.wait(caller="modest")
        await turn()
        with pytest.raises(QueueFull):
            await greedy[1]
        assert not greedy[0].done()
        assert not modest.done()
        for task in (greedy[0], modest):
            task.cancel()

    async def test_when_the_gateway_goes_away_nobody_waits(self) -> None:
        world = World("a")
        world.fill()
        waiting = world.wait(seconds=1e9)
        await turn()
        world.balancer.turn_all_away()
        with pytest.raises(QueueTimeout):
            await waiting

    async def test_a_waiter_that_is_cancelled_gives_up_its_place(self) -> None:
        world = World("a")
        (one, _) = world.fill()
        first, second = world.wait(), world.wait()
        await turn()
        first.cancel()
        await turn()
        assert world.depth() == 1
        one.close()
        await second

    async def test_a_waiter_that_is_cancelled_as_it_is_given_a_slot_passes_it_on(self) -> None:
        world = World("a")
        (one, _) = world.fill()
        first, second = world.wait(), world.wait()
        await turn()
        one.close()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await second).seat.uid == "a"
        assert world.balancer.in_flight("a") == world.balancer.active == 2

    async def test_a_waiter_that_is_cancelled_in_the_turn_before_the_slot_loses_it_to_the_next(self) -> None:
        world = World("a")
        (one, _) = world.fill()
        first, second = world.wait(), world.wait()
        await turn()
        first.cancel()
        one.close()
        assert (await second).seat.uid == "a"
        assert world.balancer.active == 2

    @pytest.mark.parametrize(
        "opens",
        [
            lambda world: world.read("a", count=0),
            lambda world: world.pass_time(COUNT_FRESH_SECONDS),
            lambda world: world.publish(b=READY),
            lambda world: world.limits.update(a=4) or world.publish(),
        ],
        ids=["its-count-falls", "its-count-is-old", "a-pod-joins", "a-limit-is-raised"],
    )
    async def test_room_that_opens_in_any_way_is_handed_out_at_once(self, opens: Callable[[World], object]) -> None:
        world = World("a")
        world.read("a", count=2)
        assert world.lease() is None
        waiting = world.wait()
        await turn()
        assert not waiting.done()
        opens(world)
        # Whoever comes now does not overtake it.
        taken = world.balancer.active
        assert taken == 1
        assert (await waiting).seat.in_flight == 1

    async def test_a_pod_that_comes_back_from_an_ejection_takes_from_the_line(self) -> None:
        world = World("ab")
        world.eject("a")
        world.fill()
        waiting = [world.wait(seconds=100.0) for _ in range(2)]
        await turn()
        world.try_out("a")
        await turn()
        assert [task.done() for task in waiting] == [True, False]
        trial = await waiting[0]
        assert trial.choice.reason == "probe"
        # Its first token lets the next one in as soon as the pod's share allows.
        trial.sent_at = world.clock()
        trial.began(world.clock())
        trial.streams("caller", world.clock())
        world.pass_time(30.0)
        assert (await waiting[1]).seat.uid == "a"

    async def test_requests_wait_for_the_first_pod_of_an_empty_pool(self) -> None:
        world = World("", replace(SMALL, hold_empty_seconds=60), models={"m": "a"})
        waiting = [world.wait() for _ in range(3)]
        await turn()
        world.publish(a=STARTING)
        await turn()
        assert not any(task.done() for task in waiting)
        world.publish(a=READY)
        await turn()
        assert [task.done() for task in waiting] == [True, True, False]
        waiting[2].cancel()

    async def test_a_pod_that_the_newest_fleet_takes_away_is_not_handed_out_before_that_fleet_was_looked_at(
        self,
    ) -> None:
        world = World("ab")
        leases = {lease.seat.uid: lease for lease in world.fill()}
        waiting = world.wait()
        await turn()
        world.publish(a=DRAINING, told=False)
        leases["a"].close()
        await turn()
        assert not waiting.done()
        leases["b"].close()
        world.balancer.update()
        assert (await waiting).seat.uid == "b"

    async def test_a_model_that_is_new_in_a_fleet_not_looked_at_yet_harms_nobody(self) -> None:
        world = World("a", models={"m": "a", "new": ""})
        waiting = world.wait(model="new")
        running = world.take()
        await turn()
        world.models = {"m": "a"}
        world.publish()
        world.models = {"m": "a", "new": "b"}
        world.publish(b=READY, told=False)
        running.close()
        world.balancer.sweep(world.clock())
        assert not waiting.done()
        world.balancer.update()
        assert (await waiting).seat.uid == "b"

    async def test_each_pool_has_a_line_of_its_own(self) -> None:
        world = World("a")
        running = world.fill()
        elsewhere = Route("n", Pool("q"), ())
        waiting = world.balancer.wait_for_room(elsewhere, Wish(), (), retry=False, caller="c", deadline=1e9)
        task = asyncio.create_task(waiting)
        await turn()
        assert dict(world.balancer.waiting()) == {"p": 0, "q": 1}
        running[0].close()
        await turn()
        assert not task.done()
        task.cancel()


class TestRetryAfter:
    """How long those are told to stay away that found no place."""

    async def refused(self, world: World) -> float:
        with pytest.raises(QueueFull) as told:
            await world.wait(caller="late")
        return told.value.retry_after_seconds

    async def test_without_any_experience_it_is_a_guess(self) -> None:
        world = World("a", replace(SMALL, queue_limit=0))
        world.fill()
        assert await self.refused(world) == pytest.approx(5.0)

    async def test_it_is_as_long_as_the_line_takes_at_the_pace_of_late(self) -> None:
        world = World("a", replace(SMALL, queue_limit=3))
        leases = world.fill()
        waiting = [world.wait(caller=str(number)) for number in range(3)]
        await turn()
        world.clock.now += 2.0
        leases[0].close()
        waiting.append(world.wait(caller="3"))
        await turn()
        # Three wait, each for two seconds, and then it is the next one's turn.
        assert await self.refused(world) == pytest.approx(8.0)
        world.clock.now += 2.8
        leases[1].close()
        waiting.append(world.wait(caller="4"))
        await turn()
        assert await self.refused(world) == pytest.approx(4 * 2.1)
        for task in waiting:
            task.cancel()

    async def test_two_slots_at_once_count_as_two(self) -> None:
        world = World("a", replace(SMALL, queue_limit=2))
        world.fill()
        waiting = [world.wait(caller=str(number)) for number in range(2)]
        await turn()
        world.clock.now += 6.0
        world.publish(b=READY, c=READY)
        waiting += [world.wait(caller=str(number)) for number in range(2, 4)]
        await turn()
        assert await self.refused(world) == pytest.approx(3 * 3.0)
        for task in waiting:
            task.cancel()

    async def test_it_is_at_least_as_long_as_the_line_has_stood_still(self) -> None:
        world = World("a", replace(SMALL, queue_limit=1))
        leases = world.fill()
        first = world.wait()
        await turn()
        world.clock.now += 1.0
        leases[0].close()
        await turn()
        second = world.wait()
        await turn()
        world.clock.now += 7.0
        assert await self.refused(world) == pytest.approx(7.0)
        second.cancel()
        await first
        await turn()
        # A new line has not stood still, however long ago the old one was.
        world.clock.now += 50.0
        third = world.wait()
        await turn()
        assert await self.refused(world) == pytest.approx(2.0)
        third.cancel()

    @pytest.mark.parametrize(("chance", "seconds"), [(0.0, 4.5), (0.5, 5.0), (1.0, 5.5)])
    async def test_not_all_are_told_the_same(self, chance: float, seconds: float) -> None:
        world = World("a", replace(SMALL, queue_limit=0), chance=chance)
        world.fill()
        assert await self.refused(world) == pytest.approx(seconds)

    @pytest.mark.parametrize(("slot_seconds", "told"), [(0.001, 1.0), (500.0, 60.0)])
    async def test_it_is_a_second_at_least_and_a_minute_at_most(self, slot_seconds: float, told: float) -> None:
        world = World("a", replace(SMALL, queue_limit=1))
        leases = world.fill()
        waiting = [world.wait(seconds=1e9)]
        await turn()
        world.clock.now += slot_seconds
        leases[0].close()
        waiting.append(world.wait())
        await turn()
        assert await self.refused(world) == pytest.approx(told)
        for task in waiting:
            task.cancel()

    async def test_who_waited_in_vain_is_told_the_same(self) -> None:
        world = World("a")
        world.fill()
        waiting = [world.wait(seconds=seconds) for seconds in (20.0, 1e9)]
        await turn()
        world.pass_time(20.0)
        with pytest.raises(QueueTimeout) as told:
            await waiting[0]
        assert told.value.retry_after_seconds == pytest.approx(20.0)
        waiting[1].cancel()


class TestFleet:
    def test_a_fleet_that_changed_is_seen_by_the_next_choice(self) -> None:
        world = World("ab")
        world.publish(a=DRAINING, told=False)
        assert {world.take().seat.uid for _ in range(2)} == {"b"}
        assert world.lease() is None

    @pytest.mark.parametrize("state", [DRAINING, STARTING, PodState.ASLEEP, None])
    def test_a_pod_that_is_not_ready_gets_nothing(self, state: PodState | None) -> None:
        world = World("ab")
        world.publish(a=state)
        assert {lease.seat.uid for lease in world.fill()} == {"b"}

    @pytest.mark.parametrize("state", [DRAINING, None])
    def test_the_seat_of_a_pod_that_goes_vanishes_with_its_last_lease(self, state: PodState | None) -> None:
        world = World("ab")
        one, other = world.take("a"), world.take("a")
        world.clock.now += 5.0
        world.publish(a=state)
        assert world.seat("a").leaving_since == world.clock()
        one.close()
        assert world.balancer.in_flight("a") == 1
        world.clock.now += 5.0
        world.publish()
        assert world.seat("a").leaving_since == world.clock() - 5.0
        other.close()
        assert world.balancer.seat_of("a") is None
        assert world.balancer.in_flight("a") == 0

    @pytest.mark.parametrize("state", [DRAINING, None])
    def test_the_seat_of_a_pod_that_goes_idle_vanishes_at_once(self, state: PodState | None) -> None:
        world = World("ab")
        world.publish(a=state)
        assert world.balancer.seat_of("a") is None

    def test_a_pod_that_is_not_ready_for_a_while_keeps_its_seat(self) -> None:
        world = World("ab")
        seat = world.seat("a")
        world.publish(a=STARTING)
        assert seat.leaving_since is None
        world.publish(a=READY)
        assert world.seat("a") is seat

    def test_a_pod_that_comes_back_while_its_requests_run_is_counted_as_before(self) -> None:
        world = World("ab")
        lease = world.take("a")
        world.publish(a=None)
        world.publish(a=READY)
        assert world.seat("a") is lease.seat
        assert lease.seat.leaving_since is None
        assert world.balancer.in_flight("a") == 1
        lease.close()
        assert world.balancer.in_flight("a") == 0

    def test_an_old_lease_does_not_take_the_seat_of_a_pod_that_came_back(self) -> None:
        world = World("ab")
        with world.take("a"):
            world.publish(a=DRAINING)
        world.publish(a=READY)
        assert world.seat("a").in_flight == 0
        assert world.lease(without="b") is not None

    def test_what_failed_at_a_pod_that_is_gone_harms_nobody(self) -> None:
        world = World("ab")
        leases = [world.take("a") for _ in range(2)]
        world.publish(a=None)
        for lease in leases:
            for blame in Blame:
                lease.failed(blame, "caller")
            lease.answered("caller")
            lease.close()
        assert not world.ejections
        world.pass_time(2.0)
        assert world.balancer.seat_of("a") is None

    def test_a_pod_is_known_as_it_is_now(self) -> None:
        world = World("a")
        world.limits["a"] = 1
        world.publish()
        with world.take() as pod:
            assert pod is world.fleet.value.pods[0]

    def test_a_pool_is_forgotten_when_nothing_leads_to_it(self) -> None:
        world = World("a")
        lease = world.take()
        world.models = {"m": ""}
        world.publish(a=None)
        assert dict(world.balancer.waiting()) == {"p": 0}
        world.models = {}
        world.publish()
        assert dict(world.balancer.waiting()) == {}
        assert world.balancer.health_of("a") == PodHealth()
        world.read("a", count=1)
        lease.failed(Blame.POD, "caller")
        lease.streams("caller", world.clock())
        lease.answered("caller")
        lease.close()
        assert not world.balancer.wedged(lease.seat)
        world.balancer.judged(lease.seat.pod, alive=True)
        assert world.balancer.active == 0

    def test_a_pool_with_pods_is_remembered_though_no_model_leads_there(self) -> None:
        world = World("a", models={})
        assert dict(world.balancer.waiting()) == {"p": 0}

    async def test_a_pool_in_which_somebody_waits_is_not_forgotten(self) -> None:
        world = World("a", models={"m": ""})
        waiting = world.wait()
        await turn()
        world.models = {}
        world.publish(a=None)
        assert world.depth() == 1
        world.models = {"m": "a"}
        world.publish(a=READY)
        assert (await waiting).seat.uid == "a"

    def test_what_is_known_of_the_health_of_pods_outlives_another_fleet(self) -> None:
        world = World("ab")
        world.eject("a")
        world.publish(c=READY)
        assert list(world.balancer.ejected) == ["a"]
        world.publish(a=STARTING)
        assert list(world.balancer.ejected) == []
        world.publish(a=READY)
        assert list(world.balancer.ejected) == ["a"]

    def test_a_pod_that_is_due_and_gone_is_not_asked(self) -> None:
        world = World("ab")
        world.eject("a")
        world.publish(a=None)
        world.pass_time(13.0)
        assert world.judge(alive=True) == []
