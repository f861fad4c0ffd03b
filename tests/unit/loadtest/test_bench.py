"""The bench counts what was spent, sends what a vLLM sends, and believes no broken answer."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import httptools
import pytest
import uvloop
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway.config.keys import load_keys
from gateway.config.reading import load_config
from gateway.limits.keys import KeyRing, well_formed
from loadtest.bench import report
from loadtest.bench.__main__ import SIGNALS, in_turn, until_signalled
from loadtest.bench.accounting import (
    Cpu,
    Memory,
    cpu_of,
    difference,
    memory_of,
    parse_schedstat,
    parse_smaps_rollup,
    parse_stat_ticks,
    process_tree,
)
from loadtest.bench.backend import METRICS_BYTES, metrics_body, serving
from loadtest.bench.client import (
    NotWhole,
    Repeated,
    RequestLoad,
    Streamed,
    StreamLoad,
    Timed,
    TimedLoad,
    open_loops,
    open_streams,
)
from loadtest.bench.meaning import RepeatedByMeaning, TimedByMeaning
from loadtest.bench.pacer import Pacer, on_grid
from loadtest.bench.processes import BenchError, alone, child, wait_until
from loadtest.bench.report import Cell, Round, cell, quartiles, side_by_side, written
from loadtest.bench.scenarios import FULL, Bench, Chunks, Figures, OpenStreams, Requests
from loadtest.bench.targets import TARGETS, Running, gateway_config, keys_entry, new_key
from loadtest.bench.wire import (
    COMPLETION,
    LAST_CHUNK,
    MODEL,
    MODELS,
    STREAM_HEAD,
    StreamBytes,
    Wish,
    chat_body,
    chat_request,
    json_answer,
    spread,
    stream_body,
    wish_in,
)
from loadtest.percentiles import percentile
from loadtest.stand.ports import lasting_ports

REPOSITORY = Path(__file__).resolve().parents[3]

# --- accounting ---------------------------------------------------------------------------------------------


def test_schedstat_is_read_as_time_on_a_core_and_time_waiting_for_one() -> None:
    assert parse_schedstat("541902603 722962 39\n") == (541902603, 722962)


@pytest.mark.parametrize("name", ["nginx", "tmux: server", "a) R 1 (b", "((sd-pam))"])
def test_ticks_are_found_behind_any_process_name(name: str) -> None:
    fields = "S 1 77 77 0 -1 4194560 900 0 0 0 1234 56 7 8 20 0 1 0 5000 1000 200"
    assert parse_stat_ticks(f"77 ({name}) {fields}\n") == 1234 + 56


def test_memory_is_read_in_bytes_and_private_pages_are_the_uss() -> None:
    text = (
        "55d0c8a00000-7ffd5a3f9000 ---p 00000000 00:00 0                          [rollup]\n"
        "Rss:               12345 kB\nPss:                6000 kB\nPss_Dirty:            10 kB\n"
        "Private_Clean:        40 kB\nPrivate_Dirty:      2000 kB\nSwap:                  0 kB\n"
    )
    assert parse_smaps_rollup(text) == Memory(rss=12345 * 1024, pss=6000 * 1024, uss=2040 * 1024)


def test_a_thread_that_began_in_the_window_counts_whole() -> None:
    before = Cpu(threads={(7, 7): (100, 10)}, ticks={7: 1})
    after = Cpu(threads={(7, 7): (150, 15), (7, 8): (30, 3)}, ticks={7: 2})
    spent = difference(before, after)
    assert (spent.cpu_ns, spent.waited_ns, spent.exact) == (80, 8, True)


def test_when_a_thread_ended_in_the_window_its_time_is_taken_from_the_process_in_ticks() -> None:
    before = Cpu(threads={(7, 7): (100, 10), (7, 8): (900, 0)}, ticks={7: 5})
    after = Cpu(threads={(7, 7): (150, 15)}, ticks={7: 8})
    spent = difference(before, after)
    assert not spent.exact
    assert spent.cpu_ns == 3 * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


_readings = st.dictionaries(
    st.tuples(st.integers(1, 4), st.integers(1, 9)), st.tuples(st.integers(0, 10**12), st.integers(0, 10**12))
)


@given(_readings, st.integers(0, 10**9), st.integers(0, 10**9))
def test_what_was_spent_is_the_sum_over_all_threads(
    threads: dict[tuple[int, int], tuple[int, int]], ran: int, waited: int
) -> None:
    later = {thread: (run + ran, wait + waited) for thread, (run, wait) in threads.items()}
    spent = difference(Cpu(threads, {}), Cpu(later, {}))
    assert (spent.cpu_ns, spent.waited_ns, spent.exact) == (ran * len(threads), waited * len(threads), True)


BURN_IN_A_GRANDCHILD_AND_A_THREAD = """
import os, sys, threading, time
os.read(0, 1)
def burn(seconds):
    begin = time.thread_time()
    while time.thread_time() - begin < seconds: pass
