"""Bytes and headers → `Call`. The body is looked at here, and in `familiar` where it is like others before it.

The decoder gives the top level's members, each value as its bytes, validating all the same (NaN, control characters,
trailing bytes, broken escapes, half a surrogate pair are errors). What we read of them is a dict's look-up away; the
rest is never looked at. The decoder does not check UTF-8 in what it skips: that is one more pass, at a hundredth of the
price.

A large body is one of long messages, nearly always. The decoder tells which, all else is looked at without what they
say, and so costs what it does with a small one. A body of another kind is looked at whole.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from gateway.core.call import Call
from gateway.core.caller import Tenant
from gateway.core.errors import InvalidJson, InvalidRequest, PoolgateError, UnsupportedMediaType
from gateway.core.made import maker
from gateway.pipeline.body import (
    MAX_CONTAINERS,
    MAX_NESTING,
    Hollow,
    Parts,
    Prompt,
    Steps,
    TooManyContainers,
    asking_for_usage,
    at_once,
    first_repeated,
    hollow,
    in_place,
    may_hold_long_number,
    may_nest_deeply,
    members,
    nesting_in_steps,
    places_of,
    repeated,
)
from gateway.pipeline.caps import THE_USUAL_CAPS, Caps
from gateway.pipeline.checks import (
    GUARDED_FIELDS,
    check_entries,
    check_fields,
    check_form_fields,
    check_remembered,
    invalid_field,
    typed,
)
from gateway.pipeline.form import boundary_of, form_asking_for_model
from gateway.pipeline.media import may_be_fetched, may_name_urls, urls_in
from gateway.pipeline.operations import CHAT, COMPLETIONS, EMBEDDINGS, JSON, RESPONSES_API, Operation
from gateway.upstream.usage import BYTES_PER_TOKEN, MAX_TOKENS

MAX_MEMBERS = 256
"""Of the body itself. There are some 100 fields that any API knows."""
MAX_KEYS_CHARACTERS = 8192
"""Of all keys of the body itself together."""
WORTH_CUTTING_BYTES = 4096
BYTES_PER_AUDIO_TOKEN = 640
"""Speech models hear some 50 tokens a second, of 16-bit samples at 16 kHz. For estimates only."""

MAX_ESTIMATED_MEDIA = 1024
"""For estimates only: what comes behind so many pieces counts as text."""
TOKENS_PER_IMAGE = 1024
"""Of a middling one. For estimates only, as well."""

FORM_FIELDS = frozenset(("model", "stream", "stream_include_usage", "n", *GUARDED_FIELDS))
"""What is read of a form; each may stand in it once."""

_MEDIA: tuple[tuple[bytes, Callable[[int], int]], ...] = (
    (b";base64,", lambda size: min(TOKENS_PER_IMAGE, size // BYTES_PER_TOKEN)),
    (b'"input_audio":{"data":"', lambda size: size // BYTES_PER_AUDIO_TOKEN),
    (b'"input_audio": {"data": "', lambda size: size // BYTES_PER_AUDIO_TOKEN),
)
"""What base64 begins behind, in the spellings of the SDKs, and how many tokens so many bytes of it are."""

PROMPT_FIELDS = ("tools", "system", "instructions", "messages", "prompt", "input")
"""What a prompt is made of, in the order in which a chat template writes it."""

LONG_STRING_BYTES = 1024
"""What a string must have for its being left out to be worth its price; in a large body, a quarter of it."""
_SPARE = 64
_QUOTE = ord('"')
_BRACKET = ord("[")
_WORDS = ("system", "prompt", "input", "instructions")
"""What may be a string, beside the messages."""
_HOLLOW = ("messages", *_WORDS)
NO_PLACES: Mapping[str, tuple[int, int]] = MappingProxyType({})
_ANSWER = "assistant"
QUOTED_ANSWER = b'"assistant"'
"""The role of an earlier answer. Inside a message the quotes would be escaped."""
_RAW_ANSWER = msgspec.Raw(QUOTED_ANSWER)
_EMPTY = Hollow(b"")
_CONTENT = b'"content"'
_TEXT = b'"text"'

_WITHOUT_MEDIA = frozenset(("tools", "functions", "tool_choice", "response_format", "structured_outputs", "metadata"))
"""Where no pod looks for media, but where a schema or a note may well look like some."""

_LARGE_BYTES = 65_536
_MAX_QUOTES = 32_768

_Optional = msgspec.Raw | msgspec.UnsetType
_NOTHING = msgspec.Raw(b"")


class _Large(msgspec.Struct, gc=False):
    """What may be large."""

    messages: _Optional = msgspec.UNSET
    prompt: _Optional = msgspec.UNSET
    input: _Optional = msgspec.UNSET
    tools: _Optional = msgspec.UNSET
    system: _Optional = msgspec.UNSET
    documents: _Optional = msgspec.UNSET
    queries: _Optional = msgspec.UNSET
    items: _Optional = msgspec.UNSET
    data_1: _Optional = msgspec.UNSET
    data_2: _Optional = msgspec.UNSET
    text_1: _Optional = msgspec.UNSET
    text_2: _Optional = msgspec.UNSET
    prompt_embeds: _Optional = msgspec.UNSET
    tokens: _Optional = msgspec.UNSET


class _Part(msgspec.Struct, gc=False):
    """Of a message, or of a system prompt."""

    text: msgspec.Raw = _NOTHING


class _Message(msgspec.Struct, gc=False):
    content: msgspec.Raw = _NOTHING


def at_most(most: int, kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """A list that the decoder gives up at the first entry too many: what it makes of one is bounded."""
    entries = [(f"entry_{place}", kind | msgspec.UnsetType, msgspec.UNSET) for place in range(most)]
    return msgspec.defstruct(
        f"_{kind.__name__}s", entries, array_like=True, forbid_unknown_fields=True, gc=False, module=__name__
    )


def _worded(most_messages: int) -> "msgspec.json.Decoder[Any]":
    """Where the words of a body are that has no more messages than this."""
    fields: list[tuple[str, Any, Any]] = [(name, msgspec.Raw, _NOTHING) for name in _WORDS]
    fields.append(("messages", at_most(most_messages, _Message) | msgspec.UnsetType, msgspec.UNSET))
    return msgspec.json.Decoder(msgspec.defstruct("_Worded", fields, gc=False))


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


_UNREAD = MAX_TOKENS + 1
_MAX_DIGITS = len(str(MAX_TOKENS))
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_written = msgspec.json.Encoder().encode
_large = msgspec.json.Decoder(_Large)
_worded_in_few, _worded_in_many = map(_worded, (16, 2048))
"""Of so many messages at most. A body of more has short ones, where to leave one out costs more than to look at it."""
_parts = msgspec.json.Decoder(at_most(64, _Part))
_text = msgspec.json.Decoder(str)
_optional_truth = msgspec.json.Decoder(bool | None)
_optional_number = msgspec.json.Decoder(int | None)
_stream_options = msgspec.json.Decoder(_StreamOptions | None)
_prompts = msgspec.json.Decoder(list[msgspec.Raw])
_anything = msgspec.json.Decoder(float_hook=float)


UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
MANY_BRACKETS = 4096
"""From Python 3.12 on a decoder reads as deep as the stack is, for some 50 ns a level. A body with more brackets is not
given to one before it is known how deep it nests."""
_TOO_DEEP = f"the body nests deeper than {MAX_NESTING} levels"
_NO_MODEL = "the field 'model' is missing: name one of /v1/models"
_REASONS = (
    ("Input data was truncated", "it ends too early, or a text in it ends with half a surrogate pair"),
    ("unexpected end of hex escape", "half a surrogate pair"),
    ("invalid utf-16 surrogate pair", "half a surrogate pair"),
)
"""What msgspec says, and what it mostly means: a text that was cut within an emoji."""


class Plain(NamedTuple):
    """Where in a body its messages stand, which are its whole prompt, and each of which is a role and a text."""

    start: int
    end: int
    messages: Sequence[Any]
    """Each with its `role` and its `content`, if it is a large body's as `msgspec.Raw`."""

    def prompt(self, body: bytes) -> Prompt:
        """What stands there. It is looked through for an answer only if one of its texts is the role of one."""
        start, end, messages = self
        whole = ((start, end, 0),)
        for message in messages:
            if message.role == _ANSWER or message.content == _ANSWER or message.content == _RAW_ANSWER:
                return _prompt((body, start, end, Hollow(body), whole))
        return _prompt((body, start, end, _EMPTY, ()))


