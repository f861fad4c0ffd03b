"""Requests as they come off a socket: the public port's protocol and what is decided on a head.

The whole front door is the real one; behind it stands a pipeline that notes what it is asked to serve.
"""

import asyncio
import io
import json
import re
from functools import cache
from typing import NamedTuple

import h11

from gateway.app import Gateway
from gateway.config.reading import load_config
from gateway.core.call import Call
from gateway.core.caller import Tenant
from gateway.core.errors import MethodNotAllowed, NotFound
from gateway.core.trace import parent_in
from gateway.limits.keys import KeyEntry, digest
from gateway.parts import THE_USUAL
from gateway.pipeline.exchange import Exchange, Head
from gateway.pipeline.operations import OPERATIONS, Operation, find
from gateway.pipeline.reception import Visit
from gateway.pipeline.serve import Pipeline
from gateway.pipeline.wish import wish_of
from gateway.upstream.headers import RequestHeads
from tests.fuzz.target import Target, cut
from tests.fuzz.wire import FakeTransport

KEY = b"sk-pg_fuzzfuzz_key"
OTHER_KEY = b"sk-pg_fuzzfuzz_longer_key"
PATHS = {operation.path for operation in OPERATIONS}
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Served(NamedTuple):
    """A request that would be served."""

    method: bytes
    target: bytes
    body: bytes
    head: Head


class NotesOnly(Pipeline):
    """Serves nothing, and notes what it should."""

    served: list[Served]

    async def serve(self, visit: Visit, body: bytes, exchange: Exchange) -> None:
        self.served.append(Served(visit.head.method, visit.head.target, body, visit.head))
        exchange.start(200, b"text/plain", 2)
        exchange.finish(b"ok")


@cache
def gateway(*, keyed: bool) -> Gateway:
    """Made once: making one costs more than a thousand inputs."""
    tenant = Tenant("fuzz", "fuzz", forwards_user=True, priority=5, debug=True)
    made = Gateway(
        load_config(None, {}, {"discovery": {"pods": [{"url": "http://127.0.0.1:9", "pool": "chat"}]}}),
        (KeyEntry(digest(KEY), tenant),) if keyed else None,
        access_out=io.BytesIO(),
        parts=THE_USUAL._replace(pipeline=NotesOnly),
    )
    assert isinstance(made.pipeline, NotesOnly)
    made.pipeline.served = []
    return made


@cache
def plain_gateway() -> Gateway:
    """For a caller of whom nothing has to be looked at but its key."""
    made = Gateway(
        load_config(None, {}, {"discovery": {"pods": [{"url": "http://127.0.0.1:9", "pool": "chat"}]}}),
        (KeyEntry(digest(KEY), Tenant("fuzz", "fuzz")), KeyEntry(digest(OTHER_KEY), Tenant("other", "other"))),
        access_out=io.BytesIO(),
        parts=THE_USUAL._replace(pipeline=NotesOnly),
    )
    assert isinstance(made.pipeline, NotesOnly)
    made.pipeline.served = []
    return made


@cache
def runner() -> asyncio.Runner:
    return asyncio.Runner()


async def visit(pieces: list[bytes]) -> tuple[Served | None, FakeTransport]:
    """What comes of these pieces on a connection of their own."""
    front = gateway(keyed=False)
    pipeline = front.pipeline
    assert isinstance(pipeline, NotesOnly)
    pipeline.served.clear()
    transport = FakeTransport()
    connection = front.edge.protocol()
    assert isinstance(connection, asyncio.Protocol)
    connection.connection_made(transport)
    try:
        for piece in pieces:
            if transport.closed or pipeline.served:
                # What comes behind an answer is another request.
                break
            connection.data_received(piece)
        await asyncio.sleep(0)
        assert len(pipeline.served) <= 1, "one read gave two requests"
        return (pipeline.served[0] if pipeline.served else None), transport
    finally:
        connection.connection_lost(None)


