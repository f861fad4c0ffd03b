"""For any history of requests, whatever they cost, whenever they come and in whatever order they end: no rate lets
more through than it says, nothing is taken by who is refused, a wait is exact, and nothing is left over.

A second bucket, in fractions and by the moment instead of by arrival times, has to agree.
"""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from math import ceil, floor, inf
from random import Random
from typing import NamedTuple

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.core.call import Trail, Usage
from gateway.core.caller import Tenant
from gateway.core.errors import QuotaExceeded, RateLimited
from gateway.limits.admission import Admission, Ask, Reservation, duration
from gateway.limits.bucket import DAY, FIRST_SWEEP, MINUTE, SLACK, Book, Bucket, Costs, Counts
from gateway.limits.memory_store import MemoryStore
from gateway.limits.rules import LIMITS, Rule, Rules
from gateway.telemetry.series import Count
from tests.fakes import Hands

NOISE = 0.01
"""Microseconds that sums of fractions are off by, at a monotonic clock's times and in histories as short as these."""
starts = st.sampled_from([0.0, 1e9, 3.6e9, 1e12])
steps = st.one_of(st.just(0.0), st.floats(0, 2e6), st.floats(0, 90e6), st.sampled_from([1e6, 60e6, 1e11]))
amounts = st.one_of(st.integers(1, 20), st.integers(1, 5000))


class Step(NamedTuple):
    """A request that comes after a pause, and when it ends, how many requests later, with what it used."""

    pause: float
    cost: int
    used: int
    ends_after: int


def histories(most_cost: int = 30) -> st.SearchStrategy[list[Step]]:
    costs = st.one_of(st.just(1), st.integers(0, most_cost))
    return st.lists(st.builds(Step, steps, costs, costs, st.integers(0, 12)), max_size=60)


def both(count: int) -> Costs:
    return 1, 0, count, count


def tokens(amount: int, period: float = MINUTE, key: bytes = b"tokens") -> Bucket:
    return Bucket(key, "tokens_per_minute", amount, period, Counts.BOTH)


def content(book: Book) -> tuple[dict[bytes, float], dict[bytes, int]]:
    return dict(book.tats), dict(book.held)


@settings(max_examples=300)
@given(st.one_of(st.integers(1, 30), st.integers(1, 5000)), st.sampled_from([MINUTE, DAY]), starts, histories())
def test_no_span_lets_in_more_than_the_amount_and_what_came_back(
    amount: int, period: float, start: float, history: list[Step]
) -> None:
    """For every span from one request to another: what was let in, plus what debts came due in it, is at most the
    amount, what comes back in such a span, and what was given back of those that had been in flight before it.
    """
    book, bucket, now = Book(), tokens(amount, period), start
    moves: list[tuple[float, int, bool]] = []
    running: list[tuple[int, Step]] = []
    for number, step in enumerate(history):
        now += step.pause
        for due, earlier in [each for each in running if each[0] <= number]:
            running.remove((due, earlier))
            book.settle([bucket], both(earlier.cost), both(earlier.used), now)
            moves.append((now, earlier.used - earlier.cost, False))
        if book.take([bucket], both(step.cost), now).refused is None:
            moves.append((now, step.cost, step.cost > 0))
            running.append((number + 1 + step.ends_after, step))
    slack = Fraction((SLACK + NOISE) * amount / period)
    for first, (since, _, _) in enumerate(moves):
        net = 0
        for until, more, taken in moves[first:]:
            net += more
            if taken:
                assert net <= amount + Fraction(until - since) * amount / Fraction(period) + slack


@settings(max_examples=300)
@given(amounts, starts, histories())
def test_it_agrees_with_a_bucket_that_leaks_moment_by_moment(amount: int, start: float, history: list[Step]) -> None:
    book, bucket, now = Book(), tokens(amount), start
    per_unit = Fraction(60_000_000, amount)
    level, last = Fraction(0), Fraction(start)
    running: list[tuple[int, Step]] = []

    def drained(moment: float) -> Fraction:
        return max(Fraction(0), level - (Fraction(moment) - last) / per_unit)

    for number, step in enumerate(history):
        now += step.pause
        for due, earlier in [each for each in running if each[0] <= number]:
            running.remove((due, earlier))
            book.settle([bucket], both(earlier.cost), both(earlier.used), now)
            level, last = max(Fraction(0), drained(now) + earlier.used - earlier.cost), Fraction(now)
        level, last = drained(now), Fraction(now)
        over = (level + step.cost - amount) * per_unit
        # Whether what is on the very edge gets in is for the slack to say.
        assume(not 0 < over < 2 * SLACK)
        taken = book.take([bucket], both(step.cost), now)
        if step.cost > amount:
            assert (taken.refused, taken.wait) == (bucket, inf)
        elif over > 0 and step.cost:
            assert taken.refused is bucket
            assert abs(taken.wait - over) < NOISE
        else:
            assert taken.refused is None
            level += step.cost
            running.append((number + 1 + step.ends_after, step))
        assert abs(taken.levels[0] - level * per_unit) < NOISE


