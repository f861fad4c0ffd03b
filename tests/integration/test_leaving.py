"""A client that leaves frees the GPU at once: the pod's connection closes, whatever the request was waiting for."""

import asyncio
import os
import random
from collections import defaultdict
from typing import Any

import pytest

from loadtest.simulator import FAST, PodSettings, SimulatedPod, TimeModel
from loadtest.simulator.connection import Exchange
from tests.fakes import Hang, ScriptedPod
from tests.raw import RawClient, ask, chat, request
from tests.running import Side, running
from tests.turns import within

FREED_SECONDS = 0.1
"""In turns of the loop: gateway, pod and client are all on it."""
LONG = {"max_tokens": 5000, "ignore_eos": True}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_before_the_first_byte_frees_the_pod(side: Side, stream: bool) -> None:
    async with ScriptedPod([[Hang]]) as pod, running([pod], side=side) as gateway:
        client = await RawClient.connect(gateway.port)
        client.send(request(chat(stream=stream), key=gateway.key))
        while not pod.requests:
            await asyncio.sleep(0.001)
        client.leave()
        async with within(FREED_SECONDS):
            await pod.peer_left.wait()
        line = await gateway.last_line()
        assert (line["outcome"], line["status"], line["attempts"]) == ("client_left", 0, 1)


@pytest.mark.parametrize("half", [True, False], ids=["half-close", "close"])
async def test_a_client_that_leaves_between_bytes_frees_the_pod(side: Side, half: bool) -> None:
    settings = PodSettings(model="m", time=TimeModel(step_seconds=0.01), max_model_len_tokens=100_000)
    async with SimulatedPod(settings) as pod, running([pod], side=side) as gateway:
        client = await RawClient.connect(gateway.port)
        client.send(request(chat(stream=True, **LONG), key=gateway.key))
        await client.reader.readuntil(b"content")
        if half:
            client.writer.write_eof()
        else:
            client.leave()
        async with within(FREED_SECONDS):
            await pod.until(lambda p: p.aborts == 1, seconds=None)
        line = await gateway.last_line()
        assert (line["outcome"], line["status"], line["usage_source"]) == ("client_left", 200, "estimated")
        client.leave()


async def test_a_client_that_leaves_while_the_pod_is_connected_to_leaves_nothing(side: Side) -> None:
    async with ScriptedPod([[Hang]]) as pod, running([pod], side=side) as gateway:
        for _ in range(20):
            client = await RawClient.connect(gateway.port)
            client.send(request(chat(), key=gateway.key))
            await asyncio.sleep(0)
            client.leave()
        await gateway.settled()
        assert gateway.gateway.balancer.in_flight_by_model().get("m", 0) == 0


class Telling(SimulatedPod):
    """A pod that tells whose requests have reached it, by the callers' own ids."""

    def __init__(self, settings: PodSettings) -> None:
        super().__init__(settings)
        self.reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def serve(self, exchange: Exchange) -> None:
        super().serve(exchange)
        self.reached[(exchange.request.header("x-request-id") or "").partition("-")[0]].set()


async def test_two_hundred_clients_that_vanish_leave_no_trace(side: Side) -> None:
    rng = random.Random(7)
    settings = PodSettings(
        model="m", time=TimeModel(step_seconds=0.005), max_model_len_tokens=100_000, max_num_seqs=1000
    )
    # The pod takes fewer than there are: some wait in line, and nobody is told that it takes too long.
    pool = {"queue_wait_seconds": 600}
    async with Telling(settings) as pod, running([pod], side=side, pool=pool) as gateway:
        await ask(gateway.port, request(chat(max_tokens=1), key=gateway.key))
        await gateway.settled()
        files, tasks = _open_files(), len(asyncio.all_tasks())

        async def vanish(number: int) -> None:
            """Leave at a random moment; of four, three only when the pod has the request."""
            client = await RawClient.connect(gateway.port)
            body = chat(stream=rng.random() < 0.7, **LONG)
            client.send(request(body, key=gateway.key, headers={"X-Request-Id": f"v{number}"}))
            if number % 4:
                await pod.reached[f"v{number}"].wait()
            await asyncio.sleep(rng.random())
            client.leave()

        async with within(60):
            await asyncio.gather(*(vanish(number) for number in range(200)))
        await gateway.settled()
        reached = sum(event.is_set() for id_, event in pod.reached.items() if id_.startswith("v"))
        assert reached >= 150
        async with within(2.0):
            await pod.until(lambda p: p.aborts == reached and p.running == 0 and p.waiting == 0, seconds=None)
        async with within(2.0):
            while _open_files() > files + 2 or len(asyncio.all_tasks()) > tasks:
                await asyncio.sleep(0.01)
        assert gateway.sample("poolgate_pod_in_flight", pool="chat", pod="chat-0") == 0
        assert gateway.sample("poolgate_in_flight", model="m") == 0
        outcomes = [line["outcome"] for line in gateway.lines()][1:]
        assert outcomes == ["client_left"] * 200


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_slow_reader_holds_up_the_pod_and_not_the_memory(side: Side) -> None:
    big = b"data: " + b'{"choices":[{"index":0,"delta":{"content":"' + b"x" * 60_000 + b'"}}]}\n\n'
    script: list[Any] = [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
        *[big] * 1000,
        Hang,
    ]
    async with ScriptedPod([script]) as pod, running([pod], side=side) as gateway:
        client = await RawClient.connect(gateway.port)
        client.send(request(chat(stream=True), key=gateway.key))
        await client.reader.readuntil(b"content")
        # Nothing is read from here on: 60 MB would have to be somewhere, were they not still in the pod.
        for _ in range(50):
            await asyncio.sleep(0.01)
        held = client.reader._buffer  # type: ignore[attr-defined]  # what the test itself has taken in
        assert len(held) < 2_000_000
        assert len(pod.requests) == 1
        assert not pod.peer_left.is_set()
        client.leave()
        async with within(2):
            await pod.peer_left.wait()


def test_the_time_model_of_tests_is_fast() -> None:
    assert FAST.step_seconds <= 0.001
