"""What is read off an answer in passing: finish reasons, usage, errors.

vLLM puts a finish reason on each index's last event, the usage in a chunk whose `choices` are empty, and an error
that comes after its 200 into an event of its own. The decoder names only those fields: the rest is skipped
unread, so an event costs half a microsecond, whatever its delta says, and invalid UTF-8 in a delta is no error.

    AnswerReader            an answer that is no stream: embeddings, rerank, tokens
    └── EventReader         one that may be: it also tells what each event is
        ├── ChoicesReader       chat, completions
        │   └── TranscriptReader    transcriptions, translations
        └── NamedEventReader    messages, responses (in `named_events`)
"""

import re
from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, ClassVar

import msgspec

from gateway.core.call import Usage
from gateway.core.made import maker
from gateway.upstream.sse import is_comment, payload

MAX_TOKENS = 1_000_000_000
"""More than this in a usage block is a lie."""
MAX_INDICES = 4096
"""What is kept of the indices of an answer whose width nobody said. More of them are a lie, and one that is dear."""
MAX_REASON_CHARACTERS = 64
BYTES_PER_TOKEN = 4
"""For estimates only; what is charged in the end is what the pod reports."""


class EventKind(IntEnum):
    """What an event means to the relay."""

    CONTENT = 1
    """Part of the answer: commits the 200 and stops the TTFT clock."""
    OTHER = 2
    USAGE = 3
    ERROR = 4
    DONE = 5
    """The end mark: what comes before it is the whole answer, or the pod lies."""
    COMMENT = 6
    LAST = 7
    """Ends the stream, and is part of the answer itself."""


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    """OpenAI's names, those of its Responses API, and Anthropic's. Audio is told in seconds: no tokens at all."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _PromptDetails | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class _UsualDetails(msgspec.Struct, gc=False):
    cached_tokens: _Tokens | None = None


class _UsualUsage(msgspec.Struct, gc=False):
    """With OpenAI's names alone. No number is one that makes no sense."""

    prompt_tokens: _Tokens
    completion_tokens: _Tokens = 0
    prompt_tokens_details: _UsualDetails | None = None
    input_tokens: None = None
    output_tokens: None = None
    input_tokens_details: None = None
    cache_read_input_tokens: None = None
    cache_creation_input_tokens: None = None


class _UsualAnswer(msgspec.Struct, gc=False):
    """A whole answer as nearly every one is, its usage read in the same step. Of another one nothing is read so."""

    choices: list[_Choice]
    usage: _UsualUsage


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class WholeAnswer(_Event, gc=False):
    """A whole answer; `stop_reason` is Anthropic's, `status` the Responses API's."""

    stop_reason: str | None = None
    status: str | None = None


class PodError(msgspec.Struct):
    """The inside of vLLM's nested error; `code` is the HTTP status as a number."""

    message: str = ""
    type: str | None = None
    param: str | None = None
    code: int | str | None = None


_OPENING = b'"delta":{"role":"assistant","content":""'
"""Of a chat: each choice begins with it. Inside a string the quotes would be escaped."""
_USUAL_END = b"data: [DONE]\n\n"
_UNSET = msgspec.UNSET
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_whole = msgspec.json.Decoder(WholeAnswer).decode
_decode_usual = msgspec.json.Decoder(_UsualAnswer).decode
_usage = msgspec.json.Decoder(_Usage)
_error = msgspec.json.Decoder(PodError)


