"""When a comment is due, and when none may be sent."""

import asyncio

from gateway.core.call import Trail
from gateway.core.fleet import Deadlines
from gateway.pipeline.dialects import END_MARK
from gateway.pipeline.keep_alive import KeepAlive
from gateway.pipeline.relay import KEEP_ALIVE, StreamRelay, TailBudget
from gateway.upstream.connection import AnswerHead
from gateway.upstream.usage import ChoicesReader
from tests.fakes import FakeExchange, Hands

TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'


def kept(seconds: float = 5.0) -> tuple[KeepAlive, FakeExchange, Trail]:
    """Of a request that was whole at 100."""
    exchange, trail = FakeExchange(), Trail("id", 100.0)
    return KeepAlive(exchange, trail, seconds, lambda: exchange.start(200, b"text/event-stream", None)), exchange, trail


def relayed(exchange: FakeExchange, trail: Trail) -> StreamRelay:
    """A relay whose first token has left."""
    budget = TailBudget(1 << 20)
    relay = StreamRelay(
        ChoicesReader(1),
        Deadlines(),
        100.0,
        Hands(),
        asyncio.get_running_loop(),
        wants_usage=False,
        end_mark=END_MARK,
        budget=budget,
    )
    relay.head_received(AnswerHead(200, {}, None, b"text/event-stream"))
    relay.body_received(TOKEN)
    relay.commit(exchange)
    trail.committed_at = 100.0
    return relay


def test_the_time_runs_from_the_request_on() -> None:
    keep_alive, exchange, trail = kept()
    keep_alive.sweep(104.9)
    assert (exchange.writes, exchange.status, trail.opened) == ([], 0, False)
    keep_alive.sweep(105.0)
    assert (exchange.writes, exchange.status, trail.opened) == ([KEEP_ALIVE], 200, True)
    keep_alive.sweep(109.9)
    keep_alive.sweep(110.0)
    assert exchange.writes == [KEEP_ALIVE, KEEP_ALIVE]
    # It is no beginning of the answer.
    assert trail.committed_at is None


async def test_every_event_begins_the_time_anew() -> None:
    keep_alive, exchange, trail = kept()
    relay = relayed(exchange, trail)
    exchange.writes.clear()
    keep_alive.sweep(104.0)
    keep_alive.sweep(108.9)
    relay.body_received(TOKEN)
    keep_alive.sweep(109.0)
    keep_alive.sweep(113.9)
    assert exchange.writes == [TOKEN]
    keep_alive.sweep(114.0)
    assert exchange.writes == [TOKEN, KEEP_ALIVE]
    assert not trail.opened


async def test_a_client_that_is_behind_gets_none() -> None:
    keep_alive, exchange, trail = kept()
    relayed(exchange, trail)
    exchange.writes.clear()
    exchange.paused = True
    for now in range(100, 200):
        keep_alive.sweep(float(now))
    exchange.paused = False
    keep_alive.sweep(203.9)
    assert exchange.writes == []
    keep_alive.sweep(204.0)
    assert exchange.writes == [KEEP_ALIVE]


def test_a_client_that_has_gone_gets_none() -> None:
    keep_alive, exchange, trail = kept()
    exchange.client_gone = True
    keep_alive.sweep(200.0)
    assert (exchange.writes, trail.opened) == ([], False)
