"""Streams whose events bear names: Anthropic's Messages API and OpenAI's Responses API.

Neither has an end mark: the event that closes the answer says so itself. vLLM writes each event as one `event:` line
and one `data:` line. The names alone tell nearly all that the relay must know, so only the few events that bear usage
or an error are decoded.
"""

import re

import msgspec

from gateway.upstream.sse import is_comment, payload
from gateway.upstream.usage import EventKind, EventReader, PodError, WholeAnswer, read_error

_USUAL = re.compile(rb"event: ([a-z_.]++)\ndata: (\{[^\r\n]*+)\n\n").fullmatch
_EVENT_LINE = re.compile(rb"(?:\A|[\r\n])event: ?([^\r\n]*+)")


class _Named(msgspec.Struct):
    """What is read of an event's data, of either API."""

    type: str = ""
    usage: msgspec.Raw | None = None
    delta: msgspec.Raw | None = None
    response: msgspec.Raw | None = None
    error: msgspec.Raw | None = None
    message: str = ""
    code: int | str | None = None


class _Delta(msgspec.Struct):
    stop_reason: str | None = None


class _Response(msgspec.Struct):
    usage: msgspec.Raw | None = None
    status: str | None = None
    error: msgspec.Raw | None = None


_named = msgspec.json.Decoder(_Named)
_delta = msgspec.json.Decoder(_Delta)
_response = msgspec.json.Decoder(_Response)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class NamedEventReader(EventReader):
    """What both have in common. A subclass tells what each name means."""

    __slots__ = ("_finish",)

    def __init__(self, choices: int | None = None) -> None:
        super().__init__(choices)
        self._finish = ""

    def read_event(self, event: bytes) -> EventKind:
        usual = _USUAL(event)
        if usual is not None:
            return self._read(usual[1], usual[2])
        data = payload(event)
        if data is None:
            return EventKind.COMMENT if is_comment(event) else EventKind.OTHER
        # The last line of a name counts; an event without a name says its type in its data.
        names = _EVENT_LINE.findall(event)
        return self._read(names[-1] if names else _type_of(data), data)

    def _read(self, name: bytes, data: bytes) -> EventKind:
        raise NotImplementedError

    def _content(self) -> EventKind:
        self.answered = True
        self.content_events += 1
        return EventKind.CONTENT

    @property
    def whole(self) -> bool:
        """Asked at the closing event, which is the proof."""
        return self.answered

    @property
    def finish(self) -> str:
        return self._finish


class MessagesReader(NamedEventReader):
    """Anthropic's. Whatever follows `message_start` is the answer; usage and stop reason are in `message_delta`."""

    __slots__ = ()

    plain = re.compile(rb'event: content_block_delta\ndata: \{"type":"content_block_delta",[^\r\n]*+\n\n')

    def _read(self, name: bytes, data: bytes) -> EventKind:
        if name == b"content_block_delta":
            return self._content()
        if name in (b"message_start", b"ping"):
            return EventKind.OTHER
        if name == b"message_stop":
            return EventKind.DONE
        if name == b"error":
            told = _decoded(data)
            self.error = PodError("the pod reported an error") if told.error is None else read_error(told.error)
            return EventKind.ERROR
        if name == b"message_delta":
            told = _decoded(data)
            self._raw_usage = told.usage
            self._finish = _stop_reason(told.delta)
        return EventKind.OTHER if self.answered else self._content()

    def _note(self, seen: WholeAnswer) -> None:
        self._finish = seen.stop_reason or ""


class ResponsesReader(NamedEventReader):
    """OpenAI's. Whatever follows `response.created` and `response.in_progress` is the answer; the closing event bears
    the whole of it once more, with the usage.
    """

    __slots__ = ()

    plain = re.compile(rb'event: response\.output_text\.delta\ndata: \{"content_index":[^\r\n]*+\n\n')

    def _read(self, name: bytes, data: bytes) -> EventKind:
        if name.endswith(b".delta"):
            return self._content()
        if name in (b"response.created", b"response.in_progress", b"response.queued"):
            return EventKind.OTHER
        if name == b"error":
            told = _decoded(data)
            self.error = PodError(told.message, code=told.code) if told.error is None else read_error(told.error)
            return EventKind.ERROR
        if name in (b"response.completed", b"response.incomplete", b"response.failed"):
            return self._close(name, data)
        return EventKind.OTHER if self.answered else self._content()

    def _close(self, name: bytes, data: bytes) -> EventKind:
        try:
            response = _response.decode(_decoded(data).response or b"{}")
        except _UNREADABLE:
            response = _Response()
        if response.usage is not None:
            self._raw_usage = response.usage
        self._finish = response.status or ""
        if name == b"response.failed":
            raw = response.error
            self.error = PodError("the pod reported a failure") if raw is None else read_error(raw)
            if not self.answered:
                return EventKind.ERROR
        self.answered = True
        return EventKind.LAST

    def _note(self, seen: WholeAnswer) -> None:
        self._finish = seen.status or ""


def _decoded(data: bytes) -> _Named:
    """An event's data; what cannot be read says nothing."""
    try:
        return _named.decode(data)
    except _UNREADABLE:
        return _Named()


def _type_of(data: bytes) -> bytes:
    return _decoded(data).type.encode("utf-8", "replace")


def _stop_reason(delta: msgspec.Raw | None) -> str:
    try:
        return _delta.decode(delta or b"{}").stop_reason or ""
    except _UNREADABLE:
        return ""
