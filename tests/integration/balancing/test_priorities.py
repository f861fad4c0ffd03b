"""Who waits for a pod is served by priority, and within one in turn; pods that schedule by priority are told it."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from gateway.core.caller import Tenant
from gateway.discovery.pods import PRIORITY_ANNOTATION
from gateway.discovery.source import Given
from gateway.limits.keys import KeyEntry, KeyRing, digest, new_key
from loadtest.simulator import PodSettings, Scheduling, SimulatedPod
from tests.apiserver.server import ApiServer
from tests.discovering import appear, ask_model, fleet_until, gateway
from tests.fakes import Reset, ScriptedPod, Step
from tests.integration.balancing.scenes import GOOD, Scene, body_of, pods, scene
from tests.raw import Answer
from tests.running import Side

ONE = {"max_in_flight_per_pod": 1}
MANY = 500


class Held(ScriptedPod):
    """A pod whose one slot is taken until it is let go. From then on it answers whatever comes."""

    def __init__(self) -> None:
        super().__init__(script_of=self._answer)
        self.let_go = asyncio.Event()

    def _answer(self, sent: bytes) -> Sequence[Step]:
        return (self.let_go, GOOD) if len(self.requests) == 1 else (GOOD,)

    @property
    def users(self) -> list[str]:
        """Who was served, in this order, after the one that had the slot."""
        return [body_of(sent)["user"] for sent in self.requests[1:]]


class Queue:
    """A line before a pod that is held. Callers have names, and each a key of its own."""

    def __init__(self, found: Scene, pod: Held, **priorities: int) -> None:
        self.found = found
        self.pod = pod
        self.keys = callers(found, {name: Tenant(name, name, priority=number) for name, number in priorities.items()})
        self.asking: list[asyncio.Task[Answer]] = []

    async def hold(self) -> None:
        self.asking.append(self.found.asking(user="first"))
        await self.found.until(lambda: len(self.pod.requests) == 1)

    async def join(self, *names: str, **more: Any) -> None:
        """These queue up, one behind the other."""
        for name in names:
            waiting = self.found.waiting
            self.asking.append(self.found.asking(user=name, key=self.keys[name], **more))
            await self.found.until(lambda: self.found.waiting == waiting + 1)  # noqa: B023  # waited for here

    async def statuses(self) -> list[int]:
        """What each was answered with, in the order they came, after the pod is let go."""
        self.pod.let_go.set()
        return [(await each).status for each in self.asking]


def callers(found: Scene, tenants: dict[str, Tenant]) -> dict[str, str]:
    """Keys for these callers; those that the gateway had are forgotten but for its first."""
    made = {name: new_key()[1] for name in tenants}
    entries = [KeyEntry(digest(made[name].encode()), tenant) for name, tenant in tenants.items()]
    own = KeyEntry(digest(found.running.key.encode()), Tenant("first", "first"))
    found.gateway.reception.keys = KeyRing([own, *entries], lambda: 0.0)
    return made


async def takes_priority(found: Scene, place: int) -> None:
    """The source sees that this pod's engine schedules by priority."""
    source = found.gateway.source
    assert isinstance(source, Given)
    source.give(
        tuple(replace(pod, takes_priority=True) if pod.name == f"chat-{place}" else pod for pod in source.seen().pods)
    )
    await found.until(lambda: found.pod(place).takes_priority)


def told(sent: bytes) -> list[str]:
    """What a request told its pod of priorities, in headers."""
    head = sent.partition(b"\r\n\r\n")[0].decode().lower()
    return [line for line in head.split("\r\n") if "priority" in line]


# The line.


async def test_lower_numbers_are_served_first_and_the_callers_of_one_number_in_turn(side: Side) -> None:
    pod = Held()
    async with pod, scene([pod], side=side, pool=ONE) as found:
        queue = Queue(found, pod, batch=10, alice=0, bob=0, urgent=-5)
        await queue.hold()
        await queue.join("batch", "batch", "alice", "alice", "alice", "bob", "urgent", "bob", "urgent")
        assert set(await queue.statuses()) == {200}
        assert pod.users == ["urgent"] * 2 + ["alice", "bob", "alice", "bob", "alice"] + ["batch"] * 2


