"""What is wrong with a head that llhttp let through: pure.

A target in absolute form (`http://host/path`), which RFC 9112 has servers accept, is accepted as one that names no
route, and so is `*`: paths are compared raw, and no client writes them so but to a proxy, which we are not.
"""

import re
from collections import Counter
from collections.abc import Sequence

from gateway.core.errors import HeadersTooLarge, InvalidRequest, PoolgateError, UriTooLong
from gateway.edge.bounds import Bounds

NO_NAMES: frozenset[bytes] = frozenset()

_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?")
"""RFC 3986's host and port without what no name in DNS has: percent signs and sub-delimiters, of which the comma would
make one Host of two."""

UPGRADE = InvalidRequest("this server does not upgrade connections: set the client to HTTP/1.1")
HEAD_TOO_LARGE = HeadersTooLarge("the request's head is larger than 32 KiB")
URL_TOO_LONG = UriTooLong("the request's URL is longer than 8 KiB")
NOT_HTTP = InvalidRequest("the request is not valid HTTP/1.1")
_ONLY_CHUNKED = InvalidRequest("the only transfer coding that is read is chunked")
_ONE_HOST = InvalidRequest("name one Host, as NAME or NAME:PORT")


def is_host(value: bytes) -> bool:
    """Whether this is a Host: a name or an address, and perhaps a port."""
    return _HOST.fullmatch(value) is not None


def repeated_names(headers: Sequence[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The names that stand in a head more than once."""
    counts = Counter(name for name, _ in headers)
    return frozenset(name for name, count in counts.items() if count > 1)


def too_much(url: bytes, headers: Sequence[tuple[bytes, bytes]], bounds: Bounds) -> PoolgateError | None:
    """Which bound a whole head passes."""
    if len(url) > bounds.max_url_bytes:
        return URL_TOO_LONG
    if len(headers) > bounds.max_header_count:
        return HeadersTooLarge(f"the request has more than {bounds.max_header_count} headers")
    sizes = [len(name) + len(value) + 4 for name, value in headers]
    if len(url) + sum(sizes) > bounds.max_head_bytes:
        return HEAD_TOO_LARGE
    if sizes and max(sizes) > bounds.max_line_bytes:
        return HeadersTooLarge("a header of the request is longer than 8 KiB")
    return None


def ill_framed(version: str, fields: dict[bytes, bytes], repeated: frozenset[bytes]) -> PoolgateError | None:
    """What makes a head one of another protocol, or its body one that can be read in two ways."""
    if version != "1.1" and version != "1.0":
        return InvalidRequest("speak HTTP/1.1")
    host = fields.get(b"host")
    if b"host" in repeated or (host is None and version == "1.1") or (host is not None and not is_host(host)):
        return _ONE_HOST
    coding = fields.get(b"transfer-encoding")
    if coding is None:
        return None
    if version == "1.0" or b"transfer-encoding" in repeated or coding.strip().lower() != b"chunked":
        return _ONLY_CHUNKED
    return None
