"""What pods say: answers, events, errors. Nothing that comes from one may raise, or be read in two ways."""

import json
import re
from contextlib import suppress

import h11

from gateway.cli.chat_client import Answered, Unanswered
from gateway.cli.chat_client import _read as read_told
from gateway.core.errors import PodRefusal, PoolgateError
from gateway.upstream.connection import AnswerHead, Loss, PodConnection, Receiver
from gateway.upstream.named_events import MessagesReader, ResponsesReader
from gateway.upstream.refusal import first_event_error, refusal
from gateway.upstream.sse import EventFramer, is_comment, payload
from gateway.upstream.usage import MAX_TOKENS, AnswerReader, ChoicesReader, EventKind, EventReader, TranscriptReader
from tests.fakes import STREAM_HEAD, answer, chunk
from tests.fuzz.target import Target, cut, first_and_rest
from tests.fuzz.wire import FakeTransport

READERS: tuple[type[EventReader], ...] = (ChoicesReader, TranscriptReader, MessagesReader, ResponsesReader)
BEFORE = (answer(b"[0]"), answer(b"{}"))
"""Answers after which a head of their shape is known."""
_END = re.compile(rb"\r\n|\n|\r")


class Heard(Receiver):
    """A `Receiver` that keeps what it is told."""

    def __init__(self) -> None:
        self.head: AnswerHead | None = None
        self.body = b""
        self.end: bool | Loss | None = None

    def head_received(self, head: AnswerHead) -> None:
        assert self.head is None, "two heads of one answer"
        self.head = head

    def body_received(self, data: bytes) -> None:
        assert self.head is not None, "a body before its head"
        assert self.end is None, "a body behind the end"
        self.body += data

    def answer_ended(self, by_close: bool) -> None:
        assert self.end is None
        self.end = by_close

    def answer_lost(self, loss: Loss) -> None:
        assert self.end is None
        self.end = loss


class HeardAtOnce(Heard):
    """One that takes an answer at once if it may."""

    at_once = False

    def whole_received(self, content_type: bytes, body: bytes) -> bool:
        self.at_once = True
        self.head_received(AnswerHead(200, {}, len(body), content_type))
        self.body_received(body)
        self.answer_ended(by_close=False)
        return True


def heard(pieces: list[bytes], before: bytes = b"", hearer: type[Heard] = Heard) -> tuple[Heard, bool]:
    """(what an exchange came to, whether its connection may serve another). `before`: an answer that came on it."""
    idle: list[PodConnection] = []
    connection = PodConnection(idle.append, lambda _: None)
    transport, told = FakeTransport(), hearer()
    connection.connection_made(transport)
    if before:
        connection.send(b"POST / HTTP/1.1\r\n\r\n", [b""], Heard())
        connection.data_received(before)
        idle.clear()
    connection.send(b"POST / HTTP/1.1\r\n\r\n", [b""], told)
    for piece in pieces:
        if transport.closed:
            break
        connection.data_received(piece)
    usable = bool(idle) and not transport.closed
    if not transport.closed:
        connection.eof_received()
    connection.connection_lost(None)
    return told, usable


def pod_answer(data: bytes) -> None:
    """The same however it is cut; and what we call whole, h11 reads as the same bytes."""
    whole, usable = heard([data] if data else [])
    for pieces in cut(data):
        again, _ = heard(pieces)
        if isinstance(whole.end, Loss) or isinstance(again.end, Loss):
            # Junk behind an answer shows only in the read that brings its end; nobody asks a lost one for its body.
            continue
        assert (again.head, again.body, again.end) == (whole.head, whole.body, whole.end)
    for before in BEFORE:
        again, still = heard([data] if data else [], before)
        if not isinstance(whole.end, Loss) or not isinstance(again.end, Loss):
            assert (said_by(again.head), again.body, again.end, still) == (
                said_by(whole.head),
                whole.body,
                whole.end,
                usable,
            )
        told, still = heard([data] if data else [], before, HeardAtOnce)
        if isinstance(told, HeardAtOnce) and told.at_once:
            assert whole.head is not None
            assert not whole.head.is_encoded
            assert told.head == whole.head._replace(fields={})
            assert (told.body, told.end, still) == (whole.body, whole.end, usable)
    if whole.end is not False:
        return
    assert whole.head is not None
    assert 200 <= whole.head.status < 600
    second = in_h11(data)
    if second is not None:
        status, body, left = second
        assert (status, body) == (whole.head.status, whole.body)
        # Blank lines say nothing, and llhttp skips them.
        assert not (usable and left.strip(b"\r\n")), "a connection with bytes behind its answer is used again"


def said_by(head: AnswerHead | None) -> tuple[object, ...]:
    """All that a head says; its length once, since of one that is known it stands nowhere else."""
    if head is None:
        return ()
    return (*head[2:], head.status, *sorted(each for each in head.fields.items() if each[0] != b"content-length"))


