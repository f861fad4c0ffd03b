"""What the gateway's own Python costs: `python -m loadtest.bench.inside`, in one process, without a socket.

A whole gateway on uvloop, all features on: keys, metrics, the access line to a file, two pods. Only the transports are
made up: a client's takes what is written, a pod's answers at once with the bench's fixed bytes. So what is left out is
the kernel's part and most of uvloop's, and a figure moves by hundredths where one of `make bench` moves by tenths.
In a loop as short as this the code stands in the processor's caches, where a gateway that serves real sockets has it
less so: read differences between trees, and believe those of `make bench`.

With several `--tree DIR` each is measured by a process of its own, in turns, in an order that turns with each round.
That process runs this very file with `PYTHONPATH` set to the tree, so that a tree without it can be measured too.
"""

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import uvloop
import yaml

from gateway.app import Gateway
from gateway.config.keys import load_keys
from gateway.config.reading import load_config
from loadtest.bench.targets import gateway_config, keys_entry, new_key
from loadtest.bench.wire import (
    CHAT_PATH,
    COMPLETION,
    MODELS,
    STREAM_HEAD,
    StreamBytes,
    Wish,
    chat_body,
    chat_request,
    json_answer,
    stream_body,
)

TOKENS: Final = 100
"""Of a stream."""
TURNS_A_SWEEP: Final = 50
"""As many requests as a busy gateway serves between two of its sweeps."""
READ_BYTES: Final = 65_536
"""How a large body comes: about what one read of a loopback socket brings."""
FAR: Final = {"requests_per_minute": 10_000_000, "tokens_per_minute": 1_000_000_000, "concurrent": 1_000_000}
_TREE: Final = Path(__file__).resolve().parents[2]


class Load(NamedTuple):
    """What is asked in one round: so many clients ask at once, so often."""

    bytes: int
    clients: int
    turns: int


LOADS: Final = {"small": Load(400, 32, 100), "32k": Load(32 << 10, 16, 40), "1m": Load(1 << 20, 4, 5)}
STREAMS: Final = Load(400, 32, 4)


class BodiesDiffer(Exception):
    """An answer did not come whole, or is not the pod's."""


# --- transports ---------------------------------------------------------------------------------------------------


class _Socket:
    """What is asked of a connection's socket."""

    def setsockopt(self, *_: object) -> None: ...


class Line(asyncio.Transport):
    """One end of a connection that nobody else holds. What is asked all the time costs no Python frame."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 50_000), "socket": _Socket()})
        self.sent: list[bytes] = []
        self.write = self.sent.append  # type: ignore[method-assign,assignment]  # a list's own method is the cheapest
        self.is_closing = False.__bool__  # type: ignore[method-assign]
        self.get_write_buffer_size = (0).__int__  # type: ignore[method-assign]

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class PodLine(Line):
    """The gateway's end of a connection to a pod. What it writes waits in `asked` for the pod."""

    def __init__(self, protocol: asyncio.Protocol, asked: "list[PodLine]") -> None:
        super().__init__()
        self.protocol = protocol
        self._asked = asked
        self.write = self._ask  # type: ignore[method-assign]

    def _ask(self, data: Any) -> None:
        self.sent.append(data)
        self._asked.append(self)


