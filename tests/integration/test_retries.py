"""The retry table of the contract, row by row, on real sockets: what can happen before the first byte."""

import asyncio
import gc
import socket
from dataclasses import replace
from typing import Any

import pytest

from gateway.pipeline.relay import Relay
from tests.fakes import STREAM_HEAD, Close, Hang, Reset, ScriptedPod, answer, chunk
from tests.raw import ask, chat, request
from tests.running import Side, captured, running
from tests.turns import within

GOOD = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
BUSY = captured("e22-overload-5.http")[1]
DYING = answer(b'{"error":{"message":"cannot schedule new futures after shutdown","code":500}}', b"500 Oh")
PLAIN_500 = answer(b'{"error":{"message":"bad luck","code":500}}', b"500 Oh")
SIDECAR = answer(b"no", b"502 Bad Gateway", b"text/plain")
GONE = captured("40-err-unknown-model.http")[1]
DEAD_STREAM = STREAM_HEAD + chunk(
    b'data: {"error": {"message": "EngineCore encountered an issue.", "type": "x", "code": 500}}\n\n'
)


async def first_then_good(side: Side, script: list[Any], stream: bool = False) -> tuple[Any, dict[str, Any], int]:
    """One request whose first attempt meets `script`, at whichever pod, and the others a good pod."""
    good = (
        STREAM_HEAD + chunk(b'data: {"choices":[{"index":0,"finish_reason":"stop"}]}\n\n') + chunk(b"data: [DONE]\n\n")
    )
    fine = [good + b"0\r\n\r\n" if stream else GOOD]
    pods = [ScriptedPod([script, fine]), ScriptedPod([script, fine])]
    async with pods[0], pods[1], running(pods, side=side) as gateway:
        # Whichever is chosen first plays the script; the other one is told to be good from its first request.
        async def other_is_good() -> None:
            while not any(pod.requests for pod in pods):
                await asyncio.sleep(0)
            for pod in pods:
                if not pod.requests:
                    pod.scripts = [fine]

        helper = asyncio.create_task(other_is_good())
        came = await ask(gateway.port, request(chat(stream=stream), key=gateway.key))
        await helper
        asked = sum(len(pod.requests) for pod in pods)
        return came, await gateway.last_line(), asked


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "script",
    [
        [Close],
        [Reset],
        [STREAM_HEAD, Reset],
        [b"HTTP/1.1 200", Close],
        [BUSY],
        [DYING],
        [SIDECAR],
        [GONE],
        [DEAD_STREAM],
    ],
    ids=["fin", "rst", "head-then-rst", "half-head", "busy", "dying", "sidecar", "model-gone", "dead-engine-event"],
)
async def test_what_the_table_repeats_is_repeated_once_on_another_pod(
    side: Side, script: list[Any], stream: bool
) -> None:
    if not stream:
        script = [{STREAM_HEAD: GOOD[:-5], DEAD_STREAM: DYING}.get(step, step) for step in script]
    came, line, asked = await first_then_good(side, script, stream)
    assert (came.status, asked, line["attempts"]) == (200, 2, 2)


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        ([PLAIN_500], 500, "upstream_failed"),
        ([b"NOT HTTP\r\n\r\n"], 502, "upstream_bad_response"),
        ([answer(b"", b"307 Temporary Redirect")], 502, "upstream_redirect"),
        ([captured("46-err-wrong-type-temp.http")[1]], 400, 400),
    ],
)
async def test_what_the_table_does_not_repeat_is_not(side: Side, script: list[Any], status: int, code: Any) -> None:
    came, line, asked = await first_then_good(side, script)
    assert (came.status, came.error["code"], asked, line["attempts"]) == (status, code, 1, 1)


@pytest.mark.parametrize(
    ("script", "asked"),
    # The first pod closes a reused connection, then the fresh one; the second pod is not given a second chance.
    [([Close], 3), ([BUSY], 2), ([SIDECAR], 2)],
)
async def test_the_second_failure_is_the_last(side: Side, script: list[Any], asked: int) -> None:
    pods = [ScriptedPod([script]) for _ in range(4)]
    async with pods[0], pods[1], pods[2], pods[3], running(pods, side=side) as gateway:
        came = await ask(gateway.port, request(chat(), key=gateway.key))
        assert came.status in (502, 503)
        assert sum(len(pod.requests) for pod in pods) == asked


