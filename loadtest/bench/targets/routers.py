"""The routers for engines that are written in Rust and come as Python packages.

They take their cheapest policy, `round_robin`, and write errors alone; metrics, health checks, retries and
circuit breakers stay as they are when nobody says anything. The runtime starts as many threads as it sees
cores, which is one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from loadtest.bench.accounting import process_tree
from loadtest.bench.processes import child, free_port, wait_until
from loadtest.bench.targets.programs import of_peer, package_version
from loadtest.bench.targets.site import HOST, Running, Site, status_of


class VllmRouter:
    """vLLM's router."""

    name = "vllm-router"

    def version(self) -> str:
        return package_version(self.name, self.name)

    @contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        port = free_port()
        program = of_peer(self.name, "bin/vllm-router")
        with _answering([str(program), *router_options(port, free_port(), site.pods)], port, site) as running:
            yield running


class SglangRouter:
    """SGLang's router."""

    name = "sglang-router"

    def version(self) -> str:
        return package_version(self.name, self.name)

    @contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        port = free_port()
        program = of_peer(self.name, "bin/sglang-router")
        options = router_options(port, free_port(), site.pods)
        with _answering([str(program), "launch", *options], port, site) as running:
            yield running


def router_options(port: int, metrics_port: int, pods: tuple[int, ...]) -> list[str]:
    """Both have the same, for one began as the other."""
    return [
        "--host", HOST, "--port", str(port),
        "--worker-urls", *(f"http://{HOST}:{pod}" for pod in pods),
        "--policy", "round_robin",
        "--log-level", "error",
        "--prometheus-port", str(metrics_port),
        "--worker-startup-check-interval", "1",
    ]  # fmt: skip


@contextmanager
def _answering(command: list[str], port: int, site: Site) -> Iterator[Running]:
    log = site.folder / "router.log"
    with child(command, core=site.core, log=log, cwd=site.folder) as process:
        wait_until(lambda: status_of(port, "/readiness") == 200, process, log, seconds=60)
        yield Running((port,), lambda: process_tree(process.pid), log)
