"""What counts as one user of the network."""

import pytest

from gateway.core.network import network_of


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("203.0.113.9", "203.0.113.9", True),
        ("203.0.113.9", "203.0.113.10", False),
        ("::ffff:203.0.113.9", "203.0.113.9", True),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::1", "0.0.0.1", False),
        ("", "::1", False),
    ],
)
def test_an_address_counts_alone_and_an_ipv6_address_with_its_64(one: str, other: str, same: bool) -> None:
    assert (network_of(one) == network_of(other)) is same


def test_what_is_not_known_stays_so() -> None:
    assert network_of("") == ""
