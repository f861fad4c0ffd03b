"""Messages and Responses: a captured stream leaves as it came, however split; cut anywhere, events and the truth."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.fleet import Deadlines
from gateway.pipeline.operations import MESSAGES, RESPONSES_API, Operation
from gateway.pipeline.relay import Ended, Failed, StreamRelay, TailBudget
from gateway.upstream.connection import Loss
from gateway.upstream.usage import EventReader
from tests.fakes import FakeExchange, Hands
from tests.property.test_streams import HEAD, play, split
from tests.running import captured_events

CAPTURED = {
    MESSAGES: captured_events("79-messages-stream.http"),
    RESPONSES_API: captured_events("75-responses-stream.http"),
}
operations = pytest.mark.parametrize("operation", CAPTURED, ids=lambda operation: operation.label)


def relay_for(operation: Operation) -> tuple[StreamRelay, FakeExchange]:
    """A relay as `serve` makes it."""
    reader = operation.reader()
    assert isinstance(reader, EventReader)
    relay = StreamRelay(
        reader,
        Deadlines(),
        0.0,
        Hands(),
        asyncio.get_running_loop(),
        wants_usage=False,
        end_mark=operation.dialect.end_mark,
        budget=TailBudget(1 << 24),
    )
    relay.head_received(HEAD)
    return relay, FakeExchange()


@operations
@settings(max_examples=200)
@given(data=st.data())
def test_a_whole_stream_leaves_as_it_came_however_it_is_split(operation: Operation, data: st.DataObject) -> None:
    whole = b"".join(CAPTURED[operation])
    pieces = split(data.draw, whole)

    async def go() -> None:
        relay, exchange = relay_for(operation)
        ended = await play(relay, exchange, pieces, None)
        assert isinstance(ended, Ended)
        assert ended.error is None
        assert exchange.body + ended.held == whole
        usage = relay.reader.usage()
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (33, 12)

    asyncio.run(go())


@operations
@settings(max_examples=200)
@given(data=st.data(), loss=st.sampled_from([None, Loss.CUT, Loss.RESET, Loss.JUNK]))
def test_cut_anywhere_whole_events_and_the_truth(operation: Operation, data: st.DataObject, loss: Loss | None) -> None:
    events = CAPTURED[operation]
    whole = b"".join(events)
    at = data.draw(st.integers(0, len(whole) - 1))
    pieces = split(data.draw, whole[:at])

    async def go() -> None:
        relay, exchange = relay_for(operation)
        ended = await play(relay, exchange, pieces, loss)
        if isinstance(ended, Failed):
            assert exchange.body == b""
            return
        assert ended.error is not None
        assert ended.held == b""
        relayed = [count for count in range(len(events)) if exchange.body == b"".join(events[:count])]
        assert relayed
        assert relayed[0] == relay.events
        lines = operation.dialect.event(ended.error, relay.events).split(b"\n")
        assert lines[0] == b"event: error"
        told = json.loads(lines[1].removeprefix(b"data: "))
        assert told.get("sequence_number", relay.events) == relay.events
        assert (told.get("error") or told)["code"] in ("upstream_truncated", "upstream_reset", "upstream_failed")

    asyncio.run(go())
