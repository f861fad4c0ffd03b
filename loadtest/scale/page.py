"""The tables of docs/scale.md: each is what the code says, between its marks. A test holds the page to them."""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from loadtest.policysim.figures import Figures as Balanced
from loadtest.scale.autoscaling import Autoscaler, cases, highest_target, simulate
from loadtest.scale.balancing import GROUPED_PODS, PODS, Row
from loadtest.scale.capacity import asking_pods, at_rest, choice_us, one_replica
from loadtest.scale.figures import Figures, Source
from loadtest.scale.plan import Load, Plan, plan, redis_alone_us

CALLERS: Final = 10_000
ANSWER_TOKENS: Final = 250
MILLION: Final = 1e6
STREAMS: Final = 100_000
USUAL: Final = 2
"""Of the loads, that of 30 tokens a second."""


def loads() -> Sequence[Load]:
    """Those of the page."""
    seconds = ANSWER_TOKENS / 30
    many = [
        Load(f"{STREAMS:,} streams of {rate} tokens/s", MILLION, STREAMS, rate, callers=CALLERS)
        for rate in (20, 30, 50)
    ]
    return (
        Load("a million requests an hour", MILLION, MILLION / 3600 * seconds, 30, callers=CALLERS),
        *many,
        replace(many[-1], name="the same, 4 tokens a chunk", tokens_per_chunk=4.0),
        replace(many[0], name=f"{STREAMS:,} streams of 1 token/s", tokens_per_second=1.0),
    )


GROUP: Final = 8
"""Replicas that may well know the same pods: see the tables of what many do to the choice. Four are a little better
still, and twice as many groups."""


def in_short(figures: Figures, scaler: Autoscaler, plans: Sequence[Plan]) -> str:
    """The page's first lines."""
    hour, slow, usual, fast, bundled, idle = plans
    carries = {each.what: each.at_target for each in one_replica(figures, scaler.target)}
    requests = carries["requests/s, not streamed, no limits"]
    chunks, streams = carries["streamed chunks/s"], carries["open streams of 30 chunks/s"]
    counted = fast.counting
    points = f"""\
- **One replica** on one core, at the autoscaler's {scaler.target:.0%}, carries {requests:,.0f} small requests a second,
  or {chunks:,.0f} chunks: {streams:,.0f} streams of 30 tokens a second. Memory is never what ends first.
- **A million requests an hour** are {hour.load.requests:,.0f} a second, {hour.load.streams:,.0f} open streams of
  {ANSWER_TOKENS} tokens, and {hour.cores:.1f} cores: {hour.replicas} replicas.
- **A hundred thousand open streams** of 20, 30 or 50 tokens a second want {slow.replicas}, {usual.replicas} or
  {fast.replicas} replicas before {usual.load.all_pods:,} pods; {usual.chunk_share:.0%} of their work is passing chunks
  on. With four tokens in a chunk, 50 a second take {bundled.replicas}. Streams on which next to nothing comes are bound
  by connections: {idle.replicas}.
- **Redis**: one server, no cluster. {counted.calls:,.0f} calls a second, {counted.cores:.0%} of a core and
  {counted.mib:.0f} MiB, if every request asks.
- **The next wall** is not a machine but what replicas know: each of {usual.replicas} has {usual.own_per_pod:.2g}
  requests of its own at a pod, and hears of the others' every {usual.load_seconds:.0f} s. Beyond some {GROUP} replicas
  cut the gateways and the pods into groups: here {groups_of(usual)}."""
    return "\n".join(
        textwrap.fill(" ".join(point.split()), 120, initial_indent="- ", subsequent_indent="  ")
        for point in points.removeprefix("- ").split("\n- ")
    )


def groups_of(whole: Plan) -> int:
    """Into how many it is cut."""
    return math.ceil(whole.replicas / GROUP)


