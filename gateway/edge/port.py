"""The public port: all of its connections, who comes in, and the sweep that judges their deadlines.

uvicorn is given `Edge.protocol` as its HTTP class.
"""

import asyncio
from collections.abc import Callable

from gateway.core.clock import Clock, http_date
from gateway.edge.bounds import Bounds
from gateway.edge.exchange import Framing
from gateway.edge.known import KnownHead, Sayings
from gateway.edge.protocol import ClientConnection
from gateway.edge.room import Room
from gateway.edge.tls import Tls
from gateway.pipeline.body_budget import BodyBudget
from gateway.pipeline.reception import Reception
from gateway.pipeline.serve import Pipeline

LATE_SECONDS = 0.5
"""Between two sweeps: the loop was held up, or the whole process was, and what clients sent meanwhile is unread."""
_CATCH_UP_TURNS = 32
"""Turns of the loop, each of which reads 256 KiB of a connection: as much as waits in a socket."""
_MOST_HOSTS = 1024
_MOST_KNOWN = 4096
"""Heads that are kept, for each key that says one: of some KiB at most."""


class Edge:
    """All connections of the public port. Its `protocol` is uvicorn's HTTP class.

    `bodies`: what all request bodies may take. `chance` spreads the waits of those who are turned away.
    """

    connection: type[ClientConnection] = ClientConnection
    rooms: type[Room[ClientConnection]] = Room

    def __init__(
        self,
        pipeline: Pipeline,
        reception: Reception,
        clock: Clock,
        bounds: Bounds | None = None,
        *,
        bodies: BodyBudget | None = None,
        chance: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.pipeline = pipeline
        self.reception = reception
        self.monotonic = clock.monotonic
        self.bounds = bounds or Bounds()
        self.bodies = bodies or BodyBudget(self.bounds.max_buffered_body_bytes, chance)
        self.room: Room[ClientConnection] = self.rooms(self.bounds, self._is_proxy, chance)
        self.connections = self.room.connections
        self.hosts: set[bytes | None] = set()
        """Hosts that were seen and are proper."""
        self.known: Sayings = {}
        """Heads that came before."""
        self.tls: Tls | None = None
        """Stands before each connection, if set."""
        self.now = clock.monotonic()
        """The time of the last sweep: precise enough for deadlines."""
        self.framing = Framing(b"", closes=False, chunks=True)
        """How most answers are framed that begin now."""
        self.closing = False
        """Every answer that begins from now on says that it closes its connection."""
        self.short_of_memory = False
        """While it lasts they say so as well: see `pipeline.overload`."""
        self._wall = clock.wall
        self._date_of = -1
        self.sweep(self.now)

    def protocol(self, *_: object, **__: object) -> asyncio.BaseProtocol:
        """A protocol for one connection; uvicorn's own arguments are not needed."""
        loop = asyncio.get_running_loop()
        connection = self.connection(self, loop)
        return connection if self.tls is None else self.tls.around(connection, loop)

    # Who comes in.

    def enter(self, connection: ClientConnection, address: str) -> None:
        """Let a connection in, or say why not: one too many is told, unless too many are being told already."""
        if self.tls is not None:
            self.tls.shaken(connection)
        refusal = self.room.refusal(address, self.now)
        if refusal is not None and self.room.overrun:
            connection.abort()
            return
        self.room.enter(connection, address)
        if refusal is not None:
            connection.refuse(refusal)

    def _is_proxy(self, address: str) -> bool:
        return self.reception.proxies.trusts(address)

    def remember_host(self, host: bytes | None) -> None:
        """A proper one, so that it need not be looked at again."""
        if host is not None and len(self.hosts) < _MOST_HOSTS:
            self.hosts.add(host)

    def remember_head(self, known: KnownHead) -> KnownHead:
        """Keep a head for all connections on which it comes, with what was decided on it last."""
        saying = known.digest, *known[:3]
        before = self.known.get(saying)
        if before == known:
            return before
        if len(self.known) >= _MOST_KNOWN:
            self.known.clear()
        self.known[saying] = known
        return known

    # Time.

    def sweep(self, now: float) -> None:
        """Judge every connection's deadline, and renew the Date header; about four times a second."""
        late = now - self.now > LATE_SECONDS
        self.now = now
        self.room.look_again()
        if self.tls is not None:
            self.tls.sweep(now)
        wall = self._wall()
        if int(wall) != self._date_of:
            self._date_of = int(wall)
            self.framing = Framing(b"date: " + http_date(wall) + b"\r\n", closes=False, chunks=True)
        if late:
            # Nobody is judged for what has come and only waits for us to read it.
            self._judge_after(_CATCH_UP_TURNS)
        else:
            self._judge()

    def _judge_after(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._judge_after, turns - 1)
        else:
            self._judge()

    def _judge(self) -> None:
        now = self.now
        for connection in [each for each in self.connections if each.due <= now]:
            connection.judge(now)

    # The end.

    @property
    def busy(self) -> bool:
        """Whether anywhere a request, or a part of one, has come whose answer is not wholly sent."""
        return not all(connection.idle for connection in self.connections)

    def turn_away(self) -> None:
        """Refuse the requests that have come in part: they would not be served any more."""
        for connection in list(self.connections):
            connection.turn_away()

    def let_go(self) -> None:
        """Tell the idle connections that nothing more comes."""
        for connection in list(self.connections):
            connection.let_go()

    def close(self) -> None:
        """Close what is idle at once; what is busy closes with its answer."""
        self.closing = True
        for connection in list(self.connections):
            connection.shutdown()
