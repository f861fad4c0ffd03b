"""What a bucket lets in, how long it makes wait, and what is given back."""

from math import inf

import pytest

from gateway.limits.bucket import DAY, FIRST_SWEEP, MAX_BUCKETS, MINUTE, Book, Bucket, Costs, Counts, interval_of

NOW = 1e12
"""A monotonic clock of a machine that has run for eleven days."""
WALL = 1.8e15
"""A wall clock, where only a quarter of a microsecond is told apart."""
ONE: Costs = (1, 0, 0, 0)


def rate(
    amount: int, period: float = MINUTE, *, counts: Counts = Counts.REQUESTS, key: bytes = b"rate", name: str = "rate"
) -> Bucket:
    return Bucket(key, name, amount, period, counts)


def slots(amount: int, key: bytes = b"slots") -> Bucket:
    return Bucket(key, "concurrent", amount, 0.0)


def tokens(count: int) -> Costs:
    return 1, 0, 0, count


def let_in(book: Book, bucket: Bucket, now: float, tries: int, share: float = 1.0) -> int:
    """How many of so many that come at once."""
    return sum(book.take([bucket], ONE, now, share).refused is None for _ in range(tries))


def content(book: Book) -> tuple[dict[bytes, float], dict[bytes, int]]:
    return dict(book.tats), dict(book.held)


class TestRates:
    @pytest.mark.parametrize("now", [0.0, 1e9, NOW])
    @pytest.mark.parametrize("amount", [1, 3, 7, 60, 97, 600, 1001])
    def test_a_full_bucket_lets_its_amount_in_at_once_and_no_more(self, amount: int, now: float) -> None:
        assert let_in(Book(), rate(amount), now, amount + 2) == amount

    @pytest.mark.parametrize("amount", [1, 3, 7, 60, 97, 600, 1001])
    def test_where_time_is_coarse_the_last_one_may_come_microseconds_late_but_none_too_many_come(
        self, amount: int
    ) -> None:
        book, bucket = Book(), rate(amount)
        at_once = let_in(book, bucket, WALL, amount + 2)
        assert amount - 1 <= at_once <= amount
        assert at_once + let_in(book, bucket, WALL + amount, amount) == amount

    def test_what_is_spent_comes_back_evenly(self) -> None:
        book, bucket = Book(), rate(60)
        assert let_in(book, bucket, NOW, 100) == 60
        assert let_in(book, bucket, NOW + 0.9e6, 9) == 0
        assert [let_in(book, bucket, NOW + second * 1e6, 9) for second in (1, 2, 5)] == [1, 1, 3]

    def test_no_minutes_edge_lets_twice_as_many_through(self) -> None:
        book, bucket = Book(), rate(60)
        assert let_in(book, bucket, 59e6, 100) == 60
        assert let_in(book, bucket, 61e6, 100) == 2

    def test_a_bucket_is_never_more_than_full(self) -> None:
        book, bucket = Book(), rate(5)
        assert let_in(book, bucket, NOW, 1) == 1
        assert let_in(book, bucket, NOW + 10 * DAY, 100) == 5

    def test_the_wait_is_exact(self) -> None:
        book, bucket = Book(), rate(60, counts=Counts.BOTH)
        assert book.take([bucket], tokens(50), NOW).refused is None
        refused = book.take([bucket], tokens(15), NOW)
        assert (refused.refused, refused.wait) == (bucket, 5e6)
        assert book.take([bucket], tokens(15), NOW + 5e6 - 2.0).refused is bucket
        # A microsecond is what sums of fractions may be off by.
        assert book.take([bucket], tokens(15), NOW + 5e6 - 1.0).refused is None

    def test_the_levels_tell_when_each_is_full_again(self) -> None:
        book, quick, slow, counted = Book(), rate(60), rate(24, DAY, key=b"day"), slots(3)
        assert list(book.take([quick, counted, slow], ONE, NOW).levels) == [1e6, 1, 3600e6]
        assert list(book.take([quick, counted, slow], ONE, NOW + 0.5e6).levels) == [1.5e6, 2, 7199.5e6]

    def test_a_refusal_tells_the_levels_as_they_are_left(self) -> None:
        book, bucket, counted = Book(), rate(2), slots(2)
        book.take([bucket, counted], ONE, NOW)
        book.take([bucket, counted], ONE, NOW)
        assert list(book.take([bucket, counted], ONE, NOW + 10e6).levels) == [50e6, 2]

    def test_what_costs_nothing_leaves_nothing(self) -> None:
        book, bucket = Book(), rate(9, counts=Counts.COMPLETION)
        taken = book.take([bucket], ONE, NOW)
        assert (list(taken.levels), taken.refused, content(book)) == ([0.0], None, ({}, {}))

    def test_what_costs_nothing_is_let_in_whatever_is_owed(self) -> None:
        book, bucket = Book(), rate(9, counts=Counts.BOTH)
        book.take([bucket], tokens(9), NOW)
        book.correct(bucket, 100, NOW)
        assert book.take([bucket], ONE, NOW).refused is None
        assert book.take([bucket], tokens(1), NOW).refused is bucket

    def test_each_bucket_counts_its_own_part_of_a_request(self) -> None:
        costs: Costs = (1, 20, 300, 320)
        buckets = [rate(1000, 1e9, counts=counts, key=counts.name.encode()) for counts in Counts]
        assert list(Book().take(buckets, costs, NOW).levels) == [cost * 1e6 for cost in costs]


