"""The engine, with a clock moved by hand: who gets which token when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.simulator import PodSettings, Scheduling, TimeModel
from loadtest.simulator.answers import Answer
from loadtest.simulator.engine import Engine, Sequence
from loadtest.simulator.prompts import read_prompt
from tests.unit.loadtest.hand_clock import HandClock

# A step: 100 ms, 10 ms more for each sequence that decodes, 1 ms for each prompt token.
TENTHS = TimeModel(step_seconds=0.1, step_seconds_per_sequence=0.01, prefill_seconds_per_token=0.001)


@dataclass
class Caller:
    """Listens to one sequence and notes when what came, in milliseconds since the test began."""

    bench: Bench
    tokens_at: list[int] = field(default_factory=list)
    finished_at: int | None = None
    failed_at: int | None = None
    cut_off_at: int | None = None
    sequence: Sequence = field(init=False)

    def token(self, sequence: Sequence) -> None:
        self.tokens_at.append(self.bench.now)

    def finished(self, sequence: Sequence) -> None:
        self.finished_at = self.bench.now

    def cut_off(self, sequence: Sequence) -> None:
        self.cut_off_at = self.bench.now

    def failed(self) -> None:
        self.failed_at = self.bench.now

    __hash__ = object.__hash__


class Bench:
    """An engine on a table, with its clock."""

    def __init__(self, time: TimeModel = TENTHS, **settings: Any) -> None:
        self.clock = HandClock()
        self._start = self.clock.time()
        self.changes = 0
        self.engine = Engine(PodSettings(time=time, **settings), self.clock, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    @property
    def now(self) -> int:
        return round((self.clock.time() - self._start) * 1000)

    def ask(self, *, prompt_tokens: int = 100, tokens: int = 3, text: bytes = b"p", priority: int = 0) -> Caller:
        """Submit a sequence; its prompt is `text` repeated."""
        caller = Caller(self)
        prompt = read_prompt((text * prompt_tokens * 4)[: prompt_tokens * 4], block_size_tokens=16, salt=None)
        answer = Answer([b" w"] * tokens, "length")
        caller.sequence = Sequence(caller, 0, prompt, answer, caller.token, priority=priority)
        self.engine.submit([caller.sequence])
        return caller


def test_the_first_token_comes_after_the_prefill_and_the_others_a_step_apart() -> None:
    bench = Bench()
    caller = bench.ask(prompt_tokens=100, tokens=3)
    bench.clock.move(5)

    # One step of 100 + 100 ms, then two of 100 + 10 ms.
    assert caller.tokens_at == [200, 310, 420]
    assert caller.finished_at == 420


def test_a_prompt_without_an_answer_is_over_when_it_is_computed() -> None:
    bench = Bench()
    pooled, generated = bench.ask(tokens=0, text=b"q"), bench.ask(tokens=2)
    bench.clock.move(5)

    # One step of 100 + 200 ms for both prompts; only one of them goes on.
    assert (pooled.finished_at, pooled.tokens_at) == (300, [])
    assert generated.tokens_at == [300, 410]
    assert bench.engine.stats.generation_tokens == 2
    assert bench.engine.running == 0


def test_a_request_that_arrives_during_a_step_joins_the_next_one() -> None:
    bench = Bench()
    first = bench.ask(prompt_tokens=100, tokens=3, text=b"a")
    bench.clock.move(0.15)
    second = bench.ask(prompt_tokens=50, tokens=1, text=b"b")
    bench.clock.move(5)

    # From 200 to 360: one decodes, 50 tokens are computed. The first one waits for the other's prompt.
    assert second.tokens_at == [360]
    assert first.tokens_at == [200, 360, 470]


def test_requests_that_arrive_together_share_one_step() -> None:
    bench = Bench()
    callers = [bench.ask(prompt_tokens=100, tokens=2, text=b"%d" % n) for n in range(4)]
    bench.clock.move(5)

    # 100 + 400 ms for the prompts, 100 + 40 ms for the second tokens.
    assert [caller.tokens_at for caller in callers] == [[500, 640]] * 4
    assert bench.engine.stats.inter_token_latency.count == 4


def test_the_batch_has_a_limit_and_those_behind_it_are_served_in_order() -> None:
    bench = Bench(max_num_seqs=2)
    callers = [bench.ask(prompt_tokens=100, tokens=2, text=b"%d" % n) for n in range(5)]
    bench.clock.move(0.01)
    assert (bench.engine.running, bench.engine.waiting) == (2, 3)
    bench.clock.move(5)

    # Two at a time: 300 + 120, again 300 + 120, then one alone: 200 + 110.
    assert [caller.finished_at for caller in callers] == [420, 420, 840, 840, 1150]


@pytest.mark.parametrize(("policy", "order"), [(Scheduling.FCFS, [0, 1, 2, 3]), (Scheduling.PRIORITY, [2, 1, 3, 0])])
def test_of_those_that_wait_the_lowest_priority_is_next_if_the_engine_schedules_by_it(
    policy: Scheduling, order: list[int]
) -> None:
    bench = Bench(max_num_seqs=1, scheduling_policy=policy)
    bench.ask(tokens=1, text=b"r", priority=9)
    bench.clock.move(0.01)
    callers = [bench.ask(tokens=1, text=b"%d" % n, priority=priority) for n, priority in enumerate((5, 0, -1, 0))]
    bench.clock.move(5)

    # The first one runs already, and is not preempted.
    finished = [caller.finished_at or 0 for caller in callers]
    assert sorted(range(4), key=lambda n: finished[n]) == order
    assert sorted(finished) == [400, 600, 800, 1000]


def test_a_cached_prefix_costs_no_prefill() -> None:
    bench = Bench()
    cold = bench.ask(prompt_tokens=161, tokens=1)
    bench.clock.move(1)
    warm = bench.ask(prompt_tokens=161, tokens=1)
    bench.clock.move(1)

    # Ten blocks of sixteen tokens are found, one token is left.
    assert cold.tokens_at == [261]
    assert warm.tokens_at == [1000 + 101]
    assert warm.sequence.cached_tokens == 160
    assert bench.engine.stats.prefix_cache_queries == 322
    assert bench.engine.stats.prefix_cache_hits == 160


def test_the_last_token_of_a_prompt_is_computed_even_if_all_is_cached() -> None:
    bench = Bench()
    bench.ask(prompt_tokens=64, tokens=1)
    bench.clock.move(1)
    again = bench.ask(prompt_tokens=64, tokens=1)
    bench.clock.move(1)

    assert again.sequence.cached_tokens == 48


def test_a_prefix_is_forgotten_when_the_cache_is_too_small_for_what_came_since() -> None:
    bench = Bench(kv_blocks=15)
    for text in (b"a", b"b", b"c"):
        bench.ask(prompt_tokens=150, tokens=1, text=text)
        bench.clock.move(1)
    again = bench.ask(prompt_tokens=150, tokens=1, text=b"a")
    latest = bench.ask(prompt_tokens=150, tokens=1, text=b"c")
    bench.clock.move(1)

    assert again.sequence.cached_tokens == 0
    assert latest.sequence.cached_tokens > 0


def test_a_prompt_waits_until_its_blocks_are_free() -> None:
    bench = Bench(kv_blocks=10)
    first = bench.ask(prompt_tokens=100, tokens=2, text=b"a")
    second = bench.ask(prompt_tokens=100, tokens=1, text=b"b")
    bench.clock.move(0.01)
    assert (bench.engine.running, bench.engine.waiting) == (1, 1)
    bench.clock.move(5)

    assert first.finished_at == 310
    assert second.finished_at == 510


def test_a_prompt_larger_than_the_whole_pool_is_served_alone() -> None:
    bench = Bench(kv_blocks=2)
    caller = bench.ask(prompt_tokens=100, tokens=1)
    bench.clock.move(5)

    assert caller.finished_at == 200


def test_a_long_prompt_is_computed_in_parts_while_others_decode() -> None:
    bench = Bench(max_num_batched_tokens=101)
    decoding = bench.ask(prompt_tokens=1, tokens=10, text=b"a")
    bench.clock.move(0.102)
    long = bench.ask(prompt_tokens=250, tokens=1, text=b"b")
    bench.clock.move(5)

    # The first: 101 ms. Then it decodes beside parts of 100, 100 and 50 tokens; the long one's step had begun.
    assert decoding.tokens_at[:5] == [101, 211, 421, 631, 791]
    assert long.tokens_at == [791]


def test_one_who_leaves_frees_the_place_when_the_step_ends() -> None:
    bench = Bench(max_num_seqs=1)
    leaving = bench.ask(prompt_tokens=100, tokens=50, text=b"a")
    waiting = bench.ask(prompt_tokens=100, tokens=1, text=b"b")
    bench.clock.move(0.25)
    bench.engine.abort([leaving.sequence])
    assert bench.engine.running == 1
    bench.clock.move(0.06)

    assert leaving.tokens_at == [200]
    assert bench.engine.running == 1
    bench.clock.move(5)
    assert waiting.tokens_at == [510]
    assert leaving.finished_at is None


def test_one_who_leaves_while_waiting_leaves_the_line_at_once() -> None:
    bench = Bench(max_num_seqs=1)
    bench.ask(text=b"a")
    leaving, next_one = bench.ask(text=b"b"), bench.ask(text=b"c")
    bench.clock.move(0.01)
    bench.engine.abort([leaving.sequence])

    assert bench.engine.waiting == 1
    bench.clock.move(5)
    assert leaving.tokens_at == []
    assert next_one.finished_at is not None


def test_gauges_move_only_at_steps() -> None:
    bench = Bench()
    bench.ask(prompt_tokens=100, tokens=5)
    bench.clock.move(0.19)
    assert (bench.engine.running, bench.engine.stats.running) == (1, 0)
    bench.clock.move(0.02)
    assert bench.engine.stats.running == 1
    assert bench.engine.stats.kv_cache_usage > 0
    bench.clock.move(5)

    assert (bench.engine.stats.running, bench.engine.stats.kv_cache_usage) == (0, 0)


def test_an_answer_takes_blocks_as_it_grows_and_gives_them_back() -> None:
    bench = Bench(kv_blocks=100)
    bench.ask(prompt_tokens=24, tokens=60)
    seen = set()
    for _ in range(100):
        bench.clock.move(0.1)
        seen.add(bench.engine.pool.in_use)

    # 24 tokens fill two blocks of sixteen to the half; 60 more need four blocks more.
    assert seen == {2, 3, 4, 5, 6, 0}


def test_those_who_left_are_not_counted_as_finished() -> None:
    bench = Bench()
    leaving = bench.ask(tokens=50)
    bench.clock.move(0.3)
    bench.engine.abort([leaving.sequence])
    bench.clock.move(1)

    assert set(bench.engine.stats.finished.values()) == {0}
    assert bench.engine.stats.running == 0


def test_latencies_are_those_of_the_model_of_time() -> None:
    bench = Bench(max_num_seqs=1)
    bench.ask(prompt_tokens=100, tokens=3, text=b"a")
    bench.ask(prompt_tokens=100, tokens=3, text=b"b")
    bench.clock.move(5)
    stats = bench.engine.stats

    assert stats.time_to_first_token.total == pytest.approx(0.200 + 0.420 + 0.200)
    assert stats.inter_token_latency.total == pytest.approx(4 * 0.110)
    assert stats.inter_token_latency.count == 4
    assert stats.request_queue_time.total == pytest.approx(0.420)
    assert stats.e2e_request_latency.total == pytest.approx(0.420 + 0.840)
    assert stats.time_per_output_token.total == pytest.approx(2 * 0.110)


def test_a_paused_engine_finishes_its_step_and_begins_no_other() -> None:
    bench = Bench()
    caller = bench.ask(prompt_tokens=100, tokens=3)
    bench.clock.move(0.15)
    bench.engine.pause()
    bench.clock.move(5)
    assert caller.tokens_at == [200]
    bench.engine.resume()
    bench.clock.move(5)

    assert caller.tokens_at == [200, 5260, 5370]


def test_an_engine_with_nothing_to_do_sets_no_timer() -> None:
    bench = Bench()
    caller = bench.ask(tokens=2)
    bench.clock.move(5)
    assert caller.finished_at is not None

    assert bench.clock.pending == 0


def test_a_parked_sequence_keeps_its_place_and_costs_no_steps() -> None:
    bench = Bench(max_num_seqs=1)
    parked = bench.ask(prompt_tokens=100, tokens=3, text=b"a")
    parked.sequence.park_asked = True
    waiting = bench.ask(text=b"b")
    bench.clock.move(5)
    assert parked.tokens_at == [200]
    assert (bench.engine.running, bench.engine.waiting, bench.clock.pending) == (1, 1, 0)
    bench.engine.nudge(parked.sequence)
    assert parked.tokens_at == [200, 5000]
    bench.engine.abort([parked.sequence])
    bench.clock.move(5)

    assert waiting.finished_at is not None
    assert bench.engine.running == 0


def test_a_nudged_sequence_finishes_with_its_last_token() -> None:
    bench = Bench()
    parked = bench.ask(tokens=2)
    parked.sequence.park_asked = True
    bench.clock.move(1)
    bench.engine.nudge(parked.sequence)

    assert parked.finished_at == 1000
    assert bench.engine.running == 0


def test_a_dying_engine_tells_everyone_once_and_steps_no_more() -> None:
    bench = Bench(max_num_seqs=1)
    running, waiting, left = bench.ask(text=b"a"), bench.ask(text=b"b"), bench.ask(text=b"c")
    bench.clock.move(0.25)
    bench.engine.abort([left.sequence])
    bench.engine.die()
    bench.clock.move(5)

    assert (running.failed_at, waiting.failed_at, left.failed_at) == (250, 250, None)
    assert running.tokens_at == [200]
    assert bench.clock.pending == 0


def test_a_frozen_engine_tells_nobody() -> None:
    bench = Bench()
    caller = bench.ask(tokens=10)
    bench.clock.move(0.25)
    bench.engine.freeze()
    bench.clock.move(60)

    assert (caller.tokens_at, caller.failed_at, caller.finished_at) == ([200], None, None)


def test_steps_shorter_than_a_timer_can_be_follow_one_another_without_losing_time() -> None:
    bench = Bench(time=TimeModel(step_seconds=100e-6, step_seconds_per_sequence=0, prefill_seconds_per_token=0))
    caller = bench.ask(tokens=100)
    bench.clock.move(1)

    # 100 steps of 0.1 ms: no timer is set for less than half a millisecond, and the plan still ends at 10 ms.
    assert caller.finished_at == pytest.approx(10, abs=1)


def test_the_limit_of_the_line_counts_those_in_the_batch_too() -> None:
    bench = Bench(max_num_seqs=1, max_num_queued_reqs=2)
    assert bench.engine.has_room_in_line
    bench.ask(text=b"a")
    bench.ask(text=b"b")
    bench.clock.move(0.01)

    assert not bench.engine.has_room_in_line


@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 8), st.integers(0, 600)), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(4, 40),
)
def test_everyone_is_served_in_order_and_everything_is_given_back(
    asked: list[tuple[int, int, int]], max_num_seqs: int, kv_blocks: int
) -> None:
    bench = Bench(max_num_seqs=max_num_seqs, kv_blocks=kv_blocks, max_num_batched_tokens=64)
    callers = []
    for number, (prompt_tokens, tokens, pause) in enumerate(asked):
        callers.append(bench.ask(prompt_tokens=prompt_tokens, tokens=tokens, text=b"%d" % number))
        bench.clock.move(pause / 1000)
        assert bench.engine.running <= max_num_seqs
    bench.clock.move(600)

    assert [len(caller.tokens_at) for caller in callers] == [tokens for _, tokens, _ in asked]
    starts = [caller.tokens_at[0] for caller in callers]
    assert max_num_seqs > 1 or starts == sorted(starts)
    assert (bench.engine.running, bench.engine.waiting, bench.engine.pool.in_use) == (0, 0, 0)
    assert bench.clock.pending == 0
