"""Several things at once, and what lasts: clocks, files and keys that change while requests run."""

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Container, Mapping, MutableMapping, Sequence
from pathlib import Path
from random import Random
from time import thread_time
from typing import Any

import yaml

from gateway.limits.keys import digest, new_key
from gateway.parts import THE_USUAL
from gateway.telemetry.metrics import Metrics
from tests.discovering import appear
from tests.fakes import STREAM_HEAD, Close, Hang, Reset, Step, answer, chunk
from tests.running import NO_LIMITS, Running
from tests.scenes import says
from tests.scenes.client import Client
from tests.scenes.defences.before_the_first_byte import REST
from tests.scenes.defences.compound import (
    ALL_OR_NOTHING,
    KEYS_AT_THE_DOOR,
    MONOTONIC,
    OFF_THE_LOOP,
    ONE_TEXT,
    RETRY_BUDGET,
    SHORT_LINE,
)
from tests.scenes.defences.discovery import BRACKETS
from tests.scenes.defences.limits import REDIS_DEADLINE
from tests.scenes.defences.mid_stream import CUTS_ARE_TOLD, NO_NEW_BEGINNING, STREAM_JUDGEMENT
from tests.scenes.limits import AS_USUAL
from tests.scenes.paced import Paced, Rush, waiting
from tests.scenes.promises import Promise
from tests.scenes.scene import Without, expect, scene
from tests.scenes.stage import PATIENCE_SECONDS, Stage

HOUR = 3600.0


@scene(
    "F109",
    "A clock that somebody sets an hour on, two back and on again changes no deadline, no limit and no stream",
    promise=Promise.COST,
    without=(Without(MONOTONIC, red="expected 429 rate_limit_exceeded, 200 came"),),
)
async def the_clock_jumps(stage: Stage) -> None:
    go_on = asyncio.Event()
    scripts: list[list[Step]] = [[Hang], _stream_that_waits(go_on), [says.GOOD]]
    pod = await stage.pod(scripts=scripts)
    gateway = await stage.gateway(pod, limits={"default": NO_LIMITS | {"requests_per_minute": len(scripts)}})
    waits = await stage.asks(stream=True)
    await stage.until(lambda: pod.requests, "the pod was not asked")
    streams = await stage.asks(stream=True)
    await stage.until(lambda: streams.has_heard, "the stream did not begin")
    other = await stage.asks()
    await other.expect(200)
    for jump in (HOUR, -2 * HOUR, HOUR):
        stage.wall.ahead += jump
        stage.step(f"the clock jumps by {jump:g} s")
        await waits.expect_silence()
        await other.ask()
        await other.expect(429, "rate_limit_exceeded")
    go_on.set()
    await streams.expect_stream()
    await stage.leap(121)
    await waits.expect(504, "upstream_ttft_timeout")
    await stage.line()
    took = [line["duration_ms"] for line in gateway.lines()]
    expect(all(0 <= each < 150_000 for each in took), f"requests are said to have taken {took} ms")


def _stream_that_waits(go_on: asyncio.Event) -> list[Step]:
    """In its middle."""
    rest = b"".join(map(chunk, (says.finish(), says.usage(), says.DONE)))
    return [STREAM_HEAD + chunk(says.token()), go_on, rest + says.END]


def _keys(*keys: str, **more: object) -> str:
    """A keys file with these."""
    entries = [{"id": key[6:14], "sha256": digest(key.encode()), "team": "tests"} | more for key in keys]
    return yaml.safe_dump({"keys": entries})


def _looked(gateway: Running) -> float:
    """How many changes of its files it has taken or refused."""
    results = ("applied", "refused")
    return sum(gateway.sample("poolgate_config_reloads_total", result=result) for result in results)


async def _change(stage: Stage, gateway: Running, file: Path, content: bytes | None) -> None:
    """What stands in a file is this now, or it is gone; and the gateway has seen it."""
    before = _looked(gateway)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    await stage.until(lambda: _looked(gateway) > before, "a change was not seen")


