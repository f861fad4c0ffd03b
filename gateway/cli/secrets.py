"""`poolgate secrets`: the secrets of a deployment that nobody committed."""

import asyncio
import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.refused import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.cli.secrets_making import State
    from gateway.cli.secrets_plan import Place, Plan


def secrets(
    spec: Annotated[Path, typer.Argument(help="What is to be there (YAML).", metavar="SPEC")],
    in_cluster: Annotated[
        bool, typer.Option("--in-cluster", help="As Secrets of the cluster that this pod runs in.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="As files of a folder, DIR/SECRET/ENTRY; made if need be.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print {secrets, first_key} as JSON.")] = False,
) -> None:
    """Make the secrets that are missing, at random. None is ever printed, and what is there is left alone. Exit 1 if
    something is there that does not fit, or the API server refuses."""
    from gateway.cli.secrets_plan import NotMade, plan_of
    from gateway.config.secrets import load_secrets

    if in_cluster == (folder is not None):
        raise Refused("say where they are kept: either --in-cluster or --folder DIR")
    plan = plan_of(load_secrets(spec), namespaced=in_cluster)
    rows: list[dict[str, Any]] = []

    def tell(place: "Place", state: "State") -> None:
        rows.append({**place._asdict(), "entries": plan.places[place], "state": state})
        if not as_json:
            typer.echo(f"{place}: {state}")

    try:
        asyncio.run(_make(plan, folder, tell))
    except NotMade as error:
        for line in str(error).splitlines():
            typer.echo(f"poolgate: {line}", err=True)
        raise typer.Exit(1) from None
    first = _first_key(plan, folder)
    if as_json:
        typer.echo(json.dumps({"secrets": rows, "first_key": first}, indent=2))
    elif first is not None:
        typer.echo(f"to read the key of {first['team']}: {first['read_by']}")


async def _make(plan: "Plan", folder: Path | None, tell: "Callable[[Place, State], None]") -> None:
    from gateway.cli.secrets_making import make

    if folder is not None:
        from gateway.cli.secrets_folder import FolderSecrets

        with FolderSecrets.opened(folder) as files:
            await make(plan, files, tell)
        return
    from gateway.cli import secrets_cluster

    async with secrets_cluster.ClusterSecrets.opened(os.environ, secrets_cluster.SERVICE_ACCOUNT) as cluster:
        await make(plan, cluster, tell)


def _first_key(plan: "Plan", folder: Path | None) -> dict[str, str] | None:
    """Whose the first key is, and a shell's line that shows it."""
    for item, key in plan.keys.items():
        place = plan.places_of(item)[0]
        if folder is not None:
            read_by = f"cat {shlex.quote(str(folder / item.secret / item.entry))}"
        else:
            template = f'{{{{index .data "{item.entry}" | base64decode}}}}'
            read_by = (
                f"kubectl get secret {item.secret} --namespace {place.namespace} --output go-template='{template}'"
            )
        return {"team": key.team, "read_by": read_by}
    return None
