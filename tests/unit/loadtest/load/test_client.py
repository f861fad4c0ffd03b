"""Whatever a server does, the client makes one record of it, which says what it was."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.load.client import OUT_OF_CONNECTIONS, STALE_CONNECTION, Address, BadUrl, Bounds, Client
from loadtest.load.record import Ending, Record
from loadtest.load.schedule import Planned
from tests.certificates import Pair, certificate
from tests.fakes import STREAM_HEAD, Close, Hang, Reset, ScriptedPod, Step, answer, chunk
from tests.running import captured, captured_events
from tests.unit.loadtest.load.planning import planned

EVENTS = captured_events("12-chat-stream-usage.http")
STREAM: list[bytes] = [STREAM_HEAD, *map(chunk, EVENTS), b"0\r\n\r\n"]
BODY = captured("10-chat.http")[1].partition(b"\r\n\r\n")[2]
BOUNDS = Bounds(patience_seconds=60.0, connect_seconds=60.0)
SECONDS = 60.0
"""None of what is waited for takes so long, on a busy machine too."""


class Caller:
    """A client, and what it said of each request."""

    def __init__(self, url: str, bounds: Bounds) -> None:
        self.address = Address.of(url)
        self.client = Client(time.monotonic(), bounds, self._ended)
        self._ended_now: dict[int, asyncio.Future[None]] = {}
        self.still_open_at = 0.0
        """When `end_of` last looked at its watch, and the record went on."""

    def _ended(self, record: Record) -> None:
        self._ended_now[record.planned.number].set_result(None)  # raises when it is told twice

    def begin(self, request: Planned, key: str = "sk-test") -> Record:
        record = Record(request, intended_at=0.0, sent_at=0.0)
        self._ended_now[request.number] = asyncio.get_running_loop().create_future()
        self.client.ask(self.address, key, record)
        return record

    async def end_of(self, record: Record, seconds: float = SECONDS) -> Record:
        """The record, once it has ended. Meanwhile the client looks at its watch, as the player has it do."""
        async with asyncio.timeout(seconds):
            ended = self._ended_now[record.planned.number]
            while not ended.done():
                looked_at = self.client.now()
                self.client.sweep()
                if not ended.done():
                    self.still_open_at = looked_at
                await asyncio.sleep(0.005)
        return record

    async def ask(self, request: Planned, key: str = "sk-test") -> Record:
        return await self.end_of(self.begin(request, key))


@asynccontextmanager
async def calling(url: str, bounds: Bounds = BOUNDS) -> AsyncIterator[Caller]:
    caller = Caller(url, bounds)
    try:
        yield caller
    finally:
        await caller.client.close()


async def asked(script: list[Step], request: Planned, bounds: Bounds = BOUNDS) -> Record:
    async with ScriptedPod([script]) as pod, calling(pod.url, bounds) as caller:
        return await caller.ask(request)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


async def until_left(pod: ScriptedPod) -> None:
    async with asyncio.timeout(SECONDS):
        await pod.peer_left.wait()


# --- whole answers ------------------------------------------------------------------------------------------


async def test_a_whole_stream_is_whole_with_its_tokens_and_usage() -> None:
    record = await asked([*STREAM], planned(stream=True))
    assert (record.ending, record.status, record.code) == (Ending.WHOLE, 200, "")
    assert (record.tokens, record.prompt_tokens, record.completion_tokens) == (24, 34, 24)


async def test_moments_are_in_the_order_in_which_things_happened() -> None:
    record = await asked([STREAM_HEAD, *(step for event in STREAM[1:] for step in (0.01, event))], planned(stream=True))
    times = list(record.token_times)
    assert times == sorted(times)
    assert record.first_at == times[0]
    assert record.ended_at is not None
    assert 0 < record.sent_at < times[0] < times[-1] <= record.ended_at
    assert times[-1] - times[0] >= 0.01 * (len(times) - 1) / 2  # the first may have been heard late


async def test_a_whole_answer_is_whole_with_its_usage_and_the_moment_of_its_first_byte() -> None:
    head, _, body = answer(BODY).partition(b"\r\n\r\n")
    heard = asyncio.Event()
    script: list[Step] = [head + b"\r\n\r\n" + body[:100], heard, 0.03, body[100:]]
    async with ScriptedPod([script]) as pod, calling(pod.url) as caller:
        record = caller.begin(planned())
        await until(lambda: record.first_at is not None)
        heard.set()
        await caller.end_of(record)
    assert (record.ending, record.tokens) == (Ending.WHOLE, 0)
    assert (record.prompt_tokens, record.completion_tokens) == (34, 24)
    assert record.first_at is not None
    assert record.ended_at is not None
    assert record.ended_at - record.first_at >= 0.025


async def test_an_answer_that_ends_with_its_connection_is_whole() -> None:
    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
    assert (await asked([head + BODY, Close], planned())).ending is Ending.WHOLE
    assert (await asked([head, *EVENTS, Close], planned(stream=True))).ending is Ending.WHOLE
    assert (await asked([head, *EVENTS[:-1], Close], planned(stream=True))).ending is Ending.CUT


async def test_an_interim_answer_is_not_the_answer() -> None:
    record = await asked([b"HTTP/1.1 100 Continue\r\n\r\n", *STREAM], planned(stream=True))
    assert (record.status, record.ending) == (200, Ending.WHOLE)


async def test_an_answer_too_long_to_be_kept_is_heard_out() -> None:
    record = await asked([answer(BODY)], planned(), replace(BOUNDS, body_bytes=100))
    assert (record.ending, record.prompt_tokens) == (Ending.WHOLE, None)


async def test_the_pod_is_noted_where_it_is_named() -> None:
    named = answer(BODY, more=b"X-Poolgate-Pod: chat-0\r\n")
    assert (await asked([named], planned())).pod == "chat-0"
    assert (await asked([answer(BODY)], planned())).pod == ""


async def test_the_request_is_sent_as_it_was_planned_with_the_caller_s_key() -> None:
    async with ScriptedPod([[answer(BODY)]]) as pod, calling(pod.url + "/v1") as caller:
        await caller.ask(planned(0), "sk-one")
        await caller.ask(planned(1, path="/v1/embeddings"), "")
        first, second = pod.requests
    assert first.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % pod.port)
    assert b"\r\nAuthorization: Bearer sk-one\r\n" in first
    assert first.endswith(b"\r\n\r\n" + planned().body)
    assert second.startswith(b"POST /v1/embeddings ")
    assert b"authorization" not in second.lower()


# --- answers that are not whole -----------------------------------------------------------------------------


@pytest.mark.parametrize("end", [Close, Reset])
async def test_a_cut_stream_is_cut_and_keeps_what_came(end: type[Close] | type[Reset]) -> None:
    heard = asyncio.Event()  # a reset throws away what the client has not read yet
    async with ScriptedPod([[STREAM_HEAD, *map(chunk, EVENTS[:6]), heard, end]]) as pod, calling(pod.url) as caller:
        record = caller.begin(planned(stream=True))
        await until(lambda: record.tokens == 5)
        heard.set()
        await caller.end_of(record)
    assert (record.ending, record.status, record.tokens) == (Ending.CUT, 200, 5)
    assert record.ended_at is not None


async def test_a_stream_that_ends_properly_but_too_early_is_cut() -> None:
    record = await asked([STREAM_HEAD, *map(chunk, EVENTS[:-1]), b"0\r\n\r\n"], planned(stream=True))
    assert (record.ending, record.tokens) == (Ending.CUT, 24)


async def test_half_a_body_is_cut() -> None:
    record = await asked([answer(BODY)[:-20], Close], planned())
    assert (record.ending, record.status) == (Ending.CUT, 200)
    assert record.first_at is not None


async def test_a_connection_closed_without_an_answer_is_cut_and_has_no_status() -> None:
    record = await asked([Close], planned())
    assert (record.ending, record.status, record.code, record.first_at) == (Ending.CUT, 0, "", None)


async def test_a_stalled_stream_ends_when_patience_does_and_the_pod_sees_it() -> None:
    script: list[Step] = [STREAM_HEAD, *map(chunk, EVENTS[:6]), Hang]
    bounds = replace(BOUNDS, patience_seconds=0.2)
    async with ScriptedPod([script]) as pod, calling(pod.url, bounds) as caller:
        record = caller.begin(planned(stream=True))
        await until(lambda: record.tokens == 5)
        await caller.end_of(record)
        await until_left(pod)
    assert (record.ending, record.tokens) == (Ending.TIMEOUT, 5)
    assert record.ended_at is not None
    assert caller.still_open_at - record.sent_at <= 0.2 <= record.ended_at - record.sent_at


async def test_silence_is_a_timeout_without_a_status() -> None:
    record = await asked([Hang], planned(), replace(BOUNDS, patience_seconds=0.1))
    assert (record.ending, record.status, record.first_at) == (Ending.TIMEOUT, 0, None)


async def test_patience_is_counted_for_each_request_from_its_own_sending() -> None:
    going = asyncio.Event()
    async with ScriptedPod([[going, *STREAM]]) as pod, calling(pod.url) as caller:
        caller.client.zero -= 1000.0  # it has been there for long
        first = caller.begin(planned(0, stream=True))
        await until(lambda: len(pod.requests) == 1)
        second = caller.begin(planned(1, stream=True))
        await until(lambda: len(pod.requests) == 2)
        first.sent_at -= 100.0
        caller.client.sweep()
        going.set()
        assert (await caller.end_of(first)).ending is Ending.TIMEOUT
        assert (await caller.end_of(second)).ending is Ending.WHOLE


@pytest.mark.parametrize("rest", [[chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n"], [Close]])
async def test_an_error_event_is_told_whatever_comes_after_it(rest: list[Step]) -> None:
    error = chunk(b'data: {"error":{"message":"x","type":"server_error","code":"stream_cut"}}\n\n')
    record = await asked([STREAM_HEAD, *map(chunk, EVENTS[:6]), error, *rest], planned(stream=True))
    assert (record.ending, record.code, record.status, record.tokens) == (Ending.TOLD, "stream_cut", 200, 5)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (b"retry-after: 2\r\n", 2.0),
        (b"Retry-After: 2\r\nretry-after-ms: 1250\r\n", 1.25),
        (b"retry-after-ms: 1250\r\nretry-after: 2\r\n", 1.25),
        (b"retry-after: Wed, 21 Oct 2026 07:28:00 GMT\r\n", None),
        (b"", None),
    ],
)
async def test_a_429_says_how_long_to_wait_as_exactly_as_it_can(headers: bytes, seconds: float | None) -> None:
    body = b'{"error":{"message":"x","type":"rate_limit_error","code":"rate_limit_exceeded"}}'
    record = await asked([answer(body, b"429 Too Many Requests", more=headers)], planned(stream=True))
    assert (record.ending, record.status, record.code) == (Ending.ERROR, 429, "rate_limit_exceeded")
    assert record.retry_after == seconds
    assert record.tokens == 0


async def test_what_one_answer_said_of_waiting_is_not_the_next_one_s() -> None:
    status = b"429 Too Many Requests"
    exact = answer(b"{}", status, more=b"retry-after: 2\r\nretry-after-ms: 1250\r\n")
    rounded = answer(b"{}", status, more=b"retry-after: 7\r\n")
    async with ScriptedPod([[exact], [rounded]]) as pod, calling(pod.url) as caller:
        waits = [(await caller.ask(planned(number))).retry_after for number in range(2)]
        assert caller.client.connections_made == 1
    assert waits == [1.25, 7.0]


async def test_an_error_that_is_no_json_is_an_error_all_the_same() -> None:
    record = await asked([answer(b"Internal Server Error", b"500 Internal Server Error", b"text/plain")], planned())
    assert (record.ending, record.status, record.code) == (Ending.ERROR, 500, "")


async def test_a_200_that_is_no_json_is_not_whole() -> None:
    record = await asked([answer(b"<html>welcome</html>")], planned())
    assert (record.ending, record.code) == (Ending.CUT, "not_json")


async def test_what_is_no_http_is_cut_with_a_word() -> None:
    record = await asked([b"SSH-2.0-OpenSSH_9.6\r\n", Hang], planned())
    assert (record.ending, record.code, record.status) == (Ending.CUT, "not_http", 0)


async def test_a_stream_of_something_else_is_cut_with_a_word_and_heard_no_further() -> None:
    async with ScriptedPod([[STREAM_HEAD, chunk(b"data: <html>\n\n"), Hang]]) as pod, calling(pod.url) as caller:
        record = await caller.ask(planned(stream=True))
        await until_left(pod)
    assert (record.ending, record.code) == (Ending.CUT, "not_an_event")


async def test_where_nobody_listens_the_request_is_refused_and_says_why() -> None:
    async with ScriptedPod() as pod:
        url = pod.url
    async with calling(url) as caller:
        record = await caller.ask(planned())
    assert (record.ending, record.code, record.status) == (Ending.REFUSED, "ECONNREFUSED", 0)
    assert record.ended_at == record.sent_at > 0


async def test_a_name_without_an_address_is_refused() -> None:
    async with calling("http://nowhere.invalid:80", replace(BOUNDS, connect_seconds=2.0)) as caller:
        record = await caller.ask(planned())
    assert record.ending is Ending.REFUSED
    assert record.code


async def test_a_handshake_that_comes_to_nothing_is_a_refusal() -> None:
    async with ScriptedPod([[Hang]]) as pod:
        url = pod.url.replace("http:", "https:")
        async with calling(url, replace(BOUNDS, connect_seconds=0.1)) as caller:
            record = await caller.ask(planned())
    assert (record.ending, record.code) == (Ending.REFUSED, "connect_timeout")


@asynccontextmanager
async def served_by_tls(pair: Pair) -> AsyncIterator[str]:
    """The URL of a server that plays the stream once for each connection."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.cert, pair.key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.writelines(STREAM)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_server_is_asked_over_tls_if_its_certificate_is_believed_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = certificate(tmp_path)
    async with served_by_tls(pair) as url:
        async with calling(url) as caller:
            unbelieved = await caller.ask(planned(stream=True))
        monkeypatch.setenv("SSL_CERT_FILE", str(pair.cert))
        async with calling(url) as caller:
            believed = await caller.ask(planned(stream=True))
    assert (unbelieved.ending, unbelieved.code) == (Ending.REFUSED, "tls")
    assert (believed.ending, believed.tokens) == (Ending.WHOLE, 24)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:port", "http://a/v1/chat"])
