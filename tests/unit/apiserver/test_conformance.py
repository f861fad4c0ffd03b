"""The stand-in against recordings of kube-apiserver 1.36.2: the recorded request, the same state, the same answer.

Each scene brings the stand-in to the state and the very resourceVersion that its recording shows, sends the recorded
bytes, lets happen what happened, and compares the status line, the headers and their order, every event and object with
the order of its fields, and how the answer ended. What is not compared, because it differs by nature:

- uids (only which objects share one), times (only that they are times), Audit-Id, Date, the ids of flow schemas;
- managedFields: who wrote which field depends on the writers; a real one merges them, the stand-in keeps its first;
- sizes of chunks, which follow from managedFields and from timing; the rule behind them has its own test below;
- moments: the recorded lulls are skipped, and the server's own times (bookmarks, timeoutSeconds) are moved by hand;
- the gzip stream's bytes: its content is compared.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.apiserver.access import Account, service_account
from tests.apiserver.cluster import Cluster, Pod
from tests.apiserver.hearing import Caller, Heard, hear, normalised
from tests.apiserver.http import GoBuffer
from tests.apiserver.log import Log
from tests.apiserver.replay import Recording
from tests.apiserver.server import ADMIN_TOKEN, ApiServer

ZONE = {"app": "vllm", "topology.kubernetes.io/zone": "z1"}


def at(cluster: Cluster, version: int) -> Cluster:
    """The next write will have this version, as in the recording."""
    cluster.log.version = version - 1
    return cluster


def life_of_vllm_a(cluster: Cluster) -> None:
    """Recording 02: 211 to 223."""
    pod = at(cluster, 211).create("vllm-a", "cap", annotations={"gw/model": "llama"})
    pod.start()
    pod.run("127.0.0.2")
    pod.become_ready()
    pod.annotate({"gw/model": "llama,lora-1"})
    at(cluster, 217)
    pod.become_unready()
    at(cluster, 219)
    pod.become_ready()
    pod.delete()
    pod.become_unready()
    pod.kill()


def ready_vllm_b(cluster: Cluster) -> Pod:
    pod = at(cluster, 224).create("vllm-b", "cap")
    pod.become_ready("127.0.0.3")
    return pod


def label_leaves_and_enters(cluster: Cluster) -> None:
    """Recording 03: 227 to 231."""
    pod = Pod(cluster, "cap", "vllm-b")
    at(cluster, 227)
    pod.relabel(app="other")
    pod.relabel(app="vllm")
    cluster.create("other", "cap").kill()


def as_of_231(cluster: Cluster) -> None:
    ready_vllm_b(cluster)
    label_leaves_and_enters(cluster)


def as_of_240(cluster: Cluster) -> None:
    life_of_vllm_a(cluster)
    as_of_231(cluster)
    at(cluster, 236).create("tmp1", "cap").kill()
    cluster.log.version = 240


def five_pages(cluster: Cluster) -> None:
    at(cluster, 264)
    for number in range(5):
        cluster.create(f"page-{number}", "cap")


def thousand_pods(cluster: Cluster) -> None:
    """Recording 12 shows the first 200, each at the version of its last change."""
    shown = {pod["metadata"]["name"]: pod for pod in json.loads(heard_of("12-list-gzip").plain_body)["items"]}
    cluster.log.version = 1000
    for number in range(1000):
        name = f"p{number:04}"
        annotations = shown[name]["metadata"]["annotations"] if name in shown else {}
        cluster.create(name, "perf", labels=ZONE, annotations=annotations)
    for pod in sorted(shown.values(), key=lambda pod: int(pod["metadata"]["resourceVersion"])):
        at(cluster, int(pod["metadata"]["resourceVersion"]))
        Pod(cluster, "perf", pod["metadata"]["name"]).become_ready(pod["status"]["podIP"])
    cluster.log.version = 11735


def z_pods(cluster: Cluster) -> None:
    at(cluster, 11733)
    for number in range(3):
        cluster.create(f"z{number}", "cap", labels=ZONE)


def as_of_11785(cluster: Cluster) -> None:
    at(cluster, 11731).create("x1", "cap", labels=ZONE).become_ready("127.0.0.5")
    z_pods(cluster)
    cluster.log.version = 11785


def forgotten(cluster: Cluster) -> None:
    as_of_11785(cluster)
    cluster.log.expire()


def nothing(cluster: Cluster) -> None:
    """An empty cluster; the scene's version says the rest."""


