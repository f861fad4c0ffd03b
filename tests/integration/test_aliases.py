"""A name leads to the models that its alias says. The pod reads its own model's name; keys know the name asked for."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes import STREAM_HEAD, Hang, ScriptedPod, Step, answer, chunk
from tests.integration.test_process import run
from tests.raw import Answer, RawClient, ask, chat, request
from tests.running import Running, Side, running

GOOD = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
FAILED = answer(b'{"error":{"message":"oh","type":"x","code":500}}', b"500 Internal Server Error")
STREAM = [
    STREAM_HEAD,
    chunk(b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'),
    chunk(b"data: [DONE]\n\n"),
    b"0\r\n\r\n",
]


def pod(name: str, *script: Step) -> ScriptedPod:
    """A pod that serves one model, and answers each request by the script."""
    card = {"id": name, "object": "model", "owned_by": "vllm", "max_model_len": 4096}
    return ScriptedPod([script or (GOOD,)], models=json.dumps({"object": "list", "data": [card]}).encode())


def alias(*to: str, fallback: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"to": [{"model": model} for model in to], "fallback": list(fallback)}


def sent(to: ScriptedPod) -> list[bytes]:
    """The bodies that a pod was sent."""
    return [each.partition(b"\r\n\r\n")[2] for each in to.requests]


async def asked(gateway: Running, model: str, **more: Any) -> Answer:
    return await ask(gateway.port, request(chat(model=model, **more), key=gateway.key))


async def test_a_pod_reads_its_model_s_name_and_every_other_byte_as_it_came(side: Side) -> None:
    raw = b'{ "user" : "m\\u00e9","x":{"model":"gpt"},\n"model" : "gpt" , "messages":[{"role":"user","content":"gpt"}]}'
    async with pod("m") as one, running([one], side=side, models={"gpt": alias("m")}) as gateway:
        came = await ask(gateway.port, request(raw, key=gateway.key))
        assert came.status == 200
        assert sent(one) == [raw.replace(b'"model" : "gpt"', b'"model" : "m"')]
        line = await gateway.last_line()
        assert (line["model"], line["pool"], line["outcome"], line["attempts"]) == ("gpt", "chat", "completed", 1)
        labels = {"model": "gpt", "operation": "chat", "status": "200", "outcome": "completed"}
        assert gateway.sample("poolgate_requests_total", **labels) == 1


async def test_a_stream_under_an_alias_is_asked_for_with_both_edits(side: Side) -> None:
    async with pod("m", *STREAM) as one, running([one], side=side, models={"gpt": alias("m")}) as gateway:
        came = await asked(gateway, "gpt", stream=True)
        assert came.body.endswith(b"data: [DONE]\n\n")
        (body,) = sent(one)
        assert json.loads(body) == chat(stream=True, stream_options={"include_usage": True})


async def test_a_form_under_an_alias_brings_its_recording_unchanged(side: Side) -> None:
    def form(model: bytes) -> bytes:
        head = b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        file = head % (b"file", b'; filename="a.wav"', b"\x00\xff model gpt " * 100)
        return file + head % (b"model", b"", model) + head % (b"language", b"", b"gpt") + b"--b--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    models = {"gpt": alias("acme/whisper")}
    hears = pod("acme/whisper", answer(b'{"text":"hello"}'))
    async with hears, running([hears], side=side, models=models) as gateway:
        path = "/v1/audio/transcriptions"
        came = await ask(gateway.port, request(form(b"gpt"), key=gateway.key, path=path, headers=headers))
        assert (came.status, json.loads(came.body)) == (200, {"text": "hello"})
        assert sent(hears) == [form(b"acme/whisper")]


async def test_a_split_sends_to_each_of_its_models() -> None:
    async with pod("a") as one, pod("b") as other, running([one, other], models={"ab": alias("a", "b")}) as gateway:
        assert {(await asked(gateway, "ab")).status for _ in range(40)} == {200}
        names = Counter(json.loads(body)["model"] for each in (one, other) for body in sent(each))
        assert set(names) == {"a", "b"}
        assert names["a"] == len(one.requests)


@pytest.mark.parametrize("first", ["unknown", "known"])
async def test_a_fallback_is_taken_when_there_is_no_ready_pod(first: str) -> None:
    models = {"gpt": alias(first, fallback=("x", "b"))}
    async with pod("b") as one, running([one], models=models, pools={"other": {"models": ["known"]}}) as gateway:
        assert (await asked(gateway, "gpt")).status == 200
        assert json.loads(sent(one)[0])["model"] == "b"
        line = await gateway.last_line()
        assert (line["model"], line["pool"], line["attempts"]) == ("gpt", "chat", 1)


async def test_a_fallback_is_taken_when_no_pod_can_be_reached() -> None:
    models = {"gpt": alias("a", fallback=("b",))}
    async with pod("b") as one, pod("a") as gone, running([gone, one], models=models) as gateway:
        gone.refuse()
        assert (await asked(gateway, "gpt")).status == 200
        assert json.loads(sent(one)[0])["model"] == "b"


@pytest.mark.parametrize(("limit", "wait"), [(0, 10.0), (8, 0.01)], ids=["queue_full", "queue_timeout"])
async def test_a_fallback_is_taken_when_the_queue_is_full_or_takes_too_long(limit: int, wait: float) -> None:
    settings = {"max_in_flight_per_pod": 1, "queue_limit": limit, "queue_wait_seconds": wait}
    busy, free = pod("a", Hang), pod("b")
    async with busy, free:
        pods = [{"url": busy.url, "pool": "chat"}, {"url": free.url, "pool": "other"}]
        models = {"gpt": alias("a", fallback=("b",))}
        async with running([], discovery={"pods": pods}, pool=settings, models=models) as gateway:
            holding = await RawClient.connect(gateway.port)
            holding.send(request(chat(model="a"), key=gateway.key))
            while not busy.requests:
                await asyncio.sleep(0.001)
            assert (await asked(gateway, "gpt")).status == 200
            assert json.loads(sent(free)[0])["model"] == "b"
            code = "queue_timeout" if limit else "queue_full"
            assert (await asked(gateway, "a")).error["code"] == code
            holding.leave()
            await gateway.settled()


async def test_no_fallback_is_taken_when_the_model_answers_with_an_error() -> None:
    models = {"gpt": alias("a", fallback=("b",))}
    async with pod("a", FAILED) as one, pod("b") as other, running([one, other], models=models) as gateway:
        came = await asked(gateway, "gpt")
        assert (came.status, came.error["code"]) == (500, "upstream_failed")
        assert not other.requests


async def test_an_alias_of_which_no_model_is_served_is_known_and_answered_with_503() -> None:
    async with pod("m") as one, running([one], models={"gpt": alias("x", fallback=("y",))}) as gateway:
        came = await asked(gateway, "gpt")
        assert (came.status, came.error["code"]) == (503, "no_ready_pod")
        assert "retry-after" in came.headers


async def test_a_model_s_own_name_may_be_an_alias_that_adds_a_fallback() -> None:
    async with pod("m") as one, running([one], models={"m": alias("m", fallback=("b",))}) as gateway:
        assert (await asked(gateway, "m")).status == 200
        assert json.loads(sent(one)[0])["model"] == "m"


async def test_a_key_s_globs_apply_to_the_name_asked() -> None:
    tenant = {"models": ("gpt*",)}
    async with pod("m") as one, running([one], tenant=tenant, models={"gpt": alias("m")}) as gateway:
        assert (await asked(gateway, "gpt")).status == 200
        assert (await asked(gateway, "m")).error["code"] == "model_not_allowed"
        assert await models_of(gateway) == ["gpt"]


async def test_aliases_are_listed_and_found_by_their_names(side: Side) -> None:
    models = {"acme/gpt": alias("x", "m"), "nowhere": alias("x")}
    async with pod("m") as one, running([one], side=side, models=models) as gateway:
        assert await models_of(gateway) == ["m", "acme/gpt"]
        found = await ask(gateway.port, request(b"", key=gateway.key, method="GET", path="/v1/models/acme%2Fgpt"))
        card = json.loads(found.body)
        assert (found.status, card["id"], card["max_model_len"]) == (200, "acme/gpt", 4096)
        gone = await ask(gateway.port, request(b"", key=gateway.key, method="GET", path="/v1/models/nowhere"))
        assert gone.status == 404


async def models_of(gateway: Running) -> list[str]:
    came = await ask(gateway.port, request(b"", key=gateway.key, method="GET", path="/v1/models"))
    return [card["id"] for card in json.loads(came.body)["data"]]


def test_check_warns_of_an_alias_that_leads_to_no_pool(tmp_path: Path) -> None:
    file = tmp_path / "poolgate.yaml"
    settings = {"pools": {"chat": {"models": ["qwen*"]}}, "models": {"gpt": alias("llama")}, "auth": {"mode": "none"}}
    file.write_text(yaml.safe_dump(settings))
    ended = run("check", str(file), "--offline")
    assert ended.returncode == 0
    assert ended.stderr == f"{file}:4: warning: models.gpt: no pool of this file may serve the model 'llama'\n"
