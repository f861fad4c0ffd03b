"""Every series, in one class built once.

A request is observed once, from its trail, into series that are held: looking one up costs more than adding to it. All
labels are bounded: a model that is not being served counts as `other`, so no caller can make a series, and of what
comes and goes over months (adapters, pools, tenants) only so many have series of their own. The gauges are read when
they are scraped, from those who own the numbers. What each series means stands in `definitions`.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import islice, product
from typing import NamedTuple, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway import __version__
from gateway.core.call import Outcome, Trail, Usage
from gateway.core.caller import ISSUED_KEY_ID, Tenant
from gateway.core.fleet import Fleet
from gateway.telemetry import definitions as given
from gateway.telemetry.definitions import OTHER, Definition
from gateway.telemetry.series import Buckets, Count, Counters, Histograms, Names

MAX_KINDS = 8192
"""Of requests whose series are held; the series stay when what is held is let go."""

_F = TypeVar("_F", Counters, Histograms)


@dataclass(frozen=True, slots=True)
class Live:
    """Where the gauges are read, from a thread of the scrape's: nothing that they return may change any more."""

    fleet: Callable[[], Fleet]
    pod_in_flight: Callable[[str], int]
    """Attempts running at a pod, by its uid."""
    in_flight: Callable[[], Iterable[tuple[str, int]]]
    """(model, attempts running)."""
    waiting: Callable[[], Iterable[tuple[str, int]]]
    """(pool, requests that wait for one of its pods)."""
    ejected: Callable[[], Collection[str]]
    """Uids of the pods that are ejected now."""
    panics: Callable[[], Iterable[tuple[str, bool]]]
    """(pool, whether its ejected pods get requests all the same)."""
    loop_lag: Callable[[], float]
    """For how long the loop was held up at the longest of late, in seconds."""
    dropped_lines: Callable[[], int]
    """Access lines lost since start, because whoever reads stdout was too slow."""
    dropped_log_lines: Callable[[], int]
    """The same of the log, on stderr."""
    overload_level: Callable[[], int]
    """0, 1 or 2."""
    shed: Callable[[], Iterable[tuple[str, int]]]
    """(one of `SHED_CAUSES`, requests turned away for it since start)."""
    memory_limit: Callable[[], int]
    """Bytes that the process may have; 0: it is not known."""
    connections: Callable[[], int]
    """Open on the public port."""
    buffered_body_bytes: Callable[[], int]
    """What request bodies take whose answers have not begun."""
    limit_mode: Callable[[], str]
    """Where limits are counted now: one of `LIMIT_MODES`."""
    discovery_stale: Callable[[], float]
    """For how long nothing has confirmed which pods there are, in seconds."""
    lost_traces: Callable[[], int]
    """Traces lost since start."""
    config_refused: Callable[[], bool]
    """Whether a file holds what is not in force."""


