"""What a gateway is composed of: the classes that `app` builds, and the bounds it gives them. Where the configuration
chooses the class (where pods come from, where limits are counted, whether TLS is spoken) the part is what chooses.

A `Gateway` takes these as an argument, so that a test can compose one of which a single defence is replaced by a class
that lacks it, and show that a scene goes red (`tests/scenes`). The product has no option for it: nothing but a
constructor's argument leads here.
"""

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from gateway.balancing.balancer import Balancer
from gateway.balancing.probes import Probes
from gateway.config.whole import Config
from gateway.core.clock import Clock
from gateway.core.words import HOW_TO_INSTALL_EXTRAS
from gateway.discovery.roster import Roster
from gateway.discovery.rounds import Rounds
from gateway.discovery.source import Given, Source
from gateway.discovery.static import pods_of
from gateway.edge.bounds import Bounds
from gateway.edge.port import Edge
from gateway.edge.tls import CertificateUnusable, Tls, load_certificate
from gateway.limits.admission import Admission
from gateway.limits.memory_store import MemoryStore
from gateway.limits.store import Store
from gateway.limits.strangers import Strangers
from gateway.pipeline.forward import Forwarder
from gateway.pipeline.overload import Overload
from gateway.pipeline.reception import Reception
from gateway.pipeline.serve import Pipeline
from gateway.reload import Reload
from gateway.telemetry.access_log import AccessLog
from gateway.telemetry.exposition import Exposition
from gateway.telemetry.memory import Memory
from gateway.telemetry.metrics import Metrics
from gateway.upstream.pool import Pools


class CannotStart(Exception):
    """A gateway cannot be built of this configuration here; the text says what to do."""


def source_of(
    config: Config, environment: Mapping[str, str], metrics: Metrics, clock: Clock, chance: Callable[[], float]
) -> Source:
    """Where pods come from.

    Raises `CannotStart`.
    """
    if config.discovery.mode == "static":
        return Given(pods_of(config.static_pods()))
    try:
        # Here, not above: it costs 20 MiB and a third of a second, which whoever lists pods in a file need not pay.
        from gateway.discovery.kubernetes import Cluster, KubernetesSource, NoCluster
    except ModuleNotFoundError as error:
        raise CannotStart(
            f"discovery.mode is kubernetes, but the package {error.name} is missing: {HOW_TO_INSTALL_EXTRAS}"
        ) from None
    discovery, server = config.discovery, config.server
    try:
        return KubernetesSource(
            Cluster.find(environment),
            namespaces=discovery.namespaces,
            selector=discovery.selector,
            self_selector=discovery.self_selector,
            networks=discovery.pod_networks,
            listens_on=((server.host, server.port), (server.ops_host, server.ops_port)),
            relisted=metrics.relisted,
            clock=clock.monotonic,
            chance=chance,
        )
    except NoCluster as error:
        raise CannotStart(str(error)) from None


def limits_of(config: Config, replicas: Callable[[], int], clock: Clock, chance: Callable[[], float]) -> Store:
    """Where limits are counted.

    Raises `CannotStart`.
    """
    url = config.limits.redis_url
    if url is None:
        return MemoryStore(clock.monotonic)
    try:
        from gateway.limits.redis_store import RedisStore
    except ModuleNotFoundError as error:
        raise CannotStart(
            f"limits.redis_url is set, but the package {error.name} is missing: {HOW_TO_INSTALL_EXTRAS}"
        ) from None
    try:
        return RedisStore(url, replica=os.urandom(8).hex(), replicas=replicas, clock=clock.monotonic, chance=chance)
    except ValueError as error:
        raise CannotStart(f"limits.redis_url: {error}") from None


def tls_of(config: Config, bounds: Bounds, is_proxy: Callable[[str], bool]) -> Tls | None:
    """What shakes hands on the public port; None: nobody does.

    Raises `CannotStart`.
    """
    cert, key = config.server.tls.cert, config.server.tls.key
    if cert is None or key is None:
        return None
    try:
        certificate = load_certificate(cert, key)
    except CertificateUnusable as error:
        raise CannotStart(f"server.tls.{error.key}: {error}") from None
    return Tls(
        certificate,
        handshake_seconds=bounds.head_seconds,
        most=bounds.most_sockets(),
        is_proxy=is_proxy,
        spare_seconds=bounds.spare_seconds,
    )


class Parts(NamedTuple):
    """One gateway's classes and bounds."""

    bounds: Bounds = Bounds()

    # A request's way.
    tls: Callable[[Config, Bounds, Callable[[str], bool]], Tls | None] = tls_of
    edge: type[Edge] = Edge
    overload: Callable[[Callable[[], float]], Overload] = Overload
    strangers: Callable[[Callable[[], float], Callable[[], float]], Strangers] = Strangers
    reception: type[Reception] = Reception
    pipeline: type[Pipeline] = Pipeline
    limits: Callable[[Config, Callable[[], int], Clock, Callable[[], float]], Store] = limits_of
    admission: type[Admission] = Admission
    forwarder: type[Forwarder] = Forwarder
    balancer: type[Balancer] = Balancer
    probes: type[Probes] = Probes
    pools: type[Pools] = Pools

    # Which pods there are.
    source: Callable[[Config, Mapping[str, str], Metrics, Clock, Callable[[], float]], Source] = source_of
    roster: type[Roster] = Roster
    rounds: type[Rounds] = Rounds

    # What is told of it all, and what is noticed.
    metrics: type[Metrics] = Metrics
    exposition: type[Exposition] = Exposition
    access_log: type[AccessLog] = AccessLog
    memory: Callable[[Callable[[], float]], Memory] = Memory
    reload: type[Reload] = Reload


THE_USUAL = Parts()
