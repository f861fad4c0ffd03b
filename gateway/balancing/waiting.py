"""The line of requests that wait for room in one pool: bounded, lower priority numbers first, fair between the callers
of one number, each of them first come first served.

A number has no share of its own: it is served while nobody of a lower one could take what there is. A share would take
room from the others at the very moment they lack it, and vLLM's own scheduling by priority is as strict. What bounds a
wait is its deadline.

Room that comes free is handed to exactly one waiter: `hand_out` asks for each in turn whether there is something for
it, and what it gives is counted for that waiter before it wakes. Whoever leaves while something is being handed over
gives it back. So no slot is lost, none is given twice, and since every slot is handed out the moment it comes free,
whoever finds room without waiting overtakes nobody that could have used it.
"""

import asyncio
from collections.abc import Callable, Hashable
from enum import Enum
from typing import Generic, TypeVar

from gateway.balancing.policy import Wish

G = TypeVar("G")
"""What is handed out."""


class Turned(Enum):
    """Why a waiter gets nothing."""

    FULL = "full"
    """The line is full, and others have the better claim to a place in it."""
    TIMEOUT = "timeout"


class Waiter(Generic[G]):
    """One request in the line. `came` is resolved once: with what it was given, or with why it gets nothing."""

    __slots__ = ("caller", "came", "deadline", "excluded", "model", "priority", "retry", "wish")

    def __init__(
        self,
        caller: Hashable,
        priority: int,
        model: str,
        wish: Wish,
        excluded: frozenset[str],
        retry: bool,
        deadline: float,
        came: "asyncio.Future[G | Turned]",
    ) -> None:
        self.caller = caller
        self.priority = priority
        """Lower comes first."""
        self.model = model
        self.wish = wish
        self.excluded = excluded
        """Pods that it must not get, by uid."""
        self.retry = retry
        self.deadline = deadline
        """When it has waited as long as it may; monotonic seconds."""
        self.came = came


_Rank = dict[Hashable, list[Waiter[G]]]
"""Of one priority: each caller's waiters, oldest first; the callers in the order of their turns."""


class WaitingLine(Generic[G]):
    """See the module's text."""

    def __init__(self) -> None:
        self._ranks: dict[int, _Rank[G]] = {}
        """By priority, lowest first; none is empty."""
        self.length = 0
        """How many wait; read with every request. Written by the line alone."""

    def __len__(self) -> int:
        return self.length

    def join(self, waiter: Waiter[G], limit: int) -> bool:
        """Take a place at the end of the caller's own line; False when there is none.

        When all `limit` places are taken, whoever would be served last may have to make way: of those with the highest
        number the youngest waiter of the caller that has most of them. It does so for a lower number, and within its
        own for a caller that has at least two fewer: nobody keeps the others out by filling the line.
        """
        if self.length >= limit and not self._make_way(waiter):
            return False
        rank = self._ranks.get(waiter.priority)
        if rank is None:
            rank = self._ranks[waiter.priority] = {}
            self._ranks = dict(sorted(self._ranks.items()))
        rank.setdefault(waiter.caller, []).append(waiter)
        self.length += 1
        return True

    def leave(self, waiter: Waiter[G]) -> None:
        """Out of the line, for whatever reason; harmless when it is out already."""
        rank = self._ranks.get(waiter.priority, {})
        own = rank.get(waiter.caller, [])
        if waiter in own:
            own.remove(waiter)
            self.length -= 1
            if not own:
                del rank[waiter.caller]
                if not rank:
                    del self._ranks[waiter.priority]

    def hand_out(self, offer: Callable[[Waiter[G]], G | None], most: int) -> int:
        """Give to as many waiters as there is something for, at most `most`; how many that were.

        Lower numbers come first; callers of one number take turns. `offer` returns what a waiter gets, counted for it,
        or None when there is nothing for it: then whoever wants the same is passed over, since there is ever less to
        give.
        """
        given = 0
        nothing_for: set[tuple[str, frozenset[str]]] = set()
        while given < most and self._hand_one(offer, nothing_for):
            given += 1
        return given

    def expire(self, now: float) -> None:
        """Turn away whoever has waited as long as it may."""
        everybody = [waiter for rank in self._ranks.values() for own in rank.values() for waiter in own]
        for waiter in everybody:
            if now >= waiter.deadline:
                self._turn_away(waiter, Turned.TIMEOUT)

    def _make_way(self, waiter: Waiter[G]) -> bool:
        """Whether somebody had to go, so that this one has a place."""
        if not self._ranks:
            return False
        highest = next(reversed(self._ranks))
        rank = self._ranks[highest]
        # Of several that have as many, the one whose turn is last.
        longest = max(reversed(rank.values()), key=len)
        if waiter.priority > highest:
            return False
        if waiter.priority == highest and len(longest) < len(rank.get(waiter.caller, ())) + 2:
            return False
        self._turn_away(longest[-1], Turned.FULL)
        return True

    def _hand_one(self, offer: Callable[[Waiter[G]], G | None], nothing_for: set[tuple[str, frozenset[str]]]) -> bool:
        for rank in self._ranks.values():
            for caller, own in rank.items():
                for waiter in own:
                    wants = (waiter.model, waiter.excluded)
                    if wants in nothing_for or waiter.came.done():
                        continue
                    gift = offer(waiter)
                    if gift is None:
                        nothing_for.add(wants)
                        continue
                    self.leave(waiter)
                    waiter.came.set_result(gift)
                    if caller in rank:
                        # The others come first now.
                        rank[caller] = rank.pop(caller)
                    return True
        return False

    def _turn_away(self, waiter: Waiter[G], why: Turned) -> None:
        self.leave(waiter)
        if not waiter.came.done():
            waiter.came.set_result(why)