class Metrics:
    """See the module's text. One instance, its own registry. `served(model)`: whether that model, or alias, is served
    now; series of one that is not may be let go."""

    def __init__(self, served: Callable[[str], bool] = lambda model: True) -> None:
        self.registry = CollectorRegistry()
        self._families: list[Counters | Histograms] = []
        self._requests = self._made(Counters(given.REQUESTS))
        self._tokens = self._made(Counters(given.TOKENS))
        self._attempts = self._made(Counters(given.ATTEMPTS))
        self._retries = self._made(Counters(given.RETRIES))
        self._ejections = self._made(Counters(given.EJECTIONS))
        self._turned_away = self._made(Counters(given.TURNED_AWAY))
        self._quarantined = self._made(Counters(given.QUARANTINED))
        self._reloads = self._made(Counters(given.CONFIG_RELOADS))
        self._decisions = self._made(Counters(given.LIMIT_DECISIONS))
        self._relists = self._made(Counters(given.RELISTS))
        self._rejected = self._made(Counters(given.REJECTED))
        self._seconds = self._made(Histograms(given.REQUEST_SECONDS))
        self._ttft = self._made(Histograms(given.TTFT))
        self._itl = self._made(Histograms(given.INTER_TOKEN))
        self._overhead = self._made(Histograms(given.OVERHEAD))
        self._queue_wait = self._made(Histograms(given.QUEUE_WAIT))
        ProcessCollector(registry=self.registry)
        self._held: dict[_Kind, _RequestSeries] = {}
        self._spent: dict[tuple[str, str], tuple[Count, Count, Count]] = {}
        self._spenders: set[tuple[str, str]] = set()
        self._models = Names(given.MAX_MODELS, served, self._forget_models)
        self._pools = Names(given.MAX_POOLS, lambda pool: pool in self._expected, self._forget_pools)
        self._teams = Names(given.MAX_TEAMS)
        self._issued_teams = Names(given.MAX_ISSUED_TEAMS)
        self._expected: frozenset[str] = frozenset()

    def _made(self, family: _F) -> _F:
        self.registry.register(family)
        self._families.append(family)
        values = [label.values for label in family.definition.labels]
        if all(values):
            # Prometheus sees no increase in a series that begins with one, and an alert must not miss the first.
            for labels in product(*values):
                family.of(*labels)
        return family

    def observe(self, trail: Trail) -> None:
        """Count one request that has ended."""
        model = trail.model if trail.served_model else OTHER
        kind = (model, trail.operation, trail.status, trail.outcome, trail.attempt_outcomes, trail.retries)
        series = self._held.get(kind)
        if series is None:
            series = self._hold(kind)
        for counter in series.counters:
            counter.value += 1
        # Every request comes by here, and by the next ones twice: without a frame for each.
        seconds, histogram = trail.ended_at - trail.received_at, series.seconds
        histogram.counts[bisect_left(histogram.bounds, seconds)] += 1
        histogram.sum += seconds
        if (overhead := trail.overhead_seconds) is not None:
            histogram = series.overhead
            histogram.counts[bisect_left(histogram.bounds, overhead)] += 1
            histogram.sum += overhead
        if trail.stream:
            if (ttft := trail.ttft_seconds) is not None:
                series.ttft.observe(ttft)
            if (between := trail.inter_token_seconds) is not None:
                series.itl.observe(between)
        if trail.queue_seconds:
            self._queue_wait.of(self._pool(trail.pool)).observe(trail.queue_seconds)
        if trail.status == 503 and trail.code in given.TURNED_AWAY_CODES:
            self._turned_away.of(self._pool(trail.pool), trail.code).value += 1
        if trail.usage is not None and trail.tenant is not None:
            self._spend(model, trail.tenant, trail.usage)

    def _spend(self, model: str, tenant: Tenant, usage: Usage) -> None:
        held = self._spent.get((model, tenant.team))
        if held is None:
            held = self._hold_spent(model, tenant)
        held[0].value += usage.prompt_tokens
        held[1].value += usage.completion_tokens
        held[2].value += usage.cached_tokens

    # What is held of series.

    def _hold(self, kind: "_Kind") -> "_RequestSeries":
        model, operation, status, outcome, attempts, retries = kind
        model = self._model(model)
        if len(self._held) >= MAX_KINDS:
            self._held.clear()
        series = self._held[kind] = _RequestSeries(
            (
                self._requests.of(model, operation, str(status or "none"), outcome),
                *(self._attempts.of(self._pool(pool), ending) for pool, ending in attempts),
                *(self._retries.of(self._pool(pool), reason) for pool, reason in retries),
            ),
            self._seconds.of(model, operation),
            self._ttft.of(model),
            self._itl.of(model),
            self._overhead.of(model),
        )
        return series

    def _hold_spent(self, asked: str, tenant: Tenant) -> tuple[Count, Count, Count]:
        model, team = self._model(asked), self._team(tenant)
        if (model, team) not in self._spenders:
            if len(self._spenders) >= given.MAX_SPENDERS:
                team = OTHER
            else:
                self._spenders.add((model, team))
        if len(self._spent) >= MAX_KINDS:
            self._spent.clear()
        prompt, completion, cached = (self._tokens.of(model, kind, team) for kind in given.TOKEN_KINDS)
        held = self._spent[asked, tenant.team] = prompt, completion, cached
        return held

    def _model(self, name: str) -> str:
        return name if name == OTHER else self._models.label(name)

    def _pool(self, name: str) -> str:
        # An alias may lead to a model that no pool ever had.
        return self._pools.label(name) if name else OTHER

    def _team(self, tenant: Tenant) -> str:
        issued = tenant.key_id.startswith(ISSUED_KEY_ID)
        team = self._issued_teams.label(tenant.team) if issued else tenant.team
        return team if team == OTHER else self._teams.label(team)

    def _forget_models(self, gone: Collection[str]) -> None:
        self._forget("model", gone)
        self._spenders = {pair for pair in self._spenders if pair[0] not in gone}

    def _forget_pools(self, gone: Collection[str]) -> None:
        self._forget("pool", gone)

    def _forget(self, label: str, gone: Collection[str]) -> None:
        for family in self._families:
            family.forget(label, gone)
        self._held.clear()
        self._spent.clear()

    # What others count.

    def expect(self, fleet: Fleet) -> None:
        """There are these pools now: the counters of their troubles begin at zero, too."""
        pools = {pod.pool for pod in fleet.pods} | {route.pool.name for route in fleet.routes.values()}
        fresh, self._expected = pools - self._expected, frozenset(pools)
        for name in sorted(fresh):
            pool = self._pool(name)
            for reason in given.EJECTION_REASONS:
                self._ejections.of(pool, reason)
            for code in given.TURNED_AWAY_CODES:
                self._turned_away.of(pool, code)

    def ejected(self, pool: str, reason: str) -> None:
        """Count one pod that gets no work for a while."""
        self._ejections.of(self._pool(pool), reason).value += 1

    def quarantined(self) -> None:
        """Count one request that is sent to no pod more, because pods died of it."""
        self._quarantined.of().value += 1

    def reloaded(self, result: str) -> None:
        """Count one changed configuration, and whether it is in force now."""
        self._reloads.of(result).value += 1

    def limit_decisions(self, limit: str, decision: str) -> Count:
        """The counter of requests that a limit let in, refused, or could not be looked at for."""
        return self._decisions.of(limit, decision)

    def relisted(self, reason: str) -> None:
        """Count one full list of pods."""
        self._relists.of(reason).value += 1

    def rejected(self, reason: str, count: int = 1) -> None:
        """Count pods, or names of models, that may not be served."""
        self._rejected.of(reason).value += count

    def watch(self, live: Live) -> None:
        """Read the gauges from here on each scrape."""
        self.registry.register(_LiveCollector(live))

    def exposition(self) -> bytes:
        """All series in Prometheus' text format."""
        return generate_latest(self.registry)


