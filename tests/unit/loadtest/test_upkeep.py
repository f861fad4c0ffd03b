"""Adapters that come and go, and sleep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from loadtest.simulator import PodSettings, SimulatedPod
from tests.unit.loadtest.talking import Heard, ask, chat, get, post, talk_to

M = PodSettings(model="m", dev_mode=True, runtime_lora_updating=True)


def names_of(models: Heard) -> list[tuple[str, str]]:
    cards: Any = models.json["data"]
    return [(card["id"], card["root"]) for card in cards]


@pytest.mark.parametrize("path", ["/sleep", "/wake_up", "/is_sleeping", "/server_info", "/reset_prefix_cache"])
async def test_without_dev_mode_there_are_no_such_routes(path: str) -> None:
    async with SimulatedPod(replace(M, dev_mode=False)) as pod:
        assert (await ask(pod, get(path))).status == (await ask(pod, post({}, path))).status == 404


async def test_without_runtime_updating_adapters_do_not_come_by_http_but_do_in_python() -> None:
    async with SimulatedPod(replace(M, runtime_lora_updating=False)) as pod:
        refused = await ask(pod, post({"lora_name": "a", "lora_path": "/a"}, "/v1/load_lora_adapter"))
        pod.load_adapter("a")
        answered = await ask(pod, post(chat(model="a", max_tokens=2)))

    assert (refused.status, answered.status) == (404, 200)
    assert answered.json["model"] == "a"


async def test_an_adapter_is_listed_until_it_is_unloaded_and_gone_after_a_restart() -> None:
    async with SimulatedPod(replace(M, lora_adapters=("always",))) as pod:
        pod.load_adapter("tuned", "/adapters/tuned-3")
        loaded = names_of(await ask(pod, get("/v1/models")))
        pod.unload_adapter("always")
        left = names_of(await ask(pod, get("/v1/models")))
        await pod.close()
        await pod.start()
        again = names_of(await ask(pod, get("/v1/models")))

    assert loaded == [("m", "/models/m"), ("always", "/models/always"), ("tuned", "/adapters/tuned-3")]
    assert left == [("m", "/models/m"), ("tuned", "/adapters/tuned-3")]
    assert again == [("m", "/models/m"), ("always", "/models/always")]


async def test_a_request_outlives_the_adapter_it_uses() -> None:
    async with SimulatedPod(replace(M, lora_adapters=("tuned",))) as pod, talk_to(pod) as talk:
        pod.pause()
        talk.send(post(chat(model="tuned", max_tokens=2)))
        await pod.until(lambda p: p.waiting == 1)
        pod.unload_adapter("tuned")
        gone = await ask(pod, post(chat(model="tuned")))
        pod.resume()
        heard = await talk.hear_out()

    assert (gone.status, heard.status) == (404, 200)


async def test_an_unknown_adapter_is_not_unloaded() -> None:
    async with SimulatedPod(M) as pod:
        with pytest.raises(KeyError):
            pod.unload_adapter("gone")


async def test_adapters_with_requests_are_told_together() -> None:
    async with SimulatedPod(replace(M, lora_adapters=("a", "b"), max_loras=2, max_num_seqs=1)) as pod:
        async with talk_to(pod) as first, talk_to(pod) as second:
            for talk, model in ((first, "a"), (second, "b")):
                talk.send(post(chat(model=model, max_tokens=200)))
            await first.hear_out()
            await second.hear_out()
        page = (await ask(pod, get("/metrics"))).body.decode()

    for names in ("", "a,b", "b"):
        labels = f'max_lora="2",running_lora_adapters="{names}",waiting_lora_adapters="{names}"'
        assert f"vllm:lora_requests_info{{{labels}}} " in page


@pytest.mark.parametrize("stream", [True, False])
async def test_sleep_ends_what_runs_with_what_it_has_and_counts_it(stream: bool) -> None:
    async with SimulatedPod(replace(M, max_num_seqs=1)) as pod, talk_to(pod) as running, talk_to(pod) as waiting:
        running.send(post(chat(max_tokens=8000, stream=True)))
        await running.hear_chunks(3)
        waiting.send(post(chat(max_tokens=9, stream=stream)))
        await pod.until(lambda p: p.waiting == 1)
        slept = await ask(pod, post({}, "/sleep?level=2"))
        one, other = await running.hear_out(), await waiting.hear_out()
        page = (await ask(pod, get("/metrics"))).body.decode()
        left = (pod.running, pod.waiting, pod.in_flight, pod.aborts)

    assert slept.json == {"status": "sleeping", "level": 2}
    assert left == (0, 0, 0, 0)
    assert one.is_whole
    assert one.events[-1]["choices"][0]["finish_reason"] == "abort"  # type: ignore[index]
    assert (other.events[-1] if stream else other.json)["choices"][0]["finish_reason"] == "abort"  # type: ignore[index]
    assert 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="m"} 2.0' in page
    assert 'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.0' in page


async def test_sleep_that_keeps_requests_lets_them_go_on_later() -> None:
    async with SimulatedPod(M) as pod, talk_to(pod) as talk:
        talk.send(post(chat(max_tokens=3000, stream=True)))
        await talk.hear_chunks(3)
        await ask(pod, post({}, "/sleep?mode=keep"))
        asleep = await ask(pod, get("/is_sleeping"))
        await ask(pod, post({}, "/wake_up"))
        heard = await talk.hear_out()

    assert asleep.json == {"is_sleeping": True}
    assert len(heard.events) == 3001
    assert heard.events[-1]["choices"][0]["finish_reason"] == "length"  # type: ignore[index]


async def test_a_prefix_cache_in_use_is_not_reset() -> None:
    async with SimulatedPod(M) as pod, talk_to(pod) as talk:
        body = chat(max_tokens=1, messages=[{"role": "user", "content": "word " * 200}])
        await ask(pod, post(body))
        remembered = pod.engine.pool.remembered
        talk.send(post(chat(max_tokens=8000, stream=True)))
        await talk.hear_chunks(1)
        refused = await ask(pod, post({}, "/reset_prefix_cache"))
        talk.leave()
        await pod.until(lambda p: p.running == 0)
        done = await ask(pod, post({}, "/reset_prefix_cache"))

    assert remembered > 0
    assert (refused.json, done.json) == ({"success": False}, {"success": True})
    assert pod.engine.pool.remembered == 0


async def test_what_a_server_tells_of_itself_has_vllm_s_three_parts() -> None:
    async with SimulatedPod(M) as pod:
        text, parts = await ask(pod, get("/server_info")), await ask(pod, get("/server_info?config_format=json"))

    assert set(text.json) == set(parts.json) == {"vllm_config", "vllm_env", "system_env"}
    assert isinstance(text.json["vllm_config"], str)
    assert isinstance(parts.json["vllm_config"], dict)


@pytest.mark.parametrize("level", ["3", "-1", "deep"])
async def test_there_is_no_such_level_of_sleep(level: str) -> None:
    async with SimulatedPod(M) as pod:
        assert (await ask(pod, post({}, f"/sleep?level={level}"))).status == 400
        assert pod.sleep_level is None
