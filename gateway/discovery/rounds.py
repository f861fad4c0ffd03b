"""Asks the pods, each in a task of its own: what they serve, how loaded they are, whether they sleep.

Politely, since a pod's API process serves nothing else meanwhile (measured on vLLM 0.32): `/v1/models` costs it
0.45 ms, `/load` 0.35, `/metrics` 6. So `/load` is read a few times a second, where the pod tracks it, and `/metrics`
every few seconds; both more seldom the more gateways and pods there are. A pod that hangs holds up nobody but itself.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from gateway.core.cell import Cell
from gateway.core.clock import about
from gateway.core.fleet import Fleet, Pod, PodLoad
from gateway.core.ports import Fetch, FetchFailed
from gateway.discovery.load import Tracking, count_of, gauges_of
from gateway.discovery.models import models_of
from gateway.discovery.roster import Roster


@dataclass(frozen=True, slots=True)
class Pace:
    """In seconds; each interval is a fifth longer or shorter by chance."""

    models: float = 10.0
    models_per_pod: float = 0.02
    models_first_again: float = 0.5
    """After a first question without an answer; then twice as long each time, up to `models`."""
    gauges: float = 5.0
    gauges_per_replica: float = 1.0
    gauges_per_pod: float = 0.02
    count: float = 0.4
    count_per_replica: float = 0.05
    count_per_pod: float = 0.002
    spread: float = 0.001
    """Between the first questions to pods that came together."""
    models_timeout: float = 5.0
    gauges_timeout: float = 2.0
    count_timeout: float = 0.5

    def gauges_seconds(self, pods: int, replicas: int) -> float:
        """Between two reads of a pod's `/metrics`: 20 replicas cost it 0.6 % of its API process, and pods cost us 50
        reads a second at most. Each moves 50 KB through the processor's caches, and the next requests pay for that."""
        return max(self.gauges, self.gauges_per_replica * replicas, self.gauges_per_pod * pods)

    def models_seconds(self, pods: int) -> float:
        """Between two questions to a pod for its models."""
        return max(self.models, self.models_per_pod * pods)

    def count_seconds(self, pods: int, replicas: int) -> float:
        """Between two reads of a pod's `/load`."""
        return max(self.count, self.count_per_replica * replicas, self.count_per_pod * pods)


SLICE_PODS = 20
"""So many visits are begun or ended at a time."""
EARLY_SHARE = 0.3
"""Models are asked for so much of their interval early, if the connection is open because of another question."""
SHORTEST_PAUSE = 0.001
ASK_AGAIN_SECONDS = 1.0
FRESH_INTERVALS = 3.0
"""A value is good for so many of its intervals: one read may fail."""
NOTHING_KNOWN = PodLoad()