async def no_more(server: ApiServer, caller: Caller) -> None:
    """Nothing happens while the answer runs."""


async def lives_vllm_a(server: ApiServer, caller: Caller) -> None:
    life_of_vllm_a(server.cluster)


async def leaves_and_enters(server: ApiServer, caller: Caller) -> None:
    label_leaves_and_enters(server.cluster)


async def bookmarks(server: ApiServer, caller: Caller) -> None:
    """Recording 06: two each minute, one before the end; other kinds move the version."""
    for count, (seconds, version) in enumerate(((60, 325), (60, 425), (8.9, 441)), 1):
        server.log.version = version
        server.clock.advance(seconds)
        await caller.until(lambda heard, count=count: len(heard.lines) == count)  # type: ignore[misc]  # its default
    server.clock.advance(2)


async def big_pod(server: ApiServer, caller: Caller) -> None:
    at(server.cluster, 281).create("big", "cap", annotations={"blob": "x" * 250_000}, node="").kill()


async def is_terminated(server: ApiServer, caller: Caller) -> None:
    await caller.until(lambda heard: len(heard.lines) == 3)
    server.terminate()
    Pod(server.cluster, "cap", "z0").kill()


async def is_killed(server: ApiServer, caller: Caller) -> None:
    await server.kill()


async def rolls_over(server: ApiServer, caller: Caller) -> None:
    """Recording 20: pods of a Deployment come, one goes gracefully, the others at once."""
    cluster = server.cluster

    def created(version: int, name: str, ready_at: int, ip: str, unready_first: bool = False) -> Pod:
        pod = at(cluster, version).create(name, "es3", labels=ZONE)
        at(cluster, ready_at)
        if unready_first:
            pod.run(ip)
            at(cluster, 568)
        pod.become_ready(ip)
        return pod

    p1 = created(564, "p1", 565, "10.244.0.2", unready_first=True)
    p2 = created(572, "p2", 573, "10.244.0.3")
    for version, change in ((577, p1.delete), (580, p1.become_unready), (582, p1.kill)):
        at(cluster, version)
        change()
    rest = [
        created(586, "q0", 587, "10.244.1.1"),
        created(588, "q1", 591, "10.244.1.2"),
        created(593, "q2", 595, "10.244.1.3"),
    ]
    for pod, marked, gone in zip([p2, *rest], (599, 603, 607, 611), (600, 604, 609, 612), strict=True):
        at(cluster, marked)
        pod.delete(grace=0)
        at(cluster, gone)
        pod.vanish()


def advances(seconds: float) -> Callable[[ApiServer, Caller], Awaitable[None]]:
    """Time passes once the answer, if it is a watch, has begun."""

    async def during(server: ApiServer, caller: Caller) -> None:
        server.clock.advance(seconds)

    return during


@dataclass(frozen=True)
class Scene:
    """`version`: the cluster's newest when the request comes."""

    version: int
    before: Callable[[Cluster], None] = nothing
    during: Callable[[ApiServer, Caller], Awaitable[None]] = no_more
    accounts: Mapping[str, Account] = field(default_factory=lambda: {ADMIN_TOKEN: Account("admin")})
    waits: bool = True
    """For the request to be taken before `during` happens."""


SCENES = {
    "01-list-empty": Scene(210),
    "02-watch-pod-lifecycle": Scene(210, during=lives_vllm_a),
    "03-watch-label-leaves-and-enters-selector": Scene(
        226, lambda cluster: void(ready_vllm_b(cluster)), leaves_and_enters
    ),
    "04-watch-no-rv-synthetic-added": Scene(231, as_of_231, advances(3)),
    "05-watchlist-sendInitialEvents": Scene(233, as_of_231, advances(4)),
    "06-watch-idle-bookmarks-130s": Scene(284, during=bookmarks),
    "07-watch-from-rv-1-too-old": Scene(240, as_of_240, advances(3)),
    "07b-list-exact-compacted": Scene(240, as_of_240),
    "07c-watch-future-rv": Scene(240, as_of_240, advances(3)),
    "07d-list-future-rv": Scene(240, as_of_240, advances(3)),
    "08a-list-limit2": Scene(268, five_pages),
    "08b-list-continue": Scene(268, five_pages),
    "09a-401-bad-token": Scene(268),
    "09b-403-watch-no-rbac": Scene(268, accounts={"REDACTED": service_account("elsewhere")}),
    "10-watch-250KB-line": Scene(280, during=big_pod),
    "11-watch-gzip": Scene(284, during=advances(2)),
    "12-list-gzip": Scene(11735, thousand_pods),
    "14-watch-apiserver-sigterm": Scene(11735, z_pods, is_terminated),
    "15-watch-apiserver-sigkill": Scene(11756, during=is_killed),
    "16-watch-410-gone": Scene(11785, forgotten),
    "17-list-exact-410": Scene(11785, forgotten),
    "18-list-continue-expired-410": Scene(11785, forgotten),
    "19-watchlist-stale-rv": Scene(11785, forgotten, advances(3)),
    "20-pods-watch-same-time": Scene(563, during=rolls_over),
}


