"""What the API server refuses although the schema lets it pass: fields that exclude, or want, each other.

Source: Kubernetes' `pkg/apis/*/validation`, as of 1.37; what we use of it.
"""

import re
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

from tests.manifests.building import Build, Manifest, containers, of_kind, pods, sources_of, title
from tests.manifests.checks.quantities import quantity

HANDLERS = ("exec", "grpc", "httpGet", "sleep", "tcpSocket")


def pods_hold_together(built: Build) -> list[str]:
    """Names are distinct, each source is one, hooks end within the grace, probes count as they may."""
    return [f"{title(each)}: {fault}" for each, template in pods(built) for fault in _of_pod(template["spec"])]


def _of_pod(spec: Manifest) -> Iterator[str]:
    names = [container["name"] for container in containers({"spec": spec})]
    if len(names) != len(set(names)):
        yield f"two containers of one name: {names}"
    for volume in spec.get("volumes", []):
        if len(volume) != 2:
            yield f"volume {volume['name']} has not one source"
    for container in containers({"spec": spec}):
        for fault in _of_container(container, spec):
            yield f"{container['name']}: {fault}"
    for path in _paths_of_files(spec):
        if path.startswith("/") or ".." in path.split("/"):
            yield f"the file {path} leaves its volume"
    for toleration in spec.get("tolerations", []):
        exists = toleration.get("operator", "Equal") == "Exists"
        if exists == ("value" in toleration) or not (exists or toleration.get("key")):
            yield f"a toleration of {toleration.get('key')} has a value, or its operator is Exists"
        if "tolerationSeconds" in toleration and toleration.get("effect") != "NoExecute":
            yield f"a toleration of {toleration.get('key')} ends, and is not of the effect NoExecute"
    spreads = spec.get("topologySpreadConstraints", [])
    if len({(each["topologyKey"], each["whenUnsatisfiable"]) for each in spreads}) < len(spreads):
        yield "two topology spreads of one key"
    for spread in spreads:
        selector = spread.get("labelSelector") or {}
        if set(spread.get("matchLabelKeys", [])) & _asked_for(selector) or (
            "matchLabelKeys" in spread and not selector
        ):
            yield "the topology spread's matchLabelKeys add to a selector what it does not say"
        if "minDomains" in spread and spread["whenUnsatisfiable"] != "DoNotSchedule":
            yield "minDomains want DoNotSchedule"
    for container in spec.get("initContainers", []):
        if container.get("restartPolicy") != "Always" and any(key.endswith("Probe") for key in container):
            yield f"{container['name']}: an init container that ends has no probes"


def _paths_of_files(spec: Manifest) -> Iterator[str]:
    for volume in spec.get("volumes", []):
        for source in sources_of(volume):
            for held in source.values():
                if isinstance(held, dict):
                    yield from (item["path"] for item in held.get("items", []))


def _asked_for(selector: Manifest) -> set[str]:
    return {*selector.get("matchLabels", {}), *(each["key"] for each in selector.get("matchExpressions", []))}


def _of_container(container: Manifest, spec: Manifest) -> Iterator[str]:
    for variable in container.get("env", []):
        if "value" in variable and "valueFrom" in variable:
            yield f"{variable['name']} has a value, and one from elsewhere"
        if "valueFrom" in variable and len(variable["valueFrom"]) != 1:
            yield f"{variable['name']} is from several places"
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container.get(name)
        if probe is None:
            continue
        if len([way for way in HANDLERS if way in probe]) != 1:
            yield f"{name} has not one way to ask"
        if name != "readinessProbe" and probe.get("successThreshold", 1) != 1:
            yield f"{name} has a successThreshold"
        if name == "readinessProbe" and "terminationGracePeriodSeconds" in probe:
            yield f"{name} kills nothing, and has a grace"
    for hook, does in (container.get("lifecycle") or {}).items():
        if len([way for way in HANDLERS if way in does]) != 1:
            yield f"{hook} has not one thing to do"
        grace = spec.get("terminationGracePeriodSeconds", 30)
        if not 0 < (does.get("sleep") or {"seconds": 1})["seconds"] <= grace:
            yield f"{hook} sleeps longer than the grace of {grace} s"
    for mount in container.get("volumeMounts", []):
        if "subPath" in mount and (mount["subPath"].startswith("/") or ".." in mount["subPath"].split("/")):
            yield f"the subPath {mount['subPath']} leaves its volume"


