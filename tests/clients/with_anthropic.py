"""Anthropic's own SDK on `/v1/messages`, with the key in `x-api-key`, as it sends it."""

import asyncio
import json
from typing import Any, Final

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import MessageParam, ToolParam

from tests.clients.front import Front
from tests.clients.questions import (
    ENDLESS,
    ENDLESS_TOKENS,
    QUESTION,
    TOO_LONG,
    WEATHER_QUESTION,
    WEATHER_SCHEMA,
    city_in,
)

ASK: Final[list[MessageParam]] = [{"role": "user", "content": QUESTION}]
ASK_WEATHER: Final[list[MessageParam]] = [{"role": "user", "content": WEATHER_QUESTION}]
WEATHER: Final[ToolParam] = {
    "name": "weather",
    "description": "Tell the weather of a city.",
    "strict": True,
    "input_schema": WEATHER_SCHEMA,
}


def _client(front: Front, **more: Any) -> Anthropic:
    """Its base URL has no `/v1`: this SDK adds it."""
    settings: dict[str, Any] = {"max_retries": 0, "timeout": 120, **more}
    return Anthropic(base_url=front.url, api_key=front.key, **settings)


def a_message(front: Front) -> None:
    with _client(front) as client:
        answer = client.messages.create(model=front.chat, system="Be brief.", messages=ASK, max_tokens=8)
    assert answer.type == "message"
    assert answer.role == "assistant"
    assert answer.content[0].type == "text"
    assert answer.content[0].text
    assert answer.stop_reason in {"end_turn", "max_tokens"}
    assert answer.usage.input_tokens > 0
    assert 0 < answer.usage.output_tokens <= 8


def a_conversation_of_several_turns(front: Front) -> None:
    with _client(front) as client:
        first = client.messages.create(model=front.chat, messages=ASK, max_tokens=8)
        turns: list[MessageParam] = [
            *ASK,
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": "And of Spain?"},
        ]
        second = client.messages.create(model=front.chat, messages=turns, max_tokens=8)
    assert second.usage.input_tokens > first.usage.input_tokens


def a_message_streamed_raw(front: Front) -> None:
    with _client(front) as client:
        stream = client.messages.create(model=front.chat, messages=ASK, max_tokens=8, stream=True)
        kinds = [event.type for event in stream]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 1
    assert kinds.count("content_block_delta") >= 1


def a_message_by_the_stream_helper(front: Front) -> None:
    with (
        _client(front) as client,
        client.messages.stream(model=front.chat, messages=ASK, max_tokens=8) as stream,
    ):
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text
    assert stream.get_final_text() == text
    assert final.stop_reason in {"end_turn", "max_tokens"}
    assert 0 < final.usage.output_tokens <= 8


def a_tool_and_the_turn_after_it(front: Front) -> None:
    with _client(front) as client:
        first = client.messages.create(
            model=front.chat,
            messages=ASK_WEATHER,
            tools=[WEATHER],
            tool_choice={"type": "any"},
            max_tokens=80,
        )
        assert first.stop_reason == "tool_use"
        used = next(block for block in first.content if block.type == "tool_use")
        assert used.name == "weather"
        city_in(json.dumps(used.input))
        turns: list[MessageParam] = [
            *ASK_WEATHER,
            {"role": "assistant", "content": first.content},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": used.id, "content": "18 degrees, sunny"}],
            },
        ]
        second = client.messages.create(
            model=front.chat,
            messages=turns,
            tools=[WEATHER],
            tool_choice={"type": "none"},
            max_tokens=8,
        )
    assert second.content[0].type == "text"
    assert second.content[0].text


def a_named_tool_streamed(front: Front) -> None:
    with (
        _client(front) as client,
        client.messages.stream(
            model=front.chat,
            messages=ASK_WEATHER,
            tools=[WEATHER],
            tool_choice={"type": "tool", "name": "weather"},
            max_tokens=80,
        ) as stream,
    ):
        final = stream.get_final_message()
    used = [block for block in final.content if block.type == "tool_use"]
    assert [block.name for block in used] == ["weather"]
    city_in(json.dumps(used[0].input))


