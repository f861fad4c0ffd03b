"""Comments of our own, where the configuration asks for them: between two events, and never for a word of the pod."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.discovering import eventually
from tests.fakes import STREAM_HEAD, Close, Hang, Reset, ScriptedPod, Step, answer, chunk
from tests.integration.balancing.scenes import GOOD, Scene, pods, scene
from tests.raw import Answer, RawClient, chat, request
from tests.running import Side
from tests.turns import within

SECONDS = 5.0
COMMENT = b": keep-alive\n"
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
FINAL = b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
LAST = b"0\r\n\r\n"
WHOLE = STREAM_HEAD + chunk(ROLE) + chunk(FINAL) + chunk(DONE) + LAST
TOO_LONG = b'{"error": {\r\n "message": "too long",\n "type": "BadRequestError", "param": "prompt", "code": 400}}'
PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/responses")


class Client:
    """One stream's client, that knows what has come so far."""

    def __init__(self, found: Scene, raw: RawClient) -> None:
        self._found = found
        self._raw = raw
        self._seen = b""

    async def hears(self, text: bytes, times: int = 1) -> None:
        """Wait until this has come so often."""
        async with within(5):
            while self._seen.count(text) < times:
                data = await self._raw.reader.read(65536)
                assert data, f"the connection closed behind {self._seen!r}"
                self._seen += data

    async def quiet(self, seconds: float) -> bytes:
        """Let time pass; what has come meanwhile."""
        self._found.leap(seconds)
        await self._found.swept()
        await self._found.swept()
        before = len(self._seen)
        try:
            async with within(0.05):
                self._seen += await self._raw.reader.read(65536)
        except TimeoutError:
            pass
        return self._seen[before:]

    async def comment(self, times: int) -> None:
        """Be silent until another comment has come: the one of this number."""
        # What was sent before is noted by a sweep.
        await self._found.swept()
        self._found.leap(SECONDS)
        await self.hears(COMMENT, times)

    async def end(self) -> Answer:
        return await self._raw.answer(begun=self._seen)


@asynccontextmanager
async def before(*given: ScriptedPod, **more: Any) -> AsyncIterator[Scene]:
    """A gateway that sends comments, before these pods."""
    server = {"keep_alive_comments_seconds": SECONDS} | more.pop("server", {})
    for pod in given:
        await pod.start()
    try:
        async with scene(given, server=server, **more) as found:
            yield found
    finally:
        for pod in given:
            await pod.__aexit__(None, None, None)


async def asks(found: Scene, *, path: str = PATHS[0], **body: Any) -> Client:
    given = chat(stream=True, **body)
    if path == "/v1/responses":
        given["input"] = given.pop("messages")
    return Client(found, await found.send(request(given, key=found.running.key, path=path)))


def told_in(came: Answer, path: str = PATHS[0]) -> dict[str, Any]:
    """The error that a stream ends with."""
    assert (came.status, came.clean) == (200, True)
    assert came.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = came.events
    if path == PATHS[0]:
        assert events.pop() == DONE
    lines = events[-1].split(b"\n")
    (data,) = [line for line in lines if line.startswith(b"data: ")]
    told: dict[str, Any] = json.loads(data[6:])
    found: dict[str, Any] = told.get("error", told)
    return found


def script(*steps: Step) -> ScriptedPod:
    return ScriptedPod([steps])


async def test_a_silent_stream_gets_comments_before_its_first_event_and_between_two(side: Side) -> None:
    first, last = asyncio.Event(), asyncio.Event()
    pod = script(STREAM_HEAD, first, chunk(ROLE), chunk(TOKEN), last, chunk(FINAL), chunk(DONE), LAST)
    async with before(pod, side=side) as found:
        client = await asks(found)
        await found.arrival([pod])
        await client.comment(1)
        await client.comment(2)
        first.set()
        await client.hears(TOKEN)
        await client.comment(3)
        last.set()
        came = await client.end()
        assert (came.status, came.body, came.clean) == (200, COMMENT * 2 + ROLE + TOKEN + COMMENT + FINAL + DONE, True)
        line = await found.running.last_line()
        assert (line["outcome"], line["attempts"], line["status"]) == ("completed", 1, 200)
        # The wait for the first token is the pod's, whatever we said meanwhile.
        assert line["ttft_ms"] >= 2 * SECONDS * 1000


