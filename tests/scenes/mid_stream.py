"""What pods do to a stream whose beginning the client has: it is told what happened, in the stream."""

import asyncio
import json
import re
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from gateway.parts import THE_USUAL
from gateway.pipeline.forward import Forwarder
from gateway.pipeline.relay import StreamRelay
from tests.fakes import STREAM_HEAD, Close, Hang, Reset, Step, chunk
from tests.raw import Answer
from tests.running import NO_LIMITS, Running
from tests.scenes import says
from tests.scenes.client import Client
from tests.scenes.defences.mid_stream import (
    BYTES_UNCHANGED,
    CUTS_ARE_TOLD,
    EACH_CHOICE,
    ESTIMATED_USAGE,
    EVENT_BOUND,
    EVENT_BUDGET,
    IDLE_ANEW,
    IDLE_DEADLINE,
    JUNK_IS_LEFT,
    NO_NEW_BEGINNING,
    ONE_ERROR,
    PLAUSIBLE_USAGE,
    POD_ERRORS,
    SETTLEMENT,
    SILENT_COMMENTS,
    STREAM_JUDGEMENT,
    UNMEASURED_ENDS,
    WHOLE_EVENTS,
)
from tests.scenes.promises import Promise
from tests.scenes.scene import Without, expect, scene
from tests.scenes.stage import Stage


class Spoken(NamedTuple):
    """What the streams of one operation are made of."""

    asked: dict[str, Any]
    begun: bytes
    """Its events up to a first piece of the answer."""
    rest: tuple[bytes, ...]
    """Those that follow: only the last one makes it whole."""
    broken: bytes
    """A pod's own error."""
    told: re.Pattern[bytes]
    """How an error of ours ends it; in the group is what it says."""
    mark: bytes = b""
    """What follows an error."""

    @property
    def whole(self) -> bytes:
        """What a client gets of a whole one, which did not ask for usage."""
        return self.begun + b"".join(each for each in self.rest if each != says.usage())

    def with_usage(self, told: object) -> tuple[bytes, ...]:
        """The events behind the beginning, with this usage in them; None: with none."""
        if told is None:
            return tuple(_USAGE.sub(b"", each) for each in self.rest if each != says.usage())
        usage = b',"usage":' + json.dumps(told).encode()
        return tuple(_USAGE.sub(usage, each) for each in self.rest)


_USAGE = re.compile(rb',"usage":\{[^}]*\}')


def _named(name: str, **more: Any) -> bytes:
    return b"event: %b\n" % name.encode() + says.event({"type": name} | more)


