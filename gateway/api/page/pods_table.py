"""The status page's table of all pools and their pods."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from gateway.api.page.concerns import counted, listed
from gateway.api.page.drawing import (
    NOTHING,
    age,
    bar,
    ceiling,
    dot,
    line,
    meter,
    milliseconds,
    named,
    number,
    percent,
    text,
)
from gateway.api.page.parts import Group, Leaf
from gateway.api.page.tables import body, cell, counted_if, drawn, leaves, out_of, row, table, words

MAX_POOLS, MAX_PODS = 50, 200
SICK_FIRST = ("ejected", "starting", "draining", "asleep", "ready")

COLUMNS = ("Pod", "State", "In flight", "Running", "Waiting", "KV cache", "TTFT p50", "Share", "Failed", "Attempts")
CAPTION = (
    "Per pool and pod: its state, this gateway's requests in flight there and how many it takes, requests running and "
    "waiting as vLLM counts them, and the last minute"
)

Said = Mapping[str, Any]


def pods_table(status: Said) -> Group:
    """One table for all pools, so that their columns stand in line. Of too many pods, the sick ones are shown."""
    pools, pods = status["pools"], sorted(status["pods"], key=_sickness)
    chosen = dict(islice(pools.items(), MAX_POOLS))
    there: dict[str, list[Said]] = {name: [] for name in pools}
    for pod in pods:
        there[pod["pool"]].append(pod)
    shown: dict[str, list[Said]] = {name: [] for name in chosen}
    for pod in islice((pod for pod in pods if pod["pool"] in chosen), MAX_PODS):
        shown[pod["pool"]].append(pod)
    bodies = [_pool(name, pool, there[name], shown[name]) for name, pool in chosen.items()]
    if len(pools) > MAX_POOLS:
        bodies.append(body("pools", [], len(pools) - MAX_POOLS, "pools"))
    if not pools:
        bodies.append(body("pools", [words("pools-none", "No pool has shown up yet")], 0, ""))
    return table("pods", CAPTION, COLUMNS, bodies)


def _sickness(pod: Said) -> int:
    return SICK_FIRST.index(pod["state"])


def _pool(name: str, pool: Said, there: Sequence[Said], shown: Sequence[Said]) -> Group:
    """A pool's sum, and its pods; their lines have one scale, so that they can be compared."""
    part_id = named("pool", name)
    highest = ceiling(max((max(pod["history"], default=0) for pod in shown), default=0))
    rows = leaves("pod", shown, lambda pod: (name, pod["name"]), lambda row_id, pod: _pod_row(row_id, pod, highest))
    summed = Leaf(f"{part_id}-sum", _pool_row(f"{part_id}-sum", name, pool, there))
    return body(part_id, [summed, *rows], len(there) - len(shown), "pods")


def _pool_row(part_id: str, name: str, pool: Said, pods: Sequence[Said]) -> str:
    loads = [pod["load"] for pod in pods]
    queue = f" {dot('warning', str(pool['queue']) + ' wait for a pod')}" if pool["queue"] else ""
    panic = f" {dot('error', 'panic')}" if pool["panic"] else ""
    models = f"<small>{text(listed(pool['models']))}</small>" if pool["models"] else ""
    p50, p99 = pool["ttft_ms"]["p50"], pool["ttft_ms"]["p99"]
    slowest = f"<small>p99 {milliseconds(p99)}</small>" if p99 is not None else ""
    cells = (
        cell("State", f"{text(counted(pool)) or 'no pods'}{queue}{panic}{models}", "state"),
        cell("In flight", number(pool["in_flight"]), "n"),
        cell("Running", number(_sum(load["running"] for load in loads)), "n"),
        cell("Waiting", number(_sum(load["waiting"] for load in loads)), "n"),
        cell("KV cache", "", "bare"),
        cell("TTFT p50", f"{milliseconds(p50)}{slowest}", "n"),
        cell("Share", "", "bare"),
        # Of its pods, that they add up: a request that was tried at two of them counts twice.
        cell("Failed", counted_if(sum(pod["failed"] for pod in pods), "error"), "n"),
        drawn("Attempts", _line(pool["history"]), number(sum(pod["attempts"] for pod in pods))),
    )
    return row(part_id, text(name), cells, scope="rowgroup", more=f' class="pool" data-pool="{text(name)}"')


def _pod_row(part_id: str, pod: Said, highest: int) -> str:
    load, state, most = pod["load"], text(pod["state"]), pod["max_in_flight"]
    kv, label = load["kv_usage"], f"KV cache of {pod['name']}"
    cells = (
        cell("State", f"{dot(state, state)} {age(pod['since'])}{_reasons(pod)}", "state"),
        drawn("In flight", bar(pod["in_flight"] / most) if most else "", f"{number(pod['in_flight'])}{out_of(most)}"),
        cell("Running", number(load["running"]), "n"),
        cell("Waiting", number(load["waiting"]), "n"),
        cell("KV cache", NOTHING, "n") if kv is None else drawn("KV cache", meter(kv, label), percent(kv)),
        cell("TTFT p50", milliseconds(pod["ttft_ms"]), "n"),
        drawn("Share", bar(pod["share"]), percent(pod["share"])),
        cell("Failed", counted_if(pod["failed"], "error"), "n"),
        drawn("Attempts", line(pod["history"], highest), number(pod["attempts"])),
    )
    more = f' class="pod {state}" data-pod="{text(pod["name"])}" data-state="{state}"'
    return row(part_id, text(pod["name"]), cells, more=more)


def _reasons(pod: Said) -> str:
    """Why a pod gets fewer requests than it could, or none."""
    claimed = [f"{model['name']} is pool {model['claimed_by']}'s" for model in pod["models"] if model["claimed_by"]]
    reasons = [pod["reason"]] if pod["reason"] else []
    return f"<small>{text('; '.join((*reasons, *claimed[:2])))}</small>" if reasons or claimed else ""


def _line(history: Sequence[int]) -> str:
    return line(history, ceiling(max(history, default=0)))


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
