"""What is decided on a request's head, before its body is read: route, caller, bounds.

A caller that cannot be told leaves no trace but one line and one count: nothing it sent is kept, as a label or
otherwise.
"""

import os
import re
from dataclasses import dataclass

from gateway.core.call import Trail
from gateway.core.caller import ANONYMOUS, Tenant
from gateway.core.errors import (
    BodyTooLarge,
    ExpectationFailed,
    InvalidApiKey,
    InvalidRequest,
    PoolgateError,
    UnsupportedMediaType,
)
from gateway.limits.keys import KeyRing
from gateway.pipeline.exchange import Head
from gateway.pipeline.intake import check_content_type
from gateway.pipeline.operations import MODELS, Operation, find

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}\Z")
_ONCE = (b"authorization", b"x-api-key", b"content-type", b"x-request-id", b"expect")


@dataclass(slots=True)
class Visit:
    """A request whose head was looked at. With `error` set it goes no further."""

    head: Head
    trail: Trail
    operation: Operation = MODELS
    model_id: str | None = None
    """Of `/v1/models/{id}`."""
    tenant: Tenant = ANONYMOUS
    error: PoolgateError | None = None


class RequestIds:
    """Ids that no other gateway and no other request has: a random prefix for the process, and a count."""

    __slots__ = ("_count", "_prefix")

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex()
        self._count = 0

    def next(self) -> str:
        """An id of letters and digits."""
        self._count += 1
        return f"{self._prefix}{self._count:08x}"


class Reception:
    """Tells who calls and what for. `keys` None: authentication is off; may be replaced at any time."""

    def __init__(self, keys: KeyRing | None, max_body_bytes: int) -> None:
        self.keys = keys
        self.max_body_bytes = max_body_bytes
        self._ids = RequestIds()

    def receive(self, head: Head) -> Visit:
        """Look at a head. Never raises: a visit that is refused bears its error."""
        fields = head.fields
        ours = self._ids.next()
        trail = Trail(ours, head.received_at)
        trail.pod_request_id = ours
        if b"x-request-id" in fields and _REQUEST_ID.match(fields[b"x-request-id"]):
            trail.request_id = fields[b"x-request-id"].decode("ascii")
            trail.pod_request_id = f"{trail.request_id}-{ours}"
        visit = Visit(head, trail)
        try:
            operation, visit.model_id = find(head.method, head.target)
            visit.operation = operation
            trail.operation = operation.label
            if head.repeated:
                self._check_repeated(head.repeated)
            visit.tenant = trail.tenant = self._identify(fields)
            if b"expect" in fields and fields[b"expect"].lower() != b"100-continue":
                raise ExpectationFailed("the only expectation that is met is 100-continue")
            if operation.has_body:
                self._check_body(fields)
        except PoolgateError as error:
            visit.error = error
        return visit

    def stranger(self, received_at: float, error: PoolgateError) -> Visit:
        """A visit of someone whose very head could not be read."""
        head = Head(b"", b"", {}, frozenset(), received_at)
        return Visit(head, Trail(self._ids.next(), received_at), error=error)

    def _check_repeated(self, repeated: frozenset[bytes]) -> None:
        for name in _ONCE:
            if name in repeated:
                raise InvalidRequest(f"the header {name.decode()} came more than once")

    def _identify(self, fields: dict[bytes, bytes]) -> Tenant:
        if self.keys is None:
            return ANONYMOUS
        authorization = fields.get(b"authorization")
        key = fields.get(b"x-api-key")
        if authorization is not None:
            bearer = authorization[7:].strip()
            if authorization[:7].lower() != b"bearer " or (key is not None and key != bearer):
                raise InvalidApiKey("send one key, as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'")
            key = bearer
        if not key:
            raise InvalidApiKey("no API key: send 'Authorization: Bearer KEY'")
        tenant = self.keys.tenant_of(key)
        if tenant is None:
            raise InvalidApiKey("this API key is unknown, disabled or expired")
        return tenant

    def _check_body(self, fields: dict[bytes, bytes]) -> None:
        if b"content-encoding" in fields and fields[b"content-encoding"].lower() != b"identity":
            raise UnsupportedMediaType("send the body without a Content-Encoding")
        content_type = fields.get(b"content-type", b"")
        if content_type != b"application/json":
            check_content_type(content_type)
        length = fields.get(b"content-length")
        if length is not None and int(length) > self.max_body_bytes:
            raise self.too_large()

    def too_large(self) -> BodyTooLarge:
        """The refusal of a body beyond the bound."""
        return BodyTooLarge(f"the body is larger than {self.max_body_bytes} bytes")
