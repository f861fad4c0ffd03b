"""What `/status/requests/{id}` says of one request that has ended: where it went, and why. Pure.

An operator's page: pods by name, never by address; the caller by tenant and key id, never by key; and nothing of what
was asked or answered. Its names are the access line's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.api.status import rounded
from gateway.core.call import Attempt, Trail
from gateway.core.clock import iso_seconds

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


def explanation(trail: Trail, monotonic_to_wall: float) -> dict[str, Any]:
    """One request; what is unknown, or never happened, is None. `monotonic_to_wall` turns its times into seconds since
    1970."""
    tenant, usage = trail.tenant, trail.usage
    ended_at = trail.ended_at + monotonic_to_wall
    return {
        "request_id": trail.request_id,
        "ts": f"{iso_seconds(int(ended_at))}.{int(ended_at % 1 * 1000):03d}Z",
        "tenant": None if tenant is None else tenant.team,
        "key_id": None if tenant is None else tenant.key_id,
        "operation": trail.operation,
        "model": _text(trail.model),
        "pool": trail.pool,
        "stream": trail.stream,
        "status": trail.status,
        "outcome": trail.outcome.value,
        "code": trail.code,
        "queue_ms": _milliseconds(trail.queue_seconds),
        "ttft_ms": _milliseconds(trail.ttft_seconds),
        "duration_ms": _milliseconds(trail.duration_seconds),
        "prompt_tokens": None if usage is None else usage.prompt_tokens,
        "cached_tokens": None if usage is None else usage.cached_tokens,
        "attempts": [_attempt(attempt) for attempt in trail.tried],
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    costs: Sequence[float | None] = attempt.costs or [None] * len(attempt.candidates)
    return {
        "pod": attempt.pod,
        "decision": attempt.decision,
        "why": WHY.get(attempt.decision, ""),
        "cached_tokens": attempt.cached_tokens,
        "ended": attempt.ended,
        "candidates": [
            {"pod": pod, "cost": rounded(cost)} for pod, cost in zip(attempt.candidates, costs, strict=True)
        ],
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else rounded(seconds * 1000)


def _text(value: str) -> str:
    """A caller's string, without what UTF-8 cannot say."""
    return value.encode("utf-8", "replace").decode("utf-8")
