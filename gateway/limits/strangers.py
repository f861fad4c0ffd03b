"""How often an address may have us check a signature in vain. Pure.

Telling a key costs a look-up, a remembered token too; only the signature of an unknown token costs real time, up to 0.6
ms, and anybody can make such tokens. So each address has a bucket of bad signatures: where it is empty, no signature is
checked until some have come back, and the caller is told to wait. 503, not 401: a good token that comes from there at
that moment is not judged, and its holder must not throw it away. Keys, and tokens that were verified before, never pass
here.

An IPv6 address counts by its /64. What is kept of an address is in memory only, and of so many at most: each of those
that come and go still costs its sender a connection.
"""

from collections import OrderedDict
from collections.abc import Callable

from gateway.core.network import network_of

BURST = 60
PER_SECOND = 1.0
MAX_ADDRESSES = 4096


class Strangers:
    """The addresses that sent bad signatures of late. `clock`: monotonic seconds. `chance`: from 0 to 1."""

    def __init__(
        self,
        clock: Callable[[], float],
        chance: Callable[[], float],
        *,
        burst: int = BURST,
        per_second: float = PER_SECOND,
        max_addresses: int = MAX_ADDRESSES,
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._interval = 1.0 / per_second
        self._most = burst * self._interval
        self._max_addresses = max_addresses
        self._full_at: OrderedDict[str, float] = OrderedDict()
        """When each bucket will be full again; who failed last stands last."""

    def __len__(self) -> int:
        return len(self._full_at)

    def wait_seconds(self, address: str) -> float:
        """In how long to come back, since no signature from there is checked now; 0: it is."""
        full_at = self._full_at.get(network_of(address))
        if full_at is None:
            return 0.0
        # One must have come back.
        wait = full_at - self._clock() - self._most + self._interval
        return wait + self._interval * self._chance() if wait > 0 else 0.0

    def failed(self, address: str) -> None:
        """A signature from there was bad."""
        counted, now = network_of(address), self._clock()
        self._full_at[counted] = max(self._full_at.get(counted, now), now) + self._interval
        self._full_at.move_to_end(counted)
        if len(self._full_at) > self._max_addresses:
            self._full_at.popitem(last=False)
