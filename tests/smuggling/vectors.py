"""Requests with two meanings, or with a broken one (RFC 9110 and 9112; the names in brackets are sections)."""

from enum import StrEnum
from typing import NamedTuple

KEY = b"sk-pg_" + b"K" * 8 + b"_" + b"k" * 38
"""As long as a key is: the real one takes its place, and no length changes."""
CHAT = b"POST /v1/chat/completions HTTP/1.1"
BODY = b'{"model":"m","messages":[],"user":"whole"}'
N = b"%d" % len(BODY)


class Law(StrEnum):
    """What the RFC says a server does with it."""

    REFUSE = "must refuse"
    MAY = "may take as one"
    TAKE = "takes as one"


class Ours(StrEnum):
    """What the gateway does, exactly."""

    REFUSED = "refused"
    """An error, and the connection is closed: nothing more that came on it is read as a request."""
    ONE = "one"
    """One request is served, with exactly these bytes."""
    NO_ROUTE = "no route"
    """Well framed, but not for us: 404 or 405, and no pod hears of it."""


class Vector(NamedTuple):
    """One request, or what pretends to be one."""

    name: str
    raw: bytes
    law: Law
    ours: Ours
    body: bytes = BODY
    """What a pod gets, where it is served."""


def post(*fields: bytes, body: bytes = b"", start: bytes = CHAT, host: bytes = b"Host: gateway") -> bytes:
    """A request with these fields beside the ones that every good one has."""
    lines = (start, *((host,) if host else ()), b"Authorization: Bearer " + KEY, b"Content-Type: application/json")
    return b"\r\n".join((*lines, *fields)) + b"\r\n\r\n" + body


def cl(length: bytes = N) -> bytes:
    return b"Content-Length: " + length


def chunked(body: bytes = BODY, size: bytes | None = None, extension: bytes = b"", end: bytes = b"\r\n") -> bytes:
    """A body as one chunk and the last one."""
    told = b"%x" % len(body) if size is None else size
    return told + extension + end + body + b"\r\n0\r\n\r\n"


TE = b"Transfer-Encoding: chunked"
SMUGGLED = post(cl(b"45"), body=b'{"model":"m","messages":[],"user":"smuggled"}')
EMPTY_THEN_SMUGGLED = b"0\r\n\r\n" + SMUGGLED
CHUNKED = chunked()
BOTH = b"%d" % len(CHUNKED)

_R, _M, _T = Law.REFUSE, Law.MAY, Law.TAKE
_X, _1, _0 = Ours.REFUSED, Ours.ONE, Ours.NO_ROUTE


def _length() -> list[Vector]:
    """Content-Length (RFC 9110 [8.6], 9112 [6.3])."""
    return [
        Vector("CL twice, equal", post(cl(), cl(), body=BODY), _M, _X),
        Vector("CL twice, different", post(cl(), cl(b"0"), body=BODY), _R, _X),
        Vector("CL twice, different, the other way", post(cl(b"0"), cl(), body=BODY), _R, _X),
        Vector("CL as a list, equal", post(cl(N + b", " + N), body=BODY), _M, _X),
        Vector("CL as a list, different", post(cl(N + b", 0"), body=BODY), _R, _X),
        Vector("CL with plus", post(cl(b"+" + N), body=BODY), _R, _X),
        Vector("CL with minus", post(cl(b"-" + N), body=BODY), _R, _X),
        Vector("CL minus zero", post(cl(b"-0"), body=SMUGGLED), _R, _X),
        Vector("CL with underscore", post(cl(b"4_2"), body=BODY), _R, _X),
        Vector("CL in hex", post(cl(b"0x2a"), body=BODY), _R, _X),
        Vector("CL with a fraction", post(cl(N + b".0"), body=BODY), _R, _X),
        Vector("CL with an exponent", post(cl(b"42e0"), body=BODY), _R, _X),
        Vector("CL with a space inside", post(cl(b"4 2"), body=BODY), _R, _X),
        Vector("CL with a tab behind", post(cl(N + b"\t"), body=BODY), _T, _1),
        Vector("CL with spaces around", post(b"Content-Length:   " + N + b"  ", body=BODY), _T, _1),
        Vector("CL with leading zeros", post(cl(b"0000" + N), body=BODY), _T, _1),
        Vector("CL empty", post(cl(b""), body=BODY), _R, _X),
        Vector("CL in other digits", post(cl("٤٢".encode()), body=BODY), _R, _X),
        Vector("CL beyond 64 bits", post(cl(b"184467440737095516160"), body=BODY), _R, _X),
        Vector("CL wraps around 64 bits", post(cl(b"18446744073709551658"), body=BODY), _R, _X),
        Vector("CL with a vertical tab", post(cl(N + b"\x0b"), body=BODY), _R, _X),
        Vector("CL with a NUL", post(cl(N + b"\0"), body=BODY), _R, _X),
        Vector("CL zero, then a request", post(cl(b"0")) + SMUGGLED, _T, _X, b""),
        Vector("a second request behind the body", post(cl(), body=BODY) + SMUGGLED, _T, _1),
        Vector("junk behind the body", post(cl(), body=BODY) + b"\0\0\0\0", _T, _1),
    ]


