"""The gateway before a real vLLM on a CPU: a client gets through it what it would get without it.

Each test asks vLLM directly, then the gateway, one after the other (what is batched together rounds
together), with temperature 0, or a seed where there must be chance. Run by `make test-vllm`.
"""

import http.client
import json
import re
import select
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import openai
import pytest

from tests.e2e.vllm.report import Report
from tests.e2e.vllm.server import MAX_MODEL_LEN, MODEL_NAME, Vllm
from tests.e2e.vllm.wire import (
    END,
    Answer,
    Body,
    Server,
    differences,
    events_in,
    ids_in,
    is_usage_chunk,
    normalised,
    untangled,
)

pytestmark = pytest.mark.vllm

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USAGE = {"include_usage": True}
ON_EACH = {"include_usage": True, "continuous_usage_stats": True}
CHANCE: Body = {"temperature": 1, "seed": 7}  # n=2 is refused at temperature 0
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "grün", "青"]}, "count": {"type": "integer"}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


def chat(prompt: str = "Name three colours.", **fields: Any) -> Body:
    messages = [{"role": "user", "content": prompt}]
    return {"model": MODEL_NAME, "messages": messages, "temperature": 0, "max_tokens": 16, **fields}


def completion(prompt: Any = "The three primary colours are", **fields: Any) -> Body:
    return {"model": MODEL_NAME, "prompt": prompt, "temperature": 0, "max_tokens": 16, **fields}


FINGERPRINT = re.compile(rb',"system_fingerprint":"vllm-[^"]*"')

ASKED: dict[str, tuple[str, Body]] = {
    "chat": (CHAT, chat()),
    "chat, one token": (CHAT, chat(max_tokens=1)),
    "chat, n=2": (CHAT, chat(n=2, **CHANCE)),
    "chat, logprobs": (CHAT, chat(logprobs=True, top_logprobs=3)),
    "chat, stop": (CHAT, chat("Count from 1 to 9.", stop=["4", "four"])),
    "chat, an unknown field": (CHAT, chat(no_such_field={"a": [1, None]})),
    "chat, beyond ASCII": (CHAT, chat("Repeat exactly: Grüße, 東京 🎉\u2028!", max_tokens=40)),
    "chat, a tool": (
        CHAT,
        chat("What is the weather in Paris?", tools=[TOOL], tool_choice="required", max_tokens=60),
    ),
    "chat, a schema": (
        CHAT,
        chat(
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "c", "strict": True, "schema": SCHEMA},
            }
        ),
    ),
    "chat, token ids": (CHAT, chat(return_token_ids=True)),
    "completion": (COMPLETIONS, completion()),
    "completion, n=2": (COMPLETIONS, completion(n=2, **CHANCE)),
    "completion, logprobs": (COMPLETIONS, completion(logprobs=2)),
    "completion, stop": (COMPLETIONS, completion(stop=",")),
    "completion, two prompts": (COMPLETIONS, completion(["One, two,", "Red, green and"])),
    "completion, token ids": (COMPLETIONS, completion([504, 260, 198])),
    "completion, echo": (COMPLETIONS, completion(echo=True)),
}
USAGE_ASKED: dict[str, Body] = {
    ", usage": {"stream_options": USAGE},
    ", usage on each": {"stream_options": ON_EACH},
    ", usage refused": {"stream_options": {"include_usage": False}},
    ", usage on each but refused": {"stream_options": {"include_usage": False, "continuous_usage_stats": True}},
    ", usage null": {"stream_options": None},
}
STREAMED: dict[str, tuple[str, Body]] = {
    name: (path, {**body, "stream": True}) for name, (path, body) in ASKED.items()
} | {
    f"{name}{how}": (ASKED[name][0], {**ASKED[name][1], "stream": True, **options})
    for name in ("chat", "completion")
    for how, options in USAGE_ASKED.items()
}
STREAMED["chat, n=2, usage on each"] = (CHAT, chat(n=2, **CHANCE, stream=True, stream_options=ON_EACH))

