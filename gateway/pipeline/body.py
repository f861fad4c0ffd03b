"""The body as bytes: what it may look like, where its top level's members are, and the two edits we make.

We forward what the client sent, so what we read must be what vLLM will read. A key that stands twice would break that,
and a decoder does not tell of it: it takes the last one. But what it read accounts for every byte of a text that has
each key once, which `first_repeated` checks without a second look at the values. No function here recurses.

Most of a large body is a few long strings, which say nothing of its structure. So it is looked at without them: a
`Hollow` text.

The edits give the body in parts: what stays is looked at through a memoryview and copied nowhere.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

MAX_NESTING = 64
MAX_CONTAINERS = 131_072
"""Objects and lists in a body. A model that reads a million tokens has not that many messages to read."""

_LONG = 4096
"""Digits that Python's parser takes in any case: 4,300 are the most."""
_SHORT = 16_384
"""Bytes of a text in which to count brackets is cheaper than to search for them."""
_MISSES = 64
"""So many members with a key that is looked for may have another value, until the search is given up."""
_LAYERS = 8
"""Of nesting, taken away in one step."""
_TOO_DEEP = b"[" * (MAX_NESTING + 1)
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
_TO_STRING = re.compile(rb'[ \t\r\n]*+:[ \t\r\n]*+"')
_COLON = re.compile(rb"[ \t\r\n:]*+")
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\],:]', re.DOTALL)
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"{}[]'))
_ONE_BRACKET = bytes.maketrans(b"{}", b"[]")
_STRING = re.compile(rb'"[^"]*"')
_DIGITS = re.compile(rb"[0-9]{2}")
_BACKSLASH = ord("\\")

Parts = list[bytes | memoryview]

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work that others may have a turn within, wherever it yields."""


def at_once(steps: Steps[T]) -> T:
    """What comes of all steps."""
    try:
        while True:
            next(steps)
    except StopIteration as last:
        done: T = last.value
        return done


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
    spaces = len(text) - _bare_length(values)
    if not spaces or (spaces == 2 * len(values) - 1 and _is_spaced(text, values)):
        return None
    try:
        members_of(text, values)
    except Twice as twice:
        return twice.key
    return None


def _bare_length(values: Mapping[str, bytes]) -> int:
    """Of an object of these members without a space between them."""
    return sum(map(len, values)) + sum(map(len, values.values())) + 4 * len(values) + 1


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


def places_of(text: bytes, values: Mapping[str, bytes]) -> dict[str, tuple[int, int]]:
    """Where each member's value begins and ends, in a text for which `first_repeated` said None."""
    spaces = len(text) - _bare_length(values)
    if spaces and not (spaces == 2 * len(values) - 1 and _is_spaced(text, values)):
        return {member.key: (member.value_start, member.value_end) for member in members_of(text, values)}
    places = {}
    space = 1 if spaces else 0
    at = 1
    for key, value in values.items():
        start = at + len(key) + 3 + space
        at = start + len(value)
        places[key] = start, at
        at += 1 + space
    return places


def _key(raw: bytes) -> str:
    """What a key says, with its quotes."""
    if b"\\" not in raw:
        return raw[1:-1].decode("utf-8")
    told: str = json.loads(raw)
    return told


class Hollow(NamedTuple):
    """A JSON text without what some of its strings say: of these the quotes are left. All else is there, so it has the
    same structure and the same keys."""

    text: bytes
    gaps: Sequence[tuple[int, int]] = ()
    """(where in the whole text something is left out, how many bytes), in order."""

    def without(self, strings: Iterable[tuple[bytes, bytes]], misses: int = _MISSES) -> "Hollow":
        """The same without these too: (a member's key, the string it has), both with their quotes, in their order.

        What is found is the value of such a member somewhere in the text; `only_in` tells whether it is where it should
        be. After so many other members with the keys looked for, the search is given up.
        """
        text, gaps = self
        found: list[tuple[int, int]] = []
        kept: list[bytes] = []
        begins: dict[bytes, bytes] = {}
        at = since = 0
        for key, value in strings:
            begin = begins.get(key) or begins.setdefault(key, _beginning_of(text, key, at))
            at = text.find(begin, at) if begin else -1
            while at >= 0 and not text.startswith(value, at + len(begin) - 1):
                misses -= 1
                at = text.find(begin, at + 1) if misses else -1
            if at < 0:
                break
            at += len(begin)
            kept.append(text[since:at])
            found.append((self.in_whole(at) if gaps else at, len(value) - 2))
            since = at = at + len(value) - 2
        if not found:
            return self
        kept.append(text[since:])
        return Hollow(b"".join(kept), sorted([*gaps, *found]) if gaps else found)

    def only_in(self, places: Iterable[tuple[int, int]]) -> bool:
        """Whether nothing is left out of anything but these places of `text`."""
        left_out = 0
        gaps = []
        for start, count in self.gaps:
            gaps.append(start - left_out)
            left_out += count
        return sum([bisect_left(gaps, end) - bisect_left(gaps, start) for start, end in places]) == len(gaps)

    def in_whole(self, at: int) -> int:
        """Where in the whole text that stands which stands here in `text`."""
        for start, count in self.gaps:
            if at < start:
                break
            at += count
        return at


