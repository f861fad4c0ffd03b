"""`/v1/messages` where captures do not reach: conversions, blocks of every kind, faults in its own events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loadtest.simulator import Fault, FaultKind, PodSettings, SimulatedPod
from loadtest.simulator.bodies import Identity
from loadtest.simulator.connection import ReceivedRequest
from loadtest.simulator.messages import Messages, anthropic, read_messages
from loadtest.simulator.refusals import not_found, unauthorized
from tests.unit.loadtest.talking import Heard, ask, post, talk_to

PATH = "/v1/messages"
SETTINGS = PodSettings(model="m", auto_tool_choice=True)
TOOL = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}


def body(**more: object) -> dict[str, object]:
    return {"model": "m", "max_tokens": 6, "messages": [{"role": "user", "content": "Say hi."}], **more}


def request(given: dict[str, object]) -> ReceivedRequest:
    headers = ((b"content-type", b"application/json"),)
    return ReceivedRequest(
        method="POST", target=PATH.encode(), headers=headers, body=json.dumps(given).encode(), connection=1
    )


def prompt_key(**more: object) -> bytes:
    return read_messages(request(body(**more)), SETTINGS)[0].prompts[0].key


def names(heard: Heard) -> list[str]:
    """Of the whole events, in order."""
    return [chunk.split(b"\n")[0].removeprefix(b"event: ").decode() for chunk in heard.chunks]


def datas(heard: Heard) -> list[dict[str, Any]]:
    return [json.loads(chunk.split(b"\ndata: ")[1]) for chunk in heard.chunks]


async def stream(fault: str | None = None, **more: object) -> Heard:
    async with SimulatedPod(SETTINGS) as pod:
        if fault is not None:
            pod.set_fault(fault)
        return await ask(pod, post(body(stream=True, **more), PATH))


def test_a_text_is_the_same_prompt_as_a_string_or_as_a_block() -> None:
    as_block = [{"role": "user", "content": [{"type": "text", "text": "Say hi."}]}]

    assert prompt_key() == prompt_key(messages=as_block)


def test_the_system_prompt_is_part_of_the_prompt_as_a_string_or_as_blocks() -> None:
    blocks = [{"type": "text", "text": "Be "}, {"type": "text", "text": "short."}]

    assert prompt_key(system="Be short.") == prompt_key(system=blocks) != prompt_key()


def test_the_billing_line_of_claude_code_does_not_spoil_the_prefix_cache() -> None:
    blocks = [{"type": "text", "text": "x-anthropic-billing-header: 1"}, {"type": "text", "text": "Be short."}]

    assert prompt_key(system=blocks) == prompt_key(system="Be short.")


def test_a_message_is_answered_as_the_chat_it_stands_for() -> None:
    wanted, _ = read_messages(request(body(stop_sequences=["x"], stream=True)), SETTINGS)

    assert wanted.max_tokens == 6
    assert wanted.stop == ("x",)
    assert wanted.include_usage
    assert wanted.continuous_usage


@pytest.mark.parametrize("reply", [not_found(), unauthorized()])
def test_what_is_no_openai_error_keeps_its_shape(reply: Any) -> None:
    assert anthropic(reply) == reply


async def test_a_stream_is_one_block_of_text_between_start_and_stop() -> None:
    heard = await stream()

    assert names(heard) == [
        *("message_start", "content_block_start"),
        *["content_block_delta"] * 6,
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert datas(heard)[-2]["usage"]["output_tokens"] == 6


async def test_a_stream_says_what_the_whole_answer_says() -> None:
    heard = await stream()
    async with SimulatedPod(SETTINGS) as pod:
        whole = await ask(pod, post(body(), PATH))
    streamed = "".join(data["delta"]["text"] for data in datas(heard) if data["type"] == "content_block_delta")

    assert whole.json["content"] == [{"type": "text", "text": streamed}]
    assert whole.json["stop_reason"] == "max_tokens"


async def test_tokens_are_counted_without_an_answer() -> None:
    async with SimulatedPod(SETTINGS) as pod:
        counted = await ask(pod, post({"model": "m", "messages": body()["messages"]}, f"{PATH}/count_tokens"))
        asked = await ask(pod, post(body(), PATH))
        served = pod.served

    usage = asked.json["usage"]
    assert isinstance(usage, dict)
    assert counted.json["input_tokens"] == usage["input_tokens"]
    assert served == 1


async def test_cached_tokens_are_told_beside_the_input_s() -> None:
    settings = PodSettings(model="m", prompt_tokens_details=True)
    long = body(messages=[{"role": "user", "content": "word " * 100}])
    async with SimulatedPod(settings) as pod:
        await ask(pod, post(long, PATH))
        again = (await ask(pod, post(long, PATH))).json["usage"]

    assert isinstance(again, dict)
    assert again["cache_read_input_tokens"] > 100
    assert again["input_tokens"] + again["cache_read_input_tokens"] + again["cache_creation_input_tokens"] < 150


def told(*events: dict[str, object] | bytes) -> list[dict[str, Any]]:
    """What a dialect makes of a chat's events, as data."""
    dialect = Messages()
    dialect.begin(Identity("chatcmpl-1", 0, "m"))
    lines = []
    for event in events:
        payload = event if isinstance(event, bytes) else json.dumps(event).encode()
        lines += dialect.told(b"data: %b\n\n" % payload, lambda: (1, 1, 0, 0))
    return [json.loads(line.split(b"\ndata: ")[1]) for line in lines]


def delta(finish: str | None = None, **fields: object) -> dict[str, object]:
    return {"choices": [{"delta": fields, "finish_reason": finish}], "usage": {"prompt_tokens": 3}}


