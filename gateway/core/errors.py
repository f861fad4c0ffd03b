"""Every way a request can be refused or fail, each with its status, type, code and retry hint.

    PoolgateError
    ├── InvalidRequest       400 and its kin: the request itself must change
    │   ├── InvalidJson         400 invalid_json
    │   ├── Unsupported         400 unsupported
    │   ├── RequestTimeout      408 request_timeout
    │   ├── BodyTooLarge        413 body_too_large
    │   ├── UriTooLong          414 uri_too_long
    │   ├── UnsupportedMediaType 415 unsupported_media_type
    │   ├── ExpectationFailed   417 expectation_failed
    │   ├── HeadersTooLarge     431 headers_too_large
    │   ├── NotFound            404 not_found
    │   ├── MethodNotAllowed    405 method_not_allowed
    │   └── ModelNotFound       404 model_not_found
    ├── InvalidApiKey        401 invalid_api_key
    ├── Forbidden            403 model_not_allowed, field_not_allowed
    ├── Upstream             the pod's side
    │   ├── UpstreamDisconnected 502 upstream_disconnected
    │   ├── UpstreamBadResponse  502 upstream_bad_response
    │   ├── UpstreamRedirect     502 upstream_redirect
    │   ├── UpstreamAuth         502 upstream_auth
    │   ├── UpstreamTtftTimeout  504 upstream_ttft_timeout
    │   ├── UpstreamTimeout      504 upstream_timeout
    │   ├── UpstreamFailed       500 upstream_failed
    │   └── in a stream: StreamTruncated, StreamReset, StreamStalled
    ├── StreamDraining       in a stream: this replica goes away
    ├── Overloaded           503, our capacity, with an estimate of when to come back
    │   ├── NoReadyPod          503 no_ready_pod
    │   ├── QueueFull           503 queue_full
    │   ├── QueueTimeout        503 queue_timeout
    │   ├── Draining            503 draining
    │   └── Busy                503 overloaded
    ├── RateLimited          429 rate_limit_exceeded: a limit of the caller's own
    │   └── QuotaExceeded       429 quota_exceeded: the same for a day's limit
    ├── PodRefusal           a pod's own 4xx, passed on byte for byte
    ├── Quarantined          500 request_quarantined
    └── InternalError        500 internal_error

The names on the wire are the contract's. Messages say what to do next and never hold an address or a key.
"""

import json
from math import ceil
from typing import ClassVar

_NO_RETRY = (b"x-should-retry", b"false")
"""Said to the SDKs, which would send it twice more."""


class PoolgateError(Exception):
    """An answer in OpenAI's error shape: `{"error": {"message", "type", "param", "code"}}`."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str = "internal_error"
    outcome: ClassVar[str] = "refused"
    """The `outcome` label this ending bears in metrics and in the access line."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    @property
    def http_status(self) -> int:
        """The status of the answer, where nothing was sent yet."""
        return self.status

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Headers beside the body: retry hints, Allow."""
        return ()

    def body(self) -> bytes:
        """The answer's JSON."""
        return json.dumps({"error": self._members()}, ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "backslashreplace"
        )

    def _members(self) -> dict[str, str | None]:
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}


class InvalidRequest(PoolgateError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class InvalidJson(InvalidRequest):
    code = "invalid_json"


class Unsupported(InvalidRequest):
    """What cannot be kept before several pods, such as an answer that one of them remembers."""

    code = "unsupported"


class RequestTimeout(InvalidRequest):
    status = 408
    code = "request_timeout"


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "body_too_large"


class UriTooLong(InvalidRequest):
    status = 414
    code = "uri_too_long"


class UnsupportedMediaType(InvalidRequest):
    status = 415
    code = "unsupported_media_type"


class ExpectationFailed(InvalidRequest):
    status = 417
    code = "expectation_failed"


class HeadersTooLarge(InvalidRequest):
    status = 431
    code = "headers_too_large"


class NotFound(InvalidRequest):
    status = 404
    code = "not_found"


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: bytes) -> None:
        super().__init__(message)
        self.allow = allow

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return ((b"allow", self.allow),)


