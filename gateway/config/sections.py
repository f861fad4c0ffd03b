"""What may stand in each section of the configuration, and what must hold between the values of one.

A validator that knows better than pydantic where the fault is raises `AtKey` with the place below its section.
"""

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from gateway.config.faults import AtKey
from gateway.config.fields import (
    ConcurrentLimit,
    ModelName,
    Port,
    RequestLimit,
    Seconds,
    Section,
    TokenLimit,
    first_repeated,
    has_possible_port,
)
from gateway.core.fleet import Policy
from gateway.discovery.pods import MAX_IN_FLIGHT
from gateway.limits.bucket import OnRedisDown
from gateway.limits.rules import LIMITS, Subject, TokenKind
from gateway.pipeline.media import is_host

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class TlsSection(Section):
    cert: Path | None = None
    """The certificate in PEM form, those of its issuers behind it: `tls.crt` of a Secret. A new one in the same place
    is shown from the next handshake on. null: no TLS."""
    key: Path | None = None
    """The certificate's private key in PEM form, not encrypted: `tls.key` of a Secret."""

    @model_validator(mode="after")
    def _check_both(self) -> "TlsSection":
        if (self.cert is None) != (self.key is None):
            here, other = ("key", "cert") if self.cert is None else ("cert", "key")
            raise AtKey((here,), f"TLS wants both files: set {other} beside it, or remove this")
        return self


class ServerSection(Section):
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
    keep_alive_comments_seconds: float | None = Field(default=None, ge=1, le=3600)
    """How long a stream may say nothing before its client is sent a comment, for load balancers that close what is
    silent: set it below their idle timeout. The first comment says 200: what fails behind it is told in the stream.
    null: no comments."""
    tls: TlsSection = TlsSection()
    """TLS on the public port. The ops port has none: it is the cluster's."""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = Field(default=(), max_length=256)
    """The networks of the proxies before the gateway, such as `10.0.0.0/8`. From them alone `Forwarded` and
    `X-Forwarded-For` are believed. The address serves bounds on strangers, and is written nowhere."""
    cors_origins: tuple[str, ...] = Field(default=(), max_length=256)
    """The origins whose pages may call the gateway from a browser, such as `https://chat.example.com`; `"*"` alone:
    all. Empty: none, and no answer has a header of CORS."""

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _read_proxies(cls, networks: Any) -> Any:
        if not isinstance(networks, list | tuple):
            return networks
        return tuple(_network(place, each) for place, each in enumerate(networks))

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for place, origin in enumerate(origins):
            if origin == "*" and len(origins) > 1:
                raise AtKey((str(place),), '"*" is every origin: let it stand alone, or remove it')
            if origin != "*" and (wrong := _no_origin(origin)):
                raise AtKey((str(place),), wrong)
        if twice := first_repeated(origins):
            raise AtKey((str(twice[0]),), f"the origin {twice[1]} stands here twice: remove one of them")
        return origins


def _no_origin(text: str) -> str:
    """What is wrong with an origin, as browsers write them: they send nothing else, and it must be the same."""
    if text == "null":
        return "null is every page without an origin: serve yours from a host, and name that"
    if "*" in text:
        return 'a * is no part of an origin: list each one whole, or "*" alone'
    parts = urlsplit(text)
    if not parts.scheme or "://" not in text or not parts.netloc or not has_possible_port(parts):
        return 'give an origin such as https://chat.example.com, or "*" alone'
    default = {"http": 80, "https": 443}.get(parts.scheme)
    port = "" if parts.port in (None, default) else f":{parts.port}"
    host = parts.netloc.rpartition("@")[2].rpartition(":")[0] if parts.port is not None else parts.netloc
    meant = f"{parts.scheme}://{host.rpartition('@')[2].lower()}{port}"
    if not _ORIGIN.fullmatch(meant):
        return "give an origin such as https://chat.example.com, letters of other scripts as a browser sends them: xn--"
    return "" if meant == text else f"a browser writes this origin as {meant}: give it so"


