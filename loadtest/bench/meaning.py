"""The client for targets that write answers anew: not the bytes are looked at, but what they say.

Such a proxy drops fields it does not know, makes a chunk of its own of the finish reason, or adds an empty
one. So of an answer these are checked: the text, the finish reason, the count of tokens; of a stream that
every token came, in its order, each by itself, as many as the pod says it sent, then one finish reason, then
`[DONE]`, and the proper end of the HTTP message.
"""

import time
from typing import Any, Final

import msgspec

from loadtest.bench.client import ClosedLoop, Repeated, Streamed, StreamLoad, Timed, TimedLoad
from loadtest.bench.wire import COMPLETION, DONE, EVENT_END, NUMBER_WIDTH

_decoded: Final = msgspec.json.Decoder().decode
_DATA: Final = b"data: "


def meant(body: bytes) -> tuple[object, ...] | None:
    """What an answer that is not streamed says; None if it says nothing."""
    try:
        completion: Any = _decoded(body)
        [choice] = completion["choices"]
        return choice["message"]["content"], choice["finish_reason"], completion["usage"]["total_tokens"]
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        return None


_MEANT: Final = meant(COMPLETION)


class ClosedLoopByMeaning(ClosedLoop):
    """One connection that asks again as soon as its answer says what the pod said."""

    @staticmethod
    def is_whole(body: bytes) -> bool:
        return meant(body) == _MEANT


class StreamedByMeaning(Streamed):
    """One connection with one stream, whose stages are those of `Streamed`."""

    def __init__(self, load: StreamLoad, request: bytes) -> None:
        super().__init__(load, request)
        self._last = False

    def on_body(self, data: bytes) -> None:
        now_us = time.monotonic_ns() // 1000
        *events, self._tail = (self._tail + data).split(EVENT_END)
        for event in events:
            if event == DONE and self._stage == "done":
                self._stage = "end"
                continue
            try:
                if self._stage == "end":
                    raise ValueError("something after [DONE]")
                for choice in _decoded(event.removeprefix(_DATA))["choices"]:
                    self._said(choice["delta"].get("content") or "", choice.get("finish_reason"), now_us)
            except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError):
                status = self._parser.get_status_code()
                self._load.fail(f"status {status}, instead of {self._stage}: {event[:300]!r}")

    def _said(self, content: str, finish_reason: str | None, now_us: int) -> None:
        if self._stage == "role":
            self._begins()
        if content:
            self._token(content, now_us)
        if finish_reason is not None:
            if not self._last or finish_reason != "length" or self._stage != "token":
                raise ValueError(finish_reason)
            self._stage = "done"

    def _token(self, content: str, now_us: int) -> None:
        if len(content) != NUMBER_WIDTH or self._last:
            raise ValueError(content)
        number = int(content)
        self._count()
        if number >= 1_000_000:  # an instant, and a stream's last token is how many there were
            self._load.transit_us.append(now_us - number)
        elif number == self._tokens:
            self._last = True
        else:
            self._load.fail(f"{self._tokens} tokens came of {number} sent")


class RepeatedByMeaning(Repeated, StreamedByMeaning):
    """One connection that asks for the next stream as soon as one has said all."""

    def _ask(self) -> None:
        self._last = False
        super()._ask()


class TimedByMeaning(Timed, StreamedByMeaning):
    """One connection of an open loop."""

    def __init__(self, load: TimedLoad, request: bytes) -> None:
        super().__init__(load, request)

    def _ask(self) -> None:
        self._last = False
        super()._ask()
