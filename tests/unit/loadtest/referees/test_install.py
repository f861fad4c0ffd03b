"""What referees are installed from."""

import re
from pathlib import Path

import pytest

from loadtest.referees import install
from loadtest.referees.install import LOCKS, NAMES, NoTorch, commands, made_from, version_of
from loadtest.referees.torch import TORCH


@pytest.mark.parametrize("name", NAMES)
def test_a_referee_is_locked_with_hashes_and_no_address(name: str) -> None:
    text = (LOCKS / f"referees-{name}.lock").read_text()
    for entry in re.split(r"\n(?=[a-z])", text.strip()):
        assert re.match(r"[a-z0-9._-]+==\S+", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    assert "://" not in text
    assert re.search(rf"^{name}==", text, re.MULTILINE)
    assert f"requirements/referees-{name}.lock" in (LOCKS.parent / "scripts" / "lock").read_text()
    assert ".referees/" in (LOCKS.parent / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_no_lock_brings_torch_or_cuda(name: str) -> None:
    names = re.findall(r"^([a-z0-9._-]+)==", (LOCKS / f"referees-{name}.lock").read_text(), re.MULTILINE)
    # A binding to ask for a card's temperature, 50 kB, is not CUDA.
    assert not [each for each in names if re.match(r"torch|triton|cuda|nvidia-(?!ml-py$)", each)]


@pytest.mark.parametrize("name", NAMES)
def test_pip_takes_wheels_by_their_hashes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FIND_LINKS", "/wheels")
    *_, (pip, variables) = commands(name, tmp_path)
    assert {"--require-hashes", "--only-binary=:all:", "--no-deps"} <= {*pip}
    assert str(LOCKS / f"referees-{name}.lock") in pip
    assert not variables


def test_torch_comes_from_the_folder_that_is_named_and_from_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FIND_LINKS", "/wheels")
    [(pip, variables)] = [step for step in commands("guidellm", tmp_path) if TORCH in step[0]]
    assert "--no-index" in pip
    assert variables == {"PIP_FIND_LINKS": "/wheels"}


def test_without_a_folder_for_torch_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "torch_places", list)
    kept = tmp_path / "guidellm" / "kept"
    kept.parent.mkdir()
    kept.touch()
    with pytest.raises(NoTorch, match="TORCH_FIND_LINKS"):
        install.install("guidellm", tmp_path)
    assert kept.exists()


def test_a_finished_install_is_left_alone_and_one_of_another_lock_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, wanted = tmp_path / "aiperf", ["one"]
    monkeypatch.setattr(install, "made_from", lambda name: wanted[0])
    monkeypatch.setattr(install, "commands", lambda name, folder: [(["mkdir", str(folder)], {})])
    install.install("aiperf", tmp_path)
    (folder / "mine").touch()
    install.install("aiperf", tmp_path)
    assert (folder / "mine").exists()
    wanted[0] = "two"
    install.install("aiperf", tmp_path)
    assert not (folder / "mine").exists()


def test_an_install_belongs_to_its_lock() -> None:
    assert len({made_from(name) for name in NAMES}) == len(NAMES)


def test_the_version_is_that_of_the_package_itself(tmp_path: Path) -> None:
    packages = tmp_path / "aiperf" / "lib" / "python3.11" / "site-packages"
    for name in ("aiperf-0.13.0.dist-info", "aiperf_other-2.dist-info", "numpy-2.4.6.dist-info"):
        (packages / name).mkdir(parents=True)
    assert version_of("aiperf", tmp_path) == "0.13.0"
