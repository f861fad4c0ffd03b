"""The command line: many pods in one process, one line on stdout when they serve, vLLM's manners on signals.

SIGTERM does to every pod what it does to vLLM; the process ends when the last pod is down. A second one, or
Ctrl-C, ends it at once.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import os
import signal
import sys
from collections.abc import Sequence

import orjson

from loadtest.simulator.faults import BadFault, Fault, FaultKind, fault_from_text
from loadtest.simulator.pod import SimulatedPod
from loadtest.simulator.settings import PodSettings, Scheduling, Shutdown, Task
from loadtest.simulator.timing import TimeModel

try:
    import uvloop
except ImportError:  # not on every platform; asyncio's own loop serves as well, at a higher cost
    new_event_loop = asyncio.new_event_loop
else:
    new_event_loop = uvloop.new_event_loop


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 if a port is taken. Wrong arguments exit with 2, as argparse does."""
    parsed = parser().parse_args(arguments)
    try:
        pods = pods_from(parsed)
    except ValueError as error:
        parser().error(str(error))
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            runner.run(serve(pods, announce=parsed.announce))
        except OSError as error:
            print(f"cannot listen: {error}; choose another --port-base, or 0 for free ports", file=sys.stderr)
            return 1
    return 0


def parser() -> argparse.ArgumentParser:
    usual, usual_time = PodSettings(), TimeModel()
    made = argparse.ArgumentParser(
        prog="python -m loadtest.simulator", description="Simulated vLLM pods on real sockets."
    )
    pods = made.add_argument_group("which pods")
    pods.add_argument("--pods", type=int, default=1, metavar="N", help="how many, all alike (default 1)")
    pods.add_argument("--model", action="append", metavar="NAME", help="served model; again: further names for it")
    pods.add_argument(
        "--pool",
        action="append",
        type=_pool,
        default=[],
        metavar="MODEL:COUNT[:TASK]",
        help="so many pods of a model; repeatable, instead of --pods and --model",
    )
    pods.add_argument(
        "--task",
        type=Task,
        choices=list(Task),
        default=usual.task,
        help=f"what the models are for (default {usual.task})",
    )
    pods.add_argument("--lora", action="append", default=[], metavar="NAME", help="a LoRA adapter each pod lists")
    pods.add_argument("--host", default=usual.host)
    pods.add_argument("--port-base", type=int, default=8101, help="first port; 0: any free ones (default 8101)")
    pods.add_argument(
        "--api-key",
        metavar="KEY",
        default=os.environ.get("VLLM_API_KEY"),
        help="ask for it on /v1, as vLLM does (default: VLLM_API_KEY of the environment)",
    )

    time = made.add_argument_group("the model of time")
    time.add_argument("--step-ms", type=float, default=usual_time.step_seconds * 1e3, metavar="MS")
    time.add_argument(
        "--step-us-per-sequence",
        type=float,
        default=usual_time.step_seconds_per_sequence * 1e6,
        metavar="US",
    )
    time.add_argument(
        "--prefill-us-per-token", type=float, default=usual_time.prefill_seconds_per_token * 1e6, metavar="US"
    )
    time.add_argument("--slowness", type=float, default=1.0, metavar="FACTOR", help="multiplies all three")
    time.add_argument("--loading-seconds", type=float, default=0.0, help="refuse connections for so long")

    engine = made.add_argument_group("the engine")
    engine.add_argument("--seed", type=int, default=usual.seed)
    engine.add_argument("--max-num-seqs", type=int, default=usual.max_num_seqs)
    engine.add_argument("--max-num-batched-tokens", type=int, default=usual.max_num_batched_tokens)
    engine.add_argument("--max-num-queued-reqs", type=int, help="more in flight get a 503 (default: no limit)")
    engine.add_argument(
        "--scheduling-policy",
        type=Scheduling,
        choices=list(Scheduling),
        default=usual.scheduling_policy,
        help=f"who of those that wait is next (default {usual.scheduling_policy})",
    )
    engine.add_argument("--refuse-priorities", action="store_true", help="a priority other than 0 is a 400")
    engine.add_argument("--max-model-len", type=int, default=usual.max_model_len_tokens)
    engine.add_argument("--block-size", type=int, default=usual.block_size_tokens)
    engine.add_argument("--kv-blocks", type=int, default=usual.kv_blocks)
    engine.add_argument("--natural-tokens", type=_range, default=usual.natural_tokens, metavar="FROM-TO")
    engine.add_argument("--ends-early", action="store_true", help="answers may end before max_tokens")
    engine.add_argument("--enable-prompt-tokens-details", action="store_true")
    engine.add_argument("--enable-server-load-tracking", action="store_true")
    engine.add_argument("--enable-request-id-headers", action="store_true")
    engine.add_argument("--enable-auto-tool-choice", action="store_true")
    engine.add_argument("--tool-calls", type=int, default=usual.tool_calls, metavar="N", help="calls at once")
    engine.add_argument("--reasoning-parser", metavar="NAME", help="answers begin with reasoning; any name does")
    engine.add_argument("--sse-keep-alive-interval", type=float, metavar="SECONDS")
    engine.add_argument("--embedding-dimensions", type=int, default=usual.embedding_dimensions, metavar="N")
    engine.add_argument("--matryoshka", action="store_true", help="fewer embedding dimensions can be asked for")
    engine.add_argument("--max-loras", type=int, default=usual.max_loras)
    engine.add_argument(
        "--runtime-lora-updating", action="store_true", help="adapters can be loaded: VLLM_ALLOW_RUNTIME_LORA_UPDATING"
    )
    engine.add_argument("--dev-mode", action="store_true", help="the routes of VLLM_SERVER_DEV_MODE: sleep and others")

    life = made.add_argument_group("life and trouble")
    life.add_argument(
        "--fault",
        action="append",
        type=_fault,
        default=[],
        metavar="KIND[:ARG]",
        help=f"on every pod from the start; kinds: {', '.join(FaultKind)}",
    )
    life.add_argument("--shutdown", type=Shutdown, choices=list(Shutdown), default=usual.shutdown)
    life.add_argument("--shutdown-timeout", type=float, default=usual.shutdown_timeout_seconds, metavar="SECONDS")
    life.add_argument("--silence-seconds", type=float, default=usual.silence_seconds, help="bound of a silent shutdown")
    life.add_argument("--announce", action="store_true", help="a JSON line whenever a pod's stage changes, too")
    return made


