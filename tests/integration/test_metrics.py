"""/metrics of a gateway that has served all kinds of requests: what a Prometheus server finds there."""

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.clock import Clock
from gateway.telemetry.definitions import DEFINITIONS, MAX_MODELS
from gateway.telemetry.exposition import KEEP_SECONDS
from tests.fakes import STREAM_HEAD, Close, Hands, ScriptedPod, answer, chunk
from tests.integration.test_explain import ops_of
from tests.raw import ask, chat, request
from tests.running import Running, running
from tests.turns import within
from tests.unit.telemetry.trails import trail

SECONDS = 60.0
"""For a process, and for its client: a machine may be busy."""
GOOD = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
EVENTS = (
    b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    b"data: [DONE]\n\n"
)
STREAM = STREAM_HEAD + chunk(EVENTS) + b"0\r\n\r\n"
BUSY = answer(b"{}", b"503 Service Unavailable")
FAILED = answer(b'{"error":{"message":"no"}}', b"500 Internal Server Error")
# What Prometheus 2.42 says: it would rather have OpenMetrics, and takes what it gets.
ACCEPT = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


def script_of(raw: bytes) -> list[bytes | type[Close]]:
    """What the pods do with a request, by a word in it."""
    for word, script in ((b"cut", [Close]), (b"busy", [BUSY]), (b"fail", [FAILED]), (b'"stream":true', [STREAM])):
        if word in raw.replace(b'": ', b'":'):
            return list(script)
    return [GOOD]


@asynccontextmanager
async def a_busy_life() -> AsyncIterator[tuple[Running, httpx2.AsyncClient]]:
    """A gateway that has answered, streamed, tried again, failed and refused; and a client of its ops port."""
    limits = {"rules": [{"per": "model", "match": "limited", "requests_per_minute": 1}]}
    models = {"limited": {"to": [{"model": "m"}]}}
    async with (
        ScriptedPod(script_of=script_of) as first,
        ScriptedPod(script_of=script_of) as second,
        running((first, second), limits=limits, models=models) as gateway,
        ops_of(gateway) as url,
        httpx2.AsyncClient(base_url=url, timeout=SECONDS) as client,
    ):
        for words in ("hi", "cut", "busy", "fail"):
            for stream in (False, True):
                body = chat(stream=stream) | {"messages": [{"role": "user", "content": words}]}
                await ask(gateway.port, request(body, key=gateway.key))
        for model in ("limited", "limited", "unknown"):
            await ask(gateway.port, request(chat(model=model), key=gateway.key))
        await ask(gateway.port, request(chat(), key="wrong"))
        await gateway.settled()
        yield gateway, client


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.mark.program("promtool")
async def test_promtool_has_nothing_to_complain_of() -> None:
    async with a_busy_life() as (_, client):
        text = (await client.get("/metrics")).text
    checked = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=SECONDS
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    assert "poolgate_retries_total{" in text


async def test_a_scrape_finds_every_metric_and_what_has_just_ended() -> None:
    async with a_busy_life() as (_, client):
        found = families((await client.get("/metrics")).text)
    assert set(found) == {definition.name.removesuffix("_total") for definition in DEFINITIONS}
    empty = {name for name, family in found.items() if not family.samples}
    assert empty <= {"poolgate_queue_wait_seconds"}
    ended = [sample.labels for sample in found["poolgate_requests"].samples if sample.name.endswith("_total")]
    assert {"completed", "refused", "upstream_failed"} <= {labels["outcome"] for labels in ended}
    assert {labels["model"] for labels in ended} == {"m", "limited", "other"}
    assert {labels["status"] for labels in ended} >= {"200", "401", "404", "429"}


async def test_no_label_has_a_value_beyond_its_closed_set() -> None:
    async with a_busy_life() as (_, client):
        found = families((await client.get("/metrics")).text)
    for definition in DEFINITIONS:
        for sample in found[definition.name.removesuffix("_total")].samples:
            for label in definition.labels:
                if label.values:
                    assert sample.labels[label.name] in label.values, sample


