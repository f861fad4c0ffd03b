"""One gateway before simulated pods of every kind, in a thread of its own: its clients block, as users' programs do."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AsyncExitStack
from typing import Any

import pytest

from loadtest.simulator import PodSettings, SimulatedPod, Task
from tests.clients.front import Front
from tests.running import Side, running

START_SECONDS = 120
# The names are those that docs/clients.md shows.
PODS = (
    PodSettings(
        model="qwen3-8b",
        aliases=("acme/chat",),
        max_model_len_tokens=2048,
        natural_tokens=(4, 12),
        auto_tool_choice=True,
        server_load_tracking=True,
    ),
    PodSettings(model="bge-m3", task=Task.EMBED),
    PodSettings(model="bge-reranker-v2-m3", task=Task.SCORE),
    PodSettings(model="whisper-large-v3", task=Task.TRANSCRIPTION),
)
Up = tuple[Front, asyncio.AbstractEventLoop, asyncio.Event]


@pytest.fixture(scope="package", params=["edge", "asgi"])
def front(request: pytest.FixtureRequest) -> Iterator[Front]:
    """The gateway, served by either side of the pipeline."""
    up: Future[Up] = Future()
    with ThreadPoolExecutor(1) as thread:
        served = thread.submit(asyncio.run, _serve(request.param, up))
        either: tuple[Future[Any], ...] = (up, served)
        wait(either, START_SECONDS, FIRST_COMPLETED)
        if served.done():
            served.result()  # raises what kept it from starting
        front, loop, over = up.result(0)
        try:
            yield front
        finally:
            loop.call_soon_threadsafe(over.set)
            served.result(START_SECONDS)


async def _serve(side: Side, up: Future[Up]) -> None:
    """Serve until `over`; what is still in flight then is a failure."""
    over = asyncio.Event()
    async with AsyncExitStack() as stack:
        chat, embed, score, speech = [await stack.enter_async_context(SimulatedPod(settings)) for settings in PODS]
        # Each in a pool of its own, as models are: a pool of one pod is never ejected, however it is made to fail.
        pods = {"chat": chat, "embed": embed, "score": score, "speech": speech}
        found = {"pods": [{"url": pod.url, "pool": pool} for pool, pod in pods.items()]}
        gateway = await stack.enter_async_context(running([], side=side, discovery=found))
        front = Front(
            url=f"http://127.0.0.1:{gateway.port}",
            key=gateway.key,
            pod_url=chat.url,
            embed=embed.settings.model,
            score=score.settings.model,
            speech=speech.settings.model,
        )
        up.set_result((front, asyncio.get_running_loop(), over))
        await over.wait()
        await gateway.settled()
