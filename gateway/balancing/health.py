"""Which pods of a pool are sick: one state machine per pod, told what happened there and when. Pure.

    HEALTHY ──▶ EJECTED ── its time is over and its /health says 200 ──▶ PROBING ── an answer ──▶ RETURNING ──▶ HEALTHY
                   ▲  ▲                                                     │                         │
                   │  └────────────────── its request failed ───────────────┘                         │
                   └──────────────────────────────────────────────────────────────────────────────────┘

A pod is ejected, and gets no work, after three failures in a row, or when half of what it did lately failed, or at once
when it is found wedged. Each ejection is ten seconds longer than the one before, so that a pod that comes and goes does
ever less harm; a clean minute takes one off again. It comes back in three steps, since `/health` is no proof: it is
asked, then given one request at a time, then a growing share. (The rules are those of Envoy's outlier detection, with
numbers for small pools and long requests; the slow start is HAProxy's.)

**Whose fault is a 500?** Often the request's. It weighs on the pod only where something speaks against the pod: other
pods answer the same caller, or another caller got a 500 here too, both within a minute. "Answer" is the last word that
each of them had for this caller, and they do if no more of them had a 500 than an answer. So one caller's bad requests,
which fail everywhere, weigh nothing; and a pod that fails whatever it is asked is found after three requests, behind
one shared key as well. A caller that mixes good and bad requests makes a healthy pod look like that now and then. What
protects the pods from it: a single answer to anybody ends the row of failures, so it takes most of a pod's traffic to
harm it; and the bound that follows.

**At most half of the ready pods are out at a time**, which also means never the last one: an ejection beyond that does
not happen. If pods leave otherwise, until those that are neither ejected nor on trial are fewer than half of all that
the pool should have, there is *panic*: the ejected ones are used like any other, since they may be better than their
name, and the few that are left would go down under the work of all. It ends by itself.

**A new pod is cold** and gets a growing share too, for thirty seconds. Shares compare: they are of what the warmest pod
gets, so that a pool in which every pod is new, or back, is not held back by anything.

Outcomes of an ejected pod, and failures of what was sent before it came back, say nothing of it now and are ignored.
"""

from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence
from enum import Enum, StrEnum
from math import inf

FAILURES_IN_A_ROW = 3
SHARE_MIN_ATTEMPTS = 10
SHARE_MIN_PODS = 3
"""In a smaller pool the share that fails tells little: there is hardly anything to compare it with."""
SLOT_SECONDS = 5.0
SLOTS = 6
"""Attempts are counted over thirty seconds, in slots: the oldest is dropped as a new one begins."""
EJECTION_SECONDS = 10.0
MAX_EJECTION_SECONDS = 300.0
JITTER_SECONDS = 2.0
"""By chance on top of each ejection, so that not all replicas come back to a pod at once."""
MAX_EJECTIONS = int(MAX_EJECTION_SECONDS / EJECTION_SECONDS)
CLEAN_SECONDS = 60.0
"""So long without a failure takes one ejection off a pod's count."""
EVIDENCE_SECONDS = 60.0
"""How long it is remembered what a pod said to a caller."""
MAX_CALLERS = 512
"""Remembered per pod. Where there are more, several of them see a sick pod."""
RAMP_SECONDS = 30.0
LEAST_WEIGHT = 0.1
ASK_AGAIN_SECONDS = 30.0
"""A pod that was due is due again after so long, if nobody said how it is."""
AWAY_SECONDS = 600.0
MAX_AWAY = 256
"""Pods that are not ready any more are remembered so long, and so many of them: they may come and go."""


class State(Enum):
    """See the module's text."""

    HEALTHY = "healthy"
    EJECTED = "ejected"
    """It gets no work, unless there is panic."""
    PROBING = "probing"
    """It gets one request at a time, unless there is panic."""
    RETURNING = "returning"
    """It gets a growing share."""


_HEALTHY = State.HEALTHY
"""Read with every answer: off its class it costs some ten times as much."""


