"""Whether an error is what the contract promises: its shape, a code of the table at the right status, the headers."""

import json
from collections.abc import Mapping

STATUS_OF: Mapping[str, int] = {
    "invalid_json": 400,
    "invalid_request": 400,
    "unsupported": 400,
    "invalid_api_key": 401,
    "model_not_allowed": 403,
    "field_not_allowed": 403,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "body_too_large": 413,
    "uri_too_long": 414,
    "unsupported_media_type": 415,
    "expectation_failed": 417,
    "headers_too_large": 431,
    "rate_limit_exceeded": 429,
    "quota_exceeded": 429,
    "upstream_disconnected": 502,
    "upstream_bad_response": 502,
    "upstream_redirect": 502,
    "upstream_auth": 502,
    "no_ready_pod": 503,
    "queue_full": 503,
    "queue_timeout": 503,
    "draining": 503,
    "overloaded": 503,
    "upstream_ttft_timeout": 504,
    "upstream_timeout": 504,
    "request_quarantined": 500,
    "upstream_failed": 500,
    "internal_error": 500,
}
IN_A_STREAM = frozenset(
    (
        "upstream_truncated",
        "upstream_stalled",
        "upstream_reset",
        "upstream_failed",
        "upstream_timeout",
        "gateway_draining",
    )
)
"""`internal_error` is none of them: it is a fault of the gateway's own."""
OURS = IN_A_STREAM | STATUS_OF.keys()
_WAITS = frozenset(("rate_limit_exceeded", "no_ready_pod", "queue_full", "queue_timeout", "draining", "overloaded"))
_NOT_AGAIN = frozenset(("quota_exceeded", "upstream_ttft_timeout", "upstream_timeout", "request_quarantined"))


def code_of(body: bytes) -> str:
    """The error's code, if there is one to be read."""
    error = _error_in(body)
    return str(error.get("code", "")) if isinstance(error, dict) else ""


def faulty(status: int, headers: Mapping[str, str], body: bytes, request_id: str) -> str:
    """What is wrong with an answer of 400 or above; empty: nothing. `headers` have lower-case names.

    A pod's own 4xx goes to the client in the pod's words: its code is none of ours, and may be a number.
    """
    if headers.get("x-request-id") != request_id:
        return f"x-request-id is {headers.get('x-request-id')!r}"
    if not headers.get("content-type", "").startswith("application/json"):
        return f"content-type is {headers.get('content-type')!r}"
    error = _error_in(body)
    if not isinstance(error, dict) or not all(isinstance(error.get(name), str) for name in ("message", "type")):
        return "the body is no error of OpenAI's or Anthropic's shape"
    code = error.get("code")
    if not isinstance(code, str) or code not in STATUS_OF:
        return "" if status < 500 else f"status {status} with the unknown code {code!r}"
    if STATUS_OF[code] != status:
        return f"{code} with status {status}"
    if code in _WAITS and not headers.get("retry-after", "").isdigit():
        return f"{code} without retry-after"
    if code in _NOT_AGAIN and headers.get("x-should-retry") != "false":
        return f"{code} without x-should-retry: false"
    return ""


def code_in(event: bytes) -> str:
    """The code in an error event: of ours, of a pod's (then it may be anything), or `?`: it says nothing."""
    error = _error_in(b"\n".join(line[5:] for line in event.splitlines() if line.startswith(b"data:")))
    return str(error.get("code") or error.get("type")) if isinstance(error, dict) and error.get("message") else "?"


def _error_in(body: bytes) -> object:
    try:
        told = json.loads(body)
    except ValueError:
        return None
    if not isinstance(told, dict):
        return None
    # The Responses API has the error's members in the event itself.
    return told if told.get("type") == "error" and "error" not in told else told.get("error")
