"""What is measured: a proxy between the client and two pods, or nothing.

Another one is one more class, as `targets.site` says what a target is, and one more entry in `TARGETS`.
"""

from collections.abc import Callable
from typing import Final

from loadtest.bench.targets.apparatus import Direct, pods
from loadtest.bench.targets.gateways import LiteLLM, Portkey
from loadtest.bench.targets.poolgate import (
    NO_LIMITS,
    Gateway,
    gateway_config,
    keys_entry,
    new_key,
    serve_command,
    serving,
    told_by,
)
from loadtest.bench.targets.proxies import Envoy, HAProxy, Nginx, nginx_config
from loadtest.bench.targets.routers import SglangRouter, VllmRouter
from loadtest.bench.targets.site import NotHere, Running, Site, Target, Watched, nothing_else, status_of

__all__ = [
    "ESSENTIAL", "NO_LIMITS", "TARGETS", "Gateway", "Nginx", "NotHere", "Running", "Site", "Target", "Watched",
    "gateway_config", "keys_entry", "new_key", "nginx_config", "nothing_else", "pods", "serve_command",
    "serving", "status_of", "told_by",
]  # fmt: skip

TARGETS: Final[dict[str, Callable[[], Target]]] = {
    "nginx": Nginx,
    "gateway": Gateway,
    "haproxy": HAProxy,
    "envoy": Envoy,
    "vllm-router": VllmRouter,
    "sglang-router": SglangRouter,
    "portkey": Portkey,
    "litellm": LiteLLM,
    "direct": Direct,
}
"""In the order of the tables."""
ESSENTIAL: Final = ("nginx", "gateway", "direct")
"""The floor, what is measured, and the apparatus' own cost."""
