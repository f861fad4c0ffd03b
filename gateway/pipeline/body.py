"""The body as bytes: what it may look like, where its top level's members are, and the two edits we make.

We forward what the client sent, so what we read must be what vLLM will read. Duplicate keys would break that, and
finding them exactly means walking every token. So `stand_once` proves by counting bytes that the routed keys stand
there once, which holds for nearly every request; only in doubt are the members walked. No function here recurses.

The edits give the body in parts: what stays is looked at through a memoryview and copied nowhere.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

MAX_NESTING = 64

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\],:]', re.DOTALL)
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"{}[]'))
_ONE_BRACKET = bytes.maketrans(b"{}", b"[]")
_STRING = re.compile(rb'"[^"]*"')
_MODEL = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*("(?:[^"\\]++|\\.)*+")', re.DOTALL)

Parts = list[bytes | memoryview]


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a JSON object: where it begins, and its value's span."""

    key: str
    start: int
    value_start: int
    value_end: int


def members(text: bytes) -> list[Member]:
    """The members of the top-level object of a valid JSON text, in order, duplicates included."""
    found: list[Member] = []
    depth = 0
    key: re.Match[bytes] | None = None
    value_start = -1
    for token in _TOKEN.finditer(text):
        mark = text[token.start()]
        if mark == 0x22:
            if depth == 1 and key is None:
                key = token
        elif mark == 0x7B or mark == 0x5B:
            depth += 1
        elif mark == 0x3A:
            if depth == 1:
                value_start = token.end()
        else:
            if depth == 1 and key is not None:
                raw = text[value_start : token.start()]
                start = value_start + len(raw) - len(raw.lstrip())
                found.append(Member(json.loads(key[0]), key.start(), start, start + len(raw.strip())))
                key = None
            if mark != 0x2C:
                depth -= 1
    return found


def stand_once(text: bytes, streams: int) -> bool:
    """Whether `model`, and as many of `stream` and `stream_options` as told, stand in the text once each.

    True proves that no routed key is there twice or in disguise; False proves nothing: the words may well stand in a
    message. An ASCII letter can hide behind an escape: {"mod\\u0065l": ...} is a model too.
    """
    return text.count(b'"model"') == 1 and text.count(b'"stream') == streams and b"\\u00" not in text


def without(text: bytes, key: bytes, value: bytes) -> bytes:
    """The text without the value that stands behind the first such key (with its quotes), if it does stand there.

    What is inside a top-level value is not top level, so the search for keys may leave it out. Cutting another place
    with the same bytes would be harmless as well: between quotes in the same order they are a complete JSON value
    wherever they stand, and in any other order they are not valid JSON.
    """
    at = text.find(key) + len(key)
    while text[at : at + 1] in (b" ", b":", b"\n", b"\t", b"\r"):
        at += 1
    return text[:at] + text[at + len(value) :] if text.startswith(value, at) else text


def nesting(text: bytes) -> int:
    """How deep a valid JSON text nests; exact up to `MAX_NESTING`, one more than that beyond.

    All but the structure is dropped, and empty pairs are taken out layer by layer: every step is one pass in C. Few
    brackets cannot nest deeply, so ask only when a count of them leaves it open.
    """
    structure = text.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_ONE_BRACKET, _NOT_STRUCTURE)
    structure = _STRING.sub(b"", structure.replace(b'""', b""))
    for depth in range(MAX_NESTING + 1):
        if not structure:
            return depth
        structure = structure.replace(b"[]", b"")
    return MAX_NESTING + 1


def asking_for_model(text: bytes, name: str, other: str) -> Parts:
    """The text, in parts, with another model's name in place of `name`, the value of its one member `model`."""
    start, end = _model_span(text, name)
    return in_place(text, start, end, json.dumps(other).encode("ascii"))


def _model_span(text: bytes, name: str) -> tuple[int, int]:
    """Where the value of the top level's `model` stands, which is known to be there once.

    The search finds each key that ends in `model"` and has a string as its value, the one at the top level among them
    unless its letters hide behind escapes. So if only one of those strings is the name, it is the one.
    """
    if b"\\u006" not in text:
        places = [found.span(1) for found in _MODEL.finditer(text) if json.loads(found[1]) == name]
        if len(places) == 1:
            return places[0]
    member = next(each for each in members(text) if each.key == "model")
    return member.value_start, member.value_end


def in_place(text: bytes, start: int, end: int, put: bytes) -> Parts:
    """The text, in parts, with `put` in place of what stands from `start` to `end`."""
    whole = memoryview(text)
    return [whole[:start], put, whole[end:]]


def asking_for_usage(text: bytes, options: Member | None) -> Parts:
    """The text, in parts, with `stream_options.include_usage` true, and no usage on each chunk.

    `options` is the member `stream_options` if the text has one. Its other members stay as they are.
    """
    if options is None:
        brace = len(text) - len(text.lstrip()) + 1
        return [text[:brace] + b'"stream_options":{"include_usage":true},', memoryview(text)[brace:]]
    value = text[options.value_start : options.value_end]
    kept = [b'"include_usage":true']
    if value.startswith(b"{"):
        kept += [
            value[member.start : member.value_end]
            for member in members(value)
            if member.key not in ("include_usage", "continuous_usage_stats")
        ]
    return in_place(text, options.value_start, options.value_end, b"{" + b",".join(kept) + b"}")


def repeated(found: Iterable[Member], keys: frozenset[str]) -> str | None:
    """The first of `keys` that two members bear, or None."""
    seen = set()
    for member in found:
        if member.key in keys:
            if member.key in seen:
                return member.key
            seen.add(member.key)
    return None
