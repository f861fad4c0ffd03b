"""Which pod may speak to which, by NetworkPolicy: what the policies of a build let pass, and nothing else does.

A connection passes if the source's policies let it out and the target's let it in. A pod that no policy of a direction
selects is open in that direction; policies add up, none takes away. Replies always pass. What runs outside the build
(another namespace, the API server, the Internet) has no policies of ours.

Source: https://kubernetes.io/docs/concepts/services-networking/network-policies/.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Literal

from tests.manifests.building import (
    Build,
    Manifest,
    containers,
    labels_of,
    namespace_of,
    of_kind,
    pod_labels,
    pods,
    selects,
)

Direction = Literal["Ingress", "Egress"]


@dataclass(frozen=True)
class End:
    """A pod, or with an address alone something outside the cluster."""

    name: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    ports: Mapping[str, tuple[int, str]] = field(default_factory=dict, hash=False)
    """Of a pod, by name: number and protocol."""
    address: str = ""


@dataclass(frozen=True)
class Port:
    """Where a connection goes to."""

    number: int
    protocol: str = "TCP"


@dataclass(frozen=True)
class Network:
    """The policies of a build, and what namespaces there are."""

    policies: tuple[Manifest, ...]
    namespaces: Mapping[str, Mapping[str, str]]
    """By name: their labels. Each has its name as a label, as Kubernetes sees to."""

    @classmethod
    def of(cls, built: Build, others: Iterable[str] = ()) -> "Network":
        """`others`: namespaces that are there beside those of the build."""
        named: dict[str, dict[str, str]] = {name: {} for name in others}
        named |= {each["metadata"]["name"]: labels_of(each) for each in of_kind(built, "Namespace")}
        return cls(
            tuple(of_kind(built, "NetworkPolicy")),
            {name: {**labels, "kubernetes.io/metadata.name": name} for name, labels in named.items()},
        )

    def passes(self, source: End, target: End, port: Port) -> bool:
        """Whether a connection gets from one to the other."""
        return self._allows("Egress", source, target, target, port) and self._allows(
            "Ingress", target, source, target, port
        )

    def _allows(self, direction: Direction, guarded: End, peer: End, target: End, port: Port) -> bool:
        guards = [policy["spec"] for policy in self.policies if _guards(policy, direction, guarded)]
        if not guards:
            return True
        key, peers = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
        for policy, namespace in ((spec, guarded.namespace) for spec in guards):
            for rule in policy.get(key) or []:
                by_peer = not rule.get(peers) or any(self._is(each, peer, namespace) for each in rule[peers])
                by_port = not rule.get("ports") or any(_is_port(each, target, port) for each in rule["ports"])
                if by_peer and by_port:
                    return True
        return False

    def _is(self, told: Mapping[str, Any], peer: End, home: str) -> bool:
        if "ipBlock" in told:
            block = told["ipBlock"]
            # What a block says of pods is left to the network's plugin: it is for what is outside.
            if peer.namespace or not peer.address:
                return False
            inside = ip_address(peer.address) in ip_network(block["cidr"])
            return inside and not any(ip_address(peer.address) in ip_network(no) for no in block.get("except", []))
        if not peer.namespace:
            return False
        if "namespaceSelector" in told:
            if not selects(told["namespaceSelector"], self.namespaces.get(peer.namespace, {})):
                return False
        elif peer.namespace != home:
            return False
        return selects(told.get("podSelector") or {}, peer.labels)


def _guards(policy: Manifest, direction: Direction, end: End) -> bool:
    spec = policy["spec"]
    kinds = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    return direction in kinds and namespace_of(policy) == end.namespace and selects(spec["podSelector"], end.labels)


def _is_port(told: Mapping[str, Any], target: End, port: Port) -> bool:
    if told.get("protocol", "TCP") != port.protocol:
        return False
    wanted = told.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        # A name is the target pod's, in both directions. What is outside has no names.
        return target.ports.get(wanted) == (port.number, port.protocol)
    return bool(wanted <= port.number <= told.get("endPort", wanted))


def ends(built: Build) -> list[End]:
    """Every pod of a build, one of each template; named by its workload."""
    return [
        End(
            name=f"{namespace_of(each)}/{each['metadata']['name']}",
            namespace=namespace_of(each),
            labels=pod_labels(each, template),
            ports={
                port["name"]: (port["containerPort"], port.get("protocol", "TCP"))
                for container in containers(template)
                for port in container.get("ports", [])
            },
        )
        for each, template in pods(built)
    ]
