"""A page as a tree of elements with ids, and what of it differs from an older one.

A leaf is sent whole when it differs. A group is an element that holds other parts and nothing else; which parts it
holds, and in what order, is sent as their ids, and only those that were not there before come with their HTML. So a new
line in a list costs one line, and what the reader has opened, focused or scrolled to stays.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Leaf:
    """One element with this id."""

    id: str
    html: str


@dataclass(frozen=True, slots=True)
class Group:
    """One element with this id whose children are parts. Its own tags never change."""

    id: str
    start_tag: str
    parts: "tuple[Part, ...]"
    end_tag: str

    @property
    def html(self) -> str:
        return f"{self.start_tag}{''.join(part.html for part in self.parts)}{self.end_tag}"


Part: TypeAlias = Leaf | Group
Change: TypeAlias = tuple[str, str | list[str]]
"""An element's id, and its HTML; or of a group its HTML without its parts, and then the ids of all of them."""


def changes(old: Part | None, new: Part) -> Iterator[Change]:
    """What makes the old part the new one of the same id; of None, whatever stands in its place, or nothing does.

    A group comes before its parts.
    """
    if isinstance(new, Leaf):
        if old != new:
            yield new.id, new.html
        return
    before = {part.id: part for part in old.parts} if isinstance(old, Group) else {}
    ids = [part.id for part in new.parts]
    if old is None or list(before) != ids:
        yield new.id, [f"{new.start_tag}{new.end_tag}", *ids]
    for part in new.parts:
        yield from changes(before.get(part.id), part)