class Look(NamedTuple):
    """A body after one look. `may_name_urls`: only `check_media` tells whether it names media that may not be had."""

    body: bytes
    members: dict[str, msgspec.Raw]
    """Of the hollow body, if it is: there is nothing in the words of a prompt then."""
    model: str
    stream: bool
    may_name_urls: bool
    hollow: Hollow | None = None
    """The body without what long messages say; None: it is looked at whole."""
    places: Mapping[str, tuple[int, int]] = NO_PLACES
    """Where the members of a hollow body stand in it."""
    plain: Plain | None = None
    """Its messages, if that is all there is to its prompt (see `familiar`); they are not among the members then."""

    @property
    def prompt(self) -> Prompt:
        """What the prompt is made of, in the order in which a chat template writes it."""
        if self.plain is not None:
            return self.plain.prompt(self.body)
        told = self.members
        if self.hollow is None:
            return Prompt.of([bytes(told[name]) for name in PROMPT_FIELDS if name in told])
        return Prompt.within(
            self.body, self.hollow, [self.places[name] for name in PROMPT_FIELDS if name in self.places]
        )

    @property
    def session(self) -> str:
        """The conversation that `prompt_cache_key` names; empty without one."""
        said = bytes(self.members.get("prompt_cache_key", b""))
        return "" if said in (b"null", b'""') else said.decode("utf-8", "replace")

    @property
    def cache_salt(self) -> bytes:
        """What keeps this prompt apart from others that read alike; empty without."""
        return bytes(self.members.get("cache_salt", b""))


