"""CORS: which pages of other origins a browser lets call the gateway, and what of an answer they may read. Pure.

Off unless origins are listed: then no header of it is sent, and OPTIONS is a method like any other that is not allowed.
It guards a browser's user, not the gateway: whoever is no browser does not ask. Keys travel in a header that a page
must set by itself, and we have no cookies, so `access-control-allow-credentials` is never sent: a page of a foreign
origin can use no key but one that it holds.

A listed origin is told itself; with `*` every page is told `*`, but for one without an origin of its own (`null`: a
file, a sandboxed frame), which is nobody's. Nothing else is reflected. What a page asks for of a private network is not
granted by a header (`access-control-request-private-network` is not answered): browsers ask their user instead.
"""

import re
from collections.abc import Iterable, Mapping

from gateway.core.errors import MethodNotAllowed
from gateway.pipeline.exchange import Headers

MAX_ASKED_BYTES = 2048
MAX_ASKED_NAMES = 64
MAX_AGE_SECONDS = 7200
"""Chromium remembers a preflight no longer than that."""

EXPOSED = (
    b"x-request-id, retry-after, retry-after-ms, x-should-retry, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, "
    b"x-poolgate-pod, x-poolgate-attempts, x-poolgate-decision"
)
"""What a page may read of an answer's head; it can always read its content type."""
_ASKABLE = re.compile(
    rb"accept|authorization|content-type|x-api-key|x-request-id|x-session-id|traceparent|tracestate|idempotency-key"
    rb"|user-agent|anthropic-(?:version|beta|dangerous-direct-browser-access)|openai-(?:organization|project|beta)"
    rb"|x-(?:stainless|openwebui)-[a-z0-9-]{1,48}"
)
"""What a page may send: what we read, and what the SDKs and Open WebUI add."""
_VARIES = b"vary: origin\r\n"


class Origins:
    """The origins that are let in, as browsers write them; `*` alone: every one."""

    def __init__(self, origins: Iterable[str]) -> None:
        listed = tuple(origins)
        self._every = listed == ("*",)
        # Where the answer depends on who asks, a cache must know it of every answer.
        self._to_others = b"" if self._every else _VARIES
        self._lines = {origin.encode("ascii"): _lines(origin.encode("ascii"), _VARIES) for origin in listed}
        self._to_every = _lines(b"*", b"")

    def lines_for(self, fields: Mapping[bytes, bytes], repeated: frozenset[bytes]) -> bytes:
        """What the answer's head says to whoever sent this one: whole lines."""
        if b"origin" not in fields:
            return self._to_others
        origin = fields[b"origin"]
        if self._every:
            return self._to_others if origin == b"null" or b"origin" in repeated else self._to_every
        return self._to_others if b"origin" in repeated else self._lines.get(origin, self._to_others)

    def preflight(self, refused: MethodNotAllowed, fields: Mapping[bytes, bytes], lines: bytes) -> Headers | None:
        """What a browser that asks first is told, where its OPTIONS was `refused`; None: it is no such question, or of
        an origin that is not let in. `lines`: what `lines_for` said.
        """
        if b"access-control-request-method" not in fields or not lines.startswith(b"access-control-"):
            return None
        told: Headers = (
            (b"access-control-allow-methods", refused.allow),
            (b"access-control-max-age", b"%d" % MAX_AGE_SECONDS),
        )
        names = _askable(fields.get(b"access-control-request-headers", b""))
        return (*told, (b"access-control-allow-headers", names)) if names else told


def _lines(origin: bytes, more: bytes) -> bytes:
    return b"access-control-allow-origin: %b\r\naccess-control-expose-headers: %b\r\n%b" % (origin, EXPOSED, more)


def _askable(asked: bytes) -> bytes:
    """Those of the names that a page may send, in its order."""
    if len(asked) > MAX_ASKED_BYTES:
        return b""
    names = [name.strip().lower() for name in asked.split(b",", MAX_ASKED_NAMES)[:MAX_ASKED_NAMES]]
    return b", ".join(name for name in names if _ASKABLE.fullmatch(name))
