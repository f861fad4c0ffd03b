"""What needs an operator's eye, as a pure function of what `/status.json` says: in words, and with what to do next.

Each bears the name of its entry in the runbook, which is that of the alert, where there is one. The page and the alerts
do not wait for each other: what an alert says after minutes stands here at once.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.api.status import EJECTED_FOR
from gateway.core.words import how_long
from gateway.limits.store import LOCAL_BECAUSE

STARTING_SECONDS = 600.0
"""A large model loads for minutes."""
STALE_SECONDS = 30.0
"""A list that fails is tried again within ten seconds."""
FAILED_SHARE, FAILED_AT_LEAST = 0.05, 3
MOST = 0.5


@dataclass(frozen=True, slots=True)
class Concern:
    """One thing that is not as it should be."""

    level: str
    """`error`: callers feel it, or will soon; `warning`: it is to be mended; `info`: good to know."""
    what: str
    """A short sentence, without numbers that change each second."""
    why: str = ""
    advice: str = ""
    entry: str = ""
    """A heading of the runbook."""


LEVELS = ("error", "warning", "info")
Said = Mapping[str, Any]


def concerns_of(status: Said) -> list[Concern]:
    """All of them, the worst first."""
    found = (*_gateway(status), *_pools(status), *_pods(status), *_left_out(status), *_settings(status))
    return sorted(found, key=lambda concern: LEVELS.index(concern.level))


def _gateway(status: Said) -> Iterator[Concern]:
    if not status["ready"]:
        yield Concern(
            "error",
            "This replica is not ready",
            status["reason"],
            "Other replicas take the requests. A drain ends by itself; a start waits for the first list of pods.",
        )
    discovery = status["discovery"]
    if discovery["stale_seconds"] >= STALE_SECONDS:
        yield Concern(
            "error",
            "The list of pods is old",
            f"nothing was heard of which pods there are for {how_long(discovery['stale_seconds'])}",
            "Requests go on to the last known pods. See whether the API server answers, and this replica's rights.",
            "PoolgateDiscoveryStale",
        )
    traffic = status["traffic"]
    if traffic["failed"] >= FAILED_AT_LEAST and traffic["failed"] >= FAILED_SHARE * traffic["requests"]:
        yield Concern(
            "error",
            "Many requests fail",
            f"{traffic['failed']:,} of {traffic['requests']:,} in the last minute",
            "See which pods they failed at, in the column Failed and among the last requests.",
            "PoolgateErrorRatio",
        )
    overload = status["overload"]
    if overload["level"]:
        all_of_them = overload["level"] > 1
        yield Concern(
            "error" if all_of_them else "warning",
            f"This replica is short of {overload['short_of']}, and turns "
            + ("all new requests away" if all_of_them else "away what can wait"),
            f"for {how_long(overload['for_seconds'])}; {overload['shed']:,} requests since its start",
            "Add replicas. It takes requests again by itself, two seconds after it has enough.",
            "PoolgateOverloaded",
        )
    limits = status["limits"]
    if limits["mode"] == "local":
        why = LOCAL_BECAUSE.get(limits["reason"], limits["reason"])
        yield Concern(
            "warning",
            "Limits are counted by each replica for itself",
            f"Redis {why}, for {how_long(limits['for_seconds'])}",
            "Each replica keeps to its share of every limit. See whether Redis answers.",
            "PoolgateLimitsLocal",
        )


def _pools(status: Said) -> Iterator[Concern]:
    attempts: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for pod in status["pods"]:
        attempts[pod["pool"]] += pod["attempts"]
        failed[pod["pool"]] += pod["failed"]
    for name, pool in status["pools"].items():
        if pool["ready"] and most_fail(failed[name], attempts[name]):
            # The last pod is never ejected, and of one that is dead callers hear that none is ready.
            yield Concern(
                "error",
                f"Most requests fail at the pods of pool {name}",
                f"{failed[name]:,} of {attempts[name]:,} attempts in the last minute",
                "See the column Failed, and read the logs of those pods: they are listed as ready and may be dead.",
                "PoolgatePoolDown",
            )
        if not pool["ready"]:
            # One that is scaled to zero, and nobody asks for, is as it is meant to be.
            asked = pool["requests"] or pool["queue"] or pool["ejected"]
            yield Concern(
                "error" if asked else "warning" if pool["starting"] else "info",
                f"Pool {name} has no ready pod",
                counted(pool) or "it has no pods at all",
                f"Requests for {listed(pool['models']) or 'its models'} wait or get a 503. See below why its pods are "
                "not ready, or add some.",
                "PoolgatePoolDown",
            )
        if pool["panic"]:
            yield Concern(
                "error",
                f"Pool {name} uses its ejected pods all the same",
                "too few others are left",
                "Mend the ejected pods, or add some: what is left would not bear the load.",
                "PoolgatePanic",
            )
        if pool["queue"]:
            yield Concern(
                "warning",
                f"Requests wait for a pod of pool {name}",
                f"{pool['queue']:,} now: all its ready pods are full",
                "Add pods, or see whether one is slow.",
                "PoolgateQueueGrowing",
            )


def most_fail(failed: int, attempts: int) -> bool:
    """Whether most of a minute's attempts failed at a pool's pods. While others of them take over it is less; the last
    pod of a pool is never ejected."""
    return failed >= FAILED_AT_LEAST and failed >= MOST * attempts


def _pods(status: Said) -> Iterator[Concern]:
    for pod in status["pods"]:
        name = f"Pod {pod['name']} of pool {pod['pool']}"
        if pod["state"] == "ejected" and pod["reason"].startswith(EJECTED_FOR["wedged"]):
            yield Concern(
                "error",
                f"{name} is wedged",
                pod["reason"],
                "Its engine takes requests and gives nothing. Read its log, then delete the pod.",
                "PoolgateEngineWedged",
            )
        elif pod["state"] == "ejected":
            yield Concern(
                "error",
                f"{name} is ejected",
                pod["reason"],
                "It is tried again by itself. If it comes back and goes again, read its log and delete the pod.",
                "PoolgatePodEjected",
            )
        elif pod["state"] == "starting" and pod["for_seconds"] >= STARTING_SECONDS:
            yield Concern(
                "warning",
                f"{name} does not become ready",
                pod["reason"],
                "Read its log and its events: a model that does not fit, an image or a volume that does not come.",
            )


def _left_out(status: Said) -> Iterator[Concern]:
    for pod in status["refused"]:
        yield Concern(
            "warning",
            f"Pod {pod['name']} is left out",
            pod["why"],
            "It bears the label and may not be a target: mend its labels, annotations or address.",
        )
    told = {model for pool in status["pools"].values() if not pool["ready"] for model in pool["models"]}
    missing = [model for model in status["models_without_pods"] if model not in told]
    if missing:
        yield Concern(
            "warning",
            f"No ready pod serves {listed(missing)}",
            "",
            "Start a pod that serves it, or take the name out of the configuration.",
            "PoolgatePoolDown",
        )


def _settings(status: Said) -> Iterator[Concern]:
    config = status["config"]
    if config["error"]:
        yield Concern(
            "warning",
            "What a file of the configuration holds is not in force",
            config["error"],
            "The settings from before stay. Mend the file: it is read again when it changes.",
            "PoolgateConfigRefused",
        )
    if config["waits_for_restart"]:
        yield Concern(
            "info",
            "A changed setting waits for a restart",
            listed(config["waits_for_restart"]),
            "All else of the file is in force.",
        )


def counted(pool: Said) -> str:
    """How many pods are in which state: those there are."""
    states = ("ready", "starting", "draining", "ejected", "asleep")
    return ", ".join(f"{pool[state]:,} {state}" for state in states if pool[state])


def listed(names: list[str], most: int = 4) -> str:
    """Names with commas between, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