_look = maker(Look)
_prompt = maker(Prompt)
_call = maker(Call)


def check_json(content_type: bytes) -> None:
    """Only JSON is read: a browser can send anything else from a foreign page without asking.

    Raises `UnsupportedMediaType`.
    """
    media, _, parameters = content_type.partition(b";")
    charset = parameters.lower().partition(b"charset=")[2].strip().strip(b'"')
    if media.strip().lower() != b"application/json" or charset not in (b"", b"utf-8", b"utf8"):
        raise UnsupportedMediaType("send the body as application/json in UTF-8, with that Content-Type")


def look(body: bytes, operation: Operation) -> Look:
    """The members of a JSON body, and those that every request is routed by.

    Raises `InvalidJson` for what is not JSON that means one thing, `InvalidRequest` for fields of the wrong type.
    """
    if len(body) > WORTH_CUTTING_BYTES:
        return at_once(looking(body, operation))
    try:
        if not body.isascii():
            str(body, "utf-8")
        found = _members.decode(body)
    except UNREADABLE as error:
        raise _unreadable(body, error) from None
    # Most are written without a space: what was read, written again, is all there is then.
    if len(found) > MAX_MEMBERS or _written(found) != body:
        _check_keys(body, found)
    if may_nest_deeply(body):
        at_once(_check_nesting(body))
    model, stream = _routing(found, operation)
    return _look((body, found, model, stream, may_name_urls(body), None, NO_PLACES, None))


def looking(body: bytes, operation: Operation) -> Steps[Look]:
    """`look` at a large body. Where it yields others may have a turn: each step is a pass or two through the body,
    which hold the loop's thread for some milliseconds where it has 8 MiB."""
    places = NO_PLACES
    is_nested = may_nest_deeply(body, MANY_BRACKETS)
    if is_nested:
        yield from _check_nesting(body)
    try:
        if not body.isascii():
            str(body, "utf-8")
        yield
        hollow = yield from _hollowed(body)
        found = yield from _members_in(body if hollow is None else hollow.text)
        if hollow is not None:
            places = places_of(hollow.text, found)
            if not hollow.only_in([places[name] for name in _HOLLOW if name in places]):
                hollow, found = None, (yield from _members_in(body))
    except UNREADABLE as error:
        raise _unreadable(body, error) from None
    text = body if hollow is None else hollow.text
    yield
    if not is_nested and may_nest_deeply(text):
        yield from _check_nesting(text)
    if may_hold_long_number(text):
        _check_numbers(text)
    model, stream = _routing(found, operation)
    yield
    return Look(body, found, model, stream, may_name_urls(text), hollow, places)


