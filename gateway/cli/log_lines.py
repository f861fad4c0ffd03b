"""The lines of log files, from disk or stdin, gzipped or not, without ever holding a whole file."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import BinaryIO

STDIN = "-"
MAX_LINE_BYTES = 65_536
"""An access line takes a tenth of it, whatever has wrapped it."""
UNPACKED_BYTES = 1 << 18
_GZIP = b"\x1f\x8b"


class Unreadable(Exception):
    """A file that cannot be read; its text says which, and why."""


def lines_of(name: str) -> Iterator[bytes]:
    """The lines of a file, or of stdin for `-`, with their line ends. A line too long to be held comes out empty.

    Gzip is known by its first bytes, and not by a name: logs are rotated under any, and come through pipes.
    Raises `Unreadable`, also in mid-file: what was read so far is then not all there is.
    """
    try:
        with ExitStack() as stack:
            is_stdin = name == STDIN
            file = stack.enter_context(open(0 if is_stdin else name, "rb", closefd=not is_stdin))
            if file.peek(len(_GZIP)).startswith(_GZIP):
                unpacked = stack.enter_context(gzip.GzipFile(fileobj=file))
                # GzipFile finds its line ends in Python.
                file = stack.enter_context(io.BufferedReader(unpacked, UNPACKED_BYTES))
            yield from _bounded(file)
    except (OSError, EOFError, zlib.error) as error:
        told = "stdin" if is_stdin else name
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise Unreadable(f"cannot read {told}: {reason}") from None


def _bounded(file: BinaryIO) -> Iterator[bytes]:
    read = partial(file.readline, MAX_LINE_BYTES)
    for line in iter(read, b""):
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = read()
        yield b""