def tokens_counted(front: Front) -> None:
    with _client(front) as client:
        short = client.messages.count_tokens(model=front.chat, messages=ASK)
        long = client.messages.count_tokens(
            model=front.chat, messages=[{"role": "user", "content": f"{QUESTION} {QUESTION}"}]
        )
    assert 0 < short.input_tokens < long.input_tokens


def the_raw_answer(front: Front) -> None:
    with _client(front) as client:
        raw = client.messages.with_raw_response.create(model=front.chat, messages=ASK, max_tokens=4)
    assert raw.headers["content-type"] == "application/json"
    assert raw.headers["x-request-id"]


def the_key_as_a_bearer_token(front: Front) -> None:
    with Anthropic(base_url=front.url, auth_token=front.key, max_retries=0) as client:
        answer = client.messages.create(model=front.chat, messages=ASK, max_tokens=4)
    assert answer.content


async def asynchronously(front: Front) -> None:
    async with AsyncAnthropic(base_url=front.url, api_key=front.key, max_retries=0) as client:
        answer = await client.messages.create(model=front.chat, messages=ASK, max_tokens=4)
        async with client.messages.stream(model=front.chat, messages=ASK, max_tokens=8) as stream:
            text = "".join([piece async for piece in stream.text_stream])
    assert answer.content
    assert text


async def a_task_that_is_cancelled_frees_the_pod(front: Front) -> None:
    async with AsyncAnthropic(base_url=front.url, api_key=front.key, max_retries=0) as client:
        asking = asyncio.create_task(
            client.messages.create(model=front.chat, messages=ASK, max_tokens=ENDLESS_TOKENS, extra_body=ENDLESS)
        )
        while not asking.done() and await asyncio.to_thread(front.open_requests) == 0:
            await asyncio.sleep(0.01)
        assert asking.cancel(), asking
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.to_thread(front.wait_until_idle)


def a_stream_that_is_closed_frees_the_pod(front: Front) -> None:
    with _client(front) as client:
        stream = client.messages.create(
            model=front.chat,
            messages=[{"role": "user", "content": "Tell a very long story of a king."}],
            max_tokens=ENDLESS_TOKENS,
            stream=True,
            extra_body=ENDLESS,
        )
        next(iter(stream))
        stream.close()
        front.wait_until_idle()


# Errors, each as its class


def a_wrong_key(front: Front) -> None:
    with Anthropic(base_url=front.url, api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            stranger.messages.create(model=front.chat, messages=ASK, max_tokens=4)
        with pytest.raises(anthropic.AuthenticationError):
            stranger.messages.count_tokens(model=front.chat, messages=ASK)
    assert refused.value.type == "authentication_error"


def a_model_that_is_not_there(front: Front) -> None:
    with _client(front) as client:
        for stream in (False, True):
            with pytest.raises(anthropic.NotFoundError, match="no-such-model") as refused:
                client.messages.create(model="no-such-model", messages=ASK, max_tokens=4, stream=stream)
            assert refused.value.type == "not_found_error"


def a_prompt_that_is_too_long(front: Front) -> None:
    # vLLM's own words pass: its type is BadRequestError, where Anthropic says invalid_request_error.
    with _client(front) as client, pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        client.messages.create(model=front.chat, messages=[{"role": "user", "content": TOO_LONG}], max_tokens=4)


def a_field_that_this_key_may_not_use(front: Front) -> None:
    with _client(front) as client, pytest.raises(anthropic.PermissionDeniedError) as refused:
        client.messages.create(model=front.chat, messages=ASK, max_tokens=4, extra_body={"cache_salt": "x"})
    assert refused.value.type == "permission_error"


def a_body_that_is_too_large(front: Front) -> None:
    with _client(front) as client, pytest.raises(anthropic.APIStatusError) as refused:
        client.messages.create(model=front.chat, messages=[{"role": "user", "content": "x" * (9 << 20)}], max_tokens=4)
    assert refused.value.status_code == 413
    assert str(refused.value.type) == "request_too_large"  # their type checker's list does not have it
