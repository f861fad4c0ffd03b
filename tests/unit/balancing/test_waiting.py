"""The line's promises one by one; what holds for any interleaving is in tests/property/test_waiting.py."""

import asyncio
import re
from math import inf

import pytest

from gateway.balancing.policy import Wish
from gateway.balancing.waiting import Turned, Waiter, WaitingLine

Line = WaitingLine[str]


def waiter(
    caller: str,
    model: str = "m",
    excluded: frozenset[str] = frozenset(),
    deadline: float = inf,
    priority: int = 0,
) -> Waiter[str]:
    came: asyncio.Future[str | Turned] = asyncio.get_running_loop().create_future()
    return Waiter(caller, priority, model, Wish(), excluded, False, deadline, came)


def line_of(callers: str, limit: int = 100) -> tuple[Line, list[Waiter[str]]]:
    """A line that one waiter joined for each letter: `a` with priority 0, `a5` or `a-5` with another."""
    line: Line = WaitingLine()
    named = re.findall(r"([a-z])(-?\d*)", callers)
    waiters = [waiter(caller, priority=int(priority or 0)) for caller, priority in named]
    for each in waiters:
        assert line.join(each, limit)
    return line, waiters


def anything(asking: Waiter[str]) -> str:
    return "slot"


def in_which_order(line: Line) -> list[Waiter[str]]:
    """Hand out one slot after another to whoever is there."""
    order: list[Waiter[str]] = []

    def offer(asking: Waiter[str]) -> str:
        order.append(asking)
        return "slot"

    while line.hand_out(offer, 1):
        pass
    return order


class TestTurns:
    @pytest.mark.parametrize(
        ("came", "served"),
        [
            ("aaaabbc", "abcabaa"),
            ("aaaa", "aaaa"),
            ("abcabc", "abcabc"),
            ("cbaaa", "cbaaa"),
            ("aab", "aba"),
            ("aaaaaaaab", "abaaaaaaa"),
        ],
    )
    async def test_callers_take_turns_whatever_the_order_in_which_they_came(self, came: str, served: str) -> None:
        line, _ = line_of(came)
        assert "".join(str(each.caller) for each in in_which_order(line)) == served
        assert len(line) == 0

    async def test_turns_go_on_from_one_hand_out_to_the_next(self) -> None:
        line, waiters = line_of("aab")
        assert line.hand_out(anything, 1) == 1
        assert waiters[0].came.done()
        assert line.hand_out(anything, 1) == 1
        assert waiters[2].came.done()

    async def test_each_caller_is_served_in_the_order_in_which_it_came(self) -> None:
        line, waiters = line_of("abaab")
        order = in_which_order(line)
        for caller in "ab":
            own = [each for each in waiters if each.caller == caller]
            assert [each for each in order if each.caller == caller] == own

    async def test_a_caller_that_comes_back_waits_behind_those_who_are_there(self) -> None:
        line, _ = line_of("ab")
        line.hand_out(anything, 1)
        line.join(waiter("a"), 100)
        assert [each.caller for each in in_which_order(line)] == ["b", "a"]


class TestPriorities:
    @pytest.mark.parametrize(
        ("came", "served"),
        [
            ("a5b0", "ba"),
            ("a0b5", "ab"),
            ("a0b-5", "ba"),
            ("a10b9", "ba"),
            ("a5a5b5c0c0", "ccaba"),
            ("a5b5a0b0a5b0", "abbaba"),
            ("c1b2a3", "cba"),
            ("a3b2c1", "cba"),
        ],
    )
    async def test_lower_numbers_come_first_and_callers_of_one_number_take_turns(self, came: str, served: str) -> None:
        line, _ = line_of(came)
        assert "".join(str(each.caller) for each in in_which_order(line)) == served
        assert len(line) == 0

    async def test_a_lower_number_that_comes_later_is_served_before_those_who_wait(self) -> None:
        line, waiters = line_of("a5b5")
        late = waiter("c", priority=-1)
        line.join(late, 100)
        assert in_which_order(line) == [late, *waiters]

    async def test_a_number_that_was_empty_for_a_while_has_its_place_again(self) -> None:
        line, _ = line_of("a0b5")
        line.hand_out(anything, 1)
        for late in (waiter("c", priority=9), waiter("d", priority=0), waiter("e", priority=3)):
            line.join(late, 100)
        assert "".join(str(each.caller) for each in in_which_order(line)) == "debc"

    async def test_what_a_lower_number_has_no_use_for_goes_to_the_next(self) -> None:
        line: Line = WaitingLine()
        first, second, third = waiter("a", "other"), waiter("b", "m", priority=5), waiter("c", "m", priority=7)
        for each in (third, second, first):
            line.join(each, 10)
        assert line.hand_out(lambda asking: "slot" if asking.model == "m" else None, 1) == 1
        assert second.came.done()
        assert not first.came.done()
        assert not third.came.done()

    async def test_turns_of_one_number_are_not_turns_of_another(self) -> None:
        line, waiters = line_of("a0a5b5")
        line.hand_out(anything, 1)
        assert line.hand_out(anything, 1) == 1
        assert [each.came.done() for each in waiters] == [True, True, False]

    async def test_whoever_waits_longest_in_a_higher_number_still_has_its_deadline(self) -> None:
        line: Line = WaitingLine()
        waiters = [waiter("a", deadline=5.0, priority=priority) for priority in (3, 0, -3)]
        stays = waiter("a", deadline=6.0, priority=9)
        for each in (*waiters, stays):
            line.join(each, 10)
        line.expire(5.0)
        assert [each.came.result() for each in waiters] == [Turned.TIMEOUT] * 3
        assert in_which_order(line) == [stays]


