"""The comparison itself: two answers that differ must not pass for equal."""

import pytest

from tests.e2e.vllm.wire import differences, events_in, ids_in, is_usage_chunk, normalised, untangled

CHUNK = b'data: {"id":"chatcmpl-%s","object":"chat.completion.chunk","created":%d,"model":"m",'
CHUNK += b'"choices":[{"index":%d,"delta":{"content":"%s"}}]}\n\n'
USAGE = b'data: {"id":"chatcmpl-a","created":1,"model":"m","choices":[],"usage":{"total_tokens":3}}\n\n'
END = b"data: [DONE]\n\n"


def test_events_joined_are_the_body_again() -> None:
    body = CHUNK % (b"a", 1, 0, b"x") + END
    assert events_in(body) == [CHUNK % (b"a", 1, 0, b"x"), END]
    assert b"".join(events_in(body)) == body


def test_a_stream_that_ends_within_an_event_is_not_taken_for_whole() -> None:
    with pytest.raises(AssertionError, match="in the middle of an event"):
        events_in(CHUNK % (b"a", 1, 0, b"x") + b"data: [DO")


def test_two_runs_of_one_request_are_equal_once_normalised() -> None:
    first, second = CHUNK % (b"4fa2", 1795458856, 0, b"x"), CHUNK % (b"77aa", 1795458999, 0, b"x")
    assert normalised(first) == normalised(second)
    assert ids_in(first + second) == {b'"id":"chatcmpl-4fa2"', b'"id":"chatcmpl-77aa"'}


@pytest.mark.parametrize(
    "rewritten",
    [
        CHUNK % (b"a", 1, 0, b"y"),
        CHUNK % (b"a", 1, 1, b"x"),
        (CHUNK % (b"a", 1, 0, b"x")).replace(b'":', b'": '),
        (CHUNK % (b"a", 1, 0, b"x")).replace(b"data: ", b"data:"),
        (CHUNK % (b"a", 1, 0, b"x")).replace(b'"id":"chatcmpl-a",', b""),
        (CHUNK % (b"a", 1, 0, b"x")).replace(b'"x"', rb'"\u0078"'),
    ],
)
def test_any_other_difference_is_seen_and_shown(rewritten: bytes) -> None:
    original = CHUNK % (b"a", 1, 0, b"x")
    shown = differences([normalised(original)], [normalised(rewritten)])
    assert repr(normalised(original)) in shown
    assert repr(normalised(rewritten)) in shown


def test_a_missing_and_an_added_event_are_seen() -> None:
    assert "2 events expected, 1 came" in differences([b"a", b"b"], [b"a"])
    assert "1 events expected, 2 came" in differences([b"a"], [b"a", b"b"])
    assert differences([b"a", b"b"], [b"a", b"b"]) == ""


def test_untangling_sorts_by_index_and_keeps_the_order_within_one() -> None:
    zero = [CHUNK % (b"a", 1, 0, text) for text in (b"b", b"a")]
    one = [CHUNK % (b"a", 1, 1, text) for text in (b"d", b"c")]
    assert untangled([one[0], zero[0], zero[1], one[1], USAGE, END]) == [*zero, *one, USAGE, END]


def test_untangling_does_not_hide_that_the_usage_chunk_came_too_early() -> None:
    early = [CHUNK % (b"a", 1, 0, b"x"), USAGE, CHUNK % (b"a", 1, 0, b"y"), END]
    assert untangled(early) == early


def test_only_the_chunk_without_choices_is_the_usage_chunk() -> None:
    with_usage_on_each = (CHUNK % (b"a", 1, 0, b"x")).replace(b"}]}", b'}],"usage":{"total_tokens":3}}')
    assert is_usage_chunk(USAGE)
    assert not is_usage_chunk(with_usage_on_each)
    assert not is_usage_chunk(END)
