"""One generation: its sequences in the engine, and the answer they are written into.

`StreamedAnswer` is called back with every token, `WholeAnswer` only at the end. Both tell the pod once, by
`over`, when the generation ends, however it ends. Words alone take the short way (`token`), composed answers
another (`composed_token`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import msgspec

from loadtest.simulator import bodies, refusals, wire
from loadtest.simulator.answers import Answer, draw_answer
from loadtest.simulator.asked import Asked
from loadtest.simulator.bodies import CHAT, FINGERPRINT, Identity, Shape
from loadtest.simulator.composing import ComposedAnswer, compose, cut_off
from loadtest.simulator.connection import Exchange
from loadtest.simulator.dialects import Dialect
from loadtest.simulator.engine import Engine, Sequence, Timer, Timers
from loadtest.simulator.gauges import load_report
from loadtest.simulator.prompts import Prompt
from loadtest.simulator.settings import PodSettings
from loadtest.simulator.wishes import PLAIN


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a generation is made of."""

    exchange: Exchange
    asked: Asked
    shape: Shape
    identity: Identity
    request_id: bytes | None  # to be echoed as a header
    settings: PodSettings
    timers: Timers
    priority: int = 0
    dialect: Dialect | None = None  # of another API than the chat's


class Generation(ABC):
    """What both kinds share. `left` is called if the client goes before the end; `over` always, once."""

    def __init__(self, job: Job, engine: Engine, *, left: Callable[[], None], over: Callable[[], None]) -> None:
        self.job = job
        self.exchange = job.exchange
        self.engine = engine
        self.sequences: list[Sequence] = []
        self.unfinished = 0
        self._left = left
        self._over: Callable[[], None] | None = over

    def begin(self) -> None:
        self.exchange.on_gone = self._client_left
        self.sequences = self._sequences(self._emit())
        self.unfinished = len(self.sequences)
        self.engine.submit(self.sequences)

    def finished(self, sequence: Sequence) -> None:
        self.unfinished -= 1
        if not self.unfinished:
            self._complete()
            self._end()

    def cut_off(self, sequence: Sequence) -> None:
        sequence.answer = cut_off(sequence.answer, sequence.produced)
        self._tell_cut_off(sequence)
        self.finished(sequence)

    def failed(self) -> None:
        self._fail()
        self._end()

    def drop(self) -> None:
        """End it before its time, for another reason than the client."""
        self.exchange.on_gone = None
        self.engine.abort(self.sequences)
        self._end()

    def _end(self) -> None:
        self.sequences = []  # they refer to this: no cycles for the collector to find
        over, self._over = self._over, None
        if over is not None:
            over()

    def _client_left(self) -> None:
        self._left()
        self.drop()

    @abstractmethod
    def _emit(self) -> Callable[[Sequence], None] | None:
        """Whom the engine calls with each token; None: nobody."""

    @abstractmethod
    def _tell_cut_off(self, sequence: Sequence) -> None:
        """The engine has ended it; a stream has to say so."""

    @abstractmethod
    def _complete(self) -> None:
        """All sequences have ended."""

    @abstractmethod
    def _fail(self) -> None:
        """The engine has died."""

    def _sequences(self, emit: Callable[[Sequence], None] | None) -> list[Sequence]:
        asked = self.job.asked
        adapter = asked.model if asked.model in self.job.settings.lora_adapters else None
        sequences: list[Sequence] = []
        for prompt in asked.prompts:
            for choice in range(asked.n):
                answer = self._answer(prompt, choice)
                sequences.append(Sequence(self, len(sequences), prompt, answer, emit, adapter, self.job.priority))
        return sequences

    def _answer(self, prompt: Prompt, choice: int) -> Answer:
        asked, settings = self.job.asked, self.job.settings
        ends = not asked.ignore_eos and (settings.ends_early or not asked.limited)
        natural_tokens = settings.natural_tokens if ends else None
        if asked.wishes is PLAIN:
            return draw_answer(
                seed=settings.seed,
                prompt_key=prompt.key,
                choice=choice,
                max_tokens=asked.max_tokens,
                natural_tokens=natural_tokens,
                stop=asked.stop,
            )
        return compose(
            asked.wishes,
            seed=settings.seed,
            prompt_key=prompt.key,
            choice=choice,
            max_tokens=asked.max_tokens,
            natural_tokens=natural_tokens,
            stop=asked.stop,
            parses=self.parses,
            calls_wanted=settings.tool_calls,
        )

    @property
    def parses(self) -> bool:
        """Whether a parser of tool calls or of reasoning looks at the answer."""
        settings = self.job.settings
        return self.job.shape is CHAT and (settings.auto_tool_choice or settings.reasoning_parser is not None)

    def reasoning_tokens(self) -> int | None:
        """Of all sequences; None if nobody counts them."""
        if not self.job.asked.wishes.parses_reasoning:
            return None
        return sum(_reasoning_tokens(sequence) or 0 for sequence in self.sequences)

    def details(self) -> tuple[int, int | None]:
        """Tokens found in the prefix cache and new ones put there; completions do not tell the second."""
        _, _, cached, created = self.counts()
        return cached, created if self.job.shape.tells_created_tokens else None

    def counts(self) -> tuple[int, int, int, int]:
        """Prompt, completion, cached and newly cached tokens of all sequences together."""
        asked = self.job.asked
        prompt_tokens = completion = cached = blocks = 0
        for prompt in asked.prompts:
            prompt_tokens += prompt.tokens
            blocks += len(prompt.chain)
        for position, sequence in enumerate(self.sequences):
            completion += sequence.produced
            if position % asked.n == 0:  # choices of one prompt share it
                cached += sequence.cached_tokens
        return prompt_tokens, completion, cached, blocks * self.job.settings.block_size_tokens - cached


