#!/usr/bin/env python3
"""Writes docs/operations.md from gateway/telemetry/definitions.py; a test fails when the page is stale."""

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path

from gateway.telemetry import definitions as given
from gateway.telemetry.definitions import DEFINITIONS, OTHER, Definition

PAGE = Path(__file__).resolve().parents[1] / "docs" / "operations.md"

HEAD = """\
# Operations: the metrics

<!-- Written by scripts/write_operations_docs.py. Change gateway/telemetry/definitions.py, not this page. -->

Each replica tells its own at `/metrics` of the ops port, without a token: add them up. What vLLM says of itself
(`vllm:…`) is not repeated here: scrape the pods beside the gateway and join on the model's name. When an alert fires,
begin with the [runbook](runbook.md).

- **When they are counted.** A request is counted once, when it has ended. Gauges are read when the text is rendered.
- **Rendered once a second at most**, in a thread beside the event loop; all who ask meanwhile get the same text. What
  it costs is in [performance](performance.md#what-looking-costs).
- **Plain text** (version 0.0.4), whatever the `Accept` header prefers: every Prometheus takes it.
- **No name comes from a caller.** A model that is not served is `{other}`. Where names come from pods, keys or tokens,
  at most so many have series of their own, and the rest share those of `{other}`. When there are too many models or
  pools, the series of those that are gone are let go; should one come back it begins at zero, as after a restart.
- **Zero is told.** Counters whose labels are closed sets are there from the start, those of a pool's troubles
  (`poolgate_ejections_total`, `poolgate_turned_away_total`) as soon as there is the pool: `increase()` does not see the
  first event of a series that begins with it.

In four groups: [requests](#requests), [waiting and retries](#waiting-and-retries), [pods](#pods),
[the gateway itself](#the-gateway-itself). Then their [labels](#labels), [buckets](#buckets),
[how many series](#how-many-series) there are, and [OpenTelemetry's names](#opentelemetry).
"""

GROUPS: tuple[tuple[str, Sequence[Definition]], ...] = (
    (
        "Requests",
        (given.REQUESTS, given.REQUEST_SECONDS, given.TTFT, given.INTER_TOKEN, given.OVERHEAD, given.TOKENS,
         given.IN_FLIGHT, given.LIMIT_DECISIONS, given.LIMIT_MODE),
    ),
    (
        "Waiting and retries",
        (given.QUEUE_DEPTH, given.QUEUE_WAIT, given.TURNED_AWAY, given.ATTEMPTS, given.RETRIES, given.QUARANTINED),
    ),
    (
        "Pods",
        (given.PODS, given.POD_IN_FLIGHT, given.EJECTIONS, given.PANIC, given.DISCOVERY_STALE, given.RELISTS,
         given.REJECTED),
    ),
    (
        "The gateway itself",
        (given.LOOP_LAG, given.OVERLOAD_LEVEL, given.SHED, given.MEMORY_LIMIT, given.CONNECTIONS,
         given.BUFFERED_BODIES, given.CONFIG_REFUSED, given.CONFIG_RELOADS, given.ACCESS_LINES_DROPPED,
         given.LOG_LINES_DROPPED, given.TRACES_LOST, given.BUILD_INFO, *given.PROCESS),
    ),
)  # fmt: skip

LABELS = """\
## Labels

Where the values are a closed set they are all there are. `none` is the status of a request that was never answered: its
caller left.
"""

BUCKETS = """\
## Buckets

In seconds; `+Inf` follows. Bounds are where an objective belongs: only there a share of requests is exact. The default
deadlines are among them.
"""

SERIES = """\
## How many series

At most, for each value of these labels; of closed labels only those values have a series that occurred, but for those
that begin at zero. A histogram counts with its buckets, `_sum` and `_count`.
"""

BOUNDS = """\
Of models {models}, of pools {pools}, of tenants {teams} have series of their own (of those that an issuer's tokens name
{issued}), and of pairs of a model and a tenant {spenders}; pods as long as they are there. Twelve models that stream
and answer chats, two pods and one tenant have made a thousand.
"""

OTEL = """\
## OpenTelemetry

The names of OpenTelemetry's GenAI conventions are still in development, and a gateway is neither their client nor their
server. So ours are our own, in Prometheus' style, and compatible in spirit: these say nearly the same.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD.format(other=OTHER)]
    for name, definitions in GROUPS:
        parts.append(f"## {name}\n\n{table(('metric', 'type', 'meaning', 'what to do'), map(row, definitions))}")
    parts.append(f"{LABELS}\n{table(('label', 'of', 'values'), labels())}")
    histograms = [each for each in DEFINITIONS if each.buckets]
    parts.append(f"{BUCKETS}\n{table(('metric', 'bounds'), map(bounds, histograms))}")
    parts.append(f"{SERIES}\n{table(('for each', 'series', 'of'), series())}")
    parts.append(
        BOUNDS.format(
            models=given.MAX_MODELS,
            pools=given.MAX_POOLS,
            teams=given.MAX_TEAMS,
            issued=given.MAX_ISSUED_TEAMS,
            spenders=given.MAX_SPENDERS,
        )
    )
    rows = ((f"`{each.otel}`", f"`{each.name}`", each.otel_differs) for each in DEFINITIONS if each.otel)
    parts.append(f"{OTEL}\n{table(('OpenTelemetry', 'here', 'differs in'), rows)}")
    return "\n".join(parts)


def row(definition: Definition) -> tuple[str, ...]:
    """A metric's."""
    labels = f"{{{','.join(definition.label_names)}}}" if definition.labels else ""
    return f"`{definition.name}{labels}`", definition.kind, definition.meaning, definition.do


def labels() -> Iterator[tuple[str, ...]]:
    """Each label once, with the metrics that have it and mean the same by it."""
    found: dict[tuple[str, str], list[str]] = {}
    for definition in DEFINITIONS:
        for label in definition.labels:
            values = ", ".join(f"`{value}`" for value in label.values) or label.told
            found.setdefault((label.name, values), []).append(f"`{definition.name}`")
    for (name, values), metrics in sorted(found.items(), key=lambda each: each[0][0]):
        yield f"`{name}`", ", ".join(metrics), values


def bounds(definition: Definition) -> tuple[str, ...]:
    """A histogram's."""
    return f"`{definition.name}`", " ".join(f"{bound:g}" for bound in definition.buckets)


def series() -> Iterator[tuple[str, ...]]:
    """How many there are for each combination of labels that are not closed."""
    found: dict[tuple[str, ...], list[Definition]] = {}
    for definition in DEFINITIONS:
        found.setdefault(open_labels(definition), []).append(definition)
    for names, definitions in sorted(found.items()):
        each = " and ".join(f"`{name}`" for name in names) or "replica"
        metrics = ", ".join(f"`{definition.name}`" for definition in definitions)
        yield each, str(sum(map(most_series, definitions))), metrics


def open_labels(definition: Definition) -> tuple[str, ...]:
    """Those without a closed set of values."""
    return tuple(label.name for label in definition.labels if not label.values and definition is not given.BUILD_INFO)


def most_series(definition: Definition) -> int:
    """For each combination of its open labels."""
    return prod(len(label.values) for label in definition.labels if label.values) * samples(definition)


def samples(definition: Definition) -> int:
    """Of one child."""
    return len(definition.buckets) + 3 if definition.buckets else 1


def table(head: Sequence[str], rows: Iterable[tuple[str, ...]]) -> str:
    """Rows as a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
