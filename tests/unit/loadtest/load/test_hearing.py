"""What an answer says is written down as it was said, however its bytes were cut."""

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.load.hearing import MAX_EVENT_BYTES, Stream, hear_whole
from loadtest.load.record import Ending, Record
from tests.running import captured, captured_events
from tests.unit.loadtest.load.planning import planned

CHAT = "11-chat-stream.http"
CHAT_WITH_USAGE = "12-chat-stream-usage.http"
TWO_CHOICES = "23-chat-stream-n2.http"
COMPLETION = "15-completion-stream.http"
RESPONSES = "75-responses-stream.http"
MESSAGES = "79-messages-stream.http"
STREAMS = [CHAT, CHAT_WITH_USAGE, TWO_CHOICES, COMPLETION, RESPONSES, MESSAGES]


def fresh() -> Record:
    return Record(planned(stream=True), intended_at=0.0, sent_at=0.0)


def heard(*reads: bytes) -> tuple[Record, Stream]:
    """What a record says after these reads, of which each came a second after the one before."""
    record = fresh()
    stream = Stream(record)
    for second, data in enumerate(reads):
        stream.feed(data, float(second))
    return record, stream


def words(name: str) -> list[int]:
    """Which events of a captured stream bear text, told by their bytes alone."""
    marks = (b'"content":"', b'"text":"', b'"type":"response.output_text.delta"')
    return [
        number
        for number, event in enumerate(captured_events(name))
        if any(mark in event and mark + b'"' not in event for mark in marks)
        and not event.startswith((b"event: response.output_text.done", b"event: response.content_part"))
        and not event.startswith((b"event: response.output_item", b"event: response.completed"))
    ]


@pytest.mark.parametrize("name", STREAMS)
def test_the_moment_of_each_piece_of_content_is_noted_and_of_nothing_else(name: str) -> None:
    record, stream = heard(*captured_events(name))
    assert list(record.token_times) == [float(number) for number in words(name)]
    assert record.tokens == len(words(name)) > 1
    assert record.first_at == record.token_times[0]
    assert stream.ending() is Ending.WHOLE


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@settings(max_examples=40)
@given(data=st.data())
def test_a_stream_says_the_same_however_it_is_cut_and_its_lines_are_ended(
    name: str, line_end: bytes, data: st.DataObject
) -> None:
    told = b"".join(captured_events(name)).replace(b"\n", line_end)
    cuts = data.draw(st.lists(st.integers(0, len(told)), max_size=12).map(sorted))
    record, stream = heard(*(told[begin:end] for begin, end in pairwise([0, *cuts, len(told)])))
    at_once, _stream = heard(told)
    assert stream.ending() is Ending.WHOLE
    assert (record.tokens, record.prompt_tokens, record.completion_tokens) == (
        at_once.tokens,
        at_once.prompt_tokens,
        at_once.completion_tokens,
    )


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_ends_before_its_last_event_is_cut(name: str) -> None:
    for events in range(len(captured_events(name))):
        _record, stream = heard(*captured_events(name)[:events])
        assert stream.ending() is Ending.CUT, events


@pytest.mark.parametrize("name", [CHAT, COMPLETION, TWO_CHOICES])
def test_done_without_a_finish_reason_for_every_choice_is_no_whole_answer(name: str) -> None:
    *events, done = captured_events(name)
    finish = next(number for number, event in enumerate(events) if b'"finish_reason":"' in event)
    _record, stream = heard(*events[:finish], *events[finish + 1 :], done)
    assert stream.ending() is Ending.CUT


def test_done_alone_is_no_answer() -> None:
    assert heard(b"data: [DONE]\n\n")[1].ending() is Ending.CUT


def test_an_answer_without_a_word_began_when_it_said_that_it_was_over() -> None:
    events = captured_events(CHAT)
    finish = b'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}]}\n\n'
    record, stream = heard(events[0], finish, events[-1])
    assert (record.first_at, record.tokens, stream.ending()) == (1.0, 0, Ending.WHOLE)


