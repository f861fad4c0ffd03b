"""A pod's error answer: what the retry table calls it, what the client is told, and what it is not told."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import PodRefusal, PoolgateError
from gateway.upstream.failure import Failure
from gateway.upstream.named_events import MessagesReader
from gateway.upstream.refusal import MAX_MESSAGE_CHARACTERS, first_event_error, refusal, server_error, without_addresses
from gateway.upstream.usage import PodError, read_error
from tests.running import captured, captured_events


def body_of(name: str) -> bytes:
    """The body of a captured answer."""
    return captured(name)[1].partition(b"\r\n\r\n")[2]


def nested(message: str, code: int, param: str | None = None) -> bytes:
    """vLLM's own shape."""
    return json.dumps({"error": {"message": message, "type": "x", "param": param, "code": code}}).encode()


BUSY = body_of("e22-overload-5.http")
DEAD_ENGINE = body_of("h01-kill9-enginecore-nonstream.http")
UNKNOWN_MODEL = body_of("40-err-unknown-model.http")
TOO_LONG = body_of("44-err-context-too-long.http")
NOT_FOUND = body_of("52-err-path.http")
UNAUTHORIZED = body_of("e01-unauth.http")
DRAINING = nested("cannot schedule new futures after shutdown", 500)
MESSAGE_CUT_BY_A_DEAD_ENGINE = captured_events("m01-messages-stream-engine-killed.http")[-1]
ANTHROPIC = b'{"type":"error","error":{"type":"invalid_request_error","message":"bad"}}'


@pytest.mark.parametrize(
    ("status", "body", "failure", "answered", "code"),
    [
        # Our key, never the caller's.
        (401, UNAUTHORIZED, Failure.JUNK, 502, "upstream_auth"),
        (401, nested("no", 401), Failure.JUNK, 502, "upstream_auth"),
        (403, nested("no", 403), Failure.JUNK, 502, "upstream_auth"),
        # Busy.
        (503, BUSY, Failure.BUSY, 503, "overloaded"),
        (429, nested("slow down", 429), Failure.BUSY, 503, "overloaded"),
        (503, b"<html>", Failure.BUSY, 503, "overloaded"),
        # Redirects.
        (301, b"", Failure.JUNK, 502, "upstream_redirect"),
        (307, nested("x", 307), Failure.JUNK, 502, "upstream_redirect"),
        # A sidecar's.
        (502, b"<html>bad gateway", Failure.SIDECAR, 502, "upstream_bad_response"),
        (504, nested("x", 504), Failure.SIDECAR, 502, "upstream_bad_response"),
        # The pod's own trouble.
        (500, DEAD_ENGINE, Failure.ENGINE_DEAD, 500, "upstream_failed"),
        (500, DRAINING, Failure.DYING, 500, "upstream_failed"),
        (500, nested("EngineDeadError: oh", 500), Failure.ENGINE_DEAD, 500, "upstream_failed"),
        (500, b'{"detail":"Cannot schedule new futures after shutdown"}', Failure.DYING, 500, "upstream_failed"),
        (500, b'{"error":"engine dead"}', Failure.ENGINE_DEAD, 500, "upstream_failed"),
        (500, body_of("m02-messages-engine-dead.http"), Failure.ENGINE_DEAD, 500, "upstream_failed"),
        (500, nested("bad luck", 500), Failure.SERVER_ERROR, 500, "upstream_failed"),
        (500, b"Internal Server Error", Failure.SERVER_ERROR, 500, "upstream_failed"),
        (500, b"", Failure.SERVER_ERROR, 500, "upstream_failed"),
        (501, nested("not here", 501), Failure.SERVER_ERROR, 500, "upstream_failed"),
        (505, b"", Failure.SERVER_ERROR, 500, "upstream_failed"),
        # The caller's mistake, as vLLM tells it.
        (404, UNKNOWN_MODEL, Failure.MODEL_GONE, 404, "upstream_refusal"),
        (404, body_of("81-messages-err.http"), Failure.MODEL_GONE, 404, "upstream_refusal"),
        (404, body_of("p07-embed-unknown-model.http"), Failure.MODEL_GONE, 404, "upstream_refusal"),
        (400, TOO_LONG, Failure.REFUSED, 400, "upstream_refusal"),
        (400, nested("x", 400, "model"), Failure.REFUSED, 400, "upstream_refusal"),
        (404, nested("x", 404, "previous_response_id"), Failure.REFUSED, 404, "upstream_refusal"),
        (422, ANTHROPIC, Failure.REFUSED, 422, "upstream_refusal"),
        # The same in FastAPI's words, or nobody's.
        (404, NOT_FOUND, Failure.REFUSED, 404, "not_found"),
        (404, b"", Failure.REFUSED, 404, "not_found"),
        (405, body_of("51-err-method.http"), Failure.REFUSED, 400, "invalid_request"),
        (400, body_of("63-err-bad-utf8.http"), Failure.REFUSED, 400, "invalid_request"),
        (400, b'{"error":"no"}', Failure.REFUSED, 400, "invalid_request"),
        (400, b"<html>", Failure.REFUSED, 400, "invalid_request"),
        (418, b'{"detail":[{"loc":["body"]}]}', Failure.REFUSED, 400, "invalid_request"),
        # No answer to a POST at all.
        (204, b"", Failure.JUNK, 502, "upstream_bad_response"),
        (206, b"{}", Failure.JUNK, 502, "upstream_bad_response"),
    ],
)
def test_what_a_pods_answer_means(status: int, body: bytes, failure: Failure, answered: int, code: str) -> None:
    seen, error = refusal(status, body)
    assert (seen, error.http_status, error.code) == (failure, answered, code)


