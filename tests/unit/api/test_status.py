"""The status tells an operator what each pod is, why, and what it is doing; and no pod's address."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gateway import __version__
from gateway.api.seen import ConfigState, Event, LimitsState
from gateway.api.status import EJECTED_FOR, models_without_pods, status_of, why_not_ready
from gateway.balancing.health import Reason
from gateway.core.call import Outcome
from gateway.core.caller import Tenant
from gateway.core.fleet import Fleet, Gauges, PodHealth, PodLoad, PodState
from gateway.limits.admission import Standing
from gateway.telemetry.lately import SLOTS, Lately
from tests.seeing import CHAT, FLEET, NOW, pod, seen
from tests.unit.telemetry.trails import trail

UNKNOWN = {
    "in_flight": None,
    "running": None,
    "waiting": None,
    "kv_usage": None,
    "prefix_hit_ratio": None,
    "adapters": None,
    "age_seconds": None,
}


def told_of(name: str, **more: Any) -> dict[str, Any]:
    """What the status says of one pod."""
    (found,) = [each for each in status_of(seen(**more))["pods"] if each["name"] == name]
    assert isinstance(found, dict)
    return found


def load_of(load: PodLoad) -> dict[str, Any]:
    """What the status says of a pod's load."""
    told = told_of("chat-0", load_of=lambda uid: load if uid == CHAT[1].uid else PodLoad())["load"]
    assert isinstance(told, dict)
    return told


def load_read(in_flight: int | None, at: float, gauges: Gauges, gauges_at: float) -> PodLoad:
    return PodLoad(in_flight=in_flight, in_flight_read_at=at, gauges=gauges, gauges_read_at=gauges_at)


def test_the_status_has_the_shape_that_scripts_rely_on() -> None:
    told = status_of(seen(stale_seconds=1.23456))
    assert {name: told[name] for name in ("version", "ready", "reason", "replicas", "discovery")} == {
        "version": __version__,
        "ready": True,
        "reason": "",
        "replicas": 2,
        "discovery": {"mode": "kubernetes", "listed": True, "asked": True, "stale_seconds": 1.235},
    }
    assert told["refused"] == [{"name": "stray", "reason": "no_pool", "why": "it has no label poolgate.dev/pool"}]
    assert told["models_without_pods"] == ["llama-3.1-8b"]
    assert set(told) == {
        *("version", "ready", "reason", "replicas", "discovery", "pools", "pods", "refused", "models_without_pods"),
        *(
            "config",
            "limits",
            "overload",
            "replica",
            "ts",
            "started_at",
            "uptime_seconds",
            "traffic",
            "tenants",
            "requests",
            "events",
        ),
    }
    assert (told["replica"], told["ts"], told["started_at"]) == (
        "poolgate-1",
        "2026-01-01T00:00:00Z",
        "2025-12-31T23:55:00Z",
    )
    assert told["uptime_seconds"] == 300.0


def test_where_limits_are_counted_is_told_with_since_when_and_why() -> None:
    state = LimitsState("local", NOW - 1.5, "timeout")
    assert status_of(seen(limits=state))["limits"] == {"mode": "local", "reason": "timeout", "for_seconds": 1.5}


def test_the_configuration_is_told_with_its_age_and_what_of_its_file_is_not_in_force() -> None:
    assert status_of(seen())["config"] == {
        "loaded_at": "2025-12-31T23:58:20Z",
        "for_seconds": 100.0,
        "error": "",
        "waits_for_restart": [],
    }
    told = status_of(seen(config=ConfigState(NOW, "x.yaml:1: no", ("server.port",))))["config"]
    assert (told["for_seconds"], told["error"], told["waits_for_restart"]) == (0.0, "x.yaml:1: no", ["server.port"])


def test_a_pod_is_told_with_its_state_its_models_and_its_load() -> None:
    assert told_of("chat-0") == {
        "name": "chat-0",
        "pool": "chat",
        "state": "ready",
        "reason": "",
        "since": "2025-12-31T23:56:40Z",
        "for_seconds": 200.0,
        "models": [{"name": "qwen3-8b", "claimed_by": None}],
        "in_flight": 3,
        "max_in_flight": 128,
        "weight": 1.0,
        "load": {
            "in_flight": 7,
            "running": 4,
            "waiting": 2,
            "kv_usage": 0.877,
            "prefix_hit_ratio": 0.333,
            "adapters": ["sql"],
            "age_seconds": 1.25,
        },
        "attempts": 0,
        "share": 0.0,
        "failed": 0,
        "ttft_ms": None,
        "history": [0] * SLOTS,
    }


