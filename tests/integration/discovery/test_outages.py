"""What many outages of the API server leave behind: nothing."""

import asyncio
import gc
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from kubernetes.aio.client import ApiClient

from tests.apiserver.server import ApiServer
from tests.discovering import NAMESPACE, appear, asked, followed, kubeconfig

OUTAGES = 20
MANY_OUTAGES = 100
MOST_KIB = 1024
"""Less than one TLS context that holds all that the system trusts. A new one in each outage came to 100 MiB."""

FOLLOWS = """
import resource, sys, uvloop
from pathlib import Path
from gateway.discovery.kubernetes import Cluster
from gateway.telemetry.memory import keep_less_memory
from tests.discovering import source_of

def told(reason):
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    print(pages * resource.getpagesize() // 1024, flush=True)

keep_less_memory()
uvloop.run(source_of(Cluster(sys.argv[1]), relisted=told).run(lambda: None))
"""
"""Follows pods, and tells its resident KiB at each full list."""


class Alive(NamedTuple):
    """Objects of a kind, those included that only wait for the collector."""

    contexts: int
    clients: int

    @classmethod
    def now(cls) -> "Alive":
        kinds = [type(each) for each in gc.get_objects()]
        return cls(kinds.count(ssl.SSLContext), kinds.count(ApiClient))


@contextmanager
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def outage(server: ApiServer) -> None:
    """Nobody listens for a while, in which it is tried in vain; then the pods are listed again."""
    # A watch that was not open yet would not hear of it.
    await server.until(lambda: len(server.watches) == 2, 10)
    before = len(asked(server, "list"))
    await server.kill()
    await asyncio.sleep(0.03)
    await server.restart()
    await server.until(lambda: len(asked(server, "list")) > before, 10)


async def test_an_outage_makes_no_new_tls_context() -> None:
    async with ApiServer() as server, followed(server) as seen:
        appear(server, "a")
        await seen.sees(a="ready")
        with uncollected():
            before = Alive.now()
            for _ in range(OUTAGES):
                await outage(server)
            assert Alive.now() == before
        appear(server, "b")
        await seen.sees(a="ready", b="ready")


async def test_memory_is_flat_over_a_hundred_outages() -> None:
    async with ApiServer() as server:
        appear(server, "a")
        with kubeconfig(server) as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                FOLLOWS,
                str(file),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=Path(__file__).parents[3],
            )
            assert process.stdout is not None
            try:
                await server.until(lambda: bool(asked(server, "watch", NAMESPACE)), 20)
                for _ in range(MANY_OUTAGES):
                    await outage(server)
            finally:
                process.kill()
                await process.wait()
            resident = [int(line) for line in (await process.stdout.read()).splitlines()]
    assert len(resident) > MANY_OUTAGES
    tenth = len(resident) // 10
    windows = [median(resident[start : start + tenth]) for start in range(0, 10 * tenth, tenth)]
    # The first fifth warms up.
    assert windows[-1] - windows[2] < MOST_KIB, windows
