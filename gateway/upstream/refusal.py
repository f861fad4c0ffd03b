"""A pod's error answer, in any of vLLM's four shapes, as what the client gets and what the retry table calls it.

    {"error": {"message", "type", "param", "code"}}     nested: a 4xx passes byte for byte
    {"detail": "..."}                                    FastAPI's own: 404, 405, 400
    {"error": "Unauthorized"}                            a string
    {"type": "error", "error": {...}}                    Anthropic's, on /v1/messages: a 4xx passes as well

A pod's 401 or 403 is our wrong key, never the caller's. Messages of 5xx lose whatever looks like a path or an
address before they are passed on.
"""

import re

import msgspec

from gateway.core.errors import (
    Busy,
    InvalidRequest,
    NotFound,
    PodRefusal,
    PoolgateError,
    UpstreamAuth,
    UpstreamBadResponse,
    UpstreamFailed,
    UpstreamRedirect,
)
from gateway.upstream.failure import Failure
from gateway.upstream.usage import PodError, read_error

BUSY_RETRY_SECONDS = 1.0
MAX_MESSAGE_CHARACTERS = 512

# On /v1/messages an error inside the chat that vLLM made of it is told by its first two letters.
_SHUTTING_DOWN = ("cannot schedule new futures after shutdown", "{'error': {'message': 'ca...")
_ENGINE_DEAD = ("enginecore encountered an issue", "engine dead", "enginedead", "{'error': {'message': 'en...")
"""What vLLM says when its process shuts down, or its engine has died; lower case (captured from 0.32.0)."""

_PRIVATE = re.compile(
    r"\b[a-z][a-z0-9+.-]{0,20}://\S+"  # URLs
    r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"  # IPv4, with a port
    r"|\[?(?:[0-9a-f]{0,4}:){2,7}(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-f]{0,4})\]?(?::\d+)?"  # IPv6
    r"|(?<![\w.])/[\w.@+-]+(?:/[\w.@+-]+)*/?"  # file paths
    r"|\b[\w-]{1,63}(?:\.[\w-]{1,63}){0,8}:\d{2,5}\b"  # host:port
    r"|\b[\w-]{1,63}(?:\.[\w-]{1,63}){0,8}\.(?:svc|local|internal)\b(?:\.[\w-]{1,63}){0,8}",  # a cluster's names
    re.IGNORECASE,
)


class _Body(msgspec.Struct):
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    detail: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_body = msgspec.json.Decoder(_Body)


def without_addresses(message: str) -> str:
    """The message with URLs, addresses and file paths taken out, and cut to a sensible length."""
    # Cut first: what a pod sends has no bound, and some of these patterns look far ahead.
    return _PRIVATE.sub("…", message[: 2 * MAX_MESSAGE_CHARACTERS])[:MAX_MESSAGE_CHARACTERS]


def refusal(status: int, body: bytes, retry_after: bytes | None = None) -> tuple[Failure, PoolgateError]:
    """What an answer other than 200 means. `retry_after` is the pod's header of that name."""
    nested, message = _read(body)
    if status in (401, 403):
        return Failure.JUNK, UpstreamAuth("the pod refused the gateway's key: check upstream.api_key")
    if status in (429, 503):
        seconds = _seconds(retry_after)
        return Failure.BUSY, Busy("the pods of this model are busy, try again shortly", retry_after_seconds=seconds)
    if 300 <= status < 400:
        return Failure.JUNK, UpstreamRedirect("the pod answered with a redirect, which is never followed")
    if status in (502, 504):
        return Failure.SIDECAR, UpstreamBadResponse(f"the pod's proxy answered with status {status}")
    if status >= 500:
        return server_error(nested or PodError(message=message))
    if 400 <= status < 500:
        if nested is not None:
            # Anthropic's shape has no param.
            gone = status == 404 and (nested.param == "model" or (nested.type, nested.param) == ("NotFoundError", None))
            return (Failure.MODEL_GONE if gone else Failure.REFUSED), PodRefusal(status, body)
        if status == 404:
            return Failure.REFUSED, NotFound("the model's pods do not serve this route")
        return Failure.REFUSED, InvalidRequest(without_addresses(message) or f"the pod refused with status {status}")
    return Failure.JUNK, UpstreamBadResponse(f"the pod answered with status {status}")


def server_error(error: PodError) -> tuple[Failure, PoolgateError]:
    """What a pod's 5xx, or the error event of a stream, means."""
    said = error.message.lower()
    failure = Failure.SERVER_ERROR
    if any(words in said for words in _ENGINE_DEAD):
        failure = Failure.ENGINE_DEAD
    elif any(words in said for words in _SHUTTING_DOWN):
        failure = Failure.DYING
    return failure, UpstreamFailed(without_addresses(error.message) or "the pod failed without a message")


def first_event_error(event_data: bytes, error: PodError) -> tuple[Failure, PoolgateError]:
    """An error as a stream's first event: the status it would have had, had vLLM not sent its 200 first."""
    status = error.code if isinstance(error.code, int) else 500
    if 400 <= status < 600 and status not in (500, 501):
        return refusal(status, event_data)
    return server_error(error)


def _read(body: bytes) -> tuple[PodError | None, str]:
    """(the nested error, or None; the message in whatever shape it came)."""
    try:
        seen = _body.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None, ""
    if seen.error is not msgspec.UNSET:
        raw = bytes(seen.error)
        if raw.startswith(b"{"):
            nested = read_error(raw)
            return nested, nested.message
        return None, _text(raw)
    return None, _text(bytes(seen.detail)) if seen.detail is not msgspec.UNSET else ""


def _text(raw: bytes) -> str:
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""


def _seconds(retry_after: bytes | None) -> float:
    """A pod's Retry-After in whole seconds, within reason; else a second."""
    if retry_after is not None and retry_after.isdigit() and len(retry_after) < 4:
        return float(min(max(int(retry_after), 1), 60))
    return BUSY_RETRY_SECONDS
