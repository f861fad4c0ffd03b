"""The configuration: one YAML file, validated whole, every error with its line and what to do.

Precedence: flags, then `POOLGATE_SECTION__KEY` in the environment, then the file, then the defaults. Only variables
with a double underscore are configuration: Kubernetes' service links make others. Values may be `${VAR}`,
`${VAR:-default}` or `file:/path` (a secret's mount, read once).

Only `app`, `reload` and `cli` import this module; everyone else receives plain values.
"""

import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gateway.core.caller import ISSUED_KEY_ID, Tenant
from gateway.core.fleet import Deadlines, Policy, Pool
from gateway.core.naming import Alias, Target
from gateway.discovery.models import MAX_NAME_CHARACTERS, is_name
from gateway.discovery.pods import MAX_IN_FLIGHT
from gateway.discovery.static import StaticPod
from gateway.faults import AtKey, Fault, close_to, spoken, yaml_mend
from gateway.limits.bucket import OnRedisDown
from gateway.limits.keys import KeyEntry
from gateway.limits.rules import LIMITS, Rule, Rules, Subject, TokenKind

ENVIRONMENT_PREFIX = "POOLGATE_"
MASK = "***"
"""Stands for a secret. A field whose value is one has `repr=False`."""
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")

KeyPath = tuple[str, ...]
"""The names and places that lead to a value."""
H = TypeVar("H", bound=Hashable)

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=0, le=65_535)]
RequestLimit = Annotated[int, Field(ge=1, le=10_000_000)]
TokenLimit = Annotated[int, Field(ge=1, le=1_000_000_000)]
ConcurrentLimit = Annotated[int, Field(ge=1, le=1_000_000)]
Priority = Annotated[int, Field(ge=-100, le=100)]


def _check_model_name(name: str) -> str:
    if not is_name(name):
        raise ValueError(
            f"{name[:64]!r} is no model's name: at most {MAX_NAME_CHARACTERS} characters that can be printed"
        )
    return name


ModelName = Annotated[str, AfterValidator(_check_model_name)]


def _first_repeated(values: Iterable[H]) -> tuple[int, H] | None:
    """(its place, the value) of the first that stands there for the second time."""
    seen: set[H] = set()
    for place, value in enumerate(values):
        if value in seen:
            return place, value
        seen.add(value)
    return None


class ConfigError(Exception):
    """The configuration cannot be used; the text has one line per fault, each with file, line, key and mend."""

    def __init__(self, told: str | Iterable[Fault]) -> None:
        self.faults = (Fault("", None, "", told),) if isinstance(told, str) else tuple(sorted(told, key=_place))
        super().__init__("\n".join(map(str, self.faults)))


def _place(fault: Fault) -> tuple[bool, int, str]:
    return fault.line is None, fault.line or 0, fault.source


class _Section(BaseModel):
    # The docstrings below are what docs/configuration.md says of each key.
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=_Section)


class ServerSection(_Section):
    host: str = "0.0.0.0"  # noqa: S104  # the public port: in a pod, from everywhere
    """Address of the public port."""
    port: Port = 8000
    """The public port. 0 takes any free one."""
    ops_host: str = "127.0.0.1"
    """Address of the ops port: probes, metrics and status, without API keys. Keep it off public networks."""
    ops_port: Port = 9090
    """The ops port. 0 takes any free one."""
    ops_token: str | None = Field(default=None, min_length=1, repr=False)
    """Behind it lies what the ops port tells of pods and requests: the status page and `/status.json`, asked for with
    `Authorization: Bearer TOKEN`; to a browser it is the password, with any name. Probes, version and metrics stay
    open. Without one everybody who reaches the port may read all of it."""
    max_body_bytes: int = Field(default=8_388_608, ge=1024, le=1 << 30)
    """The largest request body. A larger one is refused with a 413."""
    max_upload_bytes: int = Field(default=33_554_432, ge=1024, le=1 << 30)
    """The largest multipart form, which brings a recording to be transcribed. A larger one is refused with a 413."""
    drain_seconds: float = Field(default=300.0, ge=0, le=86_400)
    """After SIGTERM: how long running requests may take to end. What still runs then is ended with an error."""


