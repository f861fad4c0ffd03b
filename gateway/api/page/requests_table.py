"""The status page's table of the last requests: how each ended, where it went, and why."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from gateway.api.page.drawing import NOTHING, dot, facts, milliseconds, moment, number, text
from gateway.api.page.parts import Group
from gateway.api.page.tables import cell, leaves, listing, row

MAX_REQUESTS = 50
OUTCOME_LEVELS = {"completed": "ready", "client_left": "info", "refused": "warning"}
"""The others are errors."""
COLUMNS = ("Time", "Status", "Tenant", "Model", "Pod", "TTFT", "Duration", "Tokens", "Where it went, and why")

Said = Mapping[str, Any]


def requests_table(requests: Sequence[Said]) -> Group:
    """The youngest first. A request that has ended changes no more, so its row is sent once."""
    return listing(
        "requests",
        "Requests that have ended, the youngest first; tokens are those of the prompt and of the answer",
        COLUMNS,
        leaves("request", islice(requests, MAX_REQUESTS), lambda it: (it["request_id"],), _request_row),
        len(requests) - MAX_REQUESTS,
        "requests",
        "No request has ended yet",
    )


def _request_row(part_id: str, request: Said) -> str:
    outcome = request["outcome"]
    state = dot(OUTCOME_LEVELS.get(outcome, "error"), request["status"])
    cells = (
        cell("Status", f"{state} <small>{text(outcome.replace('_', ' '))}</small>", "state"),
        cell("Tenant", text(request["tenant"]) or NOTHING),
        cell("Model", text(request["model"]) or NOTHING),
        cell("Pod", text(request["pod"]) or NOTHING),
        cell("TTFT", milliseconds(request["ttft_ms"]), "n"),
        cell("Duration", milliseconds(request["duration_ms"]), "n"),
        cell("Tokens", _tokens(request), "n"),
        cell("Why", _decision(part_id, request), "wide"),
    )
    return row(part_id, moment(request["ts"]), cells)


def _tokens(request: Said) -> str:
    """Of the prompt and of the answer."""
    prompt, completion = request["prompt_tokens"], request["completion_tokens"]
    return NOTHING if prompt is None else f"{number(prompt)} + {number(completion)}"


def _decision(part_id: str, request: Said) -> str:
    attempts = f", {request['attempts']} attempts" if request["attempts"] > 1 else ""
    pairs = {
        "request": f"<code>{text(request['request_id'])}</code>",
        "operation": f"{text(request['operation'])}{', a stream' if request['stream'] else ''}",
        "pool": text(request["pool"]) or NOTHING,
        "waited for a pod": milliseconds(request["queue_ms"]),
    }
    if request["code"]:
        pairs["code"] = text(request["code"])
    short = request["decision"] or request["code"] or "not sent to a pod"
    why = f"<p>{text(request['why'])}</p>" if request["why"] else ""
    return (
        f'<details><summary id="{part_id}-why">{text(short)}{attempts}</summary>{why}'
        f'<dl class="inline">{facts(pairs)}</dl></details>'
    )
