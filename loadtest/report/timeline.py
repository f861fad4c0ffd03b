"""What happened second by second: what was sent, how it ended, how long first tokens took, how much was open.

A fault shows here or nowhere: a percentile over a whole run hides the three bad seconds that a killed pod costs.
Requests count where they were meant to be sent, so that those that a fault made wait stand below the fault; ends and
tokens count where they happened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtest.load.record import Ending, Record
from loadtest.percentiles import percentile
from loadtest.report.measures import is_limited, rounded, ttft

WIDTHS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
MOST_SLOTS: Final = 240


@dataclass(frozen=True, slots=True)
class Timeline:
    """Slots of `width` seconds from the start; each series has a figure for each slot."""

    width: int
    sent: tuple[int, ...]
    """By intended time, as are the times to first token; None: no stream of this slot began."""
    ttft_p50_ms: tuple[float | None, ...]
    ttft_p99_ms: tuple[float | None, ...]
    whole: tuple[int, ...]
    """This and the next three: by the time at which it ended."""
    failed: tuple[int, ...]
    limited: tuple[int, ...]
    left: tuple[int, ...]
    open: tuple[int, ...]
    """Sent and not ended, at the end of the slot."""
    tokens: tuple[int, ...]
    """Content events, at the time they came."""


def width_for(seconds: float) -> int:
    """The narrowest that makes a line that can still be read."""
    return next((width for width in WIDTHS if seconds / width <= MOST_SLOTS), WIDTHS[-1])


def timeline_of(records: Sequence[Record], seconds: float) -> Timeline:
    """Of a run of so many seconds, and as long as its last answer took."""
    over = max([seconds, *(_end(record) for record in records)])
    width = width_for(over)
    slots = max(-int(-over // width), 1)

    def at(moment: float) -> int:
        return min(max(int(moment // width), 0), slots - 1)

    sent, begun, ended, tokens = [0] * slots, [0] * slots, [0] * slots, [0] * slots
    how = {name: [0] * slots for name in ("whole", "failed", "limited", "left")}
    waits: list[list[float]] = [[] for _ in range(slots)]
    for record in records:
        slot = at(record.intended_at)
        sent[slot] += 1
        if (wait := ttft(record)) is not None:
            waits[slot].append(wait)
        begun[at(record.sent_at)] += 1
        ended[at(_end(record))] += 1
        how[_how(record)][at(_end(record))] += 1
        for moment in record.token_times:
            tokens[at(moment)] += 1
    return Timeline(
        width=width,
        sent=tuple(sent),
        ttft_p50_ms=tuple(_of(each, 0.5) for each in waits),
        ttft_p99_ms=tuple(_of(each, 0.99) for each in waits),
        open=_running(begun, ended),
        tokens=tuple(tokens),
        **{name: tuple(counts) for name, counts in how.items()},
    )


def _end(record: Record) -> float:
    return record.sent_at if record.ended_at is None else record.ended_at


def _how(record: Record) -> str:
    if is_limited(record):
        return "limited"
    return {Ending.WHOLE: "whole", Ending.LEFT: "left"}.get(record.ending, "failed")


def _of(seconds: list[float], share: float) -> float | None:
    return rounded(1e3 * percentile(sorted(seconds), share)) if seconds else None


def _running(begun: Sequence[int], ended: Sequence[int]) -> tuple[int, ...]:
    open_now, found = 0, []
    for more, fewer in zip(begun, ended, strict=True):
        open_now += more - fewer
        found.append(open_now)
    return tuple(found)
