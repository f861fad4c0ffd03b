"""The one writer of the fleet: which pods the source sees, what each of them lists, and which of them sleep.

A change is published at once, but never twice within 20 ms: a thousand events that come together make one new fleet.
What did not change of a pod is not made again, so that a publication costs about a microsecond a pod.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from gateway.core.cell import Cell
from gateway.core.fleet import Fleet, Model, Pod, PodState, Pool, RefusedPod
from gateway.discovery.models import Listing
from gateway.discovery.pods import without_twins
from gateway.discovery.routes import admitted, routes_of
from gateway.discovery.source import Source

PUBLISH_SECONDS = 0.02
GRACE_SECONDS = 10.0
"""How long the first listing's pods have to tell their models before requests are taken all the same."""
REMEMBER_SECONDS = 86_400.0
MAX_REMEMBERED = 4096
MAX_TOLD = 20
"""Refused pods of one publication that get a line each."""

log = logging.getLogger("poolgate.discovery")


@dataclass(slots=True)
class _Known:
    """What one pod has told, and what was last made of it."""

    listed: tuple[Model, ...] | None = None
    trouble: str = ""
    """Why it has not told its models."""
    asleep: str = ""
    made_of: tuple[object, ...] = ()
    made: Pod = field(default_factory=lambda: Pod("", "", "", "", 0))


