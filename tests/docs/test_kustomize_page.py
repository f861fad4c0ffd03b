"""deploy/kustomize/README.md: its overlay is as good as ours, and what prints digests prints what is taken."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import ROOT, blocks
from tests.docs.stage import Stage
from tests.manifests import checks
from tests.manifests.building import Build, containers, find, of_kind, pods, title, validator
from tests.manifests.test_overlays import judged

pytestmark = [pytest.mark.program("kubectl")]

PAGE = "deploy/kustomize/README.md"
DIGEST = f"sha256:{'5' * 64}"


@pytest.fixture(scope="module")
def mine(stage: Stage) -> Build:
    """What the page's overlay builds, by the page's own commands."""
    (block,) = (each for each in blocks(PAGE) if each.begins("cp "))
    ended = stage.run(block)
    assert ended.returncode == 0, ended.stderr
    return tuple(yaml.safe_load_all((stage.folder(PAGE) / "mine.yaml").read_text("utf-8")))


def test_the_overlay_holds_to_all_that_ours_are_held_to(mine: Build) -> None:
    found = {checks.named(check): check(mine) for check in (*checks.EVERY, *checks.WHOLE)}
    assert found.pop("images.our_image_is_this_version")  # the page gives it another name
    assert {name: findings for name, findings in found.items() if findings} == {}
    assert [(title(each), faults) for each, faults in zip(mine, judged(list(mine)), strict=True) if faults] == []


def test_the_overlay_changes_what_the_page_says(mine: Build) -> None:
    (gateway,) = containers(find(mine, "Deployment", "poolgate")["spec"]["template"])
    assert gateway["image"].startswith("registry.example.com/poolgate:")
    vllm = find(mine, "Deployment", "vllm-chat")["spec"]
    assert vllm["replicas"] == 2
    assert any("--kv-cache-dtype" in argument for argument in containers(vllm["template"])[0]["args"])
    assert find(mine, "PersistentVolumeClaim", "model-cache")["spec"]["storageClassName"] == "nfs"


def test_the_certificate_stands_where_the_page_says(tmp_path: Path) -> None:
    (block,) = (each for each in blocks(PAGE) if "poolgate-tls" in each.text)
    base = os.path.relpath(ROOT / "deploy" / "kustomize" / "base", tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(f"resources: [{base}]\n{block.text}", "utf-8")
    built = subprocess.run(
        [validator("kubectl"), "kustomize", tmp_path], capture_output=True, text=True, check=True
    ).stdout
    gateway = find(tuple(yaml.safe_load_all(built)), "Deployment", "poolgate")["spec"]["template"]
    (folder,) = {each["mountPath"] for each in containers(gateway)[0]["volumeMounts"]}
    sources = gateway["spec"]["volumes"][0]["projected"]["sources"]
    (secret,) = (each["secret"] for each in sources if each.get("secret", {}).get("name") == "poolgate-tls")
    text = (ROOT / PAGE).read_text("utf-8")
    for item in secret["items"]:
        assert f"`{folder}/{item['path']}`" in text


def test_the_digests_that_are_printed_are_taken(stage: Stage, tmp_path: Path) -> None:
    """The page's lines, with a `docker` that knows one digest."""
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(f'#!/bin/sh\n[ "$1 $2 $3" = "buildx imagetools inspect" ] && echo {DIGEST}\n', "utf-8")
    docker.chmod(0o755)
    (block,) = (each for each in blocks(PAGE) if "imagetools" in each.text)
    printed = subprocess.run(
        ["sh", "-e", "-c", block.script],
        cwd=stage.folder(PAGE),
        env=os.environ | {"PATH": f"{docker.parent}:{validator('kubectl').parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    production = os.path.relpath(ROOT / "deploy" / "kustomize" / "overlays" / "production", overlay.resolve())
    (overlay / "kustomization.yaml").write_text(f"resources: [{production}]\nimages:\n{printed}", "utf-8")
    built = subprocess.run(
        [validator("kubectl"), "kustomize", overlay], capture_output=True, text=True, check=True
    ).stdout
    images = {each["image"] for _, template in pods(yaml.safe_load_all(built)) for each in containers(template)}
    assert len(images) > 3
    assert [image for image in images if not image.endswith(f"@{DIGEST}")] == []


def test_the_services_that_are_settled_are_there() -> None:
    """With their ports, in one of the overlays or components."""
    text = (ROOT / PAGE).read_text("utf-8").partition("## Names that are settled")[2].partition("\n## ")[0]
    told = {name: int(port) for name, port in re.findall(r"`([a-z-]+)`\s+\((?:`\w+`, )?(\d+)\)", text)}
    files = (ROOT / "deploy" / "kustomize").glob("*/**/*.yaml")
    objects = [each for file in files for each in yaml.safe_load_all(file.read_text("utf-8")) if "kind" in (each or {})]
    ports = {each["metadata"]["name"]: each["spec"]["ports"][0]["port"] for each in of_kind(objects, "Service")}
    assert told.items() <= ports.items()
    assert len(told) == 7
