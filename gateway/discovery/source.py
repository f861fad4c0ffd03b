"""Where pods are learned from: the port between the roster and configuration or Kubernetes."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from gateway.core.cell import Cell
from gateway.core.fleet import Pod, RefusedPod


class Sighting(NamedTuple):
    """What a source knows now. `listed`: it has learned at least once which pods there are."""

    pods: tuple[Pod, ...]
    refused: tuple[RefusedPod, ...] = ()
    listed: bool = True


class Source(Protocol):
    """Says which pods there are. READY here means: it may be asked for its models."""

    mode: str
    """`static` or `kubernetes`."""

    async def run(self, changed: Callable[[], None]) -> None:
        """Follow the pods; `changed()` after each change of what `seen` gives. Ends by cancellation."""
        ...

    def seen(self) -> Sighting: ...

    def stale_seconds(self) -> float:
        """For how long nothing has confirmed what `seen` gives; 0 while its changes are heard as they come."""
        ...

    def replicas(self) -> int:
        """Gateways like this one, itself included."""
        ...


class Given:
    """Pods from configuration: they change when they are given anew."""

    mode = "static"

    def __init__(self, pods: tuple[Pod, ...]) -> None:
        self._given = Cell(Sighting(pods))

    def give(self, pods: tuple[Pod, ...]) -> None:
        """From now on it is these."""
        self._given.set(Sighting(pods))

    async def run(self, changed: Callable[[], None]) -> None:
        while True:
            await self._given.wait_changed()
            changed()

    def seen(self) -> Sighting:
        return self._given.value

    def stale_seconds(self) -> float:
        return 0.0

    def replicas(self) -> int:
        return 1
