"""Timers whose hands the test moves."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class HandTimer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class HandClock:
    """What the engine asks of an event loop. Nothing happens until `move`."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._order = count()
        self._due: list[tuple[float, int, HandTimer]] = []

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[[], object]) -> HandTimer:
        return self.call_at(self._now, callback)

    def call_at(self, when: float, callback: Callable[[], object]) -> HandTimer:
        timer = HandTimer(callback)
        heapq.heappush(self._due, (when, next(self._order), timer))
        return timer

    def call_later(self, delay: float, callback: Callable[[], object]) -> HandTimer:
        return self.call_at(self._now + delay, callback)

    def move(self, seconds: float) -> None:
        """Let time pass, and everything happen that is due by then, at its time."""
        end = self._now + seconds
        while self._due and self._due[0][0] <= end + 1e-9:
            when, _, timer = heapq.heappop(self._due)
            self._now = max(when, self._now)
            if not timer.cancelled:
                timer.callback()
        self._now = end

    @property
    def pending(self) -> int:
        return sum(1 for _, _, timer in self._due if not timer.cancelled)
