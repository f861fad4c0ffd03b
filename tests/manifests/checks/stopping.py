"""How pods start, stop and make room: probes, graces, drains and disruption budgets go together."""

import math
from collections.abc import Iterator
from typing import Any

import yaml

from gateway.cli.process import LAST_WORDS_SECONDS, LINGER_SECONDS
from gateway.config.sections import PoolSection, ServerSection
from tests.manifests.building import (
    Build,
    Manifest,
    containers,
    labels_of,
    namespace_of,
    of_kind,
    pods,
    replicas_of,
    selects,
    title,
)
from tests.manifests.checks.naming import POOL
from tests.manifests.checks.references import scaled, wanted_by

PATIENT_SECONDS = 5
"""A second, the default, is what a busy process takes to answer now and then."""
TOLD_SECONDS = 2
"""Until every gateway knows that a pod goes."""
ENDING_SECONDS = 15
"""What the processes of an engine take to end, when the last answer is out."""


def gateways(built: Build) -> list[tuple[Manifest, Manifest, Manifest]]:
    """Each workload that serves, with its pod template and its container."""
    return [
        (each, template, container)
        for each, template in pods(built)
        for container in containers(template, init=False)
        if container["image"].rpartition("/")[2].partition(":")[0] == "poolgate"
        and "command" not in container
        and container.get("args", [])[:1] == ["serve"]
    ]


def configuration(built: Build, workload: Manifest, template: Manifest) -> dict[str, Any]:
    """The gateway.yaml of a gateway, as its ConfigMap has it."""
    names = {want.name for want in wanted_by(template) if want.kind == "ConfigMap"}
    for each in of_kind(built, "ConfigMap"):
        ours = namespace_of(each) == namespace_of(workload) and each["metadata"]["name"] in names
        if ours and "gateway.yaml" in each["data"]:
            return dict(yaml.safe_load(each["data"]["gateway.yaml"]))
    raise AssertionError(f"{title(workload)}: has no gateway.yaml")


def drain_seconds(built: Build, workload: Manifest, template: Manifest) -> float:
    """How long a gateway lets its streams go on after SIGTERM."""
    server = configuration(built, workload, template).get("server", {})
    return float(server.get("drain_seconds", ServerSection().drain_seconds))


def gateways_may_drain(built: Build) -> list[str]:
    """The grace is longer than linger, drain and last words: else the kubelet cuts what the drain spares."""
    return [
        f"{title(each)}: {grace(template)} s of grace for {needed:g} s of lingering, draining and last words"
        for each, template, _ in gateways(built)
        if grace(template) <= (needed := LINGER_SECONDS + drain_seconds(built, each, template) + LAST_WORDS_SECONDS)
    ]


def drains_spare_streams(built: Build) -> list[str]:
    """A stream may take `stream_seconds` of its pool, so the drain is no shorter: a rollout cuts none."""
    return [
        f"{title(each)}: drains for {drain:g} s, and a stream of the pool {pool} may take {seconds:g} s"
        for each, template, _ in gateways(built)
        for pool, seconds in longest_streams(built, configuration(built, each, template)).items()
        if (drain := drain_seconds(built, each, template)) < seconds
    ]


def longest_streams(built: Build, settings: dict[str, Any]) -> dict[str, float]:
    """Of each pool that has pods or settings. One without settings has the defaults."""
    told = settings.get("pools") or {}
    names = {labels_of(template)[POOL] for _, template in pods(built) if POOL in labels_of(template)} | told.keys()
    return {name: float((told.get(name) or {}).get("stream_seconds", PoolSection().stream_seconds)) for name in names}


def engines_may_finish(built: Build) -> list[str]:
    """The grace of a pool's pod is longer than its hook, its own shutdown and the end of its processes."""
    return [
        f"{title(each)}: {grace(template)} s of grace for {needed:g} s of hook, shutdown and end"
        for each, template, container, shutdown in _engines(built)
        if grace(template) < (needed := hook_seconds(container) + shutdown + ENDING_SECONDS)
    ]


def engines_finish_their_streams(built: Build) -> list[str]:
    """A pool's pod goes on for as long as a stream may take."""
    return [
        f"{title(each)}: ends after {shutdown:g} s, and a stream may take {stream:g} s"
        for each, template, _, shutdown in _engines(built)
        for gateway, its, _ in gateways(built)
        if shutdown < (stream := longest_streams(built, configuration(built, gateway, its))[labels_of(template)[POOL]])
    ]


def _engines(built: Build) -> Iterator[tuple[Manifest, Manifest, Manifest, float]]:
    """Of the pools' pods that say how long they go on: workload, template, container, seconds."""
    for each, template in pods(built):
        for container in containers(template, init=False):
            if POOL in labels_of(template) and (shutdown := shutdown_seconds(container)) is not None:
                yield each, template, container, shutdown


def engines_say_how_they_end(built: Build) -> list[str]:
    """Without --shutdown-timeout an engine aborts what runs; without a hook it refuses what is still sent to it."""
    found = []
    for each, template in pods(built):
        if POOL not in labels_of(template):
            continue
        main = containers(template, init=False)[0]
        if shutdown_seconds(main) is None:
            found.append(f"{title(each)}: {main['name']} has no --shutdown-timeout")
        if hook_seconds(main) < TOLD_SECONDS:
            found.append(f"{title(each)}: {main['name']} has no preStop that sleeps {TOLD_SECONDS} s")
    return found


def grace(template: Manifest) -> int:
    """Seconds from SIGTERM to SIGKILL."""
    return int(template["spec"].get("terminationGracePeriodSeconds", 30))


