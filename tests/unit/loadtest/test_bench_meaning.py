"""Of a proxy that writes answers anew the client checks what they say, and believes no broken one either."""

import json
from typing import Any

import pytest

from loadtest.bench.client import NotWhole
from loadtest.bench.meaning import ClosedLoopByMeaning, StreamedByMeaning
from loadtest.bench.wire import COMPLETION, STREAM_HEAD, chunk, json_answer
from tests.unit.loadtest.test_bench import a_stream, fed

HEAD, LAST, DONE = STREAM_HEAD, b"0\r\n\r\n", b"data: [DONE]\n\n"


def said(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    """An event as such a proxy writes it: fields in another order, those that it does not know gone."""
    choice: dict[str, Any] = {"delta": delta, "index": 0}
    if finish_reason is not None:
        choice["finish_reason"] = finish_reason
    return chunk(b"data: " + json.dumps({"choices": [choice], "id": "x"}).encode() + b"\n\n")


def token(number: int) -> bytes:
    return said({"content": f"{number:014d}"})


ROLE = said({"role": "assistant", "content": ""})
INSTANT = 48_000_000_000
FINISH = said({}, "length")


WHOLE = {
    "a finish reason of its own": [ROLE, token(INSTANT), token(INSTANT), token(3), FINISH],
    "the role with the first token": [said({"role": "assistant", "content": f"{INSTANT:014d}"}), token(2), FINISH],
    "the finish reason with the last token": [ROLE, token(INSTANT), said({"content": f"{2:014d}"}, "length")],
    "an empty chunk between": [ROLE, token(INSTANT), said({}), token(2), FINISH],
}


@pytest.mark.parametrize("events", WHOLE.values(), ids=WHOLE.keys())
def test_a_stream_that_says_the_same_is_whole(events: list[bytes]) -> None:
    load = fed([HEAD, *events, chunk(DONE), LAST], StreamedByMeaning)
    tokens = sum(b"000" in event for event in events)
    assert (load.begun, load.whole, load.tokens, len(load.transit_us)) == (1, 1, tokens, tokens - 1)


def test_the_pods_own_bytes_say_the_same() -> None:
    load = fed([a_stream(5, usage=True)], StreamedByMeaning)
    assert (load.whole, load.tokens) == (1, 5)


BROKEN = {
    "a token lost": [ROLE, token(INSTANT), token(3), FINISH, chunk(DONE), LAST],
    "a token twice": [ROLE, token(INSTANT), token(INSTANT), token(2), FINISH, chunk(DONE), LAST],
    "two tokens in one": [ROLE, said({"content": f"{INSTANT:014d}" * 2}), token(3), FINISH, chunk(DONE), LAST],
    "no finish reason": [ROLE, token(INSTANT), token(2), chunk(DONE), LAST],
    "another finish reason": [ROLE, token(INSTANT), token(2), said({}, "stop"), chunk(DONE), LAST],
    "finished before the last token": [ROLE, token(INSTANT), FINISH, chunk(DONE), LAST],
    "no [DONE]": [ROLE, token(INSTANT), token(2), FINISH, LAST],
    "something after [DONE]": [ROLE, token(INSTANT), token(2), FINISH, chunk(DONE), said({}), LAST],
    "cut": [ROLE, token(INSTANT), token(2), FINISH, chunk(DONE)],
    "an error event": [ROLE, chunk(b'data: {"error": {"message": "no"}}\n\n'), chunk(DONE), LAST],
    "no JSON": [ROLE, chunk(b"data: no\n\n"), chunk(DONE), LAST],
}


@pytest.mark.parametrize("events", BROKEN.values(), ids=BROKEN.keys())
def test_a_stream_that_says_less_or_more_fails_the_round(events: list[bytes]) -> None:
    with pytest.raises(NotWhole):
        fed([HEAD, *events], StreamedByMeaning)


def test_an_error_answer_is_no_stream() -> None:
    with pytest.raises(NotWhole):
        fed([json_answer(b'{"error":{"message":"no"}}', b"503 Service Unavailable")], StreamedByMeaning)


def test_an_answer_with_other_fields_in_another_order_is_whole_and_one_with_other_text_is_not() -> None:
    completion = json.loads(COMPLETION)
    anew = {"usage": completion["usage"], "choices": completion["choices"], "id": "another"}
    assert ClosedLoopByMeaning.is_whole(json.dumps(anew).encode())
    for broken in (COMPLETION.replace(b"xx", b"x", 1), COMPLETION[:-1], b"", b"{}", b'{"choices":[]}', b"[]"):
        assert not ClosedLoopByMeaning.is_whole(broken)
    assert not ClosedLoopByMeaning.is_whole(COMPLETION.replace(b'"length"', b'"stop"'))
    assert not ClosedLoopByMeaning.is_whole(COMPLETION.replace(b'"total_tokens":58', b'"total_tokens":57'))
