"""Traces: a span for each sampled request and one for each of its attempts, through OpenTelemetry's SDK.

Nothing of the SDK is called while a request runs. It leaves a trail, as all do; when it has ended the trail is put
aside, and a thread of its own makes spans of what has gathered, encodes and sends them, a few at a time, since the loop
stands still meanwhile. What waits is bounded: beyond that trails are dropped before anything was spent on them, and
counted. The SDK's own batches would have their spans made on the loop, wait up to 30 s at the end of the process, and
keep no count.

No tracer and no provider is set up for the process: two gateways in it know nothing of each other.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from gateway.core.call import BLAMELESS, FAULTS, Attempt, Outcome, Trail
from gateway.core.trace import Trace
from gateway.core.words import readable
from gateway.telemetry import conventions as names

MAX_WAITING = 4096
"""Trails that wait to be sent."""
BATCH = 16
"""Requests whose spans are made, encoded and sent at once: 2 ms of work, in which the loop may have to wait."""
EVERY_SECONDS = 1.0
CLOSE_SECONDS = 1.0
MAX_NAME_CHARACTERS = 256
TRACES_PATH = "/v1/traces"

_EXPORTER_LOG = "opentelemetry.exporter.otlp.proto.http.trace_exporter"

log = logging.getLogger("poolgate.traces")

Attributes = dict[str, str | int | float | bool | Sequence[str]]


class Told(NamedTuple):
    """What one request's spans have in common."""

    trail: Trail
    trace: Trace
    monotonic_to_wall: float

    def nanoseconds(self, monotonic: float) -> int:
        """Since 1970."""
        return int((monotonic + self.monotonic_to_wall) * 1e9)


