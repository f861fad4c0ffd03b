"""Ports: whoever asks for one by name or number finds it where it asks."""

import re
from collections.abc import Iterator
from typing import Any

from tests.manifests.building import (
    Build,
    Manifest,
    containers,
    environment,
    labels_of,
    namespace_of,
    of_kind,
    pods,
    selects,
    templates,
    title,
)

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def declared(template: Manifest) -> dict[str | int, int]:
    """Of a pod: its ports by name and by number."""
    found: dict[str | int, int] = {}
    for container in containers(template):
        for port in container.get("ports", []):
            found[port["containerPort"]] = found[port.get("name", "")] = port["containerPort"]
    return found


def ports_of_a_pod_are_distinct(built: Build) -> list[str]:
    """A name twice in a pod means either; a number twice means that one container does not start."""
    found = []
    for each, template in pods(built):
        listed = [port for container in containers(template) for port in container.get("ports", [])]
        for key in ("name", "containerPort"):
            values = [(port.get(key), port.get("protocol", "TCP")) for port in listed]
            found += [f"{title(each)}: two ports have the {key} {value}" for value, _ in _doubles(values)]
    return found


def _doubles(values: list[Any]) -> list[Any]:
    return sorted({value for value in values if values.count(value) > 1})


def services_lead_to_ports(built: Build) -> list[str]:
    """By name, of every pod that the Service finds; and by the port's own name, so that its `http` is no `ops`."""
    found = []
    for each in of_kind(built, "Service"):
        names = [port.get("name") for port in each["spec"]["ports"]]
        found += [f"{title(each)}: two ports have the name {name}" for name in _doubles(names)]
        for port in each["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            if isinstance(target, str) and target != port.get("name", target):
                found.append(f"{title(each)}: the port {port['name']} leads to {target}")
            for workload, template in _behind(built, each):
                if target not in declared(template):
                    found.append(f"{title(each)}: {title(workload)} has no port {target}")
    return found


def _behind(built: Build, service: Manifest) -> Iterator[tuple[Manifest, Manifest]]:
    selector = {"matchLabels": service["spec"].get("selector") or {}}
    for each, template in pods(built):
        if namespace_of(each) == namespace_of(service) and selects(selector, labels_of(template)):
            yield each, template


def probes_ask_ports(built: Build) -> list[str]:
    """Of their own container: probes, and what a hook calls."""
    found = []
    for each, template in pods(built):
        for container in containers(template):
            own = {
                key
                for port in container.get("ports", [])
                for key in (port.get("name"), port["containerPort"])
                if key is not None
            }
            for what, port in _asked(container):
                if port not in own:
                    found.append(f"{title(each)}: {what} of {container['name']} asks port {port}, which it has not")
    return found


def _asked(container: Manifest) -> Iterator[tuple[str, str | int]]:
    hooks = container.get("lifecycle") or {}
    for what, does in (*((name, container.get(name)) for name in PROBES), *hooks.items()):
        for way in ("httpGet", "tcpSocket", "grpc"):
            if does and way in does:
                yield what, does[way]["port"]


def monitors_find_ports(built: Build) -> list[str]:
    """Prometheus' operator scrapes nothing, and says nothing, where a selector or a port's name is wrong."""
    found = []
    for each in of_kind(built, "ServiceMonitor"):
        targets = [
            service
            for service in of_kind(built, "Service")
            if namespace_of(service) in _watched(each) and selects(each["spec"]["selector"], labels_of(service))
        ]
        if not targets:
            found.append(f"{title(each)}: finds no Service")
        for endpoint in each["spec"]["endpoints"]:
            found += [
                f"{title(each)}: {title(service)} has no port {endpoint['port']}"
                for service in targets
                if endpoint["port"] not in [port.get("name") for port in service["spec"]["ports"]]
            ]
    for each in of_kind(built, "PodMonitor"):
        watched = [
            (workload, template)
            for workload, template in pods(built)
            if namespace_of(workload) in _watched(each) and selects(each["spec"]["selector"], labels_of(template))
        ]
        if not watched:
            found.append(f"{title(each)}: finds no pod")
        for endpoint in each["spec"]["podMetricsEndpoints"]:
            found += [
                f"{title(each)}: {title(workload)} has no port {endpoint['port']}"
                for workload, template in watched
                if endpoint["port"] not in declared(template)
            ]
    return found


def _watched(monitor: Manifest) -> list[str]:
    return list((monitor["spec"].get("namespaceSelector") or {}).get("matchNames") or [namespace_of(monitor)])


def routes_lead_to_services(built: Build) -> list[str]:
    """An Ingress' or HTTPRoute's backends, by the Service's own port."""
    return [
        f"{title(each)}: leads to {name}:{port}, which no Service has"
        for each in of_kind(built, "Ingress", "HTTPRoute")
        for namespace, name, port in _backends(each)
        if (namespace, name, port) not in _offered(built)
    ]


def _backends(route: Manifest) -> Iterator[tuple[str, str, str | int]]:
    spec = route["spec"]
    if route["kind"] == "HTTPRoute":
        for rule in spec["rules"]:
            for backend in rule.get("backendRefs", []):
                yield backend.get("namespace", namespace_of(route)), backend["name"], backend["port"]
        return
    single = [spec["defaultBackend"]] if "defaultBackend" in spec else []
    listed = [path["backend"] for rule in spec.get("rules", []) for path in rule["http"]["paths"]]
    for backend in (*single, *listed):
        port = backend["service"]["port"]
        yield namespace_of(route), backend["service"]["name"], port.get("name", port.get("number"))


def _offered(built: Build) -> set[tuple[str, str, str | int]]:
    return {
        (namespace_of(each), each["metadata"]["name"], key)
        for each in of_kind(built, "Service")
        for port in each["spec"]["ports"]
        for key in (port.get("name", ""), port["port"])
    }


URL = re.compile(r"\b(?:https?|rediss?|grpc)://(?:[^\s/@\"']*@)?([a-z0-9][-a-z0-9.]*)(?::(\d+))?")


def addresses_are_of_services(built: Build) -> list[str]:
    """Each URL of this cluster, wherever it is written: in arguments, in variables, in what a ConfigMap holds.

    A host without a dot is a Service of the namespace, one that ends in a namespace of ours a Service there; any
    other is somewhere else.
    """
    offered = _offered(built)
    made = {each["metadata"]["name"] for each in of_kind(built, "Namespace")}
    found = []
    for each in built:
        for text in _texts(each):
            for host, port in URL.findall(text):
                name, _, rest = host.removesuffix(".").partition(".")
                namespace = rest.partition(".")[0] or namespace_of(each)
                if name == "localhost" or name.isdecimal() or namespace not in made or not _inside(rest):
                    continue
                if (namespace, name, int(port or 80)) not in offered:
                    found.append(f"{title(each)}: asks {host}:{port or 80}, which no Service has")
    return found


def _inside(rest: str) -> bool:
    return rest.partition(".")[2] in ("", "svc", "svc.cluster.local")


def _texts(manifest: Manifest) -> Iterator[str]:
    if manifest["kind"] == "ConfigMap":
        yield from (_without_comments(text) for text in manifest.get("data", {}).values())
    for template in templates(manifest):
        for container in containers(template):
            yield from map(str, (*container.get("command", []), *container.get("args", [])))
            yield from (value for value in environment(container).values() if isinstance(value, str))
    if manifest["kind"] == "ScaledObject":
        yield from (str(trigger["metadata"].get("serverAddress", "")) for trigger in manifest["spec"]["triggers"])


def _without_comments(text: str) -> str:
    return re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
