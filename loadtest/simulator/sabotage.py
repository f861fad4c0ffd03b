"""What each fault does to an answer.

Some faults take the place of the answer (`strike_first`), the others are an answer that goes wrong: the same
generation in the same engine, whose events are counted as they go out and of which one is struck. A struck
generation leaves the engine like any other that is aborted, but is not counted as left by its client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from loadtest.simulator import refusals, wire
from loadtest.simulator.connection import Exchange
from loadtest.simulator.engine import Engine, Sequence
from loadtest.simulator.faults import Fault, FaultKind, Garbage
from loadtest.simulator.generation import Job, StreamedAnswer, WholeAnswer
from loadtest.simulator.wire import Reply

_NOT_HTTP = b"\x16\x03\x01\x02\x00\x01\x00 this is not HTTP\r\n\r\n"
_BAD_CHUNK = b"zz\r\nnot the size of a chunk\r\n"
_JUNK_BODY = "<html><body>It works!</body></html>"
_JUNK_EVENT = b'data: {"id": not json\n\n'


class Victim(Protocol):
    """What can happen to a whole pod. All of these come from the event loop, never from within a step."""

    def die(self) -> None: ...

    def fall_silent(self) -> None: ...

    def engine_dies(self, exit_seconds: float | None = None) -> None: ...


def strike_pod(fault: Fault, pod: Victim) -> None:
    if fault.kind == FaultKind.DIE:
        pod.die()
    elif fault.kind == FaultKind.SILENCE:
        pod.fall_silent()
    elif fault.kind == FaultKind.ENGINE_DEATH:
        pod.engine_dies(fault.exit_seconds)


def strike_first(
    fault: Fault,
    exchange: Exchange,
    pod: Victim,
    *,
    stream: bool,
    refused: Callable[[Reply], Reply] = lambda reply: reply,
) -> bool:
    """Strike before a head is sent, if that is when this fault strikes; whether it did.

    `refused` puts vLLM's own words into those of the route's dialect.
    """
    kind = fault.kind
    if kind == FaultKind.NEVER_ANSWER:
        return True
    if kind == FaultKind.CLOSE:
        exchange.hang_up()
    elif kind == FaultKind.STATUS:
        exchange.answer(reply_for(fault) if fault.body is not None else refused(reply_for(fault)))
    elif kind == FaultKind.DRAINING:
        exchange.answer(refused(refusals.shut_down()))
    elif fault.after is not None:
        return False
    elif kind == FaultKind.RESET:
        exchange.hang_up(reset=True)
    elif kind == FaultKind.GARBAGE:
        _send_garbage(fault, exchange, stream=stream)
    elif kind in (FaultKind.DIE, FaultKind.SILENCE):
        strike_pod(fault, pod)
    else:
        return False
    return True


def strike_reply(fault: Fault, exchange: Exchange, reply: Reply) -> None:
    """The faults that go wrong in the middle, for an answer that is sent whole."""
    if fault.kind == FaultKind.STALL:
        return
    if fault.kind == FaultKind.CUT:
        exchange.cut(reply)
    elif fault.kind == FaultKind.RESET:
        exchange.hang_up(reset=True)
    else:
        exchange.answer(reply)


def strike_whole(fault: Fault, exchange: Exchange, reply: Reply, refuse: Callable[[Reply], None]) -> None:
    """What becomes of an answer that was generated and is sent whole."""
    if fault.kind == FaultKind.ERROR_EVENT:
        refuse(refusals.nested(fault.code, fault.message or refusals.ENGINE_DEAD, "InternalServerError"))
    elif fault.kind == FaultKind.GARBAGE:
        _send_garbage(fault, exchange, stream=False)
    else:
        strike_reply(fault, exchange, reply)


def reply_for(fault: Fault) -> Reply:
    """A `status` fault's answer: its own body, or what vLLM says at that status."""
    before = []
    if fault.retry_after_seconds is not None:
        before.append((b"retry-after", b"%d" % fault.retry_after_seconds))
    if fault.location is not None:
        before.append((b"location", fault.location.encode()))
    body = _usual_body(fault.status, fault.message) if fault.body is None else fault.body.encode()
    return Reply(fault.status, body, fault.content_type.encode(), tuple(before))


def _usual_body(status: int, message: str | None) -> bytes:
    if message is not None:
        kind = "InternalServerError" if status >= 500 else "BadRequestError"
        return refusals.error_body(status, message, kind)
    if status == 401:
        return refusals.unauthorized().body
    if status == 503:
        return refusals.busy().body
    if status == 404:
        return refusals.not_found().body
    if status == 500:
        return refusals.engine_dead().body
    if status < 400:
        return b""
    return refusals.error_body(status, f"simulated status {status}", "SimulatorError")


def _send_garbage(fault: Fault, exchange: Exchange, *, stream: bool) -> None:
    if fault.what == Garbage.NOT_HTTP:
        exchange.write(_NOT_HTTP)
        exchange.hang_up()
    elif fault.what == Garbage.BAD_CHUNK_SIZE:
        exchange.start_stream(None)
        exchange.write(_BAD_CHUNK)
        exchange.hang_up()
    else:
        junk = (_JUNK_BODY if fault.body is None else fault.body).encode()
        if stream:
            exchange.start_stream(None)
            exchange.write(wire.chunk(junk))
            exchange.end_stream()
        else:
            exchange.answer(Reply(200, junk))


