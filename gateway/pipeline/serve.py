"""The pipeline: identify → read → route → lease → send → relay → settle.

One task per request runs `serve`; it decides, and callbacks carry the bytes (see `relay`). A client that leaves
cancels the task, wherever it waits: the `finally` below closes the pod's connection, which is how vLLM is told to
stop.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

from gateway.balancing.balancer import Balancer
from gateway.core.call import Call, Outcome, Trail, Usage
from gateway.core.cell import Cell
from gateway.core.clock import Clock
from gateway.core.errors import (
    Draining,
    Forbidden,
    InternalError,
    ModelNotFound,
    NoReadyPod,
    PoolgateError,
    StreamDraining,
)
from gateway.core.fleet import Fleet, Pod, Route
from gateway.pipeline import catalogue
from gateway.pipeline.body import members
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.form import read_form
from gateway.pipeline.intake import FORM_FIELDS, call_of, call_of_form, look
from gateway.pipeline.operations import Body, Operation
from gateway.pipeline.reception import Visit
from gateway.pipeline.relay import Content, Failed, Large, Relay, StreamRelay, TailBudget, Whole
from gateway.pipeline.retries import Again, Retries
from gateway.upstream.connection import PodConnection
from gateway.upstream.failure import Failure
from gateway.upstream.headers import request_head
from gateway.upstream.pool import ConnectFailed, PodPool, Pools
from gateway.upstream.usage import AnswerReader, EventReader

OFF_LOOP_BYTES = 262_144
"""A body larger than this is walked in a thread when its keys are in doubt."""
TAIL_BUDGET_BYTES = 128 << 20
NO_POD_RETRY_SECONDS = 5.0
DRAINING_RETRY_SECONDS = 1.0

_JSON = b"application/json"
_EVENTS = b"text/event-stream; charset=utf-8"
_STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))

log = logging.getLogger("poolgate")


class Pipeline:
    """Serves requests. `settle` takes each request's trail once, at its end."""

    def __init__(
        self,
        *,
        fleet: Cell[Fleet],
        balancer: Balancer,
        pools: Pools,
        clock: Clock,
        settle: Callable[[Trail], None],
    ) -> None:
        self._fleet = fleet
        self._balancer = balancer
        self._pools = pools
        self._monotonic = clock.monotonic
        self._settled = settle
        self._budget = TailBudget(TAIL_BUDGET_BYTES)
        self._relays: set[Relay] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.active = 0
        """Requests being served now."""
        self.draining = False
        """New work is refused: this replica goes away now."""

    def sweep(self, now: float) -> None:
        """Judge every running answer's deadlines; about four times a second."""
        for relay in list(self._relays):
            relay.sweep(now)

    def end_all(self) -> None:
        """The drain's limit is reached: refuse new work, and end what still runs with the truth."""
        self.draining = True
        for relay in list(self._relays):
            if relay.first.done():
                relay.fail(Failure.ABANDONED, StreamDraining("this replica of the gateway is shutting down"))
            else:
                relay.fail(Failure.ABANDONED, _draining())

    def refuse(self, visit: Visit, exchange: Exchange, error: PoolgateError) -> None:
        """Answer with an error and close the trail; for what is refused before its body was read."""
        self._answer_error(visit, exchange, error)
        self._settle(visit.trail)

    async def serve(self, visit: Visit, body: bytes, exchange: Exchange) -> None:
        """Answer one request whose body is whole. Returns when the last byte is handed over."""
        trail = visit.trail
        self.active += 1
        try:
            if exchange.client_gone:
                trail.outcome = Outcome.CLIENT_LEFT
            elif visit.operation.body is Body.NONE:
                self._list_models(visit, exchange)
            elif self.draining:
                raise _draining()
            else:
                if visit.operation.body is Body.FORM:
                    call = await _read_form(visit, body)
                else:
                    seen = look(body, visit.operation)
                    found = None
                    if seen.in_doubt:
                        found = members(body) if len(body) <= OFF_LOOP_BYTES else await asyncio.to_thread(members, body)
                    call = call_of(seen, found, visit.operation, visit.tenant)
                    del seen, found
                # From here on the body lives in the call alone.
                del body
                await self._forward(_Request(visit, call, self._route(call, visit), exchange))
        except PoolgateError as error:
            self._answer_error(visit, exchange, error)
        except asyncio.CancelledError:
            if not exchange.client_gone:
                raise
            trail.outcome = Outcome.CLIENT_LEFT
        except Exception:
            log.exception("request %s failed inside the gateway", trail.request_id)
            self._answer_error(visit, exchange, InternalError("the gateway failed; the request may be sent again"))
        finally:
            self.active -= 1
            self._settle(trail)

    def _list_models(self, visit: Visit, exchange: Exchange) -> None:
        fleet = self._fleet.value
        if visit.model_id is None:
            body = catalogue.listing(fleet, visit.tenant)
        else:
            body = catalogue.one(fleet, visit.tenant, visit.model_id)
        self._begin(visit.trail, exchange, _JSON, len(body), ())
        exchange.finish(body)
        visit.trail.outcome = Outcome.COMPLETED

    def _route(self, call: Call, visit: Visit) -> Route:
        trail = visit.trail
        trail.stream = call.stream
        trail.model = call.model
        route = self._fleet.value.routes.get(call.model)
        trail.served_model = route is not None
        if not visit.tenant.may_use(call.model):
            raise Forbidden("this key may not use that model", code="model_not_allowed", param="model")
        if route is None:
            raise ModelNotFound(f"the model {call.model[:256]!r} is not served here: see /v1/models", param="model")
        trail.pool = route.pool.name
        return route

    async def _forward(self, request: "_Request") -> None:
        """Try pods until one has answered or the retry table says stop."""
        trail, route = request.visit.trail, request.route
        retries: Retries | None = None
        failed: Failed | None = None
        while True:
            # Nearly every request has one attempt: what counts them is made when the first one failed.
            excluded, on_budget = ((), False) if retries is None else (retries.excluded, retries.on_budget)
            with self._balancer.lease_nowait(route, excluded, retry=on_budget) as pod:
                if pod is None:
                    raise failed.error if failed is not None else _no_ready_pod(route)
                if failed is not None:
                    trail.retries += ((pod.pool, failed.failure),)
                trail.pod, trail.decision = pod.name, "least"
                pool = self._pools.of(pod)
                failed = await self._attempt(pool, pool.take(), request)
                if failed is None:
                    return
                retries = retries or Retries()
                again = retries.again(failed.failure, pod.uid, budget_left=self._balancer.may_retry)
                if again is Again.SAME_POD and self._is_routed(route.model, pod):
                    trail.retries += ((pod.pool, failed.failure),)
                    failed = await self._attempt(pool, None, request)
                    if failed is None:
                        return
                    again = retries.again(failed.failure, pod.uid, budget_left=self._balancer.may_retry)
            if again is None:
                raise failed.error
            # Time has passed: whoever became unready or went away meanwhile gets no second attempts either.
            route = self._fleet.value.routes.get(route.model) or route

    def _is_routed(self, model: str, pod: Pod) -> bool:
        """Whether the pod gets new work for the model now."""
        route = self._fleet.value.routes.get(model)
        return route is not None and any(each.uid == pod.uid for each in route.pods)

    async def _attempt(self, pool: PodPool, connection: PodConnection | None, request: "_Request") -> Failed | None:
        """One pod, on a connection that is open already or a fresh one. None when the client has its answer."""
        visit, call, _, exchange = request
        trail = visit.trail
        trail.attempts += 1
        if connection is None:
            try:
                connection = await pool.connect()
            except ConnectFailed:
                trail.attempt_outcomes += ((pool.pod.pool, Failure.CONNECT),)
                return Failed(Failure.CONNECT, _no_ready_pod(request.route))
        if self.draining:
            # The drain ended while this request was on its way to a pod: nobody would tell it so later.
            connection.abort()
            raise _draining()
        relay = self._relay(request)
        relay.connection = connection
        head = request_head(
            visit.operation.path,
            pool.host,
            self._pools.authorization,
            visit.head.fields,
            call.content_type,
            f"{trail.pod_request_id}-{trail.attempts}",
            call.body_length,
        )
        outcome: str = Failure.ABANDONED
        self._relays.add(relay)
        try:
            trail.sent_at = self._monotonic()
            connection.send(head, call.body, relay)
            first = await relay.first
            if isinstance(first, Failed):
                outcome = first.failure
                return first
            call.body.clear()
            trail.first_content_at = relay.first_content_at or self._monotonic()
            if isinstance(first, Whole):
                self._begin(trail, exchange, first.content_type, len(first.body), first.headers)
                exchange.finish(first.body)
                trail.outcome = Outcome.COMPLETED
            else:
                await self._relay_to_its_end(first, relay, pool, visit, exchange)
            outcome = trail.outcome
            return None
        finally:
            connection.drop(relay)
            self._relays.discard(relay)
            relay.discard()
            trail.attempt_outcomes += ((pool.pod.pool, outcome),)
            _note_usage(relay.reader, visit.operation, call, trail)

    def _relay(self, request: "_Request") -> Relay:
        call, deadlines = request.call, request.route.pool.deadlines
        operation = request.visit.operation
        received_at = request.visit.trail.received_at
        reader = operation.reader(call.choices)
        loop = self._loop
        if loop is None:
            # Once: Python 3.11 asks the kernel for the process id each time.
            loop = self._loop = asyncio.get_running_loop()
        if not call.stream:
            deadline = received_at + deadlines.response_seconds
            return Relay(reader, deadline, self._monotonic, loop, operation.answers)
        assert isinstance(reader, EventReader)  # noqa: S101  # only what can be read as a stream is asked for as one
        return StreamRelay(
            reader,
            deadlines,
            received_at,
            self._monotonic,
            loop,
            wants_usage=call.wants_usage,
            end_mark=operation.dialect.end_mark,
            budget=self._budget,
        )

    async def _relay_to_its_end(
        self, first: Large | Content, relay: Relay, pool: PodPool, visit: Visit, exchange: Exchange
    ) -> None:
        """Commit the 200 of an answer that is not complete yet, and see it to its end."""
        trail = visit.trail
        if isinstance(first, Large):
            self._begin(trail, exchange, first.content_type, first.length, first.headers)
        else:
            self._begin(trail, exchange, _EVENTS, None, _STREAM_HEADERS)
        relay.commit(exchange)
        ended = await relay.ended
        if ended.error is None and relay.connection is not None:
            pool.release(relay.connection, relay)
        # The truth about the ending comes before anything else.
        error = ended.error
        if error is None:
            exchange.finish(ended.held)
            trail.outcome = Outcome.COMPLETED
            return
        if isinstance(relay, StreamRelay):
            exchange.finish(ended.held if ended.said else visit.operation.dialect.event(error, relay.events))
        else:
            exchange.abort()
        trail.outcome = Outcome(error.outcome)
        trail.code = error.code

    def _begin(
        self,
        trail: Trail,
        exchange: Exchange,
        content_type: bytes,
        length: int | None,
        headers: tuple[tuple[bytes, bytes], ...],
    ) -> None:
        if trail.tenant is not None and trail.tenant.debug:
            headers += _debug_headers(trail)
        exchange.start(200, content_type, length, headers)
        trail.status = 200
        trail.committed_at = self._monotonic()

    def _answer_error(self, visit: Visit, exchange: Exchange, error: PoolgateError) -> None:
        trail = visit.trail
        trail.outcome = Outcome(error.outcome)
        trail.code = error.code
        if exchange.client_gone:
            trail.outcome = Outcome.CLIENT_LEFT
        elif trail.committed_at is not None:
            exchange.abort()
        else:
            trail.status = error.http_status
            body = (visit.refused_in or visit.operation.dialect).body(error)
            headers = error.headers()
            if trail.tenant is not None and trail.tenant.debug:
                headers += _debug_headers(trail)
            exchange.start(error.http_status, _JSON, len(body), headers)
            exchange.finish(body)

    def _settle(self, trail: Trail) -> None:
        trail.ended_at = self._monotonic()
        self._settled(trail)


