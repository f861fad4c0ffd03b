"""Answers that are more than words, as a client puts them together again."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.simulator import Fault, FaultKind, PodSettings, SimulatedPod
from loadtest.simulator.composing import ComposedAnswer, Part, compose, cut_off
from loadtest.simulator.wishes import CallChoice, Structure, StructureKind, Tool, Wishes
from tests.unit.loadtest.talking import Heard, ask, chat, post

M = PodSettings(model="m", auto_tool_choice=True)
THINKS = replace(M, reasoning_parser="deepseek_r1")
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
TIME = {"type": "function", "function": {"name": "time", "parameters": CITY}}
COLOURS = {"type": "object", "properties": {"colours": {"type": "array", "items": {"enum": ["red", "blue"]}}}}


def composed(wishes: Wishes, *, max_tokens: int = 400, calls: int = 1, stop: tuple[str, ...] = ()) -> ComposedAnswer:
    return compose(
        wishes,
        seed=0,
        prompt_key=b"prompt",
        choice=0,
        max_tokens=max_tokens,
        natural_tokens=(5, 30),
        stop=stop,
        parses=True,
        calls_wanted=calls,
    )


async def ask_chat(settings: PodSettings = M, **more: Any) -> Heard:
    async with SimulatedPod(settings) as pod:
        return await ask(pod, post(chat(**more)))


def whole_choice(heard: Heard) -> dict[str, Any]:
    choices: Any = heard.json["choices"]
    assert len(choices) == 1
    return dict(choices[0])


def put_together(heard: Heard) -> dict[str, Any]:
    """The choice that a stream's deltas add up to."""
    choice: dict[str, Any] = {"content": "", "reasoning": "", "calls": {}}
    for event in heard.events:
        for told in event["choices"]:  # type: ignore[attr-defined]  # a list, as the API has it
            delta = told["delta"]
            choice["content"] += delta.get("content") or ""
            choice["reasoning"] += delta.get("reasoning") or ""
            for call in delta.get("tool_calls", ()):
                one = choice["calls"].setdefault(call["index"], {"arguments": ""})
                one.update({key: call[key] for key in ("id", "type") if key in call})
                one.update({key: call["function"][key] for key in ("name",) if key in call["function"]})
                one["arguments"] += call["function"].get("arguments", "")
            choice["finish_reason"] = told["finish_reason"]
    return choice


WISHES = st.builds(
    Wishes,
    tools=st.sampled_from([(), (Tool("weather", CITY),), (Tool("weather", CITY), Tool("time", None))]),
    call_choice=st.sampled_from(list(CallChoice)),
    structure=st.sampled_from([None, Structure(StructureKind.JSON, COLOURS), Structure(StructureKind.CHOICE, ["a"])]),
    reasons=st.booleans(),
    parses_reasoning=st.just(True),
    hides_reasoning=st.booleans(),
)


@given(WISHES, st.integers(1, 90), st.integers(1, 3), st.sampled_from([(), ("the",), (".", "of")]))
def test_a_stream_adds_up_to_the_whole_answer(wishes: Wishes, limit: int, calls: int, stop: tuple[str, ...]) -> None:
    answer = composed(wishes, max_tokens=limit, calls=calls, stop=stop)
    deltas = [json.loads(token.delta) for token in answer.tokens if token.delta is not None]
    told_calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    said = "".join(delta.get("content") or "" for delta in deltas)
    thought = "".join(delta.get("reasoning") or "" for delta in deltas)

    assert 1 <= len(answer.tokens) == len(answer.pieces) <= limit
    assert (answer.finish_reason == "length") <= (len(answer.tokens) == limit)
    assert thought == (answer.message.reasoning or "")
    if not wishes.tools:
        assert said == (answer.message.content or "")
    for index, text in enumerate(answer.message.calls):
        whole = json.loads(text)
        pieces = [call for call in told_calls if call["index"] == index]
        assert [piece["id"] for piece in pieces if "id" in piece] == [whole["id"]]
        assert "".join(piece["function"].get("arguments", "") for piece in pieces) == whole["function"]["arguments"]
    assert answer.reasoning_tokens(limit) == sum(token.part is Part.REASONING for token in answer.tokens)


def test_a_shorter_limit_only_cuts() -> None:
    wishes = Wishes(tools=(Tool("weather", CITY),), reasons=True, parses_reasoning=True)
    whole = composed(wishes)

    for limit in range(1, len(whole.tokens)):
        cut = composed(wishes, max_tokens=limit)
        assert cut.tokens == whole.tokens[:limit]
        assert (cut.finish_reason, cut.told_as) == ("length", None)


