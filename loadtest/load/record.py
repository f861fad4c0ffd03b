"""What came of one request: a `Record`, written while its answer comes in and never after.

All times are seconds from the start of the run, on one monotonic clock. What is *measured* from them
(TTFT, ITL, goodput) is the report's question; here are only the moments themselves.
"""

from array import array
from dataclasses import dataclass, field
from enum import StrEnum

from loadtest.load.schedule import Planned


class Ending(StrEnum):
    """How an exchange ended; each request has exactly one."""

    WHOLE = "whole"  # the answer said it was over, and the HTTP message with it
    ERROR = "error"  # status 400 or above
    TOLD = "told"  # a stream that had begun ended with an error event
    CUT = "cut"  # the connection or the stream ended before the answer did
    REFUSED = "refused"  # no connection, so nothing was asked
    LEFT = "left"  # we went away, as planned
    TIMEOUT = "timeout"  # it was still open when the client's patience was


def _no_times() -> "array[float]":
    return array("d")


@dataclass(slots=True)
class Record:
    planned: Planned
    intended_at: float  # closed loop: when the worker was free
    sent_at: float  # the bytes went to the socket; with no connection, when that was known
    status: int = 0  # 0: no answer
    first_at: float | None = None  # of a stream the first content event, else the first byte of the body
    token_times: "array[float]" = field(default_factory=_no_times)  # of each content event
    ended_at: float | None = None
    tokens: int = 0  # content events seen
    prompt_tokens: int | None = None  # this and the next two by the answer's own usage, if it says
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    pod: str = ""  # `x-poolgate-pod`, where the key may see it
    ending: Ending = Ending.REFUSED  # until something better is known
    code: str = ""  # of the error in the body or the event
    retry_after: float | None = None  # seconds
    taken_at: float | None = None  # the player took it up: later than intended is the generator's own lateness

    @property
    def own_lateness(self) -> float:
        """Seconds. From `taken_at` to `sent_at` a connection was made, which is the server's part."""
        return max(0.0, (self.sent_at if self.taken_at is None else self.taken_at) - self.intended_at)