class InsideLoop(uvloop.Loop):
    """A loop whose connections lead to pods in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[PodLine] = []

    async def create_connection(  # type: ignore[override]  # all the rest of it is of no use here
        self, factory: Any, *_: object, **__: object
    ) -> tuple[PodLine, asyncio.Protocol]:
        protocol = factory()
        line = PodLine(protocol, self.asked)
        protocol.connection_made(line)
        return line, protocol


# --- the pods and the clients -------------------------------------------------------------------------------------

_CHAT: Final = b"POST " + CHAT_PATH.encode()
_TOLD: Final = {b"GET /v1/models": json_answer(MODELS), b"GET /health": json_answer(b"")}
_ANSWER: Final = json_answer(COMPLETION)


class Bench:
    """A gateway, its clients, and the pods behind it."""

    def __init__(self, gateway: Gateway, loop: InsideLoop, request: bytes, clients: int, answers: bytes) -> None:
        self._gateway = gateway
        self._loop = loop
        self._pieces = [request[at : at + READ_BYTES] for at in range(0, len(request), READ_BYTES)]
        self._answers = answers
        self._clients: list[tuple[Any, Line]] = []
        for _ in range(clients):
            line, protocol = Line(), gateway.edge.protocol()
            protocol.connection_made(line)
            self._clients.append((protocol, line))
        self._stream = StreamBytes(1)
        self._chats: list[PodLine] = []
        """On which the pods were asked for an answer that is not given yet."""

    async def pods_speak(self) -> None:
        """Answer what the gateway asks of its pods by itself, for as long as it runs."""
        while True:
            self._hear()
            await asyncio.sleep(0.001)

    def _hear(self) -> None:
        """Answer all that was asked but chats."""
        asked = self._loop.asked
        lines = asked.copy()
        asked.clear()
        for line in lines:
            said = line.sent[-1]
            if said.startswith(_CHAT):
                self._chats.append(line)
                continue
            line.sent.clear()
            path = said[: said.find(b" HTTP/")]
            line.protocol.data_received(_TOLD.get(path) or json_answer(b"{}", b"404 Not Found"))

    def _ask_all(self) -> None:
        for piece in self._pieces:
            for protocol, _ in self._clients:
                protocol.data_received(piece)

    async def _asked(self) -> list[PodLine]:
        """The connections on which the pods were asked, one for each client."""
        self._hear()
        while len(self._chats) < len(self._clients):
            await asyncio.sleep(0)
            self._hear()
        chats, self._chats = self._chats, []
        return chats

    async def _until(self, there: Callable[[list[bytes]], bool]) -> None:
        while not all(there(line.sent) for _, line in self._clients):
            await asyncio.sleep(0)

    async def whole(self, turns: int) -> float:
        """CPU µs of one request that is answered by one body."""
        clients = self._clients
        began = time.process_time_ns()
        for turn in range(turns):
            self._ask_all()
            for line in await self._asked():
                line.sent.clear()
                line.protocol.data_received(_ANSWER)
            await self._until(bool)
            if not all(
                sent[0].startswith(b"HTTP/1.1 200") and sent[-1].endswith(self._answers) for sent in self._sent()
            ):
                raise BodiesDiffer(str(self._clients[0][1].sent[0][:300]))
            for _, client in clients:
                client.sent.clear()
            if turn % TURNS_A_SWEEP == 0:
                self._gateway.sweep()
        return (time.process_time_ns() - began) / 1000 / turns / len(clients)

    def _sent(self) -> Iterator[list[bytes]]:
        return (line.sent for _, line in self._clients)

    async def streamed(self, turns: int) -> tuple[float, float]:
        """CPU µs of one stream but for its tokens, and of one token's chunk."""
        clients, tokens = self._clients, 0
        whole = time.process_time_ns()
        for _ in range(turns):
            self._ask_all()
            pods = await self._asked()
            for line in pods:
                line.sent.clear()
                line.protocol.data_received(STREAM_HEAD + self._stream.role())
                line.protocol.data_received(self._stream.token(0))
            await self._until(bool)
            began = time.process_time_ns()
            for number in range(TOKENS):
                token = self._stream.token(number)
                for line in pods:
                    line.protocol.data_received(token)
                # As between two readings of the sockets.
                await asyncio.sleep(0)
            tokens += time.process_time_ns() - began
            last = self._stream.last(TOKENS + 2), self._stream.usage(TOKENS + 2), self._stream.done()
            for line in pods:
                line.protocol.data_received(b"".join(last))
            await self._until(lambda sent: sent[-1].endswith(b"0\r\n\r\n"))
            for sent in self._sent():
                if not sent[0].startswith(b"HTTP/1.1 200") or b"".join(sent).count(b"data: ") != TOKENS + 4:
                    raise BodiesDiffer(str(sent[:3]))
                sent.clear()
        whole = time.process_time_ns() - whole
        streams = turns * len(clients)
        return (whole - tokens) / 1000 / streams, tokens / 1000 / streams / TOKENS


# --- one tree, in a process of its own ----------------------------------------------------------------------------


class Asked(NamedTuple):
    """What is to be measured."""

    body: str = "small"
    stream: bool = False
    limits: bool = False

    @property
    def load(self) -> Load:
        return STREAMS if self.stream else LOADS[self.body]


