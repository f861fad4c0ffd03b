"""May this request be spent? All of its limits are taken in one step, and settled at its end with what it used.

Tokens are taken before they are known: the prompt's are estimated, and the answer's are `max_tokens`, or, without it,
what that model's answers have had of late. Both are guesses, for which nobody is refused for ever. What the pod reports
puts it right. A stream is never cut for a limit: what it used beyond its reservation is a debt.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from math import ceil, inf
from types import TracebackType
from typing import NamedTuple, Self

from gateway.core.call import Trail
from gateway.core.caller import Tenant
from gateway.core.errors import Busy, PoolgateError, QuotaExceeded, RateLimited
from gateway.limits.bucket import DAY, SLACK, Bucket, Costs, Counts, Taken
from gateway.limits.rules import LIMITS, Rules, words_of
from gateway.limits.store import Store
from gateway.telemetry.series import Count

MIN_ANSWER_TOKENS = 256
"""What an answer is taken for at least, if nobody says how long it may be."""
MAX_ANSWER_TOKENS = 1_000_000_000
LEARNS = 1 / 16
"""Of each new answer in the running average of its model's."""
LONGEST_LEARNED = 16
"""So many times the average at most: one answer, or a pod that counts it wrongly, does no more than double it."""
MAX_PLANS = 8192
MAX_MODELS = 4096
TOLD_SECONDS = 600.0
MAX_PLANS_TOLD = 1024
"""Who looks at the standings sees those that asked within this time, and of very many the newest."""
CONCURRENT_RETRY_SECONDS = 1.0
"""Nobody knows when one of a caller's requests ends."""
UNCHECKED_RETRY_SECONDS = 2.0

Caller = tuple[Tenant, str, str]
"""Whose request, for whom they ask, and the model by the name that was asked for."""
Decide = Callable[[str, str], Count]
"""The counter of a limit (one of `LIMITS`) and a decision (one of `DECISIONS`)."""
DECISIONS = ("admitted", "refused", "unchecked")


class Ask(NamedTuple):
    """Who asks, and for how much."""

    tenant: Tenant
    user: str
    model: str
    """As it was asked for."""
    prompt_tokens: int
    """Estimated; 0 where no model runs."""
    choices: int
    """Answers that are asked for; 0 where none is generated."""
    max_tokens: int | None
    """Of each of them."""


class Standing(NamedTuple):
    """Where one limit of somebody stands."""

    team: str
    limit: str
    """For people: `requests per minute`."""
    of: str
    """Whose limit it is: a key's, by its id; the tenant's; a model's."""
    used: int
    amount: int


class _Plan:
    """What requests of one caller for one model have in common."""

    __slots__ = (
        "admitted",
        "asked_at",
        "buckets",
        "counts_tokens",
        "levels",
        "lines",
        "most_of_answer",
        "most_of_both",
        "most_of_prompt",
    )

    def __init__(self, buckets: tuple[Bucket, ...], decisions: dict[tuple[str, str], Count]) -> None:
        self.buckets = buckets
        self.admitted = [decisions[bucket.name, "admitted"] for bucket in buckets]
        self.lines = _Shown(buckets).lines
        """Header lines that tell where its limits stand, of these levels."""
        self.most_of_prompt = _smallest(buckets, Counts.PROMPT)
        """What the limits allow at once, here and below."""
        self.most_of_answer = _smallest(buckets, Counts.COMPLETION)
        self.most_of_both = _smallest(buckets, Counts.BOTH)
        self.counts_tokens = any(bucket.counts is not Counts.REQUESTS for bucket in buckets)
        self.levels: Sequence[float] = ()
        """Where its limits stood after the last request, and when that came (monotonic seconds)."""
        self.asked_at = -inf