class Reason(StrEnum):
    """Why a pod was ejected: a closed set, the `reason` of the ejections metric."""

    CONSECUTIVE = "consecutive"
    """Failures in a row."""
    SHARE = "share"
    """Half of what it did lately failed."""
    WEDGED = "wedged"
    """Requests wait there, and nothing comes."""
    PROBE = "probe"
    """The first request after an ejection failed."""


class PoolHealth:
    """The health of one pool's pods, by uid. See the module's text.

    Every `now` is monotonic seconds, never less than the one before. What is told of a pod that is not ready is
    ignored. `chance()` is uniform in [0, 1).
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._ready: dict[str, _Record] = {}
        self._away: dict[str, _Record] = {}
        """Those that are not ready now, in the order in which they left."""
        self._out: dict[str, _Record] = {}
        """Of the ready ones those that are ejected or on trial."""
        self._ramping: dict[str, float] = {}
        """Of the ready ones those with a growing share, and since when; the oldest first."""
        self._total = 0
        self.panic = False
        """Ejected pods are used all the same: too few others are left."""

    def keep(self, ready: Collection[str], total: int, now: float, *, starting: bool = False) -> None:
        """These pods are ready now, of `total` that the pool should have: those that do not terminate.

        `starting`: who is met for the first time was there before us, and is warm: the fleet is not known whole yet.
        """
        uids = frozenset(ready)
        for uid in [uid for uid in self._ready if uid not in uids]:
            self._leaves(self._ready.pop(uid), now)
        for uid in ready:
            if uid not in self._ready:
                self._ready[uid] = self._comes(uid, now, warm=starting)
        while self._away:
            uid, record = next(iter(self._away.items()))
            if len(self._away) <= MAX_AWAY and now - record.left_at < AWAY_SECONDS:
                break
            del self._away[uid]
        self._total = total
        self._look_around()

    # What happened at a pod. Busy pods, connections that were stale and clients that left say nothing of its health.

    def began(self, uid: str, caller: Hashable, now: float) -> None:
        """The first content of an answer came; a stream's end may be minutes away."""
        record = self._ready.get(uid)
        if record is not None:
            self._speaks(record, caller, now)

    def answered(self, uid: str, caller: Hashable, now: float) -> None:
        """An attempt succeeded. To refuse a bad request is to answer it."""
        record = self._ready.get(uid)
        if record is None:
            return
        if record.state is _HEALTHY and caller in record.answered_to:
            record.answered_to[caller] = now
        else:
            self._speaks(record, caller, now)
        record.in_a_row = 0
        if now >= record.slot_ends:
            record.turn(now)
        record.good += 1

    def failed(self, uid: str, caller: Hashable, now: float, *, sent_at: float = inf) -> Reason | None:
        """An attempt, sent to the pod at `sent_at`, failed by the pod's fault. The reason, if that ejected the pod."""
        record = self._accused(uid, sent_at)
        if record is None:
            return None
        record.answered_to.pop(caller, None)
        return self._blame(record, now)

    def erred(self, uid: str, caller: Hashable, now: float, *, sent_at: float = inf) -> Reason | None:
        """An attempt ended in a 500 that may be its own fault. The reason, if that ejected the pod."""
        record = self._accused(uid, sent_at)
        if record is None:
            return None
        since = now - EVIDENCE_SECONDS
        at_fault = record.another_erred(caller, since) or self._others_answer(record, caller, since)
        record.note_error(caller, now)
        return self._blame(record, now) if at_fault else None

    def wedged(self, uid: str, now: float) -> Reason | None:
        """Its requests wait far too long, and nothing comes. The reason, if that ejected the pod."""
        record = self._accused(uid)
        return None if record is None else self._eject(record, Reason.WEDGED, now)

    # The way back.

    def due(self, now: float) -> Sequence[str]:
        """Pods whose ejection is over, once each: their `/health` is to be asked, and `recovered` or `still_sick` to be
        told. To be called a few times a second; what time alone changes is done here too."""
        self._end_ramps(now)
        due = [record for record in self._out.values() if record.state is State.EJECTED and record.until <= now]
        for record in due:
            record.until = now + ASK_AGAIN_SECONDS
        return [record.uid for record in due]

    def recovered(self, uid: str, now: float) -> None:
        """An ejected pod's `/health` said 200: it is given a trial."""
        record = self._out.get(uid)
        if record is not None and record.state is State.EJECTED:
            record.state = State.PROBING
            record.judged_from = now

    def still_sick(self, uid: str, now: float) -> None:
        """An ejected pod's `/health` said otherwise, or nothing: it stays out, and longer."""
        record = self._out.get(uid)
        if record is not None and record.state is State.EJECTED:
            record.sit_out(now, self._chance())

    # What follows for a choice.

    def state(self, uid: str) -> State:
        """HEALTHY for a pod of which nothing is known."""
        record = self._ready.get(uid) or self._away.get(uid)
        return State.HEALTHY if record is None else record.state

    def seconds_left(self, uid: str, now: float) -> float:
        """Until an ejected pod is asked how it is, or asked again; 0 for any other."""
        record = self._out.get(uid)
        return max(0.0, record.until - now) if record is not None and record.state is State.EJECTED else 0.0

    def usable(self, uid: str) -> bool:
        """Whether a ready pod may get work. There is always one as long as a pod is ready."""
        return self.panic or self.state(uid) is not State.EJECTED

    def weight(self, uid: str, now: float) -> float:
        """A pod's share of the work, compared with the warmest pod's: 0.1 to 1."""
        since = self._ramping.get(uid)
        if since is None:
            return 1.0
        if len(self._ready) > len(self._out) + len(self._ramping):
            return ramp(now - since)
        return ramp(now - since) / ramp(now - next(iter(self._ramping.values())))

    @property
    def ramping(self) -> bool:
        """Whether some pod's weight changes with time now."""
        return bool(self._ramping)

    # Within.

    def _comes(self, uid: str, now: float, *, warm: bool) -> "_Record":
        """A pod is ready: a new one, or one that was away. After long enough that one's caches are cold as well, and
        what was sent to it before says nothing of it any more."""
        record = self._away.pop(uid, None)
        if record is None:
            record = _Record(uid)
        else:
            warm = record.warm
            if now - record.left_at >= RAMP_SECONDS:
                warm = False
                record.in_a_row = 0
                record.judged_from = now
        if record.state in (State.EJECTED, State.PROBING):
            self._out[uid] = record
        elif not warm:
            self._ramping[uid] = now
        return record

    def _leaves(self, record: "_Record", now: float) -> None:
        """A pod is not ready any more. What the next failures would add to is kept, and what others said of it; an
        ejection too: its time runs on."""
        record.left_at = now
        record.warm = self._ramping.pop(record.uid, None) is None
        record.answered_to.clear()
        record.erred_to.clear()
        self._out.pop(record.uid, None)
        self._away[record.uid] = record

    def _speaks(self, record: "_Record", caller: Hashable, now: float) -> None:
        answered_to = record.answered_to
        answered_to[caller] = now
        if len(answered_to) > MAX_CALLERS:
            answered_to.clear()
        if record.state is State.PROBING:
            record.state = State.RETURNING
            record.clean_since = now
            del self._out[record.uid]
            self._ramping[record.uid] = now
            self._look_around()

    def _accused(self, uid: str, sent_at: float = inf) -> "_Record | None":
        """The pod, if what is said against it counts."""
        record = self._ready.get(uid)
        if record is None or record.state is State.EJECTED or sent_at < record.judged_from:
            return None
        return record

    def _others_answer(self, accused: "_Record", caller: Hashable, since: float) -> bool:
        answer = err = 0
        for record in self._ready.values():
            if record is accused:
                continue
            # An error strikes out the answer before it: what is left is the last word.
            if record.answered_to.get(caller, -inf) >= since:
                answer += 1
            elif record.erred_to.get(caller, -inf) >= since:
                err += 1
        return answer > 0 and answer >= err

    def _blame(self, record: "_Record", now: float) -> Reason | None:
        if record.state is State.PROBING:
            return self._eject(record, Reason.PROBE, now)
        record.forgive(now)
        if now >= record.slot_ends:
            record.turn(now)
        record.bad += 1
        record.in_a_row += 1
        if record.in_a_row >= FAILURES_IN_A_ROW:
            return self._eject(record, Reason.CONSECUTIVE, now)
        if len(self._ready) >= SHARE_MIN_PODS and record.half_failed():
            return self._eject(record, Reason.SHARE, now)
        return None

    def _eject(self, record: "_Record", reason: Reason, now: float) -> Reason | None:
        uid = record.uid
        if 2 * (len(self._out) + (uid not in self._out)) > len(self._ready):
            return None
        if record.state is not State.PROBING:
            record.forgive(now)
        record.sit_out(now, self._chance())
        self._out[uid] = record
        self._ramping.pop(uid, None)
        self._look_around()
        return reason

    def _end_ramps(self, now: float) -> None:
        while self._ramping:
            uid, since = next(iter(self._ramping.items()))
            if now - since < RAMP_SECONDS:
                return
            del self._ramping[uid]
            self._ready[uid].state = State.HEALTHY

    def _look_around(self) -> None:
        self.panic = bool(self._out) and 2 * (len(self._ready) - len(self._out)) < self._total


