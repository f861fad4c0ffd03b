"""A stream never lies: whole events with their bytes unchanged, every cut said, a clean end only for a whole answer."""

import asyncio
import json
from typing import Any

import pytest

from gateway.core.clock import Clock
from loadtest.simulator import PodSettings, SimulatedPod
from tests.fakes import STREAM_HEAD, Close, Hands, Hang, Reset, ScriptedPod, answer, chunk
from tests.raw import Answer, RawClient, ask, chat, request
from tests.running import Side, captured, running
from tests.turns import within

LAST = b"0\r\n\r\n"
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
FINAL = b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = (ROLE, TOKEN, FINAL, USAGE, DONE)


async def streamed(side: Side, *script: Any, pods: int = 1, **more: Any) -> tuple[Answer, dict[str, Any]]:
    """One streamed chat against a pod that plays the script: (the answer, its access line)."""
    async with ScriptedPod([script]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(stream=True, **more), key=gateway.key))
        return came, await gateway.last_line()


def error_of(came: Answer) -> dict[str, Any]:
    """The error event of a stream; it must be the last but `[DONE]`."""
    assert came.clean
    assert came.events[-1] == DONE
    told: dict[str, Any] = json.loads(came.events[-2].removeprefix(b"data: "))["error"]
    return told


async def test_a_whole_stream_passes_with_its_bytes_unchanged_less_the_usage_nobody_asked_for(side: Side) -> None:
    came, line = await streamed(side, STREAM_HEAD, *map(chunk, WHOLE), LAST)
    assert came.status == 200
    assert came.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert came.body == ROLE + TOKEN + FINAL + DONE
    assert came.clean
    assert line["outcome"] == "completed"
    assert (line["prompt_tokens"], line["completion_tokens"], line["usage_source"]) == (3, 2, "reported")
    assert line["finish"] == "stop"


async def test_a_caller_that_asks_for_usage_gets_the_chunk(side: Side) -> None:
    came, _ = await streamed(side, STREAM_HEAD, *map(chunk, WHOLE), LAST, stream_options={"include_usage": True})
    assert came.body == b"".join(WHOLE)


async def test_a_captured_stream_of_a_real_vllm_passes_unchanged(side: Side) -> None:
    _, raw = captured("12-chat-stream-usage.http")
    head, _, body = raw.partition(b"\r\n\r\n")
    async with ScriptedPod([[head.replace(b"connection: close", b"x-was: close") + b"\r\n\r\n" + body]]) as pod:
        direct = await ask(pod.port, request(chat(stream=True)))
        async with running([pod], side=side) as gateway:
            wanted = await ask(
                gateway.port, request(chat(stream=True, stream_options={"include_usage": True}), key=gateway.key)
            )
            plain = await ask(gateway.port, request(chat(stream=True), key=gateway.key))
    assert wanted.body == direct.body
    assert plain.events == [event for event in direct.events if b'"choices":[],"usage"' not in event]


@pytest.mark.parametrize(
    ("ending", "code", "outcome"),
    [
        ((LAST,), "upstream_truncated", "truncated"),
        ((chunk(DONE), LAST), "upstream_truncated", "truncated"),
        ((chunk(FINAL), LAST), "upstream_truncated", "truncated"),
        ((Close,), "upstream_truncated", "truncated"),
        ((b"d8\r\ndata: {", Close), "upstream_truncated", "truncated"),
        ((Reset,), "upstream_reset", "truncated"),
        ((b"zz\r\nnonsense",), "upstream_failed", "upstream_failed"),
        ((chunk(b"data: " + b"x" * (1 << 20) + b"x"),), "upstream_failed", "upstream_failed"),
    ],
    ids=[
        "no-done",
        "done-without-finish",
        "finish-without-done",
        "fin",
        "fin-in-event",
        "rst",
        "bad-chunk",
        "oversize",
    ],
)
async def test_a_cut_stream_says_so(side: Side, ending: tuple[Any, ...], code: str, outcome: str) -> None:
    came, line = await streamed(side, STREAM_HEAD, chunk(ROLE), chunk(TOKEN), *ending)
    assert came.status == 200
    assert error_of(came)["code"] == code
    assert came.body.startswith(ROLE + TOKEN)
    assert (line["outcome"], line["code"], line["usage_source"]) == (outcome, code, "estimated")


