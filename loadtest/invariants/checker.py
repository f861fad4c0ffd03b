"""Joins what the sides tell into lives, has the rules judge them as it comes, and forgets a life when it is over.

A life is over when the client has its answer or has left, every attempt at a pod has ended, and the access line is
there; or so many seconds after the first of these, whatever is missing. So what is held is what runs, and no more.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

from loadtest.invariants import events as e
from loadtest.invariants.events import Event, How, Kind
from loadtest.invariants.lives import Attempt, Life, number_of, request_id_of
from loadtest.invariants.rules import RULES, Bounds, Rule, World

GRACE_SECONDS = 5.0
TICK_SECONDS = 0.25
MAX_LIVES = 50_000
MAX_KEPT = 1000
"""Violations that are kept with their words; all are counted."""
MAX_FORGOTTEN = 50_000


class Violation(NamedTuple):
    """`request_id` is empty where it is about no single request."""

    at: float
    rule: str
    request_id: str
    what: str

    def __str__(self) -> str:
        return f"{self.at:.3f} {self.rule} {self.request_id or '-'}: {self.what}"


class Checker:
    """`hear` each event in the order it was seen; `quiescent` once all has ended and every gateway was scraped."""

    def __init__(self, bounds: Bounds | None = None, rules: Sequence[type[Rule]] = RULES) -> None:
        self.world = World(bounds or Bounds())
        self.rules = [rule(self.world) for rule in rules]
        self.violations: list[Violation] = []
        self.counts: Counter[str] = Counter()
        """How often each rule was broken."""
        self.heard: Counter[str] = Counter()
        """How many events of each kind came."""
        self.endings: Counter[str] = Counter()
        """How requests ended."""
        self._ticks_at = 0.0
        self._forgotten: set[str] = set()
        self._forgotten_in_order: deque[str] = deque()

    def hear(self, event: Event) -> None:
        self.heard[type(event).__name__] += 1
        if event.at >= self._ticks_at:
            self._tick(event.at)
        if isinstance(event, e.AccessLine) and event.fields.get("request_id") in self._forgotten:
            self._say(event.at, "I1", str(event.fields["request_id"]), "an access line too many, or too late")
            return
        life = self._taken_in(event)
        for rule in self.rules:
            for request_id, what in rule.hear(event, life):
                self._say(event.at, rule.name, request_id, what)
        if life is not None and self._has_all(life):
            self._forget(event.at, life)

    def quiescent(self, at: float) -> None:
        """Nothing runs any more, and each gateway that lives was scraped since: judge what is left, and the sums."""
        for life in list(self.world.lives.values()):
            self._forget(at, life)
        for rule in self.rules:
            for what in rule.quiet():
                self._say(at, rule.name, "", what)

    def forget_gateway(self, gateway: str) -> None:
        """It has ended: its last scrape is no state of rest."""
        self.world.scrapes.pop(gateway, None)

    @property
    def open_lives(self) -> int:
        return len(self.world.lives)

    def _taken_in(self, event: Event) -> Life | None:
        """The life that an event belongs to, after it has told it; None: it belongs to none that is known."""
        world = self.world
        match event:
            case e.RequestSent():
                if event.request_id in world.lives or event.request_id in self._forgotten:
                    raise ValueError(f"{event.request_id} was sent before")
                if len(world.lives) >= MAX_LIVES:
                    raise ValueError(f"{MAX_LIVES} requests without an end")
                life = world.lives[event.request_id] = Life(event)
                return life
            case e.PodMarked():
                world.pods[event.pod] = event
                return None
            case e.Scrape():
                world.scrapes[event.gateway] = event
                return None
            case e.AccessLine(fields=fields):
                self._sum_up(event)
                found = world.lives.get(str(fields.get("request_id")))
                if found is not None and found.line is None:
                    found.line = fields
                return found
            case e.PodReceived(at=at, pod=pod, attempt_id=attempt_id):
                found = world.lives.get(request_id_of(attempt_id))
                if found is not None:
                    found.attempts[attempt_id] = Attempt(pod, number_of(attempt_id), at)
                return found
            case e.PodPiece() | e.PodAnswered() | e.PodConnectionClosed():
                return self._pod_tells(event)
            case e.AnswerBegan() | e.AnswerPiece() | e.AnswerEnded() | e.ClientLeft():
                return self._client_tells(event)
            case e.Picked() | e.LineLost():
                return world.lives.get(event.request_id)
            case _:
                return None

    def _pod_tells(self, event: e.PodPiece | e.PodAnswered | e.PodConnectionClosed) -> Life | None:
        life = self.world.lives.get(request_id_of(event.attempt_id))
        attempt = None if life is None else life.attempts.get(event.attempt_id)
        if attempt is None:
            return life
        if isinstance(event, e.PodPiece):
            attempt.sends(event.piece)
            return life
        attempt.closed_at = event.at
        if isinstance(event, e.PodAnswered):
            attempt.status = event.status
        return life

    def _client_tells(self, event: e.AnswerBegan | e.AnswerPiece | e.AnswerEnded | e.ClientLeft) -> Life | None:
        life = self.world.lives.get(event.request_id)
        if life is None:
            return None
        match event:
            case e.AnswerBegan(status=status):
                life.status = status
            case e.AnswerPiece(piece=piece):
                life.pieces += 1
                life.finishes.update(piece.finishes)
                life.told_before = life.told
                life.told = life.told or piece.kind is Kind.ERROR
                life.ended = life.ended or piece.kind is Kind.END
            case e.AnswerEnded(at=at, how=how, code=code):
                life.how, life.over_at, life.code = how, at, code
                self.endings[_name_of(life)] += 1
            case e.ClientLeft(at=at):
                life.left_at = life.over_at = at
                self.endings["left"] += 1
        return life

    def _sum_up(self, line: e.AccessLine) -> None:
        world = self.world
        world.line_counts[line.gateway] = world.line_counts.get(line.gateway, 0) + 1
        for kind in ("prompt", "completion"):
            tokens = line.fields.get(f"{kind}_tokens")
            if isinstance(tokens, int):
                world.token_counts[line.gateway, kind] = world.token_counts.get((line.gateway, kind), 0) + tokens

    def _has_all(self, life: Life) -> bool:
        if life.over_at is None or life.open_attempts:
            return False
        return life.line is not None or not self.world.bounds.lines

    def _tick(self, at: float) -> None:
        self._ticks_at = at + TICK_SECONDS
        for life in list(self.world.lives.values()):
            if life.over_at is not None and at > life.over_at + GRACE_SECONDS:
                self._forget(at, life)
        for rule in self.rules:
            for request_id, what in rule.tick(at):
                self._say(at, rule.name, request_id, what)

    def _forget(self, at: float, life: Life) -> None:
        for rule in self.rules:
            for what in rule.over(life):
                self._say(at, rule.name, life.sent.request_id, what)
        request_id = life.sent.request_id
        del self.world.lives[request_id]
        self._forgotten.add(request_id)
        self._forgotten_in_order.append(request_id)
        if len(self._forgotten_in_order) > MAX_FORGOTTEN:
            self._forgotten.discard(self._forgotten_in_order.popleft())

    def _say(self, at: float, rule: str, request_id: str, what: str) -> None:
        self.counts[rule] += 1
        if len(self.violations) < MAX_KEPT:
            self.violations.append(Violation(at, rule, request_id, what))


def _name_of(life: Life) -> str:
    if life.complete:
        return "complete"
    if life.told:
        return f"told: {life.code}"
    if life.how is How.CLEAN:
        return f"error: {life.status} {life.code}"
    return str(life.how)
