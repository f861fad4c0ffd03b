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
from math import inf, sqrt

from loadtest.invariants.events import MachineLag
from loadtest.invariants.hearing import Hear
from tests.soak.replicas import Replica

WARM_UP_SHARE = 0.2
"""Of a run: caches fill and the allocator finds its size."""
WINDOW_SECONDS = 30.0
FEWEST_WINDOWS = 8
"""Fewer say nothing about a slope."""
STANDARD_ERRORS = 2.0
STARTING_SECONDS = 61.0
"""What held the loop up at the start is told for a minute."""
SPARE_DESCRIPTORS = 8
"""Connections to Redis that are kept are opened with the first requests."""


@dataclass(frozen=True)
class Slope:
    """Of a straight line through the lowest value of each window, by least squares; a minute."""

    per_minute: float
    error: float
    """Its standard error."""
    windows: int

    def surely_above(self, bound: float) -> bool:
        """More than noise would explain."""
        return self.windows >= FEWEST_WINDOWS and self.per_minute - STANDARD_ERRORS * self.error > bound


def slope_of(samples: Sequence[tuple[float, float]]) -> Slope:
    """Of (moment, value) after the warm-up. What an allocator holds for a moment is not growth, so a window counts with
    its lowest value."""
    if not samples:
        return Slope(0.0, inf, 0)
    begins = samples[0][0] + (samples[-1][0] - samples[0][0]) * WARM_UP_SHARE
    lowest: dict[int, float] = {}
    for at, value in samples:
        if at >= begins:
            window = int((at - begins) / WINDOW_SECONDS)
            lowest[window] = min(value, lowest.get(window, inf))
    points = [(window * WINDOW_SECONDS / 60, value) for window, value in sorted(lowest.items())]
    count = len(points)
    if count < 3:
        return Slope(0.0, inf, count)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    left = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return Slope(slope, sqrt(left / (count - 2) / spread), count)


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
                f"{self.gateway}: memory grows by {self.slope.per_minute:.0f} ± {self.slope.error:.0f} KiB a minute"
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
