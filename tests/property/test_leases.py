"""For any interleaving of leases that begin, end and fail, no count is negative and all are zero at rest."""

from collections.abc import Callable
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.balancing.balancer import Balancer
from gateway.balancing.policy import least_in_flight
from gateway.core.fleet import Pod, Pool, Route

PODS = tuple(Pod(uid=name, name=name, pool="p", host="h", port=1) for name in "abcd")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.sets(st.sampled_from("abcd"))), max_size=60), st.randoms()
)
def test_counts_are_exact_for_any_interleaving(steps: list[tuple[int, bool, set[str]]], rng: object) -> None:
    chance: Callable[[], float] = rng.random  # type: ignore[attr-defined]  # hypothesis' Random
    balancer = Balancer(chance)
    route = Route("m", Pool("p"), PODS)
    held: dict[int, tuple[object, Pod | None]] = {}

    def end(slot: int, fails: bool) -> None:
        lease, _ = held.pop(slot)
        error = RuntimeError("the attempt failed") if fails else None
        lease.__exit__(type(error) if error else None, error, None)  # type: ignore[attr-defined]

    for slot, fails, excluded in steps:
        if slot in held:
            end(slot, fails)
            continue
        lease = balancer.lease_nowait(route, excluded, retry=fails)
        pod = lease.__enter__()
        assert (pod is None) == (len(excluded) == 4)
        assert pod is None or pod.uid not in excluded
        held[slot] = (lease, pod)
        for each in PODS:
            assert balancer.in_flight(each.uid) == sum(p is each for _, p in held.values())
        assert balancer.active == sum(p is not None for _, p in held.values())
    for slot in list(held):
        end(slot, False)
    assert balancer.active == 0
    assert balancer.may_retry
    assert all(balancer.in_flight(pod.uid) == 0 for pod in PODS)
    assert set(balancer.in_flight_by_model().values()) <= {0}


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 5)), st.floats(0, 1, exclude_max=True))
def test_the_least_loaded_is_chosen(counts: dict[str, int], draw: float) -> None:
    pod = least_in_flight(PODS, counts, lambda: draw)
    assert pod is not None
    assert counts.get(pod.uid, 0) == min(counts.get(each.uid, 0) for each in PODS)


def test_ties_are_broken_by_chance_and_evenly() -> None:
    chance = Random(5).random
    hits = dict.fromkeys("abcd", 0)
    for _ in range(20_000):
        pod = least_in_flight(PODS, {}, chance)
        assert pod is not None
        hits[pod.uid] += 1
    assert all(0.24 < count / 20_000 < 0.26 for count in hits.values())
