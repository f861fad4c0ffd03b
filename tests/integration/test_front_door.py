"""The public port's own protocol, byte by byte: what a client may send, how long it may take, and what it is told.

Only the edge is meant here: under another server these bounds are that server's.
"""

import asyncio
import dataclasses
import json
import tracemalloc
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from gateway.core.clock import Clock
from gateway.edge.bounds import Bounds
from tests.door import (
    BODY,
    EVENTS,
    GOOD,
    PATIENT,
    QUICK,
    SMUGGLED,
    STREAM,
    WHOLE,
    Door,
    door,
    refused,
    turn_the_loop,
    visitor,
)
from tests.fakes import STREAM_HEAD, Hands, Hang, ScriptedPod, answer, chunk
from tests.raw import Answer, chat, request
from tests.running import running
from tests.turns import within

# One connection, many requests.


async def test_one_connection_serves_many_requests() -> None:
    async with door() as at:
        for number in range(50):
            at.client.send(at.chat(user=str(number)))
            came = await at.client.answer()
            assert (came.status, came.clean) == (200, True)
            assert "connection" not in came.headers
        assert [json.loads(body)["user"] for body in at.bodies] == [str(number) for number in range(50)]
        assert len(at.gateway.gateway.edge.connections) == 1


async def test_an_error_of_the_pipeline_leaves_the_connection_usable() -> None:
    async with door() as at:
        at.client.send(request(chat() | {"model": "nope"}, key=at.gateway.key))
        assert (await at.client.answer()).status == 404
        at.client.send(at.chat())
        assert (await at.client.answer()).status == 200


async def test_a_client_that_wants_to_close_is_told_that_it_closes() -> None:
    async with door() as at:
        at.client.send(request(chat(), key=at.gateway.key, headers={"Connection": "close"}))
        came = await at.client.answer()
        assert (came.status, came.headers["connection"]) == (200, "close")
        assert await at.client.closed()


@pytest.mark.parametrize("script", [GOOD, STREAM], ids=["whole", "stream"])
async def test_a_closing_gateway_answers_what_it_took_and_says_that_it_closes(script: bytes) -> None:
    may_answer = asyncio.Event()
    async with door(may_answer, script) as at:
        at.client.send(at.chat(stream=script is STREAM))
        while not at.asked:
            await turn_the_loop()
        at.gateway.gateway.edge.close()
        may_answer.set()
        came = await at.client.answer()
        assert (came.status, came.headers["connection"], came.clean) == (200, "close", True)
        assert await at.client.closed()


# Pipelining: the first request is answered, then the connection closes.


