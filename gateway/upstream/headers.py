"""Which headers go to a pod. Nothing of the caller's passes but what stands here.

The caller's `Authorization` never reaches a pod: the pod's own key does. Our request id is one per attempt, since
vLLM refuses a second request that bears the id of a running one. The priority is the gateway's word as well: vLLM
takes that header before a `priority` in the body. Where we trace, it is our span that the pod is told of.

Answers are asked for as they are: what is read in passing must be readable, and what is compressed has no size that
could be bounded. Whoever compresses all the same (a middleware, a sidecar) is refused.
"""

from collections.abc import Mapping

_TRACE = (b"traceparent", b"tracestate")
_PASSED = (b"accept", *_TRACE)
_PASSED_BESIDE_TRACE = (b"accept",)
_MAX_PASSED_BYTES = 512


def request_head(
    path: bytes,
    host: bytes,
    authorization: bytes,
    fields: Mapping[bytes, bytes],
    content_type: bytes,
    attempt_id: str,
    length: int,
    priority: int = 0,
    trace: bytes | None = None,
) -> bytes:
    """The head of a POST to a pod. `fields` are the caller's headers, names lower case. Priority 0 is not told.

    `trace`: whole lines, in place of what the caller says of its trace.
    """
    passed = b"x-vllm-priority: %d\r\n" % priority if priority else b""
    if trace is not None:
        passed += trace
    for name in _PASSED if trace is None else _PASSED_BESIDE_TRACE:
        value = fields.get(name)
        if value and len(value) <= _MAX_PASSED_BYTES:
            passed += b"%b: %b\r\n" % (name, value)
    return (
        b"POST %b HTTP/1.1\r\nhost: %b\r\n%bcontent-type: %b\r\ncontent-length: %d\r\n"
        b"accept-encoding: identity\r\nx-request-id: %b\r\n%b\r\n"
    ) % (
        path,
        host,
        authorization,
        content_type,
        length,
        attempt_id.encode("ascii"),
        passed,
    )


def fetch_head(path: bytes, host: bytes, authorization: bytes) -> bytes:
    """The head of a GET to a pod."""
    return b"GET %b HTTP/1.1\r\nhost: %b\r\n%baccept: application/json\r\naccept-encoding: identity\r\n\r\n" % (
        path,
        host,
        authorization,
    )
