"""What a stranger clones works alone: no path of our machines, no registry's host, every dependency hashed."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from tests.docs.stage import names

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("runtime.lock", "extras.lock", "build.lock", "dev.lock", "validators.lock")
# Written apart so that this file does not name them either.
FORBIDDEN = re.compile(
    "|".join(
        re.escape("".join(parts))
        for parts in (
            ("..", "/shared"),
            ("/wo", "rk/main"),
            ("pypi", ".org"),
            ("python", "hosted.org"),
            ("npm", "js.org"),
            ("download.pytorch", ".org"),
            ("deb.debian", ".org"),
        )
    )
)


def tracked() -> list[Path]:
    """The files git knows and has, or the whole tree of an archive."""
    return [ROOT / name for name in names() if (ROOT / name).is_file()]


def test_no_file_names_a_path_of_our_machines_or_a_registrys_host() -> None:
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", "replace") if path.is_file() else ""
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in FORBIDDEN.finditer(text)]
    assert found == []


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_dependency_is_pinned_and_hashed(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    entries = re.split(r"\n(?=[a-z])", text.strip())
    assert len(entries) > 3
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+==\S+", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    assert "://" not in text


@pytest.mark.parametrize("tests", ["browser", "clients", "manifests"])
def test_every_locked_package_of_npm_is_pinned_and_hashed(tests: str) -> None:
    folder = ROOT / "tests" / tests / "node"
    lock = json.loads((folder / "package-lock.json").read_text())
    own = lock["packages"].pop("")
    assert own["dependencies"] == json.loads((folder / "package.json").read_text())["dependencies"]
    assert set(lock["packages"]) >= {f"node_modules/{name}" for name in own["dependencies"]}
    for package in lock["packages"].values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", package["version"])
        assert package["integrity"].startswith("sha512-")
        assert "resolved" not in package


def test_the_locks_hold_every_declared_dependency_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locked = {name: (ROOT / "requirements" / name).read_text() for name in LOCKS}
    extras = project["project"]["optional-dependencies"]
    for text, declared in (
        (locked["runtime.lock"], project["project"]["dependencies"]),
        (locked["extras.lock"], [*extras["kubernetes"], *extras["redis"], *extras["jwt"]]),
        (locked["dev.lock"], project["dependency-groups"]["dev"] + project["project"]["dependencies"]),
    ):
        for requirement in declared:
            name = re.split(r"[<>=]", requirement)[0]
            assert re.search(rf"^{re.escape(name)}==", text, re.MULTILINE | re.IGNORECASE), name


def test_runtime_and_development_agree_on_every_version() -> None:
    def versions(name: str) -> dict[str, str]:
        text = (ROOT / "requirements" / name).read_text()
        return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.MULTILINE))

    runtime, extras, dev = (versions(name) for name in ("runtime.lock", "extras.lock", "dev.lock"))
    assert {name: extras[name] for name in runtime} == runtime
    assert {name: dev[name] for name in extras} == extras


def test_the_runtime_stays_small() -> None:
    text = (ROOT / "requirements" / "runtime.lock").read_text()
    here = [line for line in re.findall(r"^[a-z0-9._-]+==.*", text, re.MULTILINE) if not ELSEWHERE.search(line)]
    assert len(here) <= 31


ELSEWHERE = re.compile(r"sys_platform == '(win32|emscripten)'")
"""What is not installed where the gateway runs."""