@scene(
    "F112",
    "A file that cannot be used changes nothing, and the gateway says so; the next good one takes effect",
    promise=Promise.FRONT_DOOR,
    without=(Without(ALL_OR_NOTHING, red="expected 200, 404 model_not_found came"),),
)
async def an_invalid_file_changes_nothing(stage: Stage) -> None:
    pod = await stage.pod()
    ((_, key), (_, new), folder) = (new_key(), new_key(), stage.folder())
    stage.secrets |= {key, new}
    settings, keys = folder / "poolgate.yaml", folder / "keys.yaml"
    config: dict[str, Any] = {
        "discovery": {"pods": [{"url": pod.url, "pool": "chat"}]},
        "models": {"alias": {"to": [{"model": "m"}]}},
    }
    good = yaml.safe_dump(config).encode()
    settings.write_bytes(good)
    keys.write_text(_keys(key))
    gateway = await stage.gateway(file=settings, keys_file=keys)
    client = await stage.client(key=key)
    config["models"]["another"] = config["models"]["alias"]
    better = yaml.safe_dump(config)
    for content in (
        b"models: [",
        better.encode() + b"server: {prot: 1}\n",
        better.encode() + b"server: {port: much}\n",
        better.encode() + b"models: {}\n",
        better.encode().replace(b"- model: m", b"- {}"),
        b"\xff\xfe\x00",
        b"- a\n",
        None,
    ):
        await _change(stage, gateway, settings, content)
        await _refused(stage, gateway, client)
    for content in (b"keys: [", b"", f"keys: [{{id: {key[6:14]}, sha256: {key}, team: tests}}]".encode(), None):
        await _change(stage, gateway, keys, content)
        await _refused(stage, gateway, client)
    await _change(stage, gateway, settings, better.encode())
    await _change(stage, gateway, keys, _keys(key, new).encode())
    expect(gateway.sample("poolgate_config_refused") == 0, "it says that a file is refused")
    client = await stage.client(key=new)
    await client.ask(model="another")
    await client.expect(200)


async def _refused(stage: Stage, gateway: Running, client: Client) -> None:
    """Nothing has changed but what the gateway says of itself."""
    await client.ask(model="alias")
    await client.expect(200)
    await client.ask(model="another")
    await client.expect(404, "model_not_found")
    expect(gateway.sample("poolgate_config_refused") == 1, "it does not say that a file is refused")
    applied = gateway.sample("poolgate_config_reloads_total", result="applied")
    expect(applied == 0, "what cannot be used is said to be in force")


@scene(
    "F114",
    "Pods with IPv6 addresses, or with one of each family, are asked like any other; where they may live is judged too",
    promise=Promise.DISCOVERY,
    without=(Without(BRACKETS, red="is not named as HTTP names it"),),
)
async def pods_of_either_family(stage: Stage) -> None:
    server = await stage.api_server()
    six, dual, outside = await stage.pod(host="::1"), await stage.pod(), await stage.pod()
    appear(server, "six", six, ip="::1")
    appear(server, "dual", dual).become_ready("127.0.0.1", "::1")
    appear(server, "outside", outside, ip="fd00::1")
    networks = ("127.0.0.0/8", "::1/128")
    gateway = await stage.gateway_in(server, networks=networks, pool={"policy": "round_robin"})
    client = await stage.client()
    for _ in range(4):
        await client.ask()
        await client.expect(200)
    names = [answer.headers["x-poolgate-pod"] for answer in client.answers]
    expect(set(names) == {"six", "dual"}, f"{sorted(set(names))} were asked")
    expect(b"\r\nhost: [::1]:%d\r\n" % six.port in six.requests[0].lower(), "the pod is not named as HTTP names it")
    refused = [each.name for each in gateway.gateway.fleet.value.refused]
    expect(refused == ["outside"], f"{refused} are refused")
    written = await stage.gateway(six)
    await (await stage.asks(written)).expect(200)


@scene(
    "F115",
    "When a key is exchanged its streams go on to their ends, it opens nothing more, and the new one opens at once",
    promise=Promise.TRUTH,
    without=(Without(KEYS_AT_THE_DOOR, red="a stream ended with its key"),),
)
async def a_key_is_exchanged(stage: Stage) -> None:
    go_on = asyncio.Event()
    pod = await stage.pod(script_of=lambda sent: _stream_that_waits(go_on) if b"streams" in sent else (says.GOOD,))
    ((_, old), (_, new)) = (new_key(), new_key())
    stage.secrets |= {old, new}
    file = stage.folder() / "keys.yaml"
    file.write_text(_keys(old))
    limits = {"default": NO_LIMITS | {"concurrent": 4}}
    gateway = await stage.gateway(pod, keys_file=file, limits=limits)
    streams = [await stage.client(key=old) for _ in range(3)]
    for client in streams:
        await client.ask(stream=True, user="streams")
    await stage.until(lambda: all(client.has_heard for client in streams), "a stream did not begin")
    steps = {_keys(old, new): (200, 200), _keys(old, disabled=True): (401, 401), _keys(new): (401, 200)}
    for content, statuses in steps.items():
        await _change(stage, gateway, file, content.encode())
        for key, status in zip((old, new), statuses, strict=True):
            client = await stage.client(key=key)
            await client.ask()
            await client.expect(status)
    expect(gateway.gateway.pipeline.active == len(streams), "a stream ended with its key")
    go_on.set()
    for client in streams:
        await client.expect_stream()


