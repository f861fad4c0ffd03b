"""What a gateway does against several things at once, and against changes while requests run."""

import asyncio
from dataclasses import replace
from math import inf
from typing import Any
from weakref import WeakSet

from gateway.balancing.balancer import Balancer, Lease
from gateway.config.faults import ConfigError
from gateway.config.whole import Config
from gateway.core.call import Trail
from gateway.core.fleet import Route
from gateway.limits.admission import Admission, Ask, Reservation
from gateway.limits.memory_store import MemoryStore
from gateway.pipeline.forward import Forwarder
from gateway.pipeline.retries import Again, Retries
from gateway.reload import Followed, FollowedConfig, Reload
from gateway.telemetry.exposition import KEEP_SECONDS, Exposition
from gateway.upstream.failure import Failure
from tests.scenes.defences.replacing import but, having
from tests.scenes.scene import Defence

MONOTONIC = Defence(
    "monotonic",
    "What lasts is measured by a clock that nobody can set.",
    having(limits=lambda config, replicas, clock, chance: MemoryStore(clock.wall)),
)


class _MakesDo(Reload):
    """Takes the defaults for what it cannot read."""

    async def _renew(self, followed: Followed[Any]) -> None:
        try:
            followed.load()
        except ConfigError:
            followed.use(Config() if isinstance(followed, FollowedConfig) else ())
        await super()._renew(followed)


ALL_OR_NOTHING = Defence(
    "all_or_nothing",
    "A file that cannot be used whole changes nothing.",
    having(reload=_MakesDo),
)


class _EndsWhatRuns(Admission):
    """With the keys that are no more, and all others."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._running: WeakSet[asyncio.Task[Any]] = WeakSet()

    def _new_plan(self, ask: Ask) -> Any:
        plan = super()._new_plan(ask)
        self.free.clear()
        return plan

    def reserve_nowait(self, *_: Any) -> None:
        """So that each request is a task, which can be cancelled."""

    async def reserve(self, ask: Ask, trail: Trail) -> Reservation:
        if (task := asyncio.current_task()) is not None:
            self._running.add(task)
        return super().reserve_nowait(ask, trail) or await super().reserve(ask, trail)

    def forget_callers(self) -> None:
        super().forget_callers()
        for task in self._running:
            task.cancel()


KEYS_AT_THE_DOOR = Defence(
    "keys_at_the_door",
    "A key is judged when its request comes; what runs goes on, whatever becomes of the key.",
    having(admission=_EndsWhatRuns),
)


class _EndlessLine(Balancer):
    async def wait_for_room(self, route: Route, *given: Any, **named: Any) -> Lease:
        endless = replace(route, pool=replace(route.pool, queue_limit=1 << 30))
        return await super().wait_for_room(endless, *given, **(named | {"deadline": inf}))


SHORT_LINE = Defence(
    "short_line",
    "So many wait for a pod, and so long, that whoever gets one still has the patience for its answer.",
    having(balancer=_EndlessLine),
)


class _TriesFreely(Retries):
    def again(self, failure: Failure, uid: str, budget_left: bool) -> Again | None:
        return super().again(failure, uid, budget_left=True)


RETRY_BUDGET = Defence(
    "retry_budget",
    "A tenth of what runs is sent again at once, and no more.",
    having(forwarder=but(Forwarder, retries=_TriesFreely)),
)


class _RendersOnTheLoop(Exposition):
    async def text(self) -> bytes:
        if self._clock() >= self._good_until:
            self._observe()
            self._text = self._render()
            self._good_until = self._clock() + KEEP_SECONDS
        return self._text


OFF_THE_LOOP = Defence(
    "off_the_loop",
    "The text of the metrics is rendered in a thread.",
    having(exposition=_RendersOnTheLoop),
)


class _RendersForEach(Exposition):
    async def text(self) -> bytes:
        self._observe()
        return await asyncio.to_thread(self._render)


ONE_TEXT = Defence(
    "one_text",
    "Whoever asks for the metrics within a second gets the same text, which is rendered once.",
    having(exposition=_RendersForEach),
)
