"""Answers that are more than words: reasoning first, a call of a tool, JSON, probabilities.

Such an answer is a list of tokens, each with the delta it becomes in a stream, as vLLM's parsers for hermes
and deepseek_r1 cut them: marks (`<think>`, `</tool_call>`) become no event at all, a call's name comes in one
event and its arguments in pieces, and the token that ends the turn has an empty delta.
"""

from __future__ import annotations

import enum
import json
import re
from hashlib import blake2b
from random import Random

import msgspec
import orjson

from loadtest.simulator.answers import Answer, draw_answer
from loadtest.simulator.instances import Unsatisfiable, text_for
from loadtest.simulator.patterns import matching
from loadtest.simulator.wishes import CallChoice, Structure, StructureKind, Tool, Wishes

END_OF_TURN = "<|im_end|>"
END_OF_THOUGHT = "</think>"
START_OF_CALL = "<tool_call>"
END_OF_CALL = "</tool_call>"
_NO_DELTA = b"{}"
_EMPTY = b'{"content":""}'
# Cut as a tokenizer of English might: a word with its space, up to three digits, a run of signs.
_PIECES = re.compile(r" ?[A-Za-z]+|\d{1,3}|[^\sA-Za-z\d]+|\s+")


class Part(enum.Enum):
    REASONING = enum.auto()
    CONTENT = enum.auto()
    CALL = enum.auto()
    MARK = enum.auto()
    END = enum.auto()


class Token(msgspec.Struct, frozen=True):
    """`delta` is JSON; None if the token alone makes no event."""

    text: str
    part: Part
    delta: bytes | None


class Message(msgspec.Struct, frozen=True):
    """A chat's whole answer. `calls` are the JSON objects of complete calls."""

    content: str | None
    reasoning: str | None
    calls: tuple[bytes, ...]


class ComposedAnswer(Answer, frozen=True, kw_only=True):
    """A token per piece."""

    tokens: tuple[Token, ...]
    wishes: Wishes
    message: Message

    def reasoning_tokens(self, produced: int) -> int:
        return sum(1 for token in self.tokens[:produced] if token.part is Part.REASONING)


class _Call(msgspec.Struct, frozen=True):
    """A call among the tokens; `end` is the place behind its last one."""

    id: str
    name: str
    arguments: str
    end: int


def compose(
    wishes: Wishes,
    *,
    seed: int,
    prompt_key: bytes,
    choice: int,
    max_tokens: int,
    natural_tokens: tuple[int, int] | None,
    stop: tuple[str, ...],
    parses: bool,
    calls_wanted: int,
) -> ComposedAnswer:
    """As `draw_answer`; `parses` says whether a parser looks at what the model says."""
    origin = b"%d/%d/%b" % (seed, choice, prompt_key)
    chance = Random(blake2b(origin, digest_size=8).digest())
    tokens = _thoughts(seed, prompt_key, choice, chance, hidden=wishes.hides_reasoning) if wishes.reasons else []
    left = max_tokens - len(tokens)
    end = Token(END_OF_TURN, Part.END, _NO_DELTA if parses else _EMPTY)
    calls: list[_Call] = []
    stop_reason = None
    if wishes.tools:
        count = 1 if wishes.one_call else calls_wanted
        first = chance.randrange(len(wishes.tools))  # the others follow in turn
        for index in range(count):
            tool = wishes.tools[(first + index) % len(wishes.tools)]
            calls.append(_add_call(tokens, tool, index, origin, chance))
        tokens.append(end)
    elif wishes.structure is not None:
        tokens += [_content(piece, wishes) for piece in _PIECES.findall(_structured(wishes.structure, chance))]
        tokens.append(end)
    elif left > 0:
        words = draw_answer(
            seed=seed, prompt_key=prompt_key, choice=choice, max_tokens=left, natural_tokens=natural_tokens, stop=stop
        )
        stop_reason = words.stop_reason
        tokens += [_content(_text(piece), wishes) for piece in words.pieces]
        if words.finish_reason == "stop" and (stop_reason is None or parses):
            # The end of a turn has no text, and what is cut off for a stop string has none left.
            tokens[-1] = end if stop_reason is None else _without_empty_text(tokens[-1])
    ended = len(tokens) <= max_tokens and (tokens[-1] is end or stop_reason is not None)
    tokens = tokens[:max_tokens]
    message = _message(tokens, [call for call in calls if call.end <= max_tokens], wishes)
    called = ended and bool(message.calls) and wishes.call_choice is not CallChoice.NAMED
    return ComposedAnswer(
        pieces=[b"" if token is end else orjson.dumps(token.text)[1:-1] for token in tokens],
        finish_reason="stop" if ended else "length",
        stop_reason=stop_reason,
        told_as="tool_calls" if called else None,
        tokens=tuple(tokens),
        wishes=wishes,
        message=message,
    )


