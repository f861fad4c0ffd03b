"""What the gateway does against faults, each as a value: its name, what it does, and how to build a gateway without it.

A defence is removed by a class that lacks it, or by a bound without an end: by what `Parts` takes, never by changing a
module. What replaces it is what a careless gateway would do.
"""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import sha1, sha256
from hmac import compare_digest
from ipaddress import ip_network
from math import inf
from posixpath import normpath
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit
from weakref import WeakSet

import msgspec
from httptools import HttpResponseParser
from redis.asyncio.connection import AbstractConnection

from gateway.balancing.affinity import PrefixIndex
from gateway.balancing.balancer import Balancer, Blame, Lease, Seat
from gateway.balancing.health import PoolHealth
from gateway.balancing.policy import Choice, Wish
from gateway.config.faults import ConfigError
from gateway.config.whole import Config
from gateway.core.call import Call, Outcome, Trail, Usage
from gateway.core.caller import Tenant
from gateway.core.clock import Clock
from gateway.core.errors import (
    InvalidApiKey,
    InvalidJson,
    InvalidRequest,
    NotFound,
    PodRefusal,
    PoolgateError,
    UpstreamFailed,
)
from gateway.core.fleet import Deadlines, Model, Pod, Route
from gateway.core.ports import FetchFailed
from gateway.discovery.kubernetes import Cluster, KubernetesSource, Namespace
from gateway.discovery.models import Listing
from gateway.discovery.pods import Network
from gateway.discovery.reflector import ApiFailed, Reflector
from gateway.discovery.roster import Roster
from gateway.discovery.rounds import Rounds
from gateway.discovery.source import Sighting, Source
from gateway.edge.protocol import ClientConnection, Edge
from gateway.edge.room import Room
from gateway.limits import redis_store
from gateway.limits.admission import Admission, Reservation
from gateway.limits.bucket import DAY, MINUTE, Bucket, Costs, Taken
from gateway.limits.keys import KeyRing
from gateway.limits.memory_store import MemoryStore
from gateway.limits.redis_store import RedisStore
from gateway.limits.store import Store
from gateway.parts import Parts
from gateway.pipeline.body import members
from gateway.pipeline.cors import Origins
from gateway.pipeline.exchange import Exchange, Head
from gateway.pipeline.forward import Forwarder, Request
from gateway.pipeline.intake import GUARDED_FIELDS, Look, look
from gateway.pipeline.operations import CHAT, Operation
from gateway.pipeline.overload import Overload
from gateway.pipeline.quarantine import Mark, Quarantine
from gateway.pipeline.reception import Reception, Visit
from gateway.pipeline.relay import Content, Ended, Failed, First, Large, Relay, StreamRelay, Whole
from gateway.pipeline.retries import BLAME, Again, Retries
from gateway.pipeline.serve import Pipeline
from gateway.reload import Followed, FollowedConfig, Reload
from gateway.telemetry.access_log import AccessLog, Told
from gateway.telemetry.exposition import KEEP_SECONDS, Exposition
from gateway.telemetry.metrics import Metrics
from gateway.upstream.connection import AnswerHead, Loss, PodConnection, Receiver
from gateway.upstream.failure import Failure
from gateway.upstream.headers import request_head
from gateway.upstream.pool import PodPool, Pools
from gateway.upstream.sse import EventFramer
from gateway.upstream.usage import ChoicesReader
from tests.discovering import QUICK
from tests.scenes.scene import Defence
from tests.stores import BRISK

# --- Pods, before the first byte.


def _forwarding(**kinds: object) -> Callable[[Parts], Parts]:
    """Gateways whose forwarder has these in the place of its own."""
    forwarder = type("_Forwards", (Forwarder,), kinds)
    return lambda usual: usual._replace(forwarder=forwarder)


class _WaitsForEver(Forwarder):
    def _relay(self, request: Request, deadlines: Deadlines) -> Relay:
        return super()._relay(request, replace(deadlines, ttft_seconds=inf))


TTFT_DEADLINE = Defence(
    "first_token_deadline",
    "A pod has so long for the first token, from the moment the request was whole.",
    lambda usual: usual._replace(forwarder=_WaitsForEver),
)


class _WaitsForTheWhole(Forwarder):
    def _relay(self, request: Request, deadlines: Deadlines) -> Relay:
        return super()._relay(request, replace(deadlines, response_seconds=inf))


RESPONSE_DEADLINE = Defence(
    "response_deadline",
    "A pod has so long for the whole of an answer that is not a stream.",
    lambda usual: usual._replace(forwarder=_WaitsForTheWhole),
)


class _TriesAnything(Retries):
    """Once more, whatever it was, as long as there is another pod."""

    def again(self, failure: Failure, uid: str, budget_left: bool) -> Again | None:
        self.excluded.add(uid)
        return Again.OTHER_POD


FEW_TRIES = Defence(
    "few_tries",
    "What has reached a pod is sent once more at most, and only after a failure that is not the request's own.",
    _forwarding(retries=_TriesAnything),
)


class _NeverTwice(Retries):
    def again(self, failure: Failure, uid: str, budget_left: bool) -> Again | None:
        return super().again(failure, uid, False)


SECOND_TRY = Defence(
    "second_try",
    "What a pod broke off, or was too busy for, before a byte was shown goes to another pod, once.",
    _forwarding(retries=_NeverTwice),
)


class _StopsAtOne(Retries):
    max_connects = 0


PASSED_OVER = Defence(
    "passed_over",
    "A pod that takes no connection costs nothing: two more are tried.",
    _forwarding(retries=_StopsAtOne),
)


class _CountsConnects(Retries):
    def again(self, failure: Failure, uid: str, budget_left: bool) -> Again | None:
        return super().again(failure, uid, budget_left) if budget_left else None


FREE_CONNECTS = Defence(
    "free_connects",
    "A connection that was not made draws on no budget: no pod has worked for it.",
    _forwarding(retries=_CountsConnects),
)


class _WaitsForTheKernel(Pools):
    def use(self, *, connect_seconds: float, idle_seconds: float, api_key: str | None) -> None:
        super().use(connect_seconds=130.0, idle_seconds=idle_seconds, api_key=api_key)


CONNECT_DEADLINE = Defence(
    "connect_deadline",
    "A connection is there within a second, or the pod is passed over.",
    lambda usual: usual._replace(pools=_WaitsForTheKernel),
)


WHOSE_FAULT = Defence(
    "whose_fault",
    "A 500 weighs on its pod only if something speaks against the pod; to be busy is no fault.",
    _forwarding(blame={**BLAME, Failure.SERVER_ERROR: Blame.POD, Failure.BUSY: Blame.POD}),
)


REST = Defence(
    "rest",
    "A pod that says it is busy rests for as long as it says, five seconds at most.",
    _forwarding(blame={**BLAME, Failure.BUSY: Blame.NONE}),
)


class _TakesStaleForJunk(Forwarder):
    async def _attempt(
        self,
        lease: Lease,
        pool: PodPool,
        connection: PodConnection | None,
        request: Request,
        deadlines: Deadlines,
    ) -> Failed | None:
        failed = await super()._attempt(lease, pool, connection, request, deadlines)
        stale = failed is not None and failed.failure is Failure.STALE
        return failed._replace(failure=Failure.JUNK) if failed is not None and stale else failed


STALE_RETRY = Defence(
    "stale_retry",
    "A reused connection that dies without a byte is no failure: once more, on a fresh one.",
    lambda usual: usual._replace(forwarder=_TakesStaleForJunk),
)


class _Forgetful(Quarantine):
    def died(self, mark: Mark, uid: str, now: float) -> None:
        """Nothing was learned."""


class _WithoutQuarantine(Forwarder):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._quarantine = _Forgetful()


QUARANTINE = Defence(
    "quarantine",
    "A request that two pods died of is not sent to a third.",
    lambda usual: usual._replace(forwarder=_WithoutQuarantine),
)


