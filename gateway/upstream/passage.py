"""The short way of a stream's tokens: what needs no reading is sent on as it came.

Nearly every read of a stream brings one HTTP chunk with one token event, in the pod's usual form and, but for its text,
like the one before. The client gets HTTP chunks as well, so such a read is written as it is: neither parsed nor framed
anew. Each byte of it is looked at all the same. Its size line must be the one that a chunk of this length has; the
event must begin as the last one did; and a pattern admits a text and what stands behind it in an event that does not
end the answer, and no more. So nothing can hide there: no second chunk or event, no end mark, no finish reason.

Who reads the events offers a passage when it has read one that is plain. The connection takes the offer if that read
was one chunk and nothing else, for then the next read begins with a chunk. Whatever is not plain ends the passage and
is read as ever.
"""

from collections.abc import Callable
from typing import Final, Protocol

from gateway.upstream.usage import EventReader

LARGEST_PASSED: Final = 1024
"""Bytes of a whole chunk; a larger one is read."""


class Outlet(Protocol):
    """Where the chunks go."""

    write_chunk: Callable[[bytes], None] | None


class Passage:
    """Of one stream: how its events begin, what admits the rest of a chunk, who counts them, and where they go."""

    __slots__ = ("is_rest", "opening", "outlet", "reader")

    def __init__(self, opening: bytes, reader: EventReader, outlet: Outlet) -> None:
        self.opening = opening
        self.is_rest = reader.plain.is_rest_of_chunk
        self.reader = reader
        self.outlet = outlet


def _size_lines() -> tuple[bytes, ...]:
    lines = [_NO_SIZE_LINE] * (LARGEST_PASSED + 1)
    for size in range(1, LARGEST_PASSED):
        line = b"%x\r\n" % size
        if len(line) + size + 2 <= LARGEST_PASSED:
            lines[len(line) + size + 2] = line
    return tuple(lines)


_NO_SIZE_LINE: Final = b"\n"
SIZE_LINES: Final = _size_lines()
"""By the length of a whole chunk: the line it begins with, or what none begins with."""


def is_one_chunk(read: bytes, body: bytes) -> bool:
    """Whether a read was one whole chunk, and nothing is left over.

    `body`: all that the parser found in it, which begins with no size line (a plain event does not). The size line at
    the beginning was one, then, not a part of a body; and what is neither it nor the body is the chunk's line end.
    """
    if len(read) > LARGEST_PASSED:
        return False
    line = SIZE_LINES[len(read)]
    return read.startswith(line) and len(body) == len(read) - len(line) - 2
