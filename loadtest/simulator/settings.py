"""What one simulated pod is like: plain values, units in their names, defaults as vLLM's where vLLM has one."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from loadtest.simulator.faults import Fault
from loadtest.simulator.timing import FAST, TimeModel


class Shutdown(enum.StrEnum):
    """What SIGTERM does."""

    SILENT = "silent"
    """vLLM's default (`--shutdown-timeout 0`): the port closes, open requests hang without a word."""
    DRAIN = "drain"
    """`--shutdown-timeout N`: running requests finish, new ones get a 500, then the port closes."""


class Task(enum.StrEnum):
    """What the pod's model is for. As with vLLM, a pod has its task's routes only."""

    GENERATE = "generate"
    EMBED = "embed"
    """Embeddings; and scores and rerankings by comparing them."""
    SCORE = "score"
    """Scores and rerankings by a cross-encoder."""
    TRANSCRIPTION = "transcription"


class Scheduling(enum.StrEnum):
    """Who of those that wait is next."""

    FCFS = "fcfs"
    """vLLM's default: first come, first served, whatever the priority."""
    PRIORITY = "priority"
    """The lowest priority, and of those the first that came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSettings:
    """One pod. The time model defaults to one for tests, as fast as the loop turns; the command line has its own."""

    model: str = "sim"
    task: Task = Task.GENERATE
    name: str = ""  # default: the model's
    host: str = "127.0.0.1"
    port: int = 0  # 0: any free one
    aliases: tuple[str, ...] = ()  # further --served-model-name
    lora_adapters: tuple[str, ...] = ()
    max_loras: int = 1
    runtime_lora_updating: bool = False  # adapters can be loaded and unloaded
    dev_mode: bool = False  # the routes for sleep, the prefix cache and the server's configuration
    api_key: str | None = None

    seed: int = 0
    time: TimeModel = FAST
    loading_seconds: float = 0.0  # connections are refused until then
    natural_tokens: tuple[int, int] = (16, 256)  # range of the lengths of answers nobody limits
    ends_early: bool = False  # an answer may also end by itself before max_tokens, as a model's would

    max_model_len_tokens: int = 8192
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_num_queued_reqs: int | None = None  # None: the waiting line is unbounded
    scheduling_policy: Scheduling = Scheduling.FCFS
    refuse_priorities: bool = False  # a priority other than 0 is a 400
    block_size_tokens: int = 16
    kv_blocks: int = 16384

    prompt_tokens_details: bool = False
    server_load_tracking: bool = False
    request_id_headers: bool = False
    auto_tool_choice: bool = False  # tools are called, as with the parser hermes
    tool_calls: int = 1  # how many at once, where the request lets it
    reasoning_parser: str | None = None  # answers begin with reasoning, whatever the parser's name
    sse_keep_alive_seconds: float | None = None
    embedding_dimensions: int = 64
    matryoshka: bool = False  # embeddings of fewer dimensions can be asked for

    keep_alive_seconds: float = 5.0
    shutdown: Shutdown = Shutdown.SILENT
    shutdown_timeout_seconds: float = 20.0  # drain only
    shutdown_linger_seconds: float = 5.0  # drain only: the port stays open so long after the last answer
    silence_seconds: float = 70.0  # how long hanging connections stay open after a silent shutdown
    engine_death_exit_seconds: float = 5.0

    max_head_bytes: int = 128 * 1024
    max_body_bytes: int = 32 * 1024 * 1024
    max_sequences_per_request: int = 256
    max_pipelined_requests: int = 16
    recorded_requests: int = 1024
    recorded_body_bytes: int = 64 * 1024 * 1024  # of all recorded requests together

    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("a pod needs a model name")
        shortest, longest = self.natural_tokens
        if not 1 <= shortest <= longest:
            raise ValueError(f"natural_tokens is a range such as (16, 256), got {self.natural_tokens}")
        sizes = ("max_model_len_tokens", "max_num_seqs", "max_num_batched_tokens", "block_size_tokens", "tool_calls")
        for field in (*sizes, "embedding_dimensions"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")

    @property
    def served_names(self) -> tuple[str, ...]:
        return (self.model, *self.aliases, *self.lora_adapters)
