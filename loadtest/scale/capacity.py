"""What things cost a replica, in cores and MiB, and what one replica on one core carries. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtest.scale.bounds import MOST_CONNECTIONS, PACE
from loadtest.scale.figures import Figures

SCRAPE_SECONDS: Final = 15.0
"""How often a Prometheus asks."""
MEMORY_LIMIT_MIB: Final = 1024.0
"""Of the container in deploy/; a test holds it to that."""
MEMORY_SHARE: Final = 0.85
"""With more of it in use, requests that can wait are turned away (docs/overload.md)."""
MEASURED_READS: Final = 100.0
"""Readings a second that `pods_quiet_ms` is of: `/metrics` and models, 50 of each."""


def choice_us(figures: Figures, pods: int) -> float:
    """Of choosing among so many: lines through what was measured."""
    points = ((8, figures.choice_8_us), (64, figures.choice_64_us), (512, figures.choice_512_us))
    if pods <= points[0][0]:
        return points[0][1]
    (low, cheap), (high, dear) = points[:2] if pods <= points[1][0] else points[1:]
    return cheap + (dear - cheap) * (pods - low) / (high - low)


def request_us(figures: Figures, pods: int) -> float:
    """Of a request without limits. It was measured with two pods, so dearer choices come on top."""
    return figures.request_us + choice_us(figures, pods) - figures.choice_8_us


def call_us(figures: Figures) -> float:
    """Of a call to Redis, on the gateway's side: from a request that shares calls, and one that has two of its own."""
    return (figures.asked_alone_us - figures.asked_us) / (2.0 - figures.asked_calls)


def asking_us(figures: Figures) -> float:
    """What limits in Redis cost a request beside its calls."""
    return max(0.0, figures.asked_us - figures.asked_calls * call_us(figures))


def asking_pods(figures: Figures, pods: int, replicas: int) -> float:
    """Cores that a replica spends on asking so many pods, all of which are believed."""
    slow = pods / PACE.gauges_seconds(pods, replicas) + pods / PACE.models_seconds(pods)
    counts = pods / PACE.count_seconds(pods, replicas)
    return slow * figures.pods_quiet_ms / MEASURED_READS / 1e3 + counts * figures.pods_load_us / 1e6


def at_rest(figures: Figures, pods: int, replicas: int) -> float:
    """Cores of a replica that has nothing to do: it asks pods, is scraped, watches its loop, shows one status page."""
    scraped = figures.scrape_ms / 1e3 / SCRAPE_SECONDS
    return asking_pods(figures, pods, replicas) + scraped + figures.lag_share + figures.status_share


def memory_mib(figures: Figures, pods: int, streams: float) -> float:
    """Of a replica with so many open streams, its beliefs about the pods' caches at their largest."""
    resting = figures.idle_mib + figures.pods_memory_mib * max(1.0, pods / 1000) + figures.beliefs_mib
    return resting + figures.stream_kib * streams / 1024


@dataclass(frozen=True, slots=True)
class Carries:
    """One figure of a replica."""

    what: str
    whole: float
    """With all of its core, or all that a bound allows."""
    at_target: float


def one_replica(figures: Figures, target: float, pods: int = 32) -> Sequence[Carries]:
    """What it carries of one thing alone."""
    rest = at_rest(figures, pods, 1)

    def both(what: str, us: float) -> Carries:
        return Carries(what, (1.0 - rest) * 1e6 / us, (target - rest) * 1e6 / us)

    per_request = request_us(figures, pods)
    free = MEMORY_LIMIT_MIB * MEMORY_SHARE - memory_mib(figures, pods, 0)
    by_memory = free * 1024 / figures.stream_kib
    return (
        both("requests/s, not streamed, no limits", per_request),
        both("the same, limits spent from leases", per_request + figures.limits_us),
        both("the same, limits asked of Redis, calls shared", per_request + figures.asked_us),
        both("streamed chunks/s", figures.chunk_us),
        *(both(f"open streams of {rate} chunks/s", rate * figures.chunk_us) for rate in (20, 30, 50)),
        Carries("open streams, by memory (1 GiB)", by_memory, by_memory),
        Carries("open streams, by connections", MOST_CONNECTIONS, MOST_CONNECTIONS),
        both("new TLS connections/s", figures.tls_handshake_ms * 1e3),
    )
