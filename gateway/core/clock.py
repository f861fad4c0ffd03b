"""The only reader of time.

Durations come from the monotonic clock; the wall clock is read for log lines, the Date header and the expiry of keys
only.
A test hands over a `Clock` whose hands it moves itself.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate


@dataclass(frozen=True, slots=True)
class Clock:
    """`monotonic()` and `wall()` both in seconds; `wall()` since 1970, UTC."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


def about(seconds: float, chance: Callable[[], float]) -> float:
    """A fifth more or less, by chance from 0 to 1: so that what waits as long does not come at the same moment."""
    return seconds * (0.8 + 0.4 * chance())


def http_date(wall: float) -> bytes:
    """A wall-clock time in the form of RFC 9110 section 5.6.7."""
    return formatdate(wall, usegmt=True).encode("ascii")


def iso_seconds(wall: int) -> str:
    """A wall-clock time in whole seconds as RFC 3339, in UTC, without the zone's letter."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds").removesuffix("+00:00")
