"""What was used (`usage.Row`s) as a table for a terminal, and as CSV for spreadsheets."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from gateway.cli.ledger import Row
from gateway.cli.terminal import plain

ROWS_SHOWN = 1000
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a spreadsheet takes for the beginning of a formula (OWASP, CSV injection)."""
_NUMBERS = ("requests", "prompt", "cached", "completion", "estimated")


def page(rows: Sequence[Row]) -> RenderableType:
    """The table and its total; of very many rows the first ones."""
    table = Table(box=SIMPLE_HEAD, show_footer=True, collapse_padding=True, pad_edge=False)
    table.add_column("day", "total", no_wrap=True)
    for name in ("tenant", "model"):
        table.add_column(name, overflow="fold")
    numbers = [_numbers(row) for row in rows]
    totals = [sum(column) for column in zip(*numbers, strict=True)] or [0] * len(_NUMBERS)
    for name, total in zip(_NUMBERS, totals, strict=True):
        table.add_column(name, f"{total:,}", justify="right", no_wrap=True)
    for row, told in zip(rows[:ROWS_SHOWN], numbers, strict=False):
        table.add_row(row.day, plain(row.tenant), plain(row.model), *(f"{number:,}" for number in told))
    left_out = len(rows) - ROWS_SHOWN
    if left_out <= 0:
        return table
    return Group(table, plain(f"and {left_out:,} more rows, which the total has: see them with --csv or --json"))


def notes(strange: int, without_tokens: int) -> Iterator[str]:
    """What the rows do not show: how many lines are no access lines, and how many requests have no tokens."""
    if strange:
        yield f"{strange:,} {'line is no access line' if strange == 1 else 'lines are no access lines'}: left out"
    if without_tokens:
        requests = "request" if without_tokens == 1 else "requests"
        yield f"{without_tokens:,} {requests} without tokens, such as refused ones: left out"


def csv_of(rows: Iterable[Row]) -> str:
    """RFC 4180, with a header. A name that a spreadsheet would take for a formula gets an apostrophe before it."""
    out = StringIO()
    writer = csv.writer(out)
    writer.writerow(Row._fields)
    for row in rows:
        writer.writerow(row._replace(tenant=_as_text(row.tenant), model=_as_text(row.model)))
    return out.getvalue()


def _as_text(name: str) -> str:
    return f"'{name}" if name.startswith(FORMULAS) else name


def _numbers(row: Row) -> tuple[int, ...]:
    estimated = row.estimated_prompt_tokens + row.estimated_completion_tokens
    return row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens, estimated
