"""What an app sees through its SDK when a pod fails: each failure as its exception; retries only where they help."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from loadtest.simulator import PodSettings, SimulatedPod, Task
from tests.running import Running, Side, running

HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(params=["edge", "asgi"])
def side(request: pytest.FixtureRequest) -> Side:
    found: Side = request.param
    return found


def openai_of(gateway: Running, max_retries: int = 0) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=max_retries)


def anthropic_of(gateway: Running, max_retries: int = 0) -> AsyncAnthropic:
    url = gateway.base_url.removesuffix("/v1")
    return AsyncAnthropic(base_url=url, api_key=gateway.key, max_retries=max_retries)


@asynccontextmanager
async def one_pod(side: Side, **more: Any) -> AsyncIterator[tuple[SimulatedPod, Running]]:
    async with SimulatedPod(PodSettings(model="m")) as pod, running([pod], side=side, **more) as gateway:
        yield pod, gateway


# openai-python


async def test_a_pods_own_failure_is_an_internal_server_error(side: Side) -> None:
    async with one_pod(side) as (pod, gateway), openai_of(gateway) as client:
        pod.set_fault("status:500")
        with pytest.raises(openai.InternalServerError) as failed:
            await client.chat.completions.create(model="m", messages=HELLO)
        assert failed.value.code == "upstream_failed"
        assert failed.value.request_id


async def test_a_busy_pod_is_a_503_that_says_when_to_come_back(side: Side) -> None:
    async with one_pod(side) as (pod, gateway), openai_of(gateway) as client:
        pod.set_fault("status:503")
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as busy:
                await client.chat.completions.create(model="m", messages=HELLO, stream=stream)
            assert busy.value.status_code == 503
            assert busy.value.code == "overloaded"
            assert float(busy.value.response.headers["retry-after-ms"]) > 0
            assert float(busy.value.response.headers["retry-after"]) >= 1


async def test_the_sdks_own_retries_ride_over_a_busy_pod(side: Side) -> None:
    async with one_pod(side) as (pod, gateway), openai_of(gateway, max_retries=2) as client:
        pod.set_fault("status:status=503,count=1")
        came = await client.chat.completions.create(model="m", messages=HELLO, max_tokens=2)
        assert came.choices
        assert [line["status"] for line in gateway.lines()][:1] == [503]


async def test_a_deadline_is_a_504_that_is_not_sent_again(side: Side) -> None:
    async with (
        one_pod(side, pool={"ttft_seconds": 0.3, "response_seconds": 0.3}) as (pod, gateway),
        openai_of(gateway, max_retries=2) as client,
    ):
        pod.set_fault("never_answer")
        for stream, code in ((False, "upstream_timeout"), (True, "upstream_ttft_timeout")):
            with pytest.raises(openai.InternalServerError) as late:
                await client.chat.completions.create(model="m", messages=HELLO, stream=stream)
            assert late.value.status_code == 504
            assert late.value.code == code
            assert late.value.response.headers["x-should-retry"] == "false"
        await gateway.settled()
        assert [line["status"] for line in gateway.lines()] == [504, 504]


@pytest.mark.parametrize(("fault", "code"), [("cut:3", "upstream_truncated"), ("reset:3", "upstream_reset")])
async def test_a_stream_that_breaks_raises_in_the_middle(side: Side, fault: str, code: str) -> None:
    async with one_pod(side) as (pod, gateway), openai_of(gateway, max_retries=2) as client:
        pod.set_fault(fault)
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        chunks = [await anext(stream) for _ in range(3)]
        assert chunks[-1].choices[0].delta.content
        with pytest.raises(openai.APIError) as broken:
            await anext(stream)
        assert broken.value.code == code
        assert not isinstance(broken.value, openai.APIConnectionError)


async def test_a_pods_own_error_event_raises_in_the_middle(side: Side) -> None:
    async with one_pod(side) as (pod, gateway), openai_of(gateway) as client:
        pod.set_fault("error_event:after=3,message=out of memory")
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        for _ in range(3):
            await anext(stream)
        with pytest.raises(openai.APIError, match="out of memory"):
            await anext(stream)


async def test_a_response_that_breaks_ends_in_an_error_event(side: Side) -> None:
    """This SDK raises nothing here: the Responses API tells errors as events, and an app looks at the type."""
    async with one_pod(side) as (pod, gateway), openai_of(gateway) as client:
        pod.set_fault("cut:after=8,path=/v1/responses")
        stream = await client.responses.create(model="m", input="Hello", max_output_tokens=50, stream=True)
        events = [event async for event in stream]
        assert events[0].type == "response.created"
        assert events[-1].type == "error"
        assert events[-1].code == "upstream_truncated"


async def test_a_large_answer_that_breaks_is_a_lost_connection_and_no_clean_end(side: Side) -> None:
    async with (
        SimulatedPod(PodSettings(model="m", task=Task.EMBED, embedding_dimensions=4096)) as pod,
        running([pod], side=side) as gateway,
        openai_of(gateway) as client,
    ):
        pod.set_fault("cut:path=/v1/embeddings")
        with pytest.raises(openai.APIConnectionError):
            await client.embeddings.create(model="m", input=["text"] * 60, encoding_format="float")  # 5 MB


async def test_a_model_that_this_key_may_not_use_is_permission_denied(side: Side) -> None:
    async with one_pod(side, tenant={"models": ("other*",)}) as (_, gateway), openai_of(gateway) as client:
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await client.chat.completions.create(model="m", messages=HELLO)
        assert refused.value.code == "model_not_allowed"
        assert [model.id async for model in client.models.list()] == []


# Anthropic's


async def test_anthropic_a_pods_own_failure_is_an_internal_server_error(side: Side) -> None:
    async with one_pod(side) as (pod, gateway), anthropic_of(gateway) as client:
        pod.set_fault("status:status=500,path=/v1/messages")
        with pytest.raises(anthropic.InternalServerError) as failed:
            await client.messages.create(model="m", messages=HELLO, max_tokens=4)
        assert failed.value.type == "api_error"


async def test_anthropic_a_busy_pod_is_overloaded_and_ridden_over(side: Side) -> None:
    async with one_pod(side) as (pod, gateway):
        pod.set_fault("status:status=503,path=/v1/messages")
        async with anthropic_of(gateway) as client:
            with pytest.raises(anthropic.APIStatusError) as busy:
                await client.messages.create(model="m", messages=HELLO, max_tokens=4)
            assert busy.value.status_code == 503
            assert busy.value.type == "overloaded_error"
        pod.set_fault("status:status=503,path=/v1/messages,count=1")
        async with anthropic_of(gateway, max_retries=2) as client:
            assert (await client.messages.create(model="m", messages=HELLO, max_tokens=4)).content


async def test_anthropic_a_stream_that_breaks_raises_in_the_middle(side: Side) -> None:
    async with one_pod(side) as (pod, gateway), anthropic_of(gateway) as client:
        pod.set_fault("cut:after=5,path=/v1/messages")
        async with client.messages.stream(model="m", messages=HELLO, max_tokens=50) as stream:
            assert await anext(stream.text_stream)
            with pytest.raises(anthropic.APIStatusError, match=r"before the answer was whole|closed inside") as broken:
                await stream.until_done()
        assert broken.value.type == "api_error"
