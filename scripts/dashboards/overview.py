"""Is the gateway well, and if not, where is it: at callers, at pods, in limits, or in the gateway itself?"""

from gateway.core.call import FAULTS
from scripts.dashboards.grafana import dashboard, graph, link_to, row, stat, table
from scripts.dashboards.looks import GREEN, JOB, MODEL, MODES, ORANGE, OUTCOMES, RED, STATES
from scripts.dashboards.promql import (
    ASKED,
    OURS,
    gained,
    now,
    only,
    per_minute,
    per_second,
    quantile,
    quantiles,
    rate,
    share,
)

_ALL = per_second("poolgate_requests_total", ASKED)
_BAD = " or ".join(
    rate("poolgate_requests_total", f"{ASKED},{ending}")
    for ending in (f'outcome=~"{"|".join(sorted(FAULTS))}"', 'outcome="refused",status=~"5.."')
)
"""Requests that ended badly by no fault of their caller; those turned away with a 503 among them."""
_ERRORS = ((0.01, ORANGE), (0.05, RED))
_STALE = ((120, ORANGE), (300, RED))
_OBJECTIVE = ((2.5, ORANGE),)
"""Seconds to a first token; as in the alert on its budget."""

_NOW = row(
    "Now",
    table(
        "Alerts that fire",
        "Each has its entry in docs/runbook.md: what it means, what to look at, and what to do.",
        "short",
        {"firing": 'count by (alertname, severity, pool, model) (ALERTS{alertname=~"Poolgate.*",alertstate="firing"})'},
        labels=("severity", "alertname", "pool", "model"),
        width=16,
        height=4,
        unless="none",
    ),
    stat(
        "Ready pods",
        "Pods that take requests, as seen by the replica that sees fewest; at 0 open the pool for its pods' states.",
        "short",
        now("min", "poolgate_pods", f'{OURS},state="ready"', by="pool"),
        legend="{{pool}}",
        width=8,
        levels=((0, RED), (1, GREEN)),
        link=link_to("pool", "Open this pool", "pool"),
    ),
    stat("Requests", "If it falls to nothing, look at what stands before the gateway.", "reqps", _ALL),
    stat(
        "Errors",
        "Requests that ended badly by no fault of their caller; the graphs below tell how.",
        "percentunit",
        f"(sum ({_BAD}) or 0 * {_ALL}) / {_ALL}",
        levels=_ERRORS,
    ),
    stat(
        "TTFT p90",
        "One stream in ten began later; if it grows, see whether requests wait for pods, or pods are slow.",
        "s",
        quantile(0.9, "poolgate_time_to_first_token_seconds", ASKED),
        levels=_OBJECTIVE,
    ),
    stat(
        "Waiting",
        "Requests that wait for a pod with room: if they do for minutes, add pods, or mend those that are out.",
        "short",
        now("sum", "poolgate_queue_depth"),
        levels=((1, ORANGE),),
    ),
    stat(
        "Pools in panic",
        "So few pods are left that ejected ones are used as well: mend pods, or add some.",
        "short",
        f"sum ({now('max', 'poolgate_panic', by='pool')})",
        levels=((1, RED),),
    ),
    stat(
        "Limits counted in",
        "Replicas by where they count; local: Redis is away and each allows its share, so mend Redis.",
        "short",
        f"count by (mode) (poolgate_limit_mode{{{OURS}}} == 1)",
        legend="{{mode}}",
    ),
    stat(
        "Discovery stale for",
        "Nothing has confirmed for so long which pods there are: requests go to the last known, see to the API server.",
        "s",
        now("max", "poolgate_discovery_stale_seconds"),
        levels=_STALE,
        width=6,
    ),
    stat(
        "Configuration refused",
        "Replicas with a file that is not in force; the status page and `poolgate check` tell its fault.",
        "short",
        now("sum", "poolgate_config_refused"),
        levels=((1, RED),),
        says={"0": ("in force", GREEN)},
        width=6,
    ),
    stat(
        "Replicas",
        "Gateways that are scraped, by version; two versions for long are a rollout that hangs.",
        "short",
        now("count", "poolgate_build_info", by="version"),
        legend="{{version}}",
        width=6,
    ),
    stat(
        "Access lines lost",
        "In the time shown: whoever reads the gateway's stdout is too slow, and sums of usage are short.",
        "short",
        gained("poolgate_access_lines_dropped_total"),
        levels=((1, RED),),
        width=6,
    ),
)

