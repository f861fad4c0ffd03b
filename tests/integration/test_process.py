"""The gateway as a process: what operators and their machines see of it, from the first line to the exit code."""

import asyncio
import gc
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway import __version__
from gateway.app import Gateway
from gateway.cli import process
from gateway.cli.process import LINGER_SECONDS, LOOK_SECONDS, Stop, drain
from gateway.config.reading import load_config
from gateway.core.clock import Clock
from loadtest.simulator import PodSettings, SimulatedPod
from tests.fakes import MODELS, STREAM_HEAD, Hands, Hang, ScriptedPod, answer, chunk
from tests.raw import Answer, RawClient, ask, chat, request
from tests.running import HasUrl
from tests.turns import within

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0
"""For whatever a process of its own has to do: generous, since a machine may be busy, and never slept through."""
GOOD = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
FINAL = b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
# As the contract has them; `code` is the error's.
FIELDS = (
    "ts level request_id tenant key_id operation model pool pod status outcome stream prompt_tokens completion_tokens "
    "cached_tokens usage_source queue_ms ttft_ms duration_ms overhead_ms attempts decision finish code"
)
# The contract's series that exist; the others come with what they measure.
SERIES = (
    "poolgate_requests poolgate_request_seconds poolgate_time_to_first_token_seconds poolgate_inter_token_seconds "
    "poolgate_overhead_seconds poolgate_tokens poolgate_in_flight poolgate_attempts poolgate_retries poolgate_pods "
    "poolgate_pod_in_flight poolgate_loop_lag_seconds"
)


def environment() -> dict[str, str]:
    """Ours, without configuration."""
    return {name: value for name, value in os.environ.items() if not name.startswith("POOLGATE_")}


def run(*arguments: str, more: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=ROOT,
        env=environment() | dict(more or {}),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Process:
    """A command that runs, and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out: list[str] = []
        self.err: list[str] = []
        self._said = asyncio.Event()
        assert process.stdout is not None
        assert process.stderr is not None
        self.readers = [
            asyncio.create_task(self._read(process.stdout, self.out)),
            asyncio.create_task(self._read(process.stderr, self.err)),
        ]

    async def _read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        while line := await stream.readline():
            lines.append(line.decode())
            self._said.set()
        self._said.set()

    async def said(self, pattern: str) -> re.Match[str]:
        """Wait for words on stderr."""
        async with asyncio.timeout(SECONDS):
            while (match := re.search(pattern, "".join(self.err))) is None:
                assert not self.readers[1].done(), f"it ended, saying: {''.join(self.err)}"
                self._said.clear()
                await self._said.wait()
        return match

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for the exit, and return its code."""
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*self.readers)
            return await self.process.wait()

    async def ended_well(self) -> None:
        """Wait for an exit without an error or a word too many."""
        assert (await self.ended(), [line for line in self.err if "Traceback" in line]) == (0, []), "".join(self.err)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The access lines; there is nothing else on stdout."""
        return [json.loads(line) for line in self.out]


LINGERING = """\
import sys
from gateway.cli import main, process
process.LINGER_SECONDS = float(sys.argv.pop(1))
main.main()
"""
"""The command line of a gateway that goes on for so long after SIGTERM."""
ENDLESS = 3600.0


@asynccontextmanager
async def started(
    *arguments: str, more: Mapping[str, str] | None = None, lingers: float | None = None
) -> AsyncIterator[Process]:
    """A running command, killed at the end if it is still there. `lingers`: for so long after SIGTERM."""
    command = ("-m", "gateway") if lingers is None else ("-c", LINGERING, str(lingers))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        *arguments,
        cwd=ROOT,
        env=environment() | dict(more or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    running = Process(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            # What it has started holds its pipes open, and would outlive it. It may be about to end by itself.
            with suppress(FileNotFoundError, ProcessLookupError):
                for child in [*children(process.pid), process.pid]:
                    os.kill(child, signal.SIGKILL)
        await running.ended()


async def fetch(port: int, path: str) -> Answer:
    return await ask(port, f"GET {path} HTTP/1.1\r\nHost: ops\r\n\r\n".encode())


async def until_ready(ops_port: int, status: int = 200) -> None:
    """Ask as Kubernetes does, only faster."""
    async with asyncio.timeout(SECONDS):
        while (await fetch(ops_port, "/readyz")).status != status:
            await asyncio.sleep(0.02)


class Served(Process):
    """`poolgate serve`, with its ports and its key."""

    port = 0
    ops_port = 0
    key = ""

    @classmethod
    async def up(cls, process: Process, key: str) -> "Served":
        """The same process, once it has said where it serves."""
        process.__class__ = cls
        assert isinstance(process, cls)
        words = await process.said(r"serves on http://127\.0\.0\.1:(\d+), operations on http://127\.0\.0\.1:(\d+)")
        process.port, process.ops_port, process.key = int(words[1]), int(words[2]), key
        return process

    async def ops(self, path: str) -> Answer:
        return await fetch(self.ops_port, path)

    async def until_ready(self, status: int = 200) -> None:
        await until_ready(self.ops_port, status)

    async def client(self, body: dict[str, Any]) -> RawClient:
        """A connection with a request on it."""
        client = await RawClient.connect(self.port)
        client.send(request(body, key=self.key))
        return client


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(a keys file, its key), made by the command line."""
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    made = run("keys", "create", "--team", "acme", "--file", str(file), "--json")
    assert (made.returncode, made.stderr) == (0, "")
    told = json.loads(made.stdout)
    assert set(told) == {"id", "key"}
    assert file.stat().st_mode & 0o077 == 0
    assert told["key"] not in file.read_text()
    return file, told["key"]


