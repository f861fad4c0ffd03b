"""A gateway's status (`/status.json`) as a table for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.cli.figures import UNKNOWN, how_long, number, percent
from gateway.cli.terminal import plain

MODELS_SHOWN = 5
STYLES = {"ready": "green", "starting": "yellow", "draining": "cyan", "asleep": "blue", "ejected": "red"}

Status = Mapping[str, Any]


def page(status: Status, fault: str = "") -> RenderableType:
    """The table, and below it what needs an eye. `fault`: why the status is not of this moment."""
    table = Table(box=SIMPLE_HEAD)
    for name in ("pool", "pod", "state"):
        table.add_column(name, overflow="fold")
    table.add_column("for", justify="right", no_wrap=True)
    for name in ("why", "models"):
        table.add_column(name, overflow="fold")
    for name in ("in flight", "running", "waiting", "KV %"):
        table.add_column(name, justify="right")
    for pod in status["pods"]:
        load = pod["load"]
        table.add_row(
            plain(pod["pool"]),
            plain(pod["name"]),
            plain(pod["state"], STYLES.get(pod["state"], "")),
            UNKNOWN if pod["for_seconds"] is None else how_long(pod["for_seconds"]),
            plain(pod["reason"]),
            models_of(pod["models"]),
            number(pod["in_flight"]),
            number(load["running"]),
            number(load["waiting"]),
            percent(load["kv_usage"]),
        )
    return Group(table, *(plain(line, "yellow") for line in notes(status, fault)))


def notes(status: Status, fault: str = "") -> list[str]:
    """What the table cannot show, a line each."""
    discovery, refused = status["discovery"], status["refused"]
    lines = [fault] if fault else []
    if not discovery["listed"]:
        lines.append("no list of pods has come yet")
    elif not status["ready"]:
        lines.append(f"the gateway is not ready: {status['reason']}")
    if discovery["listed"] and not status["pods"]:
        lines.append("no pods")
    if discovery["stale_seconds"]:
        lines.append(f"discovery has heard nothing for {how_long(discovery['stale_seconds'])}: pods are as last seen")
    for name, pool in status["pools"].items():
        if pool["panic"]:
            lines.append(f"pool {name}: too few pods are well, so ejected ones get requests as well")
        if pool["queue"]:
            wait = "1 request waits" if pool["queue"] == 1 else f"{pool['queue']} requests wait"
            lines.append(f"pool {name}: {wait} for a pod")
    return lines + [f"refused: {pod['name']}: {pod['why']}" for pod in refused]


def models_of(models: list[dict[str, Any]]) -> Text:
    """A pod's models, a line each, those that another pool has claimed first; many are cut short."""
    told = [
        plain(model["name"])
        if model["claimed_by"] is None
        else plain(f"{model['name']} (claimed by pool {model['claimed_by']})", "yellow")
        for model in sorted(models, key=lambda model: model["claimed_by"] is None)
    ]
    if len(told) > MODELS_SHOWN:
        told[MODELS_SHOWN:] = [Text(f"and {len(told) - MODELS_SHOWN} more")]
    return Text("\n").join(told)