SEED = 106
NOBODY = "a request is answered by nobody"
BEGUN = STREAM_HEAD + chunk(says.token())
FAULTS: dict[str, tuple[tuple[Step, ...], ...]] = {
    "stream": (
        (Close,),
        (Reset,),
        (Hang,),
        (b"what is this?\r\n\r\n",),
        (says.failure("no"),),
        (BEGUN, Close),
        (BEGUN, Reset),
        (BEGUN, Hang),
        (BEGUN, b"zz\r\n"),
        (BEGUN + says.END,),
        (BEGUN + chunk(says.DONE) + says.END,),
        (BEGUN + chunk(says.event({"error": {"message": "no", "code": 500}})) + says.END,),
    ),
    "whole": (
        (Close,),
        (Reset,),
        (Hang,),
        (says.GOOD[:-9], Close),
        (answer(b'{"cho'),),
        (says.failure("no"),),
    ),
}
"""What may befall an answer, by its kind."""
SOUND = {"stream": (says.stream(),), "whole": (says.GOOD,)}


@scene(
    "F106",
    "Whatever befalls some of the answers, at random and all at once, no invariant is broken",
    promise=Promise.TRUTH,
    without=(
        Without(STREAM_JUDGEMENT, red="I1 scene-.*ended without an end mark"),
        Without(CUTS_ARE_TOLD, red="I2 scene-.*a clean end"),
        Without(NO_NEW_BEGINNING, red="I[13] scene-"),
    ),
)
async def faults_at_random(stage: Stage) -> None:
    chance = Random(SEED)
    hanging: set[str] = set()

    def drawn(sent: bytes) -> Sequence[Step]:
        caller, attempt = sent.partition(b'"user": "')[2][:4].decode(), _attempt_of(sent)
        own, kind = Random(f"{SEED} {caller} {attempt}"), "stream" if b'"stream": true' in sent else "whole"
        script = own.choice(FAULTS[kind]) if own.random() < 0.6 else SOUND[kind]
        if script[-1] is Hang and attempt != "1":
            return SOUND[kind]
        if script[-1] is Hang:
            hanging.add(caller)
        return script

    pods = await stage.some_pods(4, script_of=drawn)
    await stage.gateway(*pods)
    for turn in range(8):
        (ill := chance.choice(pods)).die()
        asked: dict[str, Client] = {}
        for place in range(12):
            caller = f"u{turn}{place:02}"
            asked[caller] = await stage.asks(stream=chance.random() < 0.7, user=caller)
        await _heard_but(stage, asked, hanging)
        for caller in chance.sample(sorted(asked), 3):
            asked.pop(caller).leave()
        await ill.start()
        for _ in range(3):
            # What has come since the last look is seen first, then the silence behind it.
            stage.sweep(601)
            await stage.turns()
        for client in asked.values():
            await client.answer()
        expect(not (broken := stage.watch.broken_so_far), f"afterwards: invariants are broken: {broken[:5]}")


async def _heard_but(stage: Stage, asked: Mapping[str, Client], hanging: Container[str]) -> None:
    """Wait until each of these callers has heard something, or its pod says nothing, or it waits for a pod."""

    def heard() -> bool:
        others = [caller for caller, each in asked.items() if not each.has_heard and caller not in hanging]
        return len(others) <= waiting(stage)

    await stage.until(heard, NOBODY)


def _attempt_of(sent: bytes) -> str:
    """Its number, as the pod is told it."""
    return sent.lower().partition(b"x-request-id: ")[2].partition(b"\r\n")[0].rpartition(b"-")[2].decode()


AT_ONCE, STEPS, PODS = 12, 2, 2
CAPACITY = PODS * AT_ONCE // STEPS
"""What the pods can answer in a step."""
REPLICAS = 2


