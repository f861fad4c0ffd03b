"""Which pool owns each model name, and which pods serve it.

A name belongs to one pool, so that a pod cannot draw another pool's traffic to itself by listing its model. Owner is
the pool whose oldest ready pod serves the name, among those whose globs admit it: a rule that every replica of the
gateway works out alike from the same pods, without a word between them.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, NamedTuple

from gateway.core.fleet import Model, Pod, PodState, Pool, Route

MAX_MODELS = 64


class Admitted(NamedTuple):
    """What a pod may serve of what it listed, and how much of it was left out, by reason."""

    models: tuple[Model, ...]
    refused: dict[str, int]


def admitted(listed: Iterable[Model], pod: Pod, pool: Pool) -> Admitted:
    """The listed models that the pod's own annotation and its pool's globs let it serve, at most 64."""
    models: list[Model] = []
    refused: dict[str, int] = {}
    for model in listed:
        if not any(fnmatchcase(model.name, glob) for glob in pod.allowed):
            reason = "model_not_annotated"
        elif not pool.admits(model.name):
            reason = "model_not_in_pool"
        elif len(models) >= MAX_MODELS:
            reason = "too_many_models"
        else:
            models.append(model)
            continue
        refused[reason] = refused.get(reason, 0) + 1
    return Admitted(tuple(models), refused)


class Routes(NamedTuple):
    """Of a fleet: where each known model leads, and the cards of those that are served."""

    routes: Mapping[str, Route]
    cards: Mapping[str, Mapping[str, Any]]


def routes_of(pods: Iterable[Pod], pools: Mapping[str, Pool], remembered: Mapping[str, str]) -> Routes:
    """Routes over the ready pods. A name that no ready pod serves is known, and leads nowhere, if a pool's settings
    name it without a wildcard or it is `remembered` (model name → pool).
    """
    owner: dict[str, str] = {}
    serving: dict[str, list[Pod]] = {}
    cards: dict[str, Mapping[str, Any]] = {}
    ready = [pod for pod in pods if pod.state is PodState.READY]
    # Static pods may share an age; their order stands.
    ready.sort(key=lambda pod: (pod.created_at, pod.pool))
    for pod in ready:
        for model in pod.models:
            name = model.name
            if owner.setdefault(name, pod.pool) == pod.pool:
                serving.setdefault(name, []).append(pod)
                cards.setdefault(name, model.card)
    for pool in pools.values():
        for name in pool.models:
            if not any(mark in name for mark in "*?["):
                owner.setdefault(name, pool.name)
    for name, pool_name in remembered.items():
        owner.setdefault(name, pool_name)
    routes = {
        name: Route(name, pools.get(pool_name) or Pool(pool_name), tuple(serving.get(name, ())))
        for name, pool_name in owner.items()
    }
    return Routes(MappingProxyType(routes), MappingProxyType(cards))
