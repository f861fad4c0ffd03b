"""A process as a pod's container runs it: read-only but for its volumes, by a user whom nothing there knows.

There is no container engine here. The kernel's namespaces do the same, without being root, where it lets everybody
make them: a root folder of what is needed, mounted read-only; the volumes at their paths; another user id, no
capability. The network is the machine's.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SCRIPT = Path(__file__).with_name("contained.sh")
SYSTEM = ("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/opt")


def entering(
    root: Path,
    *,
    user: int,
    group: int,
    volumes: Mapping[str, Path],
    readable: Sequence[Path],
    shm_bytes: int | None = None,
) -> list[str]:
    """The words before a command that has it run so. They become the command.

    `root`: an empty folder to be its root. `volumes`: the folders behind the paths that it may write to. `readable`:
    what it sees beside the system's folders. `shm_bytes`: how large /dev/shm is, where it is one of its own.
    """
    seen = [f"ro:{path}" for path in (*map(Path, SYSTEM), Path(sys.base_prefix), *readable) if path.exists()]
    seen += [f"rw:{path}:{path}" for path in ("/proc", "/sys", "/dev")]
    seen += [] if shm_bytes is None else [f"shm:{shm_bytes}"]
    seen += [f"rw:{folder}:{path}" for path, folder in volumes.items()]
    into = ("unshare", "--user", "--map-root-user", "--mount")
    words = [*into, "sh", str(SCRIPT), str(root), str(user), str(group), *seen, "--"]
    # Something small first: what fails then is this machine's doing, and not that of what is tested.
    tried = subprocess.run([*words, "touch", "/written", "/etc/written"], capture_output=True, text=True, check=False)
    assert tried.stderr.count("Read-only file system") == 2, tried.stderr
    return words