def pods_from(parsed: argparse.Namespace) -> dict[str, SimulatedPod]:
    """The pods by name, not yet started. Raises ValueError."""
    names: list[str] = parsed.model or ["sim"]
    if parsed.pool and (parsed.model or parsed.pods != 1):
        raise ValueError("--pool says both model and count; leave out --model and --pods")
    if parsed.pods < 1:
        raise ValueError("--pods must be at least 1")
    pools: list[tuple[str, int, Task | None]] = parsed.pool or [(names[0], parsed.pods, None)]
    settings = PodSettings(
        host=parsed.host,
        aliases=() if parsed.pool else tuple(names[1:]),
        lora_adapters=tuple(parsed.lora),
        api_key=parsed.api_key or None,
        seed=parsed.seed,
        time=TimeModel(
            step_seconds=parsed.step_ms / 1e3,
            step_seconds_per_sequence=parsed.step_us_per_sequence / 1e6,
            prefill_seconds_per_token=parsed.prefill_us_per_token / 1e6,
        ).scaled(parsed.slowness),
        loading_seconds=parsed.loading_seconds,
        natural_tokens=parsed.natural_tokens,
        ends_early=parsed.ends_early,
        max_model_len_tokens=parsed.max_model_len,
        max_num_seqs=parsed.max_num_seqs,
        max_num_batched_tokens=parsed.max_num_batched_tokens,
        max_num_queued_reqs=parsed.max_num_queued_reqs,
        scheduling_policy=parsed.scheduling_policy,
        refuse_priorities=parsed.refuse_priorities,
        block_size_tokens=parsed.block_size,
        kv_blocks=parsed.kv_blocks,
        prompt_tokens_details=parsed.enable_prompt_tokens_details,
        server_load_tracking=parsed.enable_server_load_tracking,
        request_id_headers=parsed.enable_request_id_headers,
        auto_tool_choice=parsed.enable_auto_tool_choice,
        tool_calls=parsed.tool_calls,
        reasoning_parser=parsed.reasoning_parser,
        runtime_lora_updating=parsed.runtime_lora_updating,
        max_loras=parsed.max_loras,
        dev_mode=parsed.dev_mode,
        sse_keep_alive_seconds=parsed.sse_keep_alive_interval,
        embedding_dimensions=parsed.embedding_dimensions,
        matryoshka=parsed.matryoshka,
        shutdown=parsed.shutdown,
        shutdown_timeout_seconds=parsed.shutdown_timeout,
        silence_seconds=parsed.silence_seconds,
        faults=tuple(parsed.fault),
    )
    pods: dict[str, SimulatedPod] = {}
    for model, count, task in pools:
        for _ in range(count):
            ordinal = sum(1 for pod in pods.values() if pod.settings.model == model)
            name = f"{model.replace('/', '-')}-{ordinal}"
            port = parsed.port_base + len(pods) if parsed.port_base else 0
            each = dataclasses.replace(settings, model=model, task=task or parsed.task, name=name, port=port)
            pods[name] = SimulatedPod(each, neighbours=pods)
    return pods


