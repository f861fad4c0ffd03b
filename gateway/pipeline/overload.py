"""Whether this replica has too much to do, and whom it turns away then: pure.

Two things are looked at four times a second: how late the loop is, and how much of the memory that the process may have
is in use. Each has two marks. Above the first (level 1) what nobody watches is turned away: requests of a later
priority. Above the second (level 2) all new requests are, but for the list of models: it costs no more than its
refusal, and whoever balances asks for it to see whether we are alive. What is turned away has cost its head and its
key's digest, never its body; what runs goes on.

Memory counts at once. Lag counts when every look for two seconds has found it: one stall, however long, is one look,
and what has piled up behind it is served. A mark is left when two seconds of looks were below it, so nothing flaps.

Connections are closed with their answers for want of memory only: a client that connects anew may find another
replica, and what ours kept is free. For want of CPU that would be a mistake: a handshake costs more than the request
behind it, at the very moment at which there is no time for either.
"""

from collections.abc import Callable
from typing import Literal

from gateway.core.clock import about
from gateway.core.errors import Busy

Cause = Literal["lag", "memory"]
CAUSES: tuple[Cause, ...] = ("lag", "memory")

LAG_SECONDS = (0.25, 1.0)
MEMORY_SHARES = (0.85, 0.95)
LONG_ENOUGH_SECONDS = 2.0
LEAST_WAIT_SECONDS, MOST_WAIT_SECONDS = 2.0, 30.0

_SHORT_OF: dict[Cause, str] = {"lag": "CPU", "memory": "memory"}
_TURNED_AWAY = ("", "requests that can wait are not taken now", "no request is taken now")
"""By level."""


class Mark:
    """A bound that is passed when values were above it for so long, and left when they were not for so long."""

    __slots__ = ("_above", "_leave_seconds", "_pass_seconds", "_turning_since", "passed")

    def __init__(self, above: float, pass_seconds: float, leave_seconds: float) -> None:
        self._above = above
        self._pass_seconds = pass_seconds
        self._leave_seconds = leave_seconds
        self._turning_since: float | None = None
        """The first look of those in a row that say otherwise."""
        self.passed = False

    def look(self, now: float, value: float) -> bool:
        """Whether it is passed, with this value."""
        if (value > self._above) is self.passed:
            self._turning_since = None
            return self.passed
        if self._turning_since is None:
            self._turning_since = now
        if now - self._turning_since >= (self._leave_seconds if self.passed else self._pass_seconds):
            self._turning_since = None
            self.passed = not self.passed
        return self.passed


class Overload:
    """`look` from the tick; `level` from anywhere: 0 none, 1 turns away what can wait, 2 all that is new.

    `lag_seconds` and `memory_shares`: the marks of level 1 and of level 2.
    """

    def __init__(
        self,
        chance: Callable[[], float],
        *,
        lag_seconds: tuple[float, float] = LAG_SECONDS,
        memory_shares: tuple[float, float] = MEMORY_SHARES,
        pass_seconds: float = LONG_ENOUGH_SECONDS,
        leave_seconds: float = LONG_ENOUGH_SECONDS,
    ) -> None:
        self._chance = chance
        self._marks: dict[Cause, tuple[Mark, ...]] = {
            "lag": tuple(Mark(each, pass_seconds, leave_seconds) for each in lag_seconds),
            "memory": tuple(Mark(each, 0.0, leave_seconds) for each in memory_shares),
        }
        self._now = 0.0
        self.level = 0
        self.cause: Cause | None = None
        """What the level is due to; None: it is 0."""
        self.since = 0.0
        """When it last began to be above 0; monotonic seconds."""
        self.short_of_memory = False
        """Whether answers close their connections."""
        self.shed: dict[Cause, int] = dict.fromkeys(CAUSES, 0)
        """Requests turned away since start."""

    def look(self, now: float, lag: float, memory_share: float) -> None:
        """Judge the loop's lag (seconds, the longest since the last look) and the memory in use (0 to 1)."""
        self._now = now
        levels = {"lag": self._level("lag", now, lag), "memory": self._level("memory", now, memory_share)}
        self.short_of_memory = levels["memory"] > 0
        before, self.level = self.level, max(levels.values())
        # Both at once: more memory is what helps first.
        self.cause = None if not self.level else "memory" if levels["memory"] == self.level else "lag"
        if self.level and not before:
            self.since = now

    def check(self, priority: int) -> None:
        """Let a new request in, or not; for when `level` is not 0.

        Raises `Busy`.
        """
        if self.cause is None or (self.level == 1 and priority <= 0):
            return
        self.shed[self.cause] += 1
        raise Busy(
            f"this gateway is short of {_SHORT_OF[self.cause]}: {_TURNED_AWAY[self.level]}; send it again later",
            retry_after_seconds=about(self._wait_seconds(), self._chance),
        )

    def _wait_seconds(self) -> float:
        """What has lasted for a while will last about as long again; and never ends before it is left."""
        return max(LEAST_WAIT_SECONDS, min(MOST_WAIT_SECONDS, self._now - self.since))

    def _level(self, cause: Cause, now: float, value: float) -> int:
        first, second = self._marks[cause]
        # Both are looked at, always.
        passed, passed_more = first.look(now, value), second.look(now, value)
        return 2 if passed_more else int(passed)
