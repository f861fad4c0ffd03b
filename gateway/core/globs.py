"""Whether two globs of model names overlap, as `fnmatchcase` reads them: `*`, `?`, `[seq]`, `[!seq]`.

Two globs are two small automata whose states are the places between their parts. We search the pairs of places that
one name can reach in both; a pair at both ends gives the name. What one part matches is left to
`fnmatchcase` itself, so there is no second reading of what stands in brackets.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import combinations, product
from typing import NamedTuple

STAR = "*"
_LAST = 0x10FFFF


class Overlap(NamedTuple):
    """Two pools with a glob each, and a name that both globs match."""

    pool: str
    glob: str
    other_pool: str
    other_glob: str
    name: str


def overlaps(globs: Mapping[str, tuple[str, ...]]) -> tuple[Overlap, ...]:
    """Every pair of overlapping globs that two different pools (by name) have."""
    return tuple(
        Overlap(pool, glob, other_pool, other_glob, name)
        for (pool, ours), (other_pool, theirs) in combinations(globs.items(), 2)
        for glob, other_glob in product(ours, theirs)
        if (name := name_in_both(glob, other_glob)) is not None
    )


def name_in_both(one: str, other: str) -> str | None:
    """A name that both globs match; None when there is none. Exact, and takes the product of their lengths."""
    first, second = tuple(parts_of(one)), tuple(parts_of(other))
    reached = {(0, 0): ""}
    ahead = deque(reached)
    while ahead:
        place = ahead.popleft()
        if place == (len(first), len(second)):
            return reached[place]
        for letter, further in _steps(first, second, *place):
            if further not in reached:
                reached[further] = reached[place] + letter
                ahead.append(further)
    return None


def parts_of(glob: str) -> Iterator[str]:
    """A glob's parts: stars, and parts that match one character each. A `[` that is never closed is a letter."""
    at = 0
    while at < len(glob):
        end = at + 1
        if glob[at] == "[":
            # A `]` that stands first is a letter of the set, not its end.
            first = at + 2 if glob[at + 1 : at + 2] == "!" else at + 1
            end = glob.find("]", first + 1) + 1 or end
        yield glob[at:end]
        at = end


def _steps(
    first: tuple[str, ...], second: tuple[str, ...], at: int, other_at: int
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Where a name at these places of both globs can go, and by which letter (none: a star is left)."""
    one = first[at] if at < len(first) else None
    other = second[other_at] if other_at < len(second) else None
    if one == STAR:
        yield "", (at + 1, other_at)
    if other == STAR:
        yield "", (at, other_at + 1)
    if one is None or other is None or one == other == STAR:
        return
    letter = _letter_in_both(one, other)
    if letter is not None:
        yield letter, (at + (one != STAR), other_at + (other != STAR))


def _letter_in_both(one: str, other: str) -> str | None:
    """A character that both parts match.

    A part matches ranges of characters, and the lowest one that two parts share begins a range of one of them: it is
    the first character of all, one that is written there, or the next after one that is written there.
    """
    written = [ord(letter) for letter in one + other]
    beginnings = (ord("x"), *written, *(code + 1 for code in written if code < _LAST), 0)
    letters = (chr(code) for code in beginnings)
    return next((letter for letter in letters if fnmatchcase(letter, one) and fnmatchcase(letter, other)), None)
