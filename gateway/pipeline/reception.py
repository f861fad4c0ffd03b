"""What is decided on a request's head, before its body is read: route, caller, bounds.

A caller that cannot be told leaves no trace but one line and one count: nothing it sent is kept, as a label or
otherwise.
"""

import os
import re

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
from gateway.pipeline.dialects import OPENAI, Dialect
from gateway.pipeline.exchange import Head
from gateway.pipeline.form import boundary_of
from gateway.pipeline.intake import check_json
from gateway.pipeline.operations import JSON, MODELS, Body, Operation, dialect_at, find

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}\Z")
_ONCE = (b"authorization", b"x-api-key", b"content-type", b"x-request-id", b"expect")


class Visit:
    """A request whose head was looked at. With `error` set it goes no further.

    What is not set is the class's own value, as in a `Trail`.
    """

    operation: Operation = MODELS
    model_id: str | None = None
    """Of `/v1/models/{id}`."""
    tenant: Tenant = ANONYMOUS
    user: str = ""
    """For whom the tenant asks, where it is believed; never logged."""
    priority: int = 0
    """In the line of those that wait for a pod: lower comes first."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """What its answer's head says of the caller's limits."""
    refused_in: Dialect | None = None
    """In whose words, if it was refused on its head; else in its operation's."""
    boundary: bytes = b""
    """Of a form's parts."""
    error: PoolgateError | None = None

    def __init__(self, head: Head, trail: Trail, max_body_bytes: int = 0) -> None:
        self.head = head
        self.trail = trail
        self.max_body_bytes = max_body_bytes


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
    """Tells who calls and what for. `keys` None: authentication is off. All three may be replaced at any time."""

    def __init__(self, keys: KeyRing | None, max_body_bytes: int, max_upload_bytes: int) -> None:
        self.keys = keys
        self.max_body_bytes = max_body_bytes
        self.max_upload_bytes = max_upload_bytes
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
        visit = Visit(head, trail, self.max_body_bytes)
        try:
            operation, visit.model_id = find(head.method, head.target)
            visit.operation = operation
            trail.operation = operation.label
            if head.repeated:
                self._check_repeated(head.repeated)
            visit.tenant = trail.tenant = self._identify(fields)
            if b"expect" in fields and fields[b"expect"].lower() != b"100-continue":
                raise ExpectationFailed("the only expectation that is met is 100-continue")
            if operation.body is not Body.NONE:
                self._check_body(visit, fields)
        except PoolgateError as error:
            visit.error = error
            visit.refused_in = dialect_at(head.target)
        return visit

    def stranger(self, received_at: float, error: PoolgateError) -> Visit:
        """A visit of someone whose very head could not be read."""
        head = Head(b"", b"", {}, frozenset(), received_at)
        visit = Visit(head, Trail(self._ids.next(), received_at))
        visit.error = error
        visit.refused_in = OPENAI
        return visit

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

    def _check_body(self, visit: Visit, fields: dict[bytes, bytes]) -> None:
        if b"content-encoding" in fields and fields[b"content-encoding"].lower() != b"identity":
            raise UnsupportedMediaType("send the body without a Content-Encoding")
        content_type = fields.get(b"content-type", b"")
        if visit.operation.body is Body.FORM:
            visit.max_body_bytes = self.max_upload_bytes
            visit.boundary = boundary_of(content_type)
        elif content_type != JSON:
            check_json(content_type)
        length = fields.get(b"content-length")
        if length is not None and int(length) > visit.max_body_bytes:
            raise too_large(visit)


def too_large(visit: Visit) -> BodyTooLarge:
    """The refusal of a body beyond its bound."""
    return BodyTooLarge(f"the body is larger than {visit.max_body_bytes} bytes")
