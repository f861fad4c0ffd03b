"""What etcd keeps: every change of every pod under one version that counts all kinds and namespaces.

A version belongs to the whole cluster, so those of one namespace have holes: after each pod's change `others` more
versions go to kinds that nobody here reads (leases, events). Nothing is ever thrown away; compaction and the loss of
the watch cache only raise the floors below which the server must say 410.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

Object = dict[str, Any]
"""A pod as JSON. Never changed in place: a change is a new object."""

Key = tuple[str, str]
"""(namespace, name)."""


@dataclass(frozen=True, slots=True)
class Change:
    """One write: created without `old`, deleted without `new`."""

    version: int
    old: Object | None
    new: Object | None


def key_of(pod: Object) -> Key:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


def at_version(pod: Object, version: int) -> Object:
    """The same pod under another version."""
    return pod | {"metadata": pod["metadata"] | {"resourceVersion": str(version)}}


class Log:
    """The pods, and how they came to be so."""

    def __init__(self, version: int = 200, others: int = 1) -> None:
        self.version = version
        """The newest of the whole cluster."""
        self.others = others
        self.pods: dict[Key, Object] = {}
        self.kept_from = 0
        """etcd's compaction: older states can no longer be listed."""
        self.watched_from = 0
        """Where the watch cache begins: an older watch gets 410."""
        self.listeners: set[Callable[[], None]] = set()
        self._changes: list[Change] = []

    def put(self, pod: Object) -> Object:
        """Write a pod, new or changed."""
        old = self.pods.get(key_of(pod))
        self.version += 1
        written = self.pods[key_of(pod)] = at_version(pod, self.version)
        self._append(Change(self.version, old, written))
        return written

    def remove(self, key: Key) -> None:
        old = self.pods.pop(key)
        self.version += 1
        self._append(Change(self.version, old, None))

    def write_elsewhere(self, times: int = 1) -> None:
        """Other kinds change: the version moves, and no pod's watcher hears of it."""
        self.version += times

    def since(self, version: int) -> list[Change]:
        """What came after this version, oldest first."""
        return self._changes[bisect_right(self._changes, version, key=lambda change: change.version) :]

    def at(self, version: int) -> list[Object]:
        """The pods as they were at this version, in the order of their keys."""
        pods = dict(self.pods)
        for change in reversed(self.since(version)):
            if change.old is not None:
                pods[key_of(change.old)] = change.old
            elif change.new is not None:
                del pods[key_of(change.new)]
        return [pods[key] for key in sorted(pods)]

    @property
    def newest_change(self) -> int:
        """The version of the newest pod event in the whole cluster."""
        return self._changes[-1].version if self._changes else 0

    def compact(self) -> None:
        """Forget all that is older than now, as etcd does every five minutes with a delay."""
        self.kept_from = self.version

    def forget_watch_cache(self) -> None:
        """A restarted API server knows no change before its start.

        Every watcher older than the newest pod event anywhere in the cluster gets 410, which is the normal case.
        """
        self.watched_from = self.newest_change

    def expire(self) -> None:
        """Compaction and a new watch cache: every older version gets 410, listed or watched."""
        self.kept_from = self.watched_from = self.version

    def backup(self) -> Self:
        """A copy, to be restored later: versions then go backwards."""
        copy = type(self)(self.version, self.others)
        copy.pods = dict(self.pods)
        copy.kept_from = self.kept_from
        copy.watched_from = self.watched_from
        copy._changes = list(self._changes)
        return copy

    def __iter__(self) -> Iterator[Change]:
        return iter(self._changes)

    def _append(self, change: Change) -> None:
        self._changes.append(change)
        self.version += self.others
        for heard in tuple(self.listeners):
            heard()
