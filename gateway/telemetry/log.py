"""What the gateway says of itself on stderr: one line for each thing, and never a wait for whoever reads it.

A pipe that nobody reads is full after 64 KiB, and whoever writes to it then stands still. So lines are handed to a
thread of their own; when it falls too far behind they are dropped and counted.

A line holds what cannot end it, nor colour a terminal: everything else is escaped. Of an exception it tells the types
and the places in the code, never the text: that may quote what was worked on, such as a prompt or a key.
"""

import asyncio
import logging
import os
import queue
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TextIO

from gateway.core.words import one_line

MAX_LINE_CHARACTERS = 4096
MAX_WAITING_LINES = 1024
MAX_PLACES, MAX_CAUSES = 12, 4
CLOSE_SECONDS = 1.0

log = logging.getLogger("poolgate")


class Log(logging.Handler):
    """Takes records, and lines as they are; `out` is written to by its thread alone, and has no buffer of its own."""

    def __init__(self, out: BinaryIO, max_waiting_lines: int = MAX_WAITING_LINES) -> None:
        super().__init__()
        self._out = out
        self.dropped = 0
        """Lines lost since start because the reader of stderr was too slow."""
        self._told = 0
        self._lines: queue.Queue[str | None] = queue.Queue(max_waiting_lines)
        self._writer = threading.Thread(target=self._write_lines, name="log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record. Never waits, never raises."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError, KeyError):
            # Its words and its values do not go together.
            text = str(record.msg)
        error = record.exc_info[1] if record.exc_info else None
        told = "" if error is None else f": {origin(error)}"
        # The place matters more than the end of long words.
        words = one_line(text, MAX_LINE_CHARACTERS - len(told) if len(told) < MAX_LINE_CHARACTERS else 0)
        self.say(f"{record.levelname} {record.name}: {words}{one_line(told, MAX_LINE_CHARACTERS)}")

    def say(self, line: str) -> None:
        """Write a line as it is. Never waits."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is left; waits for the writer, two seconds at most."""
        if self._writer.is_alive():
            with suppress(queue.Full):
                self._lines.put(None, timeout=CLOSE_SECONDS)
            self._writer.join(CLOSE_SECONDS)
        super().close()

    def _write_lines(self) -> None:
        while (line := self._lines.get()) is not None:
            if not self._wrote(line):
                self.dropped += 1
            elif self.dropped != self._told:
                self._told = self.dropped
                self._wrote(f"WARNING poolgate: whoever reads stderr is too slow: {self._told} lines were lost so far")

    def _wrote(self, line: str) -> bool:
        try:
            write_whole(self._out, f"{line}\n".encode("utf-8", "backslashreplace"))
        except (OSError, ValueError):
            # Nobody reads any more. Requests are served all the same.
            return False
        return True


def raw(file: TextIO) -> BinaryIO:
    """The file below a text file, without the buffers between. A thread that stands still in a buffer's write has its
    lock, and the process would die of that at its end."""
    file.flush()
    # With PYTHONUNBUFFERED there is none between.
    below: BinaryIO = getattr(file.buffer, "raw", file.buffer)
    return below


def write_whole(out: BinaryIO, content: bytes) -> None:
    """Write all of it, to a file without a buffer too: a signal may end a write in its middle.

    Raises `OSError`, also where nothing can be written now and the file does not wait.
    """
    left = memoryview(content)
    while left:
        written = out.write(left)
        if not written:
            raise BlockingIOError
        left = left[written:]


@contextmanager
def logging_to(out: BinaryIO) -> Iterator[Log]:
    """Everything that this process says by `logging`, as a warning, or as an error that nobody caught, goes there.

    The process's own stderr is not written to meanwhile.
    """
    ours, root = Log(out), logging.getLogger()
    before, root.handlers = root.handlers, [ours]
    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook, threading.excepthook = _unraisable, _ended_by
    logging.captureWarnings(True)
    try:
        yield ours
    finally:
        logging.captureWarnings(False)
        sys.unraisablehook, threading.excepthook = hooks
        root.handlers = before
        ours.close()


def uncaught(_: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """A loop's exception handler. What it is told quotes arguments and addresses, behind the first bracket."""
    message = re.split(r"[(<{\[]", str(context.get("message")), maxsplit=1)[0].strip()
    error = context.get("exception")
    log.error("%s", message, exc_info=error if isinstance(error, BaseException) else None)


def _unraisable(told: "sys.UnraisableHookArgs") -> None:
    log.error("an error could not be raised", exc_info=told.exc_value)


def _ended_by(told: threading.ExceptHookArgs) -> None:
    log.error("a thread has ended", exc_info=told.exc_value)


def origin(error: BaseException) -> str:
    """An exception's type and the places that it came through, the innermost last; then those of what it came of.

    The word that begins it is the one that people look for.
    """
    told: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(told) < MAX_CAUSES:
        told.append(_told(seen))
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "Traceback: " + "; after ".join(told)


def _told(error: BaseException) -> str:
    kind = type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        # The system's own words; those of the exception name addresses.
        kind += f" ({os.strerror(error.errno)})"
    if isinstance(error, BaseExceptionGroup):
        kind += f" of {', '.join(_told(each) for each in error.exceptions[:MAX_CAUSES])}"
    places = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{os.path.basename(code.co_filename)}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return f"{kind} at {' > '.join(places[-MAX_PLACES:])}" if places else kind
