"""A request that pods die of is stopped after the second one: it never walks through a pool, and nobody else is hit."""

from contextlib import AsyncExitStack

import pytest

from gateway.core.fleet import PodState
from gateway.pipeline.quarantine import KEPT_SECONDS
from tests.fakes import STREAM_HEAD, Die, Hang, Reset, ScriptedPod, Step
from tests.integration.balancing.scenes import FAILED, GOOD, STREAM, TOKEN, Scene, dying_of, pods, scene
from tests.running import Side

PILL = {"user": "PILL"}


def deadly(count: int, *script: Step) -> list[ScriptedPod]:
    """Pods that die of the pill, and play the script for anything else."""
    return [ScriptedPod(script_of=dying_of(b"PILL", *script)) for _ in range(count)]


def got(each: ScriptedPod) -> bool:
    """Whether the pill was sent to it."""
    return any(b"PILL" in sent for sent in each.requests)


def cured(given: list[ScriptedPod]) -> None:
    """The pill does nothing any more."""
    for pod in given:
        pod.script_of = lambda sent: (GOOD,)


async def warmed(found: Scene, count: int) -> None:
    """Have an idle connection to each pod."""
    assert [(await found.ask()).status for _ in range(count)] == [200] * count


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "reused"])
async def test_a_request_that_kills_pods_is_not_sent_to_a_third(side: Side, warm: bool, stream: bool) -> None:
    given = deadly(4)
    async with given[0], given[1], given[2], given[3], scene(given, side=side) as found:
        if warm:
            await warmed(found, 4)
        came = await found.ask(**PILL, stream=stream)
        assert (came.status, came.error["code"]) == (500, "request_quarantined")
        assert came.headers["x-should-retry"] == "false"
        assert sum(map(got, given)) == 2
        assert found.quarantined() == 1
        # Sent again, it is refused before any pod sees it.
        again = await found.ask(**PILL, stream=stream)
        assert (again.status, again.error["code"], again.headers["x-should-retry"]) == (
            500,
            "request_quarantined",
            "false",
        )
        assert sum(map(got, given)) == 2
        assert found.quarantined() == 2
        line = await found.running.last_line()
        assert (line["outcome"], line["attempts"], line["pod"]) == ("refused", 0, "")


async def test_neither_its_caller_nor_anybody_else_suffers_from_a_quarantined_request(side: Side) -> None:
    given = deadly(4)
    async with given[0], given[1], given[2], given[3], scene(given, side=side) as found:
        assert (await found.ask(**PILL)).status == 500
        for _ in range(12):
            assert (await found.ask()).status == 200
            assert (await found.ask(key=found.running.other_key)).status == 200
        alive = {place for place in range(4) if not got(given[place])}
        assert len(alive) == 2
        assert all(found.health(place).state == "healthy" for place in alive)


async def test_what_a_pod_said_of_its_health_before_it_died_is_not_believed_after(side: Side) -> None:
    given = deadly(4, FAILED)
    async with given[0], given[1], given[2], given[3], scene(given, side=side) as found:
        for _ in range(4):
            # Each 500 has its pod asked how it is, and that answer would do for half a second.
            assert (await found.ask()).status == 500
        assert (await found.ask(**PILL)).error["code"] == "request_quarantined"
        assert sum(map(got, given)) == 2


async def test_a_body_is_told_apart_by_its_caller() -> None:
    given = deadly(3)
    async with given[0], given[1], given[2], scene(given) as found:
        assert (await found.ask(**PILL)).error["code"] == "request_quarantined"
        cured(given)
        assert (await found.ask(**PILL, key=found.running.other_key)).status == 200
        assert (await found.ask(**PILL)).error["code"] == "request_quarantined"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_body_that_a_pod_has_answered_since_is_let_go(stream: bool) -> None:
    seen = 0

    def every_other(sent: bytes) -> tuple[Step, ...]:
        nonlocal seen
        seen += 1
        return (Die,) if seen % 2 else (STREAM if stream else GOOD,)

    given = [ScriptedPod(script_of=every_other) for _ in range(4)]
    async with given[0], given[1], given[2], given[3], scene(given) as found:
        for _ in range(2):
            assert (await found.ask(stream=stream)).status == 200
        assert seen == 4
        assert found.quarantined() == 0


async def test_streams_that_had_begun_when_their_pods_died_count_as_well(side: Side) -> None:
    given = [ScriptedPod([[STREAM_HEAD, TOKEN, Die]]) for _ in range(4)]
    async with given[0], given[1], given[2], given[3], scene(given, side=side) as found:
        for _ in range(2):
            cut = await found.ask(stream=True)
            assert (cut.status, b"upstream_reset" in cut.body) == (200, True)
        third = await found.ask(stream=True)
        assert (third.status, third.error["code"]) == (500, "request_quarantined")
        assert sum(len(pod.requests) for pod in given) == 2


async def test_a_broken_connection_of_a_pod_that_lives_is_no_death() -> None:
    given = pods(4, Reset)
    async with given[0], given[1], given[2], given[3], scene(given) as found:
        for _ in range(2):
            came = await found.ask()
            assert (came.status, came.error["code"]) == (502, "upstream_disconnected")
        assert found.quarantined() == 0


async def test_what_a_terminating_pod_takes_with_it_is_not_the_request_s_fault() -> None:
    given = pods(3, Hang)
    async with given[0], given[1], given[2], scene(given) as found:
        asking = found.asking()
        for _ in range(2):
            place = await found.arrival(given)
            await found.becomes(place, PodState.DRAINING)
            given[place].die()
        assert (await asking).error["code"] == "upstream_disconnected"
        for pod in given:
            pod.scripts = [[GOOD]]
        assert (await found.ask()).status == 200
        assert found.quarantined() == 0


async def test_a_quarantine_ends() -> None:
    given = deadly(3)
    async with AsyncExitStack() as stack:
        for pod in given:
            await stack.enter_async_context(pod)
        async with scene(given) as found:
            assert (await found.ask(**PILL)).status == 500
            cured(given)
            found.leap(KEPT_SECONDS)
            assert (await found.ask(**PILL)).status == 200
