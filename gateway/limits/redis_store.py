"""Limits counted in Redis, by all replicas together.

A script (`take.lua`) decides there for all of a request's buckets at once. What is asked while a call is under way goes
with the next one, however much it is: a request waits for two calls at most, and a busy gateway makes few of them. Far
from a limit it does not wait at all (`leases.py`).

Redis is waited for until a deadline and no longer. The first call that fails or is late makes the store `local`:
whoever waits is answered in that moment, and whoever comes later at once, each replica allowing its share. A task
beside them tries to write again, each second. What was spent meanwhile is not added there.

A call that is late may still be carried out when nobody waits for it any more, by a server that was stopped for a
while. So each bears the moment until which it holds, by the server's clock.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis import exceptions as errors
from redis.asyncio.connection import AbstractConnection, Connection, parse_url

from gateway.core.clock import about
from gateway.core.patience import Patience
from gateway.limits.batch import MAX_LOOKS, MAX_TOLD, Batch, Decided, Garbled, Request
from gateway.limits.bucket import Book, Bucket, Costs, Taken
from gateway.limits.leases import Leases
from gateway.limits.store import LOCAL_BECAUSE, Mode

MAX_ASKS = 4096
"""So many wait for the next call. Who comes then is answered here."""
SLOW_CALLS = 3
"""So many in a row are as bad as one that is too late."""
EPOCH = 1767225600
"""Of the script's clock, in seconds since 1970."""
NOTHING: Costs = (0, 0, 0, 0)

