"""What others' judges say: checkov of the overlays and the Dockerfile, yamllint of every file that somebody edits."""

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.building import OVERLAYS, ROOT, build, validator

HERE = Path(__file__).parent
EXCEPTIONS: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "checkov.yaml").read_text("utf-8"))


@dataclass(frozen=True)
class Fault:
    """What checkov has against something."""

    file: str
    check: str
    name: str
    resource: str

    def __str__(self) -> str:
        return f"{self.file}: {self.check} ({self.name}): {self.resource}"


@cache
def faults() -> tuple[Fault, ...]:
    """Of one run over all: it takes ten seconds to begin."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for overlay in OVERLAYS:
            (folder / f"{overlay.name}.yaml").write_text(yaml.safe_dump_all(build(overlay)), "utf-8")
        shutil.copy(ROOT / "Dockerfile", folder)
        (folder / "bad").mkdir()
        (folder / "bad" / "Dockerfile").write_text("FROM python:latest\nUSER root\nADD . /\n", "utf-8")
        command = [str(validator("checkov")), "--framework", "kubernetes", "dockerfile", "--directory", made]
        done = subprocess.run(
            [*command, "--skip-download", "--quiet", "--output", "json"],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=folder,
        )
    told = {each["check_type"]: each for each in json.loads(done.stdout)}
    assert told.keys() == {"kubernetes", "dockerfile"}
    assert [each["summary"]["parsing_errors"] for each in told.values()] == [0, 0]
    return tuple(
        Fault(fault["file_path"].lstrip("/"), fault["check_id"], fault["check_name"], fault["resource"])
        for each in told.values()
        for fault in each["results"]["failed_checks"]
    )


def excepted(fault: Fault) -> bool:
    """By our file."""
    entry = EXCEPTIONS.get(fault.check)
    return entry is not None and fault.resource in entry.get("for", [fault.resource])


def of_the_overlays() -> list[Fault]:
    return [fault for fault in faults() if fault.file.endswith(".yaml")]


@pytest.mark.program("kubectl")
@pytest.mark.program("checkov")
def test_checkov_has_nothing_against_the_overlays_but_what_is_explained() -> None:
    assert [str(fault) for fault in of_the_overlays() if not excepted(fault)] == []


@pytest.mark.program("kubectl")
@pytest.mark.program("checkov")
def test_every_exception_is_needed_named_and_explained() -> None:
    """One that is needed no more would hide the next fault."""
    found = of_the_overlays()
    assert {fault.check: fault.name for fault in found} == {check: each["name"] for check, each in EXCEPTIONS.items()}
    named = {(check, resource) for check, entry in EXCEPTIONS.items() for resource in entry.get("for", [])}
    assert named - {(fault.check, fault.resource) for fault in found} == set()
    assert all(entry["why"] for entry in EXCEPTIONS.values())


@pytest.mark.program("kubectl")
@pytest.mark.program("checkov")
def test_checkov_has_nothing_against_the_dockerfile() -> None:
    assert [str(fault) for fault in faults() if fault.file == "Dockerfile"] == []
    assert {"CKV_DOCKER_7", "CKV_DOCKER_8"} <= {fault.check for fault in faults() if fault.file == "bad/Dockerfile"}


def yamllint(*where: object) -> str:
    done = subprocess.run(
        [
            validator("yamllint"),
            "--strict",
            "--format",
            "parsable",
            "--config-file",
            HERE / "yamllint.yaml",
            *map(str, where),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    return done.stdout + done.stderr


@pytest.mark.program("yamllint")
def test_yamllint_has_nothing_against_what_is_deployed() -> None:
    assert yamllint("deploy", "tests/manifests") == ""


@pytest.mark.program("yamllint")
def test_yamllint_would_speak_up(tmp_path: Path) -> None:
    (file := tmp_path / "a.yaml").write_text("a: 1\na: 2\n", "utf-8")
    assert 'duplication of key "a"' in yamllint(file)
