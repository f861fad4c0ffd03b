"""`/metrics`: the series of vLLM that routers and dashboards read, with its names, labels and help texts.

As in vLLM the gauges are what the engine saw at its last step, so they lag behind what has just arrived, and
a request that its client left is counted nowhere. Left out are the series of the process, of HTTP handlers
and of features the simulator does not have.
"""

from __future__ import annotations

import json
from bisect import bisect_left

_SECONDS_SMALL = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_SECONDS_FIRST = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_SECONDS_LONG = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)  # fmt: skip


class Histogram:
    """Cumulative buckets as Prometheus has them."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self._counts)

    def lines(self, name: str, labels: str, created: float) -> list[str]:
        """`labels` without braces; `le` goes between engine and model_name, as labels are sorted."""
        engine, _, model = labels.partition(",")
        lines = []
        seen = 0
        for bound, count in zip((*self.bounds, "+Inf"), self._counts, strict=True):
            seen += count
            lines.append(f'{name}_bucket{{{engine},le="{bound}",{model}}} {seen}.0')
        lines.append(f"{name}_count{{{labels}}} {seen}.0")
        lines.append(f"{name}_sum{{{labels}}} {self.total!r}")
        lines.append(f"# HELP {name}_created {_HELP[name]}")
        lines.append(f"# TYPE {name}_created gauge")
        lines.append(f"{name}_created{{{labels}}} {created!r}")
        return lines


class EngineStats:
    """What one engine has done. The engine writes it; `exposition` reads it."""

    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0
        self.kv_cache_usage = 0.0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.steps = 0
        self.rejected = 0
        self.adapters_seen_at: dict[str, float] = {}  # by their names joined with commas; the loop's time
        self.finished = {"stop": 0, "length": 0, "abort": 0, "error": 0, "repetition": 0}
        self.time_to_first_token = Histogram(_SECONDS_FIRST)
        self.inter_token_latency = Histogram(_SECONDS_SMALL)
        self.time_per_output_token = Histogram(_SECONDS_SMALL)
        self.e2e_request_latency = Histogram(_SECONDS_LONG)
        self.request_queue_time = Histogram(_SECONDS_LONG)


_HELP = {
    "vllm:num_requests_running": "Number of requests in model execution batches.",
    "vllm:num_requests_waiting": "Number of requests waiting to be processed.",
    "vllm:num_requests_waiting_by_reason": (
        "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; "
        "'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). "
        "Sum of all reasons equals vllm:num_requests_waiting."
    ),
    "vllm:engine_sleep_state": (
        "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; "
        "weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2."
    ),
    "vllm:kv_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
    "vllm:prefix_cache_queries": "Prefix cache queries, in terms of number of queried tokens.",
    "vllm:prefix_cache_hits": "Prefix cache hits, in terms of number of cached tokens.",
    "vllm:num_preemptions": "Cumulative number of preemption from the engine.",
    "vllm:prompt_tokens": "Number of prefill tokens processed.",
    "vllm:prompt_tokens_cached": "Number of cached prompt tokens (local + external).",
    "vllm:generation_tokens": "Number of generation tokens processed.",
    "vllm:request_success": "Count of successfully processed requests.",
    "vllm:admission_rejections": "Number of admission attempts rejected by a queue limit, by reason.",
    "vllm:time_to_first_token_seconds": "Histogram of time to first token in seconds.",
    "vllm:inter_token_latency_seconds": "Histogram of inter-token latency in seconds.",
    "vllm:request_time_per_output_token_seconds": "Histogram of time_per_output_token_seconds per request.",
    "vllm:e2e_request_latency_seconds": "Histogram of e2e request latency in seconds.",
    "vllm:request_queue_time_seconds": "Histogram of time spent in WAITING phase for request.",
    "vllm:lora_requests_info": "Running stats on lora requests.",
    "vllm:cache_config_info": "Information of the LLMEngine CacheConfig",
}


def exposition(
    stats: EngineStats,
    *,
    model: str,
    created: float,
    block_size_tokens: int,
    kv_blocks: int,
    sleep_level: int | None,
    max_loras: int,
    wall_offset: float,
) -> bytes:
    """The text format of Prometheus, version 1.0.0 as vLLM says. `wall_offset` makes the loop's time Unix time."""
    labels = f'engine="0",model_name="{_escaped(model)}"'
    model_label = f'model_name="{_escaped(model)}"'
    lines: list[str] = []

    def gauge(name: str, *samples: tuple[str, float]) -> None:
        lines.extend([f"# HELP {name} {_HELP[name]}", f"# TYPE {name} gauge"])
        lines.extend(f"{name}{{{sample_labels}}} {float(value)!r}" for sample_labels, value in samples)

    def counter(name: str, *samples: tuple[str, int]) -> None:
        lines.extend([f"# HELP {name}_total {_HELP[name]}", f"# TYPE {name}_total counter"])
        lines.extend(f"{name}_total{{{sample_labels}}} {float(value)!r}" for sample_labels, value in samples)
        lines.extend([f"# HELP {name}_created {_HELP[name]}", f"# TYPE {name}_created gauge"])
        lines.extend(f"{name}_created{{{sample_labels}}} {created!r}" for sample_labels, _ in samples)

    def histogram(name: str, value: Histogram) -> None:
        lines.extend([f"# HELP {name} {_HELP[name]}", f"# TYPE {name} histogram"])
        lines.extend(value.lines(name, labels, created))

    gauge("vllm:num_requests_running", (labels, stats.running))
    gauge("vllm:num_requests_waiting", (labels, stats.waiting))
    gauge(
        "vllm:num_requests_waiting_by_reason",
        (f'{labels},reason="capacity"', stats.waiting),
        (f'{labels},reason="deferred"', 0),
    )
    gauge(
        "vllm:engine_sleep_state",
        (f'{labels},sleep_state="awake"', sleep_level is None),
        (f'{labels},sleep_state="weights_offloaded"', sleep_level == 1),
        (f'{labels},sleep_state="discard_all"', sleep_level == 2),
    )
    gauge("vllm:kv_cache_usage_perc", (labels, round(stats.kv_cache_usage, 6)))
    counter("vllm:prefix_cache_queries", (labels, stats.prefix_cache_queries))
    counter("vllm:prefix_cache_hits", (labels, stats.prefix_cache_hits))
    counter("vllm:num_preemptions", (labels, 0))
    counter("vllm:prompt_tokens", (labels, stats.prompt_tokens))
    counter("vllm:prompt_tokens_cached", (labels, stats.prefix_cache_hits))
    counter("vllm:generation_tokens", (labels, stats.generation_tokens))
    counter(
        "vllm:request_success",
        *((f'engine="0",finished_reason="{reason}",{model_label}', n) for reason, n in stats.finished.items()),
    )
    counter(
        "vllm:admission_rejections",
        (f'{model_label},reason="max_num_queued_reqs"', stats.rejected),
        (f'{model_label},reason="max_num_queued_tokens"', 0),
    )
    histogram("vllm:time_to_first_token_seconds", stats.time_to_first_token)
    histogram("vllm:inter_token_latency_seconds", stats.inter_token_latency)
    histogram("vllm:request_time_per_output_token_seconds", stats.time_per_output_token)
    histogram("vllm:e2e_request_latency_seconds", stats.e2e_request_latency)
    histogram("vllm:request_queue_time_seconds", stats.request_queue_time)
    if stats.adapters_seen_at:
        # vLLM fills both lists with whoever has a request, running or waiting.
        gauge(
            "vllm:lora_requests_info",
            *(
                (
                    f'max_lora="{max_loras}",running_lora_adapters="{names}",waiting_lora_adapters="{names}"',
                    at + wall_offset,
                )
                for names, at in stats.adapters_seen_at.items()
            ),
        )
    cache = (
        f'block_size="{block_size_tokens}",cache_dtype="auto",enable_prefix_caching="True",engine="0",'
        f'num_gpu_blocks="{kv_blocks}"'
    )
    gauge("vllm:cache_config_info", (cache, 1))
    return ("\n".join(lines) + "\n").encode()


def load_report(waiting: int, kv_cache_usage: float, wanted_format: bytes) -> bytes | None:
    """Two gauges in a header, as ORCA has it; None in a format there is not."""
    named = {"num_requests_waiting": float(waiting), "kv_cache_usage_perc": kv_cache_usage}
    if wanted_format == b"TEXT":
        return b"TEXT " + ", ".join(f"named_metrics.{name}={value}" for name, value in named.items()).encode()
    return b"JSON " + json.dumps({"named_metrics": named}).encode() if wanted_format == b"JSON" else None


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