class TestPlacesByPriority:
    async def test_a_full_line_has_a_place_for_a_lower_number(self) -> None:
        line, waiters = line_of("a5b0c3", limit=3)
        late = waiter("d", priority=4)
        assert line.join(late, 3)
        assert len(line) == 3
        assert waiters[0].came.result() is Turned.FULL
        assert in_which_order(line) == [waiters[1], waiters[2], late]

    async def test_a_caller_s_own_later_request_makes_way_for_its_more_urgent_one(self) -> None:
        line, waiters = line_of("a5a5", limit=2)
        late = waiter("a", priority=0)
        assert line.join(late, 2)
        assert in_which_order(line) == [late, waiters[0]]

    async def test_a_full_line_has_no_place_for_a_higher_number(self) -> None:
        line, waiters = line_of("a0a0a0", limit=3)
        assert not line.join(waiter("b", priority=1), 3)
        assert not any(each.came.done() for each in waiters)

    async def test_the_youngest_of_the_caller_with_most_makes_way_for_a_lower_number(self) -> None:
        line, waiters = line_of("a9b9b9c9b0", limit=5)
        assert line.join(waiter("d"), 5)
        assert [each for each in waiters if each.came.done()] == [waiters[2]]

    async def test_of_several_with_as_many_the_one_whose_turn_is_last_makes_way(self) -> None:
        line, waiters = line_of("a9b9c9", limit=3)
        assert line.join(waiter("d"), 3)
        assert [each for each in waiters if each.came.done()] == [waiters[2]]
        assert line.join(waiter("e"), 3)
        assert [each for each in waiters if each.came.done()] == [waiters[1], waiters[2]]

    async def test_within_the_highest_number_only_a_caller_with_two_fewer_there_has_a_claim(self) -> None:
        line, waiters = line_of("a9a9a9b9b9c0c0", limit=7)
        assert not line.join(waiter("b", priority=9), 7)
        assert not any(each.came.done() for each in waiters)
        # What it has in other numbers is not held against it.
        late = waiter("c", priority=9)
        assert line.join(late, 7)
        assert [each for each in waiters if each.came.done()] == [waiters[2]]
        assert late in in_which_order(line)

    async def test_who_fills_a_lower_number_keeps_its_places_whoever_has_none_in_a_higher_one(self) -> None:
        line, waiters = line_of("a0a0a0a0b9", limit=5)
        assert not line.join(waiter("c", priority=9), 5)
        assert not line.join(waiter("c", priority=10), 5)
        assert not any(each.came.done() for each in waiters)


class TestBounds:
    async def test_no_more_than_the_limit_wait(self) -> None:
        line, _ = line_of("abc", limit=3)
        assert not line.join(waiter("d"), 3)
        assert not line.join(waiter("a"), 3)
        assert len(line) == 3

    async def test_nobody_waits_where_the_limit_is_zero(self) -> None:
        line: Line = WaitingLine()
        assert not line.join(waiter("a"), 0)
        assert len(line) == 0

    async def test_the_youngest_of_the_longest_line_makes_way_for_a_caller_with_two_fewer(self) -> None:
        line, waiters = line_of("abbbcc", limit=6)
        late = waiter("a")
        assert line.join(late, 6)
        assert len(line) == 6
        assert waiters[3].came.result() is Turned.FULL
        assert [each for each in waiters if each.came.done()] == [waiters[3]]
        assert late in in_which_order(line)

    async def test_nobody_makes_way_for_a_caller_with_one_fewer(self) -> None:
        line, waiters = line_of("aabbb", limit=5)
        assert not line.join(waiter("a"), 5)
        assert not any(each.came.done() for each in waiters)

    async def test_a_caller_with_two_in_the_line_makes_way_for_one_with_none(self) -> None:
        line, waiters = line_of("aab", limit=3)
        assert line.join(waiter("c"), 3)
        assert [each for each in waiters if each.came.done()] == [waiters[1]]

    async def test_a_lower_limit_turns_nobody_away_that_waits_already(self) -> None:
        line, waiters = line_of("abcd")
        assert not line.join(waiter("e"), 2)
        assert not any(each.came.done() for each in waiters)