class Roster:
    """See the module's text. `rejected(reason, count)` counts what was refused, once each time that it is news."""

    def __init__(
        self,
        source: Source,
        pools: Mapping[str, Pool],
        fleet: Cell[Fleet],
        clock: Callable[[], float],
        rejected: Callable[[str, int], None],
    ) -> None:
        self._source = source
        self._pools = pools
        self._fleet = fleet
        self._clock = clock
        self._rejected = rejected
        self._known: dict[str, _Known] = {}
        self._refused: frozenset[RefusedPod] = frozenset()
        self._remembered: dict[str, tuple[str, float]] = {}
        self._awaited: set[str] | None = None
        """Ready pods of the first listing that have not been asked yet; None before that listing."""
        self._published_at = float("-inf")
        self._due: asyncio.TimerHandle | None = None
        self._grace: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Follow the source; ends by cancellation."""
        self._publish()
        try:
            await self._source.run(self.changed)
        finally:
            for timer in (self._due, self._grace):
                if timer is not None:
                    timer.cancel()

    def changed(self) -> None:
        """Something is new: a new fleet is due."""
        if self._due is None:
            wait = self._published_at + PUBLISH_SECONDS - self._clock()
            self._due = asyncio.get_running_loop().call_later(max(0.0, wait), self._publish)

    def use(self, pools: Mapping[str, Pool]) -> None:
        """Take these settings of pools from now on: the next fleet has them. Pods stay what they are."""
        self._pools = pools
        for known in self._known.values():
            # Other globs may admit other models of those that it listed.
            known.made_of = ()
        for name, (pool, _) in list(self._remembered.items()):
            if not self._pool(pool).admits(name):
                del self._remembered[name]
        self.changed()

    # What pods tell. Of a pod that is not known any more, nothing is kept.

    def heard(self, uid: str, listing: Listing) -> None:
        """A pod listed its models."""
        known = self._known.get(uid)
        if known is None:
            return
        pod = known.made
        models, refused = admitted(listing.models, pod, self._pool(pod.pool))
        for model in models:
            self._remember(model.name, pod.pool)
        # Compared by name: the rest of a card (its `created`) is new with each answer.
        if known.listed != listing.models:
            known.listed = listing.models
            known.trouble = ""
            if listing.odd:
                refused["model_name"] = listing.odd
            for reason, count in refused.items():
                self._rejected(reason, count)
            self.changed()
        self._was_asked(uid)

    def silent(self, uid: str, trouble: str) -> None:
        """A pod did not list its models. What it told before stays: whether it still serves, requests will see."""
        known = self._known.get(uid)
        if known is not None and known.listed is None and known.trouble != trouble:
            known.trouble = trouble
            self.changed()
        self._was_asked(uid)

    def slept(self, uid: str, asleep: str) -> None:
        """A pod's sleep state; empty: awake."""
        known = self._known.get(uid)
        if known is not None and known.asleep != asleep:
            known.asleep = asleep
            self.changed()

    def _was_asked(self, uid: str) -> None:
        if self._awaited and uid in self._awaited:
            self._awaited.discard(uid)
            if not self._awaited:
                self.changed()

    def _end_grace(self) -> None:
        if self._awaited:
            self._awaited.clear()
            self.changed()

    def _publish(self) -> None:
        self._due = None
        now = self._published_at = self._clock()
        seen = self._source.seen()
        pods = tuple(self._overlaid(without_twins(seen.pods), now))
        if seen.listed and self._awaited is None:
            self._awaited = {pod.uid for pod in pods if pod.askable}
            self._grace = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._end_grace)
        elif self._awaited:
            self._awaited.intersection_update(pod.uid for pod in pods if pod.askable)
        self._count_refused(seen.refused)
        self._forget_old(now)
        routes = routes_of(pods, self._pools, {name: pool for name, (pool, _) in self._remembered.items()})
        asked = self._awaited is not None and not self._awaited
        self._fleet.set(Fleet(pods, routes.routes, routes.cards, seen.refused, seen.listed, asked))

    def _overlaid(self, pods: Iterable[Pod], now: float) -> list[Pod]:
        """Each pod with what it told. Whoever is not among them is forgotten."""
        before, self._known = self._known, {}
        found = []
        for pod in pods:
            known = self._known[pod.uid] = before.get(pod.uid) or _Known()
            made_of = (pod, known.listed, known.trouble, known.asleep)
            if known.made_of != made_of:
                known.made_of = made_of
                known.made = self._made(pod, known, now)
            found.append(known.made)
        return found

    def _made(self, pod: Pod, known: _Known, now: float) -> Pod:
        """A pod with what it told, and since when it is so."""
        models: tuple[Model, ...] = ()
        if known.listed is not None:
            models = admitted(known.listed, pod, self._pool(pod.pool)).models
        state, reason = _judged(pod, known, models)
        before = known.made
        same = before.uid == pod.uid and (before.state, before.reason) == (state, reason)
        return replace(pod, models=models, state=state, reason=reason, since=before.since if same else now)

    def _pool(self, name: str) -> Pool:
        return self._pools.get(name) or Pool(name)

    def _count_refused(self, refused: tuple[RefusedPod, ...]) -> None:
        before, self._refused = self._refused, frozenset(refused)
        fresh = [pod for pod in refused if pod not in before]
        for pod in fresh:
            self._rejected(pod.reason, 1)
        for pod in fresh[:MAX_TOLD]:
            log.warning("pod %s is refused: %s", pod.name, pod.why)
        if len(fresh) > MAX_TOLD:
            log.warning("%d more pods are refused: see /status.json", len(fresh) - MAX_TOLD)

    def _remember(self, name: str, pool: str) -> None:
        self._remembered.pop(name, None)
        self._remembered[name] = (pool, self._clock())
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    def _forget_old(self, now: float) -> None:
        """They stand in the order in which they were last heard of."""
        while self._remembered:
            name = next(iter(self._remembered))
            if now - self._remembered[name][1] < REMEMBER_SECONDS:
                return
            del self._remembered[name]


def _judged(pod: Pod, known: _Known, models: tuple[Model, ...]) -> tuple[PodState, str]:
    """The state, and why it is not READY or gets no work all the same."""
    if not pod.askable:
        return pod.state, pod.reason
    if known.listed is None:
        return PodState.STARTING, known.trouble or "not asked for its models yet"
    if known.asleep:
        return PodState.ASLEEP, f"asleep ({known.asleep})"
    return PodState.READY, "" if models else "it lists no model that it may serve"
