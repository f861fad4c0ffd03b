"""A gateway's fleet as an operator would look at it: two pools, one pod of every state, a model that both list."""

from typing import Any

from gateway.api.seen import ConfigState, LimitsState, LoadState, Seen
from gateway.core.fleet import Fleet, Gauges, Model, Pod, PodHealth, PodLoad, PodState, Pool, RefusedPod, Route
from gateway.telemetry.lately import NOTHING, Minute

NOW = 5000.0
WALL = 1_767_225_600.0
"""2026-01-01T00:00:00Z."""
QWEN, BASE, GONE = Model("qwen3-8b"), Model("base"), "llama-3.1-8b"


def pod(name: str, pool: str = "chat", **more: Any) -> Pod:
    """A ready pod at an address that nobody is to see."""
    fields: dict[str, Any] = {"state": PodState.READY, "models": (QWEN,), "since": NOW - 200.0} | more
    return Pod(uid=f"uid-{name}/10.1.2.3:8000", name=name, pool=pool, host="10.1.2.3", port=8000, **fields)


CHAT = (
    pod("chat-1", state=PodState.STARTING, models=(), reason="its readiness probe fails", since=NOW - 8.25),
    pod("chat-0"),
    pod("chat-2", state=PodState.DRAINING, reason="it is terminating", since=NOW - 7500.0),
    pod("chat-3", state=PodState.ASLEEP, reason="it sleeps", since=NOW - 270_000.0),
)
LORA = pod("lora-0", "lora", models=(QWEN, BASE))
FLEET = Fleet(
    pods=(LORA, *CHAT),
    routes={
        "qwen3-8b": Route("qwen3-8b", Pool("chat"), (CHAT[1],)),
        "base": Route("base", Pool("lora"), (LORA,)),
        GONE: Route(GONE, Pool("llama"), ()),
    },
    refused=(RefusedPod("stray", "no_pool", "it has no label poolgate.dev/pool"),),
    listed=True,
    asked=True,
)
LOADS = {
    CHAT[1].uid: PodLoad(
        in_flight=7,
        in_flight_read_at=NOW - 0.5,
        gauges=Gauges(4, 2, 0.87654, 3000.0, 1000.0, adapters=("sql",)),
        gauges_read_at=NOW - 1.25,
    ),
    LORA.uid: PodLoad(in_flight=1, in_flight_read_at=NOW - 0.25),
}


def seen(**more: Any) -> Seen:
    """What that gateway sees; three attempts of its own run at each pod of the pool chat."""
    fields: dict[str, Any] = {
        "fleet": FLEET,
        "draining": False,
        "load_of": lambda uid: LOADS.get(uid, PodLoad()),
        "health_of": lambda uid: PodHealth(),
        "in_flight": lambda uid: 3 if uid.startswith("uid-chat") else 0,
        "waiting": lambda: [("chat", 0)],
        "panics": lambda: [("chat", False)],
        "config": ConfigState(NOW - 100.0),
        "limits": LimitsState(since=NOW - 50.0),
        "load": LoadState(),
        "minute": lambda: Minute(60.0, NOTHING, {}, {}, {}),
        "standings": list,
        "recent": lambda count: [],
        "events": list,
        "replica": "poolgate-1",
        "started_at": NOW - 300.0,
        "mode": "kubernetes",
        "stale_seconds": 0.0,
        "replicas": 2,
        "now": NOW,
        "wall": WALL,
    }
    return Seen(**fields | more)
