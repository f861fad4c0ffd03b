"""What a caller may say of its trace, and what a pod is told: W3C Trace Context, to the letter."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.trace import MAX_STATE_BYTES, Parent, Trace, parent_in

TRACE = 0x0AF7651916CD43DD8448EB211C80319C
SPAN = 0xB7AD6B7169203331
SAID = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FORM = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]\Z")


def parent(said: bytes, state: bytes | None = None, repeated: frozenset[bytes] = frozenset()) -> Parent | None:
    fields = {b"traceparent": said}
    return parent_in(fields if state is None else fields | {b"tracestate": state}, repeated)


def test_a_caller_s_span_is_read() -> None:
    assert parent(SAID) == Parent(TRACE, SPAN, 1, b"")
    assert parent(SAID[:-1] + b"0") == Parent(TRACE, SPAN, 0, b"")
    assert parent(SAID, b"a=b,c=d") == Parent(TRACE, SPAN, 1, b"a=b,c=d")


def test_who_says_nothing_has_no_parent() -> None:
    assert parent_in({}, frozenset()) is None
    assert parent_in({b"tracestate": b"a=b"}, frozenset()) is None


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"canary",
        b"00",
        SAID[:-1],
        SAID + b"0",
        SAID + b" ",
        b" " + SAID,
        SAID + b"\n",
        SAID + b"-",
        SAID + b"-more",
        SAID.upper(),
        SAID.replace(b"0af7", b"0AF7"),
        SAID.replace(b"-", b"_"),
        SAID.replace(b"0af7", b"xaf7"),
        b"00-" + b"0" * 32 + SAID[35:],
        SAID[:36] + b"0" * 16 + b"-01",
        SAID[:53] + b"0g",
        b"ff" + SAID[2:],
        b"ff" + SAID[2:] + b"-more",
        b"0" + SAID[1:-1],
        b"01" + SAID[2:] + b"more",
        b"01" + SAID[2:-1],
        b"FE" + SAID[2:],
    ],
)
def test_what_is_not_to_the_letter_is_no_parent_and_its_state_means_nothing(said: bytes) -> None:
    assert parent(said, b"a=b") is None


@pytest.mark.parametrize("more", [b"", b"-", b"-more", b"-more-and-more"])
@pytest.mark.parametrize("version", [b"01", b"0a", b"fe"])
def test_a_later_version_is_read_as_far_as_it_is_known(version: bytes, more: bytes) -> None:
    assert parent(version + SAID[2:] + more) == Parent(TRACE, SPAN, 1, b"")


def test_two_parents_are_none() -> None:
    assert parent(SAID, repeated=frozenset({b"traceparent"})) is None
    assert parent(SAID, repeated=frozenset({b"accept"})) is not None


@pytest.mark.parametrize(("said", "kept"), [(b"00", 0), (b"01", 1), (b"02", 2), (b"03", 3), (b"ff", 3), (b"fc", 0)])
def test_flags_that_we_do_not_know_are_not_passed_on(said: bytes, kept: int) -> None:
    found = parent(SAID[:-2] + said)
    assert found is not None
    assert found.flags == kept


def test_a_state_that_is_too_long_is_dropped_whole() -> None:
    for length, kept in ((MAX_STATE_BYTES, MAX_STATE_BYTES), (MAX_STATE_BYTES + 1, 0)):
        found = parent(SAID, b"a" * length)
        assert found is not None
        assert len(found.state) == kept


def test_a_pod_is_told_of_the_attempt_s_span() -> None:
    trace = Trace(TRACE, 0x10, 1, SPAN)
    assert trace.lines(1) == b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-0000000000000011-01\r\n"
    assert trace.lines(2) == b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-0000000000000012-01\r\n"
    assert trace._replace(state=b"a=b").lines(1) == trace.lines(1) + b"tracestate: a=b\r\n"
    assert trace._replace(flags=0).lines(1).endswith(b"-00\r\n")


@given(
    st.integers(1, (1 << 128) - 1),
    st.integers(1, 1 << 63),
    st.integers(0, 3),
    st.integers(1, 100),
    st.binary(max_size=9),
)
def test_whatever_a_pod_is_told_reads_as_it_was_meant(
    trace_id: int, span_id: int, flags: int, attempt: int, state: bytes
) -> None:
    trace = Trace(trace_id, span_id, flags, 7, state.hex().encode())
    first, *rest = trace.lines(attempt).split(b"\r\n")
    name, _, said = first.partition(b": ")
    assert name == b"traceparent"
    assert FORM.match(said)
    assert rest == ([b"tracestate: " + trace.state, b""] if state else [b""])
    assert parent(said, trace.state) == Parent(trace_id, trace.attempt_id(attempt), flags, trace.state)


@given(st.binary(max_size=60))
def test_no_bytes_whatever_make_it_fail(said: bytes) -> None:
    assert parent(said) is None or len(said) >= 55
