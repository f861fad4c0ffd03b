"""What one object says of another: the other is there, and has what is asked of it."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tests.manifests.building import (
    Build,
    Manifest,
    containers,
    environment,
    namespace_of,
    of_kind,
    pods,
    replicas_of,
    sources_of,
    title,
)

BROUGHT: dict[tuple[str, str], frozenset[str]] = {
    ("poolgate", "poolgate-keys"): frozenset({"keys.yaml"}),
    ("poolgate", "poolgate-first-key"): frozenset({"key"}),
    ("poolgate", "vllm-api-key"): frozenset({"api-key"}),
    ("vllm", "vllm-api-key"): frozenset({"api-key"}),
    ("poolgate", "redis"): frozenset({"password"}),
    ("poolgate", "open-webui"): frozenset({"admin-password", "api-key", "secret-key"}),
    ("poolgate", "grafana"): frozenset({"admin-password"}),
    ("vllm", "huggingface"): frozenset({"token"}),
}
"""Secrets and their entries: no build holds one. first-secrets makes them, or a secret store does (docs/secrets.md)."""
GIVEN = {"LeaderWorkerSet": frozenset({"LWS_GROUP_SIZE", "LWS_LEADER_ADDRESS", "LWS_WORKER_INDEX"})}
"""Variables that a controller puts before a container's own."""


@dataclass(frozen=True)
class Wanted:
    """Something that a pod takes from a ConfigMap or Secret."""

    kind: str
    name: str
    key: str | None
    """None: all there is."""
    optional: bool
    how: str


def wanted_by(template: Manifest) -> Iterator[Wanted]:
    """By volumes and variables of a pod."""
    for volume in template["spec"].get("volumes", []):
        for source in sources_of(volume):
            for kind, field, named in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
                if field in source:
                    yield from _of_volume(
                        kind, source[field], source[field].get(named) or source[field]["name"], volume
                    )
    for container in containers(template):
        for each in container.get("env", []):
            for kind, field in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
                if (reference := (each.get("valueFrom") or {}).get(field)) is not None:
                    optional = bool(reference.get("optional"))
                    yield Wanted(kind, reference["name"], reference["key"], optional, f"variable {each['name']}")
        for each in container.get("envFrom", []):
            for kind, field in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if field in each:
                    yield Wanted(kind, each[field]["name"], None, bool(each[field].get("optional")), "envFrom")


def _of_volume(kind: str, source: dict[str, Any], name: str, volume: Manifest) -> Iterator[Wanted]:
    how, optional = f"volume {volume['name']}", bool(source.get("optional"))
    if "items" not in source:
        yield Wanted(kind, name, None, optional, how)
    for item in source.get("items", []):
        yield Wanted(kind, name, item["key"], optional, how)


def held(built: Build) -> dict[tuple[str, str, str], frozenset[str]]:
    """Kind, namespace and name of each ConfigMap and Secret that there will be, and its entries."""
    found = {("Secret", *place): entries for place, entries in BROUGHT.items()}
    for each in built:
        place = (namespace_of(each), each["metadata"]["name"])
        if each["kind"] in ("ConfigMap", "Secret"):
            entries = {**each.get("data", {}), **each.get("binaryData", {}), **each.get("stringData", {})}
            found[(each["kind"], *place)] = frozenset(entries)
        elif each["kind"] == "ExternalSecret":
            name = each["spec"]["target"]["name"]
            found["Secret", place[0], name] = frozenset(entry["secretKey"] for entry in each["spec"].get("data", []))
    return found


def config_maps_and_secrets_are_there(built: Build) -> list[str]:
    """With the entries that are taken from them. A pod whose Secret is missing never starts."""
    there = held(built)
    found = []
    for each, template in pods(built):
        for want in wanted_by(template):
            entries = there.get((want.kind, namespace_of(each), want.name))
            if entries is None:
                found.append(f"{title(each)}: {want.how}: there is no {want.kind} {want.name}")
            elif want.key is not None and want.key not in entries:
                found.append(f"{title(each)}: {want.how}: {want.kind} {want.name} has no entry {want.key}")
    return found


def config_maps_are_used(built: Build) -> list[str]:
    """One that nobody takes is left over; but a dashboard, which Grafana's sidecar finds by a label."""
    used = {(namespace_of(each), want.name) for each, template in pods(built) for want in wanted_by(template)}
    return [
        f"{title(each)}: nobody uses it"
        for each in of_kind(built, "ConfigMap")
        if (namespace_of(each), each["metadata"]["name"]) not in used
        and "grafana_dashboard" not in each["metadata"].get("labels", {})
    ]


def files_of_a_volume_do_not_cover_each_other(built: Build) -> list[str]:
    """Two sources of one projected volume must not have a file of the same name: which one wins is chance."""
    there = held(built)
    found = []
    for each, template in pods(built):
        for volume in template["spec"].get("volumes", []):
            files = Counter(_files(volume, namespace_of(each), there))
            found += [f"{title(each)}: volume {volume['name']}: {file} twice" for file, n in files.items() if n > 1]
    return found


