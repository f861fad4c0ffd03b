"""In-flight counts, the leases that keep them exact, and the line of those that found no room.

There is no await between choosing and counting: `lease_nowait` does both in one synchronous step, and the lease gives
back at the end of its block, whatever happened in there. One lease is one attempt at one pod. Who finds no room waits
in `wait_for_room`, and is given a lease that is counted already.

The balancer owns what a choice looks at: a `Seat` for each pod, and for each pool its health and its line. It is told
what it cannot see: the fleet (`update`), what pods say of their load (`load_read`), how attempts ended (the lease).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from enum import Enum
from math import inf
from types import TracebackType

from gateway.balancing.affinity import TOKENS_PER_BLOCK, PrefixIndex, uid_key
from gateway.balancing.health import PoolHealth, State
from gateway.balancing.policy import MOST_WEIGHED, POLICIES, Choice, Standing, View, Wish, learn, least_work
from gateway.balancing.waiting import Turned, Waiter, WaitingLine
from gateway.core.cell import Cell
from gateway.core.errors import QueueFull, QueueTimeout
from gateway.core.fleet import Fleet, Pod, PodHealth, PodLoad, PodState, Pool, Route

RETRY_SHARE = 0.1
RETRY_FLOOR = 10
"""Retries that may be on their way to a first byte at once: a share of what is active, but a few in any case."""
FAILED_SECONDS = 1.0
"""A failed attempt counts as in flight for so much longer, in the choice only."""
MAX_REST_SECONDS = 5.0
SLOWEST_FADES = 0.98
"""By so much with each first token."""
WAIT_GUESS_SECONDS = 5.0
MAX_RETRY_AFTER_SECONDS = 60.0
NO_WISH = Wish()
_ONE_MORE = 1 << 30
"""The room of a seat that takes one request whatever runs there: taken, it is 0."""


class Blame(Enum):
    """What a failed attempt says of its pod."""

    NONE = "none"
    POD = "pod"
    """The pod's fault."""
    IN_DOUBT = "in doubt"
    """Its fault if it answers others, or if others do answer this caller: many a 500 is the request's own fault."""
    BUSY = "busy"
    """Not a fault: it has enough to do, and rests for a moment."""


class Seat(Standing):
    """A pod's standing, and what only the balancer looks at."""

    __slots__ = (
        "cache_tokens",
        "ejected_at",
        "ejected_for",
        "heard_at",
        "leaving_since",
        "limit",
        "others_until",
        "pod",
        "probe",
        "probing",
        "resting_until",
        "slowest",
        "state",
    )

    def __init__(self, pod: Pod, state: "_PoolState", now: float) -> None:
        super().__init__(pod.uid, pod.name, uid_key(pod.uid))
        self.pod = pod
        self.state = state
        """Of its pool, or of the last one that it was in."""
        self.limit = 1
        """How many requests it may have at a time when it is in good health."""
        self.cache_tokens = -1
        """How many prompt tokens its cache holds, as it told; negative: it has not."""
        self.resting_until = -inf
        self.others_until = -inf
        self.probing = False
        """It came back from an ejection: one request at a time, until one has succeeded."""
        self.probe: Lease | None = None
        """That one request, until its first token."""
        self.ejected_for = ""
        """Why it was last ejected, in one word."""
        self.ejected_at = 0.0
        self.leaving_since: float | None = None
        """It terminates, or is gone from the fleet, since then."""
        self.heard_at = now
        """When a content event, or a whole answer, last came from it."""
        self.slowest = 0.0
        """The longest time to a first token of late, in seconds; fades."""


class _PoolState:
    """What the balancer knows of one pool."""

    __slots__ = ("handed_at", "health", "line", "pool", "seats", "seconds_per_slot", "unsettled", "view")

    def __init__(self, pool: Pool, health: PoolHealth, cache: PrefixIndex, chance: Callable[[], float]) -> None:
        self.pool = pool
        self.health = health
        self.line: WaitingLine[Lease] = WaitingLine()
        self.seats: list[Seat] = []
        """Its ready pods."""
        self.view = View(cache, chance)
        self.unsettled = False
        """Some seat's room changes by time alone."""
        self.handed_at = 0.0
        self.seconds_per_slot = 0.0
        """Between two slots that were handed to waiters, of late; 0: none was yet."""


