"""One pod on real sockets: what it answers, what it counts, how its life ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest

from loadtest.simulator import (
    Fault,
    FaultKind,
    PodSettings,
    Shutdown,
    SimulatedPod,
    Stage,
    TimeModel,
)
from loadtest.stand.ports import lasting_ports
from tests.unit.loadtest.talking import ask, chat, get, post, talk_to

M = PodSettings(model="m")


# Answers


async def test_the_role_event_comes_with_the_first_token_and_not_before() -> None:
    async with SimulatedPod(M) as pod, talk_to(pod) as talk:
        pod.pause()
        talk.send(post(chat(stream=True, max_tokens=2)))
        await pod.until(lambda p: p.waiting == 1)
        head = await talk.hear_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert head.endswith(b"\r\n\r\n")
        pod.resume()
        heard = await talk.hear_out()

    first, second = heard.chunks[:2]
    assert b'"role":"assistant"' in first
    assert b'"content":"' in second


async def test_a_stream_and_a_whole_answer_say_the_same() -> None:
    async with SimulatedPod(M) as pod:
        whole = await ask(pod, post(chat(max_tokens=60)))
        streamed = await ask(pod, post(chat(max_tokens=60, stream=True)))

    text = "".join(event["choices"][0]["delta"]["content"] for event in streamed.events)  # type: ignore[index]
    assert whole.json["choices"][0]["message"]["content"] == text  # type: ignore[index]
    assert len(text) > 100


async def test_every_pod_of_a_seed_says_the_same_and_another_seed_something_else() -> None:
    async with (
        SimulatedPod(PodSettings(model="m", name="one")) as one,
        SimulatedPod(PodSettings(model="m", name="two")) as two,
        SimulatedPod(PodSettings(model="m", seed=1)) as other,
    ):
        said = [(await ask(pod, post(chat(max_tokens=20)))).json["choices"] for pod in (one, two, other)]

    assert said[0] == said[1] != said[2]


async def test_an_answer_nobody_limits_ends_by_itself() -> None:
    async with SimulatedPod(PodSettings(model="m", natural_tokens=(7, 7))) as pod:
        heard = await ask(pod, post(chat()))

    assert heard.json["usage"]["completion_tokens"] == 7  # type: ignore[index]
    assert heard.json["choices"][0]["finish_reason"] == "stop"  # type: ignore[index]


async def test_ignore_eos_goes_on_to_the_end_of_the_window() -> None:
    settings = PodSettings(model="m", natural_tokens=(7, 7), max_model_len_tokens=100)
    async with SimulatedPod(settings) as pod:
        heard = await ask(pod, post(chat(ignore_eos=True)))

    assert heard.json["usage"]["total_tokens"] == 100  # type: ignore[index]
    assert heard.json["choices"][0]["finish_reason"] == "length"  # type: ignore[index]


async def test_a_pod_told_so_ends_answers_before_their_limit() -> None:
    async with SimulatedPod(PodSettings(model="m", natural_tokens=(7, 7), ends_early=True)) as pod:
        heard = await ask(pod, post(chat(max_tokens=50)))

    assert heard.json["choices"][0]["finish_reason"] == "stop"  # type: ignore[index]


async def test_max_completion_tokens_is_preferred_to_max_tokens() -> None:
    async with SimulatedPod(M) as pod:
        heard = await ask(pod, post(chat(max_tokens=50, max_completion_tokens=3)))

    assert heard.json["usage"]["completion_tokens"] == 3  # type: ignore[index]


async def test_completions_take_lists_of_prompts_of_token_ids_and_n() -> None:
    body: dict[str, object] = {"model": "m", "prompt": ["a", [1, 2, 3]], "n": 2, "max_tokens": 2}
    async with SimulatedPod(M) as pod:
        several = await ask(pod, post(body, "/v1/completions"))
        one = await ask(pod, post({"model": "m", "prompt": [1, 2, 3]}, "/v1/completions"))

    choices = several.json["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]  # type: ignore[attr-defined]
    assert several.json["usage"]["prompt_tokens"] == 1 + 3  # type: ignore[index]
    assert several.json["usage"]["completion_tokens"] == 8  # type: ignore[index]
    assert one.json["usage"]["completion_tokens"] == 16  # type: ignore[index]
    assert one.json["usage"]["prompt_tokens"] == 3  # type: ignore[index]


async def test_a_stream_of_several_prompts_ends_each_with_the_fingerprint() -> None:
    body: dict[str, object] = {"model": "m", "prompt": ["a", "b"], "max_tokens": 3, "stream": True}
    async with SimulatedPod(M) as pod:
        heard = await ask(pod, post(body, "/v1/completions"))

    finishes = [choice["finish_reason"] for event in heard.events for choice in event["choices"]]  # type: ignore[attr-defined]
    assert finishes == [None, None, None, None, "length", "length"]
    assert ["system_fingerprint" in event for event in heard.events] == [False] * 4 + [True] * 2
    assert heard.chunks[-1] == b"data: [DONE]\n\n"


async def test_cached_tokens_are_told_if_the_pod_is_told_to() -> None:
    settings = PodSettings(model="m", prompt_tokens_details=True)
    body = chat(messages=[{"role": "user", "content": "x" * 640}], max_tokens=1)
    async with SimulatedPod(settings) as pod:
        await ask(pod, post(body))
        whole = await ask(pod, post(body))
        streamed = await ask(pod, post({**body, "stream": True, "stream_options": {"include_usage": True}}))

    assert whole.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 160  # type: ignore[index]
    assert streamed.events[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 160  # type: ignore[index]


async def test_choices_of_one_prompt_count_its_cached_tokens_once() -> None:
    settings = PodSettings(model="m", prompt_tokens_details=True)
    body = chat(messages=[{"role": "user", "content": "x" * 640}], max_tokens=1)
    async with SimulatedPod(settings) as pod:
        await ask(pod, post(body))
        heard = await ask(pod, post({**body, "n": 3}))

    assert heard.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 160  # type: ignore[index]


async def test_the_next_turn_of_a_chat_finds_the_answer_cached_too() -> None:
    settings = PodSettings(model="m", prompt_tokens_details=True)
    question = {"role": "user", "content": "Say much."}
    async with SimulatedPod(settings) as pod:
        first = await ask(pod, post(chat(messages=[question], max_tokens=100)))
        text = first.json["choices"][0]["message"]["content"]  # type: ignore[index]
        turn = [question, {"role": "assistant", "content": text}, {"role": "user", "content": "More."}]
        second = await ask(pod, post(chat(messages=turn, max_tokens=1)))

    usage = second.json["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] - 40  # type: ignore[index]


async def test_cache_salt_isolates() -> None:
    settings = PodSettings(model="m", prompt_tokens_details=True)
    body = chat(messages=[{"role": "user", "content": "x" * 640}], max_tokens=1)
    async with SimulatedPod(settings) as pod:
        await ask(pod, post({**body, "cache_salt": "a"}))
        heard = await ask(pod, post({**body, "cache_salt": "b"}))

    assert heard.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0  # type: ignore[index]


async def test_an_alias_answers_by_the_first_name() -> None:
    async with SimulatedPod(PodSettings(model="m", aliases=("also-m",))) as pod:
        heard = await ask(pod, post(chat(model="also-m", max_tokens=1)))

    assert heard.json["model"] == "m"


async def test_comments_fill_the_silence_if_asked_for() -> None:
    async with SimulatedPod(PodSettings(model="m", sse_keep_alive_seconds=0.01)) as pod, talk_to(pod) as talk:
        pod.pause()
        talk.send(post(chat(stream=True, max_tokens=2)))
        await talk.hear_until(b"e\r\n: keep-alive\n\n\r\n")
        pod.resume()
        heard = await talk.hear_out()

    assert heard.chunks[0] == b": keep-alive\n\n"
    assert heard.chunks[-1] == b"data: [DONE]\n\n"


# Counts


async def test_what_was_received_is_recorded_as_it_came() -> None:
    body = b'{"model": "m",  "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}'
    async with SimulatedPod(M) as pod:
        await ask(pod, post(body, headers={"X-Request-Id": "abc", "TraceParent": "00-1"}))

    (request,) = pod.requests
    assert (request.method, request.path, request.body) == ("POST", "/v1/chat/completions", body)
    assert request.headers[0] == (b"Host", b"x")
    assert request.header("x-request-id") == "abc"
    assert request.header("traceparent") == "00-1"
    assert request.header("nothing") is None


async def test_only_so_many_requests_and_bytes_are_recorded() -> None:
    async with SimulatedPod(PodSettings(model="m", recorded_requests=3, recorded_body_bytes=2500)) as pod:
        for size in (10, 10, 10, 1000, 2000):
            await ask(pod, post(chat(max_tokens=1, user="x" * size)))

    assert [len(request.body) > 1000 for request in pod.requests] == [True]
    async with SimulatedPod(PodSettings(model="m", recorded_requests=3)) as pod:
        for _ in range(5):
            await ask(pod, get("/health"))
    assert len(pod.requests) == 3


async def test_clients_that_close_are_counted_as_aborts_and_free_the_batch() -> None:
    async with SimulatedPod(PodSettings(model="m", max_num_seqs=2)) as pod:
        pod.set_fault("stall:3")
        for _ in range(5):
            async with talk_to(pod) as talk:
                talk.send(post(chat(stream=True, max_tokens=50)))
                await talk.hear_until(b'"finish_reason":null,"token_ids"')
        await pod.until(lambda p: p.aborts == 5 and p.running == 0)
        metrics = (await ask(pod, get("/metrics"))).body.decode()

        assert pod.state()["aborts"] == 5
        assert 'finished_reason="abort",model_name="m"} 0.0' in metrics
        assert 'vllm:num_requests_running{engine="0",model_name="m"} 0.0' in metrics


async def test_a_client_that_closes_while_it_waits_or_without_a_stream_is_an_abort_too() -> None:
    async with SimulatedPod(M) as pod:
        pod.pause()
        async with talk_to(pod) as one, talk_to(pod) as other:
            one.send(post(chat(stream=True)))
            other.send(post(chat()))
            await pod.until(lambda p: p.waiting == 2)
        await pod.until(lambda p: p.aborts == 2 and p.waiting == 0 and p.open_connections == 0)


async def test_closing_only_the_sending_side_is_leaving() -> None:
    async with SimulatedPod(M) as pod, talk_to(pod) as talk:
        pod.set_fault("stall:1")
        talk.send(post(chat(stream=True)))
        await pod.until(lambda p: p.running == 1)
        talk.writer.write_eof()
        await pod.until(lambda p: p.aborts == 1 and p.running == 0)

        assert await talk.how_it_ends() == "end"


async def test_a_finished_answer_is_no_abort() -> None:
    async with SimulatedPod(M) as pod:
        await ask(pod, post(chat(stream=True, max_tokens=3)))
        await pod.until(lambda p: p.open_connections == 0)

    assert (pod.aborts, pod.served) == (0, 1)


async def test_load_is_told_only_if_it_is_tracked() -> None:
    for tracking, load in ((False, 0), (True, 2)):
        async with (
            SimulatedPod(PodSettings(model="m", server_load_tracking=tracking)) as pod,
            talk_to(pod) as one,
            talk_to(pod) as two,
        ):
            pod.pause()
            one.send(post(chat()))
            two.send(post(chat()))
            await pod.until(lambda p: p.in_flight == 2)
            heard = await ask(pod, get("/load"))
        assert heard.json == {"server_load": load}


async def test_metrics_can_be_read_by_prometheus_and_count_tokens() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    async with SimulatedPod(PodSettings(model='a"b')) as pod:
        await ask(pod, post(chat(model='a"b', max_tokens=5)))
        text = (await ask(pod, get("/metrics"))).body.decode()

    samples = {
        (sample.name, sample.labels.get("finished_reason")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }
    assert samples["vllm:generation_tokens_total", None] == 5
    assert samples["vllm:request_success_total", "length"] == 1
    assert samples["vllm:inter_token_latency_seconds_count", None] == 4
    assert samples["vllm:time_to_first_token_seconds_count", None] == 1


async def test_rejections_are_counted() -> None:
    async with SimulatedPod(PodSettings(model="m", max_num_queued_reqs=1)) as pod, talk_to(pod) as talk:
        pod.pause()
        talk.send(post(chat()))
        await pod.until(lambda p: p.waiting == 1)
        assert (await ask(pod, post(chat()))).status == 503
        metrics = (await ask(pod, get("/metrics"))).body.decode()

    assert 'vllm:admission_rejections_total{model_name="m",reason="max_num_queued_reqs"} 1.0' in metrics


@pytest.mark.parametrize(
    ("header", "body", "refused"),
    [
        *((None, {}, None), (None, {"priority": 0}, None), (None, {"priority": 5}, 5), ("-3", {}, -3)),
        *(("0", {"priority": 5}, None), ("7", {"priority": 0}, 7), ("soon", {"priority": 5}, 5), ("soon", {}, None)),
    ],
)
async def test_the_header_s_priority_goes_before_the_body_s_and_a_pod_told_so_refuses_it(
    header: str | None, body: dict[str, object], refused: int | None
) -> None:
    asked = post(chat(**body), headers={} if header is None else {"X-Vllm-Priority": header})
    async with SimulatedPod(M) as usual, SimulatedPod(replace(M, refuse_priorities=True)) as strict:
        assert (await ask(usual, asked)).status == 200
        heard = await ask(strict, asked)

    assert heard.status == (200 if refused is None else 400)
    assert refused is None or f"Got priority {refused} ".encode() in heard.body


async def test_tokens_come_as_slowly_as_the_model_of_time_says() -> None:
    loop = asyncio.get_running_loop()
    slow = TimeModel(step_seconds=0.02, step_seconds_per_sequence=0, prefill_seconds_per_token=0)
    async with SimulatedPod(PodSettings(model="m", time=slow)) as pod, talk_to(pod) as talk:
        began = loop.time()  # of when something was heard a busy loop may be late to tell
        talk.send(post(chat(stream=True, max_tokens=4)))
        await talk.hear_out()

    assert loop.time() - began >= 0.075


async def test_until_tells_the_state_when_it_gives_up() -> None:
    async with SimulatedPod(M) as pod:
        with pytest.raises(TimeoutError, match="'aborts': 0"):
            await pod.until(lambda p: p.aborts == 1, seconds=0.01)


async def test_a_condition_that_raises_raises_where_it_is_awaited() -> None:
    async with SimulatedPod(M) as pod:
        waiting = asyncio.create_task(pod.until(lambda p: p.served > 0 and bool(1 / 0)))
        await asyncio.sleep(0)
        assert (await ask(pod, post(chat(max_tokens=1)))).status == 200
        with pytest.raises(ZeroDivisionError):
            await waiting


# Lives


async def test_a_pod_refuses_connections_while_it_loads() -> None:
    with lasting_ports(1) as (port,):
        pod = SimulatedPod(PodSettings(model="m", port=port, loading_seconds=3600))
        loading = asyncio.create_task(pod.start())
        await pod.until(lambda p: p.stage is Stage.LOADING)
        with pytest.raises(ConnectionRefusedError):
            await ask(pod, get("/health"))
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading


async def test_a_pod_that_has_loaded_serves() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with SimulatedPod(PodSettings(model="m", loading_seconds=0.05)) as pod:
        assert loop.time() - began >= 0.048  # uvloop counts in milliseconds
        assert (await ask(pod, get("/health"))).status == 200


async def test_a_pod_told_to_end_while_it_loads_never_listens() -> None:
    pod = SimulatedPod(PodSettings(model="m", loading_seconds=0.02))
    starting = asyncio.create_task(pod.start())
    while pod.stage is not Stage.LOADING:
        await asyncio.sleep(0)  # one turn of the loop at a time: its loading cannot be over in the same one
    pod.terminate()
    await starting

    assert (pod.stage, pod.port) == (Stage.DOWN, 0)


async def test_a_silent_shutdown_closes_the_port_and_idle_connections_and_says_nothing_more() -> None:
    async with SimulatedPod(M) as pod, talk_to(pod) as idle, talk_to(pod) as open_stream:
        pod.set_fault("stall:2")
        idle.send(get("/health", close=False))
        await idle.hear_until(b"\r\n\r\n")
        open_stream.send(post(chat(stream=True, max_tokens=50)))
        await open_stream.hear_until(b'"role"')
        pod.terminate()

        assert await idle.how_it_ends() == "end"
        with pytest.raises(ConnectionRefusedError):
            await ask(pod, get("/health"))
        assert (pod.stage, pod.open_connections) == (Stage.SILENT, 1)
        with pytest.raises(TimeoutError):
            await open_stream.hear_out(seconds=0.05)
        open_stream.leave()
        await pod.wait_down()


async def test_a_silent_shutdown_has_a_bound() -> None:
    async with SimulatedPod(PodSettings(model="m", silence_seconds=0.01)) as pod, talk_to(pod) as talk:
        pod.pause()
        talk.send(post(chat(stream=True)))
        await talk.hear_until(b"\r\n\r\n")
        pod.terminate()
        heard = await talk.hear_out()

    assert heard.body == b""


async def test_a_drain_finishes_what_runs_refuses_what_comes_and_stays_healthy() -> None:
    settings = PodSettings(model="m", shutdown=Shutdown.DRAIN, shutdown_linger_seconds=0.01)
    async with SimulatedPod(settings) as pod, talk_to(pod) as running:
        pod.pause()
        running.send(post(chat(stream=True, max_tokens=3)))
        await pod.until(lambda p: p.in_flight == 1)
        pod.terminate()
        refused = await ask(pod, post(chat()))
        healthy = await ask(pod, get("/health"))
        pod.resume()
        heard = await running.hear_out()
        await pod.wait_down()

    assert (refused.status, healthy.status) == (500, 200)
    assert b"cannot schedule new futures after shutdown" in refused.body
    assert heard.chunks[-1] == b"data: [DONE]\n\n"


async def test_a_drain_of_an_idle_pod_ends_by_itself() -> None:
    settings = PodSettings(model="m", shutdown=Shutdown.DRAIN, shutdown_linger_seconds=0.01)
    async with SimulatedPod(settings) as pod:
        pod.terminate()
        assert pod.stage is Stage.DRAINING
        async with asyncio.timeout(60):
            await pod.wait_down()


async def test_a_drain_that_takes_too_long_ends_in_silence() -> None:
    settings = PodSettings(model="m", shutdown=Shutdown.DRAIN, shutdown_timeout_seconds=0.01)
    async with SimulatedPod(settings) as pod, talk_to(pod) as running:
        pod.pause()
        running.send(post(chat(stream=True, max_tokens=3)))
        await pod.until(lambda p: p.in_flight == 1)
        pod.terminate()
        await pod.until(lambda p: p.stage is Stage.SILENT)


async def test_a_pod_that_died_can_be_started_again_on_its_port() -> None:
    async with SimulatedPod(M) as pod:
        port = pod.port
        await ask(pod, post(chat(max_tokens=1)))
        pod.die()
        with pytest.raises(ConnectionRefusedError):
            await ask(pod, get("/health"))
        await pod.start()

        assert (pod.port, pod.served, len(pod.requests)) == (port, 0, 0)
        assert (await ask(pod, post(chat(max_tokens=1)))).status == 200


async def test_two_pods_in_one_process_share_nothing() -> None:
    async with SimulatedPod(M) as one, SimulatedPod(M) as other:
        one.set_fault("status:500")
        assert (await ask(one, post(chat(max_tokens=1)))).status == 500
        assert (await ask(other, post(chat(max_tokens=1)))).status == 200

        assert (len(one.requests), len(other.requests)) == (1, 1)


# Controls


async def test_state_and_faults_can_be_reached_over_http() -> None:
    async with SimulatedPod(M) as pod:
        told = await ask(pod, post({"kind": "status", "status": 502, "count": 2}, "/sim/fault"))
        assert told.json["faults"] == [{"kind": "status", "left": 2}]
        statuses = [(await ask(pod, post(chat(max_tokens=1)))).status for _ in range(3)]
        assert statuses == [502, 502, 200]
        await ask(pod, post({"kind": "close"}, "/sim/fault"))
        cleared = await ask(pod, get("/sim/fault", method="DELETE"))

        assert cleared.json["faults"] == []
        assert (await ask(pod, get("/sim/state"))).json["requests"] == 3
        assert [request.path for request in pod.requests] == ["/v1/chat/completions"] * 3


async def test_a_running_pod_can_be_made_slower_and_fast_again() -> None:
    async def seconds(pod: SimulatedPod) -> float:
        began = asyncio.get_running_loop().time()
        assert (await ask(pod, post(chat(max_tokens=5)))).status == 200
        return asyncio.get_running_loop().time() - began

    time_of_steps = TimeModel(step_seconds=0.01, step_seconds_per_sequence=0, prefill_seconds_per_token=0)
    async with SimulatedPod(PodSettings(model="m", time=time_of_steps)) as pod:
        assert (await ask(pod, post({"factor": 10}, "/sim/slowness"))).status == 200
        assert await seconds(pod) >= 0.5
        assert (await ask(pod, post({"factor": 1}, "/sim/slowness"))).status == 200
        async with asyncio.timeout(60):
            while await seconds(pod) >= 0.5:  # a machine may be busy once; a pod that is slow is so each time
                pass

        wrongs: tuple[dict[str, object], ...] = ({"factor": 0}, {"factor": "4"}, {})
        for wrong in wrongs:
            assert (await ask(pod, post(wrong, "/sim/slowness"))).status == 400
        assert (await ask(pod, get("/sim/slowness"))).status == 405


async def test_an_unknown_fault_is_refused_with_the_known_ones() -> None:
    async with SimulatedPod(M) as pod:
        by_route = await ask(pod, post({"kind": "explode"}, "/sim/fault"))
        by_request = await ask(pod, post(chat(sim_fault={"kind": "explode"})))

    for heard in (by_route, by_request):
        assert heard.status == 400
        assert all(kind in heard.body.decode() for kind in FaultKind)


async def test_a_neighbour_can_be_reached_through_any_pod_of_the_process() -> None:
    pods: dict[str, SimulatedPod] = {}
    for name in ("a", "b"):
        pods[name] = SimulatedPod(PodSettings(model="m", name=name), neighbours=pods)
    async with pods["a"] as a, pods["b"] as b:
        await ask(a, post({"kind": "stall"}, "/sim/pods/b/fault"))
        listed = await ask(a, get("/sim/pods"))
        unknown = await ask(a, get("/sim/pods/c/state"))

        assert (a.state()["faults"], b.state()["faults"]) == ([], [{"kind": "stall", "left": None}])
        assert b'"name":"b"' in listed.body
        assert unknown.status == 404


async def test_a_share_of_requests_is_struck_the_same_ones_each_time() -> None:
    async def struck() -> list[bool]:
        async with SimulatedPod(PodSettings(model="m", seed=3)) as pod:
            pod.set_fault(Fault(FaultKind.STATUS, share=0.3))
            return [(await ask(pod, post(chat(max_tokens=1)))).status == 503 for _ in range(40)]

    first = await struck()

    assert first == await struck()
    assert 3 <= sum(first) <= 22
    assert any(a != b for a, b in pairwise(first))
