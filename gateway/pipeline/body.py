"""The body as bytes: what it may look like, where its top level's members are, and the two edits we make.

We forward what the client sent, so what we read must be what vLLM will read. A key that stands twice would break that,
and a decoder does not tell of it: it takes the last one. But what it read accounts for every byte of a text that has
each key once, which `first_repeated` checks without a second look at the values. No function here recurses.

The edits give the body in parts: what stays is looked at through a memoryview and copied nowhere.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

MAX_NESTING = 64
MAX_CONTAINERS = 131_072
"""Objects and lists in a body. A model that reads a million tokens has not that many messages to read."""

_LONG = 4096
_SHORT = 16_384
_SPACED = {
    key: b', "%b": ' % key.encode()
    for key in (
        *("model", "messages", "prompt", "input", "system", "instructions", "stream", "stream_options", "temperature"),
        *("top_p", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "stop", "tools", "tool_choice"),
        *("response_format", "frequency_penalty", "presence_penalty", "seed", "user", "metadata"),
    )
}
"""What begins a member, for those that most bodies have."""
_HEAD = re.compile(rb'[ \t\r\n]*+("(?:[^"\\]++|\\.)*+")[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_AFTER = re.compile(rb"[ \t\r\n]*+[,}]")
_COLON = re.compile(rb"[ \t\r\n:]*+")
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\],:]', re.DOTALL)
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"{}[]'))
_ONE_BRACKET = bytes.maketrans(b"{}", b"[]")
_STRING = re.compile(rb'"[^"]*"')

Parts = list[bytes | memoryview]


class Member(NamedTuple):
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
                found.append(Member(_key(key[0]), key.start(), start, start + len(raw.strip())))
                key = None
            if mark != 0x2C:
                depth -= 1
    return found


def first_repeated(text: bytes, values: Mapping[str, bytes]) -> str | None:
    """The first key that stands twice at the top level of a valid JSON text, or None.

    `values` are its members as a decoder read them: each key once, in the order of the text, with the bytes of the last
    value that it has. Is nothing else in the text, no key is there twice. Most texts are written in one of two ways,
    and of those without any space the length says it all: a further member, or an escape in a key, would take more.
    """
    bare = sum(map(len, values)) + sum(map(len, values.values())) + 4 * len(values) + 1
    if len(text) == bare or (len(text) == bare + 2 * len(values) - 1 and _is_spaced(text, values)):
        return None
    try:
        members_of(text, values)
    except Twice as twice:
        return twice.key
    return None


def _is_spaced(text: bytes, values: Mapping[str, bytes]) -> bool:
    """Whether the text is these members, with a space behind each comma and colon between them: Python's way."""
    parts: list[bytes] = []
    for key, value in values.items():
        if (head := _SPACED.get(key)) is None:
            if '"' in key or "\\" in key:
                return False
            head = f', "{key}": '.encode()
        parts.append(head)
        parts.append(value)
    parts[0] = parts[0].replace(b", ", b"{", 1)
    parts.append(b"}")
    return b"".join(parts) == text


class Twice(ValueError):
    """A key stands in an object twice."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def members_of(text: bytes, values: Mapping[str, bytes]) -> list[Member]:
    """The members of a valid JSON text, found by what a decoder read: as many steps as there are members.

    A value that stands where one begins is that value, not a part of it, if a comma or the end comes next. So a text
    that has these members in this order, and then ends, has no other.

    Raises `Twice`.
    """
    found: list[Member] = []
    at = text.index(b"{") + 1
    for key, raw in values.items():
        if (head := _HEAD.match(text, at)) is None:
            raise Twice(key)
        if (said := _key(head[1])) != key:
            raise Twice(said)
        value = bytes(raw)
        start = head.end()
        end = start + len(value)
        after = _AFTER.match(text, end) if text.startswith(value, start) else None
        if after is None:
            raise Twice(key)
        found.append(Member(key, head.start(1), start, end))
        at = after.end()
    if values and text[at - 1] != 0x7D:
        further = _HEAD.match(text, at)
        raise Twice("" if further is None else _key(further[1]))
    return found


def _key(raw: bytes) -> str:
    """What a key says, with its quotes."""
    if b"\\" not in raw:
        return raw[1:-1].decode("utf-8")
    told: str = json.loads(raw)
    return told


def hollow(text: bytes, name: str, value: bytes) -> bytes:
    """The text with a 0 in place of that value of a member of that name; as it is, if there is none.

    What is inside a top-level value is not top level, so the search for keys may leave it out. Cutting another place
    with the same bytes would be harmless as well: between quotes in the same order they are a complete JSON value
    wherever they stand, and in any other order they are not valid JSON.
    """
    key = b'"%b"' % name.encode()
    at = text.find(key)
    while at >= 0:
        start = _COLON.match(text, at + len(key)).end()  # type: ignore[union-attr]  # it matches everywhere
        if text.startswith(value, start):
            return text[:start] + b"0" + text[start + len(value) :]
        at = text.find(key, start)
    return text


def may_hold_long_number(text: bytes) -> bool:
    """Whether there may be a number of so many digits that Python's parser refuses it: 4,300 at most.

    So many in a row have a multiple of half as many among them, with a quarter to both sides.
    """
    if len(text) < _LONG:
        return False
    half, quarter = _LONG // 2, _LONG // 4
    return any(text[at - quarter : at + quarter].isdigit() for at in range(half, len(text), half))


def may_nest_deeply(text: bytes) -> bool:
    """Whether there are more brackets than `MAX_NESTING`, in strings or not."""
    if len(text) <= _SHORT:
        return text.count(b"{") + text.count(b"[") > MAX_NESTING
    # To search for a byte takes a twentieth of what it takes to count it, where there is none.
    left = MAX_NESTING
    for mark in (b"{", b"["):
        at = text.find(mark)
        while at >= 0:
            if not left:
                return True
            left -= 1
            at = text.find(mark, at + 1)
    return False


class TooManyContainers(ValueError):
    """More objects and lists than `MAX_CONTAINERS`."""


def nesting(text: bytes) -> int:
    """How deep a valid JSON text nests; exact up to `MAX_NESTING`, one more than that beyond.

    Raises `TooManyContainers`: else a pass for each layer of 8 MiB of brackets would hold the loop for a second.

    All but the structure is dropped, and empty pairs are taken out layer by layer: every step is one pass in C. Few
    brackets cannot nest deeply, so ask only where it `may_nest_deeply`.
    """
    structure = text.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_ONE_BRACKET, _NOT_STRUCTURE)
    structure = _STRING.sub(b"", structure.replace(b'""', b""))
    if len(structure) > 2 * MAX_CONTAINERS:
        raise TooManyContainers
    for depth in range(MAX_NESTING + 1):
        if not structure:
            return depth
        structure = structure.replace(b"[]", b"")
    return MAX_NESTING + 1


def asking_for_model(text: bytes, values: Mapping[str, bytes], other: str) -> Parts:
    """The text, in parts, with another model's name as its member `model`. `values` are its members as a decoder read
    them, each key once."""
    member = next(each for each in members_of(text, values) if each.key == "model")
    return in_place(text, member.value_start, member.value_end, json.dumps(other).encode("ascii"))


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
