"""Traces for the checker's tests: one request after another, as its client, its pod and its gateway saw it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from loadtest.invariants import events as e
from loadtest.invariants.checker import Checker
from loadtest.invariants.events import Event, How, Kind, Piece, Shape
from loadtest.invariants.rules import RULES, Bounds, Rule

ROLE, TEXT, LAST = Piece(Kind.CONTENT, 1), Piece(Kind.CONTENT, 2), Piece(Kind.CONTENT, 3, (0,))
USAGE = Piece(Kind.USAGE, 4, (), (7, 2))
DONE = Piece(Kind.END, 5)
ERROR = Piece(Kind.ERROR, 6)
BODY = Piece(Kind.BODY, 8, (), (7, 2))
STREAM = (ROLE, TEXT, LAST, USAGE, DONE)
SEEN = (ROLE, TEXT, LAST, DONE)
"""What a caller gets of it who did not ask for usage."""


class Trace:
    """Events, each a hundredth of a second after the one before."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.at = 100.0

    def tell(self, make: Callable[..., Event], *values: Any, after: float = 0.01, **named: Any) -> "Trace":
        self.at += after
        self.events.append(make(self.at, *values, **named))
        return self

    def sends(self, request_id: str = "r", shape: Shape = Shape.CHAT, **more: Any) -> "Trace":
        return self.tell(e.RequestSent, request_id, "g", shape, **more)

    def pod(
        self, *pieces: Piece, number: int = 1, request_id: str = "r", pod: str = "a", after: float = 0.01
    ) -> "Trace":
        """A pod gets the request and answers so far; it has not ended."""
        attempt_id = f"{request_id}-0f-{number}"
        self.tell(e.PodReceived, pod, attempt_id, after=after)
        for piece in pieces:
            self.tell(e.PodPiece, attempt_id, piece)
        return self

    def pod_ends(self, number: int = 1, request_id: str = "r", after: float = 0.01) -> "Trace":
        return self.tell(e.PodAnswered, f"{request_id}-0f-{number}", 200, clean=True, after=after)

    def pod_is_cut(self, number: int = 1, request_id: str = "r", after: float = 0.01) -> "Trace":
        return self.tell(e.PodConnectionClosed, f"{request_id}-0f-{number}", by_gateway=False, after=after)

    def client(self, *pieces: Piece, status: int = 200, request_id: str = "r") -> "Trace":
        self.tell(e.AnswerBegan, request_id, status)
        for piece in pieces:
            self.tell(e.AnswerPiece, request_id, piece)
        return self

    def ends(self, how: How = How.CLEAN, request_id: str = "r", **more: Any) -> "Trace":
        return self.tell(e.AnswerEnded, request_id, how, **more)

    def line(self, outcome: str = "completed", request_id: str = "r", **more: Any) -> "Trace":
        fields = {
            "request_id": request_id,
            "outcome": outcome,
            "attempts": 1,
            "prompt_tokens": 7,
            "completion_tokens": 2,
            "usage_source": "reported",
        }
        return self.tell(e.AccessLine, "g", fields | more)

    def scrape(self, values: Mapping[str, float], took: float = 0.01, after: float = 0.01) -> "Trace":
        return self.tell(e.Scrape, self.at + after - took, "g", dict(values), after=after)

    def later(self, seconds: float) -> "Trace":
        self.at += seconds
        return self

    def whole(self, request_id: str = "r", **more: Any) -> "Trace":
        """A stream as it should be."""
        self.sends(request_id, **more).pod(*STREAM, request_id=request_id).pod_ends(request_id=request_id)
        return self.client(*SEEN, request_id=request_id).ends(request_id=request_id).line(request_id=request_id)


def broken(trace: Trace, *, bounds: Bounds | None = None, rules: Iterable[type[Rule]] = RULES) -> list[str]:
    """The rules that a trace breaks, with a moment of rest at its end; each once, in order."""
    checker = Checker(bounds, tuple(rules))
    for event in trace.events:
        checker.hear(event)
    checker.quiescent(trace.at + 1)
    return sorted({violation.rule for violation in checker.violations}, key=lambda name: int(name[1:]))