TOO_LONG = "word " * (MAX_MODEL_LEN + 10)
REFUSED: dict[str, tuple[str, Body]] = {
    "chat, too long": (CHAT, chat(TOO_LONG)),
    "chat, too long, streamed": (CHAT, chat(TOO_LONG, stream=True)),
    "completion, too long": (COMPLETIONS, completion(TOO_LONG)),
    "completion, too long, streamed": (COMPLETIONS, completion(TOO_LONG, stream=True)),
    "max_tokens beyond the context": (CHAT, chat(max_tokens=MAX_MODEL_LEN + 1)),
    "max_tokens beyond the context, streamed": (CHAT, chat(max_tokens=MAX_MODEL_LEN + 1, stream=True)),
    "temperature is a word": (CHAT, chat(temperature="hot")),
    "temperature is a word, streamed": (CHAT, chat(temperature="hot", stream=True)),
    "temperature below zero": (CHAT, chat(temperature=-1)),
    "messages are a string": (CHAT, {**chat(), "messages": "hi"}),
    "no messages": (CHAT, {**chat(), "messages": []}),
    "messages are missing": (CHAT, {"model": MODEL_NAME}),
    "a role is missing": (CHAT, {**chat(), "messages": [{"content": "hi"}]}),
    "prompt is a number": (COMPLETIONS, completion(7)),
    "n=2 without temperature": (CHAT, chat(n=2)),
    "a grammar that is none": (CHAT, chat(structured_outputs={"regex": "("})),
    "a tool that is not there": (CHAT, chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "x"}})),
    "stream_options without stream": (CHAT, chat(stream_options=USAGE)),
}


@pytest.fixture(scope="module")
def direct(vllm: Vllm) -> Server:
    server = Server(vllm.url)
    for name in ("chat", "chat, logprobs", "chat, a schema", "completion, logprobs"):
        assert server.ask(*ASKED[name]).status == 200  # the first of its kind takes seconds, logprobs 20
    return server


@pytest.fixture
def client(gateway: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0, timeout=120) as made:
        yield made


# Streams


@pytest.mark.parametrize("asked", STREAMED)
def test_a_stream_is_vllms_own_less_the_usage_nobody_asked_for(
    asked: str, direct: Server, gateway: Server, report: Report
) -> None:
    path, body = STREAMED[asked]
    through = gateway.ask(path, body)
    plain = direct.ask(path, as_the_gateway_asks(body))

    assert (through.status, plain.status) == (200, 200), through.body + plain.body
    assert through.headers["x-request-id"]
    assert through.content_type == plain.content_type
    expected = [event for event in events_in(plain.body) if asks_for_usage(body) or not is_usage_chunk(event)]
    assert expected[-1] == END
    assert_equal(expected, events_in(through.body), lambda: direct.ask(path, as_the_gateway_asks(body)))
    # One answer has one id: that ids are normalised must not hide it.
    assert len(ids_in(through.body)) == len(ids_in(plain.body)) == 1
    report.add(f"{asked}, streamed", f"{len(expected)} events", plain.seconds, through.seconds)


@pytest.mark.parametrize("asked", ["chat", "chat, n=2", "completion", "completion, n=2"])
def test_a_caller_who_asks_for_no_usage_cannot_tell_that_the_gateway_did(
    asked: str, direct: Server, gateway: Server
) -> None:
    """vLLM puts the fingerprint where a choice ends, or with usage asked on the usage chunk, and so it leaves."""
    path, body = STREAMED[asked]
    through = events_in(gateway.ask(path, body).body)
    plain = events_in(direct.ask(path, body).body)
    expected = [FINGERPRINT.sub(b"", event) for event in plain]
    assert expected != plain
    assert not any(is_usage_chunk(event) for event in plain)
    assert_equal(expected, through)


def as_the_gateway_asks(body: Body) -> Body:
    """It counts tokens by the usage chunk, so it asks for that one; on each event only for its caller."""
    if asks_for_usage(body):
        return body
    return {**body, "stream_options": USAGE}


def asks_for_usage(body: Body) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


# Answers that are not streamed


