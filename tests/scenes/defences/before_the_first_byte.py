"""What a gateway does against pods that answer wrongly, late or not at all, before the client has a byte."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import Any
from urllib.parse import urlsplit

from gateway.balancing.balancer import Blame
from gateway.core.errors import (
    PodRefusal,
    UpstreamFailed,
)
from gateway.core.fleet import Deadlines
from gateway.parts import Parts
from gateway.pipeline.forward import Forwarder, Request
from gateway.pipeline.quarantine import Mark, Quarantine
from gateway.pipeline.relay import Failed, First, Relay, StreamRelay, Whole
from gateway.pipeline.retries import BLAME, Again, Retries
from gateway.upstream.connection import AnswerHead, Loss, PodConnection, Receiver
from gateway.upstream.failure import Failure
from gateway.upstream.pool import Pools
from tests.scenes.defences.replacing import but, having
from tests.scenes.scene import Defence


def waiting(**seconds: float) -> Callable[[Parts], Parts]:
    """Gateways that wait so long for what a pod does."""

    class Waits(Forwarder):
        def _relay(self, request: Request, deadlines: Deadlines) -> Relay:
            return super()._relay(request, replace(deadlines, **seconds))

    return having(forwarder=Waits)


TTFT_DEADLINE = Defence(
    "first_token_deadline",
    "A pod has so long for the first token, from the moment the request was whole.",
    waiting(ttft_seconds=inf),
)


RESPONSE_DEADLINE = Defence(
    "response_deadline",
    "A pod has so long for the whole of an answer that is not a stream.",
    waiting(response_seconds=inf),
)


class _TriesAnything(Retries):
    """Once more, whatever it was, as long as there is another pod."""

    def again(self, failure: Failure, uid: str, budget_left: bool) -> Again | None:
        self.excluded.add(uid)
        return Again.OTHER_POD


FEW_TRIES = Defence(
    "few_tries",
    "What has reached a pod is sent once more at most, and only after a failure that is not the request's own.",
    having(forwarder=but(Forwarder, retries=_TriesAnything)),
)


class _NeverTwice(Retries):
    def again(self, failure: Failure, uid: str, budget_left: bool) -> Again | None:
        return super().again(failure, uid, False)


SECOND_TRY = Defence(
    "second_try",
    "What a pod broke off, or was too busy for, before a byte was shown goes to another pod, once.",
    having(forwarder=but(Forwarder, retries=_NeverTwice)),
)


class _StopsAtOne(Retries):
    max_connects = 0


PASSED_OVER = Defence(
    "passed_over",
    "A pod that takes no connection costs nothing: two more are tried.",
    having(forwarder=but(Forwarder, retries=_StopsAtOne)),
)


class _CountsConnects(Retries):
    def again(self, failure: Failure, uid: str, budget_left: bool) -> Again | None:
        return super().again(failure, uid, budget_left) if budget_left else None


FREE_CONNECTS = Defence(
    "free_connects",
    "A connection that was not made draws on no budget: no pod has worked for it.",
    having(forwarder=but(Forwarder, retries=_CountsConnects)),
)


class _WaitsForTheKernel(Pools):
    def use(self, *, connect_seconds: float, idle_seconds: float, api_key: str | None) -> None:
        super().use(connect_seconds=130.0, idle_seconds=idle_seconds, api_key=api_key)


CONNECT_DEADLINE = Defence(
    "connect_deadline",
    "A connection is there within a second, or the pod is passed over.",
    having(pools=_WaitsForTheKernel),
)


WHOSE_FAULT = Defence(
    "whose_fault",
    "A 500 weighs on its pod only if something speaks against the pod; to be busy is no fault.",
    having(forwarder=but(Forwarder, blame={**BLAME, Failure.SERVER_ERROR: Blame.POD, Failure.BUSY: Blame.POD})),
)


REST = Defence(
    "rest",
    "A pod that says it is busy rests for as long as it says, five seconds at most.",
    having(forwarder=but(Forwarder, blame={**BLAME, Failure.BUSY: Blame.NONE})),
)


class _TakesStaleForJunk(Retries):
    def again(self, failure: Failure, uid: str, budget_left: bool) -> Again | None:
        return super().again(Failure.JUNK if failure is Failure.STALE else failure, uid, budget_left)


STALE_RETRY = Defence(
    "stale_retry",
    "A reused connection that dies without a byte is no failure: once more, on a fresh one.",
    having(forwarder=but(Forwarder, retries=_TakesStaleForJunk)),
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
    having(forwarder=_WithoutQuarantine),
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
    having(forwarder=but(Forwarder, relays=_Follows)),
)


class _WaitsForSense(PodConnection):
    __slots__ = ()

    def _lose(self, loss: Loss) -> None:
        if loss is not Loss.JUNK:
            super()._lose(loss)


JUNK_ENDS = Defence(
    "junk_ends",
    "What is not HTTP ends its exchange at once: nobody waits for what may come behind it.",
    having(pools=but(Pools, connection=_WaitsForSense)),
)


class _ReadsAnyHead(PodConnection):
    """Reads what can be read, in one way or another."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
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
    having(pools=but(Pools, connection=_ReadsAnyHead)),
)


class _Patient(PodConnection):
    __slots__ = ()
    max_interim_answers = 1 << 30


INTERIM_ANSWERS = Defence(
    "interim_answers",
    "Sixteen interim answers are dropped; one that has more has none.",
    having(pools=but(Pools, connection=_Patient)),
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
    having(pools=but(Pools, connection=_Expects)),
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
    having(forwarder=but(Forwarder, relays=_PassesOn)),
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
    having(forwarder=but(Forwarder, relays=_SaysAll)),
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
    having(forwarder=but(Forwarder, relays=_AnyTypeOfAnswer, stream_relays=_AnyTypeOfStream)),
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
    having(forwarder=but(Forwarder, relays=_Unread)),
)
