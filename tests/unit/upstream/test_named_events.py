"""What is read off streams whose events bear names: those of vLLM as captured, and what else may come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.call import Usage
from gateway.upstream.named_events import MessagesReader, NamedEventReader, ResponsesReader
from gateway.upstream.usage import EventKind
from tests.running import captured_events

CONTENT, OTHER, USAGE, ERROR, DONE, COMMENT, LAST = EventKind


MESSAGES, RESPONSES = captured_events("79-messages-stream.http"), captured_events("75-responses-stream.http")


def kinds(reader: NamedEventReader, stream: list[bytes]) -> list[EventKind]:
    return [reader.read_event(event) for event in stream]


def event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()


def test_a_captured_message_is_read() -> None:
    reader = MessagesReader()
    seen = kinds(reader, MESSAGES)
    assert seen[:3] == [OTHER, CONTENT, CONTENT]
    assert seen[-3:] == [OTHER, OTHER, DONE]
    assert reader.content_events == 13  # the block's start, and twelve tokens
    assert reader.usage() == Usage(33, 12)
    assert reader.finish == "max_tokens"
    assert reader.whole


def test_a_captured_response_is_read() -> None:
    reader = ResponsesReader()
    seen = kinds(reader, RESPONSES)
    assert seen[:5] == [OTHER, OTHER, CONTENT, OTHER, CONTENT]
    assert seen[-4:] == [OTHER, OTHER, OTHER, LAST]
    assert reader.content_events == 13
    assert reader.usage() == Usage(33, 12)
    assert reader.finish == "incomplete"
    assert reader.error is None


@pytest.mark.parametrize("stream", [MESSAGES, RESPONSES], ids=["messages", "responses"])
def test_every_token_of_a_captured_stream_is_plain_and_nothing_else_is(stream: list[bytes]) -> None:
    make = MessagesReader if stream is MESSAGES else ResponsesReader
    plain = [each for each in stream if make.plain.fullmatch(each)]
    tokens = (b"event: content_block_delta\n", b"event: response.output_text.delta\n")
    assert plain == [each for each in stream if each.startswith(tokens)]
    assert len(plain) == 12


@given(st.binary(max_size=40), st.integers(0, 400), st.sampled_from([MESSAGES[3], RESPONSES[5]]))
def test_what_is_plain_reads_as_content_whatever_its_bytes(bytes_: bytes, at: int, token: bytes) -> None:
    make = MessagesReader if token is MESSAGES[3] else ResponsesReader
    came = token[:at] + bytes_ + token[at:]
    if make.plain.fullmatch(came):
        assert make().read_event(came) is CONTENT
        assert came.count(b"\n") == 3
        assert b"\r" not in came


def test_the_cache_counts_as_input_in_anthropics_usage() -> None:
    reader = MessagesReader()
    usage = '{"input_tokens":3,"output_tokens":5,"cache_read_input_tokens":20,"cache_creation_input_tokens":10}'
    reader.read_event(event("message_delta", f'{{"delta":{{"stop_reason":"end_turn"}},"usage":{usage}}}'))
    assert reader.usage() == Usage(33, 5, 20)


@pytest.mark.parametrize(
    ("made", "came", "kind"),
    [
        (MessagesReader, b": keep-alive\n\n", COMMENT),
        (MessagesReader, event("ping", '{"type":"ping"}'), OTHER),
        (MessagesReader, b'data: {"type":"ping"}\n\n', OTHER),
        (MessagesReader, b'data: {"type":"message_stop"}\n\n', DONE),
        (MessagesReader, b"event: x\r\nevent: message_stop\r\ndata: {}\r\n\r\n", DONE),
        (MessagesReader, b"event:message_stop\rdata:{}\r\r", DONE),
        (MessagesReader, b"data: {}\nevent: message_stop\n\n", DONE),
        (MessagesReader, b"event: message_stop\n\n", OTHER),  # without data it is no event
        (MessagesReader, event("error", "junk"), ERROR),
        (MessagesReader, event("message_delta", "junk"), CONTENT),
        (MessagesReader, event("content_block_stop", "{}"), CONTENT),
        (ResponsesReader, event("response.queued", "{}"), OTHER),
        (ResponsesReader, event("response.output_item.added", "{}"), CONTENT),
        (ResponsesReader, event("response.completed", "junk"), LAST),
        (ResponsesReader, event("response.failed", "junk"), ERROR),
        (ResponsesReader, event("error", '{"message":"m","code":"c"}'), ERROR),
        (ResponsesReader, b"data: [DONE]\n\n", CONTENT),
        (ResponsesReader, b"data: \xff\n\n", CONTENT),
    ],
)
def test_events_are_told_apart_by_their_names(made: type[NamedEventReader], came: bytes, kind: EventKind) -> None:
    assert made().read_event(came) is kind


def test_after_the_answer_began_a_failed_response_is_its_end() -> None:
    reader = ResponsesReader()
    kinds(reader, RESPONSES[:5])
    failed = event("response.failed", '{"response":{"status":"failed","error":{"code":"x","message":"it broke"}}}')
    assert reader.read_event(failed) is LAST
    assert reader.error is not None
    assert (reader.error.message, reader.finish) == ("it broke", "failed")


@pytest.mark.parametrize(
    ("made", "data", "message"),
    [
        (MessagesReader, '{"type":"error","error":{"type":"internal_error","message":"it broke"}}', "it broke"),
        (MessagesReader, '{"type":"error","error":"it broke"}', "the pod reported an error"),
        (MessagesReader, "{}", "the pod reported an error"),
        (ResponsesReader, '{"type":"error","message":"it broke","code":500}', "it broke"),
        (ResponsesReader, '{"error":{"message":"it broke","code":500}}', "it broke"),
    ],
)
def test_an_error_is_read_in_either_shape(made: type[NamedEventReader], data: str, message: str) -> None:
    reader = made()
    reader.read_event(event("error", data))
    assert reader.error is not None
    assert reader.error.message == message


@pytest.mark.parametrize(
    ("made", "body", "finish", "usage"),
    [
        (
            MessagesReader,
            b'{"content":[],"stop_reason":"end_turn","usage":{"input_tokens":4,"output_tokens":2}}',
            "end_turn",
            Usage(4, 2),
        ),
        (
            ResponsesReader,
            b'{"status":"completed","usage":{"input_tokens":4,"output_tokens":2,"input_tokens_details":{"cached_tokens":1}}}',
            "completed",
            Usage(4, 2, 1),
        ),
        (MessagesReader, b"{}", "", None),
    ],
)
def test_a_whole_answer_tells_its_end_and_its_usage(
    made: type[NamedEventReader], body: bytes, finish: str, usage: Usage | None
) -> None:
    reader = made()
    assert reader.read_whole(body)
    assert (reader.finish, reader.usage()) == (finish, usage)


@given(st.binary(max_size=80), st.sampled_from([MessagesReader, ResponsesReader]))
def test_no_bytes_are_beyond_it(raw: bytes, made: type[NamedEventReader]) -> None:
    for came in (raw, b"data: " + raw, b"event: message_delta\ndata: " + raw + b"\n\n", b"event: error\ndata:" + raw):
        assert made().read_event(came) in EventKind
