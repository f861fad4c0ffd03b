"""A `Run` as JSON: small enough to commit, plain enough for a script, and read back to the same value.

`schema` changes when a reader of the old form would be wrong about the new one; another schema is refused, not guessed
at. A line holds a whole series, so that two runs can be laid side by side with `diff`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from loadtest.report.side import Side
from loadtest.report.where import Host

SCHEMA: Final = 1
_BROKEN_UP: Final = 4
"""How deep objects and lists are broken into lines: to a side's groups."""


class NotAReport(Exception):
    """The file is none that this version reads; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the scenario expected, and what came. `held` None: this run could not tell."""

    expected: str
    found: str
    held: bool | None


@dataclass(frozen=True, slots=True)
class Run:
    """`sides`: what was measured; the first is the one that the others are compared with."""

    scenario: str
    question: str
    text: str
    """The scenario's YAML, as it was played."""
    command: str
    """What repeats it."""
    seed: int
    seconds: float
    begun: str
    """UTC, ISO 8601."""
    commit: str
    host: Host
    versions: Mapping[str, str]
    sides: tuple[Side, ...]
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader must know beside what is told anyway."""
    schema: int = SCHEMA

    @property
    def held(self) -> bool:
        """Nothing that was expected failed."""
        return all(verdict.held is not False for verdict in self.verdicts)


def write(run: Run, path: Path) -> None:
    path.write_text(_lines(msgspec.to_builtins(run), _BROKEN_UP) + "\n", "utf-8")


def read(path: Path) -> Run:
    """Raises NotAReport."""
    try:
        told = msgspec.json.decode(path.read_bytes())
        schema = told["schema"]
    except OSError as error:
        raise NotAReport(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, TypeError, KeyError):
        raise NotAReport(f"{path}: no report of a load test; give a JSON file that `--out` wrote") from None
    if schema != SCHEMA:
        raise NotAReport(f"{path}: schema {schema}, this version reads {SCHEMA}; run the scenario again to compare")
    try:
        return msgspec.convert(told, Run)
    except msgspec.ValidationError as error:
        raise NotAReport(f"{path}: {error}; was it changed by hand?") from None


def _lines(value: Any, deep: int, indent: str = "") -> str:
    inner = indent + " "
    if isinstance(value, dict) and value and deep:
        parts = [f"{_line(name)}: {_lines(each, deep - 1, inner)}" for name, each in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, list | tuple) and deep and any(isinstance(each, dict) for each in value):
        parts = [_lines(each, deep - 1, inner) for each in value]
        opening, closing = "[", "]"
    else:
        return _line(value)
    return f"{opening}\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}{closing}"


def _line(value: Any) -> str:
    return msgspec.json.encode(value).decode()
