"""Carries one answer from a pod to a client, without anything waking for its chunks.

A relay is the receiver of one attempt. The coroutine in `serve` awaits two moments: `first`, which is the first
content event, a whole answer or a failure (so that the 200 is committed, or the attempt repeated, by plain code),
and `ended`. In between, whatever whole events one read of the pod completes go out in one write of the client's
transport. Pausing one side pauses the other.

The relay writes no ending: the closing event and the usage event are held until the stream is judged, and what was
held comes with `Ended`, for `serve` to send.

Nothing of a pod's head reaches a client but what stands in `_kept`. What is no answer to what was asked for is junk as
soon as its head tells, and its connection is not used again.
"""

import asyncio
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from gateway.core.errors import (
    PoolgateError,
    StreamReset,
    StreamStalled,
    StreamTruncated,
    UpstreamBadResponse,
    UpstreamDisconnected,
    UpstreamFailed,
    UpstreamTimeout,
    UpstreamTtftTimeout,
)
from gateway.core.fleet import Deadlines
from gateway.core.made import maker
from gateway.pipeline.errand import Moment
from gateway.pipeline.exchange import Exchange, Headers
from gateway.upstream.connection import AnswerHead, Loss, PodConnection, Receiver
from gateway.upstream.failure import Failure
from gateway.upstream.passage import Passage
from gateway.upstream.refusal import first_event_error, refusal
from gateway.upstream.sse import EventFramer, cut_run, payload
from gateway.upstream.usage import AnswerReader, EventKind, EventReader

CLOSING_EVENTS = 3
"""The last token, the usage and the end mark: they may come with the tokens before them."""
KEEP_ALIVE = b": keep-alive\n"
"""A comment in the form every SDK survives: one line end, not two."""


class TailBudget:
    """What all streams together may hold of unfinished events."""

    __slots__ = ("left",)

    def __init__(self, limit_bytes: int) -> None:
        self.left = limit_bytes


class Failed(NamedTuple):
    """The attempt failed with nothing shown to the client; `error` is the answer if there is no further one."""

    failure: Failure
    error: PoolgateError


class Whole(NamedTuple):
    """An answer that is not a stream, complete."""

    body: bytes
    content_type: bytes
    headers: "Headers"


_whole = maker(Whole)


class Large(NamedTuple):
    """An answer that is not a stream and passes `max_whole_bytes`: it goes through as it comes."""

    length: int | None
    content_type: bytes
    headers: "Headers"


class Content:
    """A stream's first content event is in."""

    __slots__ = ()


CONTENT = Content()


class Ended(NamedTuple):
    """A committed answer is over. `held`: bytes that still belong to the client. `error` None: it is whole."""

    held: bytes
    error: PoolgateError | None
    said: bool = False
    """The pod's own error event was relayed: ours is not added."""


First = Failed | Whole | Large | Content

_FAILURES = {Loss.STALE: Failure.STALE, Loss.CUT: Failure.RESET, Loss.RESET: Failure.RESET}
_JSON = b"application/json"
_EVENTS = (b"text/event-stream",)
_DESCRIPTION = b"metadata"


