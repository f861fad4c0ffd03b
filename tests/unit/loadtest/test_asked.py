"""Bodies become requests, or vLLM's refusals; what the captures do not show."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.simulator import PodSettings
from loadtest.simulator.asked import Asked, Refused, read_chat, read_completion

M = PodSettings(model="m", max_model_len_tokens=1000)


def chat(**fields: object) -> Asked:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return read_chat(json.dumps(body).encode(), b"application/json", M)


def completion(**fields: object) -> Asked:
    return read_completion(json.dumps({"model": "m", **fields}).encode(), b"application/json", M)


def refusal(**fields: object) -> dict[str, object]:
    with pytest.raises(Refused) as caught:
        chat(**fields)
    error: dict[str, object] = json.loads(caught.value.reply.body)["error"]
    return error


@pytest.mark.parametrize("content_type", [b"application/json", b"application/json; charset=utf-8", b"Application/JSON"])
def test_json_may_be_said_in_several_ways(content_type: bytes) -> None:
    body = b'{"messages": [{"role": "user", "content": "hi"}]}'

    assert read_chat(body, content_type, M).model == "m"


@pytest.mark.parametrize("content_type", [None, b"", b"text/plain", b"application/x-www-form-urlencoded"])
def test_anything_else_is_refused_with_400(content_type: bytes | None) -> None:
    with pytest.raises(Refused) as caught:
        read_chat(b"{}", content_type, M)

    assert caught.value.reply.status == 400


def test_numbers_and_booleans_may_come_as_strings_as_pydantic_allows() -> None:
    asked = chat(max_tokens="24", stream="true", temperature="0.5")

    assert (asked.max_tokens, asked.stream) == (24, True)


def test_null_is_as_good_as_nothing() -> None:
    asked = chat(max_tokens=None, stream=None, stop=None, stream_options=None, n=None, sim_fault=None, tools=None)

    assert (asked.limited, asked.stream, asked.stop, asked.n, asked.fault) == (False, False, (), 1, None)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"max_tokens": "many"}, "int_parsing", "body.max_tokens"),
        ({"max_tokens": 1.5}, "int_from_float", "body.max_tokens"),
        ({"max_tokens": [1]}, "int_type", "body.max_tokens"),
        ({"stream": "perhaps"}, "bool_parsing", "body.stream"),
        ({"stream": []}, "bool_type", "body.stream"),
        ({"model": 5}, "string_type", "body.model"),
        ({"temperature": {}}, "float_type", "body.temperature"),
        ({"messages": [5]}, "value_error", "body"),
    ],
)
def test_wrong_types_are_refused_with_400_and_pydantic_s_codes(
    fields: dict[str, object], code: str, param: str
) -> None:
    error = refusal(**fields)

    assert (error["type"], error["code"], error["param"]) == ("Bad Request", 400, param)
    assert f"'type': '{code}'" in str(error["message"])


def test_several_wrong_fields_are_all_told() -> None:
    assert str(refusal(max_tokens="many", temperature="hot")["message"]).startswith("2 validation errors:\n")


WINDOW_TOO_SMALL = (
    "This model's maximum context length is 1000 tokens. However, you requested 1000 output tokens and your prompt "
    "contains at least 1 input tokens, for a total of at least 1001 tokens. Please reduce the length of the input "
    "prompt or the number of requested output tokens. (parameter=input_tokens, value=1)"
)


@pytest.mark.parametrize(
    ("fields", "says", "param"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", "max_tokens"),
        ({"n": 2, "temperature": 0}, "n must be 1 when using greedy sampling, got 2.", None),
        ({"max_tokens": 1000}, WINDOW_TOO_SMALL, "input_tokens"),
    ],
)
def test_sampling_parameters_out_of_range_are_refused(fields: dict[str, object], says: str, param: str | None) -> None:
    error = refusal(**fields)

    assert (error["type"], error["message"], error["param"]) == ("BadRequestError", says, param)


def test_tools_pass_if_a_choice_is_named_or_the_pod_allows_them() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]

    assert chat(tools=tools, tool_choice="none").model == "m"
    allowed = PodSettings(model="m", auto_tool_choice=True)
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": tools}
    assert read_chat(json.dumps(body).encode(), b"application/json", allowed).model == "m"


def test_tools_count_as_prompt() -> None:
    tools = [{"type": "function", "function": {"name": "f" * 400}}]

    assert chat(tools=tools, tool_choice="none").prompts[0].tokens > chat().prompts[0].tokens + 100


def test_an_adapter_is_a_model_of_its_own() -> None:
    with_adapter = PodSettings(model="m", lora_adapters=("tuned",))
    body = b'{"model": "tuned", "messages": [{"role": "user", "content": "hi"}]}'
    asked = read_chat(body, b"application/json", with_adapter)

    assert asked.model == "tuned"
    assert asked.prompts[0].chain == () or asked.prompts[0].chain != chat().prompts[0].chain


def test_more_sequences_than_the_simulator_makes_are_refused() -> None:
    assert "at most 256" in str(refusal(n=257)["message"])


@pytest.mark.parametrize("prompt", [None, "", []])
def test_a_completion_needs_a_prompt(prompt: object) -> None:
    with pytest.raises(Refused) as caught:
        completion(prompt=prompt)

    assert b"Either prompt or prompt_embeds must be provided and non-empty." in caught.value.reply.body


def test_one_prompt_too_long_among_several_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        completion(prompt=["short", "long " * 1000])

    assert b"maximum context length is 1000" in caught.value.reply.body


def test_a_completion_has_sixteen_tokens_unless_said_otherwise() -> None:
    assert completion(prompt="x").max_tokens == 16


def test_a_list_of_token_ids_is_one_prompt_and_a_list_of_lists_several() -> None:
    assert [prompt.tokens for prompt in completion(prompt=[1, 2, 3]).prompts] == [3]
    assert [prompt.tokens for prompt in completion(prompt=[[1, 2], [3]]).prompts] == [2, 1]


def status_of(read: Callable[[bytes, bytes, PodSettings], Asked], body: bytes) -> int:
    try:
        read(body, b"application/json", M)
    except Refused as refused:
        return refused.reply.status
    return 200


@pytest.mark.parametrize("body", [b"1" * 5000, b"[" * 100_000, b'{"n": 1e999}', b'{"n": 99999999999999999999}'])
def test_bodies_made_to_break_parsers_are_refused(body: bytes) -> None:
    assert status_of(read_chat, body) == 400


@given(st.binary(max_size=200))
def test_whatever_comes_is_answered_with_a_request_or_a_refusal(body: bytes) -> None:
    assert status_of(read_chat, body) in (200, 400, 404)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_fields = (
    "model",
    "messages",
    "stream",
    "stream_options",
    "n",
    "max_tokens",
    "temperature",
    "stop",
    "sim_fault",
    "prompt",
)


@given(st.dictionaries(st.sampled_from(_fields), _json))
def test_whatever_json_comes_is_answered_with_a_request_or_a_refusal(value: dict[str, object]) -> None:
    body = json.dumps(value).encode()
    for read in (read_chat, read_completion):
        assert status_of(read, body) in (200, 400, 404)
