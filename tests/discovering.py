"""Discovery in a test, on real sockets: the bare source, source and rounds, or a whole gateway, each before a stand-in
API server (`tests.apiserver`). Nothing here sleeps for a fixed time: each `until` waits for news, with a deadline in
turns of the loop (`tests.turns`), so that a busy machine makes nothing late.
"""

import asyncio
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from math import ceil
from pathlib import Path
from random import Random
from typing import Any, Protocol, Self

from gateway.core.cell import Cell
from gateway.core.clock import Clock
from gateway.core.fleet import Fleet, Pod, PodState, Pool, RefusedPod
from gateway.discovery import reflector, rounds
from gateway.discovery.kubernetes import Cluster, KubernetesSource
from gateway.discovery.pods import POOL_LABEL, PORT_ANNOTATION, Network
from gateway.discovery.roster import Roster
from gateway.discovery.rounds import Rounds
from gateway.upstream.pool import Pools
from tests.apiserver import cluster as stand_in
from tests.apiserver.server import ADMIN_TOKEN, ApiServer, Asking
from tests.fakes import answer
from tests.raw import Answer, ask, chat, request
from tests.running import Running, running
from tests.turns import within

NAMESPACE, HOME = "models", "default"
"""Where the pods are, and where the gateway is."""
CHAT = {POOL_LABEL: "chat"}
LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"),)
QUICK = reflector.Pace(first_pause=0.005, longest_pause=0.02)
QUICK_ROUNDS = rounds.Pace(models=0.05, models_first_again=0.02, gauges=0.05, count=0.05, gauges_per_replica=0.01)
SOON = 1.0
"""Within so many seconds an event has its effect."""
LOOK_SECONDS = 0.005
"""Between two looks at what tells nobody of its changes."""


class HasPort(Protocol):
    """A pod of any make."""

    @property
    def port(self) -> int: ...


def appear(
    server: ApiServer, name: str, at: HasPort | None = None, *, ip: str = "", pool: str = "chat", **given: Any
) -> stand_in.Pod:
    """A ready pod in the cluster: that of a server on this machine, or at an address where nobody is.

    `given` as for the stand-in's `create`.
    """
    annotations = dict(given.pop("annotations", {}))
    labels = {POOL_LABEL: pool} | given.pop("labels", {})
    if at is not None:
        annotations.setdefault(PORT_ANNOTATION, str(at.port))
        ip = ip or "127.0.0.1"
    return server.cluster.create_ready(name, labels=labels, annotations=annotations, ip=ip, **given)


def asked(server: ApiServer, verb: str, namespace: str = NAMESPACE) -> list[Asking]:
    """The lists, or the watches, that were asked for in a namespace so far."""
    return [asking for asking in server.requests if (asking.verb, asking.namespace) == (verb, namespace)]


async def watched(server: ApiServer, count: int = 1, namespace: str = NAMESPACE) -> None:
    """Wait until a namespace's pods are watched, by so many."""
    await server.until(lambda: sum(watch.asked.namespace == namespace for watch in server.watches) == count)


async def eventually(holds: Callable[[], bool], seconds: float = 5.0, told: Callable[[], object] = lambda: "") -> None:
    """Look until it is so: for what tells nobody of its changes, such as time. `told()` is what a failure shows."""
    for _ in range(ceil(seconds / LOOK_SECONDS)):
        if holds():
            return
        await asyncio.sleep(LOOK_SECONDS)
    assert holds(), told()


@dataclass
class Followed:
    """A running source."""

    source: KubernetesSource
    task: asyncio.Task[None]
    relists: list[tuple[str, float]]
    """(reason, when) of each full list, those of our own replicas included."""

    @property
    def pods(self) -> dict[str, Pod]:
        """By name."""
        return {pod.name: pod for pod in self.source.seen().pods}

    @property
    def states(self) -> dict[str, str]:
        return {name: pod.state.value for name, pod in self.pods.items()}

    @property
    def refused(self) -> dict[str, RefusedPod]:
        return {pod.name: pod for pod in self.source.seen().refused}

    @property
    def reasons(self) -> list[str]:
        """Of the full lists."""
        return [reason for reason, _ in self.relists]

    async def until(self, holds: Callable[[], bool], seconds: float = 5.0) -> None:
        """Wait until what is seen makes this true. Raises what the source died of."""

        def alive_and_so() -> bool:
            if self.task.done():
                self.task.result()
            return holds()

        await eventually(alive_and_so, seconds, lambda: (self.source.seen(), self.reasons))

    async def sees(self, seconds: float = 5.0, /, **states: str) -> None:
        """Wait until exactly these pods are there, in these states; a dash in a name is written as `_`."""
        wanted = {name.replace("_", "-"): state for name, state in states.items()}
        await self.until(lambda: self.states == wanted, seconds)


