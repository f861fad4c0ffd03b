"""The simulator's answers beside vLLM's: requests as captured, answers compared byte for byte.

Before that, what cannot be the same is made the same on both sides: ids, times, the text, token counts.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from loadtest.simulator import Fault, FaultKind, PodSettings, SimulatedPod, Task
from loadtest.simulator.answers import draw_answer
from loadtest.simulator.bodies import Identity
from loadtest.simulator.connection import ReceivedRequest
from loadtest.simulator.dialects import Dialect
from loadtest.simulator.prompts import read_prompt, render_chat
from loadtest.simulator.routing import GENERATING
from tests.unit.loadtest.talking import Heard, ask, get, post, talk_to

CAPTURES = Path(__file__).parents[2] / "captures" / "vllm"
SMOLLM2 = PodSettings(model="smollm2", max_model_len_tokens=2048)


class Capture(NamedTuple):
    request: bytes
    answer: bytes


def read_capture(name: str) -> Capture:
    (path,) = CAPTURES.glob(f"{name}*.http")
    text = path.read_bytes().removeprefix(b"### REQUEST\n")
    request, rest = text.split(b"\n### RESPONSE (raw bytes)\n")
    return Capture(request, rest.split(b"\n### RECV TIMELINE")[0])


_UNLIKE = [
    (rb"\ndate: [^\r]+", b"\ndate: DATE"),
    (rb'"((?:chatcmpl|cmpl|modelperm|chatcmpl-tool|embd|score)-|(?:resp|msg|fc|rs)_)[0-9a-f]{16}"', rb'"\1ID"'),
    (rb"\nx-request-id: [0-9a-f]{32}", b"\nx-request-id: ID"),
    (rb"\nx-request-id: [0-9a-f]{16}", b"\nx-request-id: ID"),
    (rb'"created(_at)?":\d+', rb'"created\1":0'),
    (rb'"(content|text|delta|partial_json|reasoning|arguments)":"(?:[^"\\]|\\.)+"', rb'"\1":"TEXT"'),
    (rb'_tokens":\d+', b'_tokens":0'),
    (rb'"((?:relevance_)?score)":-?[\d.e-]+', rb'"\1":0.0'),
    (rb"-?\d\.\d{5,}(?:e-\d+)?(?=[],])", b"0.0"),  # a number in an embedding
    (rb'"vllm-0\.32\.0-[0-9a-f]{8}"', b'"vllm-FINGERPRINT"'),
]


def alike(answer: bytes) -> bytes:
    """The answer without what differs from one run of vLLM to the next."""
    for pattern, replacement in _UNLIKE:
        answer = re.sub(pattern, replacement, answer)
    if b"transfer-encoding: chunked" in answer:
        return re.sub(rb"(?<=\r\n)[0-9a-f]+\r\n(?=(?:event: [\w.]+\n)?data: \{)", b"SIZE\r\n", answer)
    if answer.startswith(b"HTTP/1.1 200") or b"\r\n\r\nHTTP/1.1 200" in answer:
        return re.sub(rb"content-length: [1-9]\d*", b"content-length: LENGTH", answer)
    return answer


async def replay(name: str, settings: PodSettings = SMOLLM2) -> tuple[bytes, bytes]:
    """(what vLLM said, what the simulator says), both made alike."""
    capture = read_capture(name)
    async with SimulatedPod(settings) as pod:
        heard = await ask(pod, capture.request)
    return alike(capture.answer), alike(heard.raw)


@pytest.mark.parametrize(
    "name",
    [
        *("01-", "02-", "03-", "04-", "05-ping-get", "05-ping-post", "06-"),
        *("10-", "11-", "12-", "13-", "14-", "15-", "16-"),
        *("22-", "28-", "29-", "30-", "31-", "32-", "37-", "38-"),
        *("40-", "41-", "42-", "43-", "45-", "46-", "47-", "48-", "49-"),
        *("50-", "51-", "52-", "53-", "54-", "55-", "56-", "57-", "59-"),
        *("60-", "63-", "64-", "65-", "66-", "67-", "68-", "69-", "73-", "92-", "93-"),
        *("74-", "75-", "76-", "77-", "78-", "79-", "80-", "81-", "82-", "83-", "84-", "85-", "86-", "87-", "88-"),
        *("m10-", "m11-", "m12-", "m13-", "m14-", "m16-", "m17-", "m18-", "m19-", "m20-"),
        *("m29-", "m30-", "m31-", "m32-", "m34-", "m35-"),
        *("r10-", "r11-", "r12-", "r13-", "r15-", "r16-", "r17-", "r18-", "r27-", "r28-", "r29-"),
        *("r30-", "r31-", "r32-", "r33-", "r34-", "r35-", "r36-"),
        *("25-", "27-", "34-", "35-", "36-", "58-", "62-"),
        *("t10-", "t11-", "t12-", "t13-", "t14-", "t15-", "t16-", "t17-"),
    ],
)
async def test_an_answer_is_vllm_s_but_for_ids_times_texts_and_counts(name: str) -> None:
    theirs, ours = await replay(name)

    assert ours == theirs


@pytest.mark.parametrize("name", ["e01-", "e02-", "e03-", "e04-", "e05-", "e09-"])
async def test_with_a_key_set_answers_are_vllm_s(name: str) -> None:
    theirs, ours = await replay(name, PodSettings(model="smollm2", api_key="sk-test"))

    assert ours == theirs


async def test_the_model_list_shows_adapters_as_vllm_does() -> None:
    settings = PodSettings(model="smollm2", lora_adapters=("tuned",), api_key="sk-test")

    theirs, ours = await replay("e13-", settings)

    # The adapter in the capture was loaded from a path of its own.
    assert ours == theirs.replace(b'"root":"/models/x"', b'"root":"/models/tuned"')


async def test_request_id_headers_stand_where_vllm_puts_them() -> None:
    theirs, ours = await replay("b10-", PodSettings(model="smollm2", request_id_headers=True))

    assert ours == theirs


async def test_details_of_cached_tokens_look_like_vllm_s() -> None:
    settings = PodSettings(model="smollm2", request_id_headers=True, prompt_tokens_details=True)

    theirs, ours = await replay("b12-", settings)

    assert ours == theirs


@pytest.mark.parametrize("name", ["44-", "61-", "m15-", "r14-", "p11-", "p65-"])
async def test_a_prompt_too_long_is_refused_in_vllm_s_words(name: str) -> None:
    # The captured request is cut; its body was 15 kB of one word.
    capture = read_capture(name)
    head, _, body = capture.request.partition(b"\r\n\r\n")
    before, _, rest = body.partition(b"word ")
    end = rest.partition(b"(cut)")[2] or b'"}]}'
    task = {"p11-": Task.EMBED, "p65-": Task.SCORE}.get(name, Task.GENERATE)
    async with SimulatedPod(replace(SMOLLM2, task=task)) as pod:
        heard = await ask(pod, post(before + b"word " * 3000 + end, head.split()[1].decode()))

    assert alike(heard.raw) == alike(capture.answer)


async def test_a_stop_string_ends_an_answer_as_with_vllm() -> None:
    capture = read_capture("24-")
    prompt = read_prompt(render_chat([("user", "Name three colours.")]), block_size_tokens=16, salt=None)

    def has_comma(seed: int) -> bool:
        drawn = draw_answer(seed=seed, prompt_key=prompt.key, choice=0, max_tokens=24, natural_tokens=None)
        return b"," in drawn.pieces[5:]

    seed = next(seed for seed in count() if has_comma(seed))
    async with SimulatedPod(PodSettings(model="smollm2", seed=seed)) as pod:
        heard = await ask(pod, capture.request)

    assert alike(heard.raw) == alike(capture.answer)


async def test_two_choices_of_a_stream_have_vllm_s_events_each() -> None:
    # In which order the two mingle is chance with vLLM; each one's own order is not.
    capture = read_capture("23-")
    async with SimulatedPod(SMOLLM2) as pod:
        heard = await ask(pod, capture.request)

    def of_choice(index: int, answer: bytes) -> list[bytes]:
        return [chunk for chunk in Heard(answer).chunks if b'"choices":[{"index":%d' % index in chunk]

    ours, theirs = heard.raw, capture.answer
    for index in (0, 1):
        assert list(map(alike, of_choice(index, ours))) == list(map(alike, of_choice(index, theirs)))
    assert list(map(alike, Heard(ours).chunks[:2])) == list(map(alike, Heard(theirs).chunks[:2]))
    assert list(map(alike, Heard(ours).chunks[-2:])) == list(map(alike, Heard(theirs).chunks[-2:]))


def squeezed(answer: bytes) -> list[bytes]:
    """The events of a stream, a run of deltas as one: how many tokens say a thing is the model's affair."""
    chunks = [re.sub(rb'"sequence_number":\d+', b'"sequence_number":0', alike(chunk)) for chunk in Heard(answer).chunks]
    return [one for one, next_one in pairwise([*chunks, b""]) if one != next_one]