class Scene(NamedTuple):
    """Buckets that requests of many kinds have taken from, and where time stands."""

    book: Book
    buckets: Sequence[Bucket]
    now: float


costs_of_requests = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda two: (1, *two, sum(two)))


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    kinds = st.tuples(amounts, st.sampled_from([0.0, MINUTE, DAY]), st.sampled_from(Counts))
    buckets = [
        Bucket(b"%d" % number, "some limit", amount, period, counts if period else Counts.REQUESTS)
        for number, (amount, period, counts) in enumerate(draw(st.lists(kinds, min_size=1, max_size=6)))
    ]
    book, now = Book(), draw(starts)
    for pause, costs, which in draw(
        st.lists(st.tuples(steps, costs_of_requests, st.sets(st.sampled_from(buckets))), max_size=40)
    ):
        now += pause
        book.take([bucket for bucket in buckets if bucket in which], costs, now)
    return Scene(book, draw(st.permutations(buckets)), now)


@settings(max_examples=300)
@given(scenes(), costs_of_requests, st.sampled_from([1.0, 1.0, 0.5, 1 / 3]))
def test_who_is_refused_takes_nothing_and_who_is_let_in_takes_from_each(
    scene: Scene, costs: Costs, share: float
) -> None:
    book, buckets, now = scene
    tats, held = content(book)
    taken = book.take(buckets, costs, now, share)
    assert len(taken.levels) == len(buckets)
    if taken.refused is not None:
        assert content(book) == (tats, held)
    for bucket, level in zip(buckets, taken.levels, strict=True):
        if not bucket.period:
            took = taken.refused is None
            assert level == held.get(bucket.key, 0) + took == book.held.get(bucket.key, 0)
        elif taken.refused is not None:
            assert level == max(0.0, tats.get(bucket.key, 0.0) - now)
        else:
            spent = costs[bucket.counts] * bucket.period / max(1.0, bucket.amount * share)
            assert abs(level - max(0.0, tats.get(bucket.key, 0.0) - now) - spent) < NOISE
            assert abs(max(0.0, book.tats.get(bucket.key, 0.0) - now) - level) < NOISE


@settings(max_examples=300)
@given(scenes(), costs_of_requests)
def test_the_wait_is_enough_and_no_less_would_be(scene: Scene, costs: Costs) -> None:
    book, buckets, now = scene
    rates = [bucket for bucket in buckets if bucket.period]
    refused = book.take(rates, costs, now)
    if refused.refused is None:
        return
    assert refused.refused in rates
    if refused.wait == inf:
        assert costs[refused.refused.counts] > refused.refused.amount
        assert book.take(rates, costs, now + 1000 * DAY).wait == inf
        return
    assert refused.wait > SLACK
    assert book.take(rates, costs, now + refused.wait - SLACK - NOISE).refused is not None
    # To the millisecond, as it is told.
    assert book.take(rates, costs, now + 1000 * ceil((refused.wait - SLACK / 2) / 1000)).refused is None


@settings(max_examples=200)
@given(scenes(), costs_of_requests, st.floats(0, 90e6))
def test_settling_never_makes_a_bucket_more_than_full(scene: Scene, used: Costs, pause: float) -> None:
    book, buckets, now = scene
    book.settle(buckets, (1, 1000, 1000, 2000), used, now + pause)
    for bucket in buckets:
        if bucket.period and bucket.counts is not Counts.REQUESTS:
            assert book.tats.get(bucket.key, inf) > now + pause
    # However much was given back, the amount is what may be spent at once.
    for bucket in buckets:
        if bucket.period:
            book.correct(bucket, -(10**12), now + pause)
            everything: Costs = (bucket.amount, bucket.amount, bucket.amount, bucket.amount)
            assert book.take([bucket], everything, now + pause).refused is None
            assert book.take([bucket], both(1), now + pause).refused is (None if bucket.counts == 1 else bucket)