async def test_refused_connections_are_tried_on_two_more_pods_and_then_it_is_no_ready_pod(side: Side) -> None:
    pods = [ScriptedPod([[GOOD]]) for _ in range(4)]
    async with pods[0], pods[1], pods[2], pods[3], running(pods, side=side) as gateway:
        for pod in pods:
            assert pod._server is not None
            pod._server.close()
        gateway.gateway.pools.keep_only(())
        gateway.gateway.pools.sweep(0)
        gateway.gateway.pools.keep_only([pod.uid for pod in gateway.gateway.fleet.value.pods])
        await asyncio.sleep(0.01)
        came = await ask(gateway.port, request(chat(), key=gateway.key))
        assert (came.status, came.error["code"]) == (503, "no_ready_pod")
        line = await gateway.last_line()
        assert line["attempts"] == 3
        assert gateway.sample("poolgate_retries_total", pool="chat", reason="connect") == 2


async def test_a_pod_that_swallows_connections_costs_no_more_than_the_connect_deadline(side: Side) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        async with ScriptedPod([[GOOD]]) as pod, running([pod], side=side) as gateway:
            fleet = gateway.gateway.fleet.value
            port = full.getsockname()[1]
            hole = replace(fleet.pods[0], uid="hole", name="hole", port=port)
            route = replace(fleet.routes["m"], pods=(hole, *fleet.pods))
            gateway.gateway.fleet.set(replace(fleet, pods=(hole, *fleet.pods), routes={"m": route}))
            for _ in range(4):
                came = await ask(gateway.port, request(chat(), key=gateway.key))
                assert came.status == 200
        for filler in fillers:
            filler.close()


async def test_a_connection_that_the_pod_closed_while_it_was_idle_is_no_failure(side: Side) -> None:
    async with ScriptedPod([[GOOD], [Close], [GOOD]]) as pod, running([pod], side=side) as gateway:
        first = await ask(gateway.port, request(chat(), key=gateway.key))
        second = await ask(gateway.port, request(chat(), key=gateway.key))
        assert (first.status, second.status) == (200, 200)
        line = await gateway.last_line()
        assert (line["attempts"], len(pod.requests)) == (2, 3)
        assert gateway.sample("poolgate_attempts_total", pool="chat", outcome="stale") == 1


async def test_a_failed_pod_is_not_counted_while_the_retry_runs(side: Side) -> None:
    pods = [ScriptedPod([[Close]]), ScriptedPod([[Hang]])]
    async with pods[0], pods[1], running(pods, side=side) as gateway:
        asking = asyncio.create_task(ask(gateway.port, request(chat(), key=gateway.key)))
        while not pods[1].requests:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        uids = {pod.name: pod.uid for pod in gateway.gateway.fleet.value.pods}
        assert gateway.gateway.balancer.in_flight(uids["chat-0"]) == 0
        assert gateway.gateway.balancer.in_flight(uids["chat-1"]) == 1
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await gateway.settled()
        assert gateway.gateway.balancer.in_flight(uids["chat-1"]) == 0


@pytest.mark.parametrize("lost", [[Close], [answer(b'{"error":{"message":"%b"}}' % (b"x" * 900_000), b"503 Busy")]])
async def test_nothing_that_a_failed_pod_said_is_held_while_the_retry_runs(side: Side, lost: list[Any]) -> None:
    """A stream lasts, and what a pod may say before it fails is a megabyte."""
    event = chunk(b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n')
    pods = [ScriptedPod([lost]), ScriptedPod([[STREAM_HEAD + event, Hang]])]
    async with pods[0], pods[1], running(pods, side=side) as gateway:
        # Until the one that fails is met first.
        while not pods[0].requests:
            asking = asyncio.create_task(ask(gateway.port, request(chat(stream=True), key=gateway.key)))
            before = len(pods[1].requests)
            async with within(5):
                while len(pods[1].requests) == before:
                    await asyncio.sleep(0.001)
            gc.collect()
            held = sum(isinstance(each, Relay) for each in gc.get_objects())
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await gateway.settled()
        assert held == 1


async def test_idle_connections_are_used_again(side: Side) -> None:
    async with ScriptedPod([[GOOD]]) as pod, running([pod], side=side) as gateway:
        for _ in range(5):
            await ask(gateway.port, request(chat(), key=gateway.key))
        only = gateway.gateway.fleet.value.pods[0]
        assert gateway.gateway.pools.of(only).live == 1


async def test_an_idle_connection_is_dropped_before_vllm_would(side: Side) -> None:
    async with ScriptedPod([[GOOD]]) as pod, running([pod], side=side) as gateway:
        await ask(gateway.port, request(chat(), key=gateway.key))
        pools = gateway.gateway.pools
        only = gateway.gateway.fleet.value.pods[0]
        assert pools.of(only).live == 1
        pools.sweep(gateway.gateway.clock.monotonic() + 3.1)
        await asyncio.sleep(0.01)
        assert pools.of(only).live == 0
