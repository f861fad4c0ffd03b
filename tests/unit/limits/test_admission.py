"""Who is let in, for how much, what they are told, and what it comes to when they have ended."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from weakref import ref

import pytest

from gateway.core.call import Trail, Usage
from gateway.core.caller import ANONYMOUS, Tenant
from gateway.core.errors import Busy, PoolgateError, QuotaExceeded, RateLimited
from gateway.limits.admission import (
    LEARNS,
    LONGEST_LEARNED,
    MAX_ANSWER_TOKENS,
    MAX_MODELS,
    MAX_PLANS,
    MIN_ANSWER_TOKENS,
    TOLD_SECONDS,
    Admission,
    Ask,
    Reservation,
    Standing,
    duration,
)
from gateway.limits.bucket import Bucket, Costs, Taken
from gateway.limits.memory_store import MemoryStore
from gateway.limits.rules import Rule, Rules, TokenKind
from gateway.limits.store import Mode
from gateway.telemetry.series import Count
from tests.fakes import Hands

KEY = Tenant("key1", "acme")
MUCH = 100_000


def ask(
    *,
    prompt: int = 10,
    choices: int = 1,
    max_tokens: int | None = 90,
    tenant: Tenant = KEY,
    user: str = "",
    model: str = "m",
) -> Ask:
    return Ask(tenant, user, model, prompt, choices, max_tokens)


FREE = Tenant("key2", "free")


class Desk:
    """An admission, its clock, and what it counted."""

    def __init__(self, rules: Rules) -> None:
        self.clock = Hands()
        self.counts: defaultdict[tuple[str, str], Count] = defaultdict(Count)
        self.store = MemoryStore(self.clock)
        self.admission = Admission(rules, self.store, lambda limit, decision: self.counts[limit, decision])

    def reserve(self, asked: Ask | None = None) -> Reservation:
        reservation = self.admission.reserve_nowait(asked or ask(), Trail("id", self.clock.now))
        assert reservation is not None
        return reservation

    def refusal(self, asked: Ask | None = None) -> PoolgateError:
        with pytest.raises(PoolgateError) as caught:
            self.reserve(asked)
        return caught.value

    def answered(self, asked: Ask, usage: Usage | None) -> Reservation:
        """A request that ended with this usage."""
        with self.reserve(asked) as reservation:
            reservation.trail.usage = usage
        return reservation

    def left(self) -> int:
        """Of the tokens."""
        costs_nothing = ask(prompt=0, choices=0)
        return int(headers_of(self.reserve(costs_nothing))["remaining-tokens"])

    def decided(self) -> dict[tuple[str, str], int]:
        return {labels: count.value for labels, count in self.counts.items() if count.value}


def limits(
    requests: int | None = None, tokens: int | None = None, concurrent: int | None = None, rules: Sequence[Rule] = ()
) -> Rules:
    told = (("requests_per_minute", requests), ("tokens_per_minute", tokens), ("concurrent", concurrent))
    return Rules(tuple((name, amount) for name, amount in told if amount is not None), rules)


def tokens_of(amount: int, count: TokenKind) -> Rules:
    return Rules(rules=(Rule("key", (("tokens_per_minute", amount),), count=count),))


def headers_of(said: Reservation | PoolgateError) -> dict[str, str]:
    lines = said.lines if isinstance(said, Reservation) else getattr(said, "shown", b"")
    assert not lines or lines.endswith(b"\r\n")
    pairs = [tuple(line.split(b": ")) for line in lines.splitlines()]
    pairs += said.headers() if isinstance(said, PoolgateError) else ()
    names = [name for name, _ in pairs]
    assert len(set(names)) == len(names)
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in pairs}


class TestReserving:
    def test_a_request_takes_its_prompt_and_all_the_answers_it_asks_for(self) -> None:
        desk = Desk(limits(tokens=MUCH))
        assert desk.reserve(ask(prompt=100, choices=3, max_tokens=50)).costs == (1, 100, 150, 250)
        assert desk.left() == MUCH - 250

    def test_what_generates_nothing_takes_no_answer(self) -> None:
        desk = Desk(limits(tokens=MUCH))
        assert desk.reserve(ask(prompt=100, choices=0, max_tokens=50)).costs == (1, 100, 0, 100)
        assert desk.reserve(ask(prompt=100, choices=0, max_tokens=None)).costs == (1, 100, 0, 100)

    @pytest.mark.parametrize("count", ["prompt", "completion", "both"])
    def test_a_limit_counts_the_tokens_it_is_for(self, count: TokenKind) -> None:
        desk = Desk(tokens_of(MUCH, count))
        desk.reserve(ask(prompt=100, max_tokens=50))
        assert MUCH - desk.left() == {"prompt": 100, "completion": 50, "both": 150}[count]

    def test_what_is_asked_for_beyond_all_measure_is_a_number_still(self) -> None:
        desk = Desk(limits())
        assert desk.reserve(ask(choices=10**9, max_tokens=10**9)).costs[2] == MAX_ANSWER_TOKENS

    def test_where_nothing_is_limited_nothing_is_said_and_all_are_let_in(self) -> None:
        desk = Desk(limits())
        for _ in range(100):
            assert desk.reserve().lines == b""
        assert desk.decided() == {}

    def test_who_needs_no_key_is_held_to_rules_alone(self) -> None:
        desk = Desk(limits(requests=1, rules=(Rule("model", (("requests_per_minute", 2),)),)))
        anyone = ask(tenant=ANONYMOUS)
        assert [desk.reserve(anyone) is not None for _ in range(2)] == [True, True]
        assert "of model 'm': limit 2" in desk.refusal(anyone).message

    def test_callers_models_and_users_do_not_share_what_is_not_shared(self) -> None:
        rules = (Rule("user", (("requests_per_minute", 1),)), Rule("model", (("requests_per_minute", 4),)))
        desk = Desk(limits(requests=2, rules=rules))
        desk.reserve(ask(user="u"))
        assert "this user" in desk.refusal(ask(user="u")).message
        desk.reserve(ask(user="v"))
        assert "this key" in desk.refusal(ask(user="w", model="n")).message
        other = Tenant("key2", "acme")
        for user in "wx":
            desk.reserve(ask(tenant=other, user=user))
        assert "model 'm'" in desk.refusal(ask(tenant=Tenant("key3", "acme"))).message

    def test_each_model_and_each_user_has_what_is_its_own(self) -> None:
        rules = (Rule("model", (("requests_per_minute", 1),)), Rule("user", (("requests_per_minute", 2),)))
        desk = Desk(limits(rules=rules))
        desk.reserve(ask(model="m", user="u"))
        assert "model 'm'" in desk.refusal(ask(model="m", user="v")).message
        desk.reserve(ask(model="n", user="u"))
        assert "this user" in desk.refusal(ask(model="o", user="u")).message
        desk.reserve(ask(model="o", user="v"))


class TestGuessing:
    def guessed(self, desk: Desk, model: str = "m", choices: int = 1) -> int:
        """What an answer of unsaid length is taken for."""
        return desk.reserve(ask(prompt=0, max_tokens=None, choices=choices, model=model)).costs[2]

    def learn(self, desk: Desk, tokens: int, *, estimated: bool = False, choices: int = 1, model: str = "m") -> None:
        desk.answered(ask(choices=choices, model=model), Usage(1, tokens, estimated=estimated))

    def test_an_answer_of_unsaid_length_is_taken_for_so_much_at_least(self) -> None:
        desk = Desk(limits())
        assert self.guessed(desk) == MIN_ANSWER_TOKENS == 256
        self.learn(desk, 3)
        assert self.guessed(desk) == MIN_ANSWER_TOKENS
        assert self.guessed(desk, choices=3) == 3 * MIN_ANSWER_TOKENS

    def test_it_is_taken_for_what_that_models_answers_had_of_late(self) -> None:
        desk = Desk(limits())
        self.learn(desk, 1000)
        assert self.guessed(desk) == 1000
        self.learn(desk, 2000)
        assert self.guessed(desk) == 1000 + 1000 * LEARNS + 0.5
        for _ in range(200):
            self.learn(desk, 2000)
        assert self.guessed(desk) == 2000
        assert self.guessed(desk, model="another") == MIN_ANSWER_TOKENS

    def test_several_answers_count_as_each_of_them(self) -> None:
        desk = Desk(limits())
        self.learn(desk, 3000, choices=3)
        assert self.guessed(desk) == 1000
        assert self.guessed(desk, choices=2) == 2000

    def test_only_what_a_pod_counted_is_learned_from(self) -> None:
        desk = Desk(limits())
        self.learn(desk, 1000, estimated=True)
        desk.answered(ask(), None)
        desk.answered(ask(choices=0), Usage(5000, 5000))
        assert self.guessed(desk) == MIN_ANSWER_TOKENS

    def test_what_callers_say_counts_before_what_was_learned(self) -> None:
        desk = Desk(limits())
        self.learn(desk, 1000)
        assert desk.reserve(ask(max_tokens=7)).costs[2] == 7

    def test_one_answer_moves_it_little_however_long_it_claims_to_be(self) -> None:
        desk = Desk(limits())
        self.learn(desk, 10**9)
        assert self.guessed(desk) == LONGEST_LEARNED * MIN_ANSWER_TOKENS
        before = self.guessed(desk)
        self.learn(desk, 10**9)
        assert before < self.guessed(desk) < 2 * before
        for _ in range(200):
            self.learn(desk, 300)
        assert 300 <= self.guessed(desk) <= 301

    def test_short_answers_do_not_keep_it_from_growing(self) -> None:
        desk = Desk(limits())
        self.learn(desk, 1)
        for _ in range(8):
            self.learn(desk, 4000)
        assert self.guessed(desk) > 1500

    @pytest.mark.parametrize(("count", "costs"), [("completion", (1, 40, 100, 140)), ("both", (1, 40, 60, 100))])
    def test_nobody_is_refused_for_ever_for_a_guess(self, count: TokenKind, costs: Costs) -> None:
        desk = Desk(tokens_of(100, count))
        unsaid = ask(prompt=40, max_tokens=None)
        assert desk.reserve(unsaid).costs == costs
        refused = desk.refusal(unsaid)
        desk.clock.now += int(headers_of(refused)["retry-after-ms"]) / 1000
        assert desk.reserve(unsaid).costs == costs

    def test_the_smallest_limit_bounds_a_guess(self) -> None:
        day = Rule("tenant", (("tokens_per_day", 90),))
        desk = Desk(limits(tokens=100, rules=(day, Rule("tenant", (("tokens_per_minute", 70),), count="completion"))))
        assert desk.reserve(ask(prompt=10, max_tokens=None)).costs == (1, 10, 70, 80)

    def test_a_prompt_that_takes_all_of_a_limit_leaves_the_guess_nothing(self) -> None:
        desk = Desk(limits(tokens=100))
        assert desk.reserve(ask(prompt=100, max_tokens=None)).costs == (1, 100, 0, 100)

    def test_nobody_is_refused_for_ever_for_a_prompt_that_may_be_shorter_than_it_looks(self) -> None:
        assert Desk(limits(tokens=100)).reserve(ask(prompt=101, max_tokens=None)).costs == (1, 100, 0, 100)
        assert Desk(limits(tokens=100)).reserve(ask(prompt=101, max_tokens=30)).costs == (1, 70, 30, 100)
        assert Desk(limits(tokens=100)).reserve(ask(prompt=101, max_tokens=100)).costs == (1, 0, 100, 100)
        rule = Rule("key", (("tokens_per_minute", 40),), count="prompt")
        assert Desk(Rules(rules=(rule,))).reserve(ask(prompt=101, max_tokens=70)).costs == (1, 40, 70, 110)

    def test_averages_are_kept_of_so_many_models_only(self) -> None:
        desk = Desk(limits())
        self.learn(desk, 1000)
        for number in range(MAX_MODELS - 1):
            self.learn(desk, 1000, model=f"m{number}")
        assert self.guessed(desk) == 1000
        self.learn(desk, 1000)
        assert self.guessed(desk, model="m0") == 1000
        self.learn(desk, 1000, model="one more")
        assert self.guessed(desk) == MIN_ANSWER_TOKENS
        assert self.guessed(desk, model="one more") == 1000


class TestSettling:
    def test_what_the_pod_reports_takes_the_place_of_what_was_reserved(self) -> None:
        desk = Desk(limits(tokens=MUCH))
        desk.answered(ask(prompt=100, max_tokens=5000), Usage(80, 40))
        assert desk.left() == MUCH - 120

    @pytest.mark.parametrize("count", ["prompt", "completion", "both"])
    def test_each_limit_is_settled_with_its_own_part(self, count: TokenKind) -> None:
        desk = Desk(tokens_of(MUCH, count))
        desk.answered(ask(prompt=100, max_tokens=5000), Usage(80, 40))
        assert MUCH - desk.left() == {"prompt": 80, "completion": 40, "both": 120}[count]

    def test_what_an_answer_had_beyond_its_reservation_is_a_debt(self) -> None:
        desk = Desk(limits(tokens=600))
        desk.answered(ask(prompt=100, max_tokens=500), Usage(100, 1500))
        refused = desk.refusal(ask(prompt=1, choices=0))
        assert "limit 600, used 1600, asked 1. Wait 100.1 s." in refused.message
        assert headers_of(refused)["remaining-tokens"] == "0"

    def test_an_estimate_is_spent_like_a_count(self) -> None:
        desk = Desk(limits(tokens=MUCH))
        desk.answered(ask(prompt=100, max_tokens=5000), Usage(100, 7, estimated=True))
        assert desk.left() == MUCH - 107

    def test_what_never_ran_spends_no_token_but_was_a_request(self) -> None:
        desk = Desk(limits(requests=2, tokens=MUCH))
        desk.answered(ask(prompt=100, max_tokens=5000), None)
        assert headers_of(desk.reserve(ask(prompt=0, choices=0))) == {
            "limit-requests": "2",
            "remaining-requests": "0",
            "reset-requests": "1m0s",
            "limit-tokens": str(MUCH),
            "remaining-tokens": str(MUCH),
            "reset-tokens": "0s",
        }

    def test_what_fails_is_settled_too(self) -> None:
        desk = Desk(limits(tokens=MUCH, concurrent=1))
        with suppress(ZeroDivisionError), desk.reserve():
            assert isinstance(desk.refusal(), RateLimited)
            raise ZeroDivisionError
        assert desk.left() == MUCH

    def test_when_all_have_ended_nothing_runs(self) -> None:
        desk = Desk(limits(concurrent=5, rules=(Rule("model", (("concurrent", 5),)),)))
        with ExitStack() as running:
            for _ in range(5):
                running.enter_context(desk.reserve())
            desk.refusal()
            assert set(desk.store.book.held.values()) == {5}
        assert desk.store.book.held == {}

    def test_what_was_taken_under_other_limits_is_given_back_where_it_was_taken(self) -> None:
        desk = Desk(limits(tokens=MUCH, concurrent=1))
        reservation = desk.reserve(ask(prompt=100, max_tokens=5000))
        desk.admission.use(limits(tokens=2 * MUCH))
        with reservation:
            reservation.trail.usage = Usage(80, 40)
        assert desk.store.book.held == {}
        # A bucket is time: what was spent of the smaller limit weighs double in the larger one.
        assert desk.left() == 2 * MUCH - 240


class TestChanges:
    def test_other_limits_hold_at_once(self) -> None:
        desk = Desk(limits(requests=1))
        desk.reserve()
        desk.refusal()
        desk.admission.use(limits())
        desk.reserve()
        desk.admission.use(limits(requests=1))
        desk.refusal()

    def test_a_limit_that_is_changed_goes_on_from_where_it_was(self) -> None:
        desk = Desk(limits(requests=2))
        desk.reserve()
        desk.admission.use(limits(requests=4))
        assert headers_of(desk.reserve())["remaining-requests"] == "1"

    def test_what_was_learned_of_models_outlives_a_change(self) -> None:
        desk = Desk(limits())
        desk.answered(ask(), Usage(1, 1000))
        desk.admission.use(limits())
        desk.admission.forget_callers()
        assert desk.reserve(ask(max_tokens=None)).costs[2] == 1000

    def test_a_key_with_other_limits_has_them_though_its_name_is_the_same(self) -> None:
        desk = Desk(limits(requests=5))
        desk.reserve()
        assert (
            headers_of(desk.reserve(ask(tenant=Tenant("key1", "acme", requests_per_minute=50))))["limit-requests"]
            == "50"
        )

    @pytest.mark.parametrize("how", ["forget_callers", "use", "others"])
    def test_callers_who_are_gone_are_not_kept(self, how: str) -> None:
        desk = Desk(limits(requests=5))
        gone = Tenant("gone", "acme")
        watch = ref(gone)
        desk.reserve(ask(tenant=gone))
        del gone
        assert watch() is not None
        if how == "forget_callers":
            desk.admission.forget_callers()
        elif how == "use":
            desk.admission.use(limits(requests=5))
        else:
            for number in range(MAX_PLANS):
                desk.reserve(ask(tenant=Tenant(f"key{number}", "acme")))
        assert watch() is None


class Script:
    """A store that says what it is told to."""

    mode: Mode = "redis"
    since = 0.0
    reason = ""

    def __init__(self, at_once: Taken | None, asked: Taken | None = None) -> None:
        self._at_once, self._asked = at_once, asked
        self.settled: list[tuple[Taken, Costs, Costs]] = []
        self.costs: list[Costs] = []

    def take_nowait(self, buckets: Sequence[Bucket], costs: Costs) -> Taken | None:
        self.costs.append(costs)
        return self._at_once

    async def take(self, buckets: Sequence[Bucket], costs: Costs) -> Taken:
        self.costs.append(costs)
        assert self._asked is not None
        return self._asked

    def settle(self, taken: Taken, buckets: Sequence[Bucket], reserved: Costs, used: Costs) -> None:
        self.settled.append((taken, reserved, used))

    def level(self, bucket: Bucket) -> float | None:
        return None

    async def run(self) -> None:
        raise AssertionError


class TestAsking:
    async def test_what_cannot_be_said_at_once_is_asked_for(self) -> None:
        taken = Taken([2e6])
        store = Script(None, taken)
        admission = Admission(limits(requests=60), store, lambda limit, decision: Count())
        trail = Trail("id", 0.0)
        assert admission.reserve_nowait(ask(), trail) is None
        with await admission.reserve(ask(), trail) as reservation:
            assert headers_of(reservation)["remaining-requests"] == "58"
            trail.usage = Usage(4, 5)
        assert store.costs == [(1, 10, 90, 100)] * 2
        ((settled, reserved, used),) = store.settled
        assert settled is taken
        assert (reserved, used) == ((1, 10, 90, 100), (1, 4, 5, 9))

    async def test_a_store_is_asked_nothing_where_nothing_is_limited(self) -> None:
        store = Script(None)
        admission = Admission(limits(), store, lambda limit, decision: Count())
        reservation = admission.reserve_nowait(ask(), Trail("id", 0.0))
        assert reservation is not None
        with reservation:
            pass
        assert (store.costs, store.settled) == ([], [])

    @pytest.mark.parametrize("levels", [[0.0], []], ids=["with levels", "without"])
    async def test_what_must_be_looked_at_and_cannot_be_is_no_ones_fault(self, levels: list[float]) -> None:
        rules = limits(requests=60)
        (bucket,) = rules.buckets(KEY, "", "m")
        counts: defaultdict[tuple[str, str], Count] = defaultdict(Count)
        store = Script(None, Taken(levels, bucket, unchecked=True))
        admission = Admission(rules, store, lambda limit, decision: counts[limit, decision])
        # The plan of the first try is that of the second.
        assert admission.reserve_nowait(ask(), Trail("id", 0.0)) is None
        with pytest.raises(Busy) as caught:
            await admission.reserve(ask(), Trail("id", 0.0))
        assert caught.value.message == "the limit of requests per minute of this key cannot be checked now"
        assert headers_of(caught.value) == {"retry-after": "2", "retry-after-ms": "2000"}
        assert {labels for labels, count in counts.items() if count.value} == {("requests_per_minute", "unchecked")}
        assert store.settled == []


class TestHeaders:
    def test_an_answer_says_where_the_limits_stand_in_openais_words(self) -> None:
        desk = Desk(limits(requests=600, tokens=200_000, concurrent=32))
        assert headers_of(desk.reserve(ask(prompt=500, max_tokens=500))) == {
            "limit-requests": "600",
            "remaining-requests": "599",
            "reset-requests": "100ms",
            "limit-tokens": "200000",
            "remaining-tokens": "199000",
            "reset-tokens": "300ms",
        }

    @pytest.mark.parametrize(("minute", "day", "shown"), [(10, 1000, 10), (1000, 10, 10), (10, 10, 10)])
    def test_of_several_limits_of_a_kind_the_one_with_the_least_left_is_shown(
        self, minute: int, day: int, shown: int
    ) -> None:
        rule = Rule("tenant", (("requests_per_day", day),))
        said = headers_of(Desk(limits(requests=minute, rules=(rule,))).reserve())
        assert (said["limit-requests"], said["remaining-requests"]) == (str(shown), str(shown - 1))
        assert said["reset-requests"] == ("2h24m0s" if day < minute else "6s")

    def test_limits_of_prompts_answers_and_both_are_of_one_kind(self) -> None:
        rules = (
            Rule("key", (("tokens_per_minute", 1000),), count="prompt"),
            Rule("key", (("tokens_per_minute", 900),), count="completion"),
        )
        desk = Desk(limits(tokens=2000, rules=rules))
        assert headers_of(desk.reserve(ask(prompt=100, max_tokens=1)))["limit-tokens"] == "900"
        desk.clock.now += 60
        assert headers_of(desk.reserve(ask(prompt=300, max_tokens=1)))["limit-tokens"] == "1000"
        desk.clock.now += 60
        assert headers_of(desk.reserve(ask(prompt=1, max_tokens=899)))["remaining-tokens"] == "1"

    def test_few_tokens_left_are_not_few_requests_nor_the_other_way_round(self) -> None:
        said = headers_of(Desk(limits(requests=100, tokens=30)).reserve(ask(prompt=29, max_tokens=0)))
        assert (said["remaining-requests"], said["remaining-tokens"]) == ("99", "1")
        said = headers_of(Desk(limits(requests=2, tokens=3000)).reserve(ask(prompt=29, max_tokens=0)))
        assert (said["remaining-requests"], said["remaining-tokens"]) == ("1", "2971")

    def test_what_is_left_is_whole_though_fractions_are_not_exact(self) -> None:
        desk = Desk(limits(requests=97))
        assert [headers_of(desk.reserve())["remaining-requests"] for _ in range(97)] == [
            str(left) for left in reversed(range(97))
        ]

    def test_what_has_come_back_in_part_is_not_there_yet(self) -> None:
        desk = Desk(limits(requests=60))
        desk.reserve()
        desk.clock.now += 0.9
        assert headers_of(desk.reserve())["remaining-requests"] == "58"

    def test_only_rates_are_shown(self) -> None:
        assert Desk(limits(concurrent=3)).reserve().lines == b""

    @pytest.mark.parametrize(
        ("microseconds", "said"),
        [
            (0, "0s"),
            (1, "1ms"),
            (1000, "1ms"),
            (1001, "2ms"),
            (12_000, "12ms"),
            (999_000, "999ms"),
            (999_001, "1s"),
            (1e6, "1s"),
            (1.25e6, "1.25s"),
            (59.999e6, "59.999s"),
            (59.9991e6, "1m0s"),
            (60e6, "1m0s"),
            (60.5e6, "1m0.5s"),
            (360e6, "6m0s"),
            (3599.999e6, "59m59.999s"),
            (3600e6, "1h0m0s"),
            (3600.5e6, "1h0m0.5s"),
            (86_399.999e6, "23h59m59.999s"),
            (86_400e6, "24h0m0s"),
            (1e6 * 3600 * 1_000_000 + 1.234e6, "1000000h0m1.234s"),
            # The noise of sums is no millisecond.
            (12_000.0000001, "12ms"),
            (1e-9, "0s"),
        ],
    )
    def test_a_duration_is_written_as_go_writes_it(self, microseconds: float, said: str) -> None:
        assert duration(microseconds) == said.encode()


class TestRefusals:
    def test_a_refusal_names_the_limit_its_value_what_is_used_and_asked_and_how_long_to_wait(self) -> None:
        desk = Desk(limits(requests=600))
        for _ in range(600):
            desk.reserve()
        refused = desk.refusal()
        assert type(refused) is RateLimited
        assert refused.message == (
            "Rate limit reached: requests per minute of this key: limit 600, used 600, asked 1. Wait 0.1 s."
        )
        assert headers_of(refused) == {
            "limit-requests": "600",
            "remaining-requests": "0",
            "reset-requests": "1m0s",
            "retry-after": "1",
            "retry-after-ms": "100",
        }

    def test_a_refusal_for_tokens_says_which_and_shows_all_limits(self) -> None:
        desk = Desk(limits(requests=6, rules=(Rule("tenant", (("tokens_per_minute", 1000),), count="completion"),)))
        desk.reserve(ask(prompt=9999, max_tokens=700))
        refused = desk.refusal(ask(prompt=9999, max_tokens=301))
        assert refused.message == (
            "Rate limit reached: completion tokens per minute of tenant 'acme': limit 1000, used 700, asked 301. "
            "Wait 0.06 s."
        )
        assert headers_of(refused) == {
            "limit-requests": "6",
            "remaining-requests": "5",
            "reset-requests": "10s",
            "limit-tokens": "1000",
            "remaining-tokens": "300",
            "reset-tokens": "42s",
            "retry-after": "1",
            "retry-after-ms": "60",
        }

    def test_a_refusal_of_what_runs_guesses_when_one_will_have_ended(self) -> None:
        desk = Desk(limits(requests=60, concurrent=2))
        desk.reserve()
        desk.reserve()
        refused = desk.refusal()
        assert type(refused) is RateLimited
        assert refused.message == (
            "Rate limit reached: concurrent requests of this key: limit 2, used 2, asked 1. "
            "Wait until one of them has ended."
        )
        said = headers_of(refused)
        assert (said["retry-after"], said["retry-after-ms"]) == ("1", "1000")
        assert said["remaining-requests"] == "58"

    def test_what_never_fits_is_not_to_be_tried_again(self) -> None:
        desk = Desk(limits(tokens=1000))
        desk.reserve(ask(prompt=10, max_tokens=90))
        refused = desk.refusal(ask(prompt=1, max_tokens=1001))
        assert type(refused) is RateLimited
        assert refused.message == (
            "Rate limit reached: tokens per minute of this key: limit 1000, used 100, asked 1001. "
            "That is more than it ever allows at once: ask for less."
        )
        said = headers_of(refused)
        assert said["x-should-retry"] == "false"
        assert said["remaining-tokens"] == "900"
        assert "retry-after" not in said
        assert "retry-after-ms" not in said

    def test_a_spent_day_is_a_quota(self) -> None:
        desk = Desk(Rules(rules=(Rule("tenant", (("requests_per_day", 2),)),)))
        desk.reserve()
        desk.reserve()
        refused = desk.refusal()
        assert type(refused) is QuotaExceeded
        assert (refused.status, refused.type, refused.code) == (429, "insufficient_quota", "quota_exceeded")
        assert refused.message == (
            "Rate limit reached: requests per day of tenant 'acme': limit 2, used 2, asked 1. Wait 43200 s."
        )
        assert headers_of(refused) == {
            "limit-requests": "2",
            "remaining-requests": "0",
            "reset-requests": "24h0m0s",
            "x-should-retry": "false",
        }

    @pytest.mark.parametrize(
        ("seconds", "waits"),
        [(0.0, "86400"), (0.001, "86399.999"), (1234.567, "85165.433"), (86_399.9, "0.1"), (86_399.9996, "0.001")],
    )
    def test_a_long_wait_is_told_to_the_millisecond(self, seconds: float, waits: str) -> None:
        desk = Desk(Rules(rules=(Rule("key", (("requests_per_day", 1),)),)))
        desk.reserve()
        desk.clock.now += seconds
        assert desk.refusal().message.endswith(f" asked 1. Wait {waits} s.")

    def test_a_debt_of_weeks_is_told_in_seconds(self) -> None:
        desk = Desk(limits(tokens=1))
        desk.answered(ask(prompt=0, max_tokens=1), Usage(0, 100_001))
        assert desk.refusal(ask(prompt=0, max_tokens=1)).message.endswith("used 100001, asked 1. Wait 6000060 s.")

    @pytest.mark.parametrize("milliseconds", [1, 2, 29, 999, 1000, 1001, 2007, 2011, 29_043, 59_999])
    def test_the_wait_is_the_same_in_words_and_in_both_headers_and_is_enough(self, milliseconds: int) -> None:
        desk = Desk(limits(tokens=60_000))
        desk.reserve(ask(prompt=0, max_tokens=60_000))
        asked = ask(prompt=0, max_tokens=milliseconds)
        refused = desk.refusal(asked)
        assert refused.message.endswith(f"Wait {milliseconds / 1000:g} s.")
        said = headers_of(refused)
        assert said["retry-after-ms"] == str(milliseconds)
        assert said["retry-after"] == str(-(-milliseconds // 1000))
        desk.clock.now += (milliseconds - 0.01) / 1000
        desk.refusal(asked)
        desk.clock.now += 0.01 / 1000
        desk.reserve(asked)

    def test_of_several_limits_the_one_to_wait_for_longest_is_named(self) -> None:
        desk = Desk(limits(requests=1, rules=(Rule("tenant", (("requests_per_day", 1),)),)))
        desk.reserve()
        assert isinstance(desk.refusal(), QuotaExceeded)

    def test_the_second_bucket_is_told_of_with_its_own_level(self) -> None:
        desk = Desk(limits(requests=100, tokens=100))
        desk.reserve(ask(prompt=60, max_tokens=0))
        assert "limit 100, used 60, asked 50." in desk.refusal(ask(prompt=50, max_tokens=0)).message

    @pytest.mark.parametrize("amount", [7, 97, 149, 601])
    def test_what_is_used_is_rounded_up_but_not_for_noise(self, amount: int) -> None:
        desk, too_much = Desk(limits(tokens=amount)), ask(prompt=amount + 1, choices=0)
        desk.clock.now = 1_234_567.89
        for number in range(1, amount + 1):
            desk.reserve(ask(prompt=1, choices=0))
            assert f"used {number}," in desk.refusal(too_much).message
        desk.clock.now += 0.01
        assert f"used {amount}," in desk.refusal(too_much).message

    def test_it_says_nothing_of_who_asks(self) -> None:
        desk = Desk(Rules(rules=(Rule("user", (("requests_per_minute", 1),)),)))
        asked = ask(user="alice@example.org", tenant=Tenant("secret-id", "acme"))
        desk.reserve(asked)
        refused = desk.refusal(asked)
        assert b"alice" not in refused.body()
        assert b"secret-id" not in refused.body()


class TestCounting:
    def test_each_limit_counts_what_it_let_in_and_the_one_that_refused_counts_that(self) -> None:
        desk = Desk(limits(requests=2, tokens=MUCH, concurrent=9))
        desk.reserve()
        desk.reserve()
        desk.refusal()
        assert desk.decided() == {
            ("requests_per_minute", "admitted"): 2,
            ("tokens_per_minute", "admitted"): 2,
            ("concurrent", "admitted"): 2,
            ("requests_per_minute", "refused"): 1,
        }

    def test_every_series_is_there_from_the_start(self) -> None:
        counts = Desk(limits()).counts
        names = ("requests_per_minute", "tokens_per_minute", "requests_per_day", "tokens_per_day", "concurrent")
        assert set(counts) == {(name, said) for name in names for said in ("admitted", "refused", "unchecked")}


class TestStandings:
    def test_where_the_limits_stand_is_told_with_whose_they_are(self) -> None:
        rules = (
            Rule("tenant", (("tokens_per_minute", 1000),)),
            Rule("user", (("requests_per_minute", 5),)),
            Rule("model", (("concurrent", 7),)),
        )
        desk = Desk(limits(requests=60, rules=rules))
        with desk.reserve(ask(user="ada")):
            assert desk.admission.standings(desk.clock.now) == [
                Standing("acme", "requests per minute", "key key1", 1, 60),
                Standing("acme", "tokens per minute", "tenant 'acme'", 100, 1000),
                Standing("acme", "requests per minute", "a user", 1, 5),
                Standing("acme", "concurrent requests", "model 'm'", 1, 7),
            ]

    def test_what_came_back_is_not_used(self) -> None:
        desk = Desk(limits(tokens=1000, concurrent=4))
        desk.answered(ask(), Usage(3, 4))
        told = {standing.limit: standing.used for standing in desk.admission.standings(desk.clock.now)}
        assert told == {"tokens per minute": 7, "concurrent requests": 0}

    def test_a_limit_of_several_models_is_told_once(self) -> None:
        desk = Desk(limits(requests=60))
        for model in "abc":
            desk.answered(ask(model=model), None)
        assert [standing.used for standing in desk.admission.standings(desk.clock.now)] == [3]

    def test_who_has_not_asked_for_long_is_not_told(self) -> None:
        desk = Desk(limits(requests=60))
        desk.answered(ask(), None)
        desk.clock.now += TOLD_SECONDS + 1
        assert desk.admission.standings(desk.clock.now) == []

    def test_what_the_store_does_not_know_any_more_is_told_as_last_heard(self) -> None:
        store = Script(Taken([30e6, 3.0]))
        admission = Admission(limits(requests=60, concurrent=4), store, lambda limit, decision: Count())
        admission.reserve_nowait(ask(), Trail("id", 100.0))
        # A rate fills by itself; nobody knows what runs.
        assert admission.standings(110.0) == [Standing("acme", "requests per minute", "key key1", 20, 60)]

    def test_a_limit_that_could_not_be_looked_at_is_not_told(self) -> None:
        rules = limits(requests=60)
        store = Script(Taken([], rules.buckets(KEY, "", "m")[0], unchecked=True))
        admission = Admission(rules, store, lambda limit, decision: Count())
        with pytest.raises(Busy):
            admission.reserve_nowait(ask(), Trail("id", 100.0))
        assert admission.standings(100.0) == []


class TestWhoIsFree:
    """Who has no limits reserves nothing: most of admission is not even asked."""

    def test_a_caller_without_limits_is_free_once_it_has_been_looked_at(self) -> None:
        desk = Desk(Rules())
        assert (KEY, "", "m") not in desk.admission.free
        desk.reserve()
        assert (KEY, "", "m") in desk.admission.free
        assert (KEY, "", "another") not in desk.admission.free

    def test_a_caller_with_any_limit_is_not(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "concurrent"):
            desk = Desk(Rules(of_keys=((name, 1000),)))
            desk.reserve()
            assert (KEY, "", "m") not in desk.admission.free

    def test_nobody_is_while_the_length_of_answers_is_learned_for_somebody_s_limit(self) -> None:
        desk = Desk(Rules())
        desk.reserve(ask(tenant=FREE))
        assert (FREE, "", "m") in desk.admission.free
        limited = Tenant("key3", "acme", tokens_per_minute=MUCH)
        desk.reserve(ask(tenant=limited))
        assert (FREE, "", "m") not in desk.admission.free
        desk.answered(ask(tenant=FREE), Usage(10, 5000))
        assert desk.reserve(ask(tenant=limited, max_tokens=None)).costs[2] == 4096

    def test_nobody_is_before_new_rules_were_looked_at(self) -> None:
        desk = Desk(Rules())
        desk.reserve()
        desk.admission.use(Rules(of_keys=(("concurrent", 1),)))
        assert (KEY, "", "m") not in desk.admission.free
