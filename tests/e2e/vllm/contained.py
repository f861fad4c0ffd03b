"""One container of a manifest, without a container engine: its command, arguments and environment in a root of its own.

It has the container's volumes at their places, /dev/shm as large as the manifest says, and the manifest's user and
group, whom no passwd entry names.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.contained import entering
from tests.e2e.vllm.server import Vllm, free_port, installation, running
from tests.manifests.checks.quantities import quantity
from tests.manifests.kubelet import variables_of
from tests.manifests.vllm_pods import Engine


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

    Raises VllmNotInstalled, VllmDidNotStart.
    """
    root = folder / "root"
    root.mkdir()
    volumes, shm_bytes = _volumes(engine, folder)
    home, port = installation(), free_port()
    wanted = {"model": str(home / "model"), "port": str(port)}
    arguments = swapped(engine.arguments, {name: to.format(**wanted) for name, to in swaps.arguments.items()})
    variables = variables_of(engine.container, lambda name, _: secrets.get(name), {"status.podIP": "127.0.0.1"})
    variables |= swaps.variables
    enter = entering(
        root,
        user=_context(engine)["runAsUser"],
        group=_context(engine)["runAsGroup"],
        volumes=volumes,
        readable=[home],
        shm_bytes=shm_bytes,
    )
    path = {"PATH": f"{home / 'venv' / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"}
    command = [*enter, *engine.container["command"], *arguments, *swaps.more]
    with running(command, variables | path, port, folder / "vllm.log") as started:
        yield started


def swapped(words: Sequence[str], swaps: Mapping[str, str]) -> list[str]:
    """The words, with some replaced. A word that is not there is a mistake in the swaps."""
    missing = swaps.keys() - set(words)
    assert not missing, f"not in the manifest any more: {missing}"
    return [swaps.get(word, word) for word in words]


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
