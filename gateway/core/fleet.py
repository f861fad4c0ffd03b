"""What there is to send requests to: pods, the pools they form, and the models that lead to them.

All values are frozen. Discovery builds a new `Fleet` whenever something changed and replaces the old one whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any


class PodState(StrEnum):
    """`READY` pods get new work; the others only finish what they have."""

    READY = "ready"
    STARTING = "starting"
    DRAINING = "draining"


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
    name: str
    pool: str
    host: str
    port: int
    state: PodState = PodState.STARTING
    models: tuple[Model, ...] = ()


@dataclass(frozen=True, slots=True)
class Pool:
    """Pods that serve the same models, under one set of deadlines. `models` are the globs it admits."""

    name: str
    models: tuple[str, ...] = ("*",)
    deadlines: Deadlines = Deadlines()

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
    asked: bool = False
    """Whether every pod has been asked for its models at least once."""