@pytest.mark.parametrize(("said", "heard"), [(TOKEN, TOKEN), (b": ping\n\n", COMMENT)], ids=["tokens", "comments"])
async def test_a_pod_that_says_something_is_not_spoken_for(side: Side, said: bytes, heard: bytes) -> None:
    more = [asyncio.Event() for _ in range(3)]
    steps = [step for event in more for step in (event, chunk(said))]
    pod = script(STREAM_HEAD, chunk(ROLE), *steps, chunk(FINAL), chunk(DONE), LAST)
    async with before(pod, side=side) as found:
        client = await asks(found)
        await client.hears(ROLE)
        for times, event in enumerate(more, start=1):
            assert await client.quiet(SECONDS - 1) == b""
            event.set()
            await client.hears(heard, times)
        assert (await client.end()).body == ROLE + heard * 3 + FINAL + DONE


async def test_no_comment_stands_inside_an_event(side: Side) -> None:
    rest = asyncio.Event()
    pod = script(STREAM_HEAD, chunk(ROLE), chunk(TOKEN[:30]), rest, chunk(TOKEN[30:] + FINAL + DONE), LAST)
    async with before(pod, side=side) as found:
        client = await asks(found)
        await client.hears(ROLE)
        await client.comment(1)
        rest.set()
        assert (await client.end()).body == ROLE + COMMENT + TOKEN + FINAL + DONE


async def test_who_waits_in_line_is_kept_alive_as_well(side: Side) -> None:
    go = asyncio.Event()
    pod = ScriptedPod([[go, GOOD], [WHOLE]])
    pool = {"max_in_flight_per_pod": 1, "queue_wait_seconds": 60}
    async with before(pod, side=side, pool=pool) as found:
        other = found.asking()
        await found.arrival([pod])
        client = await asks(found)
        await found.until(lambda: found.waiting == 1)
        await client.comment(1)
        go.set()
        assert (await other).status == 200
        assert (await client.end()).body == COMMENT + ROLE + FINAL + DONE


async def test_attempts_are_repeated_behind_a_comment(side: Side) -> None:
    fails = asyncio.Event()
    first, second = script(fails, Reset), script(fails, Reset)
    async with before(first, second, side=side, policy="round_robin") as found:
        client = await asks(found)
        place = await found.arrival([first, second])
        await client.comment(1)
        (second if place == 0 else first).scripts = [[WHOLE]]
        fails.set()
        came = await client.end()
        assert (came.status, came.body) == (200, COMMENT + ROLE + FINAL + DONE)
        line = await found.running.last_line()
        assert (line["outcome"], line["attempts"]) == ("completed", 2)


@pytest.mark.parametrize("path", PATHS)
async def test_a_failure_behind_a_comment_is_told_in_the_stream(side: Side, path: str) -> None:
    cases: list[tuple[Sequence[Step], str, str]] = [
        ([Close], "upstream_disconnected", "truncated"),
        ([answer(b"", b"307 Later")], "upstream_redirect", "upstream_failed"),
        ([answer(b"{}", b"503 Busy")], "overloaded", "refused"),
    ]
    for ending, code, outcome in cases:
        fails = asyncio.Event()
        pod = script(fails, *ending)
        async with before(pod, side=side) as found:
            client = await asks(found, path=path)
            await found.arrival([pod])
            await client.comment(1)
            fails.set()
            told = told_in(await client.end(), path)
            assert told["code"] == code
            line = await found.running.last_line()
            assert (line["status"], line["outcome"], line["code"]) == (200, outcome, code)
            assert line["prompt_tokens"] in (0, None)


@pytest.mark.parametrize("path", PATHS)
async def test_a_pod_s_refusal_behind_a_comment_keeps_its_words_in_one_event(side: Side, path: str) -> None:
    fails = asyncio.Event()
    pod = script(fails, answer(TOO_LONG, b"400 Bad Request"))
    async with before(pod, side=side) as found:
        client = await asks(found, path=path)
        await found.arrival([pod])
        await client.comment(1)
        fails.set()
        assert told_in(await client.end(), path)["message"] == "too long"
        assert (await found.running.last_line())["outcome"] == "refused"


