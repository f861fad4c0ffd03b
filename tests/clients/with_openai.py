"""openai-python, the synchronous client."""

from typing import Any, Final, cast

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.clients.front import Front, needs
from tests.clients.questions import (
    ENDLESS,
    ENDLESS_TOKENS,
    QUESTION,
    TEXTS,
    TOO_LONG,
    WEATHER_QUESTION,
    WEATHER_SCHEMA,
    Paint,
    Weather,
    city_in,
)
from tests.clients.sound import tone

ASK: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": QUESTION}]
ASK_WEATHER: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": WEATHER_QUESTION}]
TOO_LONG_ASK: Final[list[ChatCompletionMessageParam]] = [{"role": "user", "content": TOO_LONG}]
WEATHER: Final[ChatCompletionToolParam] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather of a city.",
        "strict": True,
        "parameters": WEATHER_SCHEMA,
    },
}
BIG_BYTES: Final = 9 << 20  # above server.max_body_bytes


def _client(front: Front, **more: Any) -> OpenAI:
    """A client that does not retry, so that a call sees each answer."""
    settings: dict[str, Any] = {"max_retries": 0, "timeout": 120, **more}
    return OpenAI(base_url=front.base_url, api_key=front.key, **settings)


# Chat


def chat(front: Front) -> None:
    with _client(front) as client:
        answer = client.chat.completions.create(model=front.chat, messages=ASK, max_tokens=8, temperature=0)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in {"length", "stop"}
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 8
    assert answer._request_id


def chat_streamed(front: Front) -> None:
    with _client(front) as client:
        asked = client.chat.completions.create(model=front.chat, messages=ASK, max_tokens=8, temperature=0, stream=True)
        chunks = list(asked)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in {"length", "stop"}
    assert all(chunk.usage is None for chunk in chunks)


def chat_streamed_with_usage(front: Front) -> None:
    with _client(front) as client:
        *_, last = client.chat.completions.create(
            model=front.chat, messages=ASK, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    assert last.choices == []
    assert last.usage is not None
    assert 0 < last.usage.completion_tokens <= 8


def chat_by_the_stream_helper(front: Front) -> None:
    with (
        _client(front) as client,
        # Stopped by a word, not by a number of tokens: the helper raises when an answer was cut short.
        client.chat.completions.stream(model=front.chat, messages=ASK, stop=["zzz"], temperature=0) as stream,
    ):
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].message.content


def several_choices(front: Front) -> None:
    with _client(front) as client:
        chats = client.chat.completions
        whole = chats.create(model=front.chat, messages=ASK, max_tokens=4, n=2, temperature=1)
        stream = chats.create(model=front.chat, messages=ASK, max_tokens=4, n=2, temperature=1, stream=True)
        ended = [chunk.choices[0].index for chunk in stream if chunk.choices[0].finish_reason]
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert sorted(ended) == [0, 1]


def a_tool_and_the_turn_after_it(front: Front) -> None:
    with _client(front) as client:
        chats = client.chat.completions
        first = chats.create(
            model=front.chat,
            messages=ASK_WEATHER,
            tools=[WEATHER],
            tool_choice="required",
            max_tokens=80,
            temperature=0,
        )
        message = first.choices[0].message
        assert message.tool_calls
        call = message.tool_calls[0]
        assert call.type == "function"
        assert call.function.name == "weather"
        city_in(call.function.arguments)
        # The SDK's own object goes back as it came, with whatever the pod put into it.
        turn = cast("ChatCompletionMessageParam", message.to_dict())
        second = chats.create(
            model=front.chat,
            messages=[*ASK_WEATHER, turn, {"role": "tool", "tool_call_id": call.id, "content": "18 degrees, sunny"}],
            tools=[WEATHER],
            tool_choice="none",
            max_tokens=8,
            temperature=0,
        )
    assert second.choices[0].message.content
    assert not second.choices[0].message.tool_calls


def a_named_tool_streamed(front: Front) -> None:
    with _client(front) as client:
        stream = client.chat.completions.create(
            model=front.chat,
            messages=ASK_WEATHER,
            tools=[WEATHER],
            tool_choice={"type": "function", "function": {"name": "weather"}},
            max_tokens=80,
            temperature=0,
            stream=True,
        )
        pieces = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    assert {piece.index for piece in pieces} == {0}
    assert [piece.function.name for piece in pieces if piece.function and piece.function.name] == ["weather"]
    city_in("".join(piece.function.arguments or "" for piece in pieces if piece.function))


def a_tool_from_a_pydantic_model(front: Front) -> None:
    with _client(front) as client:
        answer = client.chat.completions.parse(
            model=front.chat,
            messages=ASK_WEATHER,
            tools=[openai.pydantic_function_tool(Weather)],
            tool_choice="required",
            temperature=0,
        )
    assert answer.choices[0].message.tool_calls
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)