class Relay(Receiver):
    """An answer that is not a stream. `first` and `ended` are the two moments; neither ever holds an exception."""

    max_whole_bytes: ClassVar[int] = 1 << 20
    """An answer is held whole up to here, so that a cut can be told, or tried again."""
    kept_ending_bytes: ClassVar[int] = 4096
    """What is kept of the end of an answer too large to be held: its usage stands there."""

    __slots__ = (
        "_accepted",
        "_clock",
        "_deadline",
        "_ended",
        "_ending",
        "_exchange",
        "_head",
        "_held",
        "_paused",
        "body_bytes",
        "connection",
        "first",
        "first_content_at",
        "reader",
        "sent_at",
    )

    def __init__(
        self,
        reader: AnswerReader,
        deadline: float,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        accepted: tuple[bytes, ...] = (_JSON,),
    ) -> None:
        self.reader = reader
        self.connection: PodConnection | None = None
        """Set by who sends the request; paused while the client is slow."""
        self._clock = clock
        self._deadline = deadline
        self._accepted = accepted
        self._exchange: Exchange | None = None
        self._head: AnswerHead | None = None
        self._held: list[bytes] = []
        self._paused = False
        self.body_bytes = 0
        """So much has come of an answer; of a stream, before it was passed on."""
        self.sent_at = 0.0
        """When the request left for the pod."""
        self.first_content_at: float | None = None
        self.first: Moment[First] = Moment(loop)
        self._ended: Moment[Ended] | None = None

    @property
    def ended(self) -> Moment[Ended]:
        """Made when it is first asked for: of an answer that is held whole nobody asks."""
        ended = self._ended
        if ended is None:
            ended = self._ended = Moment(self.first.get_loop())
        return ended

    def commit(self, exchange: Exchange) -> None:
        """The answer's head is on its way: send what is held, and from now on what comes."""
        self._exchange = exchange
        exchange.source = self
        if exchange.paused:
            self.pause()
        held, self._held = b"".join(self._held), []
        self._ending = held[-self.kept_ending_bytes :]
        if held:
            exchange.write(held)

    def fail(self, failure: Failure, error: PoolgateError) -> None:
        """End the attempt: before the first moment for another try, after it with the error."""
        if failure is Failure.JUNK:
            self._forsake()
        if not self.first.done():
            self.first.set_result(Failed(failure, error))
        else:
            self.end(Ended(b"", error))

    def end(self, ended: Ended) -> None:
        """The answer is over."""
        if not self.ended.done():
            self.ended.set_result(ended)

    def _forsake(self) -> None:
        """Close the connection: what came there is not to be trusted. Called while the exchange runs, or as it ends."""
        if self.connection is not None:
            self.connection.abort()

    def discard(self) -> None:
        """Let go of everything: the relay is not used afterwards, and no cycle keeps it."""
        if self._exchange is not None:
            self._exchange.source = None
        self._exchange = self.connection = None

    def sweep(self, now: float) -> bool:
        """Called about four times a second. Whether content has come since the last time."""
        if now >= self._deadline:
            self.fail(Failure.TIMEOUT, UpstreamTimeout("the answer was not complete in time"))
        return False

    @property
    def paused(self) -> bool:
        """The client is slow: that nothing comes says nothing of the pod."""
        return self._paused

    # The client's side, as a Source.

    def pause(self) -> None:
        self._paused = True
        if self.connection is not None:
            self.connection.pause(self)

    def resume(self) -> None:
        self._paused = False
        if self.connection is not None:
            self.connection.resume(self)

    # The connection's callbacks.

    def whole_received(self, content_type: bytes, body: bytes) -> bool:
        # Nearly every answer that is no stream comes so: what the parts below would make of it, in one step.
        first, size = self.first, len(body)
        if (
            content_type != _JSON
            or _JSON not in self._accepted
            or size > self.max_whole_bytes
            or first.done()
            or not self.reader.read_whole(body)
        ):
            return False
        self.body_bytes = size
        first.bring(_whole((body, _JSON, ())))
        return True

    def head_received(self, head: AnswerHead) -> None:
        self._head = head
        if head.status == 200:
            if not self._accepts(head):
                self.fail(Failure.JUNK, UpstreamBadResponse("the pod's answer is not of the kind that was asked for"))
        elif 300 <= head.status < 400:
            self.fail(*refusal(head.status, b""))

    def body_received(self, data: bytes) -> None:
        self.body_bytes += len(data)
        if self._exchange is not None:
            kept = self.kept_ending_bytes
            self._ending = (self._ending + data)[-kept:] if len(data) < kept else data
            self._exchange.write(data)
            return
        self._held.append(data)
        if self.body_bytes > self.max_whole_bytes and not self.first.done():
            head = self._head
            if head is not None and head.status == 200 and self._accepted is not _EVENTS:
                self.first.set_result(Large(head.content_length, head.content_type, self._kept(head)))
            else:
                self.fail(Failure.JUNK, UpstreamBadResponse("the pod's answer is too large for what it is"))

    def answer_ended(self, by_close: bool) -> None:
        if not self.first.done():
            first = self._judge(b"".join(self._held))
            if not isinstance(first, Failed):
                self.first.bring(first)
                return
            self.fail(*first)
        elif not by_close and self._head is not None:
            described = self._head.fields.get(_DESCRIPTION) if self._head.content_type != _JSON else None
            # It may end in the very read that made it too large to be held, or behind a client that is leaving.
            ending = self._ending if self._exchange is not None else b"".join(self._held)
            self.reader.read_ending(described or ending[-self.kept_ending_bytes :])
        # Nothing tells whether a body that ends by a close is whole, and one this large is not read.
        self.end(Ended(b"", StreamTruncated("the pod closed inside its answer") if by_close else None))

    def answer_lost(self, loss: Loss) -> None:
        if not self.first.done():
            if loss is Loss.JUNK:
                self.fail(Failure.JUNK, UpstreamBadResponse("the pod's answer is not valid HTTP"))
            else:
                self.fail(_FAILURES[loss], UpstreamDisconnected("the pod closed the connection before its answer"))
        elif loss is Loss.JUNK:
            self.end(Ended(b"", UpstreamFailed("the pod's answer stopped being valid HTTP")))
        elif loss is Loss.RESET:
            self.end(Ended(b"", StreamReset("the pod's connection broke inside its answer")))
        else:
            self.end(Ended(b"", StreamTruncated("the pod closed inside its answer")))

    def _judge(self, body: bytes) -> First:
        head = self._head
        if head is None:
            return Failed(Failure.JUNK, UpstreamBadResponse("the pod's answer has no head"))
        if head.status != 200:
            return Failed(*refusal(head.status, body, head.fields.get(b"retry-after")))
        if head.content_type != _JSON:
            self.reader.read_ending(head.fields.get(_DESCRIPTION, b""))
            return Whole(body, head.content_type, self._kept(head))
        if not self.reader.read_whole(body):
            return Failed(Failure.JUNK, UpstreamBadResponse("the pod's answer is not valid JSON"))
        return _whole((body, _JSON, ()))

    def _accepts(self, head: AnswerHead) -> bool:
        """Whether the head of a 200 promises what was asked for."""
        return head.content_type in self._accepted and (b"content-encoding" not in head.fields or not head.is_encoded)

    def _kept(self, head: AnswerHead) -> Headers:
        """The one header of a pod's that belongs to its answer: embeddings as bytes are described in it, usage and all.

        In JSON, as vLLM writes it: in ASCII.
        """
        described = head.fields.get(_DESCRIPTION) if head.content_type != _JSON else None
        return () if described is None or not described.isascii() else ((_DESCRIPTION, described),)