def test_what_is_no_server_s_url_is_said_at_once(url: str) -> None:
    with pytest.raises(BadUrl, match="give"):
        Address.of(url)


def test_a_url_may_lead_to_the_v1_and_bear_a_name_and_no_port() -> None:
    address = Address.of("https://user:secret@gate.example/v1/")
    assert (address.host, address.port, address.tls, address.authority) == ("gate.example", 443, True, "gate.example")
    assert Address.of("http://[::1]:81").host == "::1"


# --- we leave -----------------------------------------------------------------------------------------------


async def test_who_leaves_after_some_tokens_has_heard_so_many_and_the_pod_sees_it() -> None:
    script: list[Step] = [STREAM_HEAD, *(step for event in EVENTS[:-1] for step in (chunk(event), 0.005)), Hang]
    async with ScriptedPod([script]) as pod, calling(pod.url) as caller:
        record = await caller.ask(planned(stream=True, leave_after_tokens=5))
        await until_left(pod)
    assert record.ending is Ending.LEFT
    assert 5 <= record.tokens < 20


async def test_who_leaves_after_some_seconds_goes_on_time_answer_or_none() -> None:
    async with ScriptedPod([[Hang]]) as pod, calling(pod.url) as caller:
        record = caller.begin(planned(leave_after=0.1))
        await until(lambda: len(pod.requests) == 1)
        gone_at_300_ms = asyncio.get_running_loop().create_future()
        # Late or not, a loop calls in the order of what is due.
        asyncio.get_running_loop().call_later(0.3, lambda: gone_at_300_ms.set_result(record.ended_at is not None))
        await until_left(pod)
        assert await gone_at_300_ms
    assert (record.ending, record.status) == (Ending.LEFT, 0)
    assert record.ended_at is not None
    assert record.ended_at - record.sent_at >= 0.098  # uvloop counts in milliseconds


