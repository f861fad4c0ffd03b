"""What `/status/requests/{id}` says of one request that has ended: where it went, and why. Pure.

An operator's page: pods by name, never by address; the caller by tenant and key id, never by key; and nothing of what
was asked or answered. Its names are the access line's.
"""

from collections.abc import Sequence
from typing import Any

from gateway.api.status import WHY, ended_request, rounded
from gateway.core.call import Attempt, Trail


def explanation(trail: Trail, monotonic_to_wall: float) -> dict[str, Any]:
    """One request; what is unknown, or never happened, is None. `monotonic_to_wall` turns its times into seconds since
    1970."""
    return {
        **ended_request(trail, monotonic_to_wall),
        "key_id": None if trail.tenant is None else trail.tenant.key_id,
        "cached_tokens": None if trail.usage is None else trail.usage.cached_tokens,
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
