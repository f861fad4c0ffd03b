"""For any interleaving of joining, leaving, handing out and expiring: no waiter is lost, none is served twice, nobody
waits for what there is, none is served while one of a lower number could have been, and within a number no caller is
served twice while another who could have been is not served once.
"""

import asyncio
from collections import Counter
from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.balancing.policy import Wish
from gateway.balancing.waiting import Turned, Waiter, WaitingLine

CALLERS = "abc"
PRIORITIES = (-1, 0, 7)
PODS_OF = {"m": "xy", "adapter": "y"}
"""The pods that each model is served by."""
LIMIT = 6

Slot = tuple[str, int]
"""A pod, and which of the slots that there ever were."""

Line = tuple[int, str]
"""A caller's own, of one priority."""


def line_of(waiter: Waiter[Slot]) -> Line:
    return waiter.priority, str(waiter.caller)


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
        self.came_free = 0
        self.given: dict[Slot, Waiter[Slot]] = {}
        self.served_before: dict[Line, set[Line]] = {}
        """Who of the same priority was served while this caller could have been, since it was last."""

    @rule(
        caller=st.sampled_from(CALLERS),
        priority=st.sampled_from(PRIORITIES),
        model=st.sampled_from([*PODS_OF]),
        excluded=st.sets(st.sampled_from("xy"), max_size=1),
        patience=st.sampled_from([1.0, 3.0, inf]),
    )
    def join(self, caller: str, priority: int, model: str, excluded: set[str], patience: float) -> None:
        came: asyncio.Future[Slot | Turned] = self.loop.create_future()
        waiter = Waiter(caller, priority, model, Wish(), frozenset(excluded), False, self.now + patience, came)
        counts = Counter(map(line_of, self.waiting))
        had_place = self.line.join(waiter, LIMIT)
        gone = [each for each in self.waiting if not self.is_in_line(each)]
        if len(self.waiting) < LIMIT:
            assert had_place
            assert not gone
        else:
            highest = max(each.priority for each in self.waiting)
            most = max(count for (of, _), count in counts.items() if of == highest)
            has_claim = priority == highest and most >= counts[priority, caller] + 2
            assert had_place == (priority < highest or has_claim)
            assert len(gone) == had_place
            for each in gone:
                # Of those with the highest number, the youngest of a caller that had most there. A cancelled one makes
                # way without a word.
                assert each.priority == highest
                assert counts[line_of(each)] == most
                assert [other for other in self.waiting if line_of(other) == line_of(each)][-1] is each
                assert each in self.cancelled or each.came.result() is Turned.FULL
                self.goes(each)
        if had_place:
            self.waiting.append(waiter)

    def is_in_line(self, waiter: Waiter[Slot]) -> bool:
        return any(waiter in own for rank in self.line._ranks.values() for own in rank.values())

    def goes(self, waiter: Waiter[Slot]) -> None:
        self.waiting.remove(waiter)
        self.left.append(waiter)
        if waiter in self.cancelled:
            self.cancelled.remove(waiter)
        if not any(line_of(each) == line_of(waiter) for each in self.waiting):
            self.served_before.pop(line_of(waiter), None)

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
        self.came_free += count
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
        servable = [each for each in self.waiting if self.pods_for(each)]
        assert waiter.priority == min(each.priority for each in servable)
        own = line_of(waiter)
        assert waiter is next(each for each in servable if line_of(each) == own)
        for other in {line_of(each) for each in servable if each.priority == waiter.priority} - {own}:
            before = self.served_before.setdefault(other, set())
            assert own not in before
            before.add(own)
        self.served_before.pop(own, None)
        self.free[pods[0]] -= 1
        slot = (pods[0], len(self.given))
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
        assert all(map(self.is_in_line, self.waiting))
        assert all(each in self.cancelled or not each.came.done() for each in self.waiting)

    @invariant()
    def every_slot_reached_the_one_it_was_given_to(self) -> None:
        for slot, waiter in self.given.items():
            assert waiter.came.result() == slot
        assert len(self.given) + sum(self.free.values()) == self.came_free

    @invariant()
    def nothing_is_kept_of_callers_and_priorities_that_do_not_wait(self) -> None:
        kept = [(priority, caller) for priority, rank in self.line._ranks.items() for caller in rank]
        assert {*kept} == {*map(line_of, self.waiting)}
        assert all(self.line._ranks.values())
        assert [*self.line._ranks] == sorted(self.line._ranks)

    def teardown(self) -> None:
        self.loop.close()


TestLines = Lines.TestCase
TestLines.settings = settings(max_examples=150, stateful_step_count=40)
