"""What is read off a chat or completions answer in passing: finish reasons, usage, errors.

vLLM puts a finish reason on each index's last event, the usage in a chunk whose `choices` are empty, and an error
that comes after its 200 into an event of its own. The decoder names only those fields: the rest is skipped
unread, so an event costs half a microsecond, whatever its delta says, and invalid UTF-8 in a delta is no error.
"""

import re
from enum import IntEnum

import msgspec

from gateway.core.call import Usage
from gateway.upstream.sse import is_comment, payload

MAX_TOKENS = 1_000_000_000
"""More than this in a usage block is a lie."""


class EventKind(IntEnum):
    """What an event means to the relay."""

    CONTENT = 1
    """Has a choice: commits the 200 and stops the TTFT clock."""
    OTHER = 2
    USAGE = 3
    ERROR = 4
    DONE = 5
    COMMENT = 6


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class PodError(msgspec.Struct):
    """The inside of vLLM's nested error; `code` is the HTTP status as a number."""

    message: str = ""
    type: str | None = None
    param: str | None = None
    code: int | str | None = None


_UNSET = msgspec.UNSET
_decode_event = msgspec.json.Decoder(_Event).decode
_usage = msgspec.json.Decoder(_Usage)
_error = msgspec.json.Decoder(PodError)


is_plain_token = re.compile(
    rb'data: \{"id":"[^"\\\r\n]*+","object":"[a-z._]++","created":[0-9]++,"model":"[^"\\\r\n]*+",'
    rb'"choices":\[\{"index":[0-9]++,(?:"delta":\{"[a-z_]++":|"text":)"(?:[^"\\\r\n]|\\[^\r\n])*+"\}?,'
    rb'"logprobs":null,"finish_reason":null(?:,"[a-z_]++":null)*+\}\](?:,"[a-z_]++":null)*+\}\n\n'
).fullmatch
"""Whether the bytes are exactly one token event in vLLM's usual form, with no finish reason.

Reading JSON is cheap; not reading it is cheaper still, and nearly every read of a stream brings one such event. The
pattern admits no line end but the last two, so nothing can hide in the text: no second event, no `[DONE]`. No part of
it can be matched in two ways, so it never backtracks.
"""


class AnswerReader:
    """Follows one answer. `choices`: how many indices must finish; None: all that are seen."""

    __slots__ = ("_raw_usage", "choices", "content_events", "error", "finished", "unfinished")

    def __init__(self, choices: int | None) -> None:
        self.choices = choices
        self._raw_usage: msgspec.Raw | None = None
        self.finished: dict[int, str] = {}
        """Finish reasons by index."""
        self.unfinished: set[int] | None = None
        """Indices seen without one; only kept when nobody said how many there will be."""
        self.content_events = 0
        self.error: PodError | None = None

    def read_event(self, event: bytes) -> EventKind:
        """Note what one event says, and tell what it is."""
        if event.startswith(b"data: {"):
            data: bytes | memoryview = memoryview(event)[6:]
        else:
            found = payload(event)
            if found is None:
                return EventKind.COMMENT if is_comment(event) else EventKind.OTHER
            if found.strip() == b"[DONE]":
                return EventKind.DONE
            data = found
        try:
            try:
                seen = _decode_event(data)
            except msgspec.DecodeError:
                # Fields behind the data, or data in several lines.
                seen = _decode_event(payload(event) or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return EventKind.OTHER
        if seen.error is not _UNSET and bytes(seen.error) != b"null":
            self.error = read_error(seen.error)
            return EventKind.ERROR
        has_usage = False
        if seen.usage is not _UNSET and bytes(seen.usage) != b"null":
            has_usage = True
            self._raw_usage = seen.usage
        if seen.choices:
            self.content_events += 1
            for choice in seen.choices:
                if choice.finish_reason is not None:
                    self.finished[choice.index] = choice.finish_reason
                elif self.choices is None:
                    self.unfinished = {choice.index} | (self.unfinished or set())
            return EventKind.CONTENT
        return EventKind.USAGE if has_usage and seen.choices is not None else EventKind.OTHER

    def read_whole(self, body: bytes) -> bool:
        """Note what a whole answer says; False when it is no JSON object."""
        try:
            seen = _decode_event(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        if seen.usage is not _UNSET:
            self._raw_usage = seen.usage
        for choice in seen.choices or ():
            self.finished[choice.index] = choice.finish_reason or ""
        return True

    @property
    def whole(self) -> bool:
        """Whether every index that was asked for has its finish reason."""
        if self.choices is None:
            return bool(self.finished) and (self.unfinished or set()) <= self.finished.keys()
        return len(self.finished) >= self.choices

    @property
    def finish(self) -> str:
        """The finish reason of the first index, as the access line tells it."""
        return self.finished.get(0, "")

    def usage(self) -> Usage | None:
        """The pod's own count, if it came and makes sense."""
        if self._raw_usage is None:
            return None
        try:
            told = _usage.decode(self._raw_usage)
        except msgspec.MsgspecError:
            return None
        details = told.prompt_tokens_details
        cached = (details.cached_tokens or 0) if details is not None else 0
        completion = told.completion_tokens or 0
        if not (
            0 <= told.prompt_tokens <= MAX_TOKENS
            and 0 <= completion <= MAX_TOKENS
            and 0 <= cached <= told.prompt_tokens
        ):
            return None
        return Usage(told.prompt_tokens, completion, cached)


def read_error(raw: bytes | msgspec.Raw) -> PodError:
    """The inside of an error object; a string or anything else becomes a message."""
    try:
        return _error.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return PodError(message="the pod reported an error")