def configuration(directory: Path, keys: tuple[Path, str] | None, pods: Sequence[HasUrl], **server: Any) -> Path:
    """A configuration file for these pods, on free ports."""
    file = directory / "poolgate.yaml"
    auth = {"mode": "none"} if keys is None else {"keys_file": str(keys[0])}
    settings = {
        "server": {"host": "127.0.0.1", "port": 0, "ops_port": 0, **server},
        "discovery": {"mode": "static", "pods": [{"url": pod.url, "pool": "chat"} for pod in pods]},
        "auth": auth,
    }
    file.write_text(yaml.safe_dump(settings))
    return file


@asynccontextmanager
async def serving(
    directory: Path,
    keys: tuple[Path, str] | None,
    pods: Sequence[HasUrl],
    *flags: str,
    lingers: float | None = None,
    **server: Any,
) -> AsyncIterator[Served]:
    """A gateway process before these pods, up, if not ready. `lingers` as for `started`."""
    file = configuration(directory, keys, pods, **server)
    async with started("serve", "--config", str(file), *flags, lingers=lingers) as process:
        yield await Served.up(process, keys[1] if keys is not None else "")


# The ops port.


async def test_a_gateway_serves_and_tells_of_itself(tmp_path: Path, keys: tuple[Path, str]) -> None:
    async with SimulatedPod(PodSettings(model="m")) as pod, serving(tmp_path, keys, [pod]) as gateway:
        await gateway.until_ready()
        live, ready, version = [await gateway.ops(path) for path in ("/livez", "/readyz", "/version")]
        assert (live.status, live.body, ready.body) == (200, b"ok\n", b"ok\n")
        assert json.loads(version.body) == {"version": __version__}
        told = json.loads((await gateway.ops("/readyz?verbose")).body)
        assert (told["ready"], told["reason"], told["models_without_pods"]) == (True, "", [])
        assert told["pools"]["chat"]["ready"] == 1

        client = await gateway.client(chat(stream=True, max_tokens=5))
        came = await client.answer()
        assert (came.status, came.clean, came.events[-1]) == (200, True, DONE)
        client.leave()

        scraped = await gateway.ops("/metrics")
        assert scraped.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        found = {family.name: family for family in text_string_to_metric_families(scraped.body.decode())}
        assert set(SERIES.split()) <= set(found)
        (count,) = [sample for sample in found["poolgate_requests"].samples if sample.name.endswith("_total")]
        assert count.labels == {"model": "m", "operation": "chat", "status": "200", "outcome": "completed"}
        assert count.value == 1
        assert b"acme" in scraped.body
        assert gateway.key.encode() not in scraped.body

        for path in ("/", "/v1/models", "/v1/chat/completions", "/openapi.json"):
            assert (await gateway.ops(path)).status == 404
        gateway.signal(signal.SIGINT)
        await gateway.ended_well()
        (line,) = gateway.lines
        assert set(line) == set(FIELDS.split())
        assert (line["tenant"], line["model"], line["status"], line["outcome"]) == ("acme", "m", 200, "completed")
        assert (line["completion_tokens"], line["usage_source"], line["finish"]) == (5, "reported", "length")


