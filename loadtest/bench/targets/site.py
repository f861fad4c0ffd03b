"""What a target is, and where it is built.

A target is a class with a `name`, a `version()` that also says whether the program is here, and a
`running(site)` that starts it as an operator would, pinned to the site's core, with its own configuration in
an empty folder, yields where it listens once it answers, and stops it.
"""

import http.client
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from loadtest.bench.processes import BenchError

HOST: Final = "127.0.0.1"
REPOSITORY: Final = Path(__file__).resolve().parents[3]


class NotHere(BenchError):
    """A target's program is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Site:
    """Where a target is built: an empty folder, its core, pods' ports, the apparatus' processes, a key."""

    folder: Path
    core: int
    pods: tuple[int, ...]
    apparatus: tuple[int, ...]
    key: str


Watched = Callable[[int], dict[str, float]]
"""Called at a window's end with the count of requests in it: further figures of the round."""


def nothing_else() -> Watched:
    return lambda requests: {}


@dataclass(frozen=True)
class Running:
    """A target that answers: where (connections are dealt out over `ports`), and whose CPU is its cost."""

    ports: tuple[int, ...]
    processes: Callable[[], tuple[int, ...]]
    log: Path | None
    ops_port: int = 0
    """Where a gateway tells of itself; 0: it was not needed."""
    watch: Callable[[], Watched] = nothing_else
    """Called at a window's beginning, for what is beside the target and no part of its cost."""
    headers: bytes = b""
    """Further header lines that each request to it needs, each with its end of line."""
    verbatim: bool = True
    """Whether the pods' bytes come through as they were; if not, what they mean is checked (`bench.meaning`)."""


class Target(Protocol):
    @property
    def name(self) -> str: ...

    def version(self) -> str: ...

    def running(self, site: Site) -> AbstractContextManager[Running]: ...


def status_of(port: int, path: str) -> int | None:
    """The status a GET gets; None if nobody answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