def _files(volume: Manifest, namespace: str, there: dict[tuple[str, str, str], frozenset[str]]) -> Iterator[str]:
    for source in sources_of(volume):
        for kind, field in (("ConfigMap", "configMap"), ("Secret", "secret")):
            if field in source:
                name = source[field].get("name") or source[field]["secretName"]
                entries = there.get((kind, namespace, name), frozenset())
                yield from (item["path"] for item in source[field]["items"]) if "items" in source[field] else entries


NAMED = re.compile(r"(?:^|=)(/etc/\S+)$|^--[\w.-]*(?:path|dir)=(/\S+)$")


def files_that_are_named_are_mounted(built: Build) -> list[str]:
    """What an argument or a variable says of a file, or of a folder to write to, is so in the container's volumes."""
    there = held(built)
    found = []
    for each, template in pods(built):
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        for container in containers(template):
            places = {
                mount["mountPath"]: volumes[mount["name"]]
                for mount in container.get("volumeMounts", [])
                if mount["name"] in volumes
            }
            values = (value for value in environment(container).values() if isinstance(value, str))
            for word in (*container.get("command", []), *container.get("args", []), *values):
                if (named := NAMED.search(str(word))) is None:
                    continue
                path = PurePosixPath(named[1] or named[2])
                place = next((above for above in (path, *path.parents) if str(above) in places), None)
                files = set() if place is None else set(_files(places[str(place)], namespace_of(each), there))
                if place is None or (files and place != path and str(path.relative_to(place)) not in files):
                    found.append(f"{title(each)}: {container['name']} has no {path}")
    return found


