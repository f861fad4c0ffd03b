"""The cheapest pod that still looks like a vLLM: `python -m loadtest.bench.backend --pods 2`.

One process plays all pods, one port each, and prints the ports as a JSON list once it listens. What it
must not do is take time: answers are fixed bytes, and nothing but a streamed request's body is parsed.
Each token goes out as one event in one HTTP chunk in one write, as vLLM's do.

`POST /bench/finish` (asked by the client directly, past the target) ends every open stream with its last
token, usage if asked, and `[DONE]`, one stream per millisecond: so a scenario may hold streams open as
long as it likes, and still see each come to a whole end.
"""

import argparse
import asyncio
import gc
import itertools
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, cast

import httptools
import uvloop

from loadtest.bench.pacer import Pacer
from loadtest.bench.wire import (
    CHAT_PATH,
    COMPLETION,
    MODELS,
    STREAM_HEAD,
    StreamBytes,
    Wish,
    json_answer,
    wish_in,
)

GRID_US: Final = 1000
FINISH_PATH: Final = b"/bench/finish"
_FINISH_EVERY_NS: Final = 1_000_000
_FIXED: Final = {
    b"/health": json_answer(b""),
    b"/v1/models": json_answer(MODELS),
    CHAT_PATH.encode(): json_answer(COMPLETION),
}
_NOT_FOUND: Final = json_answer(b'{"detail":"Not Found"}', b"404 Not Found")


class Stream:
    """One streamed answer: a beat per token, the last of which ends it."""

    def __init__(self, transport: asyncio.Transport, number: int, wish: Wish, with_usage: bool) -> None:
        self._transport = transport
        self._bytes = StreamBytes(number)
        self._left = wish.tokens
        self._sent = 0
        self._period_ns = wish.period_us * 1000
        self._with_usage = with_usage
        self.over = False
        transport.write(STREAM_HEAD)
        transport.write(self._bytes.role())

    def token(self) -> int | None:
        if self.over:
            return None
        if self._left == 1:
            self.finish()
            return None
        self._left -= 1
        self._sent += 1
        self._transport.write(self._bytes.token(time.monotonic_ns() // 1000))
        return self._period_ns

    def finish(self) -> None:
        if self.over:
            return
        self.over = True
        tokens = self._sent + 1
        usage = self._bytes.usage(tokens) if self._with_usage else b""
        self._transport.write(self._bytes.last(tokens) + usage + self._bytes.done())


class Pods:
    """What the connections of one process share: the pacer, and what is open."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._numbers = itertools.count(1)
        self._open: set[Stream] = set()
        self.transports: set[asyncio.Transport] = set()

    def open_stream(self, transport: asyncio.Transport, body: bytes) -> Stream:
        chat = json.loads(body)
        wish = wish_in(chat["messages"][-1]["content"])
        with_usage = bool((chat.get("stream_options") or {}).get("include_usage"))
        stream = Stream(transport, next(self._numbers), wish, with_usage)
        self._open.add(stream)
        period_ns = wish.period_us * 1000
        next_beat = (time.monotonic_ns() // period_ns + 1) * period_ns
        self._pacer.add(next_beat + wish.phase_us * 1000, stream.token)
        return stream

    def finish_all(self) -> None:
        soon = time.monotonic_ns()
        for index, stream in enumerate(self._open):
            self._pacer.add(soon + index * _FINISH_EVERY_NS, stream.finish)

    def closed(self, stream: Stream) -> None:
        stream.over = True
        self._open.discard(stream)


class PodConnection(asyncio.Protocol):
    """One keep-alive connection. A message's body is collected, then answered; pipelining is not foreseen."""

    def __init__(self, pods: Pods) -> None:
        self._pods = pods
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._body: list[bytes] = []
        self._stream: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # a stream protocol is only ever given this kind
        self._pods.transports.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pods.transports.discard(self._transport)
        self._drop_stream()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_url(self, url: bytes) -> None:
        self._path = url

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        self._body.clear()
        self._drop_stream()
        if self._path == FINISH_PATH:
            self._pods.finish_all()
            self._transport.write(json_answer(b"{}"))
            return
        if b'"stream":' in body:
            self._stream = self._pods.open_stream(self._transport, body)
            return
        self._transport.write(_FIXED.get(self._path, _NOT_FOUND))

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._pods.closed(self._stream)
            self._stream = None


@asynccontextmanager
async def serving(pods: int, grid_us: int) -> AsyncIterator[tuple[int, ...]]:
    """While open, that many pods listen on free loopback ports, which it gives; at its end all connections are cut."""
    loop = asyncio.get_running_loop()
    pacer = Pacer(loop, grid_us * 1000)
    shared = Pods(pacer)
    servers = [
        await loop.create_server(lambda: PodConnection(shared), "127.0.0.1", 0, backlog=2048) for _ in range(pods)
    ]
    try:
        yield tuple(server.sockets[0].getsockname()[1] for server in servers)
    finally:
        for server in servers:
            server.close()
        for transport in tuple(shared.transports):
            transport.abort()
        while shared.transports:
            await asyncio.sleep(0)  # each leaves in its connection_lost
        pacer.close()


async def _run(pods: int, grid_us: int) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with serving(pods, grid_us) as ports:
        print(json.dumps(ports), flush=True)
        gc.freeze()
        gc.disable()  # a pause of ours would be measured as the target's; cycles are few in minutes
        await stopped.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.backend", description=__doc__.splitlines()[0])
    parser.add_argument("--pods", type=int, default=2, help="how many ports to listen on")
    parser.add_argument("--grid-us", type=int, default=GRID_US, help="tokens are sent on a grid of this many µs")
    asked = parser.parse_args()
    uvloop.run(_run(asked.pods, asked.grid_us))


if __name__ == "__main__":
    main()
