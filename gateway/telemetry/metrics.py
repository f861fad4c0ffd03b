"""Every series, in one class built once.

A request is observed once, from its trail, into series that are held: looking one up costs more than adding to it. All
labels are closed sets: a model that is not being served counts as `other`, so no caller can make a series. The
gauges are read when they are scraped, from those who own the numbers.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.core.call import Outcome, Trail, Usage
from gateway.core.caller import ISSUED_KEY_ID, Tenant
from gateway.core.fleet import Fleet
from gateway.telemetry.series import Buckets, Count, Counters, Histograms

TTFT_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 60, 120)
DURATION_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 300, 600)
INTER_TOKEN_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
OVERHEAD_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5)
QUEUE_WAIT_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 60, 120, 300)

OTHER = "other"
TOKEN_KINDS = ("prompt", "completion", "cached")
MAX_ISSUED_TEAMS = 200
"""Tenants with series of their own that an issuer of tokens has named: it may know everybody. The rest are `other`."""
LIMIT_MODES = ("memory", "redis", "local")


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
    """How late the loop's last tick was, in seconds."""
    dropped_lines: Callable[[], int]
    """Access lines lost since start, because whoever reads stdout was too slow."""
    limit_mode: Callable[[], str]
    """Where limits are counted now: one of `LIMIT_MODES`."""
    discovery_stale: Callable[[], float]
    """For how long nothing has confirmed which pods there are, in seconds."""


