"""docs/vllm-manifests.md: what it calls common is taken by Kubernetes, and each line that mends it is one of ours."""

import re
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import ROOT, Block, blocks

PAGE = "docs/vllm-manifests.md"
(COMMON,) = (block for block in blocks(PAGE) if block.language == "yaml")
CHANGES = [pytest.param(block, id=block.name) for block in blocks(PAGE) if block.language == "diff"]
OURS = ROOT / "deploy" / "kustomize" / "components"


def lines(*files: Path) -> set[str]:
    return {line for file in files for line in file.read_text("utf-8").splitlines()}


def signed(block: Block, sign: str) -> list[str]:
    """The lines of a change that go or come, as they stand."""
    return [line[1:] for line in block.text.splitlines() if line.startswith(sign)]


@pytest.mark.parametrize("block", CHANGES)
def test_what_goes_stands_in_what_is_copied_and_what_comes_in_ours(block: Block) -> None:
    """With its indentation: a line may be copied to its place."""
    assert all(line[:1] in "+-" for line in block.text.splitlines())
    assert set(signed(block, "-")) <= set(COMMON.text.splitlines())
    ours = lines(*(OURS / "pool-vllm-gpu").glob("*.yaml"), OURS / "model-cache" / "claim.yaml")
    assert set(signed(block, "+")) <= ours
    assert signed(block, "+")


def test_none_of_what_goes_is_left_in_ours() -> None:
    gone = {line for param in CHANGES for line in signed(param.values[0], "-")}  # type: ignore[arg-type]  # a Block
    assert len(gone) >= 8
    assert gone & lines(*OURS.glob("pool-vllm-*/*.yaml"), *OURS.glob("model-cache/*.yaml")) == set()


def test_what_is_copied_has_every_flaw_that_is_told() -> None:
    claim, deployment, service = yaml.safe_load_all(COMMON.text)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert deployment["spec"]["replicas"] > 1
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert service["spec"]["type"] == "LoadBalancer"
    assert container["livenessProbe"] == container["readinessProbe"]
    assert not {"startupProbe", "lifecycle", "securityContext"} & set(container)
    assert "VLLM_API_KEY" not in str(container)


def test_every_flag_that_is_named_is_one_of_vllms() -> None:
    told = (ROOT / "tests" / "captures" / "vllm" / "serve-help-all.txt").read_text("utf-8")
    known = set(re.findall(r"--[a-z-]+", told))
    text = (ROOT / PAGE).read_text("utf-8")
    assert set(re.findall(r"--[a-z][a-z-]+", text)) <= known
