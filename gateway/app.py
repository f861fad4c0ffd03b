"""The composition root: the only file that wires what `parts` holds.

Two gateways in one process share nothing; that they can be is a test.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

from gateway import __version__
from gateway.api.events import Events
from gateway.api.inference import InferenceApp
from gateway.api.ops import ops_app
from gateway.api.page.live import LivePage
from gateway.api.seen import ConfigState, LimitsState, LoadState, Seen
from gateway.api.status import status_of
from gateway.config.reading import ConfigFile
from gateway.config.sections import AuthSection
from gateway.config.whole import Config
from gateway.core.cell import Cell
from gateway.core.clock import Clock
from gateway.core.fleet import Fleet
from gateway.core.naming import Aliases
from gateway.core.words import HOW_TO_INSTALL_EXTRAS
from gateway.discovery.source import Given
from gateway.discovery.static import pods_of
from gateway.edge.tls import Certificate
from gateway.limits.keys import KeyEntry, KeyRing
from gateway.limits.strangers import Strangers
from gateway.parts import THE_USUAL, CannotStart, Parts
from gateway.pipeline.aside import Aside
from gateway.pipeline.body_budget import BodyBudget
from gateway.pipeline.cors import Origins
from gateway.pipeline.operations import OPERATIONS
from gateway.pipeline.proxies import Proxies
from gateway.pipeline.reception import ForwardedUsers, Tokens
from gateway.reload import Followed, FollowedCertificate, FollowedConfig, FollowedKeys
from gateway.telemetry.journal import Journal, Traces
from gateway.telemetry.lag import LoopLag
from gateway.telemetry.lately import Lately
from gateway.telemetry.log import Log
from gateway.telemetry.metrics import Live
from gateway.telemetry.recent import Recent
from gateway.telemetry.sampling import Sampler

TICK_SECONDS = 0.25

log = logging.getLogger("poolgate")


class Gateway:
    """One gateway. `keys` None: authentication is off. `environment` tells where the cluster is; None: the process'.

    `log` is where this process's log goes, if it is this gateway's to tell of.

    With a `file`, where `config` came from, and a `keys_file`, where `keys` did, what changes there takes effect (see
    `reload`).
    """

    def __init__(
        self,
        config: Config,
        keys: Iterable[KeyEntry] | None,
        *,
        file: ConfigFile | None = None,
        keys_file: Path | None = None,
        access_out: BinaryIO,
        log: Log | None = None,
        environment: Mapping[str, str] | None = None,
        clock: Clock | None = None,
        rng: Random | None = None,
        parts: Parts = THE_USUAL,
    ) -> None:
        self.clock = clock or Clock()
        self.drain_seconds = config.server.drain_seconds
        self._ops_token = config.server.ops_token
        self._told_replicas = config.limits.replicas
        self._name = socket.gethostname()
        self._started_at = self.clock.monotonic()
        self._lag = LoopLag(self.clock.monotonic)
        self.memory = parts.memory(self.clock.monotonic)
        entries = None if keys is None else tuple(keys)
        ring = None if entries is None else KeyRing(entries, self.clock.wall)
        rng = rng or Random()  # noqa: S311  # ties, jitter and the ids of spans need no secrecy
        chance = rng.random
        self.overload = parts.overload(chance)
        self.fleet: Cell[Fleet] = Cell(Fleet())
        self.aliases: Cell[Aliases] = Cell(config.aliases())
        self.metrics = parts.metrics(self._serves)
        self.balancer = parts.balancer(
            self.fleet, clock=self.clock.monotonic, chance=chance, ejected=self.metrics.ejected
        )
        self.access_log = parts.access_log(access_out)
        self._lately = Lately(self.clock.monotonic())
        self._recent = Recent()
        self._events = Events()
        self.traces = _traces(config)
        self.journal = Journal(self.metrics, self.access_log, self._lately, self._recent, self.clock, self.traces)
        self.pools = parts.pools(
            connect_seconds=config.upstream.connect_seconds,
            idle_seconds=config.upstream.pool_idle_seconds,
            clock=self.clock.monotonic,
            api_key=config.upstream.api_key,
        )
        self.source = parts.source(config, environment or os.environ, self.metrics, self.clock, chance)
        self._roster = parts.roster(
            self.source, config.pool_values(), self.fleet, self.clock.monotonic, self.metrics.rejected
        )
        self.rounds = parts.rounds(
            self._roster,
            self.fleet,
            self.pools.fetch,
            in_flight=self.balancer.in_flight,
            told=self.balancer.load_read,
            replicas=self._replicas,
            clock=self.clock.monotonic,
            chance=chance,
        )
        self.probes = parts.probes(self.balancer, self.pools.fetch, self.clock.monotonic)
        self.limits = parts.limits(config, self._replicas, self.clock, chance)
        self.admission = parts.admission(config.limit_rules(), self.limits, self.metrics.limit_decisions)
        self._aside = Aside()
        self.forwarder = parts.forwarder(
            fleet=self.fleet,
            balancer=self.balancer,
            pools=self.pools,
            probes=self.probes,
            refresh=self.rounds.ask_again,
            quarantined=self.metrics.quarantined,
            aside=self._aside,
            clock=self.clock.monotonic,
            chance=chance,
        )
        self.forwarder.keep_alive_seconds = config.server.keep_alive_comments_seconds
        self.pipeline = parts.pipeline(
            fleet=self.fleet,
            aliases=self.aliases,
            admission=self.admission,
            forwarder=self.forwarder,
            aside=self._aside,
            clock=self.clock,
            chance=chance,
            settle=self.journal.add,
            caps=config.caps(),
        )
        auth = config.auth if ring is not None else AuthSection()
        tokens, forwarded_users, self._follow_issuer = _issued(
            auth, self.clock, chance, parts.strangers(self.clock.monotonic, chance)
        )
        bodies = BodyBudget(_most_body_bytes(parts.bounds.max_buffered_body_bytes, self.memory.limit_bytes), chance)
        self.reception = parts.reception(
            ring,
            *_body_bounds(config, bodies.limit_bytes),
            tokens=tokens,
            forwarded_users=forwarded_users,
            sampler=None if self.traces is None else Sampler(config.tracing.sample_ratio, rng.getrandbits),
            overload=self.overload,
            origins=_origins(config),
            proxies=Proxies(config.server.trusted_proxies),
        )
        self.edge = parts.edge(self.pipeline, self.reception, self.clock, parts.bounds, bodies=bodies, chance=chance)
        self.edge.tls = parts.tls(config, parts.bounds, lambda address: self.reception.proxies.trusts(address))
        self._tls_files = config.server.tls
        self.inference = InferenceApp(self.pipeline, self.reception, self.clock, bodies)
        self.metrics.watch(
            Live(
                fleet=lambda: self.fleet.value,
                pod_in_flight=self.balancer.in_flight,
                in_flight=lambda: list(self.balancer.in_flight_by_model().items()),
                waiting=self.balancer.waiting,
                ejected=lambda: self.balancer.ejected,
                panics=self.balancer.panics,
                loop_lag=self._lag.longest,
                dropped_lines=lambda: self.access_log.dropped,
                dropped_log_lines=lambda: 0 if log is None else log.dropped,
                overload_level=lambda: self.overload.level,
                shed=lambda: self.overload.shed.items(),
                memory_limit=lambda: self.memory.limit_bytes,
                connections=lambda: len(self.edge.connections),
                buffered_body_bytes=lambda: bodies.held,
                limit_mode=lambda: self.limits.mode,
                discovery_stale=self.source.stale_seconds,
                lost_traces=lambda: 0 if self.traces is None else self.traces.lost,
                config_refused=lambda: bool(self.config_state.value.error),
            )
        )
        self.live_page = LivePage(lambda: status_of(self.seen()))
        self.ops = ops_app(
            seen=self.seen,
            ops_token=lambda: self._ops_token,
            observe=self.journal.observe,
            exposition=parts.exposition(self.journal.observe, self.metrics.exposition, self.clock.monotonic).text,
            recent=self._recent.find,
            live=self.live_page,
        )

        self.config_state = Cell(ConfigState(self.clock.monotonic()))
        followed: list[Followed[Any]] = []
        if file is not None:
            followed.append(FollowedConfig(file, config, self._apply))
        if keys_file is not None and entries is not None:
            followed.append(FollowedKeys(keys_file, entries, self._use_keys))
        if self.edge.tls is not None:
            followed.append(
                FollowedCertificate(
                    lambda: self._tls_files, self.edge.tls.certificate, self._use_certificate, self.clock.wall
                )
            )
        self.reload = parts.reload(
            followed, state=self.config_state, counted=self.metrics.reloaded, clock=self.clock.monotonic
        )

    @property
    def stopping(self) -> bool:
        """Whether the drain has begun: readiness is off, and every answer closes its connection."""
        return self.edge.closing

    async def keep(self) -> None:
        """What runs beside the requests, for as long as they do; ends by cancellation, or with the error of a part."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._roster.run())
            group.create_task(self.rounds.run())
            group.create_task(self.probes.run())
            group.create_task(self.limits.run())
            group.create_task(self._follow_fleet())
            group.create_task(self._tick())
            group.create_task(self._lag.run())
            group.create_task(self.reload.run())
            if self._follow_issuer is not None:
                group.create_task(self._follow_issuer())

    def seen(self) -> Seen:
        """What the ops port tells of, as it is now."""
        now = self.clock.monotonic()
        return Seen(
            fleet=self.fleet.value,
            draining=self.stopping,
            load_of=self.rounds.load_of,
            health_of=self.balancer.health_of,
            in_flight=self.balancer.in_flight,
            waiting=self.balancer.waiting,
            panics=self.balancer.panics,
            config=self.config_state.value,
            limits=LimitsState(self.limits.mode, self.limits.since, self.limits.reason),
            load=LoadState(
                self.overload.level, self.overload.cause or "", self.overload.since, sum(self.overload.shed.values())
            ),
            minute=lambda: self._lately.minute(now),
            standings=lambda: self.admission.standings(now),
            recent=self._recent.last,
            events=self._events.last,
            replica=self._name,
            started_at=self._started_at,
            mode=self.source.mode,
            stale_seconds=self.source.stale_seconds(),
            replicas=self._replicas(),
            now=now,
            wall=self.clock.wall(),
        )

    def close(self) -> None:
        """Let go of connections and write the last lines."""
        self.live_page.close()
        if self.edge.tls is not None:
            self.edge.tls.close()
        self.pools.close()
        self._aside.close()
        self.journal.flush()
        if self.traces is not None:
            self.traces.close()
        self.access_log.close()

    def _serves(self, model: str) -> bool:
        """Whether a name is a model's, or an alias, that is served now."""
        return model in self.aliases.value or model in self.fleet.value.routes

    def _replicas(self) -> int:
        """Gateways that share pods and limits: counted in Kubernetes, told elsewhere."""
        return max(self.source.replicas(), self._told_replicas)

    def _apply(self, config: Config) -> None:
        """Another configuration is in force, but for what this gateway was built with."""
        server, upstream = config.server, config.upstream
        self.drain_seconds = server.drain_seconds
        if server.ops_token != self._ops_token:
            self._ops_token = server.ops_token
            # Who looks on was let in by the old one.
            self.live_page.end_streams()
        bounds = _body_bounds(config, self.edge.bodies.limit_bytes)
        self.reception.max_body_bytes, self.reception.max_upload_bytes = bounds
        self.reception.origins = _origins(config)
        self.reception.proxies = Proxies(server.trusted_proxies)
        self._tls_files = server.tls
        self.pools.use(
            connect_seconds=upstream.connect_seconds,
            idle_seconds=upstream.pool_idle_seconds,
            api_key=upstream.api_key,
        )
        self.forwarder.keep_alive_seconds = server.keep_alive_comments_seconds
        self.aliases.set(config.aliases())
        self.admission.use(config.limit_rules())
        self.pipeline.caps = config.caps()
        self._told_replicas = config.limits.replicas
        self._roster.use(config.pool_values())
        if isinstance(self.source, Given) and config.discovery.mode == self.source.mode:
            self.source.give(pods_of(config.static_pods()))

    def _use_keys(self, entries: Iterable[KeyEntry]) -> None:
        self.reception.keys = KeyRing(entries, self.clock.wall)
        self.admission.forget_callers()
        # What was decided on them holds no more, and would keep the ring of before.
        self.edge.known.clear()

    def _use_certificate(self, certificate: Certificate) -> None:
        if self.edge.tls is not None:
            self.edge.tls.certificate = certificate

    async def _follow_fleet(self) -> None:
        """Whoever waits may have a pod now; connections to one that is gone close when their last answer has ended."""
        while True:
            self.balancer.update()
            self.metrics.expect(self.fleet.value)
            self.pools.keep_only({pod.uid for pod in self.fleet.value.pods})
            await self.fleet.wait_changed()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.sweep()

    def sweep(self) -> None:
        """The one coarse look at every deadline there is."""
        now = self.clock.monotonic()
        self._look_at_load(now)
        self.balancer.sweep(now)
        self.pipeline.sweep(now)
        self.edge.sweep(now)
        self.pools.sweep(now)
        self.journal.flush()
        self._lately.turn(now)
        self._events.look(self.seen())

    def _look_at_load(self, now: float) -> None:
        """Whether this replica has too much to do; and free what can be freed, if memory is short."""
        overload = self.overload
        overload.look(now, self._lag.since_asked(), self.memory.share())
        self.edge.short_of_memory = overload.short_of_memory
        if overload.short_of_memory:
            self.memory.give_back()


