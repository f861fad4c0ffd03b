"""The pipeline: identify → read → name → admit → forward → settle.

One coroutine per request runs `serve`, as an `Errand`; `forward` does the longest part. A client that leaves cancels
it, wherever it waits.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

from gateway.core.call import Call, Outcome, Trail
from gateway.core.cell import Cell
from gateway.core.clock import Clock
from gateway.core.errors import (
    Draining,
    Forbidden,
    InternalError,
    ModelNotFound,
    PoolgateError,
    RateLimited,
    StreamDraining,
)
from gateway.core.fleet import Fleet
from gateway.core.made import maker
from gateway.core.naming import Aliases, targets
from gateway.limits.admission import Admission, Ask, Reservation
from gateway.pipeline import catalogue
from gateway.pipeline.aside import OFF_LOOP_BYTES, Aside
from gateway.pipeline.caps import THE_USUAL_CAPS, Caps
from gateway.pipeline.errand import in_a_task
from gateway.pipeline.exchange import Exchange, Headers
from gateway.pipeline.familiar import Familiar
from gateway.pipeline.form import read_form
from gateway.pipeline.forward import Forwarder, begin, debug_headers, draining, request_of
from gateway.pipeline.intake import FORM_FIELDS, Look, call_of, call_of_form, check_media, look, looking
from gateway.pipeline.operations import Body, Operation
from gateway.pipeline.reception import Visit
from gateway.pipeline.wish import wish_of

_JSON = b"application/json"
# Read with every request: off their class they cost some ten times as much.
_NONE, _FORM = Body.NONE, Body.FORM
_ask_of = maker(Ask)

log = logging.getLogger("poolgate")


class Pipeline:
    """Serves requests. `settle` takes each request's trail once, at its end; `caps` may be replaced at any time."""

    look = staticmethod(look)
    looking = staticmethod(looking)

    def __init__(
        self,
        *,
        fleet: Cell[Fleet],
        aliases: Cell[Aliases],
        admission: Admission,
        forwarder: Forwarder,
        aside: Aside,
        clock: Clock,
        chance: Callable[[], float],
        settle: Callable[[Trail], None],
        caps: Caps = THE_USUAL_CAPS,
    ) -> None:
        self._fleet = fleet
        self._aliases = aliases
        self._admission = admission
        self._forwarder = forwarder
        self._aside = aside
        self._monotonic = clock.monotonic
        self._chance = chance
        self._settled = settle
        self.caps = caps
        self.active = 0
        """Requests being served now."""
        self._looking = asyncio.Lock()
        self._familiar = Familiar()

    def sweep(self, now: float) -> None:
        """Judge every running answer's deadlines; about four times a second."""
        self._forwarder.sweep(now)

    def end_all(self) -> None:
        """The drain's limit is reached: refuse new work, and end what still runs with the truth."""
        self._forwarder.end_all()

    def refuse(self, visit: Visit, exchange: Exchange, error: PoolgateError) -> None:
        """Answer with an error and close the trail; for what is refused before its body was read."""
        self._answer_error(visit, exchange, error)
        self._settle(visit.trail)

    def left(self, visit: Visit) -> None:
        """Close the trail of a request whose client left before its body was whole."""
        visit.trail.outcome = Outcome.CLIENT_LEFT
        self._settle(visit.trail)

    async def serve(self, visit: Visit, body: bytes, exchange: Exchange) -> None:
        """Answer one request whose body is whole. Returns when the last byte is handed over."""
        trail = visit.trail
        self.active += 1
        try:
            operation, forwarder = visit.operation, self._forwarder
            kind = operation.body
            if exchange.client_gone:
                trail.outcome = Outcome.CLIENT_LEFT
            elif kind is _NONE:
                self._answer_at_once(visit, exchange)
            elif forwarder.draining:
                raise draining()
            else:
                seen = None
                if kind is _FORM:
                    call = await self._read_form(visit, body)
                else:
                    seen, call = (
                        self._familiar.told(body, operation, self.caps)
                        if len(body) <= OFF_LOOP_BYTES
                        else await self._told_in_turn(body, operation)
                    ) or await self._read(visit, body)
                name = trail.model = call.model
                trail.stream = call.stream
                route = self._fleet.value.routes.get(name)
                if (
                    (visit.tenant, visit.user, name) in self._admission.free
                    and route is not None
                    and name not in self._aliases.value
                    and forwarder.keep_alive_seconds is None
                ):
                    # Nearly every request: nothing stands between it and a pod. Who is free may use the model, too.
                    trail.served_model = True
                    wish = wish_of(route, call, seen, visit)
                    way = forwarder.to_model(request_of((visit, call, exchange, wish)), route)
                else:
                    way = self._admitted(visit, call, seen, exchange)
                # From here on the body lives in the call alone.
                del body, seen
                await way
        except RateLimited as error:
            visit.limit_lines = error.shown
            self._answer_error(visit, exchange, error)
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
            trail.ended_at = self._monotonic()
            self._settled(trail)

    async def _admitted(self, visit: Visit, call: Call, seen: Look | None, exchange: Exchange) -> None:
        """Forward a request, if its caller may use the model, and if its limits let it in.

        Raises `Forbidden`, `ModelNotFound`, `RateLimited`, `QuotaExceeded` and `Busy`, and what forwarding raises.
        """
        models = self._models(call, visit)
        reservation: Reservation | None = None
        if (visit.tenant, visit.user, call.model) not in self._admission.free:
            ask = _ask(visit, call)
            reservation = self._admission.reserve_nowait(ask, visit.trail)
            if reservation is None:
                await in_a_task()
                reservation = await self._admission.reserve(ask, visit.trail)
        with reservation or nullcontext():
            if reservation is not None:
                visit.limit_lines = reservation.lines
            wish = wish_of(self._fleet.value.routes.get(models[0]), call, seen, visit)
            del seen
            await self._forwarder.forward(request_of((visit, call, exchange, wish)), models)

    async def _read(self, visit: Visit, body: bytes) -> tuple[Look, Call]:
        """The call that a JSON body makes, after a look at it.

        Raises `InvalidJson`, `InvalidRequest` and `Forbidden`.
        """
        operation, caps = visit.operation, self.caps
        if len(body) > OFF_LOOP_BYTES:
            seen = await self._look_in_turns(body, operation)
        else:
            seen = self.look(body, operation)
        if seen.may_name_urls:
            await self._aside.run(len(body), partial(check_media, seen, caps))
        call = call_of(seen, operation, visit.tenant, caps)
        self._familiar.note(body, operation, caps)
        return seen, call

    async def _told_in_turn(self, body: bytes, operation: Operation) -> tuple[Look, Call] | None:
        """What is known of a large body, in a turn of its own (see `_look_in_turns`): it is read through twice."""
        async with self._looking:
            await asyncio.sleep(0)
            return self._familiar.told(body, operation, self.caps)

    async def _read_form(self, visit: Visit, body: bytes) -> Call:
        """The call that a form makes.

        Raises `InvalidRequest` and `Forbidden`.
        """
        found = await self._aside.run(len(body), partial(read_form, body, visit.boundary, FORM_FIELDS))
        return call_of_form(found, body, visit.head.fields[b"content-type"], visit.tenant, self.caps)

    async def _look_in_turns(self, body: bytes, operation: Operation) -> Look:
        """A look at a large body, a step in each turn of the loop, and at one body at a time. All of it may take 0.1 s,
        in C and with the interpreter's lock; several that are whole at once would hold the loop for as long as all of
        them take, which looks like overload, and who sent them could have others turned away."""
        async with self._looking:
            steps = self.looking(body, operation)
            while True:
                await asyncio.sleep(0)
                try:
                    next(steps)
                except StopIteration as last:
                    await asyncio.sleep(0)
                    seen: Look = last.value
                    return seen

    def _answer_at_once(self, visit: Visit, exchange: Exchange) -> None:
        """Answer what has no body: a browser's question, or one for the models."""
        if visit.preflight is not None:
            self._let_ask(visit, visit.preflight, exchange)
        else:
            self._list_models(visit, exchange)

    def _let_ask(self, visit: Visit, told: Headers, exchange: Exchange) -> None:
        """A browser may send what it asks for: no content."""
        exchange.start(204, b"", 0, told)
        visit.trail.status = 204
        visit.trail.committed_at = self._monotonic()
        exchange.finish()
        visit.trail.outcome = Outcome.COMPLETED

    def _list_models(self, visit: Visit, exchange: Exchange) -> None:
        fleet, aliases = self._fleet.value, self._aliases.value
        if visit.model_id is None:
            body = catalogue.listing(fleet, aliases, visit.tenant)
        else:
            body = catalogue.one(fleet, aliases, visit.tenant, visit.model_id)
        begin(self._monotonic, visit, exchange, _JSON, len(body), ())
        exchange.finish(body)
        visit.trail.outcome = Outcome.COMPLETED

    def _models(self, call: Call, visit: Visit) -> tuple[str, ...]:
        """The models to try for the name that was asked for, in order.

        Raises `Forbidden` and `ModelNotFound`.
        """
        trail, name = visit.trail, call.model
        aliases = self._aliases.value
        trail.served_model = name in aliases or name in self._fleet.value.routes
        if not visit.tenant.may_use(name):
            raise Forbidden("this key may not use that model", code="model_not_allowed", param="model")
        if not trail.served_model:
            raise ModelNotFound(f"the model {name[:256]!r} is not served here: see /v1/models", param="model")
        return targets(aliases, name, self._chance()) if name in aliases else (name,)

    def _answer_error(self, visit: Visit, exchange: Exchange, error: PoolgateError) -> None:
        # Who keeps a failed attempt's error is among the frames it was raised through: a ring, with the body in it.
        error.__traceback__ = error.__context__ = None
        trail = visit.trail
        if trail.opened and isinstance(error, Draining):
            error = StreamDraining(error.message)
        trail.outcome = Outcome(error.outcome)
        trail.code = error.code
        if exchange.client_gone:
            trail.outcome = Outcome.CLIENT_LEFT
        elif trail.committed_at is not None:
            exchange.abort()
        elif trail.opened:
            # A comment took the head along: there is no other status any more, and no header.
            exchange.finish(visit.operation.dialect.event(error, 0))
        else:
            trail.status = error.http_status
            body = (visit.refused_in or visit.operation.dialect).body(error)
            headers = error.headers()
            if trail.tenant is not None and trail.tenant.debug:
                headers += debug_headers(trail)
            exchange.start(error.http_status, _JSON, len(body), headers)
            exchange.finish(body)

    def _settle(self, trail: Trail) -> None:
        trail.ended_at = self._monotonic()
        self._settled(trail)


def _ask(visit: Visit, call: Call) -> Ask:
    """What the request takes of its caller's limits."""
    operation = visit.operation
    return _ask_of(
        (
            visit.tenant,
            visit.user,
            call.model,
            call.prompt_tokens_estimate if operation.takes_tokens else 0,
            (call.choices or 1) if operation.streams else 0,
            call.max_tokens,
        )
    )
