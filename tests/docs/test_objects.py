"""What the pages show to be applied is judged as the manifests are: by Kubernetes' strict schemas."""

import json
import subprocess
from typing import Any

import pytest
import yaml

from tests.docs.pages import ALL, ROOT, Block

VALIDATORS = ROOT / ".validators" / "bin" / "python"
JUDGE = ROOT / "tests" / "manifests" / "schemas" / "judge.py"
OLDEST = "1.30"
NOT_APPLIED = ("kustomize.config.k8s.io/", "kind.x-k8s.io/")
"""For programs on the reader's machine: what they make of it is tried where a page's commands are run."""


def objects(block: Block) -> list[dict[str, Any]]:
    """The Kubernetes objects that a block shows, whole."""
    if block.language != "yaml" or not block.text.startswith("apiVersion:"):
        return []
    shown = [each for each in yaml.safe_load_all(block.text) if each is not None]
    return [each for each in shown if not each["apiVersion"].startswith(NOT_APPLIED)]


SHOWN = [(block, each) for block in ALL for each in objects(block)]


@pytest.mark.program("kubernetes-validate")
def test_what_a_page_shows_is_what_kubernetes_takes() -> None:
    assert SHOWN
    asked = {"versions": [OLDEST], "objects": [each for _, each in SHOWN]}
    judged = subprocess.run(
        [VALIDATORS, JUDGE], input=json.dumps(asked), capture_output=True, text=True, check=True, timeout=120
    )
    faults = zip(SHOWN, json.loads(judged.stdout), strict=True)
    assert [(block.name, each["kind"], fault) for (block, each), fault in faults if fault] == []


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in ALL if objects(block)])
def test_what_a_page_shows_names_its_namespace(block: Block) -> None:
    """But for the manifest that is shown for its flaws: what is applied without one lands where nobody looks."""
    without = {"Namespace", "StorageClass", "ClusterRole", "ClusterRoleBinding"}
    for each in objects(block):
        named = "namespace" in each["metadata"] or each["kind"] in without
        assert named or block.page == "docs/vllm-manifests.md", each["metadata"]["name"]
