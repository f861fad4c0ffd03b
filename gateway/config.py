"""The configuration: one YAML file, validated whole, every error with its line and what to do.

Precedence: flags, then `POOLGATE_SECTION__KEY` in the environment, then the file, then the defaults. Only variables
with a double underscore are configuration: Kubernetes' service links make others. Values may be `${VAR}`,
`${VAR:-default}` or `file:/path` (a secret's mount, read once).

Only `app` and `cli` import this module; everyone else receives plain values.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gateway.core.caller import Tenant
from gateway.core.fleet import Deadlines, Pool
from gateway.discovery.static import StaticPod
from gateway.limits.keys import KeyEntry

ENVIRONMENT_PREFIX = "POOLGATE_"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=0, le=65_535)]


class ConfigError(Exception):
    """The configuration cannot be used; the text has one line per fault, each with file, line, key and mend."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=_Section)


class ServerSection(_Section):
    host: str = "0.0.0.0"  # noqa: S104  # the public port: in a pod, from everywhere
    port: Port = 8000
    ops_host: str = "127.0.0.1"
    ops_port: Port = 9090
    max_body_bytes: int = Field(default=8_388_608, ge=1024, le=1 << 30)
    drain_seconds: float = Field(default=300.0, ge=0, le=86_400)


class PodSection(_Section):
    url: str
    pool: str = Field(min_length=1, max_length=63)
    name: str | None = None

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
            raise ValueError("give the pod as http://HOST:PORT, without a path")
        return url


class DiscoverySection(_Section):
    mode: Literal["static"] = "static"
    pods: tuple[PodSection, ...] = ()


class PoolSection(_Section):
    models: tuple[str, ...] = ("*",)
    ttft_seconds: Seconds = 120.0
    idle_seconds: Seconds = 60.0
    response_seconds: Seconds = 600.0
    stream_seconds: Seconds = 3600.0


class AuthSection(_Section):
    mode: Literal["keys", "none"] = "keys"
    keys_file: Path = Path("/etc/poolgate/keys.yaml")


class UpstreamSection(_Section):
    connect_seconds: Seconds = 1.0
    pool_idle_seconds: Annotated[float, Field(gt=0, lt=5)] = 3.0
    api_key: str | None = Field(default=None, repr=False)


class Config(_Section):
    """The whole configuration, as validated."""

    server: ServerSection = ServerSection()
    discovery: DiscoverySection = DiscoverySection()
    pools: dict[str, PoolSection] = Field(default_factory=dict)
    auth: AuthSection = AuthSection()
    upstream: UpstreamSection = UpstreamSection()

    @model_validator(mode="after")
    def _check_pod_names(self) -> "Config":
        names = [pod.name for pod in self.static_pods()]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"discovery.pods: two pods are called {min(twice)!r}: give each its own name")
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

    def pool_values(self) -> dict[str, Pool]:
        """The pools that have settings, as plain values."""
        return {
            name: Pool(
                name,
                pool.models,
                Deadlines(pool.ttft_seconds, pool.idle_seconds, pool.response_seconds, pool.stream_seconds),
            )
            for name, pool in self.pools.items()
        }


class _KeySection(_Section):
    id: str = Field(min_length=1, max_length=64)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    team: str = Field(min_length=1, max_length=64)
    models: tuple[str, ...] = ("*",)
    expires: datetime | None = None
    disabled: bool = False
    debug: bool = False
    allow_fields: tuple[str, ...] = ()
    note: str = ""
    # Part of the file's format, but not acted on by this version: only their "off" values are accepted, so that no
    # one believes in a limit that is not there.
    requests_per_minute: None = None
    tokens_per_minute: None = None
    concurrent: None = None
    priority: Literal[0] = 0
    forwards_user: Literal[False] = False


class _KeysFile(_Section):
    keys: tuple[_KeySection, ...] = ()


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


def load_keys(file: Path) -> tuple[KeyEntry, ...]:
    """The entries of a keys file.

    Raises `ConfigError`.
    """
    document = _read(file, {})
    parsed = _validate(_KeysFile, document.value or {}, document)
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
            expires_at=None if expires is None else expires.timestamp(),
        )
        entries.append(KeyEntry(key.sha256, tenant, key.disabled))
    return tuple(entries)


def add_key(file: Path, entry: Mapping[str, Any]) -> None:
    """Append an entry to a keys file, which is made if it does not exist, readable by its owner only.

    Raises `ConfigError` when the file there is not a keys file.
    """
    present: list[Any] = []
    if file.exists():
        load_keys(file)
        present = list((yaml.safe_load(file.read_text("utf-8")) or {}).get("keys") or [])
    text = yaml.safe_dump({"keys": [*present, dict(entry)]}, sort_keys=False, allow_unicode=True)
    beside = file.with_name(f".{file.name}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as out:
        out.write(text)
    beside.replace(file)


def _read(file: Path, environment: Mapping[str, str]) -> _Document:
    try:
        text = file.read_text("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        raise ConfigError(f"{file}:{line}: is not valid YAML: {getattr(error, 'problem', None) or error}") from None
    lines: dict[tuple[str, ...], int] = {}
    _note_lines(node, (), lines, str(file))
    document = _Document(str(file), yaml.safe_load(text), lines)
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
