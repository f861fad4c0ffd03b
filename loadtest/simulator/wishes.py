"""What a request asks of an answer beside words: calls of tools, JSON, reasoning, probabilities, token ids.

The checks are those of vLLM's request models, in the order they run there, which is the reverse of the order
they stand in; all of them come before the model's name is looked at. What only the engine refuses is in
`check_for_engine`.
"""

from __future__ import annotations

import enum
from random import Random
from typing import Any, Protocol

import msgspec

from loadtest.simulator import refusals
from loadtest.simulator.instances import Unsatisfiable, instance
from loadtest.simulator.patterns import BadPattern, check_pattern
from loadtest.simulator.refusals import Refused
from loadtest.simulator.settings import PodSettings

MOST_LOGPROBS = 20
_ONE_STRUCTURE = "You can only use one kind of constraints for structured outputs ('json', 'regex' or 'choice')."
_NOT_BOTH = "You can only either use constraints for structured outputs or tools, not both."
_ANY_OBJECT = {"type": "object", "minProperties": 3}
_NAME_USAGE = 'Correct usage: `{"type": "function", "function": {"name": "my_function"}}`'


class CallChoice(enum.Enum):
    """Who decides that a tool is called."""

    AUTO = enum.auto()
    REQUIRED = enum.auto()
    NAMED = enum.auto()


class StructureKind(enum.Enum):
    JSON = enum.auto()
    CHOICE = enum.auto()
    REGEX = enum.auto()


class Structure(msgspec.Struct, frozen=True):
    """What the text must be: `value` is a schema, a list of texts, or a pattern."""

    kind: StructureKind
    value: Any


class Tool(msgspec.Struct, frozen=True):
    name: str
    parameters: Any = None


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """`tools` are those the answer may call; none if it is to be words."""

    tools: tuple[Tool, ...] = ()
    call_choice: CallChoice = CallChoice.AUTO
    one_call: bool = False
    structure: Structure | None = None
    reasons: bool = False  # the answer begins with reasoning
    parses_reasoning: bool = False  # and is looked through for it
    hides_reasoning: bool = False
    logprobs: int | None = None  # alternatives for each token; 0: the token's own only
    prompt_logprobs: int | None = None
    token_ids: bool = False
    prompt_text: bool = False
    echo: bool = False
    prompt_only: bool = False  # of the answer itself nothing is told

    @property
    def needs_prompt_text(self) -> bool:
        return self.token_ids or self.prompt_text or self.echo or self.prompt_logprobs is not None


PLAIN = Wishes()


class Fields(Protocol):
    """The fields of a body that wishes are made in."""

    response_format: msgspec.Raw
    structured_outputs: msgspec.Raw
    prompt_logprobs: int | None
    return_token_ids: bool | None
    echo: bool | None


class ChatFields(Fields, Protocol):
    tools: msgspec.Raw
    tool_choice: msgspec.Raw
    parallel_tool_calls: bool | None
    logprobs: bool | None
    top_logprobs: int | None
    include_reasoning: bool | None
    reasoning_effort: str | None
    chat_template_kwargs: msgspec.Raw
    return_prompt_text: bool | None


class CompletionFields(Fields, Protocol):
    logprobs: int | None


class _FunctionBody(msgspec.Struct):
    name: str
    parameters: Any = None


class _ToolBody(msgspec.Struct):
    function: _FunctionBody


def read_chat_wishes(fields: ChatFields, *, stream: bool, settings: PodSettings, user_spoke_last: bool) -> Wishes:
    """Raises Refused. `settings` say whether there are parsers; without one for tools, none is called."""
    # The common case first, and cheaply: a benchmark asks for words alone.
    for_chat = fields.tools or fields.tool_choice or fields.logprobs or fields.top_logprobs or fields.return_prompt_text
    if not (for_chat or _wishes_at_all(fields) or settings.reasoning_parser is not None):
        return PLAIN
    tools, choice, named = _read_tools(fields)
    structured = _read_structured(fields, named=named is not None)
    _check_prompt_logprobs(fields.prompt_logprobs, stream=stream)
    if fields.top_logprobs and not fields.logprobs:
        message = "when using `top_logprobs`, `logprobs` must be set to true."
        raise _refused(message, "top_logprobs")
    called = tools if named is None else tuple(tool for tool in tools if tool.name == named)
    if choice is None or not settings.auto_tool_choice or (choice is CallChoice.AUTO and not user_spoke_last):
        called = ()
    wishes = Wishes(
        tools=called,
        call_choice=choice or CallChoice.AUTO,
        one_call=fields.parallel_tool_calls is False or choice is CallChoice.NAMED,
        structure=structured or _read_response_format(fields),
        reasons=settings.reasoning_parser is not None and _thinks(fields),
        parses_reasoning=settings.reasoning_parser is not None,
        hides_reasoning=settings.reasoning_parser is not None and fields.include_reasoning is False,
        logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
        prompt_logprobs=fields.prompt_logprobs,
        token_ids=bool(fields.return_token_ids),
        prompt_text=bool(fields.return_prompt_text),
    )
    return PLAIN if wishes == PLAIN else wishes


