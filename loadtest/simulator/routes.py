"""What a request gets: vLLM's routes in the order vLLM looks at them, and the simulator's own under /sim.

The order is vLLM's: preflight, key (before routing, and only for the guarded prefixes), path, method,
handler. Which paths there are depends on what the pod's model is for; what each is served by is in `routing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec
import orjson

from loadtest.simulator import bodies, gauges, messages, refusals, upkeep
from loadtest.simulator.asked import Asked, Refused
from loadtest.simulator.connection import Exchange, ReceivedRequest
from loadtest.simulator.faults import OF_THE_WHOLE_POD, BadFault, Fault, FaultKind, fault_from_json
from loadtest.simulator.generation import Generation, Job, StreamedAnswer, WholeAnswer
from loadtest.simulator.pooling import PooledAnswer
from loadtest.simulator.routing import GENERATING, POOLING, TOLD, Generates, Pools, Wanted, told_below
from loadtest.simulator.sabotage import (
    SabotagedStream,
    SabotagedWhole,
    strike_first,
    strike_pod,
    strike_reply,
    strike_whole,
)
from loadtest.simulator.translated import (
    SabotagedTranslatedStream,
    SabotagedTranslatedWhole,
    TranslatedStream,
    TranslatedWhole,
)
from loadtest.simulator.wire import Reply

if TYPE_CHECKING:
    # A pod serves through these functions, which act on the pod: one thing in two files.
    from loadtest.simulator.pod import SimulatedPod

VERSION = b'{"version":"0.32.0"}'
METRICS_TYPE = b"text/plain; version=1.0.0; charset=utf-8"
GUARDED = ("/v1", "/v2", "/inference", "/cohere")

Page = Callable[["SimulatedPod"], Reply]


class _Slowness(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /sim/slowness`."""

    factor: float


def serve(exchange: Exchange, pod: SimulatedPod) -> None:
    request = exchange.request
    path = request.path
    if path == "/sim" or path.startswith("/sim/"):
        exchange.answer(_control(exchange, pod, path))
        return
    pod.record(request)
    refusal = _refused_before_routing(exchange, pod, path)
    generates = GENERATING[pod.settings.task].get(path)
    pools = POOLING[pod.settings.task].get(path)
    computes = generates is not None or pools is not None
    fault = pod.draw_fault(path, generates=computes) if refusal is None else None
    if refusal is not None:
        exchange.answer(refusal)
    elif generates is not None and request.method == "POST":
        _generate(exchange, pod, generates, fault)
    elif pools is not None and request.method == "POST":
        _pool(exchange, pod, pools, fault)
    elif fault is None:
        exchange.answer(_page(request, path, pod))
    elif not strike_first(fault, exchange, pod, stream=False):
        strike_reply(fault, exchange, _page(request, path, pod))


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


def _page(request: ReceivedRequest, path: str, pod: SimulatedPod) -> Reply:
    task = pod.settings.task
    if path in PAGES:
        methods = ("GET", "POST") if path == "/ping" else ("GET",)
        return PAGES[path](pod) if request.method in methods else refusals.method_not_allowed(", ".join(methods))
    act = upkeep.found(path, pod.settings)
    if act is not None and request.method != act.method:
        return refusals.method_not_allowed(act.method)
    if act is not None:
        try:
            return act.reply(request, pod)
        except Refused as refused:
            return refused.reply
    told = TOLD[task].get(path) or told_below(task, path)
    if told is not None and request.method == told.method:
        turned_away = _turned_away(pod) if told.needs_engine else None
        if turned_away is not None:
            return messages.anthropic(turned_away)  # of those only count_tokens looks at the engine
        try:
            return told.reply(request, pod.settings)
        except Refused as refused:
            return refused.reply
    if told is not None:
        return refusals.method_not_allowed(told.method)
    if path in GENERATING[task] or path in POOLING[task]:
        return refusals.method_not_allowed("POST")
    return refusals.not_found()


def _turned_away(pod: SimulatedPod) -> Reply | None:
    """What vLLM says instead of taking one more request in, if it does not."""
    if pod.engine.dead:
        return refusals.engine_dead()
    if not pod.engine.has_room_in_line:
        pod.engine.stats.rejected += 1
        return refusals.busy()
    return refusals.shut_down() if pod.stage == "draining" else None


def _health(pod: SimulatedPod) -> Reply:
    return Reply(503 if pod.stage == "engine_dead" else 200, content_type=None)