def group_of(whole: Plan) -> Load:
    """What comes to one of them."""
    load, groups = whole.load, groups_of(whole)
    return replace(
        load,
        name=f"of {load.tokens_per_second:g} tokens/s, one of {groups} groups",
        requests_per_hour=load.requests_per_hour / groups,
        streams=load.streams / groups,
        callers=max(1, load.callers // groups),
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Numbers to the right."""
    return "\n".join(
        f"| {' | '.join(row)} |" for row in ([*head], ["---", *["--:"] * (len(head) - 1)], *([*row] for row in rows))
    )


def inputs(sources: Sequence[Source]) -> str:
    """Every figure that was measured."""
    rows = [
        (
            f"`{each.name}`",
            f"{each.value:,g} {each.unit}",
            each.what,
            f"`{each.measured_by}`",
            each.measured + (" **↻**" if each.refresh else ""),
        )
        for each in sources
    ]
    head = ("figure", "value", "of what", "measured by", "when")
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def carried(figures: Figures, target: float) -> str:
    """What one replica carries."""
    rows = [(each.what, f"{each.whole:,.0f}", f"{each.at_target:,.0f}") for each in one_replica(figures, target)]
    return table(("one replica, one core, 32 pods", "at most", f"at {target:.0%}"), rows)


def pods(figures: Figures) -> str:
    """What pods cost a replica."""
    head = (
        "pods",
        "asking them, ms CPU/s",
        "a replica at rest, share of a core",
        "a choice, µs",
    )
    rows = [
        (
            f"{each:,}",
            f"{1e3 * asking_pods(figures, each, 1):.0f}",
            f"{at_rest(figures, each, 1):.1%}",
            f"{choice_us(figures, each):.0f}",
        )
        for each in (8, 64, 256, 1000)
    ]
    return table(head, rows)


_ROWS: Final[Sequence[tuple[str, Callable[[Plan], str]]]] = (
    ("requests/s", lambda p: f"{p.load.requests:,.0f}"),
    ("chunks/s", lambda p: f"{p.load.chunks:,.0f}"),
    ("open streams", lambda p: f"{p.load.streams:,.0f}"),
    ("a stream lasts, s, if each request is one", lambda p: f"{p.load.stream_seconds:,.0f}"),
    ("pods, at 128 requests each", lambda p: f"{p.load.all_pods:,}"),
    ("**replicas**", lambda p: f"**{p.replicas:,}**"),
    ("cores in use", lambda p: f"{p.cores:,.1f}"),
    ("of them for chunks", lambda p: f"{p.chunk_share:.0%}"),
    ("of them for replicas at rest", lambda p: f"{p.rest_share:.0%}"),
    ("streams of the fullest replica", lambda p: f"{p.fullest:,.0f}"),
    ("its core in use", lambda p: f"{p.fullest_core:.0%}"),
    ("its memory, MiB", lambda p: f"{p.memory_mib:,.0f}"),
    ("its descriptors", lambda p: f"{p.descriptors:,.0f}"),
    ("Redis: calls/s", lambda p: f"{p.counting.calls:,.0f}"),
    ("Redis: share of a core", lambda p: f"{p.counting.cores:.0%}"),
    ("Redis: memory, MiB", lambda p: f"{p.counting.mib:.1f}"),
    ("a replica's own requests at a pod", lambda p: f"{p.own_per_pod:.2g}"),
    ("a pod's `/load` is read every, s", lambda p: f"{p.load_seconds:.1f}"),
    ("its `/metrics` every, s", lambda p: f"{p.gauges_seconds:.0f}"),
    ("share of a pod's API process for all questions", lambda p: f"{p.vllm_share:.1%}"),
    ("API server: watches", lambda p: f"{p.watches:,}"),
    ("API server: pods listed/s", lambda p: f"{p.listed:,.0f}"),
    ("Prometheus: series", lambda p: f"{p.series:,.0f}"),
    ("requests of a pool that may wait", lambda p: f"{p.may_wait:,}"),
)


def needed(plans: Sequence[Plan]) -> str:
    """A column for each load."""
    head = ("", *(each.load.name for each in plans))
    return table(head, [(what, *(written(each) for each in plans)) for what, written in _ROWS])


def redis(figures: Figures) -> str:
    """What replicas make of Redis, where every request asks by itself: the worst case."""
    head = ("replicas with something of the caller's", "CPU µs of Redis per request", "requests/s at half a core")
    rows = []
    for replicas in (1, 4, 16, 64, 200):
        us = redis_alone_us(figures, replicas)
        rows.append((f"{replicas}", f"{us:,.0f}", f"{0.5e6 / us:,.0f}"))
    return table(head, rows)


def balanced(rows: Sequence[Row]) -> str:
    """Many replicas beside one."""
    chosen = [row for row in rows if row.groups == 1 and row.cell.pods == PODS]
    replicas = list(dict.fromkeys(row.cell.replicas for row in chosen))
    lines = []
    for workload in dict.fromkeys(row.cell.workload for row in chosen):
        mine = [row.figures for row in chosen if row.cell.workload == workload]
        lines.append((f"{workload}: mean, ms", *(_ms(each.mean, mine[0].mean) for each in mine)))
        lines.append((f"{workload}: p99, ms", *(_ms(each.p99, mine[0].p99) for each in mine)))
        lines.append((f"{workload}: found in a cache", *(f"{each.hits:.0%}" for each in mine)))
    return table((f"{PODS} pods, load 0.8; replicas:", *map(str, replicas)), lines)


def grouped(rows: Sequence[Row]) -> str:
    """Groups beside all together."""
    chosen = [row for row in rows if row.groups * row.cell.pods == GROUPED_PODS]
    shapes = list(dict.fromkeys((row.groups, row.cell.replicas, row.cell.pods) for row in chosen))
    names = [f"{groups} × ({replicas} replicas, {many} pods)" for groups, replicas, many in shapes]
    lines = []
    for workload in dict.fromkeys(row.cell.workload for row in chosen):
        mine: list[Balanced] = [row.figures for row in chosen if row.cell.workload == workload]
        lines.append((f"{workload}: mean, ms", *(_ms(each.mean, mine[0].mean) for each in mine)))
        lines.append((f"{workload}: p99, ms", *(_ms(each.p99, mine[0].p99) for each in mine)))
    return table((f"{GROUPED_PODS} pods, 16 replicas", *names), lines)


def _ms(seconds: float, first: float) -> str:
    return f"{1e3 * seconds:,.0f} (× {seconds / first:.2f})"


TARGETS: Final = (0.4, 0.5, 0.6, 0.7, 0.8)


def scaled(scaler: Autoscaler, replicas: int) -> str:
    """What each target comes to: the fullest replica's work, and for how long it was more than a core."""
    columns = []
    for target in TARGETS:
        tried = replace(scaler, target=target, most=10 * scaler.most)
        columns.append([simulate(tried, case) for case in cases(target, replicas)])
    names = [case.name for case in cases(TARGETS[0], replicas)]
    head = (f"begins with {replicas} replicas; target:", *(f"{target:.0%}" for target in TARGETS))
    rows = [
        (
            name,
            *(
                f"{column[row].fullest:.2f}"
                + (f", **late {column[row].late_seconds} s**" if column[row].late_seconds else "")
                for column in columns
            ),
        )
        for row, name in enumerate(names)
    ]
    return table(head, rows)


def tables(figures: Figures, sources: Sequence[Source], scaler: Autoscaler, rows: Sequence[Row]) -> Mapping[str, str]:
    """By the name of their mark."""
    plans = [plan(figures, load, scaler.target, scaler.least) for load in loads()]
    return {
        "in short": in_short(figures, scaler, plans),
        "inputs": inputs(sources),
        "one replica": carried(figures, scaler.target),
        "pods": pods(figures),
        "loads": needed([*plans, plan(figures, group_of(plans[USUAL]), scaler.target, scaler.least)]),
        "redis": redis(figures),
        "replicas": balanced(rows),
        "groups": grouped(rows),
        "target of three": scaled(scaler, 3),
        "target of two": scaled(scaler, 2),
        "target": (
            "The highest target, in steps of 5 %, at which no case is late that begins with three replicas and waits "
            f"for no node: **{highest_target(scaler):.0%}**. In the manifests: {scaler.target:.0%}."
        ),
    }


def on_page(page: str, made: Mapping[str, str]) -> str:
    """The page with each table between its marks. Raises `ValueError` for one that has no place there."""
    for name, text in made.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"the page has no place for {name!r}")
        page = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    return page
