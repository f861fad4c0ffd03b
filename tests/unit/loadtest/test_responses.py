"""`/v1/responses` where captures do not reach: what a request is read as, items of every kind, faults."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loadtest.simulator import PodSettings, SimulatedPod
from loadtest.simulator.asked import Refused
from loadtest.simulator.bodies import Identity
from loadtest.simulator.connection import ReceivedRequest
from loadtest.simulator.dialects import Dialect
from loadtest.simulator.responses import read_responses
from tests.unit.loadtest.talking import Heard, ask, get, post, talk_to

PATH = "/v1/responses"
SETTINGS = PodSettings(model="m", auto_tool_choice=True)
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}


def body(**more: object) -> dict[str, object]:
    return {"model": "m", "input": "Say hi.", "max_output_tokens": 6, **more}


def request(given: dict[str, object]) -> ReceivedRequest:
    headers = ((b"content-type", b"application/json"),)
    return ReceivedRequest(
        method="POST", target=PATH.encode(), headers=headers, body=json.dumps(given).encode(), connection=1
    )


def prompt_key(**more: object) -> bytes:
    return read_responses(request(body(**more)), SETTINGS)[0].prompts[0].key


def refused(**more: object) -> dict[str, Any]:
    with pytest.raises(Refused) as caught:
        read_responses(request(body(**more)), SETTINGS)
    error: dict[str, Any] = json.loads(caught.value.reply.body)["error"]
    return error


def names(heard: Heard) -> list[str]:
    """Of the whole events, in order, without what they have in common."""
    return [chunk.split(b"\n")[0].decode().removeprefix("event: ").removeprefix("response.") for chunk in heard.chunks]


def datas(heard: Heard) -> list[dict[str, Any]]:
    return [json.loads(chunk.split(b"\ndata: ")[1]) for chunk in heard.chunks]


async def stream(fault: str | None = None, **more: object) -> Heard:
    async with SimulatedPod(SETTINGS) as pod:
        if fault is not None:
            pod.set_fault(fault)
        return await ask(pod, post(body(stream=True, **more), PATH))


def test_an_input_is_the_same_prompt_as_text_as_a_message_and_in_parts() -> None:
    message = {"type": "message", "role": "user", "content": "Say hi."}
    parts = {"role": "user", "content": [{"type": "input_text", "text": "Say hi."}]}

    assert prompt_key() == prompt_key(input=[message]) == prompt_key(input=[parts])


def test_instructions_are_the_system_prompt() -> None:
    system = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Say hi."}]

    assert prompt_key(instructions="Be short.") == prompt_key(input=system) != prompt_key()


def test_calls_and_their_outputs_are_part_of_the_prompt() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "Sunny"}
    asked_for = {"role": "user", "content": "Weather?"}

    assert prompt_key(input=[asked_for, call, output]) != prompt_key(input=[asked_for])


def test_an_image_is_refused_as_in_a_chat() -> None:
    image = {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA"}]}

    assert refused(input=[image])["message"] == "m is not a multimodal model"


def test_background_without_a_store_is_refused_whether_or_not_it_asks_to_store() -> None:
    assert refused(background=True)["param"] == "background"
    assert refused(background=True, store=False)["type"] == "BadRequestError"


async def test_events_are_numbered_from_zero_without_a_gap() -> None:
    heard = await stream()

    assert [data["sequence_number"] for data in datas(heard)] == list(range(len(heard.chunks)))
    assert heard.is_whole


async def test_a_response_cut_at_its_limit_is_completed_as_incomplete() -> None:
    heard = await stream()
    last = datas(heard)[-1]

    assert last["type"] == "response.completed"
    assert last["response"]["status"] == "incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["usage"]["output_tokens"] == 6


async def test_a_stream_says_what_the_whole_answer_says() -> None:
    heard = await stream()
    async with SimulatedPod(SETTINGS) as pod:
        whole = (await ask(pod, post(body(), PATH))).json
    streamed = "".join(data["delta"] for data in datas(heard) if data["type"] == "response.output_text.delta")

    output: Any = whole["output"]
    assert output[0]["content"][0]["text"] == streamed
    last = datas(heard)[-1]["response"]
    assert {**last, "id": 0, "output": 0} == {**whole, "id": 0, "output": 0, "created_at": last["created_at"]}


async def test_cached_tokens_are_told_without_a_flag() -> None:
    long = body(input="word " * 100)
    async with SimulatedPod(SETTINGS) as pod:
        first: Any = (await ask(pod, post(long, PATH))).json["usage"]
        again: Any = (await ask(pod, post(long, PATH))).json["usage"]

    assert first["input_tokens_details"]["cached_tokens"] == 0
    assert first["input_tokens_details"]["cache_write_tokens"] == again["input_tokens_details"]["cached_tokens"] > 100


async def test_nothing_is_stored() -> None:
    async with SimulatedPod(SETTINGS) as pod:
        made: Any = (await ask(pod, post(body(store=True), PATH))).json["id"]
        got = await ask(pod, get(f"{PATH}/{made}"))
        cancelled = await ask(pod, post({}, f"{PATH}/{made}/cancel"))
        elsewhere = await ask(pod, get(f"{PATH}/{made}/input_items"))

    assert (got.status, cancelled.status) == (404, 404)
    assert f"Response with id '{made}' not found.".encode() in got.body
    assert elsewhere.json == {"detail": "Not Found"}


def dialect(**more: object) -> Dialect:
    made = read_responses(request(body(**more)), SETTINGS)[1]
    made.begin(Identity("resp_1", 0, "m"))
    return made


def told(*events: dict[str, object], **more: object) -> list[dict[str, Any]]:
    """What a dialect makes of a chat's events, as data, without the first two."""
    made = dialect(**more)
    lines = []
    for event in events:
        lines += made.told(b"data: %b\n\n" % json.dumps(event).encode(), lambda: (3, 4, 0, 0))
    return [json.loads(line.split(b"\ndata: ")[1]) for line in lines]


