"""One pool: what its callers see, beside what its vLLM pods say of themselves.

vLLM's series are taken of the pool's pods only, joined on the label `pod`: another deployment may serve a model of the
same name. Callers' series go by the name that was asked for, vLLM's by its own: `$aliases` says which others there are.
"""

from collections.abc import Mapping

from scripts.dashboards.grafana import dashboard, graph, row, stat, values_of, words
from scripts.dashboards.looks import JOB, ORANGE, OUTCOMES, RED
from scripts.dashboards.promql import OURS, by_of, mean, now, only, per_minute, per_second, quantile, rate

_POOL = f'{OURS},pool="$pool"'
_CALLERS = f'{OURS},model=~"$model|$aliases"'
_VLLM = 'model_name=~"$model"'
_SENT = f"poolgate_pod_in_flight{{{_POOL}}}"
_KV_CACHE = ((0.9, ORANGE), (0.97, RED))


def _of_pods(series: str) -> str:
    return f"({series} and on (pod) {_SENT})"


def _vllm_now(how: str, name: str, by: str = "") -> str:
    return f"{how}{by_of(by)} {_of_pods(f'vllm:{name}{{{_VLLM}}}')}"


def _vllm_per_second(name: str, by: str = "") -> str:
    return f"sum{by_of(by)} {_of_pods(rate(f'vllm:{name}', _VLLM))}"


def _vllm_quantile(of: float, name: str) -> str:
    return f"histogram_quantile({of}, {_vllm_per_second(f'{name}_bucket', 'le')})"


def _both(ours: str, matchers: str, theirs: str, whose: str = "caller") -> Mapping[str, str]:
    """Half and nine tenths, of our histogram and of vLLM's."""
    return {
        f"{whose} p50": quantile(0.5, ours, matchers),
        f"{whose} p90": quantile(0.9, ours, matchers),
        "vLLM p50": _vllm_quantile(0.5, theirs),
        "vLLM p90": _vllm_quantile(0.9, theirs),
    }


_NOW = row(
    "Now",
    stat(
        "Pods",
        "By state, the most that a replica sees; why a pod is not ready the status page tells.",
        "short",
        f"{now('max', 'poolgate_pods', _POOL, by='state')} > 0",
        legend="{{state}}",
        width=8,
    ),
    stat("In flight", "Attempts that the gateway's replicas have at these pods now.", "short", f"sum ({_SENT})"),
    stat(
        "Waiting here",
        "Requests in the gateway's line: every pod is at max_in_flight_per_pod, or none is ready.",
        "short",
        now("sum", "poolgate_queue_depth", _POOL),
        levels=((1, ORANGE),),
    ),
    stat(
        "Waiting in vLLM",
        "Requests that no engine has begun: if many wait there for long, lower max_in_flight_per_pod or add pods.",
        "short",
        _vllm_now("sum", "num_requests_waiting"),
        levels=((1, ORANGE),),
    ),
    stat(
        "Fullest KV cache",
        "Of all pods; near 100 % engines preempt, and every answer there slows down: send fewer at once.",
        "percentunit",
        _vllm_now("max", "kv_cache_usage_perc"),
        levels=_KV_CACHE,
    ),
)

_POD_BY_POD = row(
    "Pod by pod",
    graph(
        "Ours in flight",
        "Attempts at each pod, over all replicas; one pod far above the others may hold requests that do not end.",
        "short",
        {"{{pod}}": f"sum by (pod) ({_SENT})"},
        width=6,
    ),
    graph(
        "Running in vLLM",
        "If it stays flat while ours in flight grows, the engine is full, and the rest waits there.",
        "short",
        {"{{pod}}": _vllm_now("sum", "num_requests_running", by="pod")},
        width=6,
    ),
    graph(
        "Waiting in vLLM",
        "One pod that lets requests wait while others do not is slow or stuck; if all do, add pods.",
        "short",
        {"{{pod}}": _vllm_now("sum", "num_requests_waiting", by="pod")},
        width=6,
    ),
    graph(
        "Not ours",
        "What vLLM has beyond what we sent: above 0 for long, somebody goes to pods directly (n: 4 counts as 4).",
        "short",
        {
            "{{pod}}": f"sum by (pod) (vllm:num_requests_running{{{_VLLM}}} + vllm:num_requests_waiting{{{_VLLM}}})"
            f" - sum by (pod) ({_SENT})"
        },
        width=6,
        signed=True,
    ),
    graph(
        "KV cache in use",
        "Near 100 % engines preempt: send fewer at once (max_in_flight_per_pod), or shorten contexts.",
        "percentunit",
        {"{{pod}}": _vllm_now("max", "kv_cache_usage_perc", by="pod")},
        width=6,
        levels=_KV_CACHE,
    ),
    graph(
        "Prompt tokens found in the cache",
        "If it falls while prompts are what they were, pods restart, or the pool's policy is not auto.",
        "percentunit",
        {
            "{{pod}}": f"{_vllm_per_second('prefix_cache_hits_total', 'pod')}"
            f" / {_vllm_per_second('prefix_cache_queries_total', 'pod')}"
        },
        width=6,
    ),
    graph(
        "Preemptions",
        "Requests put out of the batch for want of KV cache, to be computed again: the pod has too many at once.",
        "ops",
        {"{{pod}}": _vllm_per_second("num_preemptions_total", "pod")},
        width=6,
    ),
    graph(
        "Tokens of answers a second",
        "By vLLM; a pod far below the others under the same load has a slow GPU, or an engine that is stuck.",
        "short",
        {"{{pod}}": _vllm_per_second("generation_tokens_total", "pod")},
        width=6,
    ),
)