class TestAllOrNone:
    @pytest.mark.parametrize("first", [True, False])
    def test_nothing_is_taken_of_any_if_one_refuses(self, first: bool) -> None:
        book, wide, narrow, counted = Book(), rate(100), rate(1, key=b"narrow"), slots(9)
        buckets = [narrow, wide, counted] if first else [wide, counted, narrow]
        assert book.take(buckets, ONE, NOW).refused is None
        before = content(book)
        assert book.take(buckets, ONE, NOW).refused is narrow
        assert content(book) == before

    @pytest.mark.parametrize("first", [True, False])
    def test_nothing_is_taken_of_any_if_too_many_run(self, first: bool) -> None:
        book, wide, counted = Book(), rate(100), slots(1)
        buckets = [counted, wide] if first else [wide, counted]
        assert book.take(buckets, ONE, NOW).refused is None
        before = content(book)
        refused = book.take(buckets, ONE, NOW)
        assert (refused.refused, refused.wait, refused.source) == (counted, 0.0, book)
        assert content(book) == before

    @pytest.mark.parametrize("first", [True, False])
    def test_the_one_that_makes_wait_longest_is_named(self, first: bool) -> None:
        book, minute, day, counted = Book(), rate(1), rate(1, DAY, key=b"day"), slots(1)
        buckets = [day, counted, minute] if first else [minute, counted, day]
        book.take(buckets, ONE, NOW)
        refused = book.take(buckets, ONE, NOW + 1e6)
        assert (refused.refused, refused.wait) == (day, DAY - 1e6)

    @pytest.mark.parametrize("first", [True, False])
    def test_of_two_that_make_wait_as_long_the_first_is_named(self, first: bool) -> None:
        book, one, other = Book(), rate(1, key=b"1"), rate(1, key=b"2")
        buckets = [one, other] if first else [other, one]
        book.take(buckets, ONE, NOW)
        assert book.take(buckets, ONE, NOW).refused is buckets[0]

    def test_of_two_counts_the_first_is_named(self) -> None:
        book, one, other = Book(), slots(1, b"1"), slots(1, b"2")
        book.take([one, other], ONE, NOW)
        assert book.take([one, other], ONE, NOW).refused is one

    def test_a_take_knows_where_it_was_made(self) -> None:
        book = Book()
        assert book.take([rate(1)], ONE, NOW).source is book


class TestWhatNeverFits:
    def test_more_than_the_amount_is_never_let_in_and_the_amount_is(self) -> None:
        book, bucket = Book(), rate(100, counts=Counts.BOTH)
        refused = book.take([bucket], tokens(101), NOW)
        assert (refused.refused, refused.wait, content(book)) == (bucket, inf, ({}, {}))
        assert book.take([bucket], tokens(100), NOW).refused is None

    @pytest.mark.parametrize("first", [True, False])
    def test_never_is_longer_than_any_wait(self, first: bool) -> None:
        book, small, spent, counted = Book(), rate(5, counts=Counts.BOTH, key=b"small"), rate(1, DAY), slots(1)
        book.take([spent, counted], ONE, NOW)
        buckets = [small, spent, counted] if first else [spent, counted, small]
        refused = book.take(buckets, tokens(6), NOW)
        assert (refused.refused, refused.wait, len(refused.levels)) == (small, inf, 3)


