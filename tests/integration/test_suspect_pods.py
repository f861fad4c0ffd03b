"""A pod is suspected of everything: what it should not say is refused, never followed, never relayed, and its
connection not used again.

What its bytes mean is judged in `tests/unit/upstream/test_answers.py`; here, what comes of it.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fakes import MODELS, STREAM_HEAD, Close, Hang, ScriptedPod, answer, chunk
from tests.raw import Answer, RawClient, ask, chat, request
from tests.running import Running, Side, running
from tests.turns import within

LAST = b"0\r\n\r\n"
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
FINAL = b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
GOOD = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
OK = b"HTTP/1.1 200 OK\r\n"
CANARY = b"CANARY"
REDIRECTS = [b"300 Multiple Choices", b"301 Moved", b"302 Found", b"303 See Other", b"304 Not Modified", b"307 Later"]
ENDLESS = b"transfer-encoding: chunked\r\n\r\n" + chunk(CANARY)
"""A body that goes on: nothing of it is waited for."""


def events_head(more: bytes = b"") -> bytes:
    return STREAM_HEAD[:-2] + more + b"\r\n"


async def refused(side: Side, *script: Any, **body: Any) -> tuple[Answer, dict[str, Any]]:
    """What a client is told of a pod that plays this and then stays, which must not be waited for; its access line.

    The attempt is the only one, its connection is closed, the pod is blamed, and nothing of it is seen.
    """
    async with ScriptedPod([[*script, Hang]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(**body), key=gateway.key), 5.0)
        async with within(2):
            await pod.peer_left.wait()
        line = await gateway.last_line()
        assert (len(pod.requests), line["attempts"]) == (1, 1)
        assert gateway.sample("poolgate_attempts_total", pool="chat", outcome="junk") == 1
        assert gateway.gateway.pools.of(gateway.gateway.fleet.value.pods[0]).take() is None
        assert CANARY not in came.body
        return came, line


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "said",
    [
        CANARY + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + CANARY,
        b"HTTP/1.1 102 Processing\r\n\r\n" * 17,
        b"HTTP/1.1 000 OK\r\n" + ENDLESS,
        b"HTTP/2.0 200 OK\r\ncontent-type: application/json\r\n" + ENDLESS,
        OK + b"content-length: 6\r\n" + ENDLESS,
        OK + b"transfer-encoding: gzip\r\n" + ENDLESS,
        OK + b"x: a\r\n b\r\n" + ENDLESS,
        OK + b"x: %b\r\n" % (b"a" * 70_000) + ENDLESS,
        OK + b"".join(b"x%d: a\r\n" % place for place in range(200)) + ENDLESS,
        OK + b"content-type: text/html\r\n" + ENDLESS,
        OK + b"content-type: application/json, text/event-stream\r\n" + ENDLESS,
        OK + ENDLESS,
    ],
    ids=[
        "no-http",
        "upgrade",
        "interim-flood",
        "status-000",
        "http-2",
        "two-framings",
        "gzip-chunks",
        "folded",
        "large-head",
        "many-lines",
        "html",
        "two-types",
        "no-type",
    ],
)
async def test_what_is_no_answer_is_a_502_at_once(side: Side, said: bytes, stream: bool) -> None:
    came, line = await refused(side, said, stream=stream)
    assert (came.status, came.error["code"]) == (502, "upstream_bad_response")
    assert line["outcome"] == "upstream_failed"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", REDIRECTS)
async def test_a_redirect_leads_nowhere(side: Side, status: bytes, stream: bool) -> None:
    async with ScriptedPod([[GOOD]]) as elsewhere:
        there = b"location: http://127.0.0.1:%d/v1/chat/completions\r\nrefresh: 0; url=//127.0.0.1:%d/\r\n" % (
            elsewhere.port,
            elsewhere.port,
        )
        body = b"content-length: 0\r\n\r\n" if status.startswith(b"304") else ENDLESS
        came, _ = await refused(side, b"HTTP/1.1 %b\r\n%b%b" % (status, there, body), stream=stream)
        assert (came.status, came.error["code"]) == (502, "upstream_redirect")
        assert "location" not in came.headers
        assert not elsewhere.requests
        assert not elsewhere.asked
        assert elsewhere.connections == 0


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"identity, gzip", b"x"])
async def test_a_compressed_answer_is_a_502_and_never_unpacked(side: Side, coding: bytes) -> None:
    more = b"content-encoding: %b\r\n" % coding
    packed = gzip.compress(b'{"choices":[{"index":0,"finish_reason":"stop","text":"%b"}]}' % (b"0" * (1 << 24)))
    came, _ = await refused(side, answer(packed, more=more))
    assert (came.status, came.error["code"]) == (502, "upstream_bad_response")
    came, _ = await refused(side, events_head(more), chunk(gzip.compress(TOKEN)), stream=True)
    assert (came.status, came.error["code"]) == (502, "upstream_bad_response")


async def test_pods_are_asked_for_what_is_not_compressed(side: Side) -> None:
    async with ScriptedPod([[GOOD]]) as pod, running([pod], side=side) as gateway:
        asked = request(chat(), key=gateway.key, headers={"Accept-Encoding": "gzip, br"})
        assert (await ask(gateway.port, asked)).status == 200
        assert pod.requests[0].lower().count(b"accept-encoding") == 1
        assert b"\r\naccept-encoding: identity\r\n" in pod.requests[0]


THEIRS = {
    "server": "CANARY",
    "set-cookie": "CANARY=1; Path=/",
    "location": "http://CANARY/",
    "via": "1.1 CANARY",
    "connection": "keep-alive, x-named",
    "x-named": "CANARY",
    "keep-alive": "timeout=CANARY",
    "x-request-id": "CANARY",
    "x-ratelimit-limit-requests": "CANARY",
    "x-should-retry": "CANARY",
    "x-poolgate-pod": "CANARY",
    "access-control-allow-origin": "CANARY",
    "www-authenticate": "CANARY",
    "retry-after": "77",
    "metadata": "CANARY",
    "content-disposition": "CANARY",
    "openai-processing-ms": "77",
}


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad", b"404 Gone", b"422 No", b"500 Oh", b"503 Busy"])
@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_of_a_pod_s_head_reaches_a_client(side: Side, status: bytes, stream: bool) -> None:
    more = "".join(f"{name}: {value}\r\n" for name, value in THEIRS.items()).encode()
    script = [answer(b'{"error":{"message":"no","code":4}}', status, more=more)]
    if status == b"200 OK":
        script = [GOOD.replace(b"\r\n\r\n", b"\r\n" + more + b"\r\n", 1)]
        if stream:
            script = [events_head(more), chunk(TOKEN + FINAL + DONE), LAST]
    async with ScriptedPod([script]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(stream=stream), key=gateway.key))
        assert came.clean
        assert "CANARY" not in str(came.headers)
        ours = {"content-type", "content-length", "transfer-encoding", "date", "server", "x-request-id"}
        ours |= {"x-content-type-options", "cache-control", "x-accel-buffering", "connection"}
        assert {name for name in came.headers if name not in ours} <= {"retry-after", "retry-after-ms"}
        if "retry-after" in came.headers:
            assert came.status == 503


@pytest.mark.parametrize("told", ["-1", "1e9", "99999999999", "Fri, 31 Dec 2999 23:59:59 GMT", "7; x", "\xb2", ""])
async def test_a_wait_that_makes_no_sense_is_ours(side: Side, told: str) -> None:
    busy = answer(b"{}", b"503 Busy", more=f"retry-after: {told}\r\n".encode("latin-1"))
    async with ScriptedPod([[busy]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(), key=gateway.key))
        assert (came.status, came.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("odd", [b"APPLICATION/JSON", b"application/json; charset=utf-7", b" application/json ;;,;\t"])
async def test_a_type_is_told_in_our_words(side: Side, odd: bytes) -> None:
    async with ScriptedPod([[GOOD.replace(b"application/json", odd)]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(), key=gateway.key))
        assert (came.status, came.headers["content-type"]) == (200, "application/json")


# Streams.


def error_of(came: Answer) -> dict[str, Any]:
    """The error event of a stream; it must be the last but `[DONE]`."""
    assert came.clean
    assert came.events[-1] == DONE
    told: dict[str, Any] = json.loads(came.events[-2].removeprefix(b"data: "))["error"]
    return told


@pytest.mark.parametrize(
    "said",
    [
        b"zz\r\n",
        b"0x6\r\n",
        b"-6\r\n",
        b"f" * 17 + b"\r\n",
        b"6;" + b"a" * (1 << 20),
        b"0\r\n" + b"x: CANARY\r\n" * 100_000,
    ],
    ids=["no-number", "with-base", "negative", "17-digits", "extension", "trailers"],
)
async def test_a_stream_that_stops_being_http_ends_with_the_truth(side: Side, said: bytes) -> None:
    async with ScriptedPod([[STREAM_HEAD, chunk(TOKEN), said, Hang]]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(stream=True), key=gateway.key))
        assert error_of(came)["code"] == "upstream_failed"
        assert came.events[:-2] == [TOKEN]
        assert CANARY not in came.body
        async with within(2):
            await pod.peer_left.wait()


def event_of(size: int) -> bytes:
    """A content event of so many bytes."""
    head, tail = b'data: {"choices":[{"index":0,"delta":{"content":"', b'"},"finish_reason":null}]}\n\n'
    return head + b"x" * (size - len(head) - len(tail)) + tail


async def test_an_event_of_a_mebibyte_passes_byte_for_byte(side: Side) -> None:
    event = event_of(1 << 20)
    script = [STREAM_HEAD, chunk(TOKEN), chunk(event), chunk(FINAL), chunk(DONE), LAST]
    async with ScriptedPod([script]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(stream=True), key=gateway.key))
        assert came.body == TOKEN + event + FINAL + DONE


async def test_an_event_without_end_is_not_collected(side: Side) -> None:
    script = [STREAM_HEAD, chunk(TOKEN), chunk(event_of(3 << 20)[:-2])] + [chunk(b"x" * (1 << 20))] * 200
    async with ScriptedPod([script]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(stream=True), key=gateway.key))
        assert error_of(came)["code"] == "upstream_failed"
        assert came.events[:-2] == [TOKEN]
        # It was stopped: what it would have sent does not fit into the sockets' buffers.
        async with within(2):
            await pod.peer_left.wait()


@pytest.mark.parametrize(
    "behind", [TOKEN, b": more\n\n", b"data: half", DONE], ids=["event", "comment", "half", "done"]
)
@pytest.mark.parametrize("apart", [False, True])
async def test_what_comes_behind_the_end_mark_is_dropped_with_its_connection(
    side: Side, behind: bytes, apart: bool
) -> None:
    end = [chunk(DONE), chunk(behind)] if apart else [chunk(DONE + behind)]
    script = [STREAM_HEAD, chunk(TOKEN), chunk(FINAL), *end, LAST]
    async with ScriptedPod([script]) as pod, running([pod], side=side) as gateway:
        came = await ask(gateway.port, request(chat(stream=True), key=gateway.key))
        assert (came.body, came.clean) == (TOKEN + FINAL + DONE, True)
        assert (await gateway.last_line())["outcome"] == "completed"
        async with within(2):
            while pod.connections:
                await asyncio.sleep(0.001)


# One connection, several answers.


async def test_an_answer_behind_a_large_one_is_not_sent_to_the_client(side: Side) -> None:
    text = b'{"choices":[{"index":0,"finish_reason":"stop","text":"%b"}]}' % (b"x" * 2_000_000)
    async with ScriptedPod([[answer(text) + answer(CANARY), Hang]]) as pod, running([pod], side=side) as gateway:
        client = await RawClient.connect(gateway.port)
        client.send(request(chat(), key=gateway.key))
        seen = bytearray()
        async with within(5):
            while CANARY not in seen and (data := await client.reader.read(65536)):
                seen += data
                if seen.endswith(text[-9:]):
                    break
        client.leave()
        assert CANARY not in seen
        async with within(2):
            await pod.peer_left.wait()


@pytest.mark.parametrize("late", [answer(CANARY), b"\r\n", CANARY], ids=["answer", "blank-line", "bytes"])
async def test_what_comes_while_nobody_asked_is_not_the_next_one_s_answer(side: Side, late: bytes) -> None:
    gone = asyncio.Event()
    async with ScriptedPod([[GOOD, gone, late, Hang], [GOOD]]) as pod, running([pod], side=side) as gateway:
        first = await ask(gateway.port, request(chat(), key=gateway.key))
        gone.set()
        async with within(2):
            await pod.peer_left.wait()
        second = await ask(gateway.port, request(chat(), key=gateway.key))
        assert (first.status, second.status) == (200, 200)
        assert CANARY not in second.body


# Requests that are not read.

BIG = chat(messages=[{"role": "user", "content": "x" * 7_000_000}])
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@asynccontextmanager
async def a_rude_pod(side: Side, talk: Talk, **more: Any) -> AsyncIterator[tuple[Running, asyncio.Event]]:
    """A gateway before a pod that reads of a POST no more than `talk` does; and an event: its connection was closed."""
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET"):
                writer.write(answer(MODELS))
            await talk(reader, writer)
            while await reader.read(1 << 16):
                pass
            left.set()
        except ConnectionError:
            left.set()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)

    class Pod:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async with server, running([Pod()], side=side, **more) as gateway:
        yield gateway, left


async def test_an_answer_before_its_request_was_read_is_one_and_the_connection_not_used_again(side: Side) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GOOD)
        await writer.drain()

    async with a_rude_pod(side, talk) as (gateway, left):
        came = await ask(gateway.port, request(BIG, key=gateway.key))
        assert came.status == 200
        assert gateway.gateway.pools.of(gateway.gateway.fleet.value.pods[0]).live == 0
        async with within(2):
            await left.wait()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_pod_that_never_reads_is_given_up_at_the_deadline(side: Side, stream: bool) -> None:
    never = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await never.wait()

    deadlines = {"ttft_seconds": 0.5, "response_seconds": 0.5}
    async with a_rude_pod(side, talk, pool=deadlines) as (gateway, left):
        came = await ask(gateway.port, request(BIG | {"stream": stream}, key=gateway.key))
        code = "upstream_ttft_timeout" if stream else "upstream_timeout"
        assert (came.status, came.error["code"]) == (504, code)
        await gateway.settled()
        never.set()
        async with within(2):
            await left.wait()


async def test_a_close_behind_a_head_is_no_answer(side: Side) -> None:
    for head in (OK + b"content-type: application/json\r\n\r\n", OK + b"content-type: application/json\r\n" + ENDLESS):
        async with ScriptedPod([[head, Close]]) as pod, running([pod], side=side) as gateway:
            came = await ask(gateway.port, request(chat(), key=gateway.key))
            assert came.status == 502
            assert CANARY not in came.body