_SPEED = row(
    "Speed, at the caller and in vLLM",
    graph(
        "Time to first token",
        "What lies between the two is our line and the gateway; if both grow, it is the pods.",
        "s",
        _both("poolgate_time_to_first_token_seconds", _CALLERS, "time_to_first_token_seconds"),
    ),
    graph(
        "Time to first token, before vLLM",
        "Means, the caller's (streams) less vLLM's (all requests): what retries, our line and the gateway take.",
        "s",
        {
            "mean": f"{mean('poolgate_time_to_first_token_seconds', _CALLERS)}"
            f" - {_vllm_per_second('time_to_first_token_seconds_sum')}"
            f" / {_vllm_per_second('time_to_first_token_seconds_count')}"
        },
        signed=True,
    ),
    graph(
        "Wait",
        "In our line (those that had to wait) and in vLLM's; ours is fair, so better a wait there than in vLLM.",
        "s",
        _both("poolgate_queue_wait_seconds", _POOL, "request_queue_time_seconds", whose="our line"),
    ),
    graph(
        "Time between tokens",
        "If the caller's grows and vLLM's does not, look at the gateway's loop lag; ours is each stream's mean.",
        "s",
        _both("poolgate_inter_token_seconds", _CALLERS, "inter_token_latency_seconds"),
    ),
    graph(
        "Duration",
        "Whole requests; in the caller's are refused ones too, which are short.",
        "s",
        _both("poolgate_request_seconds", _CALLERS, "e2e_request_latency_seconds"),
    ),
    graph(
        "Tokens a second",
        "Callers' are counted as requests end, so later; if vLLM's stay above them, somebody goes to pods directly.",
        "short",
        {
            "callers, prompts": per_second("poolgate_tokens_total", f'{_CALLERS},kind="prompt"'),
            "callers, answers": per_second("poolgate_tokens_total", f'{_CALLERS},kind="completion"'),
            "vLLM, prompts": _vllm_per_second("prompt_tokens_total"),
            "vLLM, answers": _vllm_per_second("generation_tokens_total"),
        },
    ),
)

_FAILURES = row(
    "What fails",
    graph(
        "Attempts by outcome",
        "What the pods made of what they were sent; which pod it is the status page tells.",
        "ops",
        {"{{outcome}}": per_second("poolgate_attempts_total", _POOL, by="outcome")},
        width=6,
        stacked=True,
        colours=OUTCOMES,
    ),
    graph(
        "Retries and ejections",
        "By reason, over all replicas; wedged is an engine that is stuck: restart that pod.",
        "opm",
        {
            "retry: {{reason}}": only(per_minute("poolgate_retries_total", _POOL, by="reason")),
            "ejected: {{reason}}": only(per_minute("poolgate_ejections_total", _POOL, by="reason")),
        },
        width=6,
        unless="none",
    ),
    graph(
        "How vLLM's answers ended",
        "abort: the caller left, or we gave up; for error and repetition read the pod's own log.",
        "reqps",
        {"{{finished_reason}}": _vllm_per_second("request_success_total", "finished_reason")},
        width=6,
        stacked=True,
    ),
    graph(
        "Turned away by vLLM",
        "By reason; the gateway takes these to another pod: if there are many, lower max_in_flight_per_pod.",
        "ops",
        {"{{reason}}": only(_vllm_per_second("admission_rejections_total", "reason"))},
        width=6,
        unless="none",
    ),
)

POOL = dashboard(
    "pool",
    "Poolgate: a pool",
    "What callers of a pool see, beside what its vLLM pods say of themselves: is it pods, line or gateway?",
    [
        JOB,
        values_of("pool", "Pool", f"poolgate_pods{{{OURS}}}", "pool", many=False),
        values_of("pods", "", _SENT, "pod"),  # hidden: it narrows the choice of models
        values_of("model", "vLLM's model", 'vllm:num_requests_running{pod=~"$pods"}', "model_name"),
        words("aliases", "Also asked for as", "Aliases and adapters of the model, with | between them."),
    ],
    _NOW,
    _POD_BY_POD,
    _SPEED,
    _FAILURES,
)