class TestWhatRuns:
    def test_so_many_run_at_once_and_each_end_makes_room_for_one(self) -> None:
        book, bucket = Book(), slots(3)
        assert let_in(book, bucket, NOW, 9) == 3
        book.settle([bucket], ONE, ONE, NOW)
        assert let_in(book, bucket, NOW, 9) == 1

    def test_time_gives_nothing_back_of_what_runs(self) -> None:
        book, bucket = Book(), slots(1)
        assert let_in(book, bucket, NOW, 1) == 1
        assert let_in(book, bucket, NOW + 10 * DAY, 9) == 0

    def test_when_all_have_ended_nothing_is_kept(self) -> None:
        book, bucket = Book(), slots(3)
        let_in(book, bucket, NOW, 3)
        for _ in range(3):
            book.settle([bucket], ONE, ONE, NOW)
        assert content(book) == ({}, {})

    def test_what_was_never_taken_here_makes_no_room_when_it_is_given_back(self) -> None:
        book, bucket = Book(), slots(1)
        book.give_back(bucket)
        assert let_in(book, bucket, NOW, 9) == 1


class TestSettling:
    def test_what_was_not_used_is_given_back(self) -> None:
        book, bucket = Book(), rate(100, counts=Counts.BOTH)
        book.take([bucket], tokens(100), NOW)
        book.settle([bucket], tokens(100), tokens(30), NOW)
        assert book.take([bucket], tokens(71), NOW).refused is bucket
        assert book.take([bucket], tokens(70), NOW).refused is None

    def test_what_was_used_beyond_is_a_debt_that_new_requests_wait_for(self) -> None:
        book, bucket = Book(), rate(60, counts=Counts.BOTH)
        book.take([bucket], tokens(60), NOW)
        book.settle([bucket], tokens(60), tokens(180), NOW)
        assert book.take([bucket], tokens(1), NOW).wait == 121e6
        assert book.take([bucket], tokens(1), NOW + 121e6).refused is None

    def test_nothing_given_back_makes_a_bucket_more_than_full(self) -> None:
        book, bucket = Book(), rate(60, counts=Counts.BOTH)
        book.take([bucket], tokens(30), NOW)
        book.settle([bucket], tokens(30), tokens(0), NOW + 20e6)
        assert content(book) == ({}, {})
        book.correct(bucket, -1000, NOW + 20e6)
        assert content(book) == ({}, {})
        assert book.take([bucket], tokens(61), NOW + 20e6).wait == inf
        assert book.take([bucket], tokens(60), NOW + 20e6).refused is None
        assert book.take([bucket], tokens(1), NOW + 20e6).wait == 1e6

    def test_what_comes_late_is_spent_from_then_on(self) -> None:
        book, bucket = Book(), rate(60, counts=Counts.BOTH)
        book.take([bucket], tokens(10), NOW)
        book.settle([bucket], tokens(10), tokens(15), NOW + 600e6)
        assert book.tats == {b"rate": NOW + 605e6}

    def test_a_request_was_one_whatever_became_of_it(self) -> None:
        book, bucket = Book(), rate(1)
        book.take([bucket], ONE, NOW)
        book.settle([bucket], ONE, (1, 7, 8, 15), NOW)
        assert book.take([bucket], ONE, NOW).refused is bucket

    def test_each_bucket_is_settled_with_its_own_part(self) -> None:
        buckets = [rate(1000, 1e9, counts=counts, key=counts.name.encode()) for counts in Counts]
        book = Book()
        book.take(buckets, (1, 20, 300, 320), NOW)
        book.settle(buckets, (1, 20, 300, 320), (1, 15, 310, 325), NOW)
        assert book.tats == {
            b"REQUESTS": NOW + 1e6,
            b"PROMPT": NOW + 15e6,
            b"COMPLETION": NOW + 310e6,
            b"BOTH": NOW + 325e6,
        }

    def test_what_used_what_it_reserved_changes_nothing(self) -> None:
        book, bucket = Book(), rate(60, counts=Counts.BOTH)
        book.take([bucket], tokens(10), NOW)
        book.settle([bucket], tokens(10), tokens(10), NOW + 999e6)
        assert book.tats == {b"rate": NOW + 10e6}


