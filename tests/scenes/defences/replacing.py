"""How a gateway is built that lacks one defence: with other parts, parts with another attribute, or other bounds."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from gateway.parts import Parts

K = TypeVar("K")


def having(**parts: Any) -> Callable[[Parts], Parts]:
    """The same parts, but for these."""
    return lambda usual: usual._replace(**parts)


def but(kind: type[K], **attributes: object) -> type[K]:
    """The same class, but for these of its attributes."""
    made: type[K] = type(kind.__name__, (kind,), attributes)
    return made


def bounded(**bounds: Any) -> Callable[[Parts], Parts]:
    """The same parts, but for these of the edge's bounds."""
    return lambda usual: usual._replace(bounds=replace(usual.bounds, **bounds))
