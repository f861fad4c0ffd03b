"""For any interleaving of leases that begin, end, fail and are waited for, over pods that come, go and fall ill: no
count is negative and all are zero at rest; a pod that terminates or is ejected is never chosen while a usable one is
there; no waiter is lost or served twice.
"""

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.balancing.balancer import Balancer, Blame, Lease
from gateway.balancing.health import State
from gateway.balancing.policy import Wish
from gateway.core.cell import Cell
from gateway.core.errors import QueueFull, QueueTimeout
from gateway.core.fleet import Fleet, Pod, PodLoad, PodState, Pool, Route
from tests.fakes import Hands

NAMES = "abcd"
SERVED = {"m": "abc", "adapter": "ab", "n": "d"}
"""The pods of each model; those of the last one are another pool."""
POOL_OF = {name: "q" if name == "d" else "p" for name in NAMES}
LIMIT = 2
QUEUE = 5
POOLS = {
    name: Pool(name, max_in_flight_per_pod=LIMIT, queue_limit=QUEUE, queue_wait_seconds=10.0) for name in ("p", "q")
}
PODS = {name: Pod(uid=name, name=name, pool=POOL_OF[name], host="h", port=1, state=PodState.READY) for name in NAMES}


class Waiting(NamedTuple):
    model: str
    excluded: set[str]
    retry: bool