def test_a_tool_s_call_is_a_block_whose_input_comes_in_pieces() -> None:
    function = {"name": "get_weather"}
    events = told(
        delta(role="assistant", content=""),
        delta(tool_calls=[{"index": 0, "id": "t1", "type": "function", "function": function}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"city":'}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '"Rome"}'}}]),
        delta("tool_calls", content=""),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
        b"[DONE]",
    )

    assert [event["type"] for event in events] == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert events[1]["content_block"] == {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {}}
    assert events[3]["delta"] == {"type": "input_json_delta", "partial_json": '"Rome"}'}
    assert events[5]["delta"]["stop_reason"] == "tool_use"


def test_a_call_cut_at_the_limit_is_no_call_to_be_run() -> None:
    events = told(
        delta(tool_calls=[{"index": 0, "id": "t1", "function": {"name": "f", "arguments": '{"ci'}}]),
        delta("length", content=""),
        {"choices": [], "usage": {}},
    )

    assert events[-1]["delta"]["stop_reason"] == "max_tokens"


def test_thinking_is_a_block_of_its_own_signed_before_it_ends() -> None:
    events = told(delta(reasoning="Hm."), delta("stop", content="Hi."), {"choices": [], "usage": {}}, b"[DONE]")

    assert [event.get("delta", event.get("content_block", {})).get("type") for event in events[1:7]] == [
        *("thinking", "thinking_delta", "signature_delta", None, "text", "text_delta")
    ]
    assert [event["index"] for event in events[1:8]] == [0, 0, 0, 0, 1, 1, 1]
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_two_calls_are_two_blocks() -> None:
    one = {"index": 0, "id": "t1", "function": {"name": "f", "arguments": "{}"}}
    two = {"index": 1, "id": "t2", "function": {"name": "g", "arguments": "{}"}}
    events = told(delta(tool_calls=[one]), delta(tool_calls=[two]), delta("tool_calls"), {"choices": [], "usage": {}})

    assert [event["index"] for event in events if "index" in event] == [0, 0, 0, 1, 1, 1]


def test_after_an_error_nothing_more_is_said() -> None:
    error: dict[str, object] = {
        "error": {"message": "it broke", "type": "InternalServerError", "param": None, "code": 500}
    }
    events = told(delta(content="Hi"), error, b"[DONE]")

    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "error",
    ]
    assert events[-1]["error"]["type"] == "internal_error"


def test_a_whole_answer_holds_thinking_text_and_calls_in_this_order() -> None:
    dialect = Messages()
    dialect.begin(Identity("chatcmpl-1", 0, "m"))
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    message = {"content": "Hi.", "reasoning": "Hm.", "tool_calls": [call]}
    chat = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": {"prompt_tokens": 3}}
    whole = json.loads(dialect.whole(json.dumps(chat).encode(), lambda: (3, 1, 0, 0)))

    assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use"]
    assert whole["content"][2]["input"] == {"a": 1}
    assert whole["stop_reason"] == "tool_use"
    assert "stop_sequence" not in whole


async def test_after_counts_anthropic_s_events() -> None:
    heard = await stream("cut:3")

    assert names(heard) == ["message_start", "content_block_start", "content_block_delta"]
    assert not heard.is_whole


async def test_an_error_event_ends_a_stream_without_message_stop() -> None:
    heard = await stream("error_event:4")

    assert names(heard)[-1] == "error"
    assert "message_stop" not in names(heard)
    assert heard.is_whole


async def test_no_done_leaves_message_stop_out() -> None:
    heard = await stream("no_done")

    assert names(heard)[-1] == "message_delta"
    assert heard.is_whole


async def test_no_finish_gives_no_stop_reason() -> None:
    heard = await stream("no_finish")

    assert datas(heard)[-2]["delta"]["stop_reason"] is None


async def test_no_finish_after_some_events_stops_at_once() -> None:
    assert names(await stream("no_finish:3"))[3:] == ["message_stop"]


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [("error_event", 500, "InternalServerError"), ("status:503", 503, "Service Unavailable")],
)
async def test_a_fault_without_a_stream_is_told_in_anthropic_s_shape(fault: str, status: int, kind: str) -> None:
    async with SimulatedPod(SETTINGS) as pod:
        pod.set_fault(fault)
        heard = await ask(pod, post(body(), PATH))

    assert heard.status == status
    assert heard.json["type"] == "error"
    error = heard.json["error"]
    assert isinstance(error, dict)
    assert error["type"] == kind


async def test_a_fault_s_own_body_goes_out_as_it_is() -> None:
    async with SimulatedPod(SETTINGS) as pod:
        pod.set_fault(Fault(FaultKind.STATUS, status=502, body="bad gateway"))
        heard = await ask(pod, post(body(), PATH))

    assert heard.body == b"bad gateway"


async def test_a_fault_in_the_body_strikes_this_one_message() -> None:
    async with SimulatedPod(SETTINGS) as pod:
        struck = await ask(pod, post(body(sim_fault={"kind": "status", "status": 500}), PATH))
        spared = await ask(pod, post(body(), PATH))

    assert (struck.status, spared.status) == (500, 200)


async def test_a_client_that_leaves_aborts_its_message() -> None:
    async with SimulatedPod(SETTINGS) as pod:
        pod.pause()
        async with talk_to(pod) as talk:
            talk.send(post(body(stream=True), PATH))
            await talk.hear_until(b"\r\n\r\n")
        await pod.until(lambda p: p.aborts == 1)

        assert pod.in_flight == 0
