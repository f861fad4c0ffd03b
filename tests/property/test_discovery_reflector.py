"""A reflector before an API that lies: it drops, repeats, reorders, garbles and cuts events, fails, hangs, goes back in
time. Once it has become honest, what is held is what there is, within one full list; and at no time does a pod that
was there all along get lost.

Without sockets, and in a time of its own that jumps to the next timer: so the real patience of hours costs nothing.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.discovery.reflector import ApiFailed, Pace, Reflector
from tests.jumping import JumpingLoop

NAMES = "abcdef"
ANCHOR = "anchor"
PACE = Pace()
ONE_LIST_SECONDS = PACE.relist * 1.2 + PACE.longest_pause + 1
"""A list that is due when a watch has just begun comes after one pause."""
Held = tuple[str, str, str]
"""(name, uid, what it says)."""


@dataclass
class Lies:
    """How often each of them is told, of all occasions."""

    fails: float = 0.2
    drops: float = 0.1
    repeats: float = 0.1
    swaps: float = 0.1
    garbles: float = 0.05
    cuts: float = 0.05


GARBLED = [
    b"garbage\n",
    b"\n",
    b"{}\n",
    b"null\n",
    b'{"type":"ADDED"}\n',
    b'{"type":"ADDED","object":{"metadata":{}}}\n',
    b'{"type":"STRANGE","object":{"metadata":{}}}\n',
    b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"1"}}}\n',
    b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"999999"}}}\n',
    b'{"type":"ERROR","object":{"code":410,"reason":"Expired"}}\n',
    b'{"type":"ERROR","object":{"code":500}}\n',
    b'{"type":"ERROR","object":{"code":429,"details":{"retryAfterSeconds":7}}}\n',
    b'{"type":"ERROR","object":null}\n',
]
BAD_PAGES = [b"", b"{", b"[]", b"{}", b"null", b'{"kind":"Status","code":500}', b"\xff"]
FAILURES = [ApiFailed(0, "away"), ApiFailed(410, "gone"), ApiFailed(500, "broken"), ApiFailed(429, "busy", 20.0)]


@dataclass
class Lying:
    """The API server and its cluster. See `gateway.discovery.reflector.PodsApi`."""

    rng: Random
    lies: Lies
    version: int = 100
    pods: dict[str, tuple[str, int]] = field(default_factory=dict)
    """uid, and the version of the last change."""
    log: list[tuple[int, bytes]] = field(default_factory=list)
    kept_from: int = 0
    honest: bool = False
    uids: int = 0
    _written: asyncio.Event = field(default_factory=asyncio.Event)
    _backup: tuple[int, dict[str, tuple[str, int]], list[tuple[int, bytes]]] | None = None

    def truth(self) -> set[Held]:
        return {(name, uid, str(version)) for name, (uid, version) in self.pods.items()}

    # What happens in the cluster.

    def change(self, name: str) -> None:
        self.version += self.rng.randint(1, 3)
        kind = "MODIFIED" if name in self.pods else "ADDED"
        if kind == "ADDED":
            self.uids += 1
        uid = self.pods[name][0] if name in self.pods else f"uid-{self.uids}"
        self.pods[name] = (uid, self.version)
        self._write(kind, name)

    def delete(self, name: str) -> None:
        if name in self.pods:
            self.version += self.rng.randint(1, 3)
            self.pods[name] = (self.pods[name][0], self.version)
            self._write("DELETED", name)
            del self.pods[name]

    def replace(self, name: str) -> None:
        self.delete(name)
        self.change(name)

    def lose(self, name: str) -> None:
        """Gone without an event."""
        self.pods.pop(name, None)

    def expire(self, name: str) -> None:
        self.kept_from = self.version

    def keep(self, name: str) -> None:
        self._backup = (self.version, dict(self.pods), list(self.log))

    def restore(self, name: str) -> None:
        """Back to what was kept: versions go backwards, and are given anew to other things."""
        if self._backup is not None:
            self.version, self.pods, self.log = self._backup[0], dict(self._backup[1]), list(self._backup[2])
            self.kept_from = min(self.kept_from, self.version)

    def _write(self, kind: str, name: str) -> None:
        line = {"type": kind, "object": self._object(name)}
        self.log.append((self.version, json.dumps(line).encode() + b"\n"))
        self._written.set()
        self._written = asyncio.Event()

    def _object(self, name: str) -> dict[str, Any]:
        uid, version = self.pods[name]
        metadata = {"name": name, "uid": uid, "resourceVersion": str(version), "labels": {"says": str(version)}}
        return {"metadata": metadata}

    # What is asked of it.

    def _lies(self, share: float) -> bool:
        return not self.honest and self.rng.random() < share

    async def list_page(self, token: str) -> bytes:
        await asyncio.sleep(0.01)
        if self._lies(self.lies.fails):
            await asyncio.sleep(self.rng.choice((0.0, 15.0)))
            raise self.rng.choice(FAILURES)
        if self._lies(self.lies.fails):
            return self.rng.choice(BAD_PAGES)
        # Each page is of another moment, which a real server does not do; what came between, the watch tells.
        version, after = token.split("/") if token else (str(self.version), "")
        names = sorted(name for name in self.pods if name > after)
        more = f"{version}/{names[2]}" if len(names) > 3 else ""
        metadata = {"resourceVersion": version, "continue": more}
        items = [self._object(name) for name in names[:3]]
        return json.dumps({"kind": "PodList", "metadata": metadata, "items": items}).encode()

    @asynccontextmanager
    async def watch(self, version: str, seconds: int) -> AsyncIterator[AsyncIterator[bytes]]:
        await asyncio.sleep(0.01)
        if self._lies(self.lies.fails):
            raise self.rng.choice(FAILURES)
        yield self._events(int(version), seconds)

    async def _events(self, version: int, seconds: int) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        ends_at, beat_at = loop.time() + seconds, loop.time() + 60
        if version < self.kept_from:
            yield b'{"type":"ERROR","object":{"code":410,"reason":"Expired"}}\n'
            return
        while loop.time() < ends_at:
            news = [(at, line) for at, line in self.log if at > version]
            if news:
                version = news[-1][0]
            for piece in self._told([line for _, line in news]):
                if piece is None:
                    raise ApiFailed(0, "cut")
                yield piece
            written = self._written
            try:
                async with asyncio.timeout_at(min(ends_at, beat_at)):
                    await written.wait()
            except TimeoutError:
                beat_at = loop.time() + 60
                # A watch from the future has no bookmarks.
                if version <= self.version and not self._lies(self.lies.drops):
                    told = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}
                    yield json.dumps(told).encode() + b"\n"

    def _told(self, lines: list[bytes]) -> Iterator[bytes | None]:
        """The lines with lies, in pieces of any size; None: cut here."""
        told: list[bytes] = []
        for line in lines:
            if self._lies(self.lies.drops):
                continue
            told += [line] * (2 if self._lies(self.lies.repeats) else 1)
            if len(told) > 1 and self._lies(self.lies.swaps):
                told[-2:] = told[:-3:-1]
            if self._lies(self.lies.garbles):
                told.append(self.rng.choice(GARBLED))
        data = b"".join(told)
        while data:
            size = self.rng.randint(1, 200)
            if self._lies(self.lies.cuts):
                yield None
            yield data[:size]
            data = data[size:]


def read(told: Mapping[str, Any]) -> Held:
    metadata = told["metadata"]
    return (metadata["name"], metadata["uid"], metadata["labels"]["says"])


Operation = tuple[str, str, float]
"""What happens, to which pod, and how many seconds later the next thing does."""

OPERATIONS: st.SearchStrategy[Operation] = st.tuples(
    st.sampled_from(["change", "change", "change", "delete", "replace", "lose", "expire", "keep", "restore"]),
    st.sampled_from(NAMES),
    st.sampled_from([0.0, 0.0, 0.05, 1.0, 20.0, 100.0]),
)


async def follow_a_liar(operations: list[Operation], rng: Random, lies: Lies) -> None:
    loop = asyncio.get_running_loop()
    api = Lying(rng, lies)
    for name in (ANCHOR, "a", "b"):
        api.change(name)
    api.keep("")
    lost: list[list[Held]] = []
    relists: list[str] = []

    def look() -> None:
        if ANCHOR not in {name for name, _, _ in reflector.held()}:
            lost.append(reflector.held())

    reflector: Reflector[Held] = Reflector("pods", api, read, look, relists.append, loop.time, rng.random)
    task = asyncio.create_task(reflector.run())
    try:
        for what, name, pause in operations:
            getattr(api, what)(name)
            await asyncio.sleep(pause)
        api.honest = True
        await asyncio.sleep(ONE_LIST_SECONDS)
        assert not task.done(), task.result()
        assert set(reflector.held()) == api.truth()
        assert reflector.stale_seconds() == 0 or len(relists) > 1
        # From here on each change is heard.
        for name in NAMES:
            api.replace(name)
            await asyncio.sleep(PACE.longest_retry_after)
            assert set(reflector.held()) == api.truth()
        assert lost == []
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of troubles make thousands of lines."""
    log = logging.getLogger("poolgate.discovery")
    before = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(before)


