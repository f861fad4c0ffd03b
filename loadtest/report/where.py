"""Where a run was made and of which commit: without that its figures cannot be read."""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
MEASURED: Final = ("gateway", "loadtest", "requirements", "pyproject.toml")
"""What a change must touch to be another thing that was measured: a report that was written just now does not."""


@dataclass(frozen=True, slots=True)
class Host:
    """`load`: the one-minute load averages before the run and after it."""

    cores: int
    cpu: str
    kernel: str
    python: str
    load: tuple[float, float]

    @property
    def name(self) -> str:
        """What must be the same for times to be compared."""
        return f"{self.cores} cores, {self.cpu}"


def load_now() -> float:
    return round(os.getloadavg()[0], 2)


def host(load_before: float) -> Host:
    """Of this machine, at the end of a run."""
    return Host(
        cores=os.cpu_count() or 1,
        cpu=_cpu_model(),
        kernel=platform.release(),
        python=platform.python_version(),
        load=(load_before, load_now()),
    )


def commit(checkout: Path = CHECKOUT) -> str:
    """Short, with a word if files differ from it; "unknown" where there is no checkout or no git."""
    try:
        name = _git(checkout, "rev-parse", "--short", "HEAD")
        changed = _git(checkout, "status", "--porcelain", "--", *MEASURED)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name} and changes not committed" if changed else name


def _git(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "--no-optional-locks", "-C", str(checkout), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
