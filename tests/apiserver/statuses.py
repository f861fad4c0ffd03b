"""What the server says when it refuses: Status objects, worded as kube-apiserver 1.36 does."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.apiserver.http import Answer

TOO_OLD_LIST = "The resourceVersion for the provided list is too old."
TOO_OLD_CONTINUE = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)


class Refused(Exception):
    """This answer instead of what was asked for."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


@dataclass(frozen=True)
class WatchLines:
    """Instead of a watch: 200, these lines, and a clean end. An error of a watch comes so, not as an HTTP status."""

    lines: tuple[bytes, ...]


def encode(value: Any) -> bytes:
    """JSON without blanks, as the server writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def status_object(
    code: int,
    reason: str,
    message: str,
    details: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": dict(metadata or {}),
        "status": "Failure",
        "message": message,
        **({"reason": reason} if reason else {}),
        **({} if details is None else {"details": dict(details)}),
        "code": code,
    }


def refusal(code: int, reason: str, message: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> Answer:
    """An HTTP error with its Status. `more`: details, metadata."""
    body = encode(status_object(code, reason, message, **more)) + b"\n"
    return Answer(code, body, headers or {}, let_in=code != 401)


def error_event(code: int, reason: str, message: str) -> bytes:
    """The line that ends a watch."""
    return encode({"type": "ERROR", "object": status_object(code, reason, message)}) + b"\n"


def failed_watch(
    code: int = 410, reason: str = "Expired", message: str = "too old resource version: 1 (2)"
) -> WatchLines:
    """A watch that ends at once: HTTP 200, one ERROR event, the final chunk. 410 by default."""
    return WatchLines((error_event(code, reason, message),))


def unauthorized() -> Answer:
    """A bad or expired token. Never reaches flow control, so its headers are fewer."""
    return refusal(401, "Unauthorized", "Unauthorized")


def forbidden(user: str, verb: str, resource: str, namespace: str, group: str = "", name: str = "") -> Answer:
    """No RBAC rule allows it."""
    scope = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    what, named = (f'{resource} "{name}"', {"name": name}) if name else (resource, {})
    message = f'{what} is forbidden: User "{user}" cannot {verb} resource "{resource}" in API group "{group}" {scope}'
    headers = {"X-Content-Type-Options": "nosniff"}
    return refusal(403, "Forbidden", message, details={**named, "kind": resource}, headers=headers)


def forbidden_path(user: str, verb: str, path: str) -> Answer:
    message = f'forbidden: User "{user}" cannot {verb} path "{path}"'
    return refusal(403, "Forbidden", message, details={}, headers={"X-Content-Type-Options": "nosniff"})


def bad_request(message: str) -> Answer:
    return refusal(400, "BadRequest", message)


def invalid_options(field: str, message: str) -> Answer:
    """Options that contradict each other: 422."""
    told = f"{field}: Forbidden: {message}"
    causes = [{"reason": "FieldValueForbidden", "message": f"Forbidden: {message}", "field": field}]
    details = {"group": "meta.k8s.io", "kind": "ListOptions", "causes": causes}
    return refusal(422, "Invalid", f'ListOptions.meta.k8s.io "" is invalid: {told}', details=details)


def too_large_version(asked: int, current: int) -> Answer:
    """A list from a version that is yet to come: 504 with Retry-After, after about 3 s."""
    details = {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    }
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    return refusal(504, "Timeout", message, details=details, headers={"Retry-After": "1"})


def expired_list() -> Answer:
    """Exactly this version was asked for, and etcd has forgotten it."""
    return refusal(410, "Expired", TOO_OLD_LIST)


def expired_continue(fresh: str) -> Answer:
    """A page of a list that is too old, with a token that goes on, inconsistently, from there."""
    return refusal(410, "Expired", TOO_OLD_CONTINUE, metadata={"continue": fresh})


def too_many_requests(retry_after: int = 1) -> Answer:
    """From flow control, before any handler: plain text, not a Status. From its source, not from a recording."""
    headers = {
        "Content-Type": "text/plain; charset=utf-8",
        "Retry-After": str(retry_after),
        "X-Content-Type-Options": "nosniff",
    }
    return Answer(429, b"Too many requests, please try again later.\n", headers)


def starting_up(retry_after: int = 1) -> Answer:
    """429 as a Status: the watch cache is not there yet. From the server's source, not from a recording."""
    message = "storage is (re)initializing"
    details = {"retryAfterSeconds": retry_after}
    return refusal(429, "TooManyRequests", message, details=details, headers={"Retry-After": str(retry_after)})


def internal_error(told: str = "etcdserver: request timed out", retry_after: int | None = None) -> Answer:
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    message = f"Internal error occurred: {told}"
    return refusal(500, "InternalError", message, details={"causes": [{"message": told}]}, headers=headers)


def gateway_timeout(retry_after: int = 1) -> Answer:
    """504 without a word on versions, as a loaded server or the proxy before it says."""
    message = "Timeout: request did not complete within the allotted timeout"
    details = {"retryAfterSeconds": retry_after}
    return refusal(504, "Timeout", message, details=details, headers={"Retry-After": str(retry_after)})


def not_found(path: str) -> Answer:
    message = "the server could not find the requested resource"
    return refusal(404, "NotFound", message, details={"causes": [{"message": path}]})


def no_such(kind: str, name: str) -> Answer:
    """`kind`: in the plural, such as pods."""
    return refusal(404, "NotFound", f'{kind} "{name}" not found', details={"name": name, "kind": kind})


def already_exists(kind: str, name: str) -> Answer:
    return refusal(409, "AlreadyExists", f'{kind} "{name}" already exists', details={"name": name, "kind": kind})


def invalid(kind: str, name: str, field: str, message: str) -> Answer:
    """An object that validation does not let in: 422. `kind`: in the singular, such as Secret."""
    causes = [{"reason": "FieldValueInvalid", "message": message, "field": field}]
    details = {"name": name, "kind": kind, "causes": causes}
    return refusal(422, "Invalid", f'{kind} "{name}" is invalid: {field}: {message}', details=details)


def method_not_allowed() -> Answer:
    """The stand-in writes nothing over HTTP but Secrets."""
    message = "the server does not allow this method on the requested resource"
    return refusal(405, "MethodNotAllowed", message)