@pytest.mark.parametrize("body", [TOO_LONG, UNKNOWN_MODEL, ANTHROPIC])
def test_a_nested_4xx_goes_to_the_client_byte_for_byte(body: bytes) -> None:
    _, error = refusal(404, body)
    assert isinstance(error, PodRefusal)
    assert error.body() == body


@pytest.mark.parametrize("status", [401, 403, 429, 500, 501, 502, 503, 504])
def test_what_the_contract_rewrites_is_rewritten_whatever_its_shape(status: int) -> None:
    _, error = refusal(status, nested("canary-10.1.2.3", status))
    told = json.loads(error.body())["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert "10.1.2.3" not in told["message"]


@pytest.mark.parametrize(
    ("given_", "seconds"),
    [
        (None, 1),
        (b"7", 7),
        (b"0", 1),
        (b"60", 60),
        (b"61", 60),
        (b"999", 60),
        (b"1000", 1),
        (b"-1", 1),
        (b"1.5", 1),
        (b"Wed, 21 Oct 2026 07:28:00 GMT", 1),
        (b"", 1),
        ("٣".encode(), 1),
    ],
)
def test_a_pods_retry_after_is_believed_within_reason(given_: bytes | None, seconds: int) -> None:
    _, error = refusal(503, BUSY, given_)
    assert dict(error.headers())[b"retry-after"] == b"%d" % seconds


@pytest.mark.parametrize(
    ("code", "failure", "answered"),
    [
        (400, Failure.REFUSED, 400),
        (404, Failure.REFUSED, 404),
        (429, Failure.BUSY, 503),
        (503, Failure.BUSY, 503),
        (502, Failure.SIDECAR, 502),
        (500, Failure.SERVER_ERROR, 500),
        (501, Failure.SERVER_ERROR, 500),
        (200, Failure.SERVER_ERROR, 500),
        (600, Failure.SERVER_ERROR, 500),
        (-1, Failure.SERVER_ERROR, 500),
        ("BadRequestError", Failure.SERVER_ERROR, 500),
        (None, Failure.SERVER_ERROR, 500),
    ],
)
def test_an_error_as_first_event_is_judged_by_the_status_it_names(
    code: int | str | None, failure: Failure, answered: int
) -> None:
    data = json.dumps({"error": {"message": "m", "code": code}}).encode()
    seen, error = first_event_error(data, read_error(data[10:-1]))
    assert (seen, error.http_status) == (failure, answered)


def test_a_dead_engine_is_known_in_a_stream_too() -> None:
    seen, error = server_error(PodError(message="EngineCore encountered an issue. See stack trace (above)."))
    assert (seen, error.code) == (Failure.ENGINE_DEAD, "upstream_failed")


def test_a_dead_engine_is_known_by_what_messages_leave_of_its_words() -> None:
    reader = MessagesReader()
    reader.read_event(MESSAGE_CUT_BY_A_DEAD_ENGINE)
    assert reader.error is not None
    seen, error = server_error(reader.error)
    assert seen is Failure.ENGINE_DEAD
    assert "https://" not in error.message


def test_an_error_without_a_message_says_so() -> None:
    _, error = server_error(PodError())
    assert error.message == "the pod failed without a message"


# What a client is not told.


@pytest.mark.parametrize(
    "private",
    [
        "10.1.2.3",
        "10.1.2.3:8000",
        "http://10.1.2.3:8000/v1/models?x=y",
        "https://vllm-0.vllm.svc/v1",
        "tcp://[fe80::1]:80",
        "file:///etc/passwd",
        "[fe80::1]:80",
        "fe80::a:b:c:d",
        "2001:db8::1",
        "::1",
        "0:0:0:0:0:0:0:1",
        "vllm-0.vllm.svc.cluster.local:8000",
        "localhost:8000",
        "/usr/lib/python3/site-packages/vllm/x.py",
        "/root/.cache/huggingface",
        "/data/m@1/x+y",
    ],
)
@pytest.mark.parametrize(
    "around", ["{}", "in {} it broke", "({})", "'{}'", "host={}, more", "at {}.", "éé {}\n{}", "<{}>"]
)
def test_addresses_and_paths_are_taken_out_of_a_message(private: str, around: str) -> None:
    told = without_addresses(around.replace("{}", private))
    assert "…" in told
    for piece in ("10.1", "vllm", "svc", "fe80", "2001", "db8", "8000", "usr", "root", "cache", "data", "etc", "::1"):
        assert piece not in told


@pytest.mark.parametrize(
    "message",
    [
        "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "This model's maximum context length is 2048 tokens.",
        "1/2 of max_tokens=24, ratio 0.5",
        "cannot schedule new futures after shutdown",
        "version 1.2.3 of x",
    ],
)
def test_other_words_stay(message: str) -> None:
    assert without_addresses(message) == message


@pytest.mark.parametrize("private", ["vllm-0.vllm.svc.cluster.local", "/root", "::ffff:10.0.0.1"])
def test_addresses_in_odder_forms_are_taken_out_as_well(private: str) -> None:
    assert without_addresses(f"at {private} it broke") == "at … it broke"


def test_a_message_is_cut_to_a_sensible_length() -> None:
    assert len(without_addresses("word " * 1000)) == MAX_MESSAGE_CHARACTERS


@pytest.mark.parametrize("unit", ["a", "a-", "a."])
def test_a_long_message_does_not_hold_up_the_loop(unit: str) -> None:
    began = time.thread_time()
    without_addresses(unit * 1_000_000)
    # Of the processor's time: 5 ms, and a second or more for all of it.
    assert time.thread_time() - began < 0.25


# Whatever comes.

statuses = st.integers(200, 599)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["error", "detail", "x"]), inner),
    max_leaves=10,
)
inner_fields = st.dictionaries(st.sampled_from(["message", "type", "param", "code", "x"]), json_values)
shaped = st.one_of(json_values, st.fixed_dictionaries({"error": inner_fields})).map(
    lambda value: json.dumps(value).encode()
)
bodies = st.one_of(st.binary(max_size=60), shaped)