async def test_a_full_line_gives_a_place_of_its_highest_number_to_a_lower_one_and_none_to_a_higher_one(
    side: Side,
) -> None:
    pod = Held()
    async with pod, scene([pod], side=side, pool=ONE | {"queue_limit": 3}) as found:
        queue = Queue(found, pod, batch=10, usual=0, urgent=-5)
        await queue.hold()
        await queue.join("batch", "usual", "batch")
        late = found.asking(user="urgent", key=queue.keys["urgent"])
        displaced = await queue.asking.pop()
        assert (displaced.status, displaced.error["code"]) == (503, "queue_full")
        assert int(displaced.headers["retry-after"]) >= 1
        refused = await found.ask(user="batch", key=queue.keys["batch"])
        assert (refused.status, refused.error["code"]) == (503, "queue_full")
        assert found.waiting == 3
        assert set(await queue.statuses()) == {(await late).status} == {200}
        assert pod.users == ["urgent", "usual", "batch"]


async def test_who_is_never_next_waits_no_longer_than_anybody(side: Side) -> None:
    pod = Held()
    async with pod, scene([pod], side=side, pool=ONE | {"queue_wait_seconds": 20}) as found:
        queue = Queue(found, pod, batch=10, usual=0)
        await queue.hold()
        await queue.join("batch")
        found.leap(15)
        await queue.join("usual", "usual")
        found.leap(5)
        came = await queue.asking[1]
        assert (came.status, came.error["code"]) == (503, "queue_timeout")
        assert int(came.headers["retry-after"]) >= 1
        assert await queue.statuses() == [200, 503, 200, 200]
        assert pod.users == ["usual", "usual"]


async def test_who_leaves_a_line_of_several_priorities_takes_nobody_s_turn() -> None:
    pod = Held()
    async with pod, scene([pod], pool=ONE) as found:
        queue = Queue(found, pod, batch=10, usual=0)
        await queue.hold()
        await queue.join("batch")
        leaving = await found.begin(user="leaves", key=queue.keys["usual"])
        await found.until(lambda: found.waiting == 2)
        await queue.join("usual", "batch")
        leaving.leave()
        await found.until(lambda: found.waiting == 3)
        assert set(await queue.statuses()) == {200}
        assert pod.users == ["usual", "batch", "batch"]


@pytest.mark.parametrize("told_apart_by", ["keys", "users"])
async def test_one_greedy_caller_delays_ten_small_ones_by_one_turn_and_no_more(told_apart_by: str) -> None:
    pod = Held()
    small = [f"small-{place}" for place in range(10)]
    settings = ONE | {"queue_limit": MANY + len(small), "queue_wait_seconds": 60}
    async with pod, scene([pod], pool=settings) as found:
        if told_apart_by == "keys":
            keys = callers(found, {name: Tenant(name, name) for name in ("greedy", *small)})
        else:
            # One key for all of them, which is believed when it says for whom it asks.
            keys = dict.fromkeys(
                ("greedy", *small), callers(found, {"app": Tenant("app", "app", forwards_user=True)})["app"]
            )

        def asking(name: str) -> "asyncio.Task[Answer]":
            return found.asking(user=name, key=keys[name], headers={"X-OpenWebUI-User-Id": name})

        answers = [found.asking(user="first")]
        await found.until(lambda: len(pod.requests) == 1)
        answers += [asking("greedy") for _ in range(MANY)]
        await found.until(lambda: found.waiting == MANY)
        for place, name in enumerate(small, 1):
            answers.append(asking(name))
            await found.until(lambda: found.waiting == MANY + place)  # noqa: B023  # waited for here
        pod.let_go.set()
        assert {(await each).status for each in answers} == {200}
        assert pod.users == ["greedy", *small, *["greedy"] * (MANY - 1)]


