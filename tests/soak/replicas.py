"""The gateways of the soak: what they write and count goes to the checker; each can be replaced by a new one."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from loadtest.invariants.events import AccessLine, Scrape, Text
from loadtest.invariants.hearing import Hear
from tests.integration.test_process import Served, started
from tests.soak.callers import Door

LATE_SECONDS = 1.0
"""Callers hear so much later that a gateway is not ready any more."""


def values_of(text: str) -> dict[str, float]:
    """Every series of a scrape."""
    return {
        series: float(value)
        for series, _, value in (line.rpartition(" ") for line in text.splitlines() if line[:1] not in ("#", ""))
    }


class Replica:
    """One gateway process."""

    def __init__(self, name: str, process: Served, hear: Hear, clock: Callable[[], float]) -> None:
        self.name = name
        self.process = process
        self.samples: list[tuple[float, dict[str, float]]] = []
        """(moment, some of the series) of each scrape."""
        self.values: dict[str, float] = {}
        """The last scrape."""
        self._hear = hear
        self._clock = clock
        self._told = 0

    @property
    def tracebacks(self) -> list[str]:
        """What it logged from a traceback on; the first of them."""
        found = next((number for number, line in enumerate(self.process.err) if "Traceback" in line), None)
        return [] if found is None else ["".join(self.process.err[max(0, found - 1) : found + 40])]

    @property
    def door(self) -> Door:
        return Door(self.name, self.process.port)

    def read(self) -> None:
        """Hand on what it has written since the last time, and forget it."""
        out = self.process.out
        lines, out[:] = out[:], []
        now = self._clock()
        for line in lines:
            self._hear(Text(now, f"{self.name}'s access lines", line))
            self._hear(AccessLine(now, self.name, json.loads(line)))
        for line in self.process.err[self._told :]:
            self._hear(Text(now, f"{self.name}'s log", line))
        self._told = len(self.process.err)

    async def scrape(self) -> dict[str, float]:
        """Raises OSError: it is gone."""
        asked_at = self._clock()
        text = (await self.process.ops("/metrics")).body.decode()
        self.values = values_of(text)
        now = self._clock()
        self._hear(Text(now, f"{self.name}'s metrics", text))
        self._hear(Scrape(now, asked_at, self.name, self.values))
        kept = ("process_resident_memory_bytes", "process_open_fds", "poolgate_loop_lag_seconds")
        self.samples.append((now, {name: self.values[name] for name in kept if name in self.values}))
        return self.values

    def value(self, name: str, *labels: str) -> float:
        """The sum of a metric's series in the last scrape, of those with all these labels: `reason="x"`."""
        return sum(
            value
            for series, value in self.values.items()
            if series.partition("{")[0] == name and all(label in series for label in labels)
        )


class Replicas:
    """Those that run, and the doors that callers may take."""

    def __init__(
        self, config: Path, variables: dict[str, str], doors: list[Door], hear: Hear, clock: Callable[[], float]
    ) -> None:
        self.running: list[Replica] = []
        self.ended: list[Replica] = []
        self.doors = doors
        self._config = config
        self._variables = variables
        self._hear = hear
        self._clock = clock
        self._made = 0
        self._stack = AsyncExitStack()

    async def add(self) -> Replica:
        """One more, ready and in rotation."""
        process = await self._stack.enter_async_context(
            started("serve", "--config", str(self._config), more=self._variables)
        )
        served = await Served.up(process, "")
        replica = Replica(f"gateway-{self._made}", served, self._hear, self._clock)
        self._made += 1
        self.running.append(replica)
        await served.until_ready()
        self.doors.append(replica.door)
        return replica

    async def remove(self, replica: Replica) -> int:
        """SIGTERM, as in a rolling update: callers come for a while yet. Its exit code."""
        replica.process.signal(signal.SIGTERM)
        await asyncio.sleep(LATE_SECONDS)
        self.doors.remove(replica.door)
        code = await replica.process.ended()
        self.running.remove(replica)
        self.ended.append(replica)
        replica.read()
        return code

    async def watch(self) -> None:
        """Read and scrape them all, again and again; until cancelled."""
        while True:
            for _ in range(10):
                await asyncio.sleep(0.1)
                for replica in list(self.running):
                    replica.read()
            await self.scrape()

    async def scrape(self) -> None:
        for replica in list(self.running):
            # One that is about to go may have closed its port.
            with suppress(OSError, KeyError, TimeoutError):
                await replica.scrape()

    async def until(self, holds: Callable[[Replica], bool], seconds: float = 15.0) -> None:
        """Wait until each has said so in a scrape."""
        async with asyncio.timeout(seconds):
            while not all(holds(replica) for replica in self.running):
                await asyncio.sleep(0.2)
                await self.scrape()

    def total(self, name: str, *labels: str) -> float:
        return sum(replica.value(name, *labels) for replica in self.running)

    async def close(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def replicas(
    count: int,
    config: Path,
    variables: dict[str, str],
    doors: list[Door],
    hear: Hear,
    clock: Callable[[], float],
) -> AsyncIterator[Replicas]:
    """So many gateways of one configuration."""
    made = Replicas(config, variables, doors, hear, clock)
    try:
        await asyncio.gather(*(made.add() for _ in range(count)))
        yield made
    finally:
        await made.close()