def delta(finish: str | None = None, **fields: object) -> dict[str, object]:
    return {"choices": [{"delta": fields, "finish_reason": finish}]}


END: dict[str, object] = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}


def test_a_call_is_an_item_whose_arguments_come_in_pieces() -> None:
    events = told(
        delta(role="assistant", content=""),
        delta(tool_calls=[{"index": 0, "id": "t1", "function": {"name": "f"}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a":'}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
        delta("tool_calls", content=""),
        END,
        tools=[TOOL],
    )

    assert [event["type"].removeprefix("response.") for event in events] == [
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    assert events[3]["arguments"] == '{"a":1}'
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    assert events[-1]["response"]["status"] == "completed"


def test_reasoning_and_text_are_two_items() -> None:
    events = told(delta(reasoning="Hm."), delta("stop", content="Hi."), END)
    output = events[-1]["response"]["output"]

    assert [item["type"] for item in output] == ["reasoning", "message"]
    assert output[0]["content"] == [{"text": "Hm.", "type": "reasoning_text"}]
    assert {event["output_index"] for event in events if "output_text" in event["type"]} == {1}


def test_a_whole_answer_holds_the_same_items() -> None:
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"content": "Hi.", "reasoning": "Hm.", "tool_calls": [call]}
    chat = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    whole = json.loads(dialect(tools=[TOOL]).whole(json.dumps(chat).encode(), lambda: (3, 4, 0, 0)))

    assert [item["type"] for item in whole["output"]] == ["reasoning", "message", "function_call"]
    assert len({item["id"] for item in whole["output"]}) == 3


def test_a_schema_asked_for_is_told_back_as_the_library_models_it() -> None:
    wanted = {"type": "json_schema", "name": "city", "schema": {"type": "object"}, "strict": True}
    first = json.loads(dialect(text={"format": wanted}).opening()[0].split(b"\ndata: ")[1])

    assert first["response"]["text"] == {"format": {**wanted, "description": None}, "verbosity": None}


async def test_after_counts_the_events_of_a_response() -> None:
    heard = await stream("cut:1")

    assert names(heard) == ["created"]
    assert not heard.is_whole


async def test_an_error_event_is_openai_s_and_the_last() -> None:
    heard = await stream("error_event:5")

    assert names(heard)[-1] == "error"
    # The event it took the place of had a number too.
    assert datas(heard)[-1]["sequence_number"] > datas(heard)[-2]["sequence_number"]
    assert heard.is_whole


async def test_no_done_leaves_completed_out() -> None:
    heard = await stream("no_done")

    assert names(heard)[-1] == "output_item.done"
    assert heard.is_whole


async def test_no_finish_leaves_the_response_in_progress() -> None:
    assert datas(await stream("no_finish"))[-1]["response"]["status"] == "in_progress"
    assert names(await stream("no_finish:4"))[4:] == ["completed"]


async def test_a_dead_engine_ends_the_connection_in_the_middle() -> None:
    heard = await stream("engine_death:6")

    assert len(heard.chunks) == 6
    assert not heard.is_whole


async def test_a_stalled_response_stays_silent_and_keeps_its_slot() -> None:
    async with SimulatedPod(SETTINGS) as pod, talk_to(pod) as talk:
        pod.set_fault("stall:5")
        talk.send(post(body(stream=True), PATH))
        await talk.hear_chunks(5)

        assert len(Heard(talk.heard).chunks) == 5
        assert pod.running == 1


async def test_a_reset_comes_as_a_reset() -> None:
    async with SimulatedPod(SETTINGS) as pod, talk_to(pod) as talk:
        pod.set_fault("reset:3")
        talk.send(post(body(stream=True), PATH))

        assert await talk.how_it_ends() == "reset"
