"""What there is to send requests to: pods, the pools they form, and the models that lead to them.

All values are frozen. Discovery builds a new `Fleet` whenever something changed and replaces the old one whole.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

Address = tuple[str, int]
"""An IP address and a port."""

Policy = Literal["auto", "least", "p2c", "session", "prefix", "round_robin"]
"""How a pod is chosen, by the name that the configuration gives it."""


class PodState(StrEnum):
    """`READY` pods get new work; the others only finish what they have."""

    READY = "ready"
    STARTING = "starting"
    """Not ready yet, or not any more; or it has not told its models yet."""
    DRAINING = "draining"
    """Terminating."""
    ASLEEP = "asleep"
    """vLLM's sleep mode: it would take a request, and let it wait."""


EJECTED = "ejected"
"""Beside the states of `PodState`: a ready pod that gets no work, because requests failed there."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long a pool's pods may take, in seconds, counted from the moment the request was whole."""

    ttft_seconds: float = 120.0
    """A stream's first content event, the time in the gateway included."""
    idle_seconds: float = 60.0
    """Between two events of a stream."""
    response_seconds: float = 600.0
    """The whole of an answer that is not streamed."""
    stream_seconds: float = 3600.0
    """The whole of a stream."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as a pod's `/v1/models` lists it; `card` is that entry, unchanged."""

    name: str
    card: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Pod:
    """One vLLM server. `uid` is its identity; an address may be reused by another pod."""

    uid: str
    """The Kubernetes UID and the address: a pod that came back under another address is another server."""
    name: str
    pool: str
    host: str
    """An IP address, in static mode also a name; empty while there is none."""
    port: int
    state: PodState = PodState.STARTING
    models: tuple[Model, ...] = ()
    reason: str = ""
    """Why it is not ready, in words; empty when it is."""
    since: float = 0.0
    """When its state and reason began, as far as this process saw it; monotonic seconds."""
    created_at: float = 0.0
    """Its age decides who owns a model name: seconds since 1970; of configured pods the place in the file."""
    askable: bool = False
    """It may be asked what it serves: ready as Kubernetes sees it, or configured."""
    allowed: tuple[str, ...] = ("*",)
    """Globs of the model names that its own annotation lets it serve."""
    max_in_flight: int | None = None
    """How many requests it takes at once, by its own annotation; None: as many as its pool says."""
    takes_priority: bool = False
    """By its own annotation: its engine schedules by priority, so requests may tell theirs."""


@dataclass(frozen=True, slots=True)
class RefusedPod:
    """A pod that bears the label and may not be a target. `reason` is a metric label, `why` is for people."""

    name: str
    reason: str
    why: str


@dataclass(frozen=True, slots=True)
class Gauges:
    """What a pod's `/metrics` said, over all engines behind its port.

    None, or an empty text: the pod did not tell.
    """

    running: int | None = None
    """Requests that the engines work on."""
    waiting: int | None = None
    """Requests that the engines have not begun."""
    kv_usage: float | None = None
    """The fullest engine's share of KV cache in use, 0 to 1."""
    prefix_queries: float | None = None
    prefix_hits: float | None = None
    """Prompt tokens looked up in the prefix cache, and found there, since the pod's start."""
    cache_tokens: int | None = None
    """How many prompt tokens the prefix caches hold; 0 where prefix caching is off."""
    asleep: str = ""
    """vLLM's sleep state, if every engine sleeps: `weights_offloaded`, `discard_all` or `paused`."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters with requests running or waiting."""


@dataclass(frozen=True, slots=True)
class PodLoad:
    """What a pod last said of its own load, and when. Past its time a value is None: neither full nor idle."""

    in_flight: int | None = None
    """Requests in the pod, queued ones and every other caller's included (`/load`); None where it is not tracked."""
    in_flight_own: int = 0
    """How many of those were this gateway's own."""
    in_flight_read_at: float = 0.0
    """Monotonic seconds, as the next."""
    gauges: Gauges | None = None
    gauges_read_at: float = 0.0


class PodHealth(NamedTuple):
    """How requests fare at a pod, as this gateway sees it."""

    state: str = "healthy"
    """`healthy`; `ejected`: it gets no work for a while; `probing`: it is back, and one request at a time tries it;
    `returning`: it gets a growing share."""
    reason: str = ""
    """Why it was ejected: one word of the ejections metric's."""
    seconds_left: float = 0.0
    """Until an ejected pod is asked how it is."""
    weight: float = 1.0
    """0.1 to 1: its share of requests is less while it is new, or back from an ejection."""
    ejected_at: float = 0.0
    """When it was last ejected, in monotonic seconds."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Pods that serve the same models, under one set of settings."""

    name: str
    models: tuple[str, ...] = ("*",)
    """Globs of the model names it admits."""
    deadlines: Deadlines = Deadlines()
    policy: Policy = "auto"
    """How the pod for a request is chosen."""
    max_in_flight_per_pod: int = 128
    """How many requests one of its pods takes at once, unless the pod itself says otherwise: ours, and those of others
    where the pod counts them."""
    queue_limit: int = 256
    """How many requests may wait for a pod with room; 0: none waits."""
    queue_wait_seconds: float = 10.0
    """How long each of them may wait, over all its attempts."""
    hold_empty_seconds: float = 0.0
    """How long requests are held while no pod is ready for their model, since one may be starting (scale from zero); 0:
    they are refused at once."""

    def admits(self, model: str) -> bool:
        """Whether the pool's settings let it serve a model of that name."""
        return any(fnmatchcase(model, glob) for glob in self.models)


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests for one model go. `pods` are those that are ready and list the model; may be empty."""

    model: str
    pool: Pool
    pods: tuple[Pod, ...]


@dataclass(frozen=True, slots=True)
class Fleet:
    """Every pod known now, and for every known model its route. A model not in `routes` is unknown."""

    pods: tuple[Pod, ...] = ()
    routes: Mapping[str, Route] = field(default_factory=dict)
    cards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For `/v1/models`: the card of each model that a ready pod serves."""
    refused: tuple[RefusedPod, ...] = ()
    listed: bool = False
    """Whether which pods there are was learned at least once."""
    asked: bool = False
    """Whether every ready pod of that first listing was asked for its models once, or had its time to answer."""

    def pods_by_state(self, ejected: Collection[str] = ()) -> dict[str, dict[str, int]]:
        """For every pool with a pod or a model: how many of its pods are in each state, by the state's name. A ready
        pod whose uid is among the ejected ones counts as that."""
        names = {pod.pool for pod in self.pods} | {route.pool.name for route in self.routes.values()}
        states = (*(state.value for state in PodState), EJECTED)
        counts = {name: dict.fromkeys(states, 0) for name in sorted(names)}
        for pod in self.pods:
            counts[pod.pool][shown_state(pod, ejected)] += 1
        return counts


def shown_state(pod: Pod, ejected: Collection[str]) -> str:
    """A pod's state by the name that operators see."""
    return EJECTED if pod.state is PodState.READY and pod.uid in ejected else pod.state.value
