"""Bodies that are like others but for their messages.

An application says the same with each request beside its messages: a model, a temperature, how many tokens at most.
What was decided on all that holds for each further body that has the same bytes around its messages, so these are
compared, and not looked at. The messages are read each time. Only plain ones are: each is a role and a text, so they
hold nothing that is checked but that they are JSON. All other bodies are looked at the long way (see `intake`).

A frame is what stands before the first `[` of a body, and behind its last `]`. It is noted when it proved to be a body
of its own with an empty list between, and that list its `messages`. So whatever JSON list stands there in another body,
that is valid as well, has the same members, each of them once, and differs in this value alone.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from gateway.core.call import Call
from gateway.core.caller import ANONYMOUS
from gateway.core.errors import PoolgateError
from gateway.core.made import maker
from gateway.pipeline.body import Parts, places_of
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
"""That are known at a time. As many are counted."""
MAX_SIDE_BYTES = 512
"""Of what stands before the messages, and of what stands behind them: all of it is kept."""
OFTEN = 2
"""So often a frame comes before it is noted."""
UNPLAIN = 8
"""So many times more, if it came with messages that are not plain."""
_QUOTE = ord('"')
_SHORTEST = len(b'{"role":"","content":},')
_BEFORE = re.compile(rb'[\[,]\s*+\{\s*+(?:"role"\s*+:\s*+"[^"\\]*+"\s*+,\s*+)?"content"\s*+:\s*+')
_BEHIND = re.compile(rb'\s*+(?:,\s*+"role"\s*+:\s*+"[^"\\]*+"\s*+)?\}\s*+')
"""What stands around a message's content, from the end of the last one."""


class _Short(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A message of a small body. That what it says is UTF-8 as well is seen when a text is made of it."""

    role: str
    content: str


class _Long(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A message of a large one, of which no text is made."""

    role: str
    content: msgspec.Raw


class _Frame(NamedTuple):
    """What is known of bodies with one frame."""

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
    model_at: tuple[int, int] | None
    """Where in what is sent the model's name stands, if that is before the messages."""


_short = msgspec.json.Decoder(list[_Short]).decode
_long = msgspec.json.Decoder(at_most(64, _Long)).decode
_look = maker(Look)
_call = maker(Call)
_plain = maker(Plain)


_Sides = tuple[bytes, bytes, bytes]
"""The path asked for, and what stands before the messages and behind them."""


class Familiar:
    """One gateway's frames. They hold under the caps that they were noted with: where those change, all are dropped."""

    def __init__(self) -> None:
        self._caps: Caps | None = None
        self._frames: dict[_Sides, _Frame] = {}
        self._times: dict[int, int] = {}
        """How often each came, by its hash: nothing is kept of what never becomes a frame. Many never come again, as
        those that hold a seed, or a user's name."""

    def told(self, body: bytes, operation: Operation, caps: Caps) -> tuple[Look, Call] | None:
        """What `look` and `call_of` say of a body whose frame is known. None: only they can tell."""
        start, end, length = body.find(b"["), body.rfind(b"]") + 1, len(body)
        if start < 0 or start > MAX_SIDE_BYTES or length - end > MAX_SIDE_BYTES or caps is not self._caps:
            return None
        frame = self._frames.get((operation.path, body[:start], body[end:]))
        if frame is None:
            return None
        model, stream, wants_usage, choices, max_tokens, members, opening, opened, model_at = frame
        try:
            messages = _short(body[start:end]) if length <= WORTH_CUTTING_BYTES else _long_ones(body, start, end)
        except UNREADABLE:
            # Those of this frame may never be plain. To find that out again each time would cost as much as to know it.
            sides = operation.path, body[:start], body[end:]
            del self._frames[sides]
            self._times[hash(sides)] = -UNPLAIN
            return None
        tokens = length // BYTES_PER_TOKEN
        parts: Parts = [body]
        if opening:
            parts = [opening, memoryview(body)[opened:]]
            length += len(opening) - opened
        return (
            _look((body, members, model, stream, False, None, NO_PLACES, _plain((start, end, messages)))),
            _call((model, stream, wants_usage, choices, parts, length, JSON, tokens, max_tokens, False, model_at)),
        )

    def note(self, body: bytes, operation: Operation, caps: Caps) -> None:
        """A body was found to be in order, the long way."""
        start, end = body.find(b"["), body.rfind(b"]") + 1
        if (
            start < 0
            or max(start, len(body) - end) > MAX_SIDE_BYTES
            or (operation is not CHAT and operation is not MESSAGES)
        ):
            return
        if caps is not self._caps:
            self._drop_all()
            self._caps = caps
        sides = operation.path, body[:start], body[end:]
        seen = hash(sides)
        times = self._times.get(seen, 0) + 1
        if times == 1 and len(self._times) >= MAX_FRAMES:
            self._times.clear()
        self._times[seen] = times
        if times == OFTEN and (frame := _frame_of(b"[]".join(sides[1:]), operation, caps)) is not None:
            if len(self._frames) >= MAX_FRAMES:
                self._drop_all()
            self._frames[sides] = frame

    def _drop_all(self) -> None:
        self._frames.clear()
        self._times.clear()


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
    members = dict(seen.members)
    # There is no other list: none begins before this one, and none ends behind it.
    if bytes(members.pop("messages", b"")) != b"[]" or not members.keys().isdisjoint(PROMPT_FIELDS):
        return None
    first, *rest = call.body
    opening, opened = (bytes(first), len(empty) - len(rest[0])) if rest else (b"", 0)
    start, end = (place + len(opening) - opened for place in places_of(empty, seen.members)["model"])
    return _Frame(
        call.model,
        call.stream,
        call.wants_usage,
        call.choices,
        call.max_tokens,
        members,
        opening,
        opened,
        (start, end) if end <= b"".join(call.body).find(b"[") else None,
    )


def _long_ones(body: bytes, start: int, end: int) -> Sequence[_Long]:
    """The messages of a large body, if all that they say is text. Raises one of `UNREADABLE`."""
    if not body.isascii():
        str(body, "utf-8")
    messages: Sequence[_Long] = entries_of(_long(memoryview(body)[start:end]))
    if {memoryview(each.content)[0] for each in messages} - {_QUOTE} or _says_more(body, start, end, messages):
        raise msgspec.ValidationError
    return messages


def _says_more(body: bytes, start: int, end: int, messages: Sequence[_Long]) -> bool:
    """Whether there may be more in these messages than what was read of them: a content that another one follows in the
    same message is not looked at, so it may nest as deep as it likes.

    Of those without a space between them the length says that there is not.
    """
    said = sum([len(each.role) + len(each.content) for each in messages])
    if not messages or end - start == said + _SHORTEST * len(messages) + 1:
        return False
    at = start
    for each in messages:
        before = _BEFORE.match(body, at)
        if before is None or not body.startswith(each.content, before.end()):
            return True
        behind = _BEHIND.match(body, before.end() + len(each.content))
        if behind is None:
            return True
        at = behind.end()
    return at != end - 1