class SlowToTell:
    """A pod that answers for its models only when it may."""

    def __init__(self) -> None:
        self.may_tell = asyncio.Event()
        self.asked = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            self.asked.set()
            await self.may_tell.wait()
            writer.write(answer(MODELS))


async def test_a_gateway_is_ready_when_every_pod_was_asked_for_its_models(
    tmp_path: Path, keys: tuple[Path, str]
) -> None:
    pod = SlowToTell()
    async with await asyncio.start_server(pod.serve, "127.0.0.1", 0) as server:
        pod.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with serving(tmp_path, keys, [pod]) as gateway:
            await asyncio.wait_for(pod.asked.wait(), SECONDS)
            waiting, verbose = await gateway.ops("/readyz"), await gateway.ops("/readyz?verbose")
            assert (waiting.status, waiting.body) == (503, b"asking pods for their models\n")
            assert (verbose.status, json.loads(verbose.body)["ready"]) == (503, False)
            assert json.loads(verbose.body)["pools"]["chat"]["starting"] == 1
            assert (await gateway.ops("/livez")).status == 200
            pod.may_tell.set()
            await gateway.until_ready()
            assert json.loads((await gateway.ops("/readyz?verbose")).body)["pools"]["chat"]["ready"] == 1


@dataclass
class Inside:
    """A gateway served as its process does it, but on the test's own loop, which lets a test see between its steps."""

    gateway: Gateway
    port: int
    ops_port: int
    stop: Stop
    serving: "asyncio.Task[None]"


@asynccontextmanager
async def inside(pods: Sequence[HasUrl], clock: Clock | None = None) -> AsyncIterator[Inside]:
    """Begins when it is up, ends with its end; the collector is left as it was."""
    up, stop, usual = asyncio.Event(), Stop(), gc.get_threshold()
    settings = load_config(None, {}, {"discovery.pods": [{"url": pod.url, "pool": "chat"} for pod in pods]})
    gateway = Gateway(settings, None, access_out=io.BytesIO(), clock=clock)
    public, ops = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    port, ops_port = public.getsockname()[1], ops.getsockname()[1]
    serving = asyncio.create_task(process.run(gateway, public, ops, stop, up.set))
    try:
        await asyncio.wait_for(up.wait(), SECONDS)
        yield Inside(gateway, port, ops_port, stop, serving)
    finally:
        stop.ask()
        await serving
        gc.unfreeze()
        gc.set_threshold(*usual)


async def test_what_is_kept_of_the_pods_is_never_looked_at_again_by_the_collector() -> None:
    pod = SlowToTell()
    async with await asyncio.start_server(pod.serve, "127.0.0.1", 0) as server:
        pod.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with inside([pod]) as gateway:
            kept = [[number] for number in range(10_000)]
            frozen = gc.get_freeze_count()
            assert frozen
            pod.may_tell.set()
            await until_ready(gateway.ops_port)
            assert gc.get_freeze_count() >= frozen + len(kept)


async def test_a_pod_that_refuses_has_been_asked_and_the_gateway_says_what_is_missing(
    tmp_path: Path, keys: tuple[Path, str]
) -> None:
    with closing(socket.socket()) as unheard:
        unheard.bind(("127.0.0.1", 0))
        pod = SlowToTell()
        pod.url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        async with serving(tmp_path, keys, [pod]) as gateway:
            await gateway.until_ready()
            assert json.loads((await gateway.ops("/readyz?verbose")).body)["pools"]["chat"]["starting"] == 1
            client = await gateway.client(chat())
            assert (await client.answer()).error["code"] == "model_not_found"
            client.leave()