if os.fork() == 0:
    if os.fork() == 0:
        burn(0.06); os.write(1, b"g")
    sys.stdin.read(); os._exit(0)
thread = threading.Thread(target=lambda: (burn(0.06), os.write(1, b"t"), sys.stdin.read()), daemon=True)
thread.start()
burn(0.06); os.write(1, b"m"); sys.stdin.read()
"""


def test_cpu_time_of_a_whole_process_tree_is_counted_threads_and_children_included() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BURN_IN_A_GRANDCHILD_AND_A_THREAD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        begin = cpu_of(process_tree(process.pid))
        process.stdin.write(b"!")
        process.stdin.flush()
        assert set(process.stdout.read(3)) == set(b"gmt")  # all three have burnt their share
        tree = process_tree(process.pid)
        spent = difference(begin, cpu_of(tree))
        memory = memory_of(tree)
        process.kill()
        for pid in tree[1:]:
            os.kill(pid, signal.SIGKILL)
    assert len(tree) == 3
    assert spent.exact
    assert 0.18e9 <= spent.cpu_ns < 1.0e9
    assert memory.rss >= memory.pss >= memory.uss > 0


# --- the schedule -------------------------------------------------------------------------------------------


@given(st.integers(1, 2000), st.integers(2000, 10_000_000))
def test_streams_are_spread_evenly_over_their_period(streams: int, period_us: int) -> None:
    phases = spread(streams, period_us)
    gaps = [after - before for before, after in pairwise([*phases, period_us + phases[0]])]
    assert phases[0] == 0
    assert max(gaps) - min(gaps) <= 1
    assert min(gaps) >= 1  # no two share an instant


def test_on_the_grid_no_more_than_five_of_a_hundred_streams_share_an_instant() -> None:
    points = [on_grid(phase, 1000) for phase in spread(100, 20_000)]
    assert max(points.count(point) for point in points) == 5


@given(st.integers(0, 10**15), st.integers(1, 10**9))
def test_a_beat_is_served_at_the_first_grid_point_that_is_not_before_it(due: int, grid: int) -> None:
    point = on_grid(due, grid)
    assert point % grid == 0
    assert due <= point < due + grid


async def test_the_pacer_calls_each_beat_in_its_turn_and_never_early() -> None:
    pacer, calls, over = Pacer(asyncio.get_running_loop(), 0), list[tuple[str, int]](), asyncio.Event()
    begin = time.monotonic_ns()

    def beat(name: str, due: int, period: int, times: int) -> Callable[[], int | None]:
        left = iter(range(times))

        def act() -> int | None:
            turn = next(left)
            calls.append((name, time.monotonic_ns() - (due + turn * period)))
            return period if turn + 1 < times else None

        return act

    late, early = begin + 4_000_000, begin + 1_000_000
    pacer.add(late, lambda: over.set())
    pacer.add(early, beat("a", early, 1_000_000, 2))
    pacer.add(early + 500_000, beat("b", early + 500_000, 1_000_000, 2))
    await asyncio.wait_for(over.wait(), 60)
    pacer.close()
    assert [name for name, _ in calls] == ["a", "b", "a", "b"]
    assert all(lateness >= 0 for _, lateness in calls)


# --- the bytes ----------------------------------------------------------------------------------------------


class Answer:
    """An HTTP response, read by a parser that is not ours to get wrong."""

    def __init__(self, raw: bytes) -> None:
        self.body, self.headers, self.complete, self.chunks = b"", dict[bytes, bytes](), 0, list[bytes]()
        parser = httptools.HttpResponseParser(self)
        parser.feed_data(raw)
        self.status = parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_body(self, data: bytes) -> None:
        self.chunks.append(data)
        self.body += data

    def on_message_complete(self) -> None:
        self.complete += 1


def a_stream(tokens: int, *, usage: bool = False) -> bytes:
    pieces = StreamBytes(1)
    return b"".join(
        [
            STREAM_HEAD,
            pieces.role(),
            *(pieces.token(1_000_000 + number) for number in range(tokens - 1)),
            pieces.last(tokens),
            pieces.usage(tokens) if usage else b"",
            pieces.done(),
        ]
    )


@pytest.mark.parametrize("usage", [False, True])
def test_the_pods_stream_is_valid_sse_in_vllms_shape_and_ends_with_done(usage: bool) -> None:
    answer = Answer(a_stream(5, usage=usage))
    assert (answer.status, answer.complete) == (200, 1)
    assert answer.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert answer.body.endswith(b"\n\n")
    events = answer.body.removesuffix(b"\n\n").split(b"\n\n")
    assert len(answer.chunks) == len(events)  # one event, one HTTP chunk
    assert all(event.startswith(b"data: ") for event in events)
    assert events.pop() == b"data: [DONE]"
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["model"] for chunk in chunks} == {MODEL}
    assert len({chunk["id"] for chunk in chunks}) == 1
    if usage:
        last = chunks.pop()
        assert last["choices"] == []
        assert last["usage"] == {"prompt_tokens": 34, "total_tokens": 39, "completion_tokens": 5}
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [choice["finish_reason"] for choice in choices] == [None] * 5 + ["length"]
    assert int(choices[-1]["delta"]["content"]) == 5


def test_a_token_event_has_the_size_of_vllms() -> None:
    (size,) = {len(chunk) for chunk in Answer(a_stream(4)).chunks[1:4]}
    assert 215 <= size <= 235


@given(st.integers(0, 10**14 - 1), st.integers(0, 2**64 - 1))
def test_a_tokens_content_is_the_instant_it_was_sent(instant: int, number: int) -> None:
    (chunk,) = Answer(STREAM_HEAD + StreamBytes(number).token(instant) + LAST_CHUNK).chunks
    assert int(json.loads(chunk.removeprefix(b"data: "))["choices"][0]["delta"]["content"]) == instant


def test_the_answer_that_is_not_streamed_is_one_kib_of_json_with_usage() -> None:
    answer = Answer(json_answer(COMPLETION))
    assert (answer.status, answer.complete, len(answer.body)) == (200, 1, 1024)
    assert json.loads(answer.body)["usage"]["completion_tokens"] == 24


@pytest.mark.parametrize("size", [400, 32 * 1024, 2**20])
def test_a_chat_body_has_exactly_the_size_asked_for(size: int) -> None:
    body = chat_body(size)
    assert len(body) == size
    assert json.loads(body)["model"] == MODEL


def test_a_chat_body_smaller_than_its_frame_is_refused_with_the_least_size() -> None:
    with pytest.raises(ValueError, match="has at least"):
        chat_body(10)


@given(st.builds(Wish, st.integers(1, 10**7), st.integers(1, 10**7), st.integers(0, 10**7)))
def test_what_the_client_wishes_the_pod_reads_in_the_users_message(wish: Wish) -> None:
    chat = json.loads(stream_body(wish))
    assert chat["stream"] is True
    assert wish_in(chat["messages"][-1]["content"]) == wish


# --- the client believes no broken answer -------------------------------------------------------------------


class NoTransport(asyncio.Transport):
    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def close(self) -> None: ...


def fed(pieces: list[bytes], kind: type[Streamed] = Streamed) -> StreamLoad:
    """The load after a stream's bytes came in these pieces and the connection closed."""

    async def feed() -> StreamLoad:
        load = StreamLoad()
        connection = kind(load, b"")
        connection.connection_made(NoTransport())
        for piece in pieces:
            connection.data_received(piece)
        connection.connection_lost(None)
        await load.ended(60)
        return load

    return asyncio.run(feed())