@settings(max_examples=200)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.lists(st.tuples(st.booleans(), st.integers(0, 50), st.sets(st.integers(0, 2), min_size=1)), max_size=80),
)
def test_as_many_run_as_were_let_in_and_have_not_ended(
    sizes: list[int], history: list[tuple[bool, int, set[int]]]
) -> None:
    book, rate = Book(), tokens(1000)
    counted = [Bucket(b"%d" % number, "concurrent", size, 0.0) for number, size in enumerate(sizes)]
    running: list[list[Bucket]] = []
    for comes, which, of in history:
        if comes:
            buckets = [rate, *(bucket for number, bucket in enumerate(counted) if number in of)]
            full = any(sum(bucket in each for each in running) >= bucket.amount for bucket in buckets if bucket != rate)
            refused = book.take(buckets, both(1), 0.0).refused
            assert (refused is None) == (not full)
            if refused is None:
                running.append(buckets)
        elif running:
            book.settle(running.pop(which % len(running)), both(1), both(0), 0.0)
        for bucket in counted:
            assert book.held.get(bucket.key, 0) == sum(bucket in each for each in running) <= bucket.amount
    while running:
        book.settle(running.pop(), both(1), both(0), 0.0)
    assert content(book) == ({}, {})


@settings(max_examples=200)
@given(
    st.integers(1, 200),
    st.integers(1, 12),
    starts,
    st.lists(st.tuples(st.floats(0, 20e6), st.integers(1, 250), st.integers(0, 11)), max_size=60),
)
def test_all_shares_together_let_in_no_more_than_the_whole_and_the_largest_of_each(
    amount: int, replicas: int, start: float, history: list[tuple[float, int, int]]
) -> None:
    """A share lets through what it is, but one at least; what is larger than it comes when it is untouched."""
    bucket, now, share = tokens(amount), start, 1 / replicas
    books = [Book() for _ in range(replicas)]
    let_in: list[list[tuple[float, int]]] = [[] for _ in books]
    for pause, cost, replica in history:
        now += pause
        which = replica % replicas
        if books[which].take([bucket], both(cost), now, share).refused is None:
            let_in[which].append((now, cost))
            assert cost <= amount
    part = max(1.0, amount / replicas)
    for moments in let_in:
        for first, (since, largest) in enumerate(moments):
            spent = 0
            for until, cost in moments[first:]:
                spent, largest = spent + cost, max(largest, cost)
                # The last one leaves a debt of no more than itself.
                assert spent <= max(part, largest) + part * (until - since) / MINUTE + 1e-3 or (
                    spent - cost <= part * (until - since) / MINUTE + 1e-3
                )


@settings(max_examples=200)
@given(st.integers(1, 100), st.integers(1, 12), starts, st.integers(1, 3))
def test_shares_of_requests_and_of_what_runs_are_the_whole_but_one_each_at_least(
    amount: int, replicas: int, start: float, minutes: int
) -> None:
    share = 1 / replicas
    rate = Bucket(b"rate", "requests_per_minute", amount, MINUTE)
    counted = Bucket(b"slots", "concurrent", amount, 0.0)
    came = ran = 0
    for _ in range(replicas):
        book = Book()
        ran += sum(book.take([counted], both(1), start, share).refused is None for _ in range(amount + 1))
        for minute in range(minutes):
            now = start + minute * MINUTE
            came += sum(book.take([rate], both(1), now, share).refused is None for _ in range(amount + 1))
    assert minutes * replicas * max(1, floor(amount / replicas)) <= came <= minutes * max(amount, replicas)
    assert replicas <= ran <= max(amount, replicas)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([0.1e6, 1e6]))
def test_sweeping_never_forgets_what_is_not_full(seed: int, pause: float) -> None:
    rng, book, now = Random(seed), Book(), 1e9
    full_at: dict[bytes, float] = {}
    others = 0
    for _ in range(150):
        now += pause * (0.5 + rng.random())
        # So many others that there is a sweep every now and then.
        for _ in range(50):
            others += 1
            book.take([tokens(600, key=b"other%d" % others)], both(1), now)
        bucket, cost = tokens(60, key=b"%d" % rng.randrange(200)), rng.randint(1, 60)
        if book.take([bucket], both(cost), now).refused is None:
            full_at[bucket.key] = max(now, full_at.get(bucket.key, 0.0)) + cost * 1e6
        assert len(book.tats) < 3 * FIRST_SWEEP
    for key, moment in full_at.items():
        assert abs(book.tats.get(key, now) - moment) < NOISE or (moment <= now and key not in book.tats)


durations = st.one_of(
    st.floats(0, 1e4), st.floats(0, 1e8), st.floats(0, 1e13), st.integers(0, 10**8).map(lambda each: each * 1000.0)
)


