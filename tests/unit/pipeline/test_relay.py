"""What one stream holds of an unfinished event is not another one's matter."""

import asyncio

from gateway.core.fleet import Deadlines
from gateway.pipeline.relay import Failed, StreamRelay, TailBudget
from gateway.upstream.connection import AnswerHead
from gateway.upstream.failure import Failure
from gateway.upstream.usage import ChoicesReader


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
