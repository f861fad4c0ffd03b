"""A body that does not fit its schema, refused in the words of FastAPI and pydantic.

The struct a body is read into is its schema: what msgspec refuses at once is looked at again field by field,
in pydantic's lax mode, which takes "24" for 24. The routes that generate chats and completions have their own
reader in `asked`.
"""

from __future__ import annotations

import json
import types
import typing
from typing import TypeVar

import msgspec

from loadtest.simulator import refusals
from loadtest.simulator.asked import Refused

BodyT = TypeVar("BodyT", bound=msgspec.Struct)

_SCALARS = {
    str: ("string_type", "Input should be a valid string"),
    bool: ("bool_type", "Input should be a valid boolean"),
    int: ("int_type", "Input should be a valid integer"),
    float: ("float_type", "Input should be a valid number"),
    list: ("list_type", "Input should be a valid list"),
    dict: ("dict_type", "Input should be a valid dictionary"),
}


class Problem(typing.NamedTuple):
    """One field that does not fit. `more` is what pydantic prints behind `input`."""

    code: str
    place: str
    text: str
    value: object
    more: str = ""

    def __str__(self) -> str:
        value = self.value
        if isinstance(value, dict):
            shown = f"<dict of {len(value)} items>"
        elif isinstance(value, list):
            shown = f"<list of {len(value)} items>"
        else:
            shown = str(value)
        return f"{{'type': {self.code!r}, 'loc': {self.place!r}, 'msg': {self.text!r}, 'input': {shown!r}{self.more}}}"


def unfit(problems: list[Problem]) -> Refused:
    return Refused(refusals.invalid([str(problem) for problem in problems], problems[0].place))


def missing(field: str, value: object) -> Problem:
    return Problem("missing", f"body.{field}", "Field required", value)


def read(
    body: bytes, content_type: bytes | None, into: type[BodyT], *, filled_in: dict[str, object] | None = None
) -> BodyT:
    """`filled_in` is what vLLM adds before pydantic looks, and so is counted in its words. Raises Refused."""
    check_content_type(content_type)
    try:
        return msgspec.json.decode(body, type=into)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return convert({**(filled_in or {}), **read_object(body)}, into)


def convert(value: dict[str, object], into: type[BodyT]) -> BodyT:
    """A form's fields, or an object whose strict reading failed. Raises Refused."""
    problems = _problems(value, into)
    if problems:
        raise unfit(problems)
    try:
        return msgspec.convert(value, type=into, strict=False)
    except msgspec.MsgspecError as error:
        # Something nested, for which pydantic would print a tree of every union's member.
        raise unfit([Problem("value_error", "body", str(error), value)]) from None


def check_content_type(content_type: bytes | None) -> None:
    if content_type is None or content_type.partition(b";")[0].strip().lower() != b"application/json":
        text = "Unsupported Media Type: Only 'application/json' is allowed"
        raise Refused(refusals.invalid([text], None))


def written(value: object) -> bytes:
    """JSON that holds something of a client's: numbers of any size, halves of surrogate pairs."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def json_value(body: bytes) -> object:
    """With the standard library, whose error texts vLLM passes on. Raises ValueError."""
    value: object = json.loads(body)
    return value


def read_object(body: bytes) -> dict[str, object]:
    """The body as a JSON object, or FastAPI's words about what it is instead."""
    if not body:
        raise unfit([Problem("missing", "body", "Field required", None)])
    try:
        value = json_value(body)
    except json.JSONDecodeError as error:
        more = f", 'ctx': {{'error': {error.msg!r}}}"
        raise unfit([Problem("json_invalid", f"body.{error.pos}", "JSON decode error", {}, more)]) from None
    except (ValueError, RecursionError):  # not UTF-8, a number of 5000 digits, a nest too deep
        raise Refused(refusals.bad_body()) from None
    if value is None:
        raise unfit([Problem("missing", "body", "Field required", None)])
    if not isinstance(value, dict):
        text = "Input should be a valid dictionary or object to extract fields from"
        raise unfit([Problem("model_attributes_type", "body", text, value)])
    return value


def _problems(value: dict[str, object], into: type[msgspec.Struct]) -> list[Problem]:
    """In the order of the struct's fields, as pydantic's are in that of the model's."""
    problems: list[Problem] = []
    for field in msgspec.structs.fields(into):
        if field.name not in value:
            if field.required:
                problems.append(missing(field.name, value))
        else:
            problems += _misfits(f"body.{field.name}", value[field.name], field.type)
    return problems


def _misfits(place: str, value: object, wanted: object) -> list[Problem]:
    """Nothing if one of the types `wanted` is a union of takes the value, else one problem for each."""
    is_union = isinstance(wanted, types.UnionType) or typing.get_origin(wanted) is typing.Union
    members = typing.get_args(wanted) if is_union else (wanted,)
    if value is None and type(None) in members:
        return []
    problems = []
    for member in members:
        kind = typing.get_origin(member) or member
        if kind is type(None):
            continue
        if kind not in _SCALARS or _fits(value, kind):
            return []
        problems.append(Problem(_SCALARS[kind][0], place, _SCALARS[kind][1], value))
    return problems


def _fits(value: object, kind: object) -> bool:
    """As pydantic's lax mode sees it."""
    if kind in (str, list, dict):
        return isinstance(value, kind)
    if kind is bool:
        return isinstance(value, bool) or value in (0, 1, "true", "false", "True", "False")
    if isinstance(value, str):
        try:
            int(value) if kind is int else float(value)
        except ValueError:
            return False
        return True
    if kind is int and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, (int, float))
