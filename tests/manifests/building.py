"""What `kubectl apply -k` would send, built by the pinned kubectl, and the small questions that tests ask of it.

A build is a tuple of objects as kustomize prints them. Each is built once a session; whoever wants to change one
takes a copy. Overlays and components are found by looking, so a new one is tested without a line here.

A component cannot be built by itself: `build(COMPONENT)` wraps it over the base, with the components it needs.
"""

import copy
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
KUSTOMIZE = ROOT / "deploy" / "kustomize"
BASE = KUSTOMIZE / "base"
VALIDATORS = ROOT / ".validators"

Manifest = dict[str, Any]
"""One object, as YAML has it."""
Build = tuple[Manifest, ...]


def _folders(of: str) -> tuple[Path, ...]:
    return tuple(sorted(file.parent for file in (KUSTOMIZE / of).glob("**/kustomization.yaml")))


OVERLAYS = _folders("overlays")
COMPONENTS = _folders("components")
EVERY_BUILD = (BASE, *OVERLAYS, *COMPONENTS)
"""All that `build` takes."""
NEEDS = {
    "aks": ("pool-vllm-gpu", "model-cache"),
    "grafana": ("prometheus",),
    "keda": ("pool-vllm-gpu",),
    "lora": ("pool-vllm-gpu",),
    "model-cache": ("pool-vllm-gpu", "pool-vllm-multi-node"),
    "prometheus": ("pool-sim",),
    "quantized-kv-cache": ("pool-vllm-gpu",),
    "servicemonitor": ("pool-sim",),
    "speculative-decoding": ("pool-vllm-gpu",),
}
"""Components that change what another brings, by name."""


def validator(program: str) -> Path:
    """Where `make` has put a program that judges manifests."""
    return VALIDATORS / "bin" / program


@cache
def build(folder: Path) -> Build:
    """The objects of an overlay, or of the base with one component (and what that one needs)."""
    return _over_the_base((*needed_by(folder), folder)) if folder in COMPONENTS else _built(folder)


@cache
def without(component: Path) -> Build:
    """The same, but for the component itself: the base with what it needs."""
    return _over_the_base(needed_by(component))


def changeable(built: Build) -> list[Manifest]:
    """A copy of its own, for a test that breaks something."""
    return copy.deepcopy(list(built))


def name_of(folder: Path) -> str:
    """How a test names an overlay or component: overlays/demo."""
    return folder.relative_to(KUSTOMIZE).as_posix()


# Building


def _built(folder: Path) -> Build:
    done = subprocess.run([validator("kubectl"), "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document is not None)


def _over_the_base(components: Iterable[Path]) -> Build:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()
        # Kustomize takes a folder anywhere, but by a relative path only.
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(BASE, folder)],
            "components": [os.path.relpath(each, folder) for each in components],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), "utf-8")
        return _built(folder)


def needed_by(component: Path) -> tuple[Path, ...]:
    """The components that this one changes or asks, each after those that it needs itself."""
    named = [KUSTOMIZE / "components" / name for name in NEEDS.get(component.name, ())]
    return tuple(dict.fromkeys(deeper for each in named for deeper in (*needed_by(each), each)))


# Finding


def of_kind(built: Iterable[Manifest], *kinds: str) -> list[Manifest]:
    """All objects of these kinds."""
    return [each for each in built if each["kind"] in kinds]


def find(built: Iterable[Manifest], kind: str, name: str, namespace: str | None = None) -> Manifest:
    """The one object of this kind and name."""
    found = [
        each
        for each in of_kind(built, kind)
        if each["metadata"]["name"] == name and namespace in (None, namespace_of(each))
    ]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def namespace_of(manifest: Manifest) -> str:
    """Where it says it lives; empty where it says nothing."""
    return str(manifest["metadata"].get("namespace", ""))


def title(manifest: Manifest) -> str:
    """How a finding names an object: Deployment poolgate/poolgate."""
    name = str(manifest["metadata"]["name"])
    return f"{manifest['kind']} {'/'.join(filter(None, (namespace_of(manifest), name)))}"


# Pods

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob", "LeaderWorkerSet", "Pod")


def templates(workload: Manifest) -> list[Manifest]:
    """The pod templates of a workload: none of other objects, two of a LeaderWorkerSet."""
    spec = workload.get("spec") or {}
    match workload["kind"]:
        case "Pod":
            return [workload]
        case "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job":
            return [spec["template"]]
        case "CronJob":
            return [spec["jobTemplate"]["spec"]["template"]]
        case "LeaderWorkerSet":
            group = spec["leaderWorkerTemplate"]
            return [group[key] for key in ("leaderTemplate", "workerTemplate") if key in group]
        case _:
            return []


def pods(built: Iterable[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Each workload with each of its pod templates."""
    for each in built:
        for template in templates(each):
            yield each, template


def containers(template: Manifest, *, init: bool = True) -> list[Manifest]:
    """Of a pod template, init containers first."""
    spec = template["spec"]
    return [*(spec.get("initContainers", []) if init else []), *spec.get("containers", [])]


def sources_of(volume: Manifest) -> list[Manifest]:
    """What a volume of a pod holds: several things if it is projected, else one."""
    return list((volume.get("projected") or {}).get("sources", [volume]))


def labels_of(manifest: Manifest) -> dict[str, str]:
    """Of an object or a pod template."""
    return dict((manifest.get("metadata") or {}).get("labels") or {})


def pod_labels(workload: Manifest, template: Manifest) -> dict[str, str]:
    """Of the pods that will be: the template's, and those that the controller adds for others to select by."""
    name = workload["metadata"]["name"]
    added = {
        "Job": {"batch.kubernetes.io/job-name": name},
        "LeaderWorkerSet": {"leaderworkerset.sigs.k8s.io/name": name},
    }
    return added.get(workload["kind"], {}) | labels_of(template)


def replicas_of(workload: Manifest) -> int:
    """How many pods it asks for; one where it says nothing."""
    replicas = (workload.get("spec") or {}).get("replicas")
    return 1 if replicas is None else int(replicas)


def environment(container: Manifest) -> dict[str, Any]:
    """Name to value, or to what the value comes from."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container.get("env", [])}


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector (matchLabels and matchExpressions) picks an object with these labels."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    return all(_meets(expression, labels) for expression in selector.get("matchExpressions") or [])


def _meets(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case unknown:
            raise ValueError(f"no operator {unknown}")
