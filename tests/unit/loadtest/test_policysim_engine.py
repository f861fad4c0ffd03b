"""The modelled pod: what it says of simple cases can be worked out by hand."""

import math
import random

import pytest

from loadtest.policysim.calibrate import fitted
from loadtest.policysim.engine import TOKENS_PER_BLOCK, Cache, Engine, Job
from loadtest.policysim.profiles import LARGE, Profile, StepTime, pairs

TIME = StepTime(step=0.010, per_sequence=0.001, per_token=0.0001, per_pair=1e-8)
POD = Profile(
    name="test", time=TIME, max_num_batched_tokens=1024, max_num_seqs=8, kv_tokens=64 * TOKENS_PER_BLOCK
)  # fmt: skip
DECODING = TIME.step + TIME.per_sequence


def job(number: int, prompt: int, answer: int, chain: tuple[int, ...] | None = None) -> Job:
    blocks = (prompt + answer) // TOKENS_PER_BLOCK
    return Job(number, prompt, answer, tuple(range(number * 1000, number * 1000 + blocks)) if chain is None else chain)


def until_idle(engine: Engine) -> tuple[dict[int, float], dict[int, float]]:
    """By number: when the first token came, when the job ended."""
    first_at: dict[int, float] = {}
    ended_at: dict[int, float] = {}
    while engine.next_at != math.inf:
        now = engine.next_at
        first, ended = engine.advance(now)
        first_at |= {each.number: now for each in first}
        ended_at |= {each.number: now for each in ended}
    return first_at, ended_at


def test_an_idle_pod_takes_what_the_formula_says() -> None:
    engine = Engine(POD)
    engine.submit(job(1, 1000, 50), 5.0)
    first, ended = until_idle(engine)
    to_first = 0.010 + 1000 * 0.0001 + 1000 * 500 * 1e-8
    assert first[1] == pytest.approx(5.0 + to_first)
    assert ended[1] == pytest.approx(5.0 + to_first + 49 * DECODING)


def test_a_long_prompt_is_computed_in_chunks_and_attention_counts_them_all() -> None:
    engine = Engine(POD)
    engine.submit(job(1, 2500, 1), 0.0)
    first, _ = until_idle(engine)
    assert first[1] == pytest.approx(3 * 0.010 + 2500 * 0.0001 + pairs(0, 2500) * 1e-8)


def test_a_pod_at_a_quarter_of_the_speed_takes_four_times_as_long() -> None:
    times = []
    for slowness in (1.0, 4.0):
        engine = Engine(POD, slowness)
        engine.submit(job(1, 700, 20), 0.0)
        times.append(until_idle(engine)[1][1])
    assert times[1] == pytest.approx(4 * times[0])


def test_what_was_computed_before_is_found_but_for_the_last_token() -> None:
    engine = Engine(POD)
    prompt = 6 * TOKENS_PER_BLOCK
    first = job(1, prompt, 1)
    engine.submit(first, 0.0)
    until_idle(engine)
    again = job(2, prompt, 1, first.chain)
    engine.submit(again, 100.0)
    came, _ = until_idle(engine)
    cached = 5 * TOKENS_PER_BLOCK
    assert again.cached_tokens == cached
    seconds = TIME.seconds(0, TOKENS_PER_BLOCK, pairs(cached, TOKENS_PER_BLOCK))
    assert came[2] - 100.0 == pytest.approx(seconds)


def test_the_next_turn_finds_the_answer_too() -> None:
    engine = Engine(POD)
    chain = tuple(range(20))
    engine.submit(job(1, 5 * TOKENS_PER_BLOCK, 3 * TOKENS_PER_BLOCK, chain[:8]), 0.0)
    until_idle(engine)
    turn = job(2, 10 * TOKENS_PER_BLOCK, 1, chain[:10])
    engine.submit(turn, 100.0)
    assert turn.cached_tokens == 8 * TOKENS_PER_BLOCK


def test_two_at_once_share_a_prefix_from_the_step_that_computes_it() -> None:
    engine = Engine(POD)
    one, two = job(1, 512, 5, (1, 2, 3, 4)), job(2, 640, 5, (1, 2, 3, 4, 5))
    engine.submit(job(3, 128, 1), 0.0)  # they wait for this one's step
    engine.submit(one, 0.001)
    engine.submit(two, 0.001)
    first, _ = until_idle(engine)
    assert (one.cached_tokens, two.cached_tokens) == (0, 512)
    assert first[1] == first[2]


def test_those_that_decode_wait_for_the_prompts_beside_them() -> None:
    engine = Engine(POD)
    engine.submit(job(1, 2, 10), 0.0)
    began = engine.next_at
    engine.advance(began)
    engine.submit(job(2, 900, 1), began + DECODING / 2)
    first, ended = until_idle(engine)
    prompt_step = TIME.seconds(1, 900, pairs(0, 900))
    assert first[2] == pytest.approx(began + DECODING + prompt_step)
    assert ended[1] == pytest.approx(began + 8 * DECODING + prompt_step)