class ModelNotFound(InvalidRequest):
    status = 404
    code = "model_not_found"


class InvalidApiKey(PoolgateError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return ((b"www-authenticate", b"Bearer"),)


class Forbidden(PoolgateError):
    status = 403
    type = "permission_error"

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code


class Upstream(PoolgateError):
    status = 502
    type = "upstream_error"
    outcome = "upstream_failed"


class UpstreamDisconnected(Upstream):
    code = "upstream_disconnected"
    outcome = "truncated"


class UpstreamBadResponse(Upstream):
    code = "upstream_bad_response"


class UpstreamRedirect(Upstream):
    code = "upstream_redirect"


class UpstreamAuth(Upstream):
    code = "upstream_auth"


class UpstreamTimeout(Upstream):
    """`x-should-retry: false`: the SDKs would otherwise send the same long request twice more."""

    status = 504
    type = "timeout_error"
    code = "upstream_timeout"
    outcome = "upstream_timeout"

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return (_NO_RETRY,)


class UpstreamTtftTimeout(UpstreamTimeout):
    code = "upstream_ttft_timeout"


class UpstreamFailed(Upstream):
    status = 500
    type = "server_error"
    code = "upstream_failed"


class StreamTruncated(Upstream):
    """In a stream: the pod ended before the answer was whole."""

    code = "upstream_truncated"
    outcome = "truncated"


class StreamReset(Upstream):
    """In a stream: the pod's connection broke."""

    code = "upstream_reset"
    outcome = "truncated"


class StreamStalled(UpstreamTimeout):
    """In a stream: nothing came for longer than the pool's idle deadline."""

    code = "upstream_stalled"


class StreamDraining(PoolgateError):
    """In a stream: this replica of the gateway is going away."""

    status = 503
    type = "overloaded_error"
    code = "gateway_draining"
    outcome = "truncated"


class Overloaded(PoolgateError):
    status = 503
    type = "overloaded_error"

    def __init__(self, message: str, *, retry_after_seconds: float, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_seconds = retry_after_seconds

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return _wait(self.retry_after_seconds)


class NoReadyPod(Overloaded):
    code = "no_ready_pod"


class QueueFull(Overloaded):
    code = "queue_full"


class QueueTimeout(Overloaded):
    code = "queue_timeout"


class Draining(Overloaded):
    code = "draining"


class Busy(Overloaded):
    code = "overloaded"


class RateLimited(PoolgateError):
    """One of the caller's own limits. `retry_after_seconds` None: waiting does not help. `shown`: header lines that
    tell where the limits stand."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        shown: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.shown = shown

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        if self.retry_after_seconds is None:
            return (_NO_RETRY,)
        return _wait(self.retry_after_seconds)


class QuotaExceeded(RateLimited):
    """What comes back over a day is nothing to wait for: the SDKs are told not to."""

    type = "insufficient_quota"
    code = "quota_exceeded"

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return (_NO_RETRY,)


class PodRefusal(PoolgateError):
    """A pod's own 4xx answer about this very request; its body goes to the client byte for byte."""

    type = "invalid_request_error"
    code = "upstream_refusal"

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"the pod refused the request with status {status}")
        self._status = status
        self._body = body

    @property
    def http_status(self) -> int:
        return self._status

    def body(self) -> bytes:
        return self._body


class Quarantined(PoolgateError):
    """Two pods died with this very request in hand: a third one is spared."""

    code = "request_quarantined"

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return (_NO_RETRY,)


class InternalError(PoolgateError):
    outcome = "internal"


def _wait(seconds: float) -> tuple[tuple[bytes, bytes], ...]:
    """When to come back, in whole seconds and exactly; never before it is over."""
    # 2.007 * 1000 is a little more than 2007.
    milliseconds = max(1, ceil(seconds * 1000 - 1e-6))
    return (b"retry-after", b"%d" % -(-milliseconds // 1000)), (b"retry-after-ms", b"%d" % milliseconds)
