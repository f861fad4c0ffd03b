"""Any valid stream, split at any bytes: the data events leave as they came; cut anywhere, a prefix and the truth.

These go through the relay itself, with the bytes handed over as a socket would; `tests/integration` does the same for
chosen streams over real sockets.
"""

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.fleet import Deadlines
from gateway.pipeline.dialects import END_MARK, OPENAI
from gateway.pipeline.relay import Content, Ended, Failed, StreamRelay, TailBudget
from gateway.upstream.connection import AnswerHead, Loss
from gateway.upstream.sse import EventFramer, is_comment, payload
from gateway.upstream.usage import ChoicesReader
from tests.fakes import FakeExchange, Hands

HEAD = AnswerHead(200, {b"content-type": b"text/event-stream; charset=utf-8"}, None, b"text/event-stream")
DONE = b"data: [DONE]"

line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
# What may stand in a delta's text: any bytes but quotes, backslashes and control characters, invalid UTF-8 included;
# and escapes.
texts = st.lists(
    st.one_of(
        st.binary(max_size=12).map(lambda raw: bytes(byte for byte in raw if byte >= 0x20 and byte not in b'"\\')),
        st.sampled_from(
            [b"\\n", b'\\"', b"\\u00e9", "é".encode(), b"\xff\xfe", b"data: [DONE]", b'\\"finish_reason\\":']
        ),
    ),
    max_size=6,
).map(b"".join)


def token(text: bytes, index: int = 0, finish: bytes = b"null") -> bytes:
    """The line of one token event."""
    return (
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":%d,'
        b'"delta":{"content":"%b"},"logprobs":null,"finish_reason":%b,"token_ids":null}]}' % (index, text, finish)
    )


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'
COMMENTS = st.sampled_from([b": keep-alive", b":", b": \xff"])
OTHERS = st.sampled_from([b"data: not json", b'data: {"object":"x"}', b"event: x", b"id: 1", b"data: {broken"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], int]:
    """(event blocks with their blank lines, how many indices) of a whole stream, usage asked."""
    indices = draw(st.integers(1, 3))
    lines: list[bytes] = [token(b"", index) for index in range(indices)]
    lines += [token(text, draw(st.integers(0, indices - 1))) for text in draw(st.lists(texts, max_size=8))]
    if draw(st.booleans()):
        lines.insert(draw(st.integers(0, len(lines))), draw(st.one_of(COMMENTS, OTHERS)))
    lines += [token(b"end", index, b'"stop"') for index in range(indices)]
    if draw(st.booleans()):
        lines.insert(draw(st.integers(1, len(lines))), draw(COMMENTS))
    lines += [USAGE, DONE]
    end = draw(line_ends)
    mixed = draw(st.booleans())
    blocks = []
    for line in lines:
        first = draw(line_ends) if mixed else end
        # Two lone ends must not melt into one: CR then LF would be a single line end.
        second = first if first == b"\r" else (draw(line_ends) if mixed else end)
        if second == b"\r" and first != b"\r":
            second = b"\n"
        blocks.append(line + first + second)
    return blocks, indices


