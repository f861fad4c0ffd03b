"""Redis decides as this process would: both with the same histories, and their numbers the same to the last bit. And
what replicas hold there is neither lost nor counted twice, whatever becomes of their calls."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from itertools import count
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from gateway.limits.batch import PREFIX, Batch, Decided, Request
from gateway.limits.bucket import DAY, Book, Bucket, Costs, Counts
from gateway.limits.leases import Leases, largest, may_lease
from tests.valkey import Valkey

SCRIPT = files("gateway.limits").joinpath("take.lua").read_bytes()
KEEP = 30e6
NEVER = 2.0**60
NUMBERS = count()


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    valkey = Valkey()
    valkey.start_now()
    yield valkey
    valkey.stop_now()


class Replica:
    """One gateway's part, without its clockwork: it calls when it is told to."""

    def __init__(self, server: Valkey, name: str) -> None:
        self.name = name
        self.leases = Leases(lambda: None)
        self._client = server.client

    def call(self, *requests: Request, not_after: float = NEVER, heard: bool = True) -> tuple[float, list[Decided]]:
        """The server's time, and what was decided. Not `heard`: the answer does not come."""
        batch = Batch(self.leases, requests, self.leases.next_untold(1000))
        keys = batch.keys
        answer = self._client.eval(SCRIPT, len(keys), *keys, self.name, batch.asked(KEEP, not_after))
        now, decided = batch.learn(answer, 0.0) if heard else (0.0, [])
        return now, decided or []

    def settle(self, request: Request, used: Costs) -> None:
        for bucket in request.buckets:
            if bucket.period:
                self.leases.correct(bucket, used[bucket.counts] - request.costs[bucket.counts])
            else:
                self.leases.ended(bucket)


amounts = st.one_of(st.integers(1, 3), st.integers(1, 63), st.sampled_from([1000, 200_000, 999_999_937]))
units = st.one_of(st.integers(0, 70), st.sampled_from([17_000, 200_001, 33_333_333]))
costs = st.tuples(st.just(1), units, units, units)
limits = st.builds(
    Bucket,
    key=st.just(b""),
    name=st.just("limit"),
    amount=amounts,
    # As long as some calls take, up to a minute: buckets fill again between two calls, in part or wholly.
    period=st.sampled_from([0.0, 300.0, 3_000.0, 50_000.0, 60e6]),
    counts=st.sampled_from(Counts),
)


class Turn(NamedTuple):
    """A replica's: what has ended by now, wherever it ran, and what the replica asks for."""

    replica: int
    ended: list[tuple[int, Costs]]
    """Which of those that run, and what they used."""
    asked: list[tuple[set[int], Costs]]
    """Which buckets, and how much of them."""


turns = st.builds(
    Turn,
    replica=st.integers(0, 2),
    ended=st.lists(st.tuples(st.integers(0, 1000), costs), max_size=2),
    asked=st.lists(st.tuples(st.sets(st.integers(0, 4), min_size=1), costs), min_size=1, max_size=3),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(limits, min_size=5, max_size=5), history=st.lists(turns, min_size=1, max_size=12))
def test_redis_and_a_book_decide_alike(server: Valkey, made: list[Bucket], history: list[Turn]) -> None:
    run = next(NUMBERS)
    buckets = [replace(bucket, key=b"%d:%d" % (run, number)) for number, bucket in enumerate(made)]
    replicas = [Replica(server, f"r{number}") for number in range(3)]
    book = Book()
    inside: list[tuple[Replica, Request]] = []
    for turn in history:
        ended = [(*inside.pop(which % len(inside)), used) for which, used in turn.ended if inside]
        for replica, request, used in ended:
            replica.settle(request, used)
        for replica in replicas:
            now, _ = replica.call()
            settle_in_book(book, [(request, used) for owner, request, used in ended if owner is replica], now)
        asked = [Request([buckets[number] for number in sorted(which)], costs) for which, costs in turn.asked]
        asked = [request for request in asked if not may_lease(*request)]
        replica = replicas[turn.replica]
        now, decided = replica.call(*asked)
        for request, found in zip(asked, decided, strict=True):
            expected = book.take(request.buckets, request.costs, now)
            assert list(found.levels) == list(expected.levels)
            assert (found.refused, found.wait) == (expected.refused, expected.wait)
            event("refused" if expected.refused else "taken")
            if expected.refused is None:
                inside.append((replica, request))
    for bucket in buckets:
        if not bucket.period:
            running = sum(replica.leases.running.get(bucket.key, 0) for replica in replicas)
            assert book.held.get(bucket.key, 0) == running == counted(server, bucket)