def request(data: bytes) -> None:
    """One request at most, the same however it is cut, and the one that h11 sees; to a pod goes one request as well."""
    served, transport = runner().run(visit([data] if data else []))
    for pieces in cut(data):
        again, _ = runner().run(visit(pieces))
        assert again == served or (again and served and again[:3] == served[:3]), "it depends on how it was cut"
    if transport.sent:
        check_answer(transport, refused=served is None)
    if served is None:
        return
    assert in_h11(data) == served[:3], "h11 reads another request"
    path = served.target.partition(b"?")[0]
    head = RequestHeads().of(
        path, b"pod:8000", b"", served.head.fields, b"application/json", "fuzz-1", len(served.body), priority=1
    )
    assert in_h11(head + served.body) == (b"POST", path, served.body), "what goes to a pod is not that request"


FIRST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer %b\r\n"
    b"Content-Length: 13\r\n\r\n" % KEY
)
"""A head as it comes first."""


async def heard(pieces: list[bytes], *, known: bool) -> tuple[list[tuple[object, ...]], list[bytes]]:
    """(what would be served of these pieces, the status lines of the answers), on a connection of their own, or on one
    where a request with the head `FIRST` was served before."""
    front = plain_gateway()
    pipeline = front.pipeline
    assert isinstance(pipeline, NotesOnly)
    transport = FakeTransport()
    connection = front.edge.protocol()
    assert isinstance(connection, asyncio.Protocol)
    connection.connection_made(transport)
    try:
        if known:
            connection.data_received(FIRST + BODY)
        pipeline.served.clear()
        transport.sent = b""
        for piece in pieces:
            if not transport.closed:
                connection.data_received(piece)
        told: list[tuple[object, ...]] = [(*each[:3], *sorted(other_fields(each.head))) for each in pipeline.served]
        return told, re.findall(rb"HTTP/1.1 \d+ |connection: close", transport.sent)
    finally:
        connection.connection_lost(None)


def other_fields(head: Head) -> list[tuple[bytes, bytes]]:
    """Those that are not left out of a head that is known."""
    return [each for each in head.fields.items() if each[0] not in (b"authorization", b"x-api-key", b"content-length")]


def request_again(data: bytes) -> None:
    """Behind a head that is known means the same as on a connection of its own, however it is cut."""
    for pieces in ([data] if data else [], *cut(data)):
        again, alone = (runner().run(heard(pieces, known=known)) for known in (True, False))
        assert again == alone, "it depends on what came before"


def check_answer(transport: FakeTransport, *, refused: bool) -> None:
    """A refusal is ours, in JSON, and ends the connection."""
    said = transport.sent.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    if not said:
        return
    head, _, body = said.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    assert b"\r\nx-request-id: " in head
    if not refused:
        return
    assert 400 <= status < 600
    assert b"\r\nconnection: close" in head
    assert transport.closed or transport.ended
    if body:
        assert json.loads(body)["error"]