class PodSection(_Section):
    url: str
    """`http://HOST:PORT`, without a path. Without a port: 80. An IPv6 address stands in brackets."""
    pool: str = Field(min_length=1, max_length=63)
    """The pool the pod belongs to. A pool exists as soon as a pod names it."""
    name: str | None = None
    """Its name in logs and metrics; unique. Without one: `POOL-N`, counted from 0 within the pool."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        try:
            in_range = parts.port is None or parts.port > 0
        except ValueError:
            in_range = False
        if not in_range:
            raise ValueError("give the pod a port from 1 to 65535")
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
            raise ValueError("give the pod as http://HOST:PORT, without a path")
        return url


class DiscoverySection(_Section):
    mode: Literal["kubernetes", "static"] = "kubernetes"
    """Where pods are found: `kubernetes` asks the API server, `static` takes the list below. Without this key: static
    if there is a list. The API server is that of `KUBECONFIG`, else of the pod we run in, else of `~/.kube/config`."""
    namespaces: tuple[str, ...] = Field(default=("vllm",), min_length=1, max_length=64)
    """Kubernetes: the namespaces whose pods are used. Each wants a Role there with the verbs list and watch on pods."""
    selector: str = Field(default="poolgate.dev/pool", min_length=1, max_length=1024)
    """Kubernetes: the label selector of candidates. A pod needs the label `poolgate.dev/pool` in any case."""
    self_selector: str = Field(default="app.kubernetes.io/name=poolgate", min_length=1, max_length=1024)
    """Kubernetes: the label selector of this gateway's own replicas, in its own namespace. They are counted: the more
    there are, the less often each asks the pods for their load."""
    pod_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """Kubernetes: the networks pods may live in, such as `10.244.0.0/16`. Empty: any but loopback, link-local and
    multicast addresses, which a network named here admits too. The API server's address and our own never."""
    pods: tuple[PodSection, ...] = ()
    """Static: the pods, in order. A model that pods of two pools list belongs to the pool whose pod stands first."""

    @model_validator(mode="before")
    @classmethod
    def _choose_mode(cls, values: Any) -> Any:
        return {"mode": "static", **values} if isinstance(values, dict) and values.get("pods") else values

    @field_validator("namespaces")
    @classmethod
    def _check_namespaces(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for place, name in enumerate(names):
            if not _NAMESPACE.fullmatch(name):
                raise AtKey(
                    (str(place),), f"{name!r} is no namespace: lower-case letters, digits and dashes, 63 at most"
                )
        if twice := _first_repeated(names):
            raise AtKey((str(twice[0]),), f"the namespace {twice[1]} stands here twice: remove one of them")
        return names

    @field_validator("pod_networks", mode="before")
    @classmethod
    def _read_networks(cls, networks: Any) -> Any:
        if not isinstance(networks, list | tuple):
            return networks
        return tuple(_network(place, each) for place, each in enumerate(networks))

    @model_validator(mode="after")
    def _check_pods(self) -> "DiscoverySection":
        if self.pods and self.mode == "kubernetes":
            raise AtKey(("pods",), "pods in a list are for mode static: remove them, or the mode")
        return self


def _network(place: int, told: object) -> IPv4Network | IPv6Network:
    try:
        if isinstance(told, IPv4Network | IPv6Network):
            return told
        found = ip_network(told if isinstance(told, str) else "", strict=False)
    except ValueError:
        raise AtKey((str(place),), "give a network such as 10.244.0.0/16 or fd00::/8") from None
    if str(told) not in (str(found), str(found.network_address)) and _has_host_bits(str(told)):
        raise AtKey((str(place),), f"{told} has host bits set: did you mean {found}?")
    return found


def _has_host_bits(network: str) -> bool:
    try:
        ip_network(network)
    except ValueError:
        return True
    return False


class PoolSection(_Section):
    models: tuple[str, ...] = ("*",)
    """Globs of the model names the pool may serve. A name without a wildcard is known even while no pod serves it:
    a request for it is then answered with 503 instead of 404."""
    ttft_seconds: Seconds = 120.0
    """To a stream's first content event, from the moment the request was whole, over all attempts. Then 504."""
    idle_seconds: Seconds = 60.0
    """Between two events of a stream. Comments do not count as events. Then the stream ends with an error event."""
    response_seconds: Seconds = 600.0
    """To the last byte of an answer that is not a stream. Then 504, or a cut connection if the answer has begun."""
    stream_seconds: Seconds = 3600.0
    """To the end of a stream. Then it ends with an error event."""
    policy: Policy = "auto"
    """How the pod for a request is chosen. `auto`: by what each would cost it, the prompt tokens included that the pod
    has not cached. `least`: the fewest requests. `p2c`: the less busy one of two taken by chance. `session`: each
    session's own pod, as long as that is not overloaded. `prefix`: the same for prompts that begin alike.
    `round_robin`: one after the other."""
    max_in_flight_per_pod: int = Field(default=128, ge=1, le=MAX_IN_FLIGHT)
    """How many requests a pod takes at once: those of this replica, and all others where the pod's `/load` is believed.
    The rest wait. A pod's annotation `poolgate.dev/max-in-flight` says it for that pod."""
    queue_limit: int = Field(default=256, ge=0, le=100_000)
    """How many requests may wait for a pod with room, at each replica. Then 503 `queue_full`. 0: none waits."""
    queue_wait_seconds: float = Field(default=10.0, ge=0, le=86_400)
    """How long each of them may wait, over all its attempts. Then 503 `queue_timeout`."""
    hold_empty_seconds: float = Field(default=0.0, ge=0, le=86_400)
    """How long requests are held while no pod is ready for their model, since one may be starting (scale from zero);
    not beyond `ttft_seconds`, or `response_seconds` without a stream. 0: they are refused at once, with 503
    `no_ready_pod`."""


class TargetSection(_Section):
    model: ModelName
    """A model's own name. An alias of that name is not followed."""
    weight: float = Field(default=1.0, gt=0, le=1_000_000)
    """Its share of the alias' requests is this, divided by the sum of the weights."""


class AliasSection(_Section):
    to: tuple[TargetSection, ...] = Field(min_length=1, max_length=16)
    """The models it leads to. Of several, one is chosen for each request, by weight."""
    fallback: tuple[ModelName, ...] = Field(default=(), max_length=8)
    """Models to try after the one that was chosen, in this order: when it has no ready pod, when its queue is full or
    took too long, when none of its pods could be reached."""

    @model_validator(mode="after")
    def _check_names(self) -> "AliasSection":
        models = [target.model for target in self.to]
        for names, where in ((models, "to"), (self.fallback, "fallback")):
            if twice := _first_repeated(names):
                raise AtKey((where, str(twice[0])), f"{twice[1]!r} stands here twice: remove one of them")
        if len(models) == 1 and models[0] in self.fallback:
            at = ("fallback", str(self.fallback.index(models[0])))
            raise AtKey(at, f"{models[0]!r} is the only model in 'to': remove it here")
        return self


class JwtSection(_Section):
    issuer: str = Field(pattern=r"^https?://")
    """The `iss` of tokens that are believed. Its keys are read from `ISSUER/.well-known/openid-configuration`."""
    audience: str = Field(min_length=1, max_length=256)
    """The `aud` that a token must have been made for."""
    tenant_claim: str = Field(default="sub", min_length=1, max_length=64)
    """The claim that says whose token it is: `tenant` in the access line, in metrics and in limits."""
    jwks_url: str | None = Field(default=None, pattern=r"^https?://")
    """Where the issuer's keys are, if it does not say so itself."""
    models: tuple[str, ...] = ("*",)
    """Globs of the model names that callers with a token may use and see."""


class AuthSection(_Section):
    mode: Literal["keys", "none"] = "keys"
    """`none` serves everyone, and only together with the flag `--insecure-no-auth`."""
    keys_file: Path = Path("/etc/poolgate/keys.yaml")
    """The keys file; a change of it takes effect within seconds. A relative path starts at the process's working
    directory."""
    jwt: JwtSection | None = None
    """Tokens of an OpenID Connect issuer, taken beside keys."""
    forwarded_user_secret: str | None = Field(default=None, repr=False, min_length=16)
    """The secret with which Open WebUI signs for whom it asks (its `FORWARD_USER_INFO_HEADER_JWT_SECRET`): keys with
    `forwards_user` are then believed only with the signed header. Without it the plain one, `X-OpenWebUI-User-Id`."""


class DefaultLimitsSection(_Section):
    requests_per_minute: RequestLimit | None = 600
    """Requests per minute. null: no such limit. Without keys (`auth.mode: none`) these three do not apply."""
    tokens_per_minute: TokenLimit | None = 200_000
    """Prompt and completion tokens per minute, together. null: no such limit."""
    concurrent: ConcurrentLimit | None = 32
    """Requests running at once, those that wait for a pod included. null: no such limit."""


class LimitRuleSection(_Section):
    per: Subject
    """What has one such limit each: a key, a tenant (the team of a key), a user whom an application speaks for, or a
    model's name as it was asked for."""
    match: str = Field(default="*", min_length=1, max_length=256)
    """A glob: which keys (by their id), tenants, users or models the rule is for."""
    model: str = Field(default="*", min_length=1, max_length=256)
    """A glob over the model names asked for. The limit holds for all of them together."""
    requests_per_minute: RequestLimit | None = None
    """Requests per minute."""
    tokens_per_minute: TokenLimit | None = None
    """Tokens per minute; which of them, `count` says."""
    requests_per_day: RequestLimit | None = None
    """A quota, of requests per day. What is spent comes back evenly over the day, not at midnight."""
    tokens_per_day: TokenLimit | None = None
    """A quota, of tokens per day."""
    concurrent: ConcurrentLimit | None = None
    """Requests running at once."""
    count: TokenKind = "both"
    """Which tokens count."""
    on_redis_down: OnRedisDown | None = None
    """For this rule, in place of `limits.on_redis_down`."""

    @model_validator(mode="after")
    def _check_limits(self) -> "LimitRuleSection":
        if not _amounts(self):
            raise ValueError(f"a rule without a limit: give it one of {', '.join(LIMITS)}")
        return self


class LimitsSection(_Section):
    redis_url: str | None = Field(default=None, repr=False, pattern=r"^(redis|rediss|unix)://")
    """Where all replicas count together: `redis://[USER:PASSWORD@]HOST:PORT/DB`, `rediss://` with TLS, or
    `unix://PATH`. null: each replica counts for itself, in memory."""
    on_redis_down: OnRedisDown = "local"
    """What holds while Redis is slow or away. `local`: each replica allows its share of a limit, which is the limit
    divided by the number of replicas. `allow`: the limit does not hold. `deny`: what it is for is refused, with 503."""
    replicas: int = Field(default=1, ge=1, le=10_000)
    """How many replicas there are, outside Kubernetes. Inside, they are counted."""
    default: DefaultLimitsSection = DefaultLimitsSection()
    """What each key may spend, unless the keys file says otherwise."""
    rules: tuple[LimitRuleSection, ...] = Field(default=(), max_length=256)
    """Further limits. All that are for a request must have room, or it is refused and counts nowhere."""

    @model_validator(mode="after")
    def _check_rules(self) -> "LimitsSection":
        scopes = [(rule.per, rule.match, rule.model, rule.count) for rule in self.rules]
        if twice := _first_repeated(scopes):
            place, (per, *_) = twice
            text = f"this and another rule are per {per} with the same match, model and count: make them one"
            raise AtKey(("rules", str(place)), text)
        return self


class UpstreamSection(_Section):
    connect_seconds: Seconds = 1.0
    """How long opening a connection to a pod may take. Then another pod is tried."""
    pool_idle_seconds: Annotated[float, Field(gt=0, lt=5)] = 3.0
    """How long an unused connection to a pod is kept. vLLM closes its own after 5 s, so less than that."""
    api_key: str | None = Field(default=None, repr=False, pattern=r"^[!-~]+$")
    """What pods were given as `--api-key`. Callers' keys never reach a pod."""


class TracingSection(_Section):
    endpoint: str | None = None
    """Where traces are sent: an OTLP/HTTP receiver's base URL, such as `http://otel-collector:4318`; `/v1/traces` is
    added. null: nothing is traced. A token for it belongs in the variable `OTEL_EXPORTER_OTLP_HEADERS`."""
    sample_ratio: float = Field(default=0.05, ge=0, le=1)
    """The share of requests that are traced, of those whose caller has not decided it in its `traceparent`."""

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str | None) -> str | None:
        if endpoint is None:
            return None
        parts = urlsplit(endpoint)
        try:
            in_range = parts.port is None or parts.port > 0
        except ValueError:
            in_range = False
        if not in_range:
            raise ValueError("give the receiver a port from 1 to 65535")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("give the receiver as http://HOST:PORT, or with https")
        if parts.username is not None or parts.password is not None:
            raise ValueError("no password here: set OTEL_EXPORTER_OTLP_HEADERS in the environment")
        if parts.path.rstrip("/").endswith("/v1/traces"):
            raise ValueError("leave '/v1/traces' away: it is added")
        return endpoint


