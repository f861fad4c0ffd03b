"""The pods of a gateway's status (`/status.json`) as a table for a terminal, those that are not well first."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.api.page.concerns import most_fail
from gateway.cli.columns import GAP, Column, fitting, widths_of
from gateway.cli.figures import UNKNOWN, duration, number, percent
from gateway.cli.terminal import plain
from gateway.core.words import how_long

MODELS_SHOWN = 5
"""Attempts, for them to be more than a mishap."""
STYLES = {"ready": "green", "starting": "yellow", "draining": "cyan", "asleep": "blue", "ejected": "red"}
SICK_FIRST = {"ejected": 0, "starting": 1, "draining": 2, "ready": 3, "asleep": 4}

Status = Mapping[str, Any]


def page(status: Status, width: int, fault: str = "") -> RenderableType:
    """What needs an eye, and the table. `fault`: why the status is not of this moment.

    What is long is folded, not cut: here a reason is read to its end.
    """
    pods = pods_of(status)
    cells = [[column.cell(pod) for column in COLUMNS] for pod in pods]
    table = Table(box=None, pad_edge=False, padding=(0, len(GAP), 0, 0), header_style="dim")
    kept = fitting(COLUMNS, widths_of(COLUMNS, cells), width)
    for column in (COLUMNS[at] for at in kept):
        table.add_column(column.head, justify=column.justify, overflow="fold", max_width=column.widest)
    for row in cells:
        table.add_row(*(row[at] for at in kept))
    noted = [plain(line, "yellow") for line in notes(status, fault)]
    return Group(*noted, table) if pods else Group(*noted)


def pods_of(status: Status) -> list[Status]:
    """The pods, those that are not well first."""
    return sorted(status["pods"], key=lambda pod: (SICK_FIRST.get(pod["state"], 2), pod["pool"], pod["name"]))


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
        if mostly_fails(status, name):
            lines.append(f"pool {name}: most requests fail at its pods, which are listed as ready and may be dead")
    return lines + [f"refused: {pod['name']}: {pod['why']}" for pod in refused]


def mostly_fails(status: Status, pool: str) -> bool:
    """Whether most attempts of the last minute failed at its pods."""
    pods = [pod for pod in status["pods"] if pod["pool"] == pool]
    failed = sum(pod.get("failed") or 0 for pod in pods)
    return most_fail(failed, sum(pod.get("attempts") or 0 for pod in pods))


def why(pod: Status) -> Text:
    """Its reason, and which of its models another pool has claimed."""
    claimed = [f"{each['name']} (claimed by pool {each['claimed_by']})" for each in pod["models"] if each["claimed_by"]]
    told = plain(pod["reason"])
    if claimed:
        told.append("; " if told.plain else "").append_text(plain(some(claimed), "yellow"))
    return told


def some(names: list[str]) -> str:
    """The first ones, and how many more there are."""
    left_out = len(names) - MODELS_SHOWN
    return ", ".join(names[:MODELS_SHOWN]) + (f" and {left_out} more" if left_out > 0 else "")


COLUMNS = (
    Column("pool", lambda pod: plain(pod["pool"]), rank=3, justify="left", widest=24),
    Column("pod", lambda pod: plain(pod["name"], "bold"), justify="left", widest=60),
    Column("state", lambda pod: plain(pod["state"], STYLES.get(pod["state"], "")), justify="left"),
    Column("for", lambda pod: Text(UNKNOWN if pod["for_seconds"] is None else how_long(pod["for_seconds"]))),
    Column("in flight", lambda pod: Text(number(pod["in_flight"])), rank=1),
    Column("running", lambda pod: Text(number(pod["load"]["running"])), rank=4),
    Column("waiting", lambda pod: Text(number(pod["load"]["waiting"])), rank=4),
    Column("KV %", lambda pod: Text(percent(pod["load"]["kv_usage"])), rank=4),
    Column("TTFT", lambda pod: Text(duration(pod.get("ttft_ms"))), rank=2),
    Column("failed", lambda pod: Text(number(pod.get("failed")), "red" if pod.get("failed") else ""), rank=2),
    Column(
        "models", lambda pod: plain(some([each["name"] for each in pod["models"]])), rank=5, justify="left", widest=80
    ),
    Column("why", why, justify="left"),
)
