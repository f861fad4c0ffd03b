"""Whose address a request has: what proxies say, and who is believed."""

from ipaddress import ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.pipeline.proxies import MAX_BYTES, MAX_HOPS, Proxies, peer_of

PROXY, INNER, CLIENT, LIAR = "10.0.0.1", "10.0.0.2", "203.0.113.9", "198.51.100.7"
TRUSTED = Proxies([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])


def told(peer: str = PROXY, *, twice: tuple[bytes, ...] = (), **fields: str) -> str:
    named = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in fields.items()}
    return TRUSTED.client_of(peer, named, frozenset(twice))


def test_without_trusted_proxies_the_peer_is_the_client() -> None:
    assert Proxies().client_of(PROXY, {b"x-forwarded-for": CLIENT.encode()}) == PROXY
    assert not Proxies().trusts(PROXY)


def test_a_peer_that_is_not_trusted_is_not_believed() -> None:
    assert told(LIAR, x_forwarded_for=CLIENT, forwarded=f"for={CLIENT}") == LIAR
    assert told("", x_forwarded_for=CLIENT) == ""


@pytest.mark.parametrize(
    ("value", "client"),
    [
        (CLIENT, CLIENT),
        (f"{LIAR}, {CLIENT}", CLIENT),
        (f"{LIAR},{CLIENT} , {INNER}", CLIENT),
        (f"{CLIENT}:49152", CLIENT),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("::ffff:203.0.113.9", CLIENT),
        ("fe80::1%eth0", "fe80::1"),
        (f"{INNER}", INNER),
        (f"10.9.9.9, {INNER}", "10.9.9.9"),
        (f"{LIAR}, unknown, {INNER}", INNER),
        (f"{LIAR}, unknown", PROXY),
    ],
)
def test_x_forwarded_for_is_read_from_the_right_past_trusted_proxies(value: str, client: str) -> None:
    assert told(x_forwarded_for=value) == client


@pytest.mark.parametrize(
    ("value", "client"),
    [
        (f"for={CLIENT}", CLIENT),
        (f"For={CLIENT};proto=https;by=10.0.0.3", CLIENT),
        (f'for="{CLIENT}:80"', CLIENT),
        ('for="[2001:db8::1]"', "2001:db8::1"),
        ('for="[2001:db8::1]:4711"; host="a;b, for=9.9.9.9"', "2001:db8::1"),
        (f"for={LIAR}, for={CLIENT}, for={INNER}", CLIENT),
        (f'for={LIAR}, for="_hidden", for={INNER}', INNER),
        (f"for={LIAR}, for=unknown", PROXY),
        (f"for={LIAR}, proto=https", PROXY),
        ('for="\\[2001:db8::1\\]"', "2001:db8::1"),
        ('host="a\\"b, for=1.2.3.4";for=' + CLIENT, CLIENT),
    ],
)
def test_forwarded_is_read_as_rfc_7239_writes_it(value: str, client: str) -> None:
    assert told(forwarded=value) == client


@pytest.mark.parametrize(
    "value",
    [
        "",
        "for",
        "for=",
        "for=;",
        f"for={CLIENT},",
        f"for={CLIENT};for={LIAR}",
        "for=[2001:db8::1]",
        'for="2001:db8::1"',
        f'for="{CLIENT}',
        f"for={CLIENT} by=x",
        "for=999.1.1.1",
        "for=01.2.3.4",
        "for=a.example.com",
        f"for={CLIENT}:80",
        f"for={CLIENT}" + " " * MAX_BYTES,
        "for=\xe9",
    ],
)
def test_a_forwarded_that_cannot_be_read_counts_for_nothing(value: str) -> None:
    assert told(forwarded=value) == PROXY


@pytest.mark.parametrize(
    "value",
    [
        "",
        ",",
        f"{CLIENT},",
        "a.example.com",
        "1.2.3",
        f"{CLIENT}:x",
        f"{CLIENT}:123456",
        "[1.2.3.4]",
        "x" * 5000,
        "\xe9",
    ],
)
def test_an_x_forwarded_for_that_cannot_be_read_counts_for_nothing(value: str) -> None:
    assert told(x_forwarded_for=value) == PROXY


def test_two_headers_that_disagree_count_for_nothing_since_the_client_wrote_one_of_them() -> None:
    assert told(forwarded=f"for={LIAR}", x_forwarded_for=CLIENT) == PROXY
    assert told(forwarded=f"for={CLIENT}", x_forwarded_for=CLIENT) == CLIENT
    assert told(forwarded="for=", x_forwarded_for=CLIENT) == PROXY


def test_a_header_that_came_twice_counts_for_nothing() -> None:
    assert told(x_forwarded_for=LIAR, twice=(b"x-forwarded-for",)) == PROXY


def test_only_so_many_hops_are_followed() -> None:
    hops = [LIAR] + [INNER] * (MAX_HOPS + 5)
    assert told(x_forwarded_for=",".join(hops)) == INNER


def test_a_peer_of_a_socket_for_both_kinds_is_known() -> None:
    assert TRUSTED.trusts("::ffff:10.0.0.1")
    assert told("::ffff:10.0.0.1", x_forwarded_for=CLIENT) == CLIENT
    assert TRUSTED.trusts("fd00::1")
    assert not TRUSTED.trusts("not an address")


class Connection:
    def __init__(self, name: object) -> None:
        self._name = name

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._name if name == "peername" else default


@pytest.mark.parametrize(
    ("name", "address"),
    [(("1.2.3.4", 5), "1.2.3.4"), (("fe80::1%eth0", 5, 0, 2), "fe80::1"), ("", ""), (None, ""), ("/a/socket", "")],
)
def test_the_address_at_the_other_end(name: object, address: str) -> None:
    assert peer_of(Connection(name)) == address
    assert peer_of(None) == ""


@given(st.text(alphabet='for=by;,"\\[]:.0123456789abcdef_unkwn \t', max_size=200), st.booleans())
@example('for="' + "\\" * 100, True)
@example('"' * 200, True)
def test_whatever_stands_there_an_address_comes_out_that_may_be_counted(text: str, forwarded: bool) -> None:
    found = told(forwarded=text) if forwarded else told(x_forwarded_for=text)
    assert found
    assert found == PROXY or not found.startswith(("for", '"'))