class WholeAnswer(Generation):
    finishes = True

    def _emit(self) -> Callable[[Sequence], None] | None:
        return None

    def _complete(self) -> None:
        self.send(wire.Reply(200, self.body(), before=self._load_report(), after=self._headers()))

    def send(self, reply: wire.Reply) -> None:
        self.exchange.answer(reply)

    def body(self) -> bytes:
        job = self.job
        prompt, completion, _, _ = self.counts()
        details = bodies.details_whole(*self.details()) if job.settings.prompt_tokens_details else b"null"
        usage = bodies.usage_whole(prompt, completion, details, self.reasoning_tokens())
        return job.shape.whole(job.identity, self.sequences, usage, self.finishes)

    def _load_report(self) -> tuple[tuple[bytes, bytes], ...]:
        """The ORCA header, if asked for in a format vLLM knows."""
        wanted = self.exchange.request.raw_header(b"endpoint-load-metrics-format")
        if wanted is None or self.job.dialect is not None:
            return ()
        report = load_report(self.engine.waiting, self.engine.pool.usage, wanted.upper())
        return () if report is None else ((b"endpoint-load-metrics", report),)

    def _tell_cut_off(self, sequence: Sequence) -> None:
        """The whole body will say so."""

    def _headers(self) -> tuple[tuple[bytes, bytes], ...]:
        vary = (b"vary", b"Origin")
        return (vary,) if self.job.request_id is None else (vary, (b"x-request-id", self.job.request_id))

    def _fail(self) -> None:
        self.exchange.answer(refusals.engine_dead())