# Its end.


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGINT], [signal.SIGHUP], [signal.SIGTERM, signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]],
    ids=lambda numbers: "-".join(number.name for number in numbers),
)
async def test_an_idle_gateway_ends_at_once_when_a_person_says_so_or_a_signal_comes_twice(
    tmp_path: Path, keys: tuple[Path, str], numbers: list[signal.Signals]
) -> None:
    async with serving(tmp_path, keys, [], lingers=ENDLESS) as gateway:
        idle = await RawClient.connect(gateway.port)
        await gateway.until_ready()
        *first, last = numbers
        for number in first:
            gateway.signal(number)
            await gateway.until_ready(503)
        gateway.signal(last)
        await gateway.ended_well()
        assert await idle.closed()
        assert gateway.out == []
        idle.leave()


async def test_sigterm_leaves_an_idle_gateway_serving(tmp_path: Path, keys: tuple[Path, str]) -> None:
    async with SimulatedPod(PodSettings(model="m")) as pod, serving(tmp_path, keys, [pod], lingers=ENDLESS) as gateway:
        await gateway.until_ready()
        kept, late = await RawClient.connect(gateway.port), await RawClient.connect(gateway.port)
        for client in (kept, late):
            client.send(request(b"", key=gateway.key, path="/v1/models", method="GET"))
            assert "connection" not in (await client.answer()).headers
        gateway.signal(signal.SIGTERM)
        await gateway.until_ready(503)
        for _ in range(20):
            came = await ask(gateway.port, request(chat(max_tokens=1), key=gateway.key))
            assert (came.status, came.headers["connection"]) == (200, "close")
            assert (await gateway.ops("/readyz")).body == b"draining\n"
            await asyncio.sleep(0.02)
        kept.send(request(chat(max_tokens=1), key=gateway.key))
        came = await kept.answer()
        assert (came.status, came.headers["connection"]) == (200, "close")
        assert await kept.closed()
        gateway.signal(signal.SIGTERM)
        # Who says nothing is not waited for, and reads an orderly end.
        assert await late.reader.read() == b""
        await gateway.ended_well()
        assert [line["outcome"] for line in gateway.lines] == ["completed"] * 23
        for client in (kept, late):
            client.leave()


async def test_after_sigterm_it_lasts_for_some_seconds_and_then_ends_by_itself(
    tmp_path: Path, keys: tuple[Path, str]
) -> None:
    async with serving(tmp_path, keys, []) as gateway:
        await gateway.until_ready()
        began = now()
        gateway.signal(signal.SIGTERM)
        await gateway.ended_well()
        assert now() - began >= LINGER_SECONDS


async def test_it_serves_until_it_is_out_of_rotation_and_no_longer() -> None:
    hands = Hands()
    async with ScriptedPod([[GOOD]]) as pod, inside([pod], Clock(hands)) as gateway:
        await until_ready(gateway.ops_port)
        gateway.stop.ask(LINGER_SECONDS)
        for seconds in (0.0, LINGER_SECONDS - 0.1):
            hands.now += seconds
            # It has looked at the time more than once.
            await asyncio.wait((gateway.serving,), timeout=5 * LOOK_SECONDS)
            assert (await ask(gateway.port, request(chat()))).status == 200
        hands.now += 0.2
        async with within(LINGER_SECONDS):
            await gateway.serving
        assert len(pod.requests) == 2


async def test_nobody_is_waited_for_longer_than_the_limit(tmp_path: Path, keys: tuple[Path, str]) -> None:
    async with serving(tmp_path, keys, [], lingers=ENDLESS, drain_seconds=0.5) as gateway:
        await gateway.until_ready()
        began = now()
        gateway.signal(signal.SIGTERM)
        await gateway.ended_well()
        assert now() - began >= 0.5


