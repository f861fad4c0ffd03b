"""How a file, the environment and flags become one configuration, and where each value of it comes from.

Precedence: flags, then `POOLGATE_SECTION__KEY` in the environment, then the file, then the defaults. The whole is
validated at once, and every fault told with its line, or its variable or flag, and what to do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from gateway.config.document import Document, read
from gateway.config.environment import settings_in
from gateway.config.faults import ConfigError, Fault, KeyPath
from gateway.config.validating import validated
from gateway.config.variables import filled
from gateway.config.whole import Config


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration, and where each value of it comes from."""

    config: Config
    _document: Document

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
    variables = [] if file_alone else list(settings_in(environment))
    given = [(tuple(flag.split(".")), value) for flag, value in (flags or {}).items() if value is not None]
    if file is not None:
        document = filled(
            read(file),
            {} if file_alone else environment,
            file_alone=file_alone,
            replaced=[*(path for _, path, _ in variables), *(path for path, _ in given)],
        )
    else:
        document = Document("(defaults)", {}, {})
    if not isinstance(document.value, dict):
        raise ConfigError([Fault(document.file, 1, "", "the file must hold sections such as server: and discovery:")])
    values: dict[str, Any] = dict(document.value)
    faults, told_by = list(document.faults), {}
    for name, path, text in variables:
        told_by[path] = name
        try:
            _set(values, path, yaml.safe_load(text))
        except (yaml.YAMLError, ValueError):
            faults.append(Fault(name, None, ".".join(path), "its value is not valid YAML: put it in quotes"))
    for path, value in given:
        told_by[path] = f"--{path[-1].replace('_', '-')}"
        _set(values, path, value)
    document = replace(document, faults=tuple(faults), told_by=told_by)
    return Settings(validated(Config, values, document), document)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file, with the flags and the environment it is read with: read again, it may give another configuration."""

    file: Path
    environment: Mapping[str, str]
    flags: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Config:
        """Raises `ConfigError`."""
        return load_config(self.file, self.environment, self.flags)


def _set(values: dict[str, Any], path: KeyPath, value: Any) -> None:
    for key in path[:-1]:
        below = values.get(key)
        values[key] = dict(below) if isinstance(below, dict) else {}
        values = values[key]
    values[path[-1]] = value
