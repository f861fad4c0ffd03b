"""What a pod may do and take, beyond what the Pod Security Standard says; and what must not be in a manifest at all."""

import re
from collections.abc import Iterator
from typing import Any

from tests.manifests.building import Build, Manifest, containers, namespace_of, of_kind, pods, title
from tests.manifests.checks.quantities import quantity


def bound(built: Build) -> set[tuple[str, str]]:
    """Namespace and name of each ServiceAccount that has rights."""
    return {
        (subject.get("namespace", ""), subject["name"])
        for each in of_kind(built, "RoleBinding", "ClusterRoleBinding")
        for subject in each.get("subjects", [])
    }


def tokens_are_where_the_api_is_asked(built: Build) -> list[str]:
    """A pod says whether it has a token: where it has rights to use it for. A ServiceAccount gives none by itself."""
    entitled = bound(built)
    found = [
        f"{title(each)}: gives each of its pods a token"
        for each in of_kind(built, "ServiceAccount")
        if each.get("automountServiceAccountToken") is not False
    ]
    for each, template in pods(built):
        account = (namespace_of(each), template["spec"].get("serviceAccountName", "default"))
        wants = template["spec"].get("automountServiceAccountToken")
        if wants is not (account in entitled):
            found.append(
                f"{title(each)}: automountServiceAccountToken is {wants}; has it rights: {account in entitled}"
            )
    return found


def rights_are_narrow(built: Build) -> list[str]:
    """In one namespace, to one named account, of named things; nothing may be changed but by who makes it."""
    found = [
        f"{title(each)}: holds for the whole cluster" for each in of_kind(built, "ClusterRole", "ClusterRoleBinding")
    ]
    for each in of_kind(built, "RoleBinding", "ClusterRoleBinding"):
        found += [
            f"{title(each)}: gives rights to {subject['kind']} {subject['name']}"
            for subject in each.get("subjects", [])
            if subject["kind"] != "ServiceAccount" or subject["name"] == "default"
        ]
    for each in of_kind(built, "Role", "ClusterRole"):
        for rule in each["rules"]:
            words = {*rule["verbs"], *rule.get("resources", []), *rule.get("apiGroups", [])}
            if "*" in words:
                found.append(f"{title(each)}: allows everything by an asterisk")
            if "secrets" in words and set(rule["verbs"]) - {"create"} and not rule.get("resourceNames"):
                found.append(f"{title(each)}: reaches every Secret")
            if words & {"escalate", "bind", "impersonate"}:
                found.append(f"{title(each)}: may make itself more")
    return found


INTERNAL = (
    ("service.beta.kubernetes.io/azure-load-balancer-internal", "true"),
    ("networking.gke.io/load-balancer-type", "Internal"),
    ("service.beta.kubernetes.io/aws-load-balancer-scheme", "internal"),
)
"""What makes a load balancer's address one of the own network."""


def services_stay_inside(built: Build) -> list[str]:
    """In the cluster, or by a load balancer in the own network. To the world leads an Ingress or Gateway, with TLS."""
    return [
        f"{title(each)}: is reached from outside"
        for each in of_kind(built, "Service")
        if each["spec"].get("externalIPs")
        or (each["spec"].get("type", "ClusterIP") != "ClusterIP" and not _is_internal(each))
    ]


def _is_internal(service: Manifest) -> bool:
    told = service["metadata"].get("annotations") or {}
    return service["spec"]["type"] == "LoadBalancer" and any(told.get(key) == value for key, value in INTERNAL)


def no_pod_has_links(built: Build) -> list[str]:
    """Variables of every Service in the namespace: POOLGATE_PORT is one, and none is asked for."""
    return [
        f"{title(each)}: enableServiceLinks is not false"
        for each, template in pods(built)
        if template["spec"].get("enableServiceLinks") is not False
    ]


def root_is_read_only(built: Build) -> list[str]:
    """What writes, writes where a volume says so."""
    return [
        f"{title(each)}: {container['name']} has no readOnlyRootFilesystem: true"
        for each, template in pods(built)
        for container in containers(template)
        if (container.get("securityContext") or {}).get("readOnlyRootFilesystem") is not True
    ]


FOR_EVERYONE = 0o004


def files_are_the_pods_own(built: Build) -> list[str]:
    """Root makes what is mounted: a claim can be written to, and a file that not everyone may read can be read, by the
    pod's group, which is `fsGroup`."""
    found = []
    for each, template in pods(built):
        if (template["spec"].get("securityContext") or {}).get("fsGroup") is not None:
            continue
        for volume in template["spec"].get("volumes", []):
            source: Manifest = next(
                (volume[kind] for kind in ("projected", "secret", "configMap") if kind in volume), {}
            )
            closed = not source.get("defaultMode", FOR_EVERYONE) & FOR_EVERYONE
            if closed or "persistentVolumeClaim" in volume:
                found.append(f"{title(each)}: volume {volume['name']} is root's, without an fsGroup")
    return found