@pytest.mark.parametrize("asked", ASKED)
def test_an_answer_that_is_not_streamed_is_vllms_own(
    asked: str, direct: Server, gateway: Server, report: Report
) -> None:
    path, body = ASKED[asked]
    through, plain = gateway.ask(path, body), direct.ask(path, body)

    assert (through.status, plain.status) == (200, 200), through.body + plain.body
    assert through.headers["x-request-id"]
    assert through.content_type == plain.content_type
    assert through.headers["content-length"] == str(len(through.body))
    assert_equal([plain.body], [through.body], lambda: direct.ask(path, body))
    assert len(ids_in(through.body)) == len(ids_in(plain.body)) == 1
    report.add(asked, f"{len(plain.body)} bytes", plain.seconds, through.seconds)


@pytest.mark.parametrize("asked", REFUSED)
def test_vllms_refusal_passes_byte_for_byte(asked: str, direct: Server, gateway: Server, report: Report) -> None:
    path, body = REFUSED[asked]
    through, plain = gateway.ask(path, body), direct.ask(path, body)

    assert 400 <= plain.status < 500, plain
    assert (through.status, through.content_type) == (plain.status, plain.content_type), through.body
    if through.body != plain.body:
        pytest.fail(differences([plain.body], [through.body]), pytrace=False)
    assert through.headers["x-request-id"]
    report.add(f"{plain.status}: {asked}", f"{len(plain.body)} bytes", plain.seconds, through.seconds)


def assert_equal(
    expected: Sequence[bytes], got: Sequence[bytes], ask_vllm_again: Callable[[], Answer] | None = None
) -> None:
    """Fails with the bytes that differ, and with whether vLLM itself gives the same answer twice."""
    differ = differences(comparable(expected), comparable(got))
    if differ and ask_vllm_again is not None:
        again = normalised(ask_vllm_again().body)
        repeats = all(normalised(part) in again for part in expected)
        differ += f"\nasked again, vLLM {'repeats' if repeats else 'does NOT repeat'} itself"
    if differ:
        pytest.fail(differ, pytrace=False)


def comparable(parts: Sequence[bytes]) -> list[bytes]:
    return untangled([normalised(part) for part in parts])


# Clients that leave


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_client_that_leaves_in_mid_stream_frees_the_engine(
    path: str, vllm: Vllm, gateway: Server, report: Report
) -> None:
    with gateway.send(path, {**endless(path), "stream": True}) as client:
        received = b""
        while received.count(b"data: ") < 5:
            received += client.recv(65536)
        wait_until_it_runs(vllm)
    assert_freed(vllm, f"left in mid-stream: {path}", report)


def test_a_client_that_leaves_before_the_first_byte_frees_the_engine(
    vllm: Vllm, gateway: Server, report: Report
) -> None:
    prompt = "word " * (MAX_MODEL_LEN - 200)
    with gateway.send(CHAT, {**endless(CHAT, prompt), "max_tokens": 100, "stream": True}) as client:
        wait_until_it_runs(vllm)
        assert not select.select([client], [], [], 0)[0], "the first byte came before the client could leave"
    assert_freed(vllm, "left before the first byte", report)


def test_a_client_that_leaves_a_call_that_is_not_streamed_frees_the_engine(
    vllm: Vllm, gateway: Server, report: Report
) -> None:
    with gateway.send(CHAT, endless(CHAT)) as client:
        wait_until_it_runs(vllm)
        assert not select.select([client], [], [], 0)[0], "the answer came before the client could leave"
    assert_freed(vllm, "left a call that is not streamed", report)


def endless(path: str, prompt: str = "Tell a long story.") -> Body:
    """A minute's work: whatever ends within seconds was ended."""
    fields = {"max_tokens": MAX_MODEL_LEN - 100, "ignore_eos": True}
    return chat(prompt, **fields) if path == CHAT else completion(prompt, **fields)


def wait_until_it_runs(vllm: Vllm) -> None:
    deadline = time.monotonic() + 10
    while (busy := vllm.busy()).running != 1:
        assert time.monotonic() < deadline, f"the request did not reach the engine: {busy}"
        time.sleep(0.02)
    assert busy.load == 1, busy


def assert_freed(vllm: Vllm, how: str, report: Report) -> None:
    """vLLM's gauges move when its engine steps, so they lag by a step."""
    left_at = time.monotonic()
    while not (busy := vllm.busy()).idle:
        assert time.monotonic() - left_at < 2, f"two seconds after the client left, vLLM still works: {busy}"
        time.sleep(0.02)
    report.add(how, "engine idle", None, time.monotonic() - left_at)


