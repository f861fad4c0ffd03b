"""What is looked at after each scene is seen: each of these leaves something behind, or lets something out."""

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from gateway.balancing.balancer import Balancer
from gateway.core.call import Trail, Usage
from gateway.core.caller import Tenant
from gateway.edge.port import Edge
from gateway.edge.protocol import ClientConnection
from gateway.parts import THE_USUAL
from gateway.pipeline.forward import Forwarder, Request
from gateway.pipeline.relay import Relay
from gateway.telemetry.metrics import Metrics
from gateway.upstream.connection import PodConnection, Receiver
from gateway.upstream.pool import Pools
from tests.fakes import Hang, Reset
from tests.scenes import says
from tests.scenes.canaries import PROMPT
from tests.scenes.playing import fails_without, play
from tests.scenes.promises import Promise
from tests.scenes.scene import Defence, Scene, SceneFailed, expect
from tests.scenes.stage import Stage

NOTHING = Defence("nothing", "Is no defence.", lambda usual: usual)
LEFT: list[object] = []


def made(body: Callable[[Stage], Awaitable[None]]) -> Scene:
    return Scene("F1", "It is told", Promise.TRUTH, body)


async def holds(stage: Stage) -> None:
    await stage.gateway(await stage.pod())
    await (await stage.asks()).expect(200)


async def leaves_a_descriptor(stage: Stage) -> None:
    LEFT.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(3))


async def leaves_a_task(stage: Stage) -> None:
    LEFT.append(asyncio.create_task(asyncio.sleep(60), name="left"))


async def leaves_memory(stage: Stage) -> None:
    LEFT.append(os.urandom(16 << 20))


async def logs_a_prompt(stage: Stage) -> None:
    await holds(stage)
    logging.getLogger("poolgate").warning("refused: %s", PROMPT)


async def logs_an_errors_words(stage: Stage) -> None:
    await holds(stage)
    logging.getLogger("poolgate.edge").error("it failed: %s", OSError("127.0.0.1:1 is not reached"))


class _CountsTwice(Metrics):
    def observe(self, trail: Trail) -> None:
        super().observe(trail)
        super().observe(trail)


async def counts_twice(stage: Stage) -> None:
    await stage.gateway(await stage.pod(), parts=THE_USUAL._replace(metrics=_CountsTwice))
    await (await stage.asks()).expect(200)


class _NeverLost(ClientConnection):
    __slots__ = ()

    def connection_lost(self, exc: Exception | None) -> None:
        """It stays in the books."""


class _KeepsConnections(Edge):
    connection = _NeverLost


async def forgets_no_connection(stage: Stage) -> None:
    await stage.gateway(await stage.pod(), parts=THE_USUAL._replace(edge=_KeepsConnections))
    await (await stage.asks()).expect(200)


class _LeavesOpen(PodConnection):
    __slots__ = ()

    def drop(self, receiver: Receiver) -> None:
        self._receiver = None


class _Leaky(Pools):
    connection = _LeavesOpen


async def leaves_a_pod_at_work(stage: Stage) -> None:
    pod = await stage.pod(Hang)
    await stage.gateway(pod, parts=THE_USUAL._replace(pools=_Leaky))
    client = await stage.asks()
    await stage.until(lambda: pod.requests, "the pod was not asked")
    client.leave()


class _SpendsTwice(Metrics):
    def _spend(self, model: str, tenant: Tenant, usage: Usage) -> None:
        for _ in range(2):
            super()._spend(model, tenant, usage)


async def counts_tokens_twice(stage: Stage) -> None:
    await stage.gateway(await stage.pod(), parts=THE_USUAL._replace(metrics=_SpendsTwice))
    await (await stage.asks()).expect(200)


class _Charges(Forwarder):
    def _note_usage(self, relay: Relay, request: Request) -> None:
        super()._note_usage(relay, request)
        if (usage := request.visit.trail.usage) is not None:
            request.visit.trail.usage = usage._replace(completion_tokens=usage.completion_tokens + 1)


async def charges_more_than_was_told(stage: Stage) -> None:
    await stage.gateway(await stage.pod(), parts=THE_USUAL._replace(forwarder=_Charges))
    await (await stage.asks()).expect(200)