def test_an_arrival_waits_for_the_end_of_the_step_under_way() -> None:
    engine = Engine(POD)
    engine.submit(job(1, 2, 100), 0.0)
    began = engine.next_at
    engine.advance(began)
    engine.submit(job(2, 2, 1), began + 3.5 * DECODING)
    assert engine.next_at == pytest.approx(began + 4 * DECODING)
    first, ended = until_idle(engine)
    with_prompt = TIME.seconds(1, 2, pairs(0, 2))
    assert first[2] == pytest.approx(began + 4 * DECODING + with_prompt)
    assert ended[1] == pytest.approx(began + 98 * DECODING + with_prompt)


def test_no_more_run_than_have_a_place_and_the_others_come_in_order() -> None:
    engine = Engine(POD)
    for number in range(10):
        engine.submit(job(number, 2, 5 + number), 0.0)
    assert engine.count == 10
    first, ended = until_idle(engine)
    assert first[8] > ended[0]
    assert first[9] > ended[1]
    assert engine.count == 0


def test_who_finds_no_memory_waits_until_another_ends() -> None:
    engine = Engine(POD)
    engine.submit(job(1, 40 * TOKENS_PER_BLOCK, 10), 0.0)
    engine.submit(job(2, 40 * TOKENS_PER_BLOCK, 10), 0.0)
    first, ended = until_idle(engine)
    assert first[2] > ended[1]


def test_many_alike_wait_as_long_as_one_server_with_fixed_times_makes_them() -> None:
    """With answers of one token and a budget of one prompt a pod is an M/D/1 queue: the mean wait is ρ/(2(1-ρ))
    services, by Pollaczek and Khinchine."""
    one_at_a_time = Profile(
        name="test", time=StepTime(step=0.0, per_sequence=0.0, per_token=0.001, per_pair=0.0),
        max_num_batched_tokens=100, max_num_seqs=8, kv_tokens=1000 * TOKENS_PER_BLOCK,
    )  # fmt: skip
    engine, rng, rho, service, count = Engine(one_at_a_time), random.Random(1), 0.7, 0.1, 40_000
    came: dict[int, float] = {}
    waited, now = 0.0, 0.0
    for number in range(count):
        now += rng.expovariate(rho / service)
        while engine.next_at < now:
            at = engine.next_at
            waited += sum(at - came[each.number] - service for each in engine.advance(at)[0])
        came[number] = now
        engine.submit(Job(number, 100, 1, ()), now)
    assert waited / count == pytest.approx(service * rho / (2 * (1 - rho)), rel=0.05)


def test_the_cache_forgets_what_was_used_longest_ago_and_tails_first() -> None:
    cache = Cache(4)
    cache.take((), 3)
    cache.name((1, 2, 3))
    cache.give_back((1, 2, 3), 0, ())
    cache.take((), 2)
    assert cache.found((1, 2, 3)) == 2
    cache.give_back((), 2, (8, 9))
    assert cache.found((1, 2)) == 2
    cache.remember((7,))
    assert cache.found((1, 2)) == 1


def test_the_cache_never_holds_more_than_it_has_and_is_empty_of_users_at_rest() -> None:
    rng, engine = random.Random(3), Engine(POD)
    heads = [tuple(rng.getrandbits(64) for _ in range(6)) for _ in range(5)]
    now, ended = 0.0, 0
    for number in range(500):
        chain = heads[number % 5][: rng.randrange(7)] + tuple(rng.getrandbits(64) for _ in range(8))
        now += rng.expovariate(10)
        while engine.next_at < now:
            ended += len(engine.advance(engine.next_at)[1])
            assert engine.cache.in_use <= engine.cache.capacity
        tokens = len(chain) * TOKENS_PER_BLOCK
        engine.submit(Job(number, tokens - 150, 150, chain), now)
    ended += len(until_idle(engine)[1])
    assert (ended, engine.count, engine.cache.in_use) == (500, 0, 0)


def test_a_step_of_the_measured_form_is_fitted_exactly() -> None:
    by_streams = {streams: TIME.seconds(streams, 0, 0) for streams in (1, 2, 4, 8)}
    by_length = {length: TIME.seconds(0, length, pairs(0, length)) for length in (64, 256, 1024)}
    fit = fitted(by_streams, by_length)
    for field in ("step", "per_sequence", "per_token", "per_pair"):
        assert getattr(fit, field) == pytest.approx(getattr(TIME, field))


def test_the_large_pod_is_as_fast_as_its_comment_says() -> None:
    assert 1 / LARGE.time.per_token == pytest.approx(12_500)
    assert LARGE.time.per_pair / LARGE.time.per_token == pytest.approx(4 * 32 * 4096 / (2 * 8e9), rel=0.02)
