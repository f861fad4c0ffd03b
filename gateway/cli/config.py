"""`poolgate config`: what a configuration may be, and what is in force."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.serve import HostOption, OpsPortOption, PortOption

app = typer.Typer(help="What a configuration may be, and what is in force.", no_args_is_help=True)


@app.command("schema")
def print_schema(
    keys: Annotated[bool, typer.Option("--keys", help="That of the keys file.")] = False,
) -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    from gateway.config.schema import config_schema

    typer.echo(json.dumps(config_schema(keys=keys), indent=2))


@app.command("show")
def show_config(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The configuration file (YAML).")] = None,
    host: HostOption = None,
    port: PortOption = None,
    ops_port: OpsPortOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print {config, sources} as JSON.")] = False,
) -> None:
    """Print what is in force by flags, environment, file and defaults, and where each value comes from. Secrets are
    masked."""
    from gateway.cli import config_text
    from gateway.config.reading import load_settings
    from gateway.config.showing import shown

    flags = {"server.host": host, "server.port": port, "server.ops_port": ops_port}
    settings = load_settings(config, os.environ, flags)
    told = shown(settings.config)
    if as_json:
        sources = {".".join(path): settings.source_of(*path) for path, _ in config_text.leaves(told)}
        typer.echo(json.dumps({"config": told, "sources": sources}, indent=2))
    else:
        typer.echo("\n".join(config_text.lines(told, lambda path: settings.source_of(*path))))
