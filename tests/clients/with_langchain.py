"""langchain-openai: the classes an app of theirs is built from."""

from dataclasses import replace
from typing import Any, Final

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from tests.clients.front import Front, needs
from tests.clients.questions import QUESTION, TEXTS, WEATHER_QUESTION, Paint, Weather

ASK: Final = [SystemMessage("Be brief."), HumanMessage(QUESTION)]


def _chat(front: Front, **more: Any) -> ChatOpenAI:
    settings: dict[str, Any] = {"max_completion_tokens": 60, "temperature": 0, "max_retries": 0, "timeout": 120, **more}
    return ChatOpenAI(model=front.chat, base_url=front.base_url, api_key=SecretStr(front.key), **settings)


def invoke(front: Front) -> None:
    answer = _chat(front, max_completion_tokens=8).invoke(ASK)
    assert answer.text
    assert answer.usage_metadata is not None
    assert 0 < answer.usage_metadata["output_tokens"] <= 8
    assert answer.response_metadata["finish_reason"] in {"length", "stop"}


def stream(front: Front) -> None:
    pieces = list(_chat(front, max_completion_tokens=8, stream_usage=True).stream(ASK))
    assert "".join(piece.text for piece in pieces)
    counts = [piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata]
    assert sum(counts) > 0


async def asynchronously(front: Front) -> None:
    chat = _chat(front, max_completion_tokens=8)
    assert (await chat.ainvoke(ASK)).text
    assert "".join([piece.text async for piece in chat.astream(ASK)])


def a_batch(front: Front) -> None:
    answers = _chat(front, max_completion_tokens=8).batch([ASK, ASK, ASK])
    assert all(answer.text for answer in answers)


def bound_tools_and_the_turn_after_them(front: Front) -> None:
    chat = _chat(front)
    turns: list[Any] = [HumanMessage(WEATHER_QUESTION)]
    first = chat.bind_tools([Weather], tool_choice="required", strict=True).invoke(turns)
    assert isinstance(first, AIMessage)
    assert [call["name"] for call in first.tool_calls] == ["Weather"]
    Weather.model_validate(first.tool_calls[0]["args"])
    turns += [first, ToolMessage("18 degrees, sunny", tool_call_id=first.tool_calls[0]["id"])]
    second = chat.bind_tools([Weather], tool_choice="none").invoke(turns)
    assert second.text


def structured_output(front: Front) -> None:
    found = _chat(front).with_structured_output(Paint, method="json_schema").invoke(ASK)
    assert isinstance(found, Paint)


def structured_output_by_a_tool(front: Front) -> None:
    found = _chat(front).with_structured_output(Paint, method="function_calling", strict=True).invoke(ASK)
    assert isinstance(found, Paint)


def by_the_responses_api(front: Front) -> None:
    chat = _chat(front, use_responses_api=True, max_completion_tokens=24)
    assert chat.invoke(ASK).text
    assert "".join(piece.text for piece in chat.stream(ASK))


@needs("embed")
def embeddings(front: Front) -> None:
    assert front.embed is not None
    # By default it counts tokens with tiktoken, whose tables it downloads; and sends ids of another model's tokens.
    made = OpenAIEmbeddings(
        model=front.embed,
        base_url=front.base_url,
        api_key=SecretStr(front.key),
        check_embedding_ctx_length=False,
        max_retries=0,
    )
    vectors = made.embed_documents(TEXTS)
    assert len(vectors) == len(TEXTS)
    assert len(vectors[0]) == len(made.embed_query(QUESTION)) > 1


def errors_are_openais(front: Front) -> None:
    with pytest.raises(openai.NotFoundError):
        _chat(replace(front, chat="no-such-model")).invoke(ASK)
    with pytest.raises(openai.AuthenticationError):
        _chat(replace(front, key="sk-wrong")).invoke(ASK)
