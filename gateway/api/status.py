"""What `/status.json` and `/readyz` say, as pure functions of what the gateway sees at one moment.

An operator's page: pods by name, never by address.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from math import ceil, isfinite
from typing import Any

from gateway import __version__
from gateway.api.seen import WHAT_IS_SHORT, Seen
from gateway.core.call import Trail
from gateway.core.clock import iso_seconds
from gateway.core.fleet import EJECTED, Fleet, Gauges, Model, Pod, PodHealth, PodLoad, PodState, shown_state
from gateway.core.words import readable
from gateway.limits.admission import Standing
from gateway.telemetry.lately import NOTHING, Lastly, Minute

NO_GAUGES = Gauges()
EJECTED_FOR = {
    "consecutive": "several requests in a row failed there",
    "share": "half of its requests failed lately",
    "wedged": "requests wait there and nothing comes",
    "probe": "the request that tried it failed",
}
"""Why a pod was ejected, in words, for each `reason` of the ejections metric."""
WHY: Mapping[str, str] = {
    "only": "it was the only pod with room",
    "least": "it had the fewest requests in flight",
    "cheapest": "it had the least work to do before the first token, this prompt's own included",
    "home": "all replicas send requests of this kind there, as long as others have not much less to do",
    "prefix": "prompts that begin like this one go there",
    "session": "this session's requests go there",
    "spill": "the pod that these requests go to has more than its share: this one is next in rank for them",
    "p2c": "it was the less busy one of two pods taken by chance",
    "round_robin": "it was its turn",
    "panic": "it was ejected, but too few others were left: all are used while that lasts",
    "probe": "it came back from an ejection: one request at a time tries it",
}
"""For each word that a decision may be, the sentence that goes with it."""
MAX_TENANTS = 50
"""Told of; those with the most requests in the last minute, then those nearest to a limit."""
MAX_REQUESTS = 50
MAX_EVENTS = 50


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
    minute = seen.minute()
    attempts = _attempts(minute)
    in_flight: Counter[str] = Counter()
    for pod in fleet.pods:
        in_flight[pod.pool] += seen.in_flight(pod.uid)
    models: dict[str, list[str]] = defaultdict(list)
    most: dict[str, int] = {}
    for name, route in sorted(fleet.routes.items()):
        models[route.pool.name].append(name)
        most[route.pool.name] = route.pool.max_in_flight_per_pod
    return {
        "version": __version__,
        "replica": seen.replica,
        "ts": _moment(seen, seen.now),
        "started_at": _moment(seen, seen.started_at),
        "uptime_seconds": rounded(seen.now - seen.started_at),
        "ready": not reason,
        "reason": reason,
        "replicas": seen.replicas,
        "config": _config(seen),
        "limits": {
            "mode": seen.limits.mode,
            "reason": seen.limits.reason,
            "for_seconds": rounded(max(0.0, seen.now - seen.limits.since)),
        },
        "overload": {
            "level": seen.load.level,
            "short_of": WHAT_IS_SHORT.get(seen.load.cause, ""),
            "for_seconds": rounded(max(0.0, seen.now - seen.load.since)) if seen.load.level else 0.0,
            "shed": seen.load.shed,
        },
        "discovery": {
            "mode": seen.mode,
            "listed": fleet.listed,
            "asked": fleet.asked,
            "stale_seconds": rounded(seen.stale_seconds),
        },
        "traffic": {
            "window_seconds": rounded(minute.seconds),
            **_traffic(minute.total),
            "per_second": _per_second(minute.total.sums.requests, minute),
            "tokens_per_second": _per_second(minute.total.sums.tokens, minute),
            "in_flight": in_flight.total(),
            "queue": sum(waiting.values()),
        },
        "pools": {
            name: {
                **states,
                "queue": waiting.get(name, 0),
                "panic": panics.get(name, False),
                "models": models[name],
                "in_flight": in_flight[name],
                **_traffic(minute.pools.get(name, NOTHING)),
            }
            for name, states in fleet.pods_by_state(ejected).items()
        },
        "pods": [
            {
                **_pod(seen, pod, shown_state(pod, ejected), most.get(pod.pool), panic=panics.get(pod.pool, False)),
                **_pod_traffic(minute.pods.get((pod.pool, pod.name), NOTHING), attempts[pod.pool]),
            }
            for pod in sorted(fleet.pods, key=lambda pod: (pod.pool, pod.name, pod.uid))
        ],
        "refused": [{"name": pod.name, "reason": pod.reason, "why": pod.why} for pod in fleet.refused],
        "models_without_pods": models_without_pods(fleet),
        "tenants": _tenants(minute, seen.standings()),
        "requests": [_request(trail, seen) for trail in seen.recent(MAX_REQUESTS)],
        "events": [
            {
                "ts": _moment(seen, event.at),
                "level": event.level,
                "what": event.what,
                "subject": event.subject,
                "text": event.text,
            }
            for event in islice(seen.events(), MAX_EVENTS)
        ],
    }


def _attempts(minute: Minute) -> Mapping[str, int]:
    """The last minute's attempts at each pool's pods."""
    attempts: dict[str, int] = defaultdict(int)
    for (pool, _), lastly in minute.pods.items():
        attempts[pool] += lastly.sums.requests
    return attempts


def _traffic(lastly: Lastly) -> dict[str, Any]:
    """The last minute of the gateway, or of a pool."""
    sums = lastly.sums
    return {
        "requests": sums.requests,
        "failed": sums.failed,
        "refused": sums.refused,
        "left": sums.left,
        "ttft_ms": {"p50": milliseconds(sums.ttft_seconds(0.5)), "p99": milliseconds(sums.ttft_seconds(0.99))},
        "history": list(lastly.history),
    }


def _pod_traffic(lastly: Lastly, of_pool: int) -> dict[str, Any]:
    sums = lastly.sums
    return {
        "attempts": sums.requests,
        "share": rounded(sums.requests / of_pool) if of_pool else 0.0,
        "failed": sums.failed,
        "ttft_ms": milliseconds(sums.ttft_seconds(0.5)),
        "history": list(lastly.history),
    }


def _per_second(count: int, minute: Minute) -> float | None:
    return rounded(count / max(minute.seconds, 1.0))


def _tenants(minute: Minute, standings: Iterable[Standing]) -> list[dict[str, Any]]:
    """Tenants, and of each kind of limit the one of theirs that is used most."""
    nearest: dict[str, dict[str, Standing]] = defaultdict(dict)
    for standing in standings:
        of_team = nearest[standing.team]
        before = of_team.get(standing.limit)
        if before is None or _used(standing) > _used(before):
            of_team[standing.limit] = standing

    def rank(team: str) -> tuple[float, ...]:
        fullest = max(map(_used, nearest[team].values()), default=0.0) if team in nearest else 0.0
        return -minute.tenants.get(team, NOTHING).sums.requests, -fullest

    teams = sorted({*minute.tenants, *nearest}, key=lambda team: (*rank(team), team))
    return [
        {
            "tenant": team,
            "requests": minute.tenants.get(team, NOTHING).sums.requests,
            "tokens": minute.tenants.get(team, NOTHING).sums.tokens,
            "failed": minute.tenants.get(team, NOTHING).sums.failed,
            "refused": minute.tenants.get(team, NOTHING).sums.refused,
            "limits": [
                {"limit": each.limit, "of": each.of, "used": each.used, "amount": each.amount}
                for each in sorted(nearest.get(team, {}).values(), key=lambda each: each.limit)
            ],
        }
        for team in teams[:MAX_TENANTS]
    ]


def _used(standing: Standing) -> float:
    return standing.used / standing.amount


def _request(trail: Trail, seen: Seen) -> dict[str, Any]:
    usage = trail.usage
    return {
        **ended_request(trail, seen.wall - seen.now),
        "pod": trail.pod,
        "attempts": trail.attempts,
        "decision": trail.decision,
        "why": WHY.get(trail.decision, ""),
        "completion_tokens": None if usage is None else usage.completion_tokens,
    }


def ended_request(trail: Trail, monotonic_to_wall: float) -> dict[str, Any]:
    """What is told of a request wherever it is told of; its names are the access line's. What is unknown, or never
    happened, is None. `monotonic_to_wall` turns its times into seconds since 1970."""
    usage = trail.usage
    return {
        "request_id": trail.request_id,
        "ts": _millisecond(trail.ended_at + monotonic_to_wall),
        "tenant": None if trail.tenant is None else trail.tenant.team,
        "operation": trail.operation,
        "model": readable(trail.model),
        "pool": trail.pool,
        "stream": trail.stream,
        "status": trail.status,
        "outcome": trail.outcome.value,
        "code": trail.code,
        "queue_ms": milliseconds(trail.queue_seconds),
        "ttft_ms": milliseconds(trail.ttft_seconds),
        "duration_ms": milliseconds(trail.duration_seconds),
        "prompt_tokens": None if usage is None else usage.prompt_tokens,
    }


def _config(seen: Seen) -> dict[str, Any]:
    lasts = max(0.0, seen.now - seen.config.loaded_at)
    return {
        "loaded_at": _moment(seen, seen.now - lasts),
        "for_seconds": rounded(lasts),
        "error": seen.config.error,
        "waits_for_restart": list(seen.config.waits_for_restart),
    }


def _pod(seen: Seen, pod: Pod, state: str, max_in_flight: int | None, *, panic: bool) -> dict[str, Any]:
    health = seen.health_of(pod.uid)
    # The pod's own time is that of the state which discovery gave it.
    lasts = max(0.0, seen.now - (health.ejected_at if state == EJECTED else pod.since))
    return {
        "name": pod.name,
        "pool": pod.pool,
        "state": state,
        "reason": _why_less(health, panic=panic) if pod.state is PodState.READY else pod.reason,
        "since": _moment(seen, seen.now - lasts),
        "for_seconds": rounded(lasts),
        "models": [{"name": model.name, "claimed_by": _claimed_by(seen.fleet, pod, model)} for model in pod.models],
        "in_flight": seen.in_flight(pod.uid),
        "max_in_flight": pod.max_in_flight or max_in_flight,
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


def _moment(seen: Seen, at: float) -> str:
    return f"{iso_seconds(round(seen.wall - seen.now + at))}Z"


def _millisecond(wall: float) -> str:
    """A wall-clock time as RFC 3339, in UTC, with milliseconds."""
    return f"{iso_seconds(int(wall))}.{int(wall % 1 * 1000):03d}Z"


def milliseconds(seconds: float | None) -> float | None:
    """A duration, in other units."""
    return None if seconds is None else rounded(seconds * 1000)


def rounded(value: float | None) -> float | None:
    """Three decimals; None for what JSON has no number for."""
    return round(value, 3) if value is not None and isfinite(value) else None
