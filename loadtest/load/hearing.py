"""What an answer says, written into its `Record` while it comes in: pieces of content, usage, errors, the end.

One decoder reads the events of all OpenAI streams and of Anthropic's: it takes the few fields that tell what
an event is and skips the rest, in less than a microsecond. That is little beside the read that brought the
event, so nothing is guessed from bytes: a proxy may write its JSON as it likes.

A stream is whole when it said so: chat and completions with a finish reason for every index seen and then
`[DONE]`, messages with `message_stop`, responses with `response.completed` or `.incomplete`. A stream whose
HTTP message ends properly without that is cut all the same.
"""

from typing import Final

import msgspec

from loadtest.load.record import Ending, Record

MAX_EVENT_BYTES: Final = 1 << 20
MAX_CODE_CHARACTERS: Final = 64

_LAST_OF_MESSAGES: Final = "message_stop"
_LAST_OF_RESPONSES: Final = ("response.completed", "response.incomplete")


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    """OpenAI's names, then those of its Responses API and of Anthropic."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None


class _Error(msgspec.Struct, gc=False):
    code: int | str | None = None
    type: str | None = None


class _Delta(msgspec.Struct, gc=False):
    """Of a chat, or of a content block of Anthropic's."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Response(msgspec.Struct, gc=False):
    """Inside the events that open and close a response."""

    usage: _Usage | None = None
    error: _Error | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: _Error | str | None = None
    type: str = ""
    delta: _Delta | str | None = None
    code: int | str | None = None
    response: _Response | None = None


class _Whole(msgspec.Struct, gc=False):
    usage: _Usage | None = None
    error: _Error | str | None = None


_event = msgspec.json.Decoder(_Event).decode
_whole = msgspec.json.Decoder(_Whole).decode


class Stream:
    """Follows one stream of events."""

    __slots__ = ("_done", "_error", "_finished", "_indices", "_record", "_tail", "fault")

    def __init__(self, record: Record) -> None:
        self.fault = ""
        """Why this is no stream of events; a code. Nothing is read after it."""
        self._record = record
        self._tail = b""
        self._indices = 0
        self._finished = 0
        self._done = False
        self._error = False

    def feed(self, data: bytes, now: float) -> None:
        if self._tail:
            data = self._tail + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *events, self._tail = data.split(b"\n\n")
        for event in events:
            self._read(event, now)
        if len(self._tail) > MAX_EVENT_BYTES:
            self.fault = "event_too_long"

    def ending(self) -> Ending:
        """How it ended, if it ends here."""
        if self._error:
            return Ending.TOLD
        return Ending.WHOLE if self._done and not self.fault else Ending.CUT

    def _read(self, event: bytes, now: float) -> None:
        data = event[6:] if event.startswith(b"data: ") else _data_of(event)
        if data is None:
            return
        if data == b"[DONE]":
            self._done = self._indices <= self._finished > 0
            return
        try:
            told = _event(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self.fault = self.fault or "not_an_event"
            return
        if told.choices:
            self._read_choices(told.choices, now)
        elif told.type:
            self._read_named(told, now)
        if told.usage is not None:
            _note_usage(told.usage, self._record)
        if told.error is not None:
            self._fail(told.error)

    def _read_choices(self, choices: list[_Choice], now: float) -> None:
        for choice in choices:
            delta = choice.delta
            if choice.text or (delta is not None and _bears_content(delta)):
                self._count(now)
            if choice.index >= self._indices:
                self._indices = choice.index + 1
            if choice.finish_reason is not None:
                self._finished += 1
                self._begin(now)

    def _read_named(self, told: _Event, now: float) -> None:
        delta = told.delta
        if isinstance(delta, str):
            if delta:
                self._count(now)
        elif delta is not None and _bears_content(delta):
            self._count(now)
        elif told.type == "error":
            self._fail(told.error or _Error(told.code))
        elif told.type == _LAST_OF_MESSAGES or told.type in _LAST_OF_RESPONSES:
            self._done = True
            self._begin(now)
        elif told.type == "response.failed":
            self._fail((told.response and told.response.error) or "response_failed")
        if told.response is not None and told.response.usage is not None:
            _note_usage(told.response.usage, self._record)

    def _count(self, now: float) -> None:
        record = self._record
        record.tokens += 1
        record.token_times.append(now)
        if record.first_at is None:
            record.first_at = now

    def _begin(self, now: float) -> None:
        """An answer without a word has begun when it says that it is over."""
        if self._record.first_at is None:
            self._record.first_at = now

    def _fail(self, error: _Error | str) -> None:
        self._error = True
        self._record.code = _code_of(error)


def hear_whole(body: bytes, record: Record) -> bool:
    """Notes what an answer that is no stream says; False when it is no JSON object."""
    try:
        told = _whole(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    if told.usage is not None:
        _note_usage(told.usage, record)
    if told.error is not None:
        record.code = _code_of(told.error)
    return True


def _bears_content(delta: _Delta) -> bool:
    return bool(
        delta.content
        or delta.reasoning
        or delta.reasoning_content
        or delta.tool_calls
        or delta.text
        or delta.thinking
        or delta.partial_json
    )


def _data_of(event: bytes) -> bytes | None:
    """The data lines of an event joined by line ends; None for one without any, such as a comment."""
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def _note_usage(usage: _Usage, record: Record) -> None:
    if usage.prompt_tokens is not None:
        record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        details = usage.prompt_tokens_details
        record.cached_tokens = None if details is None else details.cached_tokens
    elif usage.input_tokens is not None:
        cached = usage.cache_read_input_tokens
        # Anthropic leaves what the cache had out of the input; OpenAI counts it in.
        record.prompt_tokens = usage.input_tokens + (cached or 0)
        record.completion_tokens = usage.output_tokens
        details = usage.input_tokens_details
        record.cached_tokens = cached if details is None else details.cached_tokens


def _code_of(error: _Error | str) -> str:
    """The error's code if it is a word; vLLM puts the status there, and the word in the type."""
    if isinstance(error, str):
        return error[:MAX_CODE_CHARACTERS]
    code = error.code if isinstance(error.code, str) and error.code else error.type or error.code
    return "" if code is None else str(code)[:MAX_CODE_CHARACTERS]
