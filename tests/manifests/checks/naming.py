"""Names, labels and namespaces: what is called how, and lives where."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.manifests.building import (
    WORKLOADS,
    Build,
    Manifest,
    containers,
    labels_of,
    namespace_of,
    of_kind,
    pods,
    templates,
    title,
)

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""RFC 1123: namespaces, Services, containers, volumes; and pods, whose host name it becomes."""
SERVICE = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
"""RFC 1035, before Kubernetes 1.34: a letter comes first."""
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
PATH_SEGMENT = re.compile(r"(?!\.{1,2}$)[^/%]+")
KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
QUALIFIED = re.compile(
    r"(?:(?=.{1,253}/)[a-z0-9](?:[-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
"""The key of a label or annotation."""
VARIABLE = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
"""Of the environment, before Kubernetes 1.32."""
VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
PORT = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")
"""An IANA service name."""
STRICT = {"Namespace", "Service", *WORKLOADS}
LOOSE = {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
CLUSTER_WIDE = {
    "ClusterRole",
    "ClusterRoleBinding",
    "GatewayClass",
    "Namespace",
    "PersistentVolume",
    "PriorityClass",
    "RuntimeClass",
    "StorageClass",
}
NAME = "app.kubernetes.io/name"
PART_OF = "app.kubernetes.io/part-of"
INSTANCE = "app.kubernetes.io/instance"
POOL = "poolgate.dev/pool"
OURS = "poolgate"
"""The part-of of everything, and the name that only gateways bear: they count themselves by it."""


def names_are_valid(built: Build) -> list[str]:
    """Of objects, containers, volumes, ports and entries: the API server refuses others."""
    return [
        f"{title(each)}: {what} {name!r} is no valid name"
        for each in built
        for what, name, form in _names(each)
        if not form.fullmatch(name) or len(name) > 253
    ]


def _names(manifest: Manifest) -> Iterator[tuple[str, str, re.Pattern[str]]]:
    kind = manifest["kind"]
    yield (
        "its name",
        manifest["metadata"]["name"],
        SERVICE if kind == "Service" else LABEL if kind in STRICT else PATH_SEGMENT if kind in LOOSE else SUBDOMAIN,
    )
    for template in templates(manifest):
        for container in containers(template):
            yield "container", container["name"], LABEL
            for port in container.get("ports", []):
                yield "port", port.get("name", ""), PORT
            for variable in container.get("env", []):
                yield "variable", variable["name"], VARIABLE
        for volume in template["spec"].get("volumes", []):
            yield "volume", volume["name"], LABEL
    if kind == "Service":
        for port in manifest["spec"].get("ports", []):
            yield "port", port.get("name", ""), LABEL
    if kind in ("ConfigMap", "Secret"):
        for key in {**manifest.get("data", {}), **manifest.get("binaryData", {}), **manifest.get("stringData", {})}:
            yield "entry", key, KEY


def labels_are_valid(built: Build) -> list[str]:
    """A label's value is a short word; an annotation's is text."""
    return [
        f"{title(each)}: {what} {key}: {value!r} is not valid"
        for each in built
        for holder in (each, *templates(each))
        for what, form in (("labels", VALUE), ("annotations", None))
        for key, value in ((holder.get("metadata") or {}).get(what) or {}).items()
        if not isinstance(value, str)
        or not QUALIFIED.fullmatch(key)
        or (form is not None and not form.fullmatch(value))
    ]


def selectors_are_valid(built: Build) -> list[str]:
    """They ask for labels that may be there, by an operator that has the values it wants."""
    return [
        f"{title(each)}: selects by {fault}" for each in built for fault in _of_selectors(each.get("spec") or {}, "")
    ]


def _of_selectors(part: Any, name: str) -> Iterator[str]:
    if isinstance(part, list):
        for each in part:
            yield from _of_selectors(each, name)
    elif isinstance(part, dict):
        if name == "matchLabels" or (name in ("selector", "nodeSelector") and all(map(_is_text, part.values()))):
            yield from (
                f"{key}: {value!r}"
                for key, value in part.items()
                if not QUALIFIED.fullmatch(key) or not _is_text(value) or not VALUE.fullmatch(value)
            )
        if name == "matchExpressions":
            yield from _of_expression(part)
        for key, value in part.items():
            yield from _of_selectors(value, key)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _of_expression(expression: Manifest) -> Iterator[str]:
    key, operator, values = expression["key"], expression["operator"], expression.get("values") or []
    if not QUALIFIED.fullmatch(key) or not all(_is_text(value) and VALUE.fullmatch(value) for value in values):
        yield f"{key}: {values}"
    wants = {"In": len(values) > 0, "NotIn": len(values) > 0, "Exists": not values, "DoesNotExist": not values}
    if not wants.get(operator, len(values) == 1 and values[0].isdecimal()):
        yield f"{key} {operator} {values}"


def everything_is_labelled(built: Build) -> list[str]:
    """Objects and pods bear name and part-of; pods of a pool its name too."""
    found = []
    for each in built:
        for holder in (each, *templates(each)):
            labels = labels_of(holder)
            if not labels.get(NAME):
                found.append(f"{title(each)}: no label {NAME} {_where(holder, each)}")
            if labels.get(PART_OF) != OURS:
                found.append(f"{title(each)}: no label {PART_OF}: {OURS} {_where(holder, each)}")
            if POOL in labels and labels.get(INSTANCE) != labels[POOL]:
                found.append(f"{title(each)}: {INSTANCE} and {POOL} differ {_where(holder, each)}")
    return found


def _where(holder: Manifest, manifest: Manifest) -> str:
    return "on itself" if holder is manifest else "on its pods"


def only_gateways_bear_the_gateways_name(built: Build) -> list[str]:
    """The gateway shares its limits among all pods of that name in its namespace."""
    return [
        f"{title(each)}: its pods are counted as gateways, and are none"
        for each, template in pods(built)
        if labels_of(template).get(NAME) == OURS
        and not any("serve" in container.get("args", []) for container in containers(template))
    ]


def namespaces_are_declared(built: Build) -> list[str]:
    """Everything says where it lives, and each such place is made."""
    made = {each["metadata"]["name"] for each in of_kind(built, "Namespace")}
    found = []
    for each in built:
        if each["kind"] in CLUSTER_WIDE:
            if namespace_of(each):
                found.append(f"{title(each)}: lives in no namespace, but names one")
        elif not namespace_of(each):
            found.append(f"{title(each)}: names no namespace")
        elif namespace_of(each) not in made:
            found.append(f"{title(each)}: nothing makes the namespace {namespace_of(each)}")
    return found


def namespaces_come_first(built: Build) -> list[str]:
    """`kubectl apply` goes from top to bottom, and a namespace that is not there yet takes nothing."""
    places = {each["metadata"]["name"]: place for place, each in enumerate(built) if each["kind"] == "Namespace"}
    return [
        f"{title(each)}: comes before its namespace"
        for place, each in enumerate(built)
        if places.get(namespace_of(each), -1) > place
    ]


def nothing_is_there_twice(built: Build) -> list[str]:
    """The second would overwrite the first."""
    count = Counter((each["apiVersion"].rpartition("/")[0], title(each)) for each in built)
    return [f"{name}: {times} times" for (_, name), times in count.items() if times > 1]


def namespaces_enforce_restricted(built: Build) -> list[str]:
    """Each namespace of ours has its pods held to the strictest standard."""
    return [
        f"{title(each)}: does not enforce the restricted Pod Security Standard"
        for each in of_kind(built, "Namespace")
        if labels_of(each).get("pod-security.kubernetes.io/enforce") != "restricted"
    ]
