"""Everything a run sends, settled before the first byte: who asks what, when, and when they leave.

A schedule that is made on the fly is made by the machine under test: a slow answer delays the next request,
and the slowness hides itself. So each request is built whole before the start, with the second it is meant
for; the player only has to look at the clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Planned:
    """One request, ready to send. Times are seconds; `at` counts from the start of the run."""

    number: int  # 0.. in order of sending
    at: float | None  # the intended send time; None in a closed loop: as soon as a worker is free
    step: int  # which of the schedule's steps it belongs to
    kind: str  # the name of the mix's entry
    key: str  # the name of the caller; the stand knows their API key
    path: str
    body: bytes  # the whole JSON body
    stream: bool
    prompt_tokens: int  # about; see prompts.py
    max_tokens: int
    leave_after: float | None = None  # the client leaves so long after sending; None: never
    leave_after_tokens: int | None = None  # the client leaves after so many tokens; None: never


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of the run at one rate (requests per second; None in a closed loop)."""

    name: str
    begin: float
    end: float
    rate: float | None


@dataclass(frozen=True, slots=True)
class Schedule:
    requests: Sequence[Planned]
    steps: Sequence[Step]
    workers: int | None  # how many ask at once in a closed loop; None: open loop
    seconds: float  # nothing is sent after this; an answer may still run