def in_h11(data: bytes) -> tuple[bytes, bytes, bytes] | None:
    """(method, target, body) of the first request, by the strictest parser that can be had; None: it refuses it."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    try:
        server.receive_data(data)
        first = server.next_event()
        body = b""
        while isinstance(first, h11.Request):
            event = server.next_event()
            if isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                return (first.method, first.target, body) if isinstance(event, h11.EndOfMessage) else None
    except h11.RemoteProtocolError:
        return None
    return None


def fields_in(data: bytes) -> tuple[dict[bytes, bytes], frozenset[bytes]]:
    """Lines as fields, the first of each name, and the names that stand there twice."""
    fields: dict[bytes, bytes] = {}
    repeated = set()
    for line in data.split(b"\n"):
        name, _, value = line.partition(b":")
        if fields.setdefault(name.lower(), value.strip()) is not value.strip():
            repeated.add(name.lower())
    return fields, frozenset(repeated - {name for name in repeated if data.lower().count(name + b":") < 2})


def head(data: bytes) -> None:
    """A head is refused or admitted and never raises; and nobody comes in but by the key."""
    line, _, rest = data.partition(b"\n")
    method, _, target = line.partition(b" ")
    fields, repeated = fields_in(rest)
    if not fields.get(b"content-length", b"0").isdigit():
        return  # no parser lets it come so far
    front = gateway(keyed=True)
    visit = front.edge.reception.receive(Head(method, target, fields, repeated, 0.0))
    assert _ID.fullmatch(visit.trail.request_id)
    assert visit.limit_lines == b""
    if visit.error is not None:
        told = json.loads((visit.refused_in or visit.operation.dialect).body(visit.error))["error"]
        assert told["message"]
        assert KEY.decode() not in told["message"]
        return
    borne = fields.get(b"authorization", b"")[7:].strip() or fields.get(b"x-api-key")
    assert borne == KEY
    assert visit.tenant.key_id == "fuzz"
    assert len(visit.user) <= 256
    assert wish_of(None, call(), None, visit).tokens == 1


def call() -> Call:
    return Call("m", False, False, 1, [b"{}"], 2, b"application/json", 1)


def target(data: bytes) -> None:
    """Only what stands in the table is found, whatever it is dressed as."""
    method, _, path = data.partition(b" ")
    try:
        operation, model = find(method, path)
    except NotFound:
        return
    except MethodNotAllowed as refused:
        error = refused
    else:
        check_found(method, path, operation, model)
        return
    assert method != error.allow


def check_found(method: bytes, path: bytes, operation: Operation, model: str | None) -> None:
    """It stands in the table."""
    assert method == operation.method
    plain = re.sub(rb"/+", b"/", path.split(b"?")[0])
    assert plain in PATHS if model is None else plain.startswith(b"/v1/models/")


def traceparent(data: bytes) -> None:
    """What is read as a parent is one that we would write again as it was read."""
    said, _, state = data.partition(b"\n")
    parent = parent_in({b"traceparent": said, b"tracestate": state}, frozenset())
    if parent is None:
        return
    again = b"00-%032x-%016x-%02x" % (parent.trace_id, parent.span_id, parent.flags)
    assert said[3:52] == again[3:52]
    assert said[:2] != b"ff"
    assert len(parent.state) <= 512
    written = parent_in({b"traceparent": again}, frozenset())
    assert written is not None
    assert written[:3] == parent[:3]


HOST = b"Host: x\r\nContent-Type: application/json\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
BODY = b'{"model":"m"}'
TARGETS = {
    "request": Target(
        request,
        (
            "gateway.edge.protocol",
            "gateway.upstream.headers",
            "gateway.pipeline.reception",
            "gateway.pipeline.operations",
        ),
        (
            POST + b"Content-Length: 13\r\n\r\n" + BODY,
            POST + b"Transfer-Encoding: chunked\r\n\r\nd\r\n" + BODY + b"\r\n0\r\n\r\n",
            POST + b"Transfer-Encoding: chunked\r\n\r\nd;a=b\r\n" + BODY + b"\r\n0\r\nx: y\r\n\r\n",
            POST + b"Content-Length: 13\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + BODY,
            POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            POST + b"Content-Length: 13\r\nContent-Length: 13\r\n\r\n" + BODY,
            POST + b"Content-Length: 13\r\n\r\n" + BODY + b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v1/models/a%2Fb?x HTTP/1.1\r\nHost: x\r\nConnection: close, x\r\nx: y\r\n\r\n",
            b"GET http://y/v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET //v1/models HTTP/1.0\r\n\r\n",
            POST + b"Expect: 100-continue\r\nContent-Length: 13\r\n\r\n" + BODY,
            b"GET /v1/models HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            POST + b"tracestate: a=b\r\naccept: */*\r\ntraceparent: x\r\nContent-Length: 13\r\n\r\n" + BODY,
            POST + b"Content-Length: +13\r\n\r\n" + BODY,
            POST + b"X: a\r\n b\r\nContent-Length: 13\r\n\r\n" + BODY,
        ),
        tokens=(
            b"\r\n",
            b"\r\n\r\n",
            b"Content-Length: ",
            b"Transfer-Encoding: chunked\r\n",
            b"0\r\n\r\n",
            b"HTTP/1.1",
            b"Host: x\r\n",
            b"Connection: ",
        ),
    ),
    "request_again": Target(
        request_again,
        ("gateway.edge.known", "gateway.edge.protocol"),
        (
            FIRST + BODY,
            FIRST.replace(b" 13", b" 5") + b"{   }",
            FIRST.replace(KEY, OTHER_KEY) + BODY,
            FIRST.replace(KEY, KEY + b"x") + BODY,
            FIRST + BODY + FIRST + BODY,
            FIRST.replace(b" 13", b" 99999999") + BODY,
            FIRST.replace(b" 13", b" 0") + BODY,
            FIRST.replace(b"Content-Length: 13", b"Transfer-Encoding: chunked") + b"d\r\n" + BODY + b"\r\n0\r\n\r\n",
            FIRST.replace(b"Host: x", b"Host: y") + BODY,
            FIRST.replace(b"\r\n\r\n", b"\r\nx-api-key: " + KEY + b"\r\n\r\n") + BODY,
            FIRST.replace(b"Bearer", b"Bearer ") + BODY,
        ),
        tokens=(
            b"\r\n",
            b"\r\n\r\n",
            b"Content-Length: 13",
            b"Authorization: Bearer ",
            KEY,
            OTHER_KEY,
            b"HTTP/1.1",
            BODY,
        ),
    ),
    "head": Target(
        head,
        (
            "gateway.pipeline.reception",
            "gateway.pipeline.operations",
            "gateway.pipeline.wish",
            "gateway.core.trace",
            "gateway.core.errors",
            "gateway.pipeline.dialects",
        ),
        (
            b"POST /v1/chat/completions\nauthorization: Bearer " + KEY + b"\ncontent-type: application/json",
            b"GET /v1/models/a%2Fb\nx-api-key: " + KEY + b"\nx-openwebui-user-id: a%20b",
            b"GET /v1/models\nauthorization: bearer " + KEY + b"\nx-api-key: " + KEY,
            b"POST /v1/messages\nauthorization: Basic x\nx-request-id: abc",
            b"GET /v1/models\nauthorization: Bearer \xff\xfe",
            b"POST /v1/audio/transcriptions\nx-api-key: " + KEY + b"\ncontent-type: multipart/form-data; boundary=x",
            b"POST /v1/completions\nx-api-key: "
            + KEY
            + b"\ncontent-type: application/json\ncontent-length: 99999999999",
            b"GET /v1/models\nx-api-key: " + KEY + b"\nx-openwebui-task: title_generation\nexpect: 100-continue",
            b"GET /v1/models\nx-api-key: " + KEY + b"\ntraceparent: 00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01",
        ),
        tokens=(b"authorization: Bearer " + KEY, b"x-api-key: ", b"\n", b"content-type: application/json", b"%2F"),
    ),
    "target": Target(
        target,
        ("gateway.pipeline.operations",),
        (
            b"POST /v1/chat/completions",
            b"POST //v1///chat/completions?a=b",
            b"GET /v1/models/%2e%2e%2fadmin",
            b"GET /v1/../v1/models",
            b"POST /v1/chat/completions/",
            b"POST /v1%2Fchat%2Fcompletions",
            b"POST /v1/chat/completions;x",
            b"POST /V1/chat/completions",
            b"POST /v1/chat\\completions",
            b"POST /v1/chat/completions%00",
            b"GET /v1/models/\xc0\xae\xc0\xae/",
            b"GET /v1/models/",
            b"DELETE /v1/models",
            b"POST /sleep",
        ),
        max_bytes=512,
        tokens=(b"/v1/models", b"//", b"%2F", b"..", b"?"),
    ),
    "traceparent": Target(
        traceparent,
        ("gateway.core.trace",),
        (
            b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01\na=b",
            b"cc-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01-more",
            b"ff-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01",
            b"00-" + b"0" * 32 + b"-" + b"2" * 16 + b"-01",
            b"00-" + b"A" * 32 + b"-" + b"2" * 16 + b"-01",
        ),
        max_bytes=700,
        tokens=(b"00-", b"-01", b"\n"),
    ),
}
