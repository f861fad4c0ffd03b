"""Who finds no room waits in a fair line, as long as its pool says; a slot that comes free is given to one of them."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.core.fleet import PodState
from tests.fakes import Hang, Reset, ScriptedPod, Step
from tests.integration.balancing.scenes import GOOD, STREAM, Scene, body_of, pods, scene
from tests.running import Side

ONE = {"max_in_flight_per_pod": 1}
SOON = 0.25
"""A client that leaves frees its place within so many seconds."""


class Gate(ScriptedPod):
    """A pod that answers its requests in the order they came, each when it is told to."""

    def __init__(self) -> None:
        super().__init__(script_of=self._gated)
        self._gates: list[asyncio.Event] = []
        self._opened = 0

    def _gated(self, sent: bytes) -> Sequence[Step]:
        self._gates.append(asyncio.Event())
        return self._gates[-1], STREAM if body_of(sent).get("stream") else GOOD

    def open(self) -> None:
        """Answer the oldest request that has no answer yet."""
        self._gates[self._opened].set()
        self._opened += 1

    @property
    def users(self) -> list[str]:
        """Who asked, in the order they came."""
        return [body_of(sent)["user"] for sent in self.requests]


async def held(found: Scene, pod: Gate, count: int = 1) -> "list[asyncio.Task[Any]]":
    """Take so many slots of the pod."""
    tasks = [found.asking(user=f"held-{place}") for place in range(count)]
    await found.until(lambda: len(pod.requests) == count)
    return tasks


# Nobody there.


async def test_without_a_ready_pod_it_is_said_at_once(side: Side) -> None:
    given = pods(2)
    async with given[0], given[1], scene(given, side=side) as found:
        for place in range(2):
            await found.becomes(place, PodState.STARTING)
        came = await found.ask()
        assert (came.status, came.error["code"], came.error["type"]) == (503, "no_ready_pod", "overloaded_error")
        assert int(came.headers["retry-after"]) >= 1
        line = await found.running.last_line()
        assert (line["attempts"], line["queue_ms"]) == (0, 0)
        assert line["duration_ms"] < 50
        assert not given[0].requests + given[1].requests


async def test_requests_for_a_pool_without_pods_are_held_until_one_comes_and_each_is_answered_once(side: Side) -> None:
    given = pods(1)
    settings = {"hold_empty_seconds": 60}
    async with given[0], scene(given, side=side, pool=settings) as found:
        known = found.gateway.source.seen().pods
        await found.exist(())
        asking = [found.asking(user=str(place), stream=place % 2 == 0) for place in range(6)]
        given[0].script_of = lambda sent: (STREAM if b'"stream": true' in sent else GOOD,)
        await found.until(lambda: found.waiting == 6)
        found.leap(30)
        await found.exist(known)
        assert {(await each).status for each in asking} == {200}
        assert sorted(body_of(sent)["user"] for sent in given[0].requests) == list("012345")
        assert found.waiting == 0
        await found.running.settled()
        assert all(line["queue_ms"] >= 30_000 for line in found.running.lines())
        assert found.sample("poolgate_queue_wait_seconds_count", pool="chat") == 6


async def test_a_request_is_held_for_a_pod_that_comes_no_longer_than_its_pool_says(side: Side) -> None:
    given = pods(1)
    settings = {"hold_empty_seconds": 5, "queue_wait_seconds": 100}
    async with given[0], scene(given, side=side, pool=settings) as found:
        await found.exist(())
        asking = found.asking()
        await found.until(lambda: found.waiting == 1)
        found.leap(4)
        assert (await found.ask_briefly(asking)) is None
        found.leap(1)
        came = await asking
        assert (came.status, came.error["code"]) == (503, "no_ready_pod")
        assert int(came.headers["retry-after"]) >= 1


# The line.


@pytest.mark.parametrize("stream", [False, True])
async def test_who_finds_no_room_waits_and_gets_the_slot_that_comes_free(side: Side, stream: bool) -> None:
    pod = Gate()
    async with pod, scene([pod], side=side, pool=ONE) as found:
        (first,) = await held(found, pod)
        second = found.asking(user="second", stream=stream)
        await found.until(lambda: found.waiting == 1)
        found.leap(3)
        assert len(pod.requests) == 1
        pod.open()
        await found.until(lambda: len(pod.requests) == 2)
        assert found.waiting == 0
        pod.open()
        assert ((await first).status, (await second).status) == (200, 200)
        line = await found.running.last_line()
        assert (line["attempts"], 3000 <= line["queue_ms"] < 5000) == (1, True)
        assert line["overhead_ms"] < 1000


async def test_who_waits_is_told_at_once_when_the_last_pod_is_gone(side: Side) -> None:
    pod = Gate()
    async with pod, scene([pod], side=side, pool=ONE) as found:
        (first,) = await held(found, pod)
        second = found.asking(user="second")
        await found.until(lambda: found.waiting == 1)
        await found.exist(())
        came = await second
        assert (came.status, came.error["code"]) == (503, "no_ready_pod")
        assert found.waiting == 0
        # What has begun there runs on.
        pod.open()
        assert (await first).status == 200


async def test_two_hundred_wait_and_no_pod_ever_has_more_than_its_limit() -> None:
    given = pods(2, 0.001, GOOD)
    async with given[0], given[1], scene(given, pool={"max_in_flight_per_pod": 3}) as found:
        most = 0

        async def ask() -> int:
            nonlocal most
            came = await found.ask()
            most = max(most, *(found.seat(place).in_flight for place in range(2)))
            return came.status

        assert set(await asyncio.gather(*(ask() for _ in range(200)))) == {200}
        assert most == 3
        assert sum(len(pod.requests) for pod in given) == 200


async def test_a_full_line_is_said_with_when_to_come_again(side: Side) -> None:
    pod = Gate()
    async with pod, scene([pod], side=side, pool=ONE | {"queue_limit": 1}) as found:
        await held(found, pod)
        await found.begin(user="waits")
        await found.until(lambda: found.waiting == 1)
        came = await found.ask()
        assert (came.status, came.error["code"], came.error["type"]) == (503, "queue_full", "overloaded_error")
        assert int(came.headers["retry-after"]) >= 1
        assert found.waiting == 1


async def test_who_has_waited_long_enough_is_told_with_when_to_come_again(side: Side) -> None:
    pod = Gate()
    async with pod, scene([pod], side=side, pool=ONE | {"queue_wait_seconds": 20}) as found:
        await held(found, pod)
        asking = found.asking(stream=True)
        await found.until(lambda: found.waiting == 1)
        found.leap(19)
        assert (await found.ask_briefly(asking)) is None
        found.leap(1)
        came = await asking
        assert (came.status, came.error["code"]) == (503, "queue_timeout")
        assert int(came.headers["retry-after"]) >= 1
        assert found.waiting == 0
        assert len(pod.requests) == 1


async def test_a_client_that_leaves_the_line_frees_its_place_at_once_and_reaches_no_pod(side: Side) -> None:
    pod = Gate()
    async with pod, scene([pod], side=side, pool=ONE | {"queue_limit": 1}) as found:
        (first,) = await held(found, pod)
        waiting = await found.begin(user="leaves", stream=True)
        await found.until(lambda: found.waiting == 1)
        waiting.leave()
        await found.until(lambda: found.waiting == 0, SOON)
        stays = found.asking(user="stays")
        await found.until(lambda: found.waiting == 1)
        pod.open()
        await found.until(lambda: len(pod.requests) == 2)
        pod.open()
        assert ((await first).status, (await stays).status) == (200, 200)
        assert pod.users == ["held-0", "stays"]
        outcomes = [(line["outcome"], line["attempts"]) for line in found.running.lines()]
        assert ("client_left", 0) in outcomes


async def test_a_client_that_leaves_between_two_tries_is_not_sent_again(side: Side) -> None:
    given = [ScriptedPod([[Reset]]), ScriptedPod([[Reset]])]
    async with given[0], given[1], scene(given, side=side) as found:
        for pod in given:
            # The question whether it lives is not answered: the second try has to wait for that.
            pod.health = b""
        client = await found.begin()
        place = await found.arrival(given)
        await found.until(lambda: b"/health" in given[place].asked)
        client.leave()
        line = await found.running.last_line()
        assert (line["outcome"], line["attempts"]) == ("client_left", 1)
        assert not given[1 - place].requests


async def test_a_client_that_leaves_while_its_second_try_waits_for_room_is_not_sent_again(side: Side) -> None:
    given = pods(2, Hang)
    async with given[0], given[1], scene(given, side=side, pool=ONE) as found:
        holding = await found.begin()
        taken = await found.arrival(given)
        given[1 - taken].scripts = [[Reset]]
        leaving = await found.begin()
        await found.until(lambda: found.waiting == 1)
        assert len(given[1 - taken].requests) == 1
        leaving.leave()
        await found.until(lambda: found.waiting == 0, SOON)
        holding.leave()
        await found.running.settled()
        assert len(given[taken].requests) == 1
        assert {line["outcome"] for line in found.running.lines()} == {"client_left"}


# Fairness.


async def test_callers_take_turns_and_each_is_served_in_its_own_order() -> None:
    pod = Gate()
    async with pod, scene([pod], pool=ONE) as found:
        asking = await held(found, pod)
        for key, name, count in ((found.running.key, "a", 5), (found.running.other_key, "b", 2)):
            for place in range(count):
                before = found.waiting
                asking.append(found.asking(user=f"{name}{place}", key=key))
                await found.until(lambda: found.waiting == before + 1)  # noqa: B023  # waited for here
        for served in range(8):
            await found.until(lambda: len(pod.requests) == served + 1)  # noqa: B023  # waited for here
            pod.open()
        assert {(await each).status for each in asking} == {200}
        assert pod.users == ["held-0", "a0", "b0", "a1", "b1", "a2", "a3", "a4"]


async def test_who_fills_the_line_makes_way_for_another_caller(side: Side) -> None:
    pod = Gate()
    async with pod, scene([pod], side=side, pool=ONE | {"queue_limit": 3}) as found:
        asking = await held(found, pod)
        for place in range(3):
            asking.append(found.asking(user=f"a{place}"))
            await found.until(lambda: found.waiting == place + 1)  # noqa: B023  # waited for here
        other = found.asking(user="b0", key=found.running.other_key)
        displaced = await asking.pop()
        assert (displaced.status, displaced.error["code"]) == (503, "queue_full")
        assert found.waiting == 3
        for served in range(4):
            await found.until(lambda: len(pod.requests) == served + 1)  # noqa: B023  # waited for here
            pod.open()
        assert {(await each).status for each in (*asking, other)} == {200}
        assert pod.users == ["held-0", "a0", "b0", "a1"]