def in_h11(data: bytes) -> tuple[int, bytes, bytes] | None:
    """(status, body, what is left) of a whole answer; None for what h11 refuses: it knows rules that do no harm."""
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    client.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    client.send(h11.EndOfMessage())
    status, body = 0, b""
    try:
        client.receive_data(data)
        while True:
            event = client.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return status, body, client.trailing_data[0]
            elif not isinstance(event, h11.InformationalResponse):
                return None
    except h11.RemoteProtocolError:
        return None


def events_in(pieces: list[bytes]) -> list[bytes]:
    framer = EventFramer()
    return [event for piece in pieces for event in framer.feed(piece)] + framer.close()


def events(data: bytes) -> None:
    """The same events however they are cut; each is a piece of the stream, and its data that of a plain reading."""
    found = events_in([data] if data else [])
    for pieces in cut(data):
        assert events_in(pieces) == found
    at = 0
    for event in found:
        begins = data.index(event, at)
        assert not data[at:begins].strip(b"\r\n"), "bytes between two events were lost"
        at = begins + len(event)
        assert payload(event) == plain_payload(event)
        assert is_comment(event) <= (payload(event) is None)


def plain_payload(event: bytes) -> bytes | None:
    """By the standard's own words, line by line (WHATWG HTML, section 9.2.6)."""
    found: list[bytes] = []
    for line in _END.split(event):
        name, colon, value = line.partition(b":")
        if name == b"data":
            found.append(value[1:] if colon and value.startswith(b" ") else value)
    return b"\n".join(found) if found else None


def event_readers(data: bytes) -> None:
    """No event raises; one that goes unread would have been read as plain content."""
    choice, stream = first_and_rest(data)
    kind_of: type[EventReader] = READERS[choice % 4]
    reader = kind_of(None if choice & 4 else 1)
    for event in events_in([stream]):
        finish, content = reader.finish, reader.content_events
        plain = reader.plain.fullmatch(event) is not None
        kind = reader.read_event(event)
        if plain and event.replace(b"\n", b"").isascii() and min(event.replace(b"\n", b"")) >= 0x20:
            # With control characters in a text it is no JSON, and so no content to who reads it.
            assert kind is EventKind.CONTENT
            assert (reader.finish, reader.content_events) == (finish, content + 1)
        assert kind is not EventKind.ERROR or reader.error is not None
    assert isinstance(reader.whole, bool)
    check_usage(reader)


def whole_answers(data: bytes) -> None:
    """Neither a whole answer nor the end of a large one raises; what they say of tokens makes sense."""
    choice, body = first_and_rest(data)
    kinds: tuple[type[AnswerReader], ...] = (AnswerReader, *READERS)
    reader = kinds[choice % 5](1)
    if choice & 128:
        reader.read_ending(body)
    elif reader.read_whole(body):
        assert body.lstrip().startswith(b"{")
    check_usage(reader)


def check_usage(reader: AnswerReader) -> None:
    usage = reader.usage()
    if usage is not None:
        assert 0 <= usage.cached_tokens <= usage.prompt_tokens <= MAX_TOKENS
        assert 0 <= usage.completion_tokens <= MAX_TOKENS
    assert isinstance(reader.finish, str)


def refusals(data: bytes) -> None:
    """Any status, any body: an error of ours, in JSON and without addresses, or the pod's own 4xx."""
    status = 300 + int.from_bytes(data[:2], "big") % 300
    body, retry_after = data[2:], data[2:6]
    _, error = refusal(status, body, retry_after)
    check_error(error, body)
    reader = ChoicesReader(1)
    for event in events_in([b"data: " + body + b"\n\n"]):
        if reader.read_event(event) is EventKind.ERROR and reader.error is not None:
            check_error(first_event_error(payload(event) or b"", reader.error)[1], payload(event) or b"")


def check_error(error: PoolgateError, body: bytes) -> None:
    if isinstance(error, PodRefusal):
        assert error.body() == body
        assert 400 <= error.http_status < 500
        return
    told = json.loads(error.body())["error"]["message"]
    assert told == error.message.encode("utf-8", "backslashreplace").decode()
    assert not re.search(r"\b[a-z]+://[\w.]", told)
    assert not re.search(r"(?<![\w.])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w.])", told, re.ASCII)


def told_to_chat(data: bytes) -> None:
    """`poolgate chat` shows the text of an event, or says that what comes is no chat."""
    with suppress(Unanswered):
        told = read_told(data, Answered())
        assert told is None or isinstance(told, str)