def volumes_are_mounted(built: Build) -> list[str]:
    """Each mount has its volume, each volume its mount, and no two mounts of a container the same place."""
    found = []
    for each, template in pods(built):
        claimed = [claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", [])]
        names = [volume["name"] for volume in template["spec"].get("volumes", [])]
        found += [f"{title(each)}: two volumes have the name {name}" for name in _doubles(names)]
        mounted = set()
        for container in containers(template):
            mounts = container.get("volumeMounts", [])
            mounted |= {mount["name"] for mount in mounts}
            places = [mount["mountPath"].rstrip("/") for mount in mounts]
            found += [f"{title(each)}: {container['name']} mounts two at {place}" for place in _doubles(places)]
        found += [f"{title(each)}: mounts {name}, which is no volume" for name in sorted(mounted - {*names, *claimed})]
        found += [f"{title(each)}: nothing mounts the volume {name}" for name in names if name not in mounted]
    return found


def _doubles(values: list[str]) -> list[str]:
    return sorted(value for value, times in Counter(values).items() if times > 1)


def service_accounts_are_there(built: Build) -> list[str]:
    """A pod of a ServiceAccount that nobody made is never created."""
    made = {(namespace_of(each), each["metadata"]["name"]) for each in of_kind(built, "ServiceAccount")}
    return [
        f"{title(each)}: there is no ServiceAccount {name}"
        for each, template in pods(built)
        if (name := template["spec"].get("serviceAccountName", "default")) != "default"
        and (namespace_of(each), name) not in made
    ]


def bindings_bind(built: Build) -> list[str]:
    """A Role that is there, to ServiceAccounts that are there, whose pods are there; and no Role is left over."""
    roles = {
        (each["kind"], namespace_of(each), each["metadata"]["name"]) for each in of_kind(built, "Role", "ClusterRole")
    }
    accounts = {(namespace_of(each), each["metadata"]["name"]) for each in of_kind(built, "ServiceAccount")}
    used = {(namespace_of(each), template["spec"].get("serviceAccountName")) for each, template in pods(built)}
    found = [f"{title(each)}: no pod uses it" for each in of_kind(built, "ServiceAccount") if _place(each) not in used]
    bound = set()
    for each in of_kind(built, "RoleBinding", "ClusterRoleBinding"):
        reference = each["roleRef"]
        role = (reference["kind"], namespace_of(each) if reference["kind"] == "Role" else "", reference["name"])
        bound.add(role)
        if role not in roles:
            found.append(f"{title(each)}: there is no {reference['kind']} {reference['name']}")
        found += [
            f"{title(each)}: there is no {subject['kind']} {subject['name']}"
            for subject in each.get("subjects", [])
            if (subject.get("namespace"), subject["name"]) not in accounts
        ]
    return found + [f"{kind} {namespace}/{name}: nobody has it" for kind, namespace, name in sorted(roles - bound)]


def _place(manifest: Manifest) -> tuple[str, str]:
    return namespace_of(manifest), str(manifest["metadata"]["name"])


SCALERS = ("HorizontalPodAutoscaler", "ScaledObject")


def scaled(built: Build) -> Iterator[tuple[Manifest, Manifest | None]]:
    """Each autoscaler, and the workload it scales if there is one."""
    for each in of_kind(built, *SCALERS):
        reference = each["spec"]["scaleTargetRef"]
        kind = reference.get("kind", "Deployment")
        found = [
            workload
            for workload in of_kind(built, kind)
            if namespace_of(workload) == namespace_of(each) and workload["metadata"]["name"] == reference["name"]
        ]
        yield each, found[0] if found else None


def autoscalers_scale(built: Build) -> list[str]:
    """One each, a workload that leaves its `replicas` to it: else each `apply` would set them back."""
    found = []
    times = Counter(title(workload) for _, workload in scaled(built) if workload is not None)
    for each, workload in scaled(built):
        if workload is None:
            found.append(f"{title(each)}: there is no {each['spec']['scaleTargetRef']}")
        elif "replicas" in workload["spec"]:
            found.append(f"{title(workload)}: sets replicas, which {title(each)} sets too")
    return found + [f"{name}: {count} autoscalers scale it" for name, count in times.items() if count > 1]


def triggers_have_their_authentication(built: Build) -> list[str]:
    """KEDA's triggers, and the Secrets behind them."""
    there = held(built)
    made = {_place(each) for each in of_kind(built, "TriggerAuthentication")}
    found = [
        f"{title(each)}: there is no TriggerAuthentication {name}"
        for each in of_kind(built, "ScaledObject")
        for trigger in each["spec"]["triggers"]
        if (name := (trigger.get("authenticationRef") or {}).get("name")) is not None
        and (namespace_of(each), name) not in made
    ]
    return found + [
        f"{title(each)}: there is no Secret {entry['name']} with the entry {entry['key']}"
        for each in of_kind(built, "TriggerAuthentication")
        for entry in each["spec"].get("secretTargetRef", [])
        if entry["key"] not in there.get(("Secret", namespace_of(each), entry["name"]), frozenset())
    ]


def claims_are_there(built: Build) -> list[str]:
    """A volume's claim exists; and no claim is left over."""
    claims = {_place(each) for each in of_kind(built, "PersistentVolumeClaim")}
    used = {
        (namespace_of(each), volume["persistentVolumeClaim"]["claimName"]): title(each)
        for each, template in pods(built)
        for volume in template["spec"].get("volumes", [])
        if "persistentVolumeClaim" in volume
    }
    return [
        *(f"{who}: there is no PersistentVolumeClaim {place[1]}" for place, who in used.items() if place not in claims),
        *(f"PersistentVolumeClaim {'/'.join(place)}: nobody uses it" for place in sorted(claims - used.keys())),
    ]


def claims_can_be_mounted_by_all(built: Build) -> list[str]:
    """ReadWriteOnce is one node at a time: no second replica or workload, no new pod before the old has gone."""
    claims = {_place(each): each for each in of_kind(built, "PersistentVolumeClaim")}
    users: dict[tuple[str, str], list[Manifest]] = {}
    for each, template in pods(built):
        for volume in template["spec"].get("volumes", []):
            if "persistentVolumeClaim" in volume:
                users.setdefault((namespace_of(each), volume["persistentVolumeClaim"]["claimName"]), []).append(each)
    found = []
    for place, workloads in users.items():
        if place not in claims or set(claims[place]["spec"]["accessModes"]) & {"ReadWriteMany", "ReadOnlyMany"}:
            continue
        claim = title(claims[place])
        if len(workloads) > 1:
            found.append(f"{claim}: one node at a time, and {', '.join(map(title, workloads))} want it")
        found += [
            f"{title(each)}: {fault}, and {claim} is for one node at a time"
            for each in workloads
            if (fault := _wants_two(built, each))
        ]
    return found


def _wants_two(built: Build, workload: Manifest) -> str:
    if replicas_of(workload) > 1 or any(target is workload for _, target in scaled(built)):
        return "may have several replicas"
    if workload["kind"] == "Deployment" and (workload["spec"].get("strategy") or {}).get("type") != "Recreate":
        return "a rollout starts the new pod before the old has gone"
    return ""


VARIABLE = re.compile(r"\$\$|\$\(([-._a-zA-Z0-9]+)\)")


def variables_are_defined_before_use(built: Build) -> list[str]:
    """`$(NAME)` of a variable that comes later, or never, stays as it stands."""
    found = []
    for each, template in pods(built):
        for container in containers(template):
            defined = set(GIVEN.get(each["kind"], ()))
            whose = f"{title(each)}: {container['name']}"
            for variable in container.get("env", []):
                found += [
                    f"{whose}: {name} is not defined before {variable['name']}"
                    for name in _used(variable.get("value"), defined)
                ]
                if variable["name"] in defined:
                    found.append(f"{whose}: {variable['name']} is defined twice")
                defined.add(variable["name"])
            if "envFrom" in container:
                continue
            for word in (*container.get("command", []), *container.get("args", [])):
                found += [f"{whose}: {name} is not defined" for name in _used(word, defined)]
    return found


def _used(text: Any, defined: set[str]) -> list[str]:
    return [name for name in VARIABLE.findall(str(text or "")) if name and name not in defined]
