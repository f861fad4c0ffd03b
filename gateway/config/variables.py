"""`${VAR}`, `${VAR:-default}` and `file:/path` (a secret's mount, read once) in a file's values.

What stood there is remembered by its place: no fault may repeat it, since it may be a secret. A value that cannot be
known stays as it is written, and nothing else is said of it.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.config.document import Document
from gateway.config.faults import KeyPath, close_to

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def filled(
    document: Document,
    environment: Mapping[str, str],
    *,
    file_alone: bool = False,
    replaced: Collection[KeyPath] = (),
) -> Document:
    """The document with all of them in their places. With `file_alone` a variable without a default, and a secret's
    file, are no faults but not known. What stands at the places `replaced` is not looked at: it is not what holds."""
    return _Filling(document, environment, file_alone, replaced).filled()


class _Filling:
    """Puts variables and secret files in their places."""

    def __init__(
        self,
        document: Document,
        environment: Mapping[str, str],
        file_alone: bool,
        replaced: Collection[KeyPath],
    ) -> None:
        self._document = document
        self._environment = environment
        self._file_alone = file_alone
        self._replaced = frozenset(replaced)
        self._faults = list(document.faults)
        self._filled: set[KeyPath] = set()
        self._unknown: set[KeyPath] = set()

    def filled(self) -> Document:
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
        if path in self._replaced:
            return value
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
