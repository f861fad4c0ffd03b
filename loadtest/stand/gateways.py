"""Gateways as an operator starts them: `poolgate serve` with a file, keys, metrics and the access line on."""

import asyncio
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen, TimeoutExpired

from loadtest.bench.accounting import process_tree
from loadtest.bench.processes import BenchError, wait_until
from loadtest.bench.targets import serve_command, status_of
from loadtest.stand.cores import started
from loadtest.stand.looking import HOST, asked, series_in
from loadtest.stand.ports import lasting_ports

READY_SECONDS = 60.0
ENDS_SECONDS = 60.0


class GatewayProcess:
    """One replica, from its start to its end; who comes after it is another one."""

    def __init__(
        self, name: str, config: Path, variables: Mapping[str, str], cores: frozenset[int], folder: Path
    ) -> None:
        self.name = name
        self._config = config
        self._variables = variables
        self._cores = cores
        self.log = folder / f"{name}.log"
        self._stack = ExitStack()
        self._process: Popen[bytes] | None = None
        self.port = self.ops_port = 0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the process and its children; empty once it has ended."""
        if self._process is None or self._process.poll() is not None:
            return ()
        return process_tree(self._process.pid)

    async def start(self) -> None:
        """Returns when it is ready."""
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        self.port, self.ops_port = self._stack.enter_context(lasting_ports(2))
        command = serve_command(self._config, self.port, self.ops_port)
        self._process = self._stack.enter_context(started(command, self._cores, self.log, more=self._variables))
        wait_until(self._is_ready, self._process, self.log, seconds=READY_SECONDS)

    def _is_ready(self) -> bool:
        return status_of(self.ops_port, "/readyz") == 200

    async def scrape(self) -> dict[str, float]:
        """Every series of its `/metrics`. Raises OSError when it is gone."""
        status, told = await asked(self.ops_port, "/metrics")
        if status != 200:
            raise ConnectionError(f"{self.name} answered {status} to /metrics")
        return series_in(told.decode())

    def terminate(self) -> None:
        """SIGTERM: it drains."""
        if self.pids:
            assert self._process is not None  # it has a pid
            self._process.send_signal(signal.SIGTERM)

    async def ended(self, seconds: float = ENDS_SECONDS) -> int:
        """Wait for its exit, and say with which code. Raises BenchError if it does not come."""
        code = await asyncio.to_thread(self._wait, seconds)
        await asyncio.to_thread(self.close)
        return code

    def _wait(self, seconds: float) -> int:
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except TimeoutExpired:
            raise BenchError(f"{self.name} had not ended {seconds:.0f} s after its SIGTERM") from None

    def close(self) -> None:
        """At once: all that it could tell has been asked."""
        if self.pids:
            assert self._process is not None  # it has a pid
            self._process.kill()
        self._stack.close()
