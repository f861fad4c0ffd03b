"""What needs an eye is said, with what to do next; what is as it should be is not."""

import re
from pathlib import Path
from typing import Any

import pytest

from gateway.api.page import concerns
from gateway.api.page.concerns import Concern, concerns_of, listed
from gateway.api.status import EJECTED_FOR
from tests.saying import pod_said, pool_said, said

ROOT = Path(__file__).resolve().parents[4]


def only(**more: Any) -> Concern:
    (concern,) = concerns_of(said(**more))
    return concern


def test_nothing_is_said_where_all_is_well() -> None:
    assert concerns_of(said()) == []


CASES: list[tuple[dict[str, Any], str, str, str]] = [
    ({"ready": False, "reason": "draining"}, "error", "This replica is not ready", ""),
    ({"pools": {"chat": pool_said(ready=0, starting=2)}}, "error", "Pool chat has no ready pod", "PoolgatePoolDown"),
    (
        {"pools": {"chat": pool_said(panic=True)}},
        "error",
        "Pool chat uses its ejected pods all the same",
        "PoolgatePanic",
    ),
    (
        {"pools": {"chat": pool_said(queue=4)}},
        "warning",
        "Requests wait for a pod of pool chat",
        "PoolgateQueueGrowing",
    ),
    (
        {"pods": [pod_said("chat-0", state="ejected", reason=EJECTED_FOR["share"], for_seconds=None)]},
        "error",
        "Pod chat-0 of pool chat is ejected",
        "PoolgatePodEjected",
    ),
    (
        {
            "pods": [
                pod_said("chat-0", state="ejected", reason=EJECTED_FOR["wedged"] + "; back in 3 s", for_seconds=None)
            ]
        },
        "error",
        "Pod chat-0 of pool chat is wedged",
        "PoolgateEngineWedged",
    ),
    (
        {"pods": [pod_said("chat-0", state="starting", for_seconds=601.0)]},
        "warning",
        "Pod chat-0 of pool chat does not become ready",
        "",
    ),
    ({"refused": [{"name": "odd-0", "reason": "address", "why": "no"}]}, "warning", "Pod odd-0 is left out", ""),
    ({"models_without_pods": ["a", "b"]}, "warning", "No ready pod serves a, b", "PoolgatePoolDown"),
    (
        {"config": {"error": "line 12", "waits_for_restart": []}},
        "warning",
        "What a file of the configuration holds is not in force",
        "PoolgateConfigRefused",
    ),
    (
        {"config": {"error": "", "waits_for_restart": ["server.port"]}},
        "info",
        "A changed setting waits for a restart",
        "",
    ),
    (
        {"limits": {"mode": "local", "reason": "timeout", "for_seconds": 61.0}},
        "warning",
        "Limits are counted by each replica for itself",
        "PoolgateLimitsLocal",
    ),
    (
        {"discovery": {"mode": "kubernetes", "listed": True, "asked": True, "stale_seconds": 45.0}},
        "error",
        "The list of pods is old",
        "PoolgateDiscoveryStale",
    ),
    (
        {"overload": {"level": 1, "short_of": "memory", "for_seconds": 5.0, "shed": 7}},
        "warning",
        "This replica is short of memory, and turns away what can wait",
        "PoolgateOverloaded",
    ),
    (
        {"overload": {"level": 2, "short_of": "CPU", "for_seconds": 5.0, "shed": 7}},
        "error",
        "This replica is short of CPU, and turns all new requests away",
        "PoolgateOverloaded",
    ),
    ({"traffic": {"requests": 100, "failed": 5}}, "error", "Many requests fail", "PoolgateErrorRatio"),
    (
        {"pods": [pod_said("chat-0", attempts=2, failed=2), pod_said("chat-1", attempts=4, failed=1)]},
        "error",
        "Most requests fail at the pods of pool chat",
        "PoolgatePoolDown",
    ),
]


@pytest.mark.parametrize(("more", "level", "what", "entry"), CASES, ids=[case[2] for case in CASES])
def test_each_is_said_with_what_to_do(more: dict[str, Any], level: str, what: str, entry: str) -> None:
    concern = only(**more)
    assert (concern.level, concern.what, concern.entry) == (level, what, entry)
    assert concern.advice.endswith(".")


@pytest.mark.parametrize(
    "more",
    [
        {"pods": [pod_said("chat-0", state="starting", for_seconds=599.0)]},
        {"pods": [pod_said("chat-0", state="draining"), pod_said("chat-1", state="asleep")]},
        {"discovery": {"mode": "kubernetes", "listed": True, "asked": True, "stale_seconds": 29.0}},
        {"traffic": {"requests": 100, "failed": 4}},
        {"traffic": {"requests": 2, "failed": 2}},
        {"pods": [pod_said("chat-0", attempts=2, failed=2)]},
        # The others take over.
        {"pods": [pod_said("chat-0", attempts=9, failed=9), pod_said("chat-1", attempts=10)]},
        {"limits": {"mode": "redis", "reason": "", "for_seconds": 61.0}},
    ],
)
def test_what_is_usual_needs_no_eye(more: dict[str, Any]) -> None:
    assert concerns_of(said(**more)) == []


def test_the_worst_comes_first() -> None:
    found = concerns_of(
        said(
            config={"error": "line 12", "waits_for_restart": ["server.port"]},
            pods=[pod_said("chat-0", state="ejected", reason="x", for_seconds=None)],
        )
    )
    assert [concern.level for concern in found] == ["error", "warning", "info"]


@pytest.mark.parametrize(
    ("pool", "level"),
    [
        ({}, "info"),
        ({"asleep": 2}, "info"),
        ({"starting": 1}, "warning"),
        ({"queue": 1}, "error"),
        ({"ejected": 1}, "error"),
    ],
)
def test_a_pool_without_ready_pods_is_as_bad_as_it_is_wanted(pool: dict[str, Any], level: str) -> None:
    pools = {"chat": pool_said(ready=0, requests=0, **pool)}
    assert concerns_of(said(pools=pools))[0].level == level


def test_why_limits_are_local_is_said_in_words() -> None:
    assert only(limits={"mode": "local", "reason": "timeout", "for_seconds": 61.0}).why == (
        "Redis does not answer in time, for 1m 1s"
    )


def test_the_models_of_a_pool_that_is_down_are_said_once() -> None:
    concern = only(pools={"chat": pool_said(ready=0)}, models_without_pods=["qwen3-8b"])
    assert concern.why == "it has no pods at all"
    assert "qwen3-8b" in concern.advice


def test_every_entry_is_an_alerts_and_stands_in_the_runbook() -> None:
    named = set(re.findall(r'"(Poolgate\w+)"', Path(concerns.__file__).read_text("utf-8")))
    headings = set(re.findall(r"^#+ (Poolgate\w+)", (ROOT / "docs/runbook.md").read_text("utf-8"), re.MULTILINE))
    assert named
    assert named <= headings


def test_of_many_names_the_first_are_said() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdef")) == "a, b, c, d and 2 more"
