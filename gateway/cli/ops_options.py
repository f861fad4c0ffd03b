"""How commands find the gateway that they ask."""

from typing import Annotated

import typer

URL = "http://127.0.0.1:9090"
UrlOption = Annotated[str, typer.Option(help="The gateway's ops port.")]
TokenOption = Annotated[str | None, typer.Option(envvar="POOLGATE_OPS_TOKEN", help="The ops port's token.")]
