"""What a gateway does so that limits hold: across replicas, without Redis, and for who leaves half-way."""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha1, sha256
from typing import Any

from redis.asyncio.connection import AbstractConnection

from gateway.config.whole import Config
from gateway.core.clock import Clock
from gateway.core.errors import (
    InvalidApiKey,
    PoolgateError,
)
from gateway.limits import redis_store
from gateway.limits.bucket import DAY, MINUTE, Bucket, Costs, Taken
from gateway.limits.memory_store import MemoryStore
from gateway.limits.redis_store import RedisStore
from gateway.limits.store import Store
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.reception import Visit
from gateway.pipeline.serve import Pipeline
from tests.scenes.defences.replacing import having
from tests.scenes.scene import Defence
from tests.stores import BRISK

QUICK_TO_RETURN = redis_store.Pace(probe=0.1)
"""As the product is, but for how soon it tries again."""
PATIENT = replace(BRISK, connect=20.0, answer=20.0, slow=10.0)
"""Whatever the machine does besides: what they say is for scenes in which Redis is dead or well, and never slow."""
OFTEN_TOLD = replace(PATIENT, keep=1.5)


def counts_in_redis(
    kind: type[RedisStore] = RedisStore, pace: redis_store.Pace = PATIENT
) -> Callable[[Config, Callable[[], int], Clock, Callable[[], float]], Store]:
    """A store as `Parts` wants it; of this kind, and so patient."""

    def made(config: Config, replicas: Callable[[], int], clock: Clock, chance: Callable[[], float]) -> Store:
        return kind(
            config.limits.redis_url or "",
            replica=os.urandom(8).hex(),
            replicas=replicas,
            clock=clock.monotonic,
            chance=chance,
            pace=pace,
        )

    return made


def _counts_alone(config: Config, replicas: Callable[[], int], clock: Clock, chance: Callable[[], float]) -> Store:
    return MemoryStore(clock.monotonic)


SHARED_COUNT = Defence(
    "shared_count",
    "All replicas count a limit in one place, in one step.",
    having(limits=_counts_alone),
)
REDIS_DEADLINE = Defence(
    "redis_deadline",
    "Redis has 50 ms for an answer; whoever waits then is answered here, in that moment.",
    having(limits=counts_in_redis(pace=replace(QUICK_TO_RETURN, answer=3600.0, slow=1800.0))),
)


class _NeverLearns(RedisStore):
    def _turn_local(self, error: Exception) -> None:
        super()._turn_local(error)
        self.mode = "redis"


FELT_ONCE = Defence(
    "felt_once",
    "After one call that fails nobody waits for Redis, until it has answered again.",
    having(limits=counts_in_redis(_NeverLearns, QUICK_TO_RETURN)),
)


class _AllowsAll(RedisStore):
    def _share(self) -> float:
        return 1.0


LOCAL_SHARE = Defence(
    "local_share",
    "Without Redis each replica allows its share of a limit, not the whole of it.",
    having(limits=counts_in_redis(_AllowsAll, QUICK_TO_RETURN)),
)


class _BeginsAnew(RedisStore):
    def _turn_local(self, error: Exception) -> None:
        if self.mode == "redis":
            self._book.tats.clear()
        super()._turn_local(error)


ONE_LOCAL_BOOK = Defence(
    "one_local_book",
    "A replica's own count lasts over all outages: a Redis that comes and goes gives no fresh share each time.",
    having(limits=counts_in_redis(_BeginsAnew)),
)


class _StaysLocal(RedisStore):
    async def run(self) -> None:
        await self._use_redis()
        await asyncio.Event().wait()


REDIS_AGAIN = Defence(
    "redis_again",
    "A replica that counts for itself tries Redis again, each second.",
    having(limits=counts_in_redis(_StaysLocal)),
)


class _TellsTheScriptOnce(RedisStore):
    told = False

    async def _evaluate(self, connection: AbstractConnection, *asked: bytes | int) -> Any:
        if not self.told:
            self.told = True
            return await super()._evaluate(connection, *asked)
        await connection.send_command("EVALSHA", self._script_name, *asked)
        return await connection.read_response()


SCRIPT_AGAIN = Defence(
    "script_again",
    "A script that Redis does not know any more is sent to it again, in the same call.",
    having(limits=counts_in_redis(_TellsTheScriptOnce)),
)


class _ByItsOwnClock(RedisStore):
    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._script = self._script.replace(b"redis.call('TIME')", b"{ARGV[3] + EPOCH, 0}")
        self._script_name = sha1(self._script, usedforsecurity=False).hexdigest().encode("ascii")

    async def _evaluate(self, connection: AbstractConnection, *asked: bytes | int) -> Any:
        return await super()._evaluate(connection, *asked, b"%.6f" % self._clock())


SERVERS_CLOCK = Defence(
    "servers_clock",
    "Limits run by Redis' own clock, whatever a replica's says.",
    having(limits=counts_in_redis(_ByItsOwnClock)),
)


class _LeavesItBehind(RedisStore):
    async def _evaluate(self, connection: AbstractConnection, *asked: bytes | int) -> Any:
        came = await super()._evaluate(connection, *asked)
        count = int(asked[0])
        for key in asked[1 : 1 + count]:
            await connection.send_command("PERSIST", key)
            await connection.read_response()
        return came


KEYS_END = Defence(
    "keys_end",
    "Every key in Redis ends by itself, when its bucket is full again or what runs was not told again.",
    having(limits=counts_in_redis(_LeavesItBehind)),
)
LEASES_END = Defence(
    "leases_end",
    "What runs at a replica counts for 30 s, unless that is told again.",
    having(limits=counts_in_redis(pace=replace(PATIENT, keep=86_400.0))),
)


class _TellsOnce(RedisStore):
    def _tell_again(self) -> None:
        """It has been said."""


HEARTBEAT = Defence(
    "heartbeat",
    "What runs is told to Redis again, three times in the while for which it counts.",
    having(limits=counts_in_redis(_TellsOnce, OFTEN_TOLD)),
)


class _CountsStrangers(Pipeline):
    """So that nobody tries too many keys."""

    def refuse(self, visit: Visit, exchange: Exchange, error: PoolgateError) -> None:
        if isinstance(error, InvalidApiKey):
            name = sha256(visit.head.fields.get(b"authorization", b"")).hexdigest().encode()
            counted = Bucket(name, "requests_per_day", 60, DAY)
            self._admission._store.settle(Taken((), source=self._admission._store), [counted], (0,) * 4, (1, 0, 0, 0))
        super().refuse(visit, exchange, error)


KNOWN_FIRST = Defence(
    "known_first",
    "A key is looked up before anything is counted for it.",
    having(pipeline=_CountsStrangers),
)


class _FixedWindows(MemoryStore):
    """A count for each minute since the first request."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._began: float | None = None
        self._window = self._count = 0

    def take_nowait(self, buckets: Sequence[Bucket], costs: Costs) -> Taken:
        now = self._clock() * 1e6
        self._began = now if self._began is None else self._began
        if (window := int((now - self._began) / MINUTE)) != self._window:
            self._window, self._count = window, 0
        self._count += 1
        refused = next((each for each in buckets if self._count > each.amount), None)
        return Taken([0.0] * len(buckets), refused, MINUTE)


NO_WINDOWS = Defence(
    "no_windows",
    "A limit comes back evenly (GCRA): there is no window at whose edge twice as much would pass.",
    having(limits=lambda config, replicas, clock, chance: _FixedWindows(clock.monotonic)),
)
