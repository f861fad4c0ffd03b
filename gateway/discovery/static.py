"""A fleet from configuration: the pods are given, what they serve is asked (`discovery.models`)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from gateway.core.fleet import Fleet, Model, Pod, PodState, Pool, Route


@dataclass(frozen=True, slots=True)
class StaticPod:
    """A pod as the configuration names it."""

    name: str
    host: str
    port: int
    pool: str


def pods_of(configured: Iterable[StaticPod]) -> tuple[Pod, ...]:
    """The configured pods, in the file's order, not yet asked for their models."""
    return tuple(
        Pod(uid=f"static/{pod.name}", name=pod.name, pool=pod.pool, host=pod.host, port=pod.port) for pod in configured
    )


def fleet_of(
    pods: Iterable[Pod], pools: Mapping[str, Pool], models: Mapping[str, tuple[Model, ...]], *, asked: bool
) -> Fleet:
    """The fleet when each pod (by uid) serves `models`; a pod that is missing there is still starting.

    A model name belongs to one pool: the first, in the pods' order, that serves it and whose globs admit it.
    A model that the pools' settings name without a wildcard is known, with or without a pod.
    """
    known = tuple(
        replace(pod, models=models[pod.uid], state=PodState.READY) if pod.uid in models else pod for pod in pods
    )
    owner: dict[str, str] = {}
    serving: dict[str, list[Pod]] = {}
    cards: dict[str, Mapping[str, Any]] = {}
    for pod in known:
        pool = pools.get(pod.pool) or Pool(pod.pool)
        for model in pod.models:
            if not pool.admits(model.name) or owner.setdefault(model.name, pool.name) != pool.name:
                continue
            serving.setdefault(model.name, []).append(pod)
            cards.setdefault(model.name, model.card)
    for pool in pools.values():
        for name in pool.models:
            if not any(mark in name for mark in "*?["):
                owner.setdefault(name, pool.name)
    routes = {
        name: Route(name, pools.get(pool_name) or Pool(pool_name), tuple(serving.get(name, ())))
        for name, pool_name in owner.items()
    }
    return Fleet(known, MappingProxyType(routes), MappingProxyType(cards), asked)
