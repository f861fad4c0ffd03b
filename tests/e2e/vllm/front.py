"""The gateway before one pod, started as an operator starts it: a configuration, a key, `serve`."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.e2e.vllm.server import MODEL_NAME, REPOSITORY, answers_200, end_of, free_port
from tests.e2e.vllm.wire import Server
from tests.running import NO_LIMITS

READY_SECONDS = 30
STOP_SECONDS = 15
COMMAND = (sys.executable, "-m", "gateway")


class GatewayFailed(Exception):
    """A command of it failed, or it did not become ready, or did not end. Its words are in the message."""


@contextmanager
def gateway_before(pod_url: str, folder: Path, pod_key: str | None = None) -> Iterator[Server]:
    """A gateway on loopback with one pod behind it, and a key that it admits. Raises GatewayFailed."""
    keys, config, log = folder / "keys.yaml", folder / "config.yaml", folder / "gateway.log"
    key = create_key(keys)
    config.write_text(
        yaml.safe_dump(
            {
                "server": {"host": "127.0.0.1", "ops_host": "127.0.0.1"},
                "discovery": {"mode": "static", "pods": [{"url": pod_url, "pool": MODEL_NAME}]},
                "auth": {"mode": "keys", "keys_file": str(keys)},
                "limits": {"default": NO_LIMITS},
                "upstream": {"api_key": pod_key} if pod_key else {},
            }
        )
    )
    port, ops_port = free_port(), free_port()
    command = [*COMMAND, "serve", "--config", str(config), "--port", str(port), "--ops-port", str(ops_port)]
    with log.open("wb") as log_file:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log_file, stderr=subprocess.STDOUT)
    try:
        wait_until_ready(process, ops_port, log)
        yield Server(f"http://127.0.0.1:{port}", key, f"http://127.0.0.1:{ops_port}")
    finally:
        stop(process, log)
    if "Traceback" in log.read_text():
        raise GatewayFailed(f"the gateway logged a traceback; {end_of(log)}")


def create_key(keys: Path) -> str:
    command = [*COMMAND, "keys", "create", "--team", "test", "--file", str(keys), "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        raise GatewayFailed(f"`keys create` ended with {done.returncode}: {done.stderr}")
    key: str = json.loads(done.stdout)["key"]
    return key


def wait_until_ready(process: subprocess.Popen[bytes], ops_port: int, log: Path) -> None:
    start = time.monotonic()
    while not answers_200(ops_port, "/readyz"):
        if process.poll() is not None:
            raise GatewayFailed(f"the gateway ended with {process.returncode}; {end_of(log)}")
        if time.monotonic() - start > READY_SECONDS:
            raise GatewayFailed(f"the gateway was not ready after {READY_SECONDS} s; {end_of(log)}")
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes], log: Path) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise GatewayFailed(
            f"idle, the gateway was still there {STOP_SECONDS} s after SIGTERM; {end_of(log)}"
        ) from None
