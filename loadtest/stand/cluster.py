"""A stand-in for the Kubernetes API, so that gateways find their pods as they do in a cluster.

It is the tests' own (`tests.apiserver`), which the wheel does not carry: a scenario that wants it runs in a checkout.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loadtest.bench.processes import BenchError
from loadtest.stand.looking import HOST
from loadtest.stand.pods import Pod

if TYPE_CHECKING:
    from tests.apiserver.cluster import Pod as PodObject
    from tests.apiserver.server import ApiServer

NAMESPACE: Final = "vllm"
HOME: Final = "default"
"""Where the gateways are."""
POOL_LABEL: Final = "poolgate.dev/pool"
PORT_ANNOTATION: Final = "poolgate.dev/port"
SELF_LABELS: Final = {"app.kubernetes.io/name": "poolgate"}


class StandInCluster:
    """The objects of the pods and of the gateways."""

    def __init__(self, server: ApiServer, kubeconfig: Path) -> None:
        self._server = server
        self._objects: dict[str, PodObject] = {}
        self._made = 0
        self.kubeconfig = kubeconfig
        kubeconfig.write_text(server.kubeconfig(namespace=HOME))

    def appear(self, pod: Pod) -> None:
        """A new object, ready: each has a name of its own, as in a Deployment."""
        self._made += 1
        self._objects[pod.name] = self._server.cluster.create_ready(
            f"{pod.name}-{self._made}",
            NAMESPACE,
            ip=HOST,
            labels={POOL_LABEL: pod.pool},
            annotations={PORT_ANNOTATION: str(pod.port)},
        )

    def delete(self, pod: Pod, grace_seconds: int) -> None:
        """It is terminating."""
        self._objects[pod.name].delete(grace_seconds)

    def vanish(self, pod: Pod) -> None:
        """Its object is gone."""
        self._objects.pop(pod.name).vanish()

    def crash(self, pod: Pod) -> None:
        """Its container is gone, and the kubelet has seen it."""
        self._objects[pod.name].crash()

    def recover(self, pod: Pod) -> None:
        """Its container serves again."""
        self._objects[pod.name].become_ready()


@asynccontextmanager
async def cluster_of(pods: Sequence[Pod], gateways: int, folder: Path) -> AsyncIterator[StandInCluster]:
    """With an object for each of these pods, and for so many gateways. Raises BenchError outside a checkout."""
    try:
        from tests.apiserver.server import ApiServer
    except ModuleNotFoundError as error:
        raise BenchError(
            f"no {error.name}: the stand-in for the API server exists in a checkout of the repository only; run this "
            "from there, with the packages of requirements/dev.lock"
        ) from None
    async with ApiServer() as server:
        made = StandInCluster(server, folder / "kubeconfig")
        for number in range(gateways):
            server.cluster.create_ready(f"gateway-{number}", HOME, labels=SELF_LABELS)
        for pod in pods:
            made.appear(pod)
        yield made
