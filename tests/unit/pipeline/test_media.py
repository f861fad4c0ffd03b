"""A URL that passes leads where it seems to, to whoever takes it apart; what is ambiguous is refused."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url
from yarl import URL

from gateway.pipeline.media import is_host, may_be_fetched, may_name_urls, urls_in

HOSTS = ("images.example.com", "*.cdn.example.net", "[2001:db8::1]", "203.0.113.7")


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example.com",
        "https://images.example.com/",
        "HTTPS://Images.Example.COM/a.png?x=1&y=http://evil/#top",
        "http://images.example.com:8080/a%20b.png",
        "https://images.example.com?x=1",
        "https://a.cdn.example.net/é.png",
        "https://a.b.cdn.example.net/@evil/",
        "https://[2001:DB8::1]:443/a",
        "http://203.0.113.7/a",
        "data:image/png;base64,AAAA",
        "DATA:,",
    ],
)
def test_a_plain_url_of_a_named_host_passes(url: str) -> None:
    assert may_be_fetched(url, HOSTS)
    assert url[:5].lower() == "data:" or not may_be_fetched(url, ())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "images.example.com/a.png",
        "//images.example.com/a.png",
        "https:images.example.com/",
        "https:/images.example.com/",
        "https:///images.example.com/",
        "https://cdn.example.net/",
        "https://evilcdn.example.net/",
        "https://images.example.com.evil/",
        "https://images.example.com./",
        "https://images.example.com@evil/",
        "https://evil@images.example.com/",
        "https://user:pw@images.example.com/",
        "https://evil\\@images.example.com/",
        "https://images.example.com\\@evil/",
        "https://images.example.com\\.evil/",
        "https://images.example.com#@evil/",
        "https://images.example.com%2eevil/",
        "https://images%2eexample.com/",
        "https://images.example.com:80:80/",
        "https://images.example.com:x/",
        "https://images.example.com:/",
        " https://images.example.com/",
        "https://images.example.com/ ",
        "https://images.example.com /",
        "ht\ttps://images.example.com/",
        "https://images.example.com/\r\nHost: evil",
        "https://images.example.com/\x00",
        "https://images．example．com/",
        "https://ımages.example.com/",
        "https://\u212acdn.cdn.example.net/",
        "https://..cdn.example.net/",
        "https://xn--/.cdn.example.net/",
        "http://3405803783/",
        "http://0xcb.0.0x71.7/",
        "http://203.0.113.07/",
        "http://[::ffff:203.0.113.7]/",
        "http://[2001:db8::1%25eth0]/",
        "httpx://images.example.com/",
        "http+unix://images.example.com/",
        "ftp://images.example.com/",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "FILE://images.example.com/etc/passwd",
        "gopher://images.example.com/",
        " data:image/png;base64,AAAA",
    ],
)
def test_what_leads_elsewhere_or_may_is_refused(url: str) -> None:
    assert not may_be_fetched(url, HOSTS)


pieces = st.sampled_from(
    [
        *("http", "https", "HTTP", "file", ":", "/", "//", "://", "\\", "@", "?", "#", ".", "%2e", "%00", " ", "\t"),
        *(
            "good.example",
            "evil.example",
            "[::1]",
            "[",
            "]",
            ":80",
            ":",
            "x",
            "é",
            "。",
            "\u00ad",
            "K",
            "user",
            "-",
            "_",
        ),
    ]
)


@settings(max_examples=3000)
@given(st.lists(pieces, max_size=6).map("".join), st.booleans())
def test_the_host_that_passes_is_the_host_that_is_fetched_from(rest: str, begun: bool) -> None:
    """vLLM parses with urllib3 and hands what it made of it to aiohttp, that is to yarl."""
    url = f"https://good.example{rest}" if begun else rest
    if url[:5].lower() == "data:" or not may_be_fetched(url, ("good.example",)):
        return
    try:
        parsed = parse_url(url)
    except LocationParseError:
        return
    assert parsed.host == "good.example"
    assert parsed.auth is None
    for fetched in (parsed.url, url):
        try:
            host = URL(fetched).host
        except ValueError:
            continue  # a port beyond 65535: nothing is fetched
        assert host == "good.example"


@pytest.mark.parametrize(
    ("value", "urls"),
    [
        ("image_url", []),
        ([{"image_url": "a"}, {"video_url": {"url": "b"}}, [{"audio_url": {"url": "c", "x": 1}}]], ["a", "b", "c"]),
        ({"image_url": {"detail": "low"}, "file_url": None, "video_url": 7, "audio_url": ["x"]}, []),
        ({"source": {"type": "url", "url": "a"}}, ["a"]),
        ({"source": "https://x", "url": "https://x"}, []),
        ({"output": {"image_url": "a"}, "arguments": {"image_url": "b"}, "input": {"image_url": "c"}}, ["a"]),
        ({"tool_calls": [{"image_url": "a"}]}, []),
    ],
)
def test_the_urls_of_media_are_those_of_parts(value: Any, urls: list[str]) -> None:
    assert sorted(urls_in(value)) == urls


@pytest.mark.parametrize(
    ("text", "may"),
    [
        (b'{"messages":[{"content":"see https://example.com/a.png and \\"image_url\\": \\"x\\""}]}', False),
        (b'{"messages":[{"content":"na\\u00efve \\u003cb\\u003e \\u20ac \\u001b \\u2028"}]}', False),
        (b'{"image_url":1}', True),
        (b'{"url" :1}', True),
        (b'{"\\u0069mage_url":1}', True),
        (b'{"image\\u005Furl":1}', True),
        (b'{"ur\\u006c":1}', True),
        (b'{"u\\u0072l":1}', True),
    ],
)
def test_a_text_full_of_urls_is_no_reason_to_look(text: bytes, may: bool) -> None:
    assert may_name_urls(text) is may


@given(st.sampled_from(["image_url", "audio_url", "video_url", "file_url", "url"]), st.data())
def test_no_spelling_of_a_key_hides_it(key: str, data: st.DataObject) -> None:
    spelled = "".join(
        data.draw(st.sampled_from([letter, f"\\u{ord(letter):04x}", f"\\u{ord(letter):04X}"])) for letter in key
    )
    assert may_name_urls(f'{{"{spelled}":"http://x"}}'.encode())


@pytest.mark.parametrize(
    ("told", "right"),
    [
        ("images.example.com", True),
        ("*.example.com", True),
        ("localhost", True),
        ("10.0.0.1", True),
        ("[::1]", True),
        ("*", False),
        ("*.", False),
        ("", False),
        ("a.*.com", False),
        ("https://example.com", False),
        ("example.com:80", False),
        ("example.com/", False),
        ("example.com.", False),
        ("Example.com", False),
        ("bücher.example", False),
        ("::1", False),
    ],
)
def test_a_host_is_named_in_one_way(told: str, right: bool) -> None:
    assert is_host(told) is right