EARLY = replace(SMOLLM2, ends_early=True, natural_tokens=(3, 3))


@pytest.mark.parametrize("name", ["m23-", "r19-", "e37-"])
async def test_an_answer_that_ends_by_itself_says_so_as_vllm_s_does(name: str) -> None:
    theirs, ours = await replay(name, EARLY)

    assert ours == theirs


async def test_a_response_that_ends_by_itself_has_vllm_s_events() -> None:
    capture = read_capture("r20-")
    async with SimulatedPod(EARLY) as pod:
        heard = await ask(pod, capture.request)

    assert squeezed(heard.raw) == squeezed(capture.answer)


@pytest.mark.parametrize("name", ["m21-", "m22-"])
async def test_a_message_that_meets_a_stop_sequence_ends_as_with_vllm(name: str) -> None:
    capture = read_capture(name)
    prompt = read_prompt(render_chat([("user", "Say hi.")]), block_size_tokens=16, salt=None)

    def stops(seed: int) -> bool:
        drawn = draw_answer(seed=seed, prompt_key=prompt.key, choice=0, max_tokens=24, natural_tokens=None)
        return b"!" in drawn.pieces[5:]

    seed = next(seed for seed in count() if stops(seed))
    async with SimulatedPod(replace(SMOLLM2, seed=seed)) as pod:
        heard = await ask(pod, capture.request)

    if name == "m21-":
        assert alike(heard.raw) == alike(capture.answer)
    else:
        assert squeezed(heard.raw) == squeezed(capture.answer)


