"""`@scene(...)`: a fault, what must happen, and the defences without which it does not.

A scene is an async function of a `Stage`; its sentence is the promise it keeps. It is played twice or more: as it is,
when it must hold, and once without each of its defences, when it must fail, and for the reason given.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from gateway.parts import Parts
from tests.scenes.promises import Promise
from tests.scenes.rows import ROWS, SECTIONS

if TYPE_CHECKING:
    from tests.scenes.stage import Stage


class SceneFailed(AssertionError):
    """What was promised did not happen; the text says what was expected, and what came."""


def expect(holds: object, told: str) -> None:
    """Raises `SceneFailed` with this text unless it is so."""
    if not holds:
        raise SceneFailed(told)


@dataclass(frozen=True)
class Defence:
    """What the gateway does against a fault, and how to build one that does not."""

    name: str
    sentence: str
    removed: Callable[[Parts], Parts]
    """The same parts without it."""


@dataclass(frozen=True)
class Without:
    """Without this defence the scene fails, with a text in which `red` (a regular expression) is found."""

    defence: Defence
    red: str


@dataclass(frozen=True)
class Scene:
    """See the module's text."""

    name: str
    """The row's, F77; where the row has several scenes, with a letter behind it: F77b."""
    sentence: str
    promise: Promise
    play: "Callable[[Stage], Awaitable[None]]"
    without: tuple[Without, ...] = ()

    @property
    def row(self) -> int:
        return int(re.sub(r"\D", "", self.name))

    @property
    def id(self) -> str:
        return f"{self.name}-{self.play.__name__}"


def scene(
    name: str,
    sentence: str,
    *,
    promise: Promise,
    without: tuple[Without, ...] = (),
) -> "Callable[[Callable[[Stage], Awaitable[None]]], Scene]":
    """Make a scene of a function."""
    if not re.fullmatch(r"F\d+[a-z]?", name) or int(re.sub(r"\D", "", name)) not in ROWS:
        raise ValueError(f"{name}: no row of tests/scenes/rows.py")

    def made(play: "Callable[[Stage], Awaitable[None]]") -> Scene:
        return Scene(name, sentence, promise, play, without)

    return made


def scenes() -> tuple[Scene, ...]:
    """All there are, in the order of the rows."""
    found: list[Scene] = []
    for section in SECTIONS:
        module = import_module(f"tests.scenes.{section.module}")
        own = [value for value in vars(module).values() if isinstance(value, Scene)]
        found += sorted(own, key=lambda each: (each.row, each.name))
    return tuple(found)