async def test_a_signal_in_the_last_moment_changes_nothing(tmp_path: Path, keys: tuple[Path, str]) -> None:
    async with SimulatedPod(PodSettings(model="m")) as pod, serving(tmp_path, keys, [pod]) as gateway:
        await gateway.until_ready()
        kept = await RawClient.connect(gateway.port)
        kept.send(request(chat(max_tokens=1), key=gateway.key))
        assert (await kept.answer()).status == 200
        gateway.signal(signal.SIGINT)
        # The public port is closed already: what is left is the ops port, and the lines to be written.
        assert await kept.reader.read() == b""
        for number in (signal.SIGTERM, signal.SIGINT):
            # On a busy machine it may have ended before we come to it.
            with suppress(ProcessLookupError):
                gateway.signal(number)
        await gateway.ended_well()
        assert len(gateway.lines) == 1
        kept.leave()


async def test_a_drain_finishes_what_runs_and_sends_everyone_elsewhere(tmp_path: Path, keys: tuple[Path, str]) -> None:
    may_end = asyncio.Event()
    stream: list[Any] = [STREAM_HEAD, chunk(TOKEN), may_end, chunk(FINAL), chunk(DONE), b"0\r\n\r\n"]
    async with ScriptedPod([stream, [GOOD]]) as pod, serving(tmp_path, keys, [pod]) as gateway:
        await gateway.until_ready()
        kept = await RawClient.connect(gateway.port)
        kept.send(request(b"", key=gateway.key, path="/v1/models", method="GET"))
        assert "connection" not in (await kept.answer()).headers
        running = await gateway.client(chat(stream=True))
        begun = await running.reader.readuntil(b'"content":"a"')

        gateway.signal(signal.SIGINT)
        await gateway.until_ready(503)
        draining = await gateway.ops("/readyz")
        assert (draining.status, draining.body) == (503, b"draining\n")
        assert (await gateway.ops("/livez")).status == 200
        # The load balancer may not have understood yet: who comes is served, and told not to come again.
        kept.send(request(chat(), key=gateway.key))
        fresh = await gateway.client(chat())
        for client in (kept, fresh):
            came = await client.answer()
            assert (came.status, came.headers["connection"]) == (200, "close")
            assert await client.closed()
            client.leave()

        may_end.set()
        came = await running.answer(begun=begun)
        assert (came.clean, came.events) == (True, [TOKEN, FINAL, DONE])
        assert await running.closed()
        running.leave()
        await gateway.ended_well()
        assert [line["outcome"] for line in gateway.lines] == ["completed"] * 4


async def until_nobody_listens(port: int) -> None:
    async with asyncio.timeout(SECONDS):
        # Refused, or reset: it was not accepted any more.
        with suppress(ConnectionError):
            while True:
                (await RawClient.connect(port)).leave()
                await asyncio.sleep(0)


async def test_who_comes_on_an_old_connection_in_the_last_moment_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    may_answer, may_end = asyncio.Event(), asyncio.Event()

    async def slowly(gateway: Gateway, stop_listening: Callable[[], Awaitable[None]], stop: Stop) -> None:
        """The moment between the listener's end and that of the idle connections is as long as the test wants."""

        async def stop_and_wait() -> None:
            await stop_listening()
            await may_end.wait()

        await drain(gateway, stop_and_wait, stop)

    monkeypatch.setattr(process, "drain", slowly)
    async with ScriptedPod([[GOOD], [may_answer, GOOD]]) as pod, inside([pod]) as gateway:
        await until_ready(gateway.ops_port)
        kept = await RawClient.connect(gateway.port)
        kept.send(request(chat()))
        assert (await kept.answer()).status == 200
        gateway.stop.ask()
        await until_nobody_listens(gateway.port)
        kept.send(request(chat()))
        async with within(5):
            while len(pod.requests) < 2:
                await asyncio.sleep(0.001)
        may_end.set()
        answer = asyncio.create_task(kept.answer())
        await asyncio.wait((answer,), timeout=0.5)
        assert not answer.done()
        may_answer.set()
        came = await answer
        assert (came.status, came.headers["connection"]) == (200, "close")
        kept.leave()


