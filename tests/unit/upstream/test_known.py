"""Heads of answers that came before: compared instead of parsed, and nothing else changes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.fleet import Pod
from gateway.upstream.connection import AnswerHead, Loss, PodConnection, Receiver
from gateway.upstream.known import Shape, body_within, shape_of
from gateway.upstream.pool import PodPool
from tests.fakes import Close, ScriptedPod, Step
from tests.turns import within

POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
BODY = b'{"a": 1}'


def said(body: bytes = BODY, length: bytes | None = None, status: bytes = b"200 OK") -> bytes:
    """An answer as uvicorn writes it."""
    return (
        b"HTTP/1.1 %b\r\ndate: Mon, 30 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: %b\r\n"
        b"content-type: application/json\r\n\r\n%b" % (status, length or b"%d" % len(body), body)
    )


def shape() -> Shape:
    found = shape_of(said())
    assert found is not None
    return found


def test_an_answer_of_another_length_has_the_same_shape() -> None:
    assert body_within(said(b"another body"), shape()) == b"another body"


@given(st.data())
def test_an_answer_with_any_other_byte_in_its_head_has_another_shape(data: st.DataObject) -> None:
    text = said()
    at = data.draw(st.integers(0, len(text) - len(BODY) - 1))
    other = data.draw(st.binary(min_size=1, max_size=1).filter(lambda byte: byte != text[at : at + 1]))
    assert not body_within(text[:at] + other + text[at + 1 :], shape())


@pytest.mark.parametrize(
    "data",
    [said() + b"x", said()[:-1], said(length=b"+8"), said(length=b" 8"), said(b""), b"", said()[:40]],
    ids=["more", "less", "sign", "space", "empty", "nothing", "cut"],
)
def test_what_is_not_one_whole_answer_is_not_taken_for_one(data: bytes) -> None:
    assert not body_within(data, shape())


@pytest.mark.parametrize(
    "data",
    [
        said().replace(b"content-length: 8\r\n", b""),
        said().replace(b"server: uvicorn\r\n", b"Content-Length: 8\r\n"),
        said()[: said().index(b"\r\n\r\n")],
        said().replace(b"uvicorn", b"x" * 2000),
    ],
    ids=["no length", "two lengths", "no end", "too long"],
)
def test_what_has_no_shape(data: bytes) -> None:
    assert shape_of(data) is None


class Collected(Receiver):
    """A receiver that keeps what it was told."""

    def __init__(self, *, takes_whole: bool = False) -> None:
        self.takes_whole = takes_whole
        self.head: AnswerHead | None = None
        self.body = b""
        self.over: asyncio.Future[Loss | None] = asyncio.get_running_loop().create_future()

    def whole_received(self, content_type: bytes, body: bytes) -> bool:
        if self.takes_whole:
            assert content_type == b"application/json"
            self.body = body
            self.over.set_result(None)
        return self.takes_whole

    def head_received(self, head: AnswerHead) -> None:
        self.head = head

    def body_received(self, data: bytes) -> None:
        self.body += data

    def answer_ended(self, by_close: bool) -> None:
        self.over.set_result(None)

    def answer_lost(self, loss: Loss) -> None:
        self.over.set_result(loss)


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What llhttp was shown."""
    found: list[bytes] = []
    real = httptools.HttpResponseParser

    class Counted:
        def __init__(self, connection: Any) -> None:
            self._real = real(connection)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def feed_data(self, data: bytes) -> None:
            found.append(data)
            self._real.feed_data(data)

    monkeypatch.setattr(httptools, "HttpResponseParser", Counted)
    return found


@asynccontextmanager
async def pool_before(*answers: list[Step]) -> AsyncIterator[PodPool]:
    async with ScriptedPod([*answers]) as pod:
        yield PodPool(Pod("u", "p", "p", "127.0.0.1", pod.port), 1.0, lambda: 0.0)


