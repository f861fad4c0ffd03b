"""The status page: what `/status.json` says, as HTML. Pure: the same dict gives the same page.

Everything that changes is a part with an id (see `parts`), so that a page which is open can be sent what changed. The
rest, with its style and its script, is written once. There is no other asset, and the policy allows none: style and
script are named by their hashes.

Every text comes from outside and goes through `text`. All tables are bounded: a page that one cannot read through helps
nobody, and the JSON beside it has the rest.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from gateway import __version__
from gateway.api.page.concerns import Concern, concerns_of, listed
from gateway.api.page.drawing import age, ceiling, dot, facts, line, milliseconds, moment, number, text, with_ages
from gateway.api.page.events_table import events_table
from gateway.api.page.parts import Group, Leaf, Part
from gateway.api.page.pods_table import pods_table
from gateway.api.page.requests_table import requests_table
from gateway.api.page.tables import counted_if, leaves
from gateway.api.page.tenants_table import tenants_table
from gateway.core.words import how_long

MAX_CONCERNS = 20
RELOAD_SECONDS = 5
"""Without a script."""

STYLE = (Path(__file__).parent / "page.css").read_text("utf-8")
SCRIPT = (Path(__file__).parent / "page.js").read_text("utf-8")
PAGE_VERSION = sha256(f"{__version__}{STYLE}{SCRIPT}".encode()).hexdigest()[:16]
"""A page of another one than the gateway's loads itself anew."""

LIMIT_MODES = {
    "memory": "in this replica's memory",
    "redis": "in Redis, for all replicas",
    "local": "by each replica for itself",
}

Said = Mapping[str, Any]


def _hash_of(inlined: str) -> str:
    return f"'sha256-{b64encode(sha256(inlined.encode('utf-8')).digest()).decode()}'"


HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; style-src {_hash_of(STYLE)}; script-src {_hash_of(SCRIPT)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""Of every page on the ops port."""


def page(status: Said) -> str:
    """The whole page, complete without its script."""
    shown = {part.id: part.html for part in page_parts(status)}
    body = f"""<header>
<h1>Poolgate</h1>{shown["self"]}
<p id="link" role="status">as of {moment(status["ts"])} UTC</p>
</header>
<main>
<section aria-labelledby="eye-title"><h2 id="eye-title">Needs an eye</h2>
<div role="status">{shown["eye-count"]}</div>{shown["eye"]}</section>
<section aria-labelledby="minute-title"><h2 id="minute-title">The last minute</h2>{shown["numbers"]}</section>
<section aria-labelledby="pods-title"><h2 id="pods-title">Pools and pods</h2>{shown["pods"]}</section>
<section aria-labelledby="tenants-title"><h2 id="tenants-title">Tenants, limits</h2>{shown["tenants"]}</section>
<section aria-labelledby="events-title"><h2 id="events-title">Events</h2>{shown["events"]}</section>
<section aria-labelledby="requests-title"><h2 id="requests-title">Last requests</h2>{shown["requests"]}</section>
<section aria-labelledby="gateway-title"><h2 id="gateway-title">This gateway</h2>{shown["gateway"]}</section>
</main>
<footer><a href="status.json">the same as JSON</a> <a href="docs">all of this port</a> Times of day are UTC.</footer>
<script>{SCRIPT}</script>"""
    head = f'{shown["title"]}<noscript><meta http-equiv="refresh" content="{RELOAD_SECONDS}"></noscript>'
    data = f'data-page="{PAGE_VERSION}" data-now="{text(status["ts"])}"'
    return with_ages(document(head, body, data), status["ts"])


def document(head: str, body: str, data: str = "") -> str:
    """A page of the ops port."""
    return f"""<!doctype html>
<html lang="en" {data}><head><meta charset="utf-8">{head}
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,"><style>{STYLE}</style></head>
<body>{body}</body></html>
"""


def page_parts(status: Said) -> tuple[Part, ...]:
    """All that changes."""
    concerns = concerns_of(status)
    return (
        _title(status, concerns),
        _self(status),
        _concern_count(concerns),
        _concern_list(concerns),
        _numbers(status["traffic"]),
        pods_table(status),
        tenants_table(status["tenants"]),
        requests_table(status["requests"]),
        events_table(status["events"]),
        _gateway(status),
    )


def _title(status: Said, concerns: Sequence[Concern]) -> Leaf:
    pressing = sum(concern.level != "info" for concern in concerns)
    return Leaf(
        "title", f'<title id="title">{f"({pressing}) " if pressing else ""}Poolgate {text(status["replica"])}</title>'
    )


def _self(status: Said) -> Leaf:
    state = dot("ready", "ready") if status["ready"] else dot("error", f"not ready: {status['reason']}")
    return Leaf(
        "self",
        f'<p id="self">{state} <span>{text(status["replica"])}</span> <span>version {text(status["version"])}</span> '
        f"<span>up {age(status['started_at'])}</span></p>",
    )


def _concern_count(concerns: Sequence[Concern]) -> Leaf:
    """Read out when it changes, so it has no numbers but that of the concerns."""
    if not concerns:
        said = dot("ready", "Nothing: all is well.")
    elif len(concerns) == 1:
        said = "One thing."
    else:
        said = f"{len(concerns)} things, the worst first."
    return Leaf("eye-count", f'<p id="eye-count">{said}</p>')


def _concern_list(concerns: Sequence[Concern]) -> Group:
    items = leaves("concern", islice(concerns, MAX_CONCERNS), lambda concern: (concern.what,), _concern)
    more = len(concerns) - MAX_CONCERNS
    if more > 0:
        items.append(Leaf("eye-more", f'<li id="eye-more">and {more:,} more</li>'))
    return Group("eye", '<ul id="eye" class="plain">', tuple(items), "</ul>")


def _concern(part_id: str, concern: Concern) -> str:
    why = f"<p>{text(concern.why)}</p>" if concern.why else ""
    entry = f" <span>Runbook: <code>{text(concern.entry)}</code></span>" if concern.entry else ""
    return (
        f'<li id="{part_id}" class="{concern.level}"><div>{dot(concern.level, f"{concern.level}:")} '
        f"<strong>{text(concern.what)}</strong>{why}</div><p>{text(concern.advice)}{entry}</p></li>"
    )


def _numbers(traffic: Said) -> Leaf:
    ttft = traffic["ttft_ms"]
    pairs = {
        "requests per second": number(float(traffic["per_second"]))
        + line(traffic["history"], ceiling(max(traffic["history"], default=0))),
        "in flight": number(traffic["in_flight"]),
        "waiting": counted_if(traffic["queue"], "warning"),
        "failed": counted_if(traffic["failed"], "error"),
        "refused": counted_if(traffic["refused"], "warning"),
        "TTFT p50": milliseconds(ttft["p50"]),
        "TTFT p99": milliseconds(ttft["p99"]),
        "tokens per second": number(float(traffic["tokens_per_second"])),
    }
    return Leaf("numbers", f'<dl id="numbers">{facts(pairs)}</dl>')


def _gateway(status: Said) -> Leaf:
    discovery, limits, config = status["discovery"], status["limits"], status["config"]
    stale = discovery["stale_seconds"]
    heard = f"nothing heard for {how_long(stale)}" if stale else "up to date" if discovery["listed"] else "no list yet"
    pairs = {
        "discovery": f"{text(discovery['mode'])}, {heard}",
        "limits are counted": text(LIMIT_MODES.get(limits["mode"], limits["mode"])),
        "replicas": number(status["replicas"]),
        "configuration": "a file is refused: see above"
        if config["error"]
        else f"in force for {age(config['loaded_at'])}",
        "waits for a restart": text(listed(config["waits_for_restart"])) or "nothing",
        "started": f'<time datetime="{text(status["started_at"])}">{text(status["started_at"])}</time>',
    }
    return Leaf("gateway", f'<dl id="gateway">{facts(pairs)}</dl>')