def _coding() -> list[Vector]:
    """Transfer-Encoding (RFC 9112 [6.1], [7])."""
    behind = CHUNKED
    return [
        Vector("chunked", post(TE, body=CHUNKED), _T, _1),
        Vector("CL.TE", post(cl(b"%d" % len(EMPTY_THEN_SMUGGLED)), TE, body=EMPTY_THEN_SMUGGLED), _M, _X, b""),
        Vector("TE.CL", post(TE, cl(b"4"), body=chunked(SMUGGLED)), _M, _X),
        Vector("CL and TE that agree", post(cl(BOTH), TE, body=behind), _M, _X),
        Vector("TE xchunked", post(b"Transfer-Encoding: xchunked", body=behind), _R, _X),
        Vector("TE xchunked and CL", post(b"Transfer-Encoding: xchunked", cl(BOTH), body=behind), _R, _X),
        Vector("TE chunked, twice in two lines", post(TE, TE, body=behind), _R, _X),
        Vector("TE chunked, chunked", post(b"Transfer-Encoding: chunked, chunked", body=behind), _R, _X),
        Vector("TE chunked, identity", post(b"Transfer-Encoding: chunked, identity", body=behind), _R, _X),
        Vector("TE identity, chunked", post(b"Transfer-Encoding: identity, chunked", body=behind), _M, _X),
        Vector("TE identity and CL", post(b"Transfer-Encoding: identity", cl(), body=BODY), _R, _X),
        Vector("TE gzip, chunked", post(b"Transfer-Encoding: gzip, chunked", body=behind), _M, _X),
        Vector("TE gzip", post(b"Transfer-Encoding: gzip", body=behind), _R, _X),
        Vector("TE in two lines, the second x", post(TE, b"Transfer-Encoding: x", body=behind), _R, _X),
        Vector("TE quoted", post(b'Transfer-Encoding: "chunked"', body=behind), _R, _X),
        Vector("TE with a parameter", post(b"Transfer-Encoding: chunked;q=1", body=behind), _R, _X),
        Vector("TE with a tab before", post(b"Transfer-Encoding:\tchunked", body=behind), _T, _1),
        Vector("TE with a vertical tab", post(b"Transfer-Encoding: \x0bchunked", body=behind), _R, _X),
        Vector("TE with a trailing comma", post(b"Transfer-Encoding: chunked,", body=behind), _M, _X),
        Vector("TE with a leading comma", post(b"Transfer-Encoding: ,chunked", body=behind), _M, _X),
        Vector("TE in capitals", post(b"TRANSFER-ENCODING: CHUNKED", body=behind), _T, _1),
        Vector("TE folded", post(b"Transfer-Encoding:\r\n chunked", body=behind), _R, _X),
        Vector("TE folded, and CL", post(b"Transfer-Encoding:\r\n chunked", cl(BOTH), body=behind), _R, _X),
        Vector("space before TE's colon", post(b"Transfer-Encoding : chunked", body=behind), _R, _X),
        Vector("space before TE's name", post(b" Transfer-Encoding: chunked", body=behind), _R, _X),
        Vector("TE behind a bare LF", post(b"X: y\nTransfer-Encoding: chunked", cl(), body=BODY), _M, _X),
        Vector("TE behind a bare CR", post(b"X: y\rTransfer-Encoding: chunked", cl(), body=BODY), _R, _X),
        Vector("TE with underscore, and CL", post(b"Transfer_Encoding: chunked", cl(), body=BODY), _T, _1),
        Vector("TE empty, and CL", post(b"Transfer-Encoding:", cl(), body=BODY), _R, _X),
        Vector("TE with 8-bit", post(b"Transfer-Encoding: chunked\xa0", body=behind), _R, _X),
        Vector("TE with a NUL", post(b"Transfer-Encoding: chunked\0", body=behind), _R, _X),
        Vector(
            "TE in HTTP/1.0",
            post(TE, b"Connection: keep-alive", body=behind, start=CHAT.replace(b"1.1", b"1.0")),
            _M,
            _X,
        ),
    ]


