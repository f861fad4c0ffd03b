"""The entries of a keys file, for `poolgate keys list`: as values for JSON, and as a table. Never their digests."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table

from gateway.cli.figures import UNKNOWN
from gateway.cli.terminal import plain
from gateway.core.clock import iso_seconds
from gateway.limits.keys import KeyEntry

STYLES = {"active": "green", "expired": "yellow", "disabled": "red"}
LIMITS = (("requests_per_minute", "rpm"), ("tokens_per_minute", "tpm"), ("concurrent", "at once"))

Row = Mapping[str, Any]


def rows(entries: Iterable[KeyEntry], wall: float) -> list[Row]:
    """What is told of each entry, in the words of the keys file; `state` at this moment, in seconds since 1970."""
    return [row(entry, wall) for entry in entries]


def row(entry: KeyEntry, wall: float) -> Row:
    """One of them."""
    tenant = entry.tenant
    expires_at = tenant.expires_at
    return {
        "id": tenant.key_id,
        "team": tenant.team,
        "state": entry.state(wall),
        "models": list(tenant.models),
        **{name: getattr(tenant, name) for name, _ in LIMITS},
        "priority": tenant.priority,
        "expires": None if expires_at is None else f"{iso_seconds(int(expires_at))}Z",
        "debug": tenant.debug,
        "allow_fields": sorted(tenant.allow_fields),
        "forwards_user": tenant.forwards_user,
        "note": entry.note,
    }


def page(told: Iterable[Row]) -> RenderableType:
    """The rows as a table. A limit that is not there is that of `limits.default`."""
    table = Table(box=SIMPLE_HEAD)
    for name in ("id", "team", "models", "limits"):
        table.add_column(name, overflow="fold")
    table.add_column("priority", justify="right")
    for name in ("expires", "state", "note"):
        table.add_column(name, overflow="fold")
    for each in told:
        limits = [f"{each[name]} {unit}" for name, unit in LIMITS if each[name] is not None]
        table.add_row(
            plain(each["id"]),
            plain(each["team"]),
            plain(", ".join(each["models"])),
            plain(", ".join(limits) or UNKNOWN),
            str(each["priority"]),
            plain(each["expires"] or UNKNOWN),
            plain(each["state"], STYLES[each["state"]]),
            plain(each["note"]),
        )
    return table
