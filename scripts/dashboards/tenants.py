"""Who spends how many tokens on which models, and which limits hold callers back."""

from scripts.dashboards.grafana import bars, dashboard, graph, row, stat, table, values_of
from scripts.dashboards.looks import JOB, MODEL
from scripts.dashboards.promql import ASKED, OURS, gained, only, per_second, share

_TOKENS = "poolgate_tokens_total"
_CHOSEN = f'{ASKED},tenant=~"$tenant"'
_SPENT = f'{_CHOSEN},kind!="cached"'
"""Prompts and answers: what was found in caches is a part of the prompts."""
_PROMPT, _CACHED, _ANSWER = (f'{_CHOSEN},kind="{kind}"' for kind in ("prompt", "cached", "completion"))
_DECISIONS = "poolgate_limit_decisions_total"
_REFUSED = f'{OURS},decision="refused"'


def _of_a_day(matchers: str) -> str:
    return gained(_TOKENS, matchers, by="tenant, model", window="24h")


_SUMS = row(
    "In the time shown",
    stat(
        "Tokens",
        "Prompts and answers of the tenants chosen; for exact sums of days ask `poolgate usage`.",
        "short",
        gained(_TOKENS, _SPENT),
        width=6,
    ),
    stat(
        "Tenants that spent",
        "If there are 200 and one is called other, an issuer names more tenants than have series of their own.",
        "short",
        f"count ({gained(_TOKENS, _SPENT, by='tenant')} > 0)",
        width=6,
    ),
    stat(
        "Prompt tokens found in caches",
        "The more, the cheaper; pods must run with --enable-prompt-tokens-details to tell.",
        "percentunit",
        f"{gained(_TOKENS, _CACHED)} / {gained(_TOKENS, _PROMPT)}",
        width=6,
    ),
    stat(
        "Refused by limits",
        "By limits of all tenants; whose they are the status page and the access lines tell.",
        "short",
        gained(_DECISIONS, _REFUSED),
        width=6,
    ),
)

_SPENDING = row(
    "Spending",
    graph(
        "Tokens a second by tenant",
        "Prompts and answers, counted as requests end; who jumps here fills the pods: a limit may be due.",
        "short",
        {"{{tenant}}": per_second(_TOKENS, _SPENT, by="tenant")},
        stacked=True,
    ),
    graph(
        "Tokens a second by kind",
        "Cached is a part of prompt; many prompts make others wait for first tokens, many answers slow all answers.",
        "short",
        {"{{kind}}": per_second(_TOKENS, _CHOSEN, by="kind")},
    ),
    graph(
        "Tokens a second by model",
        "Prompts and answers, by the name that was asked for; what grows here will need pods.",
        "short",
        {"{{model}}": per_second(_TOKENS, _SPENT, by="model")},
        stacked=True,
    ),
    graph(
        "Share of all tokens",
        "Of all tenants' on these models; one whose share keeps growing may need a limit, or a pool of its own.",
        "percentunit",
        {"{{tenant}}": share(per_second(_TOKENS, _SPENT, by="tenant"), per_second(_TOKENS, f'{ASKED},kind!="cached"'))},
    ),
    graph(
        "Cached share of prompts",
        "If it is low in spite of long system prompts: they begin differently each time, or the policy is not auto.",
        "percentunit",
        {"{{tenant}}": f"{per_second(_TOKENS, _CACHED, by='tenant')} / {per_second(_TOKENS, _PROMPT, by='tenant')}"},
    ),
    bars(
        "Most tokens in the time shown",
        "The ten tenants to speak to first when pods are full.",
        "short",
        f"topk (10, {gained(_TOKENS, _SPENT, by='tenant')})",
        legend="{{tenant}}",
    ),
)

_LIMITS = row(
    "Limits, of all tenants",
    graph(
        "Refused by limit (429)",
        "If it is steady, raise that limit, or have the client heed retry-after; who it is the status page tells.",
        "reqps",
        {"{{limit}}": only(per_second(_DECISIONS, _REFUSED, by="limit"))},
        width=12,
        unless="nobody was refused",
    ),
    graph(
        "Share refused",
        "Of the requests that met the limit; much for long is a limit too low, or a client that asks again at once.",
        "percentunit",
        {"{{limit}}": only(f"{per_second(_DECISIONS, _REFUSED, by='limit')} / {per_second(_DECISIONS, by='limit')}")},
        width=12,
        unless="nobody was refused",
    ),
)

_DAY = row(
    "The last 24 hours",
    table(
        "By tenant and model",
        "Estimated from counters, so right to some percent; for what is billed ask `poolgate usage`.",
        "short",
        {
            "answers": _of_a_day(_ANSWER),
            "prompts": _of_a_day(_PROMPT),
            "of these cached": _of_a_day(_CACHED),
            "cached share": f"{_of_a_day(_CACHED)} / {_of_a_day(_PROMPT)}",
        },
        labels=("tenant", "model"),
        units={"cached share": "percentunit"},
        height=10,
    ),
)

TENANTS = dashboard(
    "tenants",
    "Poolgate: tenants",
    "Who spends how many tokens on which models, and which limits hold callers back.",
    [JOB, values_of("tenant", "Tenant", f"{_TOKENS}{{{OURS}}}", "tenant", every=".*"), MODEL],
    _SUMS,
    _SPENDING,
    _LIMITS,
    _DAY,
)
