"""What the stand itself is looked at for while it is loaded: what each pod computes, what the gateways take.

Samples, not events: few enough that looking costs nothing beside the load, and bounded however long a run lasts.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loadtest.bench.accounting import cpu_of
from loadtest.stand.gateways import GatewayProcess
from loadtest.stand.looking import total
from loadtest.stand.pods import Load
from loadtest.stand.stand import SimulatedStand

MOST_SAMPLES: Final = 3_000
LOOK_SECONDS: Final = 0.1
REST_SECONDS: Final = 10.0
"""So long we wait for gauges to fall to nothing after the last answer."""
BY_ITSELF: Final = b"each replica counts limits for itself"
"""What a gateway logs when it does."""
_TICK_SECONDS: Final = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Sample:
    at: float
    """When the first pod was asked; seconds from the start of the run."""
    until: float
    """When the last had answered."""
    pods: Mapping[str, Load | None]
    """None: down."""
    memory_mib: Mapping[str, float]
    """Resident, of each gateway that runs."""


@dataclass
class Watched:
    """What was seen of one run."""

    samples: list[Sample] = field(default_factory=list)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    """Of each gateway, since the run began."""
    ends: dict[str, Mapping[str, float]] = field(default_factory=dict)
    """Each gateway's series when all was over; empty of one that was gone."""
    in_flight_at_end: float | None = None
    """What gateways and pods hold when all is over, and the time to fall to nothing was given."""
    times_by_itself: int | None = None
    """How often a replica found Redis slow or away, and counted limits by itself; None: there is no Redis."""
    mode_back_at: float | None = None
    """When all gateways counted in Redis again, after it had been away."""


@asynccontextmanager
async def watching(stand: SimulatedStand, seconds: float, zero: float) -> AsyncIterator[Watched]:
    """While open, what is seen goes into what it yields. `zero`: the instant of `time.monotonic()` times count from."""
    seen = Watched()
    begun = {gateway.name: _cpu_seconds(gateway) for gateway in stand.gateways}
    task = asyncio.create_task(_watch(stand, seen, begun, max(LOOK_SECONDS, seconds / MOST_SAMPLES), zero))
    try:
        yield seen
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(ended, Exception):
        raise ended


async def _watch(stand: SimulatedStand, seen: Watched, begun: Mapping[str, float], every: float, zero: float) -> None:
    while True:
        began = time.monotonic()
        loads = await asyncio.gather(*(pod.load() for pod in stand.pods))
        memory = {}
        for gateway in (*stand.gateways, *stand.leaving):
            used = _cpu_seconds(gateway)
            with suppress(FileNotFoundError, ProcessLookupError, IndexError):
                memory[gateway.name] = _resident_mib(gateway)
                seen.cpu_seconds[gateway.name] = used - begun.get(gateway.name, 0.0)
        now = time.monotonic()
        seen.samples.append(
            Sample(began - zero, now - zero, dict(zip((pod.name for pod in stand.pods), loads, strict=True)), memory)
        )
        await asyncio.sleep(max(0.0, began + every - time.monotonic()))


async def at_rest(stand: SimulatedStand, seen: Watched) -> None:
    """When the last answer has come: wait until nobody holds anything, then read what the gateways counted and said."""
    if stand.redis is not None:
        logs = [gateway.log for gateway in stand.started]
        seen.times_by_itself = await asyncio.to_thread(lambda: sum(map(_times_by_itself, logs)))
    ends_at = time.monotonic() + REST_SECONDS
    while True:
        held = 0.0
        for gateway in stand.gateways:
            seen.ends[gateway.name] = series = await _series_of(gateway)
            held += total(dict(series), "poolgate_in_flight") + total(dict(series), "poolgate_queue_depth")
        held += sum(load.in_flight for load in await asyncio.gather(*(pod.load() for pod in stand.pods)) if load)
        seen.in_flight_at_end = held
        if not held or time.monotonic() > ends_at:
            return
        await asyncio.sleep(LOOK_SECONDS)


def _times_by_itself(log: Path) -> int:
    with log.open("rb") as lines:
        return sum(BY_ITSELF in line for line in lines)


async def _series_of(gateway: GatewayProcess) -> Mapping[str, float]:
    try:
        return await gateway.scrape()
    except OSError:
        return {}


def _cpu_seconds(gateway: GatewayProcess) -> float:
    return sum(cpu_of(gateway.pids).ticks.values()) * _TICK_SECONDS


def _resident_mib(gateway: GatewayProcess) -> float:
    (pid, *_) = gateway.pids or (0,)
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return resident * _PAGE_BYTES / _MIB