class Config(_Section):
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
    upstream: UpstreamSection = UpstreamSection()
    """How pods are talked to."""
    tracing: TracingSection = TracingSection()
    """Whether requests leave traces, in OpenTelemetry's form."""

    @model_validator(mode="after")
    def _check_pods(self) -> "Config":
        pods = self.static_pods()
        if twice := _first_repeated(pod.name for pod in pods):
            at = ("discovery", "pods", str(twice[0]), "name")
            raise AtKey(at, f"two pods are called {twice[1]!r}: give each its own name")
        places = [(pod.pool, pod.host, pod.port) for pod in pods]
        if again := _first_repeated(places):
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
            _amounts(limits.default),
            tuple(
                Rule(
                    rule.per,
                    _amounts(rule),
                    rule.match,
                    rule.model,
                    rule.count,
                    rule.on_redis_down or limits.on_redis_down,
                )
                for rule in limits.rules
            ),
            limits.on_redis_down,
        )

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


def _amounts(section: DefaultLimitsSection | LimitRuleSection) -> tuple[tuple[str, int], ...]:
    """The limits that a section sets, by name."""
    told = ((name, getattr(section, name, None)) for name in LIMITS)
    return tuple((name, amount) for name, amount in told if amount is not None)


class _KeySection(_Section):
    id: str = Field(min_length=1, max_length=64)
    """The key's public part. It stands in the access line as `key_id`."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the key's whole text, in lower-case hex. The text itself is stored nowhere."""
    team: str = Field(min_length=1, max_length=64)
    """Whose key it is: `tenant` in the access line and in the token metric."""
    models: tuple[str, ...] = ("*",)
    """Globs of the model names the key may use and see."""
    expires: datetime | None = None
    """From then on the key opens nothing: a time such as `2027-01-01T00:00:00Z`. One without a zone is UTC."""
    disabled: bool = False
    """The key opens nothing."""
    debug: bool = False
    """Successful answers say which pod gave them: `x-poolgate-pod`, `x-poolgate-attempts`, `x-poolgate-decision`."""
    allow_fields: tuple[str, ...] = ()
    """Guarded body fields this key may send; see below."""
    note: str = ""
    """For people. Not used."""
    requests_per_minute: RequestLimit | None = None
    """Its own limit, in place of that of `limits.default`. null, here and below: that one."""
    tokens_per_minute: TokenLimit | None = None
    """The same, for prompt and completion tokens together."""
    concurrent: ConcurrentLimit | None = None
    """The same, for requests running at once."""
    priority: Priority = 0
    """Who waits less where requests have to wait for a pod: lower numbers first, as vLLM counts them. Pods annotated
    with `poolgate.dev/priority: "true"` are told it too."""
    forwards_user: bool = False
    """The key belongs to an application that says for which of its users it asks, such as Open WebUI; it is believed.
    See `auth.forwarded_user_secret`."""

    @field_validator("id")
    @classmethod
    def _check_id(cls, key_id: str) -> str:
        if key_id.startswith(ISSUED_KEY_ID):
            raise ValueError(f"ids that begin with {ISSUED_KEY_ID!r} are those of an issuer's tokens: choose another")
        return key_id

    @field_validator("expires", mode="before")
    @classmethod
    def _check_expires(cls, value: Any) -> Any:
        # A number would be read as seconds since 1970: a year, or a count of days, as a moment long past.
        if isinstance(value, int | float) or (isinstance(value, str) and value[4:5] != "-"):
            raise ValueError("give a time such as 2027-01-01T00:00:00Z")
        return value


