"""The keys of a scenario's file, taken one by one; what nobody took is a mistake, and told with the mend."""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, Self

SHOWN = 60
"""Characters of a wrong value that are repeated."""


class BadScenario(ValueError):
    """A scenario that cannot be used. The text names the file, the key and what to do."""


class Section:
    """Keys of the file that belong together. Each is taken by its name; one that nobody took is a mistake."""

    def __init__(self, file: str, path: str, value: Any) -> None:
        self.file = file
        self.path = path
        self._taken: list[str] = []
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            self.fail("", f"must hold keys, not {shown(value)}")
        self._values: dict[str, Any] = value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is None:
            for key in self._values:
                if key not in self._taken:
                    self.fail(key, f"unknown key{near(key, self._taken)}; there are {', '.join(self._taken)}")

    def __contains__(self, key: str) -> bool:
        self._take(key)
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def fail(self, key: str, text: str) -> NoReturn:
        if key and key not in self._values:
            text += near(key, [*(self._values.keys() - self._taken)], "is it meant by")
        where = ".".join(part for part in (self.path, key) if part)
        raise BadScenario(": ".join(part for part in (self.file, where, text) if part))

    def section(self, key: str) -> "Section":
        """Empty, if the key is not there."""
        return Section(self.file, self._below(key), self._take(key, {}))

    def sections(self, key: str) -> Iterator["Section"]:
        """Of a list; none, if the key is not there."""
        for place, value in enumerate(self.sequence(key, ())):
            yield Section(self.file, f"{self._below(key)}[{place}]", value)

    def sequence(self, key: str, default: Sequence[Any] | None = None) -> Sequence[Any]:
        value = self._take(key, default)
        if not isinstance(value, list | tuple):
            self.fail(key, f"must be a list, such as [1, 2], not {shown(value)}")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        """As it stands; empty, if it is not there."""
        value = self._take(key, {})
        if not isinstance(value, dict) or not all(isinstance(below, str) for below in value):
            self.fail(key, f"must hold keys, not {shown(value)}")
        return value

    def text(self, key: str, default: str | None = None, among: Sequence[str] = ()) -> str:
        value = self._take(key, default)
        if not isinstance(value, str) or not value.strip():
            self.fail(key, f"must be a text, not {shown(value)}")
        if among and value not in among:
            self.fail(key, f"{shown(value)} is none of {', '.join(among)}{near(value, among)}")
        return value.strip()

    def switch(self, key: str, default: bool) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            self.fail(key, f"must be true or false, not {shown(value)}")
        return value

    def number(self, key: str, default: float | None = None, *, above: float = 0.0, at_most: float = math.inf) -> float:
        """Greater than `above`."""
        return self._number(
            key, self._take(key, default), lambda number: number > above, f"more than {above:g}", at_most
        )

    def amount(self, key: str, default: float | None = None, *, at_most: float = math.inf) -> float:
        """0 or more."""
        return self._number(key, self._take(key, default), lambda number: number >= 0, "0 or more", at_most)

    def count(self, key: str, default: int | None = None, *, at_least: int = 1, at_most: int = 1_000_000) -> int:
        value = self._take(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= at_most:
            self.fail(key, f"must be a whole number from {at_least} to {at_most}, not {shown(value)}")
        return value

    def maybe(self, key: str) -> float | None:
        """A number above 0, or None if the key is not there."""
        return self.number(key) if key in self else None

    def amounts(self, key: str, at_least: int, at_most: int) -> tuple[float, ...]:
        values = self.sequence(key)
        if not at_least <= len(values) <= at_most:
            many = f"{at_least}" if at_least == at_most else f"{at_least} to {at_most}"
            self.fail(key, f"must list {many} numbers, not {len(values)}")
        return tuple(self._number(key, value, lambda number: number >= 0, "0 or more", math.inf) for value in values)

    def _number(self, key: str, value: Any, fits: Callable[[float], bool], wanted: str, at_most: float) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not fits(value) or value > at_most:
            bound = "" if at_most == math.inf else f" and at most {at_most:g}"
            self.fail(key, f"must be a number, {wanted}{bound}, not {shown(value)}")
        return float(value)

    def sole(self, key: str) -> Any:
        """As it stands; nothing, if it is not there."""
        return self._take(key)

    def _take(self, key: str, default: Any = None) -> Any:
        if key not in self._taken:
            self._taken.append(key)
        return self._values.get(key, default)

    def _below(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def near(word: str, words: Sequence[str], ask: str = "do you mean") -> str:
    """The word that was meant, perhaps; else nothing."""
    matches = difflib.get_close_matches(word, words, 1)
    return f" ({ask} '{matches[0]}'?)" if matches else ""


def shown(value: Any) -> str:
    if value is None:
        return "nothing"
    told = repr(value)
    return told if len(told) <= SHOWN else f"{told[:SHOWN]}…"
