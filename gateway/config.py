"""The configuration: one YAML file, validated whole, every error with its line and what to do.

Precedence: flags, then `POOLGATE_SECTION__KEY` in the environment, then the file, then the defaults. Only variables
with a double underscore are configuration: Kubernetes' service links make others. Values may be `${VAR}`,
`${VAR:-default}` or `file:/path` (a secret's mount, read once).

Only `app`, `reload` and `cli` import this module; everyone else receives plain values.
"""

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
from gateway.limits.bucket import OnRedisDown
from gateway.limits.keys import KeyEntry
from gateway.limits.rules import LIMITS, Rule, Rules, Subject, TokenKind

ENVIRONMENT_PREFIX = "POOLGATE_"
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")

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


def _first_repeated(values: Iterable[H]) -> H | None:
    seen: set[H] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


class ConfigError(Exception):
    """The configuration cannot be used; the text has one line per fault, each with file, line, key and mend."""


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
    """Behind it lies what the ops port tells of pods: `/status.json`, asked for with `Authorization: Bearer TOKEN`.
    Probes, version and metrics stay open. Without one everybody who reaches the port may read all of it."""
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
        for name in names:
            if not _NAMESPACE.fullmatch(name):
                raise ValueError(f"{name!r} is no namespace: lower-case letters, digits and dashes, 63 at most")
        if len(set(names)) != len(names):
            raise ValueError("a namespace stands here twice")
        return names

    @field_validator("pod_networks", mode="before")
    @classmethod
    def _read_networks(cls, networks: Any) -> Any:
        if not isinstance(networks, list | tuple):
            return networks
        return tuple(ip_network(each) if isinstance(each, str) else each for each in networks)

    @model_validator(mode="after")
    def _check_pods(self) -> "DiscoverySection":
        if self.pods and self.mode == "kubernetes":
            raise ValueError("pods: they are for mode static: remove them, or the mode")
        return self


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
                raise ValueError(f"{where}: {twice!r} stands here twice: remove one of them")
        if len(models) == 1 and models[0] in self.fallback:
            raise ValueError(f"fallback: {models[0]!r} is the only model in 'to': remove it here")
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
            raise ValueError(f"rules: two are per {twice[0]} with the same match, model and count: make them one")
        return self


class UpstreamSection(_Section):
    connect_seconds: Seconds = 1.0
    """How long opening a connection to a pod may take. Then another pod is tried."""
    pool_idle_seconds: Annotated[float, Field(gt=0, lt=5)] = 3.0
    """How long an unused connection to a pod is kept. vLLM closes its own after 5 s, so less than that."""
    api_key: str | None = Field(default=None, repr=False, pattern=r"^[!-~]+$")
    """What pods were given as `--api-key`. Callers' keys never reach a pod."""


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

    @model_validator(mode="after")
    def _check_pods(self) -> "Config":
        pods = self.static_pods()
        if name := _first_repeated(pod.name for pod in pods):
            raise ValueError(f"discovery.pods: two pods are called {name!r}: give each its own name")
        places = [(pod.pool, pod.host, pod.port) for pod in pods]
        if place := _first_repeated(places):
            same = [pod.name for pod, each in zip(pods, places, strict=True) if each == place]
            raise ValueError(
                f"discovery.pods: {' and '.join(same)} are the same pod, by pool and url: keep one of them"
            )
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
        return values


@dataclass(frozen=True, slots=True)
class _Document:
    """A YAML file with the line of each key."""

    file: str
    value: Any
    lines: Mapping[tuple[str, ...], int]

    def line_of(self, path: tuple[str, ...]) -> int:
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def load_config(file: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any] | None = None) -> Config:
    """Read and validate the configuration. `flags`: `{"server.port": 1}`, None values left out.

    Raises `ConfigError`.
    """
    document = _read(file, environment) if file is not None else _Document("(defaults)", {}, {})
    if not isinstance(document.value, dict):
        raise ConfigError(f"{document.file}:1: the file must hold sections such as server: and discovery:")
    values: dict[str, Any] = dict(document.value)
    for path, value in _from_environment(environment):
        _set(values, path, value)
    for name, value in (flags or {}).items():
        if value is not None:
            _set(values, tuple(name.split(".")), value)
    return _validate(Config, values, document)


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
                told.append(f"{document.file}:{line}: keys.{index}.{name}: {fault.format(other)}")
    if told:
        raise ConfigError("\n".join(told))


