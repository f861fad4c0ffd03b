"""openai-python, the asynchronous client: what an app does in a loop, some of it at once."""

import asyncio
from typing import Any, Final

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.clients.front import Front, needs
from tests.clients.questions import ENDLESS, ENDLESS_TOKENS, QUESTION, TEXTS, WEATHER_QUESTION, Paint, Weather
from tests.clients.sound import tone

ASK: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": QUESTION}]


def _client(front: Front, **more: Any) -> AsyncOpenAI:
    settings: dict[str, Any] = {"max_retries": 0, "timeout": 120, **more}
    return AsyncOpenAI(base_url=front.base_url, api_key=front.key, **settings)


async def chat(front: Front) -> None:
    async with _client(front) as client:
        answer = await client.chat.completions.create(model=front.chat, messages=ASK, max_tokens=8)
    assert answer.choices[0].message.content


async def chat_streamed(front: Front) -> None:
    async with _client(front) as client:
        stream = await client.chat.completions.create(model=front.chat, messages=ASK, max_tokens=8, stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in {"length", "stop"}


async def chat_by_the_stream_helper(front: Front) -> None:
    async with (
        _client(front) as client,
        client.chat.completions.stream(model=front.chat, messages=ASK, stop=["zzz"], temperature=0) as stream,
    ):
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content


async def many_streams_at_once(front: Front) -> None:
    async def one(client: AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(
            model=front.chat, messages=ASK, max_tokens=6, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async with _client(front) as client:
        texts = await asyncio.gather(*(one(client) for _ in range(8)))
    assert all(texts)


async def a_tool_from_a_pydantic_model(front: Front) -> None:
    async with _client(front) as client:
        answer = await client.chat.completions.parse(
            model=front.chat,
            messages=[{"role": "user", "content": WEATHER_QUESTION}],
            tools=[openai.pydantic_function_tool(Weather)],
            tool_choice="required",
            temperature=0,
        )
    assert answer.choices[0].message.tool_calls
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)


async def structured_output(front: Front) -> None:
    async with _client(front) as client:
        answer = await client.chat.completions.parse(
            model=front.chat, messages=ASK, response_format=Paint, temperature=0, max_tokens=60
        )
    assert isinstance(answer.choices[0].message.parsed, Paint)


async def completions_streamed(front: Front) -> None:
    async with _client(front) as client:
        stream = await client.completions.create(model=front.chat, prompt="One, two,", max_tokens=4, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream])


async def responses_streamed(front: Front) -> None:
    async with _client(front) as client:
        stream = await client.responses.create(model=front.chat, input=QUESTION, max_output_tokens=24, stream=True)
        events = [event async for event in stream]
    assert events[0].type == "response.created"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].type in {"response.completed", "response.incomplete"}


async def responses_parsed(front: Front) -> None:
    async with _client(front) as client:
        answer = await client.responses.parse(
            model=front.chat, input=QUESTION, text_format=Paint, temperature=0, max_output_tokens=60
        )
    assert isinstance(answer.output_parsed, Paint)


@needs("embed")
async def embeddings(front: Front) -> None:
    assert front.embed is not None
    async with _client(front) as client:
        made = await client.embeddings.create(model=front.embed, input=TEXTS)
    assert [item.index for item in made.data] == [0, 1]


@needs("speech")
async def a_transcription(front: Front) -> None:
    assert front.speech is not None
    async with _client(front) as client:
        heard = await client.audio.transcriptions.create(model=front.speech, file=("hello.wav", tone(), "audio/wav"))
    assert heard.text


async def models(front: Front) -> None:
    async with _client(front) as client:
        assert front.chat in [model.id async for model in client.models.list()]
        assert (await client.models.retrieve(front.chat)).id == front.chat


async def the_raw_answer(front: Front) -> None:
    async with _client(front) as client:
        raw = await client.chat.completions.with_raw_response.create(model=front.chat, messages=ASK, max_tokens=4)
        assert raw.headers["x-request-id"] == raw.parse()._request_id


async def a_stream_that_is_closed_frees_the_pod(front: Front) -> None:
    async with _client(front) as client:
        stream = await client.chat.completions.create(
            model=front.chat, messages=ASK, max_tokens=ENDLESS_TOKENS, stream=True, extra_body=ENDLESS
        )
        await anext(stream)
        await stream.close()
        await asyncio.to_thread(front.wait_until_idle)


async def a_task_that_is_cancelled_frees_the_pod(front: Front) -> None:
    async with _client(front) as client:
        asking = asyncio.create_task(
            client.chat.completions.create(
                model=front.chat, messages=ASK, max_tokens=ENDLESS_TOKENS, extra_body=ENDLESS
            )
        )
        while not asking.done() and await asyncio.to_thread(front.open_requests) == 0:
            await asyncio.sleep(0.01)
        assert asking.cancel(), asking
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.to_thread(front.wait_until_idle)


async def errors_are_their_classes(front: Front) -> None:
    async with _client(front) as client:
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="no-such-model", messages=ASK)
        with pytest.raises(openai.PermissionDeniedError):
            await client.chat.completions.create(model=front.chat, messages=ASK, extra_body={"cache_salt": "x"})
    async with AsyncOpenAI(base_url=front.base_url, api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()
