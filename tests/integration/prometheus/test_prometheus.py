"""A real Prometheus scrapes a gateway and its pods, and fires the alert of what is done to them: no other page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from gateway.parts import THE_USUAL
from gateway.pipeline.overload import Overload
from loadtest.simulator import PodSettings, SimulatedPod
from tests.integration.prometheus.server import QUICKER, RULES, SECONDS, Prometheus, quicker, scraping, until
from tests.integration.test_explain import ops_of
from tests.raw import ask, chat, request
from tests.running import CAPTURES, Running, running

CALLERS = 3
PAUSE_SECONDS = 0.05
EJECTED = ("PoolgatePodEjected", "ticket")
DOWN = ("PoolgatePoolDown", "page")
LOOP_LAG = ("PoolgateLoopLag", "ticket")
"""True, where other tests take the processor: this process' loop is the gateway's, the callers' and the pods'."""
NEVER_OVERLOADED = THE_USUAL._replace(overload=partial(Overload, lag_seconds=(inf, inf)))
"""For the same reason."""


@asynccontextmanager
async def callers(gateway: Running) -> AsyncIterator[None]:
    """Some who stream all the time, whatever they are told."""
    asked = request(chat(stream=True, max_tokens=4), key=gateway.key)

    async def call() -> None:
        while True:
            await ask(gateway.port, asked)
            await asyncio.sleep(PAUSE_SECONDS)

    tasks = [asyncio.create_task(call()) for _ in range(CALLERS)]
    try:
        yield
        assert [task for task in tasks if task.done()] == []
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def watched(prometheus: Prometheus) -> AsyncIterator[set[tuple[str, str]]]:
    """Everything that fires in the meantime."""
    seen: set[tuple[str, str]] = set()

    async def look() -> None:
        while True:
            seen.update(await prometheus.firing() - {LOOP_LAG})
            await asyncio.sleep(PAUSE_SECONDS)

    looking = asyncio.create_task(look())
    try:
        yield seen
        assert not looking.done()
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


def captured_names() -> set[str]:
    """The series of a real vLLM's `/metrics`."""
    lines = (CAPTURES / "metrics-part.txt").read_text("utf-8").splitlines()
    return {line.partition("{")[0] for line in lines if line.startswith("vllm:")}


async def assert_scraped(prometheus: Prometheus) -> None:
    """All targets are up, and what they tell has arrived under its names."""

    async def up() -> bool:
        return await prometheus.targets() == [("poolgate", "up"), ("vllm", "up"), ("vllm", "up")]

    await until(up, SECONDS, "all targets are up")
    p99 = "histogram_quantile(0.99, sum by (le) (rate(poolgate_time_to_first_token_seconds_bucket{model='m'}[4s])))"

    async def measured() -> bool:
        return 0 < (await prometheus.value(p99) or 0.0) < 2.5

    await until(measured, SECONDS, "first tokens are measured")
    both = "count(poolgate_pod_in_flight{job='poolgate', pool='chat', pod=~'chat-[01]'})"

    async def told() -> bool:
        # A scrape that a busy machine makes too late has no values.
        generated = await prometheus.value("sum(vllm:generation_tokens_total)")
        return await prometheus.value(both) == 2 and bool(generated)

    await until(told, SECONDS, "both pods have their series")
    names = set(await prometheus.ask("label/__name__/values"))
    of_vllm = {name for name in names if name.startswith("vllm:")}
    assert of_vllm <= captured_names()
    assert "vllm:num_requests_running" in of_vllm

    async def judged() -> bool:
        groups = (await prometheus.ask("rules"))["groups"]
        health = {rule["health"] for group in groups for rule in group["rules"]}
        assert "err" not in health
        return health == {"ok"}

    await until(judged, SECONDS, "every rule is evaluated")


@pytest.mark.program("prometheus")
async def test_a_killed_pod_is_a_ticket_a_pool_without_pods_a_page_and_it_ends_when_one_is_back(tmp_path: Path) -> None:
    async with (
        SimulatedPod(PodSettings(model="m", port=0)) as first,
        SimulatedPod(PodSettings(model="m", port=0, seed=1)) as second,
        running([first, second], pool={"queue_wait_seconds": 10.0 / QUICKER}, parts=NEVER_OVERLOADED) as gateway,
        ops_of(gateway) as ops,
        callers(gateway),
        scraping(
            tmp_path,
            {"poolgate": [ops.removeprefix("http://")], "vllm": [f"127.0.0.1:{pod.port}" for pod in (first, second)]},
        ) as prometheus,
        watched(prometheus) as seen,
    ):
        await assert_scraped(prometheus)
        assert seen == set()

        async def ticket() -> bool:
            return EJECTED in seen

        async def page() -> bool:
            return DOWN in seen

        async def over() -> bool:
            return DOWN not in await prometheus.firing()

        first.die()
        await until(ticket, SECONDS, "the dead pod is a ticket")
        assert seen == {EJECTED}
        second.die()
        await until(page, SECONDS, "the pool without pods is a page")
        await second.start()
        await until(over, SECONDS, "the page ends")
        assert {alert for alert in seen if alert[1] == "page"} == {DOWN}


# What it runs with is what is shipped.


def durations(expression: str) -> list[float]:
    """The ranges and offsets of an expression, in seconds."""
    found: list[float] = []

    def note(part: promql.Expr) -> None:
        if isinstance(part, promql.MatrixSelector):
            found.append(part.range.total_seconds())
        if isinstance(part, promql.VectorSelector) and part.offset is not None:
            found.append(part.offset.total_seconds())

    promql.walk(promql.parse(expression), note)
    return found


def without_durations(expression: str, told: list[float]) -> str:
    """An expression, as the parser prints it, with the same mark for each of its durations."""
    text = str(promql.parse(expression))
    for seconds in sorted(set(told), reverse=True):
        shown = promql.display_duration(promql.parse_duration(f"{seconds:g}s"))
        text = text.replace(f"[{shown}]", "[D]").replace(f"offset {shown}", "offset D")
    return text


def test_the_quicker_rules_differ_in_their_durations_only() -> None:
    text = RULES.read_text("utf-8")
    groups: list[list[dict[str, Any]]] = [
        [rule for group in yaml.safe_load(each)["groups"] for rule in [*group.pop("rules"), group]]
        for each in (text, quicker(text))
    ]
    assert len(groups[0]) == len(groups[1]) > 30
    for shipped, used in zip(*groups, strict=True):
        if "for" in shipped:
            long, short = (promql.parse_duration(rule.pop("for")).total_seconds() for rule in (shipped, used))
            assert long == QUICKER * short
        if "expr" in shipped:
            expressions = shipped.pop("expr"), used.pop("expr")
            long_ones, short_ones = map(durations, expressions)
            assert long_ones == [QUICKER * each for each in short_ones]
            assert without_durations(expressions[0], long_ones) == without_durations(expressions[1], short_ones)
        assert shipped == used