# What the gateway knows of the pod


def test_the_gateway_sees_what_vllm_carries(vllm: Vllm, gateway: Server, report: Report) -> None:
    with gateway.send(CHAT, {**endless(CHAT), "stream": True}) as client:
        received = b""
        while received.count(b"data: ") < 2:
            received += client.recv(65536)
        began = time.monotonic()
        # /metrics every 5 s; /load is believed once it has shown our own request, and read often from then on.
        seen = until_told(gateway, lambda load: load["running"] == 1 and load["in_flight"] == 1)
        assert (seen["waiting"], 0 < seen["kv_usage"] <= 1) == (0, True), seen
        report.add("the load of a pod", "seen", None, time.monotonic() - began)
    until_told(gateway, lambda load: load["running"] == 0 and load["in_flight"] == 0)


def until_told(gateway: Server, holds: Callable[[dict[str, Any]], bool], seconds: float = 20) -> dict[str, Any]:
    """The load of the one pod, as the gateway tells it."""
    deadline = time.monotonic() + seconds
    while True:
        with urllib.request.urlopen(f"{gateway.ops_url}/status.json", timeout=5) as answer:
            load: dict[str, Any] = json.load(answer)["pods"][0]["load"]
        if holds(load):
            return load
        assert time.monotonic() < deadline, load
        time.sleep(0.05)


# The OpenAI SDK


def test_openai_chat_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**sdk(chat("What is the capital of France?")))
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert answer._request_id


def test_openai_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(**sdk(chat("What is the capital of France?")), stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "The capital of France is Paris."
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_openai_streams_with_usage(client: openai.OpenAI) -> None:
    asked = sdk(chat("What is the capital of France?"))
    *_, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens > 0


def test_openais_stream_helper_ends_with_the_whole_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**sdk(chat("What is the capital of France?"))) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == "The capital of France is Paris."


def test_openai_completions_stream(client: openai.OpenAI) -> None:
    asked = sdk(completion("One, two, three, four,"))
    whole = client.completions.create(**asked).choices[0].text
    streamed = client.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole


def test_openai_lists_and_retrieves_the_model(client: openai.OpenAI) -> None:
    assert MODEL_NAME in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL_NAME).id == MODEL_NAME  # vLLM itself answers this with 404
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


@pytest.mark.parametrize("stream", [False, True])
def test_openai_raises_bad_request_for_a_prompt_that_is_too_long(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048 tokens") as raised:
        client.chat.completions.create(**sdk(chat(TOO_LONG)), stream=stream)
    assert raised.value.param == "input_tokens"


@pytest.mark.parametrize("stream", [False, True])
def test_openai_raises_not_found_for_an_unknown_model(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(**{**sdk(chat()), "model": "no-such-model"}, stream=stream)
    assert raised.value.code == "model_not_found"


def test_openai_raises_authentication_error_for_a_wrong_key(gateway: Server) -> None:
    assert gateway.key is not None
    for wrong in ("sk-nonsense", gateway.key[:-1] + ("0" if gateway.key[-1] != "0" else "1")):
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=wrong, max_retries=0) as stranger:
            with pytest.raises(openai.AuthenticationError) as raised:
                stranger.chat.completions.create(**sdk(chat()))
            assert raised.value.code == "invalid_api_key"


def sdk(body: Body) -> dict[str, Any]:
    return dict(body)


# Idle connections


def test_a_call_after_vllm_has_closed_its_idle_connection_is_answered(gateway: Server, report: Report) -> None:
    with_pause: http.client.HTTPConnection = gateway.connect()
    try:
        first = gateway.ask_on(with_pause, CHAT, chat())
        time.sleep(6)  # vLLM closes a connection that was idle for 5 s: its clock, not one a test could move
        second = gateway.ask_on(with_pause, CHAT, chat())
    finally:
        with_pause.close()
    assert (first.status, second.status) == (200, 200)
    assert normalised(first.body) == normalised(second.body)
    report.add("two calls, 6 s apart", "both 200", None, first.seconds + second.seconds)