class _Request(NamedTuple):
    """What every attempt needs: who asked, what, where it goes, and where the answer goes."""

    visit: Visit
    call: Call
    route: Route
    exchange: Exchange


async def _read_form(visit: Visit, body: bytes) -> Call:
    """Look at a form, away from the loop if that may take long.

    Raises `InvalidRequest` and `Forbidden`.
    """
    if len(body) <= OFF_LOOP_BYTES:
        found = read_form(body, visit.boundary, FORM_FIELDS)
    else:
        found = await asyncio.to_thread(read_form, body, visit.boundary, FORM_FIELDS)
    return call_of_form(found, body, visit.head.fields[b"content-type"], visit.tenant)


def _note_usage(reader: AnswerReader, operation: Operation, call: Call, trail: Trail) -> None:
    """What the last attempt that said anything spent: the pod's own count, or what was seen of it."""
    if reader.answered:
        trail.finish = reader.finish
        trail.content_events = reader.content_events
        if operation.takes_tokens:
            trail.usage = reader.usage() or Usage(call.prompt_tokens_estimate, reader.content_events, estimated=True)


def _debug_headers(trail: Trail) -> tuple[tuple[bytes, bytes], ...]:
    """Where the request went, for keys that may know."""
    return (
        (b"x-poolgate-pod", trail.pod.encode() or b"none"),
        (b"x-poolgate-attempts", b"%d" % trail.attempts),
        (b"x-poolgate-decision", trail.decision.encode() or b"none"),
    )


def _draining() -> Draining:
    return Draining("this replica is shutting down", retry_after_seconds=DRAINING_RETRY_SECONDS)


def _no_ready_pod(route: Route) -> NoReadyPod:
    return NoReadyPod(
        f"no pod of this model can be reached ({len(route.pods)} listed as ready)",
        retry_after_seconds=NO_POD_RETRY_SECONDS,
        param="model",
    )
