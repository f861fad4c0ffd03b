"""Heads that came before: pure.

A client says the same head with each request, but for its length and perhaps its key. What was decided on the whole
of it the first time holds for one that has the same bytes everywhere else: so it is compared, and not parsed. The key
is looked up each time, and is no part of what is kept.
"""

import re
from typing import NamedTuple

from gateway.pipeline.exchange import Head
from gateway.pipeline.operations import Operation

MAX_HEAD_BYTES = 2_048
"""Longer heads are parsed each time."""
_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,9})(?=\r\n)", re.IGNORECASE)
_KEY = re.compile(rb"\r\n(?:authorization: ?bearer |x-api-key: ?)([!-~]{1,512})(?=\r\n)", re.IGNORECASE)
_END = b"\r\n\r\n"
_CHANGES = (b"authorization", b"x-api-key", b"content-length")
_MAX_KEY_BYTES = 512
_MAX_DIGITS = 9


class KnownHead(NamedTuple):
    """A head's bytes around its key and its length, and what it says. Connections of one client share one."""

    first: bytes
    second: bytes
    third: bytes
    key_first: bool
    """Whether the key stands before the length."""
    head: Head
    """Without its key and its length."""
    operation: Operation


def known_head(data: bytes, key: bytes, head: Head, operation: Operation) -> KnownHead | None:
    """What is to be known of a proper head with which these bytes begin. None: it cannot be told apart from others by
    its bytes alone."""
    end = data.find(_END) + len(_END)
    if not len(_END) <= end <= MAX_HEAD_BYTES:
        return None
    text = data[:end]
    lengths, keys = _LENGTH.findall(text), _KEY.findall(text)
    if len(lengths) != 1 or keys != [key]:
        return None
    (length_at, length_to), (key_at, key_to) = _span(_LENGTH, text), _span(_KEY, text)
    key_first = key_at < length_at
    (a, b), (c, d) = sorted(((length_at, length_to), (key_at, key_to)))
    fields = {name: value for name, value in head.fields.items() if name not in _CHANGES}
    return KnownHead(text[:a], text[b:c], text[d:], key_first, head._replace(fields=fields, connection=None), operation)


def said_again(known: KnownHead, data: bytes) -> tuple[bytes, int, int] | None:
    """(its key, the length of its body, where that begins) if these bytes begin with the known head; None: they do
    not."""
    first, second, third, key_first, _, _ = known
    if not data.startswith(first):
        return None
    a = len(first)
    b = data.find(b"\r", a, a + _MAX_KEY_BYTES + 1)
    if b < 0 or not data.startswith(second, b):
        return None
    c = b + len(second)
    d = data.find(b"\r", c, c + _MAX_KEY_BYTES + 1)
    if d < 0 or not data.startswith(third, d):
        return None
    key, digits = (data[a:b], data[c:d]) if key_first else (data[c:d], data[a:b])
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        return None
    return key, int(digits), d + len(third)


def _span(pattern: re.Pattern[bytes], text: bytes) -> tuple[int, int]:
    found = pattern.search(text)
    assert found is not None  # noqa: S101  # it was found before
    return found.span(1)
