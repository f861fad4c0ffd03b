"""Whose address a request comes from, where proxies stand before us. Pure.

Anybody can write `Forwarded` (RFC 7239) and `X-Forwarded-For`; what they say is believed only from a peer in
`server.trusted_proxies`, and read from the right, where the nearest proxy wrote, past those that are trusted too: the
first that is not is the client. What further left stands anybody wrote.

A header that cannot be read counts for nothing, and so do two that disagree: a proxy writes one of them and passes the
other on as the client sent it. Then the peer's address is what is known. Where a trusted proxy does not say who asked
it (`unknown`, or a name of its own making), that proxy's address stands for its client.

It serves bounds on strangers alone: no address is logged, told to a pod, or stands in a metric.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Protocol

MAX_BYTES = 2048
MAX_HOPS = 32

Address = IPv4Address | IPv6Address
_FORWARDED, _FORWARDED_FOR = b"forwarded", b"x-forwarded-for"
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  # a token of HTTP (RFC 9110, section 5.6.2)
_PAIR = re.compile(rf'[ \t]*({_TOKEN})=(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")[ \t]*')
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?")
_NOBODY = re.compile(r"(?:unknown|_[A-Za-z0-9._-]+)(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?", re.IGNORECASE)


class HasPeer(Protocol):
    """A connection, as asyncio's transports are: `peername` is what is asked of it."""

    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


class Malformed(ValueError):
    """A header that cannot be read."""


class Proxies:
    """The networks whose word is taken."""

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network] = ()) -> None:
        self._networks = tuple(networks)

    def trusts(self, host: str) -> bool:
        """Whether a proxy that is believed has this address."""
        if not self._networks:
            return False
        address = _address(host)
        return address is not None and self._has(address)

    def client_of(self, peer: str, fields: Mapping[bytes, bytes], repeated: frozenset[bytes] = frozenset()) -> str:
        """The client's address, or the peer's, or that of the last proxy that is trusted."""
        if not self.trusts(peer):
            return peer
        told = [name for name in (_FORWARDED, _FORWARDED_FOR) if name in fields]
        if not told or not repeated.isdisjoint(told):
            return peer
        try:
            found = {self._walk(peer, name, fields[name]) for name in told}
        except Malformed:
            return peer
        return found.pop() if len(found) == 1 else peer

    def _walk(self, peer: str, name: bytes, value: bytes) -> str:
        """Raises `Malformed`."""
        if len(value) > MAX_BYTES:
            raise Malformed
        text = value.decode("latin-1")
        hops = list(_forwarded(text) if name == _FORWARDED else _forwarded_for(text))
        nearest = peer
        for hop in reversed(hops[-MAX_HOPS:]):
            if hop is None:
                break
            nearest = str(hop)
            if not self._has(hop):
                break
        return nearest

    def _has(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def peer_of(connection: HasPeer | None) -> str:
    """The address at the other end of a connection; empty: it has none."""
    name = None if connection is None else connection.get_extra_info("peername")
    return _without_zone(str(name[0])) if isinstance(name, tuple) and name else ""


def _without_zone(host: str) -> str:
    """Of an IPv6 link an address ends in the link's name, which is that of who wrote it, and not the peer's."""
    return host.partition("%")[0]


def _address(host: str) -> Address | None:
    try:
        found = ip_address(_without_zone(host))
    except ValueError:
        return None
    # A socket for both kinds tells IPv4 addresses so.
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def _forwarded(text: str) -> Iterator[Address | None]:
    """RFC 7239, section 4: the `for` of each element, in order. Raises `Malformed`."""
    place = 0
    while True:
        given: dict[str, str] = {}
        while True:
            pair = _PAIR.match(text, place)
            if pair is None:
                raise Malformed
            name, plain, quoted = pair.groups()
            if name.lower() in given:
                raise Malformed
            given[name.lower()] = plain if plain is not None else re.sub(r"\\(.)", r"\1", quoted)
            place = pair.end()
            if text[place : place + 1] != ";":
                break
            place += 1
        yield _node(given["for"]) if "for" in given else None
        if place == len(text):
            return
        if text[place] != ",":
            raise Malformed
        place += 1


def _forwarded_for(text: str) -> Iterator[Address | None]:
    """Addresses between commas. Raises `Malformed`."""
    for each in text.split(","):
        plain = _address(each.strip())
        yield plain if plain is not None else _node(each.strip())


def _node(text: str) -> Address | None:
    """An address, with a port or without; None: one that is not told. Raises `Malformed`."""
    if found := _NODE.fullmatch(text):
        inner, plain = found.groups()
        # An IPv4 address never stands in brackets.
        address = _address(plain) if inner is None else _address(inner) if ":" in inner else None
        if address is not None:
            return address
    elif _NOBODY.fullmatch(text):
        return None
    raise Malformed
