"""How long the event loop was held up: nothing is read, sent or timed out meanwhile, so all streams stand still.

A task sleeps for 50 ms, again and again; what it wakes too late is what held the loop. A stall that is shorter may fall
between two wakes, and a longer one is told up to 50 ms too short. The longest is kept for a minute, since a scrape
comes every fifteen or thirty seconds and must not miss it: as two maxima, of this half minute and of the one before, so
that keeping it costs a comparison; beside them the longest since somebody looked, for who looks again and again.
Twenty wakes a second take 0.3 % of a core from an idle process, and from a busy one less than could be measured.
"""

import asyncio
from collections.abc import Callable

SAMPLE_SECONDS = 0.05
HALF_SECONDS = 30.0


class LoopLag:
    """`run` on the loop; `longest` from anywhere."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._turns_at = clock() + HALF_SECONDS
        self._now = 0.0
        self._before = 0.0
        self._since_asked = 0.0

    async def run(self) -> None:
        """Look again and again; ends by cancellation."""
        clock = self._clock
        while True:
            due = clock() + SAMPLE_SECONDS
            await asyncio.sleep(SAMPLE_SECONDS)
            now = clock()
            self.note(now - due, now)

    def note(self, late: float, now: float) -> None:
        """A wake came so many seconds late."""
        if now >= self._turns_at:
            # After a stall that was longer than a half, nothing before it is of the last minute any more.
            stalled = now >= self._turns_at + HALF_SECONDS
            self._before, self._now = 0.0 if stalled else self._now, 0.0
            self._turns_at = (now if stalled else self._turns_at) + HALF_SECONDS
        if late > self._now:
            self._now = late
        if late > self._since_asked:
            self._since_asked = late

    def longest(self) -> float:
        """The longest of the last half minute at least, and of the last minute at most; in seconds, never negative."""
        return max(self._now, self._before)

    def since_asked(self) -> float:
        """The longest since this was asked last; in seconds, never negative."""
        longest, self._since_asked = self._since_asked, 0.0
        return longest