log = logging.getLogger("poolgate.limits")


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient the store is, in seconds."""

    connect: float = 0.1
    answer: float = 0.05
    slow: float = 0.025
    """A call that takes longer is slow."""
    probe: float = 1.0
    """Between two tries to come back, a fifth more or less; and so long at most nothing is asked of Redis."""
    sweep: float = 0.5
    """After it what is leased and was not spent goes back."""
    keep: float = 30.0
    """So long what runs here counts without being told again, which it is three times as often."""


class Slow(Exception):
    """Redis answers, but not soon enough."""


class _Ask:
    """Waits for its answer, which is in `came` sooner or later."""

    __slots__ = ("again", "came", "request")

    def __init__(self, request: Request, came: "asyncio.Future[Taken]") -> None:
        self.request = request
        self.came = came
        self.again = False
        """It was asked twice."""


class RedisStore:
    """A `Store`; see the module's text. `replica`: a random name of this process; `replicas()`: how many there are;
    `clock`: monotonic seconds; `chance`: from 0 to 1."""

    def __init__(
        self,
        url: str,
        *,
        replica: str,
        replicas: Callable[[], int],
        clock: Callable[[], float],
        chance: Callable[[], float],
        pace: Pace | None = None,
    ) -> None:
        self.mode: Mode = "local"
        self.since = clock()
        self.reason = "connecting"
        """connecting timeout slow refused denied readonly memory loading error"""
        self._pace = pace or Pace()
        self._url = url
        self._new_connection()
        self._replica = replica.encode("ascii")
        self._replicas = replicas
        self._clock = clock
        self._chance = chance
        self._script = files("gateway.limits").joinpath("take.lua").read_bytes()
        self._script_name = sha1(self._script, usedforsecurity=False).hexdigest().encode("ascii")
        self._woken = asyncio.Event()
        self._leases = Leases(self._woken.set)
        self._asks: deque[_Ask] = deque()
        self._under_way: list[_Ask] = []
        self._server_ahead = 0.0
        """Of the loop's clock, at most; microseconds."""
        self._sweep_due = False
        self._eviction_checked = False
        # Of all outages: a Redis that comes and goes gives no fresh share each time.
        self._book = Book()
        # What runs here does so wherever it was let in.
        self._book.held = self._leases.running

    def take_nowait(self, buckets: Sequence[Bucket], costs: Costs) -> Taken | None:
        """See `Store`."""
        if self.mode != "redis":
            return self._take_here(buckets, costs)
        levels = self._leases.spend(buckets, costs, self._clock() * 1e6)
        return None if levels is None else Taken(levels, source=self)

    async def take(self, buckets: Sequence[Bucket], costs: Costs) -> Taken:
        """See `Store`."""
        if self.mode != "redis" or len(self._asks) >= MAX_ASKS:
            return self._take_here(buckets, costs)
        ask = _Ask(Request(buckets, costs), asyncio.get_running_loop().create_future())
        self._asks.append(ask)
        self._woken.set()
        try:
            return await ask.came
        except asyncio.CancelledError:
            # Cancelled between the answer and our turn. Without an answer `came` is cancelled: see `_answer`.
            if not ask.came.cancelled() and ask.came.result().refused is None:
                self.settle(ask.came.result(), buckets, costs, NOTHING)
            raise

    def settle(self, taken: Taken, buckets: Sequence[Bucket], reserved: Costs, used: Costs) -> None:
        """See `Store`. What runs is always put right; a rate where it was taken, unless that is gone."""
        for bucket in buckets:
            if not bucket.period:
                self._leases.ended(bucket)
                continue
            more = used[bucket.counts] - reserved[bucket.counts]
            if not more:
                continue
            if taken.source is self:
                self._leases.correct(bucket, more)
            elif taken.source is self._book and bucket.on_redis_down == "local":
                self._book.correct(bucket, more, self._clock() * 1e6, self._share())

    def level(self, bucket: Bucket) -> float | None:
        """See `Store`: what Redis last said, and what was spent here since. Known while it is in use here."""
        now = self._clock() * 1e6
        return self._leases.level(bucket, now) if self.mode == "redis" else self._book.level(bucket, now)

    async def run(self) -> None:
        """See `Store`. At its end what it holds in Redis is given back, as far as that goes within the deadline."""
        try:
            while True:
                await self._use_redis()
                # Without Redis they only note what runs.
                self._leases.give_up()
                self._leases.sweep()
                await asyncio.sleep(about(self._pace.probe, self._chance))
        finally:
            was, self.mode = self.mode, "local"
            self._answer_here()
            if was == "redis":
                await self._leave()

    def _new_connection(self) -> AbstractConnection:
        return _connection_to(self._url)

    # Without Redis

    def _share(self) -> float:
        return 1.0 / max(1, self._replicas())

    def _take_here(self, buckets: Sequence[Bucket], costs: Costs) -> Taken:
        """What each limit's `on_redis_down` says."""
        counted: list[Bucket] = []
        for bucket in buckets:
            if bucket.on_redis_down == "deny":
                return Taken([0.0] * len(buckets), bucket, unchecked=True)
            if bucket.on_redis_down == "local":
                counted.append(bucket)
        taken = self._book.take(counted, costs, self._clock() * 1e6, self._share())
        if len(counted) < len(buckets):
            known = iter(taken.levels)
            levels = [next(known) if bucket.on_redis_down == "local" else 0.0 for bucket in buckets]
            taken = taken._replace(levels=levels)
        if taken.refused is None:
            for bucket in buckets:
                if not bucket.period:
                    lease = self._leases.of(bucket) if bucket.on_redis_down == "local" else self._leases.began(bucket)
                    self._leases.tell(lease)
        return taken

    def _answer_here(self) -> None:
        """Whoever waits has an answer now."""
        waiting = [*self._under_way, *self._asks]
        self._under_way = []
        self._asks.clear()
        for ask in waiting:
            if not ask.came.done():
                ask.came.set_result(self._take_here(*ask.request))

    def _turn_local(self, error: Exception) -> None:
        told, self.reason = self.reason, _reason_of(error)
        if self.mode == "redis":
            self.mode, self.since = "local", self._clock()
        elif told != "connecting":
            return
        why = f"{LOCAL_BECAUSE[self.reason]} ({type(error).__name__.lstrip('_')})"
        log.warning("Redis %s: each replica counts limits for itself, and allows its share", why)
        self._leases.give_up()
        self._answer_here()

    # With Redis

    async def _use_redis(self) -> None:
        """Connect, and count there until it fails."""
        connection = self._new_connection()
        try:
            async with Patience(self._pace.connect):
                await _open(connection)
            await self._read_clock(connection)
            await self._check_eviction(connection)
            if await self._probe(connection):
                raise Slow
            log.info("limits are counted in Redis")
            self.mode, self.since, self.reason = "redis", self._clock(), ""
            self._leases.tell_all()
            await self._serve(connection)
        except Exception as error:
            # The client and the loop below raise what is nowhere listed. Whatever it is: no Redis, no waiting.
            self._turn_local(error)
        finally:
            await connection.disconnect(nowait=True)

    async def _serve(self, connection: AbstractConnection) -> None:
        """Make calls as long as Redis answers in time. Raises what ends that."""
        loop = asyncio.get_running_loop()
        slow = 0
        told_at = asked_at = loop.time()
        sweeping = self._sweep_later()
        try:
            while slow < SLOW_CALLS:
                await self._woken.wait()
                self._woken.clear()
                if self._sweep_due:
                    sweeping = self._sweep_later()
                    self._leases.sweep()
                    if loop.time() - told_at >= self._pace.keep / 3:
                        told_at = loop.time()
                        self._tell_again()
                batch = self._next_batch()
                if batch is None and loop.time() - asked_at < self._pace.probe:
                    continue
                asked_at = loop.time()
                was_slow = await (self._probe(connection) if batch is None else self._answer(connection, batch))
                slow = slow + 1 if was_slow else 0
            raise Slow
        finally:
            sweeping.cancel()

    def _tell_again(self) -> None:
        """What runs here goes on counting: Redis hears of it before it would believe that this process has ended."""
        self._leases.tell_all()

    def _next_batch(self) -> Batch | None:
        """What waits, as much of it as one call may hold."""
        asks, looks = self._under_way, 0
        while self._asks and looks < MAX_LOOKS:
            ask = self._asks.popleft()
            if not ask.came.done():
                asks.append(ask)
                looks += len(ask.request.buckets)
        untold = self._leases.next_untold(MAX_TOLD)
        if self._asks or len(untold) == MAX_TOLD:
            self._woken.set()
        return Batch(self._leases, [ask.request for ask in asks], untold) if asks or untold else None

    async def _answer(self, connection: AbstractConnection, batch: Batch) -> bool:
        """Make a call and hand out what came of it. Whether it was slow."""
        decided, slow = await self._call(connection, batch)
        asks, self._under_way = self._under_way, []
        again: list[_Ask] = []
        for ask, (levels, refused, wait) in zip(asks, decided, strict=True):
            if refused is not None and not ask.again and self._leases.came_back(refused):
                ask.again = True
                again.append(ask)
                continue
            taken = Taken(levels, refused, wait, source=self)
            if not ask.came.done():
                ask.came.set_result(taken)
            elif refused is None:
                self.settle(taken, *ask.request, NOTHING)
        if again:
            self._asks.extendleft(reversed(again))
            self._woken.set()
        return slow

    async def _call(self, connection: AbstractConnection, batch: Batch) -> tuple[list[Decided], bool]:
        """(What was decided, whether it took long.)"""
        loop = asyncio.get_running_loop()
        keys = batch.keys
        # If it is void, we held it up ourselves, or the server's clock has been set: it is known better now.
        for _ in range(2):
            sent_at = loop.time()
            asked = batch.asked(self._pace.keep * 1e6, (sent_at + self._pace.answer) * 1e6 + self._server_ahead)
            async with Patience(self._pace.answer, self._pace.slow) as patience:
                answer = await self._evaluate(connection, len(keys), *keys, self._replica, asked)
            server_now, decided = batch.learn(answer, self._clock() * 1e6)
            self._server_ahead = server_now - sent_at * 1e6
            if decided is not None:
                return decided, patience.slow
        raise Slow

    async def _evaluate(self, connection: AbstractConnection, *asked: bytes | int) -> Any:
        try:
            return await _ask(connection, "EVALSHA", self._script_name, *asked)
        except errors.NoScriptError:
            return await _ask(connection, "EVAL", self._script, *asked)

    async def _probe(self, connection: AbstractConnection) -> bool:
        """A call that writes as requests do, a key that lives for a moment. Whether it was slow."""
        bucket = Bucket(b"probe:" + self._replica, "probe", 1000, 1e6)
        _, slow = await self._call(connection, Batch(Leases(lambda: None), [Request((bucket,), (1, 0, 0, 0))]))
        return slow

    async def _read_clock(self, connection: AbstractConnection) -> None:
        sent_at = asyncio.get_running_loop().time()
        async with Patience(self._pace.answer):
            told = await _ask(connection, "TIME")
        try:
            seconds, microseconds = map(int, told)
        except (TypeError, ValueError):
            raise Garbled from None
        self._server_ahead = (seconds - EPOCH - sent_at) * 1e6 + microseconds

    async def _check_eviction(self, connection: AbstractConnection) -> None:
        """Warn, once, of a server that would throw buckets away. Not every server says what it would do."""
        if self._eviction_checked:
            return
        async with Patience(self._pace.answer):
            try:
                told = await _ask(connection, "CONFIG", "GET", "maxmemory*")
            except errors.ResponseError:
                told = []
        self._eviction_checked = True
        settings = dict(zip(told[::2], told[1::2], strict=False)) if isinstance(told, list) else {}
        policy = settings.get(b"maxmemory-policy", b"noeviction")
        if policy != b"noeviction" and settings.get(b"maxmemory") != b"0":
            log.warning(
                "Redis may evict what limits are counted in (maxmemory-policy %s), and they begin anew then: set "
                "maxmemory-policy noeviction",
                policy.decode("ascii", "replace"),
            )

    def _sweep_later(self) -> asyncio.TimerHandle:
        self._sweep_due = False
        return asyncio.get_running_loop().call_later(self._pace.sweep, self._wake_to_sweep)

    def _wake_to_sweep(self) -> None:
        self._sweep_due = True
        self._woken.set()

    async def _leave(self) -> None:
        """This process holds nothing any more."""
        self._leases.give_up()
        self._leases.running.clear()
        self._leases.tell_all()
        connection = self._new_connection()
        try:
            async with asyncio.timeout(self._pace.connect + self._pace.answer):
                await _open(connection)
                while untold := self._leases.next_untold(MAX_TOLD):
                    await self._call(connection, Batch(self._leases, (), untold))
        except (errors.RedisError, OSError, Garbled, Slow):
            return  # what it holds ends by itself
        finally:
            await connection.disconnect(nowait=True)