async def test_who_would_have_left_later_hears_the_whole_answer_and_the_connection_stays() -> None:
    async with ScriptedPod([[*STREAM], [1.6, *STREAM]]) as pod, calling(pod.url) as caller:
        record = await caller.ask(planned(0, stream=True, leave_after=1.5, leave_after_tokens=1000))
        assert record.ending is Ending.WHOLE
        # Had the first one's leaving not been called off, it would break this answer.
        assert (await caller.ask(planned(1, stream=True))).ending is Ending.WHOLE
        assert caller.client.connections_made == 1


# --- connections --------------------------------------------------------------------------------------------


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async with ScriptedPod([[*STREAM], [answer(BODY)]]) as pod, calling(pod.url) as caller:
        for number in range(4):
            record = await caller.ask(planned(number, stream=number == 0))
            assert record.ending is Ending.WHOLE
        assert caller.client.connections_made == 1


async def test_a_request_never_waits_for_another_s_answer() -> None:
    scripts: list[list[Step]] = [[Hang], [answer(BODY)]]
    async with ScriptedPod(scripts) as pod, calling(pod.url) as caller:
        hanging = caller.begin(planned(0))
        async with asyncio.timeout(SECONDS):
            while not pod.requests:
                await asyncio.sleep(0.001)
        assert (await caller.ask(planned(1))).ending is Ending.WHOLE
        assert caller.client.connections_made == 2
        await caller.client.close()
        assert (await caller.end_of(hanging)).ending is Ending.TIMEOUT


