"""Does with a built overlay what a cluster does: pods of its templates, processes of its containers, probes, rights.

Only what an overlay says is used: command, arguments, environment, files, ports, labels, probes, Roles. What differs
from a cluster stands in `SWAPS` and below it, in one place each: pods have addresses of the loopback, an image is what
is installed here, and where the image is vLLM's, a simulated pod takes its part.
"""

import asyncio
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import randrange
from types import TracebackType
from typing import Any, Self

import httpx2

from loadtest.simulator.cli import parser as simulator_parser
from tests.apiserver import cluster
from tests.apiserver.access import Account, Grant
from tests.apiserver.server import ApiServer
from tests.integration.test_process import ROOT, environment
from tests.manifests.building import Build, Manifest, containers, of_kind, replicas_of, sources_of, templates
from tests.manifests.kubelet import expanded, variables_of
from tests.valkey import ClusterValkey

SECONDS = 60.0
GATEWAY = "poolgate"
"""The gateway's Deployment, its account and its namespace."""
POOLS = "vllm"
TOKEN = "the-gateways-own"
SWAPS = {
    "python": sys.executable,
    "--host=0.0.0.0": "--host={address}",  # all pods are on this machine
    "/etc/poolgate": "{files}",
    "@redis:6379": "@127.0.0.1:{redis}",
    "--loading-seconds=5": "--loading-seconds=0",
}


@dataclass
class Placed:
    """A pod that was made of a template."""

    name: str
    namespace: str
    address: str
    template: Manifest
    object: cluster.Pod
    process: "asyncio.subprocess.Process | None" = None
    errors: Path | None = None

    @property
    def container(self) -> Manifest:
        return containers(self.template, init=False)[0]


