"""The gateway itself, `poolgate serve`, with its keys and its configuration."""

import hashlib
import http.client
import json
import os
import secrets
import string
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import yaml

from loadtest.bench.accounting import process_tree
from loadtest.bench.processes import child, free_port, wait_until
from loadtest.bench.targets.site import HOST, REPOSITORY, Running, Site, status_of
from loadtest.bench.wire import MODEL

PYTHON: Final = os.environ.get("GATEWAY_PYTHON", sys.executable)
"""What gateways run with: an interpreter that has their requirements. One that was built with profiles, as that of the
image is, runs a request in a quarter less than one that was not."""


_TELL_VERSIONS: Final = "import gateway, platform; print(f'{gateway.__version__}, Python {platform.python_version()}')"


class Gateway:
    """`poolgate serve` as an operator starts it: keys, metrics and the access line on (to a file: its cost is ours)."""

    name = "gateway"

    def version(self) -> str:
        command = [PYTHON, "-c", _TELL_VERSIONS]
        asked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        return asked.stdout.strip() if asked.returncode == 0 else "unknown"

    @contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        with serving(site) as (running, _ops_port):
            yield running


@contextmanager
def serving(
    site: Site,
    own_limits: Mapping[str, int] = MappingProxyType({}),
    redis_url: str | None = None,
    models: Sequence[str] = (),
) -> Iterator[tuple[Running, int]]:
    """`poolgate serve` once it is ready, and its ops port; its caller's key has these limits, counted there, and its
    model these further names."""
    port, ops_port = free_port(), free_port()
    keys = site.folder / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [keys_entry(site.key) | dict(own_limits)]}, sort_keys=False))
    config = site.folder / "poolgate.yaml"
    config.write_text(yaml.safe_dump(gateway_config(site.pods, keys, redis_url, models), sort_keys=False))
    log = site.folder / "gateway.log"
    with child(serve_command(config, port, ops_port), core=site.core, log=log, cwd=REPOSITORY) as process:
        wait_until(lambda: status_of(ops_port, "/readyz") == 200, process, log)
        yield Running((port,), lambda: process_tree(process.pid), log), ops_port


def serve_command(config: Path, port: int, ops_port: int) -> list[str]:
    return [
        PYTHON, "-m", "gateway", "serve", "--config", str(config),
        "--port", str(port), "--ops-port", str(ops_port),
    ]  # fmt: skip


NO_LIMITS: Final = {"requests_per_minute": None, "tokens_per_minute": None, "concurrent": None}
"""`limits.default` that refuses no load."""


def gateway_config(
    pods: tuple[int, ...], keys: Path, redis_url: str | None = None, models: Sequence[str] = ()
) -> dict[str, object]:
    """What would refuse or hold the load is out of its reach, and SIGTERM ends it at once."""
    return {
        "server": {"host": HOST, "ops_host": HOST, "drain_seconds": 0},
        "discovery": {"mode": "static", "pods": [{"url": f"http://{HOST}:{pod}", "pool": MODEL} for pod in pods]},
        "pools": {MODEL: {"max_in_flight_per_pod": 100_000}},
        "models": {name: {"to": [{"model": MODEL}]} for name in models},
        "auth": {"mode": "keys", "keys_file": str(keys)},
        "limits": {"redis_url": redis_url, "default": NO_LIMITS},
    }


_DIGITS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase


def new_key() -> str:
    """An API key as the contract has it, `sk-pg_<id>_<secret><checksum>`; the checksum is a CRC-32 in base 62."""
    stem = "sk-pg_" + "_".join("".join(secrets.choice(_DIGITS) for _ in range(length)) for length in (8, 32))
    rest, checksum = zlib.crc32(stem.encode()), ""
    for _ in range(6):
        rest, digit = divmod(rest, 62)
        checksum = _DIGITS[digit] + checksum
    return stem + checksum


def keys_entry(key: str) -> dict[str, object]:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return {"id": key.split("_")[1], "sha256": digest, "team": "bench", "models": ["*"]}


def told_by(ops_port: int) -> dict[str, Any]:
    """A gateway's `/status.json`."""
    connection = http.client.HTTPConnection(HOST, ops_port, timeout=5)
    try:
        connection.request("GET", "/status.json")
        told: dict[str, Any] = json.loads(connection.getresponse().read())
        return told
    finally:
        connection.close()
