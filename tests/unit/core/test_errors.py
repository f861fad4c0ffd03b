"""The contract's error table: every cause that exists, by status, type and code; and the rest by who brings it."""

import json

import pytest

from gateway.core import errors
from gateway.core.errors import PoolgateError

# (class, status, type, code) as the contract has them.
TABLE = [
    (errors.InvalidJson, 400, "invalid_request_error", "invalid_json"),
    (errors.InvalidRequest, 400, "invalid_request_error", "invalid_request"),
    (errors.Unsupported, 400, "invalid_request_error", "unsupported"),
    (errors.InvalidApiKey, 401, "authentication_error", "invalid_api_key"),
    (errors.ModelNotFound, 404, "invalid_request_error", "model_not_found"),
    (errors.NotFound, 404, "invalid_request_error", "not_found"),
    (errors.RequestTimeout, 408, "invalid_request_error", "request_timeout"),
    (errors.BodyTooLarge, 413, "invalid_request_error", "body_too_large"),
    (errors.UriTooLong, 414, "invalid_request_error", "uri_too_long"),
    (errors.UnsupportedMediaType, 415, "invalid_request_error", "unsupported_media_type"),
    (errors.ExpectationFailed, 417, "invalid_request_error", "expectation_failed"),
    (errors.HeadersTooLarge, 431, "invalid_request_error", "headers_too_large"),
    (errors.UpstreamDisconnected, 502, "upstream_error", "upstream_disconnected"),
    (errors.UpstreamBadResponse, 502, "upstream_error", "upstream_bad_response"),
    (errors.UpstreamRedirect, 502, "upstream_error", "upstream_redirect"),
    (errors.UpstreamAuth, 502, "upstream_error", "upstream_auth"),
    (errors.UpstreamTtftTimeout, 504, "timeout_error", "upstream_ttft_timeout"),
    (errors.UpstreamTimeout, 504, "timeout_error", "upstream_timeout"),
    (errors.UpstreamFailed, 500, "server_error", "upstream_failed"),
    (errors.InternalError, 500, "server_error", "internal_error"),
    (errors.StreamTruncated, 502, "upstream_error", "upstream_truncated"),
    (errors.StreamReset, 502, "upstream_error", "upstream_reset"),
    (errors.StreamStalled, 504, "timeout_error", "upstream_stalled"),
    (errors.StreamDraining, 503, "overloaded_error", "gateway_draining"),
]
WITH_ARGUMENTS = [
    (errors.Forbidden("m", code="model_not_allowed"), 403, "permission_error", "model_not_allowed"),
    (errors.Forbidden("m", code="field_not_allowed"), 403, "permission_error", "field_not_allowed"),
    (errors.MethodNotAllowed("m", allow=b"POST"), 405, "invalid_request_error", "method_not_allowed"),
    (errors.NoReadyPod("m", retry_after_seconds=5), 503, "overloaded_error", "no_ready_pod"),
    (errors.Draining("m", retry_after_seconds=1), 503, "overloaded_error", "draining"),
    (errors.QueueFull("m", retry_after_seconds=1), 503, "overloaded_error", "queue_full"),
    (errors.QueueTimeout("m", retry_after_seconds=1), 503, "overloaded_error", "queue_timeout"),
    (errors.Quarantined("m"), 500, "server_error", "request_quarantined"),
    (errors.Busy("m", retry_after_seconds=1), 503, "overloaded_error", "overloaded"),
    (errors.RateLimited("m", retry_after_seconds=1), 429, "rate_limit_error", "rate_limit_exceeded"),
    (errors.QuotaExceeded("m", retry_after_seconds=1), 429, "insufficient_quota", "quota_exceeded"),
]
CONTRACT = {
    "invalid_json",
    "invalid_request",
    "unsupported",
    "invalid_api_key",
    "model_not_allowed",
    "field_not_allowed",
    "model_not_found",
    "not_found",
    "method_not_allowed",
    "request_timeout",
    "body_too_large",
    "uri_too_long",
    "unsupported_media_type",
    "expectation_failed",
    "headers_too_large",
    "rate_limit_exceeded",
    "quota_exceeded",
    "upstream_disconnected",
    "upstream_bad_response",
    "upstream_redirect",
    "upstream_auth",
    "no_ready_pod",
    "queue_full",
    "queue_timeout",
    "draining",
    "overloaded",
    "upstream_ttft_timeout",
    "upstream_timeout",
    "request_quarantined",
    "upstream_failed",
    "internal_error",
    "upstream_truncated",
    "upstream_stalled",
    "upstream_reset",
    "gateway_draining",
}


def made() -> list[tuple[PoolgateError, int, str, str]]:
    return [(kind("m"), status, type_, code) for kind, status, type_, code in TABLE] + WITH_ARGUMENTS


@pytest.mark.parametrize(("error", "status", "type_", "code"), made(), ids=lambda value: str(value))
def test_each_cause_has_the_contracts_status_type_and_code(
    error: PoolgateError, status: int, type_: str, code: str
) -> None:
    told = json.loads(error.body())["error"]
    assert (error.http_status, told["type"], told["code"]) == (status, type_, code)
    assert set(told) == {"message", "type", "param", "code"}


def test_every_code_of_the_contract_is_here() -> None:
    assert {code for _, _, _, code in made()} == CONTRACT


def test_every_error_class_stands_in_the_table() -> None:
    def leaves(kind: type[PoolgateError]) -> set[type[PoolgateError]]:
        return {kind}.union(*(leaves(below) for below in kind.__subclasses__()))

    listed = {type(error) for error, *_ in made()}
    public = {kind for kind in leaves(PoolgateError) if kind.__module__ == errors.__name__}
    assert public - listed == {
        PoolgateError,
        errors.Upstream,
        errors.Overloaded,
        errors.PodRefusal,
    }


def test_retry_hints_are_exact_in_milliseconds_and_rounded_up_in_seconds() -> None:
    assert errors.Busy("m", retry_after_seconds=1.2).headers() == ((b"retry-after", b"2"), (b"retry-after-ms", b"1200"))
    assert errors.Busy("m", retry_after_seconds=0).headers() == ((b"retry-after", b"1"), (b"retry-after-ms", b"1"))
    assert errors.UpstreamTtftTimeout("m").headers() == ((b"x-should-retry", b"false"),)
    assert errors.Quarantined("m").headers() == ((b"x-should-retry", b"false"),)


def test_a_limit_tells_when_to_come_back_never_too_early() -> None:
    assert errors.RateLimited("m", retry_after_seconds=2.0001).headers() == (
        (b"retry-after", b"3"),
        (b"retry-after-ms", b"2001"),
    )
    assert errors.RateLimited("m").headers() == ((b"x-should-retry", b"false"),)
    assert errors.QuotaExceeded("m", retry_after_seconds=2.0).headers() == ((b"x-should-retry", b"false"),)


def test_a_message_that_utf8_cannot_say_is_still_an_answer() -> None:
    assert json.loads(errors.ModelNotFound("the model '\ud800'").body())["error"]["message"]
