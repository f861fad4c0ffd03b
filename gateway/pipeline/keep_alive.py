"""Comments that keep the connection of a silent stream open: off unless the configuration asks for them.

A stream may say nothing for long: in the queue, in prefill, between two tokens. Some load balancers close what is
silent, so the client may be sent `: keep-alive` and one line end, which every SDK skips. A relay writes whole events
only: between two of its writes is between two events. A comment says nothing of the pod, so it stops no clock and feeds
no deadline.

The first one may have to take the answer's head along. From then on the 200 is said: what fails is told in the stream
(`serve`). It is no content, so attempts are repeated as before.

The sweep judges, four times a second, by what it finds; nothing is noted when an event passes. So a comment may come
half a second late, and never early.
"""

from collections.abc import Callable

from gateway.core.call import Trail
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.relay import KEEP_ALIVE, StreamRelay


class KeepAlive:
    """Of one stream, from its request to its end. `start` sends the answer's head."""

    __slots__ = ("_exchange", "_quiet_since", "_seconds", "_sent", "_start", "_trail")

    def __init__(self, exchange: Exchange, trail: Trail, seconds: float, start: Callable[[], None]) -> None:
        self._exchange = exchange
        self._trail = trail
        self._seconds = seconds
        self._start = start
        self._sent = 0
        self._quiet_since = trail.received_at

    def sweep(self, now: float) -> None:
        """Say something if nothing was said for so long."""
        exchange, relay = self._exchange, self._exchange.source
        sent = relay.sent if isinstance(relay, StreamRelay) else 0
        if sent != self._sent or exchange.paused:
            # What waits for a slow client is said as soon as it reads.
            self._sent, self._quiet_since = sent, now
        elif now - self._quiet_since >= self._seconds and not exchange.client_gone:
            if not self._trail.opened and self._trail.committed_at is None:
                self._trail.opened = True
                self._start()
            exchange.write(KEEP_ALIVE)
            self._quiet_since = now
