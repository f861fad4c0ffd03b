"""For any interleaving of leases that begin, end, fail and are waited for, over pods that come, go and fall ill: no
count is negative and all are zero at rest; a pod that terminates or is ejected is never chosen while a usable one is
there; no waiter is lost or served twice.
"""

import asyncio
from contextlib import suppress
from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.balancing.balancer import Balancer, Blame, Lease
from gateway.balancing.policy import Wish
from gateway.core.cell import Cell
from gateway.core.errors import QueueFull, QueueTimeout
from gateway.core.fleet import Fleet, Pod, PodState, Pool, Route
from tests.fakes import Hands

NAMES = "abcd"
LIMIT = 2
QUEUE = 5
POOL = Pool("p", max_in_flight_per_pod=LIMIT, queue_limit=QUEUE, queue_wait_seconds=10.0)
PODS = {name: Pod(uid=name, name=name, pool="p", host="h", port=1, state=PodState.READY) for name in NAMES}


def fleet_of(states: dict[str, PodState], pool: Pool = POOL) -> Fleet:
    pods = tuple(replace(PODS[name], state=state) for name, state in states.items())
    ready = tuple(pod for pod in pods if pod.state is PodState.READY)
    return Fleet(pods, {"m": Route("m", pool, ready)}, listed=True, asked=True)


class Requests(RuleBasedStateMachine):
    """Requests against one pool, on a loop of their own that turns between two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Hands()
        self.states = dict.fromkeys(NAMES, PodState.READY)
        self.fleet = Cell(fleet_of(self.states))
        self.ejections: list[tuple[str, str]] = []
        self.balancer = Balancer(
            self.fleet,
            clock=self.clock,
            chance=Random(7).random,
            ejected=lambda pool, reason: self.ejections.append((pool, reason)),
        )
        self.held: list[Lease] = []
        self.waiters: list[asyncio.Task[Lease]] = []

    @initialize(policy=st.sampled_from(["auto", "least", "p2c", "session", "prefix", "round_robin"]))
    def choose_policy(self, policy: str) -> None:
        self.pool = replace(POOL, policy=policy)  # type: ignore[arg-type]  # one of those
        self.publish()

    def publish(self) -> None:
        self.fleet.set(fleet_of(self.states, self.pool))

    @property
    def route(self) -> Route:
        return self.fleet.value.routes["m"]

    def turn(self) -> None:
        """Let the loop run until nobody has anything to do, and take what waiters were given."""
        for _ in range(3):
            self.loop.run_until_complete(asyncio.sleep(0))
        for task in [task for task in self.waiters if task.done()]:
            self.waiters.remove(task)
            with suppress(asyncio.CancelledError, QueueFull, QueueTimeout):
                self.held.append(task.result())

    @rule(excluded=st.sets(st.sampled_from(NAMES), max_size=2), retry=st.booleans(), key=st.integers(0, 3))
    def take(self, excluded: set[str], retry: bool, key: int) -> None:
        lease = self.balancer.lease_nowait(self.route, Wish(100, (), key), excluded, retry=retry)
        usable = [pod for pod in self.route.pods if pod.uid not in excluded]
        if lease is None:
            return
        chosen = lease.seat.uid
        assert chosen in {pod.uid for pod in usable}
        assert self.states[chosen] is PodState.READY
        if chosen in self.balancer.ejected:
            assert dict(self.balancer.panics())["p"]
        self.held.append(lease)

    @rule(excluded=st.sets(st.sampled_from(NAMES), max_size=1), caller=st.integers(0, 2))
    def wait(self, excluded: set[str], caller: int) -> None:
        lease = self.balancer.lease_nowait(self.route, Wish(10), excluded)
        if lease is not None:
            self.held.append(lease)
            return
        waiting = self.balancer.wait_for_room(
            self.route, Wish(10), excluded, retry=False, caller=caller, deadline=self.clock() + 5
        )
        self.waiters.append(self.loop.create_task(waiting))
        self.turn()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=st.sampled_from(["answered", "streams", "left", *Blame]))
    def end(self, data: st.DataObject, how: str | Blame) -> None:
        lease = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if how == "answered":
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

    @precondition(lambda self: self.waiters)
    @rule(data=st.data(), handed=st.booleans())
    def leave(self, data: st.DataObject, handed: bool) -> None:
        """A waiter's client leaves; with `handed`, in the very turn in which it is given a slot."""
        task = self.waiters[data.draw(st.integers(0, len(self.waiters) - 1))]
        if handed and self.held:
            self.held.pop().close()
        task.cancel()
        self.turn()

    @rule(name=st.sampled_from(NAMES), state=st.sampled_from([*PodState, None]))
    def change(self, name: str, state: PodState | None) -> None:
        if state is None:
            self.states.pop(name, None)
        else:
            self.states[name] = state
        self.publish()
        self.balancer.update()
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
        for name in NAMES:
            assert self.balancer.in_flight(name) == sum(lease.seat.uid == name for lease in self.held)
        for lease in self.held:
            assert lease.seat.pending_tokens >= 0
            assert lease.seat.failed >= 0
        assert self.balancer.active == len(self.held)
        assert sum(self.balancer.in_flight_by_model().values()) == len(self.held)

    @invariant()
    def everybody_who_waits_is_in_the_line(self) -> None:
        assert dict(self.balancer.waiting()).get("p", 0) == len(self.waiters) <= QUEUE

    @invariant()
    def nobody_waits_for_a_pod_with_room(self) -> None:
        if not self.waiters:
            return
        # Whoever waits excludes one pod at most, so with room at two of them nobody may wait.
        free = [pod for pod in self.route.pods if self._has_room(pod)]
        assert len(free) < 2

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
        self.balancer.sweep(self.clock())
        assert self.balancer.active == 0
        assert self.balancer.may_retry
        assert self.balancer._retrying == 0
        assert set(self.balancer.in_flight_by_model().values()) <= {0}
        for seat in self.balancer._seats.values():
            assert (seat.in_flight, seat.pending_tokens, seat.failed, seat.probes) == (0, 0, 0, 0)
        self.loop.close()


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


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
        assert balancer.lease_nowait(route) is not None
    counts = [balancer.in_flight(pod.uid) for pod in route.pods]
    assert max(counts) - min(counts) <= 1


async def test_callers_take_turns_in_the_line_whoever_asked_first() -> None:
    balancer, route = balancer_of(1, Pool("p", max_in_flight_per_pod=1), Hands())
    held = balancer.lease_nowait(route)
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
    held = balancer.lease_nowait(route)
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