def structured_output(front: Front) -> None:
    with _client(front) as client:
        answer = client.chat.completions.parse(
            model=front.chat, messages=ASK, response_format=Paint, temperature=0, max_tokens=60
        )
    assert isinstance(answer.choices[0].message.parsed, Paint)


def structured_output_streamed(front: Front) -> None:
    with (
        _client(front) as client,
        client.chat.completions.stream(
            model=front.chat, messages=ASK, response_format=Paint, temperature=0, max_tokens=60
        ) as stream,
    ):
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Paint)


# Completions


def completions(front: Front) -> None:
    with _client(front) as client:
        whole = client.completions.create(model=front.chat, prompt=["One, two,", "Red and"], max_tokens=4)
        stream = client.completions.create(model=front.chat, prompt=["One, two,", "Red and"], max_tokens=4, stream=True)
        ended = [chunk.choices[0].index for chunk in stream if chunk.choices[0].finish_reason]
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert all(choice.text for choice in whole.choices)
    assert sorted(ended) == [0, 1]


# Responses


def responses(front: Front) -> None:
    with _client(front) as client:
        answer = client.responses.create(
            model=front.chat, instructions="Be brief.", input=QUESTION, max_output_tokens=24, temperature=0
        )
    assert answer.output_text
    assert answer.status in {"completed", "incomplete"}
    assert answer.usage is not None
    assert 0 < answer.usage.output_tokens <= 24
    assert answer._request_id


def responses_streamed(front: Front) -> None:
    with _client(front) as client:
        stream = client.responses.create(
            model=front.chat, input=QUESTION, max_output_tokens=24, temperature=0, stream=True
        )
        events = list(stream)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert events[0].type == "response.created"
    assert last.type == "response.completed" or last.type == "response.incomplete"
    assert text
    assert last.response.output_text == text
    assert last.response.usage is not None
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))


def responses_by_the_stream_helper(front: Front) -> None:
    with (
        _client(front) as client,
        client.responses.stream(model=front.chat, input=QUESTION, max_output_tokens=24, temperature=0) as stream,
    ):
        kinds = {event.type for event in stream}
    assert {"response.created", "response.output_text.delta"} <= kinds


def responses_parsed(front: Front) -> None:
    with _client(front) as client:
        answer = client.responses.parse(
            model=front.chat, input=QUESTION, text_format=Paint, temperature=0, max_output_tokens=60
        )
    assert isinstance(answer.output_parsed, Paint)


def responses_with_a_tool(front: Front) -> None:
    with _client(front) as client:
        answer = client.responses.create(
            model=front.chat,
            input=WEATHER_QUESTION,
            tools=[{"type": "function", "name": "weather", "strict": True, "parameters": WEATHER_SCHEMA}],
            tool_choice="required",
            temperature=0,
            max_output_tokens=80,
        )
    calls = [item for item in answer.output if item.type == "function_call"]
    assert [call.name for call in calls] == ["weather"]
    city_in(calls[0].arguments)


def responses_that_would_live_in_one_pods_memory_are_refused(front: Front) -> None:
    with _client(front) as client:
        for more in ({"previous_response_id": "resp_1"}, {"background": True}):
            fields: dict[str, Any] = {"model": front.chat, "input": QUESTION, **more}
            with pytest.raises(openai.BadRequestError) as refused:
                client.responses.create(**fields)
            assert refused.value.code == "unsupported"


# Embeddings and audio


@needs("embed")
def embeddings(front: Front) -> None:
    assert front.embed is not None
    with _client(front) as client:
        # Without a word the SDK asks for base64 and decodes it.
        packed = client.embeddings.create(model=front.embed, input=TEXTS)
        plain = client.embeddings.create(model=front.embed, input=TEXTS, encoding_format="float")
        one = client.embeddings.create(model=front.embed, input=TEXTS[0])
    assert [item.index for item in packed.data] == [0, 1]
    assert packed.usage.prompt_tokens > 0
    assert len(packed.data[0].embedding) == len(plain.data[0].embedding) > 1
    for ours, theirs in zip(packed.data, plain.data, strict=True):
        assert ours.embedding == pytest.approx(theirs.embedding, abs=1e-6)
    assert packed.data[0].embedding != packed.data[1].embedding
    assert one.data[0].embedding == pytest.approx(packed.data[0].embedding, abs=1e-5)


@needs("speech")
def a_transcription(front: Front) -> None:
    assert front.speech is not None
    with _client(front) as client:
        heard = client.audio.transcriptions.create(
            model=front.speech, file=("hello.wav", tone(), "audio/wav"), language="en", temperature=0
        )
    assert heard.text