def check_key(entry: Mapping[str, Any]) -> None:
    """Whether this may stand in a keys file.

    Raises `ConfigError`.
    """
    _validate(_KeySection, dict(entry), _Document("the new key", None, {}))


def _read(file: Path, environment: Mapping[str, str] | None) -> _Document:
    """A file and its lines; variables and secret files are put in their places if an environment is given."""
    try:
        # Parsed once, for the values and their lines: ten thousand keys take seconds. Not by libyaml: what nests too
        # deeply ends the process there.
        loader = yaml.SafeLoader(file.read_text("utf-8"))
        node = loader.get_single_node()
        lines: dict[tuple[str, ...], int] = {}
        _note_lines(node, (), lines, str(file))
        document = _Document(str(file), None if node is None else loader.construct_document(node), lines)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        raise ConfigError(f"{file}:{line}: is not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except ValueError as error:
        # A text that looks like a date, and is none.
        raise ConfigError(f"{file}:1: is not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{file}:1: is not valid YAML: it nests too deeply, or a part of it holds itself") from None
    if environment is None:
        return document
    return _Document(document.file, _resolve(document.value, (), document, environment), lines)


def _note_lines(node: yaml.Node | None, path: tuple[str, ...], lines: dict[tuple[str, ...], int], file: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, str(key.value))
            if below in lines:
                raise ConfigError(f"{file}:{key.start_mark.line + 1}: {'.'.join(below)} stands here twice")
            lines[below] = key.start_mark.line + 1
            _note_lines(value, below, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            below = (*path, str(index))
            lines[below] = value.start_mark.line + 1
            _note_lines(value, below, lines, file)


def _resolve(value: Any, path: tuple[str, ...], document: _Document, environment: Mapping[str, str]) -> Any:
    """Put variables and secret files in their places."""
    if isinstance(value, dict):
        return {key: _resolve(below, (*path, str(key)), document, environment) for key, below in value.items()}
    if isinstance(value, list):
        return [_resolve(below, (*path, str(i)), document, environment) for i, below in enumerate(value)]
    if not isinstance(value, str):
        return value
    where = f"{document.file}:{document.line_of(path)}: {'.'.join(path)}"

    def variable(match: re.Match[str]) -> str:
        found = environment.get(match[1], match[2])
        if found is None:
            raise ConfigError(f"{where}: the variable {match[1]} is not set: set it, or write ${{{match[1]}:-default}}")
        return found

    value = _VARIABLE.sub(variable, value)
    if value.startswith("file:"):
        try:
            return Path(value[5:]).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"{where}: the file {value[5:]} cannot be read") from None
    return value


def _from_environment(environment: Mapping[str, str]) -> list[tuple[tuple[str, ...], Any]]:
    found = []
    for name, value in sorted(environment.items()):
        path = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if name.startswith(ENVIRONMENT_PREFIX) and len(path) > 1 and all(path):
            try:
                found.append((tuple(path), yaml.safe_load(value)))
            except yaml.YAMLError:
                raise ConfigError(f"{name}: its value is not valid YAML") from None
    return found


def _set(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        below = values.get(key)
        values[key] = dict(below) if isinstance(below, dict) else {}
        values = values[key]
    values[path[-1]] = value


def _validate(kind: type[S], values: Any, document: _Document) -> S:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        told = []
        for fault in error.errors(include_url=False, include_input=False):
            path = tuple(str(step) for step in fault["loc"])
            if fault["type"] == "extra_forbidden":
                mend = "this key does not exist: correct or remove it"
            else:
                mend = str(fault["msg"]).removeprefix("Value error, ")
            told.append(f"{document.file}:{document.line_of(path)}: {'.'.join(path) or '(file)'}: {mend}")
        raise ConfigError("\n".join(told)) from None
