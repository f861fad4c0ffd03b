"""One replica of the gateway: its own counts, its own belief about caches, and what the pods last told it.

It keeps its books as `gateway.balancing.balancer` does, and has the same code choose. Nothing here fails, so health
has no part in it but for the slow start of a pod that is new.
"""

from collections import deque
from collections.abc import Callable

from gateway.balancing.affinity import PrefixIndex, uid_key
from gateway.balancing.health import ramp
from gateway.balancing.policy import Policy, Standing, View, Wish, learn
from loadtest.policysim.engine import TOKENS_PER_BLOCK

ROOM = 128
"""The gateway's default for `max_in_flight_per_pod`."""


class Sent:
    """One request, at the pod it was sent to."""

    __slots__ = ("number", "standing", "tokens")

    def __init__(self, number: int, standing: Standing, tokens: int) -> None:
        self.number = number
        self.standing = standing
        self.tokens = tokens
        """Of its prompt, not believed cached there."""


class Replica:
    """`send` chooses and counts; `first_token` and `ended` give back."""

    def __init__(self, policy: Policy, chance: Callable[[], float]) -> None:
        self.standings: dict[str, Standing] = {}
        self._new: dict[str, float] = {}
        self._policy = policy
        self._cache = PrefixIndex()
        self._view = View(self._cache, chance)
        self._line: deque[tuple[int, Wish]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that no pod has room for."""
        return len(self._line)

    def join(self, uid: str, kv_tokens: int, now: float, *, new: bool) -> None:
        """A pod is ready. `new`: it gets little work at first, until its caches are warm."""
        standing = self.standings[uid] = Standing(uid, uid, uid_key(uid))
        standing.room = ROOM
        self._cache.resize(uid, kv_tokens // TOKENS_PER_BLOCK)
        if new:
            self._new[uid] = now
            self._weigh(standing, now)

    def remember(self, uid: str, wish: Wish) -> None:
        """It went there some time ago."""
        self._cache.sent(uid, wish.blocks)

    def send(self, number: int, wish: Wish) -> Sent | None:
        """Where the request goes. None: it waits for room, first come, first served (see `next_sent`)."""
        sent = None if self._line else self._choose(number, wish)
        if sent is None:
            self._line.append((number, wish))
        return sent

    def next_sent(self) -> Sent | None:
        """The first of those that wait, if there is room for it now."""
        if not self._line:
            return None
        sent = self._choose(*self._line[0])
        if sent is not None:
            self._line.popleft()
        return sent

    def first_token(self, sent: Sent) -> None:
        sent.standing.pending_tokens -= sent.tokens

    def ended(self, sent: Sent) -> None:
        sent.standing.in_flight -= 1

    def read(self, uid: str, count: int, now: float) -> None:
        """What the pod's `/load` said: all requests there, ours included."""
        standing = self.standings[uid]
        standing.others = max(0, count - standing.in_flight)
        if uid in self._new:
            self._weigh(standing, now)

    def _choose(self, number: int, wish: Wish) -> Sent | None:
        room = [
            standing for standing in self.standings.values() if standing.in_flight + standing.others < standing.room
        ]
        if not room:
            return None
        choice = self._policy(room, wish, self._view)
        learn(self._view, wish, choice)
        standing = choice.standing
        tokens = max(0, wish.tokens - choice.cached_tokens)
        standing.in_flight += 1
        standing.pending_tokens += tokens
        self._cache.sent(standing.uid, wish.blocks)
        return Sent(number, standing, tokens)

    def _weigh(self, standing: Standing, now: float) -> None:
        standing.weight = ramp(now - self._new[standing.uid])
        standing.room = max(int(ROOM * standing.weight), 1)
        if standing.weight == 1.0:
            del self._new[standing.uid]
