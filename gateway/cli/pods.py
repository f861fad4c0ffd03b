"""`poolgate pods`: the pods of a running gateway."""

import asyncio
import json
import sys
from contextlib import suppress
from typing import Annotated

import typer

from gateway.cli.ops_options import URL, TokenOption, UrlOption
from gateway.cli.refused import Refused

REFRESH_SECONDS = 1.0


def pods(
    url: UrlOption = URL,
    token: TokenOption = None,
    once: Annotated[bool, typer.Option("--once", help="Print the table once.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what /status.json says, once.")] = False,
) -> None:
    """The pods of a running gateway, renewed until Ctrl-C; once where stdout is no terminal."""
    # Here, as in the other modules of commands: only these need their libraries, and `serve` starts without them.
    from gateway.cli import ops_client, pods_table, terminal

    async def run() -> None:
        async with ops_client.connect(url, token) as client:
            status, fault = await ops_client.read_status(client), ""
            if as_json:
                typer.echo(json.dumps(status, indent=2))
                return
            if once or not sys.stdout.isatty():
                terminal.show(pods_table.page(status))
                return
            with pods_table.live() as renew:
                while True:
                    renew(status, fault)
                    await asyncio.sleep(REFRESH_SECONDS)
                    # A gateway that is being replaced comes back: the table waits for it.
                    try:
                        status, fault = await ops_client.read_status(client), ""
                    except ops_client.NoStatus as error:
                        fault = str(error)

    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(run())
    except ops_client.NoStatus as error:
        raise Refused(str(error)) from None
