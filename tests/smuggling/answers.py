"""Answers of a pod with two meanings, or a broken one: what the gateway does with each, and with its connection."""

from typing import NamedTuple

WHOLE = b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
N = b"%d" % len(WHOLE)
OTHER = b'{"choices":[{"index":0,"finish_reason":"length"}]}'


class Answer(NamedTuple):
    """What a pod says to one request. The pod leaves its connection open but where `closes` is set."""

    name: str
    raw: bytes
    status: int = 502
    """What the client gets."""
    kept: bool = False
    """Whether the connection may serve another request."""
    closes: bool = False


def head(*fields: bytes, start: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join((start, b"content-type: application/json", *fields)) + b"\r\n\r\n"


def cl(length: bytes = N) -> bytes:
    return b"content-length: " + length


def chunked(size: bytes = b"%x" % len(WHOLE), extension: bytes = b"", end: bytes = b"\r\n") -> bytes:
    return size + extension + end + WHOLE + b"\r\n0\r\n\r\n"


TE = b"transfer-encoding: chunked"
GOOD = head(cl()) + WHOLE
SECOND = head(cl(b"%d" % len(OTHER))) + OTHER

ANSWERS = (
    Answer("good", GOOD, 200, kept=True),
    Answer("good, chunked", head(TE) + chunked(), 200, kept=True),
    Answer("good, until the close", head() + WHOLE, 200, closes=True),
    Answer("good, but closes", head(cl(), b"connection: close") + WHOLE, 200),
    Answer("100 before it", b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD, 200, kept=True),
    Answer("103 before it", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + GOOD, 200, kept=True),
    Answer("17 interim answers", b"HTTP/1.1 102 Processing\r\n\r\n" * 17 + GOOD),
    Answer("an interim answer with a body", b"HTTP/1.1 199 x\r\n" + TE + b"\r\n\r\n1\r\na\r\n0\r\n\r\n" + GOOD),
    Answer("101", b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n" + GOOD),
    Answer("two answers", GOOD + SECOND),
    Answer("junk behind the answer", GOOD + b"junk"),
    Answer("CL and TE", head(cl(), TE) + chunked()),
    Answer("CL twice, different", head(cl(), cl(b"5")) + WHOLE),
    Answer("CL twice, equal", head(cl(), cl()) + WHOLE),
    Answer("CL as a list", head(cl(N + b", " + N)) + WHOLE),
    Answer("CL with plus", head(cl(b"+" + N)) + WHOLE),
    Answer("CL negative", head(cl(b"-1")) + WHOLE),
    Answer("CL in hex", head(cl(b"0x10")) + WHOLE),
    Answer("CL beyond 64 bits", head(cl(b"99999999999999999999")) + WHOLE),
    Answer("CL too long", head(cl(b"100000")) + WHOLE, closes=True),
    Answer("CL too short", head(cl(b"10")) + WHOLE),
    Answer("TE gzip, chunked", head(b"transfer-encoding: gzip, chunked") + chunked()),
    Answer("TE chunked, chunked", head(b"transfer-encoding: chunked, chunked") + chunked()),
    Answer("TE identity", head(b"transfer-encoding: identity") + WHOLE, closes=True),
    Answer("TE twice", head(TE, TE) + chunked()),
    Answer("TE in HTTP/1.0", head(TE, start=b"HTTP/1.0 200 OK") + chunked()),
    Answer("TE folded", head(b"transfer-encoding:\r\n chunked") + chunked()),
    Answer("chunk size 0x", head(TE) + chunked(size=b"0x62")),
    Answer("chunk size ends with LF", head(TE) + chunked(end=b"\n")),
    Answer("no CRLF behind a chunk", head(TE) + b"%x\r\n" % len(WHOLE) + WHOLE + b"0\r\n\r\n"),
    Answer("chunk extension of 1 MB", head(TE) + chunked(extension=b";" + b"a" * 1_000_000)),
    Answer("last chunk missing", head(TE) + b"%x\r\n" % len(WHOLE) + WHOLE + b"\r\n", closes=True),
    Answer("trailer Content-Length", head(TE) + chunked()[:-2] + b"content-length: 5\r\n\r\n"),
    Answer("header folded", head(b"x: a\r\n b", cl()) + WHOLE),
    Answer("bare LF", GOOD.replace(b"\r\n", b"\n")),
    Answer("bare CR in a header", head(b"x: a\rb", cl()) + WHOLE),
    Answer("NUL in a header", head(b"x: a\0b", cl()) + WHOLE),
    Answer("space in a header's name", head(b"x y: a", cl()) + WHOLE),
    Answer("a header of 100 kB", head(b"x: " + b"a" * 100_000, cl()) + WHOLE),
    Answer("10,000 headers", head(*[b"x: a"] * 10_000, cl()) + WHOLE),
    Answer("HTTP/2.0", head(cl(), start=b"HTTP/2.0 200 OK") + WHOLE),
    Answer("HTTP/0.9", WHOLE, closes=True),
    Answer("RTSP", head(cl(), start=b"RTSP/1.0 200 OK") + WHOLE),
    Answer("status 999", head(cl(), start=b"HTTP/1.1 999 x") + WHOLE),
    Answer("status 099", head(cl(), start=b"HTTP/1.1 099 x") + WHOLE),
    Answer("status 20", head(cl(), start=b"HTTP/1.1 20 x") + WHOLE),
    Answer("a redirect", head(cl(b"0"), b"location: http://169.254.169.254/", start=b"HTTP/1.1 307 x")),
    Answer("compressed", head(cl(), b"content-encoding: gzip") + WHOLE),
    Answer("204 with a body", head(cl(), start=b"HTTP/1.1 204 No Content") + WHOLE),
    Answer("no answer at all", b"\0\0\0\0"),
)
