"""Who may speak to whom: in each build exactly the flows that are needed, by the policies' own rules.

`FLOWS` is the whole of it. Between the pods of a build, and what is around them, every connection is tried on every
port: those of the table whose two ends are there must pass, and no other may.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.manifests.building import (
    EVERY_BUILD,
    OVERLAYS,
    Build,
    Manifest,
    build,
    labels_of,
    name_of,
    of_kind,
    pods,
    title,
)
from tests.manifests.checks.naming import NAME, POOL
from tests.manifests.checks.network import End, Network, Port, ends

AROUND = {
    "anyone": End("anyone", "elsewhere", {"app": "anything"}),
    "DNS": End("DNS", "kube-system", {"k8s-app": "kube-dns"}),
    "monitoring": End("monitoring", "monitoring", {NAME: "prometheus"}),
    "API server": End("API server", address="10.96.0.1"),
    "Internet": End("Internet", address="198.51.100.7"),
    "own network": End("own network", address="10.1.2.3"),
    "metadata": End("metadata", address="169.254.169.254"),
}
"""What is there beside a build's pods: a stranger's pod in another namespace, DNS, a Prometheus Operator's Prometheus,
and addresses. That of the cloud's metadata gives out the node's credentials."""
OUTSIDE_PORTS = {
    "DNS": [Port(53, "UDP"), Port(53)],
    "API server": [Port(443), Port(6443), Port(8443)],
    "Internet": [Port(443), Port(80)],
    "own network": [Port(5432)],
    "metadata": [Port(80)],
}
UNDECLARED = Port(4444)
"""What a pod may listen on without saying so."""
ANY = "any port"


@dataclass(frozen=True)
class Flow:
    """A connection, by what its ends are and by the port's name or number."""

    source: str
    target: str
    port: str


def dns(source: str) -> set[Flow]:
    return {Flow(source, "DNS", "53/UDP"), Flow(source, "DNS", "53/TCP")}


def api_server(source: str) -> set[Flow]:
    """No selector can name it and its address is each cluster's own, so all of the world's 443 is open with it.

    A network plugin sees the port of the server behind the Service: 443, or 6443 in kubeadm's clusters, kind and k3s,
    or 8443 in minikube.
    """
    return {
        Flow(source, "API server", "443/TCP"),
        Flow(source, "API server", "6443/TCP"),
        Flow(source, "API server", "8443/TCP"),
        Flow(source, "Internet", "443/TCP"),
    }


FLOWS = {
    # The gateway: asked by all who have a key; asks the pods, Redis, the API server, and an issuer for its keys.
    Flow("anyone", "poolgate", "http"),
    Flow("poolgate", "pool", "http"),
    Flow("poolgate", "leader", "http"),
    Flow("poolgate", "valkey", "redis"),
    Flow("poolgate", "otel-collector", "otlp-http"),
    *dns("poolgate"),
    *api_server("poolgate"),
    # Engines load their models; a group's pods speak to each other on ports of their own choice.
    *dns("pool"),
    Flow("pool", "Internet", "443/TCP"),
    *dns("leader"),
    Flow("leader", "Internet", "443/TCP"),
    *dns("worker"),
    Flow("worker", "Internet", "443/TCP"),
    *(Flow(one, other, ANY) for one in ("leader", "worker") for other in ("leader", "worker")),
    *dns("model-loader"),
    Flow("model-loader", "Internet", "443/TCP"),
    # What watches.
    Flow("prometheus", "poolgate", "ops"),
    Flow("prometheus", "pool", "http"),
    Flow("prometheus", "leader", "http"),
    *api_server("prometheus"),
    Flow("monitoring", "poolgate", "ops"),
    Flow("monitoring", "pool", "http"),
    Flow("monitoring", "leader", "http"),
    Flow("anyone", "grafana", "http"),
    Flow("grafana", "prometheus", "http"),
    *dns("grafana"),
    # People.
    Flow("anyone", "open-webui", "http"),
    Flow("open-webui", "poolgate", "http"),
    *dns("open-webui"),
    *api_server("first-secrets"),
}
SIMULATED = {
    Flow("poolgate", "simulator", "http"),
    Flow("prometheus", "simulator", "http"),
    Flow("monitoring", "simulator", "http"),
}
"""A simulated pod answers, and asks nobody anything."""