def _beginning_of(text: bytes, key: bytes, at: int) -> bytes:
    """All that stands before what a string says that is the value of this key, in quotes, in a text from there on;
    empty if there is none near.

    Between a string's quotes others are escaped. So what has quotes is a key, or else no colon follows.
    """
    for _ in range(_MISSES):
        if (at := text.find(key, at)) < 0:
            break
        quote = _TO_STRING.match(text, at + len(key))
        if quote is not None:
            return text[at : quote.end()]
        at += 1
    return b""


class Prompt(NamedTuple):
    """A prompt's bytes: what stands in `text` from `start` to `end`."""

    text: bytes
    start: int
    end: int
    hollow: Hollow
    """Where a mark is looked for: of what is left out nothing is one."""
    places: Sequence[tuple[int, int, int]]
    """Its parts in the hollow text: (beginning, end, how much further they stand in `text` than in the whole one)."""

    @classmethod
    def of(cls, parts: Sequence[bytes]) -> "Prompt":
        """One of these parts."""
        text = parts[0] if len(parts) == 1 else b"".join(parts)
        return cls(text, 0, len(text), Hollow(text), ((0, len(text), 0),))

    @classmethod
    def within(cls, whole: bytes, hollow: Hollow, places: Sequence[tuple[int, int]]) -> "Prompt":
        """One that stands at these places of a hollow text, as it is in the whole one."""
        spans = [(hollow.in_whole(start), hollow.in_whole(end)) for start, end in places]
        if len(places) == 1:
            return cls(whole, *spans[0], hollow, ((*places[0], 0),))
        view = memoryview(whole)
        text = b"".join([view[start:end] for start, end in spans])
        moved, at = [], 0
        for (first, last), (start, end) in zip(places, spans, strict=True):
            moved.append((first, last, at - start))
            at += end - start
        return cls(text, 0, at, hollow, moved)

    def beginning(self, most: int) -> bytes:
        """Its first bytes, so many at most."""
        return self.text[self.start : min(self.end, self.start + most)]

    def before(self, mark: bytes, most: int) -> bytes:
        """The last bytes before the first such mark, a whole string with its quotes, so many at most; without one, its
        first bytes."""
        text = self.hollow.text
        for first, last, further in self.places:
            # Most prompts have none, and `rfind` sees that in a fifth of the time.
            if text.rfind(mark, first, last) < 0:
                continue
            at = text.find(mark, first, last)
            while at > first and text[at - 1] == _BACKSLASH:
                # Its quote is one that another string has within.
                at = text.find(mark, at + 1, last)
            if at >= 0:
                at = self.hollow.in_whole(at) + further
                return self.text[max(self.start, at - most) : at]
        return self.beginning(most)


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
    # Two of these multiples even, and most texts have no two such places in a row with a digit.
    return _DIGITS.search(text[half::half]) is not None and any(
        text[at - quarter : at + quarter].isdigit() for at in range(half, len(text), half)
    )


def may_nest_deeply(text: bytes, left: int = MAX_NESTING) -> bool:
    """Whether there are more brackets than that, in strings or not."""
    if len(text) <= _SHORT:
        return text.count(b"{") + text.count(b"[") > left
    # To search for a byte takes a twentieth of what it takes to count it, where there is none.
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
    """
    return at_once(nesting_in_steps(text))


def nesting_in_steps(text: bytes) -> Steps[int]:
    """`nesting`, a pass or a few at a time.

    All but the structure is dropped, and empty pairs are taken out layer by layer: every step is one pass in C. Few
    brackets cannot nest deeply, so ask only where it `may_nest_deeply`.
    """
    structure = text.replace(b"\\\\", b"")
    yield
    structure = structure.replace(b'\\"', b"")
    yield
    structure = structure.translate(_ONE_BRACKET, _NOT_STRUCTURE)
    yield
    structure = _STRING.sub(b"", structure.replace(b'""', b""))
    if len(structure) > 2 * MAX_CONTAINERS:
        raise TooManyContainers
    for depth in range(MAX_NESTING + 1):
        if not structure:
            return depth
        if _TOO_DEEP in structure:
            break
        if not depth % _LAYERS:
            yield
        structure = structure.replace(b"[]", b"")
    return MAX_NESTING + 1


def in_place(text: bytes, start: int, end: int, put: bytes) -> Parts:
    """The text, in parts, with `put` in place of what stands from `start` to `end`."""
    whole = memoryview(text)
    return [whole[:start], put, whole[end:]]


def asking_for_usage(text: bytes, options: tuple[int, int] | None) -> Parts:
    """The text, in parts, with `stream_options.include_usage` true, and no usage on each chunk.

    `options`: where `stream_options` begins and ends, if the text has one. Its other members stay as they are.
    """
    if options is None:
        brace = len(text) - len(text.lstrip()) + 1
        return [text[:brace] + b'"stream_options":{"include_usage":true},', memoryview(text)[brace:]]
    value = text[slice(*options)]
    kept = [b'"include_usage":true']
    if value.startswith(b"{"):
        kept += [
            value[member.start : member.value_end]
            for member in members(value)
            if member.key not in ("include_usage", "continuous_usage_stats")
        ]
    return in_place(text, *options, b"{" + b",".join(kept) + b"}")


def repeated(found: Iterable[Member], keys: frozenset[str]) -> str | None:
    """The first of `keys` that two members bear, or None."""
    seen = set()
    for member in found:
        if member.key in keys:
            if member.key in seen:
                return member.key
            seen.add(member.key)
    return None
