"""`poolgate check`: what is wrong with a configuration, before it runs."""

import os
from pathlib import Path
from typing import Annotated

import typer

from gateway.config import load_config, load_keys
from gateway.core.clock import Clock
from gateway.core.globs import overlaps


def check(file: Annotated[Path, typer.Argument(help="The configuration file (YAML).")]) -> None:
    """Validate a configuration and the keys file it names. Exit 0 or 2."""
    settings = load_config(file, os.environ)
    keys = load_keys(settings.auth.keys_file) if settings.auth.mode == "keys" else ()
    for both in overlaps(settings.explicit_globs()):
        typer.echo(
            f"{file}: warning: pools {both.pool!r} and {both.other_pool!r} may both serve models such as {both.name!r} "
            f"(globs {both.glob!r} and {both.other_glob!r}): such a name goes to the pool with the oldest ready pod "
            "that lists it, in static mode to the one whose pod stands first",
            err=True,
        )
    for doubt in settings.doubtful_targets():
        typer.echo(f"{file}: warning: {doubt}", err=True)
    discovery = settings.discovery
    found = (
        f"{len(discovery.pods)} pods" if discovery.mode == "static" else f"pods in {', '.join(discovery.namespaces)}"
    )
    now = Clock().wall()
    idle = sum(key.state(now) != "active" for key in keys)
    typer.echo(f"{file}: valid; {found}, {len(keys)} keys{f' ({idle} disabled or expired)' if idle else ''}")
