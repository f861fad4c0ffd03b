"""What stands behind the targets, and the target that is nothing: the pods themselves."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtest.bench.processes import BenchError, child, tail
from loadtest.bench.targets.site import REPOSITORY, Running, Site


class Direct:
    """No proxy: the apparatus' own cost, and the most requests per second it can offer a target."""

    name = "direct"

    def version(self) -> str:
        return "no proxy; CPU is that of the client and the pods together"

    @contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        yield Running(ports=site.pods, processes=lambda: site.apparatus, log=None)


@contextmanager
def pods(count: int, *, grid_us: int, core: int, folder: Path) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The pods' process: (pid, ports)."""
    log = folder / "backend.log"
    command = [
        sys.executable,
        "-m",
        "loadtest.bench.backend",
        "--pods",
        str(count),
        "--grid-us",
        str(grid_us),
    ]
    with child(command, core=core, log=log, cwd=REPOSITORY, pipe=True) as process:
        assert process.stdout is not None  # pipe=True
        line = process.stdout.readline()
        if not line:
            raise BenchError(f"the pods did not start:\n{tail(log)}")
        yield process.pid, tuple(json.loads(line))
