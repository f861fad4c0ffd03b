"""Where trails end: observed in small batches, once each.

Counting and writing lines for 64 requests in a row costs half of doing so between everything else: the code and its
data stay in the processor's caches. The gateway's tick, a scrape and the end of the process flush what has gathered.
"""

from collections.abc import Iterable
from typing import Protocol

from gateway.core.call import Trail
from gateway.core.clock import Clock
from gateway.telemetry.access_log import AccessLog
from gateway.telemetry.lately import Lately
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.recent import Recent

BATCH = 64


class Traces(Protocol):
    """Where traces go, if there are any. `lost` since start."""

    @property
    def lost(self) -> int: ...

    def add(self, trails: Iterable[Trail], monotonic_to_wall: float) -> None:
        """Take those that are to be traced of these; the number turns their times into seconds since 1970."""
        ...

    def close(self) -> None: ...


class Journal:
    """Takes each request's trail at its end. Everything here runs on the loop's thread."""

    def __init__(
        self,
        metrics: Metrics,
        access_log: AccessLog,
        lately: Lately,
        recent: Recent,
        clock: Clock,
        traces: Traces | None = None,
    ) -> None:
        self._metrics = metrics
        self._lately = lately
        self._access_log = access_log
        self._recent = recent
        self._clock = clock
        self._traces = traces
        self._trails: list[Trail] = []

    def add(self, trail: Trail) -> None:
        """Note a request that has ended."""
        self._trails.append(trail)
        if len(self._trails) >= BATCH:
            self.observe()

    def observe(self) -> None:
        """Count, write and keep what has gathered."""
        trails, self._trails = self._trails, []
        monotonic_to_wall = self._clock.wall() - self._clock.monotonic()
        count, write, add, keep = self._metrics.observe, self._access_log.write, self._lately.add, self._recent.add
        for trail in trails:
            count(trail)
        for trail in trails:
            write(trail, trail.ended_at + monotonic_to_wall)
        for trail in trails:
            add(trail)
        for trail in trails:
            keep(trail)
        if self._traces is not None:
            self._traces.add(trails, monotonic_to_wall)

    def flush(self) -> None:
        """Observe, and hand the lines to their writer."""
        self.observe()
        self._access_log.flush()