@pytest.mark.parametrize("period", [60e6, DAY, 333.0])
def test_all_of_a_limit_may_come_at_once_and_not_one_more(server: Valkey, period: float) -> None:
    """Also where the time that one costs is no whole number."""
    replica = Replica(server, "r0")
    for amount in range(1, 64):
        bucket = Bucket(b"%d:" % next(NUMBERS), "limit", amount, period)
        _, decided = replica.call(*[Request([bucket], (1, 0, 0, 0))] * (amount + 1))
        assert [each.refused for each in decided] == [None] * amount + [bucket]


@pytest.mark.parametrize(
    ("period", "running", "leased"),
    [(DAY, 309, 10), (DAY, 310, 0), (DAY, 600, 0), (0.0, 279, 40), (0.0, 280, 0), (0.0, 600, 0)],
)
def test_a_lease_is_granted_if_after_it_less_than_half_is_used(
    server: Valkey, period: float, running: int, leased: int
) -> None:
    replica = Replica(server, "r0")
    bucket = Bucket(b"%d:" % next(NUMBERS), "limit", 640, period)
    lease = replica.leases.of(bucket)
    if period:
        lease.owed = running
    else:
        replica.leases.running[bucket.key] = running
    lease.wanted, lease.used = True, 1000
    replica.leases.tell(lease)
    now, _ = replica.call()
    if period:
        assert float(server.client.get(PREFIX + bucket.key)) - now == (running + leased) * bucket.interval
    else:
        assert counted(server, bucket) == running + leased
    assert lease.spare == leased


def settle_in_book(book: Book, ended: list[tuple[Request, Costs]], now: float) -> None:
    """All in one: what differs is told to Redis in one sum."""
    more: Counter[Bucket] = Counter()
    for request, used in ended:
        for bucket in request.buckets:
            if bucket.period:
                more[bucket] += used[bucket.counts] - request.costs[bucket.counts]
            else:
                book.give_back(bucket)
    for bucket, units in more.items():
        book.correct(bucket, units, now)


def counted(server: Valkey, bucket: Bucket) -> int:
    """How many run, as Redis knows."""
    found = server.client.hgetall(PREFIX + bucket.key)
    return sum(int(value.split()[0]) for value in found.values())


