"""Which routes a pod of a task has, and the small ones: tokens, batches, what nobody serves."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.simulator import PodSettings, Scheduling, SimulatedPod, Task, schema
from loadtest.simulator.asked import Refused
from loadtest.simulator.cli import parser, pods_from
from loadtest.simulator.connection import ReceivedRequest
from loadtest.simulator.routing import GENERATING, POOLING, TOLD
from loadtest.simulator.tokenizing import detokenize, tokenize
from tests.unit.loadtest.talking import Heard, ask, chat, get, post, talk_to

SETTINGS = PodSettings(model="m")
GENERATE = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"]
EMBED = ["/v1/embeddings"]
SCORE = ["/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"]
AUDIO = ["/v1/audio/transcriptions", "/v1/audio/translations"]
SERVED = {
    Task.GENERATE: {*GENERATE},
    Task.EMBED: {*EMBED, *SCORE},
    Task.SCORE: {*SCORE},
    Task.TRANSCRIPTION: {*AUDIO},
}


@pytest.mark.parametrize("task", list(Task))
async def test_a_pod_has_its_task_s_routes_and_no_others(task: Task) -> None:
    async with SimulatedPod(PodSettings(model="m", task=task)) as pod:
        for path in (*GENERATE, *EMBED, *SCORE, *AUDIO):
            got, posted = await ask(pod, get(path)), await ask(pod, post({}, path))

            assert got.status == (405 if path in SERVED[task] else 404), path
            assert (posted.json == {"detail": "Not Found"}) == (path not in SERVED[task]), path
        for path in ("/v1/models", "/health", "/metrics", "/kv_event_sources"):
            assert (await ask(pod, get(path))).status == 200


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/invocations", "/v1/chat/completions/batch"])
async def test_a_fault_strikes_every_route_that_generates_or_the_one_it_names(path: str) -> None:
    async with SimulatedPod(SETTINGS) as pod:
        pod.set_fault("status:429")
        everywhere = await ask(pod, post({}, path))
        pod.clear_fault()
        pod.set_fault(f"status:status=429,path={path}")
        here, elsewhere = await ask(pod, post({}, path)), await ask(pod, post(chat(max_tokens=1)))

    assert [heard.status for heard in (everywhere, here, elsewhere)] == [429, 429, 200]


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
async def test_a_fault_strikes_what_is_only_counted_if_it_is_named(path: str) -> None:
    body: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    async with SimulatedPod(SETTINGS) as pod:
        pod.set_fault("status:429")
        spared = await ask(pod, post(body, path))
        pod.set_fault(f"status:status=429,path={path}")
        struck = await ask(pod, post(body, path))

    assert (spared.status, struck.status) == (200, 429)


STREAMS: list[tuple[str, dict[str, object]]] = [
    ("/v1/chat/completions", chat(max_tokens=6, stream=True)),
    ("/v1/messages", chat(max_tokens=6, stream=True)),
    ("/v1/responses", {"model": "m", "input": "Hi", "max_output_tokens": 6, "stream": True}),
    ("/invocations", chat(max_tokens=6, stream=True)),
]
ENDING = [
    *("cut", "cut:3", "reset", "reset:3", "close", "no_done", "no_done:3", "no_finish", "no_finish:3"),
    *("error_event", "error_event:3", "status:502", "draining", "garbage", "garbage:what=junk_body,after=3"),
    *("garbage:what=bad_chunk_size,after=3", "drip:seconds_per_token=0.001,after=3"),
]


@pytest.mark.parametrize("fault", ENDING)
@pytest.mark.parametrize(("path", "body"), STREAMS, ids=[path for path, _ in STREAMS])
async def test_every_fault_strikes_every_stream_and_leaves_the_pod_as_it_was(
    path: str, body: dict[str, object], fault: str
) -> None:
    async with SimulatedPod(SETTINGS) as pod:
        whole = await ask(pod, post(body, path))
        pod.set_fault(fault)
        async with talk_to(pod) as talk:
            talk.send(post(body, path))
            await talk.how_it_ends()
        await pod.until(lambda p: (p.in_flight, p.running) == (0, 0))
        pod.clear_fault()
        again = await ask(pod, post(body, path))
        aborts = pod.aborts

    assert aborts == 0
    assert len(again.chunks) == len(whole.chunks)
    if not fault.startswith("drip"):
        assert len(talk.heard) != len(whole.raw)
    if fault in ("cut:3", "no_done:3"):
        assert len(Heard(talk.heard).chunks) == 3


async def test_a_batch_answers_each_conversation_with_a_choice() -> None:
    turns = [[{"role": "user", "content": text}] for text in ("one", "two", "one")]
    async with SimulatedPod(SETTINGS) as pod:
        heard = await ask(pod, post({"model": "m", "messages": turns, "max_tokens": 3}, "/v1/chat/completions/batch"))
    choices: Any = heard.json["choices"]
    texts = [choice["message"]["content"] for choice in choices]

    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert texts[0] == texts[2] != texts[1]


def request(text: object) -> ReceivedRequest:
    headers = ((b"content-type", b"application/json"),)
    return ReceivedRequest(method="POST", target=b"/", headers=headers, body=msgspec.json.encode(text), connection=1)


@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60))
def test_tokens_are_as_many_as_the_engine_counts_and_become_the_text_again(text: str) -> None:
    told = msgspec.json.decode(tokenize(request({"prompt": text}), SETTINGS).body)
    back = msgspec.json.decode(detokenize(request({"tokens": told["tokens"]}), SETTINGS).body)

    assert told["count"] == len(told["tokens"]) == -(-len(text.encode()) // 4)
    assert back == {"prompt": text}


async def test_a_prompt_of_token_ids_finds_its_text_in_the_prefix_cache() -> None:
    text = "four" * 64
    told = msgspec.json.decode(tokenize(request({"prompt": text}), SETTINGS).body)
    async with SimulatedPod(PodSettings(model="m", prompt_tokens_details=True)) as pod:
        await ask(pod, post({"prompt": text, "max_tokens": 1}, "/v1/completions"))
        again = await ask(pod, post({"prompt": told["tokens"], "max_tokens": 1}, "/v1/completions"))
    usage: Any = again.json["usage"]

    assert usage["prompt_tokens_details"]["cached_tokens"] > 0


async def test_what_nobody_here_serves_says_so_once_its_fields_are_there() -> None:
    async with SimulatedPod(SETTINGS) as pod:
        heard = await ask(pod, post({"label_token_ids": [1]}, "/generative_scoring"))

    assert heard.status == 501


class _Body(msgspec.Struct, kw_only=True):
    name: str
    size: int | None = None
    parts: str | list[str] = ""


def read(text: bytes) -> _Body:
    return schema.read(text, b"application/json; charset=utf-8", _Body)


def test_a_body_is_read_as_laxly_as_pydantic_reads() -> None:
    assert read(b'{"name": "a", "size": "24", "more": 1}') == _Body(name="a", size=24)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (b"{}", ["'missing', 'loc': 'body.name'"]),
        (b'{"name": 1, "size": "x"}', ["'string_type', 'loc': 'body.name'", "'int_type', 'loc': 'body.size'"]),
        (b'{"name": "a", "parts": 7}', ["'string_type', 'loc': 'body.parts'", "'list_type', 'loc': 'body.parts'"]),
        (b"", ["'missing', 'loc': 'body'"]),
        (b"null", ["'missing', 'loc': 'body'"]),
        (b"[]", ["'model_attributes_type', 'loc': 'body'"]),
        (b'{"name"', ["'json_invalid', 'loc': 'body.7'"]),
        (b'{"name": "a", "parts": [1]}', ["'value_error', 'loc': 'body'"]),
    ],
)
def test_each_field_that_does_not_fit_is_named(text: bytes, problems: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        read(text)
    told = msgspec.json.decode(caught.value.reply.body)["error"]

    assert caught.value.reply.status == 400
    assert told["message"].startswith(f"{len(problems)} validation error")
    assert all(f"{{'type': {problem}" in told["message"] for problem in problems)


@given(st.binary(max_size=60))
def test_no_body_whatever_gets_past_the_reader_without_an_answer(text: bytes) -> None:
    with suppress(Refused):
        assert isinstance(read(text), _Body)


# With every field a reader looks into, so that one can be spoiled at a time.
FULL: dict[str, dict[str, Any]] = {
    "/v1/messages": {
        "model": "m",
        "max_tokens": 4,
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "source": {}}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"text": "r"}]}]},
        ],
        "tools": [{"name": "f", "input_schema": {}}],
        "tool_choice": {"type": "tool", "name": "f"},
        "output_config": {"format": {"type": "json_schema", "schema": {}}},
        "stop_sequences": ["x"],
    },
    "/v1/responses": {
        "model": "m",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "r"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": {}}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}},
        "reasoning": {"effort": "low"},
    },
    "/v1/chat/completions/batch": {"model": "m", "messages": [[{"role": "user", "content": "a"}]]},
    "/invocations": {"model": "m", "messages": [{"role": "user", "content": "a"}]},
    "/tokenize": {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
    "/detokenize": {"model": "m", "tokens": [1]},
    "/v1/embeddings": {"model": "m", "input": ["a"], "dimensions": 1, "truncate_prompt_tokens": 4},
    "/v1/score": {"model": "m", "text_1": ["a"], "text_2": ["b"]},
    "/v1/rerank": {"model": "m", "query": "q", "documents": ["a"], "top_n": 1},
}
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "name"]), inner),
    max_leaves=4,
)


def spoiled(value: Any, junk: Any, draw: st.DataObject) -> Any:
    """A copy with one value somewhere in it replaced."""
    if not isinstance(value, (dict, list)) or not value or draw.draw(st.booleans()):
        return junk
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    chosen = draw.draw(st.sampled_from(keys))
    copy = value.copy()
    copy[chosen] = spoiled(value[chosen], junk, draw)
    return copy


@pytest.mark.parametrize("path", list(FULL))
@given(junk=_ANYTHING, draw=st.data())
def test_a_body_with_junk_anywhere_is_read_or_refused(path: str, junk: Any, draw: st.DataObject) -> None:
    body = spoiled(FULL[path], junk, draw)
    settings = PodSettings(model="m", task=Task.EMBED if path in POOLING[Task.EMBED] else Task.GENERATE)
    sent = request(body)
    with suppress(Refused):
        if path in POOLING[settings.task] and path != "/invocations":
            assert POOLING[settings.task][path].read(sent, settings).told("id", 0).status == 200
        elif path in GENERATING[settings.task]:
            assert GENERATING[settings.task][path].read(sent, settings).asked.prompts
        elif path in TOLD[settings.task]:
            assert TOLD[settings.task][path].reply(sent, settings).status == 200


def test_pools_of_several_tasks_are_made_from_the_command_line() -> None:
    asked = ["--pool", "chat:2", "--pool", "e5:1:embed", "--pool", "qwen:7b:1:score", "--task", "transcription"]
    pods = pods_from(parser().parse_args(asked)).values()

    assert [(pod.settings.model, pod.settings.task) for pod in pods] == [
        *[("chat", Task.TRANSCRIPTION)] * 2,
        ("e5", Task.EMBED),
        ("qwen:7b", Task.SCORE),
    ]


def test_how_an_engine_takes_priorities_is_said_on_the_command_line() -> None:
    (usual,) = pods_from(parser().parse_args([])).values()
    (told,) = pods_from(parser().parse_args(["--scheduling-policy", "priority", "--refuse-priorities"])).values()

    assert (usual.settings.scheduling_policy, usual.settings.refuse_priorities) == (Scheduling.FCFS, False)
    assert (told.settings.scheduling_policy, told.settings.refuse_priorities) == (Scheduling.PRIORITY, True)


@pytest.mark.parametrize("text", ["chat", "chat:0", "chat:embed", ":1:embed", "chat:1:sing"])
def test_a_pool_that_cannot_be_read_is_refused_with_an_example(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--pool", text])

    assert "such as chat:3 or e5:1:embed" in capsys.readouterr().err