def cut_off(answer: Answer, produced: int) -> Answer:
    """What there is of an answer that the engine was told to end."""
    cut = msgspec.structs.replace(
        answer, pieces=answer.pieces[:produced], finish_reason="abort", stop_reason=None, told_as=None
    )
    if not isinstance(cut, ComposedAnswer):
        return cut
    tokens = cut.tokens[:produced]
    return msgspec.structs.replace(cut, tokens=tokens, message=_message(list(tokens), [], cut.wishes))


def _text(piece: bytes) -> str:
    text: str = orjson.loads(b'"%b"' % piece)
    return text


def _without_empty_text(token: Token) -> Token:
    return token if token.text else msgspec.structs.replace(token, delta=_NO_DELTA)


def _thoughts(seed: int, prompt_key: bytes, choice: int, chance: Random, *, hidden: bool) -> list[Token]:
    key = b"reasoning/" + prompt_key
    length = chance.randint(6, 20)
    words = draw_answer(seed=seed, prompt_key=key, choice=choice, max_tokens=length, natural_tokens=None)
    texts = map(_text, words.pieces)
    thoughts = [Token(text, Part.REASONING, None if hidden else _delta("reasoning", text)) for text in texts]
    return [Token("<think>", Part.MARK, None), *thoughts, Token(END_OF_THOUGHT, Part.MARK, None)]


def _content(text: str, wishes: Wishes) -> Token:
    if wishes.hides_reasoning:
        return Token(text, Part.CONTENT, b'{"content":%b,"reasoning":null}' % orjson.dumps(text))
    return Token(text, Part.CONTENT, _delta("content", text))


def _delta(key: str, text: str) -> bytes:
    return b'{"%b":%b}' % (key.encode(), orjson.dumps(text))


def _add_call(tokens: list[Token], tool: Tool, index: int, origin: bytes, chance: Random) -> _Call:
    call_id = "chatcmpl-tool-" + blake2b(b"%b/%d" % (origin, index), digest_size=8).hexdigest()
    named = {"id": call_id, "type": "function", "index": index, "function": {"name": tool.name}}
    head = f'{{"name": {json.dumps(tool.name)}, "arguments": '
    marks = [START_OF_CALL, "\n", *_PIECES.findall(head)]
    tokens += [Token(mark, Part.MARK, None) for mark in marks[:-1]]
    tokens.append(Token(marks[-1], Part.MARK, _call_delta(named)))
    arguments = _arguments(tool, chance)
    for piece in _PIECES.findall(arguments):
        tokens.append(Token(piece, Part.CALL, _call_delta({"index": index, "function": {"arguments": piece}})))
    tokens += [Token(mark, Part.MARK, None) for mark in ("}", "\n", END_OF_CALL)]
    return _Call(call_id, tool.name, arguments, len(tokens))


def _call_delta(call: dict[str, object]) -> bytes:
    return b'{"content":null,"tool_calls":[%b]}' % orjson.dumps(call)


def _arguments(tool: Tool, chance: Random) -> str:
    """As vLLM without `strict` promises nothing, a schema nothing fits gets an empty object."""
    if not isinstance(tool.parameters, dict):
        return "{}"
    try:
        return text_for({"type": "object", **tool.parameters}, chance)
    except Unsatisfiable:
        return "{}"


def _structured(structure: Structure, chance: Random) -> str:
    if structure.kind is StructureKind.CHOICE:
        return str(chance.choice(structure.value))
    if structure.kind is StructureKind.REGEX:
        return matching(structure.value, chance)
    return text_for(structure.value, chance)


def _message(tokens: list[Token], calls: list[_Call], wishes: Wishes) -> Message:
    """What the parsers make of the whole text. To them a call that was cut off is just text."""
    reasoning = "".join(token.text for token in tokens if token.part is Part.REASONING)
    told = [
        orjson.dumps({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
        for call in calls
    ]
    content: str | None = "" if calls else "".join(token.text for token in _behind_thoughts(tokens, wishes))
    forced = bool(wishes.tools) and wishes.call_choice is not CallChoice.AUTO
    if not content and not forced and (calls or wishes.parses_reasoning):
        content = None
    return Message(content, None if wishes.hides_reasoning else reasoning or None, tuple(told))


def _behind_thoughts(tokens: list[Token], wishes: Wishes) -> list[Token]:
    texts = [token.text for token in tokens]
    if not wishes.reasons:
        start = 0
    elif END_OF_THOUGHT in texts:
        start = texts.index(END_OF_THOUGHT) + 1
    else:
        return []
    return [token for token in tokens[start:] if token.part is not Part.END]