def workloads_hold_together(built: Build) -> list[str]:
    """Strategies, deadlines and restart policies that go with the kind."""
    found = []
    for each in of_kind(built, "Deployment"):
        strategy = each["spec"].get("strategy") or {}
        if strategy.get("type") == "Recreate" and "rollingUpdate" in strategy:
            found.append(f"{title(each)}: Recreate, and how to roll")
        if each["spec"].get("progressDeadlineSeconds", 600) <= each["spec"].get("minReadySeconds", 0):
            found.append(f"{title(each)}: minReadySeconds are not over when the rollout is called failed")
    found += [
        f"{title(each)}: a Job's selector is made by its controller"
        for each in of_kind(built, "Job")
        if "selector" in each["spec"]
    ]
    for each, template in pods(built):
        policy = template["spec"].get("restartPolicy", "Always")
        if each["kind"] in ("Job", "CronJob"):
            if policy == "Always":
                found.append(f"{title(each)}: a Job's pod ends: restartPolicy OnFailure or Never")
        elif each["kind"] != "Pod" and policy != "Always":
            found.append(f"{title(each)}: restartPolicy {policy}")
        if each["kind"] not in ("Job", "CronJob", "Pod") and "activeDeadlineSeconds" in template["spec"]:
            found.append(f"{title(each)}: pods that end by a deadline are a Job's")
    return found


def budgets_and_scales_hold_together(built: Build) -> list[str]:
    """One bound of the two, and the least not above the most."""
    found = [
        f"{title(each)}: minAvailable or maxUnavailable, one of them"
        for each in of_kind(built, "PodDisruptionBudget")
        if ("minAvailable" in each["spec"]) == ("maxUnavailable" in each["spec"])
    ]
    for each in of_kind(built, "HorizontalPodAutoscaler", "ScaledObject"):
        spec: dict[str, Any] = each["spec"]
        least = spec.get("minReplicas", spec.get("minReplicaCount", 1))
        if least > spec.get("maxReplicas", spec.get("maxReplicaCount", 100)):
            found.append(f"{title(each)}: the least is above the most")
        if not least and each["kind"] == "HorizontalPodAutoscaler":
            found.append(f"{title(each)}: 0 replicas are KEDA's, not an autoscaler's without a feature gate")
        found += [f"{title(each)}: {fault}" for fault in _of_scaling(spec)]
    return found


TARGETS = {"AverageValue": "averageValue", "Utilization": "averageUtilization", "Value": "value"}


def _of_scaling(spec: Manifest) -> Iterator[str]:
    keda = (spec.get("advanced") or {}).get("horizontalPodAutoscalerConfig") or {}
    for way, rules in (spec.get("behavior") or keda.get("behavior") or {}).items():
        for policy in rules.get("policies", []):
            if not 1 <= policy["periodSeconds"] <= 1800 or policy["value"] < 1:
                yield f"a policy of {way} is for 1 to 1800 s, and for one pod at least"
    for metric in spec.get("metrics", []):
        source = next(value for key, value in metric.items() if key != "type")
        told = source["target"].keys() & set(TARGETS.values())
        if told != {TARGETS[source["target"]["type"]]}:
            yield f"a target of the type {source['target']['type']} has {', '.join(sorted(told)) or 'no number'}"


