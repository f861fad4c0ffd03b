"""Child processes, pinned to a core, that never outlive the run.

Each is stopped when its `with` ends, whatever ended it. A `with` does not run when this process is killed,
so each child has a guard beside it: a shell that reads a pipe only this process holds, and kills the
child's whole session when the pipe closes. (A death signal from the kernel, PR_SET_PDEATHSIG, is not
enough: nginx takes no notice of a SIGTERM that comes while it starts, and its worker outlives a master
that is killed.)
"""

import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

_STOP_SECONDS: Final = 8
_TAIL_LINES: Final = 15
_FILES: Final = 65_536
_LOCK: Final = Path(tempfile.gettempdir()) / "poolgate-bench.lock"


class BenchError(Exception):
    """The bench cannot go on; the message says why and what to do."""


@contextmanager
def child(
    command: Sequence[str],
    *,
    core: int,
    log: Path,
    cwd: Path | None = None,
    pipe: bool = False,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `command` on `core`, its output going to `log`; with `pipe` its stdout is the caller's; `more` is put into
    its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POOLGATE_")}
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipe else sink,
            stderr=sink,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            start_new_session=True,  # its whole family can be ended, and Ctrl-C reaches us alone
        )
    with _guarded(process.pid):
        try:
            yield process
        finally:
            _end(process)


@contextmanager
def _guarded(session: int) -> Iterator[None]:
    """While open, `session` is killed if this process dies."""
    command = ["sh", "-c", 'read _; kill -s KILL -- -"$0"', str(session)]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    assert guard.stdin is not None  # a pipe was asked for
    try:
        yield
    finally:
        guard.kill()  # before its pipe is closed: this is not the death it waits for
        guard.wait()
        guard.stdin.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdout is not None:
        process.stdout.close()
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its session's leader: whoever is left of the family
    process.wait()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, *, seconds: float = 60) -> None:
    """Returns when `ready()` is true; BenchError with the log's end if the process ends or time is up."""
    until = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            raise BenchError(f"{process.args!r} ended with code {process.returncode}:\n{tail(log)}")
        if time.monotonic() > until:
            raise BenchError(f"{process.args!r} was not ready after {seconds:.0f} s:\n{tail(log)}")
        time.sleep(0.02)


def tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(f"  | {line[:400]}" for line in lines[-_TAIL_LINES:]) or "  | (it wrote nothing)"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def alone(lock: Path = _LOCK) -> Iterator[None]:
    """Waits until nobody else measures on this host: two would take each other's cores. Ends with this process."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("bench: another run has the cores; waiting for its end", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def allow_many_files() -> None:
    """As many open files as the host lets us have: 10,000 streams are 20,000 sockets in the target."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, PermissionError):  # only root may have more than it was given
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, _FILES),) * 2)
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def files_allowed() -> int:
    """How many files a process may have open; its children have the same bound."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
