"""Whence a request comes: hosts, pages of other origins, proxies. What is not listed or trusted is never believed."""

from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from gateway.core.errors import MethodNotAllowed
from gateway.edge.heads import is_host
from gateway.pipeline.cors import Origins
from gateway.pipeline.proxies import MAX_BYTES, MAX_HOPS, Proxies
from tests.fuzz.target import Target

LISTED = ("https://chat.example", "http://localhost:3000")
ORIGINS = (Origins(LISTED), Origins(("*",)), Origins(()))
PREFLIGHT = MethodNotAllowed("use POST for this route", allow=b"POST")
TRUSTED = ip_network("10.0.0.0/8")
PROXIES = Proxies((TRUSTED,))


def host(data: bytes) -> None:
    """What is a Host is one to everybody: no path, no user, no second name."""
    if not is_host(data):
        return
    text = data.decode("ascii")
    assert not set(text) & set("/?#@\\, \t\r\n%")
    if "[" in text:
        return  # whether an address stands in the brackets concerns nobody
    url = urlsplit(f"http://{text}/v1/models?x")
    assert (url.path, url.query, url.username) == ("/v1/models", "x", None)
    assert url.netloc == text


def origin(data: bytes) -> None:
    """A page of an origin that is not listed is told nothing; nothing that it says comes back, but names we know."""
    said, _, asked = data.partition(b"\n")
    fields = {b"origin": said, b"access-control-request-method": b"POST", b"access-control-request-headers": asked}
    for origins in ORIGINS:
        lines = origins.lines_for(fields, frozenset())
        assert lines == b"" or lines.endswith(b"\r\n")
        assert lines.count(b"\n") == lines.count(b"\r\n") <= 3
        told = origins.preflight(PREFLIGHT, fields, lines)
        if told is not None:
            assert lines
        for name, value in told or ():
            assert b"\r" not in name + value
            assert b"\n" not in name + value
            assert len(value) < 4096
        if b"access-control-allow-origin" in lines:
            assert said.decode("latin-1") in LISTED or (lines.count(b": *\r\n") == 1 and said != b"null")
        assert b"credentials" not in lines


def forwarded(data: bytes) -> None:
    """The client is the peer, or an address that a trusted proxy told: an address always, and never from a stranger."""
    one, _, other = data.partition(b"\n")
    fields = {name: value for name, value in ((b"forwarded", one), (b"x-forwarded-for", other)) if value}
    assert PROXIES.client_of("192.0.2.1", fields) == "192.0.2.1"
    found = PROXIES.client_of("10.0.0.1", fields)
    address = ip_address(found)
    if one or not other:
        return
    try:
        hops = [ip_address(each.strip()) for each in other.decode("latin-1").split(",")]
    except ValueError:
        return
    if all(hop.version == 4 for hop in hops) and len(other) <= MAX_BYTES and len(hops) <= MAX_HOPS:
        # Read from the right, past those that are trusted; behind the last of them stands anybody's word.
        assert address == next((hop for hop in reversed(hops) if hop not in TRUSTED), hops[0])


TARGETS = {
    "host": Target(
        host,
        ("gateway.edge.heads",),
        (b"x", b"a.example:8000", b"[::1]:80", b"[fe80::1%25e]", b"a/abc?bar=", b"u@h", b"a, b", b"127.0.0.1:", b""),
        max_bytes=300,
        tokens=(b":80", b"[::1]", b"@", b"/", b"%"),
    ),
    "origin": Target(
        origin,
        ("gateway.pipeline.cors",),
        (
            b"https://chat.example\ncontent-type, authorization, x-stainless-os",
            b"null\nx",
            b"https://chat.example.evil\n*",
            b"https://evil\nauthorization\r\nset-cookie: x",
            b"\n" + b"accept," * 200,
        ),
        max_bytes=2500,
        tokens=(b"https://chat.example", b"content-type", b", ", b"x-stainless-"),
    ),
    "forwarded": Target(
        forwarded,
        ("gateway.pipeline.proxies",),
        (
            b"for=192.0.2.43, for=10.0.0.2;by=203.0.113.43\n",
            b'for="[2001:db8::1]:4711";proto=https\n',
            b"for=unknown, for=_hidden\n",
            b'for="a\\"b"\n',
            b"\n203.0.113.7, 10.0.0.3",
            b"\n2001:db8::1, [::ffff:10.0.0.1]:80",
            b"for=192.0.2.1\n192.0.2.1",
            b"for=1;for=2\n,,",
        ),
        max_bytes=2500,
        tokens=(b"for=", b";by=", b"10.0.0.2", b'"[', b']"', b"unknown", b", "),
    ),
}
