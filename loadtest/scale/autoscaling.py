"""The loop that adds and takes away replicas of the gateway, simulated; the target in deploy/ follows from it.

The HorizontalPodAutoscaler's own rules (`autoscaling/v2`, its defaults): every 15 s the mean of what the pods used, as
metrics-server last told it, is divided by the target; within a tenth of it nothing happens; a pod without a metric
since it is ready counts as idle when replicas are added; so many may be added at a time, and what is taken away must
have been too much for all of a window. A metric is the mean over metrics-server's last window of 15 s. Both clocks
stand as badly to each other as they can: a metric is a whole period old when it is looked at.

The gateway's side: a new replica takes its share of what is new; what is open stays where it is. So a replica that is
too full is relieved only as its streams end. Work is in cores. A replica with more than a core of it gives each stream
less, and they take longer. One that is taken away gets nothing new, and goes when its streams have ended.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import yaml

REPOSITORY: Final = Path(__file__).resolve().parents[2]
MANIFEST: Final = REPOSITORY / "deploy" / "kustomize" / "base" / "autoscaler.yaml"

SYNC_SECONDS: Final = 15
METRIC_SECONDS: Final = 15
SYNC_AFTER_METRIC: Final = 14
"""Seconds between a metric and the look at it: the worst there are, in whole seconds."""
TOLERANCE: Final = 0.1
UP_SHARE: Final = 1.0
UP_PODS: Final = 4
"""Added in 15 s: so many times as many as there are, or so many, whichever is more (the defaults)."""
HERE_SECONDS: Final = 15
"""Scheduled, started and ready, with the image on the node: a gateway needs 2 s of them before 1,000 pods."""
NEW_NODE_SECONDS: Final = 150
"""The same if a node has to come first."""
FULL: Final = 0.9
"""Of a core. The rest is for what comes in pieces: the text of a scrape, the collector, a reload."""


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """What the manifest says."""

    target: float
    """Of the CPU that a replica asks for, which is a core."""
    least: int
    most: int
    down_window_seconds: int
    down_pods: int
    down_period_seconds: int


def autoscaler_of(text: str) -> Autoscaler:
    """As a HorizontalPodAutoscaler with one metric, the use of CPU, has it."""
    spec: Any = yaml.safe_load(text)["spec"]
    (metric,) = spec["metrics"]
    down = spec["behavior"]["scaleDown"]
    (policy,) = down["policies"]
    if metric["resource"]["name"] != "cpu" or policy["type"] != "Pods":
        raise ValueError("an autoscaler that is not simulated")
    return Autoscaler(
        target=metric["resource"]["target"]["averageUtilization"] / 100,
        least=spec["minReplicas"],
        most=spec["maxReplicas"],
        down_window_seconds=down["stabilizationWindowSeconds"],
        down_pods=policy["value"],
        down_period_seconds=policy["periodSeconds"],
    )


def wanted(target: float, used: Sequence[float | None]) -> int:
    """How many replicas the loop would have, before any bound. `used`: cores, of each replica; None: not known yet,
    which counts as idle where replicas would be added, and as busy where they would be taken away."""
    now = len(used)
    known = [each for each in used if each is not None]
    if not known:
        return now
    ratio = sum(known) / len(known) / target
    if len(known) < now:
        before, unknown = ratio, 0.0 if ratio > 1.0 else max(1.0, target)
        ratio = (sum(known) + unknown * (now - len(known))) / now / target
        if (before - 1.0) * (ratio - 1.0) < 0.0:
            return now
    return now if abs(ratio - 1.0) <= TOLERANCE else math.ceil(ratio * now - 1e-9)  # no more for a rounding


@dataclass(frozen=True, slots=True)
class Case:
    """What happens. `load(seconds)`: cores of work that would be open if all streams ended as fast as they should."""

    name: str
    load: Callable[[float], float]
    replicas: int
    """At the start."""
    stream_seconds: float = 30.0
    start_seconds: int = HERE_SECONDS
    """From the decision until a replica is ready, and the Service sends to it."""
    lost_at: int | None = None
    """A replica ends without a word, and its callers come again at once."""
    seconds: int = 900


@dataclass(frozen=True, slots=True)
class Came:
    """What came of a case."""

    fullest: float
    """The most work on a replica, in cores: above 1 its tokens come late."""
    late_seconds: int
    """So long a replica had more than a core of work."""
    full_seconds: int
    """So long one had more than `FULL`."""
    most_replicas: int
    changes: int
    """How often the number of replicas was changed."""


@dataclass(slots=True)
class _Replica:
    ready_at: int
    work: float = 0.0
    seen: deque[float] = field(default_factory=lambda: deque(maxlen=METRIC_SECONDS))
    metric: float | None = None
    """As metrics-server last told it, of a time in which the replica was ready all along."""


def simulate(scaler: Autoscaler, case: Case) -> Came:
    """In steps of a second."""
    begin = case.load(0.0) / case.replicas
    serving = [_Replica(-METRIC_SECONDS, begin, deque([begin], METRIC_SECONDS), begin) for _ in range(case.replicas)]
    draining: list[_Replica] = []
    recommended: deque[tuple[int, int]] = deque()
    fullest = 0.0
    late = full = most = changes = 0
    taken_at: deque[int] = deque()
    for now in range(case.seconds):
        ready = [each for each in serving if each.ready_at <= now]
        if now == case.lost_at:
            # The ReplicaSet puts another in its place without being told to.
            lost = ready.pop(0)
            serving.remove(lost)
            serving.append(_Replica(now + case.start_seconds))
            for each in ready:
                each.work += lost.work / len(ready)
        for each in [*ready, *draining]:
            each.seen.append(min(each.work, 1.0))
            each.work -= min(each.work, 1.0) / case.stream_seconds
        for each in ready:
            each.work += case.load(now) / case.stream_seconds / len(ready)
        draining = [each for each in draining if each.work > 0.001]
        worst = max((each.work for each in [*ready, *draining]), default=0.0)
        fullest = max(fullest, worst)
        late += worst > 1.0
        full += worst > FULL
        most = max(most, len(serving))
        if now % METRIC_SECONDS == 0:
            for each in serving:
                if now - each.ready_at >= METRIC_SECONDS:
                    each.metric = sum(each.seen) / len(each.seen)
        if now % SYNC_SECONDS != SYNC_AFTER_METRIC:
            continue
        count = len(serving)
        asked = min(max(wanted(scaler.target, [each.metric for each in serving]), scaler.least), scaler.most)
        recommended.append((now, asked))
        while recommended[0][0] <= now - scaler.down_window_seconds:
            recommended.popleft()
        if asked > count:
            added = min(asked - count, max(math.ceil(UP_SHARE * count), UP_PODS))
            serving += [_Replica(now + case.start_seconds) for _ in range(added)]
            changes += 1
            continue
        asked = max(each for _, each in recommended)
        while taken_at and taken_at[0] <= now - scaler.down_period_seconds:
            taken_at.popleft()
        may = min(count - asked, scaler.down_pods - len(taken_at))
        # Nothing is taken away for want of a history: what was asked before this began is not known.
        if may > 0 and now >= scaler.down_window_seconds:
            for _ in range(may):
                draining.append(serving.pop())
                taken_at.append(now)
            changes += 1
    return Came(fullest, late, full, most, changes)


# --- the cases --------------------------------------------------------------------------------------------------

GROWS_AT: Final = 60


def ramp(base: float, times: float, seconds: float) -> Callable[[float], float]:
    """From `base` to so many times as much, evenly; at once if it takes no time."""

    def load(now: float) -> float:
        part = min(1.0, max(0.0, (now - GROWS_AT) / seconds)) if seconds else float(now >= GROWS_AT)
        return base * (1.0 + (times - 1.0) * part)

    return load


def wave(base: float, part: float, seconds: float) -> Callable[[float], float]:
    """Around `base`, by so large a part of it up and down."""

    def load(now: float) -> float:
        return base * (1.0 + part * math.sin(2.0 * math.pi * now / seconds))

    return load


def cases(target: float, replicas: int) -> Sequence[Case]:
    """What a target has to carry, from the fullest state at which the loop leaves things alone."""
    base = replicas * target * (1.0 + TOLERANCE - 0.001)
    return (
        Case("twice as much within ten minutes", ramp(base, 2.0, 600.0), replicas),
        Case("twice as much within five minutes", ramp(base, 2.0, 300.0), replicas),
        Case(
            "the same, and each new replica waits for a node",
            ramp(base, 2.0, 300.0),
            replicas,
            start_seconds=NEW_NODE_SECONDS,
        ),
        Case("half as much again, at once", ramp(base, 1.5, 0.0), replicas),
        Case("the same, streams of five minutes", ramp(base, 1.5, 0.0), replicas, stream_seconds=300.0),
        Case("one replica is lost", ramp(base, 1.0, 1.0), replicas, lost_at=GROWS_AT),
        Case("a third up and down in 20 min", wave(replicas * target, 1 / 3, 1200.0), replicas, seconds=7200),
    )


def highest_target(scaler: Autoscaler, replicas: int = 3) -> float:
    """The highest, in steps of a twentieth, at which no case that waits for no node has a replica with more than a core
    of work."""
    held = 0.0
    for percent in range(30, 100, 5):
        target = percent / 100
        tried = replace(scaler, target=target, most=10 * scaler.most)
        chosen = [case for case in cases(target, replicas) if case.start_seconds <= HERE_SECONDS]
        if any(simulate(tried, case).late_seconds for case in chosen):
            break
        held = target
    return held
