"""How many bad signatures an address may send."""

import pytest

from gateway.limits.strangers import BURST, Strangers
from tests.fakes import Hands

HERE = "203.0.113.9"


def strangers(hands: Hands, **more: int) -> Strangers:
    return Strangers(hands, lambda: 0.0, **more)


def test_so_many_are_checked_then_it_must_wait() -> None:
    hands = Hands()
    here = strangers(hands)
    for _ in range(BURST):
        assert here.wait_seconds(HERE) == 0
        here.failed(HERE)
    assert here.wait_seconds(HERE) == pytest.approx(1.0)
    hands.now += 0.4
    assert here.wait_seconds(HERE) == pytest.approx(0.6)
    hands.now += 0.6
    assert here.wait_seconds(HERE) == 0


def test_who_waits_as_told_is_checked_and_one_more_empties_it_again() -> None:
    hands = Hands()
    here = strangers(hands, burst=3)
    for _ in range(3):
        here.failed(HERE)
    hands.now += here.wait_seconds(HERE)
    assert here.wait_seconds(HERE) == 0
    here.failed(HERE)
    assert here.wait_seconds(HERE) > 0


def test_the_wait_is_told_with_jitter_never_too_short() -> None:
    hands = Hands()
    here = Strangers(hands, lambda: 0.5, burst=1)
    here.failed(HERE)
    assert here.wait_seconds(HERE) == pytest.approx(1.5)


def test_another_address_has_its_own() -> None:
    here = strangers(Hands(), burst=1)
    here.failed(HERE)
    assert here.wait_seconds(HERE) > 0
    assert here.wait_seconds("203.0.113.10") == 0


def test_an_ipv6_address_counts_by_its_64() -> None:
    here = strangers(Hands(), burst=1)
    here.failed("2001:db8:0:1::1")
    assert here.wait_seconds("2001:db8:0:1:ffff::9") > 0
    assert here.wait_seconds("2001:db8:0:2::1") == 0
    # Nor is a small one an IPv4 address, nor none.
    here.failed("::1")
    assert here.wait_seconds("0.0.0.0") == 0
    assert here.wait_seconds("0.0.0.1") == 0
    assert here.wait_seconds("") == 0


def test_who_has_no_address_counts_together() -> None:
    here = strangers(Hands(), burst=1)
    here.failed("")
    assert here.wait_seconds("") > 0


def test_so_many_addresses_are_kept_the_longest_silent_one_goes() -> None:
    here = strangers(Hands(), burst=1, max_addresses=100)
    here.failed(HERE)
    for number in range(99):
        here.failed(f"10.0.0.{number}")
    here.failed(HERE)
    for number in range(99):
        here.failed(f"10.0.1.{number}")
    assert len(here) == 100
    assert here.wait_seconds(HERE) > 0
    here.failed("10.0.2.1")
    assert here.wait_seconds(HERE) == 0


def test_silence_fills_it_no_further_than_full() -> None:
    hands = Hands()
    here = strangers(hands, burst=2)
    here.failed(HERE)
    hands.now += 1000
    for _ in range(2):
        assert here.wait_seconds(HERE) == 0
        here.failed(HERE)
    assert here.wait_seconds(HERE) > 0
