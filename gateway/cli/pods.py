"""`poolgate pods`: the pods of a running gateway."""

import asyncio
import json
import sys
from contextlib import suppress
from typing import Annotated

import typer

from gateway.cli.ops_options import URL, TokenOption, UrlOption
from gateway.cli.refused import Refused


def pods(
    url: UrlOption = URL,
    token: TokenOption = None,
    once: Annotated[bool, typer.Option("--once", help="Print the table once.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what /status.json says, once.")] = False,
) -> None:
    """The pods of a running gateway, renewed until q or Ctrl-C; once where stdout is no terminal."""
    # Here, as in the other modules of commands: only these need their libraries, and `serve` starts without them.
    from gateway.cli import ops_client, pods_table, screen, terminal

    async def run() -> None:
        async with ops_client.connect(url, token) as client:
            if not (once or as_json) and sys.stdout.isatty():
                await screen.follow(
                    lambda: ops_client.read_status(client),
                    lambda status, fault, size: pods_table.page(status, size.width, fault),
                    whole=False,
                )
                return
            status = await ops_client.read_status(client)
            if as_json:
                typer.echo(json.dumps(status, indent=2))
            else:
                terminal.show(pods_table.page(status, terminal.width(terminal.UNBOUNDED_COLUMNS)))

    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(run())
    except ops_client.NoStatus as error:
        raise Refused(str(error)) from None
