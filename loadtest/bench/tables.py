"""One table per scenario, a row per target; below it the bars, met or missed.

The first figure of a scenario is what it is for: that is compared, with nginx and with the gateway, by the
ratios of rounds that ran side by side. A bar is judged only if the gateway and the other were both measured
in a round that can be trusted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from loadtest.bench.report import CORE_FULL, Cell, Round, cell, side_by_side, written

OURS: Final = "gateway"
FLOOR: Final = "nginx"


@dataclass(frozen=True)
class Column:
    """A figure: its key in the rounds, and how it is written."""

    title: str
    key: str
    form: str
    held: bool = False
    """A rate that is the target's own only if its core was full; else it held at least that."""
    added: bool = False
    """What it is more than without a proxy."""


@dataclass(frozen=True)
class Table:
    scenario: str
    load: str
    columns: tuple[Column, ...]
    compared: bool = True
    """Whether the first column is set beside nginx's and the gateway's."""
    waits: bool = True
    """Whether it says how long a target waited for its core."""


_BUSY: Final = Column("share of its core", "busy", ".0%")
_CPU_PER_CHUNK: Final = Column("CPU µs per chunk", "cpu_us", ".1f")
_DELIVERED: Final = Column("chunks/s delivered", "per_second", ",.0f")
_PER_READ: Final = Column("chunks per read", "chunks_per_read", ".2f")
_BUNDLED: Final = Column("chunks per read", "bundled", ".1f")
_TRANSIT: Final = (
    Column("transit p50, µs", "transit_p50_us", ",.0f"),
    Column("transit p99, µs", "transit_p99_us", ",.0f"),
)
_OPEN: Final = (
    Column("KiB per open stream (RSS)", "kib_per_stream", ".1f"),
    Column("MiB idle", "idle_mib", ".1f"),
    Column("MiB with all open", "open_mib", ".1f"),
    Column("streams open", "streams", ",.0f"),
)
_CPU_PER_REQUEST: Final = (Column("CPU µs per request", "cpu_us", ",.1f"), _BUSY)

TABLES: Final = (
    Table(
        "requests",
        "32 connections that ask again as soon as they are answered, 400 bytes for 1 KiB, not streamed",
        (
            Column("CPU µs per request", "cpu_us", ",.1f"),
            Column("requests/s held", "per_second", ",.0f", held=True),
            _BUSY,
        ),
    ),
    Table(
        "chunks",
        "100 streams of 50 tokens a second: 5,000 chunks a second",
        (_CPU_PER_CHUNK, _DELIVERED, _BUSY, _PER_READ, *_TRANSIT),
    ),
    Table(
        "chunks 25k",
        "500 streams of 50 tokens a second: 25,000 chunks a second",
        (_CPU_PER_CHUNK, _DELIVERED, _BUSY, _PER_READ, *_TRANSIT),
    ),
    Table(
        "unpaced",
        "streams whose tokens come as fast as they are taken",
        (
            Column("CPU µs per chunk", "cpu_us", ".2f"),
            Column("chunks/s held", "per_second", ",.0f", held=True),
            _BUSY,
            _BUNDLED,
        ),
    ),
    Table(
        "ttft",
        "short streams at half of what the gateway can take, and what a proxy adds to the time to the first token",
        (
            Column("TTFT p50, µs", "ttft_p50_us", ",.0f"),
            Column("added to p50, µs", "ttft_p50_us", ",.0f", added=True),
            Column("TTFT p99, µs", "ttft_p99_us", ",.0f"),
            Column("added to p99, µs", "ttft_p99_us", ",.0f", added=True),
            _BUSY,
        ),
        compared=False,
    ),
    Table("memory", "1,000 open streams", _OPEN, waits=False),
    Table("memory 5k", "5,000 open streams", _OPEN, waits=False),
    Table("memory 10k", "10,000 open streams", _OPEN, waits=False),
    Table("large 32 KB", "`requests` with bodies of 32 KiB, 16 connections", _CPU_PER_REQUEST),
    Table("large 1 MB", "`requests` with bodies of 1 MiB, 4 connections", _CPU_PER_REQUEST),
)


@dataclass(frozen=True)
class Bar:
    """What the gateway's figure is to be, at most: in itself, times another's, or that much more than another's."""

    scenario: str
    key: str
    limit: float
    title: str
    other: str | None = None
    sign: Literal["-", "/"] = "/"
    below: bool = False
    """The limit itself is too much."""
    form: str = ".2f"


