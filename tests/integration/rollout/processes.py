"""Gateways and simulated pods, each a process of its own."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import yaml

from gateway.limits.keys import digest, new_key
from tests.integration.rollout.callers import MODEL
from tests.integration.test_process import ROOT, SECONDS, Served, environment, started
from tests.raw import ask, request
from tests.running import NO_LIMITS

TOKEN_MS = 20.0
"""Between two tokens of a stream."""


class PodProcess:
    """A simulated pod that serves."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.port = port

    @classmethod
    async def start(cls, *flags: str, token_ms: float = TOKEN_MS, model: str = MODEL) -> Self:
        pace = (f"--step-ms={token_ms}", "--step-us-per-sequence=0", "--prefill-us-per-token=0")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loadtest.simulator", "--port-base=0", f"--model={model}", *pace, *flags),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        (pod,) = json.loads(await asyncio.wait_for(process.stdout.readline(), SECONDS))["ready"]
        return cls(process, int(pod["url"].rpartition(":")[2]))

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def slow(self, factor: float) -> None:
        """From its next step on each token takes so many times as long as was said at the start."""
        body = json.dumps({"factor": factor}).encode()
        answer = await ask(self.port, request(body, path="/sim/slowness"))
        assert answer.status == 200, answer.body

    async def ended(self) -> int:
        """Wait for the exit, and return its code."""
        async with asyncio.timeout(SECONDS):
            await self._process.communicate()
        code = self._process.returncode
        assert code is not None
        return code

    async def kill(self) -> None:
        if self._process.returncode is None:
            self.signal(signal.SIGKILL)
        await self.ended()


@asynccontextmanager
async def simulated(*flags: str, token_ms: float = TOKEN_MS) -> AsyncIterator[PodProcess]:
    """A simulated pod for the length of a block."""
    process = await PodProcess.start(*flags, token_ms=token_ms)
    try:
        yield process
    finally:
        await process.kill()


def listed(**pods: PodProcess) -> dict[str, Any]:
    """The settings of discovery for these, by name."""
    where = [{"name": name, "url": f"http://127.0.0.1:{pod.port}", "pool": "chat"} for name, pod in pods.items()]
    return {"mode": "static", "pods": where}


class Gateways:
    """Makes gateway processes of one configuration. Their key may see which pod answered."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], variables: Mapping[str, str] | None = None) -> None:
        key_id, self.key = new_key()
        entry = {"id": key_id, "sha256": digest(self.key.encode()), "team": "callers", "debug": True}
        (folder / "keys.yaml").write_text(yaml.safe_dump({"keys": [entry]}))
        self._file = folder / "poolgate.yaml"
        server = {"host": "127.0.0.1", "port": 0, "ops_port": 0}
        auth = {"keys_file": str(folder / "keys.yaml")}
        limits = {"default": NO_LIMITS}
        self._file.write_text(yaml.safe_dump({"server": server, "auth": auth, "limits": limits, **settings}))
        self._variables = dict(variables or {})

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Served]:
        """One more gateway, up, if not ready."""
        async with started("serve", "--config", str(self._file), more=self._variables) as process:
            yield await Served.up(process, self.key)