async def test_who_comes_on_an_old_connection_even_later_reads_an_end_and_no_reset() -> None:
    async with ScriptedPod([[GOOD]]) as pod, inside([pod]) as gateway:
        await until_ready(gateway.ops_port)
        kept = await RawClient.connect(gateway.port)
        kept.send(request(chat()))
        assert (await kept.answer()).status == 200
        gateway.stop.ask()
        assert await kept.reader.read() == b""
        for _ in range(10):
            # On its way when the end was said.
            kept.send(request(chat()))
            await asyncio.sleep(0)
        assert kept.reader.exception() is None
        assert not kept.writer.transport.is_closing()
        kept.leave()
        await gateway.serving
        assert len(pod.requests) == 1


@pytest.mark.parametrize("twice", [False, True], ids=["the-limit-passes", "a-second-signal"])
async def test_what_a_drain_cannot_wait_for_is_told_so(tmp_path: Path, keys: tuple[Path, str], twice: bool) -> None:
    async with (
        ScriptedPod([[STREAM_HEAD, chunk(TOKEN), Hang], [Hang]]) as pod,
        serving(tmp_path, keys, [pod], drain_seconds=300 if twice else 0.5) as gateway,
    ):
        await gateway.until_ready()
        stream = await gateway.client(chat(stream=True))
        begun = await stream.reader.readuntil(TOKEN + b"\r\n")
        assert begun.startswith(b"HTTP/1.1 200 OK\r\n")
        whole = await gateway.client(chat())
        async with asyncio.timeout(SECONDS):
            while len(pod.requests) < 2:
                await asyncio.sleep(0.005)
        gateway.signal(signal.SIGTERM)
        if twice:
            await gateway.until_ready(503)
            assert gateway.process.returncode is None
            gateway.signal(signal.SIGTERM)
        async with asyncio.timeout(SECONDS):
            # Nothing had announced an end of this connection: it is there until the gateway goes.
            rest = await stream.reader.read()
        size, _, event = rest.partition(b"\r\n")
        assert int(size, 16) == len(event.removesuffix(b"\r\n0\r\n\r\n"))
        error, _, done = event.removesuffix(b"\r\n0\r\n\r\n").partition(b"\n\n")
        told = json.loads(error.removeprefix(b"data: "))["error"]
        assert (told["type"], told["code"], done) == ("overloaded_error", "gateway_draining", DONE)
        refused = await whole.answer(SECONDS)
        assert (refused.status, refused.error["code"], refused.headers["connection"]) == (503, "draining", "close")
        await gateway.ended_well()
        await asyncio.wait_for(pod.peer_left.wait(), SECONDS)
        assert sorted((line["outcome"], line["code"]) for line in gateway.lines) == [
            ("refused", "draining"),
            ("truncated", "gateway_draining"),
        ]
        for client in (stream, whole):
            client.leave()


async def test_a_request_that_has_not_wholly_come_at_the_limit_is_told_so(
    tmp_path: Path, keys: tuple[Path, str]
) -> None:
    async with serving(tmp_path, keys, [], drain_seconds=0.5) as gateway:
        await gateway.until_ready()
        client = await RawClient.connect(gateway.port)
        client.send(request(chat(), key=gateway.key)[:-1])
        async with asyncio.timeout(SECONDS):
            while b"\npoolgate_buffered_body_bytes 0" in (await gateway.ops("/metrics")).body:
                await asyncio.sleep(0.02)
        gateway.signal(signal.SIGINT)
        came = await client.answer(SECONDS)
        assert (came.status, came.error["code"], came.headers["connection"]) == (503, "draining", "close")
        client.leave()
        await gateway.ended_well()


# Its beginning.


async def test_everyone_is_served_only_when_that_was_said_twice(tmp_path: Path) -> None:
    async with ScriptedPod([[GOOD]]) as pod:
        file = configuration(tmp_path, None, [pod])
        refused = await asyncio.to_thread(run, "serve", "--config", str(file))
        assert_one_line(refused, "--insecure-no-auth")
        async with serving(tmp_path, None, [pod], "--insecure-no-auth") as gateway:
            await gateway.until_ready()
            assert (await ask(gateway.port, request(chat()))).status == 200
            gateway.signal(signal.SIGINT)
            await gateway.ended_well()
            assert gateway.lines[0]["tenant"] == "anonymous"