class Shared(RuleBasedStateMachine):
    """Three replicas and what they lease of four limits, of which next to nothing comes back by itself. Some of their
    calls are lost, before they are carried out or after."""

    def __init__(self, server: Valkey) -> None:
        super().__init__()
        self.server = server
        run = b"%d:" % next(NUMBERS)
        self.requests = Bucket(run + b"requests", "requests_per_day", 640, DAY)
        self.tokens = Bucket(run + b"tokens", "tokens_per_day", 64_000, DAY, Counts.BOTH)
        self.running = Bucket(run + b"running", "concurrent", 192, 0.0)
        self.small = Bucket(run + b"small", "concurrent", 9, 0.0)
        self.rates = (self.requests, self.tokens)
        self.counts = (self.running, self.small)
        self.replicas = [Replica(server, f"r{number}") for number in range(3)]
        self.open: list[tuple[Replica, Request]] = []
        self.spent: Counter[Bucket] = Counter()
        self.debts: Counter[Bucket] = Counter()
        self.too_much: Counter[Bucket] = Counter()
        """What Redis may hold beside, for all we know."""
        self.too_little: Counter[Bucket] = Counter()
        self.began = self.server.now()

    def refill(self, bucket: Bucket) -> float:
        """Units that have come back by themselves since the beginning, at most."""
        return (self.server.now() - self.began) / bucket.interval

    def request(self, tokens: int, *, small: bool) -> Request:
        buckets = [self.requests, self.tokens, self.running]
        return Request([*buckets, self.small] if small else buckets, (1, 0, 0, tokens))

    def let_in(self, replica: Replica, request: Request) -> None:
        self.open.append((replica, request))
        for bucket in self.rates:
            self.spent[bucket] += request.costs[bucket.counts]
            if not self.debts[bucket]:
                assert self.spent[bucket] <= bucket.amount + self.refill(bucket) + self.too_little[bucket]

    @rule(who=st.integers(0, 2), tokens=st.integers(0, 1500), small=st.booleans(), times=st.integers(1, 9))
    def ask(self, who: int, tokens: int, small: bool, times: int) -> None:
        """As the store does: what can be spent at once is, the rest is asked for together."""
        replica, request = self.replicas[who], self.request(tokens, small=small)
        asked = []
        for _ in range(times):
            if replica.leases.spend(*request, 0.0) is None:
                asked.append(request)
            else:
                self.let_in(replica, request)
        if asked:
            _, decided = replica.call(*asked)
            for each in decided:
                if each.refused is None:
                    self.let_in(replica, request)
                elif not replica.leases.came_back(each.refused):
                    self.is_at_its_end(replica, each.refused, request)

    def is_at_its_end(self, replica: Replica, bucket: Bucket, request: Request) -> None:
        """It was refused for a reason: what is not used, others hold, or they have not told yet."""
        elsewhere = [other.leases.held.get(bucket.key) for other in self.replicas if other is not replica]
        if bucket.period:
            told = sum(lease.spare - lease.owed for lease in elsewhere if lease is not None) + self.too_much[bucket]
            used, asked = self.spent[bucket], request.costs[bucket.counts]
        else:
            told = sum(max(lease.told, lease.spare) for lease in elsewhere if lease is not None)
            used, asked = replica.leases.running.get(bucket.key, 0), 1
        assert used + told + asked > bucket.amount

    @rule(which=st.lists(st.integers(0, 1000), min_size=1, max_size=9), share=st.sampled_from([0.0, 0.5, 1.0, 1.5]))
    def end(self, which: list[int], share: float) -> None:
        """Some have used less than they took, some more."""
        for number in which[: len(self.open)]:
            replica, request = self.open.pop(number % len(self.open))
            used = (1, 0, 0, int(request.costs[Counts.BOTH] * share))
            replica.settle(request, used)
            more = used[Counts.BOTH] - request.costs[Counts.BOTH]
            self.spent[self.tokens] += more
            self.debts[self.tokens] += max(0, more)

    @rule(who=st.integers(0, 2))
    def tell(self, who: int) -> None:
        self.replicas[who].call()

    @rule(who=st.integers(0, 2))
    def sweep(self, who: int) -> None:
        self.replicas[who].leases.sweep()

    @rule(who=st.integers(0, 2), tokens=st.integers(0, 1500), times=st.integers(1, 5), carried_out=st.booleans())
    def lose(self, who: int, tokens: int, times: int, carried_out: bool) -> None:
        """A call without an answer; then Redis is away for a while, and back."""
        replica = self.replicas[who]
        request = self.request(tokens, small=False)
        for bucket in self.rates:
            owed = replica.leases.of(bucket).owed
            if carried_out:
                self.too_much[bucket] += times * request.costs[bucket.counts] + largest(bucket)
            else:
                self.too_much[bucket] += max(0, -owed)
                self.too_little[bucket] += max(0, owed)
        if carried_out:
            replica.call(*[request] * times, heard=False)
        else:
            assert replica.call(*[request] * times, not_after=0.0)[1] == []
        replica.leases.give_up()
        replica.leases.sweep()
        replica.leases.tell_all()

    @invariant()
    def leases_are_small(self) -> None:
        for replica in self.replicas:
            for lease in replica.leases.held.values():
                assert 0 <= lease.spare <= largest(lease.bucket)

    @invariant()
    def what_runs_is_known_and_within_its_limit(self) -> None:
        for bucket in self.counts:
            running = sum(replica.leases.running.get(bucket.key, 0) for replica in self.replicas)
            assert running == sum(bucket in request.buckets for _, request in self.open)
            assert running <= bucket.amount
            assert running <= counted(self.server, bucket)

    def teardown(self) -> None:
        for replica, request in self.open:
            replica.settle(request, request.costs)
        for replica in self.replicas:
            replica.leases.give_up()
            replica.leases.tell_all()
            replica.call()
        for bucket in self.counts:
            assert counted(self.server, bucket) == 0
        for bucket in self.rates:
            full_at = float(self.server.client.get(PREFIX + bucket.key) or 0)
            used = max(0.0, full_at - self.server.now()) / bucket.interval
            assert used <= self.spent[bucket] + self.too_much[bucket] + 1e-6
            assert used >= self.spent[bucket] - self.too_little[bucket] - self.refill(bucket) - 1e-6
        for replica in self.replicas:
            replica.leases.sweep()
            replica.leases.sweep()
            replica.leases.sweep()
            assert replica.leases.held == {}
            assert replica.leases.running == {}


def test_what_replicas_hold_is_neither_lost_nor_counted_twice(server: Valkey) -> None:
    class Here(Shared):
        def __init__(self) -> None:
            super().__init__(server)

    run_state_machine_as_test(Here, settings=settings(max_examples=60, stateful_step_count=40))
