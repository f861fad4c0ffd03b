"""An OTLP/HTTP receiver on a socket, as a collector is one: it decodes what comes, with OpenTelemetry's own messages.

It has threads of its own: a gateway that ends waits for it, on the loop.
"""

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Received:
    """A span, as values."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    started_at: float
    ended_at: float
    failed: bool
    attributes: dict[str, Any]
    events: dict[str, float]
    resource: dict[str, Any]
    scope: str


@dataclass
class Receiver:
    """`statuses` are answered one after the other, then the last one again and again; 0: no answer before the end."""

    statuses: list[int] = field(default_factory=lambda: [200])
    spans: list[Received] = field(default_factory=list)
    """What came and was taken."""
    posts: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    """Path, headers (names lower case) and body of whatever came."""
    arrived: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)
    _server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = receiver.take(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                if not status:
                    receiver._over.wait(30)
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_port}"

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        status = self.statuses[min(len(self.posts), len(self.statuses) - 1)]
        self.posts.append((path, headers, body))
        if status == 200:
            self.spans += decoded(body)
        self.arrived.set()
        return status

    def of_request(self, request_id: str) -> tuple[Received, list[Received]]:
        """A request's own span, and those of its attempts in order."""
        (own,) = [span for span in self.spans if span.attributes.get("poolgate.request_id") == request_id]
        attempts = [span for span in self.spans if span.parent_id == own.span_id]
        return own, sorted(attempts, key=lambda span: int(span.attributes["poolgate.attempt"]))


def decoded(body: bytes) -> list[Received]:
    """The spans of one export."""
    came = ExportTraceServiceRequest.FromString(body)
    return [
        Received(
            name=span.name,
            kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            started_at=span.start_time_unix_nano / 1e9,
            ended_at=span.end_time_unix_nano / 1e9,
            failed=span.status.code == 2,
            attributes=_values(span.attributes),
            events={event.name: event.time_unix_nano / 1e9 for event in span.events},
            resource=_values(of_resource.resource.attributes),
            scope=of_scope.scope.name,
        )
        for of_resource in came.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    ]


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind is not None else None
