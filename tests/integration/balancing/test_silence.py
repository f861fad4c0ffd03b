"""A pod that will never answer again is told from one that is slow: its requests do not wait out their deadlines."""

import asyncio
from typing import Any

import pytest

from gateway.core.fleet import PodState
from gateway.pipeline.silence import LEAVING_ASK_SECONDS, LEAVING_SECONDS, WEDGED_SECONDS
from gateway.upstream.connection import AnswerHead, Loss, Receiver
from gateway.upstream.headers import fetch_head
from tests.fakes import STREAM_HEAD, Hang, ScriptedPod, Step
from tests.integration.balancing.scenes import ENDING, FAILED, GOOD, STREAM, TOKEN, Scene, body_of, pods, scene
from tests.raw import Answer, RawClient
from tests.running import Side
from tests.turns import within

BEGUN = (STREAM_HEAD, TOKEN, Hang)
"""A stream that says one word and no more."""
LITTLE = 0.05


def either(sent: bytes) -> tuple[bytes]:
    """An answer of the kind that was asked for."""
    return (STREAM if body_of(sent).get("stream") else GOOD,)


async def begun(found: Scene, **more: Any) -> RawClient:
    """A stream whose client has its first content."""
    client = await found.begin(stream=True, **more)
    await client.reader.readuntil(b"content")
    return client


async def told(client: RawClient) -> str:
    """The rest of a stream, whose head was read."""
    async with within(5):
        return (await client.reader.readuntil(b"[DONE]")).decode()


async def a_stream_and_two_that_wait(
    found: Scene, given: list[ScriptedPod]
) -> tuple[RawClient, "asyncio.Task[Answer]", "asyncio.Task[Answer]"]:
    """At the pod chat-0: a stream that has begun, one that has only its head, and an answer that is no stream.

    The other pod answers well, and gets none of them.
    """
    given[0].scripts = [BEGUN, (STREAM_HEAD, Hang), (Hang,)]
    stream = await begun(found)
    waiting = found.asking(stream=True)
    await found.until(lambda: len(given[0].requests) == 2)
    whole = found.asking()
    await found.until(lambda: len(given[0].requests) == 3)
    await found.swept()
    return stream, waiting, whole


async def alone(found: Scene) -> None:
    """The first pod is the only one that is ready."""
    await found.becomes(1, PodState.STARTING)


# On its way down.


async def test_what_hangs_at_a_pod_whose_port_is_closed_is_given_up_soon(side: Side) -> None:
    given = [ScriptedPod(), ScriptedPod(script_of=either)]
    async with given[0], given[1], scene(given, side=side) as found:
        await alone(found)
        stream, waiting, whole = await a_stream_and_two_that_wait(found, given)
        await found.becomes(1, PodState.READY)
        await found.becomes(0, PodState.DRAINING)
        given[0].refuse()
        found.leap(LEAVING_ASK_SECONDS - 0.5)
        await found.swept()
        assert found.gateway.pipeline.active == 3
        found.leap(0.5 + LITTLE)
        assert "upstream_stalled" in await told(stream)
        assert ((await waiting).status, (await whole).status) == (200, 200)
        await found.running.settled()
        lines = {(line["outcome"], line["attempts"]) for line in found.running.lines()}
        assert lines == {("upstream_timeout", 1), ("completed", 2)}
        assert found.sample("poolgate_retries_total", pool="chat", reason="silent") == 2
        assert found.all_ejections() == 0


async def test_streams_that_hang_at_a_terminating_pod_whose_health_is_good_are_given_up_as_well(
    side: Side,
) -> None:
    given = [ScriptedPod(), ScriptedPod(script_of=either)]
    async with given[0], given[1], scene(given, side=side) as found:
        await alone(found)
        stream, waiting, whole = await a_stream_and_two_that_wait(found, given)
        await found.becomes(1, PodState.READY)
        await found.becomes(0, PodState.DRAINING)
        found.leap(LEAVING_SECONDS - 0.5)
        await found.swept()
        await found.swept()
        assert found.gateway.pipeline.active == 3
        assert b"/health" in given[0].asked
        found.leap(0.5 + LITTLE)
        assert "upstream_stalled" in await told(stream)
        assert (await waiting).status == 200
        # What is not streamed says nothing until its end: it may be on its way.
        found.leap(LEAVING_SECONDS)
        assert (await found.ask_briefly(whole)) is None
        whole.cancel()