def _unreadable(body: bytes, error: Exception) -> PoolgateError:
    """What is said of a body that the decoder, or that of UTF-8, did not take."""
    if isinstance(error, msgspec.ValidationError):
        return invalid_field(str(error))
    if isinstance(error, msgspec.DecodeError):
        return InvalidJson(f"the body is not valid JSON: {_why_no_json(body, str(error))}")
    if isinstance(error, UnicodeDecodeError):
        return InvalidJson(f"the body is not valid UTF-8 (byte {error.start})")
    return InvalidJson(_TOO_DEEP)


def _routing(found: Mapping[str, bytes], operation: Operation) -> tuple[str, bool]:
    """(the model, whether a stream is asked for).

    Raises `InvalidRequest`.
    """
    if "model" not in found:
        raise InvalidRequest(_NO_MODEL, param="model")
    model = typed(_text, "model", found["model"])
    return model, "stream" in found and typed(_optional_truth, "stream", found["stream"]) is True and operation.streams


def _check_nesting(text: bytes) -> Steps[None]:
    try:
        depth = yield from nesting_in_steps(text)
    except TooManyContainers:
        raise InvalidJson(f"the body has more than {MAX_CONTAINERS} objects and lists") from None
    if depth > MAX_NESTING:
        raise InvalidJson(_TOO_DEEP)


def _hollowed(body: bytes) -> Steps[Hollow | None]:
    """A large body without its long messages; None if it has none, or not where they are looked for.

    Raises `msgspec.DecodeError` if it is no JSON.
    """
    try:
        worded = (_worded_in_few if len(body) <= _LARGE_BYTES else _worded_in_many).decode(body)
    except msgspec.ValidationError:
        # Of another kind, or of too many messages. Whether it is JSON at all was not seen.
        yield
        return None
    yield
    hollow = Hollow(body)
    if worded.messages is not msgspec.UNSET:
        messages = entries_of(worded.messages)
        long = LONG_STRING_BYTES if len(body) <= _LARGE_BYTES else LONG_STRING_BYTES // 4
        hollow = hollow.without(_strings(messages, long), misses=2 * len(messages) + _SPARE)
    for name in _WORDS:
        if len(raw := getattr(worded, name)) > LONG_STRING_BYTES and _first(raw) == _QUOTE:
            hollow = hollow.without(((b'"%b"' % name.encode(), raw),))
    yield
    return hollow if hollow.gaps else None


def _strings(messages: Iterable[_Message], long: int) -> Iterator[tuple[bytes, bytes]]:
    """What stands in long messages, with its key: of a content in parts, what each part says."""
    for message in messages:
        content = message.content
        if len(content) <= long:
            continue
        if (first := _first(content)) == _QUOTE:
            yield _CONTENT, content
        elif first == _BRACKET:
            try:
                parts = _parts.decode(content)
            except msgspec.ValidationError:
                continue
            for part in entries_of(parts):
                if len(part.text) > long:
                    yield _TEXT, part.text


def _first(raw: msgspec.Raw) -> int:
    return memoryview(raw)[0]


def entries_of(listed: msgspec.Struct) -> tuple[Any, ...]:
    """Those that a list `at_most` so long has."""
    entries = msgspec.structs.astuple(listed)
    return entries[: entries.index(msgspec.UNSET)] if entries[-1] is msgspec.UNSET else entries


def _members_in(text: bytes) -> Steps[dict[str, msgspec.Raw]]:
    """The members of a JSON text, each of them there once.

    Raises what the decoder does, `InvalidJson` and `InvalidRequest`.
    """
    if len(text) > _LARGE_BYTES:
        return (yield from _members_of_large(text))
    found = _members.decode(text)
    _check_keys(text, found)
    return found


def _why_no_json(body: bytes, told: str) -> str:
    """msgspec's reason, in words for who wrote the client: a kind and a place, nothing of the body."""
    if not body:
        return "it is empty"
    if body.startswith(BOM_UTF8):
        return "it begins with a byte order mark, which must not be sent"
    reason = told.removeprefix("JSON is malformed: ")
    for word, meaning in _REASONS:
        reason = reason.replace(word, meaning)
    return reason


def _members_of_large(whole: bytes) -> Steps[dict[str, msgspec.Raw]]:
    """As of any other text, but what it may make us keep is bounded: the large values are set aside first."""
    large = _large.decode(whole)
    yield
    values = {name: raw for name in large.__struct_fields__ if isinstance(raw := getattr(large, name), msgspec.Raw)}
    text = whole
    for name, raw in values.items():
        if len(raw) > WORTH_CUTTING_BYTES:
            text = hollow(text, name, bytes(raw))
            yield
    if len(text) > _LARGE_BYTES and text.count(b'"') > _MAX_QUOTES:
        raise InvalidRequest("the body has too much beside its messages, prompt or input")
    found = _members.decode(text)
    yield
    _check_keys(text, found)
    found.update(values)
    return found


