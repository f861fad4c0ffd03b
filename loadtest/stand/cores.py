"""Which cores whom: the gateways one, the pods, the generator and all else the other.

A gateway that shares its core with what loads it is measured together with it. With one core, or unpinned, everybody
may run everywhere, and the figures of time say so little that the page has to tell.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from types import MappingProxyType
from typing import Self

from loadtest.bench.processes import child
from loadtest.bench.targets.site import REPOSITORY


@dataclass(frozen=True)
class Cores:
    gateways: frozenset[int]
    apparatus: frozenset[int]

    @classmethod
    def of_this_host(cls, *, pinned: bool = True) -> Self:
        """The first core for the gateways, the others for the apparatus; the same ones for both where that cannot be
        or is not wanted."""
        cores = sorted(os.sched_getaffinity(0))
        if not pinned or len(cores) == 1:
            return cls(frozenset(cores), frozenset(cores))
        return cls(frozenset(cores[:1]), frozenset(cores[1:]))

    @property
    def apart(self) -> bool:
        return not self.gateways & self.apparatus

    @property
    def words(self) -> str:
        if not self.apart:
            return "No process was pinned: gateways and generator took each other's time."
        return f"Gateways had core {_listed(self.gateways)}, pods and generator {_listed(self.apparatus)}."

    @contextmanager
    def generating(self) -> Iterator[None]:
        """For so long this process is on the apparatus' cores."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.apparatus)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


@contextmanager
def started(
    command: Sequence[str],
    cores: frozenset[int],
    log: Path,
    *,
    pipe: bool = False,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Popen[bytes]]:
    """The bench's child process, on any of these cores."""
    with child(command, core=min(cores), log=log, cwd=REPOSITORY, pipe=pipe, more=more) as process:
        if len(cores) > 1:
            os.sched_setaffinity(process.pid, cores)  # it has no threads yet
        yield process


def _listed(cores: frozenset[int]) -> str:
    return ", ".join(str(core) for core in sorted(cores))