def read_completion_wishes(fields: CompletionFields, *, stream: bool) -> Wishes:
    """Raises Refused."""
    if not (_wishes_at_all(fields) or fields.echo or fields.logprobs is not None):
        return PLAIN
    structured = _read_structured(fields, named=False)
    _check_prompt_logprobs(fields.prompt_logprobs, stream=stream)
    prompt_logprobs = fields.prompt_logprobs
    if fields.echo and fields.logprobs is not None and prompt_logprobs is None:
        prompt_logprobs = fields.logprobs
    wishes = Wishes(
        structure=structured or _read_response_format(fields),
        logprobs=fields.logprobs,
        prompt_logprobs=prompt_logprobs,
        token_ids=bool(fields.return_token_ids),
        echo=bool(fields.echo),
    )
    return PLAIN if wishes == PLAIN else wishes


def _wishes_at_all(fields: Fields) -> bool:
    asked_with_text = fields.response_format or fields.structured_outputs
    return bool(asked_with_text or fields.return_token_ids or fields.prompt_logprobs is not None)


def check_tool_parser(fields: ChatFields, settings: PodSettings) -> None:
    """What vLLM looks at when it knows the model and has not rendered the prompt yet. Raises Refused."""
    if settings.auto_tool_choice or not fields.tools or not _given(fields.tools):
        return
    choice = _given(fields.tool_choice)
    if choice in (b"", b'"auto"'):
        message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        raise Refused(refusals.bad_request(message))
    if choice != b'"none"':
        named = msgspec.json.decode(choice)
        wanted = f'function "{named["function"]["name"]}"' if isinstance(named, dict) else choice.decode()
        raise Refused(refusals.bad_request(f"tool_choice={wanted} requires --tool-call-parser to be set"))


def check_for_engine(wishes: Wishes) -> None:
    """Raises Refused."""
    for count, noun, param in (
        (wishes.logprobs, "sample logprobs", "logprobs"),
        (wishes.prompt_logprobs, "prompt logprobs", "prompt_logprobs"),
    ):
        if count is not None and count > MOST_LOGPROBS:
            message = f"Requested {noun} of {count}, which is greater than max allowed: {MOST_LOGPROBS}"
            raise Refused(refusals.bad_request(message, param, count))
    if wishes.structure is not None:
        _check_structure(wishes.structure)


def _check_structure(structure: Structure) -> None:
    if structure.kind is StructureKind.CHOICE and not structure.value:
        raise Refused(refusals.bad_request("Choice '[]' cannot be an empty list"))
    try:
        if structure.kind is StructureKind.REGEX:
            check_pattern(structure.value)
        elif structure.kind is StructureKind.JSON:
            instance(structure.value, Random(0))
    except (BadPattern, Unsatisfiable) as error:
        raise Refused(refusals.bad_request(f"Grammar error: {error}")) from None


