"""What a pod is told, byte for byte, and that nothing else of a caller's is."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.headers import RequestHeads, fetch_head

KEY = b"authorization: Bearer the-pods-own\r\n"
PLAIN = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: 10.0.0.7:8000\r\ncontent-type: application/json\r\n"
    b"content-length: 17\r\naccept-encoding: identity\r\nx-request-id: abc-1\r\n\r\n"
)


def head(
    fields: Mapping[bytes, bytes] | None = None,
    priority: int = 0,
    *,
    authorization: bytes = b"",
    trace: bytes | None = None,
) -> bytes:
    path, host = b"/v1/chat/completions", b"10.0.0.7:8000"
    return RequestHeads().of(path, host, authorization, fields or {}, b"application/json", "abc-1", 17, priority, trace)


def lines(told: bytes) -> list[bytes]:
    assert told.endswith(b"\r\n\r\n")
    return told.split(b"\r\n")[1:-2]


def test_a_pod_is_told_as_little_as_it_needs() -> None:
    assert head() == PLAIN
    assert KEY.strip() in lines(head(authorization=KEY))


@pytest.mark.parametrize("priority", [1, -1, 100, -100])
def test_a_priority_is_one_line_more(priority: int) -> None:
    assert sorted(lines(head({}, priority))) == sorted([*lines(PLAIN), b"x-vllm-priority: %d" % priority])


def test_the_usual_priority_is_not_told() -> None:
    assert head({}, 0) == PLAIN


@pytest.mark.parametrize("priority", [0, 5])
def test_a_caller_s_own_priority_and_its_other_headers_stay_here(priority: int) -> None:
    sent = {
        b"x-vllm-priority": b"-9",
        b"authorization": b"Bearer the-caller-s",
        b"x-data-parallel-rank": b"3",
        b"x-session-id": b"canary",
        b"cookie": b"canary",
    }
    assert head(sent, priority) == head({}, priority)


def test_what_a_trace_needs_passes_unless_it_is_absurdly_long() -> None:
    sent = {b"accept": b"text/event-stream", b"traceparent": b"00-0af7-b7ad-01", b"tracestate": b"a=b"}
    assert {*lines(head(sent))} - {*lines(PLAIN)} == {b"%b: %b" % each for each in sent.items()}
    assert lines(head({b"tracestate": b"a" * 512})) != lines(PLAIN)
    assert head({b"tracestate": b"a" * 513}) == PLAIN


def test_where_we_trace_the_pod_is_told_of_our_span_and_not_of_the_caller_s() -> None:
    sent = {b"accept": b"text/event-stream", b"traceparent": b"00-canary", b"tracestate": b"canary=1"}
    told = lines(head(sent, 3, trace=b"traceparent: ours\r\ntracestate: ours=1\r\n"))
    assert {*told} - {*lines(PLAIN)} == {
        b"accept: text/event-stream",
        b"x-vllm-priority: 3",
        b"traceparent: ours",
        b"tracestate: ours=1",
    }
    assert lines(head(sent, trace=b"traceparent: ours\r\n")).count(b"traceparent: ours") == 1


def test_a_pod_is_asked_with_its_own_key() -> None:
    told = [b"host: h:1", KEY.strip(), b"accept: application/json", b"accept-encoding: identity"]
    assert lines(fetch_head(b"/v1/models", b"h:1", KEY)) == told


SAID = {
    "path": st.sampled_from([b"/v1/chat/completions", b"/tokenize"]),
    "host": st.sampled_from([b"10.0.0.7:8000", b"[fd00::7%eth0]:8000"]),
    "authorization": st.sampled_from([b"", KEY]),
    "fields": st.dictionaries(
        st.sampled_from([b"accept", b"traceparent", b"tracestate", b"cookie"]),
        st.sampled_from([b"", b"*/*", b"%d %b %%", b"text/event-stream", b"a" * 512, b"a" * 513]),
    ),
    "content_type": st.sampled_from(
        [b"application/json", b"multipart/form-data; boundary=100%25", b"a/b; %d" + b"c" * 512]
    ),
    "attempt_id": st.sampled_from(["abc-1", "abc-2"]),
    "length": st.integers(0, 1 << 40),
    "priority": st.sampled_from([0, 0, 0, -3]),
    "trace": st.sampled_from([None, None, b"traceparent: ours\r\n"]),
}


class Few(RequestHeads):
    max_kept = 3


@given(st.lists(st.fixed_dictionaries(SAID), min_size=2, max_size=30))
def test_a_head_that_is_kept_says_what_one_says_that_is_made_anew(said: list[dict[str, object]]) -> None:
    usual, few = RequestHeads(), Few()
    for each in said + said:
        made: bytes = RequestHeads().of(**each)  # type: ignore[arg-type]  # as above
        assert usual.of(**each) == few.of(**each) == made  # type: ignore[arg-type]


def test_heads_are_kept_in_bounds_however_many_there_are() -> None:
    heads, sizes = RequestHeads(), []
    for number in range(3 * RequestHeads.max_kept):
        host = b"10.0.0.7:%d" % number
        heads.of(b"/v1/chat/completions", host, b"", {b"accept": b"*/*"}, b"application/json", "abc-1", 17)
        sizes.append(len(heads._kept))
    assert max(sizes) == RequestHeads.max_kept


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (b"a" * 513, b"application/json"),
        (b"*/*", b"application/json; more=" + b"b" * 500),
        (b"*/*", b"multipart/form-data; boundary=a"),
    ],
)
def test_what_is_long_or_never_comes_again_is_not_kept(accept: bytes, content_type: bytes) -> None:
    heads = RequestHeads()
    heads.of(b"/tokenize", b"10.0.0.7:8000", b"", {b"accept": accept}, content_type, "abc-1", 17)
    assert not heads._kept
