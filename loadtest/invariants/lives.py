"""What is known of one request, from all sides, for as long as it is judged."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from loadtest.invariants.events import How, Kind, Piece, RequestSent, Shape

MAX_AHEAD = 1 << 16
"""So many of a pod's events may be ahead of the client's; what is more is not compared."""


def request_id_of(attempt_id: str) -> str:
    """`ID-OURS-ATTEMPT`, as a pod sees it; the id may have dashes of its own. A stranger's has no `ID-`."""
    words = attempt_id.rsplit("-", 2)
    return words[0] if len(words) == 3 else attempt_id


def number_of(attempt_id: str) -> int:
    """Which attempt it is; the first is 1."""
    last = attempt_id.rpartition("-")[2]
    return int(last) if last.isdigit() else 0


@dataclass(slots=True)
class Attempt:
    """At one pod."""

    pod: str
    number: int
    received_at: float
    ahead: deque[Piece] = field(default_factory=deque)
    """What it has sent and the client has not had."""
    compared: bool = True
    finishes: set[int] = field(default_factory=set)
    ended: bool = False
    """Its end mark came, or all of a body."""
    tokens: tuple[int, int] | None = None
    told: bool = False
    """It has sent an error event."""
    status: int = 0
    closed_at: float | None = None
    """Its answer or its connection ended."""

    def sends(self, piece: Piece) -> None:
        self.finishes.update(piece.finishes)
        self.tokens = piece.tokens or self.tokens
        self.told = self.told or piece.kind is Kind.ERROR
        self.ended = self.ended or piece.kind in (Kind.END, Kind.BODY)
        if len(self.ahead) < MAX_AHEAD:
            self.ahead.append(piece)
        else:
            self.compared = False

    def whole(self, choices: int) -> bool:
        """It has said all there is to say."""
        return self.ended and len(self.finishes) >= choices

    def gave(self, piece: Piece, *, skips_usage: bool) -> bool:
        """Take the client's next piece off what is ahead; False: this attempt has not sent that."""
        while self.ahead:
            ours = self.ahead.popleft()
            if ours.digest == piece.digest:
                return True
            if not (skips_usage and ours.kind is Kind.USAGE):
                return False
        return False


@dataclass(slots=True)
class Life:
    """One request."""

    sent: RequestSent
    attempts: dict[str, Attempt] = field(default_factory=dict)
    suspects: list[Attempt] | None = None
    """Those whose bytes the client's may be; None: nothing came yet."""
    status: int = 0
    pieces: int = 0
    finishes: set[int] = field(default_factory=set)
    told: bool = False
    """An error event came."""
    told_before: bool = False
    """It had come before the piece at hand."""
    ended: bool = False
    """The end mark came."""
    how: How | None = None
    code: str = ""
    left_at: float | None = None
    over_at: float | None = None
    """The answer ended, or the client left."""
    told_late: bool = False
    """It was said that its attempt outlives its client."""
    line: Mapping[str, object] | None = None

    @property
    def streams(self) -> bool:
        """Its good answer is a stream."""
        return self.sent.shape is not Shape.WHOLE

    @property
    def complete(self) -> bool:
        """The client takes it for a whole good answer."""
        return self.how is How.CLEAN and self.status == 200 and not self.told

    @property
    def open_attempts(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts.values() if attempt.closed_at is None]
