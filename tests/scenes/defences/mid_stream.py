"""What a gateway does against pods that break off, stall or lie inside a stream."""

import json
from math import inf

from httptools import HttpResponseParser

from gateway.balancing.balancer import Lease
from gateway.core.call import Call, Outcome, Usage
from gateway.core.fleet import Deadlines
from gateway.limits.admission import Admission, Reservation
from gateway.pipeline.forward import Forwarder, Request
from gateway.pipeline.quarantine import Mark
from gateway.pipeline.relay import Content, Ended, Large, Relay, StreamRelay, Whole
from gateway.upstream.connection import Loss, PodConnection
from gateway.upstream.pool import PodPool, Pools
from gateway.upstream.sse import EventFramer
from gateway.upstream.usage import ChoicesReader
from tests.scenes.defences.before_the_first_byte import waiting
from tests.scenes.defences.replacing import but, having
from tests.scenes.scene import Defence


class _Credulous(StreamRelay):
    """Takes every end for a good one."""

    __slots__ = ()

    def _cut(self, error: Exception) -> None:
        self.end(Ended(b"", None))


STREAM_JUDGEMENT = Defence(
    "stream_judgement",
    "A stream is whole when each choice has its finish reason and [DONE] has come; any other end is told as an error.",
    having(forwarder=but(Forwarder, stream_relays=_Credulous)),
)


class _Decodes(StreamRelay):
    """Reads text where there are bytes."""

    __slots__ = ()

    def body_received(self, data: bytes) -> None:
        super().body_received(data.decode("utf-8", "replace").encode())


BYTES_UNCHANGED = Defence(
    "bytes_unchanged",
    "Events are cut from bytes and passed on as they are; nothing is decoded.",
    having(forwarder=but(Forwarder, stream_relays=_Decodes)),
)


class _EndsSilently(StreamRelay):
    """Lets a stream end as its connection does."""

    __slots__ = ()

    def answer_lost(self, loss: Loss) -> None:
        if self.first.done():
            self.end(Ended(b"", None))
        else:
            super().answer_lost(loss)


CUTS_ARE_TOLD = Defence(
    "cuts_are_told",
    "A connection that ends inside a stream is told to the client as an error event, in the operation's own words.",
    having(forwarder=but(Forwarder, stream_relays=_EndsSilently)),
)


class _Uncut(EventFramer):
    __slots__ = ()

    def feed_run(self, data: bytes) -> None:
        return None

    def feed(self, data: bytes) -> list[bytes]:
        return [data]


class _PassesPieces(StreamRelay):
    """Passes on what a read brings."""

    __slots__ = ()
    framer = _Uncut


WHOLE_EVENTS = Defence(
    "whole_events",
    "Only whole events go out: an unfinished one waits, and is dropped at a cut.",
    having(forwarder=but(Forwarder, stream_relays=_PassesPieces)),
)


class _TakesCloseForEnd(Relay):
    __slots__ = ()

    def answer_ended(self, by_close: bool) -> None:
        super().answer_ended(by_close=False)


UNMEASURED_ENDS = Defence(
    "unmeasured_ends",
    "A large answer that ends by its pod's close may be cut: the client's connection is broken, never ended cleanly.",
    having(forwarder=but(Forwarder, relays=_TakesCloseForEnd)),
)


class _StartsAgain(Forwarder):
    """Sends a request again whose answer broke, though the client has a part of it."""

    def _begun(self, first: Whole | Large | Content, relay: Relay, lease: Lease, request: Request) -> Mark:
        call = request.call._replace(body=list(request.call.body))
        return super()._begun(first, relay, lease, request._replace(call=call))

    async def _relay_to_its_end(
        self, first: Large | Content, relay: Relay, lease: Lease, pool: PodPool, request: Request, mark: Mark
    ) -> None:
        await super()._relay_to_its_end(first, relay, lease, pool, request, mark)
        trail = request.visit.trail
        if trail.outcome is Outcome.TRUNCATED and trail.attempts == 1:
            await self.to_model(request)


NO_NEW_BEGINNING = Defence(
    "no_new_beginning",
    "A request whose answer has begun is not sent again.",
    having(forwarder=_StartsAgain),
)


IDLE_DEADLINE = Defence(
    "idle_deadline",
    "A pod has so long from one event to the next.",
    waiting(idle_seconds=inf),
)


class _HearsComments(StreamRelay):
    __slots__ = ()

    @property
    def events(self) -> int:
        return super().events + self._comments


SILENT_COMMENTS = Defence(
    "silent_comments",
    "Comments feed no deadline.",
    having(forwarder=but(Forwarder, stream_relays=_HearsComments)),
)