class _Follows(Relay):
    """Goes where the pod says, as clients of HTTP do."""

    __slots__ = ("going",)

    def head_received(self, head: AnswerHead) -> None:
        if (to := head.fields.get(b"location")) is not None:
            url = urlsplit(to.decode())
            self.going = asyncio.create_task(_get(url.hostname or "", url.port or 80, url.path))
        super().head_received(head)


async def _get(host: str, port: int, path: str) -> None:
    _, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
    await writer.drain()
    writer.close()


NO_REDIRECTS = Defence(
    "no_redirects",
    "A pod's redirect is a failure, and never followed.",
    _forwarding(relays=_Follows),
)


def _connected_by(kind: type[PodConnection]) -> Callable[[Parts], Parts]:
    """Gateways whose connections to pods are of this kind."""

    class Connecting(Pools):
        connection = kind

    return lambda usual: usual._replace(pools=Connecting)


class _WaitsForSense(PodConnection):
    __slots__ = ()

    def _lose(self, loss: Loss) -> None:
        if loss is not Loss.JUNK:
            super()._lose(loss)


JUNK_ENDS = Defence(
    "junk_ends",
    "What is not HTTP ends its exchange at once, and its connection: nothing behind it is read.",
    _connected_by(_WaitsForSense),
)


class _ReadsAnyHead(PodConnection):
    """Reads what can be read, in one way or another."""

    __slots__ = ()

    def _begin(self) -> None:
        super()._begin()
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_transfer_encoding=True,
            lenient_chunked_length=True,
            lenient_optional_cr_before_lf=True,
            lenient_optional_lf_after_cr=True,
        )

    def _is_proper(self, *_: Any) -> bool:
        return True


ONE_ANSWER = Defence(
    "one_answer",
    "A pod's head that could be read in two ways is none.",
    _connected_by(_ReadsAnyHead),
)


class _Patient(PodConnection):
    __slots__ = ()
    max_interim_answers = 1 << 30


INTERIM_ANSWERS = Defence(
    "interim_answers",
    "Sixteen interim answers are dropped; one that has more has none.",
    _connected_by(_Patient),
)


