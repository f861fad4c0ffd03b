"""A container without an engine: the tree as the root, its user, read-only, nothing of this machine but /dev and /proc.

Not every machine lets everyone do that, so there are several ways; the first one that works is taken, and the end of
the run says which (`conftest`). What each leaves unproven stands with it.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from tests.integration.image.dockerfile import Stage

USER = 65532
CONFIGURATION = "etc/poolgate"
SECONDS = 120

Kind = Literal["mounted", "mapped", "chroot", "in place"]
KINDS: Mapping[Kind, str] = {
    "mounted": f"as user {USER}, in a chroot, on a read-only mount",
    "mapped": f"as user {USER} of a user namespace, in a chroot, on a read-only mount",
    "chroot": f"as user {USER}, in a chroot; not on a read-only mount, which this machine does not allow",
    "in place": "as the tests' user, where the tree lies; not in a chroot and not as a user of its own, which this "
    "machine allows nobody but root, nor with the tree's C library",
}
# Of the tree, what to mount for the configuration (or nothing), whether the tree stays writable, and the command.
MOUNTING = """set -e
tree=$1 configuration=$2 writable=$3; shift 3
mount --rbind "$tree" "$tree"
[ -n "$writable" ] || mount -o remount,bind,ro "$tree"
mount --rbind /dev "$tree/dev"
mount --rbind /proc "$tree/proc"
[ -z "$configuration" ] || mount --bind "$configuration" "$tree/etc/poolgate"
exec "$@"
"""


def _tool(name: str) -> str:
    """By its path: the image's PATH holds when it is started."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or f"/no/{name}"


@dataclass(frozen=True)
class Sandbox:
    """The tree, and the last stage's words for what is started in it."""

    tree: Path
    image: Stage
    kind: Kind

    @classmethod
    def best(cls, tree: Path, image: Stage) -> "Sandbox":
        """The first way that works here."""
        return next(sandbox for kind in KINDS if (sandbox := cls(tree, image, kind)).works)

    @cached_property
    def works(self) -> bool:
        return self.run("python", "-c", "pass").returncode == 0

    @property
    def told(self) -> str:
        return KINDS[self.kind]

    def command(self, words: Sequence[str], configuration: Path | None = None, writable: bool = False) -> list[str]:
        """What to start for a command of the image. `configuration` is mounted where the image looks for it.

        `writable`: by the tree's owner, and with nothing that keeps him from writing.
        """
        root, clean = str(self.tree), [_tool("env"), "-i", *(f"{k}={v}" for k, v in self.image.environment.items())]
        mounting = [_tool("sh"), "-c", MOUNTING, "sh", root, str(configuration or ""), "yes" if writable else ""]
        user = [] if writable else [f"--userspec={USER}:{USER}"]
        match self.kind:
            case "mounted":
                return [_tool("unshare"), "--mount", *mounting, *clean, _tool("chroot"), *user, root, *words]
            case "mapped":
                into = [_tool("unshare"), "--user", f"--map-user={USER}", f"--map-group={USER}"]
                inner = [_tool("chroot"), root] if writable else [*into, f"--root={root}", "--wd=/"]
                return [_tool("unshare"), "--user", "--map-root-user", "--mount", *mounting, *clean, *inner, *words]
            case "chroot":
                self._laid(configuration)
                return [*clean, _tool("chroot"), *user, root, *words]
            case "in place":
                self._laid(configuration)
                return [*clean, *self._in_place(words)]

    def run(self, *words: str, writable: bool = False) -> subprocess.CompletedProcess[str]:
        """A command of the image, to its end."""
        command = self.command(words, writable=writable)
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, cwd="/")

    def _laid(self, configuration: Path | None) -> None:
        """Without mounts, the files are put into the tree."""
        for file in [] if configuration is None else configuration.iterdir():
            shutil.copy(file, self.tree / CONFIGURATION)

    def _in_place(self, words: Sequence[str]) -> list[str]:
        commands = self.tree / "usr" / "local" / "bin"
        target = (commands / "python").readlink()
        python = self.tree / target.relative_to("/") if target.is_absolute() else commands / target
        first = [str(python)] if words[0] == "python" else [str(python), str(commands / words[0])]
        return first + [word.replace(f"/{CONFIGURATION}", str(self.tree / CONFIGURATION)) for word in words[1:]]
