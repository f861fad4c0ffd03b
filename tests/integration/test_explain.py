"""What operators see of balancing: `poolgate explain`, the queue, ejected pods; of gateways that serve requests."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from gateway.cli.ops_client import ANSWER_SECONDS, NoStatus, connect, read_request, read_status
from gateway.core.clock import Clock
from tests.fakes import Close, Hands, ScriptedPod, answer
from tests.integration.test_pods_command import (
    TOKEN,
    Ended,
    answering,
    assert_refused,
    command,
    ops_port,
    reply,
)
from tests.raw import ask, chat, request
from tests.running import Running, running
from tests.turns import within
from tests.unit.telemetry.trails import trail

GOOD = answer(b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
BUSY = answer(b"{}", b"503 Service Unavailable")
LEAST = {"policy": "least"}


async def explain(*arguments: str) -> Ended:
    return await command("explain", *arguments)


@asynccontextmanager
async def ops_of(gateway: Running) -> AsyncIterator[str]:
    """The URL of a gateway's own ops port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(gateway.gateway.ops, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    )
    serving = asyncio.create_task(server.serve([listener]))
    try:
        while not server.started:
            await asyncio.sleep(0.001)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


def one(gateway: Running, request_id: str, **more: Any) -> bytes:
    """A chat with this id."""
    return request(chat(**more), key=gateway.key, headers={"X-Request-Id": request_id})


async def status_at(url: str) -> dict[str, Any]:
    async with connect(url, None) as client:
        return await read_status(client)


async def told_of(url: str, request_id: str) -> dict[str, Any]:
    async with connect(url, None) as client:
        return await read_request(client, request_id)


async def until(holds: Any) -> None:
    """Wait for something that the loop brings about."""
    async with within(10):
        while not holds():
            await asyncio.sleep(0.002)


# Explained.


async def test_a_request_is_explained_as_soon_as_it_has_ended() -> None:
    async with ScriptedPod([[GOOD]]) as pod, running([pod]) as gateway, ops_of(gateway) as url:
        assert (await ask(gateway.port, one(gateway, "the-one"))).status == 200
        ended = await explain("the-one", "--url", url)
    assert (ended.code, ended.err) == (0, "")
    head, below, _, why = ended.out.splitlines()[:4]
    assert head.startswith("chat for m: completed in ")
    assert head.rstrip().endswith(" ms, 1 attempt")
    assert "request the-one · tenant tests · " in below
    assert why.rstrip() == "chat-0: it was the only pod with room (only)"
    assert "\x1b" not in ended.out


async def test_each_attempt_of_a_request_that_was_tried_again_is_told() -> None:
    pods = [ScriptedPod([[BUSY]]), ScriptedPod([[BUSY]])]
    async with pods[0], pods[1], running(pods, pool=LEAST) as gateway, ops_of(gateway) as url:
        assert (await ask(gateway.port, one(gateway, "twice"))).status == 503
        ended = await explain("twice", "--url", url, "--json")
        text = (await explain("twice", "--url", url)).out
    told = json.loads(ended.out)
    assert (told["outcome"], told["status"], told["code"]) == ("refused", 503, "overloaded")
    assert sorted(each["pod"] for each in told["attempts"]) == ["chat-0", "chat-1"]
    assert [each["ended"] for each in told["attempts"]] == ["busy", "busy"]
    assert "chat for m: refused (overloaded) after " in text
    assert ", 2 attempts" in text
    assert "1. chat-" in text
    assert "2. chat-" in text


async def test_json_is_what_the_gateway_said_and_holds_no_prompt_no_key_and_no_address() -> None:
    body = chat(messages=[{"role": "user", "content": "a canary sings"}])
    clock = Clock(Hands(), lambda: 1_800_000_000.5)
    async with ScriptedPod([[GOOD]]) as pod, running([pod], clock=clock) as gateway, ops_of(gateway) as url:
        await ask(gateway.port, request(body, key=gateway.key, headers={"X-Request-Id": "the-one"}))
        ended = await explain("the-one", "--url", url + "/", "--json")
        told = await told_of(url, "the-one")
        assert json.loads(ended.out) == told
        for secret in ("canary", gateway.key, "127.0.0.1", str(pod.port)):
            assert secret not in ended.out
    assert (told["request_id"], told["tenant"], told["pool"]) == ("the-one", "tests", "chat")


async def test_the_id_that_an_answer_bears_is_the_one_to_ask_for() -> None:
    # A clock of its own: what lies between two looks at the machine's two depends on what else it does.
    hands, go = Hands(), asyncio.Event()
    clock = Clock(hands, lambda: 1_800_000_000.5 + hands())
    async with ScriptedPod([[go, GOOD]]) as pod, running([pod], clock=clock) as gateway, ops_of(gateway) as url:
        asking = asyncio.create_task(ask(gateway.port, request(chat(), key=gateway.key)))
        await until(lambda: pod.requests)
        hands.now += 0.25
        go.set()
        came = await asking
        told = await told_of(url, came.headers["x-request-id"])
        line = await gateway.last_line()
        assert line["duration_ms"] == 250
    assert told["request_id"] == line["request_id"] == came.headers["x-request-id"]
    for name in ("ts", "tenant", "key_id", "model", "pool", "status", "outcome", "queue_ms", "duration_ms"):
        assert told[name] == line[name], name


async def test_a_stranger_leaves_nothing_to_explain() -> None:
    async with ScriptedPod([[GOOD]]) as pod, running([pod]) as gateway, ops_of(gateway) as url:
        came = await ask(gateway.port, request(chat(), key="sk-wrong", headers={"X-Request-Id": "stranger"}))
        assert came.status == 401
        with pytest.raises(NoStatus, match="remembers no request 'stranger'"):
            await told_of(url, "stranger")


