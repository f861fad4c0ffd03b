"""`poolgate top`: a running gateway on one screen."""

import asyncio
import json
import sys
from contextlib import suppress
from typing import Annotated

import typer

from gateway.cli.ops_options import URL, TokenOption, UrlOption
from gateway.cli.refused import Refused


def top(
    url: UrlOption = URL,
    token: TokenOption = None,
    once: Annotated[bool, typer.Option("--once", help="Print everything once.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what /status.json says, once.")] = False,
) -> None:
    """A running gateway on one screen: traffic, pools, pods, tenants, events; renewed until q or Ctrl-C."""
    from gateway.cli import ops_client, screen, terminal, top_screen

    async def run() -> None:
        async with ops_client.connect(url, token) as client:
            if not (once or as_json) and sys.stdout.isatty():
                await screen.follow(
                    lambda: ops_client.read_traffic(client),
                    lambda status, fault, size: top_screen.page(status, size.width, size.height, fault),
                    whole=True,
                )
                return
            status = await ops_client.read_traffic(client)
            if as_json:
                typer.echo(json.dumps(status, indent=2))
            else:
                terminal.show(top_screen.page(status, terminal.width(), None))

    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(run())
    except ops_client.NoStatus as error:
        raise Refused(str(error)) from None
