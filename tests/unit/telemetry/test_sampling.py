"""Whose requests are traced: the caller decides, else the trace's id."""

from random import Random

import pytest

from gateway.core.trace import Trace
from gateway.telemetry.sampling import Sampler

SAID = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"
TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
NONE: frozenset[bytes] = frozenset()


def sampler(ratio: float, seed: int = 1) -> Sampler:
    return Sampler(ratio, Random(seed).getrandbits)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_a_caller_that_records_its_trace_has_decided_for_us(ratio: float) -> None:
    trace = sampler(ratio).trace_of({b"traceparent": SAID + b"1", b"tracestate": b"a=b"}, NONE)
    assert trace is not None
    assert trace.sampled
    assert (trace.trace_id, trace.parent_id, trace.state) == (TRACE, SPAN, b"a=b")
    assert trace.span_id not in (0, SPAN)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_a_caller_that_does_not_record_its_trace_has_decided_too(ratio: float) -> None:
    assert sampler(ratio).trace_of({b"traceparent": SAID + b"0"}, NONE) is None


@pytest.mark.parametrize("fields", [{}, {b"traceparent": b"canary", b"tracestate": b"a=b"}, {b"tracestate": b"a=b"}])
def test_without_a_parent_it_is_a_trace_of_our_own(fields: dict[bytes, bytes]) -> None:
    for ratio, sampled in ((0.0, False), (1.0, True)):
        trace = sampler(ratio).trace_of(fields, NONE)
        assert trace is not None
        assert trace.sampled is sampled
        assert (trace.parent_id, trace.state) == (0, b"")


def test_of_two_parents_neither_decides() -> None:
    trace = sampler(0.0).trace_of({b"traceparent": SAID + b"1"}, frozenset({b"traceparent"}))
    assert trace is not None
    assert not trace.sampled
    assert trace.trace_id != TRACE


def test_as_many_are_traced_as_the_ratio_says() -> None:
    one = sampler(0.05)
    traces = [one.trace_of({}, NONE) for _ in range(20_000)]
    assert 850 < sum(trace.sampled for trace in traces if trace is not None) < 1150


def test_who_samples_by_the_same_id_further_on_keeps_the_same() -> None:
    """The lower half of the id decides, as OTel's sampler by ratio has it."""
    for low, sampled in ((0, True), ((1 << 63) - 1, True), (1 << 63, False), ((1 << 64) - 1, False)):
        drawn = ((0xABC << 64) + low) << 63
        trace = Sampler(0.5, lambda bits, drawn=drawn: drawn).trace_of({}, NONE)  # type: ignore[misc]
        assert trace is not None
        assert trace.sampled is sampled
        assert trace.trace_id == (0xABC << 64) + low


def test_ids_are_never_the_same_and_leave_room_for_the_attempts() -> None:
    one = sampler(1.0)
    traces = [trace for _ in range(2000) if (trace := one.trace_of({}, NONE)) is not None]
    assert len({trace.trace_id for trace in traces}) == len({trace.span_id for trace in traces}) == len(traces)
    most = Sampler(1.0, lambda bits: (1 << bits) - 1).trace_of({}, NONE)
    least = Sampler(1.0, lambda bits: 1 << (bits - 1)).trace_of({b"traceparent": SAID + b"1"}, NONE)
    assert isinstance(most, Trace)
    assert isinstance(least, Trace)
    assert 0 < most.span_id < most.attempt_id(1000) < 1 << 64
    assert 0 < least.span_id < 1 << 64