class _KeysFile(_Section):
    keys: tuple[_KeySection, ...] = ()
    """The keys."""

    @model_validator(mode="before")
    @classmethod
    def _check_list(cls, values: Any) -> Any:
        # A file that was cut off must not revoke every key: that nobody is to be let in is said in words.
        if values is None or (isinstance(values, dict) and values.keys() <= {"keys"} and values.get("keys") is None):
            raise ValueError("there is no list of keys: write 'keys: []' if nobody is to be let in")
        if not isinstance(values, dict):
            raise ValueError("the file must hold 'keys:', and below it the list of keys")
        return values


@dataclass(frozen=True, slots=True)
class _Document:
    """A YAML file with the line of each key, and what was seen of it while it was read."""

    file: str
    value: Any
    lines: Mapping[KeyPath, int]
    faults: tuple[Fault, ...] = ()
    """What is wrong with it as a text."""
    filled: frozenset[KeyPath] = frozenset()
    """Where a variable, or a secret's file, was put in its place, or would be."""
    unknown: frozenset[KeyPath] = frozenset()
    """Those of them whose values are not known."""
    told_by: Mapping[KeyPath, str] = field(default_factory=dict)
    """The variable or flag that a value comes by, in place of the file."""

    def line_of(self, path: KeyPath) -> int | None:
        """Of the key, or of the next one above it; None if there are no lines."""
        if not self.lines and not self.value:
            return None
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def teller(self, path: KeyPath) -> tuple[KeyPath, str] | None:
        """The variable or flag that a value, or a key that holds it, comes by, and what that sets."""
        by = ((told, name) for told, name in self.told_by.items() if path[: len(told)] == told)
        inside = ((told, name) for told, name in self.told_by.items() if told[: len(path)] == path)
        return next(by, None) or (None if path in self.lines or not path else next(inside, None))

    def fault(self, path: KeyPath, text: str) -> Fault:
        """A fault there."""
        key, teller = ".".join(path) or "(file)", self.teller(path)
        if teller is not None:
            return Fault(teller[1], None, key, text)
        return Fault(self.file, self.line_of(path), key, text)

    def shows(self, path: KeyPath) -> bool:
        """Whether the value there stands in the file as it is."""
        return path not in self.filled and self.teller(path) is None

    def as_written(self, path: KeyPath, instead: KeyPath) -> str:
        """Another key, in the place of one, as it is written where that one came from."""
        teller = self.teller(path)
        if teller is not None and teller[1].startswith(ENVIRONMENT_PREFIX):
            told = teller[0]
            return ENVIRONMENT_PREFIX + "__".join((*instead, *told[len(path) :])).upper()
        return instead[-1] if instead[:-1] == path[:-1] else ".".join(instead).replace("*", "NAME")


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration, and where each value of it comes from."""

    config: Config
    _document: _Document

    def source_of(self, *path: str) -> str:
        """`--port`, `POOLGATE_SERVER__PORT`, `poolgate.yaml:3`, or `default`."""
        document = self._document
        teller = document.teller(path)
        if teller is not None:
            return teller[1]
        return f"{document.file}:{document.lines[path]}" if path in document.lines else "default"

    def line_of(self, *path: str) -> int | None:
        """Where a key stands in the file; None: nowhere."""
        return self._document.lines.get(path)


def load_config(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any] | None = None) -> Config:
    """Read and validate the configuration. `flags`: `{"server.port": 1}`, None values left out.

    Raises `ConfigError`.
    """
    return load_settings(file, environment, flags).config


def load_settings(
    file: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, Any] | None = None,
    *,
    file_alone: bool = False,
) -> Settings:
    """The same, with where each value comes from. With `file_alone` nothing but that file is read: a variable without a
    default, or a secret's file, is taken to hold what is wanted there.

    Raises `ConfigError`.
    """
    if file is not None:
        document = _read(file, {} if file_alone else environment, file_alone=file_alone)
    else:
        document = _Document("(defaults)", {}, {})
    if not isinstance(document.value, dict):
        raise ConfigError([Fault(document.file, 1, "", "the file must hold sections such as server: and discovery:")])
    values: dict[str, Any] = dict(document.value)
    faults, told_by = list(document.faults), {}
    for name, path, text in () if file_alone else _from_environment(environment):
        told_by[path] = name
        try:
            _set(values, path, yaml.safe_load(text))
        except (yaml.YAMLError, ValueError):
            faults.append(Fault(name, None, ".".join(path), "its value is not valid YAML: put it in quotes"))
    for flag, value in (flags or {}).items():
        if value is not None:
            path = tuple(flag.split("."))
            told_by[path] = f"--{path[-1].replace('_', '-')}"
            _set(values, path, value)
    document = replace(document, faults=tuple(faults), told_by=told_by)
    return Settings(_validate(Config, values, document), document)


def one_underscore(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(A variable that is not configuration, since it has one underscore where two are wanted, the one that is)."""
    known = {}
    for section, below in Config.model_fields.items():
        kind = below.annotation
        for key in kind.model_fields if isinstance(kind, type) and issubclass(kind, _Section) else ():
            right = f"{ENVIRONMENT_PREFIX}{section}__{key}".upper()
            known[right.replace("__", "_")] = right
    for name in sorted(known.keys() & environment.keys()):
        # A Service whose name begins like a section makes the others.
        if not environment[name].startswith("tcp://"):
            yield name, known[name]