async def test_a_pod_that_drains_properly_is_left_to_finish(side: Side) -> None:
    more, end = asyncio.Event(), asyncio.Event()
    given = [ScriptedPod([[STREAM_HEAD, TOKEN, more, TOKEN, end, ENDING], [end, GOOD]]), ScriptedPod([[GOOD]])]
    async with given[0], given[1], scene(given, side=side) as found:
        await alone(found)
        stream = await begun(found)
        whole = found.asking()
        await found.until(lambda: len(given[0].requests) == 2)
        await found.becomes(1, PodState.READY)
        await found.becomes(0, PodState.DRAINING)
        found.leap(LEAVING_SECONDS - 1)
        more.set()
        await stream.reader.readuntil(b"content")
        await found.until(lambda: found.seat(0).heard_at > found.clock() - 1)
        found.leap(LEAVING_SECONDS - 1)
        await found.swept()
        end.set()
        assert "error" not in await told(stream)
        assert (await whole).status == 200
        assert not given[1].requests
        await found.running.settled()
        assert {line["outcome"] for line in found.running.lines()} == {"completed"}


async def test_a_terminating_pod_gets_nothing_new_and_its_500s_go_to_another_pod(side: Side) -> None:
    fails = asyncio.Event()
    given = [ScriptedPod([[fails, FAILED]]), ScriptedPod([[GOOD]])]
    async with given[0], given[1], scene(given, side=side) as found:
        await alone(found)
        asking = found.asking()
        await found.until(lambda: bool(given[0].requests))
        await found.becomes(1, PodState.READY)
        await found.becomes(0, PodState.DRAINING)
        fails.set()
        assert (await asking).status == 200
        assert found.sample("poolgate_retries_total", pool="chat", reason="dying") == 1
        assert {(await found.ask()).status for _ in range(5)} == {200}
        assert (len(given[0].requests), len(given[1].requests)) == (1, 6)


@pytest.mark.parametrize("health", [b"503 Service Unavailable", b""], ids=["503", "silent"])
async def test_a_500_of_a_pod_whose_health_is_bad_goes_to_another_pod(health: bytes) -> None:
    given = pods(2, FAILED)
    async with given[0], given[1], scene(given) as found:
        asking = found.asking()
        place = await found.arrival(given)
        assert (await asking).status == 500
        given[1 - place].health = health
        given[place].scripts = [[GOOD]]
        found.leap(1)
        assert (await found.ask()).status == 200
        assert found.sample("poolgate_retries_total", pool="chat", reason="dying") == 1


async def test_a_pod_that_is_gone_from_the_fleet_is_held_to_the_same() -> None:
    given = [ScriptedPod(), ScriptedPod(script_of=either)]
    async with given[0], given[1], scene(given) as found:
        known = found.gateway.source.seen().pods
        await found.exist(known[:1])
        stream, waiting, whole = await a_stream_and_two_that_wait(found, given)
        await found.exist(known[1:])
        given[0].refuse()
        found.leap(LEAVING_ASK_SECONDS + LITTLE)
        assert "upstream_stalled" in await told(stream)
        assert ((await waiting).status, (await whole).status) == (200, 200)


# Wedged.


async def test_a_pod_whose_engine_is_stuck_is_ejected_and_what_waits_there_is_answered_elsewhere(side: Side) -> None:
    given = [ScriptedPod([[STREAM], BEGUN, [Hang]]), ScriptedPod(script_of=either)]
    async with given[0], given[1], scene(given, side=side) as found:
        await alone(found)
        assert (await found.ask(stream=True)).status == 200
        begun_there = await begun(found)
        waiting = [found.asking(stream=stream) for stream in (True, True, False)]
        await found.until(lambda: len(given[0].requests) == 5)
        await found.swept()
        # As long as it is the only one, it is not ejected for anything.
        await found.becomes(1, PodState.READY)
        found.leap(WEDGED_SECONDS - 1)
        await found.swept()
        assert found.all_ejections() == 0
        # However late it came.
        await alone(found)
        waiting.append(found.asking(stream=True))
        await found.until(lambda: len(given[0].requests) == 6)
        await found.becomes(1, PodState.READY)
        found.leap(1.5)
        assert [(await each).status for each in waiting] == [200] * 4
        assert "upstream_stalled" in await told(begun_there)
        assert found.ejections("wedged") == found.all_ejections() == 1
        assert (found.health(0).state, found.health(0).reason) == ("ejected", "wedged")
        assert found.sample("poolgate_retries_total", pool="chat", reason="silent") == 4


