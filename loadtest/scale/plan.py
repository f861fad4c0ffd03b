"""What a load needs: replicas, a Redis, and what all of them together ask of pods, API server and Prometheus."""

import math
from dataclasses import dataclass
from typing import Final

from loadtest.scale.bounds import LIMITS, LIST_SECONDS, MAX_TOLD, MOST_CONNECTIONS, PACE, QUEUE, ROOM
from loadtest.scale.capacity import (
    MEMORY_LIMIT_MIB,
    MEMORY_SHARE,
    asking_us,
    at_rest,
    call_us,
    memory_mib,
    request_us,
)
from loadtest.scale.figures import Figures

MOST_REPLICAS: Final = 5000
NETWORK_MS: Final = 0.3
"""Between a gateway and Redis, there and back: not measured, an assumption."""


class TooMuch(Exception):
    """No number of replicas carries it."""


@dataclass(frozen=True, slots=True)
class Load:
    """What comes."""

    name: str
    requests_per_hour: float
    streams: float
    """Open at the same time."""
    tokens_per_second: float
    """Of each stream."""
    tokens_per_chunk: float = 1.0
    """More if the pods send several together (vLLM's `--stream-interval`)."""
    pods: int = 0
    """0: as many as take these streams, at the default of so many for each."""
    callers: int = 1000

    @property
    def requests(self) -> float:
        """A second."""
        return self.requests_per_hour / 3600

    @property
    def chunks(self) -> float:
        """A second."""
        return self.streams * self.tokens_per_second / self.tokens_per_chunk

    @property
    def all_pods(self) -> int:
        return self.pods or max(2, math.ceil(self.streams / ROOM))

    @property
    def stream_seconds(self) -> float:
        """How long a stream lasts, if each request is one (Little's law)."""
        return self.streams / self.requests


@dataclass(frozen=True, slots=True)
class Counting:
    """What limits ask of Redis, every request asking."""

    calls: float
    """A second."""
    cores: float
    mib: float
    fields: float
    """Replicas on which a caller has something running."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What it needs. A second, where it says nothing else."""

    load: Load
    replicas: int
    cores: float
    """In use, of all replicas."""
    chunk_share: float
    """Of these cores, what chunks take."""
    rest_share: float
    """And what replicas spend that have nothing to do."""
    fullest: float
    """Streams of the replica that has most, by chance;"""
    fullest_core: float
    """what it uses of its core;"""
    memory_mib: float
    descriptors: float
    counting: Counting
    own_per_pod: float
    """Requests that a replica has at a pod."""
    load_seconds: float
    """Between two readings of a pod's `/load` by one replica;"""
    gauges_seconds: float
    """and of its `/metrics`."""
    vllm_share: float
    """Of a pod's API process, for all replicas' questions."""
    watches: int
    """Open at the API server, with one namespace of pods."""
    listed: float
    """Pods told in full lists."""
    series: float
    """That all replicas tell a Prometheus."""
    may_wait: int
    """Requests of one pool, in the lines of all replicas."""


def uneven(replicas: int, streams: float) -> float:
    """How much more than the mean the fullest of so many has, if each stream goes to one of them by chance: the
    expected largest of so many nearly normal counts, whose variance is their mean."""
    each = streams / replicas
    return math.sqrt(2.0 * math.log(replicas) / each) if replicas > 1 and each > 0 else 0.0


def calls_of(events: float, seconds: float) -> float:
    """Calls a second of one replica, to which so many things to tell come a second by chance, while a call takes so
    long: what comes meanwhile goes with the next, which begins at once, or when something comes."""
    if not events:
        return 0.0
    return 1.0 / (seconds + math.exp(-events * seconds) / events)


def counting(figures: Figures, load: Load, replicas: int) -> Counting:
    """Each request is asked for, and told when it has ended. What runs is told again thrice in `keep` seconds; each of
    these is taken for as dear as a request, which has three limits."""
    events = 2.0 * load.requests / replicas
    calls = max(calls_of(events, (figures.redis_reply_ms + NETWORK_MS) / 1e3), 1.0 / LIMITS.probe)
    running = min(load.callers, load.streams / replicas)
    rows = running * 3.0 / LIMITS.keep
    calls += rows / MAX_TOLD
    streams_each = load.streams / load.callers
    fields = replicas * (1.0 - (1.0 - 1.0 / replicas) ** streams_each) if replicas > 1 else 1.0
    looks = replicas * (events + rows)
    spent = replicas * calls * figures.redis_call_us + looks * (
        figures.redis_request_us + fields * figures.redis_replica_us
    )
    held = load.callers * (figures.redis_caller_bytes + fields * figures.redis_replica_bytes)
    return Counting(replicas * calls, spent / 1e6, held / 2**20, fields)


def cores(figures: Figures, load: Load, replicas: int) -> tuple[float, float, float]:
    """(All that is in use, of it for chunks, of it by replicas that have nothing to do.)"""
    chunks = load.chunks * figures.chunk_us / 1e6
    rest = replicas * at_rest(figures, load.all_pods, replicas)
    requests = load.requests * (request_us(figures, load.all_pods) + asking_us(figures)) / 1e6
    calls = counting(figures, load, replicas).calls * call_us(figures) / 1e6
    return chunks + rest + requests + calls, chunks, rest


def plan(figures: Figures, load: Load, target: float, least: int = 2) -> Plan:
    """The fewest replicas of which each is as busy as the autoscaler wants it. Raises `TooMuch`."""
    for replicas in range(max(1, least), MOST_REPLICAS):
        used, chunks, rest = cores(figures, load, replicas)
        fullest = load.streams / replicas * (1.0 + uneven(replicas, load.streams))
        memory = memory_mib(figures, load.all_pods, fullest)
        if used > replicas * target or fullest > MOST_CONNECTIONS or memory > MEMORY_LIMIT_MIB * MEMORY_SHARE:
            continue
        pods = load.all_pods
        load_seconds, gauges_seconds = PACE.count_seconds(pods, replicas), PACE.gauges_seconds(pods, replicas)
        asked_ms = (
            figures.vllm_load_ms / load_seconds
            + figures.vllm_metrics_ms / gauges_seconds
            + figures.vllm_models_ms / PACE.models_seconds(pods)
        )
        return Plan(
            load=load,
            replicas=replicas,
            cores=used,
            chunk_share=chunks / used,
            rest_share=rest / used,
            fullest=fullest,
            fullest_core=used / replicas + chunks / replicas * uneven(replicas, load.streams),
            memory_mib=memory,
            descriptors=2.0 * fullest + pods,
            counting=counting(figures, load, replicas),
            own_per_pod=load.streams / replicas / pods,
            load_seconds=load_seconds,
            gauges_seconds=gauges_seconds,
            vllm_share=replicas * asked_ms / 1e3,
            watches=2 * replicas,
            listed=replicas * (pods + replicas) / LIST_SECONDS,
            series=replicas * (figures.series + pods),
            may_wait=replicas * QUEUE,
        )
    raise TooMuch(f"{load.name}: more than {MOST_REPLICAS:,} replicas")


def redis_alone_us(figures: Figures, replicas: int) -> float:
    """CPU of Redis for a request whose two calls bring nothing else, of a caller that runs on so many replicas."""
    return 2.0 * (figures.redis_call_us + figures.redis_request_us + replicas * figures.redis_replica_us)
