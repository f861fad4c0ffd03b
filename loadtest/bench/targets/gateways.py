"""The gateways to many providers. They write every answer anew, so what it means is checked, and not its bytes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import yaml

from loadtest.bench.accounting import process_tree
from loadtest.bench.processes import child, free_port, wait_until
from loadtest.bench.targets.programs import of_debian, of_peer, package_version
from loadtest.bench.targets.site import HOST, NotHere, Running, Site, status_of
from loadtest.bench.wire import MODEL


class LiteLLM:
    """LiteLLM's proxy: one worker, no database, its master key as the caller's, its access log off."""

    name = "litellm"

    def version(self) -> str:
        return package_version(self.name, "litellm")

    @contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        port = free_port()
        config, logging = site.folder / "litellm.yaml", site.folder / "logging.json"
        config.write_text(yaml.safe_dump(litellm_config(site.pods, site.key), sort_keys=False))
        logging.write_text(json.dumps(SILENT))
        log = site.folder / "litellm.log"
        command = [
            str(of_peer(self.name, "bin/litellm")), "--config", str(config), "--host", HOST, "--port", str(port),
            "--num_workers", "1", "--telemetry", "False", "--log_config", str(logging),
        ]  # fmt: skip
        with child(command, core=site.core, log=log, cwd=site.folder, more=LITELLM_ENVIRONMENT) as process:
            wait_until(lambda: status_of(port, "/health/readiness") == 200, process, log, seconds=120)
            yield Running((port,), lambda: process_tree(process.pid), log, verbatim=False)


LITELLM_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks the internet for one, at its start
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
}
SILENT = {"version": 1, "disable_existing_loggers": False, "loggers": {"uvicorn.access": {"level": "CRITICAL"}}}
"""A configuration of Python's logging."""


def litellm_config(pods: tuple[int, ...], key: str) -> dict[str, object]:
    """Both pods have the model; its own way to choose is a weighted chance."""
    return {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"hosted_vllm/{MODEL}",
                    "api_base": f"http://{HOST}:{pod}/v1",
                    "api_key": "none",
                },
            }
            for pod in pods
        ],
        "litellm_settings": {"request_timeout": 600, "set_verbose": False},
        "general_settings": {"master_key": key},
    }


class Portkey:
    """Portkey's gateway under Node.js, one process. Where a request goes stands in a header of each request."""

    name = "portkey"

    def version(self) -> str:
        found: str = json.loads(of_peer(self.name, f"{_PORTKEY}/package.json").read_text())["version"]
        _node()
        return found

    @contextmanager
    def running(self, site: Site) -> Iterator[Running]:
        port = free_port()
        log = site.folder / "portkey.log"
        command = [
            _node(),
            str(of_peer(self.name, f"{_PORTKEY}/build/start-server.js")),
            f"--port={port}",
            "--headless",
        ]
        more = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": HOST}
        with child(command, core=site.core, log=log, cwd=site.folder, more=more) as process:
            wait_until(lambda: status_of(port, "/") == 200, process, log)
            yield Running((port,), lambda: process_tree(process.pid), log, headers=portkey_headers(site.pods))


_PORTKEY = "node_modules/@portkey-ai/gateway"


def _node() -> str:
    try:
        return of_debian("node")
    except NotHere:
        raise NotHere("portkey wants Node.js, which is not installed: apt-get install nodejs npm (Debian)") from None


def portkey_headers(pods: tuple[int, ...]) -> bytes:
    targets = [{"provider": "openai", "api_key": "none", "custom_host": f"http://{HOST}:{pod}/v1"} for pod in pods]
    config = {"strategy": {"mode": "loadbalance"}, "targets": targets}
    return b"x-portkey-config: %s\r\n" % json.dumps(config, separators=(",", ":")).encode()
