"""Media that a request names by URL: whoever fetches it reaches what the caller may not.

A pod that is given `http://169.254.169.254/` as an image fetches it, from inside the cluster. So only hosts that the
operator names pass, and `data:` URLs, which fetch nothing. vLLM takes a URL apart with urllib3 and fetches it with
yarl; both take a backslash, a user's name, a space or a letter beyond ASCII in the host in their own way. So a URL is
not parsed here: it has the one plain form in which all agree on its host, or it is refused.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_NAME = rf"{_LABEL}(?:\.{_LABEL})*"
_HOST = re.compile(rf"(?:\*\.)?{_NAME}|\[[0-9a-f:.]+\]", re.ASCII)
_PLAIN = re.compile(
    rf"https?://({_NAME}|\[[0-9a-f:.]+\])(?::[0-9]{{1,5}})?(?:[/?][^\x00-\x20\x7f\\]*)?", re.ASCII | re.IGNORECASE
)
_DISGUISED = (rb"\u005", rb"\u006", rb"\u007")
"""What an escape of a letter begins with that the keys below are made of."""

_URLS = ("image_url", "audio_url", "video_url", "file_url")
"""The keys of a part whose value is a URL, or an object that has one as `url`."""
_OPAQUE = frozenset(("arguments", "input", "tool_calls", "function_call", "parameters", "input_schema"))
"""Below these stands what a tool is called with: it is text to the model."""
_DEEPER = (list, dict)


def may_name_urls(text: bytes) -> bool:
    r"""Whether a look at the parts of a JSON text is worth its price.

    Each key that a URL stands behind ends in `url"`. In a string, that is text, the quote would have a backslash before
    it, so a prompt full of URLs is no reason to look.
    """
    # `rfind` takes half the time of `in`.
    if text.rfind(b'url"') >= 0:
        return True
    return text.rfind(b"\\u00") >= 0 and any(text.rfind(each) >= 0 for each in _DISGUISED)


def urls_in(value: Any) -> Iterator[str]:
    """The URLs of media in decoded messages, or in parts of such, in no order."""
    waiting = [value]
    while waiting:
        at = waiting.pop()
        if isinstance(at, list):
            waiting += [below for below in at if type(below) in _DEEPER]
        elif isinstance(at, dict):
            for name in _URLS:
                yield from _url(at.get(name))
            source = at.get("source")
            if isinstance(source, dict):
                yield from _url(source)
            waiting += [below for name, below in at.items() if type(below) in _DEEPER and name not in _OPAQUE]


def _url(told: Any) -> Iterator[str]:
    if isinstance(told, dict):
        told = told.get("url")
    if isinstance(told, str):
        yield told


def may_be_fetched(url: str, hosts: Sequence[str]) -> bool:
    """Whether a pod that is given this URL fetches nothing, or only from these hosts."""
    if url[:5].lower() == "data:":
        return True
    plain = _PLAIN.fullmatch(url)
    if plain is None:
        return False
    host = plain[1].lower()
    return any(host == each or (each.startswith("*.") and host.endswith(each[1:])) for each in hosts)


def is_host(told: str) -> bool:
    """Whether a text in lower case is a host as `may_be_fetched` compares it."""
    return _HOST.fullmatch(told) is not None