class StreamRelay(Relay):
    """A stream of events. What comes with another status is collected and judged as a whole answer."""

    framer: ClassVar[type[EventFramer]] = EventFramer
    max_tail_bytes: ClassVar[int] = 1 << 20
    """The most of an unfinished event, and of the events before the first content, that a stream may hold."""
    small_tail_bytes: ClassVar[int] = 4096
    """As much it may hold even when all together hold too much: some 40 MiB with as many streams as there may be."""

    __slots__ = (
        "_budget",
        "_comments",
        "_end_mark",
        "_events",
        "_framer",
        "_idle_seconds",
        "_pod_error",
        "_quiet_since",
        "_streaming",
        "_swept_events",
        "_tail",
        "_total_deadline",
        "_usage_event",
        "_wants_usage",
    )
    reader: EventReader

    def __init__(
        self,
        reader: EventReader,
        deadlines: Deadlines,
        received_at: float,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        *,
        wants_usage: bool,
        end_mark: bytes,
        budget: TailBudget,
    ) -> None:
        super().__init__(reader, received_at + deadlines.ttft_seconds, clock, loop, _EVENTS)
        self._end_mark = end_mark
        self._total_deadline = received_at + deadlines.stream_seconds
        self._idle_seconds = deadlines.idle_seconds
        self._wants_usage = wants_usage
        self._budget = budget
        self._framer = self.framer()
        self._streaming = False
        self._tail = 0
        self._events = 0
        self._comments = 0
        self._swept_events = -1
        self._quiet_since = 0.0
        self._usage_event = b""
        self._pod_error: PoolgateError | None = None

    @property
    def events(self) -> int:
        """Events of the pod's so far, comments left out."""
        return self._events + self.reader.content_events

    @property
    def sent(self) -> int:
        """Another number whenever something was passed on."""
        return self.events + self._comments

    def sweep(self, now: float) -> bool:
        if not self.first.done():
            if now >= self._deadline:
                self.fail(Failure.TIMEOUT, UpstreamTtftTimeout("no token came in time"))
        elif now >= self._total_deadline:
            self.end(Ended(b"", UpstreamTimeout("the stream lasted longer than it may")))
        elif (events := self.events) != self._swept_events:
            self._swept_events = events
            self._quiet_since = now
            return True
        elif self._paused:
            self._quiet_since = now
        elif now - self._quiet_since >= self._idle_seconds:
            self.end(Ended(b"", StreamStalled(f"the pod sent nothing for {self._idle_seconds:g} s")))
        return False

    def head_received(self, head: AnswerHead) -> None:
        super().head_received(head)
        self._streaming = head.status == 200
        if self._streaming:
            # All has been asked of it. Of ten thousand streams each keeps for long what it keeps now.
            self._head = None
            if self.connection is not None:
                self.connection.acknowledge_seldom()

    def commit(self, exchange: Exchange) -> None:
        super().commit(exchange)
        self._ending = b""

    def body_received(self, data: bytes) -> None:
        if not self._streaming:
            super().body_received(data)
            return
        if self._ended is not None and self._ended.done():
            self._overrun()
            return
        exchange, reader = self._exchange, self.reader
        # Inside an event nothing is plain, whatever it looks like.
        if exchange is not None and not self._tail and reader.may_skip:
            found = reader.plain.fullmatch(data)
            if found is not None:
                # One more token, as nearly every read brings; the next one need not come by here.
                reader.content_events += 1
                exchange.write(data)
                if exchange.write_chunk is not None and self.connection is not None:
                    self.connection.offer_passage(self, Passage(found[1], reader, exchange))
                return
        framer = self._framer
        run = framer.feed_run(data)
        events = framer.feed(data) if run is None else []
        tail = len(framer.tail)
        if tail != self._tail:
            self._hold_tail(tail)
        if run:
            self._take_run(run)
        elif events:
            self._take(events)

    def _overrun(self) -> None:
        """Bytes behind the stream's end: they are nobody's, and who knows what follows them."""
        self._forsake()

    def answer_ended(self, by_close: bool) -> None:
        if not self._streaming:
            super().answer_ended(by_close)
            return
        if self._ended is not None and self._ended.done():
            # Its events have told so.
            return
        self._take(self._framer.close())
        self._cut(StreamTruncated("the pod ended the stream before the answer was whole"))

    def answer_lost(self, loss: Loss) -> None:
        self._hold_tail(0)
        if self._pod_error is not None:
            self._cut(self._pod_error)
        else:
            super().answer_lost(loss)

    def _take_run(self, run: bytes) -> None:
        """Pass on these events, unread if they are plain; all but those that close a stream, if it ends here."""
        exchange, reader = self._exchange, self.reader
        if exchange is not None and reader.may_skip and not self.ended.done():
            plain, rest = run, b""
            count = reader.plain.count(plain)
            if not count and len(parts := run.rsplit(b"\n\n", CLOSING_EVENTS + 1)) == CLOSING_EVENTS + 2:
                plain = parts[0] + b"\n\n"
                rest = run[len(plain) :]
                count = reader.plain.count(plain)
            if count:
                reader.content_events += count
                exchange.write(plain)
                run = rest
        self._take(cut_run(run))

    def _take(self, events: list[bytes]) -> None:
        """Pass on what these events are for the client, in one write."""
        if self.ended.done():
            return
        out: list[bytes] = []
        read = self.reader.read_event
        for event in events:
            kind = read(event)
            if kind is _CONTENT:
                out.append(event)
                if self.first_content_at is None:
                    self.first_content_at = self._clock()
            elif kind is _COMMENT:
                if self.first_content_at is not None:
                    self._comments += 1
                    out.append(KEEP_ALIVE)
            elif kind is _USAGE:
                self._events += 1
                self._usage_event = event
            elif kind is _DONE or kind is _LAST:
                self._emit(out)
                if kind is _LAST:
                    self._begin_at_the_end()
                self._judge_end(event)
                if event is not events[-1] or self._framer.tail:
                    self._overrun()
                return
            elif kind is _ERROR:
                self._events += 1
                if self.first_content_at is None:
                    self._refuse(event)
                    return
                self._pod_error = UpstreamFailed("the pod reported an error in its stream")
                out.append(event)
            else:
                self._events += 1
                out.append(event)
        self._emit(out)

    def _emit(self, out: list[bytes]) -> None:
        if not out:
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        if self._exchange is not None:
            self._exchange.write(data)
            return
        self._held.append(data)
        self.body_bytes += len(data)
        if self.first_content_at is not None:
            if not self.first.done():
                self.first.set_result(CONTENT)
        elif self.body_bytes > self.max_tail_bytes:
            self.fail(Failure.JUNK, UpstreamBadResponse("the pod sent events but no content"))

    def _begin_at_the_end(self) -> None:
        """The closing event is an answer, even an empty one."""
        if self.reader.error is not None:
            self._pod_error = UpstreamFailed("the pod reported that its answer failed")
        if not self.first.done():
            self.first_content_at = self._clock()
            self.first.set_result(CONTENT)

    def _judge_end(self, event: bytes) -> None:
        if self._pod_error is not None:
            self.end(Ended(event, self._pod_error, said=True))
        elif self.reader.whole and self.first_content_at is not None:
            self.end(Ended(self._usage_event + event if self._wants_usage else event, None))
        else:
            self._cut(StreamTruncated("the pod ended the stream without a finish reason"))

    def _cut(self, error: PoolgateError) -> None:
        """The stream is over and not whole."""
        if self._pod_error is not None:
            self.end(Ended(self._end_mark, self._pod_error, said=True))
        elif self.first_content_at is None:
            self.fail(Failure.RESET, UpstreamDisconnected("the pod ended its stream before the first token"))
        else:
            self.end(Ended(b"", error))

    def _refuse(self, event: bytes) -> None:
        """An error as first event: a true status, or another attempt."""
        pod_error = self.reader.error
        if pod_error is not None and not self.first.done():
            self.first.set_result(Failed(*first_event_error(payload(event) or b"", pod_error)))

    def _hold_tail(self, tail: int) -> None:
        """Account for the unfinished event; one that grows past its bounds ends the stream."""
        self._budget.left += self._tail - tail
        self._tail = tail
        # One that waits for the rest of a usual event is not to blame for what others hold.
        if tail > self.max_tail_bytes or (self._budget.left < 0 and tail > self.small_tail_bytes):
            error = UpstreamFailed("the pod sent an event too large to hold")
            if self.first_content_at is None:
                self.fail(Failure.JUNK, UpstreamBadResponse(error.message))
            else:
                self.end(Ended(b"", error))

    def discard(self) -> None:
        self._hold_tail(0)
        super().discard()


_CONTENT, _USAGE, _ERROR = EventKind.CONTENT, EventKind.USAGE, EventKind.ERROR
_DONE, _LAST, _COMMENT = EventKind.DONE, EventKind.LAST, EventKind.COMMENT
