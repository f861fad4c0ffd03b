"""The line of requests that wait for room in one pool: bounded, fair between callers, each of them first come first
served.

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
    """The line is full, and its caller has no claim to a place in it."""
    TIMEOUT = "timeout"


class Waiter(Generic[G]):
    """One request in the line. `came` is resolved once: with what it was given, or with why it gets nothing."""

    __slots__ = ("caller", "came", "deadline", "excluded", "model", "retry", "wish")

    def __init__(
        self,
        caller: Hashable,
        model: str,
        wish: Wish,
        excluded: frozenset[str],
        retry: bool,
        deadline: float,
        came: "asyncio.Future[G | Turned]",
    ) -> None:
        self.caller = caller
        self.model = model
        self.wish = wish
        self.excluded = excluded
        """Pods that it must not get, by uid."""
        self.retry = retry
        self.deadline = deadline
        """When it has waited as long as it may; monotonic seconds."""
        self.came = came


class WaitingLine(Generic[G]):
    """See the module's text."""

    def __init__(self) -> None:
        self._callers: dict[Hashable, list[Waiter[G]]] = {}
        """Each caller's waiters, oldest first; the callers in the order of their turns."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def join(self, waiter: Waiter[G], limit: int) -> bool:
        """Take a place at the end of the caller's own line; False when there is none.

        When all `limit` places are taken, the youngest waiter of the caller that has most of them makes way for one
        that has at least two fewer: nobody keeps the others out by filling the line.
        """
        if self._count >= limit:
            longest = max(self._callers.values(), key=len, default=[])
            if len(longest) < len(self._callers.get(waiter.caller, ())) + 2:
                return False
            self._turn_away(longest[-1], Turned.FULL)
        self._callers.setdefault(waiter.caller, []).append(waiter)
        self._count += 1
        return True

    def leave(self, waiter: Waiter[G]) -> None:
        """Out of the line, for whatever reason; harmless when it is out already."""
        own = self._callers.get(waiter.caller, [])
        if waiter in own:
            own.remove(waiter)
            self._count -= 1
            if not own:
                del self._callers[waiter.caller]

    def hand_out(self, offer: Callable[[Waiter[G]], G | None], most: int) -> int:
        """Give to as many waiters as there is something for, at most `most`; how many that were.

        Callers take turns. `offer` returns what a waiter gets, counted for it, or None when there is nothing for it:
        then whoever wants the same is passed over, since there is ever less to give.
        """
        given = 0
        nothing_for: set[tuple[str, frozenset[str]]] = set()
        while given < most and self._hand_one(offer, nothing_for):
            given += 1
        return given

    def expire(self, now: float) -> None:
        """Turn away whoever has waited as long as it may."""
        for own in list(self._callers.values()):
            for waiter in [each for each in own if now >= each.deadline]:
                self._turn_away(waiter, Turned.TIMEOUT)

    def _hand_one(self, offer: Callable[[Waiter[G]], G | None], nothing_for: set[tuple[str, frozenset[str]]]) -> bool:
        for caller, own in self._callers.items():
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
                if caller in self._callers:
                    # The others come first now.
                    self._callers[caller] = self._callers.pop(caller)
                return True
        return False

    def _turn_away(self, waiter: Waiter[G], why: Turned) -> None:
        self.leave(waiter)
        if not waiter.came.done():
            waiter.came.set_result(why)
