"""A process as a pod's container runs it: read-only but for its volumes, by a user whom nothing there knows.

There is no container engine here. The kernel's namespaces do the same, without being root, where it lets everybody
make them: a root folder of what is needed, mounted read-only; the volumes at their paths; another user id, no
capability. The network is the machine's.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

SCRIPT = Path(__file__).with_name("contained.sh")
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
SYSTEM = ("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64")
STOP_SECONDS = 15


@cache
def may_contain() -> bool:
    """Whether the kernel lets us."""
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


@contextmanager
def contained(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    user: int,
    group: int,
    volumes: Mapping[str, Path],
    readable: Sequence[Path],
    root: Path,
    log: BinaryIO,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run it for the length of a block. `volumes`: the folders behind the paths that it may write to. `readable`: what
    it sees beside the system's folders. `root`: an empty folder to be its root.
    """
    seen = [f"ro:{path}" for path in (*map(Path, SYSTEM), Path(sys.base_prefix), *readable) if path.exists()]
    seen += ["rw:/dev:/dev", "rw:/proc:/proc", *(f"rw:{folder}:{path}" for path, folder in volumes.items())]
    process = subprocess.Popen(
        [*UNSHARE, "sh", str(SCRIPT), str(root), str(user), str(group), *seen, "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=dict(environment),
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
