"""What is decided on a request's head, before its body is read: route, caller, for whom, bounds.

A caller that cannot be told leaves no trace but one line and one count: nothing it sent is kept, as a label or
otherwise.
"""

import os
import re
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from gateway.core.call import Trail
from gateway.core.caller import ANONYMOUS, MAX_USER_CHARACTERS, Tenant
from gateway.core.errors import (
    BodyTooLarge,
    ExpectationFailed,
    InvalidApiKey,
    InvalidRequest,
    MethodNotAllowed,
    PoolgateError,
    UnsupportedMediaType,
)
from gateway.core.made import blank
from gateway.limits.keys import KeyRing
from gateway.pipeline.cors import Origins
from gateway.pipeline.dialects import OPENAI, Dialect
from gateway.pipeline.exchange import Head, Headers
from gateway.pipeline.form import boundary_of
from gateway.pipeline.intake import check_json
from gateway.pipeline.operations import JSON, MODELS, Body, Operation, dialect_at, find
from gateway.pipeline.overload import Overload
from gateway.pipeline.proxies import Proxies, peer_of
from gateway.telemetry.sampling import Sampler

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}\Z")
_ONCE = (b"authorization", b"x-api-key", b"content-type", b"x-request-id", b"expect")
_NOT_KEPT = (b"authorization", b"x-api-key", b"content-length")
_USER = b"x-openwebui-user-id"
_SIGNED_USER = b"x-openwebui-user-jwt"
_TASK = b"x-openwebui-task"
_STAYS = (b"keep-alive", b"close", b"Keep-Alive")
"""What a Connection field says of the connection alone: nearly all there are."""
_PASSED_ON = (b"accept", b"traceparent", b"tracestate")
"""Of the caller's, to a pod. Only these can be taken from there by name; nothing of ours goes by the caller's word."""
BACKGROUND = 10
"""How much later comes what a program does beside its users' messages, such as a chat's title: nobody watches it, and
there are several for each message. Anybody is believed who says so of himself. More than one step, so that keys can be
put in between."""
MAX_PRIORITY = 1000


class Tokens(Protocol):
    """Tells callers by their tokens."""

    def caller_of(self, token: bytes, address: Callable[[], str]) -> tuple[Tenant, str]:
        """(whose token it is, who uses it). `address`: where it comes from, if that must be known.

        Raises `InvalidApiKey`, and `Busy` if that cannot be told now.
        """
        ...


class ForwardedUsers(Protocol):
    """Tells for whom an application asks, by a token that it signs."""

    def user_of(self, token: bytes, name: str) -> str:
        """The user. `name` is what the token is called in a refusal.

        Raises `InvalidApiKey`.
        """
        ...


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
    limit_lines = b""
    """What its answer's head says of the caller's limits: whole lines."""
    origin_lines = b""
    """What it says to a browser, of the page that asks: whole lines."""
    preflight: Headers | None = None
    """What a browser is told that asks whether it may ask; None: it does not."""
    refused_in: Dialect | None = None
    """In whose words, if it was refused on its head; else in its operation's."""
    boundary: bytes = b""
    """Of a form's parts."""
    error: PoolgateError | None = None

    def __init__(self, head: Head, trail: Trail, max_body_bytes: int = 0) -> None:
        self.head = head
        self.trail = trail
        self.max_body_bytes = max_body_bytes


_blank_trail, _blank_visit = blank(Trail), blank(Visit)


def request_ids() -> Callable[[], str]:
    """What gives an id that no other gateway and no other request has, of letters and digits: a random prefix for the
    process, and a count. All of it is done in C: each request has one."""
    return map(f"{os.urandom(8).hex()}%08x".__mod__, count(1)).__next__


class Regular(NamedTuple):
    """What was decided on a head, for when one comes that says the same, key and all. It holds as long as these keys
    are in force, and their owner's among them."""

    head: Head
    """Without its key and its length."""
    operation: Operation
    tenant: Tenant
    priority: int
    keys: KeyRing