class _CountsFromTheFirst(StreamRelay):
    """Takes the time between two events for that of all."""

    __slots__ = ()

    def _emit(self, out: list[bytes]) -> None:
        super()._emit(out)
        self._total_deadline = min(self._total_deadline, self._clock() + self._idle_seconds)


IDLE_ANEW = Defence(
    "idle_anew",
    "Each event gives the next one its whole time.",
    having(forwarder=but(Forwarder, stream_relays=_CountsFromTheFirst)),
)


class _AddsItsOwn(StreamRelay):
    __slots__ = ()

    def end(self, ended: Ended) -> None:
        super().end(ended._replace(said=False))


ONE_ERROR = Defence(
    "one_error",
    "Where the pod has told of an error itself, ours is not added.",
    having(forwarder=but(Forwarder, stream_relays=_AddsItsOwn)),
)


class _TakesErrorsForText(StreamRelay):
    __slots__ = ()

    def _judge_end(self, event: bytes) -> None:
        if self._pod_error is not None:
            self.end(Ended(event, None))
        else:
            super()._judge_end(event)


POD_ERRORS = Defence(
    "pod_errors",
    "A stream in which the pod tells of an error has failed, and weighs on the pod, however it ends.",
    having(forwarder=but(Forwarder, stream_relays=_TakesErrorsForText)),
)


class _GoesOn(PodConnection):
    """Keeps a connection on which junk has come."""

    __slots__ = ()

    def _lose(self, loss: Loss) -> None:
        receiver = self._receiver
        if loss is not Loss.JUNK or receiver is None:
            super()._lose(loss)
            return
        self._receiver = None
        self._parser = HttpResponseParser(self)
        self._begin()
        self._on_idle(self)
        receiver.answer_lost(loss)


JUNK_IS_LEFT = Defence(
    "junk_is_left",
    "A connection on which something came that is not HTTP is closed at once.",
    having(pools=but(Pools, connection=_GoesOn)),
)


class _HoldsAnyEvent(StreamRelay):
    __slots__ = ()
    max_tail_bytes = 1 << 40


EVENT_BOUND = Defence(
    "event_bound",
    "Of an unfinished event 1 MiB is held at most.",
    having(forwarder=but(Forwarder, stream_relays=_HoldsAnyEvent)),
)


EVENT_BUDGET = Defence(
    "event_budget",
    "Of all streams' unfinished events together 128 MiB are held at most.",
    having(forwarder=but(Forwarder, max_tail_bytes=1 << 40)),
)


class _CountsWhatIsTold(Forwarder):
    def _note_usage(self, relay: Relay, request: Request) -> None:
        super()._note_usage(relay, request)
        trail = request.visit.trail
        if trail.usage is not None and trail.usage.estimated:
            trail.usage = None


ESTIMATED_USAGE = Defence(
    "estimated_usage",
    "An answer whose pod does not tell its usage, or whose client leaves, is charged by what was seen of it.",
    having(forwarder=_CountsWhatIsTold),
)


class _NeverSettles(Admission):
    def settle(self, reservation: Reservation) -> None:
        costs = reservation.costs
        self._store.settle(reservation.taken, reservation.plan.buckets, costs, costs)


SETTLEMENT = Defence(
    "settlement",
    "At its end a request's reservation is made what it used.",
    having(admission=_NeverSettles),
)


class _Believing(ChoicesReader):
    __slots__ = ()

    def usage(self) -> Usage | None:
        told = json.loads(bytes(self._raw_usage or b"{}"))
        return Usage(told["prompt_tokens"], told["completion_tokens"])


class _Reads(Forwarder):
    """Reads streams with a reader of its own."""

    reader: type[ChoicesReader]

    def _relay(self, request: Request, deadlines: Deadlines) -> Relay:
        relay = super()._relay(request, deadlines)
        relay.reader = self.reader(request.call.choices)
        return relay


class _BelievesInUsage(_Reads):
    reader = _Believing

    def _is_a_lie(self, usage: Usage, call: Call) -> bool:
        return False


PLAUSIBLE_USAGE = Defence(
    "plausible_usage",
    "A usage that cannot be is as good as none.",
    having(forwarder=_BelievesInUsage),
)


class _EasilyPleased(ChoicesReader):
    __slots__ = ()

    @property
    def whole(self) -> bool:
        return bool(self.finished)


EACH_CHOICE = Defence(
    "each_choice",
    "A stream is whole when each choice that was asked for is finished: `n` of them for each prompt.",
    having(forwarder=but(_Reads, reader=_EasilyPleased)),
)
