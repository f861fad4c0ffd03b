"""What a browser is told of the pages that may call: pure decisions on a head."""

import pytest

from gateway.core.errors import MethodNotAllowed
from gateway.pipeline.cors import EXPOSED, MAX_ASKED_BYTES, MAX_ASKED_NAMES, Origins

NONE: frozenset[bytes] = frozenset()
CHAT, OTHER = "https://chat.example.com", "http://localhost:3000"
REFUSED = MethodNotAllowed("use POST", allow=b"POST")


def lines(origins: Origins, origin: bytes | None, repeated: frozenset[bytes] = NONE) -> dict[bytes, bytes]:
    fields = {} if origin is None else {b"origin": origin}
    told = origins.lines_for(fields, repeated)
    assert not told or told.endswith(b"\r\n")
    return {name: value for name, _, value in (line.partition(b": ") for line in told.split(b"\r\n") if line)}


@pytest.mark.parametrize("origin", [CHAT, OTHER])
def test_a_listed_origin_is_told_itself(origin: str) -> None:
    assert lines(Origins((CHAT, OTHER)), origin.encode()) == {
        b"access-control-allow-origin": origin.encode(),
        b"access-control-expose-headers": EXPOSED,
        b"vary": b"origin",
    }


@pytest.mark.parametrize(
    "origin",
    [
        b"https://chat.example.com.evil.example",
        b"https://evil.example",
        b"https://chat.example.com:444",
        b"http://chat.example.com",
        b"https://chat.example.com/",
        b"HTTPS://CHAT.EXAMPLE.COM",
        b"https://chat.example.com http://localhost:3000",
        b"https://chat.example.com\r\nx: y",
        b"null",
        b"*",
        b"",
        b"\xff",
        None,
    ],
)
def test_any_other_is_told_nothing_but_that_it_would_matter(origin: bytes | None) -> None:
    assert lines(Origins((CHAT, OTHER)), origin) == {b"vary": b"origin"}


def test_an_origin_that_came_twice_is_none() -> None:
    twice = frozenset({b"origin"})
    assert lines(Origins((CHAT,)), CHAT.encode(), twice) == {b"vary": b"origin"}
    assert lines(Origins(("*",)), CHAT.encode(), twice) == {}


def test_with_a_star_every_page_with_an_origin_is_told_a_star_and_none_is_reflected() -> None:
    every = Origins(("*",))
    assert lines(every, b"https://anybody.example")[b"access-control-allow-origin"] == b"*"
    assert b"vary" not in lines(every, b"https://anybody.example")
    assert lines(every, b"null") == {}
    assert lines(every, None) == {}


def test_credentials_are_never_allowed() -> None:
    for origins in (Origins((CHAT,)), Origins(("*",))):
        told = origins.lines_for({b"origin": CHAT.encode()}, NONE)
        assert b"credentials" not in told
        asked = {b"access-control-request-method": b"POST", b"access-control-request-private-network": b"true"}
        preflight = origins.preflight(REFUSED, asked, told)
        assert preflight is not None
        assert not [name for name, _ in preflight if b"credentials" in name or b"private" in name]


def test_a_preflight_is_told_the_routes_method_and_the_names_that_a_page_may_send() -> None:
    origins = Origins((CHAT,))
    asked = {
        b"origin": CHAT.encode(),
        b"access-control-request-method": b"POST",
        b"access-control-request-headers": b"authorization,content-type, X-Stainless-Retry-Count ,cookie,x-evil,host,"
        b"x-openwebui-user-id,anthropic-dangerous-direct-browser-access",
    }
    told = dict(origins.preflight(REFUSED, asked, origins.lines_for(asked, NONE)) or ())
    assert told == {
        b"access-control-allow-methods": b"POST",
        b"access-control-max-age": b"7200",
        b"access-control-allow-headers": b"authorization, content-type, x-stainless-retry-count, x-openwebui-user-id, "
        b"anthropic-dangerous-direct-browser-access",
    }


@pytest.mark.parametrize(
    "asked",
    [
        b"",
        b"x-stainless-" + b"a" * 49,
        b"x-stainless-a\x00b",
        b"x-stainless-\xe9",
        b"authorization\r\nx: y",
        b"authorization " + b"," * MAX_ASKED_BYTES,
        b"x" * (MAX_ASKED_BYTES + 1),
    ],
)
def test_names_that_are_not_of_the_pattern_are_not_echoed(asked: bytes) -> None:
    origins = Origins((CHAT,))
    fields = {b"origin": CHAT.encode(), b"access-control-request-method": b"POST"}
    fields[b"access-control-request-headers"] = asked
    told = dict(origins.preflight(REFUSED, fields, origins.lines_for(fields, NONE)) or ())
    assert b"access-control-allow-headers" not in told


def test_only_so_many_names_are_looked_at() -> None:
    origins = Origins((CHAT,))
    fields = {b"origin": CHAT.encode(), b"access-control-request-method": b"POST"}
    fields[b"access-control-request-headers"] = b",".join([b"accept"] * (MAX_ASKED_NAMES + 10) + [b"authorization"])
    told = dict(origins.preflight(REFUSED, fields, origins.lines_for(fields, NONE)) or ())
    assert told[b"access-control-allow-headers"].count(b"accept") == MAX_ASKED_NAMES
    assert b"authorization" not in told[b"access-control-allow-headers"]


@pytest.mark.parametrize("lacks", ["origin", "access-control-request-method"])
def test_what_is_no_preflight_stays_refused(lacks: str) -> None:
    origins = Origins((CHAT,))
    fields = {b"origin": CHAT.encode(), b"access-control-request-method": b"POST"}
    del fields[lacks.encode()]
    assert origins.preflight(REFUSED, fields, origins.lines_for(fields, NONE)) is None


def test_a_preflight_of_another_origin_stays_refused() -> None:
    origins = Origins((CHAT,))
    fields = {b"origin": b"https://evil.example", b"access-control-request-method": b"POST"}
    assert origins.preflight(REFUSED, fields, origins.lines_for(fields, NONE)) is None
