"""What a target is, and two ideas that several share."""

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple
from zlib import crc32


class Target(NamedTuple):
    """One parser's oracle. `seeds`: inputs that reach into it, from which all others are made."""

    run: Callable[[bytes], None]
    parsers: tuple[str, ...]
    """The modules it holds to their word."""
    seeds: Sequence[bytes]
    max_bytes: int = 4096
    tokens: Sequence[bytes] = ()
    """Words of its language, for mutations."""


def cut(data: bytes) -> Iterator[list[bytes]]:
    """The same bytes in pieces, none empty: one by one, and at places that depend on nothing but the bytes."""
    if len(data) <= 600:
        yield [data[at : at + 1] for at in range(len(data))]
    rng = Random(crc32(data))
    for _ in range(2):
        places = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(1, 6)))
        yield [data[start:end] for start, end in zip((0, *places), (*places, len(data)), strict=True) if start < end]


def first_and_rest(data: bytes) -> tuple[int, bytes]:
    """A small number that chooses, and what it chooses for."""
    return (data[0], data[1:]) if data else (0, b"")
