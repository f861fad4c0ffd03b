"""What is measured: simulated pods, gateways before them, a Redis where one is wanted.

Each process has a name, and the names are what marks, pages and verdicts speak of.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtest.bench.processes import BenchError
from loadtest.bench.targets import NO_LIMITS, keys_entry, new_key
from loadtest.load.plan import Scenario, StandPlan
from loadtest.report.side import Mark
from loadtest.stand.cluster import NAMESPACE, StandInCluster, cluster_of
from loadtest.stand.cores import Cores
from loadtest.stand.gateways import GatewayProcess
from loadtest.stand.looking import HOST, total
from loadtest.stand.pods import Pod
from loadtest.stand.ports import lasting_ports
from loadtest.stand.redis import RedisProcess

KNOWN_SECONDS: Final = 30.0
"""Within so long every gateway knows all its pods."""
LOOK_SECONDS: Final = 0.05
DRAIN_SECONDS: Final = 60
"""Of a gateway that is replaced; a stream must end within it."""


@dataclass
class SimulatedStand:
    keys: Mapping[str, str]
    """API keys by the callers' names."""
    pods: Sequence[Pod]
    gateways: list[GatewayProcess]
    """Those in rotation. One that is replaced is in `leaving` until it has ended."""
    redis: RedisProcess | None
    cluster: StandInCluster | None
    new_gateway: Callable[[], GatewayProcess]
    started: list[GatewayProcess]
    """All there ever were."""
    leaving: list[GatewayProcess] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    """Of the gateways in rotation; read at each request."""
    marks: list[Mark] = field(default_factory=list)
    clock: Callable[[], float] = lambda: 0.0
    """Seconds since the run began; set when it does."""

    @property
    def pod_names(self) -> Sequence[str]:
        return [pod.name for pod in self.pods]

    @property
    def direct_urls(self) -> Sequence[str]:
        """Past the gateways."""
        return [pod.url for pod in self.pods]

    def mark(self, what: str) -> None:
        self.marks.append(Mark(round(self.clock(), 3), what))

    def pod(self, name: str) -> Pod:
        """Raises BenchError with the names there are."""
        for pod in self.pods:
            if pod.name == name:
                return pod
        raise BenchError(f"there is no pod {name}; the stand has {', '.join(self.pod_names)}")

    async def knows_its_pods(self, gateway: GatewayProcess) -> None:
        """Wait until a gateway has all pods ready, and counts where it is to count. Raises BenchError."""
        mode = "redis" if self.redis is not None else "memory"
        series: Mapping[str, float] = {}
        try:
            async with asyncio.timeout(KNOWN_SECONDS):
                while True:
                    with suppress(OSError):  # busy: it is asked again
                        series = await gateway.scrape()
                    ready = total(dict(series), "poolgate_pods", 'state="ready"')
                    if ready == len(self.pods) and total(dict(series), "poolgate_limit_mode", f'mode="{mode}"') == 1:
                        return
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            told = {
                name: value
                for name, value in series.items()
                if name.startswith(("poolgate_pods", "poolgate_limit_mode"))
            }
            raise BenchError(f"{gateway.name} did not get to know its pods and limits: {told}") from None


@asynccontextmanager
async def simulated(
    scenario: Scenario, cores: Cores, folder: Path, *, replaced: bool = False
) -> AsyncIterator[SimulatedStand]:
    """All processes of a scenario's stand, ready; at the end none is left. `replaced`: gateways will be told to drain.

    Raises BenchError where something does not start, with the end of its log.
    """
    plan = scenario.stand
    keys = {name: new_key() for name in plan.keys}
    async with AsyncExitStack() as stack:
        redis_port, *ports = stack.enter_context(lasting_ports(1 + sum(each.count for each in plan.pods)))
        pods = pods_of(plan, ports, cores.apparatus, folder)
        for pod in pods:
            stack.callback(pod.close)
        redis = RedisProcess(redis_port, cores.apparatus, folder) if plan.redis else None
        if redis is not None:
            stack.callback(redis.close)
            await redis.start()
        await asyncio.gather(*(pod.start() for pod in pods))
        cluster = None
        if plan.kubernetes:
            cluster = await stack.enter_async_context(cluster_of(pods, plan.gateways, folder))
        config = write_config(plan, keys, pods, redis, folder, replaced=replaced)
        variables = {} if cluster is None else {"KUBECONFIG": str(cluster.kubeconfig)}
        names = _numbered("gateway")
        started: list[GatewayProcess] = []

        def new_gateway() -> GatewayProcess:
            made = GatewayProcess(next(names), config, variables, cores.gateways, folder)
            started.append(made)
            stack.callback(made.close)
            return made

        gateways = [new_gateway() for _ in range(plan.gateways)]
        await asyncio.gather(*(gateway.start() for gateway in gateways))
        stand = SimulatedStand(keys, pods, gateways, redis, cluster, new_gateway, started)
        stand.urls = [gateway.url for gateway in gateways]
        await asyncio.gather(*(stand.knows_its_pods(gateway) for gateway in gateways))
        yield stand


def pods_of(plan: StandPlan, ports: Sequence[int], cores: frozenset[int], folder: Path) -> list[Pod]:
    """Not started yet."""
    named = [(name, each) for each in plan.pods for name in each.names]
    return [
        Pod(name, each.pool, port, (f"--model={each.model}", f"--task={each.task}", *each.flags), cores, folder)
        for (name, each), port in zip(named, ports, strict=True)
    ]


def write_config(
    plan: StandPlan,
    keys: Mapping[str, str],
    pods: Sequence[Pod],
    redis: RedisProcess | None,
    folder: Path,
    *,
    replaced: bool,
) -> Path:
    """The gateways' configuration, with what the scenario lays over it. JSON is YAML."""
    entries = [
        {**keys_entry(key), "team": name, "debug": True, **plan.keys[name]} for name, key in keys.items()
    ]  # debug: answers name their pod
    keys_file = folder / "keys.yaml"
    keys_file.write_text(json.dumps({"keys": entries}))
    discovery: dict[str, Any] = {
        "mode": "static",
        "pods": [{"name": pod.name, "url": pod.url, "pool": pod.pool} for pod in pods],
    }
    if plan.kubernetes:
        discovery = {"mode": "kubernetes", "namespaces": [NAMESPACE], "pod_networks": ["127.0.0.0/8"]}
    settings: dict[str, Any] = {
        "server": {"host": HOST, "ops_host": HOST, "drain_seconds": DRAIN_SECONDS if replaced else 0},
        "discovery": discovery,
        "auth": {"mode": "keys", "keys_file": str(keys_file)},
        "limits": {
            "default": dict(NO_LIMITS),
            "redis_url": None if redis is None else redis.url,
            "replicas": plan.gateways,
        },
    }
    file = folder / "poolgate.yaml"
    file.write_text(json.dumps(laid_over(settings, plan.config), indent=1))
    return file


def laid_over(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping in a mapping is merged, anything else replaced."""
    merged = dict(settings)
    for name, value in more.items():
        old = merged.get(name)
        merged[name] = laid_over(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _numbered(word: str) -> Iterator[str]:
    number = 0
    while True:
        yield f"{word}-{number}"
        number += 1