class Rounds:
    """See the module's text. `in_flight(uid)` is how many requests of ours are at a pod now; `told` is
    told what each pod says, and until when its count is to be believed."""

    def __init__(
        self,
        roster: Roster,
        fleet: Cell[Fleet],
        fetch: Fetch,
        *,
        in_flight: Callable[[str], int],
        told: Callable[[str, PodLoad, float], None],
        replicas: Callable[[], int],
        clock: Callable[[], float],
        chance: Callable[[], float],
        pace: Pace | None = None,
    ) -> None:
        self._roster = roster
        self._fleet = fleet
        self._fetch = fetch
        self._in_flight = in_flight
        self._told = told
        self._replicas = replicas
        self._clock = clock
        self._chance = chance
        self._pace = pace or Pace()
        self._visits: dict[str, asyncio.Task[None]] = {}
        self._loads: dict[str, PodLoad] = {}
        self._group: asyncio.TaskGroup | None = None
        self._asked_again_at = float("-inf")

    def load_of(self, uid: str) -> PodLoad:
        """What a pod last said of its load, without what is too old by now."""
        load = self._loads.get(uid, NOTHING_KNOWN)
        now = self._clock()
        if load.gauges is not None and now - load.gauges_read_at > FRESH_INTERVALS * self._gauges_seconds():
            load = replace(load, gauges=None)
        if load.in_flight is not None and now - load.in_flight_read_at > FRESH_INTERVALS * self._count_seconds():
            load = replace(load, in_flight=None)
        return load

    def ask_again(self, pod: Pod) -> None:
        """Something the pod told of its models is not true any more: ask it at once, and not again within a second."""
        visit = self._visits.get(pod.uid)
        now = self._clock()
        if visit is not None and self._group is not None and now - self._asked_again_at > ASK_AGAIN_SECONDS:
            self._asked_again_at = now
            visit.cancel()
            self._visits[pod.uid] = self._group.create_task(self._visit(pod, 0.0))

    async def run(self) -> None:
        """Visit each pod that may be asked, as long as it may; ends by cancellation."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            while True:
                wanted = {pod.uid: pod for pod in self._fleet.value.pods if pod.askable}
                gone = self._visits.keys() - wanted.keys()
                fresh = [pod for uid, pod in wanted.items() if uid not in self._visits]
                for uid in islice(gone, SLICE_PODS):
                    self._visits.pop(uid).cancel()
                    self._loads.pop(uid, None)
                for place, pod in enumerate(fresh[:SLICE_PODS]):
                    self._visits[pod.uid] = group.create_task(self._visit(pod, place * self._pace.spread))
                if max(len(gone), len(fresh)) > SLICE_PODS:
                    # Streams go on while a thousand pods come or go.
                    await asyncio.sleep(SLICE_PODS * self._pace.spread)
                else:
                    await self._fleet.wait_changed()

    async def _visit(self, pod: Pod, delay: float) -> None:
        """One pod's questions, one after another: most of them find the connection of the one before still open."""
        await asyncio.sleep(delay)
        tracking = Tracking()
        again = self._pace.models_first_again
        gauges_at = models_at = self._clock()
        while True:
            counts, early = tracking.believed, 0.0
            if self._clock() >= gauges_at:
                # First whether it sleeps: a pod that does must not get a request because its models were quicker.
                await self._read_gauges(pod)
                gauges_at = self._clock() + about(self._gauges_seconds(), self._chance)
                # Only requests of ours can show whether the pod counts.
                counts = counts or self._in_flight(pod.uid) > 0
                early = EARLY_SHARE * self._models_seconds()
            if self._clock() >= models_at - early:
                if await self._ask_models(pod):
                    again = self._models_seconds()
                models_at = self._clock() + about(again, self._chance)
                again = min(self._models_seconds(), 2 * again)
            if counts:
                await self._read_count(pod, tracking)
            due = min(gauges_at, models_at)
            if tracking.believed:
                due = min(due, self._clock() + about(self._count_seconds(), self._chance))
            await asyncio.sleep(max(SHORTEST_PAUSE, due - self._clock()))

    async def _ask_models(self, pod: Pod) -> bool:
        """Whether it answered."""
        try:
            self._roster.heard(pod.uid, models_of(await self._fetch(pod, b"/v1/models", self._pace.models_timeout)))
        except FetchFailed as failed:
            self._roster.silent(pod.uid, str(failed))
            return False
        return True

    async def _read_gauges(self, pod: Pod) -> None:
        try:
            gauges = gauges_of(await self._fetch(pod, b"/metrics", self._pace.gauges_timeout))
        except FetchFailed:
            if self.load_of(pod.uid).gauges is None:
                # Nothing is known any more: a pod that cannot be asked is not kept from its work.
                self._roster.slept(pod.uid, "")
            return
        self._note(pod.uid, gauges=gauges, gauges_read_at=self._clock())
        self._roster.slept(pod.uid, gauges.asleep)

    async def _read_count(self, pod: Pod, tracking: Tracking) -> None:
        before = self._in_flight(pod.uid)
        try:
            count = count_of(await self._fetch(pod, b"/load", self._pace.count_timeout))
        except FetchFailed:
            # Slow or away is not untracked; the value before grows old.
            return
        after = self._in_flight(pod.uid)
        if not tracking.judge(count, before, after):
            count = None
        self._note(pod.uid, in_flight=count, in_flight_own=min(before, after), in_flight_read_at=self._clock())

    def _note(self, uid: str, **changes: Any) -> None:
        # An answer may come between the end of a pod and that of its visit.
        if uid in self._visits:
            load = self._loads[uid] = replace(self._loads.get(uid, NOTHING_KNOWN), **changes)
            self._told(uid, load, load.in_flight_read_at + FRESH_INTERVALS * self._count_seconds())

    def _gauges_seconds(self) -> float:
        return self._pace.gauges_seconds(len(self._visits), self._replicas())

    def _models_seconds(self) -> float:
        return self._pace.models_seconds(len(self._visits))

    def _count_seconds(self) -> float:
        return self._pace.count_seconds(len(self._visits), self._replicas())
