"""A running gateway's status on a terminal, renewed; once, or as JSON, where that is asked for."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import typer
from rich.console import RenderableType

from gateway.cli import ops_client, screen, terminal
from gateway.cli.refused import Refused

Status = dict[str, Any]


def watch(
    url: str,
    token: str | None,
    *,
    read: Callable[[ops_client.Client], Awaitable[Status]],
    draw: screen.Draw,
    whole: bool,
    page: Callable[[Status], RenderableType],
    once: bool,
    as_json: bool,
) -> None:
    """Show what `read` brings: by `draw` on a terminal, of which `whole` takes the screen; else once, by `page`.

    Raises `Refused`.
    """

    async def run() -> None:
        async with ops_client.connect(url, token) as client:
            if not (once or as_json) and sys.stdout.isatty():
                await screen.follow(lambda: read(client), draw, whole=whole)
                return
            status = await read(client)
            if as_json:
                typer.echo(json.dumps(status, indent=2))
            else:
                terminal.show(page(status))

    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(run())
    except ops_client.NoStatus as error:
        raise Refused(str(error)) from None
