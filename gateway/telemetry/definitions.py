"""Every metric there is, as values: its name, kind, labels, buckets, what it means and what to do when it moves.

`Metrics` makes the series of these values, and scripts/write_operations_docs.py the page that explains them, so neither
can have one that the other has not. The closed values of labels are written out here although most belong to modules
above this one, which may not be imported from here: a test holds them together.

Buckets are chosen for language models: a first token comes after milliseconds (a cached prompt on a small model) or
after minutes (a long prompt behind a queue), an answer takes up to an hour. An objective belongs on a bound, since only
there a share of requests is exact: 0.5, 1, 2.5, 5 and 10 s to a first token are bounds. So are the default deadlines:
120 s to a first token, 600 s for an answer, 3600 s for a stream, 10 s in the queue.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from gateway.core.call import Outcome
from gateway.core.fleet import EJECTED, PodState

Kind = Literal["counter", "gauge", "histogram"]

OTHER = "other"
MAX_MODELS = 200
MAX_POOLS = 200
MAX_TEAMS = 1000
MAX_ISSUED_TEAMS = 200
"""Tenants with series of their own that an issuer of tokens has named: it may know everybody. The rest are `other`."""
MAX_SPENDERS = 2000
"""Pairs of a model and a tenant that have series of their own."""

TTFT_BUCKETS = (
    0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 300,
)  # fmt: skip
DURATION_BUCKETS = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 150, 300, 600, 1200, 3600,
)  # fmt: skip
INTER_TOKEN_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
OVERHEAD_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
QUEUE_WAIT_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 60, 120, 300, 600)


class Label(NamedTuple):
    """One label of a metric, and what its values are."""

    name: str
    values: Sequence[str] = ()
    """All that it may have, where that is a closed set."""
    told: str = ""
    """What they are, where it is not; and how many at most."""


class Definition(NamedTuple):
    """One metric."""

    name: str
    """As a scrape shows it: a counter's with `_total`."""
    kind: Kind
    meaning: str
    """In a sentence: its HELP, too."""
    do: str
    """What to look at or to do when it moves; in Markdown."""
    labels: Sequence[Label] = ()
    buckets: Sequence[float] = ()
    """Upper bounds of a histogram's, in seconds; the infinite one is not among them."""
    otel: str = ""
    """The metric of OpenTelemetry's GenAI conventions that says nearly the same."""
    otel_differs: str = ""
    """In what they differ."""
    ours: bool = True
    """Whether it is counted here; the others are of prometheus_client."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """In their order."""
        return tuple(label.name for label in self.labels)


# --- labels ---------------------------------------------------------------------------------------------------

OPERATIONS = (
    "chat", "completions", "responses", "messages", "count_tokens", "embeddings", "rerank", "score", "transcriptions",
    "translations", "tokenize", "detokenize", "models", OTHER,
)  # fmt: skip
ANSWERED = (
    Outcome.COMPLETED.value,
    Outcome.UPSTREAM_FAILED.value,
    Outcome.UPSTREAM_TIMEOUT.value,
    Outcome.TRUNCATED.value,
)
"""How an attempt may end whose answer had begun."""
FAILURES = (
    "connect", "stale", "reset", "busy", "dying", "engine_dead", "silent", "sidecar", "server_error", "junk", "timeout",
    "model_gone", "refused", "abandoned",
)  # fmt: skip
RETRIED = ("connect", "stale", "reset", "busy", "dying", "engine_dead", "silent", "sidecar", "model_gone")
EJECTION_REASONS = ("consecutive", "share", "wedged", "probe")
LIMITS = ("requests_per_minute", "tokens_per_minute", "requests_per_day", "tokens_per_day", "concurrent")
DECISIONS = ("admitted", "refused", "unchecked")
LIMIT_MODES = ("memory", "redis", "local")
RELIST_REASONS = ("start", "periodic", "expired", "disconnected", "refused", "silence", "garbage", "backwards")
REJECTED_REASONS = (
    "address", "namespace", "no_pool", "port", "worker", "unreadable", "model_name", "too_many_models",
    "model_not_annotated", "model_not_in_pool",
)  # fmt: skip
RELOADED = ("applied", "refused")
TOKEN_KINDS = ("prompt", "completion", "cached")
SHED_CAUSES = ("lag", "memory")
TURNED_AWAY_CODES = ("no_ready_pod", "queue_full", "queue_timeout", "overloaded", "draining")
STATES = (*(state.value for state in PodState), EJECTED)

_MODEL = Label(
    "model", told=f"the name that was asked for, an alias too; {MAX_MODELS} at most, what is not served is `{OTHER}`"
)
_SERVED_MODEL = Label(
    "model", told=f"the name that the pod knows; {MAX_MODELS} at most, the rest together is `{OTHER}`"
)
_TENANT = Label(
    "tenant",
    told=f"the `team` of the key or the token; {MAX_TEAMS} at most, of those that tokens name {MAX_ISSUED_TEAMS}, the "
    f"rest together is `{OTHER}`",
)
_POOL = Label("pool", told=f"the pool's name; {MAX_POOLS} at most, the rest together is `{OTHER}`")
_POOL_NOW = Label("pool", told="the name of each pool that there is now")
_POD = Label("pod", told="the name of each pod that there is now")
_OPERATION = Label("operation", OPERATIONS)
_STATUS = Label("status", told="the HTTP status of the answer, `none` where none was begun")

# --- requests -------------------------------------------------------------------------------------------------

REQUESTS = Definition(
    "poolgate_requests_total",
    "counter",
    "Requests that have ended, by how they ended.",
    "Watch the share of `upstream_failed`, `upstream_timeout`, `truncated` and `internal`. The access lines of the "
    "same outcome have `code`, `pod` and `request_id`; `poolgate explain REQUEST_ID` says what happened to one. "
    "`refused` is the gateway's or a pod's no: the status tells a caller's mistake (4xx) and limit (429) from want of "
    "room (503). `client_left` in numbers: answers take longer than callers wait. `internal` is a fault of ours: see "
    "the log.",
    (_MODEL, _OPERATION, _STATUS, Label("outcome", tuple(outcome.value for outcome in Outcome))),
)
REQUEST_SECONDS = Definition(
    "poolgate_request_seconds",
    "histogram",
    "Seconds from the whole request to the last byte of its answer, whatever the outcome.",
    "Follows the length of answers: compare it with itself a day or a week ago. Longer with the same first-token time: "
    "longer answers, or slower ones (`poolgate_inter_token_seconds`).",
    (_MODEL, _OPERATION),
    DURATION_BUCKETS,
    otel="gen_ai.server.request.duration",
    otel_differs="requests that were refused are in it; `operation` is `gen_ai.operation.name` in our words",
)
TTFT = Definition(
    "poolgate_time_to_first_token_seconds",
    "histogram",
    "Seconds from the whole request to the first content of its stream; time in our queue is in it.",
    "Above the objective: first `poolgate_queue_depth` and `poolgate_queue_wait_seconds` (pods are full: more of "
    "them), then the pods' own `vllm:num_requests_waiting` and KV cache. Only one pod slow: `poolgate pods` shows "
    "which.",
    (_MODEL,),
    TTFT_BUCKETS,
    otel="gen_ai.server.time_to_first_token",
    otel_differs="streams only; the wait for a pod is in it",
)
INTER_TOKEN = Definition(
    "poolgate_inter_token_seconds",
    "histogram",
    "Mean seconds between the content events of a stream, once for each stream.",
    "Higher with more requests in flight: batches are larger; fewer requests per pod (`max_in_flight_per_pod`) or more "
    "pods. Higher at the same load: the pod's GPU, or preemptions in vLLM for want of KV cache.",
    (_MODEL,),
    INTER_TOKEN_BUCKETS,
    otel="gen_ai.server.time_per_output_token",
    otel_differs="between events, of which one may hold several tokens",
)
OVERHEAD = Definition(
    "poolgate_overhead_seconds",
    "histogram",
    "Seconds that the gateway itself took of a request with one attempt, the wait for a pod not counted.",
    "Above a few milliseconds: the process is short of CPU (`process_cpu_seconds_total` near 1 a second, "
    "`poolgate_loop_lag_seconds`): more replicas. Limits in a slow Redis are in it as well.",
    (_MODEL,),
    OVERHEAD_BUCKETS,
)
TOKENS = Definition(
    "poolgate_tokens_total",
    "counter",
    "Tokens of answered requests: of prompts, of answers, and of prompts those that the pod had cached.",
    "For bills and capacity: `poolgate usage` sums the access lines by tenant, model and day. `cached` over `prompt` "
    "is what the choice of pods is worth (pods tell it with `--enable-prompt-tokens-details`).",
    (_MODEL, Label("kind", TOKEN_KINDS), _TENANT),
    otel="gen_ai.client.token.usage",
    otel_differs="a counter, not a histogram; `prompt` is `input`, `completion` is `output`",
)
IN_FLIGHT = Definition(
    "poolgate_in_flight",
    "gauge",
    "Attempts at pods that run now, by model.",
    "The load of this replica. It grows without more requests a second: answers take longer. When it is all the "
    "room that the pods have, requests begin to wait.",
    (_SERVED_MODEL,),
)

# --- waiting and choosing -------------------------------------------------------------------------------------

QUEUE_DEPTH = Definition(
    "poolgate_queue_depth",
    "gauge",
    "Requests that wait for a pod with room now.",
    "Above 0 for minutes: more pods, or more room for each (`max_in_flight_per_pod`). At `queue_limit` callers get "
    "503 `queue_full`. Its sum over the replicas is what an autoscaler acts on; it is there with 0, too.",
    (_POOL_NOW,),
)
TURNED_AWAY = Definition(
    "poolgate_turned_away_total",
    "counter",
    "Requests that were answered with 503 because nobody could take them, by the code that they got.",
    "`no_ready_pod`: `poolgate_pods` says in which state they are. `queue_full`, `queue_timeout`: too few pods for the "
    "load. `overloaded`: the pods themselves say no; of pool `other` it is this replica, see `poolgate_shed_total`, "
    "`poolgate_connections` and `poolgate_buffered_body_bytes`. `draining`: a replica went away with callers still on "
    "it.",
    (_POOL, Label("code", TURNED_AWAY_CODES)),
)
QUEUE_WAIT = Definition(
    "poolgate_queue_wait_seconds",
    "histogram",
    "Seconds that the requests which had to wait waited for a pod, in vain or not.",
    "Near `queue_wait_seconds`: callers get 503 `queue_timeout`. Requests that found a pod at once are not in it.",
    (_POOL,),
    QUEUE_WAIT_BUCKETS,
)
ATTEMPTS = Definition(
    "poolgate_attempts_total",
    "counter",
    "Attempts at pods, by how they ended: an outcome where the answer had begun, else a failure.",
    "Divided by `poolgate_requests_total`: how often one attempt is not enough. `poolgate pods` shows at which pod.",
    (_POOL, Label("outcome", (*ANSWERED, *FAILURES))),
)
RETRIES = Definition(
    "poolgate_retries_total",
    "counter",
    "Further attempts, by what the attempt before had failed of.",
    "`connect`: pods that are not there any more; `busy`: too much for them; `silent`: pods end without "
    "`--shutdown-timeout`; `reset`, `engine_dead`, `dying`: pods die, see their logs.",
    (_POOL, Label("reason", RETRIED)),
)

# --- pods -----------------------------------------------------------------------------------------------------

PODS = Definition(
    "poolgate_pods",
    "gauge",
    "Pods by state.",
    "`ready` at 0: nobody serves the pool's models. `poolgate pods` and the status page give each pod's reason, and "
    "since when. `starting` for long: the model loads, or does not (`kubectl logs`). `ejected`: requests failed there.",
    (_POOL_NOW, Label("state", STATES)),
)
POD_IN_FLIGHT = Definition(
    "poolgate_pod_in_flight",
    "gauge",
    "Attempts of this gateway that run at a pod now.",
    "Uneven is no fault by itself: `poolgate explain REQUEST_ID` says why a request went where it went. 0 at a ready "
    "pod while others are full: its model name may be claimed by another pool (`poolgate pods`).",
    (_POOL_NOW, _POD),
)
EJECTIONS = Definition(
    "poolgate_ejections_total",
    "counter",
    "Pods that were taken out for a while, by why.",
    "The pod's logs. Again and again: it is ill, delete it. `consecutive`: three failures in a row; `share`: half of "
    "what it did lately failed; `probe`: it failed again when it was tried; `wedged`: requests wait there and nothing "
    "comes: restart it, its liveness probe will not.",
    (_POOL, Label("reason", EJECTION_REASONS)),
)
PANIC = Definition(
    "poolgate_panic",
    "gauge",
    "1 while so few pods are well that ejected ones get requests as well.",
    "What broke most of the pool at once is seldom the pods: a node, the network, a new image, a request that kills "
    "(`poolgate_quarantined_total`).",
    (_POOL_NOW,),
)
QUARANTINED = Definition(
    "poolgate_quarantined_total",
    "counter",
    "Requests that were sent to no pod any more, because two pods had died with them.",
    "The access lines with `request_quarantined` name the caller; then the crash in vLLM's log.",
)

# --- limits ---------------------------------------------------------------------------------------------------

LIMIT_DECISIONS = Definition(
    "poolgate_limit_decisions_total",
    "counter",
    "What limits decided, once for each limit that a request was measured against; of a refusal the one that refused.",
    "`refused`: the access lines with status 429 name tenant and key. `unchecked`: Redis was away and the limit says "
    "`deny`: mend Redis.",
    (Label("limit", LIMITS), Label("decision", DECISIONS)),
)
LIMIT_MODE = Definition(
    "poolgate_limit_mode",
    "gauge",
    "1 for where limits are counted now.",
    "`local` where Redis is configured: it is slow or away, and each replica keeps to its share. The status page says "
    "since when and why.",
    (Label("mode", LIMIT_MODES),),
)

# --- discovery ------------------------------------------------------------------------------------------------

DISCOVERY_STALE = Definition(
    "poolgate_discovery_stale_seconds",
    "gauge",
    "Seconds since which nothing has confirmed which pods there are; 0 while discovery works.",
    "Requests go on to the last known pods, but new ones are not seen. The log says what the API server answers: "
    "credentials, rights (`list` and `watch` on pods), the network.",
)
RELISTS = Definition(
    "poolgate_discovery_relists_total",
    "counter",
    "Full lists of pods, by why one was due.",
    "`start` and `periodic` are as it should be. Others often: the API server, or what is between, cuts watches.",
    (Label("reason", RELIST_REASONS),),
)
REJECTED = Definition(
    "poolgate_discovery_rejected_total",
    "counter",
    "Pods, and names of models, that may not be served, by why; counted when it is news.",
    "The log and the status page name the pod and say what is wrong with it.",
    (Label("reason", REJECTED_REASONS),),
)

# --- the gateway itself ---------------------------------------------------------------------------------------

CONFIG_RELOADS = Definition(
    "poolgate_config_reloads_total",
    "counter",
    "Changed files of configuration and keys, by what came of them.",
    "`refused`: see `poolgate_config_refused`.",
    (Label("result", RELOADED),),
)
CONFIG_REFUSED = Definition(
    "poolgate_config_refused",
    "gauge",
    "1 while a file holds a configuration or keys that are not in force.",
    "What was before stays in force, until a restart, which fails. `poolgate check FILE` names line, key and mend; so "
    "do the log and the status page.",
)
LOOP_LAG = Definition(
    "poolgate_loop_lag_seconds",
    "gauge",
    "Seconds that the event loop was held up for at the longest within the last minute.",
    "All streams stand still for so long. Short of CPU: see `process_cpu_seconds_total` and the container's "
    "throttling; more replicas, or a higher CPU limit. Looked at every 50 ms: a shorter stall may be missed, a longer "
    "one is told up to 50 ms too short.",
)
OVERLOAD_LEVEL = Definition(
    "poolgate_overload_level",
    "gauge",
    "Whether this replica has too much to do: 0 no, 1 turns away what can wait, 2 turns away all that is new.",
    "The status page says for want of what, `poolgate_shed_total` how much. More replicas; for memory also a higher "
    "limit, or smaller bodies (`server.max_body_bytes`).",
)
SHED = Definition(
    "poolgate_shed_total",
    "counter",
    "Requests that this replica turned away before their bodies were read, by what it was short of.",
    "`lag`: of CPU, see `poolgate_loop_lag_seconds`. `memory`: see `process_resident_memory_bytes` and "
    "`poolgate_memory_limit_bytes`.",
    (Label("cause", SHED_CAUSES),),
)
MEMORY_LIMIT = Definition(
    "poolgate_memory_limit_bytes",
    "gauge",
    "Bytes that the process may have: its container's limit, else the machine's memory; 0 where it is not known.",
    "What `process_resident_memory_bytes` is measured by: above 85 % of it requests that can wait are turned away, "
    "above 95 % all.",
)
CONNECTIONS = Definition(
    "poolgate_connections",
    "gauge",
    "Connections of clients that are open on the public port.",
    "10,000 at most, and half of `process_max_fds`: beyond it connections that are idle are closed, and when there are "
    "none newcomers get 503 `overloaded`. Many, with few requests: clients that open one for each, or an attack.",
)
BUFFERED_BODIES = Definition(
    "poolgate_buffered_body_bytes",
    "gauge",
    "Bytes of request bodies whose answers have not begun.",
    "512 MiB at most, and a quarter of `poolgate_memory_limit_bytes`: beyond it requests get 503 `overloaded`. It "
    "grows with what waits: see `poolgate_queue_depth`.",
)
ACCESS_LINES_DROPPED = Definition(
    "poolgate_access_lines_dropped_total",
    "counter",
    "Access lines that were lost, because whoever reads stdout was too slow.",
    "The node's log collector. What `poolgate usage` sums is too little by these requests; `poolgate_tokens_total` is "
    "not.",
)
LOG_LINES_DROPPED = Definition(
    "poolgate_log_lines_dropped_total",
    "counter",
    "Lines of the log that were lost, because whoever reads stderr was too slow.",
    "The node's log collector. What the log would have said stands on the status page, among the events.",
)
TRACES_LOST = Definition(
    "poolgate_traces_lost_total",
    "counter",
    "Traces that were lost: more came than could be sent, or the receiver did not take them.",
    "The log says once what the receiver answers. Too many: a smaller `tracing.sample_ratio`.",
)
BUILD_INFO = Definition(
    "poolgate_build_info",
    "gauge",
    "1, with the version that runs.",
    "Two versions for longer than a rollout takes: it is stuck.",
    (Label("version", told="one"),),
)
PROCESS = (
    Definition(
        "process_cpu_seconds_total",
        "counter",
        "CPU seconds of the process, user and system.",
        "One process uses one core: above 0.8 a second add replicas.",
        ours=False,
    ),
    Definition(
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory of the process in bytes.",
        "Some 60 MB, 20 more where pods come from Kubernetes, up to 35 more for what it believes of the pods' caches, "
        "and 10 kB for each open stream. It grows for days at the same load: a fault of ours, please report it.",
        ours=False,
    ),
    Definition(
        "process_virtual_memory_bytes",
        "gauge",
        "Virtual memory of the process in bytes.",
        "Nothing: it is not in use.",
        ours=False,
    ),
    Definition(
        "process_start_time_seconds",
        "gauge",
        "When the process started, in seconds since 1970.",
        "It changes without a rollout: the process was killed; see the container's last state (`OOMKilled`).",
        ours=False,
    ),
    Definition(
        "process_open_fds",
        "gauge",
        "Open file descriptors of the process.",
        "Near `process_max_fds` new connections fail: raise the limit, or add replicas. A stream needs two.",
        ours=False,
    ),
    Definition(
        "process_max_fds",
        "gauge",
        "How many file descriptors it may have open.",
        "What `process_open_fds` is measured by.",
        ours=False,
    ),
)

DEFINITIONS = (
    REQUESTS, REQUEST_SECONDS, TTFT, INTER_TOKEN, OVERHEAD, TOKENS, IN_FLIGHT,
    QUEUE_DEPTH, TURNED_AWAY, QUEUE_WAIT, ATTEMPTS, RETRIES,
    PODS, POD_IN_FLIGHT, EJECTIONS, PANIC, QUARANTINED,
    LIMIT_DECISIONS, LIMIT_MODE,
    DISCOVERY_STALE, RELISTS, REJECTED,
    CONFIG_RELOADS, CONFIG_REFUSED, LOOP_LAG, OVERLOAD_LEVEL, SHED, MEMORY_LIMIT, CONNECTIONS, BUFFERED_BODIES,
    ACCESS_LINES_DROPPED, LOG_LINES_DROPPED, TRACES_LOST, BUILD_INFO, *PROCESS,
)  # fmt: skip
"""All of them, in the order of the page."""