def _most_body_bytes(bound: int, memory_bytes: int) -> int:
    """What request bodies may take: not more than a quarter of the memory, where that is known."""
    return min(bound, memory_bytes // 4) if memory_bytes else bound


def _body_bounds(config: Config, together: int) -> tuple[int, int]:
    """The largest body, and the largest form. What never fits beside any other is too large, not too much just now."""
    server = config.server
    for name in ("max_body_bytes", "max_upload_bytes"):
        if (asked := getattr(server, name)) > together:
            log.warning(
                "server.%s is %d, but the memory allows %d bytes for all bodies together: larger ones are refused with "
                "a 413. Give this process more memory, or set it lower",
                name,
                asked,
                together,
            )
    return min(server.max_body_bytes, together), min(server.max_upload_bytes, together)


def _traces(config: Config) -> Traces | None:
    """What sends traces; None: nothing is traced.

    Raises `CannotStart`.
    """
    endpoint = config.tracing.endpoint
    if endpoint is None:
        return None
    try:
        # Here, not above: it costs a tenth of a second, and an extra package.
        from gateway.telemetry.tracing import Tracing
    except ModuleNotFoundError as error:
        raise CannotStart(
            f"tracing.endpoint is set, but the package {error.name} is missing: {HOW_TO_INSTALL_EXTRAS}"
        ) from None
    routes = {each.label: (each.method.decode(), each.path.decode()) for each in OPERATIONS}
    return Tracing(endpoint, routes, version=__version__, instance=os.urandom(8).hex())


def _origins(config: Config) -> Origins | None:
    """Whose pages a browser lets in; None: it is not told."""
    return Origins(config.server.cors_origins) if config.server.cors_origins else None


def _issued(
    auth: AuthSection, clock: Clock, chance: Callable[[], float], strangers: Strangers
) -> tuple[Tokens | None, ForwardedUsers | None, Callable[[], Coroutine[Any, Any, None]] | None]:
    """What believes an issuer's tokens, what an application's, and what follows the issuer; None where there is none.

    Raises `CannotStart`.
    """
    section, secret = auth.jwt, auth.forwarded_user_secret
    if section is None and secret is None:
        return None, None, None
    try:
        # Here, not above: whoever has keys only need not have their library, nor wait a third of a second for it.
        from gateway.limits import issuer, jwt
    except ModuleNotFoundError as error:
        raise CannotStart(
            f"auth.jwt and auth.forwarded_user_secret want the package {error.name}, which is missing: "
            + HOW_TO_INSTALL_EXTRAS
        ) from None
    users = None if secret is None else jwt.ForwardedUsers(secret, clock.wall)
    if section is None:
        return None, users, None
    published = issuer.Published(section.issuer, section.jwks_url)
    followed = issuer.Issuer(published.keys, clock=clock.monotonic, chance=chance)
    tokens = jwt.Tokens(
        issuer=section.issuer,
        audience=section.audience,
        tenant_claim=section.tenant_claim,
        models=section.models,
        keys=followed.keys,
        unknown_signer=followed.ask_soon,
        retry_after_seconds=followed.retry_after_seconds,
        wall=clock.wall,
        strangers=strangers,
    )
    return tokens, users, followed.run