@contextmanager
def gateway_of(asked: Asked, key: str) -> Iterator[Gateway]:
    """A gateway as an operator configures it, in front of pods that nobody can reach but by an `InsideLoop`."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as files:
        folder = Path(name)
        keys, file = folder / "keys.yaml", folder / "poolgate.yaml"
        keys.write_text(yaml.safe_dump({"keys": [keys_entry(key) | (FAR if asked.limits else {})]}))
        file.write_text(yaml.safe_dump(gateway_config((8001, 8002), keys)))
        access = files.enter_context((folder / "access.log").open("wb", buffering=0))
        yield Gateway(load_config(file, {}), load_keys(keys), access_out=access)


async def measure(asked: Asked, next_round: Callable[[], bool], tell: Callable[[dict[str, float]], None]) -> None:
    """Measure a round each time that another one is wanted."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, InsideLoop)  # `measured_here` made it
    key = new_key()
    load = asked.load
    body = stream_body(Wish(TOKENS, 1, 0)) if asked.stream else chat_body(load.bytes)
    request = chat_request("127.0.0.1", 8000, key, body)
    with gateway_of(asked, key) as gateway:
        bench = Bench(gateway, loop, request, load.clients, COMPLETION)
        keeping = asyncio.create_task(gateway.keep())
        speaking = asyncio.create_task(bench.pods_speak())
        try:
            while not gateway.fleet.value.asked:
                await gateway.fleet.wait_changed()
            await one_round(bench, asked, load.turns)  # to warm up
            gc.collect()
            gc.freeze()
            gc.disable()
            while next_round():
                tell(await one_round(bench, asked, load.turns))
        finally:
            for task in (keeping, speaking):
                task.cancel()
            await asyncio.gather(keeping, speaking, return_exceptions=True)
            gateway.close()


async def one_round(bench: Bench, asked: Asked, turns: int) -> dict[str, float]:
    """Its figures."""
    if not asked.stream:
        return {"µs per request": await bench.whole(turns)}
    stream, chunk = await bench.streamed(turns)
    return {"µs per stream": stream, "µs per chunk": chunk}


def measured_here(asked: Asked, next_round: Callable[[], bool], tell: Callable[[dict[str, float]], None]) -> None:
    """Measure the gateway that this process imports."""
    with asyncio.Runner(loop_factory=InsideLoop) as runner:
        runner.run(measure(asked, next_round, tell))


class Lane:
    """A process that measures one tree when it is told to."""

    def __init__(self, tree: Path, arguments: Sequence[str]) -> None:
        self.name = str(tree)
        # By its path, and without its folder among those of modules: what it imports is the tree's.
        command = [sys.executable, "-P", __file__, "--lane", *arguments]
        self._process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(tree.resolve())},
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Its input's end is its own.
        self._process.communicate()

    def round(self) -> dict[str, float]:
        """Measure once; `SystemExit` if that failed, of which it has told on stderr."""
        assert self._process.stdin is not None  # pipes were asked for
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(1)
        figures: dict[str, float] = json.loads(line)
        return figures


# --- the command --------------------------------------------------------------------------------------------------


def table(names: Sequence[str], rounds: Sequence[Sequence[dict[str, float]]]) -> str:
    """Medians and quartiles, and what each tree takes of the first one's: `rounds[number][tree]`."""
    lines = ["| tree | figure | median | quartiles | ÷ the first |", "| --- | --- | --- | --- | --- |"]
    for place, name in enumerate(names):
        for figure in rounds[0][place]:
            values = [each[place][figure] for each in rounds]
            low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
            ratio = statistics.median(each[place][figure] / each[0][figure] for each in rounds)
            lines.append(f"| {name} | {figure} | {median:.2f} | {low:.2f}–{high:.2f} | {ratio:.3f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.inside", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tree", type=Path, action="append", metavar="DIR", help="a source tree; several take turns")
    parser.add_argument("--body", choices=LOADS, default="small", help="of the request (default: small, 400 bytes)")
    parser.add_argument("--stream", action="store_true", help=f"streams of {TOKENS} tokens instead")
    parser.add_argument("--limits", action="store_true", help="the caller's key has three limits, out of reach")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="default 15")
    parser.add_argument("--lane", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    asked = Asked(chosen.body, chosen.stream, chosen.limits)
    if chosen.rounds < 1:
        parser.error("--rounds is more than 0")
    if asked.stream and asked.body != "small":
        parser.error("--stream has bodies of its own")
    if chosen.lane:
        measured_here(asked, lambda: bool(sys.stdin.readline()), lambda figures: print(json.dumps(figures), flush=True))
        return 0
    passed = ["--body", asked.body, *(["--stream"] if asked.stream else []), *(["--limits"] if asked.limits else [])]
    with ExitStack() as stack:
        lanes = [stack.enter_context(Lane(tree, passed)) for tree in chosen.tree or [_TREE]]
        rounds = []
        for number in range(chosen.rounds):
            turn = lanes if number % 2 else list(reversed(lanes))
            figures = {lane: lane.round() for lane in turn}
            rounds.append([figures[lane] for lane in lanes])
        print(table([lane.name for lane in lanes], rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