async def test_a_connection_that_the_server_will_close_is_not_used_again() -> None:
    async with ScriptedPod([[answer(BODY, more=b"connection: close\r\n")]]) as pod, calling(pod.url) as caller:
        for number in range(3):
            assert (await caller.ask(planned(number))).ending is Ending.WHOLE
        assert caller.client.connections_made == 3


async def test_a_kept_connection_that_the_server_closed_meanwhile_is_not_used() -> None:
    async with ScriptedPod([[answer(BODY)]]) as pod, calling(pod.url) as caller:
        await caller.ask(planned(0))
        pod.close_idle()
        async with asyncio.timeout(SECONDS):
            while caller.client.open_connections:
                await asyncio.sleep(0.001)
        assert (await caller.ask(planned(1))).ending is Ending.WHOLE
        assert caller.client.connections_made == 2


async def test_what_nobody_asked_for_is_no_answer_to_the_next_request() -> None:
    unasked = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"
    async with ScriptedPod([[answer(BODY), 0.01, unasked, Hang], [answer(BODY)]]) as pod, calling(pod.url) as caller:
        await caller.ask(planned(0))
        await until_left(pod)
        assert (await caller.ask(planned(1))).status == 200
        assert caller.client.connections_made == 2


async def test_a_kept_connection_that_dies_with_the_request_on_it_is_told_apart() -> None:
    async with ScriptedPod([[answer(BODY)], [Close]]) as pod, calling(pod.url) as caller:
        await caller.ask(planned(0))
        record = await caller.ask(planned(1))
    assert (record.ending, record.status, record.code) == (Ending.CUT, 0, STALE_CONNECTION)


