"""What goes through unread is what would have been read: any bytes of a pod, with and without the short way."""

import asyncio
from itertools import pairwise
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core.fleet import Deadlines
from gateway.pipeline.dialects import END_MARK
from gateway.pipeline.relay import Content, StreamRelay, TailBudget
from gateway.upstream.connection import PodConnection
from gateway.upstream.sse import EventFramer, cut_run
from gateway.upstream.usage import PLAIN_TOKEN, ChoicesReader
from tests.fakes import FakeExchange, Hands

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
BEGIN = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
END = b',"token_ids":null}]}\n\n'
LAST = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\ndata: [DONE]\n\n'


def token(text: bytes = b"x", finish: bytes = b"null", key: bytes = b"content") -> bytes:
    return BEGIN + b'"delta":{"%b":"%b"},"logprobs":null,"finish_reason":%b' % (key, text, finish) + END


def chunk(data: bytes, extension: bytes = b"", zeros: bytes = b"", lie: int = 0) -> bytes:
    return zeros + b"%x%b\r\n%b\r\n" % (len(data) + lie, extension, data)


TEXTS = st.sampled_from(
    [b"", b"x", b" two", b"\\n", b'\\"', b"\\", b'"', b"\n\n", b"\r\n", "é".encode(), b"[DONE]", b"0"]
)
EVENTS = st.one_of(
    st.builds(token, TEXTS),
    st.builds(token, TEXTS, st.sampled_from([b"null", b"null", b'"stop"'])),
    st.builds(token, TEXTS, st.just(b"null"), st.sampled_from([b"content", b"reasoning"])),
    st.just(token() + token()),
    st.just(b": keep-alive\n\n"),
    st.just(b"data: [DONE]\n\n"),
    # A chunk inside a chunk: nothing but where the pod's own chunks end tells it from one.
    st.just(chunk(token())),
    st.just(b"\n\n" + chunk(token())),
)


@st.composite
def answers(draw: st.DrawFn) -> list[bytes]:
    """What a pod sends behind its head, in reads: mostly a chunk each, some cut or melted, some not HTTP at all."""
    chunks = []
    for event in draw(st.lists(EVENTS, min_size=1, max_size=8)):
        whole = chunk(
            event,
            draw(st.sampled_from([b"", b"", b"", b";a=b", b";"])),
            draw(st.sampled_from([b"", b"", b"", b"0", b"1", b" "])),
            draw(st.sampled_from([0, 0, 0, 0, 1, -1, 16])),
        )
        chunks.append(whole)
    raw = b"".join(chunks) + draw(st.sampled_from([b"", chunk(LAST) + b"0\r\n\r\n", b"0\r\n\r\n", chunk(LAST)]))
    ends = [0]
    for each in chunks:
        ends.append(ends[-1] + len(each))
    usual = draw(st.sampled_from([ends, ends, ends[::2], []]))
    near = [end + off for end in ends for off in (-3, -2, -1, 1, 2, 3, 4, 5)]
    cuts = sorted({0, len(raw), *usual, *draw(st.lists(st.sampled_from(near), max_size=3))})
    return [raw[a:b] for a, b in pairwise(each for each in cuts if 0 <= each <= len(raw)) if a < b]


class Wire:
    """A pod's transport, as far as a connection knows it."""

    def __init__(self) -> None:
        self.closed = False

    def get_extra_info(self, name: str) -> None: ...
    def write(self, data: bytes) -> None: ...
    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True


