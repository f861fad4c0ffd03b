"""What happens is told once, with its reason, and not more of it than somebody can read."""

from dataclasses import replace
from typing import Any

import pytest

from gateway.api.events import MAX_EVENTS, MAX_POD_EVENTS, Events
from gateway.api.seen import ConfigState, LimitsState, LoadState, Seen
from gateway.core.fleet import Fleet, PodHealth, PodState
from tests.seeing import CHAT, FLEET, NOW, pod, seen


class Watch:
    """Looks, and tells what was new in each look."""

    def __init__(self, **at_first: Any) -> None:
        self.events = Events()
        self.seen = seen(**at_first)
        self.events.look(self.seen)

    def look(self, **changed: Any) -> list[tuple[str, ...]]:
        before = list(self.events.last())
        self.seen = replace(self.seen, now=self.seen.now + 0.25, **changed)
        self.events.look(self.seen)
        after = list(self.events.last())
        return [(event.level, event.what, event.subject, event.text) for event in after[: len(after) - len(before)]]


def with_pod(name: str, **changed: Any) -> Fleet:
    """The fleet, with one pod of it changed."""
    return replace(FLEET, pods=tuple(replace(each, **changed) if each.name == name else each for each in FLEET.pods))


def ejects(*uids: str) -> Any:
    return lambda uid: PodHealth("ejected", "consecutive", 5.0) if uid in uids else PodHealth()


def test_the_start_and_how_many_pods_there_are() -> None:
    told = [(event.what, event.text) for event in Watch().events.last()]
    assert told == [("pods_listed", "5 pods are known"), ("started", "this replica has started")]


def test_nothing_new_is_no_event() -> None:
    watch = Watch()
    assert watch.look() == []
    assert watch.look(fleet=replace(FLEET)) == []


@pytest.mark.parametrize(
    ("name", "changed", "event"),
    [
        ("chat-1", {"state": PodState.READY, "reason": ""}, ("info", "pod_ready", "chat/chat-1", "ready")),
        (
            "chat-0",
            {"state": PodState.STARTING, "reason": "its readiness probe fails"},
            ("warning", "pod_unready", "chat/chat-0", "not ready any more: its readiness probe fails"),
        ),
        (
            "chat-0",
            {"state": PodState.DRAINING, "reason": "it is terminating"},
            ("info", "pod_draining", "chat/chat-0", "draining: it is terminating"),
        ),
        (
            "lora-0",
            {"state": PodState.ASLEEP, "reason": "it sleeps"},
            ("info", "pod_asleep", "lora/lora-0", "asleep: it sleeps"),
        ),
    ],
)
def test_a_pods_new_state_is_told_with_its_reason(name: str, changed: dict[str, Any], event: tuple[str, ...]) -> None:
    assert Watch().look(fleet=with_pod(name, **changed)) == [event]


def test_an_ejection_and_its_end() -> None:
    watch = Watch()
    assert watch.look(health_of=ejects(CHAT[1].uid)) == [
        ("error", "pod_ejected", "chat/chat-0", "ejected: several requests in a row failed there")
    ]
    assert watch.look() == []
    assert [event[1] for event in watch.look(health_of=ejects())] == ["pod_back"]


@pytest.mark.parametrize(
    ("name", "level", "state"),
    [("chat-0", "warning", "ready"), ("chat-2", "info", "draining")],
)
def test_a_pod_that_is_gone_is_told_of_and_was_it_expected(name: str, level: str, state: str) -> None:
    left = replace(FLEET, pods=tuple(each for each in FLEET.pods if each.name != name))
    assert Watch().look(fleet=left) == [(level, "pod_gone", f"chat/{name}", f"gone; it was {state}")]


def test_when_very_many_change_the_rest_is_counted() -> None:
    more = tuple(pod(f"chat-{number}") for number in range(100, 100 + MAX_POD_EVENTS + 7))
    told = Watch().look(fleet=replace(FLEET, pods=FLEET.pods + more))
    assert len(told) == MAX_POD_EVENTS + 1
    assert told[0] == ("info", "pods_changed", "discovery", "7 more pods changed in the same moment")


def test_a_refused_configuration_is_told_once_and_its_mending() -> None:
    watch = Watch()
    fault = ConfigState(NOW - 100.0, "poolgate.yaml:3: no such key\npoolgate.yaml:4: another")
    assert watch.look(config=fault) == [("error", "config_refused", "configuration", "poolgate.yaml:3: no such key")]
    assert watch.look(config=replace(fault)) == []
    assert [event[1] for event in watch.look(config=ConfigState(NOW - 100.0))] == ["config_mended"]
    assert [event[1] for event in watch.look(config=ConfigState(NOW))] == ["config_applied"]


def test_limits_that_are_counted_elsewhere_now() -> None:
    watch = Watch(limits=LimitsState("redis", 0.0))
    assert watch.look(limits=LimitsState("local", NOW, "timeout")) == [
        ("warning", "limits_local", "limits", "Redis does not answer in time: each replica keeps to its share")
    ]
    assert watch.look(limits=LimitsState("local", NOW, "refused")) == []
    assert [event[1] for event in watch.look(limits=LimitsState("redis", NOW + 1))] == ["limits_shared"]


def test_discovery_that_hears_nothing() -> None:
    watch = Watch()
    assert watch.look(stale_seconds=1.0) == []
    assert [event[:3] for event in watch.look(stale_seconds=6.0)] == [("warning", "discovery_stale", "discovery")]
    assert watch.look(stale_seconds=7.0) == []
    assert [event[:3] for event in watch.look(stale_seconds=0.0)] == [("info", "discovery_back", "discovery")]


def test_a_pool_that_panics() -> None:
    watch = Watch()
    assert [event[:3] for event in watch.look(panics=lambda: [("chat", True)])] == [("error", "panic", "chat")]
    assert watch.look() == []
    assert [event[:3] for event in watch.look(panics=lambda: [("chat", False)])] == [("info", "panic_over", "chat")]


def test_the_drain() -> None:
    watch = Watch()
    assert [event[1] for event in watch.look(draining=True)] == ["draining"]
    assert watch.look() == []


def test_events_are_bounded_and_the_latest_come_first() -> None:
    watch = Watch()
    for turn in range(MAX_EVENTS):
        watch.look(panics=lambda turn=turn: [("chat", turn % 2 == 0)])
    told = list(watch.events.last())
    assert len(told) == MAX_EVENTS
    assert [event.at for event in told] == sorted((event.at for event in told), reverse=True)
    assert isinstance(watch.seen, Seen)


def test_too_much_to_do_and_its_end_are_told_with_what_it_was_short_of_and_for_how_many() -> None:
    watch = Watch()
    assert watch.look(load=LoadState(1, "memory", NOW, 4)) == [
        ("warning", "overload", "gateway", "short of memory: requests that can wait are turned away")
    ]
    assert watch.look(load=LoadState(1, "memory", NOW, 9)) == []
    assert watch.look(load=LoadState(2, "lag", NOW, 10)) == [
        ("error", "overload", "gateway", "short of CPU: all new requests are turned away")
    ]
    assert watch.look(load=LoadState(0, "", NOW, 1012)) == [
        ("info", "overload_over", "gateway", "all requests are taken again; 1,012 were turned away")
    ]
