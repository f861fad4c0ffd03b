"""What is measured: a proxy between the client and two pods, or nothing.

A target is a class with a `name` and a `running(site)` that starts it as an operator would, pinned to the
site's core, yields where it listens once it answers, and stops it. Another proxy (envoy, haproxy, a
router) is one more such class and one more entry in `TARGETS`.
"""

import hashlib
import http.client
import json
import os
import secrets
import shutil
import string
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

import yaml

from loadtest.bench.accounting import process_tree
from loadtest.bench.processes import BenchError, child, free_port, tail, wait_until
from loadtest.bench.wire import MODEL

_HOST: Final = "127.0.0.1"
_REPOSITORY: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Site:
    """Where a target is built: an empty folder, its core, pods' ports, the apparatus' processes, a key."""

    folder: Path
    core: int
    pods: tuple[int, ...]
    apparatus: tuple[int, ...]
    key: str


Watched = Callable[[int], dict[str, float]]
"""Called at a window's end with the count of requests in it: further figures of the round."""


def nothing_else() -> Watched:
    return lambda requests: {}


@dataclass(frozen=True)
class Running:
    """A target that answers: where (connections are dealt out over `ports`), and whose CPU is its cost."""

    ports: tuple[int, ...]
    processes: Callable[[], tuple[int, ...]]
    log: Path | None
    ops_port: int = 0
    """Where a gateway tells of itself; 0: it was not needed."""
    watch: Callable[[], Watched] = nothing_else
    """Called at a window's beginning, for what is beside the target and no part of its cost."""


class Target(Protocol):
    @property
    def name(self) -> str: ...

    def version(self) -> str: ...

    def running(self, site: Site) -> AbstractContextManager[Running]: ...


class Direct:
    """No proxy: the apparatus' own cost, and the most requests per second it can offer a target."""

    name = "direct"

    def version(self) -> str:
        return "no proxy; CPU is that of the client and the pods together"

    @contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        yield Running(ports=site.pods, processes=lambda: site.apparatus, log=None)


class Nginx:
    """The floor: nginx as reverse proxy, one worker, keep-alive both ways, no buffering, no access log."""

    name = "nginx"

    def __init__(self, search_path: str = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") -> None:
        self._search_path = search_path

    def version(self) -> str:
        said = subprocess.run([self._binary(), "-v"], capture_output=True, text=True, check=True).stderr
        return said.strip().removeprefix("nginx version: nginx/")

    @contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        port = free_port()
        file = site.folder / "nginx.conf"
        file.write_text(nginx_config(port, site.pods, as_root=os.geteuid() == 0))
        log = site.folder / "nginx.log"
        command = [self._binary(), "-p", f"{site.folder}/", "-c", str(file), "-e", str(log)]
        with child(command, core=site.core, log=log) as process:
            wait_until(lambda: status_of(port, "/health") == 200, process, log)
            yield Running((port,), lambda: process_tree(process.pid), log)

    def _binary(self) -> str:
        found = shutil.which("nginx", path=self._search_path)
        if found is None:
            raise BenchError("nginx is not installed: apt-get install nginx (Debian), or go on with --target gateway")
        return found


def nginx_config(port: int, pods: tuple[int, ...], *, as_root: bool) -> str:
    """The limits are set so far away that neither a connection is ever renewed nor a body written to disk."""
    servers = "".join(f"    server {_HOST}:{pod};\n" for pod in pods)
    return f"""{"user root;" if as_root else ""}
daemon off;
worker_processes 1;
pid nginx.pid;
error_log nginx.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  client_max_body_size 16m;
  client_body_buffer_size 2m;
  upstream pods {{
    least_conn;
{servers}    keepalive 256;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
  }}
  server {{
    listen {_HOST}:{port} backlog=4096;
    location / {{
      proxy_pass http://pods;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


class Gateway:
    """`poolgate serve` as an operator starts it: keys, metrics and the access line on (to a file: its cost is ours)."""

    name = "gateway"

    def version(self) -> str:
        command = [sys.executable, "-m", "gateway", "version"]
        asked = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, check=False)
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
    command = [
        sys.executable, "-m", "gateway", "serve", "--config", str(config),
        "--port", str(port), "--ops-port", str(ops_port),
    ]  # fmt: skip
    with child(command, core=site.core, log=log, cwd=_REPOSITORY) as process:
        wait_until(lambda: status_of(ops_port, "/readyz") == 200, process, log)
        yield Running((port,), lambda: process_tree(process.pid), log), ops_port


NO_LIMITS: Final = {"requests_per_minute": None, "tokens_per_minute": None, "concurrent": None}
"""`limits.default` that refuses no load."""


def gateway_config(
    pods: tuple[int, ...], keys: Path, redis_url: str | None = None, models: Sequence[str] = ()
) -> dict[str, object]:
    """What would refuse or hold the load is out of its reach, and SIGTERM ends it at once."""
    return {
        "server": {"host": _HOST, "ops_host": _HOST, "drain_seconds": 0},
        "discovery": {"mode": "static", "pods": [{"url": f"http://{_HOST}:{pod}", "pool": MODEL} for pod in pods]},
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


TARGETS: Final[dict[str, Callable[[], Target]]] = {"nginx": Nginx, "gateway": Gateway, "direct": Direct}


def status_of(port: int, path: str) -> int | None:
    """The status a GET gets; None if nobody answers."""
    connection = http.client.HTTPConnection(_HOST, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def told_by(ops_port: int) -> dict[str, Any]:
    """A gateway's `/status.json`."""
    connection = http.client.HTTPConnection(_HOST, ops_port, timeout=5)
    try:
        connection.request("GET", "/status.json")
        told: dict[str, Any] = json.loads(connection.getresponse().read())
        return told
    finally:
        connection.close()


@contextmanager
def pods(count: int, *, grid_us: int, core: int, folder: Path) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The pods' process: (pid, ports)."""
    log = folder / "backend.log"
    command = [
        sys.executable,
        "-m",
        "loadtest.bench.backend",
        "--pods",
        str(count),
        "--grid-us",
        str(grid_us),
    ]
    with child(command, core=core, log=log, cwd=_REPOSITORY, pipe=True) as process:
        assert process.stdout is not None  # pipe=True
        line = process.stdout.readline()
        if not line:
            raise BenchError(f"the pods did not start:\n{tail(log)}")
        yield process.pid, tuple(json.loads(line))