@given(durations)
def test_a_duration_reads_back_as_the_milliseconds_it_is_rounded_up_to(microseconds: float) -> None:
    said = duration(microseconds).decode()
    if said.endswith("ms"):
        milliseconds = int(said[:-2])
        assert 0 < milliseconds < 1000
    else:
        found = re.fullmatch(r"(?:(\d+)h(?=\d+m))?(?:(\d+)m)?(\d+(?:\.\d{1,3})?)s", said)
        assert found is not None
        hours, minutes, seconds = int(found[1] or 0), int(found[2] or 0), Fraction(found[3])
        assert minutes < 60
        assert seconds < 60
        milliseconds = int(1000 * (3600 * hours + 60 * minutes + seconds))
        assert milliseconds == 0 or milliseconds >= 1000
    assert -SLACK <= 1000 * milliseconds - microseconds < 1000


class Request(NamedTuple):
    pause: float
    tenant: int
    user: str
    model: str
    prompt: int
    choices: int
    max_tokens: int | None
    usage: Usage | None
    ends_after: int


SHOWN = (b"limit", b"remaining", b"reset")
usages = st.one_of(st.none(), st.builds(Usage, st.integers(0, 200), st.integers(0, 5000), st.just(0), st.booleans()))
requests = st.builds(
    Request,
    st.floats(0, 20.0),
    st.integers(0, 2),
    st.sampled_from(["", "u", "v"]),
    st.sampled_from(["m", "n", "m[1]"]),
    st.integers(0, 200),
    st.integers(0, 3),
    st.one_of(st.none(), st.integers(0, 200)),
    usages,
    st.integers(0, 6),
)
rules = st.builds(
    Rule,
    st.sampled_from(["key", "tenant", "user", "model"]),
    st.dictionaries(st.sampled_from(LIMITS), st.integers(1, 500), min_size=1).map(lambda found: tuple(found.items())),
    st.sampled_from(["*", "m*", "a*", "u"]),
    st.sampled_from(["*", "m", "m[1]"]),
    st.sampled_from(["prompt", "completion", "both"]),
)


def decided(admission: Admission, asked: Ask) -> Reservation | RateLimited:
    try:
        reserved = admission.reserve_nowait(asked, Trail("id", 0.0))
    except RateLimited as refused:
        return refused
    assert reserved is not None
    return reserved


@settings(max_examples=200)
@given(
    st.lists(rules, max_size=4, unique_by=lambda rule: (rule.per, rule.match, rule.model, rule.count)),
    st.dictionaries(st.sampled_from(["requests_per_minute", "tokens_per_minute", "concurrent"]), st.integers(1, 500)),
    st.lists(requests, max_size=40),
)
def test_whatever_is_asked_for_is_let_in_or_told_what_to_wait_for_and_nothing_is_left_over(
    of_rules: list[Rule], of_keys: dict[str, int], history: list[Request]
) -> None:
    clock = Hands()
    store = MemoryStore(clock)
    admission = Admission(Rules(tuple(of_keys.items()), of_rules), store, lambda limit, decision: Count())
    tenants = [Tenant("k0", "acme"), Tenant("k1", "acme", tokens_per_minute=100), Tenant("k2", "m")]
    with ExitStack() as stack:
        running: list[tuple[int, ExitStack]] = []
        for number, request in enumerate(history):
            clock.now += request.pause
            for due, ends in [each for each in running if each[0] <= number]:
                running.remove((due, ends))
                ends.close()
            before = content(store.book)
            found = decided(admission, Ask(tenants[request.tenant], *request[2:7]))
            if isinstance(found, RateLimited):
                assert content(store.book) == before
                said, lines = dict(found.headers()), found.shown
                assert (b"retry-after-ms" in said) != (b"x-should-retry" in said)
                told = re.search(r"limit \d+, used \d+, asked (\d+)\. (Wait|That is more)", found.message)
                assert told is not None
                if isinstance(found, QuotaExceeded):
                    assert "per day" in found.message
                else:
                    # Never for a guess.
                    assert request.max_tokens is not None or b"x-should-retry" not in said
            else:
                found.trail.usage = request.usage
                ends = stack.enter_context(ExitStack())
                ends.enter_context(found)
                running.append((number + 1 + request.ends_after, ends))
                lines = found.lines
            shown = dict(line.split(b": ") for line in lines.splitlines())
            for kind in (b"requests", b"tokens"):
                limit, left, reset = (shown.get(b"x-ratelimit-%b-%b" % (what, kind)) for what in SHOWN)
                assert (limit is None) == (left is None) == (reset is None)
                assert 0 <= int(left or 0) <= int(limit or 0)
    assert store.book.held == {}
