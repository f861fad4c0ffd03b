"""What the ops port tells of, as it is at one moment. Pure: values, and functions that read others' values."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gateway.core.call import Trail
from gateway.core.fleet import Fleet, PodHealth, PodLoad
from gateway.limits.admission import Standing
from gateway.telemetry.lately import Minute


@dataclass(frozen=True, slots=True)
class ConfigState:
    """Since when the configuration and the keys are as they are, and what became of their files since."""

    loaded_at: float
    """Monotonic seconds."""
    error: str = ""
    """Why what a file holds now is not in force; empty when all is."""
    waits_for_restart: tuple[str, ...] = ()
    """Keys whose new values take effect with the next start."""


@dataclass(frozen=True, slots=True)
class LimitsState:
    """Where limits are counted."""

    mode: str = "memory"
    """`memory`, `redis`, or `local`: Redis is slow or away, and each replica keeps to its share."""
    since: float = 0.0
    """Monotonic seconds."""
    reason: str = ""
    """Why it is `local`, in one word."""


@dataclass(frozen=True, slots=True)
class LoadState:
    """Whether this replica has too much to do."""

    level: int = 0
    """0 no, 1 turns away what can wait, 2 turns away all that is new."""
    cause: str = ""
    """What it is short of: one word of `WHAT_IS_SHORT`; empty: of nothing."""
    since: float = 0.0
    """When the level began to be above 0; monotonic seconds."""
    shed: int = 0
    """Requests turned away since start."""


WHAT_IS_SHORT = {"lag": "CPU", "memory": "memory"}
"""For each cause, what is lacking."""

Level = Literal["info", "warning", "error"]


class Event(NamedTuple):
    """Something that happened."""

    at: float
    """Monotonic seconds."""
    level: Level
    what: str
    """One word of a closed set, such as `pod_ejected`."""
    subject: str
    """What it happened to: `POOL/POD`, a pool, or a part of the gateway."""
    text: str
    """Why, or what came of it, for people."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the gateway knows of its pods and of itself at one moment. What probes do not need is asked for only when it
    is told: with a thousand pods it is much."""

    fleet: Fleet
    draining: bool
    load_of: Callable[[str], PodLoad]
    """What a pod said of its load, by its uid."""
    health_of: Callable[[str], PodHealth]
    """How requests fare at a pod, by its uid."""
    in_flight: Callable[[str], int]
    """Our own attempts that run at a pod, by its uid."""
    waiting: Callable[[], Iterable[tuple[str, int]]]
    """(pool, requests that wait for one of its pods)."""
    panics: Callable[[], Iterable[tuple[str, bool]]]
    """(pool, whether its ejected pods get requests all the same)."""
    config: ConfigState
    limits: LimitsState
    load: LoadState
    minute: Callable[[], Minute]
    """The last minute."""
    standings: Callable[[], Iterable[Standing]]
    """Where the limits stand of those who asked of late."""
    recent: Callable[[int], Sequence[Trail]]
    """So many of the last requests, the latest first."""
    events: Callable[[], Iterable[Event]]
    """What happened, the latest first."""
    replica: str
    """This gateway's name."""
    started_at: float
    """Monotonic seconds."""
    mode: str
    """Of discovery: `static` or `kubernetes`."""
    stale_seconds: float
    """For how long nothing was heard of which pods there are; 0 while discovery works."""
    replicas: int
    """Gateways that share the pods, this one included."""
    now: float
    """Monotonic seconds, as the pods' `since` and their loads' times."""
    wall: float
    """The same moment in seconds since 1970."""
