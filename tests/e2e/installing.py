"""How what is too heavy for each run is installed: into a folder of its own, once, by a lock with hashes.

A finished install of the same things is used as it is; an unfinished or an older one is made anew. What stands there
and was not begun by such a script is left alone, and the script says so.
"""

import fcntl
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PYTHON = (3, 11)
"""The locks were resolved for it."""
VERSION = "{}.{}".format(*PYTHON)


class Home:
    """The folder of one such install. `wanted`: what a finished one was made from."""

    def __init__(self, folder: Path, wanted: Mapping[str, str]) -> None:
        self.folder = folder
        self._wanted = dict(wanted)
        self._began = time.monotonic()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else installs there meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "install.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @property
    def finished(self) -> bool:
        """Whether all that is wanted is there."""
        return self._recorded() == {"state": "finished", **self._wanted}

    def begin(self, variable: str, *made: Path) -> None:
        """Remove what an earlier run has made. `variable` names another folder."""
        if not self._recorded() and any(path.exists() for path in made):
            names = ", ".join(path.name for path in made)
            raise SystemExit(
                f"{self.folder} holds something ({names}) that this script did not make: name another folder in "
                f"{variable}, or remove it"
            )
        self._record("unfinished")
        (self.folder / ".gitignore").write_text("*\n")
        for path in made:
            shutil.rmtree(path, ignore_errors=True)

    def finish(self) -> None:
        """All of it is there."""
        self._record("finished")
        self.say(f"finished: {self.folder}")

    def say(self, what: str) -> None:
        """Tell what comes next, and after how long."""
        print(f"[{time.monotonic() - self._began:5.0f} s] {what}", flush=True)

    def _recorded(self) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads((self.folder / "install.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return found

    def _record(self, state: str) -> None:
        written = self.folder / "install.json.new"
        written.write_text(json.dumps({"state": state, **self._wanted}, indent=1) + "\n")
        written.replace(self.folder / "install.json")


def interpreter(of: str) -> str:
    """The Python that the locks were resolved for: this one, or one on the PATH."""
    if sys.version_info[:2] == PYTHON:
        return sys.executable
    found = shutil.which(f"python{VERSION}")
    if found is None:
        raise SystemExit(f"{of} is installed with Python {VERSION}, which is not on the PATH: install it")
    return found


def run(*command: str) -> None:
    """A command that has to succeed."""
    done = subprocess.run(command)
    if done.returncode != 0:
        raise SystemExit(f"failed with {done.returncode}: {' '.join(command)}\nRun this script again to begin anew.")