class Requests(RuleBasedStateMachine):
    """Requests against two pools, on a loop of their own that turns between two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Hands()
        self.states = dict.fromkeys(NAMES, PodState.READY)
        self.known = set(SERVED)
        self.pools = POOLS
        self.fleet = Cell(self.published())
        self.balancer = Balancer(
            self.fleet, clock=self.clock, chance=Random(7).random, ejected=lambda pool, reason: None
        )
        self.held: list[Lease] = []
        self.waiters: dict[asyncio.Task[Lease], Waiting] = {}

    def published(self) -> Fleet:
        pods = tuple(replace(PODS[name], state=state) for name, state in self.states.items())
        routes = {
            model: Route(
                model,
                self.pools[POOL_OF[SERVED[model][0]]],
                tuple(pod for pod in pods if pod.uid in SERVED[model] and pod.state is PodState.READY),
            )
            for model in self.known
        }
        return Fleet(pods, routes, listed=True, asked=True)

    @initialize(policy=st.sampled_from(["auto", "least", "p2c", "session", "prefix", "round_robin"]))
    def choose_policy(self, policy: str) -> None:
        self.pools = {
            name: replace(pool, policy=policy)  # type: ignore[arg-type]  # one of those
            for name, pool in POOLS.items()
        }
        self.publish(told=True)

    def publish(self, *, told: bool) -> None:
        """There is another fleet; not `told`, the balancer has to find out by itself."""
        self.fleet.set(self.published())
        if told:
            self.balancer.update()
        self.turn()

    def turn(self) -> None:
        """Let the loop run until nobody has anything to do, and take what waiters were given."""
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))
        for task in [task for task in self.waiters if task.done()]:
            asked = self.waiters.pop(task)
            with suppress(asyncio.CancelledError, QueueFull, QueueTimeout):
                self.take_hold(task.result(), asked)

    def take_hold(self, lease: Lease, asked: Waiting) -> None:
        """What was given may be given."""
        seat = lease.seat
        assert self.states[seat.uid] is PodState.READY
        assert seat.uid in SERVED[asked.model]
        assert seat.uid not in asked.excluded
        assert seat.probing or seat.in_flight + seat.others <= max(1, seat.limit * seat.weight)
        if seat.uid in self.balancer.ejected:
            assert dict(self.balancer.panics())[POOL_OF[seat.uid]]
        assert lease not in self.held
        self.held.append(lease)

    @rule(
        model=st.sampled_from([*SERVED]),
        excluded=st.sets(st.sampled_from(NAMES), max_size=2),
        retry=st.booleans(),
        key=st.integers(0, 3),
    )
    def take(self, model: str, excluded: set[str], retry: bool, key: int) -> None:
        route = self.fleet.value.routes.get(model)
        if route is None:
            return
        lease = self.balancer.lease_nowait(model, Wish(100, (), key), excluded, retry=retry)
        # Whoever waited longer has been given what there was.
        self.turn()
        if lease is not None:
            self.take_hold(lease, Waiting(model, excluded, retry))

    @rule(model=st.sampled_from([*SERVED]))
    def fill(self, model: str) -> None:
        """Take all the room there is."""
        route = self.fleet.value.routes.get(model)
        while route is not None and (lease := self.balancer.lease_nowait(model, Wish(10))) is not None:
            self.turn()
            self.take_hold(lease, Waiting(model, set(), False))
        self.turn()

    @rule(
        model=st.sampled_from([*SERVED]),
        excluded=st.sets(st.sampled_from(NAMES), max_size=1),
        retry=st.booleans(),
        caller=st.integers(0, 2),
    )
    def wait(self, model: str, excluded: set[str], retry: bool, caller: int) -> None:
        route = self.fleet.value.routes.get(model)
        if route is None:
            return
        asked = Waiting(model, excluded, retry)
        lease = self.balancer.lease_nowait(model, Wish(10), excluded, retry=retry)
        if lease is None:
            waiting = self.balancer.wait_for_room(
                route, Wish(10), excluded, retry=retry, caller=caller, deadline=self.clock() + 5
            )
            self.waiters[self.loop.create_task(waiting)] = asked
        self.turn()
        if lease is not None:
            self.take_hold(lease, asked)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=st.sampled_from(["whole", "answered", "streams", "left", *Blame]))
    def end(self, data: st.DataObject, how: str | Blame) -> None:
        lease = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if how == "whole":
            lease.came_whole("caller", self.clock())
        elif how == "answered":
            lease.began(self.clock())
            lease.answered("caller")
        elif how == "streams":
            lease.began(self.clock())
            lease.streams("caller", self.clock())
        elif isinstance(how, Blame):
            lease.failed(how, "caller", 1.0)
        lease.close()
        lease.close()
        self.turn()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """A first token; the stream goes on."""
        lease = self.held[data.draw(st.integers(0, len(self.held) - 1))]
        lease.began(self.clock())
        lease.streams("caller", self.clock())
        self.turn()

    @precondition(lambda self: self.waiters)
    @rule(data=st.data(), handed=st.booleans())
    def leave(self, data: st.DataObject, handed: bool) -> None:
        """A waiter's client leaves; with `handed`, in the very turn in which it is given a slot."""
        task = [*self.waiters][data.draw(st.integers(0, len(self.waiters) - 1))]
        if handed and self.held:
            self.held.pop().close()
        task.cancel()
        self.turn()

    @rule(name=st.sampled_from(NAMES), state=st.sampled_from([*PodState, None]), told=st.booleans())
    def change(self, name: str, state: PodState | None, told: bool) -> None:
        if state is None:
            self.states.pop(name, None)
        else:
            self.states[name] = state
        self.publish(told=told)

    @rule(model=st.sampled_from([*SERVED]), told=st.booleans())
    def list_or_unlist(self, model: str, told: bool) -> None:
        """A model is not known any more, or is again."""
        self.known ^= {model}
        self.publish(told=told)

    @rule(limit=st.integers(1, 3), told=st.booleans())
    def configure(self, limit: int, told: bool) -> None:
        self.pools = {name: replace(pool, max_in_flight_per_pod=limit) for name, pool in self.pools.items()}
        self.publish(told=told)

    @rule(name=st.sampled_from(NAMES), count=st.one_of(st.none(), st.integers(0, 4)), own=st.integers(0, 2))
    def read_load(self, name: str, count: int | None, own: int) -> None:
        self.balancer.load_read(name, PodLoad(in_flight=count, in_flight_own=own), self.clock() + 1.2)
        self.turn()

    @rule(name=st.sampled_from(NAMES))
    def find_wedged(self, name: str) -> None:
        seat = self.balancer.seat_of(name)
        if seat is not None:
            self.balancer.wedged(seat)
        self.turn()

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 15.0, 40.0]), alive=st.booleans())
    def pass_time(self, seconds: float, alive: bool) -> None:
        self.clock.now += seconds
        self.balancer.sweep(self.clock())
        for pod in self.balancer.due(self.clock()):
            self.balancer.judged(pod, alive=alive)
        self.turn()

    @invariant()
    def counts_are_exact(self) -> None:
        at_pods = Counter(lease.seat.uid for lease in self.held)
        assert {name: self.balancer.in_flight(name) for name in NAMES} == {name: at_pods[name] for name in NAMES}
        for lease in self.held:
            assert lease.seat.pending_tokens >= lease.tokens >= 0
            assert lease.seat.failed >= 0
        assert self.balancer.active == len(self.held)
        by_model = self.balancer.in_flight_by_model()
        assert {model: count for model, count in by_model.items() if count} == Counter(
            lease.model for lease in self.held
        )

    @invariant()
    def the_retry_budget_is_exact(self) -> None:
        waiting = sum(asked.retry for asked in self.waiters.values())
        assert self.balancer._retrying == waiting + sum(lease.retry for lease in self.held)

    @invariant()
    def everybody_who_waits_is_in_the_line(self) -> None:
        lines = Counter(POOL_OF[SERVED[asked.model][0]] for asked in self.waiters.values())
        assert {pool: count for pool, count in self.balancer.waiting() if count} == lines
        assert max(lines.values(), default=0) <= QUEUE

    @invariant()
    def nobody_waits_for_a_pod_with_room(self) -> None:
        if self.balancer._seen is not self.fleet.value:
            return
        for asked in self.waiters.values():
            route = self.fleet.value.routes.get(asked.model)
            for pod in () if route is None else route.pods:
                assert pod.uid in asked.excluded or not self._has_room(pod)

    @invariant()
    def a_pod_on_trial_has_one_request_or_may_get_one(self) -> None:
        for name in NAMES:
            seat = self.balancer.seat_of(name)
            if seat is None or self.balancer._seen is not self.fleet.value:
                continue
            assert seat.probe is None or seat.probe in self.held
            if seat.probing and seat.pod.state is PodState.READY and self.clock() >= seat.resting_until:
                assert (seat.probe is None) == self._has_room(seat.pod)

    @invariant()
    def a_pool_with_a_pod_that_is_not_well_takes_no_short_way(self) -> None:
        for state in self.balancer._pools.values():
            well = [
                state.health.state(seat.uid) is State.HEALTHY and self.clock() >= seat.resting_until
                for seat in state.seats
            ]
            assert state.unsettled or (all(well) and not state.health.panic and not state.health.ramping)

    @invariant()
    def a_seat_knows_its_pool(self) -> None:
        for seat in self.balancer._seats.values():
            assert seat.state is self.balancer._pools.get(seat.pod.pool, seat.state)

    @invariant()
    def no_pod_that_is_gone_has_a_seat_without_requests(self) -> None:
        if self.balancer._seen is self.fleet.value:
            there = {name for name, state in self.states.items() if state is not PodState.DRAINING}
            assert all(seat.in_flight or uid in there for uid, seat in self.balancer._seats.items())

    def _has_room(self, pod: Pod) -> bool:
        seat = self.balancer.seat_of(pod.uid)
        return seat is not None and seat.in_flight + seat.others < seat.room

    def teardown(self) -> None:
        for lease in self.held:
            lease.close()
        for task in self.waiters:
            task.cancel()
        self.held = []
        for _ in range(5):
            self.turn()
        for lease in self.held:
            lease.close()
        self.clock.now += 2
        self.publish(told=True)
        self.balancer.sweep(self.clock())
        assert self.balancer.active == 0
        assert self.balancer.may_retry
        assert self.balancer._retrying == 0
        by_model = self.balancer.in_flight_by_model()
        assert set(by_model.values()) <= {0}
        assert by_model.keys() <= self.known
        for seat in self.balancer._seats.values():
            assert (seat.in_flight, seat.pending_tokens, seat.failed, seat.others) == (0, 0, 0, 0)
            assert seat.probe is None
        there = {name for name, state in self.states.items() if state is not PodState.DRAINING}
        assert self.balancer._seats.keys() <= there
        assert {name for name, _ in self.balancer.waiting()} <= {POOL_OF[SERVED[model][0]] for model in self.known} | {
            POOL_OF[name] for name in there
        }
        self.loop.close()


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=150, stateful_step_count=40)


