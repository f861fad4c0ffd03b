"""Trails become spans, and reach a real OTLP receiver; whatever that one does, nobody waits for it."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gateway.core.call import FAULTS, Attempt, Outcome, Trail, Usage
from gateway.core.trace import Trace
from gateway.telemetry import tracing
from gateway.telemetry.tracing import BATCH, MAX_NAME_CHARACTERS, MAX_WAITING, Tracing
from tests.receiving import Received, Receiver
from tests.turns import Ticks
from tests.unit.telemetry.trails import refused, trail

TRACE = Trace(0xABC, 0x100, 1, 0x77)
ROUTES = {"chat": ("POST", "/v1/chat/completions"), "tokenize": ("POST", "/tokenize"), "models": ("GET", "/v1/models")}
WALL = 1_800_000_000.0 - 1000.0
"""From the trails' times to seconds since 1970."""
ATTEMPT = Attempt("chat-0", "least", ("chat-0", "chat-1"), (), 0, "completed", "org/real", 1000.001, 1000.19)


NEVER = 3600.0


@contextmanager
def sending(
    endpoint: str, *, every_seconds: float = tracing.EVERY_SECONDS, close_seconds: float = 60.0
) -> Iterator[Tracing]:
    """Its end waits for a receiver longer than it does for us: a busy machine may need more than our second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "EVERY_SECONDS", every_seconds)
        patch.setattr(tracing, "CLOSE_SECONDS", close_seconds)
        traces = Tracing(endpoint, ROUTES, version="1.2.3", instance="i-1")
        try:
            yield traces
        finally:
            traces.close()


def sent(*trails: Trail) -> list[Received]:
    """What a receiver has of these."""
    with Receiver() as receiver:
        with sending(receiver.endpoint) as traces:
            traces.add(trails, WALL)
        return receiver.spans


def traced(**more: Any) -> Trail:
    fields: dict[str, Any] = {"trace": TRACE, "tried": (ATTEMPT,)}
    return trail(**fields | more)


def of_request(**more: Any) -> Received:
    return sent(traced(**more))[0]


# What spans say.


def test_a_request_s_span_says_what_was_asked_and_what_became_of_it() -> None:
    own, attempt = sent(traced())
    assert (own.name, own.kind, own.failed) == ("POST /v1/chat/completions", "SERVER", False)
    assert (own.trace_id, own.span_id, own.parent_id) == (f"{0xABC:032x}", f"{0x100:016x}", f"{0x77:016x}")
    assert (own.started_at, own.ended_at) == pytest.approx((1_800_000_000.0, 1_800_000_000.19), abs=1e-5)
    assert own.attributes.pop("gen_ai.response.time_to_first_chunk") == pytest.approx(0.1)
    assert own.attributes == {
        "poolgate.request_id": "id-1",
        "poolgate.outcome": "completed",
        "poolgate.tenant": "acme",
        "poolgate.pool": "chat",
        "poolgate.pod": "chat-0",
        "poolgate.decision": "least",
        "poolgate.attempts": 1,
        "poolgate.queue_seconds": 0.0,
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "org/m",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "org/real",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 34,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.usage.cache_read.input_tokens": 16,
    }
    assert attempt.parent_id == own.span_id


def test_an_attempt_s_span_says_which_pod_and_why() -> None:
    _, attempt = sent(traced())
    assert (attempt.name, attempt.kind, attempt.failed) == ("chat org/real", "CLIENT", False)
    assert (attempt.trace_id, attempt.span_id) == (f"{0xABC:032x}", f"{0x101:016x}")
    assert (attempt.started_at, attempt.ended_at) == pytest.approx((1_800_000_000.001, 1_800_000_000.19), abs=1e-5)
    assert attempt.events == pytest.approx({"first_content": 1_800_000_000.1}, abs=1e-5)
    assert attempt.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "org/real",
        "poolgate.pool": "chat",
        "poolgate.pod": "chat-0",
        "poolgate.attempt": 1,
        "poolgate.decision": "least",
    }


def test_each_attempt_has_a_span_of_its_own() -> None:
    first = ATTEMPT._replace(pod="chat-1", decision="cheapest", ended="reset", started_at=1000.001, ended_at=1000.05)
    again = traced(attempts=2, tried=(first, ATTEMPT), attempt_outcomes=(("chat", "reset"), ("spare", "completed")))
    own, *attempts = sent(again)
    assert {attempt.parent_id for attempt in attempts} == {own.span_id}
    assert len({own.span_id, *(attempt.span_id for attempt in attempts)}) == 3
    told = [
        (
            a.attributes["poolgate.pod"],
            a.attributes["poolgate.pool"],
            a.attributes.get("error.type"),
            a.failed,
            a.events,
        )
        for a in attempts
    ]
    assert told[0] == ("chat-1", "chat", "reset", True, {})
    assert told[1][:4] == ("chat-0", "spare", None, False)
    assert told[1][4]


def test_a_trace_that_begins_here_has_no_parent() -> None:
    assert of_request(trace=TRACE._replace(parent_id=0)).parent_id == ""


def test_a_request_that_reached_no_pod_has_one_span() -> None:
    none = refused(trace=TRACE, tenant=trail().tenant, status=429, code="rate_limit_exceeded", operation="chat")
    (own,) = sent(none)
    assert own.attributes["error.type"] == "rate_limit_exceeded"
    assert not own.failed
    assert not {"poolgate.pod", "poolgate.pool", "gen_ai.response.model"} & own.attributes.keys()


@pytest.mark.parametrize("label", ["tokenize", "models"])
def test_what_asks_no_model_to_work_is_no_operation_of_generative_ai(label: str) -> None:
    own = of_request(operation=label, stream=False, usage=None, finish="")
    assert own.name == " ".join(ROUTES[label])
    assert not {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.stream"} & own.attributes.keys()


# What is not known is not said.


def test_tokens_that_were_estimated_are_not_told() -> None:
    told = of_request(usage=Usage(34, 10, 0, estimated=True)).attributes
    assert not [name for name in told if name.startswith("gen_ai.usage")]


def test_tokens_are_told_once_in_a_trace() -> None:
    _, attempt = sent(traced())
    assert not [name for name in attempt.attributes if name.startswith("gen_ai.usage")]


def test_a_pod_that_tells_of_no_cache_is_not_quoted() -> None:
    told = of_request(usage=Usage(34, 10)).attributes
    assert "gen_ai.usage.cache_read.input_tokens" not in told
    assert told["gen_ai.usage.input_tokens"] == 34


def test_an_answer_that_is_no_stream_has_no_time_to_its_first_chunk() -> None:
    told = of_request(stream=False).attributes
    assert "gen_ai.response.time_to_first_chunk" not in told
    assert told["gen_ai.request.stream"] is False


# Whose fault it was.


@pytest.mark.parametrize("outcome", list(Outcome))
def test_an_error_is_what_the_pods_or_we_are_to_blame_for(outcome: Outcome) -> None:
    own = of_request(outcome=outcome, code="")
    assert own.failed is (outcome in FAULTS)
    told = own.attributes.get("error.type")
    assert told == (None if outcome in ("completed", "client_left") else outcome)


@pytest.mark.parametrize(("status", "failed"), [(0, False), (400, False), (429, False), (500, True), (503, True)])
def test_a_refusal_is_an_error_if_it_says_that_we_cannot(status: int, failed: bool) -> None:
    own = of_request(outcome=Outcome.REFUSED, status=status, code="why")
    assert own.failed is failed
    assert own.attributes["error.type"] == "why"
    assert own.attributes.get("http.response.status_code") == (status or None)


@pytest.mark.parametrize(
    ("ended", "failed"),
    [
        ("completed", False),
        ("client_left", False),
        ("abandoned", False),
        ("refused", False),
        ("connect", True),
        ("busy", True),
        ("timeout", True),
        ("truncated", True),
        ("upstream_failed", True),
    ],
)
def test_an_attempt_is_an_error_if_its_pod_is_to_blame(ended: str, failed: bool) -> None:
    _, attempt = sent(traced(tried=(ATTEMPT._replace(ended=ended),), attempt_outcomes=(("chat", ended),)))
    assert attempt.failed is failed
    assert attempt.attributes.get("error.type") == (None if ended == "completed" else ended)


# Odd values.


def test_names_that_callers_choose_are_cut_and_can_always_be_encoded() -> None:
    odd = "a\ud800" + "b" * 5000
    spans = sent(traced(model=odd, finish=odd), traced(tried=(ATTEMPT._replace(model=odd),)), traced())
    assert len(spans) == 6
    assert spans[0].attributes["gen_ai.request.model"] == "a?" + "b" * (MAX_NAME_CHARACTERS - 2)
    assert len(spans[0].attributes["gen_ai.response.finish_reasons"][0]) == MAX_NAME_CHARACTERS


# Who sends.


def test_the_service_says_who_it_is() -> None:
    own = of_request()
    assert own.scope == "poolgate"
    ours = {"service.name": "poolgate", "service.version": "1.2.3", "service.instance.id": "i-1"}
    assert ours.items() <= own.resource.items()


def test_what_the_environment_says_of_the_service_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "edge")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,service.instance.id=pod-7")
    told = of_request().resource
    assert (told["service.name"], told["service.instance.id"]) == ("edge", "pod-7")
    assert (told["deployment.environment.name"], told["service.version"]) == ("prod", "1.2.3")


def test_a_receiver_s_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret")
    with Receiver() as receiver:
        with sending(receiver.endpoint + "/") as traces:
            traces.add([traced()], WALL)
        ((path, headers, _),) = receiver.posts
    assert path == "/v1/traces"
    assert headers["authorization"] == "Bearer secret"
    assert headers["content-type"] == "application/x-protobuf"


# Sending.


def test_what_is_not_sampled_is_not_sent() -> None:
    assert sent(trail(), traced(trace=TRACE._replace(flags=0)), traced(trace=None)) == []


def test_traces_come_within_a_second_or_so_and_not_only_at_the_end() -> None:
    with Receiver() as receiver, sending(receiver.endpoint) as traces:
        traces.add([traced()], WALL)
        assert receiver.arrived.wait(30)


def test_many_come_in_small_parts() -> None:
    """Encoding holds the loop up: a little at a time."""
    with Receiver() as receiver:
        with sending(receiver.endpoint, every_seconds=NEVER) as traces:
            traces.add([traced() for _ in range(5 * BATCH + 1)], WALL)
        assert len(receiver.posts) == 6
        assert len(receiver.spans) == 2 * (5 * BATCH + 1)
        assert traces.lost == 0


@contextmanager
def away() -> Iterator[str]:
    """A receiver that hangs: it takes what comes, and says nothing."""
    with Receiver([0]) as receiver:
        yield receiver.endpoint


def test_what_waits_is_bounded_and_what_is_lost_is_counted() -> None:
    with away() as endpoint, sending(endpoint, every_seconds=NEVER, close_seconds=0.1) as traces:
        one = traced()
        started = time.thread_time()
        traces.add([one] * (MAX_WAITING + 10), WALL)
        assert traces.lost == 10
        traces.add([one] * 10_000, WALL)
        assert traces.lost == 10_010
        # It is dropped for next to nothing: no span was made.
        assert time.thread_time() - started < 1


def test_the_end_waits_for_no_receiver() -> None:
    with away() as endpoint:
        traces = Tracing(endpoint, ROUTES, version="1", instance="i")
        traces.add([traced()] * 3 * BATCH, WALL)
        with Ticks() as ticks:
            traces.close()
        assert ticks.seconds < 2
        traces.close()


def test_nothing_is_left_behind_at_the_end() -> None:
    before = threading.active_count()
    filters = [*logging.getLogger(tracing._EXPORTER_LOG).filters]
    with Receiver() as receiver:
        with sending(receiver.endpoint) as traces:
            traces.add([traced()], WALL)
        assert len(receiver.spans) == 2
    assert logging.getLogger(tracing._EXPORTER_LOG).filters == filters
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_receiver_that_refuses_is_told_of_once_with_its_reason_until_it_takes_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with Receiver([401, 401, 401, 200]) as receiver, sending(receiver.endpoint, every_seconds=0.01) as traces:
        for posts in range(1, 5):
            traces.add([traced()], WALL)
            _until(lambda posts=posts: len(receiver.posts) == posts and not traces._waiting)
            _until(lambda posts=posts: traces.lost == min(posts, 3))
    told = [(record.levelname, record.name, record.getMessage()) for record in caplog.records]
    assert told[0][:2] == ("WARNING", "poolgate.traces")
    assert "401" in told[0][2]
    assert told[1:] == [("INFO", "poolgate.traces", "traces are sent again; 3 were lost")]


def test_what_another_gateway_s_exporter_says_is_not_swallowed(caplog: pytest.LogCaptureFixture) -> None:
    with Receiver() as receiver, sending(receiver.endpoint):
        logging.getLogger(tracing._EXPORTER_LOG).error("of another thread")
    assert [record.getMessage() for record in caplog.records] == ["of another thread"]


def test_a_fault_of_ours_ends_neither_the_thread_nor_the_traces_after_it(caplog: pytest.LogCaptureFixture) -> None:
    broken = traced(attempt_outcomes=())
    with Receiver() as receiver:
        with sending(receiver.endpoint, every_seconds=NEVER) as traces:
            traces.add([broken] * BATCH + [traced()], WALL)
        assert len(receiver.spans) == 2
        assert traces.lost == BATCH
    assert "spans could not be made" in caplog.text


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)
