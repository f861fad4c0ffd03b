"""Which connections may come in. Each costs a descriptor and some KiB, and a stream a second descriptor for its pod.

When there are as many as may be, a newcomer gets the place of one that has waited the longest for a request, or for
the rest of a request's head, or was refused and has not left: nothing was promised to it, and its client opens another
one. So only who has shown a key keeps a place. If every one of them is at work the newcomer is refused. One
address has half of the room at most, and makes room for itself first.
"""

from collections import Counter
from collections.abc import Callable
from heapq import nsmallest
from typing import Generic, Protocol, TypeVar

from gateway.core.clock import about
from gateway.core.errors import Busy
from gateway.core.network import network_of
from gateway.edge.bounds import Bounds

RETRY_SECONDS = 2.0


class Guest(Protocol):
    """A connection, as it is seen here."""

    network: str
    """Where it comes from; empty: it is not known, and not counted."""

    @property
    def waits_since(self) -> float:
        """Since when it has waited for a request's head, in the sweep's time; infinite: it does not."""
        ...

    def shutdown(self) -> None:
        """Close, if nothing is being answered."""
        ...


G = TypeVar("G", bound=Guest)


class Room(Generic[G]):
    """Who is there. `is_proxy` tells addresses that bring many clients; `chance` spreads the waits of the refused."""

    def __init__(self, bounds: Bounds, is_proxy: Callable[[str], bool], chance: Callable[[], float]) -> None:
        self.connections: set[G] = set()
        self.most = bounds.most_connections()
        self.most_of_one_network = max(1, self.most // 2)
        """An address, or of IPv6 the 64 bits that one user has."""
        self._most_with_refused = bounds.most_sockets()
        self._spare_seconds = bounds.spare_seconds
        self._is_proxy = is_proxy
        self._chance = chance
        self._of_networks: Counter[str] = Counter()
        self._none_spare: set[str] = set()
        """Networks of which none can be closed for a newcomer; empty: of all together."""

    def refusal(self, address: str, now: float) -> Busy | None:
        """What a newcomer is told that cannot come in."""
        if len(self.connections) >= self.most and not self._make_room("", now):
            return self._full("this replica has as many connections as it takes: try again")
        network = network_of(address)
        if (
            network
            and self._of_networks.get(network, 0) >= self.most_of_one_network
            and not self._is_proxy(address)
            and not self._make_room(network, now)
        ):
            return self._full("from your address come half of the connections that this replica takes: close some")
        return None

    @property
    def overrun(self) -> bool:
        """Whether so many are being told that they cannot come in that no more can be."""
        return len(self.connections) >= self._most_with_refused

    def enter(self, guest: G, address: str) -> None:
        """It is there, to be refused or not."""
        self.connections.add(guest)
        guest.network = network_of(address)
        if guest.network:
            self._of_networks[guest.network] += 1

    def leave(self, guest: G) -> None:
        """It is closed, or as good as; a second time is nothing."""
        if guest not in self.connections:
            return
        self.connections.discard(guest)
        if guest.network:
            self._of_networks[guest.network] -= 1
            if not self._of_networks[guest.network]:
                del self._of_networks[guest.network]

    def look_again(self) -> None:
        """Some time has passed: there may be one to close by now."""
        self._none_spare.clear()

    def _make_room(self, network: str, now: float) -> bool:
        """Close those that have waited the longest, a hundredth of all: so one look makes room for many. If there is
        none, nobody looks before some time has passed, and a flood costs no more than its refusals."""
        if network in self._none_spare:
            return False
        since = now - self._spare_seconds
        spare = [each for each in self.connections if each.waits_since <= since and network in ("", each.network)]
        longest = nsmallest(max(1, self.most // 100), spare, key=lambda each: each.waits_since)
        for each in longest:
            self.leave(each)
            each.shutdown()
        if not longest:
            self._none_spare.add(network)
        return bool(longest)

    def _full(self, message: str) -> Busy:
        return Busy(message, retry_after_seconds=about(RETRY_SECONDS, self._chance))
