"""What the checker hears: one value for each thing that somebody saw, with the moment it was seen at.

Moments are seconds of one monotonic clock, that of the process which hands the events over, in the order it saw them.
A client names its request by its own `x-request-id`, never twice the same. A pod sees that id in its own header, with
two words of the gateway's behind it (`ID-OURS-ATTEMPT`): so the sides join without a word of the gateway's state.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple


class Shape(StrEnum):
    """What an answer is made of."""

    WHOLE = "whole"
    """One body."""
    CHAT = "chat"
    """Events with `choices`, then `[DONE]`."""
    NAMED = "named"
    """Events with names and a closing one: messages and responses."""


class Kind(StrEnum):
    """What a piece of an answer is."""

    CONTENT = "content"
    USAGE = "usage"
    """The chunk without choices, which a caller gets who asked for it."""
    ERROR = "error"
    END = "end"
    """`[DONE]`, or the closing event."""
    BODY = "body"
    """All of an answer that is no stream."""


class Piece(NamedTuple):
    """A whole event of a stream, or a whole body, as little of it as judging wants."""

    kind: Kind
    digest: int
    """Of its bytes; comparable within one process."""
    finishes: tuple[int, ...] = ()
    """The indexes that have their finish reason here."""
    tokens: tuple[int, int] | None = None
    """(prompt, completion), if it tells them."""


class How(StrEnum):
    """How an answer ended, as its framing tells."""

    CLEAN = "clean"
    CUT = "cut"
    UNANSWERED = "unanswered"
    """Not even a status line came."""


class RequestSent(NamedTuple):
    at: float
    request_id: str
    gateway: str
    shape: Shape = Shape.WHOLE
    choices: int = 1
    """How many indexes its stream has: `n` times the number of prompts; 0: nobody knows beforehand."""
    wants_usage: bool = False
    to_pods: bool = True
    """It cannot be answered with 200 but by a pod."""
    key: str = ""
    """A name for the caller's key, never the key."""


class AnswerBegan(NamedTuple):
    at: float
    request_id: str
    status: int


class AnswerPiece(NamedTuple):
    at: float
    request_id: str
    piece: Piece


class AnswerEnded(NamedTuple):
    at: float
    request_id: str
    how: How
    closes: bool = False
    """The answer said that its connection ends."""
    faulty: str = ""
    """What is wrong with an error's head or body; empty: nothing, or it is no error."""
    code: str = ""
    """The error's, in the head's place or in the stream."""


class ClientLeft(NamedTuple):
    at: float
    request_id: str


class LineLost(NamedTuple):
    """The gateway closed a connection on which nothing ran, so long after this answer had ended."""

    at: float
    request_id: str
    idle_seconds: float


class PodReceived(NamedTuple):
    at: float
    pod: str
    attempt_id: str
    """Its `x-request-id`."""


class PodPiece(NamedTuple):
    at: float
    attempt_id: str
    piece: Piece


class PodAnswered(NamedTuple):
    """The end of a pod's answer, by its framing. `status` 0: none came."""

    at: float
    attempt_id: str
    status: int
    clean: bool


class PodConnectionClosed(NamedTuple):
    """The connection of an attempt ended before its answer had."""

    at: float
    attempt_id: str
    by_gateway: bool


class PodMarked(NamedTuple):
    """What the cluster says of a pod from now on. Gateways have to know by `known_by`."""

    at: float
    pod: str
    pool: str
    state: str
    """ready, not_ready, terminating, gone."""
    known_by: float


class Picked(NamedTuple):
    """A gateway in the same process has chosen: what its own snapshot said of the pod, and of the others."""

    at: float
    request_id: str
    pod: str
    state: str
    """ready, not_ready, terminating, ejected."""
    others_usable: int


class AccessLine(NamedTuple):
    at: float
    gateway: str
    fields: Mapping[str, object]


class Scrape(NamedTuple):
    """All series of one gateway, between `asked_at` and `at`; a series is written as in the text: `name{a="b"}`."""

    at: float
    asked_at: float
    gateway: str
    values: Mapping[str, float]


class Text(NamedTuple):
    """Words that somebody may read: log lines, metrics, errors, names of Redis' keys."""

    at: float
    where: str
    text: str


class LimitsLost(NamedTuple):
    """What the replicas share is gone or out of reach, so that each counts for itself, or all begin anew."""

    at: float
    replicas: int = 1
    """Each of them may round its share up."""


class MachineLag(NamedTuple):
    """How late a process woke that does nothing but sleep: nobody else here can be blamed for as much."""

    at: float
    seconds: float


class FaultBegan(NamedTuple):
    at: float
    fault: str


class FaultEnded(NamedTuple):
    at: float
    fault: str
    even_from: float
    """From then on the pods' shares are to be even: those that came back have had their slow start."""


Event = (
    RequestSent
    | AnswerBegan
    | AnswerPiece
    | AnswerEnded
    | ClientLeft
    | LineLost
    | PodReceived
    | PodPiece
    | PodAnswered
    | PodConnectionClosed
    | PodMarked
    | Picked
    | AccessLine
    | Scrape
    | Text
    | LimitsLost
    | MachineLag
    | FaultBegan
    | FaultEnded
)