def role(workload: Manifest, template: Manifest) -> str:
    """What a pod is in the table."""
    labels = labels_of(template)
    if workload["kind"] == "LeaderWorkerSet":
        return "leader" if POOL in labels else "worker"
    if POOL in labels:
        return "pool" if labels[NAME] == "vllm" else "simulator"
    return labels[NAME]


def cast(built: Build) -> list[tuple[str, End]]:
    """Everybody in the play: the build's pods, and what is around them."""
    inside = [(role(*pod), end) for pod, end in zip(pods(built), ends(built), strict=True)]
    return [*inside, *AROUND.items()]


def tried(built: Build) -> Iterator[tuple[Flow, bool, str]]:
    """Each connection, whether it passes, and whose it is."""
    network = Network.of(built, {end.namespace for end in AROUND.values()} - {""})
    for source_role, source in cast(built):
        for target_role, target in cast(built):
            if source.name in AROUND and target.name in AROUND:
                continue
            for name, port in ports_of(target):
                told = f"{source.name} -> {target.name}:{name}"
                yield Flow(source_role, target_role, name), network.passes(source, target, port), told


def ports_of(target: End) -> Iterator[tuple[str, Port]]:
    if target.name in AROUND:
        for port in OUTSIDE_PORTS.get(target.name, []):
            yield f"{port.number}/{port.protocol}", port
    else:
        for name, (number, protocol) in target.ports.items():
            yield name, Port(number, protocol)
        yield ANY, UNDECLARED


def is_needed(flow: Flow, built: Build) -> bool:
    """By the table. What is around a build is anyone too; a Prometheus Operator is where there are monitors."""
    ways = {flow, Flow(flow.source, flow.target, ANY)}
    if flow.source in AROUND:
        ways.add(Flow("anyone", flow.target, flow.port))
    if flow.source == "monitoring" and not of_kind(built, "ServiceMonitor"):
        ways.discard(flow)
    return not ways.isdisjoint(FLOWS | SIMULATED)


@pytest.mark.program("kubectl")
@pytest.mark.parametrize("folder", EVERY_BUILD, ids=name_of)
def test_what_is_needed_passes_and_nothing_else(folder: Path) -> None:
    built = build(folder)
    wrong = {
        told: "is needed and does not pass" if is_needed(flow, built) else "passes and is not needed"
        for flow, passes, told in tried(built)
        if passes is not is_needed(flow, built)
    }
    assert wrong == {}


@pytest.mark.program("kubectl")
@pytest.mark.parametrize("folder", OVERLAYS, ids=name_of)
def test_no_policy_may_be_left_out(folder: Path) -> None:
    """Without it something passes that should not, or does not pass that should: else it is there for nothing."""
    built = build(folder)
    whole = passing(built)
    idle = [title(policy) for policy in of_kind(built, "NetworkPolicy") if passing(but_for(policy, built)) == whole]
    assert idle == []


def passing(built: Build) -> set[str]:
    return {told for _, passes, told in tried(built) if passes}


def but_for(left_out: Manifest, built: Build) -> Build:
    return tuple(each for each in built if each is not left_out)


PRIVATE = {
    "0.0.0.0/0": {"10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"},
    "::/0": {"fc00::/7", "fe80::/10"},
}


