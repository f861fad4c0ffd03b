"""Simulated vLLM pods, each a process of its own: a kill is a kill, and one pod's work is not another's delay."""

import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

from loadtest.bench.processes import BenchError, tail
from loadtest.stand.cores import started
from loadtest.stand.looking import HOST, asked

ENDS_SECONDS = 30.0


@dataclass(frozen=True)
class Load:
    """What a pod computes at one moment."""

    in_flight: int
    aborts: int
    """Requests that their client left, since it started."""


class Pod:
    """One place in a pool; processes come and go there, name and port stay."""

    def __init__(
        self, name: str, pool: str, port: int, flags: Sequence[str], cores: frozenset[int], folder: Path
    ) -> None:
        """`flags`: of the simulator, all but its port."""
        self.name = name
        self.pool = pool
        self.port = port
        self.up = False
        self._flags = flags
        self._cores = cores
        self._log = folder / f"{name}.log"
        self._stack = ExitStack()
        self._process: Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def start(self) -> None:
        """Returns when it serves."""
        await asyncio.to_thread(self._start)
        self.up = True

    def _start(self) -> None:
        command = [sys.executable, "-m", "loadtest.simulator", "--port-base", str(self.port), *self._flags]
        self._process = self._stack.enter_context(started(command, self._cores, self._log, pipe=True))
        assert self._process.stdout is not None  # pipe=True
        if not self._process.stdout.readline():
            raise BenchError(f"the pod {self.name} did not start:\n{tail(self._log)}")

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.up = False
        self._signal(signal.SIGKILL)
        await asyncio.to_thread(self.close)

    async def end(self, seconds: float = ENDS_SECONDS) -> bool:
        """SIGTERM, and whether it ended by itself within that time; afterwards it is gone either way."""
        self.up = False
        self._signal(signal.SIGTERM)
        ended = await asyncio.to_thread(self._ended, seconds)
        if not ended:
            self._signal(signal.SIGKILL)
        await asyncio.to_thread(self.close)
        return ended

    def _ended(self, seconds: float) -> bool:
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except TimeoutExpired:
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    async def load(self) -> Load | None:
        """None: it is down."""
        if not self.up:
            return None
        try:
            _, told = await asked(self.port, "/sim/state")
        except OSError:
            return None
        state: dict[str, Any] = json.loads(told)
        return Load(state["in_flight"], state["aborts"])

    async def set_slowness(self, factor: float) -> None:
        """So many times as slow as it was started, from its next step on."""
        status, told = await asked(self.port, "/sim/slowness", "POST", json.dumps({"factor": factor}).encode())
        if status != 200:
            raise BenchError(f"the pod {self.name} cannot be slowed down: {told.decode(errors='replace')[:200]}")

    def close(self) -> None:
        self._signal(signal.SIGKILL)
        self._stack.close()
