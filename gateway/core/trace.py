"""A request's place in a trace, in the words of W3C Trace Context (https://www.w3.org/TR/trace-context/): pure.

Of a request's spans only the ids exist while it runs: they are what its pods are told. The spans are made of its trail
when it has ended. An attempt's span has the id of the request's own, plus the attempt's number: nothing more is drawn
and nothing kept, and no two in a trace are the same but by a chance that any two ids have.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

SAMPLED = 0x01
"""The flag that says: this trace is recorded."""
_RANDOM = 0x02
"""The flag that says: its id was drawn evenly (level 2 of the recommendation). Ours to pass on, as the first is."""
MAX_STATE_BYTES = 512

_TRACEPARENT = re.compile(
    rb"(?:00(?=.{53}\Z)|(?!00|ff)[0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?\Z"
)
"""Version 00 has 55 characters. A later one may have more behind a dash, and is read as far as we know it."""


class Parent(NamedTuple):
    """The caller's span, as it names it."""

    trace_id: int
    span_id: int
    flags: int
    state: bytes
    """What tracing systems on the way have added, to be passed on as it is."""


class Trace(NamedTuple):
    """Where a request stands in its trace. `parent_id` 0: it is the first."""

    trace_id: int
    span_id: int
    flags: int
    parent_id: int = 0
    state: bytes = b""

    @property
    def sampled(self) -> bool:
        """Whether its spans are made."""
        return bool(self.flags & SAMPLED)

    def attempt_id(self, attempt: int) -> int:
        """The id of an attempt's span; the first is 1."""
        return self.span_id + attempt

    def lines(self, attempt: int) -> bytes:
        """What a pod is told, as whole lines of a head: that the attempt's span is the parent of its own."""
        parent = b"traceparent: 00-%032x-%016x-%02x\r\n" % (self.trace_id, self.span_id + attempt, self.flags)
        return b"%btracestate: %b\r\n" % (parent, self.state) if self.state else parent


def parent_in(fields: Mapping[bytes, bytes], repeated: frozenset[bytes]) -> Parent | None:
    """The caller's span, or None where none is named as the recommendation wants it: then its state means nothing
    either. `fields` are the headers, names lower case.
    """
    said = fields.get(b"traceparent")
    if said is None or b"traceparent" in repeated:
        return None
    found = _TRACEPARENT.match(said)
    if found is None:
        return None
    state = fields.get(b"tracestate", b"")
    return Parent(
        int(found[1], 16),
        int(found[2], 16),
        int(found[3], 16) & (SAMPLED | _RANDOM),
        state if len(state) <= MAX_STATE_BYTES else b"",
    )
