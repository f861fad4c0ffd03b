"""Whatever happens to a cluster and to its API server, when it is quiet again the source sees the pods that there are.

Over sockets, against the stand-in API server. No full list is due meanwhile: it is the protocol alone that must hold.
What a lying server does is in `test_discovery_reflector`.
"""

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.fleet import Pod
from gateway.discovery.pods import POOL_LABEL, PORT_ANNOTATION, Refused, Rules, pods_of
from gateway.discovery.reflector import Pace
from tests.apiserver import cluster, statuses
from tests.apiserver.http import Delivery
from tests.apiserver.log import Log
from tests.apiserver.server import ApiServer, CutBody
from tests.apiserver.watching import bookmark
from tests.discovering import CHAT, NAMESPACE, Followed, followed

NAMES = ("a", "b", "c", "d")
PACE = Pace(silence=0.25, quiet=0.2, first_pause=0.01, longest_pause=0.05, longest_retry_after=0.05)


class Story:
    """A server, and what may happen to it. Each method is one thing that happens, to the pod of that name if to any."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.backup: Log = server.log.backup()
        self.listens = True

    def pod(self, name: str) -> cluster.Pod | None:
        held = (NAMESPACE, name) in self.server.log.pods
        return cluster.Pod(self.server.cluster, NAMESPACE, name) if held else None

    def to_pod(self, name: str, does: Callable[[cluster.Pod], None]) -> None:
        if (pod := self.pod(name)) is not None:
            does(pod)

    async def create(self, name: str) -> None:
        if self.pod(name) is None:
            self.server.cluster.create(name, NAMESPACE, labels=CHAT)

    async def create_ready(self, name: str) -> None:
        if self.pod(name) is None:
            self.server.cluster.create_ready(name, NAMESPACE, labels=CHAT)

    async def create_elsewhere(self, name: str) -> None:
        if ("elsewhere", name) not in self.server.log.pods:
            self.server.cluster.create_ready(name, "elsewhere", labels=CHAT)

    async def run(self, name: str) -> None:
        self.to_pod(name, lambda pod: pod.run())

    async def become_ready(self, name: str) -> None:
        self.to_pod(name, lambda pod: pod.become_ready())

    async def become_unready(self, name: str) -> None:
        self.to_pod(name, lambda pod: pod.become_unready())

    async def evict(self, name: str) -> None:
        self.to_pod(name, lambda pod: pod.evict())

    async def delete(self, name: str) -> None:
        self.to_pod(name, lambda pod: pod.delete())

    async def vanish(self, name: str) -> None:
        self.to_pod(name, lambda pod: pod.vanish())

    async def replace(self, name: str) -> None:
        self.to_pod(name, lambda pod: pod.replace())

    async def take_label(self, name: str) -> None:
        self.to_pod(name, lambda pod: pod.relabel(**{POOL_LABEL: None}))

    async def give_label(self, name: str) -> None:
        self.to_pod(name, lambda pod: pod.relabel(**{POOL_LABEL: "other"}))

    async def annotate(self, name: str) -> None:
        self.to_pod(name, lambda pod: pod.annotate({PORT_ANNOTATION: "8001,8002"}))

    async def annotate_badly(self, name: str) -> None:
        self.to_pod(name, lambda pod: pod.annotate({PORT_ANNOTATION: "none"}))

    async def write_elsewhere(self, name: str) -> None:
        self.server.log.write_elsewhere(100)

    async def expire(self, name: str) -> None:
        self.server.log.expire()

    async def end_watches(self, name: str) -> None:
        self.server.end_watches()

    async def kill(self, name: str) -> None:
        await self.server.kill()
        self.listens = False

    async def start(self, name: str) -> None:
        if not self.listens:
            await self.server.start()
        self.listens = True

    async def restart(self, name: str) -> None:
        await self.server.restart()
        self.listens = True

    async def terminate(self, name: str) -> None:
        """Open watches are mute from here on, and the next server listens."""
        self.server.terminate()
        await self.server.start()
        self.listens = True

    async def freeze(self, name: str) -> None:
        self.server.freeze()

    async def thaw(self, name: str) -> None:
        self.server.thaw()

    async def keep(self, name: str) -> None:
        self.backup = self.server.log.backup()

    async def restore(self, name: str) -> None:
        await self.server.restore(self.backup.backup())
        self.listens = True

    async def say_garbage(self, name: str) -> None:
        self.server.say(b"garbage\n")

    async def say_half_a_line(self, name: str) -> None:
        self.server.say(b'{"type":"ADD')

    async def say_bookmark(self, name: str) -> None:
        self.server.say(bookmark(self.server.log.version + 1000))

    async def say_error(self, name: str) -> None:
        self.server.say_error(500, "InternalError", "etcd is away")

    async def refuse_a_list(self, name: str) -> None:
        self.server.answer_with(statuses.internal_error(), "list")

    async def cut_a_list(self, name: str) -> None:
        self.server.answer_with(CutBody(200), "list")

    async def refuse_a_watch(self, name: str) -> None:
        self.server.answer_with(statuses.failed_watch(), "watch")

    async def cut_a_watch(self, name: str) -> None:
        self.server.answer_with(CutBody(300), "watch")

    async def split_bytes(self, name: str) -> None:
        self.server.delivery = Delivery(chunk_bytes=97, piece_bytes=61)


def happenings() -> list[str]:
    return sorted(name for name, held in vars(Story).items() if inspect.iscoroutinefunction(held))


OPERATIONS = st.tuples(
    st.sampled_from(happenings()),
    st.sampled_from(NAMES),
    st.sampled_from([0, 0, 1, 5, 20, 100]),  # so many turns of the loop pass until the next
)


def meaning(server: ApiServer) -> tuple[set[Pod], set[str]]:
    """The pods that there are, and the names of those refused."""
    pods: set[Pod] = set()
    refused: set[str] = set()
    for (namespace, name), held in server.log.pods.items():
        if namespace == NAMESPACE and POOL_LABEL in held["metadata"].get("labels", {}):
            try:
                pods.update(pods_of(held, Rules(NAMESPACE)))
            except Refused:
                refused.add(name)
    return pods, refused


def seen_by(seen: Followed) -> tuple[set[Pod], set[str]]:
    sighting = seen.source.seen()
    assert len(set(sighting.pods)) == len(sighting.pods)
    return set(sighting.pods), {pod.name for pod in sighting.refused}


async def tell(operations: list[tuple[str, str, int]]) -> None:
    async with ApiServer() as server, followed(server, pace=PACE) as seen:
        story = Story(server)
        for what, name, turns in operations:
            await getattr(story, what)(name)
            for _ in range(turns):
                await asyncio.sleep(0)
        server.heal()
        server.thaw()
        await story.start("")
        await seen.until(lambda: seen_by(seen) == meaning(server), 5.0)
        # And it stays so: what comes from here on is heard.
        await story.create_ready("a")
        await story.replace("a")
        await seen.until(lambda: seen_by(seen) == meaning(server), 5.0)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of troubles make thousands of lines."""
    log = logging.getLogger("poolgate.discovery")
    before: Any = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(before)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OPERATIONS, min_size=5, max_size=40))
def test_when_all_is_quiet_the_source_sees_the_pods_that_there_are(operations: list[tuple[str, str, int]]) -> None:
    asyncio.run(tell(operations))
