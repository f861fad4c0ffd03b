"""The rules: one class for each invariant, with what it says in a sentence, and how it is judged.

A rule hears every event together with the life of the request it belongs to, if any, after the life has taken it in;
`over` is for a life on which no side has more to say, `tick` for what must have happened by now, `quiet` for the end.
Each returns what is wrong, in words.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from loadtest.invariants import events as e
from loadtest.invariants.errors import IN_A_STREAM
from loadtest.invariants.events import Event, How, Kind
from loadtest.invariants.lives import Life

GONE = ("terminating", "gone")
Found = Iterable[tuple[str, str]]
"""(a request's id or empty, what is wrong)."""


@dataclass(frozen=True)
class Bounds:
    """What a run holds its gateways to."""

    lines: bool = True
    """Access lines are heard: each request must have one."""
    pods: bool = True
    """Pods are heard: what a client gets must have come from one."""
    abort_seconds: float = 0.25
    """From a client's leave to the end of its attempt at the pod."""
    attempts: int = 5
    """One, two more after refused connections, one on a fresh connection, one elsewhere."""
    received: int = 3
    """So many of them reach a pod: refused connections do not."""
    retries_at_once: int = 10
    retry_share: float = 0.1
    """Of what is active; at least `retries_at_once`."""
    per_minute: Mapping[str, int] = field(default_factory=dict)
    """The limit of requests a minute of a key, over all replicas."""
    rss_base_bytes: float = 160e6
    rss_per_stream_bytes: float = 256e3
    most_series: int = 2000
    canaries: Sequence[str] = ()
    lag_seconds: float = 0.05
    late_share: float = 0.01
    """Of the looks at a loop, so many may find more. A look shows the longest of a whole minute: where other work
    shares the machine, let it be half of them."""
    recovery_seconds: float = 10.0
    share_slack: float = 0.2
    sigmas: float = 4.0
    """A share may be off by so many standard deviations more: chance is no imbalance."""


@dataclass
class World:
    """What the rules look at beside an event."""

    bounds: Bounds
    lives: dict[str, Life] = field(default_factory=dict)
    pods: dict[str, e.PodMarked] = field(default_factory=dict)
    line_counts: dict[str, int] = field(default_factory=dict)
    """Access lines so far, by gateway."""
    token_counts: dict[tuple[str, str], int] = field(default_factory=dict)
    """Tokens of the access lines, by gateway and kind."""
    scrapes: dict[str, e.Scrape] = field(default_factory=dict)
    """The last of each gateway."""


class Rule:
    """See the module's text."""

    name: ClassVar[str]

    def __init__(self, world: World) -> None:
        self.world = world
        self.bounds = world.bounds

    def hear(self, event: Event, life: Life | None) -> Found:
        return ()

    def over(self, life: Life) -> Iterable[str]:
        return ()

    def tick(self, at: float) -> Found:
        return ()

    def quiet(self) -> Iterable[str]:
        return ()


class OneEnding(Rule):
    """Each request ends in one of four ways: whole, an error before the first byte, an error event, the client left;
    and its one access line says the same."""

    name = "I1"

    def hear(self, event: Event, life: Life | None) -> Found:
        if life is None:
            return
        if isinstance(event, e.AnswerEnded):
            yield from ((event.request_id, what) for what in _ending(life))
        elif isinstance(event, e.AccessLine) and life.line is not event.fields:
            yield life.sent.request_id, "a second access line"
        elif isinstance(event, e.AccessLine) and event.fields.get("outcome") == "internal":
            yield life.sent.request_id, "the gateway itself failed"

    def over(self, life: Life) -> Iterator[str]:
        if life.over_at is None:
            yield "neither the answer nor the client came to an end"
        if life.line is None:
            # A client that left at once may never have been read.
            if self.bounds.lines and (life.left_at is None or life.attempts):
                yield "no access line"
            return
        outcome = life.line.get("outcome")
        if life.left_at is None and life.how is not None and outcome not in _outcomes_of(life):
            yield f"the client saw {_seen(life)}, the access line says {outcome}"


def _ending(life: Life) -> Iterator[str]:
    if life.how is How.UNANSWERED:
        yield "not a byte of an answer"
    elif life.status != 200:
        if life.how is How.CUT:
            yield f"an answer of {life.status} was cut"
    elif life.streams:
        if life.how is How.CUT:
            yield "the stream's connection ended without a word"
        elif not life.ended and not (life.told and life.sent.shape is e.Shape.NAMED):
            yield "the stream's body ended without an end mark"
        if life.told and life.code not in IN_A_STREAM and not any(attempt.told for attempt in life.attempts.values()):
            yield f"an error event with the code {life.code!r}, which no pod has sent"
    elif life.how is How.CUT and all(attempt.ended for attempt in life.attempts.values()):
        yield "the answer was cut, though its pod had sent all of it"


def _outcomes_of(life: Life) -> tuple[str, ...]:
    if life.complete:
        # `response.failed` is a whole stream that tells of a failure.
        return ("completed", "upstream_failed") if life.sent.shape is e.Shape.NAMED else ("completed",)
    if life.status == 200:
        return ("truncated", "upstream_failed", "upstream_timeout")
    return ("refused", "upstream_failed", "upstream_timeout", "truncated")


def _seen(life: Life) -> str:
    if life.complete:
        return "a whole answer"
    return f"a 200 that broke ({life.code or life.how})" if life.status == 200 else f"{life.status} {life.code}"


class WholeMeansWhole(Rule):
    """No stream ends cleanly but one whose pod has sent a finish reason for every choice, and the end mark."""

    name = "I2"

    def hear(self, event: Event, life: Life | None) -> Found:
        if not isinstance(event, e.AnswerEnded) or life is None or not (life.complete and life.streams):
            return
        choices = life.sent.choices if life.sent.shape is e.Shape.CHAT else 0
        if life.ended and len(life.finishes) < choices:
            yield event.request_id, f"{len(life.finishes)} finish reasons for {choices} choices, and a clean end"
        if self.bounds.pods and not any(attempt.whole(choices) for attempt in life.attempts.values()):
            yield event.request_id, "a clean end, though no pod has sent all of the answer"


class BytesOfOnePod(Rule):
    """What a client gets is, to the byte, how one pod's answer begins; never of two pods."""

    name = "I3"

    def hear(self, event: Event, life: Life | None) -> Found:
        if not isinstance(event, e.AnswerPiece) or life is None or not (self.bounds.pods and life.sent.to_pods):
            return
        piece = event.piece
        if life.told_before and piece.kind is not Kind.END:
            yield event.request_id, f"{piece.kind} behind an error event"
            return
        if piece.kind in (Kind.ERROR, Kind.END):
            return  # the gateway's own, or a pod's: others judge them
        if life.suspects is None:
            life.suspects = list(life.attempts.values())
        elif not life.suspects:
            return  # said already
        skips = not life.sent.wants_usage
        life.suspects = [
            attempt for attempt in life.suspects if not attempt.compared or attempt.gave(piece, skips_usage=skips)
        ]
        if not life.suspects:
            yield event.request_id, f"piece {life.pieces} ({piece.kind}) is not what any one pod has sent there"


class GaugesComeBack(Rule):
    """Gauges of what runs, waits or is open are never below 0, and are 0 when all is quiet."""

    name = "I4"
    gauges = (
        "poolgate_in_flight", "poolgate_pod_in_flight", "poolgate_queue_depth", "poolgate_buffered_body_bytes",
        "poolgate_connections",
    )  # fmt: skip

    def hear(self, event: Event, life: Life | None) -> Found:
        if isinstance(event, e.Scrape):
            for series, value in self._mine(event):
                if value < 0:
                    yield "", f"{event.gateway}: {series} is {value:g}"

    def quiet(self) -> Iterator[str]:
        for gateway, scrape in self.world.scrapes.items():
            for series, value in self._mine(scrape):
                if value > 0:
                    yield f"{gateway}: {series} is {value:g} when all is quiet"

    def _mine(self, scrape: e.Scrape) -> Iterator[tuple[str, float]]:
        for series, value in scrape.values.items():
            if series.partition("{")[0] in self.gauges:
                yield series, value


class SidesAgree(Rule):
    """The attempts that a gateway counts at its pods are those that are open there, but for what is on its way."""

    name = "I5"
    on_the_way_seconds = 1.0

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._just_over: deque[tuple[float, str]] = deque()
        """(when, gateway) of those that are forgotten."""

    def over(self, life: Life) -> Iterable[str]:
        if life.over_at is not None and life.sent.to_pods:
            self._just_over.append((life.over_at, life.sent.gateway))
        return ()

    def hear(self, event: Event, life: Life | None) -> Found:
        if not isinstance(event, e.Scrape):
            return
        by_pod, by_model = total(event, "poolgate_pod_in_flight"), total(event, "poolgate_in_flight")
        # A pod that is gone has no series any more, while its last streams end.
        if by_pod > by_model:
            yield "", f"{event.gateway}: {by_pod:g} in flight at pods, {by_model:g} of models"
        if not self.bounds.pods:
            return
        since = event.asked_at - self.on_the_way_seconds
        mine = [life for life in self.world.lives.values() if life.sent.gateway == event.gateway]
        running = [attempt for life in mine if life.over_at is None for attempt in life.open_attempts]
        surely = sum(attempt.received_at < since for attempt in running)
        while self._just_over and self._just_over[0][0] <= since:
            self._just_over.popleft()
        perhaps = sum(gateway == event.gateway for _, gateway in self._just_over)
        perhaps += sum(life.sent.to_pods and (life.over_at is None or life.over_at > since) for life in mine)
        if not surely <= by_model <= perhaps:
            told = f"{event.gateway}: {by_model:g} in flight, while pods have {surely} and clients {perhaps}"
            yield "", told


class TokensAddUp(Rule):
    """The tokens of an access line are those that the pod told, or are said to be estimated; the counters are the
    lines' sums."""

    name = "I6"

    def over(self, life: Life) -> Iterator[str]:
        line = life.line
        if line is None or not line.get("completion_tokens") or not self.bounds.pods:
            return
        if line.get("usage_source") != "reported":
            if life.complete and any(attempt.tokens for attempt in life.attempts.values()):
                yield "a whole answer's tokens are not the reported ones"
            return
        charged = (line.get("prompt_tokens"), line.get("completion_tokens"))
        told = [attempt.tokens for attempt in life.attempts.values() if attempt.tokens]
        if told and charged not in told:
            yield f"{charged} tokens are charged as reported; the pods reported {told}"

    def quiet(self) -> Iterator[str]:
        for gateway, scrape in self.world.scrapes.items():
            for kind in ("prompt", "completion"):
                counted = total(scrape, "poolgate_tokens_total", f'kind="{kind}"')
                lines = self.world.token_counts.get((gateway, kind), 0)
                if self.bounds.lines and counted != lines:
                    yield f"{gateway}: {counted:g} {kind} tokens are counted, {lines} stand in access lines"


class NoPickOfTheLeaving(Rule):
    """No pod is picked that is terminating; nor one that is not ready or ejected while another can be used."""

    name = "I7"

    def hear(self, event: Event, life: Life | None) -> Found:
        if isinstance(event, e.Picked):
            if event.state in GONE or (event.state != "ready" and event.others_usable):
                yield event.request_id, f"{event.pod} was picked while {event.state}"
        elif isinstance(event, e.PodReceived):
            mark = self.world.pods.get(event.pod)
            if mark is None or event.at <= mark.known_by or mark.state == "ready":
                return
            others = any(
                other.state == "ready" and other.pool == mark.pool and event.at > other.known_by
                for other in self.world.pods.values()
            )
            if mark.state in GONE or others:
                who = life.sent.request_id if life is not None else ""
                yield who, f"{event.pod} got a request {event.at - mark.known_by:.2f} s after it was {mark.state}"


class FewAttempts(Rule):
    """One attempt, and few more: by the table of retries, and never many at once."""

    name = "I8"

    def hear(self, event: Event, life: Life | None) -> Found:
        if life is None:
            return
        if isinstance(event, e.PodReceived):
            if len(life.attempts) > self.bounds.received:
                yield life.sent.request_id, f"{len(life.attempts)} attempts reached a pod"
            if len(life.attempts) > 1:
                mine = [each for each in self.world.lives.values() if each.sent.gateway == life.sent.gateway]
                active = [each for each in mine if each.over_at is None]
                retries = sum(len(each.attempts) > 1 and each.pieces == 0 and not each.status for each in active)
                most = max(self.bounds.retries_at_once, self.bounds.retry_share * len(active))
                if retries > most:
                    yield life.sent.request_id, f"{retries} retries at once, of {len(active)} requests"
            if life.status:
                yield life.sent.request_id, "an attempt after the answer had begun"
        elif isinstance(event, e.AccessLine):
            attempts = event.fields.get("attempts")
            if isinstance(attempts, int) and attempts > self.bounds.attempts:
                yield life.sent.request_id, f"{attempts} attempts"


class LimitsHold(Rule):
    """What a key gets through all replicas is at most its limit's bucket: what it holds, and what time refills. When
    the shared count is lost, once more."""

    name = "I9"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._levels: dict[str, tuple[float, float]] = {}
        """(tokens left, when)."""

    def hear(self, event: Event, life: Life | None) -> Found:
        if isinstance(event, e.LimitsLost):
            for key, limit in self.bounds.per_minute.items():
                level, at = self._levels.get(key, (float(limit), event.at))
                self._levels[key] = (level + limit + event.replicas - 1, at)
        elif isinstance(event, e.PodReceived) and life is not None and len(life.attempts) == 1:
            if life.sent.key not in self.bounds.per_minute:
                return
            limit = self.bounds.per_minute[life.sent.key]
            level, at = self._levels.get(life.sent.key, (float(limit), event.at))
            # What was lost is not refilled, but may be used up.
            level = max(level, min(limit, level + (event.at - at) * limit / 60)) - 1
            self._levels[life.sent.key] = (level, event.at)
            if level < -1:
                yield life.sent.request_id, f"{life.sent.key} is {-level:.1f} requests above {limit} a minute"


class LeaversAreLetGo(Rule):
    """When a client has left, its attempt at the pod ends at once, and no other begins.

    What a gateway's event loop was held up for is taken off: that is judged by I15.
    """

    name = "I10"

    def _most(self, life: Life) -> float:
        scrape = self.world.scrapes.get(life.sent.gateway)
        lag = 0.0 if scrape is None else scrape.values.get("poolgate_loop_lag_seconds", 0.0)
        return self.bounds.abort_seconds + lag

    def hear(self, event: Event, life: Life | None) -> Found:
        if life is None or life.left_at is None:
            return
        late = self._most(life)
        if isinstance(event, e.PodReceived) and event.at > life.left_at + late:
            yield life.sent.request_id, f"sent to {event.pod} {event.at - life.left_at:.2f} s after its client left"
        ends = isinstance(event, e.PodConnectionClosed | e.PodAnswered) and not life.told_late
        if ends and event.at > life.left_at + late:
            yield life.sent.request_id, f"{event.at - life.left_at:.2f} s until its attempt was given up"

    def tick(self, at: float) -> Found:
        for life in self.world.lives.values():
            if life.left_at is None or life.told_late or not life.open_attempts:
                continue
            if at > life.left_at + self._most(life) + 1:
                life.told_late = True
                yield life.sent.request_id, f"its attempt goes on, {at - life.left_at:.2f} s after its client left"


class MemoryIsBounded(Rule):
    """Memory grows by a bound for each open stream, and the number of series depends on the configuration only."""

    name = "I11"

    def hear(self, event: Event, life: Life | None) -> Found:
        if not isinstance(event, e.Scrape):
            return
        if len(event.values) > self.bounds.most_series:
            yield "", f"{event.gateway}: {len(event.values)} series"
        streams = sum(each.sent.gateway == event.gateway for each in self.world.lives.values())
        most = self.bounds.rss_base_bytes + streams * self.bounds.rss_per_stream_bytes
        if event.values.get("process_resident_memory_bytes", 0) > most:
            told = event.values["process_resident_memory_bytes"] / 1e6
            yield "", f"{event.gateway}: {told:.0f} MB resident with {streams} requests, at most {most / 1e6:.0f}"


class NothingLeaks(Rule):
    """No secret and no byte of a prompt stands where somebody may read it."""

    name = "I12"

    def hear(self, event: Event, life: Life | None) -> Found:
        if isinstance(event, e.Text):
            for canary in self.bounds.canaries:
                if canary in event.text:
                    # Not the text itself: what has leaked once is not to leak again.
                    yield "", f"canary {self.bounds.canaries.index(canary)} in {event.where}"


class ErrorsAreTold(Rule):
    """Every error is JSON of the contract's shape with the request's id; what follows it on the connection is legal."""

    name = "I13"
    at_once_seconds = 1.0

    def hear(self, event: Event, life: Life | None) -> Found:
        if isinstance(event, e.AnswerEnded) and event.faulty:
            status = life.status if life is not None else 0
            yield event.request_id, f"an answer of {status}: {event.faulty}"
        elif isinstance(event, e.LineLost) and event.idle_seconds < self.at_once_seconds:
            yield event.request_id, "the connection ended behind an answer that had not said so"


class NothingIsSmuggled(Rule):
    """Pods get what clients have sent, each at most as often as there were attempts; and nothing else."""

    name = "I14"

    def hear(self, event: Event, life: Life | None) -> Found:
        if isinstance(event, e.PodReceived):
            if life is None:
                yield "", f"{event.pod} got a request that no client has sent ({event.attempt_id})"
            elif not life.sent.to_pods:
                yield life.sent.request_id, f"{event.pod} got a request that is not for pods"
        elif isinstance(event, e.AccessLine) and life is None:
            yield "", f"{event.gateway} has an access line of a request that no client has sent"

    def over(self, life: Life) -> Iterator[str]:
        if self.bounds.pods and life.status == 200 and life.sent.to_pods and not life.attempts:
            yield "answered with 200, and no pod has got it"
        attempts = None if life.line is None else life.line.get("attempts")
        if isinstance(attempts, int) and attempts < len(life.attempts):
            yield f"{len(life.attempts)} attempts reached pods, the access line says {attempts}"

    def quiet(self) -> Iterator[str]:
        for gateway, scrape in self.world.scrapes.items():
            counted = total(scrape, "poolgate_requests_total")
            lines = self.world.line_counts.get(gateway, 0)
            if self.bounds.lines and counted != lines:
                yield f"{gateway}: {counted:g} requests are counted, {lines} have an access line"


class TheLoopIsFree(Rule):
    """Looks at a gateway's event loop find it held up for less than the bound, 99 of 100.

    A look shows the longest of the last minute, so this is stricter than a share of time. The first minute of a process
    is not judged: it is the start. What the machine itself held up is taken off, as far as that is heard.
    """

    name = "I15"
    kept_seconds = 61.0

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._begun_at: dict[str, float] = {}
        self._machine: deque[e.MachineLag] = deque()
        self._looks = 0
        self._late: deque[str] = deque(maxlen=3)
        self._late_looks = 0

    def hear(self, event: Event, life: Life | None) -> Found:
        if isinstance(event, e.MachineLag):
            self._machine.append(event)
        elif isinstance(event, e.Scrape) and "poolgate_loop_lag_seconds" in event.values:
            if event.at < self._begun_at.setdefault(event.gateway, event.at) + self.kept_seconds:
                return ()
            while self._machine and self._machine[0].at < event.at - self.kept_seconds:
                self._machine.popleft()
            machine = max((each.seconds for each in self._machine), default=0.0)
            lag = event.values["poolgate_loop_lag_seconds"]
            self._looks += 1
            if lag - machine > self.bounds.lag_seconds:
                self._late_looks += 1
                self._late.append(f"{event.gateway} {lag * 1e3:.0f} ms, the machine {machine * 1e3:.0f} ms")
        return ()

    def quiet(self) -> Iterator[str]:
        if self._late_looks > self._looks * self.bounds.late_share:
            yield f"{self._late_looks} of {self._looks} looks found a lag, the last: {'; '.join(self._late)}"


class FaultsPass(Rule):
    """Soon after a fault has ended nothing fails any more, and every ready pod has its share."""

    name = "I16"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._faults = 0
        self._last = ""
        self._calm_from = float("inf")
        self._even_from = float("inf")
        self._shares: dict[str, int] = {}
        self.judged_shares = 0

    def hear(self, event: Event, life: Life | None) -> Found:
        if isinstance(event, e.FaultBegan):
            yield from (("", what) for what in self._uneven())
            self._faults += 1
            self._calm_from = self._even_from = float("inf")
        elif isinstance(event, e.FaultEnded):
            self._faults -= 1
            self._last = event.fault
            if not self._faults:
                self._calm_from = event.at + self.bounds.recovery_seconds
                self._even_from = max(event.even_from, self._calm_from)
        elif isinstance(event, e.AnswerEnded) and life is not None and life.sent.at > self._calm_from:
            if life.status >= 500 or not (life.complete or 400 <= life.status < 500):
                yield event.request_id, f"{_seen(life)}, though {self._last} was over"
        elif isinstance(event, e.PodReceived) and event.at > self._even_from:
            self._shares[event.pod] = self._shares.get(event.pod, 0) + 1

    def quiet(self) -> Iterator[str]:
        yield from self._uneven()

    def _uneven(self) -> Iterator[str]:
        pools: dict[str, list[str]] = {}
        for mark in self.world.pods.values():
            if mark.state == "ready":
                pools.setdefault(mark.pool, []).append(mark.pod)
        for pods in pools.values():
            counts = {pod: self._shares.get(pod, 0) for pod in pods}
            everything = sum(counts.values())
            even = everything / len(pods)
            if len(pods) < 2 or even < 30:
                continue
            self.judged_shares += 1
            chance = self.bounds.sigmas * (even * (1 - 1 / len(pods))) ** 0.5
            for pod, count in counts.items():
                if abs(count - even) > self.bounds.share_slack * even + chance:
                    yield f"{pod} had {count} of {everything} requests for {len(pods)} pods after {self._last}"
        self._shares.clear()


def total(scrape: e.Scrape, name: str, label: str = "") -> float:
    """The sum of a metric's series, of those with a label."""
    return sum(
        value
        for series, value in scrape.values.items()
        if series.partition("{")[0] == name and (not label or label in series)
    )


RULES: tuple[type[Rule], ...] = (
    OneEnding, WholeMeansWhole, BytesOfOnePod, GaugesComeBack, SidesAgree, TokensAddUp, NoPickOfTheLeaving, FewAttempts,
    LimitsHold, LeaversAreLetGo, MemoryIsBounded, NothingLeaks, ErrorsAreTold, NothingIsSmuggled, TheLoopIsFree,
    FaultsPass,
)  # fmt: skip
"""I1 to I16."""
