"""Values made in C: pure."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

V = TypeVar("V", bound=tuple[Any, ...])
T = TypeVar("T")


def maker(kind: type[V]) -> Callable[[tuple[Any, ...]], V]:
    """What makes a named tuple of the plain one that has all of its fields, in their order.

    Its own constructor is a frame of Python, which costs three times as much. For what is made with every request.
    """
    return partial(tuple.__new__, kind)


def blank(kind: type[T]) -> Callable[[], T]:
    """What makes an object without its constructor, which is a frame of Python as well. Whoever makes it sets what the
    constructor would."""
    return partial(object.__new__, kind)
