"""openai-python 3.x against simulated pods: what an app sees."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from loadtest.simulator import PodSettings, SimulatedPod
from tests.running import Running, Side, running

HELLO: Any = [{"role": "user", "content": "Hello"}]


@asynccontextmanager
async def client_of(gateway: Running, **more: Any) -> AsyncIterator[AsyncOpenAI]:
    """An SDK client that does not retry, so that a test sees each answer."""
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=0, **more) as client:
        yield client


async def test_a_chat(side: Side) -> None:
    async with (
        SimulatedPod(PodSettings(model="org/m")) as pod,
        running([pod], side=side) as gateway,
        client_of(gateway) as client,
    ):
        came = await client.chat.completions.create(model="org/m", messages=HELLO, max_tokens=5)
        assert came.choices[0].finish_reason == "length"
        assert came.usage is not None
        assert came.usage.completion_tokens == 5
        assert came._request_id


async def test_a_streamed_chat(side: Side) -> None:
    async with (
        SimulatedPod(PodSettings(model="m")) as pod,
        running([pod], side=side) as gateway,
        client_of(gateway) as client,
    ):
        stream = await client.chat.completions.create(model="m", messages=HELLO, max_tokens=7, stream=True)
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].choices[0].finish_reason == "length"
        assert all(chunk.usage is None for chunk in chunks)
        with_usage = await client.chat.completions.create(
            model="m",
            messages=HELLO,
            max_tokens=7,
            stream=True,
            stream_options={"include_usage": True},
        )
        last = [chunk async for chunk in with_usage][-1]
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.completion_tokens == 7


async def test_the_stream_helper(side: Side) -> None:
    async with (
        SimulatedPod(PodSettings(model="m")) as pod,
        running([pod], side=side) as gateway,
        client_of(gateway) as client,
        client.chat.completions.stream(model="m", messages=HELLO, stop=["zzz"]) as stream,
    ):
        final = await stream.get_final_completion()
        assert final.choices[0].finish_reason == "stop"
        assert final.choices[0].message.content


async def test_completions_with_several_prompts(side: Side) -> None:
    async with (
        SimulatedPod(PodSettings(model="m")) as pod,
        running([pod], side=side) as gateway,
        client_of(gateway) as client,
    ):
        whole = await client.completions.create(model="m", prompt=["a", "b"], max_tokens=3)
        assert [choice.index for choice in whole.choices] == [0, 1]
        stream = await client.completions.create(model="m", prompt=["a", "b"], max_tokens=3, stream=True)
        finished = [c.choices[0].index async for c in stream if c.choices[0].finish_reason]
        assert sorted(finished) == [0, 1]


async def test_models(side: Side) -> None:
    async with (
        SimulatedPod(PodSettings(model="org/m")) as pod,
        running([pod], side=side) as gateway,
        client_of(gateway) as client,
    ):
        listed = [model.id async for model in client.models.list()]
        assert listed == ["org/m"]
        assert (await client.models.retrieve("org/m")).owned_by == "vllm"
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("org/other")
        assert caught.value.code == "model_not_found"


async def test_errors_are_the_right_exceptions(side: Side) -> None:
    async with (
        SimulatedPod(PodSettings(model="m", max_model_len_tokens=64)) as pod,
        running([pod], side=side) as gateway,
    ):
        async with client_of(gateway) as client:
            chats = client.chat.completions
            with pytest.raises(openai.NotFoundError) as missing:
                await chats.create(model="nope", messages=HELLO)
            assert missing.value.code == "model_not_found"
            assert missing.value.request_id
            with pytest.raises(openai.BadRequestError, match="maximum context length"):
                await chats.create(model="m", messages=[{"role": "user", "content": "x" * 2000}])
            with pytest.raises(openai.BadRequestError, match="maximum context length"):
                await chats.create(model="m", messages=[{"role": "user", "content": "x" * 2000}], stream=True)
            with pytest.raises(openai.PermissionDeniedError):
                await chats.create(model="m", messages=HELLO, extra_body={"cache_salt": "x"})
            pod.set_fault("status:500")
            with pytest.raises(openai.InternalServerError) as failed:
                await chats.create(model="m", messages=HELLO)
            assert failed.value.code == "upstream_failed"
            pod.set_fault("cut:3")
            with pytest.raises(openai.APIError, match=r"before the answer was whole|closed inside"):
                async for _ in await chats.create(model="m", messages=HELLO, stream=True):
                    pass
        async with AsyncOpenAI(base_url=gateway.base_url, api_key="sk-wrong", max_retries=0) as stranger:
            with pytest.raises(openai.AuthenticationError) as refused:
                await stranger.models.list()
            assert refused.value.code == "invalid_api_key"


async def test_the_sdks_own_retries_ride_over_a_busy_pod(side: Side) -> None:
    async with SimulatedPod(PodSettings(model="m")) as pod, running([pod], side=side) as gateway:
        pod.set_fault("status:status=503,count=1")
        async with AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=2) as client:
            came = await client.chat.completions.create(model="m", messages=HELLO, max_tokens=2)
        assert came.choices
