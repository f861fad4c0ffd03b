"""The line's promises one by one; what holds for any interleaving is in tests/property/test_waiting.py."""

import asyncio
from math import inf

import pytest

from gateway.balancing.policy import Wish
from gateway.balancing.waiting import Turned, Waiter, WaitingLine

Line = WaitingLine[str]


def waiter(caller: str, model: str = "m", excluded: frozenset[str] = frozenset(), deadline: float = inf) -> Waiter[str]:
    came: asyncio.Future[str | Turned] = asyncio.get_running_loop().create_future()
    return Waiter(caller, model, Wish(), excluded, False, deadline, came)


def line_of(callers: str, limit: int = 100) -> tuple[Line, list[Waiter[str]]]:
    """A line that one waiter joined for each letter."""
    line: Line = WaitingLine()
    waiters = [waiter(caller) for caller in callers]
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
