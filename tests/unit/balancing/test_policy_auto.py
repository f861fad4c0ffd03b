"""The choice of `auto`: what it weighs, by hand; the simulation shows what comes of it."""

from collections import Counter
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.balancing.affinity import TOKENS_PER_BLOCK, PrefixIndex, blocks_of, uid_key
from gateway.balancing.policy import (
    BUSY_TOKENS,
    MOST_WEIGHED,
    SHARE_SLACK,
    Choice,
    Standing,
    View,
    Wish,
    auto,
    learn,
    least_work,
)


def pods_of(count: int) -> list[Standing]:
    return [Standing(f"u{number}", f"pod-{number}", uid_key(f"u{number}")) for number in range(count)]


def view_of(familiar: float = 0.0, seed: int = 1) -> View:
    view = View(PrefixIndex(), Random(seed).random)
    view.familiar = familiar
    return view


PROMPT = bytes(range(256)) * 20
BLOCKS = blocks_of(PROMPT, ("m",))
TOKENS = len(BLOCKS) * TOKENS_PER_BLOCK + 50


def test_the_pod_that_waits_for_fewer_prompt_tokens_is_chosen() -> None:
    pods = pods_of(3)
    pods[0].pending_tokens, pods[1].pending_tokens, pods[2].pending_tokens = 3000, 100, 900
    assert auto(pods, Wish(500), view_of()).standing is pods[1]


def test_each_request_that_runs_counts_and_a_failed_one_too() -> None:
    pods = pods_of(2)
    pods[0].in_flight, pods[1].in_flight = 2, 1
    assert auto(pods, Wish(10), view_of()).standing is pods[1]
    pods[1].failed = 2
    choice = auto(pods, Wish(10), view_of())
    assert choice.standing is pods[0]
    assert choice.costs[1] - choice.costs[0] == pytest.approx(BUSY_TOKENS)


def test_what_is_cached_draws_a_prompt_and_what_waits_there_drives_it_away() -> None:
    pods, view = pods_of(3), view_of()
    view.cache.sent("u2", BLOCKS)  # type: ignore[attr-defined]  # a PrefixIndex
    choice = auto(pods, Wish(TOKENS, BLOCKS), view)
    assert (choice.standing, choice.reason, choice.cached_tokens) == (pods[2], "prefix", TOKENS - 50)
    pods[2].pending_tokens = 10 * TOKENS
    assert auto(pods, Wish(TOKENS, BLOCKS), view).standing is not pods[2]


def test_a_home_draws_what_is_not_known_as_far_as_prompts_were_known_of_late() -> None:
    pods = pods_of(8)
    keys = [Random(number).getrandbits(64) | 1 for number in range(50)]

    def homes(familiar: float) -> list[str]:
        return [auto(pods, Wish(TOKENS, BLOCKS, key), view_of(familiar, key)).standing.uid for key in keys]

    # The same on every replica, whatever its chance; by chance where prompts share nothing.
    assert homes(0.5) == [auto(pods, Wish(TOKENS, BLOCKS, key), view_of(0.5)).standing.uid for key in keys]
    assert homes(0.0) != [auto(pods, Wish(TOKENS, BLOCKS, key), view_of(0.0)).standing.uid for key in keys]
    assert len(set(homes(0.5))) == 8


def test_a_pod_with_more_than_its_share_is_not_chosen_whatever_it_has() -> None:
    pods, view = pods_of(4), view_of()
    view.cache.sent("u0", BLOCKS)  # type: ignore[attr-defined]  # a PrefixIndex
    # Twice the mean, which is a quarter of its own, and some: 8 and half of its own.
    pods[0].in_flight = int(2 * SHARE_SLACK)
    assert auto(pods, Wish(TOKENS, BLOCKS), view).costs[0] < inf
    pods[0].in_flight += 1
    choice = auto(pods, Wish(TOKENS, BLOCKS), view)
    assert (choice.standing is pods[0], choice.costs[0]) == (False, inf)


def test_requests_of_others_count_only_beyond_chance() -> None:
    pods = pods_of(4)
    for pod, others in zip(pods, (9, 11, 10, 14), strict=True):
        pod.others = others
    assert len({auto(pods, Wish(10), view_of(seed=seed)).standing.uid for seed in range(60)}) == 4
    pods[3].others = 60
    assert len({auto(pods, Wish(10), view_of(seed=seed)).standing.uid for seed in range(60)}) == 3


def test_a_cold_pod_gets_less() -> None:
    pods = pods_of(2)
    pods[0].weight = 0.1
    pods[1].in_flight = 5
    assert auto(pods, Wish(10), view_of()).standing is pods[1]
    pods[1].in_flight = 10
    assert auto(pods, Wish(10), view_of()).standing is pods[0]


