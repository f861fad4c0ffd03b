"""Makes events of what a parser of HTTP reports: one object for each answer at a client, one for each at a pod.

Sans-IO: whoever reads the socket calls `head`, `body` and an end. Both keep no byte longer than an event lasts, but for
bodies that are no streams.
"""

from collections.abc import Callable, Mapping

from loadtest.invariants import errors
from loadtest.invariants.events import (
    AnswerBegan,
    AnswerEnded,
    AnswerPiece,
    ClientLeft,
    Event,
    How,
    Kind,
    PodAnswered,
    PodConnectionClosed,
    PodPiece,
    PodReceived,
    RequestSent,
    Shape,
    Text,
)
from loadtest.invariants.pieces import Events, body_of

Hear = Callable[[Event], None]


class ClientSide:
    """One request at the client."""

    def __init__(self, hear: Hear, clock: Callable[[], float], sent: RequestSent) -> None:
        self._hear = hear
        self._clock = clock
        self._sent = sent
        self._headers: Mapping[str, str] = {}
        self._events = Events(sent.shape)
        self._parts: list[bytes] = []
        self._streams = False
        self._over = False
        self.status = 0
        self.code = ""
        """The error's, in the head's place or in the stream."""
        hear(sent)

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """`headers` have lower-case names."""
        self.status, self._headers = status, headers
        self._streams = headers.get("content-type", "").startswith("text/event-stream")
        self._hear(AnswerBegan(self._clock(), self._sent.request_id, status))

    def body(self, data: bytes) -> None:
        if not self._streams:
            self._parts.append(data)
            return
        for piece, event in self._events.feed(data):
            if piece.kind is Kind.ERROR:
                self.code = errors.code_in(event)
                self._said(event)
            self._hear(AnswerPiece(self._clock(), self._sent.request_id, piece))

    def ended(self, *, clean: bool) -> None:
        """By its framing, or with its connection."""
        if self._over:
            return
        self._over = True
        how = How.CLEAN if clean else How.CUT if self.status else How.UNANSWERED
        body = b"".join(self._parts)
        fault = ""
        if self.status >= 400 and clean:
            fault = errors.faulty(self.status, self._headers, body, self._sent.request_id)
            self.code = errors.code_of(body)
            self._said(body)
        elif self.status == 200 and clean and not self._streams:
            self._hear(AnswerPiece(self._clock(), self._sent.request_id, body_of(self._parts)))
        closes = self._headers.get("connection", "").lower() == "close"
        self._hear(AnswerEnded(self._clock(), self._sent.request_id, how, closes, fault, self.code))

    def _said(self, error: bytes) -> None:
        """An error in the gateway's own words; a pod's may repeat what its caller has sent."""
        if self.code in errors.OURS:
            self._hear(Text(self._clock(), f"an error {self.code}", error.decode("utf-8", "replace")))

    def left(self) -> None:
        if not self._over:
            self._over = True
            self._hear(ClientLeft(self._clock(), self._sent.request_id))


class PodSide:
    """One attempt at a pod, on whose connection it is."""

    def __init__(
        self, hear: Hear, clock: Callable[[], float], pod: str, attempt_id: str, shape: Shape = Shape.CHAT
    ) -> None:
        self._hear = hear
        self._clock = clock
        self._attempt_id = attempt_id
        self._events = Events(shape)
        self._parts: list[bytes] = []
        self._streams = False
        self._status = 0
        self._over = False
        hear(PodReceived(clock(), pod, attempt_id))

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self._status = status
        self._streams = headers.get("content-type", "").startswith("text/event-stream")

    def body(self, data: bytes) -> None:
        if not self._streams:
            self._parts.append(data)
            return
        for piece, _ in self._events.feed(data):
            self._hear(PodPiece(self._clock(), self._attempt_id, piece))

    def answered(self) -> None:
        """The answer ended by its own framing."""
        if self._over:
            return
        self._over = True
        if self._status == 200 and not self._streams:
            self._hear(PodPiece(self._clock(), self._attempt_id, body_of(self._parts)))
        self._hear(PodAnswered(self._clock(), self._attempt_id, self._status, clean=True))

    def closed(self, *, by_gateway: bool) -> None:
        """The connection ended; no matter if the answer had."""
        if not self._over:
            self._over = True
            self._hear(PodConnectionClosed(self._clock(), self._attempt_id, by_gateway))