def check(failure: Failure, error: PoolgateError) -> None:
    """A whole answer in our terms."""
    assert isinstance(failure, Failure)
    assert 400 <= error.http_status < 600
    assert error.http_status not in (401, 403, 429, 504)
    assert isinstance(error.body(), bytes)
    for name, value in error.headers():
        assert b"\n" not in name + value


@settings(max_examples=400)
@given(statuses, bodies, st.none() | st.binary(max_size=8))
def test_no_answer_of_a_pod_is_beyond_us(status: int, body: bytes, retry_after: bytes | None) -> None:
    check(*refusal(status, body, retry_after))


@settings(max_examples=200)
@given(statuses, st.binary(max_size=200).map(lambda raw: b"[" * 50 + raw), st.integers(1, 100_000))
def test_no_nesting_is_too_deep(status: int, body: bytes, depth: int) -> None:
    check(*refusal(status, body))
    check(*refusal(status, b'{"error":{"x":' + b"[" * depth + b"]" * depth + b"}}"))


@pytest.mark.parametrize("name", [b"message", b"type", b"param", b"code"])
def test_no_bytes_inside_an_error_are_beyond_us(name: bytes) -> None:
    for status in (400, 404, 500):
        check(*refusal(status, b'{"error":{"%b":"a\xff"}}' % name))