def test_what_the_engine_cuts_off_is_what_was_said_so_far() -> None:
    answer = cut_off(composed(Wishes(reasons=True, parses_reasoning=True)), 3)

    assert isinstance(answer, ComposedAnswer)
    assert (len(answer.pieces), answer.finish_reason) == (3, "abort")
    assert answer.message.content is None
    assert answer.message.reasoning == "".join(token.text for token in answer.tokens[1:])


async def test_a_tool_is_called_when_the_user_spoke_last() -> None:
    choice = whole_choice(await ask_chat(tools=[WEATHER]))
    (call,) = choice["message"]["tool_calls"]

    assert choice["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "weather"
    assert set(json.loads(call["function"]["arguments"])) == {"city"}


async def test_after_a_result_and_without_a_choice_there_are_words() -> None:
    result = [{"role": "user", "content": "Hi"}, {"role": "tool", "tool_call_id": "x", "content": "Rain"}]
    for more in ({"messages": result}, {"tool_choice": "none"}):
        choice = whole_choice(await ask_chat(tools=[WEATHER], max_tokens=5, **more))
        assert choice["message"]["content"]
        assert "tool_calls" not in choice["message"]


async def test_a_tool_that_must_be_called_is_even_after_a_result() -> None:
    result = [{"role": "tool", "tool_call_id": "x", "content": "Rain"}]
    named = {"type": "function", "function": {"name": "time"}}
    for choice, finish in (("required", "tool_calls"), (named, "stop")):
        heard = await ask_chat(messages=result, tools=[WEATHER, TIME], tool_choice=choice, stream=True)
        told = put_together(heard)
        assert told["finish_reason"] == finish
        assert told["calls"][0]["name"] == "time" or choice == "required"
        assert set(json.loads(told["calls"][0]["arguments"])) == {"city"}


async def test_several_calls_are_made_where_the_request_lets_them() -> None:
    settings = replace(M, tool_calls=2)
    together = put_together(await ask_chat(settings, tools=[WEATHER, TIME], stream=True))
    alone = put_together(await ask_chat(settings, tools=[WEATHER, TIME], stream=True, parallel_tool_calls=False))

    assert sorted(call["name"] for call in together["calls"].values()) == ["time", "weather"]
    assert len({call["id"] for call in together["calls"].values()}) == 2
    assert len(alone["calls"]) == 1


async def test_the_turn_after_a_call_finds_it_in_the_cache() -> None:
    settings = replace(M, prompt_tokens_details=True, block_size_tokens=4)
    first: dict[str, Any] = {"role": "user", "content": "What is the weather in Paris?"}
    async with SimulatedPod(settings) as pod:
        said = whole_choice(await ask(pod, post(chat(messages=[first], tools=[WEATHER]))))["message"]
        turn = [first, {"role": "assistant", "tool_calls": said["tool_calls"]}, {"role": "tool", "content": "Rain"}]
        second = await ask(pod, post(chat(messages=turn, tools=[WEATHER], max_tokens=1)))
    usage: Any = second.json["usage"]

    # All but the end, which is new: the tool's result and the marks around it.
    assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] < 24


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "asked",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": COLOURS}}},
        {"structured_outputs": {"json": COLOURS}},
        {"structured_outputs": {"json": json.dumps(COLOURS)}},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True}},
    ],
)
async def test_json_that_is_asked_for_is_json(asked: dict[str, Any], stream: bool) -> None:
    heard = await ask_chat(stream=stream, **asked)
    text = put_together(heard)["content"] if stream else whole_choice(heard)["message"]["content"]

    assert isinstance(json.loads(text), dict)
    assert not stream or len(heard.events) > 4


async def test_a_choice_and_a_pattern_are_kept_to() -> None:
    chosen = whole_choice(await ask_chat(structured_outputs={"choice": ["red", "blue"]}))
    matched = whole_choice(await ask_chat(structured_outputs={"regex": r"\d{3}-x"}))

    assert chosen["message"]["content"] in ("red", "blue")
    assert matched["message"]["content"][3:] == "-x"


async def test_plain_text_asked_for_by_name_is_plain() -> None:
    plain, named = await ask_chat(max_tokens=9), await ask_chat(max_tokens=9, response_format={"type": "text"})

    assert whole_choice(named) == whole_choice(plain)


