"""Pod objects as the API server writes them, for tests of what they mean."""

from datetime import UTC, datetime
from typing import Any

from tests.apiserver import pods

CREATED = datetime(2026, 11, 24, 10, 0, 0, tzinfo=UTC)
CREATED_AT = CREATED.timestamp()
Object = dict[str, Any]


def pending(name: str = "chat-0", namespace: str = "vllm", **more: Any) -> Object:
    """Just created, with the pool's label."""
    given: dict[str, Any] = {
        "uid": f"uid-of-{name}",
        "created": CREATED,
        "labels": {"poolgate.dev/pool": "chat"},
        "annotations": {},
        **more,
    }
    return pods.new_pod(name, namespace, given.pop("uid"), given.pop("created"), **given)


def ready(name: str = "chat-0", ip: str = "10.0.0.7", namespace: str = "vllm", **more: Any) -> Object:
    """Running at an address, Ready."""
    running = pods.with_readiness(pending(name, namespace, **more), CREATED, ready=True)
    return pods.with_address(running, ip)