_REQUESTS = row(
    "Requests",
    graph(
        "Requests by outcome",
        "client_left and refused are the callers' doing; for the others open the pool.",
        "reqps",
        {"{{outcome}}": per_second("poolgate_requests_total", ASKED, by="outcome")},
        stacked=True,
        colours=OUTCOMES,
    ),
    graph(
        "Errors by outcome",
        "Share of all requests; refused is a 503 here: no pod was ready, or the line was full or too slow.",
        "percentunit",
        {"{{outcome}}": share(f"sum by (outcome) ({_BAD})", _ALL)},
        levels=_ERRORS,
        colours=OUTCOMES,
        unless="no errors",
    ),
    graph(
        "Refused by limit (429)",
        "The status page tells who it is; unchecked got a 503: Redis is away and the limit says deny, so mend Redis.",
        "reqps",
        {
            "{{limit}}": only(per_second("poolgate_limit_decisions_total", f'{OURS},decision="refused"', by="limit")),
            "unchecked": only(per_second("poolgate_limit_decisions_total", f'{OURS},decision="unchecked"')),
        },
        unless="nobody was refused",
    ),
)

_LATENCY = row(
    "Latency",
    graph(
        "Time to first token",
        "Streams only; compare it with the wait for a pod below, then with vLLM's own on the pool's dashboard.",
        "s",
        quantiles("poolgate_time_to_first_token_seconds", ASKED),
        width=6,
        levels=_OBJECTIVE,
    ),
    graph(
        "Time between tokens",
        "Each stream's mean; it grows with the pods' batches: add pods, or lower max_in_flight_per_pod.",
        "s",
        quantiles("poolgate_inter_token_seconds", ASKED),
        width=6,
    ),
    graph(
        "Duration",
        "From the whole request to the last byte; long answers take long, so look at the two graphs before it first.",
        "s",
        quantiles("poolgate_request_seconds", ASKED),
        width=6,
    ),
    graph(
        "Time in the gateway itself",
        "Without the wait for a pod; if it grows, look at the loop's lag and the CPU below, and add replicas.",
        "s",
        quantiles("poolgate_overhead_seconds", ASKED),
        width=6,
    ),
)

_WORK = row(
    "Work",
    graph(
        "Turned away (503)",
        "no_ready_pod: see the pods' states; queue_full, queue_timeout: too few pods; overloaded: the pods say no.",
        "reqps",
        {"{{pool}} {{code}}": only(per_second("poolgate_turned_away_total", by="pool, code"))},
        unless="nobody was turned away",
    ),
    graph(
        "Requests that wait",
        "Every pod of the pool is full, or none is ready: add pods, or mend those that are out.",
        "short",
        {"{{pool}}": now("sum", "poolgate_queue_depth", by="pool")},
    ),
    graph(
        "Wait for a pod",
        "Of the requests that had to wait; at queue_wait_seconds they are turned away with a 503.",
        "s",
        quantiles("poolgate_queue_wait_seconds"),
        unless="nobody waited",
    ),
    graph(
        "In flight by model",
        "Attempts that run at pods now; what piles up while no tokens flow is stuck.",
        "short",
        {"{{model}}": now("sum", "poolgate_in_flight", ASKED, by="model")},
        stacked=True,
    ),
    graph(
        "Retries by reason",
        "Callers saw nothing of these; busy asks for more pods, connect and reset for a look at pods that die.",
        "ops",
        {"{{reason}}": only(per_second("poolgate_retries_total", by="reason"))},
        unless="no retries",
    ),
    graph(
        "Tokens a second",
        "Counted as requests end, and cached is a part of prompt; whose they are the tenants' dashboard tells.",
        "short",
        {"{{kind}}": per_second("poolgate_tokens_total", ASKED, by="kind")},
    ),
)

_PODS = row(
    "Pods",
    graph(
        "Pods by state",
        "The most that a replica sees in each state; which pod it is, and why, the status page tells.",
        "short",
        {"{{state}}": f"sum by (state) ({now('max', 'poolgate_pods', by='pool, state')})"},
        colours=STATES,
    ),
    graph(
        "Attempts by outcome",
        "What pods made of what they were sent; open the pool to see which pool it is.",
        "ops",
        {"{{outcome}}": per_second("poolgate_attempts_total", by="outcome")},
        stacked=True,
        colours=OUTCOMES,
    ),
    graph(
        "Ejections",
        "Pods taken out for a while, summed over replicas; wedged is an engine that is stuck: restart that pod.",
        "opm",
        {"{{pool}} {{reason}}": only(per_minute("poolgate_ejections_total", by="pool, reason"))},
        unless="no ejections",
    ),
    graph(
        "Panic",
        "1 while a pool has so few pods left that its ejected ones are used as well: mend pods, or add some.",
        "short",
        {"{{pool}}": now("max", "poolgate_panic", by="pool")},
    ),
    graph(
        "Quarantined requests",
        "Sent to no further pod, since pods died of them; find them among the access lines and report them to vLLM.",
        "opm",
        {"quarantined": only(per_minute("poolgate_quarantined_total"))},
        unless="none",
    ),
    graph(
        "Pods and model names turned down",
        "By reason; the log says which, and what to change on the pod.",
        "opm",
        {"{{reason}}": only(per_minute("poolgate_discovery_rejected_total", by="reason"))},
        unless="none",
    ),
)

