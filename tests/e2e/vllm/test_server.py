"""What must hold before and after vLLM runs, tried without it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.vllm.server import VllmDidNotStart, VllmNotInstalled, installation, real_vllm

ROOT = Path(__file__).resolve().parents[3]

# Like vLLM: it starts a worker and is itself killed, and the worker lives on.
DIES_AND_LEAVES_A_WORKER = """\
#!/bin/sh
sleep 600 &
echo $! > "$0.worker"
echo the reason
exit 7
"""


def test_an_absent_install_is_named_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOLGATE_VLLM_HOME", str(tmp_path))
    with pytest.raises(VllmNotInstalled, match=r"venv/bin/vllm is not there(.|\n)*python -m tests.e2e.vllm.install"):
        installation()


def test_a_vllm_that_ends_is_told_with_its_log_and_its_orphans_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOLGATE_VLLM_HOME", str(tmp_path))
    vllm = tmp_path / "venv" / "bin" / "vllm"
    vllm.parent.mkdir(parents=True)
    vllm.write_text(DIES_AND_LEAVES_A_WORKER)
    vllm.chmod(0o755)
    (tmp_path / "model").mkdir()

    with pytest.raises(VllmDidNotStart, match=r"ended with 7(.|\n)*the reason"), real_vllm(tmp_path / "log"):
        pytest.fail("it never was ready")

    worker = int((tmp_path / "venv" / "bin" / "vllm.worker").read_text())
    assert not runs(worker)


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def install(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if "FIND_LINKS" not in name}
    return subprocess.run(
        [sys.executable, "-m", "tests.e2e.vllm.install"],
        cwd=ROOT,
        env={**clean, "PIP_CONFIG_FILE": os.devnull, "POOLGATE_VLLM_HOME": str(home), **environment},
        capture_output=True,
        text=True,
    )


def test_installing_leaves_a_venv_alone_that_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "precious").touch()
    done = install(tmp_path, TORCH_FIND_LINKS=str(tmp_path))
    assert done.returncode == 1
    assert "did not make" in done.stderr
    assert (tmp_path / "venv" / "precious").exists()


def test_installing_without_a_folder_for_torch_says_what_is_needed(tmp_path: Path) -> None:
    done = install(tmp_path)
    assert done.returncode == 1
    assert "torch==2.13.0+cpu was not found" in done.stderr
    assert "PyTorch's documentation" in done.stderr
    assert not (tmp_path / "venv").exists()
