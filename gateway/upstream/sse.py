"""Server-sent events, framed without touching a byte (WHATWG HTML, section 9.2).

An event ends at a blank line; lines end in LF, CRLF or CR. What comes out is what went in, cut at event
boundaries: an event is given out whole, with its own line ends, once its blank line is in. Blank lines between
events are no events and are dropped. Nothing is decoded: invalid UTF-8 is the client's business.
"""

import re

_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventFramer:
    """Cuts a stream of bytes into events. Holds at most the unfinished `tail`; its owner bounds that."""

    __slots__ = ("_carriage_returns", "_searched", "tail")

    def __init__(self) -> None:
        self.tail = bytearray()
        """What waits for the end of its event."""
        self._searched = 0
        self._carriage_returns = False

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes, in order, each with its blank line."""
        if b"\r" in data:
            self._carriage_returns = True
        if (
            not self.tail
            and not self._carriage_returns
            and data.endswith(b"\n\n")
            and data.find(b"\n\n") == len(data) - 2
            and data[0] != 10
        ):
            return [data]
        self.tail += data
        return self._cut(final=False)

    def feed_run(self, data: bytes) -> bytes | None:
        """The same events in one piece: see `cut_run`. None if there are carriage returns, and `data` is to be fed."""
        if self._carriage_returns or b"\r" in data:
            return None
        tail = self.tail
        stop = data.rfind(b"\n\n") + 2
        if stop > 1:
            run = b"".join((tail, data[:stop])) if tail else data[:stop]
            tail[:] = data[stop:]
        else:
            # It may stand in the middle between both.
            tail += data
            stop = tail.rfind(b"\n\n", max(0, self._searched - 1)) + 2
            run = bytes(tail[:stop]) if stop > 1 else b""
            del tail[: len(run)]
        self._searched = len(tail)
        return run

    def close(self) -> list[bytes]:
        """The stream is over: an event whose last line end was a lone CR, undecided until now, or nothing."""
        events = self._cut(final=True)
        self.tail.clear()
        return events

    def _cut(self, final: bool) -> list[bytes]:
        tail = self.tail
        # A CR at the very end may be half of a CRLF: wait for what follows it.
        end = len(tail) if final or not tail.endswith(b"\r") else len(tail) - 1
        events = []
        start = 0
        search = max(0, self._searched - 3)
        while True:
            if self._carriage_returns:
                blank = _BLANK_LINE.search(tail, search, end)
                stop = blank.end() if blank else -1
            else:
                stop = tail.find(b"\n\n", search, end) + 2
                stop = stop if stop > 1 else -1
            if stop < 0:
                break
            event = bytes(tail[start:stop]).lstrip(b"\r\n")
            if event:
                events.append(event)
            start = search = stop
        del tail[:start]
        self._searched = max(0, end - start)
        return events


def cut_run(run: bytes) -> list[bytes]:
    """The events of a piece that begins with one, ends with one, and has no carriage return."""
    return [event.lstrip(b"\n") + b"\n\n" for event in run.split(b"\n\n")[:-1] if event.strip(b"\n")]


def payload(event: bytes) -> bytes | None:
    """An event's data, its lines joined by LF; None for an event without a `data` field (a comment)."""
    data = [
        line[5:].removeprefix(b" ") for line in _LINE_END.split(event) if line.startswith(b"data:") or line == b"data"
    ]
    return b"\n".join(data) if data else None


def is_comment(event: bytes) -> bool:
    """Whether an event holds nothing but comment lines."""
    return all(line.startswith(b":") for line in _LINE_END.split(event) if line)
