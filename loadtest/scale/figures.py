"""The measured figures: one table of inputs, each with what measures it. All arithmetic takes them from here."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).with_name("figures.json")


class BadFigures(Exception):
    """The file does not hold what it should; the text names the figure."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a figure is from."""

    name: str
    value: float
    unit: str
    what: str
    measured_by: str
    """A command, or the page that tells how it was measured."""
    measured: str
    """When, and at which commit."""
    refresh: bool
    """The code it measures is being changed: measure it again before believing what follows from it."""


@dataclass(frozen=True, slots=True)
class Figures:
    """CPU in µs or ms of one core: of Redis or vLLM where the name begins with it, else of the gateway."""

    request_us: float
    chunk_us: float
    limits_us: float
    """More for limits that are spent from leases."""
    asked_us: float
    """More for limits asked of Redis, on a busy gateway;"""
    asked_calls: float
    """and the calls that a request shares or makes there;"""
    asked_alone_us: float
    """the same of one connection, where each request makes two calls by itself."""
    choice_8_us: float
    choice_64_us: float
    choice_512_us: float
    pods_quiet_ms: float
    """A second, for asking 1,000 pods for `/metrics` and their models at today's pace;"""
    pods_load_us: float
    """and for each reading of `/load`."""
    pods_memory_mib: float
    """For the API client, and 1,000 pods."""
    idle_mib: float
    beliefs_mib: float
    """What is believed of the pods' caches, at the most."""
    stream_kib: float
    tls_handshake_ms: float
    scrape_ms: float
    """A text of `/metrics` with twelve models,"""
    series: float
    """and what it tells."""
    status_share: float
    """Of a core, for one status page that is open."""
    lag_share: float
    redis_call_us: float
    redis_request_us: float
    """For each request in a call, with three limits;"""
    redis_replica_us: float
    """and for each replica on which its caller has something running."""
    redis_caller_bytes: float
    """For a caller with three limits;"""
    redis_replica_bytes: float
    """and for each replica on which it has something running."""
    redis_reply_ms: float
    """From asking until answered, the network not counted."""
    vllm_load_ms: float
    vllm_metrics_ms: float
    vllm_models_ms: float


def read(file: Path = FILE) -> tuple[Figures, Sequence[Source]]:
    """What was measured. Raises `BadFigures`."""
    told: dict[str, Any] = json.loads(file.read_text("utf-8"))
    sources = []
    for name, entry in told.items():
        try:
            source = Source(name, **entry)
        except TypeError:
            raise BadFigures(f"{name}: not the parts of a figure: {', '.join(entry)}") from None
        if not source.value > 0:
            raise BadFigures(f"{name}: {source.value} is no figure")
        sources.append(source)
    wanted, found = {field.name for field in fields(Figures)}, set(told)
    if wanted != found:
        raise BadFigures(f"missing or unknown: {', '.join(sorted(wanted ^ found))}")
    return Figures(**{source.name: source.value for source in sources}), sources