_Kind = tuple[str, str, int, Outcome, tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]


class _RequestSeries(NamedTuple):
    counters: tuple[Count, ...]
    """What one such request adds one to: its own series, one for each attempt and each retry."""
    seconds: Buckets
    ttft: Buckets
    itl: Buckets
    overhead: Buckets


class _LiveCollector(Collector):
    def __init__(self, live: Live) -> None:
        self._live = live

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        live = self._live
        fleet = live.fleet()
        states = fleet.pods_by_state(frozenset(live.ejected()))
        yield _gauge(
            given.PODS,
            (((pool, state), count) for pool, counts in states.items() for state, count in counts.items()),
        )
        # Of each pool there is: who scales a pool from zero by its queue needs the zero as well.
        nobody = dict.fromkeys(states, 0)
        yield _gauge(given.QUEUE_DEPTH, (((pool,), count) for pool, count in (nobody | dict(live.waiting())).items()))
        yield _gauge(given.PANIC, (((pool,), whether) for pool, whether in (nobody | dict(live.panics())).items()))
        yield _gauge(given.POD_IN_FLIGHT, (((pod.pool, pod.name), live.pod_in_flight(pod.uid)) for pod in fleet.pods))
        yield _gauge(given.IN_FLIGHT, (((model,), count) for model, count in _most(live.in_flight())))
        mode = live.limit_mode()
        yield _gauge(given.LIMIT_MODE, (((name,), name == mode) for name in given.LIMIT_MODES))
        for definition, value in (
            (given.LOOP_LAG, live.loop_lag()),
            (given.DISCOVERY_STALE, live.discovery_stale()),
            (given.CONFIG_REFUSED, live.config_refused()),
            (given.OVERLOAD_LEVEL, live.overload_level()),
            (given.MEMORY_LIMIT, live.memory_limit()),
            (given.CONNECTIONS, live.connections()),
            (given.BUFFERED_BODIES, live.buffered_body_bytes()),
        ):
            yield _gauge(definition, [((), value)])
        yield _gauge(given.BUILD_INFO, [((__version__,), 1)])
        for definition, count in (
            (given.ACCESS_LINES_DROPPED, live.dropped_lines()),
            (given.LOG_LINES_DROPPED, live.dropped_log_lines()),
            (given.TRACES_LOST, live.lost_traces()),
        ):
            yield CounterMetricFamily(definition.name, definition.meaning, value=count)
        shed = CounterMetricFamily(given.SHED.name, given.SHED.meaning, labels=given.SHED.label_names)
        for cause, count in live.shed():
            shed.add_metric((cause,), count)
        yield shed


def _gauge(definition: Definition, values: Iterable[tuple[tuple[str, ...], float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(definition.name, definition.meaning, labels=definition.label_names)
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def _most(counts: Iterable[tuple[str, int]]) -> Iterable[tuple[str, int]]:
    """So many models as may have series of their own, and the rest together."""
    each = iter(counts)
    yield from islice(each, given.MAX_MODELS)
    rest = [count for _, count in each]
    if rest:
        yield OTHER, sum(rest)