@settings(max_examples=60)
@given(st.integers(1, 6), st.lists(st.integers(0, 4000), max_size=30))
def test_a_stream_is_counted_alike_however_its_bytes_are_cut(tokens: int, cuts: list[int]) -> None:
    raw = a_stream(tokens)
    edges = sorted({0, len(raw), *(cut % len(raw) for cut in cuts)})
    load = fed([raw[begin:end] for begin, end in pairwise(edges)])
    assert (load.tokens, load.begun, load.whole) == (tokens, 1, 1)
    assert len(load.transit_us) == tokens - 1
    assert 1 <= load.reads <= tokens


def test_reads_are_counted_so_that_bundled_chunks_show() -> None:
    head, *events = a_stream(4).split(b"e3\r\n")
    bundled = fed([head, *(b"e3\r\n" + event for event in events)])
    assert (bundled.tokens, bundled.reads) == (4, 3)  # the last token came in the read of the one before it


PIECES = StreamBytes(1)
BROKEN = {
    "cut in the middle": a_stream(3)[:-40],
    "no [DONE]": STREAM_HEAD + PIECES.role() + PIECES.last(1) + LAST_CHUNK,
    "a token lost": STREAM_HEAD + PIECES.role() + PIECES.token(1) + PIECES.last(3) + PIECES.done(),
    "a token twice": STREAM_HEAD + PIECES.role() + PIECES.token(1) * 2 + PIECES.last(2) + PIECES.done(),
    "no role": STREAM_HEAD + PIECES.token(1) + PIECES.last(2) + PIECES.done(),
    "usage nobody asked for": a_stream(2, usage=True),
    "something after [DONE]": a_stream(2).removesuffix(LAST_CHUNK) + PIECES.token(1) + LAST_CHUNK,
    "an error event": STREAM_HEAD + PIECES.role() + b'14\r\ndata: {"error": {}}\n\n\r\n' + PIECES.done(),
    "another status": a_stream(2).replace(b"200 OK", b"203 No"),
    "an error answer": json_answer(b'{"error":{"message":"no"}}', b"503 Service Unavailable"),
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN.keys())
def test_a_stream_that_is_not_whole_fails_the_round(raw: bytes) -> None:
    with pytest.raises(NotWhole):
        fed([raw] if raw else [])


