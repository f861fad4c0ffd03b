"""What pods do before the client has a byte: it gets an answer, of this pod or another, or the truth."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager

from gateway.balancing.balancer import RETRY_FLOOR
from tests.fakes import STREAM_HEAD, Close, Die, Hang, Reset, Step, answer, chunk
from tests.raw import Answer
from tests.running import Running
from tests.scenes import says
from tests.scenes.client import Client
from tests.scenes.defences.before_the_first_byte import (
    CONNECT_DEADLINE,
    FEW_TRIES,
    FREE_CONNECTS,
    INTERIM_ANSWERS,
    JUNK_ENDS,
    KIND_OF_ANSWER,
    NO_ADDRESSES,
    NO_REDIRECTS,
    NOBODY_ASKED,
    ONE_ANSWER,
    OUR_WORDS,
    PASSED_OVER,
    QUARANTINE,
    READ_ANSWERS,
    RESPONSE_DEADLINE,
    REST,
    SECOND_TRY,
    STALE_RETRY,
    TTFT_DEADLINE,
    WHOSE_FAULT,
)
from tests.scenes.defences.discovery import EJECTION
from tests.scenes.promises import Promise
from tests.scenes.says import GOOD
from tests.scenes.scene import Without, expect, scene
from tests.scenes.stage import Pod, Stage

SECRET = b"canary-of-a-pod"
"""Stands in what must not be shown."""


def asked(pods: Sequence[Pod]) -> int:
    """How often, all together."""
    return sum(len(pod.requests) for pod in pods)


def ejected(gateway: Running) -> set[int]:
    """The ports of the pods that get no work now."""
    uids = gateway.gateway.balancer.ejected
    return {pod.port for pod in gateway.gateway.fleet.value.pods if pod.uid in uids}


async def two_pods(stage: Stage, *script: Step) -> tuple[list[Pod], Running]:
    """Alike, behind a gateway that has no connection to them."""
    pods = await stage.some_pods(2, *script)
    gateway = await stage.gateway(*pods)
    gateway.gateway.pools.close()
    return pods, gateway


async def refused(stage: Stage, said: bytes, code: str = "upstream_bad_response", **body: object) -> Answer:
    """A pod that says this, and would go on, is heard no further; no other is asked, and nothing of it is shown."""
    pods, gateway = await two_pods(stage, said, Hang)
    client = await stage.asks(gateway, **body)
    came = await client.expect(502, code)
    expect(SECRET not in came.body and SECRET.decode() not in str(came.headers), f"of {said[:80]!r} something is shown")
    expect(asked(pods) == 1, f"after {said[:80]!r} another pod was asked")
    await stage.until(lambda: any(pod.peer_left.is_set() for pod in pods), "the pod's connection is still open")
    expect(gateway.sample("poolgate_attempts_total", pool="chat", outcome="junk") == 1, "it is counted otherwise")
    return came


@scene(
    "F1",
    "A pod that never answers costs its caller the first-token deadline, and no other pod anything",
    promise=Promise.TRUTH,
    without=(
        Without(TTFT_DEADLINE, red="a silent pod is waited for"),
        Without(FEW_TRIES, red="the request was sent twice"),
    ),
)
async def silence_ends_at_the_deadline(stage: Stage) -> None:
    waiting: list[tuple[list[Pod], Client]] = []
    # vLLM sends its head at once, long before its first token; a comment is no token.
    for begun in ([], [STREAM_HEAD], [STREAM_HEAD, chunk(b": ping\n\n")]):
        pods = await stage.some_pods(2, *begun, Hang)
        waiting.append((pods, await stage.asks(await stage.gateway(*pods), stream=True)))
    await stage.until(lambda: all(asked(pods) for pods, _ in waiting), "no pod was asked")
    await stage.leap(119)
    for _, client in waiting:
        expect(not client.has_heard, f"{client.name} was told something too early")
    await stage.leap(2)
    for pods, client in waiting:
        await client.hears("a silent pod is waited for")
        await client.expect(504, "upstream_ttft_timeout", x_should_retry="false")
        expect(asked(pods) == 1, "the request was sent twice")
        (silent,) = [pod for pod in pods if pod.requests]
        await stage.until(silent.peer_left.is_set, "the pod was left at work")


@scene(
    "F1b",
    "A pod that never answers what is not a stream costs its caller ten minutes, and no other pod anything",
    promise=Promise.TRUTH,
    without=(Without(RESPONSE_DEADLINE, red="a silent pod is waited for"),),
)
async def silence_ends_at_the_deadline_of_a_whole_answer(stage: Stage) -> None:
    pods = await stage.some_pods(2, GOOD[:-9], Hang)
    await stage.gateway(*pods)
    client = await stage.asks()
    await stage.until(lambda: asked(pods), "no pod was asked")
    await stage.leap(599)
    await client.expect_silence()
    await stage.leap(2)
    await client.hears("a silent pod is waited for")
    await client.expect(504, "upstream_timeout", x_should_retry="false")
    expect(asked(pods) == 1, "the request was sent twice")


@scene(
    "F2",
    "A pod that refuses connections is passed over and soon left alone; if all do, it is said, with when to come again",
    promise=Promise.PODS,
    without=(
        Without(PASSED_OVER, red="expected 200, 503 no_ready_pod came"),
        Without(EJECTION, red="the pod was tried \\d+ times"),
    ),
)
async def a_refused_connection_costs_nothing(stage: Stage) -> None:
    refusing, *others = pods = await stage.some_pods(3)
    gateway = await stage.gateway(*pods)
    refusing.refuse()
    client = await stage.client()
    for _ in range(20):
        await client.ask()
        await client.expect(200)
    tried = gateway.sample("poolgate_retries_total", pool="chat", reason="connect")
    expect(tried == 3, f"the pod was tried {tried:g} times")
    expect(not refusing.requests, "the pod that refuses was sent a request")
    for pod in others:
        pod.refuse()
    await client.ask()
    came = await client.expect(503, "no_ready_pod")
    expect(1 <= int(came.headers["retry-after"]) <= 10, "it is not said when to come again")


@scene(
    "F2b",
    "A refused connection draws on no budget: who meets one is answered even when no second try is left",
    promise=Promise.PODS,
    without=(Without(FREE_CONNECTS, red="expected 200, 503 no_ready_pod came"),),
)
async def a_refused_connection_draws_on_no_budget(stage: Stage) -> None:
    times: Counter[bytes] = Counter()

    def script_of(sent: bytes) -> Sequence[Step]:
        """Broken at first, and then no end to it; but for the one who wants no more than an answer."""
        body = sent.partition(b"\r\n\r\n")[2]
        times[body] += 1
        return (GOOD,) if b"spends" not in body else (b"HTTP", Reset) if times[body] == 1 else (Hang,)

    pods = await stage.some_pods(3, script_of=script_of)
    gateway = await stage.gateway(*pods)
    client = await stage.client()
    for place in range(RETRY_FLOOR):
        await stage.asks(user=f"spends {place}")
        # Between two failures each pod answers somebody: none is ejected.
        for _ in pods:
            await client.ask()
            await client.expect(200)
    await stage.until(lambda: not gateway.gateway.balancer.may_retry, "the budget is not spent")
    pods[0].refuse()
    for _ in range(6):
        await client.ask()
        await client.expect(200)
    expect(gateway.sample("poolgate_retries_total", pool="chat", reason="connect"), "no connection was refused")


@asynccontextmanager
async def a_black_hole(port: int) -> AsyncIterator[None]:
    """Who listens there has no room: the kernel answers nobody who knocks."""
    with ExitStack() as stack:
        stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=0))
        for _ in range(3):
            knocking = stack.enter_context(socket.socket())
            knocking.setblocking(False)
            knocking.connect_ex(("127.0.0.1", port))
        yield


@scene(
    "F3",
    "A pod that swallows connections costs who meets it the connect deadline, once, and holds up nobody else",
    promise=Promise.PODS,
    without=(Without(CONNECT_DEADLINE, red="a connection that is not made is waited for"),),
)
async def a_swallowed_connection_is_given_up(stage: Stage) -> None:
    gone, well = await stage.some_pods(2)
    gateway = await stage.gateway(gone, well)
    gone.refuse()
    await stage.enter(a_black_hole(gone.port))
    clients = [await stage.asks() for _ in range(4)]
    for client in clients:
        await client.hears("a connection that is not made is waited for")
        await client.expect(200)
    await stage.line()
    expect([line["attempts"] for line in gateway.lines()] == [1, 1, 2, 2], "who met the other pod waited as well")
    expect(gateway.sample("poolgate_retries_total", pool="chat", reason="connect") == 2, "it is counted otherwise")


async def tried_once_more(stage: Stage, *script: Step, stream: bool = False) -> None:
    """What fails so goes to another pod; and to no third one."""
    stage.step(f"{script}")
    failing, well = pods = [await stage.pod(*script), await stage.pod(says.stream() if stream else GOOD)]
    gateway = await stage.gateway(*pods)
    gateway.gateway.pools.close()
    for _ in pods:
        await (await stage.asks(gateway, stream=stream)).expect(200)
    expect((len(failing.requests), len(well.requests)) == (1, 2), "the failing pod was not asked once")
    pods = await stage.some_pods(3, *script)
    gateway = await stage.gateway(*pods)
    gateway.gateway.pools.close()
    await (await stage.asks(gateway, stream=stream)).expect(502, "upstream_disconnected")
    expect(asked(pods) == 2, f"{asked(pods)} pods were asked, not 2")
    expect(gateway.sample("poolgate_attempts_total", pool="chat", outcome="reset") == 2, "it is counted otherwise")


@scene(
    "F4",
    "A fresh connection that a pod closes without a byte: the request goes to one more pod, and then it is told",
    promise=Promise.PODS,
    without=(
        Without(SECOND_TRY, red="expected 200, 502 upstream_disconnected came"),
        Without(FEW_TRIES, red="3 pods were asked, not 2"),
    ),
)
async def a_fresh_connection_closes_without_a_byte(stage: Stage) -> None:
    await tried_once_more(stage, Close)


@scene(
    "F5",
    "A pod that closes an idle connection as a request leaves is asked again, on a fresh one, and no caller sees it",
    promise=Promise.PODS,
    without=(Without(STALE_RETRY, red="expected 200, 502 upstream_disconnected came"),),
)
async def an_idle_connection_closes_as_the_request_leaves(stage: Stage) -> None:
    pod = await stage.pod(scripts=[[GOOD], [Close], [GOOD]])
    await stage.gateway(pod)
    client = await stage.client()
    for _ in range(2):
        await client.ask()
        await client.expect(200)
    expect(len(pod.requests) == 3, f"the pod was asked {len(pod.requests)} times, not 3")
    expect((await stage.line())["attempts"] == 2, "the second request was not sent again")


@scene(
    "F5b",
    "However close the pod's close comes to the request, no caller sees it",
    promise=Promise.PODS,
    without=(Without(STALE_RETRY, red="expected 200, 502 upstream_disconnected came"),),
)
async def an_idle_connection_closes_at_any_moment(stage: Stage) -> None:
    # After its answer the pod waits for 0 to 2 ms and closes; requests come at 0 to 2 ms.
    pod = await stage.pod(scripts=[[GOOD, place % 20 / 10_000, Close] for place in range(200)])
    await stage.gateway(pod)
    client = await stage.client()
    for place in range(150):
        await client.ask()
        await client.expect(200)
        await asyncio.sleep(place % 7 / 3_500)


@scene(
    "F6",
    "A pod that breaks off before its answer is whole: the request goes to one more pod, and then it is told",
    promise=Promise.PODS,
    without=(
        Without(SECOND_TRY, red="expected 200, 502 upstream_disconnected came"),
        Without(FEW_TRIES, red="3 pods were asked, not 2"),
    ),
)
async def a_reset_before_the_answer(stage: Stage) -> None:
    for begun in (b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\ncontent-type: app", GOOD[:-9]):
        await tried_once_more(stage, begun, Reset)
    # A stream's head is no answer yet: vLLM sends it before it begins to work.
    for ending in (Reset, Close):
        await tried_once_more(stage, STREAM_HEAD, ending, stream=True)


@scene(
    "F7",
    "A request that pods die of kills two of them, and no third",
    promise=Promise.PODS,
    without=(Without(QUARANTINE, red="expected 500 request_quarantined, 502"),),
)
async def a_poison_pill_is_put_away(stage: Stage) -> None:
    pods = await stage.some_pods(4, script_of=lambda sent: (Die,) if b"poison" in sent else (GOOD,))
    gateway = await stage.gateway(*pods)
    for _ in range(3):
        poison = await stage.asks(user="poison")
        await poison.expect(500, "request_quarantined", x_should_retry="false")
    killed = {pod.port for pod in pods if any(b"poison" in sent for sent in pod.requests)}
    expect(len(killed) == 2, f"{len(killed)} pods had the poison, not 2")
    expect(gateway.sample("poolgate_quarantined_total") == 3, "it is counted otherwise")
    for _ in range(12):
        await (await stage.asks()).expect(200)
    expect(ejected(gateway) <= killed, "a pod that lives was ejected for it")


@scene(
    "F7b",
    "A request that pods die of after their first token kills two of them, and no third",
    promise=Promise.PODS,
    without=(Without(QUARANTINE, red="expected 500 request_quarantined, 200"),),
)
async def a_slow_poison_is_put_away(stage: Stage) -> None:
    pods = await stage.some_pods(4, STREAM_HEAD + chunk(says.token()), Die)
    await stage.gateway(*pods)
    for _ in range(2):
        await (await stage.asks(stream=True)).expect_stream_error("upstream_reset")
    # The client has heard of it; that the pod does not answer its /health any more is heard a moment later.
    await stage.swept()
    await (await stage.asks(stream=True)).expect(500, "request_quarantined", x_should_retry="false")
    expect(asked(pods) == 2, f"{asked(pods)} pods died, not 2")


NO_HTTP = (
    b"NOT HTTP\r\n\r\n" + SECRET,
    SECRET + b"\r\n",
    b"\x16\x03\x01\x00\x02" + SECRET,
    b"\r\nHTTP/1.1 200 OK\r\n\r\n" + SECRET,
    b"HTTP/1.1 OK\r\n\r\n" + SECRET,
    b"HTTP/1.1 099 \r\ncontent-length: 15\r\n\r\n" + SECRET,
    b"HTTP/1.1 600 \r\ncontent-length: 15\r\n\r\n" + SECRET,
    b"HTTP/2.0 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n" + SECRET,
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n" + SECRET,
)


@scene(
    "F8",
    "What is not HTTP is told as a failure at once; nothing of it is shown, and no second pod asked",
    promise=Promise.FRONT_DOOR,
    without=(
        Without(JUNK_ENDS, red="expected 502 upstream_bad_response: client . waited"),
        Without(FEW_TRIES, red="another pod was asked"),
    ),
)
async def junk_is_no_answer(stage: Stage) -> None:
    for said in NO_HTTP:
        for stream in (False, True):
            await refused(stage, said, stream=stream)


@scene(
    "F9",
    "A pod that stops inside its head has until the first-token deadline, and is not waited for any longer",
    promise=Promise.TRUTH,
    without=(Without(TTFT_DEADLINE, red="half a head is waited for"),),
)
async def half_a_head_ends_at_the_deadline(stage: Stage) -> None:
    waiting: list[tuple[list[Pod], Client]] = []
    for begun in (b"H", b"HTTP/1.1 20", b"HTTP/1.1 102 Processing\r\n\r\n", STREAM_HEAD[:-2]):
        pods, gateway = await two_pods(stage, begun, Hang)
        waiting.append((pods, await stage.asks(gateway, stream=True)))
    await stage.until(lambda: all(asked(pods) for pods, _ in waiting), "no pod was asked")
    await stage.leap(121)
    for pods, client in waiting:
        await client.hears("half a head is waited for")
        await client.expect(504, "upstream_ttft_timeout", x_should_retry="false")
        expect(asked(pods) == 1, "the request was sent twice")


@scene(
    "F11",
    "Sixteen interim answers before the answer are dropped; a pod that sends more of them has none",
    promise=Promise.COST,
    without=(Without(INTERIM_ANSWERS, red="expected 502 upstream_bad_response, 200 came"),),
)
async def interim_answers_are_few(stage: Stage) -> None:
    interim = b"HTTP/1.1 102 Processing\r\nx: %b\r\n\r\n" % SECRET
    came = await (await stage.asks(await stage.gateway(await stage.pod(16 * interim + GOOD)))).expect(200)
    expect(SECRET not in came.body and SECRET.decode() not in str(came.headers), "an interim answer was shown")
    for count in (17, 500):
        await refused(stage, count * interim + GOOD)


@scene(
    "F12",
    "A pod's redirect is told as a failure, and nobody goes there",
    promise=Promise.FRONT_DOOR,
    without=(Without(NO_REDIRECTS, red="the other place was asked"),),
)
async def a_redirect_leads_nowhere(stage: Stage) -> None:
    inside = await stage.pod()
    there = b"location: http://127.0.0.1:%d/v1/models\r\ncontent-length: 99\r\n\r\n" % inside.port
    for status in (b"301 Moved Permanently", b"302 Found", b"303 See Other", b"307 Temporary", b"308 Permanent"):
        for stream in (False, True):
            came = await refused(
                stage, b"HTTP/1.1 %b\r\n%b%b" % (status, there, SECRET), "upstream_redirect", stream=stream
            )
            expect("location" not in came.headers, "the caller is sent there")
    await stage.swept()
    expect(not inside.asked and not inside.requests, "the other place was asked")
    expect(not inside.connections, "somebody is connected there")


@scene(
    "F13",
    "A pod that refuses our key is told as our mistake, never as the caller's",
    promise=Promise.FRONT_DOOR,
    without=(
        Without(OUR_WORDS, red="expected 502 upstream_auth, 401 .*came"),
        Without(FEW_TRIES, red="another pod was asked"),
    ),
)
async def a_refusal_of_our_key_is_ours(stage: Stage) -> None:
    key = SECRET.decode()
    for status in (b"401 Unauthorized", b"403 Forbidden"):
        for said in (says.failure(f"bad key {key}", status), answer(b'{"error":"%b"}' % SECRET, status)):
            for stream in (False, True):
                pods, gateway = await two_pods(stage, said)
                came = await (await stage.asks(gateway, stream=stream)).expect(502, "upstream_auth")
                expect(SECRET not in came.body, "what the pod said is shown")
                expect("www-authenticate" not in came.headers, "the caller is asked for another key")
                expect(asked(pods) == 1, "another pod was asked")


PRIVATE = ("/usr/lib/vllm/engine.py", "10.1.2.3:8000", "http://chat-0.pods.svc/v1", "[fd00::7]:8000", "redis-0:6379")


@scene(
    "F14",
    "A pod's 500 is told in its own words but for paths and addresses, and not tried again",
    promise=Promise.FRONT_DOOR,
    without=(
        Without(NO_ADDRESSES, red="engine.py is shown"),
        Without(FEW_TRIES, red="another pod was asked"),
    ),
)
async def a_failure_is_told_without_addresses(stage: Stage) -> None:
    told = f"CUDA error: out of memory at {', '.join(PRIVATE)} (rank 3)"
    error = says.event({"error": {"message": told, "type": "InternalServerError", "param": None, "code": 500}})
    for script, stream in (
        ((says.failure(told),), False),
        ((says.failure(told),), True),
        ((says.failure(told, b"501 Not Implemented"),), False),
        ((STREAM_HEAD + chunk(error) + says.END,), True),
    ):
        pods, gateway = await two_pods(stage, *script)
        came = await (await stage.asks(gateway, stream=stream)).expect(500, "upstream_failed")
        message = came.error["message"]
        expect(message.startswith("CUDA error: out of memory at "), f"the pod's own words are gone: {message}")
        for each in PRIVATE:
            expect(each not in message, f"{each} is shown")
        expect(asked(pods) == 1, "another pod was asked")


@scene(
    "F15",
    "500s to one caller alone are that caller's: no pod is ejected for them, and nobody else notices",
    promise=Promise.PODS,
    without=(Without(WHOSE_FAULT, red="a pod was ejected for one caller's requests"),),
)
async def one_callers_failures_are_its_own(stage: Stage) -> None:
    bad = says.failure("bad luck")
    pods = await stage.some_pods(3, script_of=lambda sent: (bad,) if b"unlucky" in sent else (GOOD,))
    gateway = await stage.gateway(*pods)
    unlucky, other = await stage.client(), await stage.client(key=gateway.other_key)
    for _ in range(20):
        await unlucky.ask(user="unlucky")
        await unlucky.expect(500, "upstream_failed")
        expect(not ejected(gateway), "a pod was ejected for one caller's requests")
    for _ in range(20):
        await unlucky.ask(user="unlucky")
        await unlucky.expect(500, "upstream_failed")
        await other.ask()
        await other.expect(200)
    expect(not ejected(gateway), "a pod was ejected for one caller's requests")
    expect(asked(pods) == 60, "something was tried again")


BUSY = answer(b"{}", b"503 Service Unavailable", more=b"retry-after: 7\r\n")


@scene(
    "F16",
    "A pod that says it is busy rests for as long as it says, five seconds at most, and a free one answers",
    promise=Promise.PODS,
    without=(
        Without(SECOND_TRY, red="expected 200, 503 overloaded came"),
        Without(REST, red="the busy pod had \\d requests"),
    ),
)
async def a_busy_pod_rests(stage: Stage) -> None:
    busy, free = await stage.pod(scripts=[[BUSY], [GOOD]]), await stage.pod()
    gateway = await stage.gateway(busy, free)
    client = await stage.client()
    for _ in range(8):
        await client.ask()
        await client.expect(200)
    expect(len(busy.requests) == 1, f"the busy pod had {len(busy.requests)} requests")
    await stage.leap(5.1)
    for _ in range(4):
        await client.ask()
        await client.expect(200)
    expect(len(busy.requests) > 1, "the pod rests for ever")
    expect(not ejected(gateway), "a busy pod was ejected")


@scene(
    "F16b",
    "If all pods are busy it is said, with the time that they need; none is ejected for it",
    promise=Promise.PODS,
    without=(Without(FEW_TRIES, red="3 pods were asked, not 2"), Without(WHOSE_FAULT, red="a busy pod was ejected")),
)
async def all_pods_are_busy(stage: Stage) -> None:
    asking: list[tuple[list[Pod], Running]] = []
    for status in (b"503 Service Unavailable", b"429 Too Many Requests"):
        pods = await stage.some_pods(3, answer(b"{}", status, more=b"retry-after: 7\r\n"))
        gateway = await stage.gateway(*pods)
        came = await (await stage.asks(gateway)).expect(503, "overloaded")
        expect(7 <= int(came.headers["retry-after"]) <= 10, "another time is told than the pods'")
        expect(asked(pods) == 2, f"{asked(pods)} pods were asked, not 2")
        asking.append((pods, gateway))
    for _ in range(3):
        await stage.leap(5.1)
        for _, gateway in asking:
            await (await stage.asks(gateway)).expect(503, "overloaded")
            expect(not ejected(gateway), "a busy pod was ejected")
    expect(all(asked(pods) == 8 for pods, _ in asking), "a pod rests for ever")


BODY = GOOD.partition(b"\r\n\r\n")[2]
LENGTH = b"content-length: %d\r\n" % len(BODY)
LINES = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
IN_TWO_WAYS = (
    LINES + LENGTH + b"transfer-encoding: chunked\r\n\r\n" + chunk(BODY) + says.END,
    LINES + b"transfer-encoding: chunked\r\n" + LENGTH + b"\r\n" + chunk(BODY) + says.END,
    LINES + LENGTH + LENGTH.replace(b": ", b": 1") + b"\r\n" + BODY,
    LINES + LENGTH + LENGTH + b"\r\n" + BODY,
    LINES + b"transfer-encoding: identity, chunked\r\n\r\n" + chunk(BODY) + says.END,
    LINES + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(BODY) + says.END,
    LINES + b"x: a\r\n b: c\r\n" + LENGTH + b"\r\n" + BODY,
    (LINES + LENGTH).replace(b"\r\n", b"\n") + b"\n" + BODY,
    LINES + b"x: a\r" + LENGTH + b"\r\n" + BODY,
    LINES + b"x : a\r\n" + LENGTH + b"\r\n" + BODY,
    LINES + b"x: a\0b\r\n" + LENGTH + b"\r\n" + BODY,
)


@scene(
    "F18",
    "An answer that could be read in two ways is none, and its connection not used again",
    promise=Promise.FRONT_DOOR,
    without=(
        Without(ONE_ANSWER, red="expected 502 upstream_bad_response, 200 came"),
        Without(JUNK_ENDS, red="expected 502 upstream_bad_response: client . waited"),
    ),
)
async def an_answer_has_one_meaning(stage: Stage) -> None:
    for said in IN_TWO_WAYS:
        await refused(stage, said)


@scene(
    "F18b",
    "What a pod sends behind its answer, or while nobody asks, is never the next caller's",
    promise=Promise.FRONT_DOOR,
    without=(Without(NOBODY_ASKED, red="somebody else's answer was given"),),
)
async def behind_an_answer_comes_nothing(stage: Stage) -> None:
    theirs, late = says.whole(SECRET.decode()), asyncio.Event()
    late.set()
    for script in ([GOOD + theirs], [GOOD, late, theirs]):
        pod = await stage.pod(scripts=[[*script, Hang], [GOOD]])
        client = await stage.asks(await stage.gateway(pod))
        await client.answer()
        await stage.swept()
        await client.ask()
        came = await client.expect(200)
        expect(SECRET not in came.body, "somebody else's answer was given")


@scene(
    "F20",
    "A 200 of another kind than was asked for is told as a failure: nobody is sent a page for an answer",
    promise=Promise.FRONT_DOOR,
    without=(Without(KIND_OF_ANSWER, red="expected 502 upstream_bad_response, 200 came"),),
)
async def a_page_is_no_answer(stage: Stage) -> None:
    for content_type in (b"text/html", b"text/plain", b"", b"application/json, text/html", b"application/xml"):
        for stream in (False, True):
            await refused(stage, answer(SECRET, content_type=content_type), stream=stream)
    await refused(stage, GOOD, stream=True)
    await refused(stage, says.stream(), stream=False)
    await refused(stage, GOOD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n", 1))


@scene(
    "F20b",
    "What a pod calls JSON is read before it is passed on",
    promise=Promise.FRONT_DOOR,
    without=(Without(READ_ANSWERS, red="expected 502 upstream_bad_response, 200 came"),),
)
async def an_answer_is_read(stage: Stage) -> None:
    for body in (SECRET, b"", b"{", b'{"a":1}x', b"[" * 100_000, b"null", b'"\xff"'):
        pods, gateway = await two_pods(stage, answer(body))
        came = await (await stage.asks(gateway)).expect(502, "upstream_bad_response")
        expect(SECRET not in came.body, "what the pod said is shown")
        expect(asked(pods) == 1, "another pod was asked")
