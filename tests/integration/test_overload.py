"""A gateway with too much to do: who is turned away, what goes on all the same, and that it ends."""

import asyncio
import fcntl
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path
from types import FrameType

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.parts import THE_USUAL
from gateway.pipeline.overload import Overload
from gateway.telemetry.memory import Memory
from tests.fakes import STREAM_HEAD, Close, Reset, ScriptedPod, answer, chunk
from tests.integration.test_descriptors import cpu_seconds
from tests.integration.test_process import ROOT, SECONDS, Process, Served, configuration, environment, fetch, serving
from tests.raw import Answer, RawClient, chat, request
from tests.running import Running, Side, running

GOOD = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
TOKEN = chunk(b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n')
REST = (
    chunk(b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n')
    + chunk(b"data: [DONE]\n\n")
    + b"0\r\n\r\n"
)
TASK = {"X-OpenWebUI-Task": "title_generation"}
MIB = 1 << 20


class Said(Memory):
    """Memory that is as full as the test says."""

    full = 0.0
    given_back = 0

    def share(self) -> float:
        return self.full

    def give_back(self) -> None:
        self.given_back += 1


class Quick(Overload):
    """Leaves a level at once, and comes to none because the machine is busy."""

    def __init__(self, chance: Callable[[], float]) -> None:
        super().__init__(chance, lag_seconds=(inf, inf), leave_seconds=0.0)


PARTS = THE_USUAL._replace(memory=Said, overload=Quick)


async def filled(gateway: Running, share: float, level: int) -> None:
    """The memory is so full now, and the gateway has seen it."""
    memory = gateway.gateway.memory
    assert isinstance(memory, Said)
    memory.full = share
    async with asyncio.timeout(SECONDS):
        while gateway.gateway.overload.level != level:
            await asyncio.sleep(0.01)


async def answered(gateway: Running, data: bytes) -> Answer:
    client = await RawClient.connect(gateway.port)
    client.send(data)
    came = await client.answer()
    client.leave()
    return came


@pytest.fixture(params=["edge", "asgi"])
def side(request: pytest.FixtureRequest) -> Side:
    found: Side = request.param
    return found


async def test_what_can_wait_is_turned_away_first_and_then_everything_new(side: Side) -> None:
    async with ScriptedPod(scripts=[[GOOD]]) as pod, running([pod], side=side, parts=PARTS) as gateway:
        usual, later = request(chat(), key=gateway.key), request(chat(), key=gateway.key, headers=TASK)
        listing = request(b"", key=gateway.key, path="/v1/models", method="GET")
        for share, level, statuses in (
            (0.5, 0, [200, 200, 200]),
            (0.9, 1, [200, 503, 200]),
            (0.99, 2, [503, 503, 200]),
            (0.5, 0, [200, 200, 200]),
        ):
            await filled(gateway, share, level)
            came = [await answered(gateway, each) for each in (usual, later, listing)]
            assert [each.status for each in came] == statuses, level
            for refused in (each for each in came if each.status == 503):
                assert (refused.error["code"], refused.error["type"]) == ("overloaded", "overloaded_error")
                assert 1 <= int(refused.headers["retry-after"]) <= 3
        assert gateway.sample("poolgate_shed_total", cause="memory") == 3
        assert gateway.sample("poolgate_turned_away_total", pool="other", code="overloaded") == 3


async def test_a_key_of_a_later_priority_waits_as_well() -> None:
    async with ScriptedPod(scripts=[[GOOD]]) as pod, running([pod], parts=PARTS, tenant={"priority": 1}) as gateway:
        await filled(gateway, 0.9, 1)
        assert (await answered(gateway, request(chat(), key=gateway.key))).status == 503
        assert (await answered(gateway, request(chat(), key=gateway.other_key))).status == 200


async def test_who_is_unknown_is_told_so_and_not_to_come_again() -> None:
    async with ScriptedPod(scripts=[[GOOD]]) as pod, running([pod], parts=PARTS) as gateway:
        await filled(gateway, 0.99, 2)
        assert (await answered(gateway, request(chat(), key="sk-none"))).status == 401


async def test_no_body_is_read_of_what_is_turned_away() -> None:
    async with ScriptedPod(scripts=[[GOOD]]) as pod, running([pod], parts=PARTS) as gateway:
        await filled(gateway, 0.99, 2)
        head = request(b"x" * 1000, key=gateway.key, headers={"Expect": "100-continue"})
        came = await answered(gateway, head.removesuffix(b"x" * 1000))
        assert (came.status, came.interim, came.headers["connection"]) == (503, 0, "close")


async def test_a_stream_that_runs_goes_on_to_its_end() -> None:
    go_on = asyncio.Event()
    async with ScriptedPod(scripts=[[STREAM_HEAD + TOKEN, go_on, REST]]) as pod, running([pod], parts=PARTS) as gateway:
        client = await RawClient.connect(gateway.port)
        client.send(request(chat(stream=True), key=gateway.key))
        begun = await client.reader.readuntil(b'"a"')
        await filled(gateway, 0.99, 2)
        go_on.set()
        came = await client.answer(begun=begun)
        assert (came.status, came.clean, came.events[-1]) == (200, True, b"data: [DONE]\n\n")
        client.leave()


async def test_short_of_memory_every_answer_closes_its_connection_until_it_is_over() -> None:
    async with ScriptedPod(scripts=[[GOOD]]) as pod, running([pod], parts=PARTS) as gateway:
        usual = request(chat(), key=gateway.key)
        await filled(gateway, 0.9, 1)
        assert (await answered(gateway, usual)).headers["connection"] == "close"
        memory = gateway.gateway.memory
        assert isinstance(memory, Said)
        assert memory.given_back
        await filled(gateway, 0.5, 0)
        assert "connection" not in (await answered(gateway, usual)).headers


async def test_operators_see_it_begin_and_end() -> None:
    async with ScriptedPod(scripts=[[GOOD]]) as pod, running([pod], parts=PARTS) as gateway:
        async with asyncio.timeout(SECONDS):
            while not list(gateway.gateway.seen().events()):
                await asyncio.sleep(0.01)
        await filled(gateway, 0.99, 2)
        assert gateway.sample("poolgate_overload_level") == 2
        await answered(gateway, request(chat(), key=gateway.key))
        load = gateway.gateway.seen().load
        assert (load.level, load.cause, load.shed) == (2, "memory", 1)
        await filled(gateway, 0.5, 0)
        events = gateway.gateway.seen().events
        async with asyncio.timeout(SECONDS):
            while (told := [each.what for each in events()])[0] != "overload_over":
                await asyncio.sleep(0.01)
        assert told[:2] == ["overload_over", "overload"]


@pytest.mark.parametrize("ending", [Reset, Close], ids=["reset", "closed"])
async def test_a_request_that_failed_leaves_nothing_for_the_collector_to_find(ending: type[Reset | Close]) -> None:
    async with ScriptedPod(scripts=[[ending]]) as pod, running([pod]) as gateway:
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            assert (await answered(gateway, request(chat(), key=gateway.key))).status == 502
            await gateway.settled()
            gc.collect()
            held = [each for each in gc.garbage if isinstance(each, FrameType | BaseException)]
        finally:
            gc.set_debug(0)
            gc.enable()
            gc.garbage.clear()
        assert [each for each in held if "gateway" in repr(each)] == []


# A process of its own.


async def gauges(gateway: Served) -> dict[str, float]:
    """The series without labels."""
    text = (await gateway.ops("/metrics")).body.decode()
    return {
        each.name: each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
        if not each.labels
    }


@asynccontextmanager
async def limited_to(address_bytes: int, directory: Path, pod: ScriptedPod) -> AsyncIterator[Served]:
    """A gateway process under `ulimit -v`."""
    file = configuration(directory, None, [pod])
    process = await asyncio.create_subprocess_exec(
        *("prlimit", f"--as={address_bytes}", sys.executable, "-m", "gateway"),
        *("serve", "--config", str(file), "--insecure-no-auth"),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    gateway = Process(process)
    try:
        yield await Served.up(gateway, "")
    finally:
        if process.returncode is None:
            process.kill()
        await gateway.ended()


@pytest.mark.program("linux")
async def test_bodies_beyond_the_memory_are_refused_and_the_gateway_lives_and_takes_more(tmp_path: Path) -> None:
    body = json.dumps(chat(max_tokens=1, messages=[{"role": "user", "content": "x" * (8 * MIB - 1000)}])).encode()
    async with ScriptedPod(scripts=[[GOOD]]) as pod, limited_to(256 * MIB, tmp_path, pod) as gateway:
        await gateway.until_ready()
        assert (await gauges(gateway))["poolgate_memory_limit_bytes"] == 256 * MIB

        async def status() -> int:
            client = await RawClient.connect(gateway.port)
            try:
                client.send(request(body))
                return (await client.answer(SECONDS)).status
            except ConnectionError:
                # Closed while it still sent: bytes of a refused body are read for a while only.
                return 503
            finally:
                client.leave()

        statuses = await asyncio.gather(*(status() for _ in range(200)))
        assert set(statuses) <= {200, 503, 0}
        assert 503 in statuses
        assert (await gateway.ops("/livez")).status == 200
        async with asyncio.timeout(SECONDS):
            while (now := await gauges(gateway))["poolgate_overload_level"] or now["poolgate_buffered_body_bytes"]:
                await asyncio.sleep(0.05)
        assert await status() == 200
        gateway.signal(signal.SIGINT)
        await gateway.ended_well()


async def test_one_stall_is_told_and_turns_nobody_away_and_harms_no_probe(tmp_path: Path) -> None:
    async with (
        ScriptedPod(scripts=[[GOOD]]) as pod,
        serving(tmp_path, None, [pod], "--insecure-no-auth") as gateway,
    ):
        await gateway.until_ready()
        gateway.signal(signal.SIGSTOP)
        stopped = asyncio.get_running_loop().time()
        # What comes meanwhile waits in the kernel.
        clients = [await gateway.client(chat()) for _ in range(20)]
        probe = asyncio.create_task(gateway.ops("/livez"))
        while asyncio.get_running_loop().time() - stopped < 2.0:
            await asyncio.sleep(0.05)
        gateway.signal(signal.SIGCONT)
        assert (await probe).status == 200
        assert [(await each.answer()).status for each in clients] == [200] * 20
        assert (await gateway.ops("/readyz")).status == 200
        told = await gauges(gateway)
        assert told["poolgate_loop_lag_seconds"] > 1.8
        assert told["poolgate_overload_level"] == 0
        for each in clients:
            each.leave()


async def test_probes_are_answered_while_requests_take_all_of_the_cpu(tmp_path: Path) -> None:
    # Costly to read, cheap to send, and refused at the end: no pod has that model.
    body = json.dumps({"model": "none", "messages": [{"role": "user", "content": "x"}] * 3000}).encode()
    probe = yaml.safe_load((ROOT / "deploy/kustomize/base/deployment.yaml").read_text())["spec"]["template"]["spec"]
    limit = probe["containers"][0]["livenessProbe"]["timeoutSeconds"]
    async with (
        ScriptedPod(scripts=[[GOOD]]) as pod,
        serving(tmp_path, None, [pod], "--insecure-no-auth") as gateway,
    ):
        await gateway.until_ready()
        asked = 0

        async def ask_again_and_again() -> None:
            nonlocal asked
            while True:
                client = await RawClient.connect(gateway.port)
                try:
                    client.send(request(body))
                    await client.answer(SECONDS)
                    asked += 1
                finally:
                    client.leave()

        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(ask_again_and_again()) for _ in range(50)]
            for _ in range(20):
                before = asked
                for path in ("/livez", "/readyz"):
                    # Of the processor's time: on a machine of its own a gateway has all of it.
                    spent = cpu_seconds(gateway.process.pid)
                    assert (await gateway.ops(path)).status == 200
                    assert cpu_seconds(gateway.process.pid) - spent < limit
                async with asyncio.timeout(SECONDS):
                    while asked < before + 20:
                        await asyncio.sleep(0.01)
            for each in asking:
                each.cancel()


class Unread:
    """A pipe that is full, and that nobody reads until the test does."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.write_end, False)
        self.filling = 0
        try:
            while True:
                self.filling += os.write(self.write_end, b"\n" * 4096)
        except BlockingIOError:
            os.set_blocking(self.write_end, True)

    async def lines(self) -> list[str]:
        """What came behind the filling, until every writer has closed it."""
        os.close(self.write_end)
        parts = []
        while part := await asyncio.to_thread(os.read, self.read_end, 65536):
            parts.append(part)
        os.close(self.read_end)
        return b"".join(parts)[self.filling :].decode().splitlines()


def fill_of(pipe: Unread) -> int:
    """Bytes that wait there to be read."""
    return int.from_bytes(fcntl.ioctl(pipe.read_end, 0x541B, bytes(4)), sys.byteorder)


@asynccontextmanager
async def unheard(
    directory: Path, pod: ScriptedPod, ports: tuple[int, int]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Unread, Unread]]:
    """A gateway whose stdout and stderr are full before its first word."""
    out, err = Unread(), Unread()
    # With it Python's own files have no buffer, whose lock a thread that stands still would hold at the end.
    without = {name: value for name, value in environment().items() if name != "PYTHONUNBUFFERED"}
    file = configuration(directory, None, [pod], port=ports[0], ops_port=ports[1])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "serve", "--config", str(file), "--insecure-no-auth"),
        cwd=ROOT,
        env=without,
        stdout=out.write_end,
        stderr=err.write_end,
    )
    try:
        yield process, out, err
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    """Two ports on which nobody listens: they are bound, so that nobody but who asks for them is given them."""
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        yield one.getsockname()[1], other.getsockname()[1]


async def is_ready(port: int) -> None:
    """Wait until the gateway with this ops port is."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                if (await fetch(port, "/readyz")).status == 200:
                    return
            except OSError:
                await asyncio.sleep(0.02)


async def test_a_gateway_that_nobody_hears_serves_and_ends_all_the_same(tmp_path: Path, ports: tuple[int, int]) -> None:
    async with ScriptedPod(scripts=[[GOOD]]) as pod, unheard(tmp_path, pod, ports) as (process, out, err):
        await is_ready(ports[1])
        # Something to say: a configuration that cannot be used.
        file = tmp_path / "poolgate.yaml"
        file.write_text(file.read_text() + "nonsense: true\n")

        async def ask(count: int) -> None:
            client = await RawClient.connect(ports[0])
            for _ in range(count):
                client.send(request(b"", path="/v1/models", method="GET"))
                assert (await client.answer(SECONDS)).status == 200
            client.leave()

        async with asyncio.timeout(10 * SECONDS):
            await asyncio.gather(*(ask(500) for _ in range(20)))
        assert fill_of(err) == err.filling
        async with asyncio.timeout(SECONDS):
            while b"poolgate_config_refused 1" not in (text := (await fetch(ports[1], "/metrics")).body):
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(SECONDS):
            assert await process.wait() == 0
        assert b"poolgate_log_lines_dropped_total 0.0" in text
        assert await err.lines() == []
        await out.lines()


async def test_what_was_said_while_nobody_listened_is_read_later_and_what_was_lost_is_counted(
    tmp_path: Path, ports: tuple[int, int]
) -> None:
    async with ScriptedPod(scripts=[[GOOD]]) as pod, unheard(tmp_path, pod, ports) as (process, out, err):
        await is_ready(ports[1])
        said, told = asyncio.create_task(err.lines()), asyncio.create_task(out.lines())
        client = await RawClient.connect(ports[0])
        client.send(request(chat()))
        assert (await client.answer()).status == 200
        client.leave()
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(SECONDS):
            assert await process.wait() == 0
            assert any("serves on http" in line for line in await said)
            assert [json.loads(line)["status"] for line in await told] == [200]