WRONG_ANSWERS = {
    "status 500": json_answer(COMPLETION, b"500 Internal Server Error"),
    "status 200, 1024 bytes": json_answer(COMPLETION.replace(b"chatcmpl", b"chatcmpI")),
    "status 200, 1023 bytes": json_answer(COMPLETION[:-1]),
    "closed by the other side": json_answer(COMPLETION)[:-1],
}


@pytest.mark.parametrize(("fault", "raw"), WRONG_ANSWERS.items())
async def test_an_answer_that_is_not_the_pods_fails_the_round(fault: str, raw: bytes) -> None:
    async def answer_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        writer.close()
        await writer.wait_closed()
        answered.set()

    answered = asyncio.Event()
    async with await asyncio.start_server(answer_and_close, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        load = RequestLoad()
        await open_loops(load, (port,), (chat_request("127.0.0.1", port, "k", chat_body(400)),), connections=1)
        with pytest.raises(NotWhole, match=fault):
            await load.ended(60)
        await answered.wait()
        while load.open:
            await asyncio.sleep(0)


# --- client and pods together -------------------------------------------------------------------------------


async def test_closed_loops_get_whole_answers_until_they_are_stopped() -> None:
    async with serving(2, 1000) as ports:
        load = RequestLoad()
        requests = tuple(chat_request("127.0.0.1", port, "k", chat_body(400)) for port in ports)
        await open_loops(load, ports, requests, connections=4)
        async with asyncio.timeout(60):
            while load.answered <= 4:
                await load.watch(0.01)
        load.stop()
        await load.ended(60)
        assert load.open == 0


async def test_streams_are_paced_and_each_comes_to_its_whole_end() -> None:
    async with serving(2, 1000) as ports:
        load = StreamLoad()
        requests = tuple(
            chat_request("127.0.0.1", ports[index % 2], "k", stream_body(Wish(10, 10_000, phase)))
            for index, phase in enumerate(spread(20, 10_000))
        )
        begin = time.monotonic()
        await open_streams(load, ports, requests, per_second=2000)
        await load.ended(60)
        assert time.monotonic() - begin >= 0.09  # ten tokens at 100 a second
        assert (load.whole, load.tokens, len(load.transit_us)) == (20, 200, 180)
        assert min(load.transit_us) >= 0  # one clock on both sides


@pytest.mark.parametrize("kind", [Repeated, RepeatedByMeaning])
async def test_unpaced_streams_follow_one_another_each_whole_until_they_are_stopped(kind: type[Repeated]) -> None:
    async with serving(1, 1000) as ports:
        load = StreamLoad()
        request = chat_request("127.0.0.1", ports[0], "k", stream_body(Wish(500, 0, 0)))
        await open_streams(load, ports, (request,) * 2, per_second=1000, kind=kind)
        while load.whole < 6:
            await load.watch(0.01)
        load.stop()
        await load.ended(60)
        assert load.tokens == 500 * load.whole
        assert load.reads < load.tokens / 10  # many in each read


@pytest.mark.parametrize("kind", [Timed, TimedByMeaning])
async def test_a_stream_that_is_due_waits_for_a_connection_and_that_counts(kind: type[Timed]) -> None:
    async with serving(1, 1000) as ports:
        load = TimedLoad()
        request = chat_request("127.0.0.1", ports[0], "k", stream_body(Wish(3, 10_000, 0)))
        await open_streams(load, ports, (request,), per_second=1000, kind=kind)
        now_us = time.monotonic_ns() // 1000
        for _ in range(3):
            load.due(now_us)
        while load.whole < 3:
            await load.watch(0.01)
        load.stop()
        await load.ended(60)
        first, second, third = load.ttft_us
        assert first < second < third
        assert third > 40_000  # behind two streams of three beats each


async def test_a_caller_who_asks_for_usage_gets_the_usage_event() -> None:
    async with serving(1, 1000) as ports:
        chat = json.loads(stream_body(Wish(2, 1000, 0))) | {"stream_options": {"include_usage": True}}
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[0])
        writer.write(chat_request("127.0.0.1", ports[0], "k", json.dumps(chat).encode()))
        body = Answer(await asyncio.wait_for(reader.readuntil(LAST_CHUNK), 60)).body
        assert b'"choices":[],"usage":{"prompt_tokens":34,"total_tokens":36,"completion_tokens":2}' in body
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [("/v1/models", 200, MODELS), ("/health", 200, b""), ("/nowhere", 404, b'{"detail":"Not Found"}')],
)
async def test_the_pod_answers_what_a_gateway_asks_of_it(path: str, status: int, body: bytes) -> None:
    async with serving(1, 1000) as ports:
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[0])
        writer.write(f"GET {path} HTTP/1.1\r\nHost: pod\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        answer = Answer(head + await reader.readexactly(len(body)))
        assert (answer.status, answer.body, answer.complete) == (status, body, 1)
        writer.close()
        await writer.wait_closed()


async def told(host: str, port: int, path: str) -> Answer:
    """What a GET on a connection of its own is answered."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: pod\r\n\r\n".encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    (length,) = [line for line in head.split(b"\r\n") if line.startswith(b"content-length: ")]
    answer = Answer(head + await reader.readexactly(int(length.partition(b": ")[2])))
    writer.close()
    await writer.wait_closed()
    return answer


async def test_a_pods_metrics_have_the_size_of_a_real_ones_and_can_be_parsed() -> None:
    async with serving(1, 1000) as ports:
        answer = await told("127.0.0.1", ports[0], "/metrics")
    assert answer.body == metrics_body(METRICS_BYTES)
    assert METRICS_BYTES <= len(answer.body) < METRICS_BYTES * 1.05
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    assert families["vllm:num_requests_running"].samples[0].value == 0
    assert len(families) > 50


async def open_stream(host: str, port: int) -> asyncio.StreamWriter:
    """A stream whose head has come; ten minutes long."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(chat_request(host, port, "k", stream_body(Wish(600, 1_000_000, 0))))
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    return writer


async def until_load(host: str, port: int, load: int) -> None:
    async with asyncio.timeout(60):
        while json.loads((await told(host, port, "/load")).body) != {"server_load": load}:
            pass


async def test_on_all_addresses_each_is_a_pod_and_tells_its_own_open_streams() -> None:
    async with serving(1, 1000, host="0.0.0.0") as (port,):
        streams = [await open_stream(host, port) for host in ("127.1.0.1", "127.1.0.1", "127.1.3.9")]
        loads = [json.loads((await told(f"127.1.{end}", port, "/load")).body) for end in ("0.1", "3.9", "0.2")]
        assert loads == [{"server_load": load} for load in (2, 1, 0)]
        streams[0].close()
        await until_load("127.1.0.1", port, 1)
        assert (await told("127.1.3.9", port, "/bench/finish")).status == 200
        await until_load("127.1.0.1", port, 0)  # it has ended, though its connection stands
        for stream in streams:
            stream.close()
            await stream.wait_closed()


def test_the_pods_process_listens_on_a_given_port_of_all_addresses() -> None:
    with (
        lasting_ports(1) as (port,),
        subprocess.Popen(
            [sys.executable, "-m", "loadtest.bench.backend", "--all-addresses", "--port", str(port)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            assert json.loads(process.stdout.readline()) == [port]
            assert asyncio.run(told("127.1.2.3", port, "/v1/models")).body == MODELS
        finally:
            process.terminate()
    assert process.returncode == 0


async def test_the_scenarios_run_against_the_pods_themselves() -> None:
    async with serving(2, 1000) as ports:
        me = (os.getpid(),)
        target = Running(ports, lambda: me, None, watch=lambda: lambda requests: {"seen": float(requests)})
        bench = Bench("key", me, ports)
        requests = await Requests("requests", 1, 400, 4, 0.05, 0.3).measure(target, bench)
        chunks = await Chunks("chunks", 1, 20, 50, 0.1, 0.5).measure(target, bench)
        assert requests.values["per_second"] > 0
        assert requests.values["cpu_us"] > 0
        assert requests.values["answer_us"] == pytest.approx(4e6 / requests.values["per_second"])
        seen = requests.values["seen"]  # what is beside the target is told per request
        assert seen == int(seen) > 0
        # Of a window of half a second a busy machine may take most; it is no percentage and no milliseconds.
        assert 0.05 < chunks.values["on_pace"] < 20
        assert chunks.values["chunks_per_read"] >= 1
        assert chunks.values["transit_p99_us"] >= chunks.values["transit_p50_us"] > 0


# --- medians, ratios, bars ----------------------------------------------------------------------------------


def a_round(target: str, number: int, cpu_us: float, **values: float) -> Round:
    waited = values.pop("waited", 0.0)
    return Round("chunks", number, target, {"cpu_us": cpu_us} | values, waited, True)


def cpu_us(round_: Round) -> float:
    return round_.values["cpu_us"]


def test_a_figure_is_the_median_of_the_rounds_that_can_be_trusted() -> None:
    rounds = [
        a_round("gateway", 1, 30.0),
        a_round("gateway", 2, 34.0),
        a_round("gateway", 3, 11.0, chunks_per_read=1.3),  # starved, so it looks cheap
        a_round("gateway", 4, 12.0, waited=0.5),
        a_round("gateway", 5, 13.0, on_pace=0.5),
        Round("chunks", 6, "gateway", {}, 0.0, True, failed="cut"),
    ]
    assert cell(rounds, cpu_us) == Cell(median=32.0, low=30.0, high=34.0, rounds=2, trusted=True)


def test_of_many_rounds_the_quartiles_are_shown_so_that_a_bad_one_is_not_seen() -> None:
    rounds = [a_round("gateway", number, value) for number, value in enumerate((40.0, 900.0, 42.0, 41.0, 43.0), 1)]
    assert cell(rounds, cpu_us, quartiles) == Cell(42.0, 41.0, 43.0, 5)
    assert cell(rounds[:1], cpu_us, quartiles) == Cell(40.0, 40.0, 40.0, 1)


def test_figures_without_a_trusted_round_are_shown_marked() -> None:
    found = cell([a_round("nginx", 1, 30.0, waited=0.5)], cpu_us)
    assert written(found, ".1f") == "30.0 ?"
    assert written(None, ".1f") == "–"


def test_the_apparatus_may_wait_for_itself() -> None:
    assert a_round("direct", 1, 30.0, waited=0.9).doubt() is None


def test_a_ratio_is_the_median_of_the_ratios_of_rounds_side_by_side() -> None:
    rounds = [a_round("nginx", 1, 20.0), a_round("gateway", 1, 24.0)]
    rounds += [a_round("nginx", 2, 40.0), a_round("gateway", 2, 44.0)]  # a slow minute, for both
    rounds += [a_round("nginx", 3, 20.0), a_round("gateway", 3, 26.0)]
    rounds += [a_round("nginx", 4, 20.0), a_round("gateway", 4, 10.0, chunks_per_read=1.5)]
    found = side_by_side(rounds, "chunks", "cpu_us", ours="gateway", theirs="nginx", sign="/")
    assert found is not None
    assert (found.median, found.low, found.high, found.rounds) == (1.2, 1.1, 1.3, 3)


def test_rounds_of_different_numbers_are_not_compared() -> None:
    rounds = [a_round("nginx", 1, 20.0), a_round("gateway", 2, 24.0)]
    assert side_by_side(rounds, "chunks", "cpu_us", ours="gateway", theirs="nginx", sign="/") is None


def test_a_difference_too_is_that_of_rounds_side_by_side_and_nothing_is_divided_by_zero() -> None:
    rounds = [a_round("a", 1, 20.0), a_round("b", 1, 24.0), a_round("a", 2, 0.0), a_round("b", 2, 1.0)]
    more = side_by_side(rounds, "chunks", "cpu_us", ours="b", theirs="a", sign="-")
    times = side_by_side(rounds, "chunks", "cpu_us", ours="b", theirs="a", sign="/")
    assert more == Cell(2.5, 1.0, 4.0, 2)
    assert times == Cell(1.2, 1.2, 1.2, 1)


def test_rounds_left_out_are_named_with_the_reason() -> None:
    rounds = [
        a_round("gateway", 3, 11.0, chunks_per_read=1.3),
        Round("memory", 1, "gateway", {}, 0.0, True, failed="999 of 1000 streams had begun"),
        Round("requests", 1, "nginx", {"cpu_us": 1.0}, 0.0, exact=False),
    ]
    assert report.remarks(rounds) == [
        "gateway, chunks, round 3: not counted: 1.30 chunks per read",
        "gateway, memory, round 1: failed: 999 of 1000 streams had begun",
        "1 rounds counted CPU in ticks of 10 ms, because a thread ended in them",
    ]


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_percentiles_are_values_that_occurred_in_order(values: list[int]) -> None:
    ordered = sorted(values)
    low, middle, high = (percentile(ordered, share) for share in (0.0, 0.5, 1.0))
    assert ordered[0] == low <= middle <= high == ordered[-1]
    assert int(middle) in values


def test_the_order_of_the_targets_turns_with_each_round_and_direct_is_left_out_where_it_says_nothing() -> None:
    targets = [TARGETS[name]() for name in ("nginx", "gateway", "direct")]
    chunks, memory = (scenario for scenario in FULL if scenario.name in ("chunks", "memory"))
    order = [(s.name, number, target.name) for s, number, target in in_turn([chunks, memory], targets, 2)]
    assert order == [
        ("chunks", 1, "nginx"), ("chunks", 1, "gateway"), ("chunks", 1, "direct"),
        ("chunks", 2, "direct"), ("chunks", 2, "gateway"), ("chunks", 2, "nginx"),
        ("memory", 1, "nginx"), ("memory", 1, "gateway"), ("memory", 2, "gateway"), ("memory", 2, "nginx"),
    ]  # fmt: skip


# --- targets and processes ----------------------------------------------------------------------------------


def test_the_gateway_accepts_the_configuration_the_bench_gives_it(tmp_path: Path) -> None:
    key = new_key()
    keys, file = tmp_path / "keys.yaml", tmp_path / "poolgate.yaml"
    keys.write_text(yaml.safe_dump({"keys": [keys_entry(key)]}))
    file.write_text(yaml.safe_dump(gateway_config((9101, 9102), keys)))
    config = load_config(file, {})
    assert [(pod.pool, pod.port) for pod in config.static_pods()] == [(MODEL, 9101), (MODEL, 9102)]
    assert well_formed(key.encode())
    tenant = KeyRing(load_keys(keys), time.time).tenant_of(key.encode())
    assert tenant is not None


def test_no_load_of_the_bench_is_refused_or_held_and_a_signal_ends_the_gateway_at_once(tmp_path: Path) -> None:
    keys, file = tmp_path / "keys.yaml", tmp_path / "poolgate.yaml"
    keys.write_text(yaml.safe_dump({"keys": [keys_entry(new_key())]}))
    file.write_text(yaml.safe_dump(gateway_config((9101, 9102), keys)))
    config, (entry,) = load_config(file, {}), load_keys(keys)
    assert config.limit_rules().buckets(entry.tenant, "", MODEL) == ()
    streams = max(scenario.streams for scenario in FULL if isinstance(scenario, Chunks | OpenStreams))
    assert config.pool_values()[MODEL].max_in_flight_per_pod >= streams
    assert config.server.drain_seconds == 0


def ended(pid: int, seconds: float) -> bool:
    """Whether the process ends within that time; waits for the event."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with os.fdopen(handle):
        return bool(select.select([handle], [], [], seconds)[0])


@pytest.fixture
def core() -> int:
    return min(os.sched_getaffinity(0))


def test_a_child_runs_on_its_core_and_ends_with_its_with(tmp_path: Path, core: int) -> None:
    with child(["sleep", "60"], core=core, log=tmp_path / "log") as process:
        assert os.sched_getaffinity(process.pid) == {core}
    assert process.returncode is not None


def test_grandchildren_do_not_outlive_the_with(tmp_path: Path, core: int) -> None:
    command = ["sh", "-c", "sleep 60 & echo $!; trap '' TERM; wait"]
    with child(command, core=core, log=tmp_path / "log", pipe=True) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        process.kill()
    assert ended(grandchild, 60)


def test_a_child_ends_with_a_bench_that_is_killed(tmp_path: Path, core: int) -> None:
    script = f"""
from pathlib import Path
from loadtest.bench.processes import child
with child(["sleep", "60"], core={core}, log=Path({str(tmp_path / "log")!r})) as process:
    print(process.pid, flush=True)
    process.wait()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=REPOSITORY) as bench:
        assert bench.stdout is not None
        pid = int(bench.stdout.readline())
        bench.kill()
    assert ended(pid, 60)


def test_a_second_bench_waits_for_the_first_to_end(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from loadtest.bench.processes import alone
with alone(Path({str(tmp_path / "lock")!r})):
    print("runs", flush=True)
"""
    command = [sys.executable, "-c", script]
    with alone(tmp_path / "lock"):
        second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY)
        assert second.stdout is not None
        assert second.stderr is not None
        assert b"waiting for its end" in second.stderr.readline()
        assert not select.select([second.stdout], [], [], 0)[0]
    said, _ = second.communicate(timeout=60)
    assert said == b"runs\n"


def test_a_signal_in_the_middle_of_a_round_ends_the_run() -> None:
    async def signalled_while_measuring() -> Figures:
        loop = asyncio.get_running_loop()
        loop.call_soon(os.kill, os.getpid(), signal.SIGTERM)  # in a callback, where a raise would be swallowed
        await asyncio.wait_for(asyncio.Event().wait(), 60)
        return Figures({})

    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with pytest.raises(asyncio.CancelledError):
            uvloop.run(until_signalled(signalled_while_measuring()))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_target_that_does_not_start_is_named_with_the_end_of_its_log(tmp_path: Path, core: int) -> None:
    log = tmp_path / "log"
    with (
        child(["sh", "-c", "echo no such key: serverr >&2; exit 2"], core=core, log=log) as process,
        pytest.raises(BenchError, match=r"ended with code 2:\n  \| no such key: serverr"),
    ):
        wait_until(lambda: False, process, log)
