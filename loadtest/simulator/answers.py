"""What a model says: words drawn from a vocabulary by a hash of (seed, prompt, choice, position).

One word is one token and one event. The same seed and prompt give the same answer on every pod, so a test can
compare a retried answer with an undisturbed one. 256 words, so that one byte of an extendable hash (SHAKE) is
one draw and a longer answer begins with the shorter one. Some words are there to hurt: other scripts, an
emoji beyond the basic plane, a quotation mark, a backslash, a newline, `[DONE]` and `data:` as plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import shake_128

import msgspec
import orjson

_PLAIN = """ the of and to in is was that for on as with by at from it an are this which be or had not first
one their its new after but who they have two her she been other when time during there into all more years
over about up world only state some most city three between later would out where may known year many under
used while these then such however being can through people since before national until made both area several
part called well could including second so against each high number school family work life river early small
long large work's name group four often same system today's company water house found music local land film
book team game light heart road stone bridge garden winter summer spring autumn morning evening window letter
paper story voice hand eye door street market field forest mountain island harbour ship train station engine
wheel clock glass silver gold iron copper bread salt sugar apple orange green blue red white black yellow
quiet loud quick slow bright dark warm cold deep wide narrow simple clear open closed ready empty full young
old good better best little big great apart around across along behind below beside beyond near far always
never often soon today tomorrow yesterday north south east west seven eight nine ten twelve hundred thousand
million half double single total question answer number reason result change order point place part side end
begin
"""
_HARD = [
    "naïve",
    "café",
    "größe",
    "東京",
    "привет",
    "señor",
    "ελπίδα",
    "שלום",
    "कमल",
    "🙂",
    '"so"',
    "C:\\dir",
    "data:",
]
_UNSPACED = [",", ".", ";", "\n", "!", "?", " [DONE]", "—"]


def _vocabulary() -> list[str]:
    words = list(dict.fromkeys(_PLAIN.split()))[: 256 - len(_HARD) - len(_UNSPACED)]
    return [" " + word for word in words + _HARD] + _UNSPACED


VOCABULARY: tuple[str, ...] = tuple(_vocabulary())
# As the inside of a JSON string, since that is all that is ever sent.
_WORDS = tuple(orjson.dumps(word)[1:-1] for word in VOCABULARY)
_FIRST_WORDS = tuple(orjson.dumps(word.lstrip(" "))[1:-1] for word in VOCABULARY)


class Answer(msgspec.Struct, frozen=True):
    """One choice's answer: a piece per token, each the inside of a JSON string in UTF-8.

    `finish_reason` is the engine's; `told_as` what the client hears instead.
    """

    pieces: list[bytes]
    finish_reason: str
    stop_reason: str | None = None
    told_as: str | None = None


def draw_answer(
    *,
    seed: int,
    prompt_key: bytes,
    choice: int,
    max_tokens: int,
    natural_tokens: tuple[int, int] | None,
    stop: Sequence[str] = (),
) -> Answer:
    """The answer to a prompt, cut at `max_tokens`, at its natural end, or at the first stop string. A natural end
    is a token too, one without text.

    `natural_tokens` is the range natural lengths are drawn from; None: there is no natural end
    (`ignore_eos`).
    """
    source = shake_128(b"%d/%d/%b" % (seed, choice, prompt_key))
    length, finish_reason = max_tokens, "length"
    if natural_tokens is not None:
        shortest, longest = natural_tokens
        drawn = shortest + int.from_bytes(source.digest(8), "little") % (longest - shortest + 1)
        if drawn <= max_tokens:
            length, finish_reason = drawn, "stop"
    # The first eight bytes chose the length; words come after them, so that both are independent.
    draws = source.digest(8 + length)[8:]
    if stop:
        return _stopped([VOCABULARY[draw] for draw in draws], stop, finish_reason)
    pieces = [_WORDS[draw] for draw in draws]
    pieces[0] = _FIRST_WORDS[draws[0]]
    if finish_reason == "stop":
        pieces[-1] = b""
    return Answer(pieces, finish_reason)


def _stopped(words: list[str], stop: Sequence[str], finish_reason: str) -> Answer:
    """Cut before the stop string that ends first; the token that completes it is generated, and counted."""
    words[0] = words[0].lstrip(" ")
    if finish_reason == "stop":
        words[-1] = ""
    text = "".join(words)
    hits = [(at + len(mark), at, mark) for mark in stop if mark and (at := text.find(mark)) >= 0]
    if not hits:
        return Answer([_inside(word) for word in words], finish_reason)
    end, at, mark = min(hits)
    pieces = []
    position = 0
    for word in words:
        pieces.append(_inside(word[: max(at - position, 0)]))
        position += len(word)
        if position >= end:
            break
    return Answer(pieces, "stop", mark)


def _inside(text: str) -> bytes:
    return orjson.dumps(text)[1:-1]
