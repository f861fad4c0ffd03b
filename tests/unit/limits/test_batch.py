"""A call that was void has changed nothing, and what is no answer of the script is not read as one."""

from struct import pack, unpack

import pytest

from gateway.limits.batch import PREFIX, Batch, Decided, Garbled, Request
from gateway.limits.bucket import DAY, Bucket, Costs
from gateway.limits.leases import Leases

RATE = Bucket(b"rate", "requests_per_day", 6400, DAY)
SLOTS = Bucket(b"slots", "concurrent", 10, 0.0)
ONE: Costs = (1, 0, 0, 0)


def batch() -> tuple[Leases, Batch]:
    leases = Leases(lambda: None)
    leases.correct(RATE, 3)
    return leases, Batch(leases, [Request((SLOTS, RATE), ONE)] * 2, leases.next_untold(9))


def test_it_asks_for_each_bucket_once() -> None:
    _, asked = batch()
    assert asked.keys == [PREFIX + b"rate", PREFIX + b"slots"]
    assert unpack("<20d", asked.asked(30e6, 1e15)) == (
        *(30e6, 1e15),
        *(6400, DAY, 3, 0),
        *(10, 0, 0, 0),
        *(2, 2, 1, 1, 1),
        *(2, 2, 1, 1, 1),
    )


def test_what_came_of_it_is_told_and_learned() -> None:
    leases, asked = batch()
    answer = pack("<13d", 1e15, 5e6, 0, 9, 0, *(0, 0, 9, 4e6), *(1, 7e6, 9, 5e6))
    assert asked.learn(answer, 0.0) == (1e15, [Decided((9, 4e6), None, 0), Decided((9, 5e6), SLOTS, 7e6)])
    assert leases.running == {b"slots": 1}
    assert leases.held[b"slots"].told == 1


def test_a_void_call_has_changed_nothing() -> None:
    leases, asked = batch()
    assert asked.learn(pack("<d", 1e15), 0.0) == (1e15, None)
    assert leases.running == {}
    # Nor has it been known, until it was answered, that it would not.
    assert leases.held[b"slots"].told == 2


NO_NUMBERS = pack("<13d", *[float("nan")] * 13)
NO_BUCKET = pack("<13d", 1e15, 5e6, 0, 9, 0, *(0, 0, 9, 4e6), *(3, 7e6, 9, 5e6))


@pytest.mark.parametrize(
    "answer", [b"", b"1234567", pack("<12d", *[0.0] * 12), NO_NUMBERS, NO_BUCKET, [1], None, 7, "text"]
)
def test_anything_else_is_garbled(answer: object) -> None:
    leases, asked = batch()
    with pytest.raises(Garbled):
        asked.learn(answer, 0.0)  # type: ignore[arg-type]  # as it may come
    assert leases.running == {}