def policies_hold_together(built: Build) -> list[str]:
    """A network policy's peers are selectors or a block of addresses, and say something; blocks are written in full."""
    found = []
    for each in of_kind(built, "NetworkPolicy"):
        for direction, key in (("ingress", "from"), ("egress", "to")):
            rules = each["spec"].get(direction) or []
            if rules and direction.title() not in each["spec"].get("policyTypes", ["Ingress"]):
                found.append(f"{title(each)}: has {direction} rules, which policyTypes leaves out of force")
            found += [
                f"{title(each)}: a peer is selectors, or an ipBlock"
                for rule in rules
                for peer in rule.get(key) or []
                if not peer or ("ipBlock" in peer and len(peer) > 1)
            ]
            found += [
                f"{title(each)}: {fault}"
                for rule in rules
                for peer in rule.get(key) or []
                for fault in _of_block(peer.get("ipBlock"))
            ]
            found += [
                f"{title(each)}: an endPort wants a number before it, and not above it"
                for rule in rules
                for port in rule.get("ports") or []
                if "endPort" in port and not (isinstance(port.get("port"), int) and port["port"] <= port["endPort"])
            ]
    return found


def _of_block(block: Manifest | None) -> Iterator[str]:
    if block is None:
        return
    for written in (block["cidr"], *block.get("except", [])):
        try:
            if str(ip_network(written)) != written:
                yield f"{written} is written in another way than {ip_network(written)}"
        except ValueError:
            yield f"{written} is no network"
            return
    whole = ip_network(block["cidr"])
    for written in block.get("except", []):
        without = ip_network(written)
        if without.version != whole.version or without == whole or not without.subnet_of(whole):  # type: ignore[arg-type]
            yield f"{written} is not a part of {whole}"


def claims_and_services_hold_together(built: Build) -> list[str]:
    """A claim says how much and for whom; a Service's ports differ, and have names where there are several."""
    found = []
    for each in of_kind(built, "PersistentVolumeClaim"):
        modes, asked = each["spec"].get("accessModes") or [], each["spec"].get("resources") or {}
        if not modes or ("ReadWriteOncePod" in modes and len(modes) > 1):
            found.append(f"{title(each)}: accessModes {modes}")
        if not quantity((asked.get("requests") or {}).get("storage", 0)):
            found.append(f"{title(each)}: asks for no storage")
    for each in of_kind(built, "Service"):
        ports = each["spec"]["ports"]
        if len({(port["port"], port.get("protocol", "TCP")) for port in ports}) < len(ports):
            found.append(f"{title(each)}: two ports have one number")
        if len(ports) > 1 and not all(port.get("name") for port in ports):
            found.append(f"{title(each)}: one of several ports has no name")
    return found


def routes_hold_together(built: Build) -> list[str]:
    """Paths begin at the root, hosts are names, and a try of a request is no longer than the whole."""
    return [
        f"{title(each)}: {fault}"
        for each in of_kind(built, "HTTPRoute", "Ingress")
        for fault in _of_route(each["spec"])
    ]


HOST = re.compile(r"(\*\.)?([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)*[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
NO_PATH = re.compile(r"(?!/)|.*(//|/\.{1,2}(/|$)|%2[fF]|#)")


def _of_route(spec: Manifest) -> Iterator[str]:
    rules = spec.get("rules", [])
    hosts = [*spec.get("hostnames", []), *(rule["host"] for rule in rules if "host" in rule)]
    for host in (*hosts, *(host for tls in spec.get("tls", []) for host in tls.get("hosts", []))):
        if not HOST.fullmatch(host) or len(host) > 253:
            yield f"{host} is no name of a host"
    for rule in rules:
        told = [match["path"] for match in rule.get("matches", []) if "path" in match]
        paths = [each.get("value", "/") for each in told if each.get("type") != "RegularExpression"]
        paths += [path.get("path", "") for path in (rule.get("http") or {}).get("paths", [])]
        yield from (f"{path!r} is no path" for path in paths if NO_PATH.match(path))
        timeouts = {name: _seconds(text) for name, text in (rule.get("timeouts") or {}).items()}
        if timeouts.get("request") and timeouts.get("backendRequest", 0) > timeouts["request"]:
            yield "a backendRequest may take longer than the request"


def _seconds(text: str) -> float:
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"(\d+)(h|ms|m|s)", text))