class Reception:
    """Tells who calls and what for. `keys` None: authentication is off. What has no underscore may be replaced at any
    time.

    `tokens` are taken beside keys. With `forwarded_users` an application is believed only by these for whom it asks.
    `sampler` says whose requests are traced; None: nobody's. `overload` says who is turned away; None: nobody.
    `origins` are those whose pages a browser lets in; None: it is not told. `proxies` are believed whose address a
    request comes from.
    """

    def __init__(
        self,
        keys: KeyRing | None,
        max_body_bytes: int,
        max_upload_bytes: int,
        *,
        tokens: Tokens | None = None,
        forwarded_users: ForwardedUsers | None = None,
        sampler: Sampler | None = None,
        overload: Overload | None = None,
        origins: Origins | None = None,
        proxies: Proxies | None = None,
    ) -> None:
        self.keys = keys
        self.max_body_bytes = max_body_bytes
        self.max_upload_bytes = max_upload_bytes
        self.origins = origins
        self.proxies = proxies or Proxies()
        self._tokens = tokens
        self._forwarded_users = forwarded_users
        self._sampler = sampler
        self._overload = overload
        self._next_id = request_ids()

    _NEVER_ALIKE = frozenset((b"x-request-id", b"expect", b"origin", _USER, _SIGNED_USER))
    """With these, heads of the same bytes may still mean different things."""

    def receive(self, head: Head) -> Visit:
        """Look at a head. Never raises: a visit that is refused bears its error."""
        fields = head.fields
        ours = self._next_id()
        trail = Trail(ours, head.received_at)
        trail.pod_request_id = ours
        if b"x-request-id" in fields and _REQUEST_ID.match(fields[b"x-request-id"]):
            trail.request_id = fields[b"x-request-id"].decode("ascii")
            trail.pod_request_id = f"{trail.request_id}-{ours}"
        visit = Visit(head, trail, self.max_body_bytes)
        if self.origins is not None:
            visit.origin_lines = self.origins.lines_for(fields, head.repeated)
        if b"connection" in fields and fields[b"connection"] not in _STAYS:
            _drop_nominated(head)
        try:
            operation, visit.model_id = find(head.method, head.target)
            visit.operation = operation
            trail.operation = operation.label
            if head.repeated:
                self._check_repeated(head.repeated)
            tenant = self._identify(visit, fields)
            visit.tenant = trail.tenant = tenant
            if self._sampler is not None:
                trail.trace = self._sampler.trace_of(fields, head.repeated)
            if tenant.forwards_user:
                visit.user = self._forwarded_user(head)
            if tenant.priority or _TASK in fields:
                visit.priority = _priority(tenant, fields)
            if self._overload is not None and self._overload.level and operation.body is not Body.NONE:
                self._overload.check(visit.priority)
            if b"expect" in fields and fields[b"expect"].lower() != b"100-continue":
                raise ExpectationFailed("the only expectation that is met is 100-continue")
            if operation.body is not Body.NONE:
                self._check_body(visit, fields)
        except PoolgateError as error:
            if self.origins is not None and isinstance(error, MethodNotAllowed) and head.method == b"OPTIONS":
                visit.preflight = self.origins.preflight(error, fields, visit.origin_lines)
            if visit.preflight is not None:
                # A question has no body. No key was asked for, so it may take no memory.
                visit.max_body_bytes = 0
            else:
                visit.error = error
                visit.refused_in = dialect_at(head.target)
        return visit

    def regular_of(self, visit: Visit) -> Regular | None:
        """What was decided on a head, if it will be decided alike on each that says the same; None: it will not, or
        cannot be known to."""
        head, tenant, keys = visit.head, visit.tenant, self.keys
        fields = head.fields
        if (
            keys is None
            or visit.error is not None
            or visit.operation.body is not Body.JSON
            or self._sampler is not None
            or tenant.forwards_user
            or not self._NEVER_ALIKE.isdisjoint(fields)
            or (b"authorization" in fields and b"x-api-key" in fields)
        ):
            return None
        key = fields[b"authorization"][7:].strip() if b"authorization" in fields else fields.get(b"x-api-key", b"")
        if keys.tenant_of(key) is not tenant:
            # It is told by its token.
            return None
        fields = {name: value for name, value in fields.items() if name not in _NOT_KEPT}
        head = head._replace(fields=fields, received_at=0.0, connection=None)
        return Regular(head, visit.operation, tenant, visit.priority, keys)

    def receive_again(self, regular: Regular, received_at: float) -> Visit | None:
        """As `receive`, of a head that says the same as one before, but for its length. None: it has to be looked at as
        any other."""
        head, operation, tenant, priority, keys = regular
        if (
            keys is not self.keys
            or (tenant.expires_at is not None and not keys.lasts(tenant))
            or self.origins is not None
            or (self._overload is not None and self._overload.level)
        ):
            return None
        trail, visit = _blank_trail(), _blank_visit()
        trail.request_id = trail.pod_request_id = self._next_id()
        trail.received_at = received_at
        trail.operation = operation.label
        trail.tenant = tenant
        visit.head = head
        visit.trail = trail
        visit.max_body_bytes = self.max_body_bytes
        visit.operation = operation
        visit.tenant = tenant
        if priority:
            visit.priority = priority
        return visit

    def address_of(self, head: Head) -> str:
        """Where a request comes from; empty: from this machine, by a socket without addresses."""
        return self.proxies.client_of(peer_of(head.connection), head.fields, head.repeated)

    def stranger(self, received_at: float, error: PoolgateError, fields: dict[bytes, bytes] | None = None) -> Visit:
        """A visit of someone whose very head could not be read, or was refused. `fields`: what of it was read."""
        head = Head(b"", b"", fields or {}, frozenset(), received_at)
        visit = Visit(head, Trail(self._next_id(), received_at))
        if self.origins is not None:
            visit.origin_lines = self.origins.lines_for(head.fields, head.repeated)
        visit.error = error
        visit.refused_in = OPENAI
        return visit

    def _check_repeated(self, repeated: frozenset[bytes]) -> None:
        for name in _ONCE:
            if name in repeated:
                raise InvalidRequest(f"the header {name.decode()} came more than once")

    def _identify(self, visit: Visit, fields: dict[bytes, bytes]) -> Tenant:
        """Who calls. A token says as well who uses it, which is noted in the visit.

        Raises `InvalidApiKey` and `Busy`.
        """
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
            if self._tokens is None or key.count(b".") != 2 or key.startswith(b"sk-"):
                raise InvalidApiKey("this API key is unknown, disabled or expired")
            tenant, visit.user = self._tokens.caller_of(key, partial(self.address_of, visit.head))
        return tenant

    def _forwarded_user(self, head: Head) -> str:
        """For whom the application says that it asks; empty: it does not say.

        Raises `InvalidRequest` and `InvalidApiKey`.
        """
        name = _USER if self._forwarded_users is None else _SIGNED_USER
        if name in head.repeated:
            raise InvalidRequest(f"the header {name.decode()} came more than once")
        said = head.fields.get(name)
        if not said:
            return ""
        if self._forwarded_users is not None:
            return self._forwarded_users.user_of(said, f"the header {name.decode()}")
        try:
            user = unquote_to_bytes(said).decode("utf-8")
        except UnicodeDecodeError:
            user = ""
        if not 0 < len(user) <= MAX_USER_CHARACTERS or not user.isprintable():
            raise InvalidRequest(
                f"the header {name.decode()} names no user: {MAX_USER_CHARACTERS} printable characters at most, "
                "percent-encoded as UTF-8"
            )
        return user

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


def _drop_nominated(head: Head) -> None:
    """Take from the head what its Connection field says is for this hop (RFC 9110, section 7.6.1), of what goes on."""
    nominated = [name.strip().lower() for name in head.fields[b"connection"].split(b",")]
    for name in _PASSED_ON:
        # Of several such fields the first alone is known.
        if name in nominated or b"connection" in head.repeated:
            head.fields.pop(name, None)


def _priority(tenant: Tenant, fields: dict[bytes, bytes]) -> int:
    """Its place in the line: lower comes first."""
    task = fields.get(_TASK, b"").strip()
    # What was not put in its place stands for an ordinary message.
    later = BACKGROUND if task and not task.startswith(b"{{") else 0
    return max(-MAX_PRIORITY, min(MAX_PRIORITY, tenant.priority + later))


def too_large(visit: Visit) -> BodyTooLarge:
    """The refusal of a body beyond its bound."""
    if not visit.max_body_bytes:
        return BodyTooLarge("this request has no body")
    setting = "max_upload_bytes" if visit.operation.body is Body.FORM else "max_body_bytes"
    return BodyTooLarge(
        f"the body is larger than {visit.max_body_bytes} bytes: the operator raises that with server.{setting}"
    )