@dataclass
class Node:
    """`async with Node(build, folder, secrets)`. `secrets`: entries by Secret, as the namespaces hold them."""

    build: Build
    folder: Path
    secrets: Mapping[str, Mapping[str, str]]
    server: ApiServer = field(init=False)
    valkey: ClusterValkey = field(init=False)
    pods: list[Placed] = field(init=False, default_factory=list)
    network: str = field(init=False, default_factory=lambda: f"127.{randrange(16, 250)}")
    """Of its pods, whose ports are not free to choose: another run on this machine has its own."""

    async def __aenter__(self) -> Self:
        self.valkey = ClusterValkey(self.secrets["redis"]["password"])
        await self.valkey.start()
        self.server = await ApiServer(accounts={TOKEN: account(self.build, GATEWAY)}).__aenter__()
        (self.folder / "kubeconfig").write_text(self.server.kubeconfig(TOKEN, namespace=GATEWAY))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pod in self.pods:
            if pod.process is not None and pod.process.returncode is None:
                with suppress(ProcessLookupError):
                    pod.process.send_signal(signal.SIGKILL)
                await pod.process.wait()
        await self.server.__aexit__(kind, error, trace)
        await self.valkey.stop()

    async def run(self) -> None:
        """Make all pods of the pools, then the gateways, and wait until every probe for readiness says yes."""
        for namespace in (POOLS, GATEWAY):
            made = list(self._make(namespace))
            for pod in made:
                await self._start(pod)
            await asyncio.gather(*(self._become_ready(pod) for pod in made))

    def gateway(self) -> Placed:
        """The first replica."""
        return next(pod for pod in self.pods if pod.namespace == GATEWAY)

    def _make(self, namespace: str) -> Iterator[Placed]:
        for workload in of_kind(self.build, "Deployment", "LeaderWorkerSet"):
            metadata = workload["metadata"]
            if metadata["namespace"] != namespace or (namespace == GATEWAY and metadata["name"] != GATEWAY):
                continue
            for number, template in enumerate(_members(workload, self._replicas(workload))):
                address = f"{self.network}.{len(self.pods) >> 8}.{10 + (len(self.pods) & 255)}"
                about = template.get("metadata", {})
                placed = Placed(
                    f"{metadata['name']}-{number}",
                    namespace,
                    address,
                    template,
                    self.server.cluster.create(
                        f"{metadata['name']}-{number}",
                        namespace,
                        labels=about.get("labels", {}),
                        annotations=about.get("annotations", {}),
                        owner=metadata["name"],
                        containers=containers(template, init=False),
                    ),
                )
                self.pods.append(placed)
                yield placed

    def _replicas(self, workload: Manifest) -> int:
        """How many the workload asks for, or at least its autoscaler."""
        about = workload["metadata"]
        for scaler in of_kind(self.build, "HorizontalPodAutoscaler"):
            target = (scaler["spec"]["scaleTargetRef"]["kind"], scaler["spec"]["scaleTargetRef"]["name"])
            if (scaler["metadata"]["namespace"], *target) == (about["namespace"], workload["kind"], about["name"]):
                return int(scaler["spec"]["minReplicas"])
        return replicas_of(workload)

    async def _start(self, pod: Placed) -> None:
        command = self._command(pod)
        if command is None:
            return
        pod.errors = self.folder / f"{pod.name}.err"
        variables = environment() | self._variables(pod)
        with pod.errors.open("wb") as errors:
            pod.process = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, env=variables, stdout=asyncio.subprocess.DEVNULL, stderr=errors
            )

    async def _become_ready(self, pod: Placed) -> None:
        pod.object.run(pod.address)
        probe = pod.container.get("readinessProbe", {}).get("httpGet")
        if pod.process is None:
            # A worker of a group: it serves nothing, and is ready as soon as it runs.
            pod.object.become_ready()
            return
        assert probe is not None, f"{pod.name} has no readiness probe"
        ports = {port["name"]: port["containerPort"] for port in pod.container["ports"]}
        url = f"http://{pod.address}:{ports.get(probe['port'], probe['port'])}{probe['path']}"
        async with httpx2.AsyncClient(trust_env=False) as client, asyncio.timeout(SECONDS):
            while True:
                assert pod.process.returncode is None, f"{pod.name} has ended: {pod.errors and pod.errors.read_text()}"
                with suppress(httpx2.TransportError):
                    if (await client.get(url)).status_code == 200:
                        break
                await asyncio.sleep(0.05)
        pod.object.become_ready()

    def _variables(self, pod: Placed) -> dict[str, str]:
        """The container's environment, as the kubelet resolves it; and where a gateway here listens, and looks."""
        found = variables_of(
            pod.container,
            lambda secret, entry: self.secrets.get(secret, {}).get(entry),
            {"metadata.name": pod.name, "status.podIP": pod.address},
        )
        found = {name: self._swapped(value, pod) for name, value in found.items()}
        if pod.namespace == GATEWAY:
            found |= {
                "KUBECONFIG": str(self.folder / "kubeconfig"),
                "POOLGATE_SERVER__HOST": pod.address,
                "POOLGATE_SERVER__OPS_HOST": pod.address,
                "POOLGATE_DISCOVERY__POD_NETWORKS": f"[{self.network}.0.0/16]",
            }
        return found

    def _command(self, pod: Placed) -> list[str] | None:
        """What its container runs; None: nothing that serves."""
        container = pod.container
        variables = self._variables(pod)
        said = [*container.get("command", []), *container.get("args", [])]
        words = [expanded(str(word), variables) for word in said]
        if container["image"].startswith("vllm/"):
            return None if "--headless" in words else self._stand_in(pod, words)
        if "command" not in container:
            words = [sys.executable, "-m", "gateway", *words]
        if pod.namespace == GATEWAY:
            self._files(pod)
        return [self._swapped(word, pod) for word in words]

    def _stand_in(self, pod: Placed, words: Sequence[str]) -> list[str]:
        """A simulated pod, with those of vLLM's arguments that it has as well."""
        flags = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
        known = {flag for action in simulator_parser()._actions for flag in action.option_strings}
        names = flags["--served-model-name"].split()
        key = self.secrets["vllm-api-key"]["api-key"]
        same = [f"{flag}={value}" if value else flag for flag, value in flags.items() if flag in known - {"--host"}]
        return [
            *(sys.executable, "-m", "loadtest.simulator", f"--host={pod.address}", "--port-base=8000"),
            *(f"--model={name}" for name in names),
            f"--api-key={key}",
            *same,
        ]

    def _files(self, pod: Placed) -> None:
        """What its projected volume holds."""
        folder = self.folder / pod.name
        folder.mkdir(exist_ok=True)
        (volume,) = (each for each in pod.template["spec"]["volumes"] if "projected" in each)
        for source in sources_of(volume):
            if "configMap" in source:
                name = source["configMap"]["name"]
                (found,) = (each for each in of_kind(self.build, "ConfigMap") if each["metadata"]["name"] == name)
                entries = found["data"]
                paths = {entry: entry for entry in entries}
            else:
                entries = self.secrets[source["secret"]["name"]]
                items = source["secret"].get("items")
                paths = {item["key"]: item["path"] for item in items} if items else {entry: entry for entry in entries}
            for entry, path in paths.items():
                (folder / path).write_text(self._swapped(entries[entry], pod))

    def _swapped(self, text: str, pod: Placed) -> str:
        values = {"address": pod.address, "files": str(self.folder / pod.name), "redis": str(self.valkey.port)}
        for there, here in SWAPS.items():
            if text == there or there.startswith(("/", "@")):
                text = text.replace(there, here.format(**values))
        return text


def _members(workload: Manifest, replicas: int) -> Iterator[Manifest]:
    """The template of each pod that the controller makes."""
    if workload["kind"] != "LeaderWorkerSet":
        yield from [templates(workload)[0]] * replicas
        return
    group = workload["spec"]["leaderWorkerTemplate"]
    for _ in range(replicas):
        for index in range(group["size"]):
            template = group["workerTemplate"] if index else group.get("leaderTemplate", group["workerTemplate"])
            about = template.get("metadata", {})
            labels = about.get("labels", {}) | {"leaderworkerset.sigs.k8s.io/worker-index": str(index)}
            yield template | {"metadata": about | {"labels": labels}}


def account(build: Build, name: str) -> Account:
    """A ServiceAccount with the rights that the build's Roles give it, and no other."""
    grants: set[Grant] = set()
    roles: dict[tuple[str, str], Any] = {
        (role["metadata"]["namespace"], role["metadata"]["name"]): role["rules"] for role in of_kind(build, "Role")
    }
    for binding in of_kind(build, "RoleBinding"):
        if any(subject["name"] == name for subject in binding["subjects"]):
            namespace = binding["metadata"]["namespace"]
            for rule in roles[namespace, binding["roleRef"]["name"]]:
                grants |= {Grant(verb, kind, namespace) for verb in rule["verbs"] for kind in rule["resources"]}
    return Account(f"system:serviceaccount:{GATEWAY}:{name}", frozenset(grants))


def pool_of(pod: Placed) -> str | None:
    """The pool that a pod's label names."""
    labels: dict[str, str] = pod.template["metadata"]["labels"]
    return labels.get("poolgate.dev/pool")