async def test_a_close_delimited_stream_is_whole_only_with_its_done(side: Side) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    whole, _ = await streamed(side, head, *WHOLE, Close)
    assert whole.body == ROLE + TOKEN + FINAL + DONE
    cut, _ = await streamed(side, head, ROLE, TOKEN, Close)
    assert error_of(cut)["code"] == "upstream_truncated"


async def test_every_index_of_n_must_finish(side: Side) -> None:
    second = FINAL.replace(b'"index":0', b'"index":1')
    one_missing, _ = await streamed(side, STREAM_HEAD, chunk(FINAL), chunk(DONE), LAST, n=2)
    assert error_of(one_missing)["code"] == "upstream_truncated"
    whole, _ = await streamed(side, STREAM_HEAD, chunk(FINAL + second), chunk(DONE), LAST, n=2)
    assert whole.body == FINAL + second + DONE


async def test_a_pods_own_error_event_is_relayed_once_and_ours_not_added(side: Side) -> None:
    told = b'data: {"error": {"message": "EngineCore encountered an issue.", "type": "x", "code": 500}}\n\n'
    for ending in ((chunk(DONE), LAST), (Close,)):
        came, line = await streamed(side, STREAM_HEAD, chunk(ROLE), chunk(told), *ending)
        assert came.body == ROLE + told + DONE
        assert came.clean
        assert line["outcome"] == "upstream_failed"


@pytest.mark.parametrize(
    ("event", "status", "code"),
    [
        (b'{"error": {"message": "no such luck", "type": "InternalServerError", "code": 500}}', 500, "upstream_failed"),
        (b'{"error": {"message": "max_tokens is too large", "type": "BadRequestError", "code": 400}}', 400, 400),
    ],
)
async def test_an_error_as_first_event_becomes_a_true_status(side: Side, event: bytes, status: int, code: Any) -> None:
    came, _ = await streamed(side, STREAM_HEAD, chunk(b"data: " + event + b"\n\n"), chunk(DONE), LAST)
    assert came.status == status
    assert came.error["code"] == code
    assert came.headers["content-type"] == "application/json"


async def test_comments_before_content_are_dropped_and_later_ones_sent_in_the_form_that_sdks_survive(
    side: Side,
) -> None:
    comment = chunk(b": keep-alive\n\n")
    came, _ = await streamed(side, STREAM_HEAD, comment, comment, chunk(ROLE), comment, chunk(FINAL), chunk(DONE), LAST)
    assert came.body == ROLE + b": keep-alive\n" + FINAL + DONE


async def test_events_wait_for_no_more_than_their_own_end(side: Side) -> None:
    more = asyncio.Event()
    script: list[Any] = [
        STREAM_HEAD,
        chunk(ROLE + TOKEN[:20]),
        more,
        chunk(TOKEN[20:]),
        chunk(FINAL),
        chunk(DONE),
        LAST,
    ]
    async with ScriptedPod([script]) as pod, running([pod], side=side) as gateway:
        client = await RawClient.connect(gateway.port)
        client.send(request(chat(stream=True), key=gateway.key))
        seen = b""
        async with within(5):
            while ROLE not in seen:
                seen += await client.reader.read(65536)
        assert TOKEN[:20] not in seen.partition(ROLE)[2]
        more.set()
        rest = await client.reader.readuntil(b"[DONE]")
        assert TOKEN in rest
        client.leave()


async def test_the_body_closes_at_once_after_the_end_though_the_pod_does_not(side: Side) -> None:
    # Time stands still: no deadline of ours ends it.
    async with (
        ScriptedPod([[STREAM_HEAD, *map(chunk, WHOLE), Hang]]) as pod,
        running([pod], side=side, clock=Clock(Hands())) as gateway,
    ):
        async with within(1.5):
            came = await ask(gateway.port, request(chat(stream=True), key=gateway.key))
        line = await gateway.last_line()
    assert came.clean
    assert (line["outcome"], line["duration_ms"]) == ("completed", 0)