@contextmanager
def kubeconfig(server: ApiServer, token: str = ADMIN_TOKEN) -> Iterator[Path]:
    """A file that leads to this API server, and says that we live in `HOME`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kubeconfig"
        file.write_text(server.kubeconfig(token, namespace=HOME))
        yield file


def source_of(
    cluster: Cluster,
    *,
    relisted: Callable[[str], None] = lambda reason: None,
    namespaces: tuple[str, ...] = (NAMESPACE,),
    networks: tuple[Network, ...] = (),
    pace: reflector.Pace = QUICK,
) -> KubernetesSource:
    """A source that does not run yet, as `gateway.app` makes it."""
    return KubernetesSource(
        cluster,
        namespaces=namespaces,
        selector=POOL_LABEL,
        self_selector="app=poolgate",
        networks=networks,
        listens_on=(("127.0.0.1", 8000),),
        relisted=relisted,
        clock=Clock().monotonic,
        chance=Random(1).random,
        pace=pace,
    )


@asynccontextmanager
async def followed(
    server: ApiServer,
    *,
    cluster: Cluster | None = None,
    token: str = ADMIN_TOKEN,
    namespaces: tuple[str, ...] = (NAMESPACE,),
    networks: tuple[Network, ...] = (),
    pace: reflector.Pace = QUICK,
    listed: bool = True,
) -> AsyncIterator[Followed]:
    """A source before this API server, by a kubeconfig of its own unless `cluster` says how to reach it.

    `listed`: begins when it has its first list, and hears the changes.
    """
    relists: list[tuple[str, float]] = []
    monotonic = Clock().monotonic
    with kubeconfig(server, token) as file:
        source = source_of(
            cluster or Cluster(str(file)),
            relisted=lambda reason: relists.append((reason, monotonic())),
            namespaces=namespaces,
            networks=networks,
            pace=pace,
        )
        task = asyncio.create_task(source.run(lambda: None))
        found = Followed(source, task, relists)
        try:
            if listed:
                await found.until(lambda: source.seen().listed)
                for namespace in namespaces:
                    await watched(server, namespace=namespace)
            yield found
        finally:
            await ended(task)


async def ended(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks. Raises what they had died of before."""
    for task in tasks:
        task.cancel()
    for how in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(how, Exception):
            raise how


@dataclass
class Discovered:
    """All of discovery, without the requests: `fleet` is what they would see."""

    fleet: Cell[Fleet]
    rounds: Rounds
    pools: Pools
    rejected: list[str]
    """The reason of each pod and name of a model refused."""

    def pod(self, name: str) -> Pod:
        return next(pod for pod in self.fleet.value.pods if pod.name == name)

    def serving(self, model: str) -> set[str]:
        """The names of the pods that requests for a model go to."""
        route = self.fleet.value.routes.get(model)
        return set() if route is None else {pod.name for pod in route.pods}

    async def until(self, holds: Callable[[], bool], seconds: float = 5.0) -> None:
        """Wait until the fleet makes this true."""
        try:
            async with within(seconds):
                while not holds():
                    await self.fleet.wait_changed()
        except TimeoutError:
            raise AssertionError(self.fleet.value) from None


@asynccontextmanager
async def discovered(
    server: ApiServer,
    *,
    pools: Mapping[str, Pool] | None = None,
    networks: tuple[Network, ...] = LOOPBACK,
    pace: rounds.Pace = QUICK_ROUNDS,
) -> AsyncIterator[Discovered]:
    """Source, roster and rounds as `gateway.app` wires them, in less patient rounds."""
    clock, rng = Clock(), Random(1)
    fleet: Cell[Fleet] = Cell(Fleet())
    connections = Pools(connect_seconds=1.0, idle_seconds=3.0, clock=clock.monotonic, api_key=None)
    rejected: list[str] = []
    with kubeconfig(server) as file:
        source = source_of(Cluster(str(file)), networks=networks)
        roster = Roster(
            source, pools or {}, fleet, clock.monotonic, lambda reason, count: rejected.extend([reason] * count)
        )
        asking = Rounds(
            roster,
            fleet,
            connections.fetch,
            in_flight=lambda uid: 0,
            told=lambda uid, load, until: None,
            replicas=source.replicas,
            clock=clock.monotonic,
            chance=rng.random,
            pace=pace,
        )
        tasks = [asyncio.create_task(roster.run()), asyncio.create_task(asking.run())]
        try:
            found = Discovered(fleet, asking, connections, rejected)
            await found.until(lambda: fleet.value.asked)
            await watched(server)
            yield found
        finally:
            await ended(*tasks)
            connections.close()


