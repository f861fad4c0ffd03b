"""The simulator's answers beside vLLM's: requests as captured, answers compared byte for byte.

Before that, what cannot be the same is made the same on both sides: ids, times, the text, token counts.
"""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from loadtest.simulator import Fault, FaultKind, PodSettings, SimulatedPod
from loadtest.simulator.answers import draw_answer
from loadtest.simulator.prompts import read_prompt, render_chat
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
    (rb'"(chatcmpl|cmpl|modelperm)-[0-9a-f]{16}"', rb'"\1-ID"'),
    (rb"\nx-request-id: [0-9a-f]{32}", b"\nx-request-id: ID"),
    (rb"\nx-request-id: [0-9a-f]{16}", b"\nx-request-id: ID"),
    (rb'"created":\d+', b'"created":0'),
    (rb'"(content|text)":"(?:[^"\\]|\\.)+"', rb'"\1":"TEXT"'),
    (rb'_tokens":\d+', b'_tokens":0'),
    (rb'"vllm-0\.32\.0-[0-9a-f]{8}"', b'"vllm-FINGERPRINT"'),
]


def alike(answer: bytes) -> bytes:
    """The answer without what differs from one run of vLLM to the next."""
    for pattern, replacement in _UNLIKE:
        answer = re.sub(pattern, replacement, answer)
    if b"transfer-encoding: chunked" in answer:
        return re.sub(rb"(?<=\r\n)[0-9a-f]+\r\n(?=data: \{)", b"SIZE\r\n", answer)
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
        *("60-", "63-", "64-", "65-", "66-", "67-", "69-", "73-", "92-", "93-"),
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


@pytest.mark.parametrize("name", ["44-", "61-"])
async def test_a_prompt_too_long_is_refused_in_vllm_s_words(name: str) -> None:
    # The captured request is cut; its body was 15 kB of one word.
    capture = read_capture(name)
    body = capture.request.partition(b"\r\n\r\n")[2].partition(b"word ")[0] + b"word " * 3000 + b'"}]}'
    async with SimulatedPod(SMOLLM2) as pod:
        heard = await ask(pod, post(body))

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
