"""Each fault, as a client meets it."""

from __future__ import annotations

import asyncio

import pytest

from loadtest.simulator import Fault, FaultKind, Garbage, PodSettings, SimulatedPod, Stage
from tests.unit.loadtest.talking import Heard, Talk, ask, chat, get, post, talk_to

STREAM = chat(stream=True, max_tokens=5)
WHOLE = chat(max_tokens=5)
UNBOUNDED = chat(stream=True, max_tokens=4000)


def pod_with(*faults: Fault) -> SimulatedPod:
    return SimulatedPod(PodSettings(model="m", faults=faults))


async def is_silent(talk: Talk) -> bool:
    """Whether nothing comes, and no end, for as long as we care to wait."""
    before = talk.heard
    with pytest.raises(TimeoutError):
        await talk.hear_out(seconds=0.03)
    return talk.heard == before


async def undisturbed(body: dict[str, object]) -> list[bytes]:
    async with SimulatedPod(PodSettings(model="m")) as pod:
        return (await ask(pod, post(body))).chunks


# Before the head


@pytest.mark.parametrize("body", [STREAM, WHOLE])
async def test_never_answer_reads_the_request_and_says_nothing(body: dict[str, object]) -> None:
    async with pod_with(Fault(FaultKind.NEVER_ANSWER)) as pod, talk_to(pod) as talk:
        talk.send(post(body))
        await pod.until(lambda p: len(p.requests) == 1)

        assert await is_silent(talk)
        assert talk.heard == b""
        assert pod.running == 0


@pytest.mark.parametrize("body", [STREAM, WHOLE])
async def test_close_ends_the_connection_without_a_byte(body: dict[str, object]) -> None:
    async with pod_with(Fault(FaultKind.CLOSE)) as pod, talk_to(pod) as talk:
        talk.send(post(body))

        assert await talk.how_it_ends() == "end"
        assert talk.heard == b""


@pytest.mark.parametrize("body", [STREAM, WHOLE])
async def test_reset_alone_comes_before_the_head(body: dict[str, object]) -> None:
    async with pod_with(Fault(FaultKind.RESET)) as pod, talk_to(pod) as talk:
        talk.send(post(body))

        assert await talk.how_it_ends() == "reset"
        assert talk.heard == b""


# In a stream


async def test_a_stall_alone_comes_after_the_head_and_before_the_first_token() -> None:
    async with pod_with(Fault(FaultKind.STALL)) as pod, talk_to(pod) as talk:
        talk.send(post(STREAM))
        await talk.hear_until(b"\r\n\r\n")

        assert await is_silent(talk)
        assert Heard(talk.heard).body == b""
        assert pod.running == 1


async def test_a_stall_keeps_its_batch_slot_until_the_client_leaves() -> None:
    settings = PodSettings(model="m", max_num_seqs=1)
    async with SimulatedPod(settings) as pod, talk_to(pod) as stalled, talk_to(pod) as behind:
        stalled.send(post(chat(stream=True, max_tokens=5, sim_fault={"kind": "stall", "after": 3})))
        await stalled.hear_chunks(3)
        behind.send(post(WHOLE))
        await pod.until(lambda p: p.waiting == 1)
        assert await is_silent(stalled)
        stalled.leave()
        await pod.until(lambda p: p.aborts == 1)

        assert (await behind.hear_out()).status == 200


async def test_a_stall_can_come_behind_the_last_token() -> None:
    async with pod_with(Fault(FaultKind.STALL, after=6)) as pod, talk_to(pod) as talk:
        talk.send(post(STREAM))
        await talk.hear_chunks(6)

        assert await is_silent(talk)
        assert b"[DONE]" not in talk.heard