class _Tally:
    """How many attempts run now for one model."""

    __slots__ = ("model", "running")

    def __init__(self, model: str) -> None:
        self.model = model
        self.running = 0


class _Way:
    """Where a model's requests go, for as long as the fleet is the same."""

    __slots__ = ("is_usual", "names", "only", "seats", "state", "tally")

    def __init__(self, state: _PoolState, seats: list[Seat], tally: _Tally) -> None:
        self.state = state
        self.seats = seats
        """Of its ready pods. The very list is what a choice says it weighed, if that was all of them."""
        self.names = tuple([seat.name for seat in seats])
        self.tally = tally
        self.is_usual = state.pool.policy == "auto" and 1 < len(seats) <= MOST_WEIGHED
        """Most choices here are those of `least_work`."""
        self.only = Choice(seats[0], "only") if len(seats) == 1 else None
        """What is chosen where there is nothing to choose."""


class Balancer:
    """See the module's text. `ejected(pool, reason)` is told of every ejection."""

    caches: type[PrefixIndex] = PrefixIndex
    healths: type[PoolHealth] = PoolHealth
    least_work = staticmethod(least_work)

    def __init__(
        self,
        fleet: Cell[Fleet],
        *,
        clock: Callable[[], float],
        chance: Callable[[], float],
        ejected: Callable[[str, str], None],
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._chance = chance
        self._ejected = ejected
        self._seen: Fleet | None = None
        self._seats: dict[str, Seat] = {}
        self._pools: dict[str, _PoolState] = {}
        self._ways: dict[str, _Way] = {}
        """Of each model that was asked for since the fleet last changed."""
        self._cache = self.caches()
        self._failed: deque[tuple[float, Seat]] = deque()
        self._by_model: dict[str, _Tally] = {}
        self._retrying = 0

    # What others look at.

    def in_flight(self, uid: str) -> int:
        """Attempts running at a pod now."""
        seat = self._seats.get(uid)
        return 0 if seat is None else seat.in_flight

    def in_flight_by_model(self) -> dict[str, int]:
        """Attempts running now by model; a model that once had one stays, with 0, while there is a route to it."""
        return {model: tally.running for model, tally in list(self._by_model.items())}

    @property
    def active(self) -> int:
        """Attempts running now, over all pods."""
        return sum([tally.running for tally in list(self._by_model.values())])

    @property
    def may_retry(self) -> bool:
        """Whether the budget allows one retry more."""
        return self._retrying < max(RETRY_FLOOR, RETRY_SHARE * self.active)

    @property
    def ejected(self) -> Collection[str]:
        """The uids of the pods that are ejected now."""
        return [
            seat.uid
            for state in list(self._pools.values())
            for seat in state.seats
            if state.health.state(seat.uid) is State.EJECTED
        ]

    def may_serve(self, pod: Pod, within_seconds: float = 0.0) -> bool:
        """Whether a ready pod gets requests at all, when it has room: it is not ejected, or not for longer than this,
        or too few others are left."""
        state = self._pools.get(pod.pool)
        if state is None or state.health.usable(pod.uid):
            return True
        return state.health.seconds_left(pod.uid, self._clock()) < within_seconds

    def health_of(self, uid: str) -> PodHealth:
        """How requests fare at a pod."""
        seat = self._seats.get(uid)
        state = None if seat is None else self._pools.get(seat.pod.pool)
        if seat is None or state is None:
            return PodHealth()
        now, health = self._clock(), state.health
        return PodHealth(
            health.state(uid).value,
            seat.ejected_for,
            health.seconds_left(uid, now),
            health.weight(uid, now),
            seat.ejected_at,
        )

    def waiting(self) -> Iterable[tuple[str, int]]:
        """(pool, requests that wait for room in it now)."""
        return [(name, len(state.line)) for name, state in list(self._pools.items())]

    def panics(self) -> Iterable[tuple[str, bool]]:
        """(pool, whether its ejected pods are used all the same, since too few others are left)."""
        return [(name, state.health.panic) for name, state in list(self._pools.items())]

    # A request's way to a pod.

    def lease_nowait(
        self, model: str, wish: Wish = NO_WISH, excluded: Collection[str] = (), *, retry: bool = False
    ) -> "Lease | None":
        """A pod of the model's route, none of those excluded (by uid), counted from now to the end of a `with` block.

        None: no pod has room. `retry`: the attempt draws on the retry budget until its first byte.
        """
        if self._fleet.value is not self._seen:
            self.update()
        if self._failed:
            self._forgive(self._clock())
        way = self._ways.get(model) or self._way(model)
        if way is None:
            return None
        tokens, blocks, key = wish
        state, choice = way.state, None
        # What is not settled may have pods that rest, are ejected or come back: they are for the long way.
        if not (state.unsettled or excluded or retry):
            if way.only is not None:
                seat = way.seats[0]
                choice = way.only if seat.in_flight + seat.others < seat.room else None
            elif way.is_usual and not (blocks or key):
                view = state.view
                choice = self.least_work(way.seats, tokens, view)
                if view.familiar and choice is not None:
                    learn(view, wish, choice)
        if choice is None:
            choice = self._choice(way, wish, excluded, retry)
            if choice is None:
                return None
        standing, _, cached_tokens, _, weighed, _ = choice
        seat = standing  # type: ignore[assignment]  # one of the way's
        lease = Lease()
        lease._balancer = self
        lease.seat = seat
        lease.choice = choice
        lease._tally = tally = way.tally
        lease.candidates = way.names if weighed is way.seats else tuple([each.name for each in weighed])
        tally.running += 1
        seat.in_flight += 1
        tokens -= cached_tokens
        if tokens > 0:
            lease.tokens = tokens
            seat.pending_tokens += tokens
        if blocks:
            self._cache.sent(seat.uid, blocks)
        lease.retry = retry
        if retry:
            self._retrying += 1
        if seat.probing:
            seat.probe = lease
            seat.room = 0
        return lease

    async def wait_for_room(
        self,
        route: Route,
        wish: Wish,
        excluded: Collection[str],
        *,
        retry: bool,
        caller: Hashable,
        deadline: float,
        priority: int = 0,
    ) -> "Lease":
        """Wait in the pool's line for a pod with room: lower priorities first, the callers of one take turns.
        Cancelled, the place is given up, and a slot that was just given passes on.

        Raises `QueueFull` and `QueueTimeout`.
        """
        state = self._state(route.pool)
        if not len(state.line):
            state.handed_at = self._clock()
        came: asyncio.Future[Lease | Turned] = asyncio.get_running_loop().create_future()
        waiter: Waiter[Lease] = Waiter(caller, priority, route.model, wish, frozenset(excluded), retry, deadline, came)
        if not state.line.join(waiter, route.pool.queue_limit):
            raise self._full(state)
        # Or else a pod's death would put all its requests in the line, whatever the budget.
        self._retrying += retry
        try:
            given = await came
        except BaseException:
            state.line.leave(waiter)
            if came.done() and not came.cancelled() and isinstance(lease := came.result(), Lease):
                lease.close()
            raise
        finally:
            self._retrying -= retry
        if given is Turned.FULL:
            raise self._full(state)
        if isinstance(given, Turned):
            raise QueueTimeout(
                "every pod of this model has its hands full, and none came free in time",
                retry_after_seconds=self._wait_estimate(state),
            )
        return given

    # What the balancer is told.

    def update(self) -> None:
        """The fleet is another one. Called by itself before a choice, and by who waits for the fleet to change."""
        fleet, now = self._fleet.value, self._clock()
        # The pods that are there at our own start are warm: the fleet that they complete included.
        starting = self._seen is None or not self._seen.asked
        self._seen = fleet
        self._ways.clear()
        ready: dict[str, list[Seat]] = {name: [] for name in self._pools}
        settings = {route.pool.name: route.pool for route in fleet.routes.values()}
        standing: dict[str, int] = {}
        alive = set()
        for pod in fleet.pods:
            seat = self._seats.get(pod.uid)
            if pod.state is PodState.READY:
                if seat is None:
                    state = self._state(settings.get(pod.pool) or Pool(pod.pool))
                    seat = self._seats[pod.uid] = Seat(pod, state, now)
                ready.setdefault(pod.pool, []).append(seat)
            if pod.state is not PodState.DRAINING:
                alive.add(pod.uid)
                if pod.state is not PodState.ASLEEP:
                    standing[pod.pool] = standing.get(pod.pool, 0) + 1
            if seat is not None:
                seat.pod, seat.name = pod, pod.name
        for uid, seat in list(self._seats.items()):
            if uid in alive:
                seat.leaving_since = None
            elif seat.leaving_since is None:
                seat.leaving_since = now
            if seat.leaving_since is not None and not seat.in_flight:
                del self._seats[uid]
        self._cache.keep(alive)
        for model, tally in list(self._by_model.items()):
            if not tally.running and model not in fleet.routes:
                del self._by_model[model]
        for name in ready.keys() | settings.keys():
            state = self._state(settings.get(name) or Pool(name))
            state.seats = ready.get(name, [])
            uids = [seat.uid for seat in state.seats]
            state.health.keep(uids, standing.get(name, 0), now, starting=starting)
            if name in settings and not state.seats and not state.pool.hold_empty_seconds:
                # Nobody holds requests for a pool that is empty now: it is said at once.
                state.line.expire(inf)
            if name not in settings and not state.seats and not len(state.line):
                del self._pools[name]
            else:
                self._settle(state, now)
        for seat in self._seats.values():
            seat.state = self._pools.get(seat.pod.pool, seat.state)

    def load_read(self, uid: str, load: PodLoad, count_until: float) -> None:
        """A pod told of its load. Its count of requests is believed until then (monotonic seconds)."""
        seat = self._seats.get(uid)
        if seat is None:
            return
        size = None if load.gauges is None else load.gauges.cache_tokens
        if size is not None and size != seat.cache_tokens:
            seat.cache_tokens = size
            self._cache.resize(uid, size // TOKENS_PER_BLOCK)
        seat.others = 0 if load.in_flight is None else max(0, load.in_flight - load.in_flight_own)
        seat.others_until = count_until
        state = self._pools.get(seat.pod.pool)
        if state is not None:
            self._hand_out(state, self._clock(), len(state.line))

    def sweep(self, now: float) -> None:
        """About four times a second: who waited too long, what was believed too long, what time has healed."""
        self._forgive(now)
        for seat in self._seats.values():
            if seat.others and now >= seat.others_until:
                seat.others = 0
        for state in self._pools.values():
            if len(state.line):
                state.line.expire(now)
            if state.unsettled or len(state.line):
                self._settle(state, now)

    def turn_all_away(self) -> None:
        """Nobody waits any longer: this replica goes away."""
        for state in self._pools.values():
            state.line.expire(inf)

    # Ejections, as who asks the pods needs them.

    def due(self, now: float) -> list[Pod]:
        """Ejected pods whose time is over: they may come back if their `/health` says so."""
        return [
            self._seats[uid].pod
            for state in self._pools.values()
            for uid in state.health.due(now)
            if uid in self._seats
        ]

    def judged(self, pod: Pod, *, alive: bool) -> None:
        """What the `/health` of a pod that was due said."""
        state = self._pools.get(pod.pool)
        if state is not None:
            now = self._clock()
            if alive:
                state.health.recovered(pod.uid, now)
            else:
                state.health.still_sick(pod.uid, now)
            self._settle(state, now)

    def seat_of(self, uid: str) -> Seat | None:
        """A pod's seat; None when it has none."""
        return self._seats.get(uid)

    def wedged(self, seat: Seat) -> bool:
        """Requests wait there far longer than they ever did, and nothing comes. Whether it is ejected now."""
        state = self._pools.get(seat.pod.pool)
        if state is None:
            return False
        now = self._clock()
        self._note_ejection(state, seat, state.health.wedged(seat.uid, now), now)
        return state.health.state(seat.uid) is State.EJECTED

    # Within.

    def _choice(self, way: _Way, wish: Wish, excluded: Collection[str], retry: bool) -> Choice | None:
        """One of all pods with room; None: there is none."""
        room = [seat for seat in way.seats if seat.in_flight + seat.others < seat.room]
        if excluded:
            room = [seat for seat in room if seat.uid not in excluded]
        # The list itself, where it is whole: its names are known.
        return self._choose(way.state, room if len(room) < len(way.seats) else way.seats, wish, retry) if room else None

    def _choose(self, state: _PoolState, room: Sequence[Seat], wish: Wish, retry: bool) -> Choice:
        if state.unsettled:
            on_trial = [seat for seat in room if seat.probing]
            if on_trial and not retry:
                return Choice(on_trial[0], "probe")
            if on_trial:
                # This attempt is the last one.
                room = [seat for seat in room if not seat.probing] or on_trial
        if len(room) == 1:
            choice = Choice(room[0], "only")
        else:
            view = state.view
            choice = POLICIES[state.pool.policy](room, wish, view)
            learn(view, wish, choice)
        if state.health.panic and state.health.state(choice.standing.uid) in (State.EJECTED, State.PROBING):
            return choice._replace(reason="panic")
        return choice

    def _way(self, model: str) -> _Way | None:
        route = self._fleet.value.routes.get(model)
        if route is None:
            return None
        tally = self._by_model.setdefault(model, _Tally(model))
        seats = [self._seats[pod.uid] for pod in route.pods]
        way = self._ways[model] = _Way(self._state(route.pool), seats, tally)
        return way

    def _state(self, pool: Pool) -> _PoolState:
        state = self._pools.get(pool.name)
        if state is None:
            state = self._pools[pool.name] = _PoolState(pool, self.healths(self._chance), self._cache, self._chance)
        state.pool = pool
        return state

    def _settle(self, state: _PoolState, now: float) -> None:
        """Work out every seat's room, and hand out what there is."""
        health, pool = state.health, state.pool
        state.unsettled = health.ramping
        for seat in state.seats:
            standing = health.state(seat.uid)
            seat.limit = seat.pod.max_in_flight or pool.max_in_flight_per_pod
            seat.weight = health.weight(seat.uid, now)
            seat.probing = standing is State.PROBING and not health.panic
            if standing is not State.PROBING:
                seat.probe = None
            rests = now < seat.resting_until
            if rests or not health.usable(seat.uid):
                seat.room = 0
            elif seat.probing:
                seat.room = _ONE_MORE if seat.probe is None else 0
            else:
                seat.room = max(1, int(seat.limit * seat.weight))
            if rests or standing is not State.HEALTHY:
                state.unsettled = True
        self._hand_out(state, now, len(state.line))

    def _hand_out(self, state: _PoolState, now: float, most: int) -> None:
        if not len(state.line) or self._fleet.value is not self._seen:
            # A fleet that was not looked at yet: a pod of the old one may be leaving. `update` comes, and hands out.
            return
        given = state.line.hand_out(
            lambda waiter: self.lease_nowait(waiter.model, waiter.wish, waiter.excluded, retry=waiter.retry), most
        )
        if given:
            each, before = (now - state.handed_at) / given, state.seconds_per_slot
            state.seconds_per_slot = before + (each - before) / 8 if before else each
            state.handed_at = now

    def _note_ejection(self, state: _PoolState, seat: Seat, reason: str | None, now: float) -> None:
        if reason is not None:
            seat.ejected_for, seat.ejected_at = reason, now
            self._ejected(state.pool.name, reason)
            self._settle(state, now)

    def _answered(self, seat: Seat, caller: Hashable) -> None:
        state = self._pools.get(seat.pod.pool)
        if state is not None:
            now = self._clock()
            state.health.answered(seat.uid, caller, now)
            if seat.probing:
                self._settle(state, now)

    def _streams(self, seat: Seat, caller: Hashable, now: float) -> None:
        state = self._pools.get(seat.pod.pool)
        if state is not None:
            state.health.began(seat.uid, caller, now)
            if seat.probing:
                self._settle(state, now)

    def _failed_at(self, seat: Seat, blame: Blame, caller: Hashable, sent_at: float, rest_seconds: float) -> None:
        now = self._clock()
        seat.failed += 1
        self._failed.append((now + FAILED_SECONDS, seat))
        state = self._pools.get(seat.pod.pool)
        if state is None:
            return
        reason = None
        if blame is Blame.BUSY:
            seat.resting_until = now + min(rest_seconds, MAX_REST_SECONDS)
            self._settle(state, now)
        elif blame is Blame.POD:
            reason = state.health.failed(seat.uid, caller, now, sent_at=sent_at)
        elif blame is Blame.IN_DOUBT:
            reason = state.health.erred(seat.uid, caller, now, sent_at=sent_at)
        self._note_ejection(state, seat, reason, now)

    def _began(self, lease: "Lease") -> None:
        seat = lease.seat
        seat.pending_tokens -= lease.tokens
        lease.tokens = 0
        if seat.probe is lease:
            seat.probe = None
        self._retrying -= lease.retry
        lease.retry = False

    def _freed(self, seat: Seat, was_probe: bool) -> None:
        """An attempt less runs at a pod that leaves, or was on trial, or is waited for."""
        if seat.leaving_since is not None:
            if not seat.in_flight:
                del self._seats[seat.uid]
        elif was_probe:
            self._settle(seat.state, self._clock())
        else:
            self._hand_out(seat.state, self._clock(), 1)

    def _forgive(self, now: float) -> None:
        while self._failed and now >= self._failed[0][0]:
            self._failed.popleft()[1].failed -= 1

    def _full(self, state: _PoolState) -> QueueFull:
        return QueueFull(
            "every pod of this model has its hands full, and the line of those who wait is too",
            retry_after_seconds=self._wait_estimate(state),
        )

    def _wait_estimate(self, state: _PoolState) -> float:
        """How long the line will take, as fast as it went of late, and at least as long as it has stood still now; a
        tenth more or less, so that not all come again at once."""
        seconds = state.seconds_per_slot * (len(state.line) + 1) or WAIT_GUESS_SECONDS
        seconds = max(seconds, self._clock() - state.handed_at)
        return min(max(1.0, seconds), MAX_RETRY_AFTER_SECONDS) * (0.9 + 0.2 * self._chance())


class Lease:
    """One attempt at one pod, counted from its making until its block ends. `Balancer.lease_nowait` makes it, and sets
    what has no default here: a constructor would be a frame more.

    Whoever holds it tells how the attempt went: `began` at its first token, then one of `answered` and `failed`, or
    neither if the attempt says nothing of the pod.
    """

    _balancer: Balancer
    _tally: _Tally
    _open = True
    seat: Seat
    choice: Choice
    candidates: tuple[str, ...]
    """The names of the pods that were weighed."""
    tokens = 0
    """Prompt tokens that the pod still has to work on."""
    retry = False
    """It draws on the retry budget now."""
    sent_at = inf
    """When the request left for the pod, in monotonic seconds; infinite before."""

    @property
    def model(self) -> str:
        """For which the attempt counts."""
        return self._tally.model

    def __enter__(self) -> Pod:
        return self.seat.pod

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        if not self._open:
            return
        self._open = False
        seat = self.seat
        was_probe = seat.probe is self
        if self.tokens or self.retry or was_probe:
            self._balancer._began(self)
        seat.in_flight -= 1
        self._tally.running -= 1
        if seat.leaving_since is not None or was_probe or seat.state.line.length:
            self._balancer._freed(seat, was_probe)

    def close(self) -> None:
        """Give back what was counted; once, however often it is called."""
        self.__exit__()

    def came_whole(self, caller: Hashable, now: float) -> None:
        """`began` and `answered` at once."""
        seat = self.seat
        seat.heard_at = now
        if self.retry or seat.probing:
            self._balancer._began(self)
            self._balancer._answered(seat, caller)
            return
        seat.pending_tokens -= self.tokens
        self.tokens = 0
        seat.state.health.answered(seat.uid, caller, now)

    def began(self, now: float) -> None:
        """The answer is whole, or its first token is here."""
        self._balancer._began(self)
        self.seat.heard_at = now

    def streams(self, caller: Hashable, now: float) -> None:
        """After `began`: the rest of the answer may take minutes."""
        seat = self.seat
        seat.slowest = max(now - self.sent_at, seat.slowest * SLOWEST_FADES)
        self._balancer._streams(seat, caller, now)

    def answered(self, caller: Hashable) -> None:
        """The pod answered as a pod should; a refusal of a bad request is such an answer."""
        self._balancer._answered(self.seat, caller)

    def failed(self, blame: Blame, caller: Hashable, rest_seconds: float = 1.0) -> None:
        """The attempt failed. `rest_seconds`: how long a busy pod asked to be left alone."""
        self._balancer._failed_at(self.seat, blame, caller, self.sent_at, rest_seconds)
