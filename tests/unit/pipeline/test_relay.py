"""An answer at once is the same as in its parts; and what one stream holds is not another one's matter."""

import asyncio
import json

import pytest

from gateway.core.errors import UpstreamTimeout
from gateway.core.fleet import Deadlines
from gateway.pipeline.relay import Ended, Failed, Relay, StreamRelay, TailBudget, Whole
from gateway.upstream.connection import AnswerHead
from gateway.upstream.failure import Failure
from gateway.upstream.usage import AnswerReader, ChoicesReader

JSON, BYTES = b"application/json", b"application/octet-stream"
SPENT = {"prompt_tokens": 3, "completion_tokens": 2}
ANSWER = json.dumps({"choices": [{"index": 0, "finish_reason": "stop"}], "usage": SPENT}).encode()
LARGE = b'{"choices": [], "usage": ' + json.dumps(SPENT).encode() + b"}"


class SmallRelay(Relay):
    """One that holds little."""

    max_whole_bytes = len(LARGE)
    __slots__ = ()


def relay_of(reader: AnswerReader, kind: type[Relay] = Relay, accepted: tuple[bytes, ...] = (JSON, BYTES)) -> Relay:
    return kind(reader, 60.0, lambda: 0.0, asyncio.get_running_loop(), accepted)


def in_its_parts(relay: Relay, content_type: bytes, body: bytes) -> None:
    relay.head_received(AnswerHead(200, {}, len(body), content_type))
    relay.body_received(body)
    relay.answer_ended(by_close=False)


def noted(relay: Relay) -> tuple[object, ...]:
    """What is known of an answer that has come."""
    reader, first = relay.reader, relay.first.result()
    read = reader.answered, reader.finish, reader.content_events, reader.usage()
    return first, relay.body_bytes, relay.ended.done(), read


@pytest.mark.parametrize("body", [ANSWER, b"{}", b'{"usage": {"prompt_tokens": -1}}'], ids=["usual", "empty", "a lie"])
@pytest.mark.parametrize("reader", [lambda: ChoicesReader(1), AnswerReader], ids=["choices", "any"])
async def test_an_answer_at_once_is_the_same_as_in_its_parts(reader: type[AnswerReader], body: bytes) -> None:
    at_once, in_parts = relay_of(reader()), relay_of(reader())
    assert at_once.whole_received(JSON, body)
    in_its_parts(in_parts, JSON, body)
    assert isinstance(at_once.first.result(), Whole)
    assert noted(at_once) == noted(in_parts)


@pytest.mark.parametrize(
    ("content_type", "body", "kind"),
    [(BYTES, b"\0", Relay), (b"text/html", b"{}", Relay), (JSON, b"{", Relay), (JSON, LARGE + b" ", SmallRelay)],
    ids=["bytes", "another type", "no JSON", "too large"],
)
async def test_what_is_not_usual_is_left_to_its_parts(content_type: bytes, body: bytes, kind: type[Relay]) -> None:
    relay = relay_of(ChoicesReader(1), kind)
    assert not relay.whole_received(content_type, body)
    assert not relay.first.done()
    assert not relay.reader.answered
    assert not relay.body_bytes


async def test_an_answer_of_a_type_that_was_not_asked_for_is_not_taken_at_once() -> None:
    assert not relay_of(ChoicesReader(1), accepted=(BYTES,)).whole_received(JSON, ANSWER)


async def test_an_answer_behind_its_deadline_is_left_to_its_parts_and_its_tokens_are_counted() -> None:
    relay = relay_of(ChoicesReader(1))
    relay.fail(Failure.TIMEOUT, UpstreamTimeout("too late"))
    assert not relay.whole_received(JSON, ANSWER)
    in_its_parts(relay, JSON, ANSWER)
    assert isinstance(relay.first.result(), Failed)
    assert relay.reader.usage() is not None
    assert relay.ended.result() == Ended(b"", None)


async def test_who_holds_little_is_not_ended_for_what_others_hold() -> None:
    """Else a pod that leaves large events unfinished ends the streams of all others, at a read that ends in an event's
    middle."""
    spent = TailBudget(0)
    spent.left = -1
    for size, ends in ((10, False), (StreamRelay.small_tail_bytes, False), (StreamRelay.small_tail_bytes + 1, True)):
        relay = StreamRelay(
            ChoicesReader(1),
            Deadlines(),
            0.0,
            lambda: 0.0,
            asyncio.get_running_loop(),
            wants_usage=False,
            end_mark=b"data: [DONE]\n\n",
            budget=spent,
        )
        relay.head_received(AnswerHead(200, {}, None, b"text/event-stream"))
        relay.body_received(b"x" * size)
        assert relay.first.done() is ends
        if ends:
            first = relay.first.result()
            assert isinstance(first, Failed)
            assert first.failure is Failure.JUNK
        relay.discard()
        assert spent.left == -1
