"""Bodies that are like others but for their messages: pure.

An application says the same with each request beside its messages: a model, a temperature, how many tokens at most.
What was decided on all that holds for each further body that has the same bytes around its messages, so these are
compared, and not looked at. The messages are read each time. Only plain ones are: each is a role and a text, so they
hold nothing that is checked but that they are JSON. All other bodies are looked at the long way (see `intake`).

A frame is what stands before the first `[` of a body, and behind its last `]`. It is noted when it proved to be a body
of its own with an empty list between, and that list its `messages`. So whatever JSON list stands there in another body,
that is valid as well, has the same members, each of them once, and differs in this value alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from gateway.core.call import Call
from gateway.core.caller import ANONYMOUS
from gateway.core.errors import PoolgateError
from gateway.core.made import maker
from gateway.pipeline.body import Parts
from gateway.pipeline.caps import Caps
from gateway.pipeline.intake import (
    NO_PLACES,
    PROMPT_FIELDS,
    UNREADABLE,
    WORTH_CUTTING_BYTES,
    Look,
    Plain,
    at_most,
    call_of,
    entries_of,
    look,
)
from gateway.pipeline.operations import CHAT, JSON, MESSAGES, Operation
from gateway.upstream.usage import BYTES_PER_TOKEN

MAX_FRAMES = 256
MAX_SIDE_BYTES = 512
"""Of what stands on either side of the messages."""
_QUOTE = ord('"')


class _Short(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A message of a small body. That what it says is UTF-8 as well is seen when a text is made of it."""

    role: str
    content: str


class _Long(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A message of a large one, of which no text is made."""

    role: str
    content: msgspec.Raw


class _Frame(NamedTuple):
    """What is known of bodies with one frame. It holds for one operation, and with these caps."""

    operation: Operation
    caps: Caps
    model: str
    stream: bool
    wants_usage: bool
    choices: int | None
    max_tokens: int | None
    members: dict[str, msgspec.Raw]
    """All but the messages."""
    opening: bytes
    """What is sent in place of the body's first bytes: a wish for its usage. Empty: the body is sent as it came."""
    opened: int
    """How many bytes these are."""


_short = msgspec.json.Decoder(list[_Short]).decode
_long = msgspec.json.Decoder(at_most(64, _Long)).decode
_look = maker(Look)
_call = maker(Call)
_plain = maker(Plain)


class Familiar:
    """One gateway's frames."""

    def __init__(self) -> None:
        self._frames: dict[tuple[bytes, bytes], _Frame] = {}
        self._once: set[tuple[bytes, bytes]] = set()
        """Those that came once. Many never come again: who sends a seed, or a user's name."""

    def told(self, body: bytes, operation: Operation, caps: Caps) -> tuple[Look, Call] | None:
        """What `look` and `call_of` say of a body whose frame is known. None: only they can tell."""
        start, end = body.find(b"[", 0, MAX_SIDE_BYTES), body.rfind(b"]", -MAX_SIDE_BYTES) + 1
        if start < 0 or not end or (frame := self._frames.get((body[:start], body[end:]))) is None:
            return None
        whose, under, model, stream, wants_usage, choices, max_tokens, members, opening, opened = frame
        if whose is not operation or under is not caps:
            return None
        length = len(body)
        try:
            messages = _short(body[start:end]) if length <= WORTH_CUTTING_BYTES else _long_ones(body, start, end)
        except UNREADABLE:
            return None
        tokens = length // BYTES_PER_TOKEN
        parts: Parts = [body]
        if opening:
            parts = [opening, memoryview(body)[opened:]]
            length += len(opening) - opened
        return (
            _look((body, members, model, stream, False, None, NO_PLACES, _plain((start, end, messages)))),
            _call((model, stream, wants_usage, choices, parts, length, JSON, tokens, max_tokens, False)),
        )

    def note(self, body: bytes, operation: Operation, caps: Caps) -> None:
        """A body was found to be in order, the long way."""
        start, end = body.find(b"[", 0, MAX_SIDE_BYTES), body.rfind(b"]", -MAX_SIDE_BYTES) + 1
        if start < 0 or not end or (operation is not CHAT and operation is not MESSAGES):
            return
        sides = body[:start], body[end:]
        if sides not in self._once:
            if len(self._once) >= MAX_FRAMES:
                self._once.clear()
            self._once.add(sides)
        elif (frame := _frame_of(b"[]".join(sides), operation, caps)) is not None:
            if len(self._frames) >= MAX_FRAMES:
                self._frames.clear()
            self._frames[sides] = frame


def _frame_of(empty: bytes, operation: Operation, caps: Caps) -> _Frame | None:
    """What a body without any message says, to anybody. None: more may have to be looked at where it has some."""
    try:
        seen = look(empty, operation)
        call = call_of(seen, operation, ANONYMOUS, caps)
    except PoolgateError:
        return None
    if seen.may_name_urls or len(call.body) > 2:
        # Usage is asked for beside other options, if there is a third part.
        return None
    members = seen.members
    # There is no other list: none begins before this one, and none ends behind it.
    if bytes(members.pop("messages", b"")) != b"[]" or not members.keys().isdisjoint(PROMPT_FIELDS):
        return None
    first, *rest = call.body
    return _Frame(
        operation,
        caps,
        call.model,
        call.stream,
        call.wants_usage,
        call.choices,
        call.max_tokens,
        members,
        bytes(first) if rest else b"",
        len(empty) - len(rest[0]) if rest else 0,
    )


def _long_ones(body: bytes, start: int, end: int) -> Sequence[_Long]:
    """The messages of a large body, if all that they say is text. Raises one of `UNREADABLE`."""
    if not body.isascii():
        str(body, "utf-8")
    messages: Sequence[_Long] = entries_of(_long(memoryview(body)[start:end]))
    if {memoryview(each.content)[0] for each in messages} - {_QUOTE}:
        raise msgspec.ValidationError
    return messages
