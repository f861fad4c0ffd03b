"""`poolgate pods`: the pods of a running gateway."""

from typing import Annotated

import typer

from gateway.cli.ops_options import URL, TokenOption, UrlOption


def pods(
    url: UrlOption = URL,
    token: TokenOption = None,
    once: Annotated[bool, typer.Option("--once", help="Print the table once.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what /status.json says, once.")] = False,
) -> None:
    """The pods of a running gateway, renewed until q or Ctrl-C; once where stdout is no terminal."""
    # Here, as in the other modules of commands: only these need their libraries, and `serve` starts without them.
    from gateway.cli import ops_client, pods_table, terminal, watching

    watching.watch(
        url,
        token,
        read=ops_client.read_status,
        draw=lambda status, fault, size: pods_table.page(status, size.width, fault),
        whole=False,
        page=lambda status: pods_table.page(status, terminal.width(terminal.UNBOUNDED_COLUMNS)),
        once=once,
        as_json=as_json,
    )