class PlainEvent:
    """How an event looks that needs no reading: content, one piece of it, not the end.

    In three patterns, of which all but the `text` is as a rule the same for all events of a stream. None of them admits
    a line end but those of the event itself, so nothing can hide in the text: no second event, no end mark. No part
    of them can be matched in two ways, so they never backtrack.
    """

    __slots__ = ("_are_texts", "fullmatch", "is_rest_of_chunk")

    def __init__(self, opening: bytes, text: bytes, closing: bytes) -> None:
        self.fullmatch = re.compile(b"(%b)%b(%b)" % (opening, text, closing)).fullmatch
        """Exactly one; its groups are the opening and the closing."""
        self.is_rest_of_chunk = re.compile(text + closing + rb"\r\n").fullmatch
        """What follows the opening in an HTTP chunk that holds one."""
        self._are_texts = re.compile(b"(?:%b\n)*+%b" % (text, text)).fullmatch

    def count(self, run: bytes) -> int:
        """How many events these are; 0 if one is not plain, or not like the first.

        Many come at once where the pod is faster than we read. So it is asked of all of them together whether they
        are so many texts between openings and closings: what is put together anew must be what came.
        """
        first = self.fullmatch(run[: run.find(b"\n\n") + 2])
        if first is None:
            return 0
        opening, closing = first.groups()
        between = closing + opening
        # Texts stand in lines, at the same place of each.
        begin = len(opening) - (opening.rfind(b"\n") + 1)
        end = -closing.index(b"\n") or None
        lines = run.split(b"\n")
        lines.pop()
        texts = [line[begin:end] for line in lines[opening.count(b"\n") :: between.count(b"\n")]]
        all_texts = b"\n".join(texts)
        if (
            run == opening + between.join(texts) + closing
            and all_texts.count(b"\n") == len(texts) - 1
            and self._are_texts(all_texts) is not None
        ):
            return len(texts)
        return 0


PLAIN_TOKEN = PlainEvent(
    rb'data: \{"id":"[^"\\\r\n]*+","object":"[a-z._]++","created":[0-9]++,"model":"[^"\\\r\n]*+",'
    rb'"choices":\[\{"index":[0-9]++,(?:"delta":\{"[a-z_]++":|"text":)"',
    rb'[^"\\\r\n]*+(?:\\[^\r\n][^"\\\r\n]*+)*+',
    rb'"\}?,"logprobs":null,"finish_reason":null(?:,"[a-z_]++":null)*+\}\](?:,"[a-z_]++":null)*+\}\n\n',
)
"""One token in vLLM's usual form, with no finish reason.

Reading JSON is cheap; not reading it is cheaper still, and nearly every read of a stream brings one such event.
"""


_usage_of = maker(Usage)