def test_a_pod_of_which_nothing_is_known_has_nulls() -> None:
    told = told_of("chat-1")
    assert (told["state"], told["reason"]) == ("starting", "its readiness probe fails")
    assert (told["for_seconds"], told["models"], told["load"]) == (8.25, [], UNKNOWN)


def test_pods_are_sorted_by_pool_and_name() -> None:
    fleet = Fleet((pod("b", "one"), pod("a", "two"), pod("c", "one"), pod("a", "one")))
    told = status_of(seen(fleet=fleet))["pods"]
    assert [(each["pool"], each["name"]) for each in told] == [("one", "a"), ("one", "b"), ("one", "c"), ("two", "a")]


def test_a_model_that_another_pool_has_claimed_names_that_pool() -> None:
    assert told_of("lora-0")["models"] == [
        {"name": "qwen3-8b", "claimed_by": "chat"},
        {"name": "base", "claimed_by": None},
    ]


def test_a_model_without_a_route_is_nobodys() -> None:
    assert told_of("lora-0", fleet=replace(FLEET, routes={}))["models"][0]["claimed_by"] is None


def test_no_pods_address_is_in_it() -> None:
    assert "10.1.2.3" not in json.dumps(status_of(seen()))


def test_it_is_json_whatever_the_pods_told() -> None:
    odd = Gauges(kv_usage=float("nan"), prefix_queries=float("inf"), prefix_hits=float("inf"))
    told = load_of(PodLoad(gauges=odd, gauges_read_at=NOW))
    assert (told["kv_usage"], told["prefix_hit_ratio"]) == (None, None)
    json.dumps(status_of(seen(stale_seconds=float("inf"))), allow_nan=False)


@pytest.mark.parametrize(
    ("load", "age"),
    [
        (PodLoad(), None),
        (PodLoad(in_flight=0, in_flight_read_at=NOW - 2), 2),
        (PodLoad(gauges=Gauges(), gauges_read_at=NOW - 3), 3),
        (load_read(0, NOW - 2, Gauges(), NOW - 3), 3),
        (load_read(0, NOW - 4, Gauges(), NOW - 3), 4),
        (load_read(None, NOW - 4, Gauges(), NOW - 3), 3),
    ],
)
def test_a_load_is_as_old_as_its_older_known_part(load: PodLoad, age: float | None) -> None:
    assert load_of(load)["age_seconds"] == age


def test_a_load_of_zero_is_not_an_unknown_one() -> None:
    told = load_of(load_read(0, NOW, Gauges(0, 0, 0.0, 10.0, 0.0), NOW))
    assert told == {
        "in_flight": 0,
        "running": 0,
        "waiting": 0,
        "kv_usage": 0.0,
        "prefix_hit_ratio": 0.0,
        "adapters": [],
        "age_seconds": 0.0,
    }


def test_a_prefix_cache_that_was_never_asked_has_no_ratio() -> None:
    assert load_of(PodLoad(gauges=Gauges(prefix_queries=0.0, prefix_hits=0.0)))["prefix_hit_ratio"] is None


# What the balancer has found out.


def sick(name: str, health: PodHealth) -> Callable[[str], PodHealth]:
    """How requests fare, where they fare badly at one pod."""
    return lambda uid: health if uid == pod(name).uid else PodHealth()


EJECTED = PodHealth("ejected", "consecutive", 11.25, 0.1, NOW - 3.5)


def test_an_ejected_pod_is_not_ready_and_tells_why_and_when_it_is_back() -> None:
    told = told_of("chat-0", health_of=sick("chat-0", EJECTED))
    assert (told["state"], told["reason"]) == ("ejected", "several requests in a row failed there; back in 12 s")
    assert (told["since"], told["for_seconds"], told["weight"]) == ("2025-12-31T23:59:56Z", 3.5, 0.1)
    assert told_of("lora-0", health_of=sick("chat-0", EJECTED))["state"] == "ready"


def test_an_ejection_whose_time_is_over_says_what_is_missing() -> None:
    told = told_of("chat-0", health_of=sick("chat-0", EJECTED._replace(seconds_left=0.0)))
    assert told["reason"] == "several requests in a row failed there; back once its /health says 200"