class StreamedAnswer(Generation):
    def __init__(self, job: Job, engine: Engine, *, left: Callable[[], None], over: Callable[[], None]) -> None:
        super().__init__(job, engine, left=left, over=over)
        choices = range(len(job.asked.prompts) * job.asked.n)
        self._openings = [b"data: " + job.shape.opening(job.identity, index) for index in choices]
        self._middle = job.shape.middle()
        self._tail = self._middle + b"}\n\n"
        self._continuous = job.asked.continuous_usage
        self._opened = False
        self._quiet = True  # since the comment timer last looked
        self._comment_timer: Timer | None = None

    def begin(self) -> None:
        # The head goes out before anything is scheduled: it says nothing about the first token.
        self.exchange.start_stream(self.job.request_id)
        self._arm_comment_timer()
        super().begin()

    def _end(self) -> None:
        if self._comment_timer is not None:
            self._comment_timer.cancel()
        super()._end()

    def send(self, event: bytes) -> None:
        """One event, one chunk, one write."""
        self._quiet = False
        self.exchange.write(b"%x\r\n%b\r\n" % (len(event), event))

    def _emit(self) -> Callable[[Sequence], None] | None:
        return self.token if self.job.asked.wishes is PLAIN else self.composed_token

    def token(self, sequence: Sequence) -> None:
        produced = sequence.produced
        if not self._opened:
            self._opened = True
            self._send_roles()
        if produced == sequence.length:
            self.send(self._last_event(sequence))
            return
        word = sequence.answer.pieces[produced - 1]
        if not self._continuous:
            self.send(self._openings[sequence.index] + word + self._tail)
            return
        usage = bodies.usage_running(sequence.prompt.tokens, produced)
        self.send(b"%b%b%b%b}\n\n" % (self._openings[sequence.index], word, self._middle, usage))

    def composed_token(self, sequence: Sequence) -> None:
        if not self._opened:
            self._opened = True
            self._send_roles()
        answer = sequence.answer
        assert isinstance(answer, ComposedAnswer)  # `_emit` chooses this way for those only
        finish = self.finish_of(sequence) if sequence.produced == sequence.length else None
        event = self.job.shape.composed(self.job.identity, sequence, answer, finish)
        if event:
            self.send(b"data: %b%b%b}\n\n" % (event, self._usage(sequence), self._fingerprint(finish)))

    def _usage(self, sequence: Sequence) -> bytes:
        """The one that stands on each event."""
        if not self._continuous:
            return b""
        return bodies.usage_running(sequence.prompt.tokens, sequence.produced, _reasoning_tokens(sequence))

    def _fingerprint(self, finish: tuple[bytes, bytes] | None) -> bytes:
        """On the last event of each choice, or on the usage event behind them all."""
        return b"," + FINGERPRINT if finish is not None and not self.job.asked.include_usage else b""

    def _send_roles(self) -> None:
        for sequence in self.sequences:
            counted = self.job.asked.wishes.parses_reasoning
            usage = bodies.usage_running(sequence.prompt.tokens, 0, 0 if counted else None) if self._continuous else b""
            role = self.job.shape.role(self.job.identity, sequence, usage)
            if role:
                self.send(wire.event(role))

    def finish_of(self, sequence: Sequence) -> tuple[bytes, bytes]:
        return bodies.finish_of(sequence, True)

    def _tell_cut_off(self, sequence: Sequence) -> None:
        if not self._opened:
            self._opened = True
            self._send_roles()
        self.send(self._last_event(sequence))

    def _last_event(self, sequence: Sequence) -> bytes:
        """The last token's own event bears the finish reason."""
        finish = self.finish_of(sequence)
        word = sequence.answer.pieces[-1] if sequence.produced == sequence.length else b""
        if word:
            event = self._openings[sequence.index] + word + self.job.shape.last_middle(*finish)
        else:
            event = b"data: " + self.job.shape.end(self.job.identity, sequence, finish, parsed=self.parses)
        return b"%b%b%b}\n\n" % (event, self._usage(sequence), self._fingerprint(finish))

    def _complete(self) -> None:
        self._send_usage()
        self.send(wire.DONE)
        self.exchange.end_stream()

    def _send_usage(self) -> None:
        job = self.job
        if not job.asked.include_usage:
            return
        prompt, completion, _, _ = self.counts()
        details = bodies.details_final(*self.details()) if job.settings.prompt_tokens_details else None
        usage = bodies.usage_final(prompt, completion, details, self.reasoning_tokens())
        self.send(wire.event(job.shape.usage_event(job.identity, usage)))

    def _fail(self) -> None:
        self.send_error(refusals.ENGINE_DEAD)

    def send_error(self, message: str, status: int = 500) -> None:
        """An error after the 200: its event, then an end like any other."""
        self.send(wire.event(refusals.error_payload(status, message, "InternalServerError")))
        self.send(wire.DONE)
        self.exchange.end_stream()

    def _arm_comment_timer(self) -> None:
        interval = self.job.settings.sse_keep_alive_seconds
        if interval is not None:
            timers = self.job.timers
            self._comment_timer = timers.call_at(timers.time() + interval, self._comment)

    def _comment(self) -> None:
        if self.engine.dead:
            return
        if self._quiet:
            self.exchange.write(wire.chunk(wire.KEEP_ALIVE_COMMENT))
        self._quiet = True
        self._arm_comment_timer()


def _reasoning_tokens(sequence: Sequence) -> int | None:
    """Those it has produced; None if nobody counts them."""
    answer = sequence.answer
    if not isinstance(answer, ComposedAnswer) or not answer.wishes.parses_reasoning:
        return None
    return answer.reasoning_tokens(sequence.produced)
