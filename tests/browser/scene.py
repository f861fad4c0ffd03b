"""What a page is a page of: pods that can be killed, each a process of its own, a gateway before them, and callers.

All are processes, as an operator has them; the callers are tasks of the test.
"""

import asyncio
import json
import signal
import subprocess
import sys
from asyncio.subprocess import Process as Child
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gateway.limits.keys import digest, new_key
from tests.integration.test_process import ROOT, SECONDS, Served, environment, started
from tests.raw import Answer, ask, request

MODEL, OTHER_MODEL = "qwen3-8b", "llama-3.1-8b"
LIVE = "document.querySelector('#link').innerText === 'live'"
"""In JavaScript: the page is sent what changes."""


@dataclass(frozen=True, slots=True)
class PodProcess:
    """A simulated pod in a process of its own."""

    name: str
    pool: str
    url: str
    model: str
    process: Child

    def kill(self) -> None:
        """As the kernel does when memory runs out."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)

    async def set_fault(self, **fault: Any) -> None:
        """From now on, for its requests."""
        port = int(self.url.rpartition(":")[2])
        answer = await ask(port, request(fault, path="/sim/fault"))
        assert answer.status == 200, answer.body


@asynccontextmanager
async def pod(name: str, pool: str = "chat", *flags: str, model: str = MODEL) -> AsyncIterator[PodProcess]:
    """A pod, once it serves."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest.simulator", "--port-base=0", f"--model={model}", *flags),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(SECONDS):
            told = json.loads(await process.stdout.readline())
        yield PodProcess(name, pool, told["ready"][0]["url"], model, process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.stdout.read()
        await process.wait()


@asynccontextmanager
async def pods(*wanted: tuple[str, str, str], flags: Iterable[str] = ()) -> AsyncIterator[list[PodProcess]]:
    """Several, started at once: (name, pool, model) of each."""
    async with AsyncExitStack() as stack:
        async with asyncio.TaskGroup() as starting:
            tasks = [
                starting.create_task(stack.enter_async_context(pod(name, pool, *flags, model=model)))
                for name, pool, model in wanted
            ]
        yield [task.result() for task in tasks]


@dataclass(frozen=True, slots=True)
class Settings:
    """The files of a gateway, and the keys of its callers."""

    file: Path
    keys: dict[str, str]
    """By team."""

    @classmethod
    def written(
        cls,
        directory: Path,
        pods: Iterable[PodProcess] = (),
        *,
        teams: Mapping[str, Mapping[str, Any]] | None = None,
        server: Mapping[str, Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> "Settings":
        """For these pods; `teams` are what stands in the entries of their keys, `more` further sections."""
        keys, entries = {}, []
        for team, limits in (teams or {"acme": {}}).items():
            key_id, keys[team] = new_key()
            digested = digest(keys[team].encode())
            entries.append({"id": key_id, "sha256": digested, "team": team, "models": ["*"], **limits})
        keys_file = directory / "keys.yaml"
        keys_file.write_text(yaml.safe_dump({"keys": entries}))
        keys_file.chmod(0o600)
        settings = cls(directory / "poolgate.yaml", keys)
        settings.write(
            {
                "server": {"host": "127.0.0.1", "port": 0, "ops_port": 0, "drain_seconds": 1, **(server or {})},
                "discovery": {
                    "mode": "static",
                    "pods": [{"name": pod.name, "url": pod.url, "pool": pod.pool} for pod in pods],
                },
                "auth": {"keys_file": str(keys_file)},
                **(more or {}),
            }
        )
        return settings

    def keep_ports(self, served: Served) -> None:
        """The next gateway serves where this one does."""
        settings = self.read()
        settings["server"] |= {"port": served.port, "ops_port": served.ops_port}
        self.write(settings)

    def read(self) -> dict[str, Any]:
        told: dict[str, Any] = yaml.safe_load(self.file.read_text())
        return told

    def write(self, settings: Mapping[str, Any]) -> None:
        self.file.write_text(yaml.safe_dump(dict(settings)))


class Gateway:
    """A gateway's process, as its operator and its callers see it."""

    def __init__(self, served: Served, settings: Settings) -> None:
        self.served = served
        self.settings = settings

    @property
    def url(self) -> str:
        """Its status page."""
        return f"http://127.0.0.1:{self.served.ops_port}/status"

    async def status(self) -> dict[str, Any]:
        """What `/status.json` says."""
        told: dict[str, Any] = json.loads((await self.served.ops("/status.json")).body)
        return told

    async def pods_that_are(self, *states: str) -> list[str]:
        """Their names."""
        return [pod["name"] for pod in (await self.status())["pods"] if pod["state"] in states]

    async def pod_is(self, name: str, *states: str) -> dict[str, Any]:
        """Wait until `/status.json` says that a pod is in one of these states."""
        async with asyncio.timeout(SECONDS):
            while True:
                for pod in (await self.status())["pods"]:
                    if pod["name"] == name and pod["state"] in states:
                        found: dict[str, Any] = pod
                        return found
                await asyncio.sleep(0.02)

    async def ask(self, team: str = "acme", **body: Any) -> Answer:
        """One chat of a team, to its end."""
        whole = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, **body}
        return await ask(self.served.port, request(whole, key=self.settings.keys[team]), SECONDS)

    @asynccontextmanager
    async def asked(self, team: str = "acme", callers: int = 1, **body: Any) -> AsyncIterator[None]:
        """So many callers of a team, who ask again and again."""

        async def call() -> None:
            while True:
                try:
                    answer = await self.ask(team, **body)
                except (OSError, TimeoutError):
                    await asyncio.sleep(0.05)
                else:
                    await asyncio.sleep(0 if answer.status == 200 else 0.05)

        calling = [asyncio.create_task(call()) for _ in range(callers)]
        try:
            yield
        finally:
            for task in calling:
                task.cancel()
            ended = await asyncio.gather(*calling, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error


@asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[Gateway]:
    """A gateway with these settings, once it is ready."""
    async with started("serve", "--config", str(settings.file)) as process:
        found = Gateway(await Served.up(process, ""), settings)
        await found.served.until_ready()
        yield found