def shown(config: Config) -> dict[str, Any]:
    """All of it in values of JSON, with secrets masked: of those that are URLs the password, of others everything."""
    return _shown(config)


def _shown(section: BaseModel) -> dict[str, Any]:
    plain = section.model_dump(mode="json")
    found: dict[str, Any] = {}
    for name, about in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            found[name] = _shown(value)
        elif isinstance(value, Mapping):
            found[name] = {key: _shown(each) for key, each in value.items()}
        elif isinstance(value, tuple) and any(isinstance(each, BaseModel) for each in value):
            found[name] = [_shown(each) for each in value]
        elif isinstance(value, str):
            found[name] = _masked(value, secret=about.repr is False)
        else:
            found[name] = plain[name]
    return found


def _masked(value: str, *, secret: bool) -> str:
    """Without what is secret. A URL may hold a password in any field."""
    scheme, separator, rest = value.partition("://")
    if not separator:
        return MASK if secret else value
    place, question, query = rest.partition("?")
    user, at, host = place.rpartition("@")
    if at:
        name, colon, _ = user.partition(":")
        place = f"{name}{colon}{MASK if colon else ''}@{host}" if colon or not secret else f"{MASK}@{host}"
    query = "&".join(f"{each.partition('=')[0]}={MASK}" for each in query.split("&")) if secret and question else query
    return f"{scheme}://{place}{question}{query}"