@settings(max_examples=200)
@given(st.lists(OPERATIONS, max_size=40), st.integers(0, 1 << 32), st.sampled_from([0.1, 1.0, 3.0]))
def test_what_is_held_is_what_there_is_once_the_server_is_honest(
    operations: list[Operation], seed: int, how_much: float
) -> None:
    lies = Lies(*(share * how_much for share in (0.2, 0.1, 0.1, 0.1, 0.05, 0.05)))
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(follow_a_liar(operations, Random(seed), lies))


@settings(max_examples=50)
@given(st.lists(OPERATIONS.filter(lambda told: told[0] in ("change", "delete", "replace", "expire")), max_size=40))
def test_before_an_honest_server_every_change_is_heard_at_once(operations: list[Operation]) -> None:
    async def follow() -> None:
        loop = asyncio.get_running_loop()
        rng = Random(1)
        api = Lying(rng, Lies(), honest=True)
        api.change("a")
        relists: list[str] = []
        reflector: Reflector[Held] = Reflector("pods", api, read, lambda: None, relists.append, loop.time, rng.random)
        task = asyncio.create_task(reflector.run())
        try:
            await asyncio.sleep(0.1)
            for what, name, pause in operations:
                getattr(api, what)(name)
                await asyncio.sleep(pause)
                await asyncio.sleep(0.05)
                assert set(reflector.held()) == api.truth()
            assert set(relists) <= {"start", "periodic"}
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(follow())