async def serve(pods: dict[str, SimulatedPod], *, announce: bool) -> None:
    """Start all, say so, and return when the last one is down."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, _end, pods)
    loop.add_signal_handler(signal.SIGTERM, _terminate, pods)
    await asyncio.gather(*(pod.start() for pod in pods.values()))
    # A request leaves no cycles behind, so the collector has little to find and much to look through.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    _say({"ready": [{"name": pod.name, "url": pod.url, "model": pod.settings.model} for pod in pods.values()]})
    tellers = [asyncio.create_task(_tell_stages(pod)) for pod in pods.values()] if announce else []
    await asyncio.gather(*(pod.wait_down() for pod in pods.values()))
    await asyncio.gather(*tellers)


def _terminate(pods: dict[str, SimulatedPod]) -> None:
    if any(pod.terminating for pod in pods.values()):
        _end(pods)
        return
    for pod in pods.values():
        pod.terminate()


def _end(pods: dict[str, SimulatedPod]) -> None:
    for pod in pods.values():
        pod.die()


async def _tell_stages(pod: SimulatedPod) -> None:
    told = [pod.stage]
    while pod.stage != "down":
        await pod.until(lambda each: each.stage != told[-1], seconds=None)
        told.append(pod.stage)
        _say({"pod": pod.name, "stage": pod.stage.value})


def _say(line: object) -> None:
    print(orjson.dumps(line).decode(), flush=True)


def _pool(text: str) -> tuple[str, int, Task | None]:
    head, _, last = text.rpartition(":")
    task = Task(last) if last in list(Task) else None
    model, _, count = text.rpartition(":") if task is None else head.rpartition(":")
    if not model or not count.isdigit() or not int(count):
        tasks = ", ".join(Task)
        raise argparse.ArgumentTypeError(
            f"expected MODEL:COUNT or MODEL:COUNT:TASK, such as chat:3 or e5:1:embed (tasks: {tasks}), got {text!r}"
        )
    return model, int(count), task


def _range(text: str) -> tuple[int, int]:
    shortest, _, longest = text.partition("-")
    if not shortest.isdigit() or not longest.isdigit():
        raise argparse.ArgumentTypeError(f"expected FROM-TO, such as 16-256, got {text!r}")
    return int(shortest), int(longest)


def _fault(text: str) -> Fault:
    try:
        return fault_from_text(text)
    except BadFault as error:
        raise argparse.ArgumentTypeError(str(error)) from None
