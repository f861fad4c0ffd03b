"""What happened of late: told by what differs between two looks at the gateway.

Nobody has to tell: the tick looks four times a second, and compares what is cheap to compare. Pods are gone through
only when the fleet was replaced or other ones are ejected.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from gateway.api.seen import WHAT_IS_SHORT, Event, Level, Seen
from gateway.api.status import EJECTED_FOR, ejected_pods
from gateway.core.fleet import EJECTED, Fleet, PodState, shown_state
from gateway.limits.store import LOCAL_BECAUSE

MAX_EVENTS = 200
MAX_POD_EVENTS = 20
"""Of one look; when a hundred pods change at once the others are counted."""
STALE_SECONDS = 5.0
"""So long may discovery hear nothing before that is worth a line."""


_Told = tuple[Level, str, str, str]
"""An event without its time."""


class _Pod(NamedTuple):
    where: str
    """POOL/NAME."""
    state: str


class Events:
    """Call `look` often; everything here runs on the loop's thread."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._fleet = Fleet()
        self._ejected: frozenset[str] = frozenset()
        self._pods: dict[str, _Pod] = {}
        self._panics: frozenset[str] = frozenset()
        self._before: Seen | None = None
        self._stale = False
        self._shed_before = 0

    def last(self) -> Iterable[Event]:
        """The latest first."""
        return list(reversed(self._events))

    def look(self, seen: Seen) -> None:
        """Note what is not as it was."""
        for level, what, subject, text in self._changes(seen):
            self._events.append(Event(seen.now, level, what, subject, text))
        self._before = seen

    def _changes(self, seen: Seen) -> Iterator[_Told]:
        before = self._before
        if before is None:
            yield "info", "started", "gateway", "this replica has started"
        elif seen.draining and not before.draining:
            yield "info", "draining", "gateway", "told to stop: what runs is finished, then it ends"
        yield from self._pods_changed(seen)
        yield from self._panics_changed(seen)
        if before is None:
            return
        if seen.config.error and seen.config.error != before.config.error:
            yield "error", "config_refused", "configuration", seen.config.error.splitlines()[0]
        if seen.config.loaded_at != before.config.loaded_at:
            yield "info", "config_applied", "configuration", "a change of the configuration or the keys is in force"
        elif before.config.error and not seen.config.error:
            yield "info", "config_mended", "configuration", "its files hold what is in force again"
        if (seen.limits.mode, seen.limits.since) != (before.limits.mode, before.limits.since):
            if seen.limits.mode == "local":
                why = LOCAL_BECAUSE.get(seen.limits.reason, seen.limits.reason)
                yield "warning", "limits_local", "limits", f"Redis {why}: each replica keeps to its share"
            else:
                yield "info", "limits_shared", "limits", "counted in Redis, by all replicas together"
        yield from self._load_changed(seen, before)
        stale = seen.stale_seconds > STALE_SECONDS
        if stale != self._stale:
            self._stale = stale
            if stale:
                yield "warning", "discovery_stale", "discovery", "nothing is heard of which pods there are"
            else:
                yield "info", "discovery_back", "discovery", "it is known again which pods there are"

    def _load_changed(self, seen: Seen, before: Seen) -> Iterator[_Told]:
        level = seen.load.level
        if level == before.load.level:
            return
        if not level:
            shed = seen.load.shed - self._shed_before
            yield "info", "overload_over", "gateway", f"all requests are taken again; {shed:,} were turned away"
            return
        if not before.load.level:
            self._shed_before = before.load.shed
        short = WHAT_IS_SHORT.get(seen.load.cause, "")
        if level == 1:
            yield "warning", "overload", "gateway", f"short of {short}: requests that can wait are turned away"
        else:
            yield "error", "overload", "gateway", f"short of {short}: all new requests are turned away"

    def _pods_changed(self, seen: Seen) -> Iterator[_Told]:
        ejected = frozenset(ejected_pods(seen))
        if seen.fleet is self._fleet and ejected == self._ejected:
            return
        first = not self._fleet.listed
        self._fleet, self._ejected = seen.fleet, ejected
        was, self._pods = (
            self._pods,
            {pod.uid: _Pod(f"{pod.pool}/{pod.name}", shown_state(pod, ejected)) for pod in seen.fleet.pods},
        )
        if first and seen.fleet.listed:
            yield "info", "pods_listed", "discovery", f"{len(self._pods)} pods are known"
        if first:
            return
        changes = self._pod_changes(seen, was)
        yield from islice(changes, MAX_POD_EVENTS)
        if more := sum(1 for _ in changes):
            yield "info", "pods_changed", "discovery", f"{more} more pods changed in the same moment"

    def _pod_changes(self, seen: Seen, was: dict[str, _Pod]) -> Iterator[_Told]:
        for pod in seen.fleet.pods:
            where, state = self._pods[pod.uid]
            before = was.get(pod.uid)
            if before is not None and before.state == state:
                continue
            if state == EJECTED:
                reason = seen.health_of(pod.uid).reason
                yield "error", "pod_ejected", where, f"ejected: {EJECTED_FOR.get(reason, reason)}"
            elif before is not None and before.state == EJECTED and state == PodState.READY:
                yield "info", "pod_back", where, "back from its ejection: it is tried again"
            elif before is not None and before.state == PodState.READY and state == PodState.STARTING:
                yield "warning", "pod_unready", where, _because("not ready any more", pod.reason)
            else:
                yield "info", f"pod_{state}", where, _because(state, pod.reason)
        for uid, (where, state) in was.items():
            if uid not in self._pods:
                level: Level = "info" if state == PodState.DRAINING else "warning"
                yield level, "pod_gone", where, f"gone; it was {state}"

    def _panics_changed(self, seen: Seen) -> Iterator[_Told]:
        panics = frozenset(pool for pool, whether in seen.panics() if whether)
        before, self._panics = self._panics, panics
        for pool in sorted(panics - before):
            yield "error", "panic", pool, "too few pods are well: ejected ones get requests as well"
        for pool in sorted(before - panics):
            yield "info", "panic_over", pool, "enough pods are well again"


def _because(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what
