"""Install the referees, each into a folder of its own under `.referees`, by locks with hashes and wheels alone.

AIPerf takes 0.9 GB. GuideLLM wants torch, of which PyPI carries for Linux the one with all of CUDA (5.6 GB): its lock
leaves torch out, and the CPU build (1.2 GB in all) is taken from the folder that TORCH_FIND_LINKS names, else from
where pip is told to look. Where there is none, GuideLLM is left out.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from loadtest.bench.processes import BenchError
from loadtest.referees.torch import TORCH, torch_places

REPOSITORY: Final = Path(__file__).resolve().parents[2]
HOMES: Final = REPOSITORY / ".referees"
LOCKS: Final = REPOSITORY / "requirements"
NAMES: Final = ("aiperf", "guidellm")
FINISHED: Final = "made-from"
"""Beside an install: what it was made from, once it was finished."""


class NoTorch(BenchError):
    """GuideLLM cannot be installed."""


def program(name: str) -> Path:
    return HOMES / name / "bin" / name


def install(name: str, homes: Path = HOMES) -> None:
    """One that was finished from the same lock stays as it is. Raises BenchError with the command that failed."""
    folder = homes / name
    wanted = made_from(name)
    if (folder / FINISHED).exists() and (folder / FINISHED).read_text() == wanted:
        return
    steps = commands(name, folder)
    print(f"installing {name} into {folder} ...", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    for command, variables in steps:
        if subprocess.run(command, stdin=subprocess.DEVNULL, env={**os.environ, **variables}).returncode != 0:
            raise BenchError(f"failed: {' '.join(command)}")
    (folder / FINISHED).write_text(wanted)


def made_from(name: str) -> str:
    """The lock's digest, and the Python that a virtual environment belongs to."""
    digest = hashlib.sha256((LOCKS / f"referees-{name}.lock").read_bytes()).hexdigest()
    return f"{digest} {sys.version}"


def commands(name: str, folder: Path) -> list[tuple[list[str], dict[str, str]]]:
    """What makes an install, with what is put into the environment. Raises NoTorch."""
    # --no-compile: the first start compiles the tenth that it imports.
    pip = [
        str(folder / "bin" / "python"), "-m", "pip",
        "--disable-pip-version-check", "--quiet", "install", "--no-compile",
    ]  # fmt: skip
    by_lock = [*pip, "--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement"]
    made: list[tuple[list[str], dict[str, str]]] = [([sys.executable, "-m", "venv", str(folder)], {})]
    if name == "guidellm":
        places = torch_places()
        if not places:
            raise NoTorch(f"no {TORCH}: name the folder that its wheel is in by TORCH_FIND_LINKS")
        # The variable, unlike --find-links, replaces what pip is configured with.
        made.append(([*pip, "--no-deps", "--no-index", TORCH], {"PIP_FIND_LINKS": " ".join(places)}))
    made.append(([*by_lock, str(LOCKS / f"referees-{name}.lock")], {}))
    return made


def version_of(name: str, homes: Path = HOMES) -> str:
    """As installed."""
    [found] = (homes / name).glob(f"lib/python*/site-packages/{name}-*.dist-info")
    return found.name.removeprefix(f"{name}-").removesuffix(".dist-info")
