"""A gateway process and its file descriptors: it takes what it may have, and outlives having none left."""

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from loadtest.simulator import PodSettings, SimulatedPod
from tests.integration.test_process import SECONDS, Served, fetch, keys, serving
from tests.raw import RawClient, ask, chat, request

__all__ = ["keys"]  # a fixture

pytestmark = pytest.mark.program("linux")


@contextmanager
def few_at_first(count: int) -> Iterator[None]:
    """What is started meanwhile inherits a low soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def crowd(gateway: Served, count: int) -> AsyncIterator[list[RawClient]]:
    """Connections that say nothing; the kernel takes them where the gateway does not."""
    clients = [await RawClient.connect(gateway.port) for _ in range(count)]
    try:
        yield clients
    finally:
        for client in clients:
            client.leave()


async def serves(gateway: Served, seconds: float) -> bool:
    """Whether a new connection is answered, in so many seconds."""
    try:
        return (await ask(gateway.port, request(chat(max_tokens=1), key=gateway.key), seconds)).status == 200
    except (TimeoutError, OSError):
        return False


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_the_soft_limit_of_a_shell_is_raised_to_the_hard_one(tmp_path: Path, keys: tuple[Path, str]) -> None:
    async with SimulatedPod(PodSettings(model="m")) as pod:
        with few_at_first(256):
            serving_ = serving(tmp_path, keys, [pod])
            gateway = await serving_.__aenter__()
        try:
            soft, hard = resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE)
            assert soft == hard == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        finally:
            await serving_.__aexit__(None, None, None)


async def test_a_gateway_without_a_descriptor_left_neither_spins_nor_ends_and_serves_again(
    tmp_path: Path, keys: tuple[Path, str]
) -> None:
    async with SimulatedPod(PodSettings(model="m")) as pod, serving(tmp_path, keys, [pod]) as gateway:
        await gateway.until_ready()
        pid = gateway.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        few = len(os.listdir(f"/proc/{pid}/fd")) + 10
        async with crowd(gateway, 5):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, hard))
            async with crowd(gateway, 60):
                assert not await serves(gateway, 2.0)
                loop = asyncio.get_running_loop()
                began, before = loop.time(), cpu_seconds(pid)
                await asyncio.sleep(1.0)
                share = (cpu_seconds(pid) - before) / (loop.time() - began)
                assert share < 0.5, "it spins"
        async with asyncio.timeout(SECONDS):
            while not await serves(gateway, 10.0):
                await asyncio.sleep(0.1)
        assert (await fetch(gateway.ops_port, "/livez")).status == 200
        assert gateway.process.returncode is None
