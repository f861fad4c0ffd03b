"""Bytes and headers → `Call`. The body is looked at here and nowhere else.

The decoder names the few fields we route on and skips the rest, validating the JSON all the same (NaN, control
characters, trailing bytes, broken escapes are errors). It does not check UTF-8 in what it skips: that is one more
pass, at a hundredth of the price.
"""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import NamedTuple

import msgspec

from gateway.core.call import Call
from gateway.core.caller import Tenant
from gateway.core.errors import Forbidden, InvalidJson, InvalidRequest, Unsupported, UnsupportedMediaType
from gateway.pipeline.body import (
    MAX_NESTING,
    Member,
    Parts,
    asking_for_model,
    asking_for_usage,
    members,
    nesting,
    repeated,
    stand_once,
    without,
)
from gateway.pipeline.form import boundary_of, form_asking_for_model
from gateway.pipeline.operations import CHAT, COMPLETIONS, JSON, RESPONSES_API, Operation
from gateway.upstream.usage import BYTES_PER_TOKEN, MAX_TOKENS

WORTH_CUTTING_BYTES = 4096
BYTES_PER_AUDIO_TOKEN = 640
"""Speech models hear some 50 tokens a second, of 16-bit samples at 16 kHz. For estimates only."""

TOKENS_PER_IMAGE = 1024
"""Of a middling one. For estimates only, as well."""

GUARDED_FIELDS = (
    "priority",
    "cache_salt",
    "kv_transfer_params",
    "ec_transfer_params",
    "vllm_xargs",
    "mm_payload",
    "session_id",
    "request_id",
)
"""Body fields that reach past the caller's own request: refused unless the key allows them."""

_ROUTED = frozenset(("model", "stream", "stream_options"))

FORM_FIELDS = frozenset(("model", "stream", "stream_include_usage", *GUARDED_FIELDS))
"""What is read of a form; each may stand in it once."""