class Metrics:
    """See the module's text. One instance, its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counters(
            "requests", "Requests by how they ended", "model", "operation", "status", "outcome"
        )
        self._tokens = self._counters("tokens", "Tokens by kind and tenant", "model", "kind", "tenant")
        self._attempts = self._counters("attempts", "Attempts at pods by how they ended", "pool", "outcome")
        self._retries = self._counters("retries", "Further attempts and why", "pool", "reason")
        self._ejections = self._counters("ejections", "Pods taken out for a while and why", "pool", "reason")
        self._quarantined = self._counters("quarantined", "Requests refused because pods died of them").of()
        self._reloads = self._counters("config_reloads", "Changed configurations and what came of them", "result")
        self._decisions = self._counters("limit_decisions", "Limits and what they decided", "limit", "decision")
        self._relists = self._counters("discovery_relists", "Full lists of pods and why", "reason")
        self._rejected = self._counters("discovery_rejected", "Pods and model names refused and why", "reason")
        self._seconds = self._histograms(
            "request_seconds", "Seconds from whole request to last byte", DURATION_BUCKETS, "model", "operation"
        )
        self._ttft = self._histograms(
            "time_to_first_token_seconds", "Seconds from whole request to first content", TTFT_BUCKETS, "model"
        )
        self._itl = self._histograms(
            "inter_token_seconds", "Mean seconds between a stream's events", INTER_TOKEN_BUCKETS, "model"
        )
        self._overhead = self._histograms(
            "overhead_seconds", "Seconds spent in the gateway itself", OVERHEAD_BUCKETS, "model"
        )
        self._queue_wait = self._histograms(
            "queue_wait_seconds", "Seconds that requests which had to wait waited for a pod", QUEUE_WAIT_BUCKETS, "pool"
        )
        self._held: dict[_Kind, _RequestSeries] = {}
        self._spent: dict[tuple[str, str], tuple[Count, Count, Count]] = {}
        self._issued_teams: set[str] = set()

    def _counters(self, name: str, text: str, *labels: str) -> Counters:
        family = Counters(f"poolgate_{name}", text, labels)
        self.registry.register(family)
        return family

    def _histograms(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histograms:
        family = Histograms(f"poolgate_{name}", text, labels, bounds)
        self.registry.register(family)
        return family

    def observe(self, trail: Trail) -> None:
        """Count one request that has ended."""
        model = trail.model if trail.served_model else OTHER
        kind = (model, trail.operation, trail.status, trail.outcome, trail.attempt_outcomes, trail.retries)
        series = self._held.get(kind)
        if series is None:
            series = self._held[kind] = self._series(*kind)
        for counter in series.counters:
            counter.value += 1
        series.seconds.observe(trail.duration_seconds)
        if trail.stream:
            if (seconds := trail.ttft_seconds) is not None:
                series.ttft.observe(seconds)
            if (seconds := trail.inter_token_seconds) is not None:
                series.itl.observe(seconds)
        if (seconds := trail.overhead_seconds) is not None:
            series.overhead.observe(seconds)
        if trail.queue_seconds:
            self._queue_wait.of(trail.pool).observe(trail.queue_seconds)
        if trail.usage is not None and trail.tenant is not None:
            self._spend(model, trail.tenant, trail.usage)

    def _spend(self, model: str, tenant: Tenant, usage: Usage) -> None:
        held = self._spent.get((model, tenant.team))
        if held is None:
            team = self._label_of(tenant)
            prompt, completion, cached = (self._tokens.of(model, kind, team) for kind in TOKEN_KINDS)
            held = self._spent[model, team] = prompt, completion, cached
        held[0].value += usage.prompt_tokens
        held[1].value += usage.completion_tokens
        held[2].value += usage.cached_tokens

    def _label_of(self, tenant: Tenant) -> str:
        team, issued = tenant.team, self._issued_teams
        if not tenant.key_id.startswith(ISSUED_KEY_ID) or team in issued:
            return team
        if len(issued) >= MAX_ISSUED_TEAMS:
            return OTHER
        issued.add(team)
        return team

    def _series(
        self,
        model: str,
        operation: str,
        status: int,
        outcome: Outcome,
        attempts: tuple[tuple[str, str], ...],
        retries: tuple[tuple[str, str], ...],
    ) -> "_RequestSeries":
        return _RequestSeries(
            (
                self._requests.of(model, operation, str(status or "none"), outcome),
                *(self._attempts.of(pool, ending) for pool, ending in attempts),
                *(self._retries.of(pool, reason) for pool, reason in retries),
            ),
            self._seconds.of(model, operation),
            self._ttft.of(model),
            self._itl.of(model),
            self._overhead.of(model),
        )

    def ejected(self, pool: str, reason: str) -> None:
        """Count one pod that gets no work for a while."""
        self._ejections.of(pool, reason).value += 1

    def quarantined(self) -> None:
        """Count one request that is sent to no pod more, because pods died of it."""
        self._quarantined.value += 1

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
        fleet = self._live.fleet()
        states = fleet.pods_by_state(frozenset(self._live.ejected()))
        pods = GaugeMetricFamily("poolgate_pods", "Pods by state", labels=("pool", "state"))
        for pool, counts in states.items():
            for state, count in counts.items():
                pods.add_metric((pool, state), count)
        yield pods
        # Of each pool there is: who scales a pool from zero by its queue needs the zero as well.
        nobody = dict.fromkeys(states, 0)
        depth = GaugeMetricFamily("poolgate_queue_depth", "Requests that wait for a pod now", labels=("pool",))
        for pool, count in {**nobody, **dict(self._live.waiting())}.items():
            depth.add_metric((pool,), count)
        yield depth
        panic = GaugeMetricFamily(
            "poolgate_panic", "1 while too few pods are left and ejected ones get requests as well", labels=("pool",)
        )
        for pool, whether in {**nobody, **dict(self._live.panics())}.items():
            panic.add_metric((pool,), whether)
        yield panic
        busy = GaugeMetricFamily("poolgate_pod_in_flight", "Attempts running at a pod", labels=("pool", "pod"))
        for pod in fleet.pods:
            busy.add_metric((pod.pool, pod.name), self._live.pod_in_flight(pod.uid))
        yield busy
        serving = GaugeMetricFamily("poolgate_in_flight", "Attempts running now, by model", labels=("model",))
        for model, count in self._live.in_flight():
            serving.add_metric((model,), count)
        yield serving
        lag = GaugeMetricFamily("poolgate_loop_lag_seconds", "Seconds that the event loop's last tick was late")
        lag.add_metric((), self._live.loop_lag())
        yield lag
        mode = GaugeMetricFamily("poolgate_limit_mode", "1 for where limits are counted now", labels=("mode",))
        counted_in = self._live.limit_mode()
        for name in LIMIT_MODES:
            mode.add_metric((name,), name == counted_in)
        yield mode
        stale = GaugeMetricFamily(
            "poolgate_discovery_stale_seconds", "Seconds since which nothing has confirmed which pods there are"
        )
        stale.add_metric((), self._live.discovery_stale())
        yield stale
        dropped = CounterMetricFamily("poolgate_access_lines_dropped", "Access lines lost to a slow reader of stdout")
        dropped.add_metric((), self._live.dropped_lines())
        yield dropped