async def test_users_that_a_key_is_not_believed_about_are_one_caller() -> None:
    pod = Held()
    async with pod, scene([pod], pool=ONE) as found:
        queue = Queue(found, pod, app=0, other=0)
        await queue.hold()
        for user in "abc":
            await queue.join("app", headers={"X-OpenWebUI-User-Id": user})
        await queue.join("other")
        assert set(await queue.statuses()) == {200}
        assert pod.users == ["app", "other", "app", "app"]


# What pods are told.


@pytest.mark.parametrize(
    ("priority", "takes", "headers", "body", "heard"),
    [
        pytest.param(5, True, {}, {}, ["x-vllm-priority: 5"], id="its key's"),
        pytest.param(-5, True, {}, {}, ["x-vllm-priority: -5"], id="a negative one"),
        pytest.param(0, True, {}, {}, [], id="the usual one"),
        pytest.param(5, False, {}, {}, [], id="a pod that does not say it takes them"),
        pytest.param(5, True, {"X-Vllm-Priority": "-100"}, {}, ["x-vllm-priority: 5"], id="not the caller's header"),
        pytest.param(0, True, {"X-Vllm-Priority": "-100"}, {}, [], id="nor where the key has none"),
        pytest.param(5, False, {"X-Vllm-Priority": "-100"}, {}, [], id="nor where the pod takes none"),
        pytest.param(5, True, {}, {"priority": 3}, [], id="the body's, which a header would override"),
        pytest.param(0, False, {}, {"priority": 3}, [], id="the body's is the caller's affair"),
    ],
)
async def test_a_pod_is_told_the_key_s_priority_if_it_takes_any_and_the_body_says_none(
    priority: int, takes: bool, headers: dict[str, str], body: dict[str, int], heard: list[str]
) -> None:
    tenant = {"priority": priority, "allow_fields": frozenset(["priority"])}
    given = pods(1)
    async with given[0], scene(given, tenant=tenant) as found:
        if takes:
            await takes_priority(found, 0)
        assert (await found.ask(headers=headers, **body)).status == 200
        (sent,) = given[0].requests
        assert told(sent) == heard
        assert body_of(sent).get("priority") == body.get("priority")


async def test_each_attempt_tells_its_own_pod_what_that_one_takes(side: Side) -> None:
    given = [ScriptedPod([[Reset]]), *pods(1)]
    async with given[0], given[1], scene(given, side=side, tenant={"priority": 5}) as found:
        await takes_priority(found, 0)
        assert [(await found.ask()).status for _ in range(2)] == [200, 200]
        await found.running.settled()
        assert sorted(line["attempts"] for line in found.running.lines()) == [1, 2]
        assert [told(sent) for sent in given[0].requests] == [["x-vllm-priority: 5"]]
        assert [told(sent) for sent in given[1].requests] == [[], []]


async def test_a_pod_that_was_not_annotated_refuses_nothing_for_its_priority() -> None:
    strict = PodSettings(model="m", refuse_priorities=True)
    schedules = PodSettings(model="m", scheduling_policy=Scheduling.PRIORITY)
    async with ApiServer() as server, SimulatedPod(schedules) as one, SimulatedPod(strict) as other:
        appear(server, "a", one, annotations={PRIORITY_ANNOTATION: "true"})
        appear(server, "b", other)
        async with gateway(server, tenant={"priority": 5}, pool={"policy": "round_robin"}) as running:
            await fleet_until(running, lambda fleet: {pod.takes_priority for pod in fleet.pods} == {True, False})
            assert {(await ask_model(running)).status for _ in range(8)} == {200}
            heard = {
                pod: {sent.header("x-vllm-priority") for sent in pod.requests if sent.body} for pod in (one, other)
            }
            assert heard == {one: {"5"}, other: {None}}