EXTENDED = re.compile(r".+/.+")
"""A resource of a device plugin: nvidia.com/gpu."""


def resources_are_set(built: Build) -> list[str]:
    """Of CPU and memory what it needs, of memory its most, of CPU no most; of a device as much asked as allowed."""
    return [
        f"{title(each)}: {container['name']}: {fault}"
        for each, template in pods(built)
        for container in containers(template)
        for fault in _of_resources(container.get("resources") or {})
    ]


def _of_resources(resources: Manifest) -> Iterator[str]:
    asked, most = resources.get("requests") or {}, resources.get("limits") or {}
    for name in ("cpu", "memory"):
        if name not in asked:
            yield f"asks for no {name}"
    if "memory" not in most:
        yield "no limit of memory"
    if "cpu" in most:
        yield "a limit of CPU: each time it is reached, every stream pauses"
    for name in asked.keys() & most.keys():
        if quantity(asked[name]) > quantity(most[name]):
            yield f"asks for more {name} than it may have"
    for name in asked.keys() | most.keys():
        if EXTENDED.fullmatch(name) and (name not in most or asked.get(name, most[name]) != most[name]):
            yield f"{name}: the limit and what is asked for must be the same"


def scratch_is_bounded(built: Build) -> list[str]:
    """An emptyDir says how much it may hold; one in memory counts towards the limits of its pod's containers."""
    found = []
    for each, template in pods(built):
        limits = [
            (container.get("resources") or {}).get("limits", {}) for container in containers(template, init=False)
        ]
        most = sum(quantity(limit.get("memory", 0)) for limit in limits)
        for volume in template["spec"].get("volumes", []):
            scratch = volume.get("emptyDir")
            if scratch is None:
                continue
            if "sizeLimit" not in scratch:
                found.append(f"{title(each)}: volume {volume['name']} has no sizeLimit")
            elif scratch.get("medium") == "Memory" and quantity(scratch["sizeLimit"]) >= most:
                found.append(f"{title(each)}: volume {volume['name']} alone may fill the memory of its pod")
    return found


SECRET = re.compile(r"(PASSWORD|PASSWD|TOKEN|SECRET|API_?KEYS?|CREDENTIALS?)(_|$)")
IN_URL = re.compile(r"://[^/\s:@]*:(?!\$[({])[^/\s@]+@")
AS_FLAG = re.compile(r"--?(?:api-key|password|requirepass|token)(?:=|\s+)(?!\$[({])\S+")


def secrets_are_not_written_down(built: Build) -> list[str]:
    """No Secret in a build, none in a variable, a URL or an argument: first-secrets makes them, or a store has them."""
    found = [f"{title(each)}: is written down" for each in of_kind(built, "Secret")]
    for each, template in pods(built):
        for container in containers(template):
            whose = f"{title(each)}: {container['name']}"
            for variable in container.get("env", []):
                value = variable.get("value", "")
                if SECRET.search(variable["name"]) and _is_plain(value):
                    found.append(f"{whose}: {variable['name']} is written down")
                if IN_URL.search(value):
                    found.append(f"{whose}: {variable['name']} has a password in it")
            words = " ".join(map(str, (*container.get("command", []), *container.get("args", []))))
            if IN_URL.search(words) or AS_FLAG.search(words):
                found.append(f"{whose}: a secret is among its arguments")
    for each in of_kind(built, "ConfigMap"):
        found += [f"{title(each)}: {name} has a password in it" for name, text in _data(each) if IN_URL.search(text)]
    return found


def secrets_are_no_arguments(built: Build) -> list[str]:
    """Whoever is on a node sees how each process was started, and agents that watch it write that down; a process'
    variables are for its own user.
    """
    found = []
    for each, template in pods(built):
        for container in containers(template):
            secret: set[str] = set()
            for variable in container.get("env", []):
                if "secretKeyRef" in variable.get("valueFrom", {}) or _named(variable.get("value", "")) & secret:
                    secret.add(variable["name"])
            words = " ".join(map(str, (*container.get("command", []), *container.get("args", []))))
            found += [
                f"{title(each)}: {container['name']} is started with {name} among its arguments"
                for name in sorted(_named(words) & secret)
            ]
    return found


def _named(text: str) -> set[str]:
    """The variables that Kubernetes puts in place of their names."""
    return set(re.findall(r"(?<!\$)\$\((\w+)\)", text))


def _is_plain(value: str) -> bool:
    """Neither a reference, nor a file that holds it, nor a switch."""
    return bool(value) and not value.startswith(("$(", "file:", "/")) and value.lower() not in ("true", "false")


def _data(manifest: Manifest) -> list[tuple[str, Any]]:
    return list((manifest.get("data") or {}).items())