def balancer_of(count: int, pool: Pool, clock: Hands) -> tuple[Balancer, Route]:
    pods = tuple(
        Pod(uid=f"u{number}", name=f"pod-{number}", pool=pool.name, host="h", port=1, state=PodState.READY)
        for number in range(count)
    )
    route = Route("m", pool, pods)
    cell = Cell(Fleet(pods, {"m": route}, listed=True, asked=True))
    return Balancer(cell, clock=clock, chance=Random(3).random, ejected=lambda pool, reason: None), route


@given(st.integers(2, 12), st.integers(1, 60))
def test_least_spreads_evenly(pods: int, requests: int) -> None:
    balancer, route = balancer_of(pods, Pool("p", policy="least"), Hands())
    for _ in range(requests):
        assert balancer.lease_nowait("m") is not None
    counts = [balancer.in_flight(pod.uid) for pod in route.pods]
    assert max(counts) - min(counts) <= 1


async def test_callers_take_turns_in_the_line_whoever_asked_first() -> None:
    balancer, route = balancer_of(1, Pool("p", max_in_flight_per_pod=1), Hands())
    held = balancer.lease_nowait("m")
    assert held is not None
    order: list[str] = []

    async def waits(caller: str) -> None:
        with await balancer.wait_for_room(route, Wish(), (), retry=False, caller=caller, deadline=1e9):
            order.append(caller)

    tasks = [asyncio.create_task(waits(caller)) for caller in "aaaabbc"]
    await asyncio.sleep(0)
    held.close()
    await asyncio.gather(*tasks)
    assert "".join(order) == "abcabaa"


async def test_one_caller_cannot_fill_the_line_for_the_others() -> None:
    balancer, route = balancer_of(1, Pool("p", max_in_flight_per_pod=1, queue_limit=4), Hands())
    held = balancer.lease_nowait("m")
    assert held is not None

    def waits(caller: str) -> "asyncio.Task[Lease]":
        waiting = balancer.wait_for_room(route, Wish(), (), retry=False, caller=caller, deadline=1e9)
        return asyncio.create_task(waiting)

    greedy = [waits("greedy") for _ in range(5)]
    await asyncio.sleep(0)
    late = waits("late")
    await asyncio.sleep(0.01)
    refused = [task for task in greedy if task.done()]
    # The fifth never had a place; the fourth, the youngest, made way.
    assert refused == [greedy[4], greedy[3]] or refused == [greedy[3], greedy[4]]
    assert all(isinstance(task.exception(), QueueFull) for task in refused)
    assert not late.done()
    for task in (*greedy, late):
        task.cancel()
    await asyncio.gather(*greedy, late, return_exceptions=True)
    held.close()
    assert balancer.active == 0
