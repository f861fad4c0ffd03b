"""A Redis for the limits: the Valkey that a wheel brings, which keeps nothing, on a port that stays its own."""

import asyncio
import signal
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen

from loadtest.bench.limits import Redis, redis_command
from loadtest.bench.processes import wait_until
from loadtest.stand.cores import started


class RedisProcess:
    def __init__(self, port: int, cores: frozenset[int], folder: Path) -> None:
        self.port = port
        self._cores = cores
        self._folder = folder
        self._stack = ExitStack()
        self._process: Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Empty. Returns when it answers. Raises BenchError where the wheel is missing."""
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        log = self._folder / "redis.log"
        self._process = self._stack.enter_context(started(redis_command(self.port, self._folder), self._cores, log))
        wait_until(Redis(self._process.pid, self.port).answers, self._process, log)

    async def kill(self) -> None:
        """SIGKILL; what it counted is lost."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._stack.close()
