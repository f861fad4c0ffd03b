"""Second attempts are few: however many fail at once, the pods that are left do not get all of it again."""

import asyncio
import json
from collections import Counter

import pytest

from gateway.balancing.balancer import RETRY_FLOOR
from gateway.core.fleet import PodState
from tests.fakes import Hang, Reset, ScriptedPod, answer
from tests.integration.balancing.scenes import GOOD, Scene, pods, scene
from tests.running import Side, captured

GONE = captured("40-err-unknown-model.http")[1]
BUSY = answer(b"{}", b"503 Service Unavailable")
MANY = 40


async def all_at(found: Scene, pod: ScriptedPod, count: int) -> "list[asyncio.Task[int]]":
    """So many requests at one pod; each becomes the status of its answer."""
    before = len(pod.requests)

    async def status(place: int) -> int:
        return (await found.ask(user=str(place))).status

    tasks = [asyncio.create_task(status(place)) for place in range(count)]
    await found.until(lambda: len(pod.requests) == before + count)
    return tasks


@pytest.mark.parametrize("reused", [False, True], ids=["fresh", "reused"])
async def test_many_failures_at_once_are_not_all_tried_again(side: Side, reused: bool) -> None:
    given = pods(2, Hang)
    async with given[0], given[1], scene(given, side=side) as found:
        await found.becomes(1, PodState.STARTING)
        if reused:
            together = asyncio.Event()
            given[0].scripts = [[together, GOOD]]
            warm = await all_at(found, given[0], MANY)
            together.set()
            assert set(await asyncio.gather(*warm)) == {200}
            given[0].scripts = [[Hang]]
        asking = await all_at(found, given[0], MANY)
        await found.becomes(1, PodState.READY)
        given[0].die()
        await found.until(lambda: sum(each.done() for each in asking) == MANY - RETRY_FLOOR)
        await found.until(lambda: len(given[1].requests) == RETRY_FLOOR)
        assert not found.gateway.balancer.may_retry
        assert {each.result() for each in asking if each.done()} == {502}
        # Once they have their first byte, or their end, there is a budget again.
        given[1].die()
        await asyncio.gather(*asking)
        assert found.gateway.balancer.may_retry


async def test_second_attempts_that_wait_for_room_are_of_the_budget_as_well() -> None:
    given = pods(2, Hang)
    async with given[0], given[1], scene(given, pool={"max_in_flight_per_pod": MANY}) as found:
        await found.becomes(0, PodState.STARTING)
        others = await all_at(found, given[1], MANY)
        await found.becomes(1, PodState.STARTING)
        await found.becomes(0, PodState.READY)
        asking = await all_at(found, given[0], MANY)
        await found.becomes(1, PodState.READY)
        given[0].die()
        await found.until(lambda: sum(each.done() for each in asking) == MANY - RETRY_FLOOR)
        assert found.waiting == RETRY_FLOOR
        for each in (*others, *asking):
            each.cancel()
        await asyncio.gather(*others, *asking, return_exceptions=True)


async def test_refused_connections_do_not_draw_on_the_budget(side: Side) -> None:
    given = pods(3, Hang)
    async with given[0], given[1], given[2], scene(given, side=side) as found:
        for place in (1, 2):
            await found.becomes(place, PodState.STARTING)
        asking = await all_at(found, given[0], RETRY_FLOOR)
        await found.becomes(1, PodState.READY)
        given[0].die()
        await found.until(lambda: len(given[1].requests) == RETRY_FLOOR)
        assert not found.gateway.balancer.may_retry
        # The budget is spent. A request that finds one pod gone and the next one well is answered all the same.
        await found.becomes(1, PodState.STARTING)
        await found.becomes(2, PodState.READY)
        given[2].scripts = [[GOOD]]
        tries: Counter[int] = Counter()
        while tries[2] < 2:
            assert (await found.ask()).status == 200
            tries[found.running.lines()[-1]["attempts"]] += 1
        # But one whose connection broke is not.
        given[2].scripts = [[Reset]]
        while (await found.ask()).status != 502:
            pass
        assert len(given[1].requests) == RETRY_FLOOR
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_when_all_pods_are_busy_their_callers_retries_do_not_multiply() -> None:
    given = pods(3, BUSY)
    async with given[0], given[1], given[2], scene(given, policy="least") as found:
        ends_at = found.clock() + 10
        over = False

        async def caller() -> None:
            """As an SDK does it: three times in all, and then the next question."""
            while not over:
                for _ in range(3):
                    came = await found.ask()
                    if over:
                        return
                    assert (came.status, came.error["code"]) in ((503, "overloaded"), (503, "queue_timeout"))

        callers = [asyncio.create_task(caller()) for _ in range(MANY)]
        while found.clock() < ends_at:
            found.leap(1)
            await found.swept()
        over = True
        for pod in given:
            pod.scripts = [[GOOD]]
        found.leap(1)
        await asyncio.gather(*callers)
        attempts = sum(len(pod.requests) for pod in given)
        assert attempts <= 1.1 * found.sent + 3


async def test_a_404_for_a_model_that_a_pod_listed_has_it_asked_again_and_goes_once_elsewhere(side: Side) -> None:
    given = pods(2)
    async with given[0], given[1], scene(given, side=side) as found:
        asked = given[1].asked.count(b"/v1/models")
        given[1].scripts = [[GONE]]
        given[1].models = json.dumps({"object": "list", "data": [{"id": "other"}]}).encode()
        assert {(await found.ask()).status for _ in range(4)} == {200}
        await found.until(lambda: not any(pod.name == "chat-1" for pod in found.gateway.fleet.value.routes["m"].pods))
        assert given[1].asked.count(b"/v1/models") == asked + 1
        assert found.sample("poolgate_retries_total", pool="chat", reason="model_gone") == len(given[1].requests)
        before = len(given[1].requests)
        assert {(await found.ask()).status for _ in range(4)} == {200}
        assert len(given[1].requests) == before
        assert found.all_ejections() == 0
    gone = pods(3, GONE)
    async with gone[0], gone[1], gone[2], scene(gone) as found:
        came = await found.ask()
        assert (came.status, came.error["code"]) == (404, 404)
        assert sum(len(pod.requests) for pod in gone) == 2
