"""A configuration as YAML in which each value says where it comes from.

Every value is written as JSON, which is YAML too, in one line: so it can be read at a glance, and by a machine.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Path = tuple[str, ...]

INDENT = "  "
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
"""What YAML does not read as a text."""


def leaves(told: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each value, and where it is. A list is one value."""
    for name, value in told.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def lines(told: Mapping[str, Any], source_of: Callable[[Path], str], path: Path = ()) -> Iterator[str]:
    """The text."""
    for name, value in told.items():
        start = f"{INDENT * len(path)}{key(name)}:"
        if isinstance(value, Mapping) and value:
            yield start
            yield from lines(value, source_of, (*path, name))
        else:
            yield f"{start} {scalar(value)}  # {printable(source_of((*path, name)))}"


def key(name: str) -> str:
    """As YAML reads it back."""
    plain = _PLAIN_KEY.fullmatch(name) and name.lower() not in _WORDS
    return name if plain else scalar(name)


def scalar(value: Any) -> str:
    """A value in one line."""
    return printable(json.dumps(value, ensure_ascii=False))


def printable(text: str) -> str:
    """What steers a terminal is escaped, as strings of JSON and YAML have it."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    code = ord(letter)
    # Beyond four digits only YAML has an escape; there is nothing that steers there.
    return f"\\u{code:04x}" if code < 0x10000 else letter