class SabotagedStream(StreamedAnswer):
    """Counts the events it sends and strikes in place of the one after `after`."""

    def __init__(
        self,
        job: Job,
        engine: Engine,
        fault: Fault,
        pod: Victim,
        *,
        left: Callable[[], None],
        over: Callable[[], None],
    ) -> None:
        super().__init__(job, engine, left=left, over=over)
        self._fault = fault
        self._pod = pod
        self._events = 0
        self._silenced = False
        # Where no count is given: at the end for these two, at the first event for the others.
        at_the_end = fault.after is None and fault.kind in (FaultKind.NO_DONE, FaultKind.NO_FINISH)
        self._strike_at: int | None = None if at_the_end else fault.after or 0
        if fault.kind == FaultKind.DRIP:
            self._strike_at = None

    def send(self, event: bytes) -> None:
        if self._silenced:
            return
        at_done = self._fault.kind == FaultKind.NO_DONE and self.is_last(event)
        if self._events == self._strike_at or at_done:
            self._strike_at = None
            self._strike(event)
            return
        self._events += 1
        super().send(event)

    def is_last(self, event: bytes) -> bool:
        return event is wire.DONE

    def last(self) -> bytes:
        return wire.DONE

    def token(self, sequence: Sequence) -> None:
        super().token(sequence)
        self._drip(sequence)

    def composed_token(self, sequence: Sequence) -> None:
        super().composed_token(sequence)
        self._drip(sequence)

    def _drip(self, sequence: Sequence) -> None:
        fault = self._fault
        if fault.kind == FaultKind.DRIP and self._events >= (fault.after or 0):
            drip(sequence, self.engine, self.job, fault.seconds_per_token)

    def finish_of(self, sequence: Sequence) -> tuple[bytes, bytes]:
        if self._fault.kind == FaultKind.NO_FINISH:
            return b"null", b"null"
        return super().finish_of(sequence)

    def _complete(self) -> None:
        self._send_usage()
        self.send(wire.DONE)
        if not self._silenced:
            self.exchange.end_stream()

    def _strike(self, event: bytes) -> None:
        kind = self._fault.kind
        if kind == FaultKind.STALL:
            self._silenced = True
            for sequence in self.sequences:
                sequence.park_asked = True
        elif kind in (FaultKind.DIE, FaultKind.SILENCE, FaultKind.ENGINE_DEATH):
            # From the loop's next turn, since the engine is in the middle of a step.
            self._silenced = True
            self.job.timers.call_soon(lambda: strike_pod(self._fault, self._pod))
        elif kind == FaultKind.GARBAGE and self._fault.what == Garbage.JUNK_BODY:
            super().send(_JUNK_EVENT)
            super().send(event)
        elif kind == FaultKind.ERROR_EVENT:
            self.send_error(self._fault.message or refusals.ENGINE_DEAD, self._fault.code)
            self._stop()
        elif kind == FaultKind.NO_FINISH:
            super().send(self.last())
            self.exchange.end_stream()
            self._stop()
        elif kind == FaultKind.NO_DONE:
            self.exchange.end_stream()
            self._stop()
        else:
            self._break_off(event)
            self._stop()

    def _break_off(self, event: bytes) -> None:
        """End the connection where no end should be."""
        if self._fault.kind == FaultKind.CUT:
            chunk = wire.chunk(event)
            self.exchange.write(chunk[: len(chunk) // 2])
        elif self._fault.kind == FaultKind.GARBAGE:
            self.exchange.write(_BAD_CHUNK if self._fault.what == Garbage.BAD_CHUNK_SIZE else _NOT_HTTP)
        self.exchange.hang_up(reset=self._fault.kind == FaultKind.RESET)

    def _stop(self) -> None:
        self._silenced = True
        self.drop()

    def _fail(self) -> None:
        self._silenced = False
        self._strike_at = None
        super()._fail()


class SabotagedWhole(WholeAnswer):
    """The same for an answer without a stream, where `after` counts tokens."""

    def __init__(
        self,
        job: Job,
        engine: Engine,
        fault: Fault,
        pod: Victim,
        *,
        left: Callable[[], None],
        over: Callable[[], None],
    ) -> None:
        super().__init__(job, engine, left=left, over=over)
        self._fault = fault
        self._pod = pod
        self.finishes = fault.kind != FaultKind.NO_FINISH

    def _emit(self) -> Callable[[Sequence], None] | None:
        return self._token

    def _token(self, sequence: Sequence) -> None:
        fault = self._fault
        if sequence.produced < max(fault.after or 0, 1):
            return
        if fault.kind == FaultKind.STALL:
            sequence.park_asked = True
        elif fault.kind == FaultKind.DRIP:
            drip(sequence, self.engine, self.job, fault.seconds_per_token)
        elif fault.kind in (FaultKind.DIE, FaultKind.SILENCE, FaultKind.ENGINE_DEATH):
            sequence.park_asked = True
            self.job.timers.call_soon(lambda: strike_pod(fault, self._pod))

    def send(self, reply: Reply) -> None:
        strike_whole(self._fault, self.exchange, reply, self.refuse)

    def refuse(self, reply: Reply) -> None:
        self.exchange.answer(reply)


def drip(sequence: Sequence, engine: Engine, job: Job, seconds: float) -> None:
    """Take the sequence out of the steps and give it its next token later."""
    if sequence.produced < sequence.length:
        sequence.park_asked = True
        job.timers.call_at(job.timers.time() + seconds, lambda: engine.nudge(sequence))
