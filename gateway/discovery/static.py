"""Pods from configuration: they are given, what they serve is asked (`discovery.rounds`).

A pod is its pool and address: under another name, or at another place in the file, it is still the same server.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.core.fleet import Pod, PodState


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
        Pod(
            uid=f"static/{pod.pool}/{pod.host}:{pod.port}",
            name=pod.name,
            pool=pod.pool,
            host=pod.host,
            port=pod.port,
            state=PodState.READY,
            created_at=float(place),
            askable=True,
        )
        for place, pod in enumerate(configured)
    )