def split(draw: Any, data: bytes) -> list[bytes]:
    """The bytes in pieces of any size."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=20)))
    edges = [0, *cuts, len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


split_streams = st.composite(lambda draw: (stream := draw(streams()), split(draw, b"".join(stream[0]))))


def relay_for(indices: int, wants_usage: bool) -> tuple[StreamRelay, FakeExchange]:
    relay = StreamRelay(
        ChoicesReader(indices),
        Deadlines(),
        0.0,
        Hands(),
        asyncio.get_running_loop(),
        wants_usage=wants_usage,
        end_mark=END_MARK,
        budget=TailBudget(1 << 24),
    )
    relay.head_received(HEAD)
    return relay, FakeExchange()


async def play(relay: StreamRelay, exchange: FakeExchange, pieces: list[bytes], loss: Loss | None) -> Ended | Failed:
    """Hand over the pieces, committing when `serve` would; the ending, or the failure before the commit."""
    committed = False
    for piece in pieces:
        relay.body_received(piece)
        if not committed and relay.first.done() and isinstance(relay.first.result(), Content):
            relay.commit(exchange)
            committed = True
    if loss is None:
        relay.answer_ended(by_close=False)
    else:
        relay.answer_lost(loss)
    if not committed and relay.first.done() and isinstance(relay.first.result(), Content):
        relay.commit(exchange)
        committed = True
    first = relay.first.result()
    return relay.ended.result() if committed else first  # type: ignore[return-value]


def expected(blocks: list[bytes], wants_usage: bool) -> bytes:
    """What a client must get: every data event as it came, comments in the one safe form, no usage unasked."""
    out = b""
    content = False
    for block in blocks:
        if is_comment(block):
            out += b": keep-alive\n" if content else b""
            continue
        content = content or b'"choices":[{' in block
        if b'"choices":[],"usage"' not in block or wants_usage:
            out += block
    return out


@settings(max_examples=400)
@given(split_streams(), st.booleans())
def test_a_whole_stream_leaves_as_it_came_however_it_is_split(
    made: tuple[tuple[list[bytes], int], list[bytes]], wants_usage: bool
) -> None:
    (blocks, indices), pieces = made

    async def go() -> None:
        relay, exchange = relay_for(indices, wants_usage)
        ended = await play(relay, exchange, pieces, None)
        assert isinstance(ended, Ended)
        assert ended.error is None
        assert exchange.body + ended.held == expected(blocks, wants_usage)
        usage = relay.reader.usage()
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (3, 2)
        relay.discard()
        assert relay._budget.left == 1 << 24

    asyncio.run(go())


@settings(max_examples=400)
@given(split_streams(), st.data(), st.sampled_from([None, Loss.CUT, Loss.RESET, Loss.JUNK]))
def test_cut_anywhere_the_client_gets_a_prefix_of_whole_events_and_the_error(
    made: tuple[tuple[list[bytes], int], list[bytes]], data: st.DataObject, loss: Loss | None
) -> None:
    (blocks, indices), _ = made
    whole = b"".join(blocks)
    # Before `[DONE]` is whole, that is; a lone CR at the end is its line end only once the stream is over.
    at = data.draw(st.integers(0, len(whole) - len(blocks[-1])))
    pieces = split(data.draw, whole[:at])

    async def go() -> None:
        relay, exchange = relay_for(indices, True)
        ended = await play(relay, exchange, pieces, loss)
        if isinstance(ended, Failed):
            assert exchange.body == b""
            return
        assert ended.error is not None
        assert ended.held == b""
        told = json.loads(payload(OPENAI.event(ended.error, 0).partition(b"\n\n")[0] + b"\n\n") or b"")
        assert told["error"]["code"] in ("upstream_truncated", "upstream_reset", "upstream_failed")
        wanted = expected(blocks, False)
        assert wanted.startswith(exchange.body)
        # Nothing but whole events: what is left of the expected bytes begins at an event's start.
        sizes = {0}
        for count in range(len(blocks) + 1):
            sizes.add(len(expected(blocks[:count], False)))
        assert len(exchange.body) in sizes

    asyncio.run(go())


@settings(max_examples=300)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=20), line_ends), max_size=8), st.data())
def test_framing_does_not_depend_on_how_the_bytes_are_split(
    parts: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(text + end + end for text, end in parts)
    at_once = EventFramer()
    together = at_once.feed(stream) + at_once.close()
    framer = EventFramer()
    apart = [event for piece in split(data.draw, stream) for event in framer.feed(piece)] + framer.close()
    assert apart == together
    assert len(framer.tail) == 0


@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_lines_up_to_the_bound_pass_and_longer_ones_end_the_stream(size: int) -> None:
    text = b"x" * ((1 << 20) - 300)
    for more, passes in ((b"", True), (b"y" * 300_000, False)):
        relay, exchange = relay_for(1, False)
        stream = token(b"") + b"\n\n" + token(text + more) + b"\n\n"
        step = size if size > 1 else 65_537
        pieces = [stream[i : i + step] for i in range(0, len(stream), step)]
        ended = await play(relay, exchange, pieces, Loss.CUT)
        assert isinstance(ended, Ended)
        assert (text in exchange.body) is passes
        assert ended.error is not None
        assert ended.error.code == ("upstream_truncated" if passes else "upstream_failed")
