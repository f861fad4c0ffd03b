"""Heads of answers that came before: pure.

A pod says the same head before each answer of a kind, but for its length, and for the second in which it says it. What
llhttp made of the whole of it holds for one that has the same bytes everywhere else: so it is compared, and not parsed.
"""

import re

_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,9})(?=\r\n)", re.IGNORECASE)
_END = b"\r\n\r\n"
_MAX_HEAD_BYTES = 1_024

Shape = bytes
"""A head's bytes, with `%d` in place of the length: what makes the head of a body of any length."""


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
    return text[:start].replace(b"%", b"%%") + b"%d" + text[stop:].replace(b"%", b"%%")


def body_within(data: bytes, shape: Shape) -> bytes:
    """The body, if these bytes are an answer with such a head, whole, and nothing else; empty if they are not.

    What stands behind the head's end, wherever that is, is taken for the body, and the head that such a body would have
    is made: with that the bytes must begin.
    """
    body = data[data.find(_END) + len(_END) :]
    return body if data.startswith(shape % len(body)) else b""
