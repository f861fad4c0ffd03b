"""The cheapest pod that still looks like a vLLM: `python -m loadtest.bench.backend --pods 2`.

One process plays all pods, one port each, and prints the ports as a JSON list once it listens. With
`--all-addresses` it listens on one port of every address instead, so that 127.1.0.1, 127.1.0.2, ... are as
many pods as a bench wants. What it must not do is take time: answers are fixed bytes, and nothing but a
streamed request's body is parsed. Each token goes out as one event in one HTTP chunk in one write, as
vLLM's do. `/load` tells a pod's open streams; `/metrics` has the size of a real one, and never changes.

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
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, cast

import httptools
import uvloop

from loadtest.bench.pacer import Pacer
from loadtest.bench.wire import (
    CHAT_PATH,
    COMPLETION,
    MODEL,
    MODELS,
    STREAM_HEAD,
    StreamBytes,
    Wish,
    json_answer,
    wish_in,
)
from loadtest.simulator.gauges import EngineStats, exposition

GRID_US: Final = 1000
BURST: Final = 32
"""Tokens that go out in one write where a stream is not paced: as a pod's do that was not asked to read for a while."""
FINISH_PATH: Final = b"/bench/finish"
LOAD_PATH: Final = b"/load"
METRICS_BYTES: Final = 52_000
"""What a fresh vLLM 0.32 has to say at `/metrics`."""
_FINISH_EVERY_NS: Final = 1_000_000


def metrics_body(size: int) -> bytes:
    """The simulator's exposition for an idle engine, and as many more histograms as make `size` bytes of it."""
    body = exposition(
        EngineStats(),
        model=MODEL,
        created=1795458647.8478798,
        block_size_tokens=16,
        kv_blocks=10_000,
        sleep_level=None,
        max_loras=1,
        wall_offset=0.0,
    )
    name = b"vllm:e2e_request_latency_seconds"
    histogram = b"".join(line for line in body.splitlines(keepends=True) if name in line)
    more = -(-(size - len(body)) // len(histogram))
    return body + b"".join(
        histogram.replace(name, b"vllm:another_%03d_latency_seconds" % number) for number in range(more)
    )


def _metrics_answer() -> bytes:
    of_json, of_text = b"content-type: application/json", b"content-type: text/plain; version=1.0.0; charset=utf-8"
    return json_answer(metrics_body(METRICS_BYTES)).replace(of_json, of_text, 1)


_FIXED: Final = {
    b"/health": json_answer(b""),
    b"/metrics": _metrics_answer(),
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
        self.held_up = False
        """The transport has enough to send: an unpaced stream waits."""
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

    def pour(self) -> None:
        """Unpaced: as many tokens as the transport takes, a burst in each turn of the loop."""
        if self.over or self.held_up:
            return
        burst = min(BURST, self._left - 1)
        now_us = time.monotonic_ns() // 1000
        self._transport.write(self._bytes.token(now_us) * burst)
        self._sent += burst
        self._left -= burst
        if self._left == 1:
            self.finish()
        elif not self.held_up:
            asyncio.get_running_loop().call_soon(self.pour)

    def finish(self) -> None:
        if self.over:
            return
        self.over = True
        tokens = self._sent + 1
        usage = self._bytes.usage(tokens) if self._with_usage else b""
        self._transport.write(self._bytes.last(tokens) + usage + self._bytes.done())


Address = tuple[str, int]
"""Where a connection came in: which pod it is of."""


class Pods:
    """What the connections of one process share: the pacer, and what is open."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._numbers = itertools.count(1)
        self._open = defaultdict[Address, set[Stream]](set)
        self.transports: set[asyncio.Transport] = set()

    def open_stream(self, pod: Address, transport: asyncio.Transport, body: bytes) -> Stream:
        chat = json.loads(body)
        wish = wish_in(chat["messages"][-1]["content"])
        with_usage = bool((chat.get("stream_options") or {}).get("include_usage"))
        stream = Stream(transport, next(self._numbers), wish, with_usage)
        self._open[pod].add(stream)
        if not wish.period_us:
            asyncio.get_running_loop().call_soon(stream.pour)
            return stream
        period_ns = wish.period_us * 1000
        next_beat = (time.monotonic_ns() // period_ns + 1) * period_ns
        self._pacer.add(next_beat + wish.phase_us * 1000, stream.token)
        return stream

    def finish_all(self) -> None:
        soon = time.monotonic_ns()
        for index, stream in enumerate(itertools.chain.from_iterable(self._open.values())):
            self._pacer.add(soon + index * _FINISH_EVERY_NS, stream.finish)

    def closed(self, pod: Address, stream: Stream) -> None:
        """The client has gone, or asks the next thing."""
        stream.over = True
        self._open[pod].discard(stream)

    def load(self, pod: Address) -> bytes:
        """As vLLM's `/load` with its tracking on: the requests that are open, this one not among them."""
        return json_answer(b'{"server_load":%d}' % sum(not stream.over for stream in self._open.get(pod, ())))


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
        self._pod: Address = self._transport.get_extra_info("sockname")
        self._pods.transports.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pods.transports.discard(self._transport)
        self._drop_stream()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def pause_writing(self) -> None:
        if self._stream is not None:
            self._stream.held_up = True

    def resume_writing(self) -> None:
        if self._stream is not None and self._stream.held_up:
            self._stream.held_up = False
            self._stream.pour()

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
        if b'"stream":true' in body or b'"stream": true' in body:  # some proxies write a `false` where none was
            self._stream = self._pods.open_stream(self._pod, self._transport, body)
            return
        if self._path == LOAD_PATH:
            self._transport.write(self._pods.load(self._pod))
            return
        self._transport.write(_FIXED.get(self._path, _NOT_FOUND))

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._pods.closed(self._pod, self._stream)
            self._stream = None


@asynccontextmanager
async def serving(pods: int, grid_us: int, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[tuple[int, ...]]:
    """While open, that many pods listen, on free ports unless one is given; at its end all connections are cut.

    It gives the ports. One pod at the host 0.0.0.0 is as many pods as there are addresses.
    """
    loop = asyncio.get_running_loop()
    pacer = Pacer(loop, grid_us * 1000)
    shared = Pods(pacer)
    servers = [await loop.create_server(lambda: PodConnection(shared), host, port, backlog=2048) for _ in range(pods)]
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


async def _run(pods: int, grid_us: int, host: str, port: int) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with serving(pods, grid_us, host=host, port=port) as ports:
        print(json.dumps(ports), flush=True)
        gc.freeze()
        gc.disable()  # a pause of ours would be measured as the target's; cycles are few in minutes
        await stopped.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.backend", description=__doc__.splitlines()[0])
    parser.add_argument("--pods", type=int, default=2, help="how many ports to listen on")
    parser.add_argument("--grid-us", type=int, default=GRID_US, help="tokens are sent on a grid of this many µs")
    parser.add_argument("--all-addresses", action="store_true", help="listen on one port of 0.0.0.0 instead")
    parser.add_argument("--port", type=int, default=0, help="that port; without it, or 0, a free one")
    asked = parser.parse_args()
    if asked.port and not asked.all_addresses:
        parser.error("--port goes with --all-addresses")
    host, pods = ("0.0.0.0", 1) if asked.all_addresses else ("127.0.0.1", asked.pods)
    uvloop.run(_run(pods, asked.grid_us, host, asked.port))


if __name__ == "__main__":
    main()