def _check_keys(text: bytes, found: dict[str, msgspec.Raw]) -> None:
    if (twice := first_repeated(text, found)) is not None:
        raise InvalidJson(f"the key {twice[:64]!r} stands in the body twice", param=twice[:64])
    if len(found) > MAX_MEMBERS:
        raise InvalidJson(f"the body has more than {MAX_MEMBERS} members")
    if len(text) > MAX_KEYS_CHARACTERS and sum(map(len, found)) > MAX_KEYS_CHARACTERS:
        raise InvalidJson(f"the keys of the body are longer than {MAX_KEYS_CHARACTERS} characters together")


def _check_numbers(body: bytes) -> None:
    """Python's parser, which pods have, refuses whole numbers that others read."""
    try:
        json.loads(body)
    except ValueError:
        raise InvalidJson("the body has a number of too many digits") from None


def check_media(seen: Look, caps: Caps) -> None:
    """Refuse media that a pod would fetch from where it must not. With a large body it is not for the loop's thread.

    Raises `InvalidRequest`.
    """
    for name, raw in seen.members.items():
        if name in _WITHOUT_MEDIA or not may_name_urls(text := bytes(raw)):
            continue
        try:
            value = _anything.decode(text)
        except msgspec.DecodeError:
            raise InvalidJson("the body has a number that is out of range", param=name) from None
        for url in urls_in(value):
            if not may_be_fetched(url, caps.media_url_hosts):
                raise InvalidRequest(
                    "pods may not fetch media from this URL: send it as a data: URL, or have the operator name its "
                    "host in requests.media_url_hosts",
                    param=name,
                )


def call_of(seen: Look, operation: Operation, tenant: Tenant, caps: Caps = THE_USUAL_CAPS) -> Call:
    """The call a body makes.

    Raises `InvalidRequest` and `Forbidden`.
    """
    body, told, stream = seen.body, seen.members, seen.stream
    n = 1
    check_fields(told, caps, tenant)
    if operation is RESPONSES_API:
        check_remembered(told)
    elif operation is EMBEDDINGS and "input" in told:
        check_entries("input", told["input"], caps.max_inputs)
    if "n" in told:
        n = max(typed(_optional_number, "n", told["n"]) or 1, 1)
    wants_usage = False
    parts: Parts = [body]
    length = len(body)
    if stream and operation.asks_usage:
        wants_usage = "stream_options" in told and _wants_usage(bytes(told["stream_options"]))
        if not wants_usage:
            parts = asking_for_usage(body, _place_of(seen, "stream_options"))
            length = sum(map(len, parts))
    return _call(
        (
            seen.model,
            stream,
            wants_usage,
            _choices(n, told, caps) if operation is COMPLETIONS else n if operation is CHAT else 1,
            parts,
            length,
            JSON,
            _prompt_tokens(len(body), body if seen.hollow is None else seen.hollow.text),
            _max_tokens(told, operation),
            "priority" in told,
            None,
        )
    )


def call_of_form(
    found: Mapping[str, str], body: bytes, content_type: bytes, tenant: Tenant, caps: Caps = THE_USUAL_CAPS
) -> Call:
    """The call that a form makes; `found` are those of its `FORM_FIELDS` that it has.

    Raises `InvalidRequest` and `Forbidden`.
    """
    check_form_fields(found, caps, tenant)
    model = found.get("model", "")
    if not model:
        raise InvalidRequest(_NO_MODEL, param="model")
    return Call(
        model=model,
        stream=_truth(found, "stream"),
        wants_usage=_truth(found, "stream_include_usage"),
        choices=1,
        body=[body],
        body_length=len(body),
        content_type=content_type,
        prompt_tokens_estimate=len(body) // BYTES_PER_AUDIO_TOKEN,
        says_priority="priority" in found,
    )