class TestShares:
    def test_a_share_is_that_part_of_the_amount_and_of_what_comes_back(self) -> None:
        book, bucket = Book(), rate(60)
        assert let_in(book, bucket, NOW, 100, 1 / 3) == 20
        assert let_in(book, bucket, NOW + 6e6, 100, 1 / 3) == 2
        assert interval_of(bucket, 1.0) == 1e6
        assert interval_of(bucket, 0.25) == 4e6

    def test_a_share_is_one_at_least(self) -> None:
        book, bucket, counted = Book(), rate(2), slots(2)
        assert let_in(book, bucket, NOW, 9, 1 / 5) == 1
        assert let_in(book, counted, NOW, 9, 1 / 5) == 1
        assert let_in(book, bucket, NOW + MINUTE, 9, 1 / 5) == 1

    def test_a_share_of_what_runs_is_rounded_down(self) -> None:
        assert let_in(Book(), slots(8), NOW, 9, 1 / 3) == 2

    def test_what_is_larger_than_a_share_is_let_in_when_it_is_untouched_and_leaves_a_debt(self) -> None:
        book, bucket = Book(), rate(60, counts=Counts.BOTH)
        assert book.take([bucket], tokens(50), NOW, 0.5).refused is None
        assert book.tats == {b"rate": NOW + 100e6}
        assert book.take([bucket], tokens(1), NOW, 0.5).wait == 42e6

    def test_what_is_larger_than_a_share_waits_until_it_is_untouched(self) -> None:
        book, bucket = Book(), rate(60, counts=Counts.BOTH)
        book.take([bucket], tokens(3), NOW, 0.5)
        assert book.take([bucket], tokens(50), NOW, 0.5).wait == 6e6
        assert book.take([bucket], tokens(50), NOW + 6e6, 0.5).refused is None

    def test_what_never_fits_the_whole_never_fits_a_share(self) -> None:
        assert Book().take([rate(60, counts=Counts.BOTH)], tokens(61), NOW, 0.5).wait == inf

    def test_what_is_given_back_is_what_was_taken(self) -> None:
        book, bucket = Book(), rate(60, counts=Counts.BOTH)
        book.take([bucket], tokens(20), NOW, 0.5)
        book.settle([bucket], tokens(20), tokens(5), NOW, 0.5)
        assert book.tats == {b"rate": NOW + 10e6}


class TestMemory:
    def test_what_is_full_again_is_forgotten_and_nothing_else(self) -> None:
        book, late = Book(), rate(60, key=b"late", counts=Counts.BOTH)
        book.take([late], tokens(60), NOW)
        for number in range(FIRST_SWEEP - 2):
            book.take([rate(60, key=b"%d" % number)], ONE, NOW)
        assert len(book.tats) == FIRST_SWEEP - 1
        book.take([rate(60, key=b"last")], ONE, NOW + 1e6)
        assert book.tats == {b"late": NOW + 60e6, b"last": NOW + 2e6}

    def test_sweeping_is_rare_however_many_are_kept(self) -> None:
        book = Book()
        for number in range(4 * FIRST_SWEEP):
            before = book.tats
            book.take([rate(60, key=b"%d" % number)], ONE, NOW)
            swept = book.tats is not before
            assert swept == (number + 1 in (FIRST_SWEEP, 2 * FIRST_SWEEP, 4 * FIRST_SWEEP))
        assert len(book.tats) == 4 * FIRST_SWEEP

    def test_sweeping_is_rare_where_all_are_soon_full(self) -> None:
        book, swept = Book(), 0
        for number in range(4 * FIRST_SWEEP):
            before = book.tats
            book.take([rate(60, key=b"%d" % number)], ONE, NOW + number * 1e6)
            swept += book.tats is not before
        assert swept == 4

    def test_of_too_many_those_that_will_be_full_last_are_kept(self) -> None:
        book, day = Book(), rate(24, DAY, key=b"day")
        book.take([day], ONE, NOW)
        most = 0
        for number in range(MAX_BUCKETS + FIRST_SWEEP):
            book.take([rate(60, key=b"%d" % number)], ONE, NOW + number)
            most = max(most, len(book.tats))
        assert MAX_BUCKETS // 2 < most <= MAX_BUCKETS
        assert day.key in book.tats
        assert b"%d" % (MAX_BUCKETS + FIRST_SWEEP - 1) in book.tats
        assert b"0" not in book.tats