def test_an_ejected_pod_that_is_used_in_panic_says_so() -> None:
    panics = {"chat-0": [("chat", True)], "lora-0": [("chat", True), ("lora", False)]}
    reasons = {
        name: told_of(name, health_of=sick(name, EJECTED), panics=lambda told=told: told)["reason"]
        for name, told in panics.items()
    }
    assert "used all the same" in reasons["chat-0"]
    assert "used all the same" not in reasons["lora-0"]


def test_every_reason_of_an_ejection_has_its_words() -> None:
    assert set(EJECTED_FOR) == set(Reason)


@pytest.mark.parametrize(
    ("health", "reason"),
    [
        (PodHealth(), ""),
        (PodHealth("probing"), "back from an ejection: one request at a time tries it"),
        (PodHealth("returning", "wedged", 0.0, 0.25), "back from an ejection: it gets 25% of a share, and ever more"),
        (PodHealth("returning"), ""),
        (PodHealth(weight=0.4), "new: it gets 40% of a share, and ever more"),
    ],
)
def test_a_ready_pod_says_why_it_gets_less_than_others(health: PodHealth, reason: str) -> None:
    told = told_of("chat-0", health_of=sick("chat-0", health))
    assert (told["state"], told["reason"], told["for_seconds"]) == ("ready", reason, 200.0)
    assert told["weight"] == health.weight


@pytest.mark.parametrize("name", ["chat-1", "chat-2", "chat-3"])
def test_a_pod_that_gets_no_work_anyway_tells_of_that_and_not_of_its_ejection(name: str) -> None:
    told = told_of(name, health_of=sick(name, EJECTED))
    assert {each: told[each] for each in ("state", "reason", "since")} == {
        each: told_of(name)[each] for each in ("state", "reason", "since")
    }


def test_a_pool_tells_of_its_states_its_queue_and_its_panic() -> None:
    now = seen(health_of=sick("chat-0", EJECTED), waiting=lambda: [("chat", 5)], panics=lambda: [("chat", True)])
    nothing = {
        "ready": 0,
        "starting": 0,
        "draining": 0,
        "asleep": 0,
        "ejected": 0,
        "queue": 0,
        "panic": False,
        "requests": 0,
        "failed": 0,
        "refused": 0,
        "left": 0,
        "in_flight": 0,
        "history": [0] * SLOTS,
        "ttft_ms": {"p50": None, "p99": None},
    }
    chat = {"starting": 1, "draining": 1, "asleep": 1, "ejected": 1, "queue": 5, "panic": True, "in_flight": 12}
    assert status_of(now)["pools"] == {
        "chat": nothing | chat | {"models": ["qwen3-8b"]},
        "llama": nothing | {"models": ["llama-3.1-8b"]},
        "lora": nothing | {"ready": 1, "models": ["base"]},
    }


def test_every_pool_counts_every_state() -> None:
    assert FLEET.pods_by_state() == {
        "chat": {"ready": 1, "starting": 1, "draining": 1, "asleep": 1, "ejected": 0},
        "llama": {"ready": 0, "starting": 0, "draining": 0, "asleep": 0, "ejected": 0},
        "lora": {"ready": 1, "starting": 0, "draining": 0, "asleep": 0, "ejected": 0},
    }
    assert set(Fleet((pod("x"),)).pods_by_state()["chat"]) == {*(state.value for state in PodState), "ejected"}


def test_only_a_ready_pod_counts_as_ejected() -> None:
    everyone = [each.uid for each in FLEET.pods]
    assert FLEET.pods_by_state(everyone)["chat"] == (
        {"ready": 0, "starting": 1, "draining": 1, "asleep": 1, "ejected": 1}
    )
    assert FLEET.pods_by_state(everyone)["lora"]["ejected"] == 1


def test_models_without_pods_are_named() -> None:
    assert models_without_pods(FLEET) == ["llama-3.1-8b"]
    assert models_without_pods(Fleet()) == []


@pytest.mark.parametrize(
    ("draining", "listed", "asked", "reason"),
    [
        (False, True, True, ""),
        (False, False, False, "waiting for the first list of pods"),
        (False, False, True, "waiting for the first list of pods"),
        (False, True, False, "asking pods for their models"),
        (True, True, True, "draining"),
        (True, False, False, "draining"),
    ],
)
def test_a_gateway_is_ready_when_it_knows_its_pods_and_does_not_drain(
    draining: bool, listed: bool, asked: bool, reason: str
) -> None:
    fleet = Fleet(listed=listed, asked=asked)
    assert why_not_ready(fleet, draining=draining) == reason
    told = status_of(seen(fleet=fleet, draining=draining))
    assert (told["ready"], told["reason"]) == (not reason, reason)