@pytest.mark.program("kubectl")
def test_a_way_to_all_addresses_is_none_to_those_that_are_private() -> None:
    """The cluster's, the network's around it, and the cloud's metadata: at the Internet's port as well."""
    blocks = [
        peer["ipBlock"]
        for folder in EVERY_BUILD
        for policy in of_kind(build(folder), "NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for peer in rule.get("to", [])
        if peer.get("ipBlock", {}).get("cidr") in PRIVATE
    ]
    assert blocks
    assert [block for block in blocks if set(block.get("except", [])) != PRIVATE[block["cidr"]]] == []


@pytest.mark.program("kubectl")
def test_each_name_in_the_table_is_somebody() -> None:
    """A line about nobody would let a later mistake pass."""
    there = {name for folder in EVERY_BUILD for name, _ in cast(build(folder))}
    assert {name for flow in FLOWS | SIMULATED for name in (flow.source, flow.target)} <= there


# What a policy means

GATEWAY = End("gateway", "gw", {"app": "gateway"}, {"http": (8000, "TCP")})
ENGINE = End("engine", "models", {"app": "engine"}, {"http": (8000, "TCP"), "dns": (53, "UDP")})
STRANGER = End("stranger", "elsewhere", {"app": "gateway"})
WORLD = End("world", address="198.51.100.7")
HTTP = Port(8000)


def network(*policies: str) -> Network:
    """Of policies as `NAMESPACE: SPEC`, before three namespaces."""
    made = []
    for text in policies:
        ((namespace, spec),) = yaml.safe_load(text).items()
        made.append({"kind": "NetworkPolicy", "metadata": {"name": "a", "namespace": namespace}, "spec": spec})
    return Network.of(tuple(made), ("gw", "models", "elsewhere"))


OPEN_OUT = "gw: {podSelector: {}, policyTypes: [Egress], egress: [{}]}"
CLOSED = "models: {podSelector: {}, policyTypes: [Ingress, Egress]}"


def test_without_policies_everything_passes() -> None:
    assert network().passes(GATEWAY, ENGINE, HTTP)
    assert network().passes(WORLD, ENGINE, HTTP)


def test_a_pod_that_a_policy_selects_is_closed_but_for_what_it_says() -> None:
    assert not network(CLOSED).passes(GATEWAY, ENGINE, HTTP)
    assert not network(CLOSED).passes(ENGINE, WORLD, HTTP)
    assert network(CLOSED).passes(GATEWAY, STRANGER, HTTP)


def test_a_policy_closes_the_directions_that_it_names() -> None:
    only_in = network("models: {podSelector: {}, policyTypes: [Ingress]}")
    assert not only_in.passes(GATEWAY, ENGINE, HTTP)
    assert only_in.passes(ENGINE, WORLD, HTTP)


def test_without_types_a_policy_is_for_what_comes_in_and_with_egress_rules_for_what_goes_out_too() -> None:
    assert network("models: {podSelector: {}}").passes(ENGINE, WORLD, HTTP)
    assert not network("models: {podSelector: {}}").passes(GATEWAY, ENGINE, HTTP)
    assert not network("models: {podSelector: {}, egress: [{ports: [{port: 443}]}]}").passes(ENGINE, WORLD, HTTP)


def test_both_sides_must_let_it_pass() -> None:
    way_in = "models: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"
    assert network(way_in).passes(GATEWAY, ENGINE, HTTP)
    assert not network(way_in, "gw: {podSelector: {}, policyTypes: [Egress]}").passes(GATEWAY, ENGINE, HTTP)
    assert network(way_in, OPEN_OUT).passes(GATEWAY, ENGINE, HTTP)
    assert not network(CLOSED, OPEN_OUT).passes(GATEWAY, ENGINE, HTTP)


def test_policies_add_up() -> None:
    assert network(CLOSED, "models: {podSelector: {}, ingress: [{}]}").passes(GATEWAY, ENGINE, HTTP)


def test_a_policy_is_for_its_own_namespace_and_for_the_pods_it_selects() -> None:
    assert network("gw: {podSelector: {}}").passes(GATEWAY, ENGINE, HTTP)
    assert network("models: {podSelector: {matchLabels: {app: other}}}").passes(GATEWAY, ENGINE, HTTP)


def test_a_pod_selector_alone_is_of_the_own_namespace() -> None:
    by_label = "models: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: gateway}}}]}]}"
    assert not network(by_label).passes(GATEWAY, ENGINE, HTTP)
    assert network(by_label).passes(End("near", "models", {"app": "gateway"}), ENGINE, HTTP)


def test_two_selectors_in_one_peer_must_both_hold_and_two_peers_either() -> None:
    both = (
        "models: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: "
        "{kubernetes.io/metadata.name: gw}}, podSelector: {matchLabels: {app: gateway}}}]}]}"
    )
    either = both.replace("}}, podSelector", "}}}, {podSelector")
    assert network(both).passes(GATEWAY, ENGINE, HTTP)
    assert not network(both).passes(STRANGER, ENGINE, HTTP)
    assert not network(both).passes(End("other", "gw", {"app": "other"}), ENGINE, HTTP)
    assert network(either).passes(End("other", "gw", {"app": "other"}), ENGINE, HTTP)


def test_a_namespace_selector_reads_the_labels_of_namespaces() -> None:
    labelled = network(
        "models: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: "
        "[{key: kubernetes.io/metadata.name, operator: NotIn, values: [elsewhere]}]}}]}]}"
    )
    assert labelled.passes(GATEWAY, ENGINE, HTTP)
    assert not labelled.passes(STRANGER, ENGINE, HTTP)


def test_a_block_of_addresses_is_for_what_is_outside_and_has_holes() -> None:
    block = network("models: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}]}]}")
    assert block.passes(ENGINE, WORLD, HTTP)
    assert not block.passes(ENGINE, End("inside", address="10.1.2.3"), HTTP)
    assert not block.passes(ENGINE, End("six", address="2001:db8::1"), HTTP)
    assert not block.passes(ENGINE, STRANGER, HTTP)
    assert not network("models: {podSelector: {}, egress: [{to: [{podSelector: {}}]}]}").passes(ENGINE, WORLD, HTTP)


def test_a_port_is_a_number_a_range_or_the_name_that_the_target_gives_it() -> None:
    def to(ports: str) -> Network:
        return network(f"gw: {{podSelector: {{}}, policyTypes: [Egress], egress: [{{ports: [{ports}]}}]}}")

    assert to("{port: 8000}").passes(GATEWAY, ENGINE, HTTP)
    assert to("{port: http}").passes(GATEWAY, ENGINE, HTTP)
    assert to("{port: 7000, endPort: 9000}").passes(GATEWAY, ENGINE, HTTP)
    assert to("{protocol: TCP}").passes(GATEWAY, ENGINE, HTTP)
    assert not to("{port: 7000, endPort: 7999}").passes(GATEWAY, ENGINE, HTTP)
    assert not to("{port: 8001}").passes(GATEWAY, ENGINE, HTTP)
    assert not to("{port: ops}").passes(GATEWAY, ENGINE, HTTP)
    assert not to("{port: http}").passes(GATEWAY, STRANGER, HTTP)
    assert not to("{port: 8000, protocol: UDP}").passes(GATEWAY, ENGINE, HTTP)
    assert to("{port: dns, protocol: UDP}").passes(GATEWAY, ENGINE, Port(53, "UDP"))
    assert not to("{port: dns}").passes(GATEWAY, ENGINE, Port(53, "UDP"))


def test_a_rule_wants_its_peers_and_its_ports() -> None:
    rule = network(
        "models: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: "
        "{kubernetes.io/metadata.name: gw}}}], ports: [{port: http}]}]}"
    )
    assert rule.passes(GATEWAY, ENGINE, HTTP)
    assert not rule.passes(GATEWAY, ENGINE, Port(4444))
    assert not rule.passes(STRANGER, ENGINE, HTTP)
