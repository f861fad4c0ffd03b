"""In-flight counts, and the leases that keep them exact.

There is no await between choosing and counting: entering a lease does both in one synchronous step, and it gives
back at the end of its block, whatever happened in there. One lease is one attempt at one pod.
"""

from collections.abc import Callable, Collection
from types import TracebackType

from gateway.balancing.policy import least_in_flight
from gateway.core.fleet import Pod, Route

RETRY_SHARE = 0.1
RETRY_FLOOR = 3
"""Retries that may run at once: a share of what is active, but a few in any case."""


class Balancer:
    """Owns how many attempts run at each pod, and how many of all are retries."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._in_flight: dict[str, int] = {}
        self._by_model: dict[str, int] = {}
        self._active = 0
        self._retrying = 0

    def in_flight(self, uid: str) -> int:
        """Attempts running at a pod now."""
        return self._in_flight.get(uid, 0)

    def in_flight_by_model(self) -> dict[str, int]:
        """Attempts running now by model; a model that once had one stays, with 0."""
        return self._by_model

    @property
    def active(self) -> int:
        """Attempts running now, over all pods."""
        return self._active

    @property
    def may_retry(self) -> bool:
        """Whether the budget allows one retry more."""
        return self._retrying < max(RETRY_FLOOR, RETRY_SHARE * self._active)

    def lease_nowait(self, route: Route, excluded: Collection[str] = (), *, retry: bool = False) -> "Lease":
        """A pod of the route, none of those excluded (by uid), counted for the length of a `with` block.

        The block gets None when no pod is left. `retry`: the attempt draws on the retry budget.
        """
        return Lease(self, route, excluded, retry)


class Lease:
    """See `Balancer.lease_nowait`."""

    __slots__ = ("_balancer", "_excluded", "_pod", "_retry", "_route")

    def __init__(self, balancer: Balancer, route: Route, excluded: Collection[str], retry: bool) -> None:
        self._balancer = balancer
        self._route = route
        self._excluded = excluded
        self._retry = retry
        self._pod: Pod | None = None

    def __enter__(self) -> Pod | None:
        balancer, route, excluded = self._balancer, self._route, self._excluded
        pods = [pod for pod in route.pods if pod.uid not in excluded] if excluded else route.pods
        in_flight, by_model = balancer._in_flight, balancer._by_model
        pod = self._pod = least_in_flight(pods, in_flight, balancer._chance)
        if pod is not None:
            in_flight[pod.uid] = in_flight.get(pod.uid, 0) + 1
            by_model[route.model] = by_model.get(route.model, 0) + 1
            balancer._active += 1
            balancer._retrying += self._retry
        return pod

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        balancer, pod = self._balancer, self._pod
        if pod is None:
            return
        left = balancer._in_flight[pod.uid] - 1
        if left:
            balancer._in_flight[pod.uid] = left
        else:
            del balancer._in_flight[pod.uid]
        balancer._by_model[self._route.model] -= 1
        balancer._active -= 1
        balancer._retrying -= self._retry
