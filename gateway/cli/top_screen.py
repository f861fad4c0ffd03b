"""A gateway's status (`/status.json`) as one screen, for a terminal of any size.

Each row is one line, so that what fits is known before it is drawn. Pods that are not well come first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from gateway.cli.columns import GAP, Column, cut, table
from gateway.cli.figures import duration, meter, number, percent, rate, sparkline
from gateway.cli.pods_table import STYLES, notes, pods_of
from gateway.cli.terminal import plain
from gateway.core.words import how_long

Status = Mapping[str, Any]

SPARKLINE = 20
METER = 8
NOTES_SHOWN = 4
LINES_PER_NOTE = 6
"""Of the screen, for each note that is shown: they must not take the place of the pods."""
NEARLY = 0.8
"""Of a limit: from there on it is seen."""
LEVELS = {"error": "red", "warning": "yellow", "info": ""}
FIRST = (("pods", 6), ("pools", 4), ("events", 4), ("tenants", 4))
"""What each table gets before any gets more, its head included, in the order of their importance."""
TABLES = ("pools", "pods", "tenants", "events")


def page(status: Status, width: int, height: int | None, fault: str = "") -> RenderableType:
    """The screen, of `height` lines at most; None: all there is. `fault`: why the status is not of this moment."""
    top = [headline(status, fault, width), *traffic(status)]
    warned = bounded(noted(status, fault), height)
    rows = {"pools": list(status["pools"].items()), "pods": pods_of(status), "tenants": tenants_of(status)}
    rows["events"] = list(status["events"])
    room = None if height is None else height - len(top) - len(warned)
    lines = [*top, *warned]
    columns = {"pools": POOLS, "pods": PODS, "tenants": TENANTS, "events": EVENTS}
    for name, share in shares(room, {name: len(rows[name]) for name in TABLES}).items():
        lines += table(columns[name], rows[name], width, share)
    shown = lines if height is None else lines[:height]
    return Group(*(cut(line, width) for line in shown))


def shares(room: int | None, counts: Mapping[str, int]) -> dict[str, int]:
    """How many lines each table gets, the blank one before it and its head included; 0: it is left out."""
    wants = {name: count + 2 if count else 0 for name, count in counts.items()}
    if room is None:
        return wants
    found = dict.fromkeys(wants, 0)
    left = max(0, room)
    for name, first in FIRST:
        # A head and the number of rows that are not seen say nothing.
        given = min(wants[name], first, left)
        found[name] = given if given >= min(wants[name], 4) else 0
        left -= found[name]
    for name, _ in FIRST:
        more = min(wants[name] - found[name], left) if found[name] else 0
        found[name] += more
        left -= more
    return found


# The head.


def headline(status: Status, fault: str, width: int) -> Text:
    """Who it is and how it fares; at what time, where there is room."""
    line = Text(f"poolgate {status['version']}", "bold")
    if fault:
        state = plain("not renewed", "bold red")
    elif status["ready"]:
        state = Text("ready", "bold green")
    else:
        state = plain(f"not ready: {status['reason']}", "bold yellow")
    replicas = "1 replica" if status["replicas"] == 1 else f"{status['replicas']} replicas"
    parts = [plain(status.get("replica") or ""), state, Text(replicas)]
    if status.get("uptime_seconds") is not None:
        parts.append(Text(f"up {how_long(status['uptime_seconds'])}"))
    limits = status["limits"]
    parts.append(plain(f"limits in {limits['mode']}", "" if limits["mode"] != "local" else "yellow"))
    for part in parts:
        if part.plain:
            line.append(" · ").append_text(part)
    time = f" · {clock_of(status.get('ts', ''))} UTC"
    return line.append(time) if line.cell_len + len(time) <= width else line


def traffic(status: Status) -> list[Text]:
    """The last minute."""
    told = status["traffic"]
    ttft = told["ttft_ms"]
    line = Text.assemble((rate(told["per_second"]), "bold"), " req/s ", (sparkline(told["history"], 30), "cyan"))
    line.append(GAP).append("TTFT ").append(duration(ttft["p50"]), "bold").append(f" p99 {duration(ttft['p99'])}")
    failed = told["failed"]
    line.append(GAP).append("failed ").append(number(failed), "bold red" if failed else "")
    more = Text(f"{number(told['in_flight'])} in flight")
    more.append(GAP).append(f"{number(told['queue'])} waiting", "yellow" if told["queue"] else "")
    more.append(GAP).append(f"{number(told['refused'])} refused{GAP}{number(told['left'])} left by their client")
    more.append(GAP).append(f"{rate(told['tokens_per_second'])} tokens/s")
    return [line, more]


def noted(status: Status, fault: str) -> list[Text]:
    """What wants an eye."""
    lines = [plain(fault, "bold red")] if fault else []
    config = status["config"]
    lines += [plain(f"refused: {line}", "red") for line in config["error"].splitlines()]
    if config["waits_for_restart"]:
        lines.append(plain(f"wait for a restart: {', '.join(config['waits_for_restart'])}", "yellow"))
    overload = status.get("overload") or {"level": 0}
    if overload["level"]:
        whom = "what can wait" if overload["level"] == 1 else "all new requests"
        style = "yellow" if overload["level"] == 1 else "bold red"
        lines.append(plain(f"overloaded: short of {overload['short_of']}, {whom} turned away", style))
    if status["limits"]["mode"] == "local":
        lines.append(plain(f"limits: Redis is slow or away ({status['limits']['reason']})", "yellow"))
    lines += [plain(line, "yellow") for line in notes(status)]
    if status["models_without_pods"]:
        lines.append(plain(f"without a ready pod: {', '.join(status['models_without_pods'])}", "yellow"))
    return lines


def bounded(lines: list[Text], height: int | None) -> list[Text]:
    """The first ones, and how many more there are."""
    room = NOTES_SHOWN if height is None else max(1, min(NOTES_SHOWN, height // LINES_PER_NOTE))
    if len(lines) <= room:
        return lines
    last = Text(f"({len(lines) - room + 1} warnings) ", "yellow").append_text(lines[room - 1])
    return [*lines[: room - 1], last]


# The tables.


def tenants_of(status: Status) -> list[Status]:
    """Those that spent most first; of those that spent nothing none."""
    busy = [each for each in status["tenants"] if each["requests"] or each["refused"] or each["limits"]]
    return sorted(busy, key=lambda each: (-each["requests"], each["tenant"]))


def states(pool: Status) -> Text:
    """`2 ready, 1 ejected`."""
    line = Text()
    for state in ("ready", "starting", "draining", "ejected", "asleep"):
        if pool[state] or state == "ready":
            style = STYLES[state] if pool[state] else "bold red"
            line.append(", " if line.plain else "").append(f"{pool[state]} {state}", style)
    return line


def kv_meter(pod: Status) -> Text:
    """How full its KV cache is."""
    usage = pod["load"]["kv_usage"]
    if usage is None:
        return Text("-")
    return Text(f"{meter(usage, METER)} {percent(usage):>3}%", "yellow" if usage >= NEARLY else "")


def why(pod: Status) -> Text:
    """Its reason, and since when."""
    since = "" if pod["for_seconds"] is None else f"{how_long(pod['for_seconds'])}"
    told = ", ".join(part for part in (since, pod["reason"]) if part)
    return plain(told, "dim" if pod["state"] == "ready" else "")


def nearest(tenant: Status) -> Text:
    """The limit that is nearest to its end."""
    limits = [limit for limit in tenant["limits"] if limit["amount"]]
    if not limits:
        return Text("-")
    limit = max(limits, key=lambda each: each["used"] / each["amount"])
    part = limit["used"] / limit["amount"]
    style = "red" if part >= 1 else "yellow" if part >= NEARLY else ""
    told = f"{number(limit['used'])} of {number(limit['amount'])} {limit['limit']} ({limit['of']})"
    return Text.assemble((meter(part, METER), style), " ").append_text(plain(told, style))


def clock_of(ts: str) -> str:
    """`02:31:40` of a time in RFC 3339."""
    return ts.partition("T")[2][:8]


def counted(value: float | None) -> Text:
    return Text(number(value))


def failures(value: float | None) -> Text:
    return Text(number(value), "red" if value else "")


def bars(history: Sequence[float]) -> Text:
    return Text(sparkline(history, SPARKLINE), "cyan")


POOLS = (
    Column("pool", lambda row: plain(row[0], "bold"), justify="left", widest=24),
    Column("pods", lambda row: states(row[1]), justify="left"),
    Column("in flight", lambda row: counted(row[1].get("in_flight"))),
    Column("waiting", lambda row: counted(row[1]["queue"])),
    Column("failed", lambda row: failures(row[1].get("failed")), rank=1),
    Column("TTFT", lambda row: Text(duration((row[1].get("ttft_ms") or {}).get("p50"))), rank=2),
    Column("p99", lambda row: Text(duration((row[1].get("ttft_ms") or {}).get("p99"))), rank=4),
    Column("attempts", lambda row: bars(row[1].get("history") or ()), rank=3, justify="left"),
    Column(
        "models", lambda row: plain(", ".join(row[1].get("models") or ()), "dim"), rank=5, justify="left", widest=60
    ),
)
PODS = (
    Column("pod", lambda row: plain(row["name"], "bold"), justify="left", widest=40),
    Column("pool", lambda row: plain(row["pool"]), rank=4, justify="left", widest=16),
    Column("state", lambda row: plain(row["state"], STYLES.get(row["state"], "")), justify="left"),
    Column("in flight", lambda row: counted(row["in_flight"])),
    Column("run", lambda row: counted(row["load"]["running"]), rank=5),
    Column("wait", lambda row: counted(row["load"]["waiting"]), rank=5),
    Column("KV", kv_meter, rank=1, justify="left"),
    Column("TTFT", lambda row: Text(duration(row.get("ttft_ms"))), rank=2),
    Column("share %", lambda row: Text(percent(row.get("share"))), rank=3),
    Column("failed", lambda row: failures(row.get("failed")), rank=3),
    Column("attempts", lambda row: bars(row.get("history") or ()), rank=6, justify="left"),
    Column("why", why, justify="left"),
)
TENANTS = (
    Column("tenant", lambda row: plain(row["tenant"], "bold"), justify="left", widest=24),
    Column("requests", lambda row: counted(row["requests"])),
    Column("tokens", lambda row: counted(row["tokens"])),
    Column("refused", lambda row: failures(row["refused"]), rank=1),
    Column("failed", lambda row: failures(row["failed"]), rank=2),
    Column("nearest limit", nearest, justify="left"),
)
EVENTS = (
    Column("time", lambda row: plain(clock_of(row["ts"]), "dim"), justify="left"),
    Column("event", lambda row: plain(row["subject"], LEVELS.get(row["level"], "")), justify="left", widest=40),
    Column("what", lambda row: plain(row["text"]), justify="left"),
)
