"""The status page's table of tenants and their limits."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from gateway.api.page.drawing import NOTHING, bar, dot, number, text
from gateway.api.page.parts import Group
from gateway.api.page.tables import cell, counted_if, leaves, listing, out_of, row

MAX_TENANTS, MAX_LIMITS = 50, 8
NEARLY = 0.8
"""Of a limit, that much used is told by its colour."""
COLUMNS = ("Tenant", "Requests", "Tokens", "Failed", "Refused", "Limits: spent, not refilled yet / amount")

Said = Mapping[str, Any]


def tenants_table(tenants: Sequence[Said]) -> Group:
    """Who had requests in the last minute, and what each has spent of its limits that has not come back yet.

    A rate comes back all the time: who stays below it has spent next to nothing.
    """
    return listing(
        "tenants",
        "Tenants in the last minute, and what they have spent of their limits that has not come back yet",
        COLUMNS,
        leaves("tenant", islice(tenants, MAX_TENANTS), lambda tenant: (tenant["tenant"],), _tenant_row),
        len(tenants) - MAX_TENANTS,
        "tenants",
        "No tenant has asked for anything yet",
    )


def _tenant_row(part_id: str, tenant: Said) -> str:
    limits = tenant["limits"]
    more = len(limits) - MAX_LIMITS
    items = [_limit(limit) for limit in limits[:MAX_LIMITS]] + ([f"<li>and {more:,} more</li>"] if more > 0 else [])
    cells = (
        cell("Requests", number(tenant["requests"]), "n"),
        cell("Tokens", number(tenant["tokens"]), "n"),
        cell("Failed", counted_if(tenant["failed"], "error"), "n"),
        cell("Refused", counted_if(tenant["refused"], "warning"), "n"),
        cell("Limits", f'<ul class="plain limits">{"".join(items)}</ul>' if items else NOTHING, "wide"),
    )
    return row(part_id, text(tenant["tenant"]), cells)


def _limit(limit: Said) -> str:
    share = limit["used"] / limit["amount"] if limit["amount"] else 1.0
    level = "error" if share >= 1 else "warning" if share >= NEARLY else ""
    full = f"{dot('error', 'used up')} " if share >= 1 else ""
    return (
        f"<li><span>{text(limit['limit'])} <small>{text(limit['of'])}</small></span>{bar(share, level)}"
        f"<span>{full}{number(limit['used'])}{out_of(limit['amount'])}</span></li>"
    )
