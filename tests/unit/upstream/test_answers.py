"""What a pod answers means one thing, or is junk: however it is cut, nothing of junk is taken for an answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.core.fleet import Pod
from gateway.upstream.connection import AnswerHead, Loss, PodConnection, Receiver
from gateway.upstream.pool import PodPool
from tests.fakes import Hang, ScriptedPod, answer, chunk
from tests.turns import within

POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
SIZED = b"content-length: 6\r\n\r\nCANARY"
CODED = b"6\r\nCANARY\r\n0\r\n\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
GOOD = answer(b"CANARY")
MOST_READ_BYTES = 262_144
"""What one read of uvloop's, or asyncio's, brings at most."""
INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"

JUNK = {
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nCANARY",
    "101 without an upgrade": b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + GOOD,
    "17 interim answers": INTERIM * 17 + GOOD,
    "an interim answer with a body": b"HTTP/1.1 102 Processing\r\ncontent-length: 5\r\n\r\nhello" + GOOD,
    "interim heads without end": (b"HTTP/1.1 103 Early\r\nx: %b\r\n\r\n" % (b"a" * 60_000)) * 4 + GOOD,
    "a length and a coding": OK + b"transfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n" + CODED,
    "the same in other letters": OK + b"Content-Length: 6\r\nTRANSFER-ENCODING: chunked\r\n\r\n" + CODED,
    "the same length twice": OK + b"content-length: 6\r\n" + SIZED,
    "two lengths": OK + b"content-length: 7\r\n" + SIZED,
    "a list of lengths": OK + b"content-length: 6, 6\r\n\r\nCANARY",
    "a signed length": OK + b"content-length: +6\r\n\r\nCANARY",
    "a negative length": OK + b"content-length: -6\r\n\r\nCANARY",
    "an empty length": OK + b"content-length: \r\n\r\nCANARY",
    "a length of 23 digits": OK + b"content-length: 99999999999999999999999\r\n\r\nCANARY",
    "compressed chunks": OK + b"transfer-encoding: gzip, chunked\r\n\r\n" + CODED,
    "the same in two lines": OK + b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n" + CODED,
    "chunks twice": OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n" + CODED,
    "chunked first": OK + b"transfer-encoding: chunked, gzip\r\n\r\n" + CODED,
    "identity": OK + b"transfer-encoding: identity\r\n\r\nCANARY",
    "an unknown coding": OK + b"transfer-encoding: xchunked\r\n\r\n" + CODED,
    "chunks in HTTP/1.0": b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + CODED,
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\n" + SIZED,
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\n" + SIZED,
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\n" + SIZED,
    "no head at all": b"CANARY",
    "another protocol": b"RTSP/1.0 200 OK\r\n" + SIZED,
    "an answer of HTTP/2": b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "every byte": bytes(range(256)),
    "blank lines first": b"\r\n" * 9 + GOOD,
    "a folded line": OK + b"x: a\r\n b\r\n" + SIZED,
    "a folded length": OK + b"content-length:\r\n 6\r\n\r\nCANARY",
    "bare line feeds": OK.replace(b"\r", b"") + SIZED.replace(b"\r", b""),
    "one bare line feed": OK + b"x: a\n" + SIZED,
    "a bare carriage return": OK + b"x: a\rb: c\r\n" + SIZED,
    "NUL in a value": OK + b"x: a\0b\r\n" + SIZED,
    "NUL in a name": OK + b"x\0: a\r\n" + SIZED,
    "a control character": OK + b"x: \x01\r\n" + SIZED,
    "a space before the colon": OK + b"content-length : 6\r\n\r\nCANARY",
    "a space in a name": OK + b"x y: a\r\n" + SIZED,
    "no colon": OK + b"xyz\r\n" + SIZED,
    "no name": OK + b": a\r\n" + SIZED,
    "8 bits in a name": OK + b"x\xe9: a\r\n" + SIZED,
    "two types": OK + b"content-type: application/json\r\ncontent-type: text/event-stream\r\n" + SIZED,
    "a line of 70 KB": OK + b"x: %b\r\n" % (b"a" * 70_000) + SIZED,
    "200 lines": OK + b"".join(b"x%d: a\r\n" % place for place in range(200)) + SIZED,
    "200 lines of one name": OK + b"x: a\r\n" * 200 + SIZED,
    "a reason without end": b"HTTP/1.1 200 " + b"O" * 400_000 + b"\r\n" + SIZED,
    "status 000": b"HTTP/1.1 000 OK\r\n" + SIZED,
    "status 099": b"HTTP/1.1 099 OK\r\n" + SIZED,
    "status 99": b"HTTP/1.1 99 OK\r\n" + SIZED,
    "status 600": b"HTTP/1.1 600 OK\r\n" + SIZED,
    "status 999": b"HTTP/1.1 999 OK\r\n" + SIZED,
    "status 2000": b"HTTP/1.1 2000 OK\r\n" + SIZED,
    "status 20x": b"HTTP/1.1 20x OK\r\n" + SIZED,
}
"""Heads of which nothing may be told to a receiver."""

BAD_BODIES = {
    "no size": CHUNKED + b"zz\r\nCANARY\r\n",
    "a size with its base": CHUNKED + b"0x6\r\nCANARY\r\n0\r\n\r\n",
    "a negative size": CHUNKED + b"-6\r\nCANARY\r\n0\r\n\r\n",
    "a signed size": CHUNKED + b"+6\r\nCANARY\r\n0\r\n\r\n",
    "a size of 17 digits": CHUNKED + b"fffffffffffffffff\r\nCANARY\r\n0\r\n\r\n",
    "a size behind a space": CHUNKED + b" 6\r\nCANARY\r\n0\r\n\r\n",
    "sizes in bare lines": CHUNKED + b"6\nCANARY\n0\n\n",
    "a chunk that is longer than it says": CHUNKED + b"3\r\nCANARY\r\n0\r\n\r\n",
    "a chunk that is shorter than it says": CHUNKED + b"9\r\nCANARY\r\n0\r\n\r\n",
    "zeros without end": CHUNKED + b"0" * 300_000,
    "an extension without end": CHUNKED + b"6;" + b"a" * (1 << 20) + b"\r\nCANARY\r\n0\r\n\r\n",
    "NUL in an extension": CHUNKED + b"6;a\0b\r\nCANARY\r\n0\r\n\r\n",
    "a line end in an extension": CHUNKED + b"6;a\nb\r\nCANARY\r\n0\r\n\r\n",
    "trailers without end": CHUNKED + b"6\r\nCANARY\r\n0\r\n" + b"x: a\r\n" * 170_000 + b"\r\n",
    "a trailer without end": CHUNKED + b"6\r\nCANARY\r\n0\r\nx: " + b"a" * (1 << 20) + b"\r\n\r\n",
    "a length as trailer": CHUNKED + b"6\r\nCANARY\r\n0\r\ncontent-length: 5\r\n\r\n",
    "a body behind 204": b"HTTP/1.1 204 No Content\r\n" + SIZED,
    "a body behind 304": b"HTTP/1.1 304 Not Modified\r\n" + SIZED,
}
"""Answers that stop being HTTP behind a proper head."""

GOOD_ONES = {
    "an answer": GOOD,
    "16 interim answers": INTERIM * 16 + GOOD,
    "chunks": CHUNKED + CODED,
    "chunks with an extension and a trailer": CHUNKED + b"6;a=b\r\nCANARY\r\n0\r\nx: y\r\n\r\n",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + SIZED,
    "an offer to upgrade": OK + b"upgrade: h2c\r\nconnection: upgrade\r\n" + SIZED,
    "no reason": b"HTTP/1.1 200\r\n" + SIZED,
    "8 bits in a value": OK + b"x: \xe9\r\n" + SIZED,
    "names in capitals": OK + b"CONTENT-LENGTH: 6\r\n\r\nCANARY",
    "a header that may be there twice": OK + b"set-cookie: a\r\nset-cookie: b\r\n" + SIZED,
}


class Heard(Receiver):
    """What a receiver was told."""

    def __init__(self) -> None:
        self.heads: list[AnswerHead] = []
        self.body = b""
        self.end: Loss | bool | None = None

    def head_received(self, head: AnswerHead) -> None:
        self.heads.append(head)

    def body_received(self, data: bytes) -> None:
        self.body += data

    def answer_ended(self, by_close: bool) -> None:
        self.end = by_close

    def answer_lost(self, loss: Loss) -> None:
        self.end = loss


@asynccontextmanager
async def exchange() -> AsyncIterator[tuple[PodConnection, Heard, PodPool]]:
    """A connection on which an answer is awaited; the test plays what comes."""
    async with ScriptedPod([[Hang]]) as pod:
        pool = PodPool(Pod("u", "p", "p", "127.0.0.1", pod.port), 1.0, lambda: 0.0)
        connection, heard = await pool.connect(), Heard()
        connection.send(POST, (), heard)
        yield connection, heard, pool
        connection.abort()


def play(connection: PodConnection, heard: Heard, data: bytes, size: int) -> None:
    """Bring the bytes in reads of this size, as long as the exchange runs."""
    for start in range(0, len(data), size):
        if heard.end is None:
            connection.data_received(data[start : start + size])


def sizes(data: bytes) -> tuple[int, ...]:
    return (1, 7, len(data)) if len(data) < 2000 else (4096, MOST_READ_BYTES)


@pytest.mark.parametrize("what", JUNK)
async def test_of_junk_nothing_is_told_and_its_connection_is_not_used_again(what: str) -> None:
    for size in sizes(JUNK[what]):
        async with exchange() as (connection, heard, pool):
            play(connection, heard, JUNK[what], size)
            assert (heard.end, heard.heads, heard.body) == (Loss.JUNK, [], b"")
            assert pool.take() is None
            assert not connection.usable


@pytest.mark.parametrize("what", BAD_BODIES)
async def test_a_body_that_stops_being_http_is_lost(what: str) -> None:
    for size in sizes(BAD_BODIES[what]):
        async with exchange() as (connection, heard, pool):
            play(connection, heard, BAD_BODIES[what], size)
            # Trailers come behind the body; the read that brings its end may be the one before.
            assert heard.end is Loss.JUNK or "trailer" in what or "behind" in what
            assert pool.take() is None or heard.end is False
            assert len(heard.heads) == 1


@pytest.mark.parametrize("what", GOOD_ONES)
async def test_what_is_unusual_but_means_one_thing_passes(what: str) -> None:
    for size in sizes(GOOD_ONES[what]):
        async with exchange() as (connection, heard, _):
            play(connection, heard, GOOD_ONES[what], size)
            assert (heard.end, heard.body, len(heard.heads)) == (False, b"CANARY", 1)


@pytest.mark.parametrize(
    "behind",
    [answer(b"SMUGGLED"), b"HTTP/1.1 100 Continue\r\n\r\n", b"SMUGGLED", b"\0", chunk(b"SMUGGLED")],
    ids=["answer", "interim", "bytes", "nul", "chunk"],
)
@pytest.mark.parametrize("first", [GOOD, CHUNKED + CODED], ids=["sized", "chunked"])
async def test_what_comes_behind_an_answer_is_no_part_of_it(first: bytes, behind: bytes) -> None:
    async with exchange() as (connection, heard, pool):
        connection.data_received(first + behind)
        assert (heard.end, heard.body, len(heard.heads)) == (Loss.JUNK, b"CANARY", 1)
        assert pool.take() is None
    async with exchange() as (connection, heard, pool):
        connection.data_received(first)
        connection.data_received(behind)
        assert (heard.end, heard.body, len(heard.heads)) == (False, b"CANARY", 1)
        assert pool.take() is None


async def test_a_trailer_does_not_stand_in_the_next_answer_s_head() -> None:
    async with exchange() as (connection, heard, pool):
        connection.data_received(CHUNKED + b"6\r\nCANARY\r\n0\r\ncontent-encoding: gzip\r\n\r\n")
        assert pool.take() is connection
        connection.send(POST, (), heard)
        connection.data_received(GOOD)
        assert [set(head.fields) for head in heard.heads] == [
            {b"transfer-encoding"},
            {b"content-type", b"content-length"},
        ]


async def test_many_small_reads_between_pieces_of_a_long_body_are_no_flood() -> None:
    async with exchange() as (connection, heard, _):
        connection.data_received(CHUNKED)
        for _ in range(20_000):
            # As a proxy may send it: the size, the chunk, and its line end apart.
            connection.data_received(b"1;x=y\r\n")
            connection.data_received(b"a")
            connection.data_received(b"\r\n")
        connection.data_received(b"0\r\n\r\n")
        assert (heard.end, len(heard.body)) == (False, 20_000)


async def test_a_receiver_may_drop_its_exchange_in_any_of_its_calls() -> None:
    async with exchange() as (connection, heard, pool):
        setattr(heard, "head_received", lambda head: connection.drop(heard))  # noqa: B010  # mypy knows it as a method
        connection.data_received(GOOD)
        assert heard.end is None
        assert pool.take() is None
        async with within(5):
            while pool.live:
                await asyncio.sleep(0)
