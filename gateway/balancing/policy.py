"""Which of the pods with room takes a request: the one with the fewest requests in flight, ties by chance."""

from collections.abc import Callable, Mapping, Sequence

from gateway.core.fleet import Pod


def least_in_flight(pods: Sequence[Pod], in_flight: Mapping[str, int], chance: Callable[[], float]) -> Pod | None:
    """The least loaded pod, or None when there is none. `in_flight` counts by pod uid; absent means 0.
    `chance()` is uniform in [0, 1)."""
    best: list[Pod] = []
    fewest = -1
    for pod in pods:
        count = in_flight.get(pod.uid, 0)
        if not best or count < fewest:
            best = [pod]
            fewest = count
        elif count == fewest:
            best.append(pod)
    if len(best) <= 1:
        return best[0] if best else None
    return best[int(chance() * len(best))]