async def test_silence_after_the_first_event_is_told_after_the_idle_deadline(side: Side) -> None:
    async with (
        ScriptedPod([[STREAM_HEAD, chunk(ROLE), Hang]]) as pod,
        running([pod], side=side, pool={"idle_seconds": 0.3}) as gateway,
    ):
        came = await ask(gateway.port, request(chat(stream=True), key=gateway.key))
        assert error_of(came)["code"] == "upstream_stalled"
        assert (await gateway.last_line())["outcome"] == "upstream_timeout"
        async with within(1):
            await pod.peer_left.wait()


async def test_comments_do_not_feed_the_idle_deadline_nor_commit(side: Side) -> None:
    alive = asyncio.Event()
    comments = [chunk(b": keep-alive\n\n")] * 3
    async with (
        ScriptedPod([[STREAM_HEAD, *comments, alive]]) as pod,
        running([pod], side=side, pool={"ttft_seconds": 0.4}) as gateway,
    ):
        came = await ask(gateway.port, request(chat(stream=True), key=gateway.key))
        assert (came.status, came.error["code"]) == (504, "upstream_ttft_timeout")
        assert came.headers["x-should-retry"] == "false"
        assert (await gateway.last_line())["attempts"] == 1
        alive.set()


async def test_a_stream_that_lasts_too_long_is_ended_with_a_word(side: Side) -> None:
    hands = Hands()
    async with (
        SimulatedPod(PodSettings(model="m", faults=())) as pod,
        running([pod], side=side, pool={"stream_seconds": 0.5}, clock=Clock(hands)) as gateway,
    ):
        pod.set_fault("drip:0.05")
        client = await RawClient.connect(gateway.port)
        client.send(request(chat(stream=True, max_tokens=5000, ignore_eos=True), key=gateway.key))
        begun = await client.reader.readuntil(b"content")
        hands.now += 0.5
        assert error_of(await client.answer(begun=begun))["code"] == "upstream_timeout"
        client.leave()


async def test_an_answer_that_is_not_a_stream_is_held_whole_so_that_a_cut_is_a_502(side: Side) -> None:
    whole = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}]}')
    async with ScriptedPod([[whole[:-5], Close]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(), key=gateway.key))
        assert (came.status, came.error["code"]) == (502, "upstream_disconnected")


async def test_a_large_answer_passes_through_and_its_cut_is_no_clean_end(side: Side) -> None:
    text = json.dumps({"choices": [{"index": 0, "finish_reason": "stop", "text": "x" * 3_000_000}]}).encode()
    whole = answer(text)
    async with ScriptedPod([[whole], [whole[:-5], Close]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(), key=gateway.key))
        assert (came.status, came.body, came.clean) == (200, text, True)
        cut = await ask(gateway.port, request(chat(), key=gateway.key))
        assert not cut.clean
        assert text.startswith(cut.body)
        assert (await gateway.last_line())["outcome"] == "truncated"


@pytest.mark.parametrize(
    "raw",
    [
        answer(b"<html>", content_type=b"text/html"),
        answer(b"not json"),
        answer(b'{"choices":[]}', content_type=b"text/plain"),
        b"NOT HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 17 + answer(b'{"choices":[]}'),
        answer(b"{}", more=b"content-encoding: gzip\r\n"),
    ],
    ids=["html", "no-json", "text", "no-http", "cl-and-te", "status-999", "upgrade", "interim-flood", "gzip"],
)
async def test_junk_from_a_pod_is_a_502_and_its_connection_not_used_again(side: Side, raw: bytes) -> None:
    async with ScriptedPod([[raw, Hang]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(), key=gateway.key))
        assert (came.status, came.error["code"]) == (502, "upstream_bad_response")
        assert len(pod.requests) == 1
        assert raw[:20] not in came.body


async def test_sixteen_interim_answers_are_dropped(side: Side) -> None:
    raw = b"HTTP/1.1 102 Processing\r\n\r\n" * 16 + answer(b'{"choices":[{"finish_reason":"stop"}]}')
    async with ScriptedPod([[raw]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(), key=gateway.key))
        assert (came.status, came.interim) == (200, 0)