def _read_tools(fields: ChatFields) -> tuple[tuple[Tool, ...], CallChoice | None, str | None]:
    """The tools offered, who decides, and the name of the one that must be called."""
    given, choice_text = _given(fields.tools), _given(fields.tool_choice)
    if given == b"[]":
        message = "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely."
        raise _refused(message, "tools")
    if choice_text == b'"none"' or (not given and not choice_text):
        return (), None, None
    if not given:
        raise _refused("When using `tool_choice`, `tools` must be set.", "tool_choice")
    tools = tuple(Tool(tool.function.name, tool.function.parameters) for tool in _tool_bodies(given))
    choice = msgspec.json.decode(choice_text) if choice_text else "auto"
    if choice == "auto":
        return tools, CallChoice.AUTO, None
    if choice == "required":
        return tools, CallChoice.REQUIRED, None
    if not isinstance(choice, dict):
        message = f"Invalid value for `tool_choice`: {choice}! Only named tools, "
        raise _refused(f'{message}"none", "auto" or "required" are supported.', "tool_choice")
    name = _named(choice)
    if all(tool.name != name for tool in tools):
        message = "The tool specified in `tool_choice` does not match any of the specified `tools`"
        raise _refused(message, "tool_choice")
    return tools, CallChoice.NAMED, name


def _tool_bodies(text: bytes) -> list[_ToolBody]:
    try:
        return msgspec.json.decode(text, type=list[_ToolBody])
    except msgspec.MsgspecError as error:
        problem = f"{{'type': 'value_error', 'loc': 'body.tools', 'msg': {str(error)!r}}}"
        raise Refused(refusals.invalid([problem], "body.tools")) from None


def _named(choice: dict[str, Any]) -> str:
    function = choice.get("function")
    if not isinstance(function, dict):
        message = f"Invalid value for `function`: `{function}` in `tool_choice`! {_NAME_USAGE}"
        raise _refused(message, "tool_choice.function")
    if "name" not in function:
        message = f"Expected field `name` in `function` in `tool_choice`! {_NAME_USAGE}"
        raise _refused(message, "tool_choice.function.name")
    name = function["name"]
    if not isinstance(name, str) or not name:
        message = f"Invalid `name` in `function`: `{name}` in `tool_choice`! {_NAME_USAGE}"
        raise _refused(message, "tool_choice.function.name")
    return name


def _read_structured(fields: Fields, *, named: bool) -> Structure | None:
    text = _given(fields.structured_outputs)
    if not text:
        return None
    given = msgspec.json.decode(text)
    if not isinstance(given, dict):
        raise _refused("structured_outputs must be an object", "structured_outputs")
    kinds = [key for key in ("json", "regex", "choice") if given.get(key) is not None]
    if len(kinds) > 1:
        raise Refused(refusals.bad_request(_ONE_STRUCTURE))
    if kinds and named:
        raise Refused(refusals.bad_request(_NOT_BOTH))
    if not kinds:
        return Structure(StructureKind.JSON, _ANY_OBJECT) if given.get("json_object") else None
    value = given[kinds[0]]
    if kinds[0] == "json":
        return Structure(StructureKind.JSON, msgspec.json.decode(value) if isinstance(value, str) else value)
    return Structure(StructureKind.REGEX if kinds[0] == "regex" else StructureKind.CHOICE, value)


def _read_response_format(fields: Fields) -> Structure | None:
    text = _given(fields.response_format)
    given = msgspec.json.decode(text) if text else None
    if not isinstance(given, dict):
        return None
    kind = given.get("type")
    if kind == "json_object":
        return Structure(StructureKind.JSON, _ANY_OBJECT)
    if kind != "json_schema":
        return None
    named = given.get("json_schema")
    if not isinstance(named, dict):
        message = "When response_format type is 'json_schema', the 'json_schema' field must be provided."
        raise _refused(message, "response_format")
    return Structure(StructureKind.JSON, named.get("schema", _ANY_OBJECT))


def _check_prompt_logprobs(count: int | None, *, stream: bool) -> None:
    if count is None:
        return
    if stream and count != 0:
        raise _refused("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs")
    if count < -1:
        raise _refused("`prompt_logprobs` must be a positive value or -1.", "prompt_logprobs")


def _thinks(fields: ChatFields) -> bool:
    """Whether the chat template would let the model think: as Qwen 3's does."""
    text = _given(fields.chat_template_kwargs)
    given = msgspec.json.decode(text) if text else None
    if isinstance(given, dict) and "enable_thinking" in given:
        return bool(given["enable_thinking"])
    return fields.reasoning_effort != "none"


def _refused(message: str, param: str) -> Refused:
    return Refused(refusals.bad_request(f"{message} (parameter={param})", param))


def _given(raw: msgspec.Raw) -> bytes:
    """The JSON text of an optional field; empty if it was left out or null."""
    text = bytes(raw).strip()
    return b"" if text == b"null" else text
