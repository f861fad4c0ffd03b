"""A request's way to a pod and back: wait → lease → send → relay, and once more elsewhere where the table allows it.

One coroutine per request runs `forward`; it decides, and callbacks carry the bytes (see `relay`). A client that leaves
cancels it, wherever it waits: the `finally` below closes the pod's connection, which is how vLLM is told to
stop.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

from gateway.balancing.balancer import Balancer, Blame, Lease, Seat
from gateway.balancing.policy import Wish
from gateway.balancing.probes import Condition, Probes
from gateway.core.call import Attempt, Call, Outcome, Trail, Usage
from gateway.core.cell import Cell
from gateway.core.clock import about
from gateway.core.errors import (
    Busy,
    Draining,
    NoReadyPod,
    PoolgateError,
    Quarantined,
    QueueFull,
    QueueTimeout,
    StreamDraining,
    StreamStalled,
    UpstreamDisconnected,
    UpstreamTimeout,
)
from gateway.core.fleet import Deadlines, Fleet, Pod, Route
from gateway.core.made import maker
from gateway.pipeline.aside import Aside
from gateway.pipeline.errand import apart
from gateway.pipeline.exchange import Exchange, Head, Headers
from gateway.pipeline.intake import renamed
from gateway.pipeline.keep_alive import KeepAlive
from gateway.pipeline.quarantine import Mark, Quarantine, mark_of
from gateway.pipeline.reception import Visit
from gateway.pipeline.relay import Content, Failed, First, Large, Relay, StreamRelay, TailBudget, Whole
from gateway.pipeline.retries import BLAME, Again, Retries
from gateway.pipeline.silence import Running, Suspicion, suspicion
from gateway.upstream.connection import PodConnection
from gateway.upstream.failure import Failure
from gateway.upstream.headers import RequestHeads
from gateway.upstream.pool import ConnectFailed, PodPool, Pools
from gateway.upstream.usage import BYTES_PER_TOKEN, EventReader

NO_POD_RETRY_SECONDS = 5.0
DRAINING_RETRY_SECONDS = 1.0

SUSPECT_SECONDS = 2.0
"""Requests that nothing came for in so long are looked at."""
MOST_UNSEEN_TOKENS = 1 << 20
"""What a prompt may have beside its text, as images do, and an answer that nobody bounded."""
SLACK_TOKENS = 1024
"""By which an answer may always have more than was asked for: within these two a usage needs no other look."""

_DEATHS = (Failure.STALE, Failure.RESET, Failure.ENGINE_DEAD)
"""What a pod that dies of a request does, among others."""
_COMPLETED = Outcome.COMPLETED
"""Set with every answer: read off its class it costs some ten times as much."""
_CUT = (Outcome.TRUNCATED, Outcome.UPSTREAM_FAILED)
"""How an answer may end whose pod died: without its end, or with vLLM's words for a dead engine."""
_ABANDONED = Failure.ABANDONED
_EVENTS = b"text/event-stream; charset=utf-8"
_STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


class Request(NamedTuple):
    """What every attempt needs: who asked, what, where the answer goes, and what a pod for it is chosen by."""

    visit: Visit
    call: Call
    exchange: Exchange
    wish: Wish


_LET_GO = Head(b"", b"", {}, frozenset(), 0.0)
"""In place of a head that has been read. Its fields are not emptied: heads that are alike share them (`edge.known`)."""

request_of = maker(Request)
_attempt = maker(Attempt)