class TestLeaving:
    async def test_whoever_waited_as_long_as_it_may_is_turned_away(self) -> None:
        line: Line = WaitingLine()
        early, same_caller, late = waiter("a", deadline=5.0), waiter("a", deadline=9.0), waiter("b", deadline=9.0)
        for each in (early, same_caller, late):
            line.join(each, 10)
        line.expire(4.9)
        assert len(line) == 3
        line.expire(5.0)
        assert early.came.result() is Turned.TIMEOUT
        assert not same_caller.came.done()
        assert not late.came.done()
        assert len(line) == 2
        line.expire(inf)
        assert same_caller.came.result() is late.came.result() is Turned.TIMEOUT
        assert len(line) == 0

    async def test_who_leaves_gets_nothing_and_frees_its_place_once(self) -> None:
        line, waiters = line_of("aab", limit=3)
        line.leave(waiters[0])
        line.leave(waiters[0])
        assert len(line) == 2
        assert line.join(waiter("c"), 3)
        assert waiters[0] not in in_which_order(line)

    async def test_who_was_never_in_the_line_can_leave_it(self) -> None:
        line, _ = line_of("a")
        line.leave(waiter("a"))
        line.leave(waiter("b"))
        line.leave(waiter("a", priority=1))
        assert len(line) == 1

    async def test_who_was_cancelled_is_passed_over_for_the_next(self) -> None:
        line, waiters = line_of("aab")
        waiters[0].came.cancel()
        assert line.hand_out(anything, 2) == 2
        assert waiters[1].came.result() == waiters[2].came.result() == "slot"

    async def test_who_was_cancelled_can_be_turned_away_without_harm(self) -> None:
        line, waiters = line_of("aa", limit=2)
        for each in waiters:
            each.came.cancel()
        assert line.join(waiter("b"), 2)
        line.expire(inf)
        assert len(line) == 0


class TestHandingOut:
    async def test_what_is_handed_out_reaches_exactly_one_waiter(self) -> None:
        line, waiters = line_of("abc")
        slots = iter(["one", "two"])
        assert line.hand_out(lambda asking: next(slots, None), 3) == 2
        assert [each.came.result() for each in waiters[:2]] == ["one", "two"]
        assert not waiters[2].came.done()
        assert len(line) == 1

    async def test_no_more_is_handed_out_than_was_said(self) -> None:
        line, waiters = line_of("abc")
        assert line.hand_out(anything, 2) == 2
        assert line.hand_out(anything, 0) == 0
        assert not waiters[2].came.done()

    async def test_who_cannot_take_what_there_is_holds_up_nobody(self) -> None:
        line: Line = WaitingLine()
        picky, same_caller, other = waiter("a", excluded=frozenset("x")), waiter("a"), waiter("b", model="adapter")
        for each in (picky, same_caller, other):
            line.join(each, 10)

        def offer(asking: Waiter[str]) -> str | None:
            return None if "x" in asking.excluded else "x"

        assert line.hand_out(offer, 10) == 2
        assert not picky.came.done()
        assert same_caller.came.done()
        assert other.came.done()

    async def test_a_caller_that_could_take_nothing_keeps_its_turn(self) -> None:
        line: Line = WaitingLine()
        first, second, third = waiter("a", model="other"), waiter("b"), waiter("b")
        for each in (first, second, third):
            line.join(each, 10)
        line.hand_out(lambda asking: "slot" if asking.model == "m" else None, 1)
        assert second.came.done()
        assert line.hand_out(anything, 1) == 1
        assert first.came.done()

    async def test_what_there_is_nothing_for_is_not_asked_for_twice(self) -> None:
        """Else a line of 256 would ask 256 times for each slot that comes free."""
        line: Line = WaitingLine()
        for number in range(32):
            for model in ("m", "adapter", "other"):
                line.join(waiter(str(number % 4), model, frozenset("x") if number % 2 else frozenset()), 100)
        asked: list[tuple[str, frozenset[str]]] = []

        def offer(asking: Waiter[str]) -> str | None:
            asked.append((asking.model, asking.excluded))
            return "slot" if asking.model == "adapter" else None

        assert line.hand_out(offer, 100) == 32
        for_nothing = [each for each in asked if each[0] != "adapter"]
        assert len(for_nothing) == len(set(for_nothing)) == 4

    async def test_an_offer_that_fails_loses_nobody(self) -> None:
        line, waiters = line_of("ab")

        def offer(asking: Waiter[str]) -> str:
            raise KeyError("no such pod")

        with pytest.raises(KeyError):
            line.hand_out(offer, 1)
        assert len(line) == 2
        assert line.hand_out(anything, 2) == 2
        assert all(each.came.result() == "slot" for each in waiters)
