"""The policies that look at nothing but what is in flight: `least`, `p2c`, `round_robin`."""

from collections import Counter
from itertools import count
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.affinity import PrefixIndex
from gateway.balancing.policy import POLICIES, Standing, View, Wish

NOTHING_CACHED = PrefixIndex()


def pods_of(*in_flight: int) -> list[Standing]:
    pods = [Standing(f"uid-{number}", f"pod-{number}", number) for number in range(len(in_flight))]
    for pod, running in zip(pods, in_flight, strict=True):
        pod.in_flight = running
    return pods


def view(seed: int = 1) -> View:
    return View(NOTHING_CACHED, Random(seed).random)


def choices(policy: str, pods: list[Standing], times: int) -> Counter[int]:
    """How often each pod was chosen, by its place; nothing is sent."""
    looked_at = view()
    chosen = [POLICIES[policy](pods, Wish(), looked_at).standing for _ in range(times)]
    return Counter(pods.index(pod) for pod in chosen)


class TestLeast:
    @given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=12), st.integers(0, 99))
    def test_no_pod_has_fewer_than_the_one_chosen(self, loads: list[tuple[int, int]], seed: int) -> None:
        pods = pods_of(*(in_flight for in_flight, _ in loads))
        for pod, (_, failed) in zip(pods, loads, strict=True):
            pod.failed = failed
        chosen = POLICIES["least"](pods, Wish(), view(seed))
        assert chosen.reason == "least"
        assert sum(loads[pods.index(chosen.standing)]) == min(map(sum, loads))

    @pytest.mark.parametrize(("loads", "equals"), [((3, 1, 4, 1, 1), {1, 3, 4}), ((1, 1, 1), {0, 1, 2})])
    def test_ties_are_broken_by_chance_and_evenly(self, loads: tuple[int, ...], equals: set[int]) -> None:
        seen = choices("least", pods_of(*loads), 3000)
        assert {*seen} == equals
        assert all(900 < times < 1100 for times in seen.values())

    def test_a_pod_that_fails_fast_does_not_look_idle(self) -> None:
        pods = pods_of(0, 1)
        pods[0].failed = 2
        assert choices("least", pods, 50) == {1: 50}


class TestP2c:
    @given(st.lists(st.integers(0, 5), min_size=2, max_size=12), st.integers(0, 99))
    def test_one_of_those_with_the_most_is_never_chosen_where_it_is_alone(self, loads: list[int], seed: int) -> None:
        pods = pods_of(*loads)
        chosen = POLICIES["p2c"](pods, Wish(), view(seed))
        assert chosen.reason == "p2c"
        load = chosen.standing.in_flight
        assert load < max(loads) or loads.count(load) > 1

    def test_of_two_pods_the_less_loaded_one_is_chosen(self) -> None:
        assert choices("p2c", pods_of(2, 1), 200) == {1: 200}
        pods = pods_of(0, 1)
        pods[0].failed = 2
        assert choices("p2c", pods, 200) == {1: 200}

    def test_each_pair_is_as_likely_as_any_other(self) -> None:
        """Each pod wins against all that have more: in three of six pairs, in two, in one, in none."""
        seen = choices("p2c", pods_of(0, 1, 2, 3), 12_000)
        assert [round(seen[place] / 200) for place in range(4)] == [30, 20, 10, 0]

    def test_pods_alike_are_chosen_alike(self) -> None:
        seen = choices("p2c", pods_of(1, 1, 1, 1), 4000)
        assert all(900 < seen[place] < 1100 for place in range(4))

    def test_the_highest_and_the_lowest_draw_are_pods_too(self) -> None:
        for chance in (lambda: 0.0, lambda: 1 - 2**-53):
            assert POLICIES["p2c"](pods_of(0, 0, 0), Wish(), View(NOTHING_CACHED, chance)).reason == "p2c"


class TestRoundRobin:
    @pytest.mark.parametrize("loads", [(0, 0, 0), (9, 0, 4)])
    def test_each_pod_has_its_turn_whatever_it_has_to_do(self, loads: tuple[int, ...]) -> None:
        pods, looked_at = pods_of(*loads), view()
        order = []
        for turn in range(9):
            looked_at.turn = turn
            chosen = POLICIES["round_robin"](pods, Wish(), looked_at)
            assert chosen.reason == "round_robin"
            order.append(pods.index(chosen.standing))
        assert order[:3] == order[3:6] == order[6:]
        assert sorted(order[:3]) == [0, 1, 2]

    def test_turns_go_on_while_pods_come_and_go(self) -> None:
        looked_at = view()
        turns = count()
        for pods in (pods_of(0, 0, 0), pods_of(0), pods_of(0, 0)):
            for _ in pods:
                looked_at.turn = next(turns)
                assert POLICIES["round_robin"](pods, Wish(), looked_at).standing in pods


@pytest.mark.parametrize("policy", ["least", "p2c", "round_robin"])
def test_what_is_chosen_by_load_alone_explains_no_cost(policy: str) -> None:
    chosen = POLICIES[policy](pods_of(1, 2), Wish(100, (1, 2), 7), view())
    assert (chosen.cached_tokens, chosen.weighed, chosen.costs) == (0, (), ())
