"""Key → tenant.

A key is `sk-pg_<id>_<secret><checksum>`: 8 characters of id (public, it stands in logs), 32 of secret (190 random
bits), and a CRC-32 of all that in 6 base-62 digits, so that a scanner for leaked keys, or a person, can tell a
mistyped key from a real one offline. Stored is the SHA-256 of the whole text; a key is found by its digest in a dict,
which leaks nothing about the stored ones through time: an attacker does not choose the digest of what he sends.
"""

import re
import secrets
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256

from gateway.core.caller import Tenant

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEY = re.compile(rb"sk-pg_([0-9A-Za-z]{8})_([0-9A-Za-z]{32})([0-9A-Za-z]{6})\Z")
MAX_KEY_BYTES = 4096


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One entry of the keys file. `sha256` is the hex digest of the key's whole text."""

    sha256: str
    tenant: Tenant
    disabled: bool = False


def new_key() -> tuple[str, str]:
    """A fresh key: (its id, its text)."""
    key_id = "".join(secrets.choice(_DIGITS) for _ in range(8))
    stem = f"sk-pg_{key_id}_" + "".join(secrets.choice(_DIGITS) for _ in range(32))
    return key_id, stem + checksum(stem.encode("ascii"))


def checksum(stem: bytes) -> str:
    """The CRC-32 of a key's text up to its checksum, in six base-62 digits."""
    rest = zlib.crc32(stem)
    digits = ""
    for _ in range(6):
        rest, digit = divmod(rest, 62)
        digits = _DIGITS[digit] + digits
    return digits


def well_formed(key: bytes) -> bool:
    """Whether the text has a key's form and its checksum is right."""
    match = _KEY.match(key)
    return match is not None and checksum(key[:-6]).encode("ascii") == match[3]


def digest(key: bytes) -> str:
    """What is stored of a key: SHA-256 of its text, in hex."""
    return sha256(key).hexdigest()


class KeyRing:
    """The keys in force. Replaced whole when the file changes."""

    def __init__(self, entries: Iterable[KeyEntry], wall: Callable[[], float]) -> None:
        self._tenants = {bytes.fromhex(entry.sha256): entry.tenant for entry in entries if not entry.disabled}
        self._wall = wall

    def tenant_of(self, key: bytes) -> Tenant | None:
        """The owner of a key, or None for one that is unknown, disabled, expired or absurdly long."""
        if len(key) > MAX_KEY_BYTES:
            return None
        tenant = self._tenants.get(sha256(key).digest())
        if tenant is None or (tenant.expires_at is not None and tenant.expires_at <= self._wall()):
            return None
        return tenant
