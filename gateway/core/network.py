"""What counts as one user of the network: an IPv4 address, or of an IPv6 address its first 64 bits. A household has as
many of the last 64 as it likes."""

from socket import AF_INET6, inet_pton

_MAPPED = bytes(10) + b"\xff\xff"


def network_of(address: str) -> str:
    """By what it is counted. Empty: not known, as of a socket that has no address."""
    if ":" not in address:
        return address
    packed = inet_pton(AF_INET6, address)
    return ".".join(map(str, packed[12:])) if packed.startswith(_MAPPED) else packed[:8].hex()
