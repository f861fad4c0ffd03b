"""A watch: the log's changes as one watcher sees them, bookmarks in between, and an end."""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.apiserver.asked import Asked
from tests.apiserver.clock import Clock
from tests.apiserver.http import ChunkedBody
from tests.apiserver.log import Change, Log, Object, at_version
from tests.apiserver.statuses import encode, error_event


@dataclass(frozen=True)
class Pace:
    """The server's own times, in its seconds."""

    bookmark_seconds: float = 60.0
    bookmark_before_end_seconds: float = 1.2
    watch_seconds: float = 1800.0
    """Without timeoutSeconds the server picks 30 to 60 minutes."""
    future_list_seconds: float = 3.0
    mute_seconds: float = 60.0


def event(kind: str, pod: Object) -> bytes:
    """One line."""
    return encode({"type": kind, "object": {"kind": "Pod", "apiVersion": "v1", **pod}}) + b"\n"


def bookmark(version: int, initial_end: bool = False) -> bytes:
    """A version and no more: `spec.containers` is null, which no model of a pod allows."""
    metadata: dict[str, Any] = {"resourceVersion": str(version)}
    if initial_end:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return event("BOOKMARK", {"metadata": metadata, "spec": {"containers": None}, "status": {}})


def seen_by(asked: Asked, change: Change) -> bytes | None:
    """The event that this watcher gets of a change, if any.

    A pod that leaves the selector is DELETED, with its state before and no deletionTimestamp, though it runs on; one
    that enters is ADDED. So DELETED does not mean gone.
    """
    was, now = asked.wants(change.old), asked.wants(change.new)
    if now and change.new is not None:
        return event("MODIFIED" if was else "ADDED", change.new)
    if was and change.old is not None:
        return event("DELETED", at_version(change.old, change.version))
    return None


class Watch:
    """One open watch. `listen` decides what is due; `serve` sends it."""

    def __init__(self, log: Log, asked: Asked, clock: Clock, pace: Pace) -> None:
        self.asked = asked
        self.said: deque[bytes] = deque()
        """Bytes that a test puts into the stream."""
        self._log = log
        self._clock = clock
        self._pace = pace
        self._wake = asyncio.Event()
        # A watch that begins with what is there may not know a version; one that does not begins now.
        self._from = self._seen = asked.version or (0 if asked.initial else log.version)
        now = clock.now()
        self._ends_at = now + (pace.watch_seconds if asked.timeout_seconds is None else asked.timeout_seconds)
        self._beat_at = self._bookmark_after(now)
        self._mute = False

    async def serve(self, body: ChunkedBody) -> None:
        """To the end, which is a clean one."""
        self._log.listeners.add(self.wake)
        try:
            if not await self._opened(body):
                return
            while True:
                for line in self._due():
                    await body.write(line)
                await body.flush()  # only now that nothing is pending: events that came together share chunks
                if self._clock.now() >= self._ends_at:
                    return
                self._wake.clear()
                if not self._has_news():
                    until = self._ends_at if self._mute else min(self._ends_at, self._beat_at)
                    await self._clock.wait(self._wake, until)
        finally:
            self._log.listeners.discard(self.wake)

    def wake(self) -> None:
        self._wake.set()

    def say(self, data: bytes) -> None:
        self.said.append(data)
        self.wake()

    def silence(self, seconds: float) -> None:
        """The server has got SIGTERM: the stream stays open and mute, then ends cleanly."""
        self._mute = True
        self._ends_at = self._clock.now() + seconds
        self.wake()

    def end(self) -> None:
        """End cleanly now, as at timeoutSeconds."""
        self._ends_at = self._clock.now()
        self.wake()

    async def _opened(self, body: ChunkedBody) -> bool:
        """Whether the watch goes on after its beginning."""
        if self.asked.initial:
            # A stale version is no 410 here: what is there now is not older than it.
            version = self._log.version
            if version < self._from:
                return True
            self._from = self._seen = version
            for pod in self._log.at(version):
                if self.asked.wants(pod):
                    await body.write(event("ADDED", pod))
            if self.asked.bookmarks:
                await body.write(bookmark(version, initial_end=True))
            return True
        if self._seen < self._log.watched_from:
            # HTTP 200 has long been said, so 410 comes as an event.
            told = f"too old resource version: {self._seen} ({self._log.watched_from})"
            await body.write(error_event(410, "Expired", told))
            return False
        return True

    def _has_news(self) -> bool:
        return not self._mute and bool(self.said or self._log.since(self._seen))

    def _due(self) -> Iterator[bytes]:
        """What is to be said now. A watch from a future version waits for it in silence, for ever if need be."""
        if self._mute:
            return
        while self.said:
            yield self.said.popleft()
        for change in self._log.since(self._seen):
            self._seen = change.version
            if (line := seen_by(self.asked, change)) is not None:
                yield line
        now = self._clock.now()
        # What came while lines were on their way must not be covered by a bookmark.
        if now >= self._beat_at and not self._log.since(self._seen):
            if self._log.version == self._from and now < self._last_beat:
                # Leases are renewed every ten seconds in any cluster, so a minute never finds the same version.
                self._log.write_elsewhere()
            self._beat_at = self._bookmark_after(now)
            if self.asked.bookmarks and self._log.version > self._from:
                self._seen = max(self._seen, self._log.version)
                yield bookmark(self._log.version)

    @property
    def _last_beat(self) -> float:
        return self._ends_at - self._pace.bookmark_before_end_seconds

    def _bookmark_after(self, now: float) -> float:
        """Each minute, and shortly before the end."""
        next_beat = now + self._pace.bookmark_seconds
        return min(next_beat, self._last_beat) if now < self._last_beat else next_beat