async def play(reads: list[bytes], *, short_way: bool) -> tuple[Any, ...]:
    """What the client got, and what the gateway came to know, after each read."""
    relay = StreamRelay(
        ChoicesReader(1),
        Deadlines(),
        0.0,
        Hands(),
        asyncio.get_running_loop(),
        wants_usage=True,
        end_mark=END_MARK,
        budget=TailBudget(1 << 24),
    )
    exchange = FakeExchange()
    passed: list[bytes] = []

    def write_chunk(data: bytes) -> None:
        passed.append(data)
        size, _, rest = data.partition(b"\r\n")
        assert rest.endswith(b"\r\n")
        assert int(size, 16) == len(rest) - 2
        exchange.write(rest[:-2])

    exchange.write_chunk = write_chunk if short_way else None
    wire = Wire()
    connection = PodConnection(lambda _: None, lambda _: None)
    connection.connection_made(wire)  # type: ignore[arg-type]  # as far as it knows
    relay.connection = connection
    connection.send(b"", (), relay)
    seen: list[object] = []
    committed = False
    for read in [HEAD, *reads]:
        if wire.closed:
            break
        connection.data_received(read)
        if not committed and relay.first.done():
            if not isinstance(relay.first.result(), Content):
                seen.append(relay.first.result())
                break
            relay.commit(exchange)
            committed = True
        ended = relay.ended.result() if relay.ended.done() else None
        seen.append((exchange.body, relay.events, relay.reader.openings, ended, wire.closed))
    return seen, passed


@settings(max_examples=600)
@given(answers())
@example([chunk(token()), chunk(token()), chunk(token()), chunk(token())])
@example([chunk(token()), chunk(token()), chunk(token(), lie=1), chunk(token())])
@example([chunk(token()), chunk(token()) + b"1", chunk(token()), chunk(token())])
@example([chunk(token()), chunk(chunk(token()))[:4], chunk(token()), b"\r\n"])
def test_with_and_without_the_short_way_a_client_gets_the_same(reads: list[bytes]) -> None:
    async def go() -> None:
        seen, _ = await play(reads, short_way=True)
        read, _ = await play(reads, short_way=False)
        assert [str(each) for each in seen] == [str(each) for each in read]

    asyncio.run(go())


async def test_tokens_in_chunks_of_their_own_go_the_short_way() -> None:
    texts = [b"a", b" bc", b"\\n", "é".encode(), b"", b"x" * 300]
    reads = [chunk(token(b"first")), chunk(token(b"second")), *(chunk(token(text)) for text in texts)]
    _, passed = await play(reads, short_way=True)
    assert passed == reads[2:]


async def test_what_is_not_a_token_like_the_last_is_read_and_the_one_behind_it_may_be_passed_again() -> None:
    other = token(b"x", key=b"reasoning")
    reads = [*[chunk(token())] * 3, *[chunk(other)] * 2, chunk(token()), chunk(token() * 2), *[chunk(token())] * 2]
    _, passed = await play(reads, short_way=True)
    assert passed == [reads[2], reads[4], reads[-1]]


RUNS = st.lists(st.one_of(EVENTS, st.builds(token, st.sampled_from([b"a", b" b", b"\\n"]))), max_size=6)


@settings(max_examples=400)
@given(RUNS)
def test_many_tokens_are_counted_at_once_only_if_each_is_one_like_the_first(events: list[bytes]) -> None:
    run = b"".join(events)
    counted = PLAIN_TOKEN.count(run)
    found = [PLAIN_TOKEN.fullmatch(event) for event in cut_run(run)]
    alike = {each and each.groups() for each in found}
    assert counted == (len(found) if len(alike) == 1 and None not in alike and b"\r" not in run else 0)


@settings(max_examples=400)
@given(st.lists(st.sampled_from([b"a\n\n", b"bc\n", b"\n", b"\n\n", b"d"]), max_size=8), st.data())
def test_a_run_of_events_is_the_events_in_it(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    one, other = EventFramer(), EventFramer()
    for a, b in pairwise([0, *cuts, len(whole)]):
        if a < b:
            run = other.feed_run(whole[a:b])
            assert run is not None
            assert cut_run(run) == one.feed(whole[a:b])
    assert bytes(other.tail).lstrip(b"\n") == bytes(one.tail).lstrip(b"\n")
