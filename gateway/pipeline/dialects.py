"""How an operation speaks of errors: as a whole answer, and as the last event of a stream that was cut.

OpenAI's chat routes end every stream with `[DONE]`; its Responses API and Anthropic's Messages API name their events
and know no end mark. What a pod itself said about a request keeps the pod's own words, and as an answer its shape.
"""

import json
from collections.abc import Mapping
from typing import Any

from gateway.core.errors import PodRefusal, PoolgateError

END_MARK = b"data: [DONE]\n\n"


class Dialect:
    """OpenAI's: `{"error": {"message", "type", "param", "code"}}`, in streams `data:` events and an end mark."""

    end_mark = END_MARK
    """What follows a stream's last event; empty where the last event says so itself."""

    def body(self, error: PoolgateError) -> bytes:
        """The error as a whole answer."""
        return error.body()

    def event(self, error: PoolgateError, events_before: int) -> bytes:
        """The error as the last event of a stream of which `events_before` were relayed, and the end mark."""
        return b"data: %b\n\n%b" % (_in_one_line(error.body()), self.end_mark)


class ResponsesDialect(Dialect):
    """OpenAI's Responses API: errors in streams are events of their own kind, numbered like the others from 0."""

    end_mark = b""

    def event(self, error: PoolgateError, events_before: int) -> bytes:
        told = {"code": error.code, "message": error.message, "param": error.param} | _own_words(error)
        return _event(_json({"type": "error", **told, "sequence_number": events_before}))


class AnthropicDialect(Dialect):
    """Anthropic's Messages API: `{"type": "error", "error": {"type", "message", "code"}}`."""

    end_mark = b""

    def body(self, error: PoolgateError) -> bytes:
        return error.body() if isinstance(error, PodRefusal) else _json(_in_anthropics_words(error))

    def event(self, error: PoolgateError, events_before: int) -> bytes:
        return _event(_json(_in_anthropics_words(error)))


OPENAI = Dialect()
RESPONSES = ResponsesDialect()
ANTHROPIC = AnthropicDialect()

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def _in_anthropics_words(error: PoolgateError) -> dict[str, Any]:
    status = error.http_status
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message, "code": error.code} | _own_words(error)}


def _own_words(error: PoolgateError) -> dict[str, Any]:
    """What a pod said of a request, where its shape is not that of an event."""
    if not isinstance(error, PodRefusal):
        return {}
    told = json.loads(error.body())["error"]
    return {"message": str(told.get("message", ""))}


def _in_one_line(body: bytes) -> bytes:
    """A pod may write its JSON in many lines: each would be one of the stream. Inside a string there is no line end."""
    return body.replace(b"\r", b" ").replace(b"\n", b" ")


def _event(data: bytes) -> bytes:
    return b"event: error\ndata: %b\n\n" % data


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