def _models(pod: SimulatedPod) -> Reply:
    settings = pod.settings
    return Reply(
        200,
        bodies.model_list(
            settings.model,
            settings.aliases,
            {name: pod.adapter_roots[name] for name in settings.lora_adapters},
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
        sleep_level=pod.sleep_level,
        max_loras=settings.max_loras,
        wall_offset=pod.wall_clock() - pod.timers.time(),
    )
    return Reply(200, text, METRICS_TYPE)


PAGES: Mapping[str, Page] = {
    "/health": _health,
    "/ping": _health,
    "/load": _load,
    "/metrics": _metrics,
    "/version": lambda pod: Reply(200, VERSION),
    "/v1/models": _models,
    "/kv_event_sources": lambda pod: Reply(200, b"{}"),
}


def _generate(exchange: Exchange, pod: SimulatedPod, route: Generates, fault: Fault | None) -> None:
    request = exchange.request
    stream = b'"stream"' in request.body
    if fault is not None and strike_first(fault, exchange, pod, stream=stream, refused=route.refused):
        return
    try:
        wanted = route.read(request, pod.settings)
    except Refused as refused:
        exchange.answer(refused.reply)
        return
    if wanted.asked.fault is not None:
        fault = wanted.asked.fault
        if strike_first(fault, exchange, pod, stream=wanted.asked.stream, refused=route.refused):
            return
    priority = _priority(request, wanted.asked)
    if priority and pod.settings.refuse_priorities:
        exchange.answer(route.refused(refusals.no_priorities(priority)))
        return
    turned_away = _turned_away(pod)
    if turned_away is not None:
        exchange.answer(route.refused(turned_away))
        return
    pod.in_flight += 1
    _generation(_job(exchange, pod, wanted, priority), pod, fault).begin()


def _priority(request: ReceivedRequest, asked: Asked) -> int:
    """The header's, else the body's. A header that is no number is ignored, as by vLLM."""
    try:
        return int(request.header("x-vllm-priority") or "")
    except ValueError:
        return asked.priority


def _job(exchange: Exchange, pod: SimulatedPod, wanted: Wanted, priority: int) -> Job:
    made_id = exchange.request.header("x-request-id") or pod.next_id()
    answer_id, dialect = wanted.shape.id_prefix + made_id, wanted.dialect
    if dialect is not None:
        own_id = made_id if dialect.takes_request_id else pod.next_id()
        answer_id = dialect.own_id or dialect.id_prefix + own_id
    identity = bodies.Identity(answer_id, int(pod.wall_clock()), wanted.asked.model)
    if dialect is not None:
        dialect.begin(identity)
    return Job(
        exchange=exchange,
        asked=wanted.asked,
        shape=wanted.shape,
        identity=identity,
        request_id=made_id.encode("latin-1") if pod.settings.request_id_headers else None,
        settings=pod.settings,
        timers=pod.timers,
        priority=priority,
        dialect=dialect,
    )


def _generation(job: Job, pod: SimulatedPod, fault: Fault | None) -> Generation:
    left, over = pod.generation_left, pod.generation_over
    stream, translated = job.asked.stream, job.dialect is not None
    if fault is None:
        kind: type[StreamedAnswer | WholeAnswer] = StreamedAnswer if stream else WholeAnswer
        if translated:
            kind = TranslatedStream if stream else TranslatedWhole
        return kind(job, pod.engine, left=left, over=over)
    sabotaged: type[SabotagedStream | SabotagedWhole] = SabotagedStream if stream else SabotagedWhole
    if translated:
        sabotaged = SabotagedTranslatedStream if stream else SabotagedTranslatedWhole
    return sabotaged(job, pod.engine, fault, pod, left=left, over=over)


def _pool(exchange: Exchange, pod: SimulatedPod, route: Pools, fault: Fault | None) -> None:
    if fault is not None and strike_first(fault, exchange, pod, stream=False):
        return
    try:
        wanted = route.read(exchange.request, pod.settings)
    except Refused as refused:
        exchange.answer(refused.reply)
        return
    if wanted.fault is not None:
        fault = wanted.fault
        if strike_first(fault, exchange, pod, stream=False):
            return
    turned_away = _turned_away(pod)
    if turned_away is not None:
        exchange.answer(turned_away)
        return
    made_id = exchange.request.header("x-request-id") or pod.next_id()

    def answer() -> None:
        reply = wanted.told(wanted.id_prefix + made_id, int(pod.wall_clock()))
        if pod.settings.request_id_headers:
            reply = reply.with_request_id(made_id.encode("latin-1"))
        if fault is None:
            exchange.answer(reply)
        elif fault.kind in OF_THE_WHOLE_POD:
            # From the loop's next turn, since the engine is in the middle of a step.
            pod.timers.call_soon(strike_pod, fault, pod)
            if fault.kind == FaultKind.ENGINE_DEATH:
                exchange.answer(refusals.engine_dead())
        else:
            strike_whole(fault, exchange, reply, exchange.answer)

    pod.in_flight += 1
    left, over = pod.generation_left, pod.generation_over
    PooledAnswer(exchange, pod.engine, wanted.prompts, answer=answer, left=left, over=over).begin()


def _control(exchange: Exchange, pod: SimulatedPod, path: str) -> Reply:
    """/sim/state, /sim/fault, /sim/slowness, /sim/pods, and /sim/pods/NAME/... for a neighbour in the same process."""
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
    if path == "/sim/slowness" and method == "POST":
        try:
            pod.set_slowness(msgspec.json.decode(exchange.request.body, type=_Slowness).factor)
        except (msgspec.MsgspecError, ValueError) as error:
            return refusals.sim_error(f'expected {{"factor": 4}}: {error}')
        return Reply(200, orjson.dumps(pod.state()))
    if path == "/sim/state":
        return refusals.method_not_allowed("GET")
    if path == "/sim/slowness":
        return refusals.method_not_allowed("POST")
    return refusals.method_not_allowed("POST, DELETE") if path == "/sim/fault" else refusals.not_found()