def _chunks() -> list[Vector]:
    """Chunks (RFC 9112 [7.1])."""

    def of(body: bytes) -> bytes:
        return post(TE, body=body)

    return [
        Vector("chunk size 0x2a", of(chunked(size=b"0x2a")), _R, _X),
        Vector("chunk size +2a", of(chunked(size=b"+2a")), _R, _X),
        Vector("chunk size -2a", of(chunked(size=b"-2a")), _R, _X),
        Vector("chunk size 2_a", of(chunked(size=b"2_a")), _R, _X),
        Vector("chunk size with leading zeros", of(chunked(size=b"0000002a")), _T, _1),
        Vector("chunk size in capitals", of(chunked(size=b"2A")), _T, _1),
        Vector("chunk size with a space behind", of(chunked(size=b"2a ")), _M, _X),
        Vector("chunk size with a space before", of(chunked(size=b" 2a")), _R, _X),
        Vector("chunk size with a tab behind", of(chunked(size=b"2a\t")), _M, _X),
        Vector("chunk size beyond 64 bits", of(chunked(size=b"1000000000000002a")), _R, _X),
        Vector("chunk size empty", of(chunked(size=b"")), _R, _X),
        Vector("chunk size is no hex", of(chunked(size=b"2g")), _R, _X),
        Vector("chunk size too small", of(chunked(size=b"29")), _R, _X),
        Vector("chunk size ends with LF", of(chunked(end=b"\n")), _R, _X),
        Vector("chunk size ends with CR", of(chunked(end=b"\r")), _R, _X),
        Vector("chunk ends with LF", of(b"2a\r\n" + BODY + b"\n0\r\n\r\n"), _R, _X),
        Vector("no CRLF behind a chunk", of(b"2a\r\n" + BODY + b"0\r\n\r\n"), _R, _X),
        Vector("two letters instead of CRLF", of(b"2a\r\n" + BODY + b"XX0\r\n\r\n"), _R, _X),
        Vector("chunk extension", of(chunked(extension=b";a=b")), _T, _1),
        Vector("chunk extension behind a space", of(chunked(extension=b" ;a=b")), _T, _X),
        Vector("chunk extension without a name", of(chunked(extension=b";")), _R, _X),
        Vector("chunk extension, quoted", of(chunked(extension=b';a="b;\\"c"')), _T, _1),
        Vector("chunk extension of 200 kB", of(chunked(extension=b";a=" + b"b" * 200_000)), _M, _X),
        Vector("chunk extension with a bare LF", of(chunked(extension=b";a\n" + b"1a")), _R, _X),
        Vector("chunk extension with a bare CR", of(chunked(extension=b";a\rb")), _R, _X),
        Vector("chunk extension with a NUL", of(chunked(extension=b";a=\0")), _R, _X),
        Vector("last chunk with LF", of(b"2a\r\n" + BODY + b"\r\n0\n\n"), _R, _X),
        Vector("last chunk 00", of(b"2a\r\n" + BODY + b"\r\n00\r\n\r\n"), _T, _1),
        Vector("trailer", of(b"2a\r\n" + BODY + b"\r\n0\r\nX: y\r\n\r\n"), _T, _1),
        Vector("trailer Content-Length", of(b"2a\r\n" + BODY + b"\r\n0\r\nContent-Length: 5\r\n\r\n"), _M, _X),
        Vector("trailer Transfer-Encoding", of(b"2a\r\n" + BODY + b"\r\n0\r\n" + TE + b"\r\n\r\n"), _M, _X),
        Vector("trailer Host", of(b"2a\r\n" + BODY + b"\r\n0\r\nHost: other\r\n\r\n"), _M, _1),
        Vector("trailer Authorization", of(b"2a\r\n" + BODY + b"\r\n0\r\nAuthorization: Bearer other\r\n\r\n"), _M, _1),
        Vector("a request as trailer", of(b"2a\r\n" + BODY + b"\r\n0\r\n" + SMUGGLED), _R, _X),
        Vector("a request behind the last chunk", of(CHUNKED) + SMUGGLED, _T, _1),
    ]