async def test_who_would_rather_have_openmetrics_gets_plain_text_that_is_whole() -> None:
    async with a_busy_life() as (_, client):
        asked = await client.get("/metrics", headers={"Accept": ACCEPT})
    assert asked.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert not asked.history
    assert families(asked.text)["poolgate_requests"].type == "counter"


async def test_many_scrapers_get_one_text_and_the_next_second_another() -> None:
    hands = Hands()
    async with (
        ScriptedPod([[GOOD]]) as pod,
        running((pod,), clock=Clock(hands)) as gateway,
        ops_of(gateway) as url,
        httpx2.AsyncClient(base_url=url, timeout=SECONDS) as client,
    ):
        await ask(gateway.port, request(chat(), key=gateway.key))
        await gateway.settled()
        texts = {each.text for each in await asyncio.gather(*(client.get("/metrics") for _ in range(20)))}
        assert len(texts) == 1
        await ask(gateway.port, request(chat(), key=gateway.key))
        await gateway.settled()
        hands.now += KEEP_SECONDS - 0.01
        assert (await client.get("/metrics")).text in texts
        hands.now += 0.01
        text = (await client.get("/metrics")).text
    answered = {"model": "m", "operation": "chat", "status": "200", "outcome": "completed"}

    def count(text: str) -> float:
        samples = families(text)["poolgate_requests"].samples
        return sum(sample.value for sample in samples if sample.labels == answered and sample.name.endswith("_total"))

    assert count(text) == count(texts.pop()) + 1


async def test_a_stall_of_the_loop_is_still_told_when_it_is_long_over() -> None:
    async with ScriptedPod([[GOOD]]) as pod, running((pod,)) as gateway:
        await asyncio.sleep(0.1)
        time.sleep(0.3)  # what must never be done
        async with within(SECONDS):
            while gateway.sample("poolgate_loop_lag_seconds") < 0.2:
                await asyncio.sleep(0.01)
        for _ in range(3):
            await ask(gateway.port, request(chat(), key=gateway.key))
        assert gateway.sample("poolgate_loop_lag_seconds") >= 0.2


async def test_a_refused_configuration_is_told_until_it_is_mended(tmp_path: Path) -> None:
    async with ScriptedPod([[GOOD]]) as pod:
        good = yaml.safe_dump({"discovery": {"mode": "static", "pods": [{"url": pod.url, "pool": "chat"}]}})
        file = tmp_path / "poolgate.yaml"
        file.write_text(good)

        async def until(refused: float) -> None:
            async with within(SECONDS):
                while gateway.sample("poolgate_config_refused") != refused:
                    await asyncio.sleep(0.01)

        async with running((), file=file) as gateway:
            assert gateway.sample("poolgate_config_refused") == 0
            file.write_text(good + "polls: {}\n")
            await until(1)
            assert gateway.sample("poolgate_config_reloads_total", result="refused") == 1
            file.write_text(good)
            await until(0)


async def test_adapters_that_have_gone_make_room_for_the_alias_that_is_served_now() -> None:
    aliases = {"alias": {"to": [{"model": "m"}]}}
    async with ScriptedPod([[GOOD]]) as pod, running((pod,), models=aliases) as gateway:
        for number in range(MAX_MODELS):
            gateway.gateway.metrics.observe(trail(model=f"gone-{number}"))
        for model in ("alias", "m", "alias"):
            came = await ask(gateway.port, request(chat(model=model), key=gateway.key))
            assert json.loads(came.body)["choices"]
        await gateway.settled()
        answered = {"operation": "chat", "status": "200", "outcome": "completed"}
        assert gateway.sample("poolgate_requests_total", model="alias", **answered) == 2
        assert gateway.sample("poolgate_requests_total", model="m", **answered) == 1
        assert gateway.sample("poolgate_requests_total", model="gone-0", **answered) == 0
        # By model, not by the name that was asked for.
        text = gateway.gateway.metrics.exposition().decode()
        assert {sample.labels["model"] for sample in families(text)["poolgate_in_flight"].samples} == {"m"}
