"""What a pod says of its own load: `/metrics` and `/load`, read without trust and without haste.

Both come from every pod again and again, so what reading costs is paid by the requests in between. `/metrics` of vLLM
0.32 has 55 to 75 KB in some 800 lines, of which a dozen are wanted: a family is found by its name, and its lines stand
together ("All lines for a given metric must be provided as one single group", Prometheus' text format 0.0.4). No other
line is looked at: 35 µs, where a parser of the whole takes 8 ms.

vLLM's gauges are what its engine saw at its last step, so they lag by up to a second; `/load` is exact, where it may be
believed at all: `Tracking`.
"""

import json
import re
from collections.abc import Iterator
from typing import Final

from gateway.core.fleet import Gauges
from gateway.discovery.models import is_name

MAX_ADAPTERS: Final = 64
MAX_DIGITS: Final = 10
MAX_SHORTFALLS: Final = 3
"""So many readings in a row that show less than our own requests end the belief in a pod's `/load`."""

_LARGEST: Final = 2.0**53
"""No count gets past it, and up to it a float is exact: what claims more is no number."""
_SLEEP_STATES: Final = ("discard_all", "weights_offloaded")
"""The deepest first."""
_PAUSED: Final = "paused"
"""Level 0: not awake, and in no other state. It takes requests, and lets them wait."""

# All possessive: one pass over a line, whatever stands in it. A quoted value may hold braces, commas and spaces.
_SAMPLE: Final = re.compile(
    rb'((?:[^"}\n]++|"(?:[^"\\\n]++|\\.)*+")*+)\}[ \t]*+'
    rb"(\d++(?:\.\d*+)?+(?:[eE][+-]?+\d++)?+)"  # neither NaN nor Inf nor -1
    rb"(?:[ \t]++-?+\d++)?+[ \t\r]*+(?![^\n])"  # a timestamp, which vLLM does not write
)
_LABEL: Final = re.compile(rb'\b([a-zA-Z_]\w*+)[ \t]*+=[ \t]*+"((?:[^"\\]++|\\.)*+)"')
_ESCAPE: Final = re.compile(r'\\([\\"n])')


def gauges_of(body: bytes) -> Gauges:
    """What a `/metrics` body says, over all engines behind the port. Never raises.

    A line whose value is no number from 0 to 2^53 counts as absent; what no line tells is None, or empty.
    """
    text = b"\n" + body
    running = _sum(text, b"\nvllm:num_requests_running{")
    waiting = _sum(text, b"\nvllm:num_requests_waiting{")
    fullest = max((share for _, share in _samples(text, b"\nvllm:kv_cache_usage_perc{")), default=None)
    return Gauges(
        running=None if running is None else int(running),
        waiting=None if waiting is None else int(waiting),
        kv_usage=None if fullest is None else min(fullest, 1.0),
        prefix_queries=_sum(text, b"\nvllm:prefix_cache_queries_total{"),
        prefix_hits=_sum(text, b"\nvllm:prefix_cache_hits_total{"),
        cache_tokens=_cache_tokens(text),
        asleep=_asleep(text),
        adapters=_adapters(text),
    )


def count_of(body: bytes) -> int | None:
    """The n of `/load`'s `{"server_load": n}`; None for anything else. Never raises."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return None
    count = told.get("server_load") if isinstance(told, dict) else None
    if isinstance(count, bool) or not isinstance(count, int | float):
        return None
    return int(count) if 0 <= count <= _LARGEST and count == int(count) else None


class Tracking:
    """Whether a pod's `/load` may be believed: it must show our own requests.

    vLLM answers 0 for ever unless it was started with `--enable-server-load-tracking`, and of several API server
    processes behind one port each counts only its share. So a pod is believed from the first reading on that shows at
    least as many requests as we have there ourselves, and only while we have some: 1 while we have none proves that
    the pod counts, not that it counts all. A single shortfall ends nothing: requests that are still connecting, or
    have just ended, are ours and not the pod's.
    """

    __slots__ = ("_shortfalls", "believed")

    def __init__(self) -> None:
        self.believed = False
        self._shortfalls = 0

    def judge(self, count: int | None, own_before: int, own_after: int) -> bool:
        """Whether this count may be used. `own_before`, `own_after`: our requests at the pod around the reading.

        None, which is a pod without `/load` or with another answer, ends the belief at once. Readings while we have no
        request there neither give belief nor take it.
        """
        own = min(own_before, own_after)  # those that were probably there at the moment of reading
        if count is None:
            self.believed = False
        elif own > 0 and count >= own:
            self.believed = True
            self._shortfalls = 0
        elif own > 0:
            self._shortfalls += 1
            self.believed = self.believed and self._shortfalls < MAX_SHORTFALLS
        return self.believed


def _samples(text: bytes, family: bytes) -> Iterator[tuple[bytes, float]]:
    """The labels, as they stand there, and the value of each line of a family; `family` is LF, the name and `{`."""
    at = text.find(family)
    while at >= 0:
        at += len(family)
        sample = _SAMPLE.match(text, at)
        if sample is not None and (value := float(sample[2])) <= _LARGEST:
            yield sample[1], value
        at = text.find(b"\n", at)
        if not text.startswith(family, at):
            return


def _sum(text: bytes, family: bytes) -> float | None:
    """Over all lines of a family; None without one."""
    values = [value for _, value in _samples(text, family)]
    return sum(values) if values else None


def _cache_tokens(text: bytes) -> int | None:
    """Over all engines; None where one does not tell."""
    found = None
    for labels, _ in _samples(text, b"\nvllm:cache_config_info{"):
        named = _named(labels)
        if named.get("enable_prefix_caching") == "False":
            return 0
        sizes = [named.get(name, "") for name in ("block_size", "num_gpu_blocks")]
        if not all(size.isascii() and size.isdigit() and len(size) < MAX_DIGITS for size in sizes):
            return None
        found = (found or 0) + int(sizes[0]) * int(sizes[1])
    return found


def _asleep(text: bytes) -> str:
    """The deepest sleep of any engine, if none is awake. An engine is what the labels but `sleep_state` name."""
    engines: dict[frozenset[tuple[str, str]], dict[str, float]] = {}
    for labels, value in _samples(text, b"\nvllm:engine_sleep_state{"):
        named = _named(labels)
        state = named.pop("sleep_state", "")
        engines.setdefault(frozenset(named.items()), {})[state] = value
    if not engines or any(states.get("awake") != 0 for states in engines.values()):
        return ""
    asleep_in = {state for states in engines.values() for state, value in states.items() if value == 1}
    return next((state for state in _SLEEP_STATES if state in asleep_in), _PAUSED)


def _adapters(text: bytes) -> tuple[str, ...]:
    """Of the newest line: vLLM keeps one for each set of adapters that there ever was, the value being its time."""
    lines = list(_samples(text, b"\nvllm:lora_requests_info{"))
    if not lines:
        return ()
    named = _named(max(lines, key=lambda line: line[1])[0])
    listed = ",".join((named.get("running_lora_adapters", ""), named.get("waiting_lora_adapters", ""))).split(",")
    return tuple(name for name in dict.fromkeys(listed) if is_name(name))[:MAX_ADAPTERS]


def _named(labels: bytes) -> dict[str, str]:
    """Bytes that are no UTF-8 become surrogates, which no name may hold."""
    text = {name: value.decode("utf-8", "surrogateescape") for name, value in _LABEL.findall(labels)}
    return {
        name.decode("ascii"): _ESCAPE.sub(lambda escape: "\n" if escape[1] == "n" else escape[1], value)
        for name, value in text.items()
    }
