"""Every series, in one class built once.

A request is observed once, from its trail. Label children are held: `labels()` costs more than the increment. All
labels are closed sets: a model that is not being served counts as `other`, so no caller can make a series. The
gauges are read when they are scraped, from those who own the numbers.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.core.call import Trail
from gateway.core.fleet import Fleet, PodState

TTFT_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 60, 120)
DURATION_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 300, 600)
INTER_TOKEN_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
OVERHEAD_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5)

OTHER = "other"


@dataclass(frozen=True, slots=True)
class Live:
    """Where the gauges are read: the fleet now, a pod's attempts in flight by uid, the loop's last lag in seconds."""

    fleet: Callable[[], Fleet]
    pod_in_flight: Callable[[str], int]
    in_flight: Callable[[], Iterable[tuple[str, int]]]
    """(model, requests being served)."""
    loop_lag: Callable[[], float]


class Metrics:
    """See the module's text. One instance, its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "poolgate_requests",
            "Requests by how they ended",
            ("model", "operation", "status", "outcome"),
            registry=self.registry,
        )
        self._seconds = self._histogram(
            "request_seconds", "From whole request to last byte", DURATION_BUCKETS, "operation"
        )
        self._ttft = self._histogram("time_to_first_token_seconds", "Whole request to first content", TTFT_BUCKETS)
        self._itl = self._histogram("inter_token_seconds", "Mean time between a stream's events", INTER_TOKEN_BUCKETS)
        self._overhead = self._histogram("overhead_seconds", "Time spent in the gateway itself", OVERHEAD_BUCKETS)
        self._tokens = Counter(
            "poolgate_tokens", "Tokens by kind and tenant", ("model", "kind", "tenant"), registry=self.registry
        )
        self._attempts = Counter(
            "poolgate_attempts", "Attempts at pods by how they ended", ("pool", "outcome"), registry=self.registry
        )
        self._retries = Counter(
            "poolgate_retries", "Further attempts and why", ("pool", "reason"), registry=self.registry
        )
        self._held: dict[tuple[str, ...], Counter] = {}
        self._by_model: dict[tuple[str, str], _ModelSeries] = {}

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *more: str) -> Histogram:
        return Histogram(f"poolgate_{name}", text, ("model", *more), buckets=buckets, registry=self.registry)

    def observe(self, trail: Trail) -> None:
        """Count one request that has ended."""
        model = trail.model if trail.served_model else OTHER
        self._count(self._requests, model, trail.operation, str(trail.status or "none"), trail.outcome.value)
        for pool, outcome in trail.attempt_outcomes:
            self._count(self._attempts, pool, outcome)
        for pool, reason in trail.retries:
            self._count(self._retries, pool, reason)
        series = self._by_model.get((model, trail.operation))
        if series is None:
            series = self._by_model[model, trail.operation] = self._series(model, trail.operation)
        series.seconds.observe(trail.duration_seconds)
        if (seconds := trail.ttft_seconds) is not None:
            series.ttft.observe(seconds)
        if (seconds := trail.inter_token_seconds) is not None:
            series.itl.observe(seconds)
        if (seconds := trail.overhead_seconds) is not None:
            series.overhead.observe(seconds)
        usage = trail.usage
        if usage is not None and trail.tenant is not None:
            team = trail.tenant.team
            self._count(self._tokens, model, "prompt", team, by=usage.prompt_tokens)
            self._count(self._tokens, model, "completion", team, by=usage.completion_tokens)
            if usage.cached_tokens:
                self._count(self._tokens, model, "cached", team, by=usage.cached_tokens)

    def _count(self, counter: Counter, *labels: str, by: int = 1) -> None:
        # A counter's name and its labels: the label sets of two counters may look alike.
        key = (counter._name, *labels)
        child = self._held.get(key)
        if child is None:
            child = self._held[key] = counter.labels(*labels)
        child.inc(by)

    def _series(self, model: str, operation: str) -> "_ModelSeries":
        return _ModelSeries(
            self._seconds.labels(model, operation),
            self._ttft.labels(model),
            self._itl.labels(model),
            self._overhead.labels(model),
        )

    def watch(self, live: Live) -> None:
        """Read the gauges from here on each scrape."""
        self.registry.register(_LiveCollector(live))

    def exposition(self) -> bytes:
        """All series in Prometheus' text format."""
        return generate_latest(self.registry)


@dataclass(frozen=True, slots=True)
class _ModelSeries:
    seconds: Histogram
    ttft: Histogram
    itl: Histogram
    overhead: Histogram


class _LiveCollector(Collector):
    def __init__(self, live: Live) -> None:
        self._live = live

    def collect(self) -> Iterable[GaugeMetricFamily]:
        fleet = self._live.fleet()
        pods = GaugeMetricFamily("poolgate_pods", "Pods by state", labels=("pool", "state"))
        states: dict[tuple[str, str], int] = {}
        for pod in fleet.pods:
            for state in PodState:
                states.setdefault((pod.pool, state.value), 0)
            states[pod.pool, pod.state.value] += 1
        for labels, count in states.items():
            pods.add_metric(labels, count)
        yield pods
        busy = GaugeMetricFamily("poolgate_pod_in_flight", "Attempts running at a pod", labels=("pool", "pod"))
        for pod in fleet.pods:
            busy.add_metric((pod.pool, pod.name), self._live.pod_in_flight(pod.uid))
        yield busy
        serving = GaugeMetricFamily("poolgate_in_flight", "Requests being served", labels=("model",))
        for model, count in self._live.in_flight():
            serving.add_metric((model,), count)
        yield serving
        lag = GaugeMetricFamily("poolgate_loop_lag_seconds", "How late the event loop's last tick was")
        lag.add_metric((), self._live.loop_lag())
        yield lag
