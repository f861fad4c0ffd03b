"""`poolgate explain`: why a request went where it went."""

import asyncio
import json
from typing import Annotated, Any

import typer

from gateway.cli.ops_options import URL, TokenOption, UrlOption
from gateway.cli.refused import Refused


def explain(
    request_id: Annotated[str, typer.Argument(help="The request's id: x-request-id of its answer.")],
    url: UrlOption = URL,
    token: TokenOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the gateway says, as JSON.")] = False,
) -> None:
    """Why a request went where it went. Only the last ones are remembered."""
    from gateway.cli import explain_text, ops_client, terminal

    async def ask() -> dict[str, Any]:
        async with ops_client.connect(url, token) as client:
            return await ops_client.read_request(client, request_id)

    try:
        told = asyncio.run(ask())
    except ops_client.NoStatus as error:
        raise Refused(str(error)) from None
    if as_json:
        typer.echo(json.dumps(told, indent=2))
    else:
        terminal.show(explain_text.page(told))
