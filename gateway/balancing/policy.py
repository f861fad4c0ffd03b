"""Which of the pods with room takes a request: the one with the fewest requests in flight, ties by chance."""

from collections.abc import Callable, Mapping, Sequence

from gateway.core.fleet import Pod


def least_in_flight(pods: Sequence[Pod], in_flight: Mapping[str, int], chance: Callable[[], float]) -> Pod | None:
    """The least loaded pod, or None when there is none. `in_flight` counts by pod uid; absent means 0.
    `chance()` is uniform in [0, 1)."""
    fewest = -1
    best: Pod | None = None
    equals = 1
    for pod in pods:
        count = in_flight.get(pod.uid, 0)
        if best is None or count < fewest:
            best, fewest, equals = pod, count, 1
        elif count == fewest:
            # Each of k equals wins with probability 1/k, without a list of them.
            equals += 1
            if chance() * equals < 1:
                best = pod
    return best
