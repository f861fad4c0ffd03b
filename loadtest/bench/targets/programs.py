"""Where a target's program is: on the machine, or in `.peers`, where `python -m loadtest.bench.install` puts it."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from loadtest.bench.targets.site import REPOSITORY, NotHere

PEERS: Final = REPOSITORY / ".peers"
SEARCH_PATH: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
INSTALL: Final = "python -m loadtest.bench.install"
FINISHED: Final = "made-from"
"""The file that says that an install came to its end."""


def of_debian(name: str, search_path: str = SEARCH_PATH) -> str:
    """A program that the system's packages bring."""
    found = shutil.which(name, path=search_path)
    if found is None:
        raise NotHere(f"{name} is not installed: apt-get install {name} (Debian)")
    return found


def of_peer(peer: str, inside: str, peers: Path = PEERS) -> Path:
    """A file of a peer's own environment."""
    found = peers / peer / inside
    if not (peers / peer / FINISHED).exists() or not found.exists():
        raise NotHere(f"{peer} is not installed: {INSTALL} {peer}")
    return found


def said(command: Sequence[str | Path]) -> str:
    """All that a command prints."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PATH": SEARCH_PATH}, stdin=subprocess.DEVNULL
    )
    return done.stdout + done.stderr


def version_in(text: str) -> str:
    """The first that looks like one."""
    found = re.search(r"\d+\.\d+(\.\w+)*", text)
    return found[0] if found else "unknown"


def package_version(peer: str, package: str, peers: Path = PEERS) -> str:
    """Of a Python package in a peer's environment, by the name of its folder: nothing of it is run."""
    of_peer(peer, "bin/python", peers)
    stem = package.replace("-", "_")
    for found in (peers / peer).glob(f"lib/python*/site-packages/{stem}-*.dist-info"):
        return found.name.removeprefix(f"{stem}-").removesuffix(".dist-info")
    raise NotHere(f"{peer} is not installed: {INSTALL} {peer}")
