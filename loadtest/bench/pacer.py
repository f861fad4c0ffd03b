"""Many beats, each due at its own instant, served on a common grid.

What a chunk costs a proxy depends on how many come at once, more than on the proxy: served at the very
microsecond they are due, 5,000 evenly spread chunks a second wake both cores from idle for each of them,
and that kernel time (about as much again, in a virtual machine) hides what the proxies differ in. On a
grid of a millisecond, an event loop's own resolution, the same streams are spread over twenty instants of
their period, five on each. That is the default, for it is the stricter for us; a grid of 0 serves each
beat when it is due. A timerfd, for a loop's timers are whole milliseconds from whenever they were set, and
would drift off the grid.
"""

import asyncio
import ctypes
import heapq
import itertools
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_CLOCK_MONOTONIC: Final = 1
_ABSOLUTE: Final = 1  # TFD_TIMER_ABSTIME
_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC  # what TFD_NONBLOCK and TFD_CLOEXEC are defined as

Beat = Callable[[], int | None]
"""Acts, and tells how many nanoseconds after the beat that was due the next one is; None ends it."""


class _Itimerspec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")]


def on_grid(due_ns: int, grid_ns: int) -> int:
    """The first point of the grid that is not before `due_ns`."""
    return -(-due_ns // grid_ns) * grid_ns


class Pacer:
    """Calls beats when they are due (nanoseconds of CLOCK_MONOTONIC), or at the next point of a grid.

    A late beat is made up for at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, grid_ns: int) -> None:
        self._grid_ns = max(1, grid_ns)
        self._fd = _libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._beats: list[tuple[int, int, Beat]] = []
        self._order = itertools.count()
        self._loop = loop
        loop.add_reader(self._fd, self._due)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def add(self, due_ns: int, beat: Beat) -> None:
        heapq.heappush(self._beats, (due_ns, next(self._order), beat))
        if self._beats[0][0] == due_ns:
            self._arm()

    def _due(self) -> None:
        with suppress(BlockingIOError):  # an `add` re-armed the timer after it had fired
            os.read(self._fd, 8)
        now = time.monotonic_ns()
        while self._beats and self._beats[0][0] <= now:
            due_ns, order, beat = self._beats[0]
            after_ns = beat()
            if after_ns is None:
                heapq.heappop(self._beats)
            else:
                heapq.heapreplace(self._beats, (due_ns + after_ns, order, beat))
        if self._beats:
            self._arm()

    def _arm(self) -> None:
        seconds, nanoseconds = divmod(on_grid(self._beats[0][0], self._grid_ns), 1_000_000_000)
        when = _Itimerspec(0, 0, seconds, nanoseconds)
        if _libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(when), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
