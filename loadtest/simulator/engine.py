"""The engine: a waiting line, a batch, and steps. Sans-IO: time and timers come from outside.

One timer per pod, not per stream: at the end of a step each sequence of the batch gets its token, and whoever
asked for it is called back. A request that arrives during a step waits for the next one. A sequence whose
client has left keeps its place in the batch until the running step ends, as in vLLM. Gauges are noted at
steps only.

A sequence may be parked (a fault does that): it keeps its place and its blocks, and the engine gives it
nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Protocol

from loadtest.simulator.answers import Answer
from loadtest.simulator.blocks import BlockPool
from loadtest.simulator.gauges import EngineStats
from loadtest.simulator.prompts import Prompt, answered_chain
from loadtest.simulator.settings import PodSettings, Scheduling
from loadtest.simulator.timing import prefill_shares

# An event loop's timers are about this exact; a step that would end sooner ends at the loop's next turn.
# Steps are planned one after the other, so what is gained by one is not lost to the next.
TIMER_RESOLUTION_SECONDS = 0.0005
# A pod that was starved of CPU for longer does not hurry to catch up.
LARGEST_LAG_SECONDS = 0.005

_priority = attrgetter("priority")


class Timer(Protocol):
    def cancel(self) -> None: ...


class Timers(Protocol):
    """What an event loop offers; tests have one whose hands they move."""

    def time(self) -> float: ...

    def call_soon(self, callback: Callable[[], object]) -> Timer: ...

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer: ...


class Listener(Protocol):
    """Whoever asked for sequences. Called during a step; must not call the engine back but for `abort`."""

    def finished(self, sequence: Sequence) -> None:
        """It got its last token."""

    def cut_off(self, sequence: Sequence) -> None:
        """It ends with the tokens it has, since the engine was told to end everything."""

    def failed(self) -> None:
        """The engine has died."""


class _Stage(enum.Enum):
    WAITING = enum.auto()
    RUNNING = enum.auto()
    PARKED = enum.auto()
    OVER = enum.auto()


class Sequence:
    """One choice's way through the engine. `produced` counts its tokens."""

    __slots__ = (
        "adapter",
        "answer",
        "arrived_at",
        "blocks",
        "cached_tokens",
        "emit",
        "first_token_at",
        "index",
        "length",
        "listener",
        "park_asked",
        "prefill_left",
        "priority",
        "produced",
        "prompt",
        "room",
        "stage",
    )

    def __init__(
        self,
        listener: Listener,
        index: int,
        prompt: Prompt,
        answer: Answer,
        emit: Callable[[Sequence], None] | None,
        adapter: str | None = None,
        priority: int = 0,
    ) -> None:
        self.listener = listener
        self.index = index
        self.prompt = prompt
        self.answer = answer
        self.adapter = adapter  # the LoRA adapter's name
        self.priority = priority  # lower is sooner, where the engine schedules by it
        self.emit = emit  # called with each token; None: only the end matters
        self.length = len(answer.pieces)
        self.produced = 0
        self.cached_tokens = 0
        self.prefill_left = 0
        self.blocks = 0
        self.room = 0  # tokens until another block is needed
        self.arrived_at = 0.0
        self.first_token_at = 0.0
        self.park_asked = False
        self.stage = _Stage.WAITING


