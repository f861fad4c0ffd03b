"""Heads that came before: pure.

A client says the same head with each request, but for its length. What was decided on the whole of it the first time
holds for one that has the same bytes everywhere else: so it is compared, and not parsed. Of its key the SHA-256 alone
is kept and compared, as of all keys: how long that takes tells nothing of a key.
"""

import re
from hashlib import sha256
from typing import NamedTuple

from gateway.pipeline.body_budget import Account
from gateway.pipeline.reception import Regular

MAX_HEAD_BYTES = 2_048
"""Longer heads are parsed each time."""
_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,9})(?=\r\n)", re.IGNORECASE)
_KEY = re.compile(rb"\r\n(?:authorization: ?bearer |x-api-key: ?)([!-~]{1,512})(?=\r\n)", re.IGNORECASE)
_END = b"\r\n\r\n"
_MAX_DIGITS = 9


class KnownHead(NamedTuple):
    """A head that may come again. Connections of one client share one."""

    first: bytes
    """Its bytes around its key and its length: before both, between them, and up to its end."""
    second: bytes
    third: bytes
    key_first: bool
    """Whether the key stands before the length."""
    length_at: int
    key_at: int
    """Where its key begins and ends, from the head's beginning; of one that stands behind the length, from its end."""
    key_to: int
    digest: bytes
    """Of its key."""
    regular: Regular
    """What was decided on it."""
    account: Account
    """Its caller's, of what bodies take."""


Sayings = dict[tuple[bytes, bytes, bytes, bytes], KnownHead]
"""Heads by their key's digest and their bytes: what one client says, and others with keys of their own."""


def known_head(data: bytes, regular: Regular, account: Account) -> KnownHead | None:
    """What is to be known of a proper head with which these bytes begin. None: it cannot be told apart from others by
    its bytes alone."""
    end = data.find(_END) + len(_END)
    if not len(_END) <= end <= MAX_HEAD_BYTES:
        return None
    text = data[:end]
    lengths, keys = list(_LENGTH.finditer(text)), list(_KEY.finditer(text))
    if len(lengths) != 1 or len(keys) != 1 or regular.keys.tenant_of(keys[0][1]) is not regular.tenant:
        return None
    (at, to), (key_at, key_to) = lengths[0].span(1), keys[0].span(1)
    whose = sha256(keys[0][1]).digest(), regular, account
    if key_at < at:
        return KnownHead(text[:key_at], text[key_to:at], text[to:], True, at, key_at, key_to, *whose)
    return KnownHead(text[:at], text[to:key_at], text[key_to:], False, at, key_at - to, key_to - to, *whose)


def said_again(sayings: Sayings, last: KnownHead, data: bytes) -> tuple[Regular, Account, int, int] | None:
    """(what was decided on it, its caller's account, the length of its body, where that begins) if these bytes begin
    with the last head, or with one of the sayings that differs from it in its key alone. None: they do not."""
    first, second, third, key_first, length_at, key_at, key_to, digest, regular, account = last
    to = data.find(b"\r", length_at, length_at + _MAX_DIGITS + 1)
    digits = data[length_at:to]
    if key_first:
        # Without a `to` there is no room for what stands there.
        alike = data.startswith(first) and data.startswith(second, key_to) and data.startswith(third, to)
        body_at = to + len(third)
    else:
        alike = data.startswith(first) and data.startswith(second, to) and data.startswith(third, to + key_to)
        key_at += to
        key_to += to
        body_at = key_to + len(third)
    if not alike or not digits.isdigit():
        return None
    said = sha256(data[key_at:key_to]).digest()
    if said != digest:
        other = sayings.get((said, first, second, third))
        if other is None:
            return None
        regular, account = other.regular, other.account
    return regular, account, int(digits), body_at
