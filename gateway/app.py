"""The composition root: the only file that builds and wires.

Two gateways in one process share nothing; that they can be is a test.
"""

import asyncio
from collections.abc import Iterable
from random import Random
from typing import BinaryIO

from gateway.api.inference import InferenceApp
from gateway.api.ops import ops_app
from gateway.balancing.balancer import Balancer
from gateway.config import Config
from gateway.core.cell import Cell
from gateway.core.clock import Clock
from gateway.core.fleet import Fleet
from gateway.discovery.models import ModelAsker
from gateway.discovery.static import pods_of
from gateway.edge.protocol import Edge
from gateway.limits.keys import KeyEntry, KeyRing
from gateway.pipeline.reception import Reception
from gateway.pipeline.serve import Pipeline
from gateway.telemetry.access_log import AccessLog
from gateway.telemetry.journal import Journal
from gateway.telemetry.metrics import Live, Metrics
from gateway.upstream.pool import Pools

TICK_SECONDS = 0.25


class Gateway:
    """One gateway. `keys` None: authentication is off."""

    def __init__(
        self,
        config: Config,
        keys: Iterable[KeyEntry] | None,
        *,
        access_out: BinaryIO,
        clock: Clock | None = None,
        rng: Random | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.drain_seconds = config.server.drain_seconds
        self._started_at = self.clock.monotonic()
        self._loop_lag = 0.0
        ring = None if keys is None else KeyRing(keys, self.clock.wall)
        pods = pods_of(config.static_pods())
        self.fleet: Cell[Fleet] = Cell(Fleet(pods))
        self.balancer = Balancer((rng or Random()).random)  # noqa: S311  # ties between pods need no secrecy
        self.metrics = Metrics()
        self.access_log = AccessLog(access_out)
        self.journal = Journal(self.metrics, self.access_log, self.clock)
        self.pools = Pools(
            connect_seconds=config.upstream.connect_seconds,
            idle_seconds=config.upstream.pool_idle_seconds,
            clock=self.clock.monotonic,
            api_key=config.upstream.api_key,
        )
        self.pools.keep_only({pod.uid for pod in pods})
        self._asker = ModelAsker(pods, config.pool_values(), self.pools.fetch, self.fleet)
        self.pipeline = Pipeline(
            fleet=self.fleet,
            balancer=self.balancer,
            pools=self.pools,
            clock=self.clock,
            settle=self.journal.add,
        )
        self.reception = Reception(ring, config.server.max_body_bytes, config.server.max_upload_bytes)
        self.edge = Edge(self.pipeline, self.reception, self.clock)
        self.inference = InferenceApp(self.pipeline, self.reception, self.clock)
        self.metrics.watch(
            Live(
                fleet=lambda: self.fleet.value,
                pod_in_flight=self.balancer.in_flight,
                in_flight=lambda: list(self.balancer.in_flight_by_model().items()),
                loop_lag=lambda: self._loop_lag,
                dropped_lines=lambda: self.access_log.dropped,
            )
        )
        self.ops = ops_app(
            fleet=lambda: self.fleet.value,
            draining=lambda: self.stopping,
            uptime=lambda: self.clock.monotonic() - self._started_at,
            before_scrape=self.journal.observe,
            exposition=self.metrics.exposition,
        )

    @property
    def stopping(self) -> bool:
        """Whether the drain has begun: readiness is off, and every answer closes its connection."""
        return self.edge.closing

    async def keep(self) -> None:
        """What runs beside the requests, for as long as they do; ends by cancellation, or with the error of a part."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._asker.run())
            group.create_task(self._tick())

    def close(self) -> None:
        """Let go of connections and write the last lines."""
        self.pools.close()
        self.journal.flush()
        self.access_log.close()

    async def _tick(self) -> None:
        """The one coarse sweep over every deadline there is, and the measure of the loop's lag."""
        while True:
            before = self.clock.monotonic()
            await asyncio.sleep(TICK_SECONDS)
            now = self.clock.monotonic()
            self._loop_lag = max(0.0, now - before - TICK_SECONDS)
            self.pipeline.sweep(now)
            self.edge.sweep(now)
            self.pools.sweep(now)
            self.journal.flush()
