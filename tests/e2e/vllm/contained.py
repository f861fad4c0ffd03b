"""One container of a manifest, without a container engine: its command, arguments and environment in a root of its own.

The root is put together in a mount namespace of a user namespace, so that nobody has to be root: the system's folders,
Python and the venv, read-only; the container's volumes at their places, and they alone can be written; /dev/shm as
large as the manifest says. In it the process is the manifest's user and group, whom no passwd entry names. The network
is the machine's. The process that is started becomes vLLM itself, without one between them: signals reach it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.vllm.server import Vllm, free_port, installation, running
from tests.manifests.building import environment
from tests.manifests.checks.quantities import quantity
from tests.manifests.vllm_pods import Engine

SYSTEM = ("bin", "sbin", "lib", "lib64", "usr", "etc", "opt")
# $1 is an empty folder; SYSTEM, READ_ONLY, VOLUMES ("folder:place"), SHM_BYTES, WHO ("uid gid") are variables.
MAKE_THE_ROOT = """
set -e
root=$1; shift
mount -t tmpfs root "$root"
read_only() { mkdir -p "$root$1"; mount --rbind "$1" "$root$1"; mount -o remount,bind,ro "$root$1"; }
for name in $SYSTEM; do
  if [ -L /$name ]; then cp -P /$name "$root/$name"; elif [ -d /$name ]; then read_only /$name; fi
done
for folder in $READ_ONLY; do read_only "$folder"; done
for name in proc sys dev; do mkdir "$root/$name"; mount --rbind /$name "$root/$name"; done
mount -t tmpfs -o size=$SHM_BYTES,mode=1777 shm "$root/dev/shm"
for volume in $VOLUMES; do
  mkdir -p "$root${volume#*:}"; mount --bind ${volume%%:*} "$root${volume#*:}"
done
cd "$root"; mkdir before
mount -o remount,bind,ro "$root"
pivot_root . before
cd /; umount -l /before
set -- unshare --user --map-user=${WHO% *} --map-group=${WHO#* } "$@"
exec env -u SYSTEM -u READ_ONLY -u VOLUMES -u SHM_BYTES -u WHO "$@"
"""


class NoNamespaces(Exception):
    """This machine does not let us make namespaces. The message says what it said."""


@dataclass(frozen=True)
class Swaps:
    """What of a manifest must be another here. Each must be found there."""

    arguments: Mapping[str, str]
    variables: Mapping[str, str] = field(default_factory=dict)
    more: Sequence[str] = ()
    """Arguments that the manifest does not have."""


@contextmanager
def in_its_pod(engine: Engine, swaps: Swaps, secrets: Mapping[str, str], folder: Path) -> Iterator[Vllm]:
    """The pod's vLLM, ready. `folder` gets its volumes and its log; a volume that is there already is kept.

    Raises NoNamespaces, VllmNotInstalled, VllmDidNotStart.
    """
    root = folder / "root"
    root.mkdir()
    volumes, shm_bytes = _volumes(engine, folder)
    home, port = installation(), free_port()
    wanted = {"model": str(home / "model"), "port": str(port)}
    arguments = swapped(engine.arguments, {name: to.format(**wanted) for name, to in swaps.arguments.items()})
    variables = {**variables_of(engine, secrets), **swaps.variables}
    making = {
        "SYSTEM": " ".join(SYSTEM),
        "READ_ONLY": f"{sys.base_prefix} {home}",
        "VOLUMES": " ".join(f"{volume}:{place}" for place, volume in volumes.items()),
        "SHM_BYTES": str(shm_bytes),
        "WHO": f"{_context(engine)['runAsUser']} {_context(engine)['runAsGroup']}",
        "PATH": f"{home / 'venv' / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MAKE_THE_ROOT, "sh", str(root)]
    _try(enter, making)
    command = [*enter, *engine.container["command"], *arguments, *swaps.more]
    with running(command, {**variables, **making}, port, folder / "vllm.log") as started:
        yield started


def swapped(words: Sequence[str], swaps: Mapping[str, str]) -> list[str]:
    """The words, with some replaced. A word that is not there is a mistake in the swaps."""
    missing = swaps.keys() - set(words)
    assert not missing, f"not in the manifest any more: {missing}"
    return [swaps.get(word, word) for word in words]


def variables_of(engine: Engine, secrets: Mapping[str, str]) -> dict[str, str]:
    """As the kubelet would set them; what an optional Secret would bring is not set."""
    found = {}
    for name, value in environment(engine.container).items():
        match value:
            case str():
                found[name] = value
            case {"resourceFieldRef": {"resource": "requests.cpu"}}:
                found[name] = str(quantity(engine.container["resources"]["requests"]["cpu"]))
            case {"fieldRef": {"fieldPath": "status.podIP"}}:
                found[name] = "127.0.0.1"
            case {"secretKeyRef": {"name": secret, **rest}} if secret in secrets or not rest.get("optional"):
                found[name] = secrets[secret]
            case {"secretKeyRef": _}:
                pass
            case _:
                raise AssertionError(f"{name}: {value}")
    return found


def _context(engine: Engine) -> dict[str, int]:
    return dict(engine.spec["securityContext"])


def _volumes(engine: Engine, folder: Path) -> tuple[dict[str, Path], int]:
    """(where it is mounted to the folder that stands for it; the bytes of /dev/shm)."""
    sources = {volume["name"]: volume for volume in engine.spec["volumes"]}
    found, shm_bytes = {}, 0
    for mount in engine.container["volumeMounts"]:
        source = sources[mount["name"]]
        if source.get("emptyDir", {}).get("medium") == "Memory":
            assert mount["mountPath"] == "/dev/shm"
            shm_bytes = int(quantity(source["emptyDir"]["sizeLimit"]))
            continue
        found[mount["mountPath"]] = folder / mount["name"]
        found[mount["mountPath"]].mkdir(exist_ok=True)
    return found, shm_bytes


def _try(enter: Sequence[str], making: Mapping[str, str]) -> None:
    """Something small first: what fails then is the machine's doing, not vLLM's."""
    if shutil.which("unshare") is None:
        raise NoNamespaces("there is no unshare (util-linux)")
    done = subprocess.run([*enter, "touch", "/written", "/etc/written"], env=making, capture_output=True, text=True)
    if done.stderr.count("Read-only file system") != 2:
        raise NoNamespaces(f"no root of its own, as {os.geteuid()}: {done.stderr}")
