"""Streams whose events bear names: Anthropic's Messages API and OpenAI's Responses API.

Neither has an end mark: the event that closes the answer says so itself. vLLM writes each event as one `event:` line
and one `data:` line. The names alone tell nearly all that the relay must know, so only the few events that bear usage
or an error are decoded.
"""

import re
from typing import TypeVar

import msgspec

from gateway.upstream.sse import is_comment, payload
from gateway.upstream.usage import EventKind, EventReader, PlainEvent, PodError, WholeAnswer, read_error

_USUAL = re.compile(rb"event: ([a-z_.]++)\ndata: (\{[^\r\n]*+)\n\n").fullmatch
_EVENT_LINE = re.compile(rb"(?:\A|[\r\n])event: ?([^\r\n]*+)")


_Optional = msgspec.Raw | msgspec.UnsetType


class _Type(msgspec.Struct):
    type: str = ""


class _Delta(msgspec.Struct, frozen=True):
    stop_reason: str | None = None


class _MessageDelta(msgspec.Struct):
    delta: _Delta = _Delta()
    usage: _Optional = msgspec.UNSET


class _Response(msgspec.Struct, frozen=True):
    status: str = ""
    usage: _Optional = msgspec.UNSET
    error: _Optional = msgspec.UNSET


class _Closing(msgspec.Struct):
    response: _Response = _Response()


class _Error(msgspec.Struct):
    """Anthropic's has an `error` inside; the Responses API's is the data itself."""

    error: _Optional = msgspec.UNSET
    message: str = "the pod reported an error"
    code: int | str | None = None


_type = msgspec.json.Decoder(_Type)
_message_delta = msgspec.json.Decoder(_MessageDelta)
_closing = msgspec.json.Decoder(_Closing)
_error = msgspec.json.Decoder(_Error)
_T = TypeVar("_T", _Type, _MessageDelta, _Closing, _Error)


class NamedEventReader(EventReader):
    """What both have in common. A subclass tells what each name means."""

    __slots__ = ()

    def read_event(self, event: bytes) -> EventKind:
        usual = _USUAL(event)
        if usual is not None:
            return self._read(usual[1], usual[2])
        data = payload(event)
        if data is None:
            return EventKind.COMMENT if is_comment(event) else EventKind.OTHER
        # The last line of a name counts; an event without a name says its type in its data.
        names = _EVENT_LINE.findall(event)
        return self._read(names[-1] if names else _decoded(_type, data).type.encode("utf-8", "replace"), data)

    def _read(self, name: bytes, data: bytes) -> EventKind:
        raise NotImplementedError

    def _content(self) -> EventKind:
        self.answered = True
        self.content_events += 1
        return EventKind.CONTENT

    def _open(self) -> EventKind:
        self.openings += 1
        return self._content()

    def _fail(self, data: bytes) -> EventKind:
        told = _decoded(_error, data)
        if isinstance(told.error, msgspec.UnsetType):
            self.error = PodError(told.message, code=told.code)
        else:
            self.error = read_error(told.error)
        return EventKind.ERROR

    def _note_usage(self, usage: _Optional) -> None:
        if not isinstance(usage, msgspec.UnsetType):
            self._raw_usage = usage

    @property
    def whole(self) -> bool:
        """Asked at the closing event, which is the proof."""
        return self.answered


class MessagesReader(NamedEventReader):
    """Anthropic's. Whatever follows `message_start` is the answer; usage and stop reason are in `message_delta`."""

    __slots__ = ()

    plain = PlainEvent(rb'event: content_block_delta\ndata: \{"type":"content_block_delta",', rb"[^\r\n]*+", rb"\n\n")

    def _read(self, name: bytes, data: bytes) -> EventKind:
        if name == b"content_block_delta":
            return self._content()
        if name in (b"message_start", b"ping"):
            return EventKind.OTHER
        if name == b"message_stop":
            return EventKind.DONE
        if name == b"error":
            return self._fail(data)
        if name == b"message_delta":
            told = _decoded(_message_delta, data)
            self._note_usage(told.usage)
            self.finish = told.delta.stop_reason or ""
        return EventKind.OTHER if self.answered else self._open()

    def _note(self, seen: WholeAnswer) -> None:
        self.finish = seen.stop_reason or ""


class ResponsesReader(NamedEventReader):
    """OpenAI's. Whatever follows `response.created` and `response.in_progress` is the answer; the closing event bears
    the whole of it once more, with the usage.
    """

    __slots__ = ()

    plain = PlainEvent(rb'event: response\.output_text\.delta\ndata: \{"content_index":', rb"[^\r\n]*+", rb"\n\n")

    def _read(self, name: bytes, data: bytes) -> EventKind:
        if name.endswith(b".delta"):
            return self._content()
        if name in (b"response.created", b"response.in_progress", b"response.queued"):
            return EventKind.OTHER
        if name == b"error":
            return self._fail(data)
        if name in (b"response.completed", b"response.incomplete", b"response.failed"):
            return self._close(name, data)
        return EventKind.OTHER if self.answered else self._open()

    def _close(self, name: bytes, data: bytes) -> EventKind:
        response = _decoded(_closing, data).response
        self._note_usage(response.usage)
        self.finish = response.status
        if name == b"response.failed":
            self.error = PodError("the pod reported a failure")
            if not isinstance(response.error, msgspec.UnsetType) and response.error != b"null":
                self.error = read_error(response.error)
            if not self.answered:
                return EventKind.ERROR
        self.answered = True
        return EventKind.LAST

    def _note(self, seen: WholeAnswer) -> None:
        self.finish = seen.status or ""


def _decoded(decoder: "msgspec.json.Decoder[_T]", data: bytes) -> _T:
    """An event's data; what cannot be read says nothing."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return decoder.decode(b"{}")