def test_where_all_have_more_than_their_share_the_least_busy_is_taken() -> None:
    pods = pods_of(12)
    for pod in pods[1:]:
        pod.weight, pod.in_flight = 0.1, 3
    pods[0].in_flight = 40
    for wish in (Wish(10), Wish(TOKENS, BLOCKS, 5)):
        assert auto(pods, wish, view_of()).reason == "least"


def test_of_a_large_pool_a_few_are_weighed_the_home_and_the_holder_among_them() -> None:
    pods, view = pods_of(2 * MOST_WEIGHED), view_of(0.5)
    view.cache.sent("u7", BLOCKS)  # type: ignore[attr-defined]  # a PrefixIndex
    choice = auto(pods, Wish(TOKENS, BLOCKS, 12345), view)
    assert pods[7] in choice.weighed
    assert len(choice.weighed) <= 10
    assert max(pods, key=lambda pod: pod.key * 12345 % 2**64) in choice.weighed


def test_what_prompts_share_is_learned_and_forgotten() -> None:
    view = view_of()
    pods = pods_of(2)
    known = Choice(pods[0], "prefix", 900, 900, pods, (1.0, 2.0))
    for _ in range(300):
        learn(view, Wish(1000), known)
    assert view.familiar == pytest.approx(0.9, abs=0.01)
    for _ in range(300):
        learn(view, Wish(1000), known._replace(known_tokens=0))
    assert view.familiar < 0.01
    assert view.turn == 600


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 2), st.integers(0, 20), st.integers(0, 5000), st.floats(0.1, 1.0)),
        min_size=1,
        max_size=MOST_WEIGHED,
    ),
    st.integers(0, 20_000),
    st.booleans(),
)
def test_the_quick_way_for_short_prompts_costs_the_same(
    told: list[tuple[int, int, int, int, float]], tokens: int, others: bool
) -> None:
    pods = pods_of(len(told))
    for pod, (in_flight, failed, foreign, pending, weight) in zip(pods, told, strict=True):
        pod.in_flight, pod.failed, pod.others = in_flight, failed, foreign if others else 0
        pod.pending_tokens, pod.weight = pending, weight
    quick = auto(pods, Wish(tokens), view_of())
    # A key without a home to hope for takes the long way to the same costs.
    long = auto(pods, Wish(tokens, (), 1), view_of())
    assert quick.reason == long.reason
    assert list(quick.costs) == pytest.approx(list(long.costs))
    if quick.costs:
        assert quick.costs[pods.index(quick.standing)] == min(quick.costs)


def test_equals_are_taken_by_chance_and_evenly() -> None:
    pods, view = pods_of(4), view_of()
    pods[2].pending_tokens = 1
    hits = dict.fromkeys(("u0", "u1", "u2", "u3"), 0)
    for _ in range(9000):
        hits[auto(pods, Wish(20), view).standing.uid] += 1
    assert hits.pop("u2") == 0
    assert all(2800 < count < 3200 for count in hits.values())


A_POD = st.tuples(
    st.integers(0, 40),
    st.integers(0, 3),
    st.sampled_from([0, 0, 50, 400]),
    st.sampled_from([0] * 9 + [1]),
    st.sampled_from([1.0] * 9 + [0.5]),
    st.sampled_from([64] * 9 + [5]),
)
"""In flight, failed, waiting tokens, others, weight, room."""


@given(st.lists(A_POD, min_size=2, max_size=MOST_WEIGHED), st.integers(0, 2000), st.integers(0, 9))
def test_the_short_way_weighs_as_the_long_one_does_or_says_that_it_cannot(
    described: list[tuple[int, int, int, int, float, int]], tokens: int, seed: int
) -> None:
    pods = pods_of(len(described))
    for pod, (in_flight, failed, pending, others, weight, room) in zip(pods, described, strict=True):
        pod.in_flight, pod.failed, pod.pending_tokens = in_flight, failed, pending
        pod.others, pod.weight, pod.room = others, weight, room
    # A key that says nothing, where prompts share nothing: that takes the long way.
    long = auto(pods, Wish(tokens, (), 1), view_of(seed=seed))
    short = least_work(pods, tokens, view_of(seed=seed))
    unusual = any(pod.others or pod.weight < 1 or pod.in_flight >= pod.room for pod in pods)
    assert (short is None) == (unusual or inf in long.costs)
    if short is not None:
        assert short.costs == long.costs
        assert short._replace(standing=long.standing) == long
        assert short.costs[pods.index(short.standing)] == min(long.costs)


def test_the_short_way_takes_each_of_several_equals_as_often() -> None:
    pods, view = pods_of(4), view_of()
    pods[1].in_flight, pods[1].room = 1, 2
    chosen = Counter(choice.standing.name for _ in range(3000) if (choice := least_work(pods, 10, view)))
    assert chosen.keys() == {"pod-0", "pod-2", "pod-3"}
    assert all(900 < count < 1100 for count in chosen.values())