class _AsksInSecret(Forwarder):
    async def to_model(self, request: Request, *given: Any, **named: Any) -> None:
        try:
            await super().to_model(request, *given, **named)
        finally:
            request.visit.trail.attempts -= 1


async def logs_fewer_attempts(stage: Stage) -> None:
    await stage.gateway(await stage.pod(), parts=THE_USUAL._replace(forwarder=_AsksInSecret))
    await (await stage.asks()).expect(200)


class _KeepsAll(Balancer):
    def _settle(self, state: Any, now: float) -> None:
        super()._settle(state, now)
        for seat in state.seats:
            seat.room = seat.limit


async def picks_an_ejected_pod(stage: Stage) -> None:
    bad = await stage.pod(scripts=[[Reset]])
    await stage.gateway(bad, *await stage.some_pods(3), parts=THE_USUAL._replace(balancer=_KeepsAll))
    for _ in range(16):
        await (await stage.asks()).expect(200)


async def says_what_no_pod_has_said(stage: Stage) -> None:
    pod = await stage.pod(says.stream("a"))
    await stage.gateway(pod)
    client = await stage.asks(stream=True)
    came = await client._raw.answer()
    watched = client._watched.popleft()
    watched.head(came.status, came.headers)
    watched.body(came.body.replace(b'"a"', b'"b"'))
    watched.ended(clean=True)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (leaves_a_descriptor, "3 descriptors more"),
        (leaves_a_task, "tasks left: {'sleep': 1}"),
        (leaves_memory, "MiB of memory more, the second time too"),
        (logs_a_prompt, f"'{PROMPT}' stands in the log"),
        (logs_an_errors_words, "'127.0.0.1' stands in the log"),
        (counts_twice, "2 requests are counted, 1 are logged"),
        (forgets_no_connection, "'clients': 1}"),
        (leaves_a_pod_at_work, "afterwards there is left: {'at pod 0': 1}"),
        (counts_tokens_twice, "6 prompt tokens are counted, 3 are logged"),
        (charges_more_than_was_told, "I6 scene-1: (3, 3) tokens are charged as reported; the pods reported [(3, 2)]"),
        (logs_fewer_attempts, "I14 scene-1: 1 attempts reached pods, the access line says 0"),
        (picks_an_ejected_pod, "I7 : chat-0 was picked while ejected"),
        (says_what_no_pod_has_said, "is not what any one pod has sent there"),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_what_is_wrong_afterwards_is_told(body: Callable[[Stage], Awaitable[None]], told: str) -> None:
    try:
        with pytest.raises(SceneFailed, match=re.escape(told)):
            uvloop.run(play(made(body), rest_seconds=0.5))
    finally:
        for each in LEFT:
            if isinstance(each, int):
                os.close(each)
        LEFT.clear()


def test_a_scene_that_leaves_nothing_holds() -> None:
    uvloop.run(play(made(holds)))


def test_a_scene_that_holds_without_a_defence_does_not_prove_it() -> None:
    with pytest.raises(SceneFailed, match="F1-holds holds without nothing as well"):
        uvloop.run(fails_without(made(holds), NOTHING))


def test_a_red_scene_tells_what_was_expected_and_what_both_sides_said() -> None:
    async def fails(stage: Stage) -> None:
        await stage.gateway(await stage.pod())
        stage.step("the pod is asked")
        await (await stage.asks(user="somebody")).expect(503, "overloaded")

    with pytest.raises(SceneFailed) as failed:
        uvloop.run(play(made(fails)))
    told = str(failed.value)
    assert told.startswith("F1: It is told\nBut: expected 503 overloaded, 200 came\nAt ")
    assert 'await (await stage.asks(user="somebody")).expect(503, "overloaded")' in told
    said = told.partition("What was said:\n")[2]
    asked = ["-- the pod is asked", "client 0 > 'POST ", "pod 0 < 'POST "]
    order = [*asked, "pod 0 > 'HTTP/1.1 200 ", "client 0 < 'HTTP/1.1 200 "]
    assert sorted(order, key=said.index) == order
    assert "'outcome': 'completed'" in told


def test_expect_raises_its_own_words() -> None:
    with pytest.raises(SceneFailed, match=r"^one and one is two$"):
        expect(1 + 1 == 3, "one and one is two")