def renamed(call: Call, model: str) -> Call:
    """The same call for another model: the name in its body is replaced, and all else stays as it is.

    The body changes hands: that of `call` is left empty. Where it is not known where the name stands, the whole of it
    is decoded once more, so with a large one this is not for the loop's thread.
    """
    if model == call.model:
        return call
    text = b"".join(call.body)
    place = None
    if call.content_type == JSON:
        start, end = call.model_at or places_of(text, _members.decode(text))["model"]
        name = json.dumps(model).encode("ascii")
        parts, place = in_place(text, start, end, name), (start, start + len(name))
    else:
        parts = form_asking_for_model(text, boundary_of(call.content_type), model)
    call.body.clear()
    return call._replace(model=model, body=parts, body_length=sum(map(len, parts)), model_at=place)


def _truth(found: Mapping[str, str], name: str) -> bool:
    """A form's boolean, in the words that vLLM understands."""
    word = found.get(name, "").lower()
    if word in ("true", "1", "yes", "on", "t", "y"):
        return True
    if word in ("", "false", "0", "no", "off", "f", "n"):
        return False
    raise InvalidRequest(f"the field {name!r} is neither true nor false", param=name)


def _wants_usage(options: bytes) -> bool:
    try:
        told = _stream_options.decode(options)
    except msgspec.ValidationError as error:
        raise invalid_field(str(error).replace("$", "$.stream_options")) from None
    if told is None:
        return False
    if (key := repeated(members(options), frozenset(("include_usage", "continuous_usage_stats")))) is not None:
        raise InvalidJson(f"the key {key!r} stands in stream_options twice", param="stream_options")
    return bool(told.include_usage)


def _place_of(seen: Look, name: str) -> tuple[int, int] | None:
    """Where in its body a member's value begins and ends; None without one. What it says is not left out."""
    if name not in seen.members:
        return None
    if seen.hollow is None:
        return places_of(seen.body, seen.members)[name]
    start, end = seen.places[name]
    return seen.hollow.in_whole(start), seen.hollow.in_whole(end)


def _prompt_tokens(length: int, body: bytes) -> int:
    """About how many tokens a prompt has, in a body of this length. Images and sound stand in it as base64, which is no
    text, but of what is left out."""
    if len(body) <= WORTH_CUTTING_BYTES:
        return length // BYTES_PER_TOKEN
    text, tokens = length, 0
    for mark, of_media in _MEDIA:
        # Most have none, and `rfind` sees that in half the time.
        end = 0 if body.rfind(mark) >= 0 else len(body)
        for _ in range(MAX_ESTIMATED_MEDIA):
            if (start := body.find(mark, end)) < 0:
                break
            start += len(mark)
            end = body.find(b'"', start)
            if end < 0:
                break
            if body.find(b" ", start, end) < 0:
                text -= end - start
                tokens += of_media(end - start)
    return text // BYTES_PER_TOKEN + tokens


def _max_tokens(told: Mapping[str, bytes], operation: Operation) -> int | None:
    """The most tokens of an answer, in the spellings that this operation has: its pods do not heed the others.

    None where none is said, or in a form that is left to the pod to read or refuse.
    """
    most = _tokens(told.get("max_output_tokens" if operation is RESPONSES_API else "max_tokens"))
    if operation is CHAT and "max_completion_tokens" in told:
        most = max(most, _tokens(told["max_completion_tokens"]))
    return most if 0 < most < _UNREAD else None


def _tokens(said: bytes | None) -> int:
    """A number in any form that a pod would take; 0 where none is said."""
    if said is None:
        return 0
    text = bytes(said)
    if text.isdigit() and len(text) < _MAX_DIGITS:
        return int(text)
    if text == b"null":
        return 0
    try:
        number = float(text.strip(b'"'))
    except ValueError:
        return _UNREAD
    return int(min(number, MAX_TOKENS)) if number > 0 else 0


def _choices(each: int, told: Mapping[str, bytes], caps: Caps) -> int | None:
    """How many indices a completion will have; None when only the answer tells.

    Raises `InvalidRequest`.
    """
    prompt = bytes(told.get("prompt", b""))
    check_entries("prompt", prompt, caps.max_prompts)
    if "prompt_embeds" in told:
        check_entries("prompt_embeds", told["prompt_embeds"], caps.max_prompts)
        return None
    # A list of token ids is one prompt; lists and strings are one each.
    if not prompt.startswith(b"[") or prompt[1:].lstrip()[:1] not in (b'"', b"["):
        return each
    return each * len(_prompts.decode(prompt))
