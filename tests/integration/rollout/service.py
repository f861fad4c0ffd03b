"""A Kubernetes Service, as far as callers feel it: which gateways a new connection may lead to.

A gateway is in rotation while its readiness probe succeeds, and everybody hears of a change a while later: the probe
has its period, and the endpoint's withdrawal its way to every node.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from tests.integration.rollout.lines import Line
from tests.integration.test_process import SECONDS, Served

PROBE_SECONDS = 0.1
LATE_SECONDS = 1.0


class Service:
    """See the module's text."""

    def __init__(self) -> None:
        self._ports: set[int] = set()
        self._chance = Random(0)
        self._changed = asyncio.Condition()
        self._probing: set[asyncio.Task[None]] = set()

    def add(self, gateway: Served) -> None:
        """A further replica: it is asked for its readiness until it is out of rotation for good."""
        self._probing.add(asyncio.create_task(self._probe(gateway)))

    async def until(self, gateway: Served, *, in_rotation: bool) -> None:
        """Wait until new connections may lead to it, or do not any more."""
        async with asyncio.timeout(SECONDS), self._changed:
            await self._changed.wait_for(lambda: (gateway.port in self._ports) is in_rotation)

    async def connect(self) -> Line:
        """A connection to any of those in rotation. Raises OSError: it does not listen."""
        return await Line.connect(self._chance.choice(sorted(self._ports)))

    async def close(self) -> None:
        for task in self._probing:
            task.cancel()
        await asyncio.gather(*self._probing, return_exceptions=True)

    async def _probe(self, gateway: Served) -> None:
        was_ready = False
        while True:
            try:
                ready = (await gateway.ops("/readyz")).status == 200
            except OSError:
                ready = False
            if ready is not was_ready:
                await asyncio.sleep(LATE_SECONDS)
                async with self._changed:
                    (self._ports.add if ready else self._ports.discard)(gateway.port)
                    self._changed.notify_all()
                was_ready = ready
                if not ready:
                    return
            await asyncio.sleep(PROBE_SECONDS)


@asynccontextmanager
async def service() -> AsyncIterator[Service]:
    made = Service()
    try:
        yield made
    finally:
        await made.close()