class Engine:
    """`changed` is called whenever a count may have moved."""

    def __init__(self, settings: PodSettings, timers: Timers, changed: Callable[[], None]) -> None:
        self.stats = EngineStats()
        self.pool = BlockPool(settings.kv_blocks)
        self.dead = False
        self.paused = False
        self.slowness = 1.0  # a step takes so many times what the time model says
        self.serves_adapters = bool(settings.lora_adapters) or settings.runtime_lora_updating
        self._settings = settings
        self._timers = timers
        self._changed = changed
        self._waiting: dict[Sequence, None] = {}
        self._prefilling: list[Sequence] = []
        self._decoding: list[Sequence] = []
        self._parked: dict[Sequence, None] = {}
        self._shares: list[int] = []
        self._left_mid_step = False
        self._timer: Timer | None = None
        self._step_seconds = 0.0
        self._planned_end = 0.0

    @property
    def running(self) -> int:
        return len(self._prefilling) + len(self._decoding) + len(self._parked)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_room_in_line(self) -> bool:
        limit = self._settings.max_num_queued_reqs
        return limit is None or self.running + self.waiting < limit

    def submit(self, sequences: Iterable[Sequence]) -> None:
        now = self._timers.time()
        for sequence in sequences:
            sequence.arrived_at = now
            self._waiting[sequence] = None
        self._wake()

    def abort(self, sequences: Iterable[Sequence]) -> None:
        """Forget these: at once if they wait, at the end of the running step if they are in it."""
        for sequence in sequences:
            if sequence.stage is _Stage.WAITING:
                self._waiting.pop(sequence, None)
                sequence.stage = _Stage.OVER
            elif sequence.stage is not _Stage.OVER:
                sequence.stage = _Stage.OVER
                sequence.emit = None
                self._left_mid_step = True
        self._wake()

    def nudge(self, sequence: Sequence) -> None:
        """Give a parked sequence its next token, outside of any step."""
        if sequence.stage is not _Stage.PARKED or self.dead:
            return
        self._give_token(sequence)
        if sequence.stage is _Stage.PARKED and sequence.produced == sequence.length:
            del self._parked[sequence]
            self._finish(sequence)
        self._changed()

    def pause(self) -> None:
        """No further step begins, as in a sleeping vLLM: what arrives waits."""
        self.paused = True

    def cut_all_off(self) -> None:
        """End every request with what it has, as vLLM does before it sleeps."""
        sequences = [*self._decoding, *self._prefilling, *self._parked, *self._waiting]
        self._decoding, self._prefilling, self._parked, self._waiting = [], [], {}, {}
        self._left_mid_step = False
        open_ones = [sequence for sequence in sequences if sequence.stage is not _Stage.OVER]
        for sequence in sequences:
            if sequence.stage is not _Stage.WAITING and (sequence.stage is not _Stage.OVER or sequence.blocks):
                self._release(sequence)
            sequence.stage = _Stage.OVER
        for sequence in open_ones:
            self.stats.finished["abort"] += 1
            sequence.listener.cut_off(sequence)
        self._note_gauges()
        self._changed()

    def resume(self) -> None:
        self.paused = False
        self._wake()

    def freeze(self) -> None:
        """Steps end for good and nobody is told."""
        self.dead = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def die(self) -> None:
        """Steps end for good and every listener is told, once."""
        self.freeze()
        sequences = [*self._decoding, *self._prefilling, *self._parked, *self._waiting]
        self._decoding, self._prefilling, self._parked, self._waiting = [], [], {}, {}
        listeners = {sequence.listener: None for sequence in sequences if sequence.stage is not _Stage.OVER}
        for sequence in sequences:
            sequence.stage = _Stage.OVER
        for listener in listeners:
            listener.failed()
        self._changed()

    def _wake(self) -> None:
        if self._timer is None and not self.dead:
            self._planned_end = self._timers.time()
            self._timer = self._timers.call_soon(self._begin_step)

    def _begin_step(self) -> None:
        self._timer = None
        if self._left_mid_step:
            self._drop_those_who_left()
        if self.paused:
            return
        self._admit()
        if not self._decoding and not self._prefilling:
            self._note_gauges()
            self._changed()
            return
        decoding = len(self._decoding)
        self._shares = prefill_shares(
            [sequence.prefill_left for sequence in self._prefilling],
            decoding=decoding,
            max_batched_tokens=self._settings.max_num_batched_tokens,
        )
        usual = self._settings.time.step(decoding=decoding, prefill_tokens=sum(self._shares))
        self._step_seconds = usual * self.slowness
        now = self._timers.time()
        self._planned_end = max(self._planned_end, now - LARGEST_LAG_SECONDS) + self._step_seconds
        if self._planned_end - now < TIMER_RESOLUTION_SECONDS:
            self._timer = self._timers.call_soon(self._end_step)
        else:
            self._timer = self._timers.call_at(self._planned_end, self._end_step)

    def _end_step(self) -> None:
        # `_timer` stays set until the end, so that nothing called from here starts a second step.
        self._give_tokens()
        if self._left_mid_step:
            self._drop_those_who_left()
        self.stats.steps += 1
        self._note_gauges()
        self._changed()
        self._timer = None
        # Nothing left to do is the common case of a pod with few requests; the gauges are noted already.
        if not self.dead and (self._decoding or self._prefilling or self._waiting):
            self._begin_step()

    def _give_tokens(self) -> None:
        """One to each sequence that decodes or whose prompt is done; then the ends, in the same order."""
        decoding, self._decoding = self._decoding, []
        if decoding:
            self.stats.inter_token_latency.observe(self._step_seconds, len(decoding))
        finished = []
        for sequence in (*decoding, *self._computed_prompts()):
            # A pooling request has no answer: its prompt is all there is to compute.
            if sequence.stage is not _Stage.OVER and sequence.length:
                self._give_token(sequence)
            if sequence.stage is _Stage.OVER:
                self._release(sequence)
            elif sequence.park_asked:
                sequence.stage = _Stage.PARKED
                self._parked[sequence] = None
            elif sequence.produced == sequence.length:
                finished.append(sequence)
            else:
                self._decoding.append(sequence)
        for sequence in finished:
            self._finish(sequence)

    def _computed_prompts(self) -> list[Sequence]:
        """Those whose prompt this step completed; they leave the list of the prefilling."""
        if not self._prefilling:
            return []
        for sequence, share in zip(self._prefilling, self._shares, strict=False):
            sequence.prefill_left -= share
        computed = [sequence for sequence in self._prefilling if not sequence.prefill_left]
        self._prefilling = [sequence for sequence in self._prefilling if sequence.prefill_left]
        return computed

    def _give_token(self, sequence: Sequence) -> None:
        sequence.produced += 1
        self.stats.generation_tokens += 1
        if sequence.produced == 1:
            sequence.first_token_at = self._timers.time()
            self.stats.time_to_first_token.observe(sequence.first_token_at - sequence.arrived_at)
        sequence.room -= 1
        if sequence.room < 0:
            sequence.room += self._settings.block_size_tokens
            sequence.blocks += 1
            self.pool.grow()
        if sequence.emit is not None:
            sequence.emit(sequence)

    def _admit(self) -> None:
        """One after the other, while there is a place in the batch and room for the prompt's blocks."""
        settings = self._settings
        by_priority = settings.scheduling_policy is Scheduling.PRIORITY
        while self._waiting and self.running < settings.max_num_seqs:
            # Of several that are least, `min` takes the first.
            sequence = min(self._waiting, key=_priority) if by_priority else next(iter(self._waiting))
            prompt = sequence.prompt
            blocks = -(-prompt.tokens // settings.block_size_tokens)
            if self.running and not self.pool.has_room(prompt.chain, blocks):
                return
            del self._waiting[sequence]
            self._start(sequence, blocks)

    def _start(self, sequence: Sequence, blocks: int) -> None:
        size = self._settings.block_size_tokens
        prompt = sequence.prompt
        # The last token is always computed, since the first answer token comes out of it.
        usable = prompt.chain[: (prompt.tokens - 1) // size]
        sequence.cached_tokens = self.pool.found(usable) * size
        sequence.prefill_left = prompt.tokens - sequence.cached_tokens
        sequence.blocks = blocks
        sequence.room = blocks * size - prompt.tokens
        sequence.stage = _Stage.RUNNING
        self.pool.take(prompt.chain, blocks)
        self._prefilling.append(sequence)
        stats = self.stats
        stats.prompt_tokens += prompt.tokens
        stats.prefix_cache_queries += prompt.tokens
        stats.prefix_cache_hits += sequence.cached_tokens
        stats.request_queue_time.observe(self._timers.time() - sequence.arrived_at)

    def _finish(self, sequence: Sequence) -> None:
        self._release(sequence)
        if sequence.stage is _Stage.OVER:  # a sibling's token ended the whole request
            return
        sequence.stage = _Stage.OVER
        now = self._timers.time()
        stats = self.stats
        stats.finished[sequence.answer.finish_reason] += 1
        stats.e2e_request_latency.observe(now - sequence.arrived_at)
        if sequence.produced > 1:
            per_token = (now - sequence.first_token_at) / (sequence.produced - 1)
            stats.time_per_output_token.observe(per_token)
        sequence.listener.finished(sequence)

    def _drop_those_who_left(self) -> None:
        self._left_mid_step = False
        for sequence in (*self._prefilling, *self._decoding, *self._parked):
            if sequence.stage is _Stage.OVER:
                self._release(sequence)
        self._prefilling = [sequence for sequence in self._prefilling if sequence.stage is not _Stage.OVER]
        self._decoding = [sequence for sequence in self._decoding if sequence.stage is not _Stage.OVER]
        self._parked = {sequence: None for sequence in self._parked if sequence.stage is not _Stage.OVER}

    def _release(self, sequence: Sequence) -> None:
        prompt = sequence.prompt
        answered = answered_chain(
            prompt,
            sequence.answer.pieces[: sequence.produced],
            block_size_tokens=self._settings.block_size_tokens,
        )
        self.pool.give_back(prompt.chain, sequence.blocks, answered)

    def _note_gauges(self) -> None:
        self.stats.running = self.running
        self.stats.waiting = self.waiting
        self.stats.kv_cache_usage = self.pool.usage
        if self.serves_adapters:
            everyone = (*self._decoding, *self._prefilling, *self._parked, *self._waiting)
            names = {sequence.adapter: None for sequence in everyone if sequence.adapter is not None}
            self.stats.adapters_seen_at[",".join(names)] = self._timers.time()