@pytest.mark.parametrize(
    "delta",
    [
        '"content":"so"',
        '"reasoning":"so"',
        '"reasoning_content":"so"',
        '"content":null,"tool_calls":[{"index":0,"function":{"arguments":"{"}}]',
    ],
)
def test_reasoning_and_calls_are_content(delta: str) -> None:
    event = f'{{"choices":[{{"index":0,"delta":{{{delta}}},"finish_reason":null}}]}}'
    assert heard(f"data: {event}\n\n".encode())[0].tokens == 1


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ('data: {"error":{"message":"x","type":"server_error","code":"upstream_failed"}}', "upstream_failed"),
        ('data: {"error":{"message":"x","type":"InternalServerError","param":null,"code":500}}', "InternalServerError"),
        ('data: {"error":{"message":"x","code":500}}', "500"),
        ('data: {"error":"went wrong"}', "went wrong"),
        ('event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"x"}}', "overloaded_error"),
        ('event: error\ndata: {"type":"error","code":"server_error","message":"x","param":null}', "server_error"),
        (
            'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"code":"server_error"}}}',
            "server_error",
        ),
    ],
)
@pytest.mark.parametrize("before", [0, 4])
def test_an_error_event_is_told_with_its_code_before_and_after_content(event: str, code: str, before: int) -> None:
    record, stream = heard(*captured_events(CHAT)[:before], event.encode() + b"\n\n", b"data: [DONE]\n\n")
    assert (stream.ending(), record.code) == (Ending.TOLD, code)
    assert record.tokens == max(0, before - 1)


def test_a_long_code_is_cut_to_a_bound() -> None:
    record, _stream = heard(b'data: {"error":"%b"}\n\n' % (b"x" * 500))
    assert len(record.code) == 64


@pytest.mark.parametrize(
    ("event", "counts"),
    [
        ('"choices":[],"usage":{"prompt_tokens":34,"completion_tokens":24}', (34, 24, None)),
        ('"usage":{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}', (3, 2, 1)),
        ('"type":"x","response":{"usage":{"input_tokens":9,"output_tokens":3}}', (9, 3, None)),
        ('"type":"x","response":{"usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":8}}}', (9, None, 8)),
        ('"type":"message_delta","usage":{"input_tokens":9,"output_tokens":3}', (9, 3, None)),
        # Anthropic's input leaves out what the cache had.
        ('"type":"x","usage":{"input_tokens":9,"output_tokens":3,"cache_read_input_tokens":7}', (16, 3, 7)),
    ],
)
def test_usage_is_read_in_every_spelling(event: str, counts: tuple[int, int, int | None]) -> None:
    record, _stream = heard(f"data: {{{event}}}\n\n".encode())
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == counts


@pytest.mark.parametrize("name", [CHAT_WITH_USAGE, TWO_CHOICES, RESPONSES, MESSAGES])
def test_a_captured_stream_s_own_usage_is_what_it_sent(name: str) -> None:
    record, _stream = heard(*captured_events(name))
    assert record.completion_tokens == pytest.approx(record.tokens, abs=1)  # a token may bear no text
    assert record.prompt_tokens is not None
    assert record.prompt_tokens > 30


def test_comments_are_no_events() -> None:
    record, stream = heard(b": keep-alive\n\n", *captured_events(CHAT)[:2], b": keep-alive\n\n")
    assert (record.tokens, stream.fault) == (1, "")


def test_data_in_several_lines_and_without_its_blank_is_read() -> None:
    record, _stream = heard(b'id: 7\ndata:{"choices":[{"index":0,\ndata: "text":"so"}]}\n\n')
    assert record.tokens == 1


def test_what_is_no_event_is_a_fault_and_no_answer_is_whole_with_one() -> None:
    _record, stream = heard(b"data: <html>\n\n", *captured_events(CHAT))
    assert (stream.fault, stream.ending()) == ("not_an_event", Ending.CUT)


def test_an_event_without_end_is_a_fault_before_it_fills_the_memory() -> None:
    _record, stream = heard(b"data: " + b"x" * MAX_EVENT_BYTES)
    assert stream.fault == "event_too_long"


def test_a_whole_answer_s_usage_is_noted() -> None:
    record = fresh()
    assert hear_whole(_body("10-chat.http"), record)
    assert (record.prompt_tokens, record.completion_tokens) == (34, 24)


@pytest.mark.parametrize(
    ("name", "code"),
    [("40-err-unknown-model.http", "NotFoundError"), ("81-messages-err.http", "NotFoundError")],
)
def test_a_refusal_s_code_is_noted(name: str, code: str) -> None:
    record = fresh()
    assert hear_whole(_body(name), record)
    assert record.code == code


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"id":"chat', b"[]"])
def test_half_an_answer_is_none(body: bytes) -> None:
    assert not hear_whole(body, fresh())


def test_reading_an_event_costs_little_beside_the_read_that_brought_it() -> None:
    """About 2 us; the bound is for a machine that has other work, and still below what its kernel takes."""
    token = captured_events(CHAT)[1]
    stream = Stream(fresh())
    began = time.thread_time()
    for _ in range(20_000):
        stream.feed(token, 0.0)
    assert (time.thread_time() - began) / 20_000 < 20e-6


def _body(name: str) -> bytes:
    return captured(name)[1].partition(b"\r\n\r\n")[2]