@asynccontextmanager
async def gateway(
    server: ApiServer,
    *,
    namespaces: tuple[str, ...] = (NAMESPACE,),
    networks: tuple[str, ...] = ("127.0.0.0/8",),
    token: str = ADMIN_TOKEN,
    environment: Mapping[str, str] | None = None,
    **given: Any,
) -> AsyncIterator[Running]:
    """A whole gateway that finds its pods by this API server; `given` as for `running`. Answers name the pod."""
    with kubeconfig(server, token) as file:
        discovery = {"namespaces": list(namespaces), "pod_networks": list(networks)}
        given = {"tenant": {"debug": True}} | given
        where = environment or {"KUBECONFIG": str(file)}
        async with running((), discovery=discovery, environment=where, **given) as found:
            if given.get("wait", True):
                for namespace in namespaces:
                    await watched(server, namespace=namespace)
            yield found


async def fleet_until(gateway: Running, holds: Callable[[Fleet], bool], seconds: float = 5.0) -> Fleet:
    """Wait until a gateway's fleet makes this true."""
    cell = gateway.gateway.fleet
    try:
        async with within(seconds):
            while not holds(cell.value):
                await cell.wait_changed()
    except TimeoutError:
        raise AssertionError(cell.value) from None
    return cell.value


async def fleet_sees(gateway: Running, seconds: float = 5.0, /, **states: str) -> Fleet:
    """Wait until exactly these pods are there, in these states."""
    return await fleet_until(
        gateway, lambda fleet: {pod.name: pod.state.value for pod in fleet.pods} == states, seconds
    )


def ready_names(fleet: Fleet) -> set[str]:
    return {pod.name for pod in fleet.pods if pod.state is PodState.READY}


async def ask_model(gateway: Running, model: str = "m", **more: Any) -> Answer:
    """One short answer that is not streamed."""
    return await ask(gateway.port, request(chat(**{"max_tokens": 1, "model": model} | more), key=gateway.key))


async def who_serves(gateway: Running, model: str = "m", times: int = 12) -> set[str]:
    """The pods that so many requests, one after another, went to. All must succeed."""
    answers = [await ask_model(gateway, model) for _ in range(times)]
    assert {came.status for came in answers} == {200}, answers
    return {came.headers["x-poolgate-pod"] for came in answers}


@dataclass
class OddPod:
    """A pod that answers each path with the bytes given for it; what has none hangs. Both may change at any time."""

    answers: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """The paths, in the order they came."""
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: "set[asyncio.Task[None]]" = field(default_factory=set)

    def list_models(self, body: bytes, status: bytes = b"200 OK") -> Self:
        self.answers["/v1/models"] = answer(body, status)
        self.answers.setdefault("/metrics", answer(b"", content_type=b"text/plain"))
        self.answers.setdefault("/load", answer(b'{"server_load":0}'))
        return self

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ")[1].decode()
                self.asked.append(path)
                if path not in self.answers:
                    await reader.read()
                    return
                writer.write(self.answers[path])
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except asyncio.CancelledError:
            # The pod goes; asyncio.streams would log the cancellation of its own task as an error.
            return
        finally:
            self._tasks.discard(task)
            writer.close()


@dataclass(frozen=True)
class Certificate:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""

    file: Path
    key: Path

    @classmethod
    def make(cls, folder: Path, name: str) -> Self:
        made = cls(folder / f"{name}.crt", folder / f"{name}.key")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
        command += ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
        subprocess.run([*command, "-keyout", str(made.key), "-out", str(made.file)], check=True, capture_output=True)
        return made


async def answering_as_redis(came: list[bytes]) -> asyncio.Server:
    """What listens on a free port and is no vLLM; the lines that it is sent are added to `came`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            came.append(line)
            writer.write(b"-ERR unknown command\r\n")
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)
