"""The online checker of the invariants, fed with what a scene's clients and pods say (`loadtest.invariants`).

Watched are the chats that clients `ask`: each bears an id of its own, by which the checker joins what the client was
told, what each pod has said, and the access line. What a scene sends otherwise is its own matter. Of every request it
is seen which pod was picked for it, and what the gateway knew of that pod and of the others.
"""

from collections.abc import Collection, Mapping
from typing import Any

import httptools

from gateway.balancing.balancer import NO_WISH, Balancer, Lease, Seat
from gateway.balancing.health import State
from gateway.balancing.policy import Wish
from gateway.core.fleet import PodState
from loadtest.invariants import Bounds, Checker, ClientSide, PodSide, RequestSent, Shape
from loadtest.invariants.events import AccessLine, Event, Picked, PodPiece
from loadtest.invariants.rules import (
    BytesOfOnePod,
    ErrorsAreTold,
    FewAttempts,
    NoPickOfTheLeaving,
    NothingIsSmuggled,
    OneEnding,
    TokensAddUp,
    WholeMeansWhole,
)

RULES = (
    OneEnding, WholeMeansWhole, BytesOfOnePod, TokensAddUp, NoPickOfTheLeaving, FewAttempts, ErrorsAreTold,
    NothingIsSmuggled,
)  # fmt: skip
"""Those that are about a single request, and not about time; what is about a gateway at rest is in `afterwards`."""
PREFIX = "scene-"
_STATES = {PodState.READY: "ready", PodState.DRAINING: "terminating"}


def _no_time() -> float:
    """The order is all that is judged: nothing is late, and nothing is forgotten before the end."""
    return 0.0


class Watch:
    """One scene's checker."""

    def __init__(self) -> None:
        self._checker = Checker(Bounds(), RULES)
        self._hear = self._checker.hear
        self._count = 0

    def next_id(self) -> str:
        """For a request."""
        self._count += 1
        return f"{PREFIX}{self._count}"

    def asked(self, request_id: str, gateway: str, body: Mapping[str, object]) -> ClientSide:
        """A client sends a chat."""
        streams, options, choices = body.get("stream"), body.get("stream_options"), body.get("n", 1)
        sent = RequestSent(
            _no_time(),
            request_id,
            gateway,
            Shape.CHAT if streams else Shape.WHOLE,
            choices if isinstance(choices, int) else 0,
            isinstance(options, Mapping) and bool(options.get("include_usage")),
        )
        return ClientSide(self._hear, _no_time, sent)

    def reached(self, pod: str, request: bytes, *, lies: bool = False) -> "Answering":
        """A pod has a request. `lies`: the usage that it tells is none."""
        head = request.partition(b"\r\n\r\n")[0].lower()
        attempt = head.partition(b"\r\nx-request-id: ")[2].partition(b"\r\n")[0].decode("latin-1")
        hear = _passed_over if not attempt.startswith(PREFIX) else self._hear_liar if lies else self._hear
        return Answering(PodSide(hear, _no_time, pod, attempt))

    def _hear_liar(self, event: Event) -> None:
        if isinstance(event, PodPiece):
            event = event._replace(piece=event.piece._replace(tokens=None))
        self._hear(event)

    def picking(self, balancer: type[Balancer]) -> type[Balancer]:
        """The same, and each of its picks is heard of."""
        watch = self

        class Watched(balancer):  # type: ignore[misc, valid-type]  # whichever it is
            def lease_nowait(
                self, model: str, wish: Wish = NO_WISH, excluded: Collection[str] = (), *, retry: bool = False
            ) -> Lease | None:
                lease: Lease | None = super().lease_nowait(model, wish, excluded, retry=retry)
                if lease is not None:
                    watch._picked(self, lease, excluded)
                return lease

        return Watched

    def _picked(self, balancer: Any, lease: Lease, excluded: Collection[str]) -> None:
        pods = {pod.uid: pod for pod in balancer._fleet.value.pods}
        health = balancer._pools[lease.seat.pod.pool].health

        def state_of(seat: Seat) -> str:
            if seat.uid not in pods:
                return "gone"
            found = _STATES.get(pods[seat.uid].state, "not_ready")
            return "ejected" if found == "ready" and health.state(seat.uid) is State.EJECTED else found

        route = balancer._fleet.value.routes.get(lease.model)
        seats = [
            balancer.seat_of(pod.uid) for pod in (route.pods if route is not None else ()) if pod.uid not in excluded
        ]
        others = sum(
            seat is not None
            and seat is not lease.seat
            and seat.in_flight + seat.others < seat.room
            and state_of(seat) == "ready"
            for seat in seats
        )
        # When most are ejected, those few are not left alone with everything.
        usable = 0 if health.panic else others
        self._hear(Picked(_no_time(), "", lease.seat.name, state_of(lease.seat), usable))

    @property
    def broken_so_far(self) -> list[str]:
        """What was broken, before all is at rest."""
        return [f"{each.rule} {each.request_id}: {each.what}" for each in self._checker.violations]

    def broken(self, lines: Mapping[str, list[dict[str, object]]]) -> list[str]:
        """What was broken, now that all is at rest; by the access lines of each gateway."""
        for gateway, told in lines.items():
            for line in told:
                if str(line["request_id"]).startswith(PREFIX):
                    self._hear(AccessLine(_no_time(), gateway, line))
        self._checker.quiescent(_no_time())
        return self.broken_so_far


def _passed_over(event: Event) -> None:
    """It is of a request that is not watched."""


class Answering:
    """What a pod says to one request, as a parser reads it that believes it; until it cannot."""

    def __init__(self, side: PodSide) -> None:
        self._side = side
        self._headers: dict[str, str] = {}
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def says(self, data: bytes) -> None:
        """So many bytes more."""
        if self._parser is not None:
            try:
                self._parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                self.ends()

    def ends(self) -> None:
        """Nothing more comes; no matter if the answer was whole."""
        self._parser = None
        self._side.closed(by_gateway=False)

    # llhttp's callbacks.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if (status := self._parser.get_status_code()) >= 200:
            self._side.head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        self._side.body(data)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._parser.get_status_code() >= 200:
            self._side.answered()