# The queue.


async def test_who_waits_is_seen_while_it_waits_and_how_long_is_told_after() -> None:
    go = asyncio.Event()
    async with (
        ScriptedPod([[go, GOOD]]) as pod,
        running([pod], pool={"max_in_flight_per_pod": 1}) as gateway,
        ops_of(gateway) as url,
    ):
        first = asyncio.create_task(ask(gateway.port, one(gateway, "first")))
        await until(lambda: pod.requests)
        second = asyncio.create_task(ask(gateway.port, one(gateway, "second")))
        await until(lambda: dict(gateway.gateway.balancer.waiting())["chat"])
        assert gateway.sample("poolgate_queue_depth", pool="chat") == 1
        assert (await status_at(url))["pools"]["chat"]["queue"] == 1
        go.set()
        assert ((await first).status, (await second).status) == (200, 200)
        assert gateway.sample("poolgate_queue_depth", pool="chat") == 0
        assert gateway.sample("poolgate_queue_wait_seconds_count", pool="chat") == 1
        waited, line = (await told_of(url, "second"))["queue_ms"], await gateway.last_line()
        assert (await told_of(url, "first"))["queue_ms"] == 0
        text = (await explain("second", "--url", url)).out
    assert (line["request_id"], line["queue_ms"]) == ("second", waited)
    assert 0 < waited <= line["duration_ms"]
    assert ", 1 attempt, waited " in text.splitlines()[0]


# Ejected pods.


async def test_an_ejected_pod_is_seen_by_state_reason_and_metric() -> None:
    sick, well = ScriptedPod([[Close]]), ScriptedPod([[GOOD]])
    hands = Hands()
    async with sick, well, running([sick, well], pool=LEAST, clock=Clock(hands)) as gateway, ops_of(gateway) as url:
        async with within(10):
            while not gateway.gateway.balancer.ejected:
                await ask(gateway.port, request(chat(), key=gateway.key))
                hands.now += 1
        # From here on time stands still: the pod is not back before all have looked.
        assert gateway.sample("poolgate_pods", pool="chat", state="ejected") == 1
        assert gateway.sample("poolgate_pods", pool="chat", state="ready") == 1
        assert gateway.sample("poolgate_ejections_total", pool="chat", reason="consecutive") == 1
        told = await status_at(url)
        table = (await command("pods", "--url", url, "--once")).out
    assert (told["pools"]["chat"]["ejected"], told["pools"]["chat"]["panic"]) == (1, False)
    (pod,) = [each for each in told["pods"] if each["name"] == "chat-0"]
    assert pod["state"] == "ejected"
    assert pod["reason"].startswith("several requests in a row failed there; back in 1")
    assert "ejected" in table
    assert "several requests in a row failed there; back in " in table


# When it cannot be told.


@pytest.mark.parametrize("request_id", ["unknown", "a/b c?d#e", "../../status.json", "\x1b[2J"])
async def test_a_request_that_is_not_remembered_is_told_with_what_to_do(request_id: str) -> None:
    async with ops_port() as port:
        port.trails["id-1"] = trail()
        ended = await explain(request_id, "--url", port.url)
    assert_refused(ended, f"{port.url} remembers no request {request_id!r}", "--url", "access lines")
    assert "\x1b" not in ended.err


async def test_the_token_is_wanted_and_given() -> None:
    async with ops_port(TOKEN) as port:
        port.trails["id-1"] = trail()
        without, wrong = (
            await explain("id-1", "--url", port.url),
            await explain("id-1", "--url", port.url, "--token", "x"),
        )
        for ended in (without, wrong):
            assert_refused(ended, "the ops port wants a token: --token or POOLGATE_OPS_TOKEN")
        assert (await explain("id-1", "--url", port.url, "--token", TOKEN)).code == 0
        ended = await command("explain", "id-1", "--url", port.url, more={"POOLGATE_OPS_TOKEN": TOKEN})
        assert ended.code == 0


async def test_the_public_port_is_not_mistaken_for_the_ops_port() -> None:
    async with ScriptedPod([[GOOD]]) as pod, running([pod]) as gateway:
        with pytest.raises(NoStatus, match=r"answers with status 404: is this the gateway's ops port\?"):
            await told_of(f"http://127.0.0.1:{gateway.port}", "id-1")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (reply("404 Not Found", b"{}"), "answers with status 404: is this the gateway's ops port?"),
        (reply("404 Not Found", b'{"error": "x"}'), "answers with status 404"),
        (reply("404 Not Found", b"<html>"), "answers with status 404"),
        (reply("500 Oh", b""), "answers with status 500"),
        (reply("200 OK", b"<html>"), "is not a gateway's status"),
        (reply("200 OK", b'{"request_id": "x"}'), "is not a gateway's status"),
        (b"", "breaks off"),
    ],
)
async def test_an_answer_that_explains_nothing_is_told_in_words(raw: bytes, words: str) -> None:
    async with answering(raw) as url:
        with pytest.raises(NoStatus) as caught:
            await told_of(url, "id-1")
    assert words in str(caught.value)
    assert url in str(caught.value)


async def test_an_ops_port_that_does_not_answer_is_not_waited_for() -> None:
    async with answering(None) as url, connect(url, None) as client, within(ANSWER_SECONDS - 1):
        with pytest.raises(NoStatus, match=r"does not answer within 0\.05 seconds"):
            await read_request(client, "id-1", seconds=0.05)
