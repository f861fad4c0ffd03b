"""Who plays a load: a referee is another program, and is told the load by files and options."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Protocol

from loadtest.bench.processes import BenchError, tail
from loadtest.load.plan import Scenario
from loadtest.load.player import Own, play
from loadtest.load.schedule import Schedule
from loadtest.referees.figures import Figures, of_ours
from loadtest.report.side import side_of
from loadtest.stand.cores import Cores, started
from loadtest.stand.stand import SimulatedStand

START_SECONDS = 240.0
"""A referee is a dozen processes that import half of what there is; on a busy host that takes long."""


@dataclass(frozen=True)
class Load:
    """What everybody plays, and where it is put down for referees."""

    scenario: Scenario
    schedule: Schedule

    @property
    def rate(self) -> float | None:
        """Requests per second; None in a closed loop."""
        return self.schedule.steps[0].rate


@dataclass(frozen=True)
class Target:
    """A gateway."""

    url: str
    key: str
    model: str


class Player(Protocol):
    @property
    def name(self) -> str: ...

    async def play(self, load: Load, stand: SimulatedStand, cores: Cores, folder: Path) -> Figures:
        """Raises BenchError where it does not come to an end, NotFound where it wrote something else than figures."""


class Referee(Protocol):
    """What differs between two of them."""

    name: str

    def command(self, load: Load, target: Target, folder: Path) -> Sequence[str]:
        """Writes what it reads into the folder."""

    def variables(self) -> Mapping[str, str]: ...

    def read(self, folder: Path) -> Figures:
        """What it left in the folder. Raises NotFound."""


@dataclass(frozen=True)
class Ours:
    name: str = "ours"

    async def play(self, load: Load, stand: SimulatedStand, cores: Cores, folder: Path) -> Figures:
        own = Own()
        records = await play(load.schedule, stand.urls, stand.keys, own=own)
        if not own.kept_up:
            raise BenchError(f"our generator was {own.late_p99 * 1e3:.0f} ms late (p99): this host is too busy")
        return of_ours(side_of(self.name, records, load.schedule, load.scenario.objectives).measures)


@dataclass(frozen=True)
class Program:
    """A referee as a process."""

    referee: Referee

    @property
    def name(self) -> str:
        return self.referee.name

    async def play(self, load: Load, stand: SimulatedStand, cores: Cores, folder: Path) -> Figures:
        [key] = stand.keys.values()
        target = Target(stand.urls[0], key, load.scenario.mix[0].model)
        command = self.referee.command(load, target, folder)
        variables = {"HOME": str(folder), "TMPDIR": str(folder), **self.referee.variables()}
        log = folder / f"{self.name}.log"
        seconds = START_SECONDS + load.scenario.seconds
        with started(command, cores.apparatus, log, more=variables) as process:
            try:
                code = await asyncio.to_thread(process.wait, seconds)
            except TimeoutExpired:
                raise BenchError(f"{self.name} had not ended after {seconds:.0f} s:\n{tail(log)}") from None
        if code != 0:
            raise BenchError(f"{self.name} ended with code {code}:\n{tail(log)}")
        return self.referee.read(folder)
