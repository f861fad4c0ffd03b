"""What users, controllers and kubelets do to pods. Each call is one write, or as many as the real one makes."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

from tests.apiserver import pods
from tests.apiserver.log import Log, Object


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Cluster:
    """Makes pods. `log` may be exchanged for an older backup; the pods that it does not hold are then no more."""

    def __init__(self, log: Log | None = None, now: Callable[[], datetime] = _utc_now, seed: int = 1) -> None:
        self.log = log or Log()
        self.now = now
        self._random = Random(seed)
        self._addresses = 0

    def create(
        self,
        name: str,
        namespace: str = "models",
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        owner: str | None = None,
        containers: Sequence[Object] = (),
        spec: Mapping[str, Any] | None = None,
        node: str = "node-1",
    ) -> "Pod":
        """ADDED: Pending, without address or conditions. Labelled `app: vllm` unless told otherwise."""
        assert (namespace, name) not in self.log.pods, f"{namespace}/{name} is there already"
        made = pods.new_pod(
            name,
            namespace,
            str(UUID(int=self._random.getrandbits(128), version=4)),
            self.now(),
            labels={"app": "vllm"} if labels is None else labels,
            annotations=annotations or {},
            owner=owner,
            containers=containers,
            spec=spec,
            node=node,
        )
        self.log.put(made)
        return Pod(self, namespace, name)

    def create_ready(self, name: str, namespace: str = "models", *, ip: str = "", **given: Any) -> "Pod":
        """ADDED, then one MODIFIED: Running, with an address, Ready. `given` as for `create`."""
        pod = self.create(name, namespace, **given)
        pod.become_ready(ip)
        return pod

    def fresh_address(self) -> str:
        self._addresses += 1
        return f"10.244.{self._addresses >> 8}.{self._addresses & 255}"


class Pod:
    """A handle on a pod: by name, so it follows a pod that was replaced under the same name."""

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.name = name

    @property
    def object(self) -> Object:
        """As the server holds it now."""
        return self.cluster.log.pods[self.namespace, self.name]

    @property
    def uid(self) -> str:
        uid: str = self.object["metadata"]["uid"]
        return uid

    def start(self) -> None:
        """MODIFIED: conditions appear, still Pending and without an address."""
        self._put(pods.with_readiness(self.object, self.cluster.now(), ready=False, started=False))

    def run(self, *addresses: str) -> None:
        """MODIFIED: Running, an address, not ready yet: the model loads. Without `addresses` a fresh one."""
        addresses = addresses or (self.cluster.fresh_address(),)
        self._put(pods.with_address(pods.with_readiness(self.object, self.cluster.now(), ready=False), *addresses))

    def become_ready(self, *addresses: str) -> None:
        """MODIFIED: Running and Ready, at its address, or a given or fresh one."""
        given = tuple(filter(None, addresses)) or (self.object["status"].get("podIP") or self.cluster.fresh_address(),)
        self._put(pods.with_address(pods.with_readiness(self.object, self.cluster.now(), ready=True), *given))

    def become_unready(self) -> None:
        """MODIFIED: a readiness probe failed. Also the first thing that a terminating pod's kubelet reports."""
        self._put(pods.with_readiness(self.object, self.cluster.now(), ready=False))

    def relabel(self, **labels: str | None) -> None:
        """Labels set, or with None taken away. For a watcher whose selector it leaves, that is DELETED."""
        self._put(pods.with_metadata(self.object, labels=self._edited("labels", labels)))

    def annotate(self, annotations: Mapping[str, str | None]) -> None:
        """MODIFIED: annotations set, or with None taken away."""
        self._put(pods.with_metadata(self.object, annotations=self._edited("annotations", annotations)))

    def set_status(self, **fields: Any) -> None:
        """MODIFIED: any fields of the status; None takes one away."""
        self._put(pods.with_status(self.object, **fields))

    def set_conditions(self, **conditions: str) -> None:
        """MODIFIED: `set_conditions(Ready="Unknown")` is what a lost node looks like."""
        self._put(pods.with_conditions(self.object, self.cluster.now(), **conditions))

    def evict(self) -> None:
        """MODIFIED: Failed, with the reason Evicted; the object stays."""
        told = "The node was low on resource: memory."
        pod = pods.with_readiness(self.object, self.cluster.now(), ready=False)
        self._put(pods.with_status(pod, phase="Failed", reason="Evicted", message=told))

    def crash(self) -> None:
        """MODIFIED: Running and not ready, its container waiting in CrashLoopBackOff."""
        pod = pods.with_readiness(self.object, self.cluster.now(), ready=False, started=False)
        waits = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
        statuses = [
            status | {"state": waits, "restartCount": status["restartCount"] + 1}
            for status in pod["status"]["containerStatuses"]
        ]
        self._put(pods.with_status(pod, containerStatuses=statuses))

    def delete(self, grace: int = 30) -> None:
        """MODIFIED: a future deletionTimestamp, generation + 1, Ready and phase as before."""
        self._put(pods.marked_for_deletion(self.object, self.cluster.now(), grace))

    def kill(self) -> None:
        """MODIFIED with grace 0, then DELETED: a forced delete, and the end of a graceful one."""
        self.delete(grace=0)
        self.vanish()

    def vanish(self) -> None:
        """DELETED alone, with nothing before it."""
        self.cluster.log.remove((self.namespace, self.name))

    def replace(self) -> None:
        """Gone, and another under the same name with a new uid: what a StatefulSet does."""
        old = self.object
        self.kill()
        metadata = old["metadata"]
        self.cluster.create(
            self.name,
            self.namespace,
            labels=metadata.get("labels", {}),
            annotations=metadata.get("annotations", {}),
            containers=old["spec"]["containers"],
        )

    def _edited(self, field: str, changes: Mapping[str, str | None]) -> dict[str, str] | None:
        merged = self.object["metadata"].get(field, {}) | changes
        return {name: value for name, value in merged.items() if value is not None} or None

    def _put(self, pod: Object) -> None:
        self.cluster.log.put(pod)
