"""Heads of answers that came before: pure.

A pod says the same head before each answer of a kind, but for its length, and for the second in which it says it. What
llhttp made of the whole of it holds for one that has the same bytes everywhere else: so it is compared, and not parsed.
"""

import re
from typing import NamedTuple

_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,9})(?=\r\n)", re.IGNORECASE)
_END = b"\r\n\r\n"
_MAX_HEAD_BYTES = 1_024
_MAX_DIGITS = 9


class Shape(NamedTuple):
    """A head's bytes before its length and behind it."""

    first: bytes
    last: bytes


def shape_of(data: bytes) -> Shape | None:
    """Of a proper head with which these bytes begin, and which says the length of its body; None: of another one."""
    end = data.find(_END) + len(_END)
    if not len(_END) <= end <= _MAX_HEAD_BYTES:
        return None
    text = data[:end]
    lengths = list(_LENGTH.finditer(text))
    if len(lengths) != 1:
        return None
    start, stop = lengths[0].span(1)
    return Shape(text[:start], text[stop:])


def body_within(data: bytes, shape: Shape) -> bytes:
    """The body, if these bytes are an answer with such a head, whole, and nothing else; empty if they are not."""
    first, last = shape
    if not data.startswith(first):
        return b""
    start = len(first)
    stop = data.find(b"\r", start, start + _MAX_DIGITS + 1)
    digits = data[start:stop]
    if stop < 0 or not digits.isdigit() or not data.startswith(last, stop):
        return b""
    body = data[stop + len(last) :]
    return body if len(body) == int(digits) else b""
