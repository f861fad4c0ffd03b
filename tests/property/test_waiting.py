"""For any interleaving of joining, leaving, handing out and expiring: no waiter is lost, none is served twice, nobody
waits for what there is, and no caller is served twice while another who could have been is not served once.
"""

import asyncio
from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.balancing.policy import Wish
from gateway.balancing.waiting import Turned, Waiter, WaitingLine

CALLERS = "abc"
PODS_OF = {"m": "xy", "adapter": "y"}
"""The pods that each model is served by."""
LIMIT = 6

Slot = tuple[str, int]
"""A pod, and which of the slots that there ever were."""


class Lines(RuleBasedStateMachine):
    """A line, and beside it everybody who ever joined it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.line: WaitingLine[Slot] = WaitingLine()
        self.now = 0.0
        self.waiting: list[Waiter[Slot]] = []
        """Oldest first."""
        self.left: list[Waiter[Slot]] = []
        self.cancelled: list[Waiter[Slot]] = []
        """Their client has left, and they have not noticed yet."""
        self.free = dict.fromkeys("xy", 0)
        self.slots = 0
        self.given: dict[Slot, Waiter[Slot]] = {}
        self.served_before: dict[str, set[str]] = {caller: set() for caller in CALLERS}
        """Who was served while this caller could have been, since it was last."""

    @rule(
        caller=st.sampled_from(CALLERS),
        model=st.sampled_from([*PODS_OF]),
        excluded=st.sets(st.sampled_from("xy"), max_size=1),
        patience=st.sampled_from([1.0, 3.0, inf]),
    )
    def join(self, caller: str, model: str, excluded: set[str], patience: float) -> None:
        waiter: Waiter[Slot] = Waiter(
            caller, model, Wish(), frozenset(excluded), False, self.now + patience, self.loop.create_future()
        )
        counts = {each: self.count(each) for each in CALLERS}
        had_place = self.line.join(waiter, LIMIT)
        evicted = [each for each in self.waiting if each not in self.cancelled and each.came.done()]
        if len(self.waiting) < LIMIT:
            assert had_place
            assert not evicted
        else:
            assert had_place == (max(counts.values()) >= counts[caller] + 2)
        if had_place and len(self.waiting) == LIMIT:
            # One made way, of those who had most; a cancelled one makes way without a word.
            (gone,) = [each for each in self.waiting if not self.is_in_line(each)]
            assert counts[str(gone.caller)] == max(counts.values())
            assert [each for each in self.waiting if each.caller == gone.caller][-1] is gone
            assert gone in self.cancelled or gone.came.result() is Turned.FULL
            self.goes(gone)
        if had_place:
            self.waiting.append(waiter)

    def count(self, caller: str) -> int:
        return sum(each.caller == caller for each in self.waiting)

    def is_in_line(self, waiter: Waiter[Slot]) -> bool:
        return any(waiter in own for own in self.line._callers.values())

    def goes(self, waiter: Waiter[Slot]) -> None:
        self.waiting.remove(waiter)
        self.left.append(waiter)
        if waiter in self.cancelled:
            self.cancelled.remove(waiter)
        if not self.count(str(waiter.caller)):
            self.served_before[str(waiter.caller)].clear()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiting))
        waiter.came.cancel()
        if waiter not in self.cancelled:
            self.cancelled.append(waiter)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiting))
        self.line.leave(waiter)
        self.goes(waiter)

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def leave_again(self, data: st.DataObject) -> None:
        self.line.leave(data.draw(st.sampled_from(self.left)))

    @rule(pod=st.sampled_from("xy"), count=st.integers(1, 3), most=st.sampled_from([0, 1, 2, 99]))
    def hand_out(self, pod: str, count: int, most: int) -> None:
        self.free[pod] += count
        already = len(self.given)
        given = self.line.hand_out(self.offer, most)
        assert given == len(self.given) - already <= most
        if given < most:
            assert not any(self.pods_for(each) for each in self.waiting)

    def pods_for(self, waiter: Waiter[Slot]) -> list[str]:
        """Where there is room for it."""
        if waiter in self.cancelled:
            return []
        return [pod for pod in PODS_OF[waiter.model] if self.free[pod] and pod not in waiter.excluded]

    def offer(self, waiter: Waiter[Slot]) -> Slot | None:
        assert waiter in self.waiting
        assert waiter not in self.cancelled
        pods = self.pods_for(waiter)
        if not pods:
            return None
        caller = str(waiter.caller)
        servable = [each for each in self.waiting if self.pods_for(each)]
        assert waiter is next(each for each in servable if each.caller == caller)
        for other in {str(each.caller) for each in servable} - {caller}:
            assert caller not in self.served_before[other]
            self.served_before[other].add(caller)
        self.served_before[caller].clear()
        self.free[pods[0]] -= 1
        self.slots += 1
        slot = (pods[0], self.slots)
        self.given[slot] = waiter
        self.goes(waiter)
        return slot

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0]))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        self.line.expire(self.now)
        for waiter in [each for each in self.waiting if self.now >= each.deadline]:
            assert waiter in self.cancelled or waiter.came.result() is Turned.TIMEOUT
            self.goes(waiter)

    @invariant()
    def whoever_waits_is_in_the_line_and_nobody_else(self) -> None:
        assert len(self.line) == len(self.waiting) <= LIMIT
        assert {id(each) for own in self.line._callers.values() for each in own} == {id(each) for each in self.waiting}
        assert all(each in self.cancelled or not each.came.done() for each in self.waiting)

    @invariant()
    def every_slot_reached_the_one_it_was_given_to(self) -> None:
        for slot, waiter in self.given.items():
            assert waiter.came.result() == slot

    @invariant()
    def nothing_is_kept_of_callers_that_do_not_wait(self) -> None:
        assert {*self.line._callers} == {each.caller for each in self.waiting}

    def teardown(self) -> None:
        self.loop.close()


TestLines = Lines.TestCase
TestLines.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