class Admission:
    """Lets requests in. `decisions(limit, decision)` gives the counter of what was decided."""

    def __init__(self, rules: Rules, store: Store, decisions: Decide) -> None:
        self._rules = rules
        self._store = store
        self._decisions = {(limit, decision): decisions(limit, decision) for limit in LIMITS for decision in DECISIONS}
        self._plans: dict[Caller, _Plan] = {}
        self.free: set[Caller] = set()
        """Callers that were let in, whom nothing limits, and from whose answers nothing is to be learned: there is
        nothing to reserve for them, nor to ask. Only who may use a model asks for it. Emptied when rules or keys
        change, and for good when the first comes who has a limit of tokens."""
        self._answers: dict[str, float] = {}
        self._learns = False
        """Somebody has a limit of tokens: how long a model's answers are is learned from everybody's."""

    def use(self, rules: Rules) -> None:
        """Other limits are in force for what comes from now on."""
        self._rules = rules
        self._forget_plans()

    def forget_callers(self) -> None:
        """The keys have changed: what is kept for those that were is let go."""
        self._forget_plans()

    def reserve_nowait(self, ask: Ask, trail: Trail) -> "Reservation | None":
        """Let a request in, if that can be said at once; None: it has to be asked for, by `reserve`.

        Raises `RateLimited`, `QuotaExceeded`, and `Busy` if a limit cannot be checked that must be.
        """
        plan = self._plans.get(ask[:3]) or self._new_plan(ask)
        costs = self._costs(plan, ask)
        taken = self._store.take_nowait(plan.buckets, costs) if plan.buckets else _FREE
        return None if taken is None else self._decided(plan, costs, taken, ask, trail)

    async def reserve(self, ask: Ask, trail: Trail) -> "Reservation":
        """The same, when others have to be asked.

        Raises as `reserve_nowait` does.
        """
        plan = self._plans.get(ask[:3]) or self._new_plan(ask)
        costs = self._costs(plan, ask)
        return self._decided(plan, costs, await self._store.take(plan.buckets, costs), ask, trail)

    def settle(self, reservation: "Reservation") -> None:
        """A request has ended; called by its reservation."""
        usage = reservation.trail.usage
        ask = reservation.ask
        if usage is None:
            used: Costs = (1, 0, 0, 0)
        else:
            prompt, completion = usage.prompt_tokens, usage.completion_tokens
            used = (1, prompt, completion, prompt + completion)
            if ask.choices and not usage.estimated:
                self._learn(ask.model, completion / ask.choices)
        if reservation.plan.buckets:
            self._store.settle(reservation.taken, reservation.plan.buckets, reservation.costs, used)

    def standings(self, now: float) -> list[Standing]:
        """The limits of those who asked within the last minutes, each once. `now`: monotonic seconds."""
        found: dict[bytes, tuple[float, Standing]] = {}
        for (tenant, _, _), plan in islice(reversed(self._plans.items()), MAX_PLANS_TOLD):
            if now - plan.asked_at > TOLD_SECONDS:
                continue
            for bucket, level in zip(plan.buckets, plan.levels, strict=False):
                before = found.get(bucket.key)
                if before is not None and before[0] >= plan.asked_at:
                    continue
                known = self._store.level(bucket)
                if known is None and bucket.period:
                    known = max(0.0, level - (now - plan.asked_at) * 1e6)
                if known is not None:
                    found[bucket.key] = plan.asked_at, _standing(tenant, bucket, known)
        return [standing for _, standing in found.values()]

    def _new_plan(self, ask: Ask) -> _Plan:
        caller = ask[:3]
        if len(self._plans) >= MAX_PLANS:
            self._forget_plans()
        plan = self._plans[caller] = _Plan(self._rules.buckets(*caller), self._decisions)
        self._learns = self._learns or plan.counts_tokens
        if self._learns:
            self.free.clear()
        elif not plan.buckets:
            self.free.add(caller)
        return plan

    def _forget_plans(self) -> None:
        self._plans.clear()
        self.free.clear()

    def _costs(self, plan: _Plan, ask: Ask) -> Costs:
        """What to take. What is guessed is never more than the limits allow at once; what was asked for may be."""
        _, _, model, prompt, choices, max_tokens = ask
        answer = 0 if max_tokens is None else min(max_tokens * choices, MAX_ANSWER_TOKENS)
        prompt = min(prompt, plan.most_of_prompt, max(0, plan.most_of_both - answer))
        if max_tokens is None and choices:
            each = max(MIN_ANSWER_TOKENS, ceil(self._answers.get(model, 0.0)))
            answer = max(0, min(each * choices, plan.most_of_answer, plan.most_of_both - prompt))
        return 1, prompt, answer, prompt + answer

    def _learn(self, model: str, tokens: float) -> None:
        before = self._answers.get(model)
        tokens = min(tokens, max(before or 0.0, MIN_ANSWER_TOKENS) * LONGEST_LEARNED)
        if before is None:
            if len(self._answers) >= MAX_MODELS:
                self._answers.clear()
            before = tokens
        self._answers[model] = before + (tokens - before) * LEARNS

    def _decided(self, plan: _Plan, costs: Costs, taken: Taken, ask: Ask, trail: Trail) -> "Reservation":
        plan.levels, plan.asked_at = taken.levels, trail.received_at
        if taken.refused is not None:
            decision = "unchecked" if taken.unchecked else "refused"
            self._decisions[taken.refused.name, decision].value += 1
            raise _refusal(plan, costs, taken)
        for count in plan.admitted:
            count.value += 1
        return Reservation(self, plan, costs, taken, ask, trail)


