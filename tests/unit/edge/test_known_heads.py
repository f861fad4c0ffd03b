"""A client that says the same head again is served as if it were read: on real sockets, beside who is parsed."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from weakref import WeakSet

import httptools
import pytest

from gateway.core.caller import Tenant
from gateway.limits.keys import KeyEntry, KeyRing, digest
from tests.door import BODY, EVENTS, GOOD, STREAM, Door, door, turn_the_loop, visitor
from tests.fakes import STREAM_HEAD, chunk
from tests.raw import RawClient, chat, request
from tests.turns import within


class Parsed:
    """Counts the heads that llhttp was shown."""

    def __init__(self) -> None:
        self.heads = 0
        self.parsers: WeakSet[object] = WeakSet()
        """That are there now."""


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Parsed:
    found = Parsed()
    real = httptools.HttpRequestParser

    class Counted:
        def __init__(self, connection: Any) -> None:
            found.parsers.add(self)
            self._real = real(connection)
            self.should_keep_alive = self._real.should_keep_alive
            self.should_upgrade = self._real.should_upgrade
            self.get_http_version = self._real.get_http_version
            self.get_method = self._real.get_method

        def feed_data(self, data: bytes) -> None:
            found.heads += data.startswith(b"POST ")
            self._real.feed_data(data)

    monkeypatch.setattr(httptools, "HttpRequestParser", Counted)
    return found


@asynccontextmanager
async def known(**more: Any) -> AsyncIterator[Door]:
    """A door, and a client whose head is known there."""
    async with door(**more) as at:
        at.client.send(at.chat())
        assert (await at.client.answer()).status == 200
        yield at


async def test_a_head_that_comes_again_is_not_parsed_and_answered_alike(parsed: Parsed) -> None:
    async with door() as at:
        answers = []
        for number in range(5):
            at.client.send(at.chat(user="x" * number))
            answers.append(await at.client.answer())
        assert parsed.heads == 1
        assert [json.loads(body).get("user") for body in at.bodies] == ["x" * number for number in range(5)]
        ids = [answer.headers.pop("x-request-id") for answer in answers]
        assert len(set(ids)) == 5
        for answer in answers:
            answer.headers.pop("date")
            assert (answer.status, answer.headers, answer.body) == (200, answers[0].headers, answers[0].body)
        lines = at.gateway.lines()
        assert [line["outcome"] for line in lines] == ["completed"] * 5
        assert {line["key_id"] for line in lines} == {lines[0]["key_id"]}


async def test_while_an_answer_lasts_nobody_keeps_a_parser_or_a_task_for_it(parsed: Parsed) -> None:
    """Ten thousand streams would keep ten thousand of each."""
    goes_on = asyncio.Event()
    first, rest = (chunk(part + b"\n\n") for part in EVENTS.split(b"\n\n", 1))
    async with door(STREAM_HEAD + first, goes_on, rest + b"0\r\n\r\n") as at, visitor(at.gateway) as other:
        before = asyncio.all_tasks()
        # The second stream wants a fresh connection to the pod.
        begun = []
        for client in (at.client, other):
            client.send(at.chat(stream=True))
            begun.append(await client.reader.readuntil(b'"a"'))
        assert not parsed.parsers
        since = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks() - before]
        assert since == ["ScriptedPod._serve"]
        goes_on.set()
        for client, bytes_so_far in zip((at.client, other), begun, strict=True):
            assert (await client.answer(begun=bytes_so_far)).body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("user", ["", "another"])
async def test_the_next_head_on_the_connection_is_read_whether_it_is_known_or_not(parsed: Parsed, user: str) -> None:
    async with known() as at:
        more = [b"X-Session-Id: " + user.encode()] if user else []
        at.client.send(at.post(b"Content-Length: %d" % len(BODY), *more, body=BODY))
        assert (await at.client.answer()).status == 200
        assert at.asked == 2


async def test_a_body_may_come_in_pieces_behind_it(parsed: Parsed) -> None:
    async with known() as at:
        whole = at.chat(user="in pieces")
        cut = whole.index(b"\r\n\r\n") + 4
        for piece in (whole[:cut], whole[cut : cut + 5], whole[cut + 5 :]):
            at.client.send(piece)
            await at.client.writer.drain()
            await turn_the_loop()
        assert (await at.client.answer()).status == 200
        assert json.loads(at.bodies[-1])["user"] == "in pieces"
        assert parsed.heads == 1


async def test_another_key_behind_the_same_head_is_another_caller(parsed: Parsed) -> None:
    async with known() as at:
        for key in (at.gateway.other_key, at.gateway.key, at.gateway.other_key):
            at.client.send(request(chat(), key=key))
            assert (await at.client.answer()).status == 200
        assert parsed.heads == 2
        assert [line["tenant"] for line in at.gateway.lines()] == ["tests", "others", "tests", "others"]


async def test_a_head_that_came_before_the_keys_were_read_anew_is_read_once_more(parsed: Parsed) -> None:
    async with known() as at:
        hashed = digest(at.gateway.key.encode())
        for team in ("new", "newer"):
            with new_keys(at, KeyEntry(hashed, Tenant("id", team))):
                for _ in range(3):
                    at.client.send(at.chat())
                    assert (await at.client.answer()).status == 200
        assert [line["tenant"] for line in at.gateway.lines()] == ["tests"] + ["new"] * 3 + ["newer"] * 3
        assert parsed.heads == 3


async def test_a_key_that_expires_while_its_head_is_known_is_refused() -> None:
    async with known() as at:
        wall = 100.0
        entry = KeyEntry(digest(at.gateway.key.encode()), Tenant("id", "team", expires_at=101.0))
        at.gateway.gateway.reception.keys = KeyRing([entry], lambda: wall)
        for now, status in ((100.0, 200), (100.9, 200), (101.0, 401)):
            wall = now
            at.client.send(at.chat())
            assert (await at.client.answer()).status == status


@contextmanager
def new_keys(at: Door, *entries: KeyEntry) -> Iterator[None]:
    at.gateway.gateway.reception.keys = KeyRing(entries, lambda: 100.0)
    yield


@pytest.mark.parametrize("entry", [{}, {"disabled": True}, {"expires_at": 99.0}])
async def test_a_key_that_is_taken_away_is_refused_on_a_connection_that_knew_it(entry: dict[str, Any]) -> None:
    async with known() as at:
        hashed = digest(at.gateway.key.encode())
        tenant = Tenant("id", "team", expires_at=entry.get("expires_at"))
        entries = [KeyEntry(hashed, tenant, disabled=bool(entry.get("disabled")))] if entry else []
        with new_keys(at, *entries):
            at.client.send(at.chat())
            came = await at.client.answer()
        assert (came.status, came.error["code"]) == (401, "invalid_api_key")


async def test_a_key_that_is_no_key_is_refused_behind_a_head_that_is_known() -> None:
    async with known() as at:
        at.client.send(request(chat(), key=at.gateway.key[:-1] + "~"))
        assert (await at.client.answer()).status == 401


@pytest.mark.parametrize("spelling", ["Bearer {}", " Bearer {}", "\tBearer {}", "Bearer {} ", "Bearer  {}"])
async def test_a_head_with_two_keys_is_read_each_time(spelling: str) -> None:
    async with door() as at:

        def asked(key: str) -> bytes:
            return request(chat(), headers={"Authorization": spelling.format(at.gateway.key), "x-api-key": key})

        at.client.send(asked(at.gateway.key))
        assert (await at.client.answer()).status == 200
        assert not at.gateway.gateway.edge.known
        at.client.send(asked(at.gateway.other_key))
        assert (await at.client.answer()).status == 401


async def test_what_the_configuration_says_now_holds_for_it_too() -> None:
    async with known() as at:
        at.gateway.gateway.reception.max_body_bytes = 10
        at.client.send(at.chat())
        came = await at.client.answer()
        assert (came.status, came.error["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("length", ["999999999", "00000", "1"])
async def test_a_length_that_is_not_the_body_s_is_as_it_is_for_a_head_that_is_read(length: str) -> None:
    async with known() as knows, door() as reads:
        ends = []
        for at in (knows, reads):
            at.client.send(request(chat(), key=at.gateway.key, headers={"Content-Length": length}))
            came = await at.client.answer()
            ends.append((came.status, came.error["code"], came.headers.get("connection")))
        assert ends[0] == ends[1]


async def test_what_is_pipelined_behind_it_is_not_answered() -> None:
    async with known() as at:
        at.client.send(at.chat() + at.chat())
        came = await at.client.answer()
        assert (came.status, came.headers["connection"]) == (200, "close")
        assert await at.client.closed()


async def test_what_is_pipelined_behind_a_body_in_pieces_is_not_answered_either() -> None:
    async with known() as at:
        whole = at.chat()
        at.client.send(whole[:-5])
        await turn_the_loop()
        at.client.send(whole[-5:] + whole)
        came = await at.client.answer()
        assert (came.status, came.headers["connection"]) == (200, "close")
        assert await at.client.closed()


async def test_a_line_end_behind_a_body_in_pieces_is_no_further_request() -> None:
    async with known() as at:
        whole = at.chat()
        for behind in (b"\r\n", b"\n\r\n", b""):
            at.client.send(whole[:-5])
            await turn_the_loop()
            at.client.send(whole[-5:] + behind)
            came = await at.client.answer()
            assert (came.status, came.headers.get("connection")) == (200, None)


async def test_what_it_says_goes_on_to_the_pod_each_time() -> None:
    async with door(STREAM) as at:
        for _ in range(3):
            at.client.send(request(chat(stream=True), key=at.gateway.key, headers={"Accept": "a/b"}))
            assert (await at.client.answer()).status == 200
        assert [b"accept: a/b\r\n" in raw for raw in at.pod.requests] == [True] * 3


async def test_a_client_that_leaves_in_the_middle_of_such_a_body_is_counted_as_one_that_left() -> None:
    async with known() as at:
        at.client.send(at.chat()[:-5])
        await turn_the_loop()
        at.client.leave()
        async with within(5):
            while at.gateway.gateway.edge.connections:
                await asyncio.sleep(0)
        line = await at.gateway.last_line()
        assert line["outcome"] == "client_left"
        assert at.gateway.gateway.edge.bodies.held == 0


async def test_who_says_something_new_each_time_has_its_heads_read_and_not_kept(parsed: Parsed) -> None:
    async with door() as at:
        for number in range(10):
            at.client.send(request(chat(), key=at.gateway.key, headers={"x-number": str(number)}))
            assert (await at.client.answer()).status == 200
        assert parsed.heads == 10
        assert len(at.gateway.gateway.edge.known) <= 5


async def test_while_it_is_served_its_connection_is_busy_and_not_let_go() -> None:
    may_answer = asyncio.Event()
    async with known() as at:
        edge = at.gateway.gateway.edge
        assert not edge.busy
        at.pod.scripts = [[may_answer, GOOD]]
        at.client.send(at.chat())
        async with within(5):
            while at.asked < 2:
                await asyncio.sleep(0)
        assert edge.busy
        edge.turn_away()
        edge.let_go()
        edge.close()
        may_answer.set()
        came = await at.client.answer()
        assert (came.status, came.headers["connection"]) == (200, "close")
        assert await at.client.closed()


async def test_what_else_is_asked_in_between_does_not_make_it_forgotten(parsed: Parsed) -> None:
    async with known() as at:
        for _ in range(10):
            at.client.send(request(b"", key=at.gateway.key, method="GET", path="/v1/models"))
            assert (await at.client.answer()).status == 200
            at.client.send(at.chat())
            assert (await at.client.answer()).status == 200
        assert parsed.heads == 1


@pytest.mark.parametrize(
    "headers",
    [{"x-request-id": "mine"}, {"origin": "https://page"}, {"x-openwebui-user-id": "ann"}, {"Connection": "close"}],
    ids=str,
)
async def test_what_may_mean_something_else_the_next_time_is_read_each_time(headers: dict[str, str]) -> None:
    async with door() as at:
        at.client.send(request(chat(), key=at.gateway.key, headers=headers))
        assert (await at.client.answer()).status == 200
        assert not at.gateway.gateway.edge.known


async def test_connections_of_one_client_share_what_is_known() -> None:
    async with known() as at:
        other = await RawClient.connect(at.gateway.port)
        other.send(at.chat())
        assert (await other.answer()).status == 200
        assert len(at.gateway.gateway.edge.known) == 1
        other.leave()