def _lines() -> list[Vector]:
    """Start line and fields (RFC 9112 [2.2], [3], [5])."""

    def start(line: bytes, *, law: Law = _R, ours: Ours = _X, name: str) -> Vector:
        return Vector(name, post(cl(), body=BODY, start=line), law, ours)

    def also(field: bytes, *, law: Law = _R, ours: Ours = _X, name: str) -> Vector:
        return Vector(name, post(field, cl(), body=BODY), law, ours)

    return [
        Vector("no Host", post(cl(), body=BODY, host=b""), _R, _X),
        Vector("two Hosts", post(b"Host: other", cl(), body=BODY), _R, _X),
        Vector("two Hosts, equal", post(b"Host: gateway", cl(), body=BODY), _R, _X),
        Vector("Host with a path", post(cl(), body=BODY, host=b"Host: x/v1/models?a="), _R, _X),
        Vector("Host with a user", post(cl(), body=BODY, host=b"Host: a@b"), _R, _X),
        Vector("Host as a list", post(cl(), body=BODY, host=b"Host: a, b"), _R, _X),
        Vector("Host with a space before its colon", post(cl(), body=BODY, host=b"Host : gateway"), _R, _X),
        Vector("a field folded", post(b"X: a\r\n b", cl(), body=BODY), _M, _X),
        Vector("a space before the first field", post(cl(), body=BODY, host=b" Host: gateway"), _R, _X),
        also(b"X: a\0b", name="NUL in a value"),
        also(b"X: a\rb", name="bare CR in a value"),
        also(b"X: a\nY: b", law=_M, name="bare LF between fields"),
        also(b"X Y: a", name="space in a name"),
        also(b"X\xc3\xa9: a", name="8-bit in a name"),
        also(b": a", name="an empty name"),
        also(b"X(: a", name="a delimiter in a name"),
        also(b"no colon", name="a line without a colon"),
        also(b"X: caf\xc3\xa9", law=_T, ours=_1, name="8-bit in a value"),
        also(b"Content_Length: 0", law=_T, ours=_1, name="Content_Length beside CL"),
        also(b"X-HTTP-Method-Override: DELETE", law=_T, ours=_1, name="X-HTTP-Method-Override"),
        also(b"Connection: close, Authorization, Host", law=_T, ours=_1, name="Connection names Authorization"),
        also(b"Connection: close, x", law=_T, ours=_1, name="Connection: close, x"),
        also(b"Expect: 100-continue", law=_T, ours=_1, name="Expect 100-continue"),
        also(b"Expect: 200-ok", law=_M, name="Expect of another kind"),
        also(b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings", law=_T, name="Upgrade h2c"),
        also(b"Upgrade: websocket\r\nConnection: Upgrade", law=_T, name="Upgrade websocket"),
        also(b"Authorization: Bearer other", name="two Authorizations"),
        start(b"POST  /v1/chat/completions HTTP/1.1", law=_M, ours=_1, name="two spaces behind the method"),
        start(b"POST /v1/chat/completions  HTTP/1.1", law=_M, ours=_1, name="two spaces before the version"),
        start(b"POST\t/v1/chat/completions HTTP/1.1", law=_M, name="a tab behind the method"),
        start(b"POST /v1/chat/completions HTTP/1.1 ", law=_M, name="a space behind the version"),
        start(b"POST /v1/chat completions HTTP/1.1", name="a space in the target"),
        start(b"POST /v1/chat/completions\0 HTTP/1.1", name="NUL in the target"),
        start(b"POST /v1/chat/completions\rX: HTTP/1.1", name="CR in the target"),
        start(b"POST /v1/chat/completions HTTP/2.0", law=_M, name="HTTP/2.0"),
        start(b"POST /v1/chat/completions HTTP/1.2", law=_M, name="HTTP/1.2"),
        start(b"POST /v1/chat/completions http/1.1", name="the version in small letters"),
        start(b"POST /v1/chat/completions HTTP/01.1", name="HTTP/01.1"),
        start(b"POST /v1/chat/completions HTTP/1.1\x0b", name="a vertical tab behind the version"),
        start(b"POST /v1/chat/completions", name="no version (HTTP/0.9)"),
        start(b"post /v1/chat/completions HTTP/1.1", law=_M, name="the method in small letters"),
        start(b"JUMP /v1/chat/completions HTTP/1.1", law=_M, name="a method nobody knows"),
        start(b"PO ST /v1/chat/completions HTTP/1.1", name="a space in the method"),
        start(b"CONNECT gateway:80 HTTP/1.1", law=_M, name="CONNECT"),
        start(b"TRACE /v1/chat/completions HTTP/1.1", law=_M, ours=_0, name="TRACE"),
        start(b"PRI * HTTP/2.0\r\n\r\nSM\r\n", law=_M, name="the preface of HTTP/2"),
        Vector("an empty line before it", b"\r\n" + post(cl(), body=BODY), _T, _1),
        Vector("an empty line of LF before it", b"\n" + post(cl(), body=BODY), _M, _1),
        Vector("all lines end with LF", post(cl()).replace(b"\r\n", b"\n") + BODY, _M, _X),
        Vector("nothing but a start line", b"GET /v1/models\r\n\r\n", _R, _X, b""),
    ]


def _routes() -> list[Vector]:
    """Well framed, and another route to a parser that tidies up."""

    def at(target: bytes) -> bytes:
        return post(cl(), body=BODY, start=b"POST " + target + b" HTTP/1.1")

    def get(*fields: bytes) -> bytes:
        return post(*fields, body=b"", start=b"GET /v1/chat/completions HTTP/1.1")

    return [
        Vector("absolute form, another Host", at(b"http://other/v1/chat/completions"), _T, _0),
        Vector("a dot segment", at(b"/v1/../v1/chat/completions"), _T, _0),
        Vector("an encoded slash", at(b"/v1%2Fchat/completions"), _T, _0),
        Vector("an encoded dot segment", at(b"/v1/%2e%2e/v1/chat/completions"), _T, _0),
        Vector("an encoded CRLF", at(b"/v1/chat/completions%0d%0aHost:%20x"), _T, _0),
        Vector("an encoded NUL", at(b"/v1/chat/completions%00"), _T, _0),
        Vector("a backslash", at(b"/v1\\chat/completions"), _R, _0),
        Vector("a semicolon", at(b"/v1/chat/completions;x=y"), _T, _0),
        Vector("a trailing slash", at(b"/v1/chat/completions/"), _T, _0),
        Vector("in capitals", at(b"/V1/chat/completions"), _T, _0),
        Vector("a repeated slash", at(b"//v1//chat/completions"), _T, _1),
        Vector("a query", at(b"/v1/chat/completions?x=y"), _T, _1),
        Vector("overlong UTF-8", at(b"/v1/\xc0\xaf/chat/completions"), _R, _X),
        Vector("a fragment", at(b"/v1/chat/completions#x"), _R, _0),
        Vector("an admin route of vLLM", at(b"/sleep"), _T, _0),
        Vector("a body on GET", post(cl(), body=BODY, start=b"GET /v1/chat/completions HTTP/1.1"), _T, _0),
        Vector("a request as the body of GET", get(cl(b"%d" % len(SMUGGLED))) + SMUGGLED, _T, _0),
        Vector("DELETE with a body", post(cl(), body=BODY, start=b"DELETE /v1/chat/completions HTTP/1.1"), _T, _0),
    ]


SECTIONS = {
    "Content-Length": tuple(_length()),
    "Transfer-Encoding": tuple(_coding()),
    "Chunks and trailers": tuple(_chunks()),
    "Start line and fields": tuple(_lines()),
    "Routes": tuple(_routes()),
}
VECTORS = tuple(vector for section in SECTIONS.values() for vector in section)
