"""Whatever happens to a pool's pods, in whatever order: never too many are out, one is always usable, and each comes
back."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.balancing.health import ASK_AGAIN_SECONDS, PoolHealth, Reason, State

UIDS = "abcdef"
OUT = (State.EJECTED, State.PROBING)
LONGEST = 302.0
uids = st.sampled_from(UIDS)
callers = st.sampled_from(("one", "two", "three"))
chances = st.sampled_from((0.0, 0.25, 0.75))


def seconds(longest: int) -> st.SearchStrategy[float]:
    """In eighths: sums of them are exact."""
    return st.integers(0, longest * 8).map(lambda eighths: eighths / 8)


ages = st.one_of(st.just(0.0), seconds(400))


class APool(RuleBasedStateMachine):
    """A pool to which anything may happen. Beside it only what must hold of it: who is ready, who was ejected when."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.chance = 0.0
        self.health = PoolHealth(lambda: self.chance)
        self.ready: frozenset[str] = frozenset()
        self.total = 0
        self.out_since: dict[str, float] = {}
        """When each pod that is ejected was told to stay out."""

    @initialize(ready=st.frozensets(uids), starting=st.booleans())
    def begin(self, ready: frozenset[str], starting: bool) -> None:
        self.ready, self.total = ready, len(ready)
        self.health.keep(ready, self.total, self.now, starting=starting)

    @rule(ready=st.frozensets(uids), others=st.integers(0, 4))
    def change(self, ready: frozenset[str], others: int) -> None:
        self.ready, self.total = ready, len(ready) + others
        self.health.keep(ready, self.total, self.now)
        # Who was away long enough is forgotten.
        self.out_since = {uid: at for uid, at in self.out_since.items() if self.health.state(uid) is State.EJECTED}

    @rule(seconds=st.one_of(seconds(1), seconds(15), seconds(700)), chance=chances)
    def wait(self, seconds: float, chance: float) -> None:
        self.now += seconds
        self.chance = chance

    @rule(uid=uids, caller=callers)
    def answer(self, uid: str, caller: str) -> None:
        self.health.answered(uid, caller, self.now)

    @rule(uid=uids, caller=callers)
    def begin_to_answer(self, uid: str, caller: str) -> None:
        self.health.began(uid, caller, self.now)

    @rule(uid=uids, caller=callers, age=ages, times=st.integers(1, 4))
    def fail(self, uid: str, caller: str, age: float, times: int) -> None:
        for _ in range(times):
            self.note(uid, self.health.failed(uid, caller, self.now, sent_at=self.now - age))

    @rule(uid=uids, caller=callers, age=ages, times=st.integers(1, 4))
    def err(self, uid: str, caller: str, age: float, times: int) -> None:
        for _ in range(times):
            self.note(uid, self.health.erred(uid, caller, self.now, sent_at=self.now - age))

    @rule(uid=uids)
    def wedge(self, uid: str) -> None:
        self.note(uid, self.health.wedged(uid, self.now))

    @rule(well=st.booleans(), silent=st.booleans())
    def ask(self, well: bool, silent: bool) -> None:
        """Who is due is asked, and says how it is, or nothing."""
        due = self.health.due(self.now)
        assert len(set(due)) == len(due)
        for uid in due:
            assert uid in self.ready
            assert self.health.state(uid) is State.EJECTED
            assert self.now - self.out_since[uid] >= 10
        assert not self.health.due(self.now), "once each"
        for uid in () if silent else due:
            self.tell(uid, well)

    @rule(uid=uids, well=st.booleans())
    def tell(self, uid: str, well: bool) -> None:
        """Told of anybody, at any time."""
        was_out = self.health.state(uid) is State.EJECTED and uid in self.ready
        if well:
            self.health.recovered(uid, self.now)
            assert self.health.state(uid) is State.PROBING or not was_out
            if was_out:
                del self.out_since[uid]
        else:
            self.health.still_sick(uid, self.now)
            if was_out:
                self.out_since[uid] = self.now

    @precondition(lambda self: self.out_since)
    @rule()
    def all_come_back(self) -> None:
        """Within 302 seconds every ejected pod is due, and within thirty again if it was asked in vain; with a yes, an
        answer and thirty seconds more it is healthy."""
        out = {uid for uid in self.out_since if uid in self.ready}
        due = set(self.health.due(self.now))
        self.now = max([self.now + ASK_AGAIN_SECONDS, *(self.out_since[uid] + LONGEST for uid in out)])
        due.update(self.health.due(self.now))
        assert due == out
        for uid in self.out():
            self.health.recovered(uid, self.now)
            self.health.answered(uid, "one", self.now)
            self.out_since.pop(uid, None)
        self.now += 30
        self.health.due(self.now)
        assert all(self.health.state(uid) is State.HEALTHY for uid in self.ready)
        assert all(self.health.weight(uid, self.now) == 1 for uid in self.ready)
        assert not self.health.panic
        assert not self.health.ramping

    @rule(after=st.integers(600, 2000))
    def forget_all(self, after: int) -> None:
        """A pod that is forgotten comes back as any new one."""
        self.health.keep((), 0, self.now)
        self.now += after
        self.health.keep((), 0, self.now)
        assert all(self.health.state(uid) is State.HEALTHY for uid in UIDS)
        self.health.keep(UIDS, len(UIDS), self.now)
        assert all(self.health.state(uid) is State.HEALTHY for uid in UIDS)
        assert all(self.health.weight(uid, self.now) == 1 for uid in UIDS)
        assert self.health.failed("a", "one", self.now) is None
        assert self.health.failed("a", "one", self.now) is None
        assert self.health.failed("a", "one", self.now) is Reason.CONSECUTIVE
        assert not self.health.due(self.now + 9.9)
        assert list(self.health.due(self.now + 12)) == ["a"], "its first ejection"
        self.now += 12
        self.health.recovered("a", self.now)
        self.health.answered("a", "one", self.now)
        self.ready, self.total = frozenset(UIDS), len(UIDS)
        self.out_since.clear()

    def note(self, uid: str, reason: Reason | None) -> None:
        """What must hold whenever a pod has just been ejected, and that nobody is without it being said."""
        if reason is None:
            assert self.health.state(uid) is not State.EJECTED or uid in self.out_since
            return
        assert self.health.state(uid) is State.EJECTED
        assert uid in self.ready
        assert uid not in self.out_since, "once for each return"
        self.out_since[uid] = self.now
        assert 2 * len(self.out()) <= len(self.ready)

    def out(self) -> set[str]:
        return {uid for uid in self.ready if self.health.state(uid) in OUT}

    @invariant()
    def one_is_usable_as_long_as_one_is_ready(self) -> None:
        usable = {uid for uid in self.ready if self.health.usable(uid)}
        assert usable or not self.ready
        ejected = {uid for uid in self.ready if self.health.state(uid) is State.EJECTED}
        assert usable == (self.ready if self.health.panic else self.ready - ejected)

    @invariant()
    def there_is_panic_when_too_few_are_left(self) -> None:
        out = self.out()
        assert self.health.panic == (bool(out) and 2 * (len(self.ready) - len(out)) < self.total)

    @invariant()
    def shares_are_of_what_the_warmest_gets(self) -> None:
        weights = {uid: self.health.weight(uid, self.now) for uid in self.ready}
        assert all(0.1 <= weight <= 1 for weight in weights.values())
        working = [weight for uid, weight in weights.items() if uid not in self.out()]
        assert not working or max(working) == 1
        assert self.health.ramping or set(weights.values()) <= {1.0}

    @invariant()
    def who_is_ejected_was_said_to_be(self) -> None:
        assert {uid for uid in UIDS if self.health.state(uid) is State.EJECTED} == set(self.out_since)


TestAPool = APool.TestCase
TestAPool.settings = settings(max_examples=150, stateful_step_count=40)
