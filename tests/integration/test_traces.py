"""Traces end to end: a caller's context in, a pod's out, and what a real OTLP/HTTP receiver has in the end."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from gateway.config.faults import ConfigError
from gateway.config.reading import load_config
from gateway.core.words import HOW_TO_INSTALL_EXTRAS
from gateway.reload import waits_for_restart
from tests.fakes import STREAM_HEAD, Close, Hang, Reset, ScriptedPod, Step, answer, chunk
from tests.raw import RawClient, ask, chat, request
from tests.receiving import Received, Receiver
from tests.running import Running, Side, running
from tests.turns import within

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"
ANSWER = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":3}}')
EVENT = chunk(b'data: {"choices":[{"index":0,"delta":{"content":"canary-answer"},"finish_reason":null}]}\n\n')
ID = "r-1"


def headers_of(sent: bytes) -> dict[bytes, bytes]:
    """What a pod was told."""
    return dict(line.split(b": ", 1) for line in sent.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:])


def one(gateway: Running, *, headers: Mapping[str, str] | None = None, **more: Any) -> bytes:
    return request(chat(**more), key=gateway.key, headers={"X-Request-Id": ID, **(headers or {})})


async def ended(gateway: Running) -> None:
    """Wait until the last request has ended, and what it left is sent."""
    await gateway.settled()
    gateway.gateway.journal.flush()
    assert gateway.gateway.traces is not None
    await asyncio.to_thread(gateway.gateway.traces.close)


@asynccontextmanager
async def traced(
    pods: list[ScriptedPod], side: Side, *, ratio: float = 1.0, **more: Any
) -> AsyncIterator[tuple[Running, Receiver]]:
    with Receiver() as receiver:
        tracing = {"endpoint": receiver.endpoint, "sample_ratio": ratio}
        async with running(pods, side=side, tracing=tracing, **more) as gateway:
            yield gateway, receiver


async def spans_of(gateway: Running, receiver: Receiver) -> tuple[Received, list[Received]]:
    await ended(gateway)
    return receiver.of_request(ID)


# The context.


async def test_a_caller_s_trace_goes_through_us_to_the_pod(side: Side) -> None:
    async with ScriptedPod([[ANSWER]]) as pod, traced([pod], side, ratio=0.0) as (gateway, receiver):
        came = await ask(gateway.port, one(gateway, headers={"traceparent": SAMPLED, "tracestate": "a=b,c=d"}))
        own, (attempt,) = await spans_of(gateway, receiver)
        assert came.status == 200
        assert (own.trace_id, own.parent_id, own.kind) == (TRACE, CALLER, "SERVER")
        assert (attempt.trace_id, attempt.parent_id, attempt.kind) == (TRACE, own.span_id, "CLIENT")
        told = headers_of(pod.requests[0])
        assert told[b"traceparent"].decode() == f"00-{TRACE}-{attempt.span_id}-01"
        assert told[b"tracestate"] == b"a=b,c=d"
        assert len({CALLER, own.span_id, attempt.span_id}) == 3


async def test_a_trace_that_its_caller_does_not_record_passes_as_it_is(side: Side) -> None:
    async with ScriptedPod([[ANSWER]]) as pod, traced([pod], side) as (gateway, receiver):
        await ask(gateway.port, one(gateway, headers={"traceparent": UNSAMPLED, "tracestate": "a=b"}))
        await ended(gateway)
        told = headers_of(pod.requests[0])
        assert (told[b"traceparent"].decode(), told[b"tracestate"]) == (UNSAMPLED, b"a=b")
        assert not receiver.posts


async def test_without_a_caller_s_trace_one_begins_here(side: Side) -> None:
    async with ScriptedPod([[ANSWER]]) as pod, traced([pod], side) as (gateway, receiver):
        await ask(gateway.port, one(gateway))
        own, (attempt,) = await spans_of(gateway, receiver)
        assert own.parent_id == ""
        told = headers_of(pod.requests[0])
        assert told[b"traceparent"].decode() == f"00-{own.trace_id}-{attempt.span_id}-01"
        assert b"tracestate" not in told


@pytest.mark.parametrize("headers", [{}, {"traceparent": "canary", "tracestate": "canary=1"}], ids=["none", "junk"])
async def test_a_pod_hears_of_our_no_as_well_so_that_it_begins_no_trace(side: Side, headers: dict[str, str]) -> None:
    async with ScriptedPod([[ANSWER]]) as pod, traced([pod], side, ratio=0.0) as (gateway, receiver):
        await ask(gateway.port, one(gateway, headers=headers))
        await ended(gateway)
        told = headers_of(pod.requests[0])
        assert told[b"traceparent"].endswith(b"-00")
        assert b"canary" not in pod.requests[0]
        assert not receiver.posts


async def test_a_context_that_is_not_to_the_letter_is_no_reason_to_refuse(side: Side) -> None:
    async with ScriptedPod([[ANSWER]]) as pod, traced([pod], side) as (gateway, receiver):
        headers = {"traceparent": SAMPLED.upper(), "tracestate": "canary=1"}
        came = await ask(gateway.port, one(gateway, headers=headers))
        own, _ = await spans_of(gateway, receiver)
        assert came.status == 200
        assert (own.parent_id, own.trace_id != TRACE) == ("", True)
        assert b"canary" not in pod.requests[0]


async def test_without_tracing_a_context_passes_as_it_is_and_nothing_else_happens(side: Side) -> None:
    async with ScriptedPod([[ANSWER]]) as pod, running([pod], side=side) as gateway:
        for headers in ({"traceparent": SAMPLED, "tracestate": "a=b"}, {}):
            await ask(gateway.port, one(gateway, headers=headers))
        line = await gateway.last_line()
        told = [headers_of(sent) for sent in pod.requests]
        assert (told[0][b"traceparent"].decode(), told[0][b"tracestate"]) == (SAMPLED, b"a=b")
        assert b"traceparent" not in told[1]
        assert "trace_id" not in line
        assert gateway.gateway.traces is None


# Attempts.


async def test_a_retry_is_a_second_attempt_with_a_span_of_its_own(side: Side) -> None:
    scripts: Iterator[list[Step]] = iter([[b"HTTP/1.1 200", Reset], [ANSWER]])
    pods = [ScriptedPod(script_of=lambda _: next(scripts)) for _ in range(2)]
    async with pods[0], pods[1], traced(pods, side) as (gateway, receiver):
        came = await ask(gateway.port, one(gateway))
        own, attempts = await spans_of(gateway, receiver)
        assert came.status == 200
        assert [attempt.attributes.get("error.type") for attempt in attempts] == ["reset", None]
        assert [attempt.failed for attempt in attempts] == [True, False]
        assert not own.failed
        assert len({attempt.attributes["poolgate.pod"] for attempt in attempts}) == 2
        told = {headers_of(sent)[b"traceparent"].decode() for pod in pods for sent in pod.requests}
        assert told == {f"00-{own.trace_id}-{attempt.span_id}-01" for attempt in attempts}
        first, second = attempts
        assert own.started_at <= first.started_at < first.ended_at <= second.started_at < second.ended_at
        assert second.ended_at <= own.ended_at + 1e-6


async def test_a_stream_that_is_cut_is_said(side: Side) -> None:
    async with ScriptedPod([[STREAM_HEAD, EVENT, Close]]) as pod, traced([pod], side) as (gateway, receiver):
        await ask(gateway.port, one(gateway, stream=True))
        own, (attempt,) = await spans_of(gateway, receiver)
        assert (own.failed, own.attributes["poolgate.outcome"]) == (True, "truncated")
        assert own.attributes["error.type"] == "upstream_truncated"
        assert own.attributes["http.response.status_code"] == 200
        assert (attempt.failed, attempt.attributes["error.type"]) == (True, "truncated")
        assert own.started_at < attempt.events["first_content"] < own.ended_at
        assert own.attributes["gen_ai.response.time_to_first_chunk"] > 0
        # Nobody has counted what there was of it.
        assert "gen_ai.usage.output_tokens" not in own.attributes


@pytest.mark.parametrize("begun", [False, True], ids=["before", "after"])
async def test_a_client_that_leaves_ends_the_span_and_is_no_error(side: Side, begun: bool) -> None:
    script: list[Step] = [STREAM_HEAD, EVENT, Hang] if begun else [STREAM_HEAD, Hang]
    async with ScriptedPod([script]) as pod, traced([pod], side) as (gateway, receiver):
        client = await RawClient.connect(gateway.port)
        client.send(one(gateway, stream=True))
        if begun:
            await client.reader.readuntil(b"canary-answer")
        while not pod.requests:
            await asyncio.sleep(0.001)
        client.leave()
        async with within(5):
            await pod.peer_left.wait()
        own, (attempt,) = await spans_of(gateway, receiver)
        assert (own.failed, own.attributes["poolgate.outcome"]) == (False, "client_left")
        assert (attempt.failed, attempt.attributes["error.type"]) == (False, "abandoned")
        assert own.started_at <= attempt.started_at < attempt.ended_at <= own.ended_at + 1e-6


async def test_a_request_that_waited_says_how_long(side: Side) -> None:
    free = asyncio.Event()
    pool = {"max_in_flight_per_pod": 1}
    async with ScriptedPod([[free, ANSWER], [ANSWER]]) as pod, traced([pod], side, pool=pool) as (gateway, receiver):
        first = asyncio.create_task(ask(gateway.port, request(chat(), key=gateway.key)))
        while not pod.requests:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(ask(gateway.port, one(gateway)))
        while not dict(gateway.gateway.balancer.waiting()).get("chat"):
            await asyncio.sleep(0.001)
        free.set()
        await asyncio.gather(first, second)
        own, (attempt,) = await spans_of(gateway, receiver)
        waited = own.attributes["poolgate.queue_seconds"]
        assert waited > 0
        assert attempt.started_at >= own.started_at + waited - 1e-4


async def test_an_alias_is_told_beside_the_model_it_led_to(side: Side) -> None:
    models = {"fast": {"to": [{"model": "m"}]}}
    async with ScriptedPod([[ANSWER]]) as pod, traced([pod], side, models=models) as (gateway, receiver):
        await ask(gateway.port, one(gateway, model="fast"))
        own, (attempt,) = await spans_of(gateway, receiver)
        assert own.attributes["gen_ai.request.model"] == "fast"
        assert own.attributes["gen_ai.response.model"] == attempt.attributes["gen_ai.request.model"] == "m"


async def test_a_refusal_leaves_a_span_and_a_stranger_none(side: Side) -> None:
    async with ScriptedPod([[ANSWER]]) as pod, traced([pod], side) as (gateway, receiver):
        stranger = request(chat(), key="sk-canary", headers={"traceparent": SAMPLED})
        assert (await ask(gateway.port, stranger)).status == 401
        assert (await ask(gateway.port, one(gateway, model="nobody-s"))).status == 404
        own, attempts = await spans_of(gateway, receiver)
        assert (own.attributes["error.type"], own.failed, attempts) == ("model_not_found", False, [])
        assert len(receiver.spans) == 1


# What is told elsewhere, and what never is.


async def test_the_access_line_names_the_trace(side: Side) -> None:
    async with ScriptedPod([[ANSWER]]) as pod, traced([pod], side, ratio=0.0) as (gateway, receiver):
        await ask(gateway.port, one(gateway, headers={"traceparent": SAMPLED}))
        await ask(gateway.port, one(gateway))
        await gateway.settled()
        first, second = gateway.lines()
        assert first["trace_id"] == TRACE
        assert "trace_id" not in second
        await ended(gateway)
        assert {span.trace_id for span in receiver.spans} == {TRACE}


async def test_no_prompt_answer_key_user_or_address_is_in_a_trace(side: Side) -> None:
    tenant = {"forwards_user": True, "team": "acme"}
    end = chunk(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n') + chunk(b"data: [DONE]\n\n")
    script = [STREAM_HEAD, EVENT, end + b"0\r\n\r\n"]
    async with ScriptedPod([script]) as pod, traced([pod], side, tenant=tenant) as (gateway, receiver):
        body = chat(stream=True, user="canary-user", metadata={"canary": "canary"})
        body["messages"] = [{"role": "user", "content": "canary-prompt"}]
        headers = {
            "X-OpenWebUI-User-Id": "canary-user",
            "X-Request-Id": ID,
            "Cookie": "canary",
            "User-Agent": "canary",
            "X-Forwarded-For": "canary",
        }
        came = await ask(gateway.port, request(body, key=gateway.key, headers=headers))
        own, _ = await spans_of(gateway, receiver)
        assert b"canary-answer" in came.body
        assert own.attributes["poolgate.tenant"] == "acme"
        told = b"".join(body for _, _, body in receiver.posts)
        assert b"canary" not in told
        assert gateway.key.encode() not in told
        assert gateway.key[10:].encode() not in told
        assert b"127.0.0.1" not in told
        assert str(pod.port).encode() not in told


# Bounds.


async def test_what_waits_is_sent_when_the_gateway_ends(side: Side) -> None:
    async with ScriptedPod([[ANSWER]]) as pod, traced([pod], side) as (gateway, receiver):
        await ask(gateway.port, one(gateway))
        await gateway.settled()
        gateway.gateway.close()
        own, attempts = receiver.of_request(ID)
        assert (own.attributes["poolgate.outcome"], len(attempts)) == ("completed", 1)


@contextmanager
def ticking() -> Iterator[Callable[[], float]]:
    """How long it takes, by a thread that sleeps a hundredth of a second again and again: what a busy machine takes
    from this process is no time here.
    """
    ticks, over = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not over.wait(0.01):
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield lambda: ticks * 0.01
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("status", [0, 401, 503], ids=["hangs", "refuses", "is-busy"])
async def test_a_receiver_in_trouble_troubles_no_request_and_no_end(side: Side, status: int) -> None:
    async with ScriptedPod([[ANSWER]]) as pod, traced([pod], side) as (gateway, receiver):
        receiver.statuses = [status]
        for _ in range(20):
            assert (await ask(gateway.port, one(gateway))).status == 200
        await gateway.settled()
        gateway.gateway.journal.flush()
        with ticking() as seconds:
            gateway.gateway.close()
        assert seconds() < 3
        assert receiver.spans == []


async def test_two_gateways_in_one_process_trace_apart() -> None:
    async with (
        ScriptedPod([[ANSWER]]) as pod,
        traced([pod], "edge") as (a, his),
        traced([pod], "edge") as (b, hers),
    ):
        await ask(a.port, request(chat(), key=a.key, headers={"X-Request-Id": "his"}))
        await ask(b.port, request(chat(), key=b.key, headers={"X-Request-Id": "hers"}))
        await ended(a)
        await ended(b)
        assert {span.attributes.get("poolgate.request_id", "his") for span in his.spans} == {"his"}
        assert {span.attributes.get("poolgate.request_id", "hers") for span in hers.spans} == {"hers"}
        instances = {span.resource["service.instance.id"] for span in his.spans + hers.spans}
        assert len(instances) == 2


async def test_the_ops_port_makes_no_spans_of_its_own_accord() -> None:
    """FastAPI would, and in the names of whoever has set up a provider for the process."""
    program = """
