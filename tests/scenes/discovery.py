"""What befalls the news of pods, and what pods claim to be: requests go to those there are, and to nobody else."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

import httpx2

from gateway.balancing.health import EJECTION_SECONDS, JITTER_SECONDS, RAMP_SECONDS
from gateway.cli.process import LINGER_SECONDS, Stop, drain
from gateway.core.fleet import PodState
from gateway.discovery.kubernetes import KubernetesSource
from gateway.discovery.pods import MODELS_ANNOTATION, PORT_ANNOTATION
from gateway.discovery.reflector import Pace
from gateway.discovery.source import Given
from gateway.parts import THE_USUAL
from tests.apiserver import statuses
from tests.apiserver.watching import bookmark
from tests.discovering import OddPod, answering_as_redis, appear, asked, fleet_sees, watched
from tests.fakes import MODELS, STREAM_HEAD, Hang, Step, chunk
from tests.integration.balancing.scenes import FAILED, SIDECAR
from tests.running import Running
from tests.scenes import says
from tests.scenes.client import Client
from tests.scenes.defences.discovery import (
    ALLOWED_MODELS,
    EJECTION,
    FAILURES_COUNT,
    FIRST_LIST,
    FULL_LIST,
    LAST_KNOWN,
    LAST_WORDS,
    LEAST_WORK,
    LONGER_EACH_TIME,
    MODEL_NAMES,
    MODELS_FIRST,
    NOBODY_IS_AWAITED,
    NOBODY_TO_WAIT_FOR,
    ONE_OWNER,
    PANIC,
    POD_ADDRESSES,
    RESERVED_ADDRESSES,
    RUNNING_STREAMS,
    SHORT_LISTINGS,
    SILENCE,
    SLOW_START,
    STALENESS,
    TERMINATING,
    TOLD_TO_LEAVE,
    TRIES_AGAIN,
    VERSIONS,
    WHOLE_STATE,
    cluster_source,
)
from tests.scenes.promises import Promise
from tests.scenes.scene import SceneFailed, Without, expect, scene
from tests.scenes.stage import Pod, Stage

QUICK = THE_USUAL._replace(source=cluster_source())
TOLD_POD = {"debug": True}
"""Of a caller: its answers name the pod."""


def ready(gateway: Running) -> set[str]:
    """The names of the pods that get requests now."""
    return {pod.name for pod in gateway.gateway.fleet.value.pods if pod.state is PodState.READY}


def _listed(gateway: Running) -> set[str]:
    """The names of all pods that there are."""
    return {pod.name for pod in gateway.gateway.fleet.value.pods}


async def _published(stage: Stage, gateway: Running) -> None:
    """Wait until requests go to the pods that the source tells of now."""
    source = gateway.gateway.source
    await stage.until(
        lambda: _listed(gateway) == {pod.name for pod in source.seen().pods}, "what the source tells is not published"
    )


def _failures(gateway: Running) -> int:
    """How often in a row the API server was asked in vain."""
    source = gateway.gateway.source
    assert isinstance(source, KubernetesSource)
    return sum(reflector._failures for reflector in source._reflectors)


async def served_by(stage: Stage, times: int = 1, model: str = "m") -> set[str]:
    """The pods that so many requests went to, one after another. All must succeed."""
    client = await stage.client()
    names = set()
    for _ in range(times):
        await client.ask(model=model)
        names.add((await client.expect(200)).headers["x-poolgate-pod"])
    return names


# The API server's troubles.


@scene(
    "F40",
    "A pod whose deletion nobody heard of is gone with the next list",
    promise=Promise.DISCOVERY,
    without=(Without(FULL_LIST, red="the ghost is still there"),),
)
async def a_missed_deletion_is_mended(stage: Stage) -> None:
    server = await stage.api_server()
    stays, goes = await stage.some_pods(2)
    appear(server, "stays", stays)
    appear(server, "goes", goes)
    gateway = await stage.gateway_in(server, parts=QUICK)
    await fleet_sees(gateway, stays="ready", goes="ready")
    stage.step("a pod goes, and its event is lost")
    del server.log.pods["models", "goes"]
    server.say_error(410, "Expired", "too old resource version")
    await stage.until(lambda: ready(gateway) == {"stays"}, "the ghost is still there")
    expect(gateway.sample("poolgate_discovery_relists_total", reason="expired") >= 1, "no list was asked for")
    expect(await served_by(stage, 4) == {"stays"}, "the ghost was asked")


@scene(
    "F41",
    "A watch that expires, and a version that goes backwards, end in a full list, and the set is right again",
    promise=Promise.DISCOVERY,
    without=(
        Without(FULL_LIST, red="after a 410 in the watch the ghost is still there"),
        Without(VERSIONS, red="after a version of before the ghost is still there"),
    ),
)
async def an_old_version_ends_in_a_list(stage: Stage) -> None:
    server = await stage.api_server()
    appear(server, "stays", await stage.pod())
    gateway = await stage.gateway_in(server, parts=QUICK)

    def refuse_watches() -> None:
        # Each of them, until there was a list: between two tries a watch is asked for that nobody waits for long.
        server.answer_with(statuses.expired_list(), "watch", "models", times=None)
        server.end_watches()

    happens: dict[str, Callable[[], None]] = {
        "a 410 in the watch": lambda: server.say_error(410, "Expired", "too old resource version"),
        "a 410 instead of a watch": refuse_watches,
        "a version of before": lambda: server.say(bookmark(1)),
    }
    for told, happen in happens.items():
        appear(server, "ghost", await stage.pod())
        await stage.until(lambda: ready(gateway) == {"stays", "ghost"}, "a pod that came was not heard of")
        await watched(server)
        stage.step(told)
        del server.log.pods["models", "ghost"]
        happen()
        await stage.until(lambda: ready(gateway) == {"stays"}, f"after {told} the ghost is still there")
        server.heal()
    backup = server.log.backup()
    appear(server, "never-was", await stage.pod())
    await stage.until(lambda: "never-was" in ready(gateway), "a pod that came was not heard of")
    await server.restore(backup)
    await stage.until(lambda: ready(gateway) == {"stays"}, "a pod of before the backup is still there")
    expect(await served_by(stage, 4) == {"stays"}, "a ghost was asked")


@scene(
    "F41b",
    "While a full list is on its way the pods known stay in force: there is no empty set in between",
    promise=Promise.DISCOVERY,
    without=(Without(LAST_KNOWN, red="expected 200, 503 no_ready_pod came"),),
)
async def no_set_is_empty_in_between(stage: Stage) -> None:
    server = await stage.api_server()
    appear(server, "stays", await stage.pod())
    gateway = await stage.gateway_in(server, parts=QUICK)
    for failing in (statuses.internal_error(), statuses.too_many_requests(0), statuses.gateway_timeout(0)):
        lists = len(asked(server, "list"))
        server.answer_with(failing, "list", "models", times=None)
        server.say_error(410, "Expired", "too old resource version")
        await stage.until(lambda lists=lists: len(asked(server, "list")) > lists + 1, "no list was asked for")  # type: ignore[misc]
        await _published(stage, gateway)
        await served_by(stage)
        server.heal()
        await stage.until(lambda: gateway.sample("poolgate_discovery_stale_seconds") == 0, "it is not watched again")


@scene(
    "F42",
    "While the API server is frozen what was known serves, and is told to be stale",
    promise=Promise.DISCOVERY,
    without=(Without(STALENESS, red="nobody is told that the news is old"),),
)
async def old_news_is_told_to_be_old(stage: Stage) -> None:
    server = await stage.api_server()
    goes = appear(server, "goes", await stage.pod())
    appear(server, "stays", await stage.pod())
    gateway = await stage.gateway_in(server, parts=QUICK, pool={"policy": "round_robin"})
    server.freeze()
    goes.vanish()
    await stage.leap(Pace().quiet + 1)
    stale = gateway.sample("poolgate_discovery_stale_seconds")
    expect(stale > Pace().quiet, "nobody is told that the news is old")
    expect(await served_by(stage, 4) == {"stays", "goes"}, "what was known is not in force")
    server.thaw()
    await stage.until(lambda: ready(gateway) == {"stays"}, "the ghost is still there")
    await stage.until(
        lambda: gateway.sample("poolgate_discovery_stale_seconds") == 0, "the news is fresh, and not so told"
    )


@scene(
    "F42b",
    "A half-open watch, which is silent for ever, is given up within 90 seconds, and all is listed anew",
    promise=Promise.DISCOVERY,
    without=(Without(SILENCE, red="the ghost is still there"),),
)
async def a_mute_watch_is_given_up(stage: Stage) -> None:
    # That deadline is the loop's, not of the gateway's clock, which can leap: here it is shorter.
    expect(Pace().silence <= 90, "a silent watch is given up too late")
    server = await stage.api_server()
    goes = appear(server, "goes", await stage.pod())
    appear(server, "stays", await stage.pod())
    gateway = await stage.gateway_in(server, parts=THE_USUAL._replace(source=cluster_source(silence=0.2)))
    await stage.until(lambda: ready(gateway) == {"goes", "stays"}, "the pods were not heard of")
    server.terminate()
    await server.start()
    goes.vanish()
    await stage.until(lambda: ready(gateway) == {"stays"}, "the ghost is still there")
    await stage.until(
        lambda: gateway.sample("poolgate_discovery_relists_total", reason="silence") >= 1, "no list was asked for"
    )


async def readyz(gateway: Running) -> int:
    """What Kubernetes is told."""
    transport = httpx2.ASGITransport(gateway.gateway.ops)
    async with httpx2.AsyncClient(transport=transport, base_url="http://ops") as ops:
        return (await ops.get("/readyz")).status_code


@scene(
    "F43",
    "A gateway that starts while the API server is down waits for it, and is not ready before it has its pods",
    promise=Promise.DISCOVERY,
    without=(
        Without(FIRST_LIST, red="it is ready without a list"),
        Without(TRIES_AGAIN, red="it is never ready"),
    ),
)
async def a_gateway_waits_for_its_first_list(stage: Stage) -> None:
    server = await stage.api_server()
    appear(server, "a", await stage.pod())
    await server.kill()
    gateway = await stage.gateway_in(server, parts=QUICK, wait=False)
    await stage.until(lambda: "cannot be reached" in stage.logged.text, "nobody is told of the trouble")
    expect(await readyz(gateway) == 503, "it is ready without a list")
    await server.start()
    await stage.until(lambda: gateway.gateway.fleet.value.asked, "it is never ready")
    expect(await readyz(gateway) == 200, "it has its pods, and is not ready")
    await served_by(stage)


@scene(
    "F44",
    "An API server that is down for ten minutes costs no request, and is caught up with when it is back",
    promise=Promise.DISCOVERY,
    without=(Without(LAST_KNOWN, red="expected 200, 503 no_ready_pod came"),),
)
async def ten_minutes_without_news(stage: Stage) -> None:
    server = await stage.api_server()
    goes = appear(server, "goes", await stage.pod())
    appear(server, "stays", await stage.pod())
    source = cluster_source(longest_pause=0.1)
    gateway = await stage.gateway_in(server, parts=THE_USUAL._replace(source=source), pool={"policy": "round_robin"})
    await server.kill()
    await stage.until(lambda: "cannot be reached" in stage.logged.text, "nobody is told of the trouble")
    await stage.leap(600)
    await stage.until(lambda: _failures(gateway) > 3, "the API server is not asked again")
    await _published(stage, gateway)
    expect(await served_by(stage, 4) == {"goes", "stays"}, "what was known is not in force")
    expect(gateway.sample("poolgate_discovery_stale_seconds") > 599, "nobody is told that the news is old")
    expect(await readyz(gateway) == 200, "the gateway went with the API server")
    goes.vanish()
    appear(server, "comes", await stage.pod())
    await server.restart()
    await stage.until(lambda: ready(gateway) == {"comes", "stays"}, "it is not caught up with")
    expect(await served_by(stage, 4) == {"comes", "stays"}, "requests do not follow")


@scene(
    "F45",
    "A pod that is evicted, crashes, terminates or loses its address is out with that very event",
    promise=Promise.DISCOVERY,
    without=(Without(WHOLE_STATE, red="the pod that evicts is still given requests"),),
)
async def what_befalls_a_pod_takes_it_out(stage: Stage) -> None:
    server = await stage.api_server()
    appear(server, "stays", await stage.pod())
    befalls: dict[str, Callable[[Any], None]] = {
        "evicts": lambda pod: pod.evict(),
        "has-no-address": lambda pod: pod.set_status(podIP=None),
        "crashes": lambda pod: pod.crash(),
        "terminates": lambda pod: pod.delete(),
    }
    pods = {name: await stage.pod() for name in befalls}
    known = {name: appear(server, name, pod) for name, pod in pods.items()}
    gateway = await stage.gateway_in(server, parts=QUICK, pool={"policy": "round_robin"})
    for name, befall in befalls.items():
        befall(known[name])
        await stage.until(lambda name=name: name not in ready(gateway), f"the pod that {name} is still given requests")  # type: ignore[misc]
    expect(ready(gateway) == {"stays"}, "another pod went with it")
    expect(await served_by(stage, 6) == {"stays"}, "a pod that is out was asked")
    expect(not any(pod.requests for pod in pods.values()), "a pod that is out was asked")


@scene(
    "F47",
    "A pod whose list of models hangs holds up nobody: others come and go at once",
    promise=Promise.DISCOVERY,
    without=(Without(NOBODY_IS_AWAITED, red="the pod that comes waits for the one that hangs"),),
)
async def a_question_that_hangs_delays_nobody(stage: Stage) -> None:
    server = await stage.api_server()
    goes = appear(server, "goes", await stage.pod())
    appear(server, "stays", await stage.pod())
    gateway = await stage.gateway_in(server, parts=QUICK)
    hangs = await stage.enter(OddPod().list_models(MODELS))
    del hangs.answers["/v1/models"]
    appear(server, "hangs", hangs)
    await stage.until(lambda: "/v1/models" in hangs.asked, "the pod was not asked")
    appear(server, "comes", await stage.pod())
    await stage.until(lambda: "comes" in ready(gateway), "the pod that comes waits for the one that hangs")
    goes.vanish()
    await stage.until(lambda: "goes" not in ready(gateway), "the pod that goes waits for the one that hangs")
    expect(await served_by(stage, 6) <= {"stays", "comes"}, "a pod was asked that is gone")


# Roll-outs.


TALKING: tuple[Step, ...] = (STREAM_HEAD, *[step for _ in range(4) for step in (chunk(says.token()), 0.01)])
STREAM: tuple[Step, ...] = (*TALKING, chunk(says.finish()), chunk(says.usage()), chunk(says.DONE) + says.END)
CALLERS = 8


@dataclass
class Load:
    """What callers who stream all the time have come to."""

    gone: set[str] = field(default_factory=set)
    """Pods that must not be asked any more."""
    whole: int = 0
    sent_away: int = 0
    """Answers that told their client to connect anew."""
    over: bool = False

    async def call(self, connect: Callable[[], Awaitable[Client]]) -> None:
        client: Client | None = None
        while not self.over:
            try:
                client = client or await connect()
            except OSError:
                raise SceneFailed("a caller found nobody who listens") from None
            gone = set(self.gone)
            await client.ask(stream=True)
            came = await client.expect_stream()
            expect(came.headers["x-poolgate-pod"] not in gone, "a request was sent to a pod that goes")
            self.whole += 1
            if came.headers.get("connection") == "close":
                self.sent_away += 1
                client = None


@asynccontextmanager
async def calling(stage: Stage, connect: Callable[[], Awaitable[Client]]) -> AsyncIterator[Load]:
    """Callers all through the block; every answer must be whole."""
    load = Load()
    tasks = [asyncio.create_task(load.call(connect)) for _ in range(CALLERS)]
    try:
        await stage.until(lambda: load.whole >= CALLERS, "the callers get no answers")
        yield load
        load.over = True
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@scene(
    "F48",
    "A rolling restart of every pod under load cuts no stream, fails no request, and sends none to a pod that goes",
    promise=Promise.PODS,
    without=(
        Without(TERMINATING, red="a terminating pod is still given requests"),
        Without(RUNNING_STREAMS, red="expected a whole stream, it has an error"),
    ),
)
async def all_pods_restart_one_after_another(stage: Stage) -> None:
    server = await stage.api_server()
    go_on = asyncio.Event()
    go_on.set()
    waits: tuple[Step, ...] = (*TALKING, go_on, *STREAM[len(TALKING) :])
    old = {f"old-{place}": await stage.pod(*waits) for place in range(3)}
    known = {name: appear(server, name, pod) for name, pod in old.items()}
    gateway = await stage.gateway_in(server, parts=QUICK)
    async with calling(stage, stage.client) as load:
        for name, pod in old.items():
            appear(server, name.replace("old", "new"), await stage.pod(*STREAM))
            await stage.until(lambda: len(ready(gateway)) == 4, "a new pod gets no work")
            go_on.clear()
            await stage.until(lambda pod=pod: pod.works, "nothing runs at a pod that goes")  # type: ignore[misc]
            known[name].delete()
            await stage.until(lambda name=name: name not in ready(gateway), "a terminating pod is still given requests")  # type: ignore[misc]
            load.gone.add(name)
            known[name].vanish()
            await stage.until(lambda name=name: name not in _listed(gateway), "a pod that is gone is known still")  # type: ignore[misc]
            go_on.set()
            await stage.until(lambda pod=pod: not any(pod._open.values()), "what ran there never ended")  # type: ignore[misc]
            pod.refuse()
    expect({line["outcome"] for line in gateway.lines()} == {"completed"}, "a request ended in another way")


@dataclass
class Replica:
    """A gateway that listens at a port of its own, which it can close."""

    gateway: Running
    server: asyncio.Server

    @classmethod
    async def up(cls, stage: Stage, *pods: Pod, **settings: Any) -> "Replica":
        gateway = await stage.gateway(*pods, tenant=TOLD_POD, **settings)
        server = await asyncio.get_running_loop().create_server(gateway.gateway.edge.protocol, "127.0.0.1", 0)
        gateway.port = server.sockets[0].getsockname()[1]
        made = cls(gateway, server)
        return await stage.enter(aclosing(made))  # type: ignore[no-any-return]

    def told_to_go(self) -> "asyncio.Task[None]":
        """SIGTERM: the task is its drain."""
        stop = Stop()
        stop.ask(LINGER_SECONDS)
        return asyncio.create_task(drain(self.gateway.gateway, self.aclose, stop))

    async def aclose(self) -> None:
        """Stop listening."""
        self.server.close()


@scene(
    "F49",
    "A rolling restart of every replica under load: late comers are served and sent away, streams run to their end",
    promise=Promise.PODS,
    without=(Without(TOLD_TO_LEAVE, red="nobody was sent to another replica"),),
)
async def all_gateways_restart_one_after_another(stage: Stage) -> None:
    pods = [await stage.pod(*STREAM) for _ in range(2)]
    rotation = [await Replica.up(stage, *pods) for _ in range(2)]
    turns, on_the_way = cycle(range(6)), 0

    async def reached() -> Client:
        nonlocal on_the_way
        on_the_way += 1
        try:
            return await stage.client(rotation[next(turns) % len(rotation)].gateway)
        finally:
            on_the_way -= 1

    async with calling(stage, reached) as load:
        for old in list(rotation):
            rotation.append(await Replica.up(stage, *pods))
            before = load.sent_away
            draining = old.told_to_go()
            # Who balances has not heard of it yet: its clients come on.
            await stage.until(lambda before=before: load.sent_away > before + 2, "nobody was sent to another replica")  # type: ignore[misc]
            expect(await readyz(old.gateway) == 503, "a replica that goes says that it is ready")
            rotation.remove(old)
            await stage.until(lambda: not on_the_way, "a connection does not come about")
            await stage.swept()
            await stage.leap(LINGER_SECONDS)
            await stage.until(draining.done, "a replica that nobody uses does not end")
    outcomes = {line["outcome"] for replica in stage.gateways for line in replica.lines()}
    expect(outcomes == {"completed"}, "a request ended in another way")


@scene(
    "F49b",
    "A stream that outlives the drain's limit ends with an error event that says so, and the replica with it",
    promise=Promise.TRUTH,
    without=(Without(LAST_WORDS, red="a stream outlives the drain"),),
)
async def a_drain_has_an_end(stage: Stage) -> None:
    pod = await stage.pod(STREAM_HEAD, chunk(says.token()), Hang)
    replica = await Replica.up(stage, pod, server={"drain_seconds": 30})
    client = await stage.asks(stream=True)
    await stage.until(lambda: pod.requests, "the pod was not asked")
    draining = replica.told_to_go()
    await stage.leap(LINGER_SECONDS + 1)
    expect(not draining.done(), "the replica did not wait for what runs")
    await stage.leap(30)
    await stage.until(lambda: not stage.gateways[0].gateway.pipeline.active, "a stream outlives the drain")
    await client.expect_stream_error("gateway_draining")
    await stage.until(draining.done, "a replica that nobody uses does not end")
    await stage.until(pod.peer_left.is_set, "the pod works on for nobody")


# Pods that fail, differ, come and go.


def standing(gateway: Running, pod: Pod) -> Any:
    """How requests fare at a pod, as the gateway sees it."""
    (known,) = [each for each in gateway.gateway.fleet.value.pods if each.port == pod.port]
    return gateway.gateway.balancer.health_of(known.uid)


def seen_as(gateway: Running, *pods: Pod, state: PodState = PodState.READY) -> None:
    """These pods are in this state from now on."""
    source = gateway.gateway.source
    assert isinstance(source, Given)
    ports = [pod.port for pod in pods]
    is_ready = state is PodState.READY
    source.give(
        tuple(
            replace(each, state=state, askable=is_ready) if each.port in ports else each for each in source.seen().pods
        )
    )


async def ejected(stage: Stage, sick: Pod, *script: Step) -> None:
    """A pod plays this until it is ejected, and is well again. Its callers see nothing of it."""
    gateway = stage.gateways[-1]
    well, sick.scripts = sick.scripts, [script or (SIDECAR,)]
    client = await stage.client(gateway)
    for _ in range(30):
        if standing(gateway, sick).state == "ejected":
            break
        await client.ask()
        await client.expect(200)
    expect(standing(gateway, sick).state == "ejected", "a pod that always fails is not ejected")
    sick.scripts = well


@scene(
    "F51",
    "Where no pod is ready it is said at once, with when to come again",
    promise=Promise.PODS,
    without=(Without(NOBODY_TO_WAIT_FOR, red="expected 503 no_ready_pod: .* none came"),),
)
async def without_a_ready_pod_nobody_waits(stage: Stage) -> None:
    pods = await stage.some_pods(2)
    gateway = await stage.gateway(*pods)
    for state in (PodState.STARTING, PodState.DRAINING, PodState.ASLEEP):
        seen_as(gateway, *pods, state=state)
        await stage.until(lambda: not ready(gateway), "the pods are still there")
        for stream in (True, False):
            client = await stage.asks(stream=stream)
            came = await client.expect(503, "no_ready_pod")
            expect(int(came.headers["retry-after"]) > 0, "it is not said when to come again")
            expect((await stage.line())["queue_ms"] == 0, "it was held up")
    expect(not any(pod.requests for pod in pods), "a pod was asked")
    seen_as(gateway, *pods)
    await stage.until(lambda: ready(gateway), "the pods do not come back")
    await (await stage.asks()).expect(200)


@scene(
    "F52",
    "Of three pods one is ejected and one is not ready: the work is spread over both that listen, until all is well",
    promise=Promise.PODS,
    without=(Without(PANIC, red="all the work is on the last pod"),),
)
async def the_last_pod_is_not_left_alone(stage: Stage) -> None:
    pods = await stage.some_pods(3)
    gateway = await stage.gateway(*pods, tenant=TOLD_POD)
    await ejected(stage, pods[0])
    seen_as(gateway, pods[1], state=PodState.STARTING)
    await stage.until(lambda: len(ready(gateway)) == 2, "the pod is still ready")
    expect(len(await served_by(stage, 8)) == 2, "all the work is on the last pod")
    expect(gateway.sample("poolgate_panic", pool="chat") == 1, "nobody is told of it")
    seen_as(gateway, pods[1])
    await stage.until(lambda: gateway.sample("poolgate_panic", pool="chat") == 0, "it never ends")
    await stage.leap(EJECTION_SECONDS + JITTER_SECONDS)
    await stage.until(lambda: standing(gateway, pods[0]).state == "probing", "the ejected pod does not come back")
    expect(len(await served_by(stage, 6)) == 3, "it is not as before")


@scene(
    "F53",
    "A pod that comes and goes is out ever longer, and no caller notices",
    promise=Promise.PODS,
    without=(Without(LONGER_EACH_TIME, red="the pod is not out longer than before"),),
)
async def a_flapping_pod_is_out_ever_longer(stage: Stage) -> None:
    pods = await stage.some_pods(3)
    gateway = await stage.gateway(*pods)
    flaps, before = pods[1], 0.0
    for _ in range(4):
        flaps.die()
        await ejected(stage, flaps)
        out_for = standing(gateway, flaps).seconds_left
        expect(out_for > before + EJECTION_SECONDS / 2, "the pod is not out longer than before")
        before = out_for
        await flaps.start()
        await stage.leap(out_for)
        await stage.until(lambda: standing(gateway, flaps).state == "probing", "the pod does not come back")
        client = await stage.client()
        for _ in range(3):
            await client.ask()
            await client.expect(200)
        expect(standing(gateway, flaps).state == "returning", "its answer does not count")


SENT = 120
LONG_TURNS = 200
"""Of the loop: so long a pod works that does not fail at once."""


async def keeps_asking(client: Client, times: int, enough: Callable[[], bool] = lambda: False) -> int:
    """One request after another, whatever comes of them. How many it were."""
    for count in range(times):
        if enough():
            return count
        await client.ask()
        await client.answer()
    return times


class Ticks:
    """The time of pods that work: `after(n)` is a step that ends n ticks from now."""

    def __init__(self) -> None:
        self.now = 0
        self.due: list[tuple[int, asyncio.Event]] = []

    def after(self, ticks: int) -> asyncio.Event:
        self.due.append((self.now + ticks, event := asyncio.Event()))
        return event

    def tick(self) -> None:
        self.now += 1
        for at, event in self.due:
            if at <= self.now:
                event.set()
        self.due = [(at, event) for at, event in self.due if at > self.now]

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """A tick for each turn of the loop: what takes many of them takes longer than what takes few, however late a
        busy machine makes them all."""

        async def passes() -> None:
            while True:
                await asyncio.sleep(0)
                self.tick()

        task = asyncio.create_task(passes())
        try:
            yield
        finally:
            task.cancel()


@scene(
    "F54",
    "A pod that is four times as slow as others gets less than half of its share, and is not ejected",
    promise=Promise.PODS,
    without=(Without(LEAST_WORK, red="the slow pod had"),),
)
async def a_slow_pod_gets_less(stage: Stage) -> None:
    for policy in ("auto", "least"):
        time = Ticks()
        slow = await stage.pod(script_of=lambda _, time=time: (time.after(4), says.GOOD))
        fast = [await stage.pod(script_of=lambda _, time=time: (time.after(1), says.GOOD)) for _ in range(2)]
        gateway = await stage.gateway(slow, *fast, pool={"policy": policy})
        calls = [
            asyncio.create_task(keeps_asking(await stage.client(gateway), SENT // CALLERS)) for _ in range(CALLERS)
        ]
        while at_work := sum(not each.done() for each in calls):
            await stage.until(
                lambda time=time, calls=calls: len(time.due) >= sum(not each.done() for each in calls),  # type: ignore[misc]
                f"of {at_work} requests not all are at work",
            )
            time.tick()
            await asyncio.sleep(0)
        await asyncio.gather(*calls)
        had = len(slow.requests)
        expect(had <= SENT / 3 / 2, f"the slow pod had {had} of {SENT} requests")
        expect(standing(gateway, slow).state == "healthy", "it was ejected")
        expect({line["outcome"] for line in gateway.lines()} == {"completed"}, "a request failed")


@scene(
    "F55",
    "A pod that fails at once attracts nothing: it is out within five requests, whichever policy chooses",
    promise=Promise.PODS,
    without=(Without(EJECTION, red="it is not ejected"),),
)
async def a_black_hole_attracts_nothing(stage: Stage) -> None:
    for policy in ("auto", "least", "p2c"):
        hole, *good = pods = await stage.some_pods(4)
        time = Ticks()
        for pod in good:
            pod.script_of = lambda _, time=time: (time.after(LONG_TURNS), says.GOOD)
        gateway = await stage.gateway(*pods, pool={"policy": policy})
        clients = [await stage.client(gateway) for _ in range(CALLERS)]

        def found(gateway: Running = gateway, hole: Pod = hole) -> bool:
            return bool(standing(gateway, hole).state == "ejected")

        async with time.passing():
            await asyncio.gather(*(keeps_asking(client, 2) for client in clients))
            before, hole.scripts = len(hole.requests), [[FAILED]]
            asked = await asyncio.gather(*(keeps_asking(client, 25, found) for client in clients))
            had = len(hole.requests) - before
            expect(found(), "it is not ejected")
            expect(had <= 5, f"the black hole had {had} of {sum(asked)} requests")
            for client in clients:
                await client.ask()
                await client.expect(200)


@scene(
    "F55b",
    "Where half of the pool is out already, and no more may be, a pod that fails at once has twice its share at most",
    promise=Promise.PODS,
    without=(Without(FAILURES_COUNT, red="the black hole had"),),
)
async def a_black_hole_that_stays_attracts_little(stage: Stage) -> None:
    time = Ticks()
    *sick, hole, _, _, _ = pods = await stage.some_pods(8, script_of=lambda _: (time.after(LONG_TURNS), says.GOOD))
    gateway = await stage.gateway(*pods, pool={"policy": "least"})
    balancer = gateway.gateway.balancer
    for each in gateway.gateway.fleet.value.pods:
        seat = balancer.seat_of(each.uid)
        if each.port in [pod.port for pod in sick] and seat is not None:
            balancer.wedged(seat)
    hole.script_of = lambda _: (FAILED,)
    clients = [await stage.client() for _ in range(CALLERS)]
    async with time.passing():
        sent = sum(await asyncio.gather(*(keeps_asking(client, 15) for client in clients)))
    had = len(hole.requests)
    expect(not any(pod.requests for pod in sick), "a pod that is out was asked")
    expect(standing(gateway, hole).state != "ejected", "more than half of the pool is out")
    expect(had <= 2 * sent / 4, f"the black hole had {had} of {sent} requests")


@scene(
    "F56",
    "A cold pod that joins hot ones gets a growing share, not all that waits",
    promise=Promise.PODS,
    without=(Without(SLOW_START, red="the cold pod got 10 of those that wait, not 1"),),
)
async def a_cold_pod_is_not_flooded(stage: Stage) -> None:
    hot, warm, cold = await stage.some_pods(3, Hang)
    settings = {"max_in_flight_per_pod": 10, "queue_wait_seconds": 300}
    gateway = await stage.gateway(hot, warm, cold, pool=settings)
    source = gateway.gateway.source
    assert isinstance(source, Given)
    known = source.seen().pods
    (gone,) = [pod for pod in known if pod.port == cold.port]
    source.give(tuple(pod for pod in known if pod is not gone))
    await stage.until(lambda: gateway.gateway.balancer.seat_of(gone.uid) is None, "the third pod is there already")
    await stage.leap(RAMP_SECONDS)
    for _ in range(32):
        await stage.asks()
    await stage.until(lambda: gateway.sample("poolgate_queue_depth", pool="chat") == 12, "they do not wait")
    source.give(known)
    await stage.until(lambda: cold.requests, "the cold pod got nothing")
    for passed, share in ((0.0, 1), (RAMP_SECONDS / 2, 5), (RAMP_SECONDS / 2, 10)):
        await stage.leap(passed)
        await stage.until(lambda share=share: len(cold.requests) >= share, f"the cold pod did not get {share}")  # type: ignore[misc]
        await stage.swept()
        had = len(cold.requests)
        expect(had == share, f"the cold pod got {had} of those that wait, not {share}")


# Pods that are not what they claim.


@scene(
    "F58",
    "A pod that claims an address that cannot be its own is never a target",
    promise=Promise.DISCOVERY,
    without=(Without(POD_ADDRESSES, red="the victim was asked"),),
)
async def an_address_is_no_proof(stage: Stage) -> None:
    server = await stage.api_server()
    victim = await stage.pod()
    claims = {"own-machine": "127.0.0.1", "metadata": "169.254.169.254", "mapped": "::ffff:127.0.0.1", "any": "0.0.0.0"}
    claims |= {"own-machine-6": "::1", "any-6": "::", "link-local": "fe80::1", "multicast": "ff02::1"}
    for name, address in claims.items():
        appear(server, name, victim, ip=address)
    gateway = await stage.gateway_in(server, parts=QUICK, networks=(), wait=False)
    refused = gateway.gateway.source.seen
    await stage.until(lambda: victim.asked or len(refused().refused) == len(claims), "they were not refused")
    await stage.swept()
    expect(not victim.asked and not victim.requests, "the victim was asked")
    rejected = gateway.sample("poolgate_discovery_rejected_total", reason="address")
    expect(rejected == len(claims), f"{rejected:g} are counted as refused, not {len(claims)}")
    stage.step("the same pods are listed anew")
    await watched(server)
    server.say_error(410, "Expired", "too old resource version")
    await stage.until(
        lambda: gateway.sample("poolgate_discovery_relists_total", reason="expired") >= 2, "no list was asked for"
    )
    await stage.swept()
    told = stage.logged.text.count("pod own-machine is refused")
    expect(told == 1, f"it was told {told} times, not once")


@scene(
    "F58b",
    "In a network that is allowed too, the API server and the gateway itself are no pods",
    promise=Promise.DISCOVERY,
    without=(Without(RESERVED_ADDRESSES, red="the API server was asked for models"),),
)
async def the_api_server_is_no_pod(stage: Stage) -> None:
    server = await stage.api_server()
    for name, port in (("api-server", server.port), ("public-port", 8000), ("ops-port", 9090)):
        appear(server, name, ip="127.0.0.1", annotations={PORT_ANNOTATION: str(port)})
    elsewhere = await stage.pod()
    appear(server, "elsewhere", elsewhere, namespace="attackers")
    appear(server, "good", await stage.pod())
    gateway = await stage.gateway_in(server, parts=QUICK, wait=False)
    await stage.until(lambda: ready(gateway) == {"good"}, "the pod is not seen")
    await stage.swept()
    asked_for = [asking.path for asking in server.requests if not asking.path.startswith("/api/")]
    expect(not asked_for, "the API server was asked for models")
    names = {refused.name for refused in gateway.gateway.fleet.value.refused}
    expect(names == {"api-server", "public-port", "ops-port"}, f"refused are {sorted(names)}")
    expect(not elsewhere.asked, "a pod of a namespace that is none of ours was asked")


@scene(
    "F58c",
    "A port behind which something else listens never gets a request",
    promise=Promise.DISCOVERY,
    without=(Without(MODELS_FIRST, red="what listens there was sent a request"),),
)
async def a_port_must_tell_its_models_first(stage: Stage) -> None:
    server = await stage.api_server()
    came: list[bytes] = []

    redis = await stage.enter(await answering_as_redis(came))
    annotations = {PORT_ANNOTATION: str(redis.sockets[0].getsockname()[1]), MODELS_ANNOTATION: "m"}
    appear(server, "redis", ip="127.0.0.1", annotations=annotations)
    gateway = await stage.gateway_in(server, parts=QUICK, wait=False)
    fleet = gateway.gateway.fleet
    await stage.until(lambda: fleet.value.asked and came, "it was not asked for its models")
    client = await stage.asks()
    await client.answer()
    expect(not any(line.startswith(b"POST") for line in came), "what listens there was sent a request")
    expect(client.answers[0].status == 404, "its model is known")


def listing(names: Sequence[object]) -> bytes:
    """The body of a `/v1/models`."""
    return json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]}).encode()


@scene(
    "F59",
    "A pod of another pool that lists a model gets none of its requests, not even while its owner is away",
    promise=Promise.DISCOVERY,
    without=(Without(ONE_OWNER, red="the thief was sent a prompt"),),
)
async def a_model_is_one_pool_s(stage: Stage) -> None:
    server = await stage.api_server()
    thief = await stage.pod()
    owner = appear(server, "owner", await stage.pod())
    pools = {"chat": {"models": ["m"], "policy": "round_robin"}, "thieves": {"models": ["own-*"]}}
    gateway = await stage.gateway_in(server, parts=QUICK, pools=pools)
    appear(server, "thief", thief, pool="thieves")
    await stage.until(lambda: ready(gateway) == {"owner", "thief"}, "the pods were not heard of")
    client = await stage.client()
    for _ in range(4):
        await client.ask()
        await client.expect(200)
    expect(not thief.requests, "the thief was sent a prompt")
    owner.become_unready()
    await stage.until(lambda: ready(gateway) == {"thief"}, "the owner is still there")
    await client.ask()
    await client.expect(503, "no_ready_pod")
    expect(not thief.requests, "the thief was sent a prompt")
    rejected = gateway.sample("poolgate_discovery_rejected_total", reason="model_not_in_pool")
    expect(rejected >= 1, "nobody is told of it")


@scene(
    "F59b",
    "Of what a pod lists at most 64 names of at most 256 printable characters are taken, and a huge list not at all",
    promise=Promise.DISCOVERY,
    without=(
        Without(MODEL_NAMES, red="a name was taken that is none"),
        Without(SHORT_LISTINGS, red="a list of 100000 names was read"),
    ),
)
async def names_of_models_are_bounded(stage: Stage) -> None:
    server = await stage.api_server()
    odd = ["", "nul\0", "x" * (1 << 18), "new\nline", 7, None]
    lists = await stage.enter(OddPod().list_models(listing(["m", *odd, *(f"n{number}" for number in range(300))])))
    floods = await stage.enter(OddPod().list_models(listing([f"model-{number:06}" for number in range(100_000)])))
    appear(server, "lists", lists)
    appear(server, "floods", floods)
    gateway = await stage.gateway_in(server, parts=QUICK, wait=False)
    fleet = gateway.gateway.fleet
    await stage.until(lambda: fleet.value.asked, "the pods were not asked")
    names = [name for name in fleet.value.routes if not name.startswith("model-")]
    expect(all(0 < len(name) <= 256 and name.isprintable() for name in names), "a name was taken that is none")
    expect(len(names) == 64, f"{len(names)} names were taken, not 64")
    expect(ready(gateway) == {"lists"}, "a list of 100000 names was read")
    for reason in ("model_name", "too_many_models"):
        rejected = gateway.sample("poolgate_discovery_rejected_total", reason=reason)
        expect(rejected > 0, f"nobody is told of {reason}")


@scene(
    "F59c",
    "A pod serves no more than its annotation lets it, whatever it lists",
    promise=Promise.DISCOVERY,
    without=(Without(ALLOWED_MODELS, red="the thief serves"),),
)
async def an_annotation_bounds_what_a_pod_serves(stage: Stage) -> None:
    server = await stage.api_server()
    thief = await stage.enter(OddPod().list_models(listing(["m", "mine-1", "yours"])))
    appear(server, "owner", await stage.pod())
    appear(server, "thief", thief, annotations={MODELS_ANNOTATION: "mine-*"})
    gateway = await stage.gateway_in(server, parts=QUICK, wait=False)
    await stage.until(lambda: ready(gateway) == {"owner", "thief"}, "the pods were not heard of")
    routes = gateway.gateway.fleet.value.routes
    serves = {name for name, route in routes.items() if "thief" in {pod.name for pod in route.pods}}
    expect(serves == {"mine-1"}, f"the thief serves {sorted(serves)}")
    expect(await served_by(stage, 6) == {"owner"}, "the thief was asked")