async def asked(connection: PodConnection, *, takes_whole: bool = False) -> tuple[Collected, Loss | None]:
    receiver = Collected(takes_whole=takes_whole)
    connection.send(POST, (), receiver)
    async with within(5):
        return receiver, await receiver.over


@pytest.mark.parametrize("takes_whole", [False, True], ids=["in its parts", "at once"])
async def test_a_known_answer_is_told_as_if_it_were_parsed(fed: list[bytes], *, takes_whole: bool) -> None:
    async with pool_before([said()], [said(b"[2]")], [said(b"[3]")]) as pool:
        connection = await pool.connect()
        first, _ = await asked(connection)
        for body in (b"[2]", b"[3]"):
            assert pool.take() is connection
            again, loss = await asked(connection, takes_whole=takes_whole)
            assert first.head is not None
            fields = {name: value for name, value in first.head.fields.items() if name != b"content-length"}
            head = None if takes_whole else first.head._replace(content_length=3, fields=fields)
            assert (again.head, again.body) == (head, body)
            assert loss is None
        assert fed == [said()]
        connection.abort()


async def test_another_head_is_parsed_and_then_known(fed: list[bytes]) -> None:
    later = said().replace(b"12:00:00", b"12:00:01")
    async with pool_before([said()], [later], [later]) as pool:
        connection = await pool.connect()
        for _ in range(3):
            await asked(connection)
            assert pool.take() is connection
        assert fed == [said(), later]
        connection.abort()


async def test_an_error_is_never_taken_for_what_is_known(fed: list[bytes]) -> None:
    refused = said(b"{}", status=b"400 Bad Request")
    async with pool_before([refused], [refused], [said()]) as pool:
        connection = await pool.connect()
        for status in (400, 400, 200):
            came, _ = await asked(connection)
            assert came.head is not None
            assert came.head.status == status
            assert pool.take() is connection
        assert len(fed) == 3
        connection.abort()


async def test_an_encoded_answer_is_never_told_at_once(fed: list[bytes]) -> None:
    encoded = said().replace(b"server: uvicorn", b"content-encoding: gzip")
    async with pool_before([encoded], [encoded]) as pool:
        connection = await pool.connect()
        for _ in range(2):
            assert (await asked(connection))[0].body == BODY
            assert pool.take() is connection
        assert len(fed) == 2
        connection.abort()


@given(st.binary(min_size=1, max_size=12_000) | st.sampled_from([b"\r\n\r\n", b"%d", b"1"]))
def test_a_body_of_any_length_and_content_is_found(body: bytes) -> None:
    assert body_within(said(body), shape()) == body


def test_a_head_may_have_percent_signs() -> None:
    odd = said().replace(b"uvicorn", b"100% %d %b")
    found = shape_of(odd)
    assert found is not None
    assert body_within(odd, found) == BODY
    assert not body_within(odd.replace(b"100%", b"100%%"), found)


async def test_more_than_the_answer_is_junk_as_ever() -> None:
    async with pool_before([said()], [said() + b"HTTP/1.1 200 OK\r\n"]) as pool:
        connection = await pool.connect()
        assert (await asked(connection))[1] is None
        assert pool.take() is connection
        assert (await asked(connection))[1] is Loss.JUNK


async def test_an_answer_that_is_cut_behind_a_known_head_is_cut() -> None:
    async with pool_before([said()], [said()[:-2], Close]) as pool:
        connection = await pool.connect()
        assert (await asked(connection))[1] is None
        assert pool.take() is connection
        assert (await asked(connection))[1] is Loss.CUT


async def test_a_receiver_that_will_have_nothing_of_a_known_answer_gets_no_end_of_it() -> None:
    async with pool_before([said()], [said()]) as pool:
        connection = await pool.connect()
        assert (await asked(connection))[1] is None
        assert pool.take() is connection
        receiver = Collected()
        receiver.head_received = lambda head: connection.drop(receiver)  # type: ignore[method-assign]
        connection.send(POST, (), receiver)
        async with within(5):
            while pool.live:
                await asyncio.sleep(0)
        assert not receiver.over.done()
        assert pool.take() is None