import asyncio, io
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from gateway.app import Gateway
from gateway.config.reading import load_config
made = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(made))
trace.set_tracer_provider(provider)
config = load_config(None, {}, {"discovery.pods": [{"url": "http://127.0.0.1:1", "pool": "chat"}]})
gateway = Gateway(config, (), access_out=io.BytesIO())
scope = {
    "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
    "path": "/livez", "raw_path": b"/livez", "query_string": b"", "root_path": "", "headers": [],
    "server": ("h", 1), "client": ("c", 2),
}
said = []
async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}
async def send(message):
    said.append(message)
asyncio.run(gateway.ops(scope, receive, send))
gateway.close()
print(said[0]["status"], len(made.get_finished_spans()))
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "200 0\n"


# Settings.


@pytest.mark.parametrize(
    "endpoint", ["http://otel-collector:4318", "https://[::1]/otlp/", "http://collector", "http://127.0.0.1:4318/"]
)
def test_a_receiver_is_a_base_url(endpoint: str) -> None:
    tracing = load_config(None, {"POOLGATE_TRACING__ENDPOINT": endpoint}).tracing
    assert (tracing.endpoint, tracing.sample_ratio) == (endpoint, 0.05)
    assert load_config(None, {}).tracing.endpoint is None


@pytest.mark.parametrize(
    ("key", "value", "mend"),
    [
        ("endpoint", "collector:4318", "http://HOST:PORT"),
        ("endpoint", "grpc://collector:4317", "http://HOST:PORT"),
        ("endpoint", "http://", "http://HOST:PORT"),
        ("endpoint", "http://collector:0", "port"),
        ("endpoint", "http://collector:99999", "port"),
        ("endpoint", "http://me:canary@collector:4318", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("endpoint", "http://collector:4318?key=canary", "http://HOST:PORT"),
        ("endpoint", "http://collector:4318/v1/traces", "leave '/v1/traces' away"),
        ("sample_ratio", 1.5, "a number from 0 to 1"),
        ("sample_ratio", -0.1, "a number from 0 to 1"),
        ("ratio", 0.1, "does not exist"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_mend(key: str, value: object, mend: str) -> None:
    with pytest.raises(ConfigError, match=mend) as refused:
        load_config(None, {}, {f"tracing.{key}": value})
    assert f"tracing.{key}: " in str(refused.value)
    assert "canary" not in str(refused.value)


def test_a_change_waits_for_a_restart() -> None:
    before = load_config(None, {}, {"tracing.endpoint": "http://collector:4318"})
    now = load_config(None, {}, {"tracing.endpoint": "http://collector:4318", "tracing.sample_ratio": 0.5})
    assert waits_for_restart(before, now) == ("tracing.sample_ratio",)


def test_who_does_not_trace_needs_no_package_for_it_and_who_does_is_told_how_to_get_it() -> None:
    program = """
import io, sys
class Missing:
    def find_spec(self, name, *rest):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from gateway.app import Gateway
from gateway.parts import CannotStart
from gateway.config.reading import load_config
pods = {"discovery.pods": [{"url": "http://127.0.0.1:1", "pool": "chat"}]}
Gateway(load_config(None, {}, pods), (), access_out=io.BytesIO()).close()
try:
    Gateway(load_config(None, {}, pods | {"tracing.endpoint": "http://a:1"}), (), access_out=io.BytesIO())
except CannotStart as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, env=dict(os.environ)
    )
    want = f"tracing.endpoint is set, but the package opentelemetry.exporter is missing: {HOW_TO_INSTALL_EXTRAS}\n"
    assert done.stdout.replace("opentelemetry.exporter.otlp", "opentelemetry.exporter") == want