@needs("speech")
def a_transcription_streamed(front: Front) -> None:
    assert front.speech is not None
    with _client(front) as client:
        stream = client.audio.transcriptions.create(
            model=front.speech, file=("hello.wav", tone(), "audio/wav"), stream=True
        )
        # vLLM sends chunks as for a chat, not OpenAI's transcript.text.delta: the SDK hands out what came.
        events = [event.to_dict() for event in stream]
    pieces = [cast("list[dict[str, Any]]", event["choices"])[0] for event in events]
    assert "".join(piece["delta"].get("content") or "" for piece in pieces)
    assert pieces[-1]["finish_reason"] == "stop"


@needs("speech")
def a_translation(front: Front) -> None:
    assert front.speech is not None
    with _client(front) as client, pytest.warns(DeprecationWarning, match="deprecated"):  # says OpenAI
        heard = client.audio.translations.create(model=front.speech, file=("hello.wav", tone(), "audio/wav"))
    assert heard.text


# Models


def models(front: Front) -> None:
    with _client(front) as client:
        listed = [model.id for model in client.models.list()]
        found = client.models.retrieve(front.chat)
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve("acme/other")
    assert front.chat in listed
    assert "/" in found.id  # the SDK sends it as %2F
    assert found.id == front.chat
    assert found.owned_by == "vllm"
    assert missing.value.code == "model_not_found"


# Raw answers


def the_raw_answer(front: Front) -> None:
    with _client(front) as client:
        raw = client.chat.completions.with_raw_response.create(model=front.chat, messages=ASK, max_tokens=4)
    assert raw.status_code == 200
    assert raw.headers["content-type"] == "application/json"
    assert raw.headers["x-request-id"] == raw.parse()._request_id


def the_raw_stream(front: Front) -> None:
    with (
        _client(front) as client,
        client.chat.completions.with_streaming_response.create(
            model=front.chat, messages=ASK, max_tokens=4, stream=True
        ) as raw,
    ):
        assert raw.headers["content-type"].startswith("text/event-stream")
        assert raw.headers["x-request-id"]
        lines = [line for line in raw.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


# Leaving


def a_stream_that_is_closed_frees_the_pod(front: Front) -> None:
    with _client(front) as client:
        stream = client.chat.completions.create(
            model=front.chat, messages=ASK, max_tokens=ENDLESS_TOKENS, stream=True, extra_body=ENDLESS
        )
        for number, _ in enumerate(stream):
            if number == 2:
                break
        assert front.open_requests() == 1
        stream.close()
        front.wait_until_idle()


def a_call_that_times_out_frees_the_pod(front: Front) -> None:
    with _client(front, timeout=0.5) as client, pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model=front.chat, messages=ASK, max_tokens=ENDLESS_TOKENS, extra_body=ENDLESS)
    front.wait_until_idle()


# Errors, each as its class


def a_wrong_key(front: Front) -> None:
    with OpenAI(base_url=front.base_url, api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.models.list()
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model=front.chat, messages=ASK, stream=True)
    assert refused.value.code == "invalid_api_key"
    assert refused.value.type == "authentication_error"
    assert refused.value.request_id


def a_model_that_is_not_there(front: Front) -> None:
    with _client(front) as client:
        for stream in (False, True):
            with pytest.raises(openai.NotFoundError) as refused:
                client.chat.completions.create(model="no-such-model", messages=ASK, stream=stream)
            assert refused.value.code == "model_not_found"
            assert refused.value.param == "model"


def a_route_that_is_not_there(front: Front) -> None:
    with _client(front) as client, pytest.raises(openai.NotFoundError) as refused:
        client.audio.speech.create(model=front.chat, voice="alloy", input="hello")
    assert refused.value.code == "not_found"


def a_model_that_cannot_embed(front: Front) -> None:
    with _client(front) as client, pytest.raises(openai.NotFoundError) as refused:
        client.embeddings.create(model=front.chat, input=TEXTS)
    assert refused.value.code == "not_found"


def a_prompt_that_is_too_long(front: Front) -> None:
    with _client(front) as client:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="maximum context length") as refused:
                client.chat.completions.create(model=front.chat, messages=TOO_LONG_ASK, stream=stream)
            assert refused.value.param == "input_tokens"


def a_field_of_the_wrong_type(front: Front) -> None:
    with _client(front) as client, pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=front.chat, messages=ASK, temperature=cast("float", "hot"))


def a_field_that_this_key_may_not_use(front: Front) -> None:
    with _client(front) as client, pytest.raises(openai.PermissionDeniedError) as refused:
        client.chat.completions.create(model=front.chat, messages=ASK, extra_body={"cache_salt": "x"})
    assert refused.value.code == "field_not_allowed"


def a_body_that_is_too_large(front: Front) -> None:
    # 413 has no class of its own in this SDK, and it does not send such a body again.
    with _client(front, max_retries=2) as client, pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(
            model=front.chat, messages=[{"role": "user", "content": "x" * BIG_BYTES}], max_tokens=1
        )
    assert refused.value.status_code == 413
    assert refused.value.code == "body_too_large"