@pytest.mark.parametrize(
    "behind",
    [
        SMUGGLED,
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET",
        b"POST /v1/ch",
        b"\x00\xff garbage\r\n\r\n",
        b"}",
        b"X-Trailer: canary\r\n\r\n",
    ],
    ids=["a-post", "a-get", "a-method", "half-a-head", "garbage", "one-byte", "a-trailer"],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_what_comes_behind_a_request_in_its_own_packet_is_not_served(behind: bytes, stream: bool) -> None:
    async with door(STREAM if stream else GOOD) as at:
        at.client.send(at.chat(stream=stream) + behind)
        came = await at.client.answer()
        assert (came.status, came.clean) == (200, True)
        assert came.body == (EVENTS if stream else WHOLE)
        if behind != b"GET":
            assert came.headers["connection"] == "close"
            assert await at.client.closed()
        assert at.asked == 1


async def test_a_second_request_before_the_firsts_answer_is_not_served_wherever_it_is_split() -> None:
    async with door() as at:
        second = at.chat(user="second")
        for cut in range(len(second) + 1):
            may_answer = asyncio.Event()
            at.pod.scripts = [[may_answer, GOOD]]
            async with visitor(at.gateway) as client:
                client.send(at.chat() + second[:cut])
                while at.asked == cut:
                    await turn_the_loop()
                (connection,) = (each for each in at.gateway.gateway.edge.connections if not each.idle)
                before = connection._behind_bytes
                client.send(second[cut:])
                async with within(5):
                    while second[cut:] and connection._behind_bytes == before:
                        await turn_the_loop()
                may_answer.set()
                came = await client.answer()
                assert (came.status, came.headers.get("connection"), came.body) == (200, "close", WHOLE), cut
                assert await client.closed(), cut
        assert at.bodies == [BODY] * (len(second) + 1)


async def test_a_request_whose_beginning_came_too_early_is_read_right_or_not_at_all() -> None:
    async with door() as at:
        second = at.chat(user="second")
        for cut in range(1, 60):
            before = at.asked
            async with visitor(at.gateway) as client:
                client.send(at.chat() + second[:cut])
                assert (await client.answer()).status == 200
                client.send(second[cut:])
                came = await client.answer()
                served = came.status == 200
                assert at.asked == before + 1 + served, cut
                assert json.loads(at.bodies[-1]).get("user") == ("second" if served else None)


# Framing of the request.


async def test_a_request_may_be_split_at_any_byte() -> None:
    async with door() as at:
        data = at.chat()
        for cut in range(1, len(data)):
            at.client.send(data[:cut])
            await turn_the_loop()
            at.client.send(data[cut:])
            assert (await at.client.answer()).status == 200, cut
        assert at.bodies == [BODY] * (len(data) - 1)


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_request_may_come_byte_by_byte(chunked: bool) -> None:
    async with door() as at:
        data = at.chat()
        if chunked:
            data = at.post(b"Transfer-Encoding: chunked", body=chunk(BODY[:7]) + chunk(BODY[7:]) + b"0\r\nx: y\r\n\r\n")
        for _ in range(2):
            for number in range(len(data)):
                at.client.send(data[number : number + 1])
                await turn_the_loop()
            assert (await at.client.answer()).status == 200
        assert at.bodies == [BODY, BODY]


async def test_a_chunked_body_arrives_with_a_length_and_without_its_extensions() -> None:
    async with door() as at:
        framed = b"5;a=b;canary\r\n%b\r\n" % BODY[:5] + chunk(BODY[5:]) + b"0;canary\r\n\r\n"
        at.client.send(at.post(b"Transfer-Encoding: chunked", body=framed))
        assert (await at.client.answer()).status == 200
        assert at.bodies == [BODY]
        assert b"\r\ncontent-length: %d\r\n" % len(BODY) in at.pod.requests[0]
        assert b"canary" not in at.pod.requests[0]


async def test_trailers_never_become_headers_of_this_request_or_the_next() -> None:
    trailers = (
        b"X-Request-Id: canary\r\nAccept: canary\r\nTraceparent: canary\r\nContent-Type: text/plain\r\n"
        b"Authorization: Bearer canary\r\nX-Api-Key: canary\r\nExpect: canary\r\nContent-Encoding: canary\r\n"
    )
    async with door() as at:
        for data in (
            at.post(b"Transfer-Encoding: chunked", body=chunk(BODY) + b"0\r\n" + trailers + b"\r\n"),
            at.chat(),
        ):
            at.client.send(data)
            came = await at.client.answer()
            assert came.status == 200
            assert came.headers["x-request-id"] != "canary"
        assert at.bodies == [BODY, BODY]
        assert b"canary" not in b"".join(at.pod.requests)
        trailer = b"Authorization: Bearer " + at.key
        at.client.send(at.post(b"Transfer-Encoding: chunked", body=chunk(BODY) + b"0\r\n" + trailer + b"\r\n\r\n"))
        assert (await at.client.answer()).status == 200
        at.client.send(request(chat()))
        assert (await at.client.answer()).status == 401


@pytest.mark.parametrize("line", [b"Content-Length: 3", b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"])
async def test_a_trailer_that_would_frame_the_body_again_is_refused(line: bytes) -> None:
    async with door() as at:
        body = chunk(BODY) + b"0\r\n" + line + b"\r\n\r\n" + SMUGGLED
        at.client.send(at.post(b"Transfer-Encoding: chunked", body=body))
        await refused(at, 400, "invalid_request")


# What smuggling is made of.

LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = chunk(BODY) + b"0\r\n\r\n"
SMUGGLING: dict[str, tuple[tuple[bytes, ...], bytes]] = {
    "length-and-coding": ((LENGTH, b"Transfer-Encoding: chunked"), CHUNKED),
    "coding-and-length": ((b"Transfer-Encoding: chunked", LENGTH), CHUNKED),
    "two-lengths": ((LENGTH, b"Content-Length: 5"), BODY),
    "the-same-length-twice": ((LENGTH, LENGTH), BODY),
    "a-list-of-lengths": ((b"Content-Length: %d, %d" % (len(BODY), len(BODY)),), BODY),
    "a-length-with-a-sign": ((b"Content-Length: +%d" % len(BODY),), BODY),
    "a-negative-length": ((b"Content-Length: -1",), BODY),
    "a-hexadecimal-length": ((b"Content-Length: 0x10",), BODY),
    "a-length-with-a-space": ((b"Content-Length: 1 0",), BODY),
    "a-length-with-an-underscore": ((b"Content-Length: 1_0",), BODY),
    "an-empty-length": ((b"Content-Length: ",), BODY),
    "an-endless-length": ((b"Content-Length: " + b"9" * 30,), BODY),
    "a-coding-like-chunked": ((b"Transfer-Encoding: xchunked",), CHUNKED),
    "a-coding-in-quotes": ((b'Transfer-Encoding: "chunked"',), CHUNKED),
    "two-codings": ((b"Transfer-Encoding: gzip, chunked",), CHUNKED),
    "a-coding-behind-chunked": ((b"Transfer-Encoding: chunked, gzip",), CHUNKED),
    "a-coding-behind-chunked-in-two-lines": ((b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip"), CHUNKED),
    "chunked-and-identity": ((b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"), CHUNKED),
    "identity": ((b"Transfer-Encoding: identity", LENGTH), BODY),
    "chunked-with-a-vertical-tab": ((b"Transfer-Encoding: \x0bchunked",), CHUNKED),
    "a-folded-coding": ((b"Transfer-Encoding:\r\n chunked",), CHUNKED),
    "a-folded-header": ((LENGTH, b"X-A: b\r\n\tContent-Length: 5"), BODY),
    "a-space-before-the-colon": ((LENGTH, b"Transfer-Encoding : chunked"), CHUNKED),
    "a-space-before-the-name": ((b" Transfer-Encoding: chunked", LENGTH), BODY),
    "a-header-without-a-colon": ((LENGTH, b"Transfer-Encoding"), BODY),
    "a-header-without-a-name": ((LENGTH, b": x"), BODY),
    "a-nul-in-a-value": ((LENGTH, b"X-A: a\x00b"), BODY),
    "a-nul-in-a-name": ((LENGTH, b"X-\x00A: b"), BODY),
    "a-bare-lf": ((LENGTH, b"X-A: b\nTransfer-Encoding: chunked"), BODY),
    "a-bare-cr": ((LENGTH, b"X-A: b\rTransfer-Encoding: chunked"), BODY),
    "chunk-size-with-a-sign": ((b"Transfer-Encoding: chunked",), b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk-size-below-nothing": ((b"Transfer-Encoding: chunked",), b"-1\r\nhello\r\n0\r\n\r\n"),
    "chunk-size-of-nothing": ((b"Transfer-Encoding: chunked",), b"\r\nhello\r\n0\r\n\r\n"),
    "chunk-size-with-a-space": ((b"Transfer-Encoding: chunked",), b"5 \r\nhello\r\n0\r\n\r\n"),
    "eight-bits-in-a-name": ((LENGTH, b"X-\xe4: b"), BODY),
    "chunk-size-in-0x": ((b"Transfer-Encoding: chunked",), b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk-size-beyond-64-bits": ((b"Transfer-Encoding: chunked",), b"1" + b"0" * 16 + b"5\r\nhello\r\n0\r\n\r\n"),
    "chunk-size-with-a-bare-lf": ((b"Transfer-Encoding: chunked",), b"5\nhello\r\n0\r\n\r\n"),
    "chunk-that-is-longer": ((b"Transfer-Encoding: chunked",), b"5\r\nhello!\r\n0\r\n\r\n"),
    "chunk-without-a-line-end": ((b"Transfer-Encoding: chunked",), b"5\r\nhello0\r\n\r\n"),
}


@pytest.mark.parametrize(("lines", "body"), SMUGGLING.values(), ids=SMUGGLING)
async def test_a_request_that_can_be_read_in_two_ways_is_not_read(lines: tuple[bytes, ...], body: bytes) -> None:
    async with door() as at:
        at.client.send(at.post(*lines, body=body + SMUGGLED))
        await refused(at, 400, "invalid_request")


@pytest.mark.parametrize(
    "start",
    [
        b"POST /v1/chat/completions HTTP/1.1\n",
        b"POST\t/v1/chat/completions\tHTTP/1.1\r\n",
        b"POST /v1/chat /completions HTTP/1.1\r\n",
        b"POST /v1/chat\x00/completions HTTP/1.1\r\n",
        b"POST /v1/chat\x7f/completions HTTP/1.1\r\n",
        b"post /v1/chat/completions HTTP/1.1\r\n",
        b"PO\x00ST /v1/chat/completions HTTP/1.1\r\n",
        b"BREW /v1/chat/completions HTTP/1.1\r\n",
        b"POST /v1/chat/completions\r\n",
        b"POST /v1/chat/completions HTTP/2.0\r\n",
        b"POST /v1/chat/completions HTTP/1.2\r\n",
        b"POST /v1/chat/completions HTTP/0.9\r\n",
        b"POST /v1/chat/completions HTTP/1.10\r\n",
        b"POST /v1/chat/completions http/1.1\r\n",
        b"POST /v1/chat/completions HTTPS/1.1\r\n",
        b"POST /v1/chat/completions ICE/1.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"HTTP/1.1 200 OK\r\n",
    ],
)
async def test_a_request_line_in_another_form_is_refused(start: bytes) -> None:
    async with door() as at:
        good = at.chat()
        at.client.send(start + good.partition(b"\r\n")[2])
        await refused(at, 400, "invalid_request")


@pytest.mark.parametrize(
    "start",
    [
        b"POST  /v1/chat/completions HTTP/1.1\r\n",
        b"POST /v1/chat/completions  HTTP/1.1\r\n",
        b"POST /v1/chat/completions RTSP/1.0\r\n",
    ],
)
async def test_what_llhttp_lets_pass_in_a_request_line_is_one_request(start: bytes) -> None:
    async with door() as at:
        at.client.send(start + at.chat().partition(b"\r\n")[2])
        assert (await at.client.answer()).status == 200
        assert at.bodies == [BODY]
        assert at.pod.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


async def test_a_chunk_size_with_leading_zeros_is_that_number() -> None:
    async with door() as at:
        framed = b"%024x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
        at.client.send(at.post(b"Transfer-Encoding: chunked", body=framed))
        assert (await at.client.answer()).status == 200
        assert at.bodies == [BODY]


async def test_two_codings_in_two_lines_are_two_codings() -> None:
    async with door() as at:
        at.client.send(at.post(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked", body=CHUNKED))
        await refused(at, 400, "invalid_request")


async def test_empty_lines_before_a_request_are_skipped() -> None:
    async with door() as at:
        at.client.send(b"\r\n\r\n" + at.chat())
        assert (await at.client.answer()).status == 200


@pytest.mark.parametrize("lines", [(b"Transfer-Encoding: chunked",), (b"Transfer-Encoding: chunked", LENGTH)])
async def test_http_1_0_knows_no_chunks(lines: tuple[bytes, ...]) -> None:
    async with door() as at:
        at.client.send(at.post(*lines, body=CHUNKED, version=b"HTTP/1.0"))
        await refused(at, 400, "invalid_request")


@pytest.mark.parametrize("more", [(), (b"Connection: keep-alive",)], ids=["plain", "keep-alive"])
@pytest.mark.parametrize("stream", [True, False])
async def test_http_1_0_gets_an_answer_without_chunks_that_ends_by_closing(
    stream: bool, more: tuple[bytes, ...]
) -> None:
    async with door(STREAM if stream else GOOD) as at:
        body = json.dumps(chat(stream=stream)).encode()
        at.client.send(at.post(b"Content-Length: %d" % len(body), *more, body=body, version=b"HTTP/1.0"))
        async with within(5):
            head, _, came = (await at.client.reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection: close" in head.split(b"\r\n")
        assert b"transfer-encoding" not in head
        assert came == (EVENTS if stream else WHOLE)


@pytest.mark.parametrize(
    "lines",
    [
        (b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13", LENGTH),
        (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA", LENGTH),
    ],
    ids=["websocket", "h2c"],
)
async def test_an_upgrade_is_refused(lines: tuple[bytes, ...]) -> None:
    async with door() as at:
        at.client.send(at.post(*lines, body=BODY))
        came = await refused(at, 400, "invalid_request")
        assert "upgrade" in came.error["message"]


async def test_no_tunnel_is_opened() -> None:
    async with door() as at:
        at.client.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % at.pod.port + SMUGGLED)
        await refused(at, 400, "invalid_request")


# Bounds of the head.


def padded(at: Door, count: int) -> bytes:
    """A good request with this many headers in all."""
    present = at.chat().partition(b"\r\n\r\n")[0].count(b"\r\n")
    return request(chat(), key=at.gateway.key, headers={f"x-{number}": "y" for number in range(count - present)})


async def test_a_hundred_headers_are_read_and_more_are_not() -> None:
    async with door() as at:
        at.client.send(padded(at, 100))
        assert (await at.client.answer()).status == 200
    async with door() as at:
        at.client.send(padded(at, 101))
        await refused(at, 431, "headers_too_large")


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "without-an-end"])
@pytest.mark.parametrize("packet", [1 << 20, 1024], ids=["at-once", "in-pieces"])
async def test_a_head_of_more_than_32_kib_is_refused(whole: bool, packet: int) -> None:
    async with door() as at:
        data = at.post(LENGTH, *[b"x-%d: %b" % (number, b"y" * 1000) for number in range(33)], body=BODY)
        if not whole:
            data = data[:33_000]
            assert b"\r\n\r\n" not in data
        for start in range(0, len(data), packet):
            at.client.send(data[start : start + packet])
            await turn_the_loop()
        await refused(at, 431, "headers_too_large")


async def test_a_head_of_just_under_32_kib_is_read() -> None:
    async with door() as at:
        at.client.send(at.post(LENGTH, *[b"x-%d: %b" % (number, b"y" * 1000) for number in range(31)], body=BODY))
        assert (await at.client.answer()).status == 200


@pytest.mark.parametrize("name", [b"X-Long", b"Authorization"])
async def test_a_header_of_more_than_8_kib_is_refused(name: bytes) -> None:
    async with door() as at:
        at.client.send(at.post(LENGTH, name + b": " + b"y" * 8200, body=BODY))
        await refused(at, 431, "headers_too_large")


async def test_a_url_of_8_kib_is_read_and_a_longer_one_is_not() -> None:
    path = "/v1/chat/completions?"
    async with door() as at:
        at.client.send(request(chat(), key=at.gateway.key, path=path + "x" * (8192 - len(path))))
        assert (await at.client.answer()).status == 200
        at.client.send(request(chat(), key=at.gateway.key, path=path + "x" * (8193 - len(path))))
        came = await at.client.answer()
        assert (came.status, came.error["code"], came.headers["connection"]) == (414, "uri_too_long", "close")
        assert await at.client.closed()
        assert at.asked == 1


@pytest.mark.parametrize("packet", [1 << 20, 1000], ids=["at-once", "in-pieces"])
async def test_a_url_that_does_not_end_is_refused(packet: int) -> None:
    async with door() as at:
        data = b"POST /" + b"x" * 9000 + (b"" if packet > 9000 else b" HTTP/1.1\r\nHost: x\r\n\r\n")
        for start in range(0, len(data), packet):
            at.client.send(data[start : start + packet])
            await turn_the_loop()
        await refused(at, 414, "uri_too_long")


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "Content-Type", "X-Request-Id", "Expect"])
async def test_a_header_that_means_one_thing_may_stand_there_once(name: str) -> None:
    async with door() as at:
        data = request(chat(), headers={"x-api-key": at.gateway.key, "X-Request-Id": "a", "Expect": "100-continue"})
        value = f"Bearer {at.gateway.key}" if name == "Authorization" else "a"
        line = f"{name}: {value}\r\n".encode()
        at.client.send(data.replace(b"\r\n\r\n", b"\r\n" + line * 2 + b"\r\n", 1))
        came = await refused(at, 400, "invalid_request")
        assert name.lower() in came.error["message"]


# Expect.


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_good_head_that_expects_100_gets_100_and_then_its_answer(chunked: bool) -> None:
    async with door() as at:
        framing, body = (b"Transfer-Encoding: chunked", CHUNKED) if chunked else (LENGTH, BODY)
        at.client.send(at.post(framing, b"Expect: 100-Continue"))
        async with within(5):
            assert await at.client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert at.asked == 0
        at.client.send(body)
        came = await at.client.answer()
        assert (came.status, came.interim, at.bodies) == (200, 0, [BODY])
        at.client.send(at.chat())
        assert (await at.client.answer()).interim == 0


@pytest.mark.parametrize(
    ("lines", "status", "code"),
    [
        ((b"Content-Length: 4097", b"Expect: 100-continue"), 413, "body_too_large"),
        ((b"Content-Length: 4097",), 413, "body_too_large"),
        ((b"Content-Length: 18446744073709551615", b"Expect: 100-continue"), 413, "body_too_large"),
        ((b"Content-Length: 9", b"Expect: 200-ok"), 417, "expectation_failed"),
        ((b"Content-Length: 9", b"Expect: 100-continue", b"Content-Encoding: gzip"), 415, "unsupported_media_type"),
        ((b"Content-Length: 9", b"Expect: 100-continue", b"x-api-key: other"), 401, "invalid_api_key"),
    ],
)
async def test_a_head_that_is_refused_gets_no_100(lines: tuple[bytes, ...], status: int, code: str) -> None:
    async with door(max_body_bytes=4096) as at:
        at.client.send(at.post(*lines))
        came = await refused(at, status, code)
        assert came.interim == 0


async def test_an_expectation_that_cannot_be_met_is_refused_without_a_body_too() -> None:
    async with door() as at:
        at.client.send(request(b"", key=at.gateway.key, path="/v1/models", method="GET", headers={"Expect": "cake"}))
        await refused(at, 417, "expectation_failed")


async def test_http_1_0_gets_no_interim_answer() -> None:
    async with door() as at:
        at.client.send(at.post(LENGTH, b"Expect: 100-continue", body=BODY, version=b"HTTP/1.0"))
        assert (await at.client.answer()).interim == 0


async def test_the_answer_to_a_head_has_no_body() -> None:
    async with door() as at:
        at.client.send(b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        async with within(5):
            assert (await at.client.reader.read()).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "hosts",
    [
        b"",
        b"Host: test\r\nHost: test\r\n",
        b"Host:\r\n",
        b"Host: a, b\r\n",
        b"Host: a b\r\n",
        b"Host: http://a\r\n",
        b"Host: a/v1/models\r\n",
        b"Host: x/abc?bar=\r\n",
        b"Host: a#b\r\n",
        b"Host: a@b\r\n",
        b"Host: a\\b\r\n",
        b"Host: a:80:80\r\n",
        b"Host: a:-1\r\n",
        b"Host: a:123456\r\n",
        b"Host: [::1\r\n",
        b"Host: ::1\r\n",
        b"Host: %61\r\n",
        b"Host: \xe4.de\r\n",
        b"Host: a\tb\r\n",
        b"Host: " + b"a" * 256 + b"\r\n",
    ],
)
async def test_a_request_names_one_host_that_is_one(hosts: bytes) -> None:
    async with door() as at:
        # A proper one was seen before: what is remembered is no other.
        at.client.send(at.chat())
        assert (await at.client.answer()).status == 200
        at.pod.requests.clear()
        at.client.send(at.chat().replace(b"Host: test\r\n", hosts))
        await refused(at, 400, "invalid_request")


@pytest.mark.parametrize(
    "host",
    [
        b"a",
        b"gpu_gateway.ml.svc.cluster.local:8000",
        b"10.0.0.1:80",
        b"[2001:db8::1]",
        b"[::1]:8000",
        b"EXAMPLE.com.",
        b"a:",
    ],
)
async def test_a_host_is_a_name_or_an_address_and_perhaps_a_port(host: bytes) -> None:
    async with door() as at:
        for _ in range(2):
            at.client.send(at.chat().replace(b"Host: test", b"Host: " + host))
            assert (await at.client.answer()).status == 200


async def test_hosts_without_number_take_no_memory_without_bound() -> None:
    async with door() as at:
        for number in range(1100):
            at.client.send(at.chat().replace(b"Host: test", b"Host: h%d" % number))
            assert (await at.client.answer()).status == 200
        assert len(at.gateway.gateway.edge.hosts) == 1024


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        (b"GET", b"/v1/chat/completions", 405, "POST"),
        (b"HEAD", b"/v1/models", 405, "GET"),
        (b"OPTIONS", b"/v1/models", 405, "GET"),
        (b"TRACE", b"/v1/models", 405, "GET"),
        (b"DELETE", b"/v1/models/m", 405, "GET"),
        (b"PROPFIND", b"/v1/chat/completions", 405, "POST"),
        (b"TRACE", b"/", 404, None),
        (b"OPTIONS", b"*", 404, None),
        (b"GET", b"http://test/v1/models", 404, None),
        (b"GET", b"https://user@test/v1/models", 404, None),
    ],
)
async def test_what_is_http_but_no_route_is_404_or_405(
    method: bytes, path: bytes, status: int, allow: str | None
) -> None:
    async with door() as at:
        lines = (b"Host: test", b"X-Canary: canary", b"X-HTTP-Method-Override: POST", b"", b"")
        at.client.send(b"%b %b HTTP/1.1\r\n" % (method, path) + b"\r\n".join(lines))
        async with within(5):
            head, _, body = (await at.client.reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        told = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        assert told.get(b"allow") == (allow and allow.encode())
        assert told[b"x-request-id"]
        assert b"canary" not in head + body
        assert at.asked == 0


# Deadlines.


async def dripped(at: Door, hands: Hands, data: bytes) -> Answer:
    """Send a byte, let a fiftieth of a second pass, send the next: the answer that cuts this short."""
    begun = asyncio.create_task(at.client.answer())
    (connection,) = at.gateway.gateway.edge.connections
    for number in range(len(data)):
        at.client.send(data[number : number + 1])
        await turn_the_loop()
        while connection.idle:
            # No time passes before the first of them has been read.
            await turn_the_loop()
        hands.now += 0.02
        at.gateway.gateway.sweep()
        if begun.done():
            break
    return await begun


async def test_a_silent_connection_is_closed_without_a_word() -> None:
    async with door(bounds=QUICK) as at:
        assert await at.client.closed()
        assert at.gateway.lines() == []
        assert at.gateway.gateway.edge.connections == set()


async def test_an_idle_connection_is_closed_without_a_word() -> None:
    async with door(bounds=Bounds(idle_seconds=0.3)) as at:
        at.client.send(at.chat())
        assert (await at.client.answer()).status == 200
        assert await at.client.closed()
        assert [line["status"] for line in at.gateway.lines()] == [200]


@pytest.mark.parametrize("used", [True, False], ids=["second-request", "first-request"])
async def test_a_dripped_head_is_a_408(used: bool) -> None:
    hands = Hands()
    async with door(bounds=Bounds(head_seconds=0.3, linger_seconds=0.3), clock=Clock(hands)) as at:
        if used:
            at.client.send(at.chat())
            await at.client.answer()
            at.pod.requests.clear()
        async with within(4):
            came = await dripped(at, hands, at.chat())
        assert (came.status, came.error["code"], came.headers["connection"]) == (408, "request_timeout", "close")
        assert await at.client.closed()
        assert at.asked == 0


@pytest.mark.parametrize("framing", [LENGTH, b"Transfer-Encoding: chunked"], ids=["length", "chunks"])
async def test_a_dripped_body_is_a_408(framing: bytes) -> None:
    hands = Hands()
    async with door(bounds=Bounds(body_seconds=0.3, linger_seconds=0.3), clock=Clock(hands)) as at:
        at.client.send(at.post(framing))
        body = BODY if framing is LENGTH else b"".join(chunk(b"%c" % byte) for byte in BODY)
        async with within(4):
            came = await dripped(at, hands, body)
        assert (came.status, came.error["code"], came.headers["connection"]) == (408, "request_timeout", "close")
        assert await at.client.closed()
        assert at.asked == 0
        line = await at.gateway.last_line()
        assert (line["operation"], line["tenant"], line["code"]) == ("chat", "tests", "request_timeout")


async def test_empty_lines_do_not_keep_a_connection_open() -> None:
    hands = Hands()
    async with door(bounds=Bounds(head_seconds=0.3, linger_seconds=0.3), clock=Clock(hands)) as at:
        async with within(4):
            came = await dripped(at, hands, b"\r\n" * 500)
        assert came.status == 408


async def test_the_deadlines_of_a_request_end_with_its_arrival() -> None:
    may_answer, hands = asyncio.Event(), Hands()
    async with door(may_answer, GOOD, bounds=QUICK, clock=Clock(hands)) as at:
        at.client.send(at.chat())
        while not at.asked:
            await turn_the_loop()
        begun = asyncio.create_task(at.client.answer())
        # Together longer than any of the bounds.
        for _ in range(9):
            hands.now += 0.1
            at.gateway.gateway.sweep()
            await asyncio.wait((begun,), timeout=0.01)
        assert not begun.done()
        may_answer.set()
        assert (await begun).status == 200


# Refusals that can be read.


async def test_a_refusal_can_be_read_by_a_client_that_first_sends_all_it_has() -> None:
    body = b"x" * (6 << 20)
    async with door() as at:
        head = request(b"", key="sk-wrong", headers={"Content-Length": str(len(body) * 2)})
        at.client.send(head + body[:100])
        await turn_the_loop()
        at.client.send(body)
        async with within(5):
            await at.client.writer.drain()
        came = await at.client.answer()
        assert (came.status, came.clean, came.error["code"]) == (401, True, "invalid_api_key")
        assert at.asked == 0


async def test_a_client_that_sends_on_after_its_refusal_is_cut() -> None:
    async with door(bounds=Bounds(linger_seconds=0.3)) as at:
        at.client.send(request(b"", key="sk-wrong", headers={"Content-Length": str(1 << 40)}))
        assert (await at.client.answer()).status == 401

        async def until_cut() -> None:
            while True:
                at.client.send(b"x" * 1000)
                await at.client.writer.drain()
                await asyncio.sleep(0.005)

        with pytest.raises(ConnectionError):
            async with within(3):
                await until_cut()
        assert at.gateway.gateway.edge.connections == set()


async def test_framing_that_outweighs_its_body_is_refused() -> None:
    async with door(max_body_bytes=1024) as at:
        at.client.send(at.post(b"Transfer-Encoding: chunked"))
        await turn_the_loop()
        for _ in range(40):
            at.client.send(b"1;" + b"x" * 1000 + b"\r\n \r\n")
            await turn_the_loop()
        await refused(at, 400, "invalid_request")


@pytest.mark.parametrize("extension", [b";" + b"x" * 200_000, b";" + b"a=b;" * 50_000], ids=["one", "many"])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_chunk_extension_of_200_kb_is_refused(extension: bytes, at_once: bool) -> None:
    async with door() as at:
        data = at.post(b"Transfer-Encoding: chunked", body=b"5" + extension + b"\r\n" + BODY[:5] + b"\r\n")
        data += chunk(BODY[5:]) + b"0\r\n\r\n"
        if at_once:
            # A socket would give it in pieces, unless it is asked late.
            (connection,) = at.gateway.gateway.edge.connections
            connection.data_received(data)
        else:
            for start in range(0, len(data), 5000):
                at.client.send(data[start : start + 5000])
                await turn_the_loop()
        await refused(at, 400, "invalid_request")


async def test_a_body_of_many_small_chunks_is_read() -> None:
    async with door() as at:
        body = json.dumps(chat(user="x" * 50_000)).encode()
        framed = b"".join(chunk(body[start : start + 1]) for start in range(len(body)))
        at.client.send(at.post(b"Transfer-Encoding: chunked", body=framed + b"0\r\n\r\n"))
        assert (await at.client.answer()).status == 200
        assert at.bodies == [body]


async def test_trailers_are_neither_gathered_nor_endless() -> None:
    async with door(max_body_bytes=1 << 20) as at:
        at.client.send(at.post(b"Transfer-Encoding: chunked"))
        at.client.send(chunk(BODY) + b"0\r\n")
        await turn_the_loop()
        tracemalloc.start()
        try:
            for _ in range(100):
                at.client.send(b"ab:cd\r\n" * 1000)
                await turn_the_loop()
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 1_000_000
        await refused(at, 400, "invalid_request")


# A client that does not read.


async def test_a_reader_that_stalls_is_cut_and_its_pod_freed() -> None:
    big = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 60_000 + b'"},"finish_reason":null}]}\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    may_go_on = asyncio.Event()
    async with door(head, big, may_go_on, *[big] * 500, Hang, bounds=Bounds(stalled_seconds=0.3)) as at:
        at.client.send(at.chat(stream=True))
        await at.client.reader.readuntil(b"content")
        # It was looked at, and was well.
        edge, swept = at.gateway.gateway.edge, at.gateway.gateway.edge.now
        while edge.now < swept + 0.5:
            await asyncio.sleep(0.01)
        may_go_on.set()
        # From here on nothing is read.
        async with within(4):
            await at.pod.peer_left.wait()
        line = await at.gateway.last_line()
        assert (line["outcome"], line["status"]) == ("client_left", 200)
        assert at.gateway.gateway.edge.connections == set()


@pytest.mark.parametrize("keeps", [True, False], ids=["that-is-kept", "that-closes"])
async def test_a_connection_whose_answer_is_not_read_is_cut_however_long_it_may_idle(keeps: bool) -> None:
    large = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"x":"' + b"x" * 900_000 + b'"}')
    async with door(large, bounds=dataclasses.replace(PATIENT, stalled_seconds=0.3, linger_seconds=30)) as at:
        edge = at.gateway.gateway.edge
        at.client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport can
        # Some of these fill the socket's buffers of both sides, and then the transport's.
        (connection,) = edge.connections
        while not connection.stalled:
            asked = at.asked
            at.client.send(at.chat())
            while at.asked == asked:
                await asyncio.sleep(0.001)
            await at.gateway.settled()
            assert asked < 30
        if not keeps:
            edge.closing = True
            at.client.send(at.chat())
        async with within(4):
            while edge.connections:
                await asyncio.sleep(0.01)


async def test_a_slow_reader_that_reads_is_not_cut() -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 60_000 + b'"},"finish_reason":null}]}\n\n'
    last = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    may_end = asyncio.Event()
    script = [STREAM_HEAD, *[chunk(event)] * 300, may_end, chunk(last), b"0\r\n\r\n"]
    hands = Hands()
    async with door(*script, bounds=Bounds(stalled_seconds=0.6), clock=Clock(hands)) as at:
        at.client.send(at.chat(stream=True))
        (connection,) = at.gateway.gateway.edge.connections
        began = hands()
        async with within(15):
            while not connection.stalled:
                await turn_the_loop()
            # Slower than the stream, for longer than a client may stall.
            read = 0
            while read < 300 * len(event):
                data = await at.client.reader.read(150_000)
                assert data, "cut, though it read"
                read += len(data)
                await asyncio.sleep(0.005)
                hands.now += 0.02
                at.gateway.gateway.sweep()
            assert hands() - began > 1.2
        # It has caught up; that it was slow once is forgiven.
        rest = asyncio.create_task(at.client.reader.readuntil(b"\r\n0\r\n\r\n"))
        for _ in range(12):
            hands.now += 0.1
            at.gateway.gateway.sweep()
            await asyncio.wait((rest,), timeout=0.01)
        assert not rest.done()
        may_end.set()
        async with within(5):
            assert b"[DONE]" in await rest
        assert (await at.gateway.last_line())["outcome"] == "completed"


async def test_a_stream_behind_an_unread_answer_holds_up_the_pod_and_not_the_memory() -> None:
    large = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"x":"' + b"x" * 900_000 + b'"}')
    big = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 60_000 + b'"},"finish_reason":null}]}\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    # Eight answers of nearly 1 MiB each fill the socket's buffers of both sides, and then the transport's.
    scripts: list[list[Any]] = [[large] for _ in range(8)]
    scripts.append([head, *[big] * 1000, Hang])
    async with ScriptedPod(scripts) as pod, running([pod], bounds=PATIENT) as gateway, visitor(gateway) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport can
        for number in range(9):
            client.send(request(chat(stream=number == 8), key=gateway.key))
            while len(pod.requests) <= number:
                await asyncio.sleep(0.001)
            if number < 8:
                await gateway.settled()
        connection = next(iter(gateway.gateway.edge.connections))
        held = []
        for _ in range(100):
            await asyncio.sleep(0.005)
            held.append(connection._transport.get_write_buffer_size())  # type: ignore[union-attr]
        assert held[-1] < held[0] + 2_000_000


# What every answer bears.


async def test_every_answer_is_dated_and_numbered_and_not_to_be_sniffed() -> None:
    async with door() as at:
        edge = at.gateway.gateway.edge
        for number in range(3):
            began, looked = datetime.now(UTC), edge.now
            async with within(5):
                while edge.now == looked:
                    await asyncio.sleep(0.01)
            at.client.send(
                [
                    at.chat(),
                    request(b"", key=at.gateway.key, path="/v1/models", method="GET"),
                    request(b"", key=at.gateway.key, path="/none"),
                ][number]
            )
            came = await at.client.answer()
            # It is that of the gateway's last look at the clock, without its fraction.
            sent = parsedate_to_datetime(came.headers["date"])
            assert began - timedelta(seconds=1) < sent <= datetime.now(UTC)
            assert came.headers["date"].endswith(" GMT")
            assert came.headers["x-content-type-options"] == "nosniff"
            assert len(came.headers["x-request-id"]) == 24
            assert "server" not in came.headers


async def test_an_error_of_a_head_that_could_not_be_read_is_logged_without_what_was_in_it() -> None:
    async with door() as at:
        at.client.send(b"canary /canary canary/1.1\r\ncanary: canary\r\n\r\n")
        came = await refused(at, 400, "invalid_request")
        line = await at.gateway.last_line()
        assert line["request_id"] == came.headers["x-request-id"]
        assert (line["operation"], line["status"], line["outcome"]) == ("other", 400, "refused")
        assert b"canary" not in at.gateway.out.getvalue() + came.body


async def test_nothing_is_left_of_clients_that_come_and_go() -> None:
    async with door() as at:
        for number in range(60):
            async with visitor(at.gateway) as client:
                client.send(at.chat()[: number * 5])
                await turn_the_loop()
        async with within(5):
            while len(at.gateway.gateway.edge.connections) > 1:
                await turn_the_loop()
        await at.gateway.settled()
