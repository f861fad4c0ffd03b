"""A request's body becomes an `Asked`, or vLLM's refusal of it.

The plain path is one pass of msgspec over typed structs. Only what that refuses is read again slowly, with
the standard json module, whose error texts and positions vLLM passes on, and field by field with pydantic's
words. pydantic also takes "24" for 24; so does the second pass. Checks come in vLLM's order: JSON, content
type, schema, model, prompt, sampling parameters.
"""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec

from loadtest.simulator import refusals
from loadtest.simulator.faults import BadFault, Fault, fault_from_json
from loadtest.simulator.prompts import Prompt, read_prompt, render_chat, render_token_ids
from loadtest.simulator.refusals import Refused as Refused  # where it belongs to its many importers
from loadtest.simulator.settings import PodSettings
from loadtest.simulator.wire import Reply
from loadtest.simulator.wishes import (
    PLAIN,
    Wishes,
    check_for_engine,
    check_tool_parser,
    read_chat_wishes,
    read_completion_wishes,
)

COMPLETION_TOKENS_UNLESS_SAID = 16


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One generation as asked for, checked."""

    model: str
    prompts: tuple[Prompt, ...]
    n: int
    max_tokens: int
    limited: bool  # the caller set max_tokens
    stream: bool
    include_usage: bool
    continuous_usage: bool
    ignore_eos: bool
    stop: tuple[str, ...]
    fault: Fault | None
    priority: int = 0  # the body's own
    wishes: Wishes = PLAIN


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Part(msgspec.Struct):
    type: str = "text"
    text: str | None = None


class _Function(msgspec.Struct):
    name: str = ""
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: list[_ToolCall] | None = None


class _Body(msgspec.Struct, kw_only=True):
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    cache_salt: str | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    echo: bool | None = None
    priority: int | None = None
    response_format: msgspec.Raw = msgspec.Raw()
    structured_outputs: msgspec.Raw = msgspec.Raw()
    sim_fault: msgspec.Raw = msgspec.Raw()


class _ChatBody(_Body, kw_only=True):
    messages: list[_Message]
    max_completion_tokens: int | None = None
    tools: msgspec.Raw = msgspec.Raw()
    tool_choice: msgspec.Raw = msgspec.Raw()
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    include_reasoning: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: msgspec.Raw = msgspec.Raw()
    return_prompt_text: bool | None = None


class _CompletionBody(_Body, kw_only=True):
    logprobs: int | None = None
    prompt: str | list[int | str | list[int]] | None = None


_chat = msgspec.json.Decoder(_ChatBody)
_completion = msgspec.json.Decoder(_CompletionBody)


def read_chat(body: bytes, content_type: bytes | None, settings: PodSettings) -> Asked:
    """Raises Refused."""
    if not _is_json(content_type):
        raise Refused(_unsupported_media_type())
    try:
        chat = _chat.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        chat = _read_again(body, _ChatBody)
    user_spoke_last = bool(chat.messages) and chat.messages[-1].role == "user"
    wishes = read_chat_wishes(chat, stream=bool(chat.stream), settings=settings, user_spoke_last=user_spoke_last)
    if chat.stream_options is not None and not chat.stream:
        raise Refused(_stream_options_without_stream())
    model = _served_model(chat, settings)
    if not chat.messages:
        message = "Cannot apply chat template to an empty conversation. Provide at least one message."
        raise Refused(refusals.bad_request(message))
    check_tool_parser(chat, settings)
    text = render_chat([(message.role, _text_of(message, model)) for message in chat.messages], _given(chat.tools))
    limit = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
    return _checked(chat, model, (text,), limit, settings, wishes)


def read_completion(body: bytes, content_type: bytes | None, settings: PodSettings) -> Asked:
    """Raises Refused."""
    if not _is_json(content_type):
        raise Refused(_unsupported_media_type())
    try:
        completion = _completion.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        completion = _read_again(body, _CompletionBody)
    wishes = read_completion_wishes(completion, stream=bool(completion.stream))
    if completion.stream_options is not None and not completion.stream:
        raise Refused(_stream_options_without_stream())
    if not completion.prompt:
        message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
        raise Refused(refusals.bad_request(message, "prompt"))
    model = _served_model(completion, settings)
    limit = COMPLETION_TOKENS_UNLESS_SAID if completion.max_tokens is None else completion.max_tokens
    if wishes.echo and limit == 0:
        limit, wishes = 1, msgspec.structs.replace(wishes, prompt_only=True)  # as vLLM: one token, told to nobody
    return _checked(completion, model, _prompt_texts(completion.prompt), limit, settings, wishes)


def _checked(
    body: _Body, model: str, texts: tuple[bytes, ...], limit: int | None, settings: PodSettings, wishes: Wishes
) -> Asked:
    """The checks both operations share, from the prompt on."""
    window = settings.max_model_len_tokens
    salt = (settings.seed, model, body.cache_salt)
    size, keep = settings.block_size_tokens, wishes.needs_prompt_text
    prompts = tuple(read_prompt(text, block_size_tokens=size, salt=salt, keep_text=keep) for text in texts)
    longest = max(prompt.tokens for prompt in prompts)
    _check_window(longest, limit, window)
    n = 1 if body.n is None else body.n
    if n * len(prompts) > settings.max_sequences_per_request:
        limit_text = f"the simulator makes at most {settings.max_sequences_per_request} sequences for a request"
        raise Refused(refusals.sim_error(limit_text))
    max_tokens = window - longest if limit is None else limit
    _check_sampling(n, max_tokens, body.temperature)
    if wishes is not PLAIN:
        check_for_engine(wishes)
    options = body.stream_options
    return Asked(
        model=model,
        prompts=prompts,
        n=n,
        max_tokens=max_tokens,
        limited=limit is not None,
        stream=bool(body.stream),
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.include_usage and options.continuous_usage_stats),
        ignore_eos=bool(body.ignore_eos),
        stop=_stop_strings(body.stop),
        fault=_fault(body.sim_fault),
        priority=body.priority or 0,
        wishes=wishes,
    )


def _check_window(prompt_tokens: int, limit: int | None, window: int) -> None:
    if limit is not None and limit > window:
        message = f"max_tokens={limit} cannot be greater than max_model_len={window}."
        raise Refused(refusals.bad_request(f"{message} Please request fewer output tokens.", "max_tokens", limit))
    opening = f"This model's maximum context length is {window} tokens. However,"
    if prompt_tokens > window:
        # vLLM stops counting a prompt one token behind what fits; so it does below.
        message = (
            f"{opening} your prompt contains at least {window + 1} input tokens, which exceeds this limit even "
            "without any output tokens. Please reduce the length of the input prompt."
        )
        raise Refused(refusals.bad_request(message, "input_tokens", window + 1))
    if limit is not None and prompt_tokens + limit > window:
        least = window - limit + 1
        message = (
            f"{opening} you requested {limit} output tokens and your prompt contains at least {least} input "
            f"tokens, for a total of at least {window + 1} tokens. Please reduce the length of the input prompt "
            "or the number of requested output tokens."
        )
        raise Refused(refusals.bad_request(message, "input_tokens", least))


def _check_sampling(n: int, max_tokens: int, temperature: float | None) -> None:
    if n < 1:
        raise Refused(refusals.bad_request(f"n must be at least 1, got {n}."))
    if temperature is not None and temperature < 0:
        message = f"temperature must be non-negative, got {temperature}."
        raise Refused(refusals.bad_request(message, "temperature", temperature))
    if max_tokens < 1:
        raise Refused(
            refusals.bad_request(f"max_tokens must be at least 1, got {max_tokens}.", "max_tokens", max_tokens)
        )
    if temperature == 0 and n > 1:
        raise Refused(refusals.bad_request(f"n must be 1 when using greedy sampling, got {n}."))


def _served_model(body: _Body, settings: PodSettings) -> str:
    """The name that answers bear: the pod's first one, whichever alias was asked, or the adapter's."""
    if body.model is None or body.model == settings.model or body.model in settings.aliases:
        return settings.model
    if body.model in settings.lora_adapters:
        return body.model
    raise Refused(refusals.unknown_model(body.model, (settings.model, *settings.aliases)))


def _text_of(message: _Message, model: str) -> str:
    content = message.content
    if content is None:
        text = ""
    elif isinstance(content, str):
        text = content
    elif any(part.type not in ("text", "input_text", "refusal", "thinking") for part in content):
        raise Refused(refusals.bad_request(f"{model} is not a multimodal model"))
    else:
        text = "\n".join(part.text or "" for part in content)
    return text + "".join(map(_text_of_call, message.tool_calls)) if message.tool_calls else text


def _text_of_call(call: _ToolCall) -> str:
    """As the model said it, so that its blocks are found again."""
    function = call.function or _Function()
    named = json.dumps(function.name)
    return f'<tool_call>\n{{"name": {named}, "arguments": {function.arguments or "{}"}}}\n</tool_call>'


def _prompt_texts(prompt: str | list[int | str | list[int]]) -> tuple[bytes, ...]:
    if isinstance(prompt, str):
        return (prompt.encode("utf-8", "surrogatepass"),)
    ids = [item for item in prompt if isinstance(item, int)]
    if ids:
        return (render_token_ids(ids),)
    texts = []
    for item in prompt:
        if isinstance(item, str):
            texts.append(item.encode("utf-8", "surrogatepass"))
        elif isinstance(item, list):
            texts.append(render_token_ids(item))
    return tuple(texts)


def _stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _fault(raw: msgspec.Raw) -> Fault | None:
    text = _given(raw)
    if not text:
        return None
    try:
        return fault_from_json(text)
    except BadFault as error:
        raise Refused(refusals.sim_error(str(error))) from None


def _given(raw: msgspec.Raw) -> bytes:
    """The JSON text of an optional field; empty if it was left out or null."""
    text = bytes(raw)
    return b"" if text == b"null" else text


def _is_json(content_type: bytes | None) -> bool:
    return content_type is not None and content_type.partition(b";")[0].strip().lower() == b"application/json"


def _unsupported_media_type() -> Reply:
    return refusals.invalid(["Unsupported Media Type: Only 'application/json' is allowed"], None)


def _stream_options_without_stream() -> Reply:
    message = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
    return refusals.bad_request(message, "stream_options")


BodyT = TypeVar("BodyT", bound=_Body)


def _read_again(body: bytes, into: type[BodyT]) -> BodyT:
    """The slow, lenient, well-spoken way; raises Refused with the words of FastAPI and pydantic."""
    if not body:
        raise Refused(refusals.invalid([_problem("missing", "body", "Field required", None)], "body"))
    try:
        value = json.loads(body)
    except json.JSONDecodeError as error:
        place = f"body.{error.pos}"
        problem = _problem("json_invalid", place, "JSON decode error", {}, f", 'ctx': {{'error': {error.msg!r}}}")
        raise Refused(refusals.invalid([problem], place)) from None
    except (ValueError, RecursionError):  # not UTF-8, a number of 5000 digits, a nest too deep
        raise Refused(refusals.bad_body()) from None
    if value is None:
        raise Refused(refusals.invalid([_problem("missing", "body", "Field required", None)], "body"))
    if not isinstance(value, dict):
        text = "Input should be a valid dictionary or object to extract fields from"
        raise Refused(refusals.invalid([_problem("model_attributes_type", "body", text, value)], "body"))
    problems = _schema_problems(value, into)
    if problems:
        raise Refused(refusals.invalid([text for _, text in problems], problems[0][0]))
    try:
        return msgspec.convert(value, type=into, strict=False)
    except msgspec.MsgspecError as error:
        # Something nested, for which pydantic would print a tree of every union's member.
        raise Refused(refusals.invalid([_problem("value_error", "body", str(error), value)], "body")) from None


_SCALARS = {
    "model": str,
    "cache_salt": str,
    "stream": bool,
    "ignore_eos": bool,
    "n": int,
    "max_tokens": int,
    "max_completion_tokens": int,
    "priority": int,
    "temperature": float,
}


def _schema_problems(value: dict[str, object], into: type[_Body]) -> list[tuple[str, str]]:
    """(place, problem) for each field of the wrong type, in the order the struct has them."""
    problems = []
    for field in into.__struct_fields__:
        place = f"body.{field}"
        if field == "messages" and field not in value:
            problems.append((place, _problem("missing", place, "Field required", value)))
        elif field == "messages" and not isinstance(value[field], list):
            problems.append((place, _problem("list_type", place, "Input should be a valid list", value[field])))
        elif field in _SCALARS and value.get(field) is not None:
            wrong = _wrong_scalar(value[field], _SCALARS[field])
            if wrong is not None:
                problems.append((place, _problem(wrong[0], place, wrong[1], value[field])))
    return problems


def _wrong_scalar(value: object, wanted: type) -> tuple[str, str] | None:
    """pydantic's code and text if it could not read `value` as `wanted` in its lax mode."""
    if wanted is str:
        return None if isinstance(value, str) else ("string_type", "Input should be a valid string")
    if wanted is bool:
        if isinstance(value, bool) or value in (0, 1) or str(value).lower() in _BOOLEANS:
            return None
        if isinstance(value, (str, int, float)):
            return "bool_parsing", "Input should be a valid boolean, unable to interpret input"
        return "bool_type", "Input should be a valid boolean"
    name, noun = ("int", "integer") if wanted is int else ("float", "number")
    if isinstance(value, str):
        try:
            wanted(value)
        except ValueError:
            article = "an" if wanted is int else "a"
            return (
                f"{name}_parsing",
                f"Input should be a valid {noun}, unable to parse string as {article} {noun}",
            )
        return None
    if wanted is int and isinstance(value, float) and not value.is_integer():
        return "int_from_float", "Input should be a valid integer, got a number with a fractional part"
    return None if isinstance(value, (int, float)) else (f"{name}_type", f"Input should be a valid {noun}")


_BOOLEANS = frozenset({"true", "false", "on", "off", "yes", "no", "y", "n", "t", "f", "1", "0"})


def _problem(code: str, place: str, text: str, value: object, more: str = "") -> str:
    if isinstance(value, dict):
        shown = f"<dict of {len(value)} items>"
    elif isinstance(value, list):
        shown = f"<list of {len(value)} items>"
    else:
        shown = str(value)
    return f"{{'type': {code!r}, 'loc': {place!r}, 'msg': {text!r}, 'input': {shown!r}{more}}}"