async def test_one_long_prompt_alone_is_waited_for(side: Side) -> None:
    first_token = asyncio.Event()
    given = [ScriptedPod([[first_token, STREAM]]), ScriptedPod([[STREAM]])]
    async with given[0], given[1], scene(given, side=side) as found:
        await alone(found)
        asking = found.asking(stream=True)
        await found.until(lambda: bool(given[0].requests))
        await found.becomes(1, PodState.READY)
        found.leap(100)
        assert (await found.ask_briefly(asking)) is None
        first_token.set()
        assert (await asking).status == 200
        assert found.all_ejections() == 0


async def test_a_pod_that_still_speaks_is_not_stuck_however_long_others_wait_there() -> None:
    first_token = asyncio.Event()
    words, end = [asyncio.Event() for _ in range(4)], asyncio.Event()
    talks: list[Step] = [STREAM_HEAD, TOKEN, *(step for word in words for step in (word, TOKEN)), end, ENDING]
    given = [ScriptedPod([talks, [first_token, STREAM]]), ScriptedPod([[STREAM]])]
    async with given[0], given[1], scene(given) as found:
        await alone(found)
        stream = await begun(found)
        waiting = [found.asking(stream=True) for _ in range(2)]
        await found.until(lambda: len(given[0].requests) == 3)
        await found.becomes(1, PodState.READY)
        for word in words:
            found.leap(WEDGED_SECONDS - 1)
            word.set()
            await stream.reader.readuntil(b"content")
            await found.until(lambda: found.seat(0).heard_at > found.clock() - 1)
        first_token.set()
        end.set()
        assert {(await each).status for each in waiting} == {200}
        assert not given[1].requests
        assert found.all_ejections() == 0
        assert "error" not in await told(stream)


async def test_a_client_that_does_not_read_says_nothing_of_its_pod(side: Side) -> None:
    first_token = asyncio.Event()
    big = b"data: " + b'{"choices":[{"index":0,"delta":{"content":"' + b"x" * 60_000 + b'"}}]}\n\n'
    flood: list[Step] = [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
        *[big] * 200,
        Hang,
    ]
    given = [ScriptedPod([flood, [first_token, STREAM]]), ScriptedPod([[STREAM]])]
    async with given[0], given[1], scene(given, side=side) as found:
        await alone(found)
        await begun(found)
        waiting = found.asking(stream=True)
        await found.until(lambda: len(given[0].requests) == 2)
        await found.becomes(1, PodState.READY)
        for _ in range(4):
            await found.swept()
        found.leap(28)
        assert (await found.ask_briefly(waiting)) is None
        assert found.all_ejections() == 0
        first_token.set()
        assert (await waiting).status == 200


async def test_a_stream_that_drips_is_whole_in_the_end(side: Side) -> None:
    words = [asyncio.Event() for _ in range(2)]
    steps: list[Step] = [STREAM_HEAD, TOKEN, *(step for word in words for step in (word, TOKEN)), ENDING]
    given = [ScriptedPod([steps])]
    async with given[0], scene(given, side=side) as found:
        stream = await begun(found)
        await found.swept()
        for word in words:
            found.leap(50)
            await found.swept()
            word.set()
            await stream.reader.readuntil(b"content")
            await found.swept()
        assert "error" not in await told(stream)
        assert (await found.running.last_line())["outcome"] == "completed"
        assert found.all_ejections() == 0


# Questions and requests share connections.


class Heard(Receiver):
    """Whether an answer came."""

    whole = False

    def head_received(self, head: AnswerHead) -> None: ...
    def body_received(self, data: bytes) -> None: ...
    def answer_lost(self, loss: Loss) -> None: ...
    def answer_ended(self, by_close: bool) -> None:
        self.whole = True


@pytest.mark.parametrize(
    ("status", "cancelled"),
    [(b"200 OK", False), (b"200 OK", True), (b"503 Service Unavailable", False)],
    ids=["200", "cancelled", "503"],
)
async def test_a_question_that_has_its_answer_takes_no_request_with_it(status: bytes, cancelled: bool) -> None:
    given = pods(1)
    async with given[0], scene(given) as found:
        given[0].health = status
        pools, pod = found.gateway.pools, found.pod(0)
        question = asyncio.create_task(pools.fetch(pod, b"/health", 5))
        # The answer is here, and who asked has not been woken yet: the connection is free.
        connection = None
        while connection is None:
            await asyncio.sleep(0)
            connection = pools.of(pod).take()
        if cancelled:
            question.cancel()
        heard = Heard()
        connection.send(fetch_head(b"/v1/models", pools.of(pod).host, b""), (), heard)
        await asyncio.gather(question, return_exceptions=True)
        await found.until(lambda: heard.whole)
