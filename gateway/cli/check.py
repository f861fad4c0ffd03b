"""`poolgate check`: what is wrong with a configuration, before it runs."""

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated

import typer


def check(
    file: Annotated[Path, typer.Argument(help="The configuration file (YAML).")],
    offline: Annotated[
        bool,
        typer.Option(
            "--offline",
            help="Read this file only: no keys file, no secret, no variable; and ask nothing of the network.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print {valid, problems, ...} as JSON.")] = False,
) -> None:
    """Validate a configuration, and ask what it points to: pods, Redis, Kubernetes, the issuer. Exit 0 or 2."""
    from gateway.cli import checking

    found = checking.read_alone(file) if offline else asyncio.run(checking.check_all(file, os.environ))
    if as_json:
        typer.echo(json.dumps(found.told(), indent=2))
    else:
        for line in found.lines():
            typer.echo(line, err=True)
        if found.valid:
            typer.echo(f"{file}: valid; {found.summary}")
    if not found.valid:
        raise typer.Exit(2)
