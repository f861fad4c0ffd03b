"""What is read off a pod's answer in passing: kinds of events, finish reasons, usage that can be believed."""

import json
import time
from itertools import groupby

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core.call import Usage
from gateway.upstream.sse import EventFramer, payload
from gateway.upstream.usage import (
    MAX_INDICES,
    MAX_TOKENS,
    PLAIN_TOKEN,
    AnswerReader,
    ChoicesReader,
    EventKind,
    read_error,
)
from tests.running import captured

CONTENT, OTHER, USAGE, ERROR, DONE, COMMENT, _ = EventKind


def body_of(name: str) -> bytes:
    """The body of a captured answer, without its chunks."""
    head, _, body = captured(name)[1].partition(b"\r\n\r\n")
    if b"chunked" not in head:
        return body
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        whole, body = whole + body[:length], body[length + 2 :]
    return whole


def events_of(name: str) -> list[bytes]:
    """The events of a captured stream."""
    framer = EventFramer()
    return framer.feed(body_of(name)) + framer.close()


@pytest.mark.parametrize(
    ("name", "choices", "kinds", "finished", "usage"),
    [
        ("11-chat-stream.http", 1, [(CONTENT, 25), (DONE, 1)], {0: "length"}, None),
        ("12-chat-stream-usage.http", 1, [(CONTENT, 25), (USAGE, 1), (DONE, 1)], {0: "length"}, Usage(34, 24)),
        (
            "13-chat-stream-continuous-usage.http",
            1,
            [(CONTENT, 25), (USAGE, 1), (DONE, 1)],
            {0: "length"},
            Usage(34, 24),
        ),
        ("15-completion-stream.http", 1, [(CONTENT, 8), (USAGE, 1), (DONE, 1)], {0: "length"}, Usage(3, 8)),
        (
            "23-chat-stream-n2.http",
            2,
            [(CONTENT, 14), (USAGE, 1), (DONE, 1)],
            {0: "length", 1: "length"},
            Usage(34, 12),
        ),
        ("h01-kill9-enginecore-stream.http", 1, [(CONTENT, 72), (ERROR, 1), (DONE, 1)], {}, None),
        ("h01-kill9-enginecore-queued-stream.http", 1, [(COMMENT, 3), (ERROR, 1), (DONE, 1)], {}, None),
        ("h02-kill9-apiserver-queued-stream.http", 1, [], {}, None),
    ],
)
def test_the_events_of_a_real_vllm_are_understood(
    name: str, choices: int, kinds: list[tuple[EventKind, int]], finished: dict[int, str], usage: Usage | None
) -> None:
    reader = ChoicesReader(choices)
    seen = [reader.read_event(event) for event in events_of(name)]
    assert [(kind, len(list(group))) for kind, group in groupby(seen)] == kinds
    assert reader.content_events == seen.count(CONTENT)
    assert reader.finished == finished
    assert reader.whole == bool(finished)
    assert reader.usage() == usage
    assert (reader.error is not None) == (ERROR in seen)


@pytest.mark.parametrize(
    ("name", "finish", "usage"),
    [
        ("10-chat.http", "length", Usage(34, 24)),
        ("14-completion.http", "length", Usage(3, 8)),
        ("16-completion-two-prompts.http", "length", Usage(6, 8)),
        ("22-chat-n2.http", "length", Usage(34, 16)),
        ("24-chat-stop.http", "stop", Usage(34, 9)),
        ("b12-prefix-2-cached.http", "length", Usage(416, 2, 384)),
    ],
)
def test_a_whole_answer_of_a_real_vllm_is_understood(name: str, finish: str, usage: Usage) -> None:
    reader = ChoicesReader(None)
    assert reader.read_whole(body_of(name))
    assert (reader.usage(), reader.finish) == (usage, finish)