async def test_a_drip_takes_its_time_over_every_token_and_ends_well() -> None:
    loop = asyncio.get_running_loop()
    async with pod_with(Fault(FaultKind.DRIP, seconds_per_token=0.01)) as pod, talk_to(pod) as talk:
        began = loop.time()
        talk.send(post(STREAM))
        heard = await talk.hear_out()

    assert loop.time() - began >= 0.035
    assert [event["choices"] for event in heard.events] == [
        event["choices"] for event in Heard(b"\r\n\r\n" + _as_body(await undisturbed(STREAM))).events
    ]


def _as_body(chunks: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


async def test_a_drip_can_begin_after_some_events() -> None:
    async with pod_with(Fault(FaultKind.DRIP, after=4, seconds_per_token=60)) as pod, talk_to(pod) as talk:
        talk.send(post(STREAM))
        await talk.hear_chunks(4)

        assert await is_silent(talk)
        assert pod.engine.stats.generation_tokens == 3


async def test_a_reset_after_events_delivers_them_first() -> None:
    async with pod_with(Fault(FaultKind.RESET, after=3)) as pod, talk_to(pod) as talk:
        talk.send(post(UNBOUNDED))

        assert await talk.how_it_ends() == "reset"
        assert len(Heard(talk.heard).chunks) == 3
        await pod.until(lambda p: p.running == 0)
        assert pod.aborts == 0
        assert pod.engine.stats.generation_tokens < 10


async def test_a_cut_ends_in_the_middle_of_a_chunk() -> None:
    async with pod_with(Fault(FaultKind.CUT, after=2)) as pod:
        heard = await ask(pod, post(UNBOUNDED))

    assert len(heard.chunks) == 2
    assert not heard.is_whole
    whole_part = _as_body(heard.chunks)
    size, _, rest = heard.body[len(whole_part) :].partition(b"\r\n")
    assert 0 < len(rest) < int(size, 16)


async def test_a_body_can_end_without_done() -> None:
    async with pod_with(Fault(FaultKind.NO_DONE)) as pod:
        heard = await ask(pod, post(STREAM))

    assert heard.is_whole
    assert len(heard.chunks) == 6
    assert b'"finish_reason":"length"' in heard.chunks[-1]


async def test_a_body_can_end_early_and_without_done() -> None:
    async with pod_with(Fault(FaultKind.NO_DONE, after=3)) as pod:
        heard = await ask(pod, post(UNBOUNDED))
        await pod.until(lambda p: p.running == 0)

    assert heard.is_whole
    assert len(heard.chunks) == 3


@pytest.mark.parametrize(
    ("fault", "chunks"), [(Fault(FaultKind.NO_FINISH), 7), (Fault(FaultKind.NO_FINISH, after=3), 4)]
)
async def test_a_stream_can_end_with_done_and_no_finish_reason(fault: Fault, chunks: int) -> None:
    async with pod_with(fault) as pod:
        heard = await ask(pod, post(STREAM))

    assert heard.is_whole
    assert len(heard.chunks) == chunks
    assert heard.chunks[-1] == b"data: [DONE]\n\n"
    assert all(choice["finish_reason"] is None for event in heard.events for choice in event["choices"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("after", [None, 3])
async def test_an_error_event_ends_a_200_with_done(after: int | None) -> None:
    fault = Fault(FaultKind.ERROR_EVENT, after=after, message="out of memory", code=503)
    async with pod_with(fault) as pod:
        heard = await ask(pod, post(UNBOUNDED))
        await pod.until(lambda p: p.running == 0)

    assert pod.engine.stats.generation_tokens < 10
    assert heard.status == 200
    assert heard.is_whole
    assert len(heard.chunks) == (after or 0) + 2
    assert heard.events[-1]["error"] == {
        "message": "out of memory",
        "type": "InternalServerError",
        "param": None,
        "code": 503,
    }
    assert heard.chunks[-1] == b"data: [DONE]\n\n"


async def test_a_stream_may_have_an_event_that_is_no_json_and_go_on() -> None:
    async with pod_with(Fault(FaultKind.GARBAGE, what=Garbage.JUNK_BODY, after=2)) as pod:
        heard = await ask(pod, post(STREAM))

    assert heard.chunks[2] == b'data: {"id": not json\n\n'
    assert len(heard.chunks) == 8
    assert heard.is_whole


@pytest.mark.parametrize("what", [Garbage.BAD_CHUNK_SIZE, Garbage.NOT_HTTP])
async def test_a_stream_may_break_its_framing_in_the_middle(what: Garbage) -> None:
    async with pod_with(Fault(FaultKind.GARBAGE, what=what, after=2)) as pod, talk_to(pod) as talk:
        talk.send(post(UNBOUNDED))
        assert await talk.how_it_ends() == "end"

    good = 2
    body = Heard(talk.heard).body
    for _ in range(good):
        size, _, body = body.partition(b"\r\n")
        body = body[int(size, 16) + 2 :]
    with pytest.raises(ValueError, match="invalid literal"):
        int(body.partition(b"\r\n")[0], 16)


# Garbage instead of an answer


async def test_the_answer_may_be_no_http() -> None:
    async with pod_with(Fault(FaultKind.GARBAGE)) as pod:
        heard = await ask(pod, post(STREAM))

    assert not heard.raw.startswith(b"HTTP/")
    assert len(heard.raw) > 4


async def test_the_size_of_the_first_chunk_may_be_none() -> None:
    async with pod_with(Fault(FaultKind.GARBAGE, what=Garbage.BAD_CHUNK_SIZE)) as pod:
        heard = await ask(pod, post(WHOLE))

    assert heard.status == 200
    assert heard.body.startswith(b"zz\r\n")


async def test_the_body_may_be_junk() -> None:
    async with pod_with(Fault(FaultKind.GARBAGE, what=Garbage.JUNK_BODY, body="<junk>")) as pod:
        whole = await ask(pod, post(WHOLE))
        streamed = await ask(pod, post(STREAM))

    assert (whole.status, whole.body) == (200, b"<junk>")
    assert ("content-type", "application/json") in whole.headers
    assert streamed.chunks == [b"<junk>"]
    assert streamed.is_whole


# Statuses


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (500, "EngineCore encountered an issue"),
        (502, "simulated status 502"),
        (503, "The engine is currently busy"),
        (401, '{"error":"Unauthorized"}'),
        (404, '{"detail":"Not Found"}'),
    ],
)
async def test_a_status_comes_with_what_vllm_says_at_it(status: int, says: str) -> None:
    async with pod_with(Fault(FaultKind.STATUS, status=status)) as pod:
        heard = await ask(pod, post(STREAM))

    assert heard.status == status
    assert says in heard.body.decode()
    assert "retry-after" not in dict(heard.headers)


async def test_a_status_may_have_a_body_and_headers_of_its_own() -> None:
    fault = Fault(
        FaultKind.STATUS,
        status=302,
        body="<moved>",
        content_type="text/html",
        retry_after_seconds=7,
        location="http://elsewhere.test/",
    )
    async with pod_with(fault) as pod:
        heard = await ask(pod, post(STREAM))

    assert (heard.status, heard.body) == (302, b"<moved>")
    headers = dict(heard.headers)
    assert (headers["location"], headers["retry-after"]) == ("http://elsewhere.test/", "7")
    assert headers["content-type"] == "text/html"


async def test_a_status_may_have_a_message_in_vllm_s_shape() -> None:
    async with pod_with(Fault(FaultKind.STATUS, status=500, message="/opt/vllm broke")) as pod:
        heard = await ask(pod, post(WHOLE))

    assert heard.json["error"]["message"] == "/opt/vllm broke"  # type: ignore[index]


async def test_draining_is_what_vllm_says_after_sigterm() -> None:
    async with pod_with(Fault(FaultKind.DRAINING)) as pod:
        heard = await ask(pod, post(STREAM))

    assert (heard.status, heard.json["error"]["message"]) == (500, "cannot schedule new futures after shutdown")  # type: ignore[index]


# Answers without a stream


async def test_a_whole_answer_stalls_in_the_engine() -> None:
    async with pod_with(Fault(FaultKind.STALL)) as pod, talk_to(pod) as talk:
        talk.send(post(WHOLE))
        await pod.until(lambda p: p.running == 1)

        assert await is_silent(talk)
        assert talk.heard == b""
        talk.leave()
        await pod.until(lambda p: p.running == 0 and p.aborts == 1)


async def test_a_whole_answer_drips() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with pod_with(Fault(FaultKind.DRIP, seconds_per_token=0.01)) as pod:
        heard = await ask(pod, post(WHOLE))

    assert loop.time() - began >= 0.035
    assert heard.status == 200


async def test_a_whole_answer_is_cut_in_its_body() -> None:
    async with pod_with(Fault(FaultKind.CUT)) as pod:
        heard = await ask(pod, post(WHOLE))

    told = int(dict(heard.headers)["content-length"])
    assert 0 < len(heard.body) < told


async def test_a_whole_answer_is_reset_after_it_was_made() -> None:
    async with pod_with(Fault(FaultKind.RESET, after=1)) as pod, talk_to(pod) as talk:
        talk.send(post(WHOLE))

        assert await talk.how_it_ends() == "reset"
        assert pod.engine.stats.generation_tokens == 5


async def test_a_whole_answer_may_lack_its_finish_reason() -> None:
    async with pod_with(Fault(FaultKind.NO_FINISH)) as pod:
        heard = await ask(pod, post(WHOLE))

    assert heard.json["choices"][0]["finish_reason"] is None  # type: ignore[index]


async def test_an_error_event_without_a_stream_is_an_error() -> None:
    async with pod_with(Fault(FaultKind.ERROR_EVENT)) as pod:
        heard = await ask(pod, post(WHOLE))

    assert heard.status == 500


async def test_no_done_leaves_a_whole_answer_as_it_is() -> None:
    async with pod_with(Fault(FaultKind.NO_DONE)) as pod:
        heard = await ask(pod, post(WHOLE))

    assert heard.status == 200


# The whole pod


async def test_engine_death_ends_the_pod() -> None:
    async with SimulatedPod(PodSettings(model="m", engine_death_exit_seconds=0.05)) as pod:
        pod.set_fault(Fault(FaultKind.ENGINE_DEATH))
        await pod.wait_down()

        with pytest.raises(ConnectionRefusedError):
            await ask(pod, get("/health"))


async def test_engine_death_errors_everyone_and_turns_health_to_503() -> None:
    async with SimulatedPod(PodSettings(model="m", engine_death_exit_seconds=3600)) as pod, talk_to(pod) as bystander:
        pod.pause()
        bystander.send(post(STREAM))
        await pod.until(lambda p: p.waiting == 1)
        pod.set_fault(Fault(FaultKind.ENGINE_DEATH))
        heard = await bystander.hear_out()
        health = await ask(pod, get("/health"))
        refused = await ask(pod, post(WHOLE))

    assert heard.events[0]["error"]["type"] == "InternalServerError"  # type: ignore[index]
    assert heard.is_whole
    assert (health.status, health.body) == (503, b"")
    assert refused.status == 500


@pytest.mark.parametrize("body", [STREAM, WHOLE])
async def test_one_request_may_kill_the_engine(body: dict[str, object]) -> None:
    async with SimulatedPod(PodSettings(model="m")) as pod:
        heard = await ask(pod, post({**body, "sim_fault": {"kind": "engine_death", "after": 2, "exit_seconds": 60}}))

        assert pod.stage is Stage.ENGINE_DEAD
    if body is STREAM:
        assert len(heard.chunks) == 4
        assert "error" in heard.events[-1]
    else:
        assert heard.status == 500


async def test_silence_is_what_sigterm_does() -> None:
    async with SimulatedPod(PodSettings(model="m")) as pod, talk_to(pod) as talk:
        pod.pause()
        talk.send(post(STREAM))
        await talk.hear_until(b"\r\n\r\n")
        pod.set_fault("silence")
        await pod.until(lambda p: p.stage is Stage.SILENT)

        assert await is_silent(talk)
        with pytest.raises(ConnectionRefusedError):
            await ask(pod, get("/health"))


async def test_silence_may_fall_in_the_middle_of_an_answer() -> None:
    async with pod_with(Fault(FaultKind.SILENCE, after=3)) as pod, talk_to(pod) as talk:
        talk.send(post(UNBOUNDED))
        await talk.hear_chunks(3)
        await pod.until(lambda p: p.stage is Stage.SILENT)

        assert await is_silent(talk)


@pytest.mark.parametrize("after", [None, 3])
async def test_die_ends_listener_and_connections_at_once(after: int | None) -> None:
    async with SimulatedPod(PodSettings(model="m")) as pod, talk_to(pod) as bystander, talk_to(pod) as talk:
        bystander.send(get("/health", close=False))
        await bystander.hear_until(b"\r\n\r\n")
        talk.send(post({**UNBOUNDED, "sim_fault": {"kind": "die", "after": after}}))
        await talk.how_it_ends()
        await bystander.how_it_ends()

        assert not Heard(talk.heard).is_whole
        assert len(Heard(talk.heard).chunks) == (after or 0)
        with pytest.raises(ConnectionRefusedError):
            await ask(pod, get("/health"))
        assert (pod.stage, pod.running, pod.in_flight) == (Stage.DOWN, 0, 0)


# Which requests


async def test_a_request_s_own_fault_comes_before_the_pod_s() -> None:
    async with pod_with(Fault(FaultKind.NO_DONE)) as pod:
        heard = await ask(pod, post({**STREAM, "sim_fault": {"kind": "status", "status": 502}}))

    assert heard.status == 502


async def test_a_fault_may_strike_another_path_than_those_that_generate() -> None:
    async with SimulatedPod(PodSettings(model="m")) as pod:
        pod.set_fault(Fault(FaultKind.STATUS, status=500, path="/v1/models"))
        pod.set_fault(Fault(FaultKind.CLOSE, path="/load"))
        models = await ask(pod, get("/v1/models"))
        load = await ask(pod, get("/load"))
        fine = await ask(pod, post(WHOLE))

    assert (models.status, load.raw, fine.status) == (500, b"", 200)


@pytest.mark.parametrize(
    ("fault", "raw"),
    [(Fault(FaultKind.CUT, path="/version"), b'{"version"'), (Fault(FaultKind.STALL, path="/version"), b"")],
)
async def test_pages_can_stall_and_be_cut(fault: Fault, raw: bytes) -> None:
    async with pod_with(fault) as pod, talk_to(pod) as talk:
        talk.send(get("/version"))
        if fault.kind is FaultKind.STALL:
            assert await is_silent(talk)
            assert talk.heard == raw
        else:
            assert (await talk.hear_out()).body == raw


async def test_a_fault_for_all_paths_spares_the_controls() -> None:
    async with pod_with(Fault(FaultKind.CLOSE, path="*")) as pod:
        assert (await ask(pod, get("/health"))).raw == b""
        assert (await ask(pod, get("/sim/state"))).status == 200
        pod.clear_fault()
        assert (await ask(pod, get("/health"))).status == 200


async def test_a_fault_strikes_as_often_as_it_was_told() -> None:
    async with pod_with(Fault(FaultKind.CLOSE, count=2)) as pod:
        raws = [(await ask(pod, post(WHOLE))).raw for _ in range(3)]

    assert [bool(raw) for raw in raws] == [False, False, True]