_ITSELF = row(
    "The gateway itself",
    graph(
        "Loop lag",
        "The longest that all streams of a replica were held up: look at its CPU, then add replicas.",
        "s",
        {"{{instance}}": now("max", "poolgate_loop_lag_seconds", by="instance")},
        levels=((0.25, ORANGE),),
    ),
    graph(
        "CPU",
        "Cores in use; a gateway has one loop and no use for a second core: add replicas well before 1.",
        "short",
        {"{{instance}}": per_second("process_cpu_seconds_total", by="instance")},
        levels=((0.8, ORANGE),),
    ),
    graph(
        "Memory",
        "Resident; an open stream takes some KiB, so what grows while no more are in flight is a leak: report it.",
        "bytes",
        {
            "{{instance}}": now("max", "process_resident_memory_bytes", by="instance"),
            "the smallest limit": now("min", "poolgate_memory_limit_bytes"),
            "bodies at {{instance}}": now("max", "poolgate_buffered_body_bytes", by="instance"),
        },
    ),
    graph(
        "Overload level",
        "1 turns away what can wait, 2 all that is new; at one replica only: its clients keep their connections to it.",
        "short",
        {"{{instance}}": now("max", "poolgate_overload_level", by="instance")},
        levels=((1, ORANGE), (2, RED)),
    ),
    graph(
        "Turned away unread",
        "By what a gateway itself was short of, CPU (lag) or memory: add replicas.",
        "opm",
        {"{{cause}}": only(per_minute("poolgate_shed_total", by="cause"))},
        colours={"lag": ORANGE, "memory": RED},
        unless="nobody",
    ),
    graph(
        "Connections",
        "Open on the public port; very uneven over the replicas: restart the one with most, its clients connect anew.",
        "short",
        {"{{instance}}": now("max", "poolgate_connections", by="instance")},
    ),
    graph(
        "Open files",
        "Of what the process may have; each caller and each connection to a pod takes one: add replicas, or raise it.",
        "percentunit",
        {"{{instance}}": f"max by (instance) (process_open_fds{{{OURS}}} / process_max_fds{{{OURS}}})"},
        levels=((0.8, RED),),
    ),
    graph(
        "Discovery stale",
        "If it grows at all replicas, the API server is away; if at one, look at that replica's network.",
        "s",
        {"{{instance}}": now("max", "poolgate_discovery_stale_seconds", by="instance")},
        levels=_STALE,
    ),
    graph(
        "Full lists of pods",
        "By reason; some are periodic, many of another kind mean that the watch is cut again and again.",
        "opm",
        {"{{reason}}": only(per_minute("poolgate_discovery_relists_total", by="reason"))},
        unless="none",
    ),
    graph(
        "Limits counted in",
        "Replicas by where they count; those in local allow their share each until Redis is back.",
        "short",
        {"{{mode}}": now("sum", "poolgate_limit_mode", by="mode")},
        stacked=True,
        colours=MODES,
    ),
    graph(
        "Changed configurations",
        "After a refused one the configuration before stays in force: mend the file that the log names.",
        "opm",
        {"{{result}}": only(per_minute("poolgate_config_reloads_total", by="result"))},
        colours={"applied": GREEN, "refused": RED},
        unless="no changes",
    ),
    graph(
        "Lost lines and traces",
        "Whoever reads stdout, or takes the traces, is too slow; without lines sums of usage are short.",
        "opm",
        {
            "access lines": per_minute("poolgate_access_lines_dropped_total"),
            "log lines": per_minute("poolgate_log_lines_dropped_total"),
            "traces": per_minute("poolgate_traces_lost_total"),
        },
    ),
    table(
        "Replicas",
        "Each gateway that is scraped; one that is up for less long than the others was restarted: read its last log.",
        "short",
        {
            "up for": f"max by (instance, version) ((time() - process_start_time_seconds{{{OURS}}})"
            f" * on (instance) group_left (version) poolgate_build_info{{{OURS}}})",
            "in flight": now("sum", "poolgate_in_flight", by="instance"),
            "lag": now("max", "poolgate_loop_lag_seconds", by="instance"),
        },
        labels=("instance", "version"),
        units={"up for": "s", "lag": "s"},
    ),
)

OVERVIEW = dashboard(
    "overview",
    "Poolgate: overview",
    "Is the gateway well, and if not, where is it: at callers, at pods, in limits, or in the gateway itself?",
    [JOB, MODEL],
    _NOW,
    _REQUESTS,
    _LATENCY,
    _WORK,
    _PODS,
    _ITSELF,
)
