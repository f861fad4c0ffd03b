"""What Open WebUI talks to: a gateway with its keys before simulated pods, each a process of its own."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import yaml

from gateway.limits.keys import digest, new_key
from tests.e2e.vllm.front import COMMAND, stop, wait_until_ready
from tests.e2e.vllm.server import REPOSITORY, free_port
from tests.running import NO_LIMITS

TOKEN_MS = 40.0
"""Between two words of an answer."""
SECONDS = 20.0
HEAD = re.compile(rb"(?:GET|POST) [^\r]*\r\n.*?\r\n\r\n", re.DOTALL)
HEADER = re.compile(rb"([^\r\n:]+): ([^\r\n]*)\r\n")


@dataclass(frozen=True)
class Pods:
    """Simulated ones, of one process, by pool."""

    urls: Mapping[str, list[str]]

    def running(self, pool: str) -> int:
        """Requests that take up room in the pool's engines."""
        return sum(state["running"] + state["waiting"] for state in self._states(pool))

    def aborts(self, pool: str) -> int:
        return sum(state["aborts"] for state in self._states(pool))

    @contextmanager
    def broken(self, pool: str, fault: Mapping[str, Any]) -> Iterator[None]:
        """All pods of the pool have this fault for the length of a block."""
        for url in self.urls[pool]:
            _call("POST", f"{url}/sim/fault", fault)
        try:
            yield
        finally:
            for url in self.urls[pool]:
                _call("DELETE", f"{url}/sim/fault")

    def _states(self, pool: str) -> list[dict[str, Any]]:
        return [json.loads(_call("GET", f"{url}/sim/state")) for url in self.urls[pool]]


@contextmanager
def simulated_pods(**pools: int) -> Iterator[Pods]:
    """So many pods of each pool, which serve one model of its name."""
    pace = (f"--step-ms={TOKEN_MS}", "--step-us-per-sequence=0", "--prefill-us-per-token=0")
    wanted = [f"--pool={name}:{count}" for name, count in pools.items()]
    command = [sys.executable, "-m", "loadtest.simulator", "--port-base=0", *pace, *wanted]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
    watch = threading.Timer(SECONDS, process.kill)
    watch.start()
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())["ready"]
        watch.cancel()
        yield Pods({name: [pod["url"] for pod in ready if pod["model"] == name] for name in pools})
    finally:
        watch.cancel()
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class Front:
    """A gateway, and what an operator sees of it."""

    url: str
    keys: Mapping[str, str]
    pods: Pods
    log: Path

    def lines(self, **fields: Any) -> list[dict[str, Any]]:
        """The access lines so far in which these fields have these values."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if all(line[name] == value for name, value in fields.items())]

    def next_line(self, after: int, **fields: Any) -> dict[str, Any]:
        """Wait for one more such line than there were."""
        deadline = time.monotonic() + SECONDS
        while len(lines := self.lines(**fields)) <= after:
            assert time.monotonic() < deadline, f"no such line within {SECONDS} s: {fields}, but {self.lines()[-5:]}"
            time.sleep(0.02)
        return lines[after]


@contextmanager
def gateway_before(
    pods: Pods, folder: Path, keys: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> Iterator[Front]:
    """A gateway on loopback, with these keys by their team, and these settings."""
    config, keys_file, log = folder / "poolgate.yaml", folder / "keys.yaml", folder / "gateway.log"
    made = {team: new_key() for team in keys}
    entries = [
        {"id": made[team][0], "sha256": digest(made[team][1].encode()), "team": team, **more}
        for team, more in keys.items()
    ]
    keys_file.write_text(yaml.safe_dump({"keys": entries}))
    listed = [{"url": url, "pool": pool} for pool, urls in pods.urls.items() for url in urls]
    auth, limits = settings.get("auth", {}), settings.get("limits", {})
    config.write_text(
        yaml.safe_dump(
            {
                **settings,
                "server": {"host": "127.0.0.1", "ops_host": "127.0.0.1"},
                "discovery": {"mode": "static", "pods": listed},
                "auth": {"mode": "keys", "keys_file": str(keys_file), **auth},
                "limits": {"default": NO_LIMITS, **limits},
            }
        )
    )
    port, ops_port = free_port(), free_port()
    command = [*COMMAND, "serve", "--config", str(config), "--port", str(port), "--ops-port", str(ops_port)]
    with log.open("wb") as log_file:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log_file, stderr=subprocess.STDOUT)
    try:
        wait_until_ready(process, ops_port, log)
        yield Front(f"http://127.0.0.1:{port}", {team: key for team, (_, key) in made.items()}, pods, log)
    finally:
        stop(process, log)


class Tap:
    """Passes connections on to a server, unchanged, and keeps the heads of the requests that go there."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._sent: list[bytearray] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def heads(self, start: bytes) -> list[dict[str, str]]:
        """The headers, names in lower case, of each request whose line starts so."""
        heads = (head for sent in self._sent for head in HEAD.findall(sent) if head.startswith(start))
        return [{name.lower().decode(): value.decode() for name, value in HEADER.findall(head)} for head in heads]

    def close(self) -> None:
        """Wait for the last connection's end, too."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept()
        for thread in self._threads:
            thread.join(SECONDS)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._sent.append(bytearray())
                self._threads.append(threading.Thread(target=self._pass_on, args=(near, self._sent[-1])))
                self._threads[-1].start()

    def _pass_on(self, near: socket.socket, kept: bytearray) -> None:
        with near, socket.create_connection(("127.0.0.1", self._to)) as far:
            back = threading.Thread(target=_carry, args=(far, near, bytearray()))
            back.start()
            _carry(near, far, kept)
            back.join(SECONDS)


def _carry(source: socket.socket, to: socket.socket, kept: bytearray) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            kept += data
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)


def _call(method: str, url: str, body: Mapping[str, Any] | None = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, method=method), timeout=SECONDS) as answer:
        came: bytes = answer.read()
    return came