class _Expects(PodConnection):
    """Keeps what nobody asked for, for whoever asks next."""

    __slots__ = ("_early",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._early = b""
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        place = 0 if self._receiver is None else data.find(b"HTTP/1.1 ", 1)
        if place >= 0:
            self._early += data[place:]
            data = data[:place]
        if data:
            super().data_received(data)

    def send(self, head: bytes, body: Sequence[bytes | memoryview], receiver: Receiver) -> None:
        super().send(head, body, receiver)
        early, self._early = self._early, b""
        if early:
            self.data_received(early)


NOBODY_ASKED = Defence(
    "nobody_asked",
    "What a pod sends that nobody asked for, behind an answer or between two, ends its connection.",
    _connected_by(_Expects),
)


class _PassesOn(Relay):
    """Shows what the pod said, whatever it means."""

    __slots__ = ()

    def _judge(self, body: bytes) -> First:
        head = self._head
        if head is None or head.status == 200:
            return super()._judge(body)
        return Failed(Failure.REFUSED, PodRefusal(head.status, body))


OUR_WORDS = Defence(
    "our_words",
    "A pod's error that is not about the request is told as what it means here.",
    _forwarding(relays=_PassesOn),
)


class _SaysAll(Relay):
    __slots__ = ()

    def _judge(self, body: bytes) -> First:
        first = super()._judge(body)
        if isinstance(first, Failed) and isinstance(first.error, UpstreamFailed):
            return first._replace(error=UpstreamFailed(json.loads(body)["error"]["message"]))
        return first


NO_ADDRESSES = Defence(
    "no_addresses",
    "A pod's message loses what looks like a path or an address before it is passed on.",
    _forwarding(relays=_SaysAll),
)


class _AnyTypeOfAnswer(Relay):
    __slots__ = ()

    def _accepts(self, head: AnswerHead) -> bool:
        return True


class _AnyTypeOfStream(StreamRelay):
    __slots__ = ()

    def _accepts(self, head: AnswerHead) -> bool:
        return True


KIND_OF_ANSWER = Defence(
    "kind_of_answer",
    "A 200 of another type than was asked for is no answer, nor is a compressed one.",
    _forwarding(relays=_AnyTypeOfAnswer, stream_relays=_AnyTypeOfStream),
)


class _Unread(Relay):
    """Takes what is called JSON for it."""

    __slots__ = ()

    def _judge(self, body: bytes) -> First:
        head = self._head
        if head is None or head.status != 200:
            return super()._judge(body)
        return Whole(body, head.content_type, ())


READ_ANSWERS = Defence(
    "read_answers",
    "An answer is read before it is passed on: what is called JSON and is none is no answer.",
    _forwarding(relays=_Unread),
)

# --- Pods, in mid-stream.


class _Credulous(StreamRelay):
    """Takes every end for a good one."""

    __slots__ = ()

    def _cut(self, error: Exception) -> None:
        self.end(Ended(b"", None))


class _BelievesInEndings(Forwarder):
    stream_relays = _Credulous


STREAM_JUDGEMENT = Defence(
    "stream_judgement",
    "A stream is whole when each choice has its finish reason and [DONE] has come; any other end is told as an error.",
    lambda usual: usual._replace(forwarder=_BelievesInEndings),
)


class _Decodes(StreamRelay):
    """Reads text where there are bytes."""

    __slots__ = ()

    def body_received(self, data: bytes) -> None:
        super().body_received(data.decode("utf-8", "replace").encode())


class _DecodesStreams(Forwarder):
    stream_relays = _Decodes


BYTES_UNCHANGED = Defence(
    "bytes_unchanged",
    "Events are cut from bytes and passed on as they are; nothing is decoded.",
    lambda usual: usual._replace(forwarder=_DecodesStreams),
)


class _EndsSilently(StreamRelay):
    """Lets a stream end as its connection does."""

    __slots__ = ()

    def answer_lost(self, loss: Loss) -> None:
        if self.first.done():
            self.end(Ended(b"", None))
        else:
            super().answer_lost(loss)


class _PassesCutsOn(Forwarder):
    stream_relays = _EndsSilently


CUTS_ARE_TOLD = Defence(
    "cuts_are_told",
    "A connection that ends inside a stream is told to the client as an error event, in the operation's own words.",
    lambda usual: usual._replace(forwarder=_PassesCutsOn),
)


class _Uncut(EventFramer):
    __slots__ = ()

    def feed(self, data: bytes) -> list[bytes]:
        return [data]


class _PassesPieces(StreamRelay):
    """Passes on what a read brings."""

    __slots__ = ()
    framer = _Uncut


class _PassesPiecesOn(Forwarder):
    stream_relays = _PassesPieces


WHOLE_EVENTS = Defence(
    "whole_events",
    "Only whole events go out: an unfinished one waits, and is dropped at a cut.",
    lambda usual: usual._replace(forwarder=_PassesPiecesOn),
)


class _TakesCloseForEnd(Relay):
    __slots__ = ()

    def answer_ended(self, by_close: bool) -> None:
        super().answer_ended(by_close=False)


class _BelievesInCloses(Forwarder):
    relays = _TakesCloseForEnd


UNMEASURED_ENDS = Defence(
    "unmeasured_ends",
    "A large answer that ends by its pod's close may be cut: the client's connection is broken, never ended cleanly.",
    lambda usual: usual._replace(forwarder=_BelievesInCloses),
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
            await self._to_model(request)


NO_NEW_BEGINNING = Defence(
    "no_new_beginning",
    "A request whose answer has begun is not sent again.",
    lambda usual: usual._replace(forwarder=_StartsAgain),
)


class _WaitsForMore(Forwarder):
    def _relay(self, request: Request, deadlines: Deadlines) -> Relay:
        return super()._relay(request, replace(deadlines, idle_seconds=inf))


IDLE_DEADLINE = Defence(
    "idle_deadline",
    "A pod has so long from one event to the next.",
    lambda usual: usual._replace(forwarder=_WaitsForMore),
)


class _HearsComments(StreamRelay):
    __slots__ = ()

    @property
    def events(self) -> int:
        return super().events + self._comments


class _TakesCommentsForLife(Forwarder):
    stream_relays = _HearsComments


SILENT_COMMENTS = Defence(
    "silent_comments",
    "Comments feed no deadline.",
    lambda usual: usual._replace(forwarder=_TakesCommentsForLife),
)


class _CountsFromTheFirst(StreamRelay):
    """Takes the time between two events for that of all."""

    __slots__ = ()

    def _emit(self, out: list[bytes]) -> None:
        super()._emit(out)
        self._total_deadline = min(self._total_deadline, self._clock() + self._idle_seconds)


class _HasNoPatience(Forwarder):
    stream_relays = _CountsFromTheFirst


IDLE_ANEW = Defence(
    "idle_anew",
    "Each event gives the next one its whole time.",
    lambda usual: usual._replace(forwarder=_HasNoPatience),
)


class _AddsItsOwn(StreamRelay):
    __slots__ = ()

    def end(self, ended: Ended) -> None:
        super().end(ended._replace(said=False))


class _TellsTwice(Forwarder):
    stream_relays = _AddsItsOwn


ONE_ERROR = Defence(
    "one_error",
    "Where the pod has told of an error itself, ours is not added.",
    lambda usual: usual._replace(forwarder=_TellsTwice),
)


class _TakesErrorsForText(StreamRelay):
    __slots__ = ()

    def _judge_end(self, event: bytes) -> None:
        if self._pod_error is not None:
            self.end(Ended(event, None))
        else:
            super()._judge_end(event)


class _OverlooksErrors(Forwarder):
    stream_relays = _TakesErrorsForText


POD_ERRORS = Defence(
    "pod_errors",
    "A stream in which the pod tells of an error has failed, and weighs on the pod, however it ends.",
    lambda usual: usual._replace(forwarder=_OverlooksErrors),
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


class _ForgivingPools(Pools):
    connection = _GoesOn


JUNK_IS_LEFT = Defence(
    "junk_is_left",
    "A connection on which something came that is not HTTP is closed at once.",
    lambda usual: usual._replace(pools=_ForgivingPools),
)


class _HoldsAnyEvent(StreamRelay):
    __slots__ = ()
    max_tail_bytes = 1 << 40


class _HasNoBoundForEvents(Forwarder):
    stream_relays = _HoldsAnyEvent


EVENT_BOUND = Defence(
    "event_bound",
    "Of an unfinished event 1 MiB is held at most.",
    lambda usual: usual._replace(forwarder=_HasNoBoundForEvents),
)


class _HoldsAllEvents(Forwarder):
    max_tail_bytes = 1 << 40


EVENT_BUDGET = Defence(
    "event_budget",
    "Of all streams' unfinished events together 128 MiB are held at most.",
    lambda usual: usual._replace(forwarder=_HoldsAllEvents),
)


class _CountsWhatIsTold(Forwarder):
    def _note_usage(self, relay: Relay, request: Request) -> None:
        super()._note_usage(relay, request)
        trail = request.visit.trail
        if trail.usage is not None and trail.usage.estimated:
            trail.usage = None


ESTIMATED_USAGE = Defence(
    "estimated_usage",
    "An answer whose pod does not tell its usage is charged by what was seen of it.",
    lambda usual: usual._replace(forwarder=_CountsWhatIsTold),
)


class _KeepsReservations(Admission):
    def settle(self, reservation: Reservation) -> None:
        usage = reservation.trail.usage
        if usage is not None and not usage.estimated:
            super().settle(reservation)


UNUSED_TOKENS = Defence(
    "unused_tokens",
    "What was reserved and not used is given back, whether the pod tells its usage or not.",
    lambda usual: usual._replace(admission=_KeepsReservations),
)


class _Believing(ChoicesReader):
    __slots__ = ()

    def usage(self) -> Usage | None:
        told = json.loads(bytes(self._raw_usage or b"{}"))
        return Usage(told["prompt_tokens"], told["completion_tokens"])


class _BelievesInUsage(Forwarder):
    def _relay(self, request: Request, deadlines: Deadlines) -> Relay:
        relay = super()._relay(request, deadlines)
        relay.reader = _Believing(request.call.choices)
        return relay

    def _is_a_lie(self, usage: Usage, call: Call) -> bool:
        return False


PLAUSIBLE_USAGE = Defence(
    "plausible_usage",
    "A usage that cannot be is as good as none.",
    lambda usual: usual._replace(forwarder=_BelievesInUsage),
)


class _EasilyPleased(ChoicesReader):
    __slots__ = ()

    @property
    def whole(self) -> bool:
        return bool(self.finished)


class _WantsOneFinish(Forwarder):
    def _relay(self, request: Request, deadlines: Deadlines) -> Relay:
        relay = super()._relay(request, deadlines)
        relay.reader = _EasilyPleased(request.call.choices)
        return relay


EACH_CHOICE = Defence(
    "each_choice",
    "A stream is whole when each choice that was asked for is finished: `n` of them for each prompt.",
    lambda usual: usual._replace(forwarder=_WantsOneFinish),
)

# --- Discovery.


def cluster_source(
    kind: type[KubernetesSource] = KubernetesSource, networks: tuple[Network, ...] | None = None, **pace: float
) -> Callable[[Config, Mapping[str, str], Any, Clock, Callable[[], float]], Source]:
    """A source as `Parts` wants it; of this kind, before these networks, and quick to try again, or at this pace."""

    def made(
        config: Config, environment: Mapping[str, str], metrics: Any, clock: Clock, chance: Callable[[], float]
    ) -> Source:
        discovery, server = config.discovery, config.server
        return kind(
            Cluster.find(environment),
            namespaces=discovery.namespaces,
            selector=discovery.selector,
            self_selector=discovery.self_selector,
            networks=discovery.pod_networks if networks is None else networks,
            listens_on=((server.host, server.port), (server.ops_host, server.ops_port)),
            relisted=metrics.relisted,
            clock=clock.monotonic,
            chance=chance,
            pace=replace(QUICK, **pace),
        )

    return made


class _ListsOnce(Reflector[Any]):
    """Adds what a list has to what it knew, as one does who trusts in events."""

    async def _list(self, due: str) -> None:
        held = dict(self._held)
        await super()._list(due)
        self._held = held | self._held


class _TrustsInEvents(KubernetesSource):
    following = _ListsOnce


FULL_LIST = Defence(
    "full_list",
    "After anything but a clean end of a watch a full list replaces all that was known.",
    lambda usual: usual._replace(source=cluster_source(_TrustsInEvents)),
)
POD_ADDRESSES = Defence(
    "pod_addresses",
    "A pod's address is judged before anything is sent there.",
    lambda usual: usual._replace(source=cluster_source(networks=(ip_network("0.0.0.0/0"),))),
)


def _following(kind: type[Reflector[Any]]) -> Callable[[Parts], Parts]:
    """The same parts, but for a source that follows the API server in this way."""
    source = type("_Follows", (KubernetesSource,), {"following": kind})
    return lambda usual: usual._replace(source=cluster_source(source))


class _IgnoresVersions(Reflector[Any]):
    def _apply_all(self, lines: list[bytes]) -> str:
        wrong = super()._apply_all(lines)
        return "" if wrong == "backwards" else wrong


VERSIONS = Defence(
    "versions",
    "A version that goes backwards is a reason for a full list.",
    _following(_IgnoresVersions),
)


class _EmptiesFirst(Reflector[Any]):
    async def _list(self, due: str) -> None:
        self._held = {}
        self._changed()
        await super()._list(due)


LAST_KNOWN = Defence(
    "last_known",
    "What was known stands, whole, until a list has succeeded.",
    _following(_EmptiesFirst),
)


class _TakesOpenForFresh(Reflector[Any]):
    def stale_seconds(self) -> float:
        return 0.0 if self._watching else super().stale_seconds()


STALENESS = Defence(
    "staleness",
    "What nothing has confirmed for so long is stale, though the watch is open.",
    _following(_TakesOpenForFresh),
)
SILENCE = Defence(
    "silence",
    "A watch that says nothing for so long is given up.",
    lambda usual: usual._replace(source=cluster_source(silence=inf)),
)


class _AsksOnce(Reflector[Any]):
    async def _pause(self, seconds: float, failure: ApiFailed | None) -> str:
        return await super()._pause(inf, failure)


TRIES_AGAIN = Defence(
    "tries_again",
    "An API server that does not answer is asked again, ever more seldom.",
    _following(_AsksOnce),
)


class _NeedsNoList(KubernetesSource):
    def seen(self) -> Sighting:
        return super().seen()._replace(listed=True)


FIRST_LIST = Defence(
    "first_list",
    "A gateway is not ready before it has a list of its pods.",
    lambda usual: usual._replace(source=cluster_source(_NeedsNoList)),
)


class _HearsDeletionsOnly(Reflector[Any]):
    def _apply(self, kind: str, told: Mapping[str, Any]) -> bool:
        known = told["metadata"]["name"] in self._held
        return not (kind == "MODIFIED" and known) and super()._apply(kind, told)


WHOLE_STATE = Defence(
    "whole_state",
    "Each event of a pod is judged whole: one that has failed, has no address or terminates is out.",
    _following(_HearsDeletionsOnly),
)


class _SeesNoEnd(Reflector[Any]):
    def __init__(self, name: str, api: Any, read: Callable[[Mapping[str, Any]], Any], *more: Any) -> None:
        super().__init__(name, api, lambda told: read(_without_end(told)), *more)


def _without_end(told: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = {name: value for name, value in told["metadata"].items() if name != "deletionTimestamp"}
    return {**told, "metadata": metadata}


TERMINATING = Defence(
    "terminating",
    "A pod that is to be deleted gets nothing new, though it is ready still.",
    _following(_SeesNoEnd),
)


class _CutsTheGone(Pools):
    def keep_only(self, uids: Collection[str]) -> None:
        super().keep_only(uids)
        for uid, pool in self._pools.items():
            for connection in [] if uid in uids else pool._open:
                if connection._transport is not None:
                    connection._transport.abort()


RUNNING_STREAMS = Defence(
    "running_streams",
    "What runs at a pod that is gone from the list runs to its end.",
    lambda usual: usual._replace(pools=_CutsTheGone),
)


class _WaitsForAll(Roster):
    def _publish(self) -> None:
        told = self._known.values()
        if any(known.made.askable and known.listed is None and not known.trouble for known in told):
            self._due = asyncio.get_running_loop().call_later(0.01, self._publish)
        else:
            super()._publish()


NOBODY_IS_AWAITED = Defence(
    "nobody_is_awaited",
    "Each pod is asked for its models in a task of its own, and nobody waits for its answer.",
    lambda usual: usual._replace(roster=_WaitsForAll),
)


class _NeverCloses(Edge):
    @property
    def closing(self) -> bool:
        return False

    @closing.setter
    def closing(self, value: bool) -> None:
        """Nobody is told."""


TOLD_TO_LEAVE = Defence(
    "told_to_leave",
    "Each answer of a replica on its way out tells its client to connect anew.",
    lambda usual: usual._replace(edge=_NeverCloses),
)


class _GoesSilently(Forwarder):
    def end_all(self) -> None:
        self.draining = True


LAST_WORDS = Defence(
    "last_words",
    "A stream that outlives the drain's limit is ended with the truth.",
    lambda usual: usual._replace(forwarder=_GoesSilently),
)


class _HoldsForNobody(Forwarder):
    async def _room(
        self, request: Request, route: Route, excluded: Collection[str], on_budget: bool, failed: Failed | None
    ) -> Lease:
        held = replace(route, pool=replace(route.pool, hold_empty_seconds=60.0))
        return await super()._room(request, held, excluded, on_budget, failed)


NOBODY_TO_WAIT_FOR = Defence(
    "nobody_to_wait_for",
    "Where no pod is ready a request is answered at once.",
    lambda usual: usual._replace(forwarder=_HoldsForNobody),
)


def _healed_by(kind: type[PoolHealth]) -> Callable[[Parts], Parts]:
    """The same parts, but for a balancer that thinks of its pods' health in this way."""
    balancer = type("_Balances", (Balancer,), {"healths": kind})
    return lambda usual: usual._replace(balancer=balancer)


class _NeverPanics(PoolHealth):
    def _look_around(self) -> None:
        """However few are left."""


PANIC = Defence(
    "panic",
    "Where fewer than half of a pool's pods are left, ejected ones are used like any other.",
    _healed_by(_NeverPanics),
)


class _NeverEjects(PoolHealth):
    def _eject(self, *_: Any) -> Any:
        return None


EJECTION = Defence(
    "ejection",
    "A pod that fails three times in a row gets no work for a while.",
    _healed_by(_NeverEjects),
)


class _CountsWhatRuns(Balancer):
    def _failed_at(self, seat: Seat, *more: Any) -> None:
        super()._failed_at(seat, *more)
        self._failed.pop()
        seat.failed -= 1


FAILURES_COUNT = Defence(
    "failures_count",
    "What failed at a pod counts as running there for a while: one that fails fast does not look idle.",
    lambda usual: usual._replace(balancer=_CountsWhatRuns),
)


class _Forgets(PoolHealth):
    def _eject(self, record: Any, *more: Any) -> Any:
        record.ejections = 0
        return super()._eject(record, *more)


LONGER_EACH_TIME = Defence(
    "longer_each_time",
    "Each ejection of a pod is longer than the one before.",
    _healed_by(_Forgets),
)


class _TakesAllForWarm(PoolHealth):
    def weight(self, uid: str, now: float) -> float:
        return 1.0


SLOW_START = Defence(
    "slow_start",
    "A new pod gets a growing share of the work.",
    _healed_by(_TakesAllForWarm),
)


class _TakesTurns(Balancer):
    def _choose(self, state: Any, room: Sequence[Seat], wish: Wish, retry: bool) -> Choice:
        state.view.turn += 1
        return Choice(room[state.view.turn % len(room)], "round_robin")


LEAST_WORK = Defence(
    "least_work",
    "A request goes where the least is to be done before it.",
    lambda usual: usual._replace(balancer=_TakesTurns),
)


class _ReservesNothing(Namespace):
    def __init__(self, api: Any, rules: Any, listens_on: Any) -> None:
        super().__init__(api, rules, ())

    def _reserve(self, ends: Any) -> None:
        self._ends = ends


class _ReadsAsTold(KubernetesSource):
    reading = _ReservesNothing


RESERVED_ADDRESSES = Defence(
    "reserved_addresses",
    "The API server's address and our own, with their ports, are no pod's.",
    lambda usual: usual._replace(source=cluster_source(_ReadsAsTold)),
)


class _BelievesAnnotations(Roster):
    def silent(self, uid: str, trouble: str) -> None:
        self.heard(uid, Listing(tuple(Model(name) for name in self._known[uid].made.allowed), 0))


MODELS_FIRST = Defence(
    "models_first",
    "A pod gets requests only for models that it has listed itself, as vLLM does.",
    lambda usual: usual._replace(roster=_BelievesAnnotations),
)


class _OnePoolForAll(Roster):
    def _made(self, pod: Pod, known: Any, now: float) -> Pod:
        return super()._made(replace(pod, pool="chat"), known, now)


ONE_OWNER = Defence(
    "one_owner",
    "A model's name belongs to one pool: a pod of another one that lists it gets none of its requests.",
    lambda usual: usual._replace(roster=_OnePoolForAll),
)


class _BelievesListings(Roster):
    def _made(self, pod: Pod, known: Any, now: float) -> Pod:
        return super()._made(replace(pod, allowed=("*",)), known, now)


ALLOWED_MODELS = Defence(
    "allowed_models",
    "A pod serves no more than its annotation lets it.",
    lambda usual: usual._replace(roster=_BelievesListings),
)


class _TakesAnyName(Rounds):
    async def _ask_models(self, pod: Pod) -> bool:
        try:
            listed = json.loads(await self._fetch(pod, b"/v1/models", 5.0))["data"]
        except FetchFailed:
            return await super()._ask_models(pod)
        self._roster.heard(pod.uid, Listing(tuple(Model(str(card["id"]), card) for card in listed), 0))
        return True


MODEL_NAMES = Defence(
    "model_names",
    "A model's name has 256 printable characters at most.",
    lambda usual: usual._replace(rounds=_TakesAnyName),
)


class _ReadsAll(Pools):
    max_fetch_bytes = 1 << 30


SHORT_LISTINGS = Defence(
    "short_listings",
    "A pod's list of models has a megabyte at most.",
    lambda usual: usual._replace(pools=_ReadsAll),
)


class _WithoutBrackets(PodPool):
    __slots__ = ()

    def __init__(self, pod: Pod, *more: Any) -> None:
        super().__init__(pod, *more)
        self.host = f"{pod.host}:{pod.port}".encode()


class _NamesHostsPlainly(Pools):
    pool = _WithoutBrackets


BRACKETS = Defence(
    "brackets",
    "An IPv6 address stands in brackets where a port follows.",
    lambda usual: usual._replace(pools=_NamesHostsPlainly),
)

# --- Limits.

QUICK_TO_RETURN = redis_store.Pace(probe=0.1)
"""As the product is, but for how soon it tries again."""
OFTEN_TOLD = replace(BRISK, keep=1.5)


def counts_in_redis(
    kind: type[RedisStore] = RedisStore, pace: redis_store.Pace = BRISK
) -> Callable[[Config, Callable[[], int], Clock, Callable[[], float]], Store]:
    """A store as `Parts` wants it; of this kind, and so patient."""

    def made(config: Config, replicas: Callable[[], int], clock: Clock, chance: Callable[[], float]) -> Store:
        return kind(
            config.limits.redis_url or "",
            replica=os.urandom(8).hex(),
            replicas=replicas,
            clock=clock.monotonic,
            chance=chance,
            pace=pace,
        )

    return made


def _counts_alone(config: Config, replicas: Callable[[], int], clock: Clock, chance: Callable[[], float]) -> Store:
    return MemoryStore(clock.monotonic)


SHARED_COUNT = Defence(
    "shared_count",
    "All replicas count a limit in one place, in one step.",
    lambda usual: usual._replace(limits=_counts_alone),
)
REDIS_DEADLINE = Defence(
    "redis_deadline",
    "Redis has 50 ms for an answer; whoever waits then is answered here, in that moment.",
    lambda usual: usual._replace(limits=counts_in_redis(pace=replace(QUICK_TO_RETURN, answer=3600.0, slow=1800.0))),
)


class _NeverLearns(RedisStore):
    def _turn_local(self, error: Exception) -> None:
        super()._turn_local(error)
        self.mode = "redis"


FELT_ONCE = Defence(
    "felt_once",
    "After one call that fails nobody waits for Redis, until it has answered again.",
    lambda usual: usual._replace(limits=counts_in_redis(_NeverLearns, QUICK_TO_RETURN)),
)


class _AllowsAll(RedisStore):
    def _share(self) -> float:
        return 1.0


LOCAL_SHARE = Defence(
    "local_share",
    "Without Redis each replica allows its share of a limit, not the whole of it.",
    lambda usual: usual._replace(limits=counts_in_redis(_AllowsAll, QUICK_TO_RETURN)),
)


class _BeginsAnew(RedisStore):
    def _turn_local(self, error: Exception) -> None:
        if self.mode == "redis":
            self._book.tats.clear()
        super()._turn_local(error)


ONE_LOCAL_BOOK = Defence(
    "one_local_book",
    "A replica's own count lasts over all outages: a Redis that comes and goes gives no fresh share each time.",
    lambda usual: usual._replace(limits=counts_in_redis(_BeginsAnew)),
)


class _StaysLocal(RedisStore):
    async def run(self) -> None:
        await self._use_redis()
        await asyncio.Event().wait()


REDIS_AGAIN = Defence(
    "redis_again",
    "A replica that counts for itself tries Redis again, each second.",
    lambda usual: usual._replace(limits=counts_in_redis(_StaysLocal)),
)


class _TellsTheScriptOnce(RedisStore):
    told = False

    async def _evaluate(self, connection: AbstractConnection, *asked: bytes | int) -> Any:
        if not self.told:
            self.told = True
            return await super()._evaluate(connection, *asked)
        await connection.send_command("EVALSHA", self._script_name, *asked)
        return await connection.read_response()


SCRIPT_AGAIN = Defence(
    "script_again",
    "A script that Redis does not know any more is sent to it again, in the same call.",
    lambda usual: usual._replace(limits=counts_in_redis(_TellsTheScriptOnce)),
)


class _ByItsOwnClock(RedisStore):
    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._script = self._script.replace(b"redis.call('TIME')", b"{ARGV[3] + EPOCH, 0}")
        self._script_name = sha1(self._script, usedforsecurity=False).hexdigest().encode("ascii")

    async def _evaluate(self, connection: AbstractConnection, *asked: bytes | int) -> Any:
        return await super()._evaluate(connection, *asked, b"%.6f" % self._clock())


SERVERS_CLOCK = Defence(
    "servers_clock",
    "Limits run by Redis' own clock, whatever a replica's says.",
    lambda usual: usual._replace(limits=counts_in_redis(_ByItsOwnClock)),
)


class _LeavesItBehind(RedisStore):
    async def _evaluate(self, connection: AbstractConnection, *asked: bytes | int) -> Any:
        came = await super()._evaluate(connection, *asked)
        count = int(asked[0])
        for key in asked[1 : 1 + count]:
            await connection.send_command("PERSIST", key)
            await connection.read_response()
        return came


KEYS_END = Defence(
    "keys_end",
    "Every key in Redis ends by itself, when its bucket is full again or what runs was not told again.",
    lambda usual: usual._replace(limits=counts_in_redis(_LeavesItBehind)),
)
LEASES_END = Defence(
    "leases_end",
    "What runs at a replica counts for 30 s, unless that is told again.",
    lambda usual: usual._replace(limits=counts_in_redis(pace=replace(BRISK, keep=86_400.0))),
)


class _TellsOnce(RedisStore):
    def _tell_again(self) -> None:
        """It has been said."""


HEARTBEAT = Defence(
    "heartbeat",
    "What runs is told to Redis again, three times in the while for which it counts.",
    lambda usual: usual._replace(limits=counts_in_redis(_TellsOnce, OFTEN_TOLD)),
)


class _NeverSettles(Admission):
    def settle(self, reservation: Reservation) -> None:
        costs = reservation.costs
        self._store.settle(reservation.taken, reservation.plan.buckets, costs, costs)


SETTLEMENT = Defence(
    "settlement",
    "At its end a request's reservation is made what it used.",
    lambda usual: usual._replace(admission=_NeverSettles),
)


class _CountsReports(Admission):
    def settle(self, reservation: Reservation) -> None:
        trail, usage = reservation.trail, reservation.trail.usage
        if usage is not None and usage.estimated:
            trail.usage = None
        super().settle(reservation)
        trail.usage = usage


RELAYED_TOKENS = Defence(
    "relayed_tokens",
    "Who leaves pays for the tokens that went through, not for none.",
    lambda usual: usual._replace(admission=_CountsReports),
)


class _CountsStrangers(Pipeline):
    """So that nobody tries too many keys."""

    def refuse(self, visit: Visit, exchange: Exchange, error: PoolgateError) -> None:
        if isinstance(error, InvalidApiKey):
            name = sha256(visit.head.fields.get(b"authorization", b"")).hexdigest().encode()
            counted = Bucket(name, "requests_per_day", 60, DAY)
            self._admission._store.settle(Taken((), source=self._admission._store), [counted], (0,) * 4, (1, 0, 0, 0))
        super().refuse(visit, exchange, error)


KNOWN_FIRST = Defence(
    "known_first",
    "A key is looked up before anything is counted for it.",
    lambda usual: usual._replace(pipeline=_CountsStrangers),
)


class _FixedWindows(MemoryStore):
    """A count for each minute since the first request."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._began: float | None = None
        self._window = self._count = 0

    def take_nowait(self, buckets: Sequence[Bucket], costs: Costs) -> Taken:
        now = self._clock() * 1e6
        self._began = now if self._began is None else self._began
        if (window := int((now - self._began) / MINUTE)) != self._window:
            self._window, self._count = window, 0
        self._count += 1
        refused = next((each for each in buckets if self._count > each.amount), None)
        return Taken([0.0] * len(buckets), refused, MINUTE)


NO_WINDOWS = Defence(
    "no_windows",
    "A limit comes back evenly (GCRA): there is no window at whose edge twice as much would pass.",
    lambda usual: usual._replace(limits=lambda config, replicas, clock, chance: _FixedWindows(clock.monotonic)),
)

# --- Clients.


class _ServesTheDead(ClientConnection):
    __slots__ = ()

    def connection_lost(self, exc: Exception | None) -> None:
        self._task = None
        super().connection_lost(exc)


class _ServesTheDeadEdge(Edge):
    connection = _ServesTheDead


CANCELLATION = Defence(
    "cancellation",
    "A client that leaves ends its request, and the pod's connection, wherever they are.",
    lambda usual: usual._replace(edge=_ServesTheDeadEdge),
)


class _NeverPauses(ClientConnection):
    __slots__ = ()

    def pause_writing(self) -> None:
        """The pod goes on."""


class _NeverPausesEdge(Edge):
    connection = _NeverPauses


BACK_PRESSURE = Defence(
    "back_pressure",
    "A client that does not read stops the reading from its pod.",
    lambda usual: usual._replace(edge=_NeverPausesEdge),
)
STALLED_READERS = Defence(
    "stalled_readers",
    "A client that leaves a full buffer unread for so long is let go.",
    lambda usual: usual._replace(bounds=replace(usual.bounds, stalled_seconds=inf)),
)
HEAD_DEADLINE = Defence(
    "head_deadline",
    "A head has ten seconds, whatever drips.",
    lambda usual: usual._replace(bounds=replace(usual.bounds, head_seconds=inf)),
)
BODY_DEADLINE = Defence(
    "body_deadline",
    "A body has a deadline, whatever drips.",
    lambda usual: usual._replace(bounds=replace(usual.bounds, body_seconds=inf)),
)

BODY_RATE = Defence(
    "body_rate",
    "A body brings so many bytes a second on average, once the first seconds are over.",
    lambda usual: usual._replace(bounds=replace(usual.bounds, min_body_rate=0)),
)


class _ForgetsWhoLeft(Pipeline):
    def left(self, visit: Visit) -> None:
        """It was no request."""


LEAVING_IS_TOLD = Defence(
    "leaving_is_told",
    "A request whose client leaves inside its body has ended as any other: in a line of its own.",
    lambda usual: usual._replace(pipeline=_ForgetsWhoLeft),
)


class _ReadsMuch(PodPool):
    __slots__ = ()
    receive_bytes = 8 << 20


class _ReadMuch(Pools):
    pool = _ReadsMuch


SMALL_READS = Defence(
    "small_reads",
    "The kernel takes little of an answer that is not read, so that one more read brings little.",
    lambda usual: usual._replace(pools=_ReadMuch),
)
HEAD_BOUNDS = Defence(
    "head_bounds",
    "A head has bounds: as a whole, of each line, of their number, of its URL.",
    lambda usual: usual._replace(
        bounds=replace(
            usual.bounds,
            max_head_bytes=1 << 40,
            max_line_bytes=1 << 40,
            max_header_count=1 << 40,
            max_url_bytes=1 << 40,
        )
    ),
)


class _FirstCome(Room[ClientConnection]):
    def _make_room(self, network: str, now: float) -> bool:
        return False


class _FirstComeEdge(Edge):
    rooms = _FirstCome


ROOM_FOR_NEWCOMERS = Defence(
    "room_for_newcomers",
    "When all connections are taken, a newcomer gets the place of one that has waited the longest for a request.",
    lambda usual: usual._replace(edge=_FirstComeEdge),
)
CONNECTION_COUNT = Defence(
    "connection_count",
    "There is an end to the number of connections, and who is one too many is told.",
    lambda usual: usual._replace(bounds=replace(usual.bounds, max_connections=1 << 40)),
)
BODY_BUDGET = Defence(
    "body_budget",
    "All bodies together take a bounded share of the memory; who does not fit is told when to come again.",
    lambda usual: usual._replace(bounds=replace(usual.bounds, max_buffered_body_bytes=1 << 40)),
)


class _Jumpy(Overload):
    def __init__(self, chance: Callable[[], float]) -> None:
        super().__init__(chance, pass_seconds=0.0)


LAG_PATIENCE = Defence(
    "lag_patience",
    "Lag counts when every look for two seconds has found it: one stall turns nobody away.",
    lambda usual: usual._replace(overload=_Jumpy),
)


class _TakesAll(Overload):
    def look(self, now: float, lag: float, memory_share: float) -> None:
        """All is well."""


SHEDDING = Defence(
    "shedding",
    "Who has too much to do for long turns new requests away, before their bodies are read.",
    lambda usual: usual._replace(overload=_TakesAll),
)


class _AnswersHalfOpen(ClientConnection):
    __slots__ = ()

    def eof_received(self) -> bool:
        return True


class _AnswersHalfOpenEdge(Edge):
    connection = _AnswersHalfOpen


HALF_CLOSED_IS_CLOSED = Defence(
    "half_closed_is_closed",
    "A client that says that nothing more comes has left: proxies and SDKs end a request in no other way.",
    lambda usual: usual._replace(edge=_AnswersHalfOpenEdge),
)


class _ContinuesAtOnce(ClientConnection):
    __slots__ = ()

    def on_headers_complete(self) -> None:
        assert self._transport is not None
        if any(name == b"expect" for name, _ in self._headers):
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        super().on_headers_complete()


class _ContinuesAtOnceEdge(Edge):
    connection = _ContinuesAtOnce


JUDGED_BEFORE_100 = Defence(
    "judged_before_100",
    "A head is judged before its body is asked for.",
    lambda usual: usual._replace(edge=_ContinuesAtOnceEdge),
)


class _ReadsOnBehind(ClientConnection):
    __slots__ = ()

    def _came_behind(self, count: int) -> None:
        """Whatever it was."""


class _ReadsOnBehindEdge(Edge):
    connection = _ReadsOnBehind


NOTHING_BEHIND = Defence(
    "nothing_behind",
    "What comes behind a request before its answer is no request: the connection closes with the answer.",
    lambda usual: usual._replace(edge=_ReadsOnBehindEdge),
)
BYTES_BEHIND = Defence(
    "bytes_behind",
    "Behind a request that is being served little is read.",
    lambda usual: usual._replace(bounds=replace(usual.bounds, max_bytes_behind=1 << 40)),
)


class _BelievesOverrides(Reception):
    def receive(self, head: Head) -> Visit:
        method = head.fields.get(b"x-http-method-override", head.method)
        return super().receive(head._replace(method=method))


ONE_METHOD = Defence(
    "one_method",
    "The method is the request line's, and each route has one.",
    lambda usual: usual._replace(reception=_BelievesOverrides),
)

# --- Parsing and protocol.


class _TakesAnyHead(ClientConnection):
    __slots__ = ()

    def improper_head(self, *_: Any) -> None:
        return None


class _LenientFront(ClientConnection):
    __slots__ = ()

    def __init__(self, edge: Edge, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(edge, loop)
        every = [True] * 10
        self._parser.set_dangerous_leniencies(*every)


class _LenientThroughout(_LenientFront, _TakesAnyHead):
    __slots__ = ()


class _TakesAnyChunks(ClientConnection):
    __slots__ = ()

    def improper_body(self, *_: Any) -> None:
        return None


def _connecting(kind: type[ClientConnection]) -> Callable[[Parts], Parts]:
    class _Careless(Edge):
        connection = kind

    return lambda usual: usual._replace(edge=_Careless)


STRICT_PARSER = Defence(
    "strict_parser", "The parser of heads and chunks is strict: it has no leniency on.", _connecting(_LenientFront)
)
ONE_MEANING = Defence(
    "one_meaning",
    "A head that another server might read in another way is refused, though the parser lets it through.",
    _connecting(_TakesAnyHead),
)
READ_TWICE = Defence(
    "read_twice",
    "What frames a body is looked at twice, by the parser and behind it: most of what is wrong is refused by both.",
    _connecting(_LenientThroughout),
)
CHUNKS_BRING = Defence(
    "chunks_bring",
    "Chunks that say more of themselves than they bring are refused.",
    _connecting(_TakesAnyChunks),
)


class _TidiesPaths(Reception):
    """Decodes first, and compares then; whatever is left of a mask is taken off."""

    def receive(self, head: Head) -> Visit:
        told = unquote_to_bytes(head.target).replace(b"\xc0\xaf", b"/").replace(b"\\", b"/").replace(b"\0", b"")
        told = b"/".join(segment.partition(b";")[0] for segment in told.split(b"/"))
        return super().receive(head._replace(target=normpath(told).rstrip(b".").lower()))


RAW_PATHS = Defence(
    "raw_paths",
    "Paths are compared as they came: nothing is decoded, resolved or tidied up.",
    lambda usual: usual._replace(reception=_TidiesPaths),
)


class _ReadsUnderscores(Reception):
    """Takes names as CGI has them."""

    def receive(self, head: Head) -> Visit:
        fields = {name.replace(b"_", b"-"): value for name, value in head.fields.items()}
        return super().receive(head._replace(fields=fields))


NAMES_AS_THEY_ARE = Defence(
    "names_as_they_are",
    "A header's name is compared whole: an underscore is no dash.",
    lambda usual: usual._replace(reception=_ReadsUnderscores),
)


class _ComparesText(KeyRing):
    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    def tenant_of(self, key: bytes) -> Tenant | None:
        # It takes no text beyond ASCII.
        compare_digest(key.decode("latin-1"), "sk-pg_")
        return self._ring.tenant_of(key)


class _JudgesText(Reception):
    def __init__(self, keys: KeyRing | None, *given: Any, **named: Any) -> None:
        super().__init__(None if keys is None else _ComparesText(keys), *given, **named)


KEYS_BY_DIGEST = Defence(
    "keys_by_digest",
    "A key is bytes, and found by its digest.",
    lambda usual: usual._replace(reception=_JudgesText),
)


class _TakesTheFirst(Reception):
    def _check_repeated(self, repeated: frozenset[bytes]) -> None:
        """One of them will do."""


SAID_ONCE = Defence(
    "said_once",
    "A header that says who asks, or for what, may come once.",
    lambda usual: usual._replace(reception=_TakesTheFirst),
)


class _PassesTheHop(Reception):
    """Forgets what a Connection field is for."""

    def receive(self, head: Head) -> Visit:
        fields = dict(head.fields)
        visit = super().receive(head)
        head.fields.update(fields)
        return visit


HOP_BY_HOP = Defence(
    "hop_by_hop",
    "What a Connection field names is for this hop, and goes to no pod.",
    lambda usual: usual._replace(reception=_PassesTheHop),
)


class _StripsAtTheDoor(Reception):
    def receive(self, head: Head) -> Visit:
        return super().receive(head._replace(fields=_without_nominated(head.fields, head.fields)))


KEYS_FIRST = Defence(
    "keys_first",
    "Who asks is told by what came, whatever a Connection field names.",
    lambda usual: usual._replace(reception=_StripsAtTheDoor),
)


def _without_nominated(told: dict[bytes, bytes], by: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    nominated = {name.strip().lower() for name in by.get(b"connection", b"").split(b",")}
    return {name: value for name, value in told.items() if name not in nominated}


def _with_fields(
    change: Callable[[dict[bytes, bytes], Mapping[bytes, bytes]], dict[bytes, bytes]],
) -> Callable[[Parts], Parts]:
    """A gateway that does this to the fields for a pod, by the caller's."""

    def head(
        path: bytes, host: bytes, authorization: bytes, fields: Mapping[bytes, bytes], *more: Any, **named: Any
    ) -> bytes:
        start, *lines = request_head(path, host, authorization, fields, *more, **named).split(b"\r\n")[:-2]
        ours = {name: value for name, _, value in (line.partition(b": ") for line in lines)}
        told = [b"%b: %b" % field for field in change(ours, fields).items()]
        return b"\r\n".join([start, *told, b"", b""])

    class _Careless(Forwarder):
        request_head = staticmethod(head)

    return lambda usual: usual._replace(forwarder=_Careless)


OUR_HEADERS = Defence(
    "our_headers",
    "What the gateway says to a pod is its own: no word of a caller takes any of it away.",
    _with_fields(_without_nominated),
)
FEW_HEADERS = Defence(
    "few_headers",
    "Of a caller's headers those pass that are listed, and no other.",
    _with_fields(lambda ours, fields: {**fields, **ours}),
)


class _ReadsLikePython(Pipeline):
    """Believes its own decoder, and sends on what came."""

    @staticmethod
    def look(body: bytes, operation: Operation) -> Look:
        try:
            told = json.loads(body)
        except ValueError:
            raise InvalidJson("the body is not JSON") from None
        if not isinstance(told["model"], str):
            raise InvalidRequest("the model is no text")
        values = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in told.items()}
        return Look(body, values, told["model"], stream=False, may_name_urls=False)


JSON_MEANS_ONE_THING = Defence(
    "json_means_one_thing",
    "What parsers read in different ways is refused, before anything is read of it.",
    lambda usual: usual._replace(pipeline=_ReadsLikePython),
)


class _WalksThroughJson(Pipeline):
    @staticmethod
    def look(body: bytes, operation: Operation) -> Look:
        members(body)
        return look(body, operation)


READ_IN_PASSES = Defence(
    "read_in_passes",
    "A body is looked at in a few passes of the machine's, and in no loop of Python's.",
    lambda usual: usual._replace(pipeline=_WalksThroughJson),
)


class _TakesAnyContentType(Reception):
    def _check_body(self, visit: Visit, fields: dict[bytes, bytes]) -> None:
        """It looks like JSON."""


JSON_ALONE = Defence(
    "json_alone",
    "JSON is read where the content type says so, in UTF-8 and not encoded.",
    lambda usual: usual._replace(reception=_TakesAnyContentType),
)


class _BelievesInNames(Metrics):
    def observe(self, trail: Trail) -> None:
        trail.served_model = True
        super().observe(trail)


BOUNDED_LABELS = Defence(
    "bounded_labels",
    "A name that a caller has made up is no label: it counts as `other`.",
    lambda usual: usual._replace(metrics=_BelievesInNames),
)


class _LabelsPaths(Reception):
    def receive(self, head: Head) -> Visit:
        visit = super().receive(head)
        visit.trail.operation = head.target.decode("latin-1")
        return visit


ROUTES_ARE_LABELS = Defence(
    "routes_are_labels",
    "A path is a label where there is such a route; any other counts as `other`.",
    lambda usual: usual._replace(reception=_LabelsPaths),
)


class _RemembersAll(Edge):
    def remember_host(self, host: bytes | None) -> None:
        self.hosts.add(host)


FEW_REMEMBERED = Defence(
    "few_remembered",
    "What is remembered of what callers say has a bound.",
    lambda usual: usual._replace(edge=_RemembersAll),
)


class _WritesAsItCame(AccessLog):
    def __init__(self, out: BinaryIO) -> None:
        super().__init__(out)
        self._render = _as_it_came


def _as_it_came(trail: Trail, moment: str, told: Told) -> bytes:
    return f'{{"time":"{moment}","model":"{trail.model}","finish":"{trail.finish}"}}\n'.encode()


LINES_ESCAPED = Defence(
    "lines_escaped",
    "A request is one line of JSON: what would end it or colour a terminal is escaped, and what is long is cut.",
    lambda usual: usual._replace(access_log=_WritesAsItCame),
)


def _tells_errors(usual: Parts) -> Parts:
    class _Tells(usual.forwarder):  # type: ignore[name-defined,misc]  # whichever the scene has
        async def forward(self, *given: Any) -> None:
            try:
                await super().forward(*given)
            except Exception as error:
                logging.getLogger("poolgate").error("a request failed: %s", error)
                raise

    return usual._replace(forwarder=_Tells)


ERRORS_UNQUOTED = Defence(
    "errors_unquoted",
    "Of an error of its own the gateway logs the type and the place, and never the words.",
    _tells_errors,
)


class _ProxiesAll(Reception):
    def receive(self, head: Head) -> Visit:
        visit = super().receive(head)
        if not isinstance(visit.error, NotFound):
            return visit
        visit = super().receive(head._replace(target=CHAT.path, method=CHAT.method))
        visit.operation = replace(CHAT, path=head.target)
        return visit


LISTED_ROUTES = Defence(
    "listed_routes",
    "A path that is not in the table of operations reaches no pod.",
    lambda usual: usual._replace(reception=_ProxiesAll),
)


class _Reflects(Origins):
    def lines_for(self, fields: Mapping[bytes, bytes], repeated: frozenset[bytes]) -> bytes:
        origin = fields.get(b"origin", b"*")
        return b"access-control-allow-origin: %b\r\naccess-control-allow-credentials: true\r\n" % origin


class _LetsPagesIn(Reception):
    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.origins = _Reflects(("*",))


ORIGINS_LISTED = Defence(
    "origins_listed",
    "A page of another origin may read answers if it is listed, and never with credentials.",
    lambda usual: usual._replace(reception=_LetsPagesIn),
)


class _PassesAnswersHead(Relay):
    __slots__ = ()

    def _judge(self, body: bytes) -> First:
        judged, head = super()._judge(body), self._head
        own = (b"content-type", b"content-length")
        if isinstance(judged, Whole) and head is not None:
            return judged._replace(headers=tuple(each for each in head.fields.items() if each[0] not in own))
        return judged


class _PassesAnswersHeads(Forwarder):
    relays = _PassesAnswersHead


ANSWERS_HEAD_IS_OURS = Defence(
    "answers_head_is_ours",
    "Nothing of a pod's head is passed on but its content type.",
    lambda usual: usual._replace(forwarder=_PassesAnswersHeads),
)


class _NeverForgets(PrefixIndex):
    def __init__(self) -> None:
        super().__init__(1 << 40, 1 << 40)


class _NeverForgetsPrompts(Balancer):
    caches = _NeverForgets


FORGETS_PROMPTS = Defence(
    "forgets_prompts",
    "What is known of pods' caches has a bound: the least recently used is forgotten.",
    lambda usual: usual._replace(balancer=_NeverForgetsPrompts),
)


class _Unsalted(Look):
    @property
    def cache_salt(self) -> bytes:
        return b""


class _ForgetsSalt(Pipeline):
    @staticmethod
    def look(body: bytes, operation: Operation) -> Look:
        return _Unsalted(*look(body, operation))


SALT_APART = Defence(
    "salt_apart",
    "Prompts of two salts have nothing in common, whatever they say.",
    lambda usual: usual._replace(pipeline=_ForgetsSalt),
)


class _LetsAllFields(Reception):
    def receive(self, head: Head) -> Visit:
        visit = super().receive(head)
        visit.tenant = replace(visit.tenant, allow_fields=frozenset(GUARDED_FIELDS))
        return visit


GUARDED = Defence(
    "guarded_fields",
    "A field that reaches past the caller's own request wants a key that may send it.",
    lambda usual: usual._replace(reception=_LetsAllFields),
)

# --- All at once.


MONOTONIC = Defence(
    "monotonic",
    "What lasts is measured by a clock that nobody can set.",
    lambda usual: usual._replace(limits=lambda config, replicas, clock, chance: MemoryStore(clock.wall)),
)


class _MakesDo(Reload):
    """Takes the defaults for what it cannot read."""

    async def _renew(self, followed: Followed[Any]) -> None:
        try:
            followed.load()
        except ConfigError:
            followed.use(Config() if isinstance(followed, FollowedConfig) else ())
        await super()._renew(followed)


ALL_OR_NOTHING = Defence(
    "all_or_nothing",
    "A file that cannot be used whole changes nothing.",
    lambda usual: usual._replace(reload=_MakesDo),
)


class _EndsWhatRuns(Admission):
    """With the keys that are no more, and all others."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._running: WeakSet[asyncio.Task[Any]] = WeakSet()

    def _decided(self, *given: Any) -> Reservation:
        if (task := asyncio.current_task()) is not None:
            self._running.add(task)
        return super()._decided(*given)

    def forget_callers(self) -> None:
        super().forget_callers()
        for task in self._running:
            task.cancel()


KEYS_AT_THE_DOOR = Defence(
    "keys_at_the_door",
    "A key is judged when its request comes; what runs goes on, whatever becomes of the key.",
    lambda usual: usual._replace(admission=_EndsWhatRuns),
)


class _EndlessLine(Balancer):
    async def wait_for_room(self, route: Route, *given: Any, **named: Any) -> Lease:
        endless = replace(route, pool=replace(route.pool, queue_limit=1 << 30))
        return await super().wait_for_room(endless, *given, **(named | {"deadline": inf}))


SHORT_LINE = Defence(
    "short_line",
    "So many wait for a pod, and so long, that whoever gets one still has the patience for its answer.",
    lambda usual: usual._replace(balancer=_EndlessLine),
)


class _TriesFreely(Retries):
    def again(self, failure: Failure, uid: str, budget_left: bool) -> Again | None:
        return super().again(failure, uid, budget_left=True)


class _HasNoBudget(Forwarder):
    retries = _TriesFreely


RETRY_BUDGET = Defence(
    "retry_budget",
    "A tenth of what runs is sent again at once, and no more.",
    lambda usual: usual._replace(forwarder=_HasNoBudget),
)


class _RendersOnTheLoop(Exposition):
    async def text(self) -> bytes:
        if self._clock() >= self._good_until:
            self._observe()
            self._text = self._render()
            self._good_until = self._clock() + KEEP_SECONDS
        return self._text


OFF_THE_LOOP = Defence(
    "off_the_loop",
    "The text of the metrics is rendered in a thread.",
    lambda usual: usual._replace(exposition=_RendersOnTheLoop),
)


class _RendersForEach(Exposition):
    async def text(self) -> bytes:
        self._observe()
        return await asyncio.to_thread(self._render)


ONE_TEXT = Defence(
    "one_text",
    "Whoever asks for the metrics within a second gets the same text, which is rendered once.",
    lambda usual: usual._replace(exposition=_RendersForEach),
)


def defences() -> tuple[Defence, ...]:
    """All of them, in the order they stand here."""
    return tuple(value for value in globals().values() if isinstance(value, Defence))