CHAT = Spoken(
    {},
    says.token(),
    (says.finish(), says.usage(), says.DONE),
    says.event({"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}}),
    re.compile(rb'data: (\{"error":.*\})\n\ndata: \[DONE\]\n\n'),
    says.DONE,
)
MESSAGES = Spoken(
    {"path": "/v1/messages"},
    _named("message_start", message={"role": "assistant", "content": []})
    + _named("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"}),
    (
        _named("message_delta", delta={"stop_reason": "end_turn"}, usage={"input_tokens": 3, "output_tokens": 2}),
        _named("message_stop"),
    ),
    _named("error", error={"type": "api_error", "message": "EngineCore encountered an issue."}),
    re.compile(rb'event: error\ndata: (\{"type":"error","error":.*\})\n\n'),
)
RESPONSES = Spoken(
    {"path": "/v1/responses"},
    _named("response.created", response={"status": "in_progress"})
    + _named("response.output_text.delta", content_index=0, delta="a"),
    (
        _named("response.output_text.done", text="a"),
        _named(
            "response.completed", response={"status": "completed", "usage": {"input_tokens": 3, "output_tokens": 2}}
        ),
    ),
    _named("error", code="server_error", message="EngineCore encountered an issue.", param=None),
    re.compile(rb'event: error\ndata: (\{"type":"error","code":.*\})\n\n'),
)
ALL_SPOKEN = (CHAT, MESSAGES, RESPONSES)


async def _begins(
    stage: Stage, spoken: Spoken, *script: Step, head: bytes = STREAM_HEAD, pods: int = 1
) -> tuple[Running, Client]:
    """A pod sends the beginning of a stream and, when that has come, goes on with the script."""
    framed = chunk(spoken.begun) if head is STREAM_HEAD else spoken.begun
    has_come = asyncio.Event()
    gateway = await stage.gateway(*await stage.some_pods(pods, head + framed, has_come, *script))
    client = await stage.client(gateway)
    await client.ask(stream=True, **spoken.asked)
    await _let_come(stage, gateway, spoken.begun.count(b"\n\n"))
    has_come.set()
    return gateway, client


async def _let_come(stage: Stage, gateway: Running, events: int) -> None:
    """Wait until so many events of its running streams have come."""
    await stage.until(lambda: _passed_on(gateway) >= events, f"event {events} did not come")


def _passed_on(gateway: Running) -> int:
    return sum(getattr(relay, "events", 0) for relay in gateway.gateway.forwarder._running)


async def _expect_told(client: Client, spoken: Spoken, code: str, *more: bytes) -> None:
    """All that the pod said, as it was and once; one event that tells the truth in the operation's words; the end."""
    came = await client.answer()
    before = b"".join((spoken.begun, *more))
    expect(came.status == 200, f"expected a stream that ends with {code}, {came.status} came")
    expect(came.body.startswith(before), f"what the pod said is not as it was: {came.body[:300]!r}")
    ending = came.body[len(before) :]
    found = spoken.told.fullmatch(ending)
    expect(found, f"expected one error event behind what the pod said, there is {ending[:300]!r}")
    told = json.loads(found[1]) if found else {}
    error = told.get("error", told)
    expect(error["code"] == code, f"expected {code}, {error['code']} was told")
    expect(error["message"], "the error has no message")
    expect(told.get("sequence_number") in (None, before.count(b"\n\n")), "the error event is numbered otherwise")
    expect(came.clean, "the error was told, but the body has no end of its own")


async def _expect_logged(stage: Stage, gateway: Running, outcome: str, code: str) -> None:
    line = await stage.line(gateway)
    found = line["outcome"], line["code"]
    expect(found == (outcome, code), f"it is logged as {found}, not {(outcome, code)}")


@scene(
    "F22",
    "A stream that ends cleanly, but without a finish reason, ends with an error event, not as if it were whole",
    promise=Promise.TRUTH,
    without=(Without(STREAM_JUDGEMENT, red="ends with upstream_truncated, its error events are \\[\\]"),),
)
async def an_end_without_a_finish_is_no_end(stage: Stage) -> None:
    begun = STREAM_HEAD + chunk(says.token())
    for ending in (says.END, chunk(says.DONE) + says.END, chunk(says.usage()) + says.END):
        pod = await stage.pod(begun, ending)
        gateway = await stage.gateway(pod)
        client = await stage.asks(gateway, stream=True)
        came = await client.expect_stream_error("upstream_truncated")
        expect(came.events[0] == says.token(), "the pod's own event is not as it was")
        expect((await stage.line(gateway))["outcome"] == "truncated", "it is logged as something else")


@scene(
    "F22b",
    "A stream without its closing event is not whole, whatever came before it, in any operation",
    promise=Promise.TRUTH,
    without=(Without(STREAM_JUDGEMENT, red="expected one error event behind what the pod said, there is b''"),),
)
async def only_the_closing_event_ends_a_stream(stage: Stage) -> None:
    for spoken in ALL_SPOKEN:
        for count in range(len(spoken.rest)):
            more = spoken.rest[:count]
            gateway, client = await _begins(stage, spoken, *map(chunk, more), says.END)
            await _expect_told(client, spoken, "upstream_truncated", *(each for each in more if each != says.usage()))
            await _expect_logged(stage, gateway, "truncated", "upstream_truncated")
        _, client = await _begins(stage, spoken, *map(chunk, spoken.rest), says.END)
        expect((await client.expect(200)).body == spoken.whole, "a whole stream is not as it was")


UNMEASURED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


@scene(
    "F23",
    "A stream that is measured by nothing but its pod's close is whole only with its closing event",
    promise=Promise.TRUTH,
    without=(
        Without(STREAM_JUDGEMENT, red="expected one error event behind what the pod said, there is b''"),
        Without(WHOLE_EVENTS, red="expected one error event behind what the pod said, there is b'(data|event): "),
    ),
)
async def a_close_is_no_end(stage: Stage) -> None:
    for spoken in ALL_SPOKEN:
        for cut in (len(spoken.rest[0]) // 2, len(spoken.rest[0]), 0):
            shown = spoken.rest[0] if cut == len(spoken.rest[0]) else b""
            gateway, client = await _begins(stage, spoken, spoken.rest[0][:cut], Close, head=UNMEASURED)
            await _expect_told(client, spoken, "upstream_truncated", shown)
            await stage.line(gateway)
        _, client = await _begins(stage, spoken, *spoken.rest, Close, head=UNMEASURED)
        expect((await client.expect(200)).body == spoken.whole, "a whole stream is not as it was")


@scene(
    "F23b",
    "An answer that is too large to be held, and measured by nothing but its pod's close, is given no clean end",
    promise=Promise.TRUTH,
    without=(Without(UNMEASURED_ENDS, red="the answer has a clean end"),),
)
async def a_close_is_no_end_of_a_large_answer(stage: Stage) -> None:
    body = says.whole("x" * 3_000_000).partition(b"\r\n\r\n")[2]
    pod = await stage.pod(UNMEASURED.replace(b"text/event-stream", b"application/json") + body[:-5], Close)
    await stage.gateway(pod)
    client = await stage.asks()
    came = await client.answer()
    expect(came.status == 200 and body.startswith(came.body), "what came is not what the pod said")
    expect(not came.clean, "the answer has a clean end")
    expect((await stage.line())["outcome"] == "truncated", "it is logged as something else")


@scene(
    "F24",
    "A pod that closes inside a stream is told in the stream, and nothing of an unfinished event is shown",
    promise=Promise.TRUTH,
    without=(
        Without(CUTS_ARE_TOLD, red="expected one error event behind what the pod said, there is b''"),
        Without(WHOLE_EVENTS, red="expected one error event behind what the pod said, there is b'(data|event): "),
    ),
)
async def a_close_inside_a_chunk_is_told(stage: Stage) -> None:
    for spoken in ALL_SPOKEN:
        framed = chunk(spoken.rest[0])
        for cut in (len(framed) // 2, 1, 0, len(framed) - 4, len(framed) - 1):
            shown = spoken.rest[0] if cut == len(framed) - 1 else b""
            gateway, client = await _begins(stage, spoken, framed[:cut], Close)
            await _expect_told(client, spoken, "upstream_truncated", shown)
            await _expect_logged(stage, gateway, "truncated", "upstream_truncated")


@scene(
    "F25",
    "A connection that breaks inside a stream is told, and the request is not sent again: no text comes twice",
    promise=Promise.TRUTH,
    without=(
        Without(CUTS_ARE_TOLD, red="expected one error event behind what the pod said, there is b''"),
        Without(NO_NEW_BEGINNING, red="the request was sent 2 times"),
    ),
)
async def what_has_begun_is_not_begun_again(stage: Stage) -> None:
    for spoken in ALL_SPOKEN:
        gateway, client = await _begins(stage, spoken, Reset, pods=2)
        await _expect_told(client, spoken, "upstream_reset")
        await _expect_logged(stage, gateway, "truncated", "upstream_reset")
        sent = sum(len(pod.requests) for pod in stage.pods[-2:])
        expect(sent == 1, f"the request was sent {sent} times")


STREAMS_EACH = 200
AT_ONCE = 60
"""So many wait to be taken at the most: a process that does not get its turn takes none, and its line is not long."""
VICTIM = """
import asyncio
from tests.fakes import STREAM_HEAD, Hang, ScriptedPod, chunk
from tests.scenes import says

async def main():
    async with ScriptedPod([[STREAM_HEAD + chunk(says.token("a")), Hang]]) as pod:
        print(pod.url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


class Victim(NamedTuple):
    """A pod that is a process of its own: it begins streams, and never goes on."""

    url: str
    process: asyncio.subprocess.Process


@asynccontextmanager
async def _victim() -> AsyncIterator[Victim]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", VICTIM, stdout=PIPE)
    try:
        assert process.stdout is not None
        yield Victim((await process.stdout.readline()).decode().strip(), process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@scene(
    "F26",
    "A pod that is killed with 200 streams: each of them is told of it, at once; those of other pods do not feel it",
    promise=Promise.TRUTH,
    without=(Without(CUTS_ARE_TOLD, red="200 streams were not told of their pod's end"),),
)
async def a_killed_pod_ends_its_own_streams_only(stage: Stage) -> None:
    victim: Victim = await stage.enter(_victim())
    go_on = asyncio.Event()
    begun, rest = STREAM_HEAD + chunk(says.token("a")), (chunk(says.token("b")), chunk(says.finish()), chunk(says.DONE))
    pods = await stage.some_pods(2, begun, go_on, *rest, says.END)
    gateway = await stage.gateway(victim, *pods, pool={"max_in_flight_per_pod": STREAMS_EACH})
    while len(stage.clients) < 3 * STREAMS_EACH:
        for _ in range(AT_ONCE):
            await stage.asks(path="/v1/chat/completions", stream=True)
        await stage.until(lambda: _passed_on(gateway) == len(stage.clients), "some streams have not begun")
    victim.process.kill()
    await stage.until(lambda: gateway.gateway.pipeline.active == 2 * STREAMS_EACH, "the victim's streams do not end")
    go_on.set()
    whole = b"".join((says.token("a"), says.token("b"), says.finish(), says.DONE))
    ends = Counter([_ending_of(await client.answer(), whole) for client in stage.clients])
    expect(ends["told"] == STREAMS_EACH, f"{STREAMS_EACH - ends['told']} streams were not told of their pod's end")
    expect(ends["whole"] == 2 * STREAMS_EACH, f"of the others {ends['whole']} are whole")
    await stage.line()
    outcomes = {line["outcome"]: 0 for line in gateway.lines()}
    for outcome in outcomes:
        outcomes[outcome] = int(gateway.sample(REQUESTS, outcome=outcome, **OF_STREAMS))
    expect(outcomes == {"truncated": STREAMS_EACH, "completed": 2 * STREAMS_EACH}, f"counted are {outcomes}")
    expect([len(pod.requests) for pod in pods] == [STREAMS_EACH] * 2, "the others were sent more")


REQUESTS, OF_STREAMS = "poolgate_requests_total", {"model": "m", "operation": "chat", "status": "200"}


def _ending_of(came: Answer, whole: bytes) -> str:
    """How a stream ended of which all have the same text."""
    if came.body == whole:
        return "whole"
    told = CHAT.told.fullmatch(came.body.removeprefix(says.token("a")))
    code = json.loads(told[1])["error"]["code"] if told else ""
    # Which of them depends on whether the kernel had bytes for the process that were not read.
    return "told" if code in ("upstream_truncated", "upstream_reset") and came.clean else "broken"


@scene(
    "F27",
    "A pod that falls silent after the first token has sixty seconds, and its client is told",
    promise=Promise.TRUTH,
    without=(Without(IDLE_DEADLINE, red="a pod that fell silent is waited for"),),
)
async def silence_inside_a_stream_ends(stage: Stage) -> None:
    begun = [(spoken, *await _begins(stage, spoken, Hang)) for spoken in ALL_SPOKEN]
    await stage.swept()
    await stage.leap(59)
    expect(all(gateway.gateway.pipeline.active for _, gateway, _ in begun), "it was ended too early")
    await stage.leap(1.5)
    ended = [gateway.gateway.pipeline for _, gateway, _ in begun]
    await stage.until(lambda: not any(each.active for each in ended), "a pod that fell silent is waited for")
    for pod, (spoken, gateway, client) in zip(stage.pods, begun, strict=True):
        await _expect_told(client, spoken, "upstream_stalled")
        await _expect_logged(stage, gateway, "upstream_timeout", "upstream_stalled")
        await stage.until(pod.peer_left.is_set, "the pod was left at work")


@scene(
    "F27b",
    "Comments are no sign of life: a pod that sends nothing else is silent",
    promise=Promise.TRUTH,
    without=(Without(SILENT_COMMENTS, red="a pod that sends comments is waited for"),),
)
async def comments_are_silence(stage: Stage) -> None:
    turn = asyncio.Event()
    gateway, client = await _begins(stage, CHAT, turn, chunk(b": ping\n\n"), Hang)
    await stage.swept()
    await stage.leap(50)
    turn.set()
    (relay,) = gateway.gateway.forwarder._running
    await stage.until(lambda: isinstance(relay, StreamRelay) and relay.sent > 1, "the comment did not come")
    await stage.leap(11)
    await stage.until(lambda: not gateway.gateway.pipeline.active, "a pod that sends comments is waited for")
    await _expect_told(client, CHAT, "upstream_stalled", b": keep-alive\n")


@scene(
    "F28",
    "A pod that drips a token in fifty seconds is slow, and its answer comes whole, however long it takes",
    promise=Promise.TRUTH,
    without=(Without(IDLE_ANEW, red="the stream was ended after 2 tokens"),),
)
async def slow_is_not_silent(stage: Stage) -> None:
    turns = [asyncio.Event() for _ in range(4)]
    drips: list[Step] = [step for turn in turns for step in (turn, chunk(says.token("b")))]
    rest = map(chunk, CHAT.rest)
    gateway, client = await _begins(stage, CHAT, *drips, *rest, says.END)
    for place, turn in enumerate(turns):
        await _let_come(stage, gateway, 1 + place)
        await stage.leap(50)
        expect(gateway.gateway.pipeline.active, f"the stream was ended after {1 + place} tokens")
        turn.set()
    whole = await client.expect_stream()
    expect(whole.body.count(b'"content"') == 1 + len(turns), "some tokens are missing")
    await _expect_logged(stage, gateway, "completed", "")


@scene(
    "F29",
    "A pod's own error inside its stream is passed on once and as it is, ours is not added, and it counts as a failure",
    promise=Promise.TRUTH,
    without=(
        Without(ONE_ERROR, red="the stream is not what the pod said"),
        Without(POD_ERRORS, red=r"it is logged as \('completed', ''\)"),
    ),
)
async def a_pods_own_error_is_its_last_word(stage: Stage) -> None:
    for spoken in ALL_SPOKEN:
        marked = (chunk(spoken.mark),) if spoken.mark else ()
        for script in ((*marked, says.END), (says.END,), (Close,), (Reset,)):
            has_come = asyncio.Event()
            gateway, client = await _begins(stage, spoken, chunk(spoken.broken), has_come, *script)
            await _let_come(stage, gateway, spoken.begun.count(b"\n\n") + 1)
            has_come.set()
            came = await client.answer()
            said = spoken.begun + spoken.broken + spoken.mark
            expect(came.body == said and came.clean, f"the stream is not what the pod said: {came.body[-300:]!r}")
            await _expect_logged(stage, gateway, "upstream_failed", "upstream_failed")


@scene(
    "F29b",
    "A pod that breaks its streams with errors of its own is ejected like one that breaks",
    promise=Promise.PODS,
    without=(Without(POD_ERRORS, red="the pod that fails is healthy"),),
)
async def a_pod_that_reports_errors_is_sick(stage: Stage) -> None:
    broken = await stage.pod(STREAM_HEAD, *map(chunk, (CHAT.begun, CHAT.broken, CHAT.mark)), says.END)
    await stage.gateway(broken, *await stage.some_pods(2, says.stream()))
    balancer, fleet = stage.gateways[0].gateway.balancer, stage.gateways[0].gateway.fleet.value
    for _ in range(9):
        await (await stage.asks(stream=True)).answer()
        await stage.line()
    (uid,) = [pod.uid for pod in fleet.pods if pod.port == broken.port]
    state = balancer.health_of(uid).state
    expect(state == "ejected", f"the pod that fails is {state}")
    expect(len(broken.requests) == 3, f"the pod that fails was asked {len(broken.requests)} times")


LIES = {
    "no number": b"zz\r\nnonsense\r\n",
    "too small": b"3\r\n" + says.token("b") + b"\r\n",
    "too small by one": b"%x\r\n" % (len(says.token("b")) - 1) + says.token("b") + b"\r\n",
    "negative": b"-1\r\n" + says.token("b") + b"\r\n",
    "in another notation": b"0x20\r\n" + says.token("b") + b"\r\n",
    "more than there is": b"fffffffffffffffff\r\n" + says.token("b") + b"\r\n",
    "none": b"\r\n" + says.token("b") + b"\r\n",
    "no line": b"20\n" + says.token("b") + b"\r\n",
    "an answer": says.GOOD,
}


@scene(
    "F30",
    "A pod that lies about a chunk's size is told as broken, and its connection is not used again",
    promise=Promise.TRUTH,
    without=(
        Without(CUTS_ARE_TOLD, red="expected one error event behind what the pod said, there is b''"),
        Without(JUNK_IS_LEFT, red="the connection is kept"),
    ),
)
async def what_stops_being_http_is_told(stage: Stage) -> None:
    for spoken in ALL_SPOKEN:
        for name, lie in LIES.items():
            stage.step(name)
            gateway, client = await _begins(stage, spoken, lie, asyncio.Event())
            (relay,) = gateway.gateway.forwarder._running
            connection = relay.connection
            assert connection is not None
            await _expect_told(client, spoken, "upstream_failed")
            await _expect_logged(stage, gateway, "upstream_failed", "upstream_failed")
            await stage.turns()
            expect(connection._transport is None, f"{name}: the connection is kept")


@scene(
    "F30b",
    "A chunk that is shorter than its size says is told as a cut",
    promise=Promise.TRUTH,
    without=(Without(CUTS_ARE_TOLD, red="expected one error event behind what the pod said, there is b''"),),
)
async def a_chunk_that_never_comes_is_a_cut(stage: Stage) -> None:
    for spoken in ALL_SPOKEN:
        for size in (0x7FFFFFFF, len(spoken.rest[0]) + 1):
            gateway, client = await _begins(stage, spoken, b"%x\r\n" % size + spoken.rest[0], Close)
            await _expect_told(client, spoken, "upstream_truncated", spoken.rest[0])
            await stage.line(gateway)


MEGABYTE = 1_000_000
MOST_HELD = (1 << 20) + (256 << 10)
"""An unfinished event's bound, and one read of a pod's socket."""


@scene(
    "F31",
    "An event of 1 MB passes as it is; one of 3 MB ends its stream with an error, once 1 MiB of it waits",
    promise=Promise.COST,
    without=(Without(EVENT_BOUND, red="bytes of one event are held"),),
)
async def an_event_has_a_bound(stage: Stage) -> None:
    for spoken in ALL_SPOKEN:
        long = spoken.begun.replace(b'"a"', b'"%b"' % (b"x" * MEGABYTE))
        _, client = await _begins(
            stage, spoken, chunk(long[:400_000]), chunk(long[400_000:]), *map(chunk, spoken.rest), says.END
        )
        whole = await client.expect(200)
        expect(whole.body == spoken.begun + long + spoken.whole[len(spoken.begun) :], "a long event is not as it was")
    for spoken in ALL_SPOKEN:
        gateway, client = await _begins(stage, spoken, chunk(b"data: "), *[chunk(b"x" * MEGABYTE)] * 3, Hang)
        forwarder = gateway.gateway.forwarder
        held = 0
        while gateway.gateway.pipeline.active and held <= MOST_HELD:
            held = max(held, forwarder.max_tail_bytes - forwarder._budget.left)
            await asyncio.sleep(0)
        expect(held <= MOST_HELD, f"{held} bytes of one event are held")
        await _expect_told(client, spoken, "upstream_failed")
        await _expect_logged(stage, gateway, "upstream_failed", "upstream_failed")
        expect(forwarder._budget.left == forwarder.max_tail_bytes, "what was held is not given back")
    at_first = await stage.gateway(await stage.pod(STREAM_HEAD + chunk(b"data: " + b"x" * 3 * MEGABYTE), Hang))
    await (await stage.asks(at_first, stream=True)).expect(502, "upstream_bad_response")


class _Small(Forwarder):
    """A gateway that may hold little, in the proportions of a full one."""

    max_tail_bytes = 2 << 20


@scene(
    "F31b",
    "All streams together hold so much of unfinished events: the one that passes it is ended, the others go on",
    promise=Promise.COST,
    without=(Without(EVENT_BUDGET, red="bytes of unfinished events are held"),),
)
async def all_events_together_have_a_bound(stage: Stage) -> None:
    long = says.token("x" * 900_000)
    has_come = asyncio.Event()
    events: list[Step] = [chunk(long[:-2]), has_come, chunk(long[-2:]), *map(chunk, CHAT.rest)]
    pod = await stage.pod(STREAM_HEAD + chunk(CHAT.begun), *events, says.END)
    gateway = await stage.gateway(pod, parts=THE_USUAL._replace(forwarder=_Small))
    forwarder = gateway.gateway.forwarder
    full = forwarder._budget.left

    def held() -> int:
        return full - forwarder._budget.left

    for count in (1, 2):
        await stage.asks(stream=True)
        await stage.until(lambda: held() >= count * 899_000, "no event is held")  # noqa: B023  # called at once
    third = await stage.asks(stream=True)
    await stage.until(lambda: third.has_heard, "the third stream has not begun")
    await stage.until(lambda: gateway.gateway.pipeline.active == 2, f"{held()} bytes of unfinished events are held")
    await _expect_told(third, CHAT, "upstream_failed")
    has_come.set()
    for client in stage.clients[:2]:
        whole = await client.expect_stream()
        expect(long in whole.body, "a long event is not as it was")
    expect(forwarder._budget.left == full, "what was held is not given back")


ODD = 'data: {"choices":[{"index":0,"delta":{"content":"é€𝄞"},"finish_reason":null}]}\r\n\r\n'.encode()
BROKEN = b'data: {"choices":[{"index":0,"delta":{"content":"\xff\xc3\x28\xed\xa0\x80"},"finish_reason":null}]}\n\n'


@scene(
    "F32",
    "A stream is byte for byte the pod's, wherever it is cut on the way, and whatever its text is",
    promise=Promise.TRUTH,
    without=(Without(BYTES_UNCHANGED, red="the stream is not the pod's"),),
)
async def bytes_stay_as_they_are(stage: Stage) -> None:
    events = [says.token(), ODD, BROKEN, says.token("é"), says.finish(), says.usage(), says.DONE]
    sent = b"".join(events)
    body = b"".join(map(chunk, events))
    scripts: list[list[Step]] = [[STREAM_HEAD, *_apart(body), says.END]]
    inside = range(len(events[0]), sum(map(len, events[:3])))
    scripts += ([STREAM_HEAD, chunk(sent[:place]), 0.0, chunk(sent[place:]), says.END] for place in inside)
    pod = await stage.pod(scripts=scripts)
    await stage.gateway(pod)
    client = await stage.client()
    for _ in scripts:
        await client.ask(stream=True, stream_options={"include_usage": True})
        came = await client.expect_stream()
        expect(came.body == sent, "the stream is not the pod's")
    expect((await stage.line())["usage_source"] == "reported", "its usage was not read")


def _apart(data: bytes) -> list[Step]:
    """Byte by byte, with a turn of the loop after each."""
    return [step for place in range(len(data)) for step in (data[place : place + 1], 0.0)]


@scene(
    "F32b",
    "A stream whose events bear names is byte for byte the pod's too, with any line ends",
    promise=Promise.TRUTH,
    without=(Without(BYTES_UNCHANGED, red="the stream is not the pod's"),),
)
async def named_events_stay_as_they_are(stage: Stage) -> None:
    for spoken in (MESSAGES, RESPONSES):
        odd = spoken.begun.replace(b'"a"', b'"\xc3\xa9\xff\xf0\x9d\x84\x9e"')
        for line_end in (b"\n", b"\r\n", b"\r"):
            events = b"".join((odd, *spoken.rest)).replace(b"\n", line_end)
            pod = await stage.pod(STREAM_HEAD, *_apart(b"".join(map(chunk, (events[:150], events[150:])))), says.END)
            gateway = await stage.gateway(pod)
            client = await stage.client(gateway)
            await client.ask(stream=True, **spoken.asked)
            came = await client.expect(200)
            expect(came.body == events, "the stream is not the pod's")
            expect((await stage.line(gateway))["usage_source"] == "reported", "its usage was not read")


@scene(
    "F36",
    "A stream whose usage never comes is counted by what was seen of it, and the rest of its reservation comes back",
    promise=Promise.LIMITS,
    without=(
        Without(ESTIMATED_USAGE, red="it took 0 tokens"),
        Without(SETTLEMENT, red="it took 2.. tokens"),
    ),
)
async def what_is_not_told_is_estimated(stage: Stage) -> None:
    for spoken in ALL_SPOKEN:
        pod = await stage.pod(STREAM_HEAD, *map(chunk, (spoken.begun, *spoken.with_usage(None))), says.END)
        # Each takes 256 tokens and its prompt's at first: of what does not come back there is room for two.
        gateway = await stage.gateway(pod, limits=_a_day(700))
        client = await stage.client(gateway)
        for count in (1, 2, 3):
            await client.ask(stream=True, **spoken.asked)
            await client.expect(200)
            await stage.line(gateway)
            expect(0 < _used(gateway) < count * 60, f"it took {_used(gateway)} tokens")
            await _expect_estimated(stage, gateway)


def _a_day(tokens: int) -> dict[str, Any]:
    return {"default": NO_LIMITS, "rules": [{"per": "key", "tokens_per_day": tokens}]}


def _used(gateway: Running) -> int:
    """Of the tokens of the day."""
    admission, now = gateway.gateway.admission, gateway.gateway.clock.monotonic()
    return sum(each.used for each in admission.standings(now) if "tokens" in each.limit)


async def _expect_estimated(stage: Stage, gateway: Running) -> None:
    line = await stage.line(gateway)
    expect(line["outcome"] == "completed", f"it is logged as {line['outcome']}")
    expect(line["usage_source"] == "estimated", f"its usage is {line['usage_source']}")


NO_USAGES: tuple[object, ...] = (
    *(
        {"prompt_tokens": prompt, "completion_tokens": answer, "input_tokens": prompt, "output_tokens": answer}
        for prompt, answer in (
            (3, -5),
            (-5, 2),
            (10**9, -(10**9)),
            (3, 10**9),
            (10**9, 2),
            (3, 10**30),
            (3, "2"),
            ("3", 2),
            (3, 2.5),
            (3, [2]),
            (True, 2),
        )
    ),
    "much",
    [3, 2],
    7,
)


@scene(
    "F37",
    "A usage that cannot be is not believed: it neither gives a caller tokens back nor takes what was not there",
    promise=Promise.LIMITS,
    without=(Without(PLAUSIBLE_USAGE, red="was a gift"),),
)
async def a_usage_that_cannot_be_is_not_believed(stage: Stage) -> None:
    for spoken in ALL_SPOKEN:
        streams = [map(chunk, (spoken.begun, *spoken.with_usage(usage))) for usage in NO_USAGES]
        await _expect_no_belief(stage, [[STREAM_HEAD, *stream, says.END] for stream in streams], spoken, stream=True)
    await _expect_no_belief(stage, [[says.whole(usage=usage)] for usage in NO_USAGES], CHAT, stream=False)


async def _expect_no_belief(stage: Stage, answers: list[list[Step]], spoken: Spoken, *, stream: bool) -> None:
    gateway = await stage.gateway(await stage.pod(scripts=answers, lies=True), limits=_a_day(10_000))
    client = await stage.client(gateway)
    used = 0
    for usage in NO_USAGES:
        await client.ask(stream=stream, **spoken.asked)
        await client.expect(200)
        await stage.line(gateway)
        before, used = used, _used(gateway)
        expect(used > before, f"the usage {usage} was a gift")
        expect(used < before + 100, f"the usage {usage} took {used - before} tokens")
        await _expect_estimated(stage, gateway)


@scene(
    "F39",
    "A stream of several choices is whole when each of them is finished, one for each prompt and each `n`",
    promise=Promise.TRUTH,
    without=(Without(EACH_CHOICE, red="ends with upstream_truncated, its error events are \\[\\]"),),
)
async def each_choice_must_finish(stage: Stage) -> None:
    three = b"".join(says.token(text, index) for text in "ab" for index in range(3))
    asked = ({"n": 3}, {"path": "/v1/completions", "prompt": ["a", "b", "c"]})
    for body in asked:
        for missing in range(3):
            done = b"".join(says.finish(index) for index in range(3) if index != missing)
            for ending in ((chunk(says.DONE), says.END), (says.END,), (Close,)):
                gateway = await stage.gateway(await stage.pod(STREAM_HEAD, chunk(three), chunk(done), *ending))
                client = await stage.asks(gateway, stream=True, **body)
                came = await client.expect_stream_error("upstream_truncated")
                expect(came.body.startswith(three + done), "what the pod said is not as it was")
                await _expect_logged(stage, gateway, "truncated", "upstream_truncated")
        finished = [chunk(says.finish(index)) for index in range(3)]
        gateway = await stage.gateway(await stage.pod(STREAM_HEAD, chunk(three), *finished, chunk(says.DONE), says.END))
        await (await stage.asks(gateway, stream=True, **body)).expect_stream()