@pytest.mark.parametrize("name", ["m28-", "m33-", "r26-"])
async def test_tools_and_their_results_are_read_as_vllm_reads_them(name: str) -> None:
    theirs, ours = await replay(name, replace(SMOLLM2, auto_tool_choice=True))

    assert ours == theirs


def dialect_of(capture: Capture) -> Dialect:
    """What the pod would answer the captured request with."""
    head, _, body = capture.request.partition(b"\r\n\r\n")
    path = head.split()[1]
    headers = ((b"content-type", b"application/json"),)
    request = ReceivedRequest(method="POST", target=path, headers=headers, body=body, connection=1)
    read = GENERATING[Task.GENERATE][path.decode()].read
    dialect = read(request, replace(SMOLLM2, auto_tool_choice=True)).dialect
    assert dialect is not None
    dialect.begin(Identity(f"{dialect.id_prefix}{0:016x}", 0, "smollm2"))
    return dialect


def of_call(arguments: str | None, *, head: bool) -> dict[str, object]:
    function = {"name": "get_weather"} if head else {}
    if arguments is not None:
        function["arguments"] = arguments
    return {"index": 0, **({"id": f"chatcmpl-tool-{0:016x}"} if head else {}), "function": function}


@pytest.mark.parametrize("name", ["m25-", "m27-", "r22-", "r24-"])
def test_a_chat_s_call_of_a_tool_is_streamed_in_vllm_s_events(name: str) -> None:
    capture = read_capture(name)
    pieces = re.findall(rb'"(?:delta|partial_json)":"((?:[^"\\]|\\.)*)"', capture.answer)
    calls = [of_call(None, head=True), *(of_call(json.loads(b'"%b"' % piece), head=False) for piece in pieces)]
    deltas: list[dict[str, object]] = [{"role": "assistant", "content": ""}]
    deltas += [{"tool_calls": [call]} for call in calls]
    chunks: list[object] = [{"choices": [{"delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"delta": {"content": ""}, "finish_reason": "tool_calls"}]})
    chunks.append({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
    dialect = dialect_of(capture)
    events = dialect.opening()
    for chunk in chunks:
        events += dialect.told(b"data: %b\n\n" % json.dumps(chunk).encode(), lambda: (1, 1, 0, 0))
    events += dialect.told(b"data: [DONE]\n\n", lambda: (1, 1, 0, 0))

    assert [alike(event) for event in events] == [alike(event) for event in Heard(capture.answer).chunks]


@pytest.mark.parametrize("name", ["m24-", "m26-", "r21-", "r23-", "r25-"])
def test_a_chat_s_whole_call_or_json_is_told_as_vllm_tells_it(name: str) -> None:
    capture = read_capture(name)
    call = of_call('{"city": "Paris"}', head=True)
    message = {"content": '{"city":"Paris"}'} if name == "r25-" else {"content": None, "tool_calls": [call]}
    chat = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
    whole = dialect_of(capture).whole(json.dumps(chat).encode(), lambda: (1, 1, 0, 0))

    assert alike(whole) == alike(Heard(capture.answer).body)


_NUMBERED = [
    (rb'"count":\d+', b'"count":0'),
    (rb'"index":\d+,"document":\{"text":"[^"]*"', b'"index":0,"document":{"text":""'),
    (rb'"prompt":"[^"]*"', b'"prompt":"TEXT"'),
    (rb'"(tokens|token_strs)":\[[^]]*\]', rb'"\1":[]'),
    (rb'"root":"[^"]*"', b'"root":"MODEL"'),
    (rb'"embedding":"[^"]*"', b'"embedding":"BASE64"'),
    (rb'"created": \d+', b'"created": 0'),
    (rb'_tokens": \d+', b'_tokens": 0'),
]


def numbered(answer: bytes) -> bytes:
    for pattern, replacement in _NUMBERED:
        answer = re.sub(pattern, replacement, answer)
    return answer


@pytest.mark.parametrize("name", ["70-", "71-", "72-"])
async def test_tokens_are_told_as_vllm_tells_them(name: str) -> None:
    theirs, ours = await replay(name)

    assert numbered(ours) == numbered(theirs)


async def test_tokens_and_invocations_need_no_key() -> None:
    for name in ("e07-", "e08-"):
        settings = PodSettings(model="smollm2", api_key="sk-test", max_model_len_tokens=8192)
        theirs, ours = await replay(name, settings)

        assert numbered(ours) == numbered(theirs)


@pytest.mark.parametrize(
    "name",
    [
        *("p01-", "p02-", "p03-", "p04-", "p06-", "p07-", "p08-", "p09-", "p10-", "p12-", "p16-", "p18-", "p19-"),
        *("p20-", "p21-", "p22-", "p23-", "p24-", "p25-", "p26-", "p27-", "p28-", "p29-", "p30-", "p31-", "p32-"),
        *("p33-", "p34-", "p35-", "p36-", "p37-", "p38-", "p39-", "p42-", "p43-", "p45-", "p48-", "p49-"),
    ],
)
async def test_a_pod_that_embeds_answers_as_vllm_s_does(name: str) -> None:
    # The stored arrays are cut to their first eight numbers.
    theirs, ours = await replay(name, replace(SMOLLM2, task=Task.EMBED, embedding_dimensions=8))

    assert numbered(ours) == numbered(theirs)


@pytest.mark.parametrize("name", ["p05-", "p13-", "p14-"])
async def test_embeddings_as_bytes_are_as_long_and_framed_as_vllm_s(name: str) -> None:
    theirs, ours = await replay(name, replace(SMOLLM2, task=Task.EMBED, embedding_dimensions=576))

    def with_zeros(answer: bytes) -> bytes:
        head, _, body = answer.partition(b"\r\n\r\n900\r\n")
        return head + b"\0" * len(body)

    assert len(ours) == len(theirs)
    assert numbered(with_zeros(ours)) == numbered(with_zeros(theirs))


@pytest.mark.parametrize("name", ["p60-", "p61-", "p62-", "p63-", "p66-", "p67-"])
async def test_a_pod_that_scores_answers_as_vllm_s_does(name: str) -> None:
    theirs, ours = await replay(name, replace(SMOLLM2, task=Task.SCORE))

    assert numbered(ours) == numbered(theirs)


@pytest.mark.parametrize("name", ["m40-", "m41-", "m42-", "r40-", "r41-", "t20-"])
async def test_a_full_pod_refuses_each_route_in_vllm_s_words(name: str) -> None:
    capture = read_capture(name)
    body = read_capture("11-").request.partition(b"\r\n\r\n")[2]
    async with SimulatedPod(replace(SMOLLM2, max_num_queued_reqs=1)) as pod, talk_to(pod) as waiting:
        pod.pause()
        waiting.send(post(body))
        await pod.until(lambda p: p.waiting == 1)
        heard = await ask(pod, capture.request)

    assert numbered(alike(heard.raw)) == numbered(alike(capture.answer))


@pytest.mark.parametrize("name", ["m02-", "m03-", "m04-", "r02-", "r03-", "t01-"])
async def test_a_dead_engine_is_told_on_each_route_in_vllm_s_words(name: str) -> None:
    capture = read_capture(name)
    async with SimulatedPod(SMOLLM2) as pod:
        pod.engine_dies()
        heard = await ask(pod, capture.request)

    assert numbered(alike(heard.raw)) == numbered(alike(capture.answer))


@pytest.mark.parametrize("name", ["p52-", "p53-"])
async def test_an_embedding_whose_engine_dies_is_told_in_vllm_s_words(name: str) -> None:
    capture = read_capture(name)
    async with SimulatedPod(replace(SMOLLM2, task=Task.EMBED)) as pod, talk_to(pod) as talk:
        pod.pause()
        talk.send(post({"input": "Hi"}, "/v1/embeddings"))
        await pod.until(lambda p: p.waiting == 1)
        pod.engine_dies()
        heard = await talk.hear_out()
        new = await ask(pod, post({"input": "Hi"}, "/v1/embeddings"))

    assert alike((heard if name == "p52-" else new).raw) == alike(capture.answer)


async def test_a_stream_of_messages_cut_by_the_engine_s_death_ends_with_vllm_s_error() -> None:
    capture = read_capture("m01-")
    async with SimulatedPod(replace(SMOLLM2, faults=(Fault(FaultKind.ENGINE_DEATH, after=20),))) as pod:
        heard = await ask(pod, capture.request)

    assert heard.chunks[-1] == Heard(capture.answer).chunks[-1]
    assert heard.is_whole
    assert Heard(capture.answer).is_whole
    assert squeezed(heard.raw) == squeezed(capture.answer)


async def test_a_response_cut_by_the_engine_s_death_ends_without_a_word_as_vllm_s() -> None:
    capture = read_capture("r01-")
    async with SimulatedPod(replace(SMOLLM2, faults=(Fault(FaultKind.ENGINE_DEATH, after=20),))) as pod:
        heard = await ask(pod, capture.request)

    assert squeezed(heard.raw) == squeezed(capture.answer)
    assert not heard.is_whole
    assert not Heard(capture.answer).is_whole


@pytest.mark.parametrize("name", ["e22-overload-3", "e22-overload-5"])
async def test_a_full_pod_refuses_in_vllm_s_words_streams_too(name: str) -> None:
    capture = read_capture(name)
    async with SimulatedPod(PodSettings(model="smollm2", max_num_queued_reqs=1)) as pod, talk_to(pod) as waiting:
        pod.pause()
        waiting.send(capture.request)
        await pod.until(lambda p: p.waiting == 1)
        heard = await ask(pod, capture.request)

    assert alike(heard.raw) == alike(capture.answer)


async def test_a_dead_engine_is_told_in_vllm_s_words() -> None:
    queued, whole = read_capture("h01-kill9-enginecore-queued"), read_capture("h01-kill9-enginecore-nonstream")
    async with SimulatedPod(SMOLLM2) as pod, talk_to(pod) as first, talk_to(pod) as second:
        pod.pause()
        first.send(queued.request)
        second.send(whole.request)
        await pod.until(lambda p: p.waiting == 2)
        pod.set_fault(Fault(FaultKind.ENGINE_DEATH))
        heard = [await first.hear_out(), await second.hear_out()]
        new = await ask(pod, whole.request)

    without_comments = queued.answer.replace(b"e\r\n: keep-alive\n\n\r\n", b"")
    assert alike(heard[0].raw) == alike(without_comments)
    assert alike(heard[1].raw) == alike(whole.answer)
    assert alike(new.raw) == alike(whole.answer)


async def test_a_stream_cut_by_the_engine_s_death_ends_like_vllm_s() -> None:
    capture = read_capture("h01-kill9-enginecore-stream")
    async with SimulatedPod(PodSettings(model="smollm2", faults=(Fault(FaultKind.ENGINE_DEATH, after=20),))) as pod:
        heard = await ask(pod, capture.request)

    assert heard.status == 200
    assert len(heard.chunks) == 22
    assert heard.raw[-230:] == capture.answer[-230:]


async def test_a_pod_told_to_end_is_heard_as_vllm_is() -> None:
    # 200 and headers, then nothing until the connection ends, some seventy seconds later.
    capture = read_capture("d03-sigterm-default-again-queued-stream")
    settings = PodSettings(model="smollm2", silence_seconds=0.05)
    async with SimulatedPod(settings) as pod, talk_to(pod) as talk:
        pod.pause()
        talk.send(capture.request)
        await talk.hear_until(b"\r\n\r\n")
        pod.terminate()
        heard = await talk.hear_out()

    assert alike(heard.raw) == alike(capture.answer)


async def test_a_draining_pod_refuses_in_vllm_s_words_and_stays_healthy() -> None:
    told = (CAPTURES / "d04-sigterm-drain-20-with-room-timeline.txt").read_text()
    body = read_capture("10-").request.partition(b"\r\n\r\n")[2]
    async with SimulatedPod(PodSettings(model="smollm2", faults=(Fault(FaultKind.DRAINING),))) as pod:
        refused = await ask(pod, post(body))
        healthy = await ask(pod, get("/health"))

    assert f"/health {healthy.status}" in told
    assert f"new chat {refused.status} {refused.body!r}" in told


def _names_and_labels(text: str) -> set[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.startswith("vllm:")]
    series = [re.fullmatch(r"([\w:]+)\{(.*)\} [^ ]+", line) for line in lines]
    return {(match[1], re.sub(r'model_name="[^"]*"', "", match[2])) for match in series if match}


async def test_metrics_have_vllm_s_names_labels_buckets_and_help() -> None:
    theirs = (CAPTURES / "metrics-part.txt").read_text()
    async with SimulatedPod(SMOLLM2) as pod:
        ours = (await ask(pod, get("/metrics"))).body.decode()

    info = "vllm:cache_config_info"
    assert {pair for pair in _names_and_labels(ours) if pair[0] != info} == {
        pair for pair in _names_and_labels(theirs) if pair[0] != info
    }
    assert {line for line in ours.splitlines() if line.startswith("#")} == {
        line for line in theirs.splitlines() if line.startswith("# ") and "vllm:" in line
    }


_OF_TOKENS = [
    (rb'"(token|decoded_token)":"(?:[^"\\]|\\.)*","logprob":[^,]*,"bytes":\[[\d,]*\]', rb'"\1":"TEXT"'),
    (rb'(\{"token":"TEXT","top_logprobs":\[(?:\{"token":"TEXT"\},?)*\]\})(?:,\1)+', rb"\1"),
    (rb'"text_offset":\[[\d,]+\],"token_logprobs":\[(?:null,)?[^]]+\],"tokens":\[[^]]+\],', b'"tokens":[],'),
    (rb'"tokens":\[\],"top_logprobs":\[(?:null,)?(?:\{[^}]*\},?)+\]', b'"tokens":[]'),
    (
        rb'"prompt_logprobs":\[null(?:,\{(?:"\d+":\{"logprob":[^,]+,"rank":\d+,"decoded_token":"[^}]*\},?)+\})+\]',
        b'"of_prompt":[]',
    ),
    (rb'token_ids":\[[\d,]+\]', b'token_ids":[]'),
]


def told(answer: bytes) -> bytes | list[bytes]:
    """`alike`, without what depends on which tokens there are; of a stream the events, a run of the same as one."""
    if b"transfer-encoding: chunked" not in answer:
        return _without_tokens(answer)
    chunks = [_without_tokens(chunk) for chunk in Heard(answer).chunks]
    head, _, _ = answer.partition(b"\r\n\r\n")
    return [alike(head), *(one for one, next_one in pairwise([*chunks, b""]) if one != next_one)]


def _without_tokens(text: bytes) -> bytes:
    text = alike(text)
    for pattern, replacement in _OF_TOKENS:
        text = re.sub(pattern, replacement, text)
    return text


async def ask_as_captured(name: str, settings: PodSettings, *changes: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """What vLLM said and what the simulator says. `changes` to the request keep its length."""
    capture = read_capture(name)
    request = capture.request
    for old, new in changes:
        assert old in request
        assert len(old) == len(new)
        request = request.replace(old, new)
    async with SimulatedPod(settings) as pod:
        return capture.answer, (await ask(pod, request)).raw


DETAILS = replace(SMOLLM2, prompt_tokens_details=True, block_size_tokens=32)
CALLS = replace(DETAILS, auto_tool_choice=True)
REASONS = replace(CALLS, reasoning_parser="deepseek_r1")


@pytest.mark.parametrize("name", ["17-", "18-", "20-", "21-", "33-", "s50-", "s51-", "s52-", "s53-"])
async def test_probabilities_and_token_ids_are_told_as_vllm_tells_them(name: str) -> None:
    theirs, ours = await ask_as_captured(name, SMOLLM2)

    assert told(ours) == told(theirs)


@pytest.mark.parametrize(
    "name",
    [
        *("s54-", "s55-", "s56-", "s57-", "s58-", "s60-", "s61-", "s62-", "s63-", "s64-"),
        *("sc4-", "sc5-", "sc6-", "sc7-", "sc8-"),
    ],
)
async def test_a_completion_tells_what_was_asked_for_as_vllm_s_does(name: str) -> None:
    theirs, ours = await ask_as_captured(name, DETAILS)

    assert told(ours) == told(theirs)


@pytest.mark.parametrize("name", ["s59-", "s65-"])
async def test_two_choices_of_a_completion_have_vllm_s_events_each(name: str) -> None:
    # In which order the two mingle is chance with vLLM.
    theirs, ours = await ask_as_captured(name, DETAILS)

    assert sorted(map(_without_tokens, Heard(ours).chunks)) == sorted(map(_without_tokens, Heard(theirs).chunks))


@pytest.mark.parametrize("name", ["b06-", "b07-", "b09-", "b11-", "b13-", "b16-", "b17-"])
async def test_tools_are_called_in_vllm_s_words_and_events(name: str) -> None:
    theirs, ours = await ask_as_captured(name, replace(CALLS, request_id_headers=True))

    assert told(ours) == told(theirs)


async def test_after_a_tool_s_result_there_are_words_as_with_vllm() -> None:
    settings = replace(CALLS, request_id_headers=True, ends_early=True, natural_tokens=(3, 3))

    theirs, ours = await ask_as_captured("b08-", settings)

    assert told(ours) == told(theirs)


@pytest.mark.parametrize(("name", "limit"), [("b02-", b" 9"), ("b03-", b" 9"), ("b04-", b"18")])
async def test_a_call_cut_off_is_told_as_vllm_tells_it(name: str, limit: bytes) -> None:
    # The captured model went on and on; ours comes to an end, so it gets fewer tokens.
    was = b"60" if name == "b02-" else b"80"
    change = (b'"max_tokens": ' + was, b'"max_tokens": ' + limit)

    theirs, ours = await ask_as_captured(name, replace(CALLS, request_id_headers=True), change)

    assert told(ours) == told(theirs)


async def test_json_cut_off_is_told_as_vllm_tells_it() -> None:
    theirs, ours = await ask_as_captured("26-", SMOLLM2, (b'"max_tokens": 24', b'"max_tokens":  3'))

    assert told(ours) == told(theirs)


@pytest.mark.parametrize(
    "name",
    [
        *("s01-", "s02-", "s03-", "s04-", "s05-", "s06-", "s07-", "s08-", "s09-", "s10-", "s11-", "s18-"),
        *("s23-", "s24-", "s25-", "s26-", "s28-", "sd6-", "sd7-", "sd8-", "sc1-", "sc2-", "sc3-"),
        *("s30-", "s31-", "s32-", "s33-", "s34-", "s36-", "s38-", "s39-", "s40-", "s41-", "s42-", "s43-", "s44-"),
    ],
)
async def test_a_pod_that_reasons_answers_as_vllm_s_does(name: str) -> None:
    theirs, ours = await ask_as_captured(name, REASONS)

    assert told(ours) == told(theirs)


@pytest.mark.parametrize("name", ["s16-", "s17-", "s18-"])
async def test_two_calls_at_once_are_told_as_vllm_tells_them(name: str) -> None:
    theirs, ours = await ask_as_captured(name, replace(REASONS, tool_calls=2))

    assert told(ours) == told(theirs)


UPKEEP = PodSettings(model="smollm2", runtime_lora_updating=True, dev_mode=True)


@pytest.mark.parametrize(
    "name",
    [
        *("s80-", "s81-", "s82-", "s83-", "s84-", "s85-", "s86-"),
        *("s93-", "s95-", "s96-", "sa4-", "sa5-", "sa6-", "sa7-", "e11-", "e21-"),
    ],
)
async def test_routes_for_those_who_run_a_pod_answer_as_vllm_s(name: str) -> None:
    theirs, ours = await replay(name, UPKEEP)

    assert ours == theirs


def with_its_length(request: bytes) -> bytes:
    """The stored requests name another path than the one that was sent."""
    head, _, body = request.partition(b"\r\n\r\n")
    return re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head) + b"\r\n\r\n" + body


async def test_an_adapter_comes_and_goes_as_with_vllm() -> None:
    answers: list[tuple[bytes, bytes]] = []
    async with SimulatedPod(replace(UPKEEP, api_key="sk-test")) as pod:
        for name in ("e12-", "e13-", "e14-", "e16-", "e17-", "e18-", "e19-"):
            capture = read_capture(name)
            heard = await ask(pod, with_its_length(capture.request))
            answers.append((heard.raw, capture.answer))

    assert [alike(ours) for ours, _ in answers] == [alike(theirs) for _, theirs in answers]


async def test_a_pod_sleeps_and_wakes_as_vllm_does() -> None:
    waiting = read_capture("e32-")
    heard: list[tuple[bytes, bytes]] = []
    async with SimulatedPod(replace(UPKEEP, api_key="sk-test")) as pod, talk_to(pod) as talk:

        async def hear(*names: str) -> None:
            for name in names:
                capture = read_capture(name)
                heard.append(((await ask(pod, capture.request)).raw, capture.answer))

        await hear("e30-", "e31-")
        talk.send(waiting.request)
        await talk.hear_until(b"\r\n\r\n")
        await hear("e34-", "e35-", "e11-")
        heard.append(((await talk.hear_out()).raw, waiting.answer))
        await hear("s93-", "s95-", "sa0-", "sa1-", "sa3-", "sa7-", "sa8-", "sb0-")

    assert [alike(ours) for ours, _ in heard] == [alike(theirs) for _, theirs in heard]


def gauges_of(text: str, *, adapters: bool) -> set[str]:
    """The samples of the gauges in question, times left out."""
    kept = ("vllm:engine_sleep_state", "vllm:num_requests", *(("vllm:lora_requests_info",) if adapters else ()))
    lines = [line for line in text.splitlines() if line.startswith(kept)]
    return {re.sub(r"^(vllm:lora_requests_info.*\}) [^ ]+$", r"\1 TIME", line) for line in lines}


async def test_gauges_of_adapters_and_of_sleep_are_vllm_s() -> None:
    stored = (CAPTURES / "metrics-adapters-and-sleep.txt").read_text()
    async with SimulatedPod(UPKEEP) as pod, talk_to(pod) as talk:

        async def are_as_when(situation: str, *, adapters: bool = False) -> bool:
            theirs = stored.partition(f"=== {situation}\n")[2].partition("\n===")[0]
            ours = (await ask(pod, get("/metrics"))).body.decode()
            return gauges_of(ours, adapters=adapters) == gauges_of(theirs, adapters=adapters)

        pod.load_adapter("tuned", "/models/x")
        await ask(pod, read_capture("e14-").request)
        assert await are_as_when('a chat to the adapter "tuned" has been answered', adapters=True)
        pod.sleep(1)
        talk.send(read_capture("e32-").request)
        await pod.until(lambda p: p.waiting == 1)
        assert await are_as_when("asleep at level 1, one chat waits")
        pod.wake_up()
        await talk.hear_out()
        assert await are_as_when("awake again")
        pod.sleep(2)
        assert await are_as_when("asleep at level 2")
        pod.sleep(1)
        assert await are_as_when("level 1 after level 2, one chat waits")
        pod.wake_up(["weights"])
        assert await are_as_when("weights awake, the KV cache asleep")
        pod.sleep(0)
        assert await are_as_when("asleep at level 0")


async def test_the_gauge_of_adapters_is_explained_as_by_vllm() -> None:
    stored = (CAPTURES / "metrics-adapters-and-sleep.txt").read_text()
    theirs = {line for line in stored.splitlines() if line.startswith("#")}
    async with SimulatedPod(replace(UPKEEP, lora_adapters=("tuned",))) as pod:
        await ask(pod, read_capture("e14-").request)
        ours = (await ask(pod, get("/metrics"))).body.decode().splitlines()

    assert len(theirs) == 2
    assert theirs <= set(ours)
