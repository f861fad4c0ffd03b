"""Which headers go to a pod. Nothing of the caller's passes but what stands here.

The caller's `Authorization` never reaches a pod: the pod's own key does. Our request id is one per attempt, since
vLLM refuses a second request that bears the id of a running one. The priority is the gateway's word as well: vLLM
takes that header before a `priority` in the body. Where we trace, it is our span that the pod is told of.

Answers are asked for as they are: what is read in passing must be readable, and what is compressed has no size that
could be bounded. Whoever compresses all the same (a middleware, a sidecar) is refused.
"""

from collections.abc import Mapping
from typing import ClassVar

_TRACE = (b"traceparent", b"tracestate")
_PASSED = (b"accept", *_TRACE)
_PASSED_BESIDE_TRACE = (b"accept",)
_MAX_PASSED_BYTES = 512


class RequestHeads:
    """Makes the heads of POSTs to pods, and keeps most of the usual ones: the same callers ask the same pods, and only
    the length and the id are others each time.

    What is kept is found by all that it was made of, so nothing makes it untrue. When there is too much of it, all of
    it is dropped.
    """

    max_kept: ClassVar[int] = 256

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[tuple[bytes, bytes, bytes, bytes, bytes], bytes] = {}

    def of(
        self,
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
        """One of them. `fields` are the caller's headers, names lower case. Priority 0 is not told.

        `trace`: whole lines, in place of what the caller says of its trace.
        """
        if priority or trace is not None or b"traceparent" in fields or b"tracestate" in fields:
            all_but = _all_but(path, host, authorization, content_type, _passed(fields, priority, trace))
        else:
            alike = (path, host, authorization, content_type, fields.get(b"accept", b""))
            all_but = self._kept.get(alike) or self._made(alike, _passed(fields))
        return all_but % (length, attempt_id.encode("ascii"))

    def _made(self, alike: tuple[bytes, bytes, bytes, bytes, bytes], passed: bytes) -> bytes:
        *to, content_type, accept = alike
        all_but = _all_but(*to, content_type, passed)
        # A form's boundary never comes again.
        if max(len(content_type), len(accept)) <= _MAX_PASSED_BYTES and not content_type.startswith(b"multipart/"):
            if len(self._kept) >= self.max_kept:
                self._kept.clear()
            self._kept[alike] = all_but
        return all_but


def _passed(fields: Mapping[bytes, bytes], priority: int = 0, trace: bytes | None = None) -> bytes:
    """The lines of what the pod is told of the caller."""
    passed = b"x-vllm-priority: %d\r\n" % priority if priority else b""
    if trace is not None:
        passed += trace
    for name in _PASSED if trace is None else _PASSED_BESIDE_TRACE:
        value = fields.get(name)
        if value and len(value) <= _MAX_PASSED_BYTES:
            passed += b"%b: %b\r\n" % (name, value)
    return passed


def _all_but(*said: bytes) -> bytes:
    """A head but for its length and its id, which are put in by `%`."""
    return (
        b"POST %b HTTP/1.1\r\nhost: %b\r\n%bcontent-type: %b\r\ncontent-length: %%d\r\n"
        b"accept-encoding: identity\r\nx-request-id: %%b\r\n%b\r\n"
    ) % tuple([each.replace(b"%", b"%%") for each in said])


def fetch_head(path: bytes, host: bytes, authorization: bytes) -> bytes:
    """The head of a GET to a pod."""
    return b"GET %b HTTP/1.1\r\nhost: %b\r\n%baccept: application/json\r\naccept-encoding: identity\r\n\r\n" % (
        path,
        host,
        authorization,
    )