def ended(**more: Any) -> Any:
    """A request that ended two seconds ago: 100 ms to its first token."""
    at = NOW - 2.0
    return trail(received_at=at - 0.2, sent_at=at - 0.2, first_content_at=at - 0.1, ended_at=at, **more)


def after(*trails: Any) -> dict[str, Any]:
    """The status after these requests, a minute after the start."""
    lately = Lately(NOW - 60.0)
    lately.turn(NOW - 2.0)
    for each in trails:
        lately.add(each)
    return status_of(seen(minute=lambda: lately.minute(NOW)))


def test_the_last_minute_of_the_gateway_and_of_a_pool() -> None:
    told = after(ended(), ended(), ended(outcome=Outcome.TRUNCATED), ended(outcome=Outcome.REFUSED, pod="", usage=None))
    assert {name: told["traffic"][name] for name in ("requests", "failed", "refused", "left")} == {
        "requests": 4,
        "failed": 1,
        "refused": 1,
        "left": 0,
    }
    assert (told["traffic"]["window_seconds"], told["traffic"]["per_second"]) == (60.0, 0.067)
    assert told["traffic"]["tokens_per_second"] == 2.2
    assert told["traffic"]["ttft_ms"]["p50"] == pytest.approx(100, rel=0.03)
    assert (told["traffic"]["in_flight"], told["traffic"]["queue"]) == (12, 0)
    assert told["traffic"]["history"] == told["pools"]["chat"]["history"] == [0] * (SLOTS - 1) + [4]
    assert told["pools"]["chat"]["failed"] == 1


def test_a_pods_share_is_of_its_pools_attempts() -> None:
    told = after(*[ended()] * 3, ended(pod="chat-9"), ended(pool="lora", pod="lora-0"))
    shares = {pod["name"]: (pod["attempts"], pod["share"]) for pod in told["pods"]}
    assert (shares["chat-0"], shares["chat-1"], shares["lora-0"]) == ((3, 0.75), (0, 0.0), (1, 1.0))


def test_tenants_are_told_with_the_fullest_of_their_limits_the_busiest_first() -> None:
    standings = [
        Standing("acme", "requests per minute", "key k1", 10, 100),
        Standing("acme", "requests per minute", "key k2", 30, 100),
        Standing("idle", "tokens per day", "tenant 'idle'", 990, 1000),
        Standing("idler", "tokens per day", "tenant 'idler'", 1, 1000),
    ]
    lately = Lately(NOW)
    lately.add(ended())
    lately.add(ended(tenant=Tenant("k9", "unlimited")))
    lately.add(ended(tenant=Tenant("k9", "unlimited")))
    told = status_of(seen(minute=lambda: lately.minute(NOW), standings=lambda: standings))["tenants"]
    assert [(each["tenant"], each["requests"]) for each in told] == [
        ("unlimited", 2),
        ("acme", 1),
        ("idle", 0),
        ("idler", 0),
    ]
    assert told[1] == {
        "tenant": "acme",
        "requests": 1,
        "tokens": 44,
        "failed": 0,
        "refused": 0,
        "limits": [{"limit": "requests per minute", "of": "key k2", "used": 30, "amount": 100}],
    }


def test_the_last_requests_are_told_in_the_access_lines_words() -> None:
    (told,) = status_of(seen(recent=lambda count: [ended()][:count]))["requests"]
    assert told == {
        "request_id": "id-1",
        "ts": "2025-12-31T23:59:58.000Z",
        "tenant": "acme",
        "operation": "chat",
        "model": "org/m",
        "pool": "chat",
        "pod": "chat-0",
        "status": 200,
        "outcome": "completed",
        "code": "",
        "stream": True,
        "attempts": 1,
        "decision": "least",
        "why": "it had the fewest requests in flight",
        "queue_ms": 0.0,
        "ttft_ms": 100.0,
        "duration_ms": 200.0,
        "prompt_tokens": 34,
        "completion_tokens": 10,
    }


def test_events_are_told_with_their_time() -> None:
    event = Event(NOW - 60.0, "error", "pod_ejected", "chat/chat-0", "it failed")
    assert (
        status_of(seen(events=lambda: [event] * 200))["events"]
        == [
            {
                "ts": "2025-12-31T23:59:00Z",
                "level": "error",
                "what": "pod_ejected",
                "subject": "chat/chat-0",
                "text": "it failed",
            }
        ]
        * 50
    )
