"""What clients do to hold a place, a pod or memory: nothing is held for who does not use it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial

from gateway.edge.bounds import Bounds
from gateway.parts import THE_USUAL
from gateway.pipeline.overload import Overload
from tests.fakes import STREAM_HEAD, Hang, Reset, chunk
from tests.raw import request
from tests.scenes import says
from tests.scenes.afterwards import Footprint
from tests.scenes.client import Client
from tests.scenes.defences.clients import (
    BACK_PRESSURE,
    BODY_BUDGET,
    BODY_DEADLINE,
    BODY_RATE,
    BYTES_BEHIND,
    CANCELLATION,
    CONNECTION_COUNT,
    HALF_CLOSED_IS_CLOSED,
    HEAD_BOUNDS,
    HEAD_DEADLINE,
    JUDGED_BEFORE_100,
    LAG_PATIENCE,
    LEAVING_IS_TOLD,
    NOTHING_BEHIND,
    ONE_METHOD,
    ROOM_FOR_NEWCOMERS,
    SHEDDING,
    SMALL_READS,
    STALLED_READERS,
)
from tests.scenes.promises import Promise
from tests.scenes.scene import Without, expect, scene
from tests.scenes.stage import Stage


@scene(
    "F72",
    "A client that leaves while it waits for the first token frees the pod at once",
    promise=Promise.COST,
    without=(Without(CANCELLATION, red="the pod works on"),),
)
async def who_leaves_frees_the_pod(stage: Stage) -> None:
    pod = await stage.pod(Hang)
    await stage.gateway(pod)
    for stream in (True, False):
        pod.peer_left.clear()
        pod.requests.clear()
        client = await stage.asks(stream=stream)
        await stage.until(lambda: pod.requests, "the pod was not asked")
        client.leave()
        await stage.until(pod.peer_left.is_set, "the pod works on for nobody")
        expect((await stage.line())["outcome"] == "client_left", "it is logged as something else")


@scene(
    "F73",
    "A client that leaves inside its head or body, or behind its answer, reaches no pod, and is logged as what it was",
    promise=Promise.COST,
    without=(Without(LEAVING_IS_TOLD, red="no request was logged"),),
)
async def who_leaves_inside_a_request_has_left(stage: Stage) -> None:
    pod = await stage.pod(says.stream("a"))
    gateway = await stage.gateway(pod)

    async def left(client: Client) -> None:
        client.leave()
        await stage.until(lambda: not gateway.gateway.edge.connections, "a connection is kept for nobody")

    stage.step("inside its head: that was no request")
    client = await stage.client()
    whole = client.request(stream=True)
    client.send(whole[:40])
    await left(client)
    expect(not gateway.lines(), "half a head is logged as a request")
    stage.step("inside its body")
    client = await stage.client()
    client.send(whole[:-1])
    await stage.until(lambda: gateway.sample("poolgate_buffered_body_bytes"), "the body did not come")
    await left(client)
    expect((await stage.line())["outcome"] == "client_left", "it is logged as something else")
    expect(not pod.requests, "a pod was sent half a request")
    stage.step("behind its answer's last byte")
    client = await stage.asks(stream=True)
    await client.read_until(b"0\r\n\r\n")
    await left(client)
    expect((await stage.line())["outcome"] == "completed", "a whole answer is logged as something else")


@scene(
    "F73b",
    "A client that leaves while it waits in line, or between two tries, is sent to no pod",
    promise=Promise.COST,
    without=(Without(CANCELLATION, red="it waits on for nobody"),),
)
async def who_leaves_the_line_is_sent_nowhere(stage: Stage) -> None:
    gateway = await stage.gateway(await stage.pod(Hang), pool={"max_in_flight_per_pod": 1})
    working = await stage.asks()
    await stage.until(lambda: stage.pods[0].requests, "the pod was not asked")
    waiting = await stage.asks()
    await stage.until(lambda: gateway.sample("poolgate_queue_depth", pool="chat"), "nobody waits")
    waiting.leave()
    await stage.until(lambda: not gateway.sample("poolgate_queue_depth", pool="chat"), "it waits on for nobody")
    working.leave()
    expect((await stage.line())["outcome"] == "client_left", "it is logged as something else")
    expect(len(stage.pods[0].requests) == 1, "a request was sent for nobody")
    stage.step("between two tries: the second waits for the first pod's health")
    pods = await stage.some_pods(2, Reset)
    other = await stage.gateway(*pods)
    for pod in pods:
        pod.health = b""
    leaving = await stage.asks(other)
    await stage.until(lambda: any(b"/health" in pod.asked for pod in pods), "nobody asked whether the pod lives")
    leaving.leave()
    line = await stage.line(other)
    expect((line["outcome"], line["attempts"]) == ("client_left", 1), "it is logged as something else")
    expect(sum(len(pod.requests) for pod in pods) == 1, "a request was sent again for nobody")


READERS = 32
MOST_HELD = 128 << 10


@scene(
    "F75",
    "Clients that read a byte a second hold 128 KiB each at most, stop their pods, and are let go after half a minute",
    promise=Promise.COST,
    without=(
        Without(BACK_PRESSURE, red="bytes are held for one reader"),
        Without(SMALL_READS, red="bytes are held for one reader"),
        Without(STALLED_READERS, red="slow readers are still there"),
    ),
)
async def slow_readers_hold_little(stage: Stage) -> None:
    piece = chunk(says.token("x" * 16_000))
    pod = await stage.pod(STREAM_HEAD, *[piece] * 5000, says.END, send_buffer=65_536)  # 80 MB
    edge = (await stage.gateway(pod)).gateway.edge

    def most_held() -> int:
        open_now = [each._transport for each in edge.connections if each._transport is not None]
        return max((each.get_write_buffer_size() for each in open_now), default=0)

    def stalled() -> int:
        return sum(each.stalled for each in edge.connections)

    for _ in range(READERS):
        client = await stage.client(receive_buffer=4096)
        await client.ask(stream=True)
        await stage.until(lambda: stalled() == len(stage.clients) or most_held() > MOST_HELD, "a reader does not stall")
        expect(most_held() <= MOST_HELD, f"{most_held()} bytes are held for one reader")
    for _ in range(2):
        for client in stage.clients:
            await client.read(10)
        await stage.leap(10)
    expect(len(edge.connections) == READERS, "a reader was let go too early")
    await stage.leap(11)
    await stage.until(lambda: not edge.connections, "slow readers are still there")
    await stage.until(lambda: not pod.connections, "the pod works on")


@scene(
    "F77",
    "A client that is silent, or drips its head, is let go after ten seconds",
    promise=Promise.COST,
    without=(Without(HEAD_DEADLINE, red="the gateway to let client 0 go, it is still connected"),),
)
async def a_head_has_ten_seconds(stage: Stage) -> None:
    await stage.gateway(await stage.pod())
    silent, dripping, later = [await stage.client() for _ in range(3)]
    await later.ask()
    await later.expect(200)
    later.send(b"P")
    await dripping.drip(b"POST /v", 3)
    await silent.expect_close()
    await dripping.expect(408, "request_timeout")
    await dripping.expect_close()
    await later.expect(408, "request_timeout")
    await later.expect_close()
    await (await stage.asks()).expect(200)


@scene(
    "F77b",
    "A client that drips its body is answered 408 and let go, within seconds",
    promise=Promise.COST,
    without=(Without(BODY_RATE, red="a body that drips is waited for"),),
)
async def a_body_has_a_rate(stage: Stage) -> None:
    pod = await stage.pod()
    await stage.gateway(pod)
    client = await stage.client()
    whole = client.request()
    client.send(whole[:-6])
    await client.drip(whole[-6:-1], 3)
    await client.hears("a body that drips is waited for")
    await client.expect(408, "request_timeout")
    await client.expect_close()
    expect(not pod.requests, "the pod was sent a part of a request")


@scene(
    "F77c",
    "A body that is fast enough to be borne has two minutes all the same",
    promise=Promise.COST,
    without=(Without(BODY_DEADLINE, red="a body that drips is waited for"),),
)
async def a_body_has_a_deadline(stage: Stage) -> None:
    pod = await stage.pod()
    await stage.gateway(pod)
    client = await stage.client()
    whole = client.request(user="x" * 200_000)
    client.send(whole[:-6])
    await client.drip(whole[-6:-1], 30)
    await client.hears("a body that drips is waited for")
    await client.expect(408, "request_timeout")
    await client.expect_close()
    expect(not pod.requests, "the pod was sent a part of a request")


CROWD = 300
"""Of connections that are a nuisance. Each takes two descriptors here, and many machines give a shell 1,024."""


@scene(
    "F77d",
    "A crowd that says nothing, a byte, or one more behind an answer, holds up nobody, and is let go in ten seconds",
    promise=Promise.COST,
    without=(Without(HEAD_DEADLINE, red="connections that say nothing are still there"),),
)
async def a_crowd_of_the_slow_holds_up_nobody(stage: Stage) -> None:
    edge = (await stage.gateway(await stage.pod())).gateway.edge
    good = await stage.client()
    await good.ask()
    await good.expect(200)
    async with crowd(stage, CROWD) as slow:
        models = request(b"", key=good.key, path="/v1/models", method="GET")
        for said in ((b"", b"P", models), (b"", b"", b"G")):
            for place, each in enumerate(slow):
                each.send(said[place % 3])
            await good.ask()
            await good.expect(200)
        await stage.leap(9)
        expect(len(edge.connections) == CROWD + 1, "somebody was let go too early")
        await stage.leap(2)
        # Those who had said something were told, and had two seconds to read it.
        await stage.leap(3)
        await stage.until(lambda: len(edge.connections) == 1, "connections that say nothing are still there")
    await good.ask()
    await good.expect(200)


@asynccontextmanager
async def crowd(stage: Stage, count: int) -> AsyncIterator[list[socket.socket]]:
    """So many connections more, which nobody reads from."""
    edge, port = stage.gateways[0].gateway.edge, stage.gateways[0].port
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        already = len(edge.connections)
        for place, each in enumerate(sockets, start=already + 1):
            each.setblocking(False)
            await loop.sock_connect(each, ("127.0.0.1", port))
            if place % 50 == 0 or place == count + already:
                # No more than wait to be accepted.
                await let_in(stage, place)
        yield sockets


async def let_in(stage: Stage, count: int) -> None:
    """Wait until so many connections are there."""
    edge = stage.gateways[0].gateway.edge
    await stage.until(lambda: len(edge.connections) >= count, "they are not let in")


HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
FLOODS = {
    "headers": (HEAD + b"X-Some: %b\r\n" % (b"x" * 300) * 4000, 34_000, 431, "headers_too_large"),
    "one header": (HEAD + b"X-Some: " + b"x" * (1 << 20), 34_000, 431, "headers_too_large"),
    "a URL": (b"GET /" + b"x" * (1 << 20), 9_000, 414, "uri_too_long"),
}
"""Each, and what of it is enough: a little more than the bound."""


@scene(
    "F78",
    "A head of megabytes is refused once 32 KiB of it have come, and what follows is thrown away",
    promise=Promise.COST,
    without=(Without(HEAD_BOUNDS, red="expected 431 headers_too_large: client 0 waited"),),
)
async def a_flood_of_headers_is_cut_short(stage: Stage) -> None:
    await stage.gateway(await stage.pod())
    for told, (flood, enough, status, code) in FLOODS.items():
        stage.step(told)
        client = await stage.client()
        client.send(flood[:enough])
        await client.expect(status, code, connection="close")
        await client.expect_close()
        client.send(flood[enough:])
        await stage.leap(3)
    expect(not stage.gateways[0].gateway.edge.connections, "who floods on is still there")
    stage.step("two thousand short ones")
    client = await stage.client()
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 2000 + b"\r\n")
    await client.expect(431, "headers_too_large")
    await client.expect_close()


IDLE = 400
MOST_BYTES_EACH = 10 << 10


@scene(
    "F79",
    "Connections that are idle take 10 KiB each at most, and when they take all places, no newcomer's",
    promise=Promise.COST,
    without=(
        Without(ROOM_FOR_NEWCOMERS, red="expected 200, 503 overloaded came"),
        Without(CONNECTION_COUNT, red="connections at a time"),
    ),
)
async def idle_connections_keep_nobody_out(stage: Stage) -> None:
    # All of them come from one address, which has half of the room unless it is a proxy.
    server = {"trusted_proxies": ["127.0.0.1"]}
    edge = (await stage.gateway(await stage.pod(), bounds=Bounds(max_connections=IDLE), server=server)).gateway.edge
    before = Footprint.now().resident_bytes
    async with crowd(stage, IDLE):
        each = (Footprint.now().resident_bytes - before) // IDLE
        expect(each <= MOST_BYTES_EACH, f"an idle connection takes {each} bytes")
        await stage.leap(2)
        for _ in range(100):
            client = await stage.asks()
            await client.expect(200)
            client.leave()
        expect(len(edge.connections) <= IDLE, f"there are {len(edge.connections)} connections at a time")


BODIES = 40


@scene(
    "F81",
    "Bodies beyond the share of memory that they have together are refused with when to come again; the rest is served",
    promise=Promise.COST,
    without=(Without(BODY_BUDGET, red="bytes of bodies are held"),),
)
async def bodies_take_no_more_than_their_share(stage: Stage) -> None:
    go_on = asyncio.Event()
    pod = await stage.pod(go_on, says.GOOD)
    gateway = await stage.gateway(pod, bounds=Bounds(max_buffered_body_bytes=8 << 20))
    bodies = gateway.gateway.edge.bodies
    clients = [await stage.client(key=(gateway.key, gateway.other_key)[each % 2]) for each in range(BODIES)]
    for client in clients:
        await client.ask(prompt_cache_key="x" * (1 << 20))
    await stage.until(lambda: sum(client.has_heard for client in clients) + len(pod.requests) == BODIES, "bodies wait")
    expect(bodies.held <= 8 << 20, f"{bodies.held} bytes of bodies are held")
    # Of each caller three: a caller has half.
    expect(len(pod.requests) == 6, f"{len(pod.requests)} of them are served")
    pod.requests.clear()
    refused = [client for client in clients if client.has_heard]
    for client in refused:
        came = await client.expect(503, "overloaded", connection="close")
        expect(1 <= int(came.headers["retry-after"]) <= 5, "it says nothing sensible of when to come again")
    go_on.set()
    for client in set(clients) - set(refused):
        await client.expect(200)
    expect(bodies.held == 0, f"{bodies.held} bytes are held for nobody")
    await (await stage.asks()).expect(200)


@contextmanager
def held_up(stage: Stage, seconds: float) -> Iterator[None]:
    """The loop is late by so much, again and again."""

    async def late() -> None:
        while True:
            stage.clock.ahead += seconds
            await asyncio.sleep(0.05)

    again = asyncio.create_task(late())
    try:
        yield
    finally:
        again.cancel()


async def reached(stage: Stage, level: int) -> None:
    """Wait until the gateway sees that it has so much to do."""
    overload = stage.gateways[0].gateway.overload
    await stage.until(lambda: overload.level == level, f"it does not see that it has too much to do: {level}")


TASK = {"X-OpenWebUI-Task": "title_generation"}


@scene(
    "F82",
    "A loop that was held up once tells it, turns nobody away, and answers its probes",
    promise=Promise.COST,
    without=(Without(LAG_PATIENCE, red="expected 200, 503 overloaded came"),),
)
async def one_stall_turns_nobody_away(stage: Stage) -> None:
    gateway = await stage.gateway(await stage.pod(), parts=THE_USUAL._replace(overload=partial(Overload)))
    meanwhile = await stage.asks()
    await stage.leap(2)
    await meanwhile.expect(200)
    await stage.until(lambda: gateway.sample("poolgate_loop_lag_seconds") > 1.8, "nobody sees that it was held up")
    await stage.swept()
    await (await stage.asks()).expect(200)
    expect(gateway.sample("poolgate_overload_level") == 0, "one stall is taken for too much to do")


@scene(
    "F82b",
    "A loop that is held up for long turns away first what can wait, then all that is new; what runs goes on",
    promise=Promise.COST,
    without=(Without(SHEDDING, red="it does not see that it has too much to do"),),
)
async def who_is_late_for_long_takes_less(stage: Stage) -> None:
    go_on = asyncio.Event()
    pod = await stage.pod(scripts=[[STREAM_HEAD, chunk(says.token()), go_on, REST], [says.GOOD]])
    overload = partial(Overload, leave_seconds=0.0)
    await stage.gateway(pod, parts=THE_USUAL._replace(overload=overload))
    running = await stage.asks(stream=True)
    begun = await running.read_until(b'"a"')
    for level, seconds, statuses in ((1, 0.3, (200, 503, 200)), (2, 1.2, (503, 503, 200))):
        with held_up(stage, seconds):
            await reached(stage, level)
            for place, status in enumerate(statuses):
                client = await stage.client()
                listing = request(b"", key=client.key, path="/v1/models", method="GET")
                client.send((client.request(), client.request(headers=TASK), listing)[place])
                await client.expect(status, "overloaded" if status == 503 else None)
        await reached(stage, 0)
    go_on.set()
    whole = begun + await running.read_until(b"[DONE]")
    expect(b'"error"' not in whole, "a stream that ran was ended")
    await (await stage.asks()).expect(200)


REST = b"".join(map(chunk, (says.finish(), says.usage(), says.DONE))) + says.END


@scene(
    "F83",
    "A client that closes its half behind its request has left: the pod is free at once, and nothing is answered",
    promise=Promise.COST,
    without=(Without(HALF_CLOSED_IS_CLOSED, red="the pod works on"),),
)
async def who_half_closes_has_left(stage: Stage) -> None:
    pod = await stage.pod(Hang)
    await stage.gateway(pod)
    client = await stage.asks(stream=True)
    await stage.until(lambda: pod.requests, "the pod was not asked")
    client.half_close()
    await stage.until(pod.peer_left.is_set, "the pod works on for nobody")
    await client.expect_close()
    expect((await stage.line())["outcome"] == "client_left", "it is logged as something else")


@scene(
    "F84",
    "A body that would be refused is not asked for: 100 comes for what is taken, and never before a refusal",
    promise=Promise.FRONT_DOOR,
    without=(Without(JUDGED_BEFORE_100, red="was told to go on"),),
)
async def what_is_refused_is_not_asked_for(stage: Stage) -> None:
    pod = await stage.pod()
    await stage.gateway(pod, server={"max_body_bytes": 4096})
    for headers, status, code in (
        ({"Content-Length": "4097"}, 413, "body_too_large"),
        ({"Content-Length": "9" * 19}, 413, "body_too_large"),
        ({"Authorization": "Bearer sk-none"}, 401, "invalid_api_key"),
        ({"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
        ({"Expect": "a-cake"}, 417, "expectation_failed"),
    ):
        stage.step(f"{status} {code}")
        client = await stage.client()
        head = client.request(headers={"Expect": "100-continue"} | headers).partition(b"\r\n\r\n")[0]
        client.send(head + b"\r\n\r\n")
        came = await client.expect(status, code, connection="close")
        expect(came.interim == 0, f"{client.name} was told to go on before the {status}")
        await client.expect_close()
    stage.step("what is taken")
    client = await stage.client()
    head, dash, body = client.request(headers={"Expect": "100-continue"}).partition(b"\r\n\r\n")
    client.send(head + dash)
    expect(await client.read(100) == b"HTTP/1.1 100 Continue\r\n\r\n", "it was not told to go on")
    expect(not pod.requests, "a pod was asked without a body")
    client.send(body)
    await client.expect(200)


@scene(
    "F86",
    "A body that is longer or shorter than it said is answered or refused as one request, and never read as another",
    promise=Promise.FRONT_DOOR,
    without=(Without(NOTHING_BEHIND, red="it is still connected"),),
)
async def a_body_of_another_length_is_one_request(stage: Stage) -> None:
    pod = await stage.pod()
    await stage.gateway(pod)
    stage.step("longer: a second request stands behind the first")
    client = await stage.client()
    client.send(client.request() + client.request(user="smuggled"))
    await client.expect(200)
    await client.expect_close()
    expect(len(pod.requests) == 1, "what stood behind a body was served")
    stage.step("longer: what is no request comes behind the answer")
    client = await stage.client()
    client.send(client.request())
    await client.expect(200)
    client.send(b'{"the rest": "of the body"}')
    await client.expect(400, "invalid_request", connection="close")
    await client.expect_close()
    stage.step("shorter, and then an end")
    client = await stage.client()
    client.send(client.request()[:-1])
    client.half_close()
    await client.expect_close()
    expect((await stage.line())["outcome"] == "client_left", "it is logged as something else")
    expect(len(pod.requests) == 2, "a pod was sent a part of a request")


@scene(
    "F86b",
    "However much a client sends behind its request, little of it is read before the answer has ended",
    promise=Promise.COST,
    without=(Without(BYTES_BEHIND, red="bytes were read"),),
)
async def little_is_read_behind_a_request(stage: Stage) -> None:
    go_on = asyncio.Event()
    pod = await stage.pod(go_on, says.GOOD)
    gateway = await stage.gateway(pod)
    client = await stage.asks()
    await stage.until(lambda: pod.requests, "the pod was not asked")
    (connection,) = gateway.gateway.edge.connections
    client.send(b"x" * (20 << 20))
    await stage.until(lambda: connection._behind_bytes > 65_536, "nothing is read")
    await stage.leap(0)
    await stage.leap(0)
    read = connection._behind_bytes
    expect(read <= 65_536 + 256_000, f"{read} bytes were read behind a request")
    go_on.set()
    await client.expect(200)
    await client.expect_close()


@scene(
    "F87",
    "A route has one method: another is 405 with the one that it has, whatever a header says, and nothing is sent back",
    promise=Promise.FRONT_DOOR,
    without=(Without(ONE_METHOD, red="expected 405 method_not_allowed, 400 invalid_json came"),),
)
async def a_route_has_one_method(stage: Stage) -> None:
    pod = await stage.pod()
    await stage.gateway(pod)
    for method, path, status, code, allow in (
        ("DELETE", "/v1/chat/completions", 405, "method_not_allowed", "POST"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed", "POST"),
        ("HEAD", "/v1/chat/completions", 405, None, "POST"),
        ("TRACE", "/v1/chat/completions", 405, "method_not_allowed", "POST"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed", "POST"),
        ("POST", "/v1/models", 405, "method_not_allowed", "GET"),
        ("OPTIONS", "*", 404, "not_found", None),
        ("CONNECT", "127.0.0.1:1", 400, "invalid_request", None),
        ("get", "/v1/models", 400, "invalid_request", None),
    ):
        stage.step(f"{method} {path}")
        client = await stage.client()
        headers = {"X-HTTP-Method-Override": "POST", "X-Canary": "canary"}
        client.send(request(b"", key=client.key, path=path, method=method, headers=headers))
        came = await client.expect(status, code)
        expect(came.headers.get("allow") == allow, f"it allows {came.headers.get('allow')}, not {allow}")
        expect(b"canary" not in came.body, "what was sent is sent back")
    expect(not pod.requests, "a pod was asked")
