"""The keys file: what may stand in it, and its entries as values. The environment is not read for it.

It is refused as a whole if an id or a digest stands twice: of two entries of one key, the one that revokes it might be
the one that loses.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from gateway.config.document import Document, read
from gateway.config.faults import TIME, ConfigError
from gateway.config.fields import ConcurrentLimit, Priority, RequestLimit, Section, TokenLimit
from gateway.config.validating import validated
from gateway.core.caller import ISSUED_KEY_ID, Tenant
from gateway.limits.keys import KeyEntry


class _KeySection(Section):
    id: str = Field(min_length=1, max_length=64)
    """The key's public part. It stands in the access line as `key_id`."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the key's whole text, in lower-case hex. The text itself is stored nowhere."""
    team: str = Field(min_length=1, max_length=64)
    """Whose key it is: `tenant` in the access line and in the token metric."""
    models: tuple[str, ...] = ("*",)
    """Globs of the model names the key may use and see."""
    expires: datetime | None = None
    """From then on the key opens nothing: a time such as `2027-01-01T00:00:00Z`. One without a zone is UTC."""
    disabled: bool = False
    """The key opens nothing."""
    debug: bool = False
    """Successful answers say which pod gave them: `x-poolgate-pod`, `x-poolgate-attempts`, `x-poolgate-decision`."""
    allow_fields: tuple[str, ...] = ()
    """Guarded body fields this key may send; see below."""
    note: str = ""
    """For people. Not used."""
    requests_per_minute: RequestLimit | None = None
    """Its own limit, in place of that of `limits.default`. null, here and below: that one."""
    tokens_per_minute: TokenLimit | None = None
    """The same, for prompt and completion tokens together."""
    concurrent: ConcurrentLimit | None = None
    """The same, for requests running at once."""
    priority: Priority = 0
    """Who waits less where requests have to wait for a pod: lower numbers first, as vLLM counts them. Pods annotated
    with `poolgate.dev/priority: "true"` are told it too."""
    forwards_user: bool = False
    """The key belongs to an application that says for which of its users it asks, such as Open WebUI; it is believed.
    See `auth.forwarded_user_secret`."""

    @field_validator("id")
    @classmethod
    def _check_id(cls, key_id: str) -> str:
        if key_id.startswith(ISSUED_KEY_ID):
            raise ValueError(f"ids that begin with {ISSUED_KEY_ID!r} are those of an issuer's tokens: choose another")
        return key_id

    @field_validator("expires", mode="before")
    @classmethod
    def _check_expires(cls, value: Any) -> Any:
        # A number would be read as seconds since 1970: a year, or a count of days, as a moment long past.
        if isinstance(value, int | float) or (isinstance(value, str) and value[4:5] != "-"):
            raise ValueError(TIME)
        return value


class KeysFile(Section):
    keys: tuple[_KeySection, ...] = ()
    """The keys."""

    @model_validator(mode="before")
    @classmethod
    def _check_list(cls, values: Any) -> Any:
        # A file that was cut off must not revoke every key: that nobody is to be let in is said in words.
        if values is None or (isinstance(values, dict) and values.keys() <= {"keys"} and values.get("keys") is None):
            raise ValueError("there is no list of keys: write 'keys: []' if nobody is to be let in")
        if not isinstance(values, dict):
            raise ValueError("the file must hold 'keys:', and below it the list of keys")
        return values


def load_keys(file: Path) -> tuple[KeyEntry, ...]:
    """The entries of a keys file.

    Raises `ConfigError`.
    """
    return entries_in(read(file))


def entries_in(document: Document) -> tuple[KeyEntry, ...]:
    """The entries of what stands in a keys file.

    Raises `ConfigError`.
    """
    found = validated(KeysFile, document.value, document)
    _check_unique(found.keys, document)
    entries = []
    for key in found.keys:
        expires = key.expires
        if expires is not None and expires.tzinfo is None:
            expires = expires.replace(tzinfo=UTC)
        tenant = Tenant(
            key_id=key.id,
            team=key.team,
            models=key.models,
            allow_fields=frozenset(key.allow_fields),
            debug=key.debug,
            requests_per_minute=key.requests_per_minute,
            tokens_per_minute=key.tokens_per_minute,
            concurrent=key.concurrent,
            priority=key.priority,
            forwards_user=key.forwards_user,
            expires_at=None if expires is None else expires.timestamp(),
        )
        entries.append(KeyEntry(key.sha256, tenant, key.disabled, key.note))
    return tuple(entries)


def _check_unique(keys: tuple[_KeySection, ...], document: Document) -> None:
    told = []
    first: dict[tuple[str, str], int] = {}
    for index, key in enumerate(keys):
        for name, value, fault in (
            ("id", key.id, f"the id {key.id!r} is that of the key on line {{}} too: give each key its own"),
            ("sha256", key.sha256, "this is the key on line {} again: keep one of them"),
        ):
            before = first.setdefault((name, value), index)
            if before != index:
                first_line = document.line_of(("keys", str(before), name))
                told.append(document.fault(("keys", str(index), name), fault.format(first_line)))
    if told:
        raise ConfigError(told)


def check_key(entry: Mapping[str, Any]) -> None:
    """Whether this may stand in a keys file.

    Raises `ConfigError`.
    """
    validated(_KeySection, dict(entry), Document("the new key", None, {}))
