"""What `/status.json` and `/readyz` say, as pure functions of what the gateway sees at one moment.

An operator's page: pods by name, never by address.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from gateway import __version__
from gateway.core.clock import iso_seconds
from gateway.core.fleet import Fleet, Gauges, Model, Pod, PodLoad

NOTHING_KNOWN = PodLoad()
NO_GAUGES = Gauges()


@dataclass(frozen=True, slots=True)
class Seen:
    """What the gateway knows of its pods and of itself at one moment."""

    fleet: Fleet
    draining: bool
    loads: Mapping[str, PodLoad]
    """By pod uid; of a pod that is missing here nothing is known."""
    in_flight: Callable[[str], int]
    """Our own attempts that run at a pod, by its uid."""
    mode: str
    """Of discovery: `static` or `kubernetes`."""
    stale_seconds: float
    """For how long nothing was heard of which pods there are; 0 while discovery works."""
    replicas: int
    """Gateways that share the pods, this one included."""
    now: float
    """Monotonic seconds, as the pods' `since` and their loads' times."""
    wall: float
    """The same moment in seconds since 1970."""


def why_not_ready(fleet: Fleet, *, draining: bool) -> str:
    """Why requests should go to another replica, in words; empty when they may come."""
    if draining:
        return "draining"
    if not fleet.listed:
        return "waiting for the first list of pods"
    if not fleet.asked:
        return "asking pods for their models"
    return ""


def models_without_pods(fleet: Fleet) -> list[str]:
    """The known models that no ready pod serves now."""
    return sorted(name for name, route in fleet.routes.items() if not route.pods)


def status_of(seen: Seen) -> dict[str, Any]:
    """The content of `/status.json`; numbers have three decimals at most, what is unknown is None."""
    fleet = seen.fleet
    reason = why_not_ready(fleet, draining=seen.draining)
    return {
        "version": __version__,
        "ready": not reason,
        "reason": reason,
        "replicas": seen.replicas,
        "discovery": {
            "mode": seen.mode,
            "listed": fleet.listed,
            "asked": fleet.asked,
            "stale_seconds": _rounded(seen.stale_seconds),
        },
        "pools": fleet.pods_by_state(),
        "pods": [_pod(seen, pod) for pod in sorted(fleet.pods, key=lambda pod: (pod.pool, pod.name, pod.uid))],
        "refused": [{"name": pod.name, "reason": pod.reason, "why": pod.why} for pod in fleet.refused],
        "models_without_pods": models_without_pods(fleet),
    }


def _pod(seen: Seen, pod: Pod) -> dict[str, Any]:
    lasts = max(0.0, seen.now - pod.since)
    return {
        "name": pod.name,
        "pool": pod.pool,
        "state": pod.state.value,
        "reason": pod.reason,
        "since": f"{iso_seconds(round(seen.wall - lasts))}Z",
        "for_seconds": _rounded(lasts),
        "models": [{"name": model.name, "claimed_by": _claimed_by(seen.fleet, pod, model)} for model in pod.models],
        "in_flight": seen.in_flight(pod.uid),
        "load": _load(seen.loads.get(pod.uid, NOTHING_KNOWN), seen.now),
    }


def _claimed_by(fleet: Fleet, pod: Pod, model: Model) -> str | None:
    """The other pool that gets all requests for a model which this pod lists."""
    route = fleet.routes.get(model.name)
    return None if route is None or route.pool.name == pod.pool else route.pool.name


def _load(load: PodLoad, now: float) -> dict[str, Any]:
    """What a pod said of its load; `age_seconds` is that of the older one of its two answers."""
    gauges = load.gauges or NO_GAUGES
    read_at = [load.in_flight_read_at] if load.in_flight is not None else []
    read_at += [load.gauges_read_at] if load.gauges is not None else []
    hits, queries = gauges.prefix_hits, gauges.prefix_queries
    return {
        "in_flight": load.in_flight,
        "running": gauges.running,
        "waiting": gauges.waiting,
        "kv_usage": _rounded(gauges.kv_usage),
        "prefix_hit_ratio": _rounded(hits / queries) if hits is not None and queries else None,
        "adapters": None if load.gauges is None else list(gauges.adapters),
        "age_seconds": _rounded(max(0.0, now - min(read_at))) if read_at else None,
    }


def _rounded(value: float | None) -> float | None:
    """Three decimals; None for what JSON has no number for."""
    return round(value, 3) if value is not None and isfinite(value) else None
