"""Trails as requests leave them."""

from typing import Any

from gateway.core.call import Outcome, Trail, Usage
from gateway.core.caller import Tenant

TENANT = Tenant(key_id="k1", team="acme")


def trail(**more: Any) -> Trail:
    """A streamed chat that went well: 100 ms to its first token, then nine more, 10 ms apart; 3 ms were ours."""
    ended = Trail("id-1", 1000.0)
    fields: dict[str, Any] = {
        "operation": "chat",
        "tenant": TENANT,
        "model": "org/m",
        "served_model": True,
        "pool": "chat",
        "pod": "chat-0",
        "stream": True,
        "status": 200,
        "outcome": Outcome.COMPLETED,
        "usage": Usage(34, 10, 16),
        "finish": "stop",
        "attempts": 1,
        "decision": "least",
        "content_events": 10,
        "sent_at": 1000.002,
        "first_content_at": 1000.1,
        "committed_at": 1000.101,
        "ended_at": 1000.19,
        "attempt_outcomes": (("chat", "completed"),),
    }
    for name, value in (fields | more).items():
        setattr(ended, name, value)
    return ended


def refused(**more: Any) -> Trail:
    """A request that came no further than its head."""
    ended = Trail("id-2", 1000.0)
    fields = {"status": 401, "outcome": Outcome.REFUSED, "code": "invalid_api_key", "ended_at": 1000.0005}
    for name, value in (fields | more).items():
        setattr(ended, name, value)
    return ended