def config_schema(*, keys: bool = False) -> dict[str, Any]:
    """The JSON Schema of the file, or of the keys file: for editors. A text may be `${VAR}` wherever something else is
    wanted, but in the keys file."""
    kind, title = (_KeysFile, "Poolgate: the keys file") if keys else (Config, "Poolgate: the configuration")
    schema = kind.model_json_schema()
    if not keys:
        schema = _with_variables(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title}


def _with_variables(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_variables(each) for each in node]
    if not isinstance(node, dict):
        return node
    told = {"title", "description", "default"}
    constrained = node.get("type") in ("integer", "number", "boolean") or (
        node.get("type") == "string" and node.keys() & {"enum", "const", "pattern", "format"}
    )
    if constrained:
        value = {name: each for name, each in node.items() if name not in told}
        variable = {"type": "string", "pattern": r"\$\{[A-Za-z_]|^file:"}
        return {**{name: each for name, each in node.items() if name in told}, "anyOf": [value, variable]}
    return {name: each if name == "default" else _with_variables(each) for name, each in node.items()}


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file, with the flags and the environment it is read with: read again, it may give another configuration."""

    file: Path
    environment: Mapping[str, str]
    flags: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Config:
        """Raises `ConfigError`."""
        return load_config(self.file, self.environment, self.flags)


def differences(before: Config, now: Config) -> tuple[str, ...]:
    """The keys whose values differ, such as `pools.chat.policy`; those of a section that came or went as one."""
    return tuple(_differences(before.model_dump(), now.model_dump(), ""))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str) -> Iterator[str]:
    for key in dict.fromkeys((*before, *now)):
        one, other = before.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{path}{key}.")
        elif one != other:
            yield f"{path}{key}"


def load_keys(file: Path) -> tuple[KeyEntry, ...]:
    """The entries of a keys file.

    Raises `ConfigError`.
    """
    document = _read(file, None)
    parsed = _validate(_KeysFile, document.value, document)
    _check_unique(parsed.keys, document)
    entries = []
    for key in parsed.keys:
        expires = key.expires
        if expires is not None and expires.tzinfo is None:
            expires = expires.replace(tzinfo=UTC)
        tenant = Tenant(
            key_id=key.id,
            team=key.team,
            models=key.models,
            allow_fields=frozenset(key.allow_fields),
            debug=key.debug,
            requests_per_minute=key.requests_per_minute,
            tokens_per_minute=key.tokens_per_minute,
            concurrent=key.concurrent,
            priority=key.priority,
            forwards_user=key.forwards_user,
            expires_at=None if expires is None else expires.timestamp(),
        )
        entries.append(KeyEntry(key.sha256, tenant, key.disabled, key.note))
    return tuple(entries)


def _check_unique(keys: tuple[_KeySection, ...], document: _Document) -> None:
    told = []
    first: dict[tuple[str, str], int] = {}
    for index, key in enumerate(keys):
        for name, value, fault in (
            ("id", key.id, f"the id {key.id!r} is that of the key on line {{}} too: give each key its own"),
            ("sha256", key.sha256, "this is the key on line {} again: keep one of them"),
        ):
            before = first.setdefault((name, value), index)
            if before != index:
                line, other = (document.line_of(("keys", str(at), name)) for at in (index, before))
                told.append(Fault(document.file, line, f"keys.{index}.{name}", fault.format(other)))
    if told:
        raise ConfigError(told)


def check_key(entry: Mapping[str, Any]) -> None:
    """Whether this may stand in a keys file.

    Raises `ConfigError`.
    """
    _validate(_KeySection, dict(entry), _Document("the new key", None, {}))


def _read(file: Path, environment: Mapping[str, str] | None, *, file_alone: bool = False) -> _Document:
    """A file and its lines; variables and secret files are put in their places if an environment is given."""

    def broken(line: int | None, why: str) -> ConfigError:
        return ConfigError([Fault(str(file), line, "", why)])

    try:
        # Parsed once, for the values and their lines: ten thousand keys take seconds. Not by libyaml: what nests too
        # deeply ends the process there.
        loader = yaml.SafeLoader(file.read_text("utf-8"))
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        twice: list[Fault] = []
        _note_lines(node, (), lines, twice, str(file))
        value = None if node is None else loader.construct_document(node)
    except OSError as error:
        raise broken(None, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise broken(line, "is not UTF-8 text: save it as UTF-8") from None
    except yaml.reader.ReaderError as error:
        line = file.read_text("utf-8").count("\n", 0, error.position) + 1
        raise broken(line, "is not valid YAML: a control character stands here: remove it") from None
    except yaml.MarkedYAMLError as error:
        at, before = error.problem_mark, error.context_mark
        line = at.line + 1 if at is not None else 1
        place, why = yaml_mend(error.problem or "", error.context or "", line, before.line + 1 if before else line)
        raise broken(place, f"is not valid YAML: {why}") from None
    except yaml.YAMLError as error:
        raise broken(1, f"is not valid YAML: {error}") from None
    except ValueError as error:
        # A text that looks like a date, and is none.
        raise broken(_line_of_no_date(node), f"is not valid YAML: {error}: put it in quotes") from None
    except RecursionError:
        raise broken(1, "is not valid YAML: it nests too deeply, or a part of it holds itself") from None
    document = _Document(str(file), value, lines, tuple(twice))
    return document if environment is None else _Filling(document, environment, file_alone).filled()


def _note_lines(
    node: yaml.Node | None, path: KeyPath, lines: dict[KeyPath, int], twice: list[Fault], file: str
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below, line = (*path, str(key.value)), key.start_mark.line + 1
            if below in lines:
                text = f"this key stands here twice, on line {lines[below]} too: keep one of them"
                twice.append(Fault(file, line, ".".join(below), text))
            lines[below] = line
            _note_lines(value, below, lines, twice, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            below = (*path, str(index))
            lines[below] = value.start_mark.line + 1
            _note_lines(value, below, lines, twice, file)


def _line_of_no_date(node: yaml.Node | None) -> int:
    """Of the first value that cannot be made what it looks like."""
    waiting, loader = [node], yaml.SafeLoader("")
    while waiting:
        each = waiting.pop()
        if isinstance(each, yaml.ScalarNode):
            try:
                loader.construct_object(each)
            except ValueError:
                return int(each.start_mark.line) + 1
        elif isinstance(each, yaml.MappingNode):
            waiting += [value for pair in reversed(each.value) for value in reversed(pair)]
        elif isinstance(each, yaml.SequenceNode):
            waiting += reversed(each.value)
    return 1


class _Filling:
    """Puts variables and secret files in their places."""

    def __init__(self, document: _Document, environment: Mapping[str, str], file_alone: bool) -> None:
        self._document = document
        self._environment = environment
        self._file_alone = file_alone
        self._faults = list(document.faults)
        self._filled: set[KeyPath] = set()
        self._unknown: set[KeyPath] = set()

    def filled(self) -> _Document:
        """The document with all of them."""
        value = self._resolve(self._document.value, ())
        return replace(
            self._document,
            value=value,
            faults=tuple(self._faults),
            filled=frozenset(self._filled),
            unknown=frozenset(self._unknown),
        )

    def _resolve(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            return {key: self._resolve(below, (*path, str(key))) for key, below in value.items()}
        if isinstance(value, list):
            return [self._resolve(below, (*path, str(i))) for i, below in enumerate(value)]
        if not isinstance(value, str):
            return value
        text = _VARIABLE.sub(lambda match: self._variable(match, path), value)
        if text != value:
            self._filled.add(path)
        return self._secret(text, path) if text.startswith("file:") else text

    def _variable(self, match: re.Match[str], path: KeyPath) -> str:
        name = match[1]
        found = self._environment.get(name, match[2])
        if found is not None:
            return found
        self._filled.add(path)
        self._unknown.add(path)
        if not self._file_alone:
            alike = close_to(name, list(self._environment))
            also = f"; did you mean {alike}, which is set?" if alike else ""
            self._miss(path, f"the variable {name} is not set: set it, or write ${{{name}:-default}}{also}")
        return match[0]

    def _secret(self, text: str, path: KeyPath) -> str:
        self._filled.add(path)
        if self._file_alone:
            self._unknown.add(path)
            return text
        try:
            return Path(text[5:]).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            self._unknown.add(path)
            self._miss(path, f"the file {text[5:]} cannot be read: {why}")
            return text

    def _miss(self, path: KeyPath, text: str) -> None:
        self._faults.append(self._document.fault(path, text))


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, KeyPath, str]]:
    """(The variable, the key that it sets, its value) for each that is configuration."""
    for name, value in sorted(environment.items()):
        path = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if name.startswith(ENVIRONMENT_PREFIX) and len(path) > 1 and all(path):
            yield name, tuple(path), value


def _set(values: dict[str, Any], path: KeyPath, value: Any) -> None:
    for key in path[:-1]:
        below = values.get(key)
        values[key] = dict(below) if isinstance(below, dict) else {}
        values = values[key]
    values[path[-1]] = value


def _validate(kind: type[S], values: Any, document: _Document) -> S:
    """The values as a model. Where one is not known what it is for is left out, so that the others are judged."""
    unknown = set(document.unknown)
    while True:
        try:
            found = kind.model_validate(values)
        except ValidationError as error:
            faults, blank = _faults(kind, error, document, unknown)
            if faults or not blank:
                raise ConfigError([*document.faults, *faults]) from None
            for path in blank:
                unknown.add(path)
                _leave_out(values, path)
        else:
            if document.faults:
                raise ConfigError(document.faults)
            return found


def _faults(
    kind: type[_Section], error: ValidationError, document: _Document, unknown: Collection[KeyPath]
) -> tuple[list[Fault], set[KeyPath]]:
    """(What is wrong, where nobody can say so since a value is not known)."""
    schema = kind.model_json_schema()
    faults, blank = [], set()
    errors = error.errors(include_url=False)
    places = {told["loc"][:-1] for told in errors}
    for told in errors:
        # Of a list whose entries are faulty pydantic says that it is too short, too.
        if told["type"] == "too_short" and any(place[: len(told["loc"])] == told["loc"] for place in places):
            continue
        path, text = spoken(told, schema, document.shows, document.as_written)
        if path not in unknown:
            faults.append(document.fault(path, text))
        elif told["type"] == "missing":
            blank.add(path[:-2] if path[-2].isdecimal() else path[:-1])
        else:
            blank.add(path)
    return faults, blank


def _leave_out(values: Any, path: KeyPath) -> None:
    for step in path[:-1]:
        values = values.get(step) if isinstance(values, dict) else values[int(step)]
    if isinstance(values, dict):
        values.pop(path[-1], None)
