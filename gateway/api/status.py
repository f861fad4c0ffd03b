"""What `/status.json` and `/readyz` say, as pure functions of what the gateway sees at one moment.

An operator's page: pods by name, never by address.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any

from gateway import __version__
from gateway.core.clock import iso_seconds
from gateway.core.fleet import EJECTED, Fleet, Gauges, Model, Pod, PodHealth, PodLoad, PodState, shown_state

NO_GAUGES = Gauges()
EJECTED_FOR = {
    "consecutive": "several requests in a row failed there",
    "share": "half of its requests failed lately",
    "wedged": "requests wait there and nothing comes",
    "probe": "the request that tried it failed",
}
"""Why a pod was ejected, in words, for each `reason` of the ejections metric."""


@dataclass(frozen=True, slots=True)
class ConfigState:
    """Since when the configuration and the keys are as they are, and what became of their files since."""

    loaded_at: float
    """Monotonic seconds."""
    error: str = ""
    """Why what a file holds now is not in force; empty when all is."""
    waits_for_restart: tuple[str, ...] = ()
    """Keys whose new values take effect with the next start."""


@dataclass(frozen=True, slots=True)
class LimitsState:
    """Where limits are counted."""

    mode: str = "memory"
    """`memory`, `redis`, or `local`: Redis is slow or away, and each replica keeps to its share."""
    since: float = 0.0
    """Monotonic seconds."""
    reason: str = ""
    """Why it is `local`, in one word."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the gateway knows of its pods and of itself at one moment. What probes do not need is asked for only when it
    is told: with a thousand pods it is much."""

    fleet: Fleet
    draining: bool
    load_of: Callable[[str], PodLoad]
    """What a pod said of its load, by its uid."""
    health_of: Callable[[str], PodHealth]
    """How requests fare at a pod, by its uid."""
    in_flight: Callable[[str], int]
    """Our own attempts that run at a pod, by its uid."""
    waiting: Callable[[], Iterable[tuple[str, int]]]
    """(pool, requests that wait for one of its pods)."""
    panics: Callable[[], Iterable[tuple[str, bool]]]
    """(pool, whether its ejected pods get requests all the same)."""
    config: ConfigState
    limits: LimitsState
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


def ejected_pods(seen: Seen) -> Collection[str]:
    """The uids of the pods that are ejected now."""
    return {pod.uid for pod in seen.fleet.pods if seen.health_of(pod.uid).state == EJECTED}


def status_of(seen: Seen) -> dict[str, Any]:
    """The content of `/status.json`; numbers have three decimals at most, what is unknown is None."""
    fleet = seen.fleet
    reason = why_not_ready(fleet, draining=seen.draining)
    ejected, waiting, panics = ejected_pods(seen), dict(seen.waiting()), dict(seen.panics())
    return {
        "version": __version__,
        "ready": not reason,
        "reason": reason,
        "replicas": seen.replicas,
        "config": _config(seen),
        "limits": {
            "mode": seen.limits.mode,
            "reason": seen.limits.reason,
            "for_seconds": rounded(max(0.0, seen.now - seen.limits.since)),
        },
        "discovery": {
            "mode": seen.mode,
            "listed": fleet.listed,
            "asked": fleet.asked,
            "stale_seconds": rounded(seen.stale_seconds),
        },
        "pools": {
            name: {**states, "queue": waiting.get(name, 0), "panic": panics.get(name, False)}
            for name, states in fleet.pods_by_state(ejected).items()
        },
        "pods": [
            _pod(seen, pod, shown_state(pod, ejected), panic=panics.get(pod.pool, False))
            for pod in sorted(fleet.pods, key=lambda pod: (pod.pool, pod.name, pod.uid))
        ],
        "refused": [{"name": pod.name, "reason": pod.reason, "why": pod.why} for pod in fleet.refused],
        "models_without_pods": models_without_pods(fleet),
    }


def _config(seen: Seen) -> dict[str, Any]:
    lasts = max(0.0, seen.now - seen.config.loaded_at)
    return {
        "loaded_at": f"{iso_seconds(round(seen.wall - lasts))}Z",
        "for_seconds": rounded(lasts),
        "error": seen.config.error,
        "waits_for_restart": list(seen.config.waits_for_restart),
    }


def _pod(seen: Seen, pod: Pod, state: str, *, panic: bool) -> dict[str, Any]:
    health = seen.health_of(pod.uid)
    # The pod's own time is that of the state which discovery gave it.
    lasts = None if state == EJECTED else max(0.0, seen.now - pod.since)
    return {
        "name": pod.name,
        "pool": pod.pool,
        "state": state,
        "reason": _why_less(health, panic=panic) if pod.state is PodState.READY else pod.reason,
        "since": None if lasts is None else f"{iso_seconds(round(seen.wall - lasts))}Z",
        "for_seconds": rounded(lasts),
        "models": [{"name": model.name, "claimed_by": _claimed_by(seen.fleet, pod, model)} for model in pod.models],
        "in_flight": seen.in_flight(pod.uid),
        "max_in_flight": pod.max_in_flight,
        "weight": rounded(health.weight),
        "load": _load(seen.load_of(pod.uid), seen.now),
    }


def _why_less(health: PodHealth, *, panic: bool) -> str:
    """Why a ready pod gets no requests, or fewer than others; empty when it gets its share."""
    if health.state == EJECTED:
        seconds = ceil(health.seconds_left)
        until = f"in {seconds} s" if seconds > 0 else "once its /health says 200"
        why = EJECTED_FOR.get(health.reason, health.reason)
        return f"{why}; back {until}{'; used all the same: too few others are left' if panic else ''}"
    if health.state == "probing":
        return "back from an ejection: one request at a time tries it"
    if health.weight < 1:
        came = "back from an ejection" if health.state == "returning" else "new"
        return f"{came}: it gets {health.weight:.0%} of a share, and ever more"
    return ""


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
        "kv_usage": rounded(gauges.kv_usage),
        "prefix_hit_ratio": rounded(hits / queries) if hits is not None and queries else None,
        "adapters": None if load.gauges is None else list(gauges.adapters),
        "age_seconds": rounded(max(0.0, now - min(read_at))) if read_at else None,
    }


def rounded(value: float | None) -> float | None:
    """Three decimals; None for what JSON has no number for."""
    return round(value, 3) if value is not None and isfinite(value) else None