TOKEN = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"content":"a"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
)
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'{"error":{"message":"EngineCore at 10.0.0.1:8000 in /opt/x.py","type":"E","param":null,"code":500}}'
MESSAGE = (
    b'event: message_start\ndata: {"type":"message_start"}\n\nevent: content_block_delta\n'
    b'data: {"type":"content_block_delta","index":0,"delta":{"text":"a"}}\n\nevent: message_delta\n'
    b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":1,"output_tokens":2,'
    b'"cache_read_input_tokens":4}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
)
RESPONSE = (
    b'event: response.created\ndata: {"type":"response.created"}\n\nevent: response.output_text.delta\n'
    b'data: {"content_index":0,"delta":"a"}\n\nevent: response.completed\n'
    b'data: {"response":{"status":"completed","usage":{"input_tokens":1,"output_tokens":2}}}\n\n'
)
WHOLE = b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
TARGETS = {
    "pod_answer": Target(
        pod_answer,
        ("gateway.upstream.connection", "gateway.upstream.known"),
        (
            answer(WHOLE),
            STREAM_HEAD + chunk(TOKEN) + chunk(DONE) + b"0\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"{}"),
            b"HTTP/1.1 199 Odd\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n" + answer(b"{}"),
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n{}",
            b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
            answer(b"{}") + answer(b"{}"),
            STREAM_HEAD + b"5;x=y\r\nhello\r\n0\r\ntrailer: x\r\n\r\n",
            b"HTTP/1.1 302 Found\r\nlocation: http://x/\r\ncontent-length: 0\r\n\r\n",
        ),
        tokens=(b"\r\n", b"content-length: ", b"transfer-encoding: chunked\r\n", b"HTTP/1.1 200 OK\r\n", b"0\r\n\r\n"),
    ),
    "events": Target(
        events,
        ("gateway.upstream.sse",),
        (
            TOKEN + LAST + USAGE + DONE,
            (TOKEN + DONE).replace(b"\n", b"\r\n"),
            (TOKEN + DONE).replace(b"\n", b"\r"),
            b": keep-alive\n\n\n\nid: 1\ndata: a\ndata:b\ndata\n\n",
            b"data: a\r\r\ndata: b\n\r\n\rdata",
        ),
        tokens=(b"\n\n", b"\r\n", b"data: ", b"\r"),
    ),
    "event_readers": Target(
        event_readers,
        ("gateway.upstream.usage", "gateway.upstream.named_events"),
        (
            b"\0" + TOKEN + LAST + USAGE + DONE,
            b"\0" + TOKEN + TOKEN.replace(b'"finish_reason":null', b'"finish_reason":"stop"') + DONE,
            b"\0" + TOKEN.replace(b'"logprobs":null', b'"logprobs":{}') + TOKEN.replace(b'"a"', b'"a\\n\\""') + DONE,
            b"\4" + TOKEN + TOKEN.replace(b'"index":0', b'"index":1') + LAST + DONE,
            b"\1" + TOKEN + DONE,
            b"\2" + MESSAGE,
            b"\3" + RESPONSE,
            b"\0data: " + ERROR + b"\n\n",
            b'\2event: error\ndata: {"type":"error","error":{"type":"x","message":"y"}}\n\n',
            b'\3event: response.failed\ndata: {"response":{"status":"failed","error":{"message":"x","code":"y"}}}\n\n',
            b'\3data: {"type":"response.output_text.delta","delta":"a"}\n\n',
        ),
        tokens=(b'"choices":', b'"finish_reason":"stop"', b'"usage":', b'"error":', b"event: ", b"data: ", b"\n\n"),
    ),
    "whole_answers": Target(
        whole_answers,
        ("gateway.upstream.usage", "gateway.upstream.named_events"),
        (
            b"\0" + WHOLE,
            b"\1" + WHOLE,
            b'\3{"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":2}}',
            (
                b'\4{"status":"completed","usage":{"input_tokens":1,"output_tokens":2,'
                b'"input_tokens_details":{"cached_tokens":1}}}'
            ),
            b'\x80...],"usage":{"prompt_tokens":1,"completion_tokens":1}}',
            b'\1{"usage":{"prompt_tokens":-1,"completion_tokens":1e3}}',
        ),
        tokens=(b'"usage":', b'"prompt_tokens":', b'"choices":', b"null"),
    ),
    "refusals": Target(
        refusals,
        ("gateway.upstream.refusal", "gateway.upstream.usage"),
        (
            b"\0\xc8" + ERROR,
            b"\0\x64" + ERROR.replace(b"500", b"404"),
            b"\0\x64" + b'{"detail":"Not Found"}',
            b"\0\xc8" + b'{"error":"Unauthorized"}',
            b"\0\xc8" + b'{"type":"error","error":{"type":"x","message":"http://a.b/c [fe80::1]:80 x.svc"}}',
            b"\0\xcbRate",
            b"\0\x64" + b'{"detail":[{"loc":["body"],"msg":"\\ud800"}]}',
        ),
        tokens=(b'"error":', b'"message":', b'"detail":', b"http://", b"10.0.0.1", b"::", b"/opt"),
    ),
    "told_to_chat": Target(
        told_to_chat,
        ("gateway.cli.chat_client",),
        (
            TOKEN[6:-2],
            LAST[6:-2],
            USAGE[6:-2],
            ERROR,
            b"[]",
            b'{"choices":[null]}',
            b'{"error":"x"}',
            b'{"error":null}',
        ),
        tokens=(b'"choices":', b'"delta":', b'"error":', b"null"),
    ),
}
