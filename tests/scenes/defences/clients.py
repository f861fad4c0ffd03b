"""What a gateway does against clients that are slow, many, large or gone."""

from collections.abc import Callable
from math import inf

from gateway.edge.port import Edge
from gateway.edge.protocol import ClientConnection
from gateway.edge.room import Room
from gateway.pipeline.exchange import Head
from gateway.pipeline.overload import Overload
from gateway.pipeline.reception import Reception, Visit
from gateway.pipeline.serve import Pipeline
from gateway.upstream.pool import PodPool, Pools
from tests.scenes.defences.replacing import bounded, but, having
from tests.scenes.scene import Defence


class _ServesTheDead(ClientConnection):
    __slots__ = ()

    def connection_lost(self, exc: Exception | None) -> None:
        self._errand = None
        super().connection_lost(exc)


CANCELLATION = Defence(
    "cancellation",
    "A client that leaves ends its request, and the pod's connection, wherever they are.",
    having(edge=but(Edge, connection=_ServesTheDead)),
)


class _NeverPauses(ClientConnection):
    __slots__ = ()

    def pause_writing(self) -> None:
        """The pod goes on."""


BACK_PRESSURE = Defence(
    "back_pressure",
    "A client that does not read stops the reading from its pod.",
    having(edge=but(Edge, connection=_NeverPauses)),
)
STALLED_READERS = Defence(
    "stalled_readers",
    "A client that leaves a full buffer unread for so long is let go.",
    bounded(stalled_seconds=inf),
)
HEAD_DEADLINE = Defence(
    "head_deadline",
    "A head has ten seconds, whatever drips.",
    bounded(head_seconds=inf),
)
BODY_DEADLINE = Defence(
    "body_deadline",
    "A body has a deadline, whatever drips.",
    bounded(body_seconds=inf),
)

BODY_RATE = Defence(
    "body_rate",
    "A body brings so many bytes a second on average, once the first seconds are over.",
    bounded(min_body_rate=0),
)


class _ForgetsWhoLeft(Pipeline):
    def left(self, visit: Visit) -> None:
        """It was no request."""


LEAVING_IS_TOLD = Defence(
    "leaving_is_told",
    "A request whose client leaves inside its body has ended as any other: in a line of its own.",
    having(pipeline=_ForgetsWhoLeft),
)


class _ReadsMuch(PodPool):
    __slots__ = ()
    receive_bytes = 8 << 20


SMALL_READS = Defence(
    "small_reads",
    "The kernel takes little of an answer that is not read, so that one more read brings little.",
    having(pools=but(Pools, pool=_ReadsMuch)),
)
HEAD_BOUNDS = Defence(
    "head_bounds",
    "A head has bounds: as a whole, of each line, of their number, of its URL.",
    bounded(
        max_head_bytes=1 << 40,
        max_line_bytes=1 << 40,
        max_header_count=1 << 40,
        max_url_bytes=1 << 40,
    ),
)


class _FirstCome(Room[ClientConnection]):
    def _make_room(self, network: str, now: float) -> bool:
        return False


ROOM_FOR_NEWCOMERS = Defence(
    "room_for_newcomers",
    "When all connections are taken, a newcomer gets the place of one that has waited the longest for a request.",
    having(edge=but(Edge, rooms=_FirstCome)),
)
CONNECTION_COUNT = Defence(
    "connection_count",
    "There is an end to the number of connections, and who is one too many is told.",
    bounded(max_connections=1 << 40),
)
BODY_BUDGET = Defence(
    "body_budget",
    "All bodies together take a bounded share of the memory; who does not fit is told when to come again.",
    bounded(max_buffered_body_bytes=1 << 40),
)


class _Jumpy(Overload):
    def __init__(self, chance: Callable[[], float]) -> None:
        super().__init__(chance, pass_seconds=0.0)


LAG_PATIENCE = Defence(
    "lag_patience",
    "Lag counts when every look for two seconds has found it: one stall turns nobody away.",
    having(overload=_Jumpy),
)


class _TakesAll(Overload):
    def look(self, now: float, lag: float, memory_share: float) -> None:
        """All is well."""


SHEDDING = Defence(
    "shedding",
    "Who has too much to do for long turns new requests away, before their bodies are read.",
    having(overload=_TakesAll),
)


class _AnswersHalfOpen(ClientConnection):
    __slots__ = ()

    def eof_received(self) -> bool:
        return True


HALF_CLOSED_IS_CLOSED = Defence(
    "half_closed_is_closed",
    "A client that says that nothing more comes has left: proxies and SDKs end a request in no other way.",
    having(edge=but(Edge, connection=_AnswersHalfOpen)),
)


class _ContinuesAtOnce(ClientConnection):
    __slots__ = ()

    def on_headers_complete(self) -> None:
        assert self._transport is not None
        if any(name == b"expect" for name, _ in self._headers):
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        super().on_headers_complete()


JUDGED_BEFORE_100 = Defence(
    "judged_before_100",
    "A head is judged before its body is asked for.",
    having(edge=but(Edge, connection=_ContinuesAtOnce)),
)


class _ReadsOnBehind(ClientConnection):
    __slots__ = ()

    def _came_behind(self, count: int) -> None:
        """Whatever it was."""


NOTHING_BEHIND = Defence(
    "nothing_behind",
    "What comes behind a request before its answer is no request: the connection closes with the answer.",
    having(edge=but(Edge, connection=_ReadsOnBehind)),
)
BYTES_BEHIND = Defence(
    "bytes_behind",
    "Behind a request that is being served little is read.",
    bounded(max_bytes_behind=1 << 40),
)


class _BelievesOverrides(Reception):
    def receive(self, head: Head) -> Visit:
        method = head.fields.get(b"x-http-method-override", head.method)
        return super().receive(head._replace(method=method))


ONE_METHOD = Defence(
    "one_method",
    "The method is the request line's, and each route has one.",
    having(reception=_BelievesOverrides),
)