def void(_: object) -> None:
    """For a state whose pod is of no interest."""


def heard_of(name: str) -> Heard:
    recording = Recording.load(name)
    return hear(recording.came, recording.closed)


def told(heard: Heard) -> list[Any]:
    """The events, or the one object, with the order of all fields."""
    if heard.header("Transfer-Encoding") and not heard.plain_body.startswith(b'{"kind"'):
        return [json.dumps(event) for event in normalised(heard.events)]
    return [json.dumps(normalised(json.loads(heard.plain_body)))]


def signed(heard: Heard) -> list[tuple[str, str]]:
    own = ("Audit-Id", "Date", "X-Kubernetes-Pf-Flowschema-Uid", "X-Kubernetes-Pf-Prioritylevel-Uid")
    return [(name, "its own" if name in own else value) for name, value in heard.headers]


@pytest.mark.parametrize("name", SCENES)
async def test_the_answer_is_the_recorded_one(name: str) -> None:
    scene, recording, expected = SCENES[name], Recording.load(name), heard_of(name)
    cluster = Cluster(Log(others=0))
    scene.before(cluster)
    cluster.log.version = scene.version
    async with ApiServer(cluster, accounts=scene.accounts) as server, await Caller.connect(server.port) as caller:
        caller.send(recording.sent)
        await server.until(lambda: len(server.requests) == 1)
        if b"watch=1" in recording.sent and expected.status_line == "HTTP/1.1 200 OK":
            await caller.until(lambda heard: bool(heard.status_line))
        await scene.during(server, caller)
        if expected.ending == "open":
            heard = await caller.until(lambda heard: len(heard.lines) >= len(expected.lines))
        else:
            heard = await caller.whole()
    assert heard.status_line == expected.status_line
    assert signed(heard) == signed(expected)
    assert told(heard) == told(expected)
    assert heard.ending == expected.ending


def test_every_recording_has_its_scene() -> None:
    assert Recording.names() == sorted(SCENES)


async def test_what_sigterm_leaves_open_ends_cleanly_after_a_minute_without_a_word() -> None:
    """Recording 14 stops before that; the server's own log shows it, three times."""
    cluster = Cluster(Log(others=0))
    z_pods(cluster)
    async with ApiServer(cluster) as server, await Caller.connect(server.port) as caller:
        caller.send(Recording.load("14-watch-apiserver-sigterm").sent)
        await is_terminated(server, caller)
        with pytest.raises(ConnectionRefusedError):
            await Caller.connect(server.port)
        server.clock.advance(59)
        await server.until(lambda: len(server.watches) == 1)
        assert caller.heard.ending == "open"
        server.clock.advance(1)
        heard = await caller.whole()
    assert (len(heard.lines), heard.ending) == (3, "whole")


def test_chunks_are_cut_as_the_real_server_cut_the_same_bytes() -> None:
    """A list is written item by item; a burst of events is flushed when no more is pending."""
    page = heard_of("08a-list-limit2")
    first = page.body.index(b'{"metadata":{"name":"page-0"')
    second = page.body.index(b',{"metadata":{"name":"page-1"')
    buffer = GoBuffer()
    pieces = (page.body[:first], page.body[first:second], page.body[second:-3], page.body[-3:])
    chunks = [chunk for piece in pieces for chunk in buffer.write(piece)] + buffer.flush()
    assert tuple(map(len, chunks)) == page.chunk_sizes

    burst = heard_of("07-watch-from-rv-1-too-old")
    chunks = [chunk for line in burst.lines[:4] for chunk in buffer.write(line + b"\n")] + buffer.flush()
    assert tuple(map(len, chunks)) == burst.chunk_sizes[: len(chunks)]
