"""One real vLLM on loopback, for as long as a `with` block lasts.

vLLM is three processes: the API server, VLLM::EngineCore and VLLM::Worker. Killing the first leaves the
others alive, so it is started as the leader of a process group, and at the end the group is killed, whatever
is left of it. A start takes 40 s on a quiet machine (the three import torch one after the other), twice that
the first time, when Python's bytecode has yet to be written; so PYTHONDONTWRITEBYTECODE is cleared.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
MODEL_NAME = "smollm2"
NAME_WITH_A_SLASH = "acme/chat"  # the same model's second name, shaped as on a hub
MAX_MODEL_LEN = 2048
READY_SECONDS = 240  # a loaded machine of two cores has needed 146

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else every server binds itself to core 0
    "PYTHONDONTWRITEBYTECODE": "",
}
FLAGS = (
    *("--served-model-name", MODEL_NAME, "--host", "127.0.0.1"),
    # float32: in bfloat16 near-ties between tokens are rounded differently from run to run
    *("--dtype", "float32", "--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "16"),
    *("--enforce-eager", "--kv-cache-memory-bytes", "536870912"),
)


class VllmNotInstalled(Exception):
    """There is no venv with vLLM, or no model, where they are looked for."""


class VllmDidNotStart(Exception):
    """vLLM ended, or did not answer /health in time. Its last lines of log are in the message."""


@dataclass(frozen=True)
class Busy:
    """What vLLM says it is doing, in requests. The gauges move when its engine steps; `load` is exact."""

    load: int
    running: int
    waiting: int

    @property
    def idle(self) -> bool:
        return self.load == self.running == self.waiting == 0


@dataclass(frozen=True)
class Vllm:
    port: int
    log: Path
    seconds_to_start: float
    pid: int
    """Of the API server: what a SIGTERM goes to."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def busy(self) -> Busy:
        """`load` counts only when vLLM was started with --enable-server-load-tracking."""
        load = json.loads(self._get("/load"))["server_load"]
        metrics = self.metrics()
        return Busy(load, _gauge(metrics, "num_requests_running"), _gauge(metrics, "num_requests_waiting"))

    def metrics(self) -> str:
        return self._get("/metrics").decode()

    def _get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()


@contextmanager
def real_vllm(log: Path, *more_flags: str) -> Iterator[Vllm]:
    """Start vLLM, wait until it is ready, and leave no process of it behind.

    Raises VllmNotInstalled, VllmDidNotStart.
    """
    home = installation()
    port = free_port()
    command = [str(home / "venv" / "bin" / "vllm"), "serve", str(home / "model"), *FLAGS, "--port", str(port)]
    with running([*command, *more_flags], {**os.environ, **ENVIRONMENT}, port, log) as started:
        yield started


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], port: int, log: Path) -> Iterator[Vllm]:
    """What the command starts, from when it is ready on; at the end nothing of it is left. Raises VllmDidNotStart."""
    start = time.monotonic()
    # A run that is told to stop, as by a CI's timeout, unwinds like one that is interrupted, and stops vLLM too.
    on_sigterm = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with log.open("wb") as log_file:
        api_server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        wait_for_health(api_server, port, log, start, "vLLM", VllmDidNotStart)
        yield Vllm(port, log, time.monotonic() - start, api_server.pid)
    finally:
        end_group(api_server)
        signal.signal(signal.SIGTERM, on_sigterm)


def installation() -> Path:
    """The folder that install.py filled: POOLGATE_VLLM_HOME, or .vllm in the repository."""
    home = Path(os.environ.get("POOLGATE_VLLM_HOME") or REPOSITORY / ".vllm").resolve()
    # install.py puts the model in its place last.
    missing = [path for path in (home / "venv" / "bin" / "vllm", home / "model") if not path.exists()]
    if missing:
        raise VllmNotInstalled(
            f"{missing[0]} is not there. `make test-vllm` installs vLLM and runs these tests; to install it "
            "alone: python -m tests.e2e.vllm.install (2.5 GB, in .vllm or where POOLGATE_VLLM_HOME says)"
        )
    return home


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def answers_200(port: int, path: str) -> bool:
    """False also while nothing listens there: vLLM refuses connections until its model is loaded."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def end_of(log: Path) -> str:
    return "\n".join([f"the end of {log}:", *log.read_text(errors="replace").splitlines()[-30:]])


def _gauge(metrics: str, name: str) -> int:
    value = re.search(rf"^vllm:{name}{{[^}}]*}} ([0-9.e+]+)$", metrics, re.MULTILINE)
    assert value is not None, f"vLLM's /metrics has no vllm:{name}: has it been renamed?"
    return int(float(value[1]))


def wait_for_health(
    process: subprocess.Popen[bytes], port: int, log: Path, start: float, name: str, failed: type[Exception]
) -> None:
    """Until its `/health` says 200. Raises `failed` with the end of its log."""
    while not answers_200(port, "/health"):
        waited = time.monotonic() - start
        if process.poll() is not None:
            raise failed(f"{name} ended with {process.returncode} after {waited:.0f} s; {end_of(log)}")
        if waited > READY_SECONDS:
            raise failed(f"{name} was not ready after {waited:.0f} s; {end_of(log)}")
        time.sleep(0.1)


def end_group(leader: subprocess.Popen[bytes]) -> None:
    leader.terminate()
    with suppress(subprocess.TimeoutExpired):  # with streams open it waits for them, without end
        leader.wait(timeout=10)
    # A group outlives its leader, so this reaches the orphans of one that was killed. Asked, they end within a
    # second and give back their shared memory, unless they hang.
    _signal_group(leader.pid, signal.SIGTERM)
    if not _group_ends(leader.pid, within_seconds=3):
        _signal_group(leader.pid, signal.SIGKILL)
        leader.wait()
        _group_ends(leader.pid, within_seconds=1)  # False as well when nobody reaps the dead


def _group_ends(group: int, within_seconds: float) -> bool:
    deadline = time.monotonic() + within_seconds
    while _signal_group(group, 0):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _signal_group(group: int, number: int) -> bool:
    """Whether there was anyone left in the group to be signalled."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True