async def test_deadlines_run_on_behind_comments(side: Side) -> None:
    async with before(script(Hang), side=side, pool={"ttft_seconds": 12}) as found:
        client = await asks(found)
        await found.until(lambda: found.gateway.balancer.active == 1)
        await client.comment(1)
        await client.comment(2)
        found.leap(SECONDS)
        assert told_in(await client.end())["code"] == "upstream_ttft_timeout"
        assert (await found.running.last_line())["outcome"] == "upstream_timeout"
    async with before(script(STREAM_HEAD, chunk(ROLE), Hang), side=side, pool={"idle_seconds": 12}) as found:
        client = await asks(found)
        await client.hears(ROLE)
        await client.comment(1)
        await client.comment(2)
        found.leap(SECONDS)
        assert told_in(await client.end())["code"] == "upstream_stalled"


async def test_a_drain_behind_a_comment_is_told_as_in_any_stream(side: Side) -> None:
    pod = script(Hang)
    async with before(pod, side=side) as found:
        client = await asks(found)
        await found.arrival([pod])
        await client.comment(1)
        found.gateway.pipeline.end_all()
        assert told_in(await client.end())["code"] == "gateway_draining"
        assert (await found.running.last_line())["outcome"] == "truncated"


async def test_a_client_that_leaves_behind_a_comment_ends_the_pod_s_work(side: Side) -> None:
    pod = script(Hang)
    async with before(pod, side=side) as found:
        client = await asks(found)
        await found.arrival([pod])
        await client.comment(1)
        client._raw.leave()
        async with within(2):
            await pod.peer_left.wait()
        assert (await found.running.last_line())["outcome"] == "client_left"


async def test_an_answer_that_is_no_stream_gets_none(side: Side) -> None:
    go = asyncio.Event()
    pod = script(go, GOOD)
    async with before(pod, side=side) as found:
        asked = found.asking()
        await found.arrival([pod])
        found.leap(SECONDS * 4)
        assert await found.ask_briefly(asked) is None
        go.set()
        came = await asked
        assert COMMENT not in came.body
        assert came.headers["content-length"] == str(len(came.body))


async def test_without_the_setting_there_are_none() -> None:
    go = asyncio.Event()
    pod = script(STREAM_HEAD, chunk(ROLE), go, chunk(FINAL), chunk(DONE), LAST)
    async with before(pod, server={"keep_alive_comments_seconds": None}, pool={"idle_seconds": 999}) as found:
        client = await asks(found)
        await client.hears(ROLE)
        assert await client.quiet(300) == b""
        go.set()
        assert (await client.end()).body == ROLE + FINAL + DONE


async def test_the_setting_takes_effect_while_all_runs(tmp_path: Path) -> None:
    pod = ScriptedPod([[Hang]])
    async with pod:
        file = tmp_path / "poolgate.yaml"
        settings = f"discovery: {{pods: [{{url: '{pod.url}', pool: chat}}]}}\n"
        file.write_text(settings)
        async with scene([pod], file=file) as found:
            silent = await asks(found)
            file.write_text(f"{settings}server: {{keep_alive_comments_seconds: {SECONDS}}}\n")
            await eventually(lambda: found.gateway.forwarder.keep_alive_seconds == SECONDS)
            client = await asks(found)
            await found.until(lambda: len(pod.requests) == 2)
            await client.comment(1)
            # What had begun before is not changed under its client's hands.
            assert await silent.quiet(0) == b""


async def test_nothing_is_kept_of_a_stream_that_is_over() -> None:
    given = pods(2, Hang)
    async with before(*given) as found:
        one, other = await asks(found), await asks(found)
        await found.until(lambda: found.gateway.balancer.active == 2)
        await one.comment(1)
        await other.hears(COMMENT)
        assert len(found.gateway.forwarder._keep_alives) == 2
        one._raw.leave()
        other._raw.leave()
        await found.running.settled()
        assert not found.gateway.forwarder._keep_alives
