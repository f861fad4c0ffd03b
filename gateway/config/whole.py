"""The configuration as a whole: its sections, what must hold between them, and the plain values that others receive."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from gateway.config.faults import AtKey
from gateway.config.fields import ModelName, Section, first_repeated
from gateway.config.sections import (
    AliasSection,
    AuthSection,
    DiscoverySection,
    LimitsSection,
    PoolSection,
    RequestsSection,
    ServerSection,
    TracingSection,
    UpstreamSection,
    amounts,
)
from gateway.core.fleet import Deadlines, Pool
from gateway.core.naming import Alias, Target
from gateway.discovery.static import StaticPod
from gateway.limits.rules import Rule, Rules
from gateway.pipeline.caps import Caps


class Config(Section):
    """The whole configuration, as validated."""

    server: ServerSection = ServerSection()
    """The two ports and their bounds."""
    discovery: DiscoverySection = DiscoverySection()
    """Which pods there are."""
    pools: dict[str, PoolSection] = Field(default_factory=dict)
    """Settings of pools, by the pool's name. A pool that is not named here has the defaults."""
    models: dict[ModelName, AliasSection] = Field(default_factory=dict, max_length=1000)
    """Other names for models, by that name. It may also be a model's own name: then it says where else that model's
    requests may go. Limits and the globs of keys apply to the name asked for, and `/v1/models` lists it. The pod is
    asked for its model by that model's own name, which its answer bears."""
    auth: AuthSection = AuthSection()
    """Who may call."""
    limits: LimitsSection = LimitsSection()
    """What callers may spend."""
    requests: RequestsSection = RequestsSection()
    """What one request may ask of a pod, beside tokens."""
    upstream: UpstreamSection = UpstreamSection()
    """How pods are talked to."""
    tracing: TracingSection = TracingSection()
    """Whether requests leave traces, in OpenTelemetry's form."""

    @model_validator(mode="after")
    def _check_pods(self) -> "Config":
        pods = self.static_pods()
        if twice := first_repeated(pod.name for pod in pods):
            at = ("discovery", "pods", str(twice[0]), "name")
            raise AtKey(at, f"two pods are called {twice[1]!r}: give each its own name")
        places = [(pod.pool, pod.host, pod.port) for pod in pods]
        if again := first_repeated(places):
            same = [pod.name for pod, each in zip(pods, places, strict=True) if each == again[1]]
            text = f"{' and '.join(same)} are the same pod, by pool and url: keep one of them"
            raise AtKey(("discovery", "pods", str(again[0])), text)
        return self

    def static_pods(self) -> tuple[StaticPod, ...]:
        """The configured pods; one without a name is called POOL-N, by its place among its pool's pods."""
        found = []
        count: dict[str, int] = {}
        for pod in self.discovery.pods:
            number = count[pod.pool] = count.get(pod.pool, -1) + 1
            parts = urlsplit(pod.url)
            found.append(
                StaticPod(pod.name or f"{pod.pool}-{number}", parts.hostname or "", parts.port or 80, pod.pool)
            )
        return tuple(found)

    def explicit_globs(self) -> dict[str, tuple[str, ...]]:
        """The globs of the pools whose settings name any; the others admit every model."""
        return {name: pool.models for name, pool in self.pools.items() if "models" in pool.model_fields_set}

    def pool_values(self) -> dict[str, Pool]:
        """The pools that have settings, as plain values."""
        return {
            name: Pool(
                name,
                pool.models,
                Deadlines(pool.ttft_seconds, pool.idle_seconds, pool.response_seconds, pool.stream_seconds),
                policy=pool.policy,
                max_in_flight_per_pod=pool.max_in_flight_per_pod,
                queue_limit=pool.queue_limit,
                queue_wait_seconds=pool.queue_wait_seconds,
                hold_empty_seconds=pool.hold_empty_seconds,
            )
            for name, pool in self.pools.items()
        }

    def aliases(self) -> dict[str, Alias]:
        """The aliases, as plain values."""
        return {
            name: Alias(name, tuple(Target(to.model, to.weight) for to in alias.to), alias.fallback)
            for name, alias in self.models.items()
        }

    def limit_rules(self) -> Rules:
        """The limits, as plain values."""
        limits = self.limits
        return Rules(
            amounts(limits.default),
            tuple(
                Rule(
                    rule.per,
                    amounts(rule),
                    rule.match,
                    rule.model,
                    rule.count,
                    rule.on_redis_down or limits.on_redis_down,
                )
                for rule in limits.rules
            ),
            limits.on_redis_down,
        )

    def caps(self) -> Caps:
        """What one request may ask for, as plain values."""
        requests = self.requests
        return Caps(requests.max_n, requests.max_logprobs, requests.media_url_hosts)

    def doubtful_targets(self) -> Iterator[str]:
        """What was perhaps not meant by an alias: a text for each of its models that no pool known from this file may
        serve, or that is an alias which does not lead to a model of its own name.
        """
        aliases = self.aliases()
        pools = {pod.pool: Pool(pod.pool) for pod in self.discovery.pods} | self.pool_values()
        for alias in aliases.values():
            for model in alias.models:
                if model in aliases and model not in aliases[model].models:
                    yield f"models.{alias.name}: {model!r} is an alias too, which is not followed: name a model"
                elif pools and not any(pool.admits(model) for pool in pools.values()):
                    yield f"models.{alias.name}: no pool of this file may serve the model {model!r}"
