"""What must not grow and what must come back: resident memory, descriptors; and how late the machine itself is.

Tasks cannot be counted from outside. What they wait for can: connections, requests in flight and those in the queue are
gauges, and must be back at 0 (invariant I4).
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import combinations
from math import inf, sqrt
from statistics import median

from loadtest.invariants.events import MachineLag
from loadtest.invariants.hearing import Hear
from tests.soak.replicas import Replica

WARM_UP_SECONDS = 660.0
"""Until all that a gateway keeps a bounded number of is full: of the last requests that did not go smoothly, 1,024,
which takes ten minutes at the soak's pace."""
WINDOW_SECONDS = 30.0
FEWEST_WINDOWS = 8
"""Fewer say nothing about a slope."""
STANDARD_DEVIATIONS = 2.0
STARTING_SECONDS = 61.0
"""What held the loop up at the start is told for a minute."""
SPARE_DESCRIPTORS = 8
"""Connections to Redis that are kept are opened with the first requests."""


@dataclass(frozen=True)
class Slope:
    """How the medians of the windows rise in a minute: the median of what any two of them say.

    One step, as an allocator makes when it takes another piece from the system, moves no median of this kind; what
    rises in every window does.
    """

    per_minute: float
    lowest: float
    """It is hardly less than this."""
    windows: int

    @property
    def is_judged(self) -> bool:
        return self.windows >= FEWEST_WINDOWS

    def surely_above(self, bound: float) -> bool:
        """More than noise would explain."""
        return self.is_judged and self.lowest > bound


def slope_of(samples: Sequence[tuple[float, float]]) -> Slope:
    """Of (moment, value) after the warm-up, by Theil and Sen; its bound is that of Kendall's rank correlation."""
    windows: dict[int, list[float]] = {}
    for at, value in samples:
        after = at - samples[0][0] - WARM_UP_SECONDS
        if after >= 0:
            windows.setdefault(int(after / WINDOW_SECONDS), []).append(value)
    points = [(window * WINDOW_SECONDS / 60, median(values)) for window, values in sorted(windows.items())]
    count = len(points)
    if count < 3:
        return Slope(0.0, -inf, count)
    rises = sorted((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2))
    chance = STANDARD_DEVIATIONS * sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return Slope(median(rises), rises[max(0, int((len(rises) - chance) / 2))], count)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed; 0 of none."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


@dataclass(frozen=True)
class Rest:
    """One gateway, at the end."""

    gateway: str
    rss_kib: tuple[float, float]
    """At the first scrape, at the last."""
    slope: Slope
    descriptors: tuple[int, int]
    lag_p99_seconds: float

    @classmethod
    def of(cls, replica: Replica) -> "Rest":
        memory = [(at, each["process_resident_memory_bytes"] / 1024) for at, each in replica.samples]
        descriptors = [int(each["process_open_fds"]) for _, each in replica.samples]
        begun_at = replica.samples[0][0]
        lag = [each["poolgate_loop_lag_seconds"] for at, each in replica.samples if at > begun_at + STARTING_SECONDS]
        return cls(
            replica.name,
            (memory[0][1], memory[-1][1]),
            slope_of(memory),
            (descriptors[0], descriptors[-1]),
            percentile(lag, 0.99),
        )

    def wrong(self, most_kib_per_minute: float) -> list[str]:
        """In words, what has not come back or grows."""
        found = []
        if self.slope.surely_above(most_kib_per_minute):
            found.append(
                f"{self.gateway}: memory grows by {self.slope.per_minute:.0f} KiB a minute, hardly by less than "
                f"{self.slope.lowest:.0f}; {most_kib_per_minute:.0f} may be"
            )
        if self.descriptors[1] > self.descriptors[0] + SPARE_DESCRIPTORS:
            found.append(f"{self.gateway}: {self.descriptors[1]} descriptors at the end, {self.descriptors[0]} before")
        return found


WITNESS = """
import time
while True:
    latest, ends_at = 0.0, time.monotonic() + 1
    while time.monotonic() < ends_at:
        due = time.monotonic() + 0.05
        time.sleep(0.05)
        latest = max(latest, time.monotonic() - due)
    print(latest, flush=True)
"""


@asynccontextmanager
async def witness(hear: Hear, clock: Callable[[], float], lags: list[float]) -> AsyncIterator[None]:
    """A process that does nothing but sleep, and tells each second how late it woke at the latest; in `lags` too."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WITNESS, stdout=subprocess.PIPE)
    assert process.stdout is not None

    async def listen(stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            lags.append(float(line))
            hear(MachineLag(clock(), lags[-1]))

    listening = asyncio.create_task(listen(process.stdout))
    try:
        yield
    finally:
        process.kill()
        await process.wait()
        await listening
