"""Probabilities and ids of tokens, made up from the tokens themselves, in the shapes vLLM tells them in.

A prompt's token ids are those of `/tokenize`, so they can be sent back as a prompt. An answer's are numbers
below the size of a vocabulary, the same for the same text.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import orjson

from loadtest.simulator.answers import VOCABULARY
from loadtest.simulator.composing import ComposedAnswer, Part, Token
from loadtest.simulator.prompts import Prompt

_VOCABULARY_SIZE = 49_152
_SPECIAL_IDS = 100
_END_ID = 2
Alternatives = list[tuple[str, float]]


def token_ids(tokens: tuple[Token, ...]) -> bytes:
    return orjson.dumps([_END_ID if token.part is Part.END else _id(token.text) for token in tokens])


def prompt_token_ids(prompt: Prompt) -> bytes:
    return orjson.dumps(prompt.token_ids)


def prompt_logprobs(prompt: Prompt, count: int) -> bytes:
    """For each token but the first: itself, and the likeliest ones if it is not among them."""
    told: list[dict[str, Any] | None] = [None]
    tokens = list(zip(prompt.token_ids, prompt.token_texts, strict=True))
    for position, (token_id, text) in enumerate(tokens[1:], 1):
        rank = 1 + crc32(text.encode()) % 40
        own = {"logprob": _logprob(text, position) - rank / 8, "rank": rank, "decoded_token": text}
        entry: dict[str, Any] = {str(token_id): own}
        for place, (word, logprob) in enumerate(_others(text, position, max(count, 0)), 1):
            if place != rank:
                entry.setdefault(str(_id(word)), {"logprob": logprob, "rank": place, "decoded_token": word})
        told.append(entry)
    return orjson.dumps(told)


def chat_logprobs(answer: ComposedAnswer, start: int, end: int) -> bytes:
    """`{"content": […]}` of the tokens from `start` to before `end`; null if none were asked for."""
    count = answer.wishes.logprobs
    if count is None or answer.wishes.hides_reasoning:
        return b"null"
    entries = []
    for position in range(start, end):
        text = answer.tokens[position].text
        own = _logprob(text, position)
        top = [(text, own), *_others(text, position, count - 1)][:count]
        entries.append({**_chat_entry(text, own), "top_logprobs": [_chat_entry(*each) for each in top]})
    return orjson.dumps({"content": entries})


def _chat_entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def completion_logprobs(answer: ComposedAnswer, prompt: Prompt, start: int, end: int, *, echo: bool) -> bytes:
    """The four lists, with those of the prompt before them if it is echoed."""
    count = answer.wishes.logprobs
    if count is None:
        return b"null"
    offset = sum(len(token.text) for token in answer.tokens[:start])
    if answer.wishes.echo and not echo:
        offset += sum(map(len, prompt.token_texts))
    offsets: list[int] = []
    own_logprobs: list[float | None] = []
    texts: list[str] = []
    tops: list[dict[str, float] | None] = []
    for position, text in enumerate(prompt.token_texts if echo else ()):
        own = _logprob(text, position)
        offsets.append(offset)
        offset += len(text)
        texts.append(text)
        own_logprobs.append(own if position else None)
        tops.append({text: own, **dict(_others(text, position, count))} if position else None)
    for position in range(start, end):
        token = answer.tokens[position]
        own = _logprob(token.text, position)
        offsets.append(offset)
        offset += len(token.text)
        texts.append(token.text)
        own_logprobs.append(own)
        tops.append({token.text: own, **dict(_others(token.text, position, count - 1))})
    return orjson.dumps({"text_offset": offsets, "token_logprobs": own_logprobs, "tokens": texts, "top_logprobs": tops})


def _id(text: str) -> int:
    return _SPECIAL_IDS + crc32(text.encode()) % (_VOCABULARY_SIZE - _SPECIAL_IDS)


def _logprob(text: str, position: int) -> float:
    return -(crc32(b"%d/%b" % (position, text.encode())) % 2**17) / 2**17


def _others(text: str, position: int, count: int) -> Alternatives:
    """Words that might have stood there, each less likely than the one before."""
    start = crc32(text.encode()) + position
    words = [VOCABULARY[(start + 7 * step) % len(VOCABULARY)] for step in range(count + 1)]
    return [(word, -1.5 - place / 4) for place, word in enumerate(word for word in words if word != text)][:count]
