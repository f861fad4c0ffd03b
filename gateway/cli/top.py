"""`poolgate top`: a running gateway on one screen."""

from typing import Annotated

import typer

from gateway.cli.ops_options import URL, TokenOption, UrlOption


def top(
    url: UrlOption = URL,
    token: TokenOption = None,
    once: Annotated[bool, typer.Option("--once", help="Print everything once.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what /status.json says, once.")] = False,
) -> None:
    """A running gateway on one screen: traffic, pools, pods, tenants, events; renewed until q or Ctrl-C."""
    from gateway.cli import ops_client, terminal, top_screen, watching

    watching.watch(
        url,
        token,
        read=ops_client.read_traffic,
        draw=lambda status, fault, size: top_screen.page(status, size.width, size.height, fault),
        whole=True,
        page=lambda status: top_screen.page(status, terminal.width(), None),
        once=once,
        as_json=as_json,
    )