class _Record:
    """What is known of one pod."""

    __slots__ = (
        "answered_to",
        "bad",
        "clean_since",
        "ejections",
        "erred_to",
        "good",
        "in_a_row",
        "judged_from",
        "left_at",
        "past",
        "slot_ends",
        "state",
        "uid",
        "until",
        "warm",
    )

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.state = State.HEALTHY
        self.ejections = 0
        """That still count: the next one lasts longer by so many."""
        self.until = 0.0
        """When it may be asked how it is; of an ejected pod."""
        self.judged_from = -inf
        """Failures of what was sent before do not count."""
        self.clean_since = 0.0
        """Since its last failure, or its return."""
        self.in_a_row = 0
        self.good = 0
        self.bad = 0
        self.slot_ends = 0.0
        self.past: deque[tuple[int, int]] = deque(maxlen=SLOTS - 1)
        """(good, bad) of the slots before this one."""
        self.answered_to: dict[Hashable, float] = {}
        self.erred_to: dict[Hashable, float] = {}
        """When it last answered each caller, and sent it a 500: the latter in the order of time."""
        self.left_at = 0.0
        self.warm = True
        """Whether it had its full share when it left."""

    def turn(self, now: float) -> None:
        """Begin the slot of this moment."""
        missed = int((now - self.slot_ends) // SLOT_SECONDS)
        self.past.append((self.good, self.bad))
        self.past.extend([(0, 0)] * min(missed, SLOTS))
        self.slot_ends += (missed + 1) * SLOT_SECONDS
        self.good = self.bad = 0

    def half_failed(self) -> bool:
        good = self.good + sum(good for good, _ in self.past)
        bad = self.bad + sum(bad for _, bad in self.past)
        return good + bad >= SHARE_MIN_ATTEMPTS and bad >= good

    def another_erred(self, caller: Hashable, since: float) -> bool:
        """Whether another caller got a 500 from it."""
        for other, at in reversed(self.erred_to.items()):
            if other != caller:
                return at >= since
        return False

    def note_error(self, caller: Hashable, now: float) -> None:
        self.answered_to.pop(caller, None)
        self.erred_to.pop(caller, None)
        self.erred_to[caller] = now
        if len(self.erred_to) > MAX_CALLERS:
            del self.erred_to[next(iter(self.erred_to))]

    def forgive(self, now: float) -> None:
        """Its clean time ends: take off the ejections that it was worth."""
        if self.ejections:
            self.ejections = max(0, self.ejections - int((now - self.clean_since) // CLEAN_SECONDS))
        self.clean_since = now

    def sit_out(self, now: float, chance: float) -> None:
        self.state = State.EJECTED
        self.ejections = min(self.ejections + 1, MAX_EJECTIONS)
        self.until = now + self.ejections * EJECTION_SECONDS + chance * JITTER_SECONDS
        self.in_a_row = self.good = self.bad = 0
        self.past.clear()
        self.answered_to.clear()


def ramp(seconds: float) -> float:
    """The share of a pod that has been back, or new, for so long: 0.1 to 1."""
    return min(1.0, LEAST_WEIGHT + (1.0 - LEAST_WEIGHT) * seconds / RAMP_SECONDS)
