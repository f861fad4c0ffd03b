"""Which requests are traced: decided once, on the head, for the gateway and for the pods.

A caller that names its span has decided for us. Else the trace's id decides, in the way of OTel's sampler by ratio, so
that whoever samples by the same id further on keeps the same traces. Pods are told of a no as of a yes: a vLLM that
hears nothing would begin a trace of its own.
"""

from collections.abc import Callable, Mapping

from gateway.core.trace import SAMPLED, Trace, parent_in

_TRACE_BITS = 128
_SPAN_BITS = 63
"""One less than an id has, so that there is room for the attempts behind it."""
_SPAN = (1 << _SPAN_BITS) - 1
_DECIDING_BITS = 64


class Sampler:
    """`ratio` of the requests that nobody has decided for are traced. `draw(n)` gives n random bits."""

    __slots__ = ("_bound", "_draw")

    def __init__(self, ratio: float, draw: Callable[[int], int]) -> None:
        self._bound = round(ratio * (1 << _DECIDING_BITS))
        self._draw = draw

    def trace_of(self, fields: Mapping[bytes, bytes], repeated: frozenset[bytes]) -> Trace | None:
        """Where a request stands. None: in a trace that its caller does not record, so that what it says of it goes on
        to the pod as it is.
        """
        parent = parent_in(fields, repeated)
        if parent is not None:
            if not parent.flags & SAMPLED:
                return None
            span_id = self._draw(_SPAN_BITS) + 1
            return Trace(parent.trace_id, span_id, parent.flags, parent.span_id, parent.state)
        bits = self._draw(_TRACE_BITS + _SPAN_BITS)
        trace_id = bits >> _SPAN_BITS
        sampled = trace_id & ((1 << _DECIDING_BITS) - 1) < self._bound
        return Trace(trace_id, (bits & _SPAN) + 1, SAMPLED if sampled else 0)
