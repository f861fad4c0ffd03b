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
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from typing import Literal

from gateway.core.caller import Tenant

KeyState = Literal["active", "disabled", "expired"]
Verdict = Literal["good", "disabled", "expired", "unknown", "mistyped", "malformed"]

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEY = re.compile(rb"sk-pg_([0-9A-Za-z]{8})_([0-9A-Za-z]{32})([0-9A-Za-z]{6})\Z")
MAX_KEY_BYTES = 4096


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One entry of the keys file. `sha256` is the hex digest of the key's whole text."""

    sha256: str
    tenant: Tenant
    disabled: bool = False
    note: str = ""
    """For people."""

    def state(self, wall: float) -> KeyState:
        """What it is at a moment, in seconds since 1970."""
        if self.disabled:
            return "disabled"
        expires_at = self.tenant.expires_at
        return "expired" if expires_at is not None and expires_at <= wall else "active"


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


def id_in(key: bytes) -> str | None:
    """The id that stands in a key's text; None: it has not the form of a key."""
    match = _KEY.match(key)
    return None if match is None else match[1].decode("ascii")


def digest(key: bytes) -> str:
    """What is stored of a key: SHA-256 of its text, in hex."""
    return sha256(key).hexdigest()


def judge(key: bytes, entries: Iterable[KeyEntry], wall: float) -> tuple[Verdict, KeyEntry | None]:
    """What a key is worth with these entries, and its own if it has one. Callers are told only that a key is no good;
    this is for who may read the file.
    """
    found = digest(key)
    for entry in entries:
        if entry.sha256 == found and len(key) <= MAX_KEY_BYTES:
            state = entry.state(wall)
            return ("good" if state == "active" else state), entry
    if _KEY.match(key) is None:
        return "malformed", None
    return ("unknown" if well_formed(key) else "mistyped"), None


def with_known_tenants(entries: Iterable[KeyEntry], before: Iterable[KeyEntry]) -> tuple[KeyEntry, ...]:
    """The entries, each with the tenant that its id had before if no value in it changed: tenants are told apart by
    identity, so what a caller has running or has spent goes on being its own.
    """
    known = {entry.tenant.key_id: entry.tenant for entry in before}

    def tenant_for(new: Tenant) -> Tenant:
        old = known.get(new.key_id)
        return old if old is not None and _values(old) == _values(new) else new

    return tuple(replace(entry, tenant=tenant_for(entry.tenant)) for entry in entries)


def _values(tenant: Tenant) -> tuple[object, ...]:
    return tuple(getattr(tenant, name) for name in _TENANT_FIELDS)


_TENANT_FIELDS = tuple(field.name for field in fields(Tenant))


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
        return tenant if tenant is not None and self.lasts(tenant) else None

    def lasts(self, tenant: Tenant) -> bool:
        """Whether one of its tenants has a key that has not expired yet."""
        return tenant.expires_at is None or tenant.expires_at > self._wall()