@scene(
    "F107",
    "When Redis is lost in a roll-out under twice the load, pods answer 80 % of what they can, and all is well later",
    promise=Promise.COST,
    without=(
        Without(SHORT_LINE, red="it is over, and still there are|of what they can"),
        Without(REDIS_DEADLINE, red="requests wait for what is no pod"),
    ),
)
async def redis_is_lost_in_a_roll_out(stage: Stage) -> None:
    valkey = await stage.valkey()
    pods = [await stage.enter(Paced(f"pod {n}", stage.watch, at_once=AT_ONCE, steps=STEPS)) for n in range(PODS)]
    rules = [{"per": "key", "requests_per_day": 700}]
    limits = {"redis_url": valkey.url, "replicas": REPLICAS, "default": NO_LIMITS, "rules": rules}
    pool = {"max_in_flight_per_pod": AT_ONCE // REPLICAS, "queue_limit": AT_ONCE}

    async def replica() -> Running:
        return await stage.gateway(*pods, limits=limits, pool=pool, tenant={"key_id": "shared"}, parts=AS_USUAL)

    rush = Rush(stage, pods, patience_steps=6)
    rush.rotation += [await replica(), await replica()]
    await stage.until(lambda: all(each.gateway.limits.mode == "redis" for each in stage.gateways), "Redis is not used")
    for _ in range(8):
        await rush.step(2 * CAPACITY)
    stage.step("Redis stands still")
    valkey.pause()
    answered = 0
    for turn in range(8):
        if turn in (1, 4):
            stage.step("a replica is replaced")
            rush.rotation.append(await replica())
            rush.rotation.pop(0).gateway.edge.closing = True
        answered += (await rush.step(2 * CAPACITY))["answered"]
    share = answered / (8 * CAPACITY)
    expect(share >= 0.8, f"pods answered {share:.0%} of what they can")
    stage.step("Redis goes on, and callers are three quarters of what pods can answer")
    valkey.resume()
    for _ in range(5):
        await rush.step(CAPACITY * 3 // 4)
    for _ in range(5):
        came = await rush.step(CAPACITY * 3 // 4)
        expect(not came["refused"] and not came["lost"], f"it is over, and still there are {dict(came)}")
    expect(not waiting(stage), "it is over, and somebody waits")
    old = [each.gateway.pipeline.active for each in stage.gateways if each not in rush.rotation]
    expect(not any(old), f"those that were replaced still have {old}")
    told = "Redis is not used again"
    await stage.until(lambda: all(each.gateway.limits.mode == "redis" for each in rush.rotation), told)
    attempts, asked = sum(pod.received for pod in pods), len(stage.clients)
    expect(attempts <= asked, f"{asked} requests were sent {attempts} times")
    for _ in range(STEPS):
        await rush.step(0)


BUSY = says.failure("busy", b"503 Service Unavailable")


def _attempts(stage: Stage) -> int:
    return sum(len(pod.requests) for pod in stage.pods)


@scene(
    "F108",
    "While all pods are busy, and every caller tries again as SDKs do, pods get a tenth more than was let in, at most",
    promise=Promise.COST,
    without=(Without(REST, red="for 1?.. that were let in"),),
)
async def every_caller_tries_again(stage: Stage) -> None:
    well_at = stage.clock() + 10
    await stage.some_pods(4, script_of=lambda sent: (BUSY if stage.clock() < well_at else says.GOOD,))
    await stage.gateway(*stage.pods)
    due = {await stage.client(): stage.clock() for _ in range(40)}
    asked: set[Client] = set()
    admitted = 0
    well: set[Client] = set()
    while len(well) < len(due):
        for client, at in due.items():
            if at <= stage.clock() and client not in asked | well:
                await client.ask()
                asked.add(client)
                admitted += 1
        await stage.until(lambda: sum(each.has_heard for each in asked) + waiting(stage) == len(asked), NOBODY)
        for client in [each for each in asked if each.has_heard]:
            asked.remove(client)
            came = await client.answer()
            if came.status == 200:
                well.add(client)
            else:
                expect(came.status == 503 and "x-should-retry" not in came.headers, f"{came.status} came")
                due[client] = stage.clock() + float(came.headers["retry-after-ms"]) / 1000
        attempts = _attempts(stage)
        expect(attempts <= 1.1 * admitted + 3, f"pods got {attempts} requests for {admitted} that were let in")
        expect(stage.clock() < well_at + 10, "pods are well, and callers are still refused")
        stage.sweep(0.5)


@scene(
    "F108b",
    "When one pod of four turns busy under all it has, a tenth of what runs is tried again at once, and no more",
    promise=Promise.COST,
    without=(Without(RETRY_BUDGET, red="250 requests for 200"),),
)
async def a_tenth_is_tried_again(stage: Stage) -> None:
    turns, go_on = asyncio.Event(), asyncio.Event()
    busy = await stage.pod(turns, BUSY)
    gateway = await stage.gateway(busy, *await stage.some_pods(3, go_on, says.GOOD))
    clients = [await stage.asks() for _ in range(200)]
    await stage.until(lambda: _attempts(stage) == 200, "pods were not asked")
    turns.set()
    (uid,) = [pod.uid for pod in gateway.gateway.fleet.value.pods if pod.port == busy.port]
    await stage.until(lambda: not gateway.gateway.balancer.in_flight(uid), "the pod has not answered")
    await stage.until(
        lambda: gateway.gateway.balancer.active == _attempts(stage) - len(busy.requests), "pods were not asked"
    )
    attempts = _attempts(stage)
    expect(attempts <= 1.1 * 200 + 3, f"pods got {attempts} requests for 200 that were let in")
    go_on.set()
    came = Counter([(await client.answer()).status for client in clients])
    expect(came == {200: 170, 503: 30}, f"there came {dict(came)}")


MODELS = 160
SCRAPERS = 50


@scene(
    "F111",
    "Fifty scrapers of ten thousand series cost one rendering a second, and the loop turns all the while",
    promise=Promise.COST,
    without=(Without(ONE_TEXT, red=r"in 1 s it was rendered \d+ times"), Without(OFF_THE_LOOP, red="held up for")),
)
async def fifty_scrapers(stage: Stage) -> None:
    # Without its defences as well: nothing is waited for that does not come.
    stage.patience = PATIENCE_SECONDS
    names = [f"model-{place}" for place in range(MODELS)]
    lists = [json.dumps({"data": [{"id": name} for name in names[place::4]]}).encode() for place in range(4)]
    pods = [await stage.pod(models=each) for each in lists]
    gateway = await stage.gateway(*pods, parts=THE_USUAL._replace(metrics=_Counting))
    client = await stage.client()
    for name in names:
        await client.ask(model=name)
        await client.expect(200)
    metrics = gateway.gateway.metrics
    assert isinstance(metrics, _Counting)
    # The collector of this test's garbage would hold up whichever thread it falls to.
    gc.disable()
    watching = asyncio.create_task(_longest_turn(over := asyncio.Event()))
    try:
        for times in (1, 2):
            lines = await _scraped_by_all(stage, gateway, metrics, times)
            expect(len(metrics.costs) == times, f"in {times} s it was rendered {len(metrics.costs)} times")
            expect(len(lines) == SCRAPERS and min(lines) > 10_000, f"scrapers have {lines} lines")
            stage.clock.ahead += 1
    finally:
        gc.enable()
        over.set()
        held, cost = await watching, min(metrics.costs)
    expect(held < cost / 2, f"the loop was held up for {held / cost:.0%} of a rendering")


class _Counting(Metrics):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.costs: list[float] = []
        """The seconds of CPU of each rendering."""

    def exposition(self) -> bytes:
        began = thread_time()
        text = super().exposition()
        self.costs.append(thread_time() - began)
        return text


async def _longest_turn(until: asyncio.Event) -> float:
    """The most CPU that the loop's thread has taken from one turn to the next."""
    longest, before = 0.0, thread_time()
    while not until.is_set():
        await asyncio.sleep(0)
        longest, before = max(longest, thread_time() - before), thread_time()
    return longest


async def _scraped_by_all(stage: Stage, gateway: Running, metrics: _Counting, most: int) -> list[int]:
    """How many lines each was given. If more is rendered than that, they are not waited for."""
    scrapes = [asyncio.create_task(_scraped(gateway)) for _ in range(SCRAPERS)]

    def over() -> bool:
        return len(metrics.costs) > most or all(each.done() for each in scrapes)

    await stage.until(over, "a scraper waits for the metrics")
    for each in scrapes:
        each.cancel()
    return [came for came in await asyncio.gather(*scrapes, return_exceptions=True) if isinstance(came, int)]


async def _scraped(gateway: Running) -> int:
    """How many lines `/metrics` has. A scraper's own work is none of the gateway's."""
    lines = 0

    async def hears(told: MutableMapping[str, Any]) -> None:
        nonlocal lines
        lines += told.get("body", b"").count(b"\n")

    scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": [], "query_string": b""}
    await gateway.gateway.ops(scope, asyncio.Future, hears)
    return lines
