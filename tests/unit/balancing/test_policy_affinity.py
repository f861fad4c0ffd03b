from collections import Counter
from random import Random

import pytest

from gateway.balancing.affinity import PrefixIndex, session_key, uid_key
from gateway.balancing.policy import POLICIES, Standing, View, Wish


def no_chance() -> float:
    raise AssertionError("chance would differ from replica to replica")


VIEW = View(PrefixIndex(), no_chance)
KEYS = [session_key("acme", f"chat-{number}") for number in range(10_000)]
both = pytest.mark.parametrize("policy", ["session", "prefix"])


def pods_of(count: int, in_flight: int = 0, group: str = "") -> list[Standing]:
    pods = []
    for number in range(count):
        uid = f"{group}uid-{number}"
        pod = Standing(uid, f"pod-{number}", uid_key(uid))
        pod.in_flight = in_flight
        pods.append(pod)
    return pods


def chosen(pods: list[Standing], key: int, policy: str = "session") -> Standing:
    return POLICIES[policy](pods, Wish(key=key), VIEW).standing


def unevenness(counts: list[int]) -> float:
    """Chi-square, in standard deviations from what chance would give."""
    expected = sum(counts) / len(counts)
    freedom = len(counts) - 1
    return float((sum((count - expected) ** 2 / expected for count in counts) - freedom) / (2 * freedom) ** 0.5)


@both
def test_every_replica_sends_a_session_to_the_same_pod(policy: str) -> None:
    one, other = pods_of(8), pods_of(8)
    other.reverse()
    for key in KEYS[:200]:
        first = POLICIES[policy](one, Wish(key=key), VIEW)
        assert first.reason == policy
        assert first.standing.uid == chosen(other, key, policy).uid == chosen(one, key, policy).uid


@pytest.mark.parametrize("count", [2, 3, 8, 32])
def test_sessions_are_spread_evenly_and_so_are_those_of_a_pod_that_left(count: int) -> None:
    for group in ("a", "b", "c"):
        pods = pods_of(count, group=group)
        by_pod: dict[Standing, list[int]] = {pod: [] for pod in pods}
        for key in KEYS:
            by_pod[chosen(pods, key)].append(key)
        assert unevenness([len(keys) for keys in by_pod.values()]) < 4
        if count > 2:
            gone = pods[0]
            left = [pod for pod in pods if pod is not gone]
            again = Counter(chosen(left, key) for key in by_pod[gone])
            assert unevenness([again[pod] for pod in left]) < 4


def test_a_pod_that_joins_takes_its_share_and_nothing_else_moves() -> None:
    pods = pods_of(9)
    before = [chosen(pods[:8], key) for key in KEYS]
    after = [chosen(pods, key) for key in KEYS]
    moved = [new for old, new in zip(before, after, strict=True) if new is not old]
    assert set(moved) == {pods[8]}
    assert len(moved) == pytest.approx(len(KEYS) / 9, rel=0.1)


@both
def test_one_busy_session_fills_no_pod_beyond_its_share(policy: str) -> None:
    pods = pods_of(8)
    reasons = Counter[str]()
    for number in range(1, 801):
        choice = POLICIES[policy](pods, Wish(key=KEYS[0]), VIEW)
        reasons[choice.reason] += 1
        choice.standing.in_flight += 1
        assert max(pod.in_flight for pod in pods) <= 1.25 * (number / 8 + 1) + 1
    # Eight shares with a quarter more of each are taken by 6.4 pods.
    assert sum(pod.in_flight > 0 for pod in pods) == 7
    assert set(reasons) == {policy, "spill"}


def test_a_session_spills_to_the_pod_it_would_go_to_were_the_first_one_gone_and_comes_back() -> None:
    for key in KEYS[:100]:
        pods = pods_of(8, in_flight=4)
        first = chosen(pods, key)
        second = chosen([pod for pod in pods if pod is not first], key)
        first.in_flight = 20
        spilled = POLICIES["session"](pods, Wish(key=key), VIEW)
        assert (spilled.standing, spilled.reason) == (second, "spill")
        second.in_flight = 20
        assert chosen(pods, key) not in (first, second)
        first.in_flight = 4
        assert chosen(pods, key) is first


def test_a_few_requests_of_a_session_at_once_stay_together() -> None:
    pods = pods_of(8)
    first = chosen(pods, KEYS[0])
    first.in_flight = 1
    assert chosen(pods, KEYS[0]) is first
    first.in_flight = 2
    assert chosen(pods, KEYS[0]) is not first


def test_a_pod_that_fails_fast_loses_its_sessions() -> None:
    pods = pods_of(4, in_flight=2)
    first = chosen(pods, KEYS[0])
    first.in_flight, first.failed = 0, 20
    assert POLICIES["session"](pods, Wish(key=KEYS[0]), VIEW).reason == "spill"
    first.failed = 0
    assert chosen(pods, KEYS[0]) is first


def test_a_new_pod_fills_slowly() -> None:
    pods = pods_of(4)
    cold = pods[2]
    cold.weight = 0.1
    for key in KEYS[:400]:
        chosen(pods, key).in_flight += 1
    # Its share is one in 31, and a quarter more.
    assert 5 < cold.in_flight <= 1.25 * (400 / 31 + 1) + 1
    assert all(100 < pod.in_flight < 160 for pod in pods if pod is not cold)


def test_where_all_pods_are_new_sessions_stay_where_they_belong() -> None:
    pods = pods_of(4, in_flight=8)
    usual = [chosen(pods, key) for key in KEYS[:100]]
    for pod in pods:
        pod.weight = 0.1
    assert [chosen(pods, key) for key in KEYS[:100]] == usual


@both
def test_the_only_pod_takes_everything(policy: str) -> None:
    (pod,) = pods_of(1, in_flight=50)
    choice = POLICIES[policy]([pod], Wish(key=KEYS[0]), VIEW)
    assert (choice.standing, choice.reason) == (pod, policy)


@both
def test_a_request_that_belongs_nowhere_goes_to_the_least_loaded_pod(policy: str) -> None:
    pods = pods_of(4, in_flight=3)
    pods[2].in_flight = 1
    choice = POLICIES[policy](pods, Wish(tokens=100), View(PrefixIndex(), Random(1).random))
    assert (choice.standing, choice.reason) == (pods[2], "least")