def assert_one_line(ended: subprocess.CompletedProcess[str], *words: str) -> None:
    """It was refused with one line that says why."""
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("poolgate: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    for word in words:
        assert word in ended.stderr


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


Wrong = Callable[[dict[str, Any]], object]
WRONG: dict[str, tuple[Wrong, tuple[str, ...]]] = {
    "an-unknown-key": (lambda told: told["server"].update(prot=1), ("server.prot", "does not exist")),
    "an-unknown-section": (lambda told: told.update(servers={}), ("servers", "does not exist")),
    "a-wrong-type": (lambda told: told["server"].update(port="x"), ("server.port", "whole number")),
    "a-port-out-of-range": (lambda told: told["server"].update(port=65_536), ("server.port", "65535")),
    "a-pod-with-a-path": (lambda told: told["discovery"].update(pods=[{"url": "http://x/v1", "pool": "p"}]), ("path",)),
    "a-keys-file-that-is-not-there": (
        lambda told: told.update(auth={"keys_file": "/nowhere/keys"}),
        ("auth.keys_file", "does not exist", "poolgate keys create --team TEAM --file /nowhere/keys"),
    ),
    "a-variable-that-is-not-set": (lambda told: told["server"].update(host="${NOT_SET}"), ("NOT_SET",)),
}


@pytest.mark.parametrize("command", [["serve", "--config"], ["check"]], ids=["serve", "check"])
@pytest.mark.parametrize(("wrong", "words"), WRONG.values(), ids=WRONG)
def test_a_configuration_that_cannot_be_used_is_one_clear_line(
    tmp_path: Path, keys: tuple[Path, str], command: list[str], wrong: Wrong, words: tuple[str, ...]
) -> None:
    file = configuration(tmp_path, keys, [])
    told = yaml.safe_load(file.read_text())
    wrong(told)
    file.write_text(yaml.safe_dump(told))
    assert_one_line(run(*command, str(file)), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server: [", "not valid YAML"),
        ("- a", "sections"),
        ("server:\n  port: 1\n  port: 2", ":3:"),
        ("server:\n  port: 1\n  prot: 2", ":3:"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_clear_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "poolgate.yaml"
    file.write_text(text)
    assert_one_line(run("check", str(file)), str(file), words)


def test_a_file_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    assert_one_line(run("check", str(tmp_path / "none.yaml")), "none.yaml", "No such file")


def test_a_good_configuration_is_said_to_be_valid(tmp_path: Path, keys: tuple[Path, str]) -> None:
    ended = run("check", str(configuration(tmp_path, keys, [])))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "valid" in ended.stdout


def test_pools_whose_globs_overlap_are_valid_and_warned_of(tmp_path: Path, keys: tuple[Path, str]) -> None:
    file = configuration(tmp_path, keys, [])
    told = yaml.safe_load(file.read_text())
    told["pools"] = {"qwen": {"models": ["qwen*", "qwq"]}, "small": {"models": ["*-8b"]}, "rest": {}}
    told["pools"]["llama"] = {"models": ["llama*"]}
    file.write_text(yaml.safe_dump(told))
    ended = run("check", str(file))
    assert (ended.returncode, "valid" in ended.stdout) == (0, True)
    lines = ended.stderr.splitlines()
    assert all(re.match(rf"{re.escape(str(file))}:\d+: warning: pools ", line) for line in lines)
    for line, pool in zip(lines, ("llama", "qwen"), strict=True):
        for word in (
            f"'{pool}'",
            f"'{pool}*'",
            "'small'",
            "'*-8b'",
            f"'{pool}-8b'",
            "the pool with the oldest ready pod",
        ):
            assert word in line
    assert "'rest'" not in ended.stderr


@pytest.mark.parametrize("command", [["serve", "--config"], ["check"]], ids=["serve", "check"])
def test_a_keys_file_without_a_key_is_one_clear_line(tmp_path: Path, command: list[str]) -> None:
    empty = tmp_path / "keys.yaml"
    empty.write_text("keys: []\n")
    file = configuration(tmp_path, (empty, ""), [])
    mend = f"poolgate keys create --team TEAM --file {empty}"
    assert_one_line(run(*command, str(file)), "auth.keys_file", "holds no key", mend)


def test_a_keys_file_that_may_not_be_looked_for_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("")
    file = configuration(tmp_path, (tmp_path / "keys" / "keys.yaml", ""), [])
    assert_one_line(run("serve", "--config", str(file)), "cannot be read: Not a directory")


@pytest.mark.parametrize("which", ["port", "ops_port"])
def test_a_taken_port_is_one_clear_line(tmp_path: Path, keys: tuple[Path, str], taken: int, which: str) -> None:
    file = configuration(tmp_path, keys, [], **{which: taken})
    flag = "--" + which.replace("_", "-")
    assert_one_line(run("serve", "--config", str(file)), str(taken), "in use", f"choose another port by {flag}")


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_an_address_of_another_machine_is_one_clear_line(tmp_path: Path, keys: tuple[Path, str], host: str) -> None:
    file = configuration(tmp_path, keys, [])
    ended = run("serve", "--config", str(file), "--host", host)
    assert_one_line(ended, host, "give an address of this machine, or 0.0.0.0 for all of them")
    assert "another port" not in ended.stderr


def test_one_port_for_both_is_one_clear_line(tmp_path: Path, keys: tuple[Path, str]) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = configuration(tmp_path, keys, [], port=port, ops_port=port)
    assert_one_line(run("serve", "--config", str(file)), str(port))


def test_flags_come_before_the_environment_and_that_before_the_file(
    tmp_path: Path, keys: tuple[Path, str], taken: int
) -> None:
    file = str(configuration(tmp_path, keys, [], port=1))
    variable = {"POOLGATE_SERVER__PORT": str(taken)}
    assert_one_line(run("serve", "--config", file, more=variable), str(taken))
    assert_one_line(
        run("serve", "--config", file, "--port", str(taken), more={"POOLGATE_SERVER__PORT": "1"}), str(taken)
    )


def test_version_is_told() -> None:
    told = run("version")
    assert (told.returncode, told.stdout, told.stderr) == (0, f"{__version__}\n", "")


# The demo.


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_the_demo_prints_a_curl_that_streams_and_ctrl_c_leaves_nothing_behind() -> None:
    # Its pods ask for no key, whatever the shell has for other pods.
    async with started("demo", "--port", "0", "--ops-port", "0", more={"VLLM_API_KEY": "other"}) as demo:
        words = await demo.said(
            r"base URL +(\S+)\n +API key +(\S+)\n(?:.*\n)*?"
            r" +metrics +\S+:(\d+)/metrics\n(?:.*\n)*? +(curl (?:.*\\\n)+.*\n)"
        )
        base_url, key = words[1], words[2]
        flags = shlex.split(words[4])
        assert flags[:3] == ["curl", "-N", f"{base_url}/chat/completions"]
        headers = [flags[at + 1] for at, flag in enumerate(flags) if flag == "-H"]
        body = flags[flags.index("-d") + 1].encode()
        assert f"Authorization: Bearer {key}" in headers

        # The words come before the pods have told their models; whoever pastes a curl is slower than that.
        await until_ready(int(words[3]))
        port = int(base_url.rpartition(":")[2].removesuffix("/v1"))
        client = await RawClient.connect(port)
        lines = "\r\n".join(
            ["POST /v1/chat/completions HTTP/1.1", "Host: demo", *headers, f"Content-Length: {len(body)}"]
        )
        client.send(lines.encode() + b"\r\n\r\n" + body)
        came = await client.answer(SECONDS)
        assert (came.status, came.clean, came.events[-1]) == (200, True, DONE)
        assert came.headers["content-type"].startswith("text/event-stream")
        assert len(came.events) > 3
        assert came.headers["x-poolgate-pod"]
        listed = await ask(port, request(b"", key=key, path="/v1/models", method="GET"))
        assert len(json.loads(listed.body)["data"]) == 2
        client.leave()

        simulators = children(demo.process.pid)
        assert len(simulators) == 1
        demo.signal(signal.SIGINT)
        await demo.ended_well()
        assert not any(alive(pid) for pid in simulators)


def test_a_demo_on_a_taken_port_is_one_clear_line(taken: int) -> None:
    assert_one_line(run("demo", "--port", str(taken), "--ops-port", "0"), str(taken), "in use")
