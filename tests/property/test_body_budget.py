"""Whatever clients do with their bodies, in whatever order: the budget holds what is there, and nothing in the end."""

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.clock import Clock
from gateway.core.errors import Busy, PoolgateError
from gateway.edge.bounds import Bounds
from gateway.edge.port import Edge
from gateway.edge.protocol import ClientConnection
from gateway.pipeline.body_budget import BodyBudget, Share
from gateway.pipeline.exchange import Exchange
from gateway.pipeline.reception import Reception, Visit

LIMIT = 4_000
BOUNDS = Bounds(head_seconds=10, body_seconds=20, body_grace_seconds=5, idle_seconds=30, max_buffered_body_bytes=LIMIT)
LINES = b"Host: x\r\nContent-Type: application/json\r\n"


class Transport(asyncio.Transport):
    """A socket that takes all; its end is told when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Pipeline:
    """Serves when it is told to."""

    def __init__(self) -> None:
        self.serving: list[Exchange] = []

    def refuse(self, visit: Visit, exchange: Exchange, error: PoolgateError) -> None:
        exchange.start(error.http_status, b"application/json", 0)
        exchange.finish()

    def left(self, visit: Visit) -> None:
        """Nothing is told of it here."""

    async def serve(self, visit: Visit, body: bytes, exchange: Exchange) -> None:
        self.serving.append(exchange)


class World:
    """Some connections of one edge."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pipeline = Pipeline()
        clock = Clock(lambda: self.now, lambda: 0.0)
        self.edge = Edge(cast(Any, self.pipeline), Reception(None, 3_000, 3_000), clock, BOUNDS)
        self.open: list[tuple[ClientConnection, Transport]] = []

    def there(self) -> int:
        """Bytes of bodies that connections hold, or whose requests wait for an answer."""
        return sum(each._held_bytes for each, _ in self.open)

    async def does(self, what: str, which: int, size: int) -> None:
        edge = self.edge
        if what == "connect" or not self.open:
            transport = Transport()
            connection = cast(ClientConnection, edge.protocol())
            connection.connection_made(transport)
            self.open.append((connection, transport))
            return
        connection, transport = self.open[which % len(self.open)]
        if what == "length":
            connection.data_received(b"POST /tokenize HTTP/1.1\r\n" + LINES + b"Content-Length: %d\r\n\r\n" % size)
        elif what == "chunks":
            connection.data_received(b"POST /tokenize HTTP/1.1\r\n" + LINES + b"Transfer-Encoding: chunked\r\n\r\n")
        elif what == "whole":
            head = b"POST /tokenize HTTP/1.1\r\n" + LINES + b"Content-Length: %d\r\n\r\n" % size
            connection.data_received(head + b"x" * size)
        elif what == "bytes":
            connection.data_received(b"x" * size)
        elif what == "chunk":
            connection.data_received(b"%x\r\n%b\r\n" % (size, b"x" * size))
        elif what == "begin" and self.pipeline.serving:
            self.pipeline.serving[which % len(self.pipeline.serving)].start(200, b"text/event-stream", None)
        elif what == "answer" and self.pipeline.serving:
            exchange = self.pipeline.serving.pop(which % len(self.pipeline.serving))
            exchange.start(200, b"application/json", 0)
            exchange.finish()
        elif what == "time":
            self.now += size / 300
            edge.sweep(self.now)
        elif what == "leave":
            transport.closing = True
        await self.settle()

    async def settle(self) -> None:
        for _ in range(40):
            await asyncio.sleep(0)
        for each in [each for each in self.open if each[1].closing]:
            self.open.remove(each)
            each[0].connection_lost(None)


KINDS = ("connect", "length", "chunks", "whole", "whole", "bytes", "bytes", "chunk", "begin", "answer", "time", "leave")
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 5), st.integers(0, 3_100)), max_size=60)


@given(STEPS)
@settings(max_examples=150)
def test_the_budget_holds_what_is_there_and_nothing_when_all_have_left(steps: list[tuple[str, int, int]]) -> None:
    async def run() -> None:
        world = World()
        for step in steps:
            await world.does(*step)
            held = world.edge.bodies.held
            assert 0 <= held <= LIMIT
            assert held == world.there()
            assert all(each._held_bytes >= each._body_bytes() for each, _ in world.open), "bytes that are not counted"
        for _, transport in world.open:
            transport.closing = True
        await world.settle()
        assert world.edge.bodies.held == 0
        assert not world.edge.connections

    asyncio.run(run())


@given(st.lists(st.integers(0, 2_000), max_size=20), st.booleans())
def test_a_share_gives_back_what_it_took_once(pieces: list[int], twice: bool) -> None:
    budget = BodyBudget(LIMIT)
    assert budget.take(500, budget.anybody)
    share = Share(budget)
    taken = 0
    for piece in pieces:
        if taken + piece > LIMIT - 500:
            with pytest.raises(Busy):
                share.grow(piece)
        else:
            share.grow(piece)
            taken += piece
        assert budget.held == 500 + taken
    for _ in range(1 + twice):
        share.release()
    assert budget.held == 500


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 1_500), st.booleans()), max_size=40))
def test_one_caller_has_half_at_most_but_for_a_single_body(steps: list[tuple[str, int, bool]]) -> None:
    """However often its account was let go of in between, and whoever holds it now."""
    budget = BodyBudget(LIMIT)
    held: dict[str, list[int]] = {"a": [], "b": []}
    kept = []
    for caller, count, ends in steps:
        account, bodies = budget.account_of(caller), held[caller]
        if ends and bodies:
            budget.give_back(bodies.pop(), account)
        fits = sum(bodies) + count <= LIMIT // 2 or not bodies
        assert budget.take(count, account) == (fits and count <= LIMIT - sum(map(sum, held.values())))
        if account.held > sum(bodies):
            bodies.append(count)
        # Who has a body holds its account.
        kept = [budget.account_of(name) for name in held if held[name]]
        del account
    assert [each.held for each in kept] == [sum(bodies) for bodies in held.values() if bodies]
    assert budget.held == sum(map(sum, held.values()))


def test_a_single_body_may_have_more_than_half_and_grow_there() -> None:
    budget = BodyBudget(LIMIT)
    account = budget.account_of("a")
    has = 0
    for piece in (LIMIT // 2, 100, 0, 100):
        assert budget.take(piece, account, has)
        has += piece
        assert not budget.take(1, account)
    assert budget.take(LIMIT - has, account, has)
    assert not budget.take(1, account, LIMIT)
    budget.give_back(LIMIT, account)
    assert (account.held, budget.held) == (0, 0)
    del account
    assert not budget._accounts, "a caller that holds nothing is kept"