class Forwarder:
    """Sends requests to pods. `refresh(pod)` has a pod asked again for its models; `quarantined()` counts."""

    relays: ClassVar[type[Relay]] = Relay
    stream_relays: ClassVar[type[StreamRelay]] = StreamRelay
    retries: ClassVar[type[Retries]] = Retries
    heads: ClassVar[type[RequestHeads]] = RequestHeads
    quarantines: ClassVar[type[Quarantine]] = Quarantine
    blame: ClassVar[Mapping[Failure, Blame]] = BLAME
    max_tail_bytes: ClassVar[int] = 128 << 20
    """Of all streams together: what they may hold of unfinished events."""

    def __init__(
        self,
        *,
        fleet: Cell[Fleet],
        balancer: Balancer,
        pools: Pools,
        probes: Probes,
        refresh: Callable[[Pod], None],
        quarantined: Callable[[], None],
        aside: Aside,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._balancer = balancer
        self._pools = pools
        self._known_pools = pools.known
        self._probes = probes
        self._refresh = refresh
        self._quarantined = quarantined
        self._aside = aside
        self._clock = clock
        self._chance = chance
        self._quarantine = self.quarantines()
        self._heads = self.heads()
        self._budget = TailBudget(self.max_tail_bytes)
        self._running: dict[Relay, Lease] = {}
        self._keep_alives: set[KeepAlive] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.draining = False
        """New work is refused: this replica goes away now."""
        self.keep_alive_seconds: float | None = None
        """How long a stream may be silent, from its request on, before it gets a comment; None: for ever."""

    def forward(self, request: Request, models: tuple[str, ...]) -> Coroutine[Any, Any, None]:
        """Answer the client from one of the models, to be tried in this order: the one asked for, or what its alias
        leads to.

        Raises what the client is to be told, if nothing of an answer was sent yet.
        """
        if len(models) == 1 and self.keep_alive_seconds is None and models[0] == request.call.model:
            return self.to_model(request)
        return self._to_models(request, models)

    async def _to_models(self, request: Request, models: tuple[str, ...]) -> None:
        refused: PoolgateError | None = None
        keep_alive = None
        if self.keep_alive_seconds is not None and request.call.stream:
            keep_alive = self._kept_alive(request, self.keep_alive_seconds)
            self._keep_alives.add(keep_alive)
        try:
            for model in models:
                if model != request.call.model:
                    call = request.call
                    call = await self._aside.run(call.body_length, partial(renamed, call, model))
                    request = request._replace(call=call)
                try:
                    await self.to_model(request)
                except (NoReadyPod, QueueFull, QueueTimeout) as error:
                    refused = error
                else:
                    return
        finally:
            if keep_alive is not None:
                self._keep_alives.remove(keep_alive)
        raise refused or self._no_ready_pod(request)

    def _kept_alive(self, request: Request, seconds: float) -> KeepAlive:
        visit, exchange = request.visit, request.exchange
        return KeepAlive(
            exchange, visit.trail, seconds, partial(_start, visit, exchange, _EVENTS, None, _STREAM_HEADERS)
        )

    def sweep(self, now: float) -> None:
        """Judge every running answer's deadlines, and the pods' silence; about four times a second."""
        for relay, lease in list(self._running.items()):
            if relay.sweep(now):
                lease.seat.heard_at = now
        suspects: dict[Seat, list[tuple[Relay, Lease]]] = {}
        for relay, lease in self._running.items():
            if not relay.paused and now - max(lease.seat.heard_at, relay.sent_at) >= SUSPECT_SECONDS:
                suspects.setdefault(lease.seat, []).append((relay, lease))
        for seat, held in suspects.items():
            self._suspect(seat, held, now)
        for each in self._keep_alives:
            each.sweep(now)

    def end_all(self) -> None:
        """The drain's limit is reached: refuse new work, and end what still runs with the truth."""
        self.draining = True
        self._balancer.turn_all_away()
        for relay in list(self._running):
            if relay.first.done():
                relay.fail(Failure.ABANDONED, StreamDraining("this replica of the gateway is shutting down"))
            else:
                relay.fail(Failure.ABANDONED, draining())

    async def to_model(
        self,
        request: Request,
        route: Route | None = None,
        lease: Lease | None = None,
        retries: Retries | None = None,
        *,
        afresh: bool = False,
    ) -> None:
        """Answer from one of a model's pods. An attempt that fails is followed by the next one, if the retry table says
        so: it runs in here, and each has a lease of its own.

        `route`: the model's, if it was looked up already. `lease` and `retries`: this is not the first attempt;
        `afresh`: it is at the same pod, on another connection.
        """
        visit, call, _, wish = request
        trail, model = visit.trail, call.model
        if lease is None:
            route = route or self._fleet.value.routes.get(model)
            if route is None:
                raise self._no_ready_pod(request)
            trail.pool = route.pool.name
            if self._quarantine.deaths and self._quarantine.holds(_mark(request), self._clock()):
                raise self._put_in_quarantine()
            lease = self._balancer.lease_nowait(model, wish)
            if lease is None:
                lease = await self._room(request, route, (), False, None)
        assert route is not None  # noqa: S101  # a lease comes with its route
        with lease as pod:
            pool = self._known_pools.get(pod.uid)
            if pool is None or pool.pod is not pod:
                pool = self._pools.of(pod)
            connection = None if afresh else pool.take()
            _, reason, cached_tokens, _, _, costs = lease.choice
            trail.attempts = number = trail.attempts + 1
            trail.pod, trail.decision = pod.name, reason
            started_at, trace_lines, trace = 0.0, None, trail.trace
            if trace is not None:
                started_at, trace_lines = self._clock(), trace.lines(number)
            outcome: str = _ABANDONED
            try:
                if connection is None:
                    connection = await _opened(pool)
                if connection is None:
                    failed = Failed(Failure.CONNECT, self._no_ready_pod(request))
                else:
                    if self.draining:
                        # The drain ended while this request was on its way: nobody would tell it so later.
                        connection.abort()
                        raise draining()
                    relay = self._relay(request, route.pool.deadlines)
                    relay.connection = connection
                    self._running[relay] = lease
                    first: First | None = None
                    try:
                        # Its own word for it is the pod's.
                        is_told = visit.priority and pod.takes_priority and not call.says_priority
                        head = self._heads.of(
                            visit.operation.path,
                            pool.host,
                            self._pools.authorization,
                            visit.head.fields,
                            call.content_type,
                            f"{trail.pod_request_id}-{number}",
                            call.body_length,
                            visit.priority if is_told else 0,
                            trace_lines,
                        )
                        trail.sent_at = relay.sent_at = lease.sent_at = self._clock()
                        connection.send(head, call.body, relay)
                        del head
                        first = await relay.first
                        if isinstance(first, Whole):
                            self._answer_whole(first, lease, request)
                            outcome = trail.outcome
                            return
                        if not isinstance(first, Failed):
                            mark = self._begun(first, relay, lease, request)
                            await self._relay_to_its_end(first, relay, lease, pool, request, mark)
                            outcome = trail.outcome
                            return
                    finally:
                        del self._running[relay]
                        if not isinstance(first, Whole):
                            # Of one that has brought a whole answer there is nothing to let go.
                            connection.drop(relay)
                            relay.discard()
                        self._note_usage(relay, request)
                    failed = await self._diagnosed(first, lease, request)
                    # What follows may run for an hour: of what came here it holds nothing.
                    del relay, first, connection
                outcome = failed.failure
                self._blame(failed, lease, visit)
            finally:
                ended_at = 0.0 if trace is None else self._clock()
                trail.attempt_outcomes += ((pod.pool, outcome),)
                trail.tried += (
                    _attempt(
                        (
                            pod.name,
                            reason,
                            lease.candidates,
                            costs,
                            cached_tokens,
                            outcome,
                            model,
                            started_at,
                            ended_at,
                        )
                    ),
                )
            # Nearly every request has one attempt: what counts them is made when the first one failed.
            retries = retries or self.retries()
            again = retries.again(failed.failure, pod.uid, budget_left=self._balancer.may_retry)
            if again is Again.SAME_POD and self._is_routed(model, pod):
                trail.retries += ((pod.pool, failed.failure),)
                await self.to_model(request, route, lease, retries, afresh=True)
                return
        await self._elsewhere(request, route, retries, again, failed)

    async def _elsewhere(
        self, request: Request, route: Route, retries: Retries, again: Again | None, failed: Failed
    ) -> None:
        """Another attempt, at another pod, or the error of the last one."""
        if self._quarantine.deaths and self._quarantine.holds(_mark(request), self._clock()):
            raise self._put_in_quarantine()
        if again is None:
            raise failed.error
        trail, model = request.visit.trail, request.call.model
        # Time has passed: whoever became unready or went away meanwhile gets no second attempts either.
        route = self._fleet.value.routes.get(model) or route
        excluded, on_budget = retries.excluded, retries.on_budget
        lease = self._balancer.lease_nowait(model, request.wish, excluded, retry=on_budget)
        if lease is None:
            lease = await self._room(request, route, excluded, on_budget, failed)
        trail.retries += ((lease.seat.pod.pool, failed.failure),)
        await self.to_model(request, route, lease, retries)

    async def _room(
        self, request: Request, route: Route, excluded: Collection[str], on_budget: bool, failed: Failed | None
    ) -> Lease:
        """Wait for a pod with room.

        Raises the error of the attempt before where there is no further pod, `NoReadyPod`, `QueueFull` and
        `QueueTimeout`.
        """
        if self.draining:
            raise draining()
        visit = request.visit
        trail = visit.trail
        pool = route.pool
        others = [pod for pod in route.pods if pod.uid not in excluded]
        may_serve = self._balancer.may_serve
        if failed is not None and (failed.failure is Failure.BUSY or not any(map(may_serve, others))):
            raise failed.error
        # An ejected pod is waited for as any other, if it comes back in time.
        in_time = any(may_serve(pod, pool.queue_wait_seconds) for pod in others)
        patience = pool.queue_wait_seconds if in_time else pool.hold_empty_seconds
        since = self._clock()
        deadlines = pool.deadlines
        limit = deadlines.ttft_seconds if request.call.stream else deadlines.response_seconds
        deadline = min(since + patience - trail.queue_seconds, trail.received_at + limit)
        if not in_time and deadline <= since:
            raise self._no_ready_pod(request)
        try:
            return await self._balancer.wait_for_room(
                route,
                request.wish,
                excluded,
                retry=on_budget,
                caller=(visit.tenant, visit.user) if visit.user else visit.tenant,
                deadline=deadline,
                priority=visit.priority,
            )
        except QueueTimeout:
            if self.draining:
                raise draining() from None
            left = self._fleet.value.routes.get(request.call.model)
            if left is None or not left.pods:
                raise self._no_ready_pod(request) from None
            raise
        finally:
            trail.queue_seconds += self._clock() - since

    def _is_routed(self, model: str, pod: Pod) -> bool:
        """Whether the pod gets new work for the model now."""
        route = self._fleet.value.routes.get(model)
        return route is not None and any(each.uid == pod.uid for each in route.pods)

    def _begun(self, first: Whole | Large | Content, relay: Relay, lease: Lease, request: Request) -> Mark:
        """The answer has begun: note it, let go of what was sent. What the request is known by, if that is needed."""
        visit, call = request.visit, request.call
        now = self._clock()
        visit.trail.first_content_at = relay.first_content_at or now
        lease.began(now)
        mark = 0
        if isinstance(first, Content):
            lease.streams(visit.tenant, now)
            mark = _mark(request)
            # A kibibyte of each stream that is open.
            visit.head = _LET_GO
        elif self._quarantine.deaths:
            mark = _mark(request)
        call.body.clear()
        return mark

    def _answer_whole(self, first: Whole, lease: Lease, request: Request) -> None:
        """Answer with a body that is complete."""
        visit, call, exchange, _ = request
        trail = visit.trail
        now = trail.first_content_at = self._clock()
        if self._quarantine.deaths:
            self._quarantine.answered(_mark(request))
        call.body.clear()
        if trail.opened or visit.tenant.debug:
            begin(self._clock, visit, exchange, first.content_type, len(first.body), first.headers)
            exchange.finish(first.body)
        else:
            trail.status = 200
            exchange.whole(first.content_type, first.body, first.headers)
            trail.committed_at = self._clock()
        trail.outcome = _COMPLETED
        lease.came_whole(visit.tenant, now)

    def _relay(self, request: Request, deadlines: Deadlines) -> Relay:
        visit, call, _, _ = request
        operation = visit.operation
        received_at = visit.trail.received_at
        reader = operation.reader(call.choices)
        loop = self._loop
        if loop is None:
            # Once: Python 3.11 asks the kernel for the process id each time.
            loop = self._loop = asyncio.get_running_loop()
        if not call.stream:
            deadline = received_at + deadlines.response_seconds
            return self.relays(reader, deadline, self._clock, loop, operation.answers)
        assert isinstance(reader, EventReader)  # noqa: S101  # only what can be read as a stream is asked for as one
        return self.stream_relays(
            reader,
            deadlines,
            received_at,
            self._clock,
            loop,
            wants_usage=call.wants_usage,
            end_mark=operation.dialect.end_mark,
            budget=self._budget,
        )

    async def _relay_to_its_end(
        self, first: Large | Content, relay: Relay, lease: Lease, pool: PodPool, request: Request, mark: Mark
    ) -> None:
        """Commit the 200 of an answer that is not complete yet, and see it to its end."""
        visit, exchange = request.visit, request.exchange
        trail = visit.trail
        if isinstance(first, Large):
            begin(self._clock, visit, exchange, first.content_type, first.length, first.headers)
        else:
            begin(self._clock, visit, exchange, _EVENTS, None, _STREAM_HEADERS)
        relay.commit(exchange)
        ended = await relay.ended
        if ended.error is None and relay.connection is not None:
            pool.release(relay.connection, relay)
        # The truth about the ending comes before anything else.
        error = ended.error
        if error is None:
            exchange.finish(ended.held)
            trail.outcome = Outcome.COMPLETED
            lease.answered(visit.tenant)
            # Not at its first token: a pod may die of what comes after.
            self._quarantine.answered(mark)
            return
        if isinstance(relay, StreamRelay):
            exchange.finish(ended.held if ended.said else visit.operation.dialect.event(error, relay.events))
        else:
            exchange.abort()
        trail.outcome = Outcome(error.outcome)
        trail.code = error.code
        # Neither our own drain nor our own limit on a stream's length is the pod's fault.
        if not isinstance(error, StreamDraining) and type(error) is not UpstreamTimeout:
            lease.failed(Blame.POD, visit.tenant)
            if mark and trail.outcome in _CUT and lease.seat.leaving_since is None:
                self._probes.ask(pool.pod, died=True).add_done_callback(partial(self._note_death, lease.seat, mark))

    # What a failure means.

    async def _diagnosed(self, failed: Failed, lease: Lease, request: Request) -> Failed:
        """The failure, with what its pod's state makes of it; a death is noted."""
        failure, pod = failed.failure, lease.seat.pod
        leaving = lease.seat.leaving_since is not None
        if failure is Failure.MODEL_GONE:
            self._refresh(pod)
        elif failure is Failure.SERVER_ERROR:
            if leaving or await self._condition(pod) is not Condition.ALIVE:
                return failed._replace(failure=Failure.DYING)
        elif (
            failure in _DEATHS
            # What a pod that terminates takes with it is not the request's fault.
            and not leaving
            and (failure is Failure.ENGINE_DEAD or await self._condition(pod, died=True) is not Condition.ALIVE)
            # That it terminates may have been heard only now.
            and lease.seat.leaving_since is None
        ):
            self._quarantine.died(_mark(request), pod.uid, self._clock())
            if failure is Failure.STALE:
                # Not closed while it was idle: the pod died with the request in hand.
                return failed._replace(failure=Failure.RESET)
        return failed

    def _blame(self, failed: Failed, lease: Lease, visit: Visit) -> None:
        """Count a failure against its pod, as the table says."""
        failure = failed.failure
        blame = self.blame.get(failure)
        if blame is not None:
            seconds = failed.error.retry_after_seconds if isinstance(failed.error, Busy) else 0.0
            lease.failed(blame, visit.tenant, seconds)
        elif failure is Failure.REFUSED:
            lease.answered(visit.tenant)

    async def _condition(self, pod: Pod, *, died: bool = False) -> Condition:
        # Shielded: others may wait for the same answer.
        return await asyncio.shield(self._probes.ask(pod, died=died))

    def _note_death(self, seat: Seat, mark: Mark, asked: "asyncio.Task[Condition]") -> None:
        if not asked.cancelled() and asked.result() is not Condition.ALIVE and seat.leaving_since is None:
            self._quarantine.died(mark, seat.uid, self._clock())

    # What was spent.

    def _note_usage(self, relay: Relay, request: Request) -> None:
        """What the last attempt that said anything spent: the pod's own count, or what was seen of it."""
        visit, call, exchange, _ = request
        operation, trail, reader = visit.operation, visit.trail, relay.reader
        if reader.answered:
            trail.finish = reader.finish
            trail.content_events = reader.content_events
        elif trail.committed_at is None and not exchange.client_gone:
            return
        # A pod works on a prompt from the moment it has it: who leaves before the first token has spent that much.
        if operation.takes_tokens:
            usage = reader.usage()
            if usage is None or (
                (usage.completion_tokens > SLACK_TOKENS or usage.prompt_tokens > MOST_UNSEEN_TOKENS)
                and self._is_a_lie(usage, call)
            ):
                seen = reader.content_events - reader.openings
                if not seen and operation.streams and not call.stream and trail.committed_at is not None:
                    seen = relay.body_bytes // BYTES_PER_TOKEN
                usage = Usage(call.prompt_tokens_estimate, seen, estimated=True)
            trail.usage = usage

    def _is_a_lie(self, usage: Usage, call: Call) -> bool:
        """More than can be: a prompt has no more tokens than bytes, an answer no more than were asked for; by the
        slack a pod may count otherwise than we do.
        """
        if usage.prompt_tokens > call.body_length + MOST_UNSEEN_TOKENS:
            return True
        if call.max_tokens is None or call.choices is None:
            return usage.completion_tokens > MOST_UNSEEN_TOKENS * (call.choices or 1)
        return usage.completion_tokens > 2 * call.max_tokens * call.choices + SLACK_TOKENS

    # Quarantine.

    def _put_in_quarantine(self) -> Quarantined:
        self._quarantined()
        return Quarantined("two pods died while they worked on this request: it is not sent to a third one")

    def _no_ready_pod(self, request: Request) -> NoReadyPod:
        route = self._fleet.value.routes.get(request.call.model)
        return NoReadyPod(
            f"no pod of this model can be reached ({len(route.pods) if route is not None else 0} listed as ready)",
            retry_after_seconds=about(NO_POD_RETRY_SECONDS, self._chance),
            param="model",
        )

    # Silence.

    def _suspect(self, seat: Seat, held: list[tuple[Relay, Lease]], now: float) -> None:
        running = [
            Running(isinstance(relay, StreamRelay), relay.first.done(), relay.sent_at, lease.tokens)
            for relay, lease in held
        ]
        found = suspicion(seat, running, now)
        if found is Suspicion.ASK or found is Suspicion.LOST:
            self._probes.ask(seat.pod).add_done_callback(partial(self._note_silence, seat))
        if found is Suspicion.LOST:
            for relay, _ in held:
                if isinstance(relay, StreamRelay):
                    _give_up(relay)
        elif found is Suspicion.WEDGED and self._balancer.wedged(seat):
            # All at once, however late they came: the few that a later look would find prove nothing by themselves.
            for relay, lease in list(self._running.items()):
                waits = isinstance(relay, StreamRelay) or not relay.first.done()
                if lease.seat is seat and waits and not relay.paused:
                    _give_up(relay)

    def _note_silence(self, seat: Seat, asked: "asyncio.Task[Condition]") -> None:
        """A terminating pod that does not answer its `/health` any more will not end its answers either."""
        if asked.cancelled() or asked.result() is Condition.ALIVE or self._clock() - seat.heard_at < SUSPECT_SECONDS:
            return
        for relay, lease in list(self._running.items()):
            if lease.seat is seat and not relay.paused:
                _give_up(relay)


def _mark(request: Request) -> Mark:
    return mark_of(request.visit.tenant.key_id, request.call.body)


async def _opened(pool: PodPool) -> PodConnection | None:
    """A fresh connection; None: there is none to be had."""
    try:
        connection = await apart(pool.connect(), PodConnection.abort)
    except ConnectFailed:
        return None
    # The pod may have closed it in the turn that lies between.
    return connection if connection.usable else None


def _give_up(relay: Relay) -> None:
    """Nothing will come any more."""
    if relay.first.done():
        relay.fail(Failure.SILENT, StreamStalled("the pod fell silent and is given up"))
    else:
        relay.fail(Failure.SILENT, UpstreamDisconnected("the pod did not answer and is given up"))


def begin(
    clock: Callable[[], float],
    visit: Visit,
    exchange: Exchange,
    content_type: bytes,
    length: int | None,
    headers: Headers,
) -> None:
    """Send an answer's head, unless a comment took it along."""
    trail = visit.trail
    if not trail.opened:
        _start(visit, exchange, content_type, length, headers)
    trail.committed_at = clock()


def _start(
    visit: Visit,
    exchange: Exchange,
    content_type: bytes,
    length: int | None,
    headers: Headers,
) -> None:
    if visit.tenant.debug:
        headers += debug_headers(visit.trail)
    exchange.start(200, content_type, length, headers)
    visit.trail.status = 200


def debug_headers(trail: Trail) -> Headers:
    """Where the request went, for keys that may know."""
    return (
        (b"x-poolgate-pod", trail.pod.encode() or b"none"),
        (b"x-poolgate-attempts", b"%d" % trail.attempts),
        (b"x-poolgate-decision", trail.decision.encode() or b"none"),
    )


def draining() -> Draining:
    return Draining("this replica is shutting down", retry_after_seconds=DRAINING_RETRY_SECONDS)