class AnswerReader:
    """Follows one answer that is no stream, or the whole answer of an operation that might have streamed."""

    __slots__ = ("_raw_usage", "_usage", "answered", "content_events", "finish", "openings")

    def __init__(self, choices: int | None = None) -> None:
        self._raw_usage: msgspec.Raw | bytes | None = None
        self._usage: Usage | None = None
        """If it was read already."""
        self.answered = False
        """Whether anything of an answer was read."""
        self.content_events = 0
        """Events of a stream that carry a piece of the answer, one token each as a rule, or open it."""
        self.openings = 0
        """Those of them that only open it, and bear no token."""
        self.finish = ""
        """Why the answer ended, as the access line tells it: of several the first."""

    def read_whole(self, body: bytes) -> bool:
        """Note what a whole answer says; False when it is no JSON object."""
        try:
            seen = _decode_whole(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        self.answered = True
        if seen.usage is not _UNSET:
            self._raw_usage = seen.usage
        self._note(seen)
        return True

    def read_ending(self, ending: bytes) -> None:
        """Note the usage at the end of an answer too large to be read. `ending`: its last bytes.

        Inside a JSON string the quotes would be escaped, and a deeper object would leave a brace too many.
        """
        self.answered = True
        _, key, rest = ending.rpartition(b'"usage":')
        try:
            seen = _decode_event(b"{" + key + rest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if seen.usage is not _UNSET:
            self._raw_usage = seen.usage

    def _note(self, seen: WholeAnswer) -> None:
        """What else a whole answer says."""

    def usage(self) -> Usage | None:
        """The pod's own count, in any of the three spellings; None if it never came, or makes no sense."""
        if self._raw_usage is None:
            return self._usage
        try:
            told = _usage.decode(self._raw_usage)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        prompt, completion, details = told.prompt_tokens, told.completion_tokens, told.prompt_tokens_details
        if prompt is None:
            prompt, completion, details = told.input_tokens, told.output_tokens, told.input_tokens_details
            if prompt is None:
                return None
            read = told.cache_read_input_tokens
            if read is not None or told.cache_creation_input_tokens is not None:
                # Anthropic leaves what the cache had out of the input; OpenAI counts it in.
                details = _PromptDetails(read)
                prompt += (read or 0) + (told.cache_creation_input_tokens or 0)
        cached = (details.cached_tokens or 0) if details is not None else 0
        completion = completion or 0
        if not (0 <= prompt <= MAX_TOKENS and 0 <= completion <= MAX_TOKENS and 0 <= cached <= prompt):
            return None
        return _usage_of((prompt, completion, cached, False))


class EventReader(AnswerReader):
    """Follows one answer that may be a stream."""

    __slots__ = ("error",)

    plain: ClassVar[PlainEvent]

    def __init__(self, choices: int | None = None) -> None:
        super().__init__(choices)
        self.error: PodError | None = None

    def read_event(self, event: bytes) -> EventKind:
        """Note what one event says, and tell what it is."""
        raise NotImplementedError

    @property
    def may_skip(self) -> bool:
        """Whether an event that is plain may go unread."""
        return True

    @property
    def whole(self) -> bool:
        """Whether an answer that ends here is whole."""
        raise NotImplementedError


class ChoicesReader(EventReader):
    """Chat and completions. `choices`: how many indices must finish; None: all that are seen."""

    __slots__ = ("_reasons", "choices", "unfinished")

    plain = PLAIN_TOKEN

    def __init__(self, choices: int | None) -> None:
        # One is made for every chat: the fields of the classes above are set here, at the cost of one frame.
        self._raw_usage = self._usage = self.error = None
        self.answered = False
        self.content_events = self.openings = 0
        self.finish = ""
        self.choices = choices
        self._reasons: dict[int, str] | None = None
        self.unfinished: set[int] | None = None
        """Indices seen without one; only kept when nobody said how many there will be."""

    def read_event(self, event: bytes) -> EventKind:
        """Note what one event says, and tell what it is."""
        if event.startswith(b"data: {"):
            data: bytes | memoryview = memoryview(event)[6:]
        elif event == _USUAL_END:
            return EventKind.DONE
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
            self.answered = True
            self.content_events += 1
            if _OPENING in event:
                self.openings += 1
            for choice in seen.choices:
                if choice.finish_reason is not None:
                    self._end(choice.index, choice.finish_reason[:MAX_REASON_CHARACTERS])
                elif self.choices is None:
                    if self.unfinished is None:
                        self.unfinished = set()
                    if len(self.unfinished) < MAX_INDICES:
                        self.unfinished.add(choice.index)
            return EventKind.CONTENT
        return EventKind.USAGE if has_usage and seen.choices is not None else EventKind.OTHER

    @property
    def finished(self) -> Mapping[int, str]:
        """Finish reasons of a stream, by index."""
        return self._reasons or {}

    def _end(self, index: int, reason: str) -> None:
        if self._reasons is None:
            self._reasons = {}
        if len(self._reasons) < (self.choices or MAX_INDICES):
            self._reasons[index] = reason
            if not index:
                self.finish = reason

    def read_whole(self, body: bytes) -> bool:
        try:
            seen = _decode_usual(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return super().read_whole(body)
        self.answered = True
        for choice in seen.choices:
            if not choice.index:
                self.finish = choice.finish_reason or ""
        usage = seen.usage
        details = usage.prompt_tokens_details
        cached = 0 if details is None else details.cached_tokens or 0
        if cached <= usage.prompt_tokens:
            self._usage = _usage_of((usage.prompt_tokens, usage.completion_tokens, cached, False))
        return True

    def _note(self, seen: WholeAnswer) -> None:
        for choice in seen.choices or ():
            if not choice.index:
                self.finish = choice.finish_reason or ""

    @property
    def may_skip(self) -> bool:
        """Not while every index must be noted."""
        return self.choices is not None

    @property
    def whole(self) -> bool:
        """Whether every index that was asked for has its finish reason."""
        if self.choices is None:
            return bool(self.finished) and (self.unfinished or set()) <= self.finished.keys()
        return len(self.finished) >= self.choices


class TranscriptReader(ChoicesReader):
    """Transcriptions and translations: events as in a chat, but the end mark alone tells that they are whole.

    A long recording is heard in parts, and each part's last event has a finish reason.
    """

    __slots__ = ()

    def read_whole(self, body: bytes) -> bool:
        if not super().read_whole(body):
            return False
        # Nobody counts a transcript's tokens for us.
        self.content_events = max(1, len(body) // BYTES_PER_TOKEN)
        return True

    @property
    def whole(self) -> bool:
        return True


def read_error(raw: bytes | msgspec.Raw) -> PodError:
    """The inside of an error object; a string or anything else becomes a message."""
    try:
        return _error.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return PodError(message="the pod reported an error")