class Tracing:
    """Sends spans to `endpoint`, the base URL of an OTLP/HTTP receiver. `add` on the loop, `close` at the end.

    `routes`: the method and the path of each operation's label. The SDK's variables of the environment hold where
    nothing is said here: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, and OTEL_EXPORTER_OTLP_HEADERS, _CERTIFICATE,
    _TIMEOUT, _COMPRESSION with their kin.
    """

    def __init__(self, endpoint: str, routes: Mapping[str, tuple[str, str]], *, version: str, instance: str) -> None:
        self._exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + TRACES_PATH)
        self._routes = routes
        self._resource = _resource(version, instance)
        self._scope = InstrumentationScope("poolgate", version)
        self._waiting: deque[tuple[Trail, float]] = deque()
        self._dropped = 0
        self._not_sent = 0
        self._told_lost: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._reasons = _Reasons(self._thread)
        logging.getLogger(_EXPORTER_LOG).addFilter(self._reasons)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Traces lost since start: more came than could be sent, or the receiver did not take them."""
        return self._dropped + self._not_sent

    def add(self, trails: Iterable[Trail], monotonic_to_wall: float) -> None:
        """Put aside what is to be sent of these; never waits. Their times, and the number, are seconds since 1970."""
        for trail in trails:
            if trail.trace is None or not trail.trace.sampled:
                continue
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append((trail, monotonic_to_wall))
            else:
                self._dropped += 1

    def close(self) -> None:
        """Send what waits, for one second; then, whatever the receiver does, no more is sent."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join(CLOSE_SECONDS)
        # It ends a wait before another try as well.
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK's own lack
        self._thread.join(CLOSE_SECONDS / 4)
        logging.getLogger(_EXPORTER_LOG).removeFilter(self._reasons)

    def _run(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            self._send_all()
        self._send_all()

    def _send_all(self) -> None:
        lost_before = self.lost
        sent = False
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            if self._send(batch):
                sent = True
            else:
                self._not_sent += len(batch)
        if self.lost > lost_before:
            if self._told_lost is None:
                self._told_lost = lost_before
                why = self._reasons.last or "more come than can be sent"
                log.warning("traces are being lost, which is told once: %s", why)
        elif sent and self._told_lost is not None:
            log.info("traces are sent again; %d were lost", self.lost - self._told_lost)
            self._told_lost = None

    def _send(self, batch: Iterable[tuple[Trail, float]]) -> bool:
        self._reasons.last = ""
        try:
            spans = [span for trail, offset in batch for span in self._spans(trail, offset)]
            return self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception:
            log.exception("spans could not be made")
            return False

    # Trails become spans.

    def _spans(self, trail: Trail, monotonic_to_wall: float) -> Iterator[ReadableSpan]:
        """The request's span, then those of its attempts."""
        if trail.trace is None:
            return
        told = Told(trail, trail.trace, monotonic_to_wall)
        yield self._request_span(told)
        for number, attempt in enumerate(trail.tried, 1):
            yield self._attempt_span(told, attempt, number)

    def _request_span(self, told: Told) -> ReadableSpan:
        trail, trace, _ = told
        method, route = self._routes.get(trail.operation, ("", ""))
        failed = trail.outcome in FAULTS or trail.status >= 500
        return ReadableSpan(
            f"{method} {route}".strip() or trail.operation,
            context=_context(trace, trace.span_id),
            parent=_context(trace, trace.parent_id, is_remote=True) if trace.parent_id else None,
            resource=self._resource,
            attributes=_of_request(trail, method, route),
            kind=SpanKind.SERVER,
            status=_ERROR if failed else _UNSET,
            start_time=told.nanoseconds(trail.received_at),
            end_time=told.nanoseconds(trail.ended_at),
            instrumentation_scope=self._scope,
        )

    def _attempt_span(self, told: Told, attempt: Attempt, number: int) -> ReadableSpan:
        trail, trace, _ = told
        operation = names.OPERATIONS.get(trail.operation)
        attributes: Attributes = {
            names.REQUEST_MODEL: readable(attempt.model, MAX_NAME_CHARACTERS),
            names.POOL: trail.attempt_outcomes[number - 1][0],
            names.POD: attempt.pod,
            names.ATTEMPT: number,
            names.DECISION: attempt.decision,
        }
        if operation is not None:
            attributes |= {names.OPERATION: operation, names.PROVIDER: names.VLLM}
        if attempt.ended != Outcome.COMPLETED:
            attributes[names.ERROR_TYPE] = str(attempt.ended)
        events: tuple[Event, ...] = ()
        # It is the last one's: one before it never had content.
        if number == len(trail.tried) and trail.first_content_at is not None:
            events = (Event(names.FIRST_CONTENT, timestamp=told.nanoseconds(trail.first_content_at)),)
        return ReadableSpan(
            f"{operation or trail.operation} {readable(attempt.model, MAX_NAME_CHARACTERS)}",
            context=_context(trace, trace.attempt_id(number)),
            parent=_context(trace, trace.span_id),
            resource=self._resource,
            attributes=attributes,
            events=events,
            kind=SpanKind.CLIENT,
            status=_UNSET if attempt.ended in BLAMELESS else _ERROR,
            start_time=told.nanoseconds(attempt.started_at),
            end_time=told.nanoseconds(attempt.ended_at),
            instrumentation_scope=self._scope,
        )


def _of_request(trail: Trail, method: str, route: str) -> Attributes:
    """What is said of a request, by name: never a prompt, an answer, a key, a user or an address.

    Tokens stand here alone, so that whoever sums them over spans counts them once.
    """
    attributes: Attributes = {names.REQUEST_ID: trail.request_id, names.OUTCOME: trail.outcome.value}
    if route:
        attributes |= {names.HTTP_METHOD: method, names.HTTP_ROUTE: route}
    if trail.status:
        attributes[names.HTTP_STATUS] = trail.status
    if trail.outcome not in (Outcome.COMPLETED, Outcome.CLIENT_LEFT):
        attributes[names.ERROR_TYPE] = trail.code or trail.outcome.value
    if trail.tenant is not None:
        attributes[names.TENANT] = readable(trail.tenant.team, MAX_NAME_CHARACTERS)
    if trail.model:
        attributes[names.REQUEST_MODEL] = readable(trail.model, MAX_NAME_CHARACTERS)
    if trail.pool:
        attributes |= {names.POOL: trail.pool, names.ATTEMPTS: trail.attempts, names.QUEUE_SECONDS: trail.queue_seconds}
    if trail.attempts:
        attributes |= {names.POD: trail.pod, names.DECISION: trail.decision}
    operation = names.OPERATIONS.get(trail.operation)
    if operation is not None:
        attributes |= {names.OPERATION: operation, names.PROVIDER: names.VLLM, names.REQUEST_STREAM: trail.stream}
    if trail.tried and trail.first_content_at is not None:
        # A pod answers in the name that it was asked by.
        attributes[names.RESPONSE_MODEL] = readable(trail.tried[-1].model, MAX_NAME_CHARACTERS)
    if trail.finish:
        attributes[names.FINISH_REASONS] = (readable(trail.finish, MAX_NAME_CHARACTERS),)
    if (ttft := trail.ttft_seconds) is not None:
        attributes[names.TIME_TO_FIRST_CHUNK] = ttft
    # The conventions want no numbers that are not known.
    if (usage := trail.usage) is not None and not usage.estimated:
        attributes |= {names.INPUT_TOKENS: usage.prompt_tokens, names.OUTPUT_TOKENS: usage.completion_tokens}
        if usage.cached_tokens:
            attributes[names.CACHED_TOKENS] = usage.cached_tokens
    return attributes


def _context(trace: Trace, span_id: int, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(trace.trace_id, span_id, is_remote, TraceFlags(trace.flags))


def _resource(version: str, instance: str) -> Resource:
    """Who sends. What the environment says of it comes first."""
    ours = {names.SERVICE_NAME: "poolgate", names.SERVICE_VERSION: version, names.SERVICE_INSTANCE: instance}
    told = OTELResourceDetector().detect().attributes
    return Resource.create({name: value for name, value in ours.items() if name not in told})


class _Reasons(logging.Filter):
    """Keeps what the exporter says from a gateway's thread: it would say it again and again while a receiver is away,
    and returns no reason.
    """

    def __init__(self, thread: threading.Thread) -> None:
        super().__init__()
        self._thread = thread
        self.last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is for the log: all but what our thread says."""
        if record.thread != self._thread.ident:
            return True
        self.last = record.getMessage()[:MAX_NAME_CHARACTERS]
        return False


_UNSET = Status(StatusCode.UNSET)
_ERROR = Status(StatusCode.ERROR)