def hook_seconds(container: Manifest) -> float:
    """What a preStop hook takes of the grace."""
    hook = (container.get("lifecycle") or {}).get("preStop") or {}
    return float((hook.get("sleep") or {}).get("seconds", 0))


def shutdown_seconds(container: Manifest) -> float | None:
    """`--shutdown-timeout` of an engine."""
    words = [str(word) for word in (*container.get("command", []), *container.get("args", []))]
    told = [word.partition("=")[2] for word in words if word.startswith("--shutdown-timeout=")]
    return float(told[-1]) if told else None


# Probes

STANDING = ("Deployment", "StatefulSet", "DaemonSet", "LeaderWorkerSet")


def what_listens_is_probed(built: Build) -> list[str]:
    """A container with ports says when it has started, may be asked, and is dead; each with time to answer."""
    found = []
    for each, template in pods(built):
        for container in containers(template, init=False):
            if each["kind"] not in STANDING or not container.get("ports"):
                continue
            for name in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container.get(name)
                if probe is None:
                    found.append(f"{title(each)}: {container['name']} has no {name}")
                elif probe.get("timeoutSeconds", 1) < PATIENT_SECONDS:
                    found.append(f"{title(each)}: {name} of {container['name']} waits less than {PATIENT_SECONDS} s")
    return found


def liveness_is_more_patient_than_readiness(built: Build) -> list[str]:
    """A busy pod rests before it is killed, and a gateway that drains or has no pods is alive."""
    found = []
    for each, template in pods(built):
        for container in containers(template, init=False):
            alive, ready = container.get("livenessProbe"), container.get("readinessProbe")
            if alive is None or ready is None:
                continue
            if patience(alive) <= patience(ready):
                found.append(f"{title(each)}: {container['name']} is killed as soon as it is not ready")
    for each, _, container in gateways(built):
        for name, path in (("startupProbe", "/livez"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
            asks = (container.get(name) or {}).get("httpGet", {})
            if (asks.get("path"), asks.get("port")) != (path, "ops"):
                found.append(f"{title(each)}: {name} is not {path} of the port ops")
    return found


def patience(probe: Manifest) -> int:
    """Seconds of silence that a probe lets pass."""
    return int(probe.get("periodSeconds", 10)) * int(probe.get("failureThreshold", 3))


# Making room


def budgets_leave_a_way(built: Build) -> list[str]:
    """Some pod may always be evicted, or a node can never be drained."""
    found = []
    for budget in of_kind(built, "PodDisruptionBudget"):
        for each, template in pods(built):
            if namespace_of(each) != namespace_of(budget) or not selects(
                budget["spec"]["selector"], labels_of(template)
            ):
                continue
            fewest = fewest_pods(built, each)
            if may_go(budget["spec"], fewest) < 1:
                found.append(f"{title(budget)}: of {fewest} pods of {title(each)} none may ever go")
    return found


def fewest_pods(built: Build, workload: Manifest) -> int:
    """Of a workload, by its autoscaler if it has one. One that may scale to none has one when that matters."""
    least = [
        int(scaler["spec"].get("minReplicas", scaler["spec"].get("minReplicaCount", 1)))
        for scaler, target in scaled(built)
        if target is workload
    ]
    return max(1, least[0] if least else replicas_of(workload))


def may_go(budget: Manifest, pods_there: int) -> int:
    """How many of so many may go at once. Kubernetes rounds a share up, on both sides."""
    if "maxUnavailable" in budget:
        return _share(budget["maxUnavailable"], pods_there)
    return pods_there - _share(budget.get("minAvailable", 1), pods_there)


def _share(value: int | str, whole: int) -> int:
    return math.ceil(whole * int(value[:-1]) / 100) if isinstance(value, str) else value


def rollouts_leave_a_way(built: Build) -> list[str]:
    """A rollout that may neither add a pod nor take one away never moves."""
    return [
        f"{title(each)}: a rollout may neither add nor take away"
        for each, rolling in _rolling(built)
        if str(rolling.get("maxSurge", 1)).rstrip("%") == "0" == str(rolling.get("maxUnavailable", 1)).rstrip("%")
    ]


def _rolling(built: Build) -> Iterator[tuple[Manifest, dict[str, Any]]]:
    for each in of_kind(built, "Deployment"):
        yield each, (each["spec"].get("strategy") or {}).get("rollingUpdate") or {}
    for each in of_kind(built, "LeaderWorkerSet"):
        yield (
            each,
            {"maxSurge": 0, **((each["spec"].get("rolloutStrategy") or {}).get("rollingUpdateConfiguration") or {})},
        )


def rollouts_of_gateways_lose_none(built: Build) -> list[str]:
    """The new gateway is there before an old one goes."""
    return [
        f"{title(each)}: a rollout takes a gateway away before the new one is there"
        for each, _, _ in gateways(built)
        if str(((each["spec"].get("strategy") or {}).get("rollingUpdate") or {}).get("maxUnavailable"))
        not in ("0", "0%")
    ]


def loading_is_within_the_deadline(built: Build) -> list[str]:
    """A Deployment is called failed after progressDeadlineSeconds: that is longer than its pods may take to start."""
    found = []
    for each in of_kind(built, "Deployment"):
        for container in containers(each["spec"]["template"], init=False):
            start = patience(container["startupProbe"]) if "startupProbe" in container else 0
            if each["spec"].get("progressDeadlineSeconds", 600) < start:
                found.append(f"{title(each)}: is called failed before the {start} s are over that it may take to start")
    return found