BARS: Final = (
    Bar("requests", "cpu_us", 2.0, "CPU per request ≤ 2 × nginx", FLOOR),
    Bar("requests", "cpu_us", 0.7, "CPU per request ≤ 0.7 × vllm-router", "vllm-router"),
    Bar("requests", "cpu_us", 1.0, "CPU per request < sglang-router", "sglang-router", below=True),
    Bar("requests", "cpu_us", 1.0, "CPU per request < envoy", "envoy", below=True),
    Bar("requests", "cpu_us", 0.01, "CPU per request ≤ a hundredth of litellm", "litellm", form=".4f"),
    Bar("chunks", "cpu_us", 1.2, "CPU per chunk ≤ 1.2 × nginx", FLOOR),
    Bar("chunks", "cpu_us", 1.0, "CPU per chunk < vllm-router", "vllm-router", below=True),
    Bar("chunks", "cpu_us", 1.0, "CPU per chunk < sglang-router", "sglang-router", below=True),
    Bar("chunks", "cpu_us", 1.0, "CPU per chunk < envoy", "envoy", below=True),
    Bar("chunks 25k", "busy", 0.55, "keeps up on 55 % of a core", form=".0%"),
    Bar("unpaced", "cpu_us", 2.0, "CPU per chunk ≤ 2 × nginx", FLOOR),
    Bar("ttft", "ttft_p50_us", 1000, "adds less than 1 ms to the median", "direct", "-", below=True, form=",.0f"),
    Bar("ttft", "ttft_p99_us", 3000, "p99 ≤ nginx's and 3 ms", FLOOR, "-", form=",.0f"),
    Bar("memory 5k", "kib_per_stream", 12, "KiB per open stream ≤ 12", form=".1f"),
    Bar("memory 10k", "left_out", 0, "open without an error, of 10,000 left out for want of files", form=",.0f"),
    Bar("large 32 KB", "cpu_us", 2.2, "CPU per request ≤ 2.2 × nginx", FLOOR),
    Bar("large 1 MB", "cpu_us", 3.0, "CPU per request ≤ 3 × nginx", FLOOR),
)


def tables(rounds: Sequence[Round], targets: Sequence[str]) -> str:
    """Every scenario that was run, as Markdown."""
    run = {round_.scenario for round_ in rounds}
    return "\n\n".join(_section(table, rounds, targets) for table in TABLES if table.scenario in run)


def _section(table: Table, rounds: Sequence[Round], targets: Sequence[str]) -> str:
    of_scenario = [round_ for round_ in rounds if round_.scenario == table.scenario]
    measured = [target for target in targets if any(round_.target == target for round_ in of_scenario)]
    first, *others = table.columns
    titles = [first.title, *(["÷ nginx", "gateway ÷ it"] if table.compared else []), *(each.title for each in others)]
    titles += ["waited for its core"] if table.waits else []
    lines = [f"| {table.scenario} | " + " | ".join(titles) + " |", "|" + "---|" * (len(titles) + 1)]
    lines += [_line(table, of_scenario, target) for target in measured]
    bars = [f"- bar: {bar.title}: {verdict(bar, of_scenario)}" for bar in BARS if bar.scenario == table.scenario]
    blocks = [f"**{table.scenario}**: {table.load}.", "\n".join(lines), *(["\n".join(bars)] if bars else [])]
    return "\n\n".join(blocks)


def _line(table: Table, rounds: Sequence[Round], target: str) -> str:
    first, *others = table.columns
    cells = [figure(first, rounds, target)]
    if table.compared:
        cells += [
            _ratio(rounds, first.key, target, FLOOR) if target not in (FLOOR, "direct") else "",
            _ratio(rounds, first.key, OURS, target) if target not in (OURS, "direct") else "",
        ]
    cells += [figure(column, rounds, target) for column in others]
    cells += [_waited(rounds, target)] if table.waits else []
    return f"| {target} | " + " | ".join(cells) + " |"


def figure(column: Column, rounds: Sequence[Round], target: str) -> str:
    """A target's cell in a column."""
    if column.added:
        found = _beside(rounds, column.key, target, "direct", "-") if target != "direct" else None
        return written(found, column.form)
    own = [round_ for round_ in rounds if round_.target == target]
    found = cell(own, lambda round_: round_.values[column.key])
    if column.held and found is not None:
        busy = cell(own, lambda round_: round_.values["busy"])
        assert busy is not None  # the same rounds
        return ("" if busy.median >= CORE_FULL else "≥ ") + written(found, column.form)
    return written(found, column.form)


def _ratio(rounds: Sequence[Round], key: str, ours: str, theirs: str) -> str:
    found = _beside(rounds, key, ours, theirs, "/")
    small = found is not None and found.median < 0.1
    return written(found, ".4f" if small else ".2f")


def _beside(rounds: Sequence[Round], key: str, ours: str, theirs: str, sign: Literal["-", "/"]) -> Cell | None:
    scenario = rounds[0].scenario
    return side_by_side(rounds, scenario, key, ours=ours, theirs=theirs, sign=sign)


def _waited(rounds: Sequence[Round], target: str) -> str:
    whole = [r.waited for r in rounds if r.target == target and r.failed is None]
    if target == "direct" or not whole:  # client and pods wait for each other by design
        return "–"
    return f"{max(whole):.1%}"


def verdict(bar: Bar, rounds: Sequence[Round]) -> str:
    """Met or missed, and by how much; `rounds`: of the bar's scenario."""
    own = [round_ for round_ in rounds if round_.target == OURS]
    failed = sum(round_.failed is not None for round_ in own)
    if failed:
        return f"**missed** ({failed} of {len(own)} rounds failed)"
    if any(round_.fell_behind() for round_ in own):
        return "**missed** (it did not keep up)"
    if bar.other is None:
        measured = cell(own, lambda round_: round_.values[bar.key])
    elif rounds:
        measured = _beside(rounds, bar.key, OURS, bar.other, bar.sign)
    else:
        measured = None
    if measured is None:
        return "not measured"
    if not measured.trusted:
        return "not judged (no quiet round)"
    met = measured.median < bar.limit if bar.below else measured.median <= bar.limit
    return f"{written(measured, bar.form)}, {'met' if met else '**missed**'}"
