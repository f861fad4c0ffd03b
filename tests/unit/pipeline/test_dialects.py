"""Errors in three dialects: the shapes of the contract, whatever the message says."""

import json

import pytest

from gateway.core import errors
from gateway.pipeline.dialects import ANTHROPIC, OPENAI, RESPONSES, Dialect

CUT = errors.StreamTruncated('cut "here"\n\n\ud800')
BY_STATUS = [
    (errors.InvalidJson("m"), "invalid_request_error"),
    (errors.InvalidApiKey("m"), "authentication_error"),
    (errors.Forbidden("m", code="model_not_allowed"), "permission_error"),
    (errors.ModelNotFound("m"), "not_found_error"),
    (errors.MethodNotAllowed("m", allow=b"POST"), "invalid_request_error"),
    (errors.BodyTooLarge("m"), "request_too_large"),
    (errors.UnsupportedMediaType("m"), "invalid_request_error"),
    (errors.Busy("m", retry_after_seconds=1), "overloaded_error"),
    (errors.UpstreamFailed("m"), "api_error"),
    (errors.UpstreamDisconnected("m"), "api_error"),
    (errors.UpstreamTimeout("m"), "api_error"),
    (errors.InternalError("m"), "api_error"),
]


def test_a_chat_ends_with_the_error_and_the_end_mark() -> None:
    event = OPENAI.event(CUT, 7)
    data, _, rest = event.partition(b"\n\n")
    assert rest == b"data: [DONE]\n\n"
    assert json.loads(data.removeprefix(b"data: "))["error"]["code"] == "upstream_truncated"


@pytest.mark.parametrize("dialect", [ANTHROPIC, RESPONSES])
def test_named_streams_end_with_an_error_event_and_no_end_mark(dialect: Dialect) -> None:
    event = dialect.event(CUT, 7)
    lines = event.split(b"\n")
    assert (lines[0], lines[2:]) == (b"event: error", [b"", b""])
    told = json.loads(lines[1].removeprefix(b"data: "))
    assert told["type"] == "error"
    assert dialect.end_mark == b""


def test_a_response_numbers_its_error_like_any_event() -> None:
    told = json.loads(RESPONSES.event(CUT, 7).split(b"\n")[1].removeprefix(b"data: "))
    assert set(told) == {"type", "code", "message", "param", "sequence_number"}
    assert (told["sequence_number"], told["code"]) == (7, "upstream_truncated")


@pytest.mark.parametrize(("error", "kind"), BY_STATUS, ids=lambda value: getattr(value, "code", ""))
def test_anthropics_types_go_by_the_status(error: errors.PoolgateError, kind: str) -> None:
    told = json.loads(ANTHROPIC.body(error))
    assert told == {"type": "error", "error": {"type": kind, "message": "m", "code": error.code}}


def test_a_pods_own_words_stay_its_own() -> None:
    refusal = errors.PodRefusal(400, b"  as it came ")
    for dialect in (OPENAI, RESPONSES, ANTHROPIC):
        assert dialect.body(refusal) == b"  as it came "


def test_responses_that_are_no_streams_fail_in_the_common_shape() -> None:
    assert RESPONSES.body(CUT) == OPENAI.body(CUT) == CUT.body()


def test_a_pods_own_words_are_one_event_whatever_lines_it_writes_them_in() -> None:
    refusal = errors.PodRefusal(400, b'{\r\n "error": {"message": "too\\nlong",\n\n"type": "x", "code": 400}\r}')
    for dialect in (OPENAI, RESPONSES, ANTHROPIC):
        event = dialect.event(refusal, 0).removesuffix(dialect.end_mark)
        assert event.count(b"\n\n") == 1
        assert b"\r" not in event
        (data,) = [line[6:] for line in event.split(b"\n") if line.startswith(b"data: ")]
        told = json.loads(data)
        assert told.get("error", told)["message"] == "too\nlong"