ODD: st.SearchStrategy[object] = st.sampled_from([None, -1, 0, 3, 2.0, True, "4", [], {}, 10**9, 10**9 + 1, 2**70])
ODD_USAGE = st.dictionaries(
    st.sampled_from(
        [
            "prompt_tokens",
            "completion_tokens",
            "prompt_tokens_details",
            "input_tokens",
            "output_tokens",
            "input_tokens_details",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
        ]
    ),
    ODD | st.dictionaries(st.just("cached_tokens"), ODD, max_size=1),
)
ODD_CHOICE = st.fixed_dictionaries({}, optional={"index": ODD, "finish_reason": ODD | st.just("stop"), "message": ODD})


@given(
    st.fixed_dictionaries({}, optional={"choices": ODD | st.lists(ODD_CHOICE, max_size=3), "usage": ODD | ODD_USAGE})
)
@example({"choices": [{"finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
@example({"choices": [], "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}})
def test_a_usual_answer_is_read_in_one_step_as_it_is_in_two(said: dict[str, object]) -> None:
    body = json.dumps(said).encode()
    quick, slow = ChoicesReader(None), ChoicesReader(None)
    assert quick.read_whole(body) == AnswerReader.read_whole(slow, body)
    for name in ("answered", "finish", "content_events"):
        assert getattr(quick, name) == getattr(slow, name)
    assert quick.usage() == slow.usage()


@pytest.mark.parametrize("body", [b"", b"ok", b"[]", b"null", b"{", b'{"choices":7}', b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_no_answer(body: bytes) -> None:
    assert not ChoicesReader(1).read_whole(body)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (b'data: {"choices":[{}]}\n\n', CONTENT),
        (b'data:{"choices":[{}]}\n\n', CONTENT),
        (b'data: \t{"choices":[{}]}\n\n', CONTENT),
        (b'event: x\ndata: {"choices":[{}]}\nid: 1\n\n', CONTENT),
        (b'data: {"choices":[{}]}\r\n\r\n', CONTENT),
        (b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n', CONTENT),
        (b'data: {"choices":[{}],"error":null,"usage":null}\n\n', CONTENT),
        (b'data: {"choices":[{}],"usage":{"prompt_tokens":1}}\n\n', CONTENT),
        (b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n', USAGE),
        (b'data: {"choices":[],"usage":null}\n\n', OTHER),
        (b'data: {"choices":null,"usage":{"prompt_tokens":1}}\n\n', OTHER),
        (b'data: {"usage":{"prompt_tokens":1}}\n\n', OTHER),
        (b'data: {"choices":[]}\n\n', OTHER),
        (b"data: {}\n\n", OTHER),
        (b"data: []\n\n", OTHER),
        (b"data: {broken\n\n", OTHER),
        (b"data:\n\n", OTHER),
        (b"event: ping\n\n", OTHER),
        (b'data: {"choices":[{"index":"x"}]}\n\n', OTHER),
        (b'data: {"x":' + b"[" * 100_000 + b"\n\n", OTHER),
        (b'data: {"error":{"message":"x"}}\n\n', ERROR),
        (b'data: {"error":"x"}\n\n', ERROR),
        (b'data: {"error":{},"choices":[{}]}\n\n', ERROR),
        (b'event: error\ndata: {"error":{"message":"x"}}\n\n', ERROR),
        (b"data: [DONE]\n\n", DONE),
        (b"data:[DONE]\n\n", DONE),
        (b"data:  [DONE] \r\n\r\n", DONE),
        (b": keep-alive\n\n", COMMENT),
        (b":\n: x\n\n", COMMENT),
    ],
)
def test_what_an_event_means(event: bytes, kind: EventKind) -> None:
    assert ChoicesReader(1).read_event(event) is kind


@pytest.mark.parametrize("event", [b'data: {"choices":\ndata: [{}]}\n\n', b'data: {"choices":[{}]}\nid: 1\n\n'])
def test_an_event_of_several_lines_means_the_same_in_any_order(event: bytes) -> None:
    assert ChoicesReader(1).read_event(event) is CONTENT


@pytest.mark.parametrize(
    "usage",
    [
        '{"prompt_tokens":-1}',
        '{"prompt_tokens":9,"completion_tokens":-1}',
        '{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":-1}}',
        f'{{"prompt_tokens":{MAX_TOKENS + 1}}}',
        f'{{"prompt_tokens":9,"completion_tokens":{MAX_TOKENS + 1}}}',
        '{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":10}}',
        '{"prompt_tokens":' + "9" * 400 + "}",
        '{"prompt_tokens":1.5}',
        '{"prompt_tokens":"1"}',
        '{"prompt_tokens":true}',
        '{"prompt_tokens":null}',
        '{"prompt_tokens":9,"prompt_tokens_details":[]}',
        "{}",
        '{"type":"duration","seconds":3}',
        "[]",
        "7",
        '"x"',
        "true",
    ],
)
def test_a_usage_that_cannot_be_is_not_believed(usage: str) -> None:
    reader = ChoicesReader(1)
    assert reader.read_event(f'data: {{"choices":[],"usage":{usage}}}\n\n'.encode()) is USAGE
    assert reader.usage() is None


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        ('{"prompt_tokens":3}', Usage(3, 0)),
        ('{"prompt_tokens":3,"completion_tokens":null,"prompt_tokens_details":null}', Usage(3, 0)),
        ('{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":null}}', Usage(3, 0)),
        (
            f'{{"prompt_tokens":{MAX_TOKENS},"completion_tokens":{MAX_TOKENS}}}',
            Usage(MAX_TOKENS, MAX_TOKENS),
        ),
    ],
)
def test_what_a_usage_leaves_out_is_nought(usage: str, told: Usage) -> None:
    reader = ChoicesReader(1)
    reader.read_event(f'data: {{"choices":[],"usage":{usage}}}\n\n'.encode())
    assert reader.usage() == told
    assert not told.estimated


def test_no_more_can_be_cached_than_was_sent() -> None:
    reader = ChoicesReader(1)
    reader.read_event(
        b'data: {"choices":[],"usage":{"prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":5}}}\n\n'
    )
    assert reader.usage() is None


def test_the_last_usage_counts() -> None:
    reader = ChoicesReader(1)
    for count in (1, 2):
        reader.read_event(b'data: {"choices":[{}],"usage":{"prompt_tokens":3,"completion_tokens":%d}}\n\n' % count)
    assert reader.usage() == Usage(3, 2)


def finish(index: int, reason: str | None = "stop") -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": index, "finish_reason": reason}]}).encode() + b"\n\n"


def test_an_answer_is_whole_when_every_index_has_finished() -> None:
    reader = ChoicesReader(2)
    for index, whole in ((0, False), (0, False), (1, True)):
        reader.read_event(finish(index))
        assert reader.whole is whole


def test_an_answer_of_unknown_width_is_whole_when_all_that_was_seen_has_finished() -> None:
    reader = ChoicesReader(None)
    assert not reader.whole
    for index, reason, whole in ((0, None, False), (1, None, False), (0, "stop", False), (1, "length", True)):
        reader.read_event(finish(index, reason))
        assert reader.whole is whole
    assert reader.finish == "stop"


def test_of_indices_and_reasons_without_end_little_is_kept() -> None:
    """Else a pod could fill the memory of it, and have us copy all that came before for each one more."""
    many = 40_000
    for told, most in (("", MAX_INDICES), (f',"finish_reason":"{"s" * 100}"', MAX_INDICES)):
        reader = ChoicesReader(None)
        choices = ",".join(f'{{"index":{index}{told}}}' for index in range(many))
        since = time.thread_time()
        assert reader.read_event(f'data: {{"choices":[{choices}]}}\n\n'.encode()) is EventKind.CONTENT
        # Copying made this 5 s.
        assert time.thread_time() - since < 1.0
        assert len(reader.finished) + len(reader.unfinished or ()) == most
        assert all(len(reason) < 100 for reason in reader.finished.values())
    told_width = ChoicesReader(2)
    told_width.read_event(f'data: {{"choices":[{choices}]}}\n\n'.encode())
    assert len(told_width.finished) == 2


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"message":"x"}', "x"),
        (b"{}", ""),
        (b'"x"', "the pod reported an error"),
        (b"7", "the pod reported an error"),
        (b'{"message":7}', "the pod reported an error"),
        (b"{", "the pod reported an error"),
    ],
)
def test_an_error_in_any_shape_has_a_message(raw: bytes, message: str) -> None:
    assert read_error(raw).message == message


def test_an_error_in_broken_utf_8_is_an_error_all_the_same() -> None:
    assert ChoicesReader(1).read_event(b'data: {"error":{"message":"\xff"}}\n\n') is ERROR


@settings(max_examples=300)
@given(
    st.one_of(
        st.binary(max_size=80),
        st.binary(max_size=20).map(lambda raw: b'data: {"choices":[{"x":"%b"}],"usage":{"%b":1}}' % (raw, raw)),
    )
)
def test_no_bytes_of_an_event_are_beyond_us(raw: bytes) -> None:
    reader = ChoicesReader(1)
    assert reader.read_event(raw + b"\n\n") in EventKind
    reader.usage()
    reader.read_whole(raw)


# Token events that are recognised without reading their JSON.

CHAT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"org/m","choices":[{"index":0,'
    b'"delta":{"content":"TEXT"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
)
COMPLETION = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[{"index":1,"text":"TEXT",'
    b'"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null}],"usage":null}\n\n'
)


@pytest.mark.parametrize(
    ("name", "recognised"),
    [
        ("11-chat-stream.http", 23),
        ("12-chat-stream-usage.http", 23),
        ("15-completion-stream.http", 7),
        ("23-chat-stream-n2.http", 10),
        ("h01-kill9-enginecore-stream.http", 71),
        # A usage on every chunk; comments and an error.
        ("13-chat-stream-continuous-usage.http", 0),
        ("h01-kill9-enginecore-queued-stream.http", 0),
    ],
)
def test_the_token_events_of_a_real_vllm_are_recognised_and_nothing_else_is(name: str, recognised: int) -> None:
    reader = ChoicesReader(1)
    count = 0
    for event in events_of(name):
        finished = len(reader.finished)
        kind = reader.read_event(event)
        if PLAIN_TOKEN.fullmatch(event):
            assert (kind, len(reader.finished)) == (CONTENT, finished)
            count += 1
    assert count == recognised


@pytest.mark.parametrize("event", [CHAT, COMPLETION], ids=["chat", "completion"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"index":0', b'"index":-1'),
        (b'"index":1', b'"index":"1"'),
        (b'"finish_reason":null', b'"finish_reason":"stop"'),
        (b'"finish_reason":null', b'"finish_reason":null,"finish_reason":"stop"'),
        (b'"logprobs":null', b'"logprobs":{"content":[]}'),
        (b"null}]", b'null},{"index":2,"finish_reason":"stop"}]'),
        (b"}\n\n", b',"error":{"message":"x"}}\n\n'),
        (b"}\n\n", b',"usage":{"prompt_tokens":1}}\n\n'),
        (b"}\n\n", b"}\n"),
        (b"}\n\n", b"}"),
        (b"}\n\n", b"}\n\n\n"),
        (b"}\n\n", b"}\r\n\r\n"),
        (b"}\n\n", b"}\r\r"),
        (b"}\n\n", b"} \n\n"),
        (b"}\n\n", b"}\n\ndata: [DONE]\n\n"),
        (b"data: ", b"data:"),
        (b"data: ", b"\ndata: "),
        (b"data: ", b"event: x\ndata: "),
        (b"data: ", b": x\n\ndata: "),
        (b"TEXT", b"\n"),
        (b"TEXT", b"\r"),
        (b"TEXT", b"\\\n"),
        (b"TEXT", b"\\"),
        (b"TEXT", b'"'),
        (b"TEXT", b'","x":"'),
        (b"TEXT", b'"},"finish_reason":"stop","delta":{"x":"'),
        (b"TEXT", b'\n\ndata: {"x":"'),
        (b'"created":1', b'"created":1,"error":{}'),
        (b'"created":1', b'"created":"\n"'),
        (b'":"m"', b'":"m\n"'),
        (b'mpl-1"', b'mpl-1\n\ndata: x"'),
    ],
)
def test_an_event_that_says_more_than_one_token_is_read(event: bytes, before: bytes, after: bytes) -> None:
    assert PLAIN_TOKEN.fullmatch(event)
    if before in event:
        assert not PLAIN_TOKEN.fullmatch(event.replace(before, after))


texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ['"', "\\", '\\"', "\n", "\r\n\r\n", "[DONE]", "data: [DONE]", '"},"finish_reason":"stop"', "é\u2028"]
    ),
)


@settings(max_examples=400)
@given(texts, st.sampled_from([CHAT, COMPLETION]), st.booleans())
def test_any_text_may_stand_in_a_token_event(text: str, event: bytes, ascii_only: bool) -> None:
    said = json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode("utf-8", "surrogatepass")
    event = event.replace(b"TEXT", said)
    assert PLAIN_TOKEN.fullmatch(event)
    assert ChoicesReader(1).read_event(event) is CONTENT


# Bytes meant to break out of the text, or to look like something else.
pieces = st.one_of(
    st.binary(max_size=4),
    st.sampled_from(
        [
            *(b'"', b"\\", b'\\"', b"\\\\", b"\n", b"\r", b"\n\n", b"}", b"{", b",", b":", b"]", b"null", b"0", b"-"),
            b"data: [DONE]\n\n",
            b'"finish_reason":"stop"',
            b',"finish_reason":"stop"',
            b'"index":7',
            b',"error":null',
            b',"usage":null',
            b',"error":{}',
        ]
    ),
)


@st.composite
def nearly_tokens(draw: st.DrawFn) -> bytes:
    """A token event with a few stretches of it replaced, or two of them with a cut."""
    event = draw(st.sampled_from([CHAT, COMPLETION, CHAT + CHAT, COMPLETION + CHAT]))
    for _ in range(draw(st.integers(0, 3))):
        begin = draw(st.one_of(st.integers(0, len(event)), st.just(event.find(b"TEXT"))))
        end = draw(st.integers(begin, min(begin + 12, len(event)))) if begin >= 0 else 0
        event = event[: max(begin, 0)] + draw(pieces) + event[end:]
    return event


@settings(max_examples=2000)
@given(nearly_tokens())
def test_what_is_taken_for_a_token_is_one_event_with_one_choice_that_goes_on(came: bytes) -> None:
    if not PLAIN_TOKEN.fullmatch(came):
        return
    framer = EventFramer()
    assert framer.feed(came) == [came]
    assert not framer.tail
    assert came.count(b"\n") == 2
    assert b"\r" not in came
    reader = ChoicesReader(1)
    kind = reader.read_event(came)
    assert (reader.finished, reader.error, reader.usage()) == ({}, None, None)
    try:
        seen = json.loads(payload(came) or b"", strict=False)
    except ValueError:
        # Broken inside a string, or a brace short: any such event passes as it is.
        assert kind in (CONTENT, OTHER)
        return
    assert kind is CONTENT or seen["choices"] is None or b"\\" in came or _has_controls(came)
    for choice in seen["choices"] or ():
        assert choice["finish_reason"] is None


def _has_controls(raw: bytes) -> bool:
    return any(byte < 32 for byte in raw[:-2])


@pytest.mark.parametrize("unit", [b"a", b"\\\\", b"\\u0041", b'\\"', b'"', b"\xff"])
@pytest.mark.parametrize("end", [b"", b"\n\n", b'"}'])
def test_no_event_takes_long_to_recognise(unit: bytes, end: bytes) -> None:
    long = CHAT[: CHAT.index(b"TEXT")] + unit * 200_000 + end
    many = CHAT[: CHAT.index(b"]}")] + b',"a":null' * 50_000 + end
    began = time.thread_time()
    assert not PLAIN_TOKEN.fullmatch(long)
    assert not PLAIN_TOKEN.fullmatch(many)
    # Of the processor's time: 6 ms at most.
    assert time.thread_time() - began < 0.5