class Reservation:
    """What a request took, for the length of a `with` block; at its end it is made what the trail says was used."""

    __slots__ = ("_admission", "ask", "costs", "plan", "taken", "trail")

    def __init__(self, admission: Admission, plan: _Plan, costs: Costs, taken: Taken, ask: Ask, trail: Trail) -> None:
        self._admission = admission
        self.plan = plan
        self.costs = costs
        self.taken = taken
        self.ask = ask
        self.trail = trail

    @property
    def lines(self) -> bytes:
        """What the answer's head says of the limits, in OpenAI's words."""
        return self.plan.lines(self.taken.levels)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.settle(self)


class _Shown:
    """The headers of the limits: of each kind those of the one that has the least left."""

    __slots__ = ("_kinds",)

    def __init__(self, buckets: tuple[Bucket, ...]) -> None:
        kinds: dict[str, list[tuple[int, float, float, bytes]]] = {"requests": [], "tokens": []}
        for at, bucket in enumerate(buckets):
            if bucket.period:
                kind = "requests" if bucket.counts is Counts.REQUESTS else "tokens"
                said = (
                    f"x-ratelimit-limit-{kind}: {bucket.amount}\r\n"
                    f"x-ratelimit-remaining-{kind}: %d\r\nx-ratelimit-reset-{kind}: %b\r\n"
                )
                kinds[kind].append((at, bucket.period, bucket.interval, said.encode()))
        self._kinds = [rates for rates in kinds.values() if rates]

    def lines(self, levels: Sequence[float]) -> bytes:
        """The lines of the head, those of a kind made in one piece: for three headers that is a third of the price."""
        told = b""
        for rates in self._kinds:
            least, reset, said = inf, 0.0, b""
            for at, period, interval, text in rates:
                level = levels[at]
                # A thousandth more: what is whole may come out as a little less.
                left = (period - level) / interval + 0.001
                if left < least:
                    least, reset, said = left, level, text
            told += said % (int(least) if least > 0 else 0, duration(reset))
        return told


def duration(microseconds: float) -> bytes:
    """A duration as Go writes it, and OpenAI with it: `0s`, `12ms`, `1.25s`, `6m0s`; rounded up to milliseconds."""
    milliseconds = ceil((microseconds - SLACK / 2) / 1000)
    if milliseconds < 1000:
        return b"%dms" % milliseconds if milliseconds else b"0s"
    minutes, rest = divmod(milliseconds, 60_000)
    seconds = b"%gs" % (rest / 1000)
    if not minutes:
        return seconds
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%b" % (hours, minutes, seconds) if hours else b"%dm%b" % (minutes, seconds)


def _milliseconds(microseconds: float) -> int:
    """Rounded up, but for what is no more than the noise of sums of fractions: half of what is on time anyway."""
    return ceil((microseconds - SLACK / 2) / 1000)


def _standing(tenant: Tenant, bucket: Bucket, level: float) -> Standing:
    whose = bucket.of.replace("this key", f"key {tenant.key_id}").replace("this user", "a user")
    used = ceil(level / bucket.interval - 0.001) if bucket.period else int(level)
    return Standing(tenant.team, words_of(bucket), whose, used, bucket.amount)


def _smallest(buckets: tuple[Bucket, ...], counts: Counts) -> int:
    return min((bucket.amount for bucket in buckets if bucket.counts is counts), default=MAX_ANSWER_TOKENS)


def _refusal(plan: _Plan, costs: Costs, taken: Taken) -> PoolgateError:
    bucket = taken.refused
    assert bucket is not None  # noqa: S101  # only what was refused comes here
    limit = words_of(bucket)
    if taken.unchecked:
        return Busy(
            f"the limit of {limit} of {bucket.of} cannot be checked now", retry_after_seconds=UNCHECKED_RETRY_SECONDS
        )
    shown = plan.lines(taken.levels)
    level = taken.levels[plan.buckets.index(bucket)]
    if not bucket.period:
        return RateLimited(
            f"Rate limit reached: {limit} of {bucket.of}: limit {bucket.amount}, used {int(level)}, asked 1. "
            "Wait until one of them has ended.",
            retry_after_seconds=CONCURRENT_RETRY_SECONDS,
            shown=shown,
        )
    asked = costs[bucket.counts]
    used = ceil(level / bucket.interval - 0.001)
    told = f"Rate limit reached: {limit} of {bucket.of}: limit {bucket.amount}, used {used}, asked {asked}."
    if taken.wait == inf:
        return RateLimited(f"{told} That is more than it ever allows at once: ask for less.", shown=shown)
    seconds = _milliseconds(taken.wait) / 1000
    told = f"{told} Wait {seconds:.3f}".rstrip("0").rstrip(".") + " s."
    if bucket.period == DAY:
        return QuotaExceeded(told, retry_after_seconds=seconds, shown=shown)
    return RateLimited(told, retry_after_seconds=seconds, shown=shown)


_FREE = Taken(())