async def test_probabilities_do_not_change_what_is_said() -> None:
    plain = put_together(await ask_chat(max_tokens=9, stream=True))
    told = await ask_chat(max_tokens=9, stream=True, logprobs=True, top_logprobs=3)
    entries = [event["choices"][0]["logprobs"]["content"] for event in told.events[1:]]  # type: ignore[index]

    assert put_together(told)["content"] == plain["content"]
    assert "".join(entry["token"] for (entry,) in entries) == plain["content"]
    for (entry,) in entries:
        likely = [each["logprob"] for each in entry["top_logprobs"]]
        assert likely == sorted(likely, reverse=True)
        assert len({each["token"] for each in entry["top_logprobs"]}) == 3
        assert bytes(entry["bytes"]).decode() == entry["token"]


async def test_a_completion_s_four_lists_are_of_one_length() -> None:
    body: dict[str, object] = {"model": "m", "prompt": "The sky is", "max_tokens": 5, "logprobs": 2, "echo": True}
    async with SimulatedPod(M) as pod:
        heard = await ask(pod, post(body, "/v1/completions"))
    choice = whole_choice(heard)
    lists = choice["logprobs"]

    assert choice["text"].startswith("The sky is")
    assert "".join(lists["tokens"]) == choice["text"]
    assert len({len(each) for each in lists.values()}) == 1
    for offset, token in zip(lists["text_offset"], lists["tokens"], strict=True):
        assert choice["text"][offset:].startswith(token)


async def test_a_prompt_s_token_ids_are_those_of_tokenize_and_a_prompt_again() -> None:
    body: dict[str, object] = {"model": "m", "prompt": "The sky is blue", "max_tokens": 4, "return_token_ids": True}
    async with SimulatedPod(M) as pod:
        first = whole_choice(await ask(pod, post(body, "/v1/completions")))
        tokens = (await ask(pod, post({"prompt": "The sky is blue"}, "/tokenize"))).json["tokens"]
        second = whole_choice(await ask(pod, post({**body, "prompt": tokens}, "/v1/completions")))

    assert first["prompt_token_ids"] == tokens == second["prompt_token_ids"]
    assert len(first["token_ids"]) == 4


async def test_reasoning_comes_first_and_is_counted() -> None:
    stream = await ask_chat(THINKS, max_tokens=60, stream=True, stream_options={"include_usage": True})
    whole = await ask_chat(THINKS, max_tokens=60)
    told, message = put_together(stream), whole_choice(whole)["message"]
    usage: Any = whole.json["usage"]

    assert (told["reasoning"], told["content"]) == (message["reasoning"], message["content"])
    assert usage["completion_tokens"] == 60
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < 60
    assert stream.events[-1]["usage"] == {key: value for key, value in usage.items() if value is not None}


@pytest.mark.parametrize("off", [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}])
async def test_a_model_told_not_to_think_does_not(off: dict[str, Any]) -> None:
    heard = await ask_chat(THINKS, max_tokens=8, **off)

    assert whole_choice(heard)["message"]["reasoning"] is None
    assert len(whole_choice(heard)["message"]["content"]) > 8


async def test_a_pod_without_a_parser_does_not_reason_and_a_completion_never() -> None:
    body: dict[str, object] = {"model": "m", "prompt": "Hi", "max_tokens": 6}
    async with SimulatedPod(THINKS) as pod:
        completion = whole_choice(await ask(pod, post(body, "/v1/completions")))

    assert whole_choice(await ask_chat(max_tokens=6))["message"]["reasoning"] is None
    assert "think" not in completion["text"]


async def test_faults_strike_composed_streams_too() -> None:
    settings = replace(THINKS, faults=(Fault(FaultKind.CUT, after=3),))
    heard = await ask_chat(settings, max_tokens=60, stream=True)

    assert len(heard.chunks) == 3
    assert not heard.is_whole


async def test_a_dripping_composed_stream_gets_its_tokens_outside_of_steps() -> None:
    settings = replace(THINKS, faults=(Fault(FaultKind.DRIP, seconds_per_token=0.0001),))
    async with SimulatedPod(settings) as pod:
        heard = await ask(pod, post(chat(max_tokens=30, stream=True)))
        steps = pod.state()["steps"]

    assert put_together(heard)["finish_reason"] == "length"
    assert steps == 1


async def test_a_pod_without_a_tool_parser_says_what_it_lacks() -> None:
    # Not captured; the words are from vLLM's source.
    named = {"type": "function", "function": {"name": "time"}}
    said = []
    for choice in ("required", named):
        heard = await ask_chat(replace(M, auto_tool_choice=False), tools=[TIME], tool_choice=choice)
        error: Any = heard.json["error"]
        said.append((heard.status, error["message"]))

    assert said == [
        (400, 'tool_choice="required" requires --tool-call-parser to be set'),
        (400, 'tool_choice=function "time" requires --tool-call-parser to be set'),
    ]
