#!/usr/bin/env python3
"""Install Open WebUI into a venv of its own: python install.py

The venv (0.6 GB) is .webui/venv in the repository, or `venv` in the folder that POOLGATE_WEBUI_HOME names. A finished
install of this lock is used as it is; an unfinished or an older one is made anew. A `venv` there that this script did
not begin is left alone, and the script says so.

Open WebUI asks for torch and for models that run beside it. Started slim it imports none of them, so they are not in
the lock (left-out.txt says which); all that is in it is pinned by hash.
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

PYTHON = (3, 11)  # the lock was resolved for it


def main() -> None:
    home = Path(os.environ.get("POOLGATE_WEBUI_HOME") or REPOSITORY / ".webui").resolve()
    home.mkdir(parents=True, exist_ok=True)
    with only_one_at_a_time(home):
        if recorded(home) == {"state": "finished", **wanted()}:
            print(f"Open WebUI is in {home}")
            return
        install(home)


@contextmanager
def only_one_at_a_time(home: Path) -> Iterator[None]:
    with (home / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def wanted() -> dict[str, str]:
    """What a finished install was made from; one that differs is made anew."""
    return {"python": "{}.{}".format(*PYTHON), "made_from": hashlib.sha256(LOCK.read_bytes()).hexdigest()}


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
    venv = home / "venv"
    if not recorded(home) and venv.exists():
        raise SystemExit(
            f"{venv} was not made by this script: name another folder in POOLGATE_WEBUI_HOME, or remove it"
        )
    python = interpreter()
    record(home, "unfinished")
    (home / ".gitignore").write_text("*\n")
    shutil.rmtree(venv, ignore_errors=True)

    say(start, f"a venv in {venv}")
    run(python, "-m", "venv", str(venv))

    say(start, f"Open WebUI, {LOCK.read_text().count('==')} packages in all (0.3 GB to fetch)")
    # --no-compile: the first start compiles what it imports.
    pip = (str(venv / "bin" / "python"), "-m", "pip", "-qq", "install", "--no-deps", "--no-compile")
    run(*pip, "--require-hashes", "--requirement", str(LOCK))

    record(home, "finished")
    say(start, f"finished: {home}")


def interpreter() -> str:
    """The Python that the lock was resolved for: this one, or one on the PATH."""
    if sys.version_info[:2] == PYTHON:
        return sys.executable
    found = shutil.which("python{}.{}".format(*PYTHON))
    if found is None:
        raise SystemExit(
            "Open WebUI is installed with Python {}.{}, which is not on the PATH: install it".format(*PYTHON)
        )
    return found


def run(*command: str) -> None:
    done = subprocess.run(command)
    if done.returncode != 0:
        raise SystemExit(f"failed with {done.returncode}: {' '.join(command)}\nRun this script again to begin anew.")


def say(start: float, what: str) -> None:
    print(f"[{time.monotonic() - start:5.0f} s] {what}", flush=True)


if __name__ == "__main__":
    main()