_MEDIA: tuple[tuple[bytes, Callable[[int], int]], ...] = (
    (b";base64,", lambda size: min(TOKENS_PER_IMAGE, size // BYTES_PER_TOKEN)),
    (b'"input_audio":{"data":"', lambda size: size // BYTES_PER_AUDIO_TOKEN),
    (b'"input_audio": {"data": "', lambda size: size // BYTES_PER_AUDIO_TOKEN),
)
"""What base64 begins behind, in the spellings of the SDKs, and how many tokens so many bytes of it are."""

_Optional = msgspec.Raw | msgspec.UnsetType


class _Fields(msgspec.Struct, gc=False):
    model: str
    stream: bool | msgspec.UnsetType | None = msgspec.UNSET
    stream_options: _Optional = msgspec.UNSET
    n: int | None = None
    messages: _Optional = msgspec.UNSET
    prompt: _Optional = msgspec.UNSET
    input: _Optional = msgspec.UNSET
    prompt_embeds: _Optional = msgspec.UNSET
    tools: _Optional = msgspec.UNSET
    system: _Optional = msgspec.UNSET
    instructions: _Optional = msgspec.UNSET
    prompt_cache_key: _Optional = msgspec.UNSET
    max_tokens: _Optional = msgspec.UNSET
    max_completion_tokens: _Optional = msgspec.UNSET
    max_output_tokens: _Optional = msgspec.UNSET
    priority: _Optional = msgspec.UNSET
    cache_salt: _Optional = msgspec.UNSET
    kv_transfer_params: _Optional = msgspec.UNSET
    ec_transfer_params: _Optional = msgspec.UNSET
    vllm_xargs: _Optional = msgspec.UNSET
    mm_payload: _Optional = msgspec.UNSET
    session_id: _Optional = msgspec.UNSET
    request_id: _Optional = msgspec.UNSET


class _ResponsesFields(_Fields, gc=False):
    previous_response_id: str | None = None
    background: bool | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


_UNSET = msgspec.UNSET
_UNREAD = MAX_TOKENS + 1
_MAX_DIGITS = len(str(MAX_TOKENS))
_NONE_SENT = (_UNSET,) * len(GUARDED_FIELDS)
_guarded = attrgetter(*GUARDED_FIELDS)
_fields = msgspec.json.Decoder(_Fields)
_responses_fields = msgspec.json.Decoder(_ResponsesFields)
_stream_options = msgspec.json.Decoder(_StreamOptions | None)
_prompts = msgspec.json.Decoder(list[msgspec.Raw])


class Look(NamedTuple):
    """A body after one look. `in_doubt`: only a walk over its members tells whether a routed key is there twice."""

    fields: _Fields
    body: bytes
    in_doubt: bool

    @property
    def prompt_parts(self) -> list[bytes]:
        """What the prompt is made of, raw, in the order in which a chat template writes it."""
        told = self.fields
        parts = (told.tools, told.system, told.instructions, told.messages, told.prompt, told.input)
        return [bytes(part) for part in parts if part is not _UNSET]

    @property
    def session(self) -> str:
        """The conversation that `prompt_cache_key` names; empty without one."""
        key = self.fields.prompt_cache_key
        said = b"" if key is _UNSET else bytes(key)
        return "" if said in (b"null", b'""') else said.decode("utf-8", "replace")

    @property
    def cache_salt(self) -> bytes:
        """What keeps this prompt apart from others that read alike; empty without."""
        salt = self.fields.cache_salt
        return b"" if salt is _UNSET else bytes(salt)


def check_json(content_type: bytes) -> None:
    """Only JSON is read: a browser can send anything else from a foreign page without asking.

    Raises `UnsupportedMediaType`.
    """
    media, _, parameters = content_type.partition(b";")
    charset = parameters.lower().partition(b"charset=")[2].strip().strip(b'"')
    if media.strip().lower() != b"application/json" or charset not in (b"", b"utf-8", b"utf8"):
        raise UnsupportedMediaType("send the body as application/json in UTF-8, with that Content-Type")


def look(body: bytes, operation: Operation) -> Look:
    """The routed fields of a JSON body.

    Raises `InvalidJson` for what is not JSON that means one thing, `InvalidRequest` for fields of the wrong type.
    """
    try:
        if not body.isascii():
            str(body, "utf-8")
        fields = (_fields if operation is not RESPONSES_API else _responses_fields).decode(body)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from None
    except msgspec.DecodeError:
        raise InvalidJson("the body is not valid JSON") from None
    except UnicodeDecodeError:
        raise InvalidJson("the body is not valid UTF-8") from None
    except RecursionError:
        raise InvalidJson(f"the body nests deeper than {MAX_NESTING} levels") from None
    if body.count(b"{") + body.count(b"[") > MAX_NESTING and nesting(body) > MAX_NESTING:
        raise InvalidJson(f"the body nests deeper than {MAX_NESTING} levels")
    text = body
    if len(body) > WORTH_CUTTING_BYTES:
        if fields.messages is not _UNSET:
            text = without(body, b'"messages"', bytes(fields.messages))
        elif fields.prompt is not _UNSET:
            text = without(body, b'"prompt"', bytes(fields.prompt))
        elif fields.input is not _UNSET:
            text = without(body, b'"input"', bytes(fields.input))
    streams = (fields.stream is not _UNSET) + (fields.stream_options is not _UNSET)
    return Look(fields, body, not stand_once(text, streams))


def call_of(seen: Look, found: list[Member] | None, operation: Operation, tenant: Tenant) -> Call:
    """The call a body makes. `found` are its members, needed when the look left a doubt.

    Raises `InvalidRequest` and `Forbidden`.
    """
    fields, body = seen.fields, seen.body
    if found is not None and (key := repeated(found, _ROUTED)) is not None:
        raise InvalidJson(f"the key {key!r} stands in the body twice", param=key)
    if _guarded(fields) != _NONE_SENT:
        sent = zip(GUARDED_FIELDS, _guarded(fields), strict=True)
        _check_guarded([name for name, value in sent if value is not _UNSET], tenant)
    if isinstance(fields, _ResponsesFields):
        _check_remembered(fields)
    stream = fields.stream is True and operation.streams
    wants_usage = False
    parts: Parts = [body]
    length = len(body)
    if stream and operation.asks_usage:
        options = None
        if isinstance(fields.stream_options, msgspec.Raw):
            options = next(m for m in (found or members(body)) if m.key == "stream_options")
            wants_usage = _wants_usage(bytes(fields.stream_options))
        if not wants_usage:
            parts = asking_for_usage(body, options)
            length = sum(map(len, parts))
    return Call(
        model=fields.model,
        stream=stream,
        wants_usage=wants_usage,
        choices=_choices(fields, operation) if operation is COMPLETIONS or fields.n is not None else 1,
        body=parts,
        body_length=length,
        content_type=JSON,
        prompt_tokens_estimate=_prompt_tokens(body),
        max_tokens=_max_tokens(fields, operation),
        says_priority=fields.priority is not _UNSET,
    )


def call_of_form(found: Mapping[str, str], body: bytes, content_type: bytes, tenant: Tenant) -> Call:
    """The call that a form makes; `found` are those of its `FORM_FIELDS` that it has.

    Raises `InvalidRequest` and `Forbidden`.
    """
    _check_guarded([name for name in GUARDED_FIELDS if name in found], tenant)
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

    The body changes hands: that of `call` is left empty. What this may cost is a walk over the whole body, so with a
    large one it is not for the loop's thread.
    """
    if model == call.model:
        return call
    text = b"".join(call.body)
    if call.content_type == JSON:
        parts = asking_for_model(text, call.model, model)
    else:
        parts = form_asking_for_model(text, boundary_of(call.content_type), model)
    call.body.clear()
    return call._replace(model=model, body=parts, body_length=sum(map(len, parts)))


def _truth(found: Mapping[str, str], name: str) -> bool:
    """A form's boolean, in the words that vLLM understands."""
    word = found.get(name, "").lower()
    if word in ("true", "1", "yes", "on", "t", "y"):
        return True
    if word in ("", "false", "0", "no", "off", "f", "n"):
        return False
    raise InvalidRequest(f"the field {name!r} is neither true nor false", param=name)


def _check_guarded(sent: list[str], tenant: Tenant) -> None:
    for name in sent:
        if name not in tenant.allow_fields:
            raise Forbidden(f"this key may not send the field {name!r}", code="field_not_allowed", param=name)


def _check_remembered(fields: _ResponsesFields) -> None:
    """What a pod would have to remember: the next request may well go to another one."""
    if fields.previous_response_id is not None:
        raise Unsupported(
            "earlier responses are kept by no pod: send the whole conversation as 'input'", param="previous_response_id"
        )
    if fields.background:
        raise Unsupported("responses in the background are not kept: leave out 'background'", param="background")


def _wants_usage(options: bytes) -> bool:
    try:
        told = _stream_options.decode(options)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error).replace("$", "$.stream_options")) from None
    if told is None:
        return False
    if (key := repeated(members(options), frozenset(("include_usage", "continuous_usage_stats")))) is not None:
        raise InvalidJson(f"the key {key!r} stands in stream_options twice", param="stream_options")
    return bool(told.include_usage)


def _prompt_tokens(body: bytes) -> int:
    """About how many tokens a prompt has. Images and sound stand in it as base64, which is no text."""
    if len(body) <= WORTH_CUTTING_BYTES:
        return len(body) // BYTES_PER_TOKEN
    text, tokens = len(body), 0
    for mark, of_media in _MEDIA:
        end = 0
        while (start := body.find(mark, end)) >= 0:
            start += len(mark)
            end = body.find(b'"', start)
            if end < 0:
                break
            if body.find(b" ", start, end) < 0:
                text -= end - start
                tokens += of_media(end - start)
    return text // BYTES_PER_TOKEN + tokens


def _max_tokens(fields: _Fields, operation: Operation) -> int | None:
    """The most tokens of an answer, in the spellings that this operation has: its pods do not heed the others.

    None where none is said, or in a form that is left to the pod to read or refuse.
    """
    most = _tokens(fields.max_output_tokens if operation is RESPONSES_API else fields.max_tokens)
    if operation is CHAT and fields.max_completion_tokens is not _UNSET:
        most = max(most, _tokens(fields.max_completion_tokens))
    return most if 0 < most < _UNREAD else None


def _tokens(said: _Optional) -> int:
    """A number in any form that a pod would take; 0 where none is said."""
    if said is _UNSET:
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


def _choices(fields: _Fields, operation: Operation) -> int | None:
    """How many indices the answer will have; None when only the answer tells."""
    each = 1 if fields.n is None else max(fields.n, 1)
    if operation is CHAT:
        return each
    if fields.prompt_embeds is not msgspec.UNSET:
        return None
    prompt = b"" if fields.prompt is msgspec.UNSET else bytes(fields.prompt)
    if not prompt.startswith(b"["):
        return each
    entries = _prompts.decode(prompt)
    # A list of token ids is one prompt; lists and strings are one each.
    many = bool(entries) and bytes(entries[0])[:1] in (b'"', b"[")
    return each * len(entries) if many else each


def _invalid_field(told: str) -> InvalidRequest:
    """msgspec's words, with the field they are about as `param`."""
    reason, _, path = told.partition(" - at `$")
    field = path.strip(".`") or None
    if "missing required field `model`" in reason:
        return InvalidRequest(_NO_MODEL, param="model")
    where = f"the field {field!r}" if field else "the body"
    return InvalidRequest(f"{where} has the wrong type: {reason[:1].lower()}{reason[1:]}", param=field)


_NO_MODEL = "the field 'model' is missing: name one of /v1/models"
