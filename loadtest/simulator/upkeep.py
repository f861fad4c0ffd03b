"""What vLLM serves to those who run it: adapters that come and go, sleep, the prefix cache.

The adapters' routes exist with VLLM_ALLOW_RUNTIME_LORA_UPDATING, the others with VLLM_SERVER_DEV_MODE only;
without, they are plain 404s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

import msgspec
import orjson

from loadtest.simulator import refusals, schema
from loadtest.simulator.connection import ReceivedRequest
from loadtest.simulator.settings import PodSettings
from loadtest.simulator.wire import Reply

if TYPE_CHECKING:
    # These act on the pod that serves them, as `routes` does.
    from loadtest.simulator.pod import SimulatedPod

MISSING_PATHS = ("nope", "missing")
"""An adapter's path that ends so is one where vLLM finds no adapter."""


class Act(NamedTuple):
    """`reply` raises Refused."""

    method: str
    reply: Callable[[ReceivedRequest, SimulatedPod], Reply]


class _LoadBody(msgspec.Struct):
    lora_name: str
    lora_path: str
    load_inplace: bool = False


class _UnloadBody(msgspec.Struct):
    lora_name: str


def found(path: str, settings: PodSettings) -> Act | None:
    if path in _ADAPTERS and settings.runtime_lora_updating:
        return _ADAPTERS[path]
    return _DEVELOPMENT.get(path) if settings.dev_mode else None


def _load_adapter(request: ReceivedRequest, pod: SimulatedPod) -> Reply:
    body = schema.read(request.body, request.raw_header(b"content-type"), _LoadBody)
    name, path = body.lora_name, body.lora_path
    if not name or not path:
        return _wrong_input("Both 'lora_name' and 'lora_path' must be provided.")
    if name in (pod.settings.model, *pod.settings.aliases):
        return _wrong_input(f"The lora adapter '{name}' conflicts with a served base model.")
    if name in pod.settings.lora_adapters and not body.load_inplace:
        again = "If you want to load the adapter in place, set 'load_inplace' to True."
        return _wrong_input(f"The lora adapter '{name}' has already been loaded. {again}")
    if path.rpartition("/")[2] in MISSING_PATHS:
        return refusals.nested(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
    pod.load_adapter(name, path)
    return _success(f"LoRA adapter '{name}' added successfully.")


def _unload_adapter(request: ReceivedRequest, pod: SimulatedPod) -> Reply:
    name = schema.read(request.body, request.raw_header(b"content-type"), _UnloadBody).lora_name
    if not name:
        return _wrong_input("'lora_name' needs to be provided to unload a LoRA adapter.")
    if name not in pod.settings.lora_adapters:
        return refusals.nested(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
    pod.unload_adapter(name)
    return _success(f"LoRA adapter '{name}' removed successfully.")


def _wrong_input(message: str) -> Reply:
    return refusals.nested(400, message, "InvalidUserInput")


def _success(text: str) -> Reply:
    return Reply(200, f"Success: {text}".encode(), content_type=None)


def _sleep(request: ReceivedRequest, pod: SimulatedPod) -> Reply:
    asked = _query(request)
    text = asked.get("level", ["1"])[-1]
    if not text.lstrip("-").isdigit():
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise schema.unfit([schema.Problem("int_parsing", "query.level", message, text)])
    level = int(text)
    if level > 2:
        message = "Input should be less than or equal to 2"
        raise schema.unfit([schema.Problem("less_than_equal", "query.level", message, text, ", 'ctx': {'le': 2}")])
    if level < 0:
        message = "Input should be greater than or equal to 0"
        raise schema.unfit([schema.Problem("greater_than_equal", "query.level", message, text, ", 'ctx': {'ge': 0}")])
    pod.sleep(level, aborts=asked.get("mode", ["abort"])[-1] == "abort")
    return _told({"status": "sleeping", "level": level})


def _wake_up(request: ReceivedRequest, pod: SimulatedPod) -> Reply:
    tags = _query(request).get("tags")
    awake = pod.wake_up(tags)
    return _told({"status": "awake" if awake else "sleeping", "tags": tags})


def _is_sleeping(request: ReceivedRequest, pod: SimulatedPod) -> Reply:
    return _told({"is_sleeping": pod.sleep_level is not None})


def _reset_prefix_cache(request: ReceivedRequest, pod: SimulatedPod) -> Reply:
    return _told({"success": pod.engine.pool.forget()})


def _reset_nothing(request: ReceivedRequest, pod: SimulatedPod) -> Reply:
    return Reply(200, content_type=None)


def _server_info(request: ReceivedRequest, pod: SimulatedPod) -> Reply:
    """Three parts as vLLM's, each with a little of what vLLM tells."""
    settings = pod.settings
    config: object = (
        f"model='/models/{settings.model}', max_seq_len={settings.max_model_len_tokens}, seed={settings.seed}, "
        f"served_model_name={settings.model}, enable_prefix_caching=True, enable_chunked_prefill=True"
    )
    if _query(request).get("config_format") == ["json"]:
        model = {"model": f"/models/{settings.model}", "max_model_len": settings.max_model_len_tokens}
        config = {"model_config": model, "cache_config": {"block_size": settings.block_size_tokens}}
    updating = settings.runtime_lora_updating
    env = {"VLLM_SERVER_DEV_MODE": True, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": updating}
    return _told({"vllm_config": config, "vllm_env": env, "system_env": {"vllm_version": "0.32.0"}})


def _query(request: ReceivedRequest) -> dict[str, list[str]]:
    return parse_qs(request.target.partition(b"?")[2].decode("latin-1"))


def _told(value: object) -> Reply:
    return Reply(200, orjson.dumps(value))


_ADAPTERS: Mapping[str, Act] = {
    "/v1/load_lora_adapter": Act("POST", _load_adapter),
    "/v1/unload_lora_adapter": Act("POST", _unload_adapter),
}
_DEVELOPMENT: Mapping[str, Act] = {
    "/sleep": Act("POST", _sleep),
    "/wake_up": Act("POST", _wake_up),
    "/is_sleeping": Act("GET", _is_sleeping),
    "/server_info": Act("GET", _server_info),
    "/reset_prefix_cache": Act("POST", _reset_prefix_cache),
    "/reset_mm_cache": Act("POST", _reset_nothing),
    "/reset_encoder_cache": Act("POST", _reset_nothing),
}
