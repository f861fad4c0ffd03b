"""What the fields of a body may say: of which type they are, how much of a pod they ask for, and which only some keys
may send.

What is checked of a field is found by its name, at the price of a look-up for each. Of what may be long nothing is made
but what tells that it is too long.
"""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from gateway.core.caller import Tenant
from gateway.core.errors import Forbidden, InvalidJson, InvalidRequest, Unsupported
from gateway.pipeline.caps import ENTRIES, LENGTHS, Caps

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

_TOKEN_LISTS = ("prompt", "input")
_INFINITE = (float("inf"), float("-inf"))
_SHORTEST_INFINITE = len("1e999")
_BEGINS_NUMBER = tuple(bytes((mark,)) for mark in b"-0123456789")

_optional_text = msgspec.json.Decoder(str | None)
_optional_truth = msgspec.json.Decoder(bool | None)
_optional_number = msgspec.json.Decoder(int | None)
_number_or_truth = msgspec.json.Decoder(int | bool | None)

T = TypeVar("T")


def check_fields(told: Mapping[str, bytes], caps: Caps, tenant: Tenant) -> None:
    """Each member of a JSON body, as its bytes.

    Raises `InvalidRequest`, `InvalidJson` and `Forbidden`.
    """
    for name, raw in told.items():
        if (check := CHECKS.get(name)) is not None:
            check(name, raw, caps, tenant)


def check_form_fields(found: Mapping[str, str], caps: Caps, tenant: Tenant) -> None:
    """Those of a form that are read.

    Raises `InvalidRequest` and `Forbidden`.
    """
    for name in GUARDED_FIELDS:
        if name in found:
            _check_guarded(name, b"", caps, tenant)
    if (choices := found.get("n")) is not None:
        if not choices.isdecimal() or not choices.isascii():
            raise InvalidRequest("the field 'n' is no number", param="n")
        _check_choices("n", choices.lstrip("0").encode() or b"0", caps, tenant)


def check_remembered(told: Mapping[str, bytes]) -> None:
    """What a pod would have to remember: the next request may well go to another one."""
    earlier = told.get("previous_response_id", b"null")
    if typed(_optional_text, "previous_response_id", earlier) is not None:
        raise Unsupported(
            "earlier responses are kept by no pod: send the whole conversation as 'input'", param="previous_response_id"
        )
    if typed(_optional_truth, "background", told.get("background", b"null")):
        raise Unsupported("responses in the background are not kept: leave out 'background'", param="background")


def typed(decoder: "msgspec.json.Decoder[T]", name: str, raw: bytes) -> T:
    """The value of a field.

    Raises `InvalidRequest`.
    """
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise invalid_field(f"{error} - at `$.{name}`") from None


def invalid_field(told: str) -> InvalidRequest:
    """msgspec's words, with the field they are about as `param`."""
    reason, _, path = told.partition(" - at `$")
    field = path.strip(".`") or None
    where = f"the field {field!r}" if field else "the body"
    return InvalidRequest(f"{where} has the wrong type: {reason[:1].lower()}{reason[1:]}", param=field)


def _check_guarded(name: str, _: bytes, __: Caps, tenant: Tenant) -> None:
    if name not in tenant.allow_fields:
        raise Forbidden(f"this key may not send the field {name!r}", code="field_not_allowed", param=name)


def _check_choices(name: str, raw: bytes, caps: Caps, _: Tenant) -> None:
    if (typed(_optional_number, name, raw) or 0) > caps.max_n:
        raise InvalidRequest(
            f"the field {name!r} may be {caps.max_n} at most: the operator raises it with requests.max_n", param=name
        )


def _check_logprobs(name: str, raw: bytes, caps: Caps, _: Tenant) -> None:
    # vLLM takes -1 for all of its vocabulary.
    if not 0 <= (typed(_number_or_truth, name, raw) or 0) <= caps.max_logprobs:
        raise InvalidRequest(
            f"the field {name!r} may be 0 to {caps.max_logprobs}: the operator raises it with requests.max_logprobs",
            param=name,
        )


def _check_list(name: str, raw: bytes, caps: Caps, _: Tenant) -> None:
    if (most := caps.entries.get(name)) is not None:
        check_entries(name, raw, most)


def check_entries(name: str, raw: bytes, most: int) -> None:
    """No list of more entries than that; a list of numbers alone in `input` or `prompt` is one entry."""
    if len(raw) <= 2 * most or not (text := bytes(raw)).startswith(b"["):
        return
    if name in _TOKEN_LISTS and text[1:].lstrip()[:1] not in (b'"', b"[", b"{"):
        return
    try:
        _no_more_than(most).decode(text)
    except msgspec.ValidationError:
        raise InvalidRequest(f"the field {name!r} may have {most} entries at most", param=name) from None


@cache
def _no_more_than(most: int) -> msgspec.json.Decoder[Any]:
    """A decoder that stops at the first entry too many: what it makes of a list is bounded, however long that is."""
    fields = [(f"entry_{place}", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for place in range(most)]
    return msgspec.json.Decoder(
        msgspec.defstruct("_NoMoreThan", fields, array_like=True, forbid_unknown_fields=True, gc=False)
    )


def _check_length(name: str, raw: bytes, caps: Caps, _: Tenant) -> None:
    if (most := caps.lengths.get(name)) is not None and len(raw) > most:
        raise InvalidRequest(f"the field {name!r} may be {most} bytes long at most", param=name)


def _check_finite(name: str, raw: bytes, _: Caps, __: Tenant) -> None:
    """A number beyond what fits a double is infinity to some parsers, and an error to others."""
    if len(raw) < _SHORTEST_INFINITE:
        return
    text = bytes(raw)
    if text[:1] in _BEGINS_NUMBER and float(text) in _INFINITE:
        raise InvalidJson(f"the field {name!r} is out of range", param=name)


CHECKS: Mapping[str, Callable[[str, bytes, Caps, Tenant], None]] = MappingProxyType(
    dict.fromkeys(ENTRIES, _check_list)
    | dict.fromkeys(LENGTHS, _check_length)
    | dict.fromkeys(GUARDED_FIELDS, _check_guarded)
    | dict.fromkeys(("n", "best_of"), _check_choices)
    | dict.fromkeys(("logprobs", "top_logprobs", "prompt_logprobs"), _check_logprobs)
    | dict.fromkeys(
        (
            "temperature",
            "top_p",
            "min_p",
            "top_k",
            "frequency_penalty",
            "presence_penalty",
            "repetition_penalty",
            "length_penalty",
            "seed",
        ),
        _check_finite,
    )
)
"""What is checked of a member by its name alone."""
