"""What `/status.json` says of a gateway on which much goes on: two pools, a pod of every state, tenants, requests."""

from typing import Any

from gateway.api.status import status_of
from tests.seeing import seen

TS = "2026-01-01T00:00:00Z"
EVIL = "<img src=x onerror=\"alert('x')\">&amp;"
"""A name that would be much else if it were not taken as text."""


def pod_said(name: str, pool: str = "chat", **more: Any) -> dict[str, Any]:
    """A ready pod at work."""
    load = {"in_flight": 14, "running": 12, "waiting": 1, "kv_usage": 0.43, "prefix_hit_ratio": 0.7}
    return {
        "name": name,
        "pool": pool,
        "state": "ready",
        "reason": "",
        "since": "2025-12-31T23:56:40Z",
        "for_seconds": 200.0,
        "models": [{"name": "qwen3-8b", "claimed_by": None}],
        "in_flight": 14,
        "max_in_flight": 128,
        "weight": 1.0,
        "load": load | {"adapters": [], "age_seconds": 0.4},
        "attempts": 520,
        "share": 0.515,
        "failed": 0,
        "ttft_ms": 76.1,
        "history": [15, 18, *[0] * 28],
    } | more


def pool_said(**more: Any) -> dict[str, Any]:
    """A pool of one such pod."""
    states = {"ready": 1, "starting": 0, "draining": 0, "ejected": 0, "asleep": 0}
    return {
        **states,
        "queue": 0,
        "panic": False,
        "models": ["qwen3-8b"],
        "in_flight": 27,
        "requests": 1010,
        "failed": 0,
        "refused": 0,
        "left": 0,
        "ttft_ms": {"p50": 78.4, "p99": 1702.0},
        "history": [30] * 30,
    } | more


def tenant_said(name: str, *limits: tuple[str, int, int], **more: Any) -> dict[str, Any]:
    """A tenant, and of each limit its name, what is used and what there is."""
    return {
        "tenant": name,
        "requests": 900,
        "tokens": 240112,
        "failed": 0,
        "refused": 0,
        "limits": [
            {"limit": limit, "of": "key a1b2c3d4", "used": used, "amount": amount} for limit, used, amount in limits
        ],
    } | more


def request_said(request_id: str, **more: Any) -> dict[str, Any]:
    """A stream that was served."""
    return {
        "request_id": request_id,
        "ts": "2025-12-31T23:59:58.319Z",
        "tenant": "acme",
        "operation": "chat",
        "model": "qwen3-8b",
        "pool": "chat",
        "pod": "chat-0",
        "status": 200,
        "outcome": "completed",
        "code": "",
        "stream": True,
        "attempts": 1,
        "decision": "prefix",
        "why": "prompts that begin like this one go there",
        "queue_ms": 0.0,
        "ttft_ms": 81.2,
        "duration_ms": 1412.5,
        "prompt_tokens": 512,
        "completion_tokens": 130,
    } | more


def event_said(subject: str, **more: Any) -> dict[str, Any]:
    """A pod's ejection."""
    told = {"level": "error", "what": "pod_ejected", "subject": subject, "text": "half of its requests failed lately"}
    return {"ts": "2025-12-31T23:59:40Z", **told} | more


def said(**more: Any) -> dict[str, Any]:
    """What a gateway says where all is well."""
    return {
        **status_of(seen()),
        "pools": {"chat": pool_said()},
        "pods": [pod_said("chat-0")],
        "refused": [],
        "models_without_pods": [],
        "tenants": [tenant_said("acme", ("requests per minute", 431, 600))],
        "requests": [request_said("r-1")],
        "events": [event_said("chat/chat-0")],
    } | more
