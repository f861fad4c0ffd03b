"""What the API server refuses although the schema lets it pass: fields that exclude, or want, each other.

Source: Kubernetes' `pkg/apis/*/validation`, as of 1.37; what we use of it.
"""

from collections.abc import Iterator
from typing import Any

from tests.manifests.building import Build, Manifest, containers, of_kind, pods, title

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
    for container in spec.get("initContainers", []):
        if container.get("restartPolicy") != "Always" and any(key.endswith("Probe") for key in container):
            yield f"{container['name']}: an init container that ends has no probes"


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
    """Strategies and restart policies that go with the kind."""
    found = []
    for each in of_kind(built, "Deployment"):
        strategy = each["spec"].get("strategy") or {}
        if strategy.get("type") == "Recreate" and "rollingUpdate" in strategy:
            found.append(f"{title(each)}: Recreate, and how to roll")
    for each, template in pods(built):
        policy = template["spec"].get("restartPolicy", "Always")
        if each["kind"] in ("Job", "CronJob"):
            if policy == "Always":
                found.append(f"{title(each)}: a Job's pod ends: restartPolicy OnFailure or Never")
        elif each["kind"] != "Pod" and policy != "Always":
            found.append(f"{title(each)}: restartPolicy {policy}")
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
    return found


def policies_hold_together(built: Build) -> list[str]:
    """A network policy's peers are selectors or a block of addresses, and say something."""
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
    return found
