"""What a request gets: vLLM's routes in the order vLLM looks at them, and the simulator's own under /sim.

The order is vLLM's: preflight, key (before routing, and only for the guarded prefixes), path, method,
handler.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

import orjson

from loadtest.simulator import asked, bodies, gauges, refusals
from loadtest.simulator.connection import Exchange
from loadtest.simulator.faults import BadFault, Fault, fault_from_json
from loadtest.simulator.generation import Generation, Job, StreamedAnswer, WholeAnswer
from loadtest.simulator.sabotage import SabotagedStream, SabotagedWhole, strike_first, strike_reply
from loadtest.simulator.settings import PodSettings
from loadtest.simulator.wire import Reply

if TYPE_CHECKING:
    # A pod serves through these functions, which act on the pod: one thing in two files.
    from loadtest.simulator.pod import SimulatedPod

VERSION = b'{"version":"0.32.0"}'
METRICS_TYPE = b"text/plain; version=1.0.0; charset=utf-8"
GUARDED = ("/v1", "/v2", "/inference", "/cohere")

Reader = Callable[[bytes, bytes | None, PodSettings], asked.Asked]
Page = Callable[["SimulatedPod"], Reply]


def serve(exchange: Exchange, pod: SimulatedPod) -> None:
    request = exchange.request
    path = request.path
    if path == "/sim" or path.startswith("/sim/"):
        exchange.answer(_control(exchange, pod, path))
        return
    pod.record(request)
    refusal = _refused_before_routing(exchange, pod, path)
    generates = path in GENERATING
    fault = pod.draw_fault(path, generates=generates) if refusal is None else None
    if refusal is not None:
        exchange.answer(refusal)
    elif generates and request.method == "POST":
        _generate(exchange, pod, path, fault)
    elif fault is None:
        exchange.answer(_page(request.method, path, pod))
    elif not strike_first(fault, exchange, pod, stream=False):
        strike_reply(fault, exchange, _page(request.method, path, pod))


def _refused_before_routing(exchange: Exchange, pod: SimulatedPod, path: str) -> Reply | None:
    request = exchange.request
    if request.method == "OPTIONS":
        if request.raw_header(b"origin") and request.raw_header(b"access-control-request-method"):
            return refusals.disallowed_origin(request.raw_header(b"access-control-request-headers"))
        return None
    key = pod.settings.api_key
    if key is None or not path.startswith(GUARDED):
        return None
    scheme, _, given = (request.header("authorization") or "").partition(" ")
    return None if scheme.lower() == "bearer" and given == key else refusals.unauthorized()


def _page(method: str, path: str, pod: SimulatedPod) -> Reply:
    methods: Collection[str]
    if path in PAGES:
        methods = ("GET", "POST") if path == "/ping" else ("GET",)
    elif path in GENERATING:
        methods = ("POST",)
    else:
        return refusals.not_found()
    return PAGES[path](pod) if method in methods and path in PAGES else refusals.method_not_allowed(", ".join(methods))


def _health(pod: SimulatedPod) -> Reply:
    return Reply(503 if pod.stage == "engine_dead" else 200, content_type=None)


def _models(pod: SimulatedPod) -> Reply:
    settings = pod.settings
    return Reply(
        200,
        bodies.model_list(
            settings.model,
            settings.aliases,
            settings.lora_adapters,
            settings.max_model_len_tokens,
            int(pod.wall_clock()),
        ),
    )


def _load(pod: SimulatedPod) -> Reply:
    count = pod.in_flight if pod.settings.server_load_tracking else 0
    return Reply(200, b'{"server_load":%d}' % count)


def _metrics(pod: SimulatedPod) -> Reply:
    settings = pod.settings
    text = gauges.exposition(
        pod.engine.stats,
        model=settings.model,
        created=pod.started_at,
        block_size_tokens=settings.block_size_tokens,
        kv_blocks=settings.kv_blocks,
        asleep=pod.engine.paused,
    )
    return Reply(200, text, METRICS_TYPE)


PAGES: Mapping[str, Page] = {
    "/health": _health,
    "/ping": _health,
    "/load": _load,
    "/metrics": _metrics,
    "/version": lambda pod: Reply(200, VERSION),
    "/v1/models": _models,
}
GENERATING: Mapping[str, tuple[Reader, bodies.Shape]] = {
    "/v1/chat/completions": (asked.read_chat, bodies.CHAT),
    "/v1/completions": (asked.read_completion, bodies.COMPLETION),
}


def _generate(exchange: Exchange, pod: SimulatedPod, path: str, fault: Fault | None) -> None:
    request = exchange.request
    read, shape = GENERATING[path]
    if fault is not None and strike_first(fault, exchange, pod, stream=b'"stream"' in request.body):
        return
    try:
        wanted = read(request.body, request.raw_header(b"content-type"), pod.settings)
    except asked.Refused as refused:
        exchange.answer(refused.reply)
        return
    if wanted.fault is not None:
        fault = wanted.fault
        if strike_first(fault, exchange, pod, stream=wanted.stream):
            return
    if pod.engine.dead:
        exchange.answer(refusals.engine_dead())
        return
    if not pod.engine.has_room_in_line:
        pod.engine.stats.rejected += 1
        exchange.answer(refusals.busy())
        return
    if pod.stage == "draining":
        exchange.answer(refusals.shut_down())
        return
    given_id = request.header("x-request-id")
    made_id = given_id or pod.next_id()
    job = Job(
        exchange=exchange,
        asked=wanted,
        shape=shape,
        identity=bodies.Identity(shape.id_prefix + made_id, int(pod.wall_clock()), wanted.model),
        request_id=made_id.encode("latin-1") if pod.settings.request_id_headers else None,
        settings=pod.settings,
        timers=pod.timers,
    )
    pod.in_flight += 1
    _generation(job, pod, fault).begin()


def _generation(job: Job, pod: SimulatedPod, fault: Fault | None) -> Generation:
    left, over = pod.generation_left, pod.generation_over
    if fault is None:
        kind = StreamedAnswer if job.asked.stream else WholeAnswer
        return kind(job, pod.engine, left=left, over=over)
    sabotaged = SabotagedStream if job.asked.stream else SabotagedWhole
    return sabotaged(job, pod.engine, fault, pod, left=left, over=over)


def _control(exchange: Exchange, pod: SimulatedPod, path: str) -> Reply:
    """/sim/state, /sim/fault, /sim/pods, and /sim/pods/NAME/state|fault for a neighbour in the same process."""
    method = exchange.request.method
    if path == "/sim/pods" and method == "GET":
        return Reply(200, orjson.dumps([each.state() for each in pod.neighbours.values()]))
    if path.startswith("/sim/pods/"):
        name, _, rest = path.removeprefix("/sim/pods/").rpartition("/")
        named = pod.neighbours.get(name)
        if named is None:
            return refusals.not_found()
        pod, path = named, f"/sim/{rest}"
    if path == "/sim/state" and method == "GET":
        return Reply(200, orjson.dumps(pod.state()))
    if path == "/sim/fault" and method == "POST":
        try:
            pod.set_fault(fault_from_json(exchange.request.body))
        except BadFault as error:
            return refusals.sim_error(str(error))
        return Reply(200, orjson.dumps(pod.state()))
    if path == "/sim/fault" and method == "DELETE":
        pod.clear_fault()
        return Reply(200, orjson.dumps(pod.state()))
    if path == "/sim/state":
        return refusals.method_not_allowed("GET")
    return refusals.method_not_allowed("POST, DELETE") if path == "/sim/fault" else refusals.not_found()
