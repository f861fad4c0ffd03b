"""`poolgate usage`: who spent what."""

import json
import os
from typing import Annotated

import typer

from gateway.cli.refused import Refused


def usage(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Files of access lines, gzipped or not; - or none: stdin."),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """Tokens per day, tenant and model, from access lines."""
    from gateway.cli import ledger, log_lines, terminal, usage_table

    if as_csv and as_json:
        raise Refused("--csv or --json: choose one")
    if not files and os.isatty(0):
        raise Refused("give files of access lines, or send lines to stdin")
    spent = ledger.Ledger()
    try:
        for name in files or [log_lines.STDIN]:
            spent.add(log_lines.lines_of(name))
    except (log_lines.Unreadable, ledger.TooManyRows) as error:
        raise Refused(str(error)) from None
    rows = spent.rows()
    for note in usage_table.notes(spent.strange, spent.without_tokens):
        typer.echo(f"poolgate: {note}", err=True)
    if as_json:
        typer.echo(json.dumps([row._asdict() for row in rows], indent=2))
    elif as_csv:
        # As bytes: whatever the terminal's encoding, a file has one.
        typer.echo(usage_table.csv_of(rows).encode(), nl=False)
    else:
        terminal.show(usage_table.page(rows))
