"""What `/status/requests/{id}` says of a request, as a text for a terminal: a headline, then each attempt and the pods
that were weighed for it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gateway.cli.figures import UNKNOWN, duration
from gateway.cli.terminal import plain

CANDIDATES_SHOWN = 12
ENDINGS = {
    "completed": ("completed", "green"),
    "client_left": ("left by its client", "yellow"),
    "upstream_failed": ("failed by its pod", "red"),
    "upstream_timeout": ("too slow, and ended", "red"),
    "truncated": ("cut", "red"),
    "refused": ("refused", "yellow"),
    "internal": ("failed by the gateway", "red"),
}
"""How a request ended, for each outcome."""

Request = Mapping[str, Any]


def page(request: Request) -> RenderableType:
    """All of it."""
    parts: list[RenderableType] = [headline(request), plain(" · ".join(particulars(request)), "dim")]
    attempts: Sequence[Request] = request["attempts"]
    for number, attempt in enumerate(attempts, start=1):
        parts += [Text(), decision(number, attempt, more=len(attempts) > 1)]
        if attempt["candidates"]:
            parts.append(Padding(candidates(attempt), (0, 0, 0, 2), expand=False))
    if not attempts:
        parts += [Text(), plain("It was sent to no pod.")]
    return Group(*parts)


def headline(request: Request) -> Text:
    """`chat for qwen3-8b: completed in 812 ms, 2 attempts, waited 120 ms`."""
    ending, style = ENDINGS.get(request["outcome"], (request["outcome"], ""))
    code = f" ({request['code']})" if request["code"] else ""
    attempts = len(request["attempts"])
    told = [f"{ending}{code} after {duration(request['duration_ms'])}"]
    if request["outcome"] == "completed":
        told = [f"{ending} in {duration(request['duration_ms'])}"]
    if attempts:
        told.append("1 attempt" if attempts == 1 else f"{attempts} attempts")
    if request["queue_ms"]:
        told.append(f"waited {duration(request['queue_ms'])}")
    head = plain(request["operation"])
    if request["model"]:
        head.append(" for ").append_text(plain(request["model"]))
    return head.append(": ").append_text(plain(", ".join(told), style))


def particulars(request: Request) -> Iterator[str]:
    """What is the same for all attempts."""
    yield request["ts"]
    yield f"request {request['request_id']}"
    for name, word in (("tenant", "tenant"), ("key_id", "key"), ("pool", "pool"), ("status", "status")):
        if request[name]:
            yield f"{word} {request[name]}"
    if request["ttft_ms"] is not None:
        yield f"first token after {duration(request['ttft_ms'])}"
    if request["prompt_tokens"] is not None:
        yield f"{request['prompt_tokens']} prompt tokens, {request['cached_tokens']} of them cached"


def decision(number: int, attempt: Request, *, more: bool) -> Text:
    """Which pod it was, why, and what came of it."""
    told = plain(f"{number}. " if more else "").append_text(plain(attempt["pod"], "bold"))
    why = f"{attempt['why']} ({attempt['decision']})" if attempt["why"] else attempt["decision"]
    told.append(": ").append_text(plain(why))
    if attempt["cached_tokens"]:
        told.append(f"; some {attempt['cached_tokens']} tokens of the prompt are believed cached there")
    if attempt["ended"] != "completed":
        told.append("; ").append_text(plain(f"ended as {attempt['ended']}", "red"))
    return told


def candidates(attempt: Request) -> RenderableType:
    """The pods that were weighed, the cheapest first, those without a cost in their order; the chosen one is marked."""
    chosen = attempt["pod"]
    weighed = sorted(attempt["candidates"], key=lambda each: (each["cost"] is None, each["cost"] or 0.0))
    shown = weighed[:CANDIDATES_SHOWN]
    shown += [each for each in weighed[CANDIDATES_SHOWN:] if each["pod"] == chosen]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("pod", overflow="fold")
    table.add_column("cost", justify="right")
    for each in shown:
        mark, style = ("→", "bold") if each["pod"] == chosen else ("", "")
        table.add_row(mark, plain(each["pod"], style), plain(cost(each["cost"]), style))
    left_out = len(weighed) - len(shown)
    return Group(table, plain(f"and {left_out} more")) if left_out else table


def cost(value: float | None) -> str:
    """Three digits that count; large ones whole."""
    if value is None:
        return UNKNOWN
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