class NoRedis(Exception):
    """Redis does not answer as it should; the text says why, and holds neither address nor password."""

    def __init__(self, error: Exception) -> None:
        self.reason = _reason_of(error)
        """As the store's."""
        super().__init__(f"Redis {LOCAL_BECAUSE[self.reason]} ({type(error).__name__})")


async def ping(url: str, seconds: float) -> None:
    """Connect as the store does, and ask Redis for a sign of life, for so long at most.

    Raises `NoRedis`, and `ValueError` for a URL that cannot be used.
    """
    connection = _connection_to(url)
    try:
        async with asyncio.timeout(seconds):
            await _open(connection)
            await _ask(connection, "PING")
    except (errors.RedisError, OSError) as error:
        raise NoRedis(error) from None
    finally:
        await connection.disconnect(nowait=True)


def _connection_to(url: str) -> AbstractConnection:
    """One that is not open yet. Raises `ValueError` for a URL that cannot be used."""
    try:
        options: dict[str, Any] = {**parse_url(url)}
        kind = options.pop("connection_class", Connection)
        # All deadlines are ours. No second try, and no more commands at its start than are needed.
        options |= {"socket_timeout": None, "socket_connect_timeout": None, "protocol": 2, "driver_info": None}
        connection: AbstractConnection = kind(**options)
    except (ValueError, TypeError):
        # Their texts may quote a password.
        raise ValueError("Redis' URL cannot be used") from None
    return connection


async def _open(connection: AbstractConnection) -> None:
    await connection.connect()  # type: ignore[no-untyped-call]  # redis leaves it without annotations


async def _ask(connection: AbstractConnection, *command: bytes | int | str) -> Any:
    try:
        await connection.send_command(*command)
    except RuntimeError:
        # What uvloop says of a connection that the other side has reset.
        raise ConnectionResetError from None
    return await connection.read_response()


_REASONS: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((TimeoutError, errors.TimeoutError), "timeout"),
    ((Slow,), "slow"),
    ((errors.AuthenticationError, errors.AuthorizationError, errors.NoPermissionError), "denied"),
    ((errors.ReadOnlyError,), "readonly"),
    ((errors.OutOfMemoryError,), "memory"),
    ((errors.BusyLoadingError,), "loading"),
    ((errors.ConnectionError, OSError), "refused"),
)
"""The first that fits, since some are kinds of others."""


def _reason_of(error: Exception) -> str:
    return next((reason for kinds, reason in _REASONS if isinstance(error, kinds)), "error")