class RequestsSection(Section):
    max_n: int = Field(default=8, ge=1, le=1024)
    """The most answers to one prompt: `n`, and `best_of`. More is refused with a 400."""
    max_logprobs: int = Field(default=20, ge=0, le=1000)
    """The most alternatives for each token: `logprobs`, `top_logprobs`, `prompt_logprobs`. More, or -1 for all, is
    refused with a 400. Pods have a limit of their own, `--max-logprobs`."""
    media_url_hosts: tuple[str, ...] = Field(default=(), max_length=256)
    """Hosts whose `http` and `https` URLs may stand for an image, a video or a sound, which the pod then fetches:
    `images.example.com`, or `*.example.com` for all below a domain. Name only those that you would let your pods talk
    to: a redirect leads on from there. Any other URL is refused with a 400; `data:` URLs always pass."""

    @field_validator("media_url_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        told = tuple(host.lower() for host in hosts)
        for place, host in enumerate(told):
            if not is_host(host):
                text = f"{host[:64]!r} is no host: give images.example.com or *.example.com, without scheme and port"
                raise AtKey((str(place),), text)
        return told


class PodSection(Section):
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
        if not has_possible_port(parts):
            raise ValueError("give the pod a port from 1 to 65535")
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
            raise ValueError("give the pod as http://HOST:PORT, without a path")
        return url


class DiscoverySection(Section):
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
        if twice := first_repeated(names):
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


class PoolSection(Section):
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


class TargetSection(Section):
    model: ModelName
    """A model's own name. An alias of that name is not followed."""
    weight: float = Field(default=1.0, gt=0, le=1_000_000)
    """Its share of the alias' requests is this, divided by the sum of the weights."""


class AliasSection(Section):
    to: tuple[TargetSection, ...] = Field(min_length=1, max_length=16)
    """The models it leads to. Of several, one is chosen for each request, by weight."""
    fallback: tuple[ModelName, ...] = Field(default=(), max_length=8)
    """Models to try after the one that was chosen, in this order: when it has no ready pod, when its queue is full or
    took too long, when none of its pods could be reached."""

    @model_validator(mode="after")
    def _check_names(self) -> "AliasSection":
        models = [target.model for target in self.to]
        for names, where in ((models, "to"), (self.fallback, "fallback")):
            if twice := first_repeated(names):
                raise AtKey((where, str(twice[0])), f"{twice[1]!r} stands here twice: remove one of them")
        if len(models) == 1 and models[0] in self.fallback:
            at = ("fallback", str(self.fallback.index(models[0])))
            raise AtKey(at, f"{models[0]!r} is the only model in 'to': remove it here")
        return self


class JwtSection(Section):
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


class AuthSection(Section):
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


class DefaultLimitsSection(Section):
    requests_per_minute: RequestLimit | None = 600
    """Requests per minute. null: no such limit. Without keys (`auth.mode: none`) these three do not apply."""
    tokens_per_minute: TokenLimit | None = 200_000
    """Prompt and completion tokens per minute, together. null: no such limit."""
    concurrent: ConcurrentLimit | None = 32
    """Requests running at once, those that wait for a pod included. null: no such limit."""


class LimitRuleSection(Section):
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
        if not amounts(self):
            raise ValueError(f"a rule without a limit: give it one of {', '.join(LIMITS)}")
        return self


class LimitsSection(Section):
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
        if twice := first_repeated(scopes):
            place, (per, *_) = twice
            text = f"this and another rule are per {per} with the same match, model and count: make them one"
            raise AtKey(("rules", str(place)), text)
        return self


class UpstreamSection(Section):
    connect_seconds: Seconds = 1.0
    """How long opening a connection to a pod may take, the gateway's own delays left out. Then another pod is tried."""
    pool_idle_seconds: Annotated[float, Field(gt=0, lt=5)] = 3.0
    """How long an unused connection to a pod is kept. vLLM closes its own after 5 s, so less than that."""
    api_key: str | None = Field(default=None, repr=False, pattern=r"^[!-~]+$")
    """What pods were given as `--api-key`. Callers' keys never reach a pod."""


class TracingSection(Section):
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
        if not has_possible_port(parts):
            raise ValueError("give the receiver a port from 1 to 65535")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("give the receiver as http://HOST:PORT, or with https")
        if parts.username is not None or parts.password is not None:
            raise ValueError("no password here: set OTEL_EXPORTER_OTLP_HEADERS in the environment")
        if parts.path.rstrip("/").endswith("/v1/traces"):
            raise ValueError("leave '/v1/traces' away: it is added")
        return endpoint


def amounts(section: DefaultLimitsSection | LimitRuleSection) -> tuple[tuple[str, int], ...]:
    """The limits that a section sets, by name."""
    told = ((name, getattr(section, name, None)) for name in LIMITS)
    return tuple((name, amount) for name, amount in told if amount is not None)