async def test_a_kept_connection_is_closed_when_nobody_wanted_it_for_long() -> None:
    async with ScriptedPod([[answer(BODY)]]) as pod, calling(pod.url, replace(BOUNDS, idle_seconds=0.05)) as caller:
        await caller.ask(planned(0))
        assert pod.connections == 1
        async with asyncio.timeout(SECONDS):
            while pod.connections:
                caller.client.sweep()
                await asyncio.sleep(0.005)


async def test_with_all_connections_in_use_a_request_is_not_sent_and_says_whose_fault_it_is() -> None:
    async with ScriptedPod([[Hang]]) as pod, calling(pod.url, replace(BOUNDS, connections=2)) as caller:
        for number in range(2):
            caller.begin(planned(number))
        record = await caller.ask(planned(2))
        assert (record.ending, record.code) == (Ending.REFUSED, OUT_OF_CONNECTIONS)
        async with asyncio.timeout(SECONDS):
            while len(pod.requests) < 2:
                await asyncio.sleep(0.001)
        assert pod.connections == 2


async def test_an_idle_connection_elsewhere_makes_room_for_a_new_one() -> None:
    bounds = replace(BOUNDS, connections=1)
    async with (
        ScriptedPod([[answer(BODY)]]) as here,
        ScriptedPod([[answer(BODY)]]) as there,
        calling(here.url, bounds) as caller,
    ):
        await caller.ask(planned(0))
        caller.address = Address.of(there.url)
        await asyncio.sleep(0)
        record = await caller.ask(planned(1))
        assert record.ending is Ending.WHOLE
        assert len(there.requests) == 1


async def test_after_the_end_no_connection_is_left() -> None:
    async with ScriptedPod([[Hang]]) as pod:
        async with calling(pod.url) as caller:
            records = [caller.begin(planned(number)) for number in range(5)]
            async with asyncio.timeout(SECONDS):
                while len(pod.requests) < 3:
                    await asyncio.sleep(0.001)
        for record in records:
            assert (await caller.end_of(record)).ending in (Ending.TIMEOUT, Ending.REFUSED)
        async with asyncio.timeout(SECONDS):
            while pod.connections:
                await asyncio.sleep(0.001)
