"""`poolgate chat` before a real gateway: what is printed where, and what becomes of it when something goes wrong."""

import asyncio
import json
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from gateway.cli.chat_client import Answered, Unanswered, connect, first_model, stream
from loadtest.simulator import Fault, FaultKind, PodSettings, SimulatedPod
from tests.fakes import STREAM_HEAD, Hang, Reset, ScriptedPod, Step, chunk
from tests.integration.test_pods_command import Ended, Terminal, answering, command, reply
from tests.integration.test_process import ROOT, SECONDS, environment
from tests.running import Running, running

TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}\n\n'
STEERING = b'data: {"choices":[{"index":0,"delta":{"content":"lo \\u001b[2J\\u009b"},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = [STREAM_HEAD, *map(chunk, (TOKEN, STEERING, USAGE, DONE)), b"0\r\n\r\n"]


def url(gateway: Running) -> str:
    return f"http://127.0.0.1:{gateway.port}"


async def chat(gateway: Running, *arguments: str, key: str | None = None) -> Ended:
    """The command, with a good key unless another is given."""
    return await command(
        *("chat", *arguments, "--url", url(gateway)), more={"POOLGATE_API_KEY": gateway.key if key is None else key}
    )


@asynccontextmanager
async def spoken(
    *arguments: str, gateway: Running, stdin: bytes | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command while it runs, its outputs in pipes."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "chat", *arguments, "--url", url(gateway)),
        cwd=ROOT,
        env=environment() | {"POOLGATE_API_KEY": gateway.key},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    if stdin is not None:
        process.stdin.write(stdin)
        process.stdin.close()
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# What is printed.


async def test_the_answer_is_on_stdout_and_its_figures_on_stderr() -> None:
    async with ScriptedPod([WHOLE]) as pod, running([pod], tenant={"debug": True}) as gateway:
        ended = await chat(gateway, "hi")
    assert (ended.code, ended.out) == (0, "Hello \x1b[2J\x9b\n")
    figures = r"m · first token after .* ms · 2 tokens · .* · pod chat-0 · request \S+\n"
    assert re.fullmatch(figures, ended.err), ended.err


async def test_the_pod_is_told_to_keys_that_may_debug_only() -> None:
    async with ScriptedPod([WHOLE]) as pod, running([pod]) as gateway:
        ended = await chat(gateway, "hi", "--json")
    told = json.loads(ended.out)
    assert (ended.code, ended.err, told["pod"]) == (0, "", None)
    assert (told["text"], told["finish"], told["prompt_tokens"], told["completion_tokens"]) == (
        *("Hello \x1b[2J\x9b", "stop"),
        *(7, 2),
    )
    assert (told["model"], bool(told["request_id"]), told["ttft_ms"] > 0) == ("m", True, True)


async def test_what_is_asked_is_what_was_said(tmp_path: Path) -> None:
    async with ScriptedPod([WHOLE]) as pod, running([pod]) as gateway:
        ended = await chat(gateway, "hi", "--system", "be short", "--max-tokens", "5", "--model", "m")
        assert ended.code == 0
    body = json.loads(pod.requests[0].partition(b"\r\n\r\n")[2])
    assert body["messages"] == [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}]
    assert (body["model"], body["max_tokens"], body["stream"]) == ("m", 5, True)


@pytest.mark.parametrize("arguments", [[], ["-"]], ids=["none", "dash"])
async def test_the_words_may_come_by_stdin(arguments: list[str]) -> None:
    async with (
        ScriptedPod([WHOLE]) as pod,
        running([pod]) as gateway,
        spoken(*arguments, gateway=gateway, stdin="schöne Grüße".encode()) as process,
        asyncio.timeout(SECONDS),
    ):
        assert await process.wait() == 0
    body = json.loads(pod.requests[0].partition(b"\r\n\r\n")[2])
    assert body["messages"] == [{"role": "user", "content": "schöne Grüße"}]


async def test_without_words_there_is_nothing_to_say() -> None:
    async with ScriptedPod() as pod, running([pod]) as gateway, spoken(gateway=gateway, stdin=b" \n") as process:
        async with asyncio.timeout(SECONDS):
            _, err = await process.communicate()
        assert (process.returncode, err) == (2, b"poolgate: no text came on stdin\n")


async def test_the_answer_comes_as_it_is_made() -> None:
    may_end = asyncio.Event()
    script: list[Step] = [STREAM_HEAD, chunk(TOKEN), may_end, *map(chunk, (STEERING, DONE)), b"0\r\n\r\n"]
    async with (
        ScriptedPod([script]) as pod,
        running([pod]) as gateway,
        spoken("hi", gateway=gateway) as process,
        asyncio.timeout(SECONDS),
    ):
        assert process.stdout is not None
        assert await process.stdout.readexactly(3) == b"Hel"
        may_end.set()
        out, _ = await process.communicate()
        assert (process.returncode, out) == (0, "lo \x1b[2J\x9b\n".encode())


async def test_a_base_url_with_v1_is_one_too() -> None:
    async with ScriptedPod([WHOLE]) as pod, running([pod]) as gateway:
        ended = await command("chat", "hi", "--url", gateway.base_url, "--key", gateway.key)
    assert ended.code == 0


# On a terminal.


async def test_on_a_terminal_waiting_is_seen_and_the_answer_steers_nothing() -> None:
    may_begin = asyncio.Event()
    script: list[Step] = [STREAM_HEAD, may_begin, *WHOLE[1:]]
    async with ScriptedPod([script]) as pod, running([pod]) as gateway:
        near, far = pty.openpty()
        with closing(Terminal(near)) as terminal:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", "chat", "hi", "--url", url(gateway)),
                cwd=ROOT,
                env=environment() | {"TERM": "xterm", "COLUMNS": "200", "POOLGATE_API_KEY": gateway.key},
                stdin=far,
                stdout=far,
                stderr=far,
            )
            os.close(far)
            await terminal.drawn(b"waiting for m ...")
            may_begin.set()
            await terminal.drawn("Hello \N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}".encode())
            await terminal.drawn(b"first token after")
            async with asyncio.timeout(SECONDS):
                assert await process.wait() == 0


# When it goes wrong.


def assert_failed(ended: Ended, *words: str, code: int = 1) -> None:
    assert ended.code == code
    (line,) = ended.err.splitlines()
    assert line.startswith("poolgate: ")
    for word in words:
        assert word in line


async def test_a_refusal_is_told_in_the_gateways_words() -> None:
    async with ScriptedPod() as pod, running([pod]) as gateway:
        assert_failed(
            await chat(gateway, "hi", "--model", "m", key="sk-pg_wrong"), "invalid_api_key (401): ", "(request "
        )
        assert_failed(await chat(gateway, "hi", "--model", "no"), "model_not_found (404): ", "'no'")


async def test_a_limit_is_told_with_when_to_come_again() -> None:
    limits = {"default": {"requests_per_minute": 1, "tokens_per_minute": None, "concurrent": None}}
    async with ScriptedPod([WHOLE]) as pod, running([pod], limits=limits) as gateway:
        assert (await chat(gateway, "hi", "--model", "m")).code == 0
        assert_failed(await chat(gateway, "hi", "--model", "m"), "rate_limit_exceeded (429): ", "requests per minute")


async def test_an_error_in_mid_stream_is_told_after_what_came() -> None:
    async with ScriptedPod([[STREAM_HEAD, chunk(TOKEN), Reset]]) as pod, running([pod]) as gateway:
        ended = await chat(gateway, "hi")
    assert ended.out == "Hel\n"
    assert_failed(ended, "upstream_reset: ")


async def test_a_pod_that_says_an_error_is_told() -> None:
    async with SimulatedPod(PodSettings(model="m")) as pod, running([pod]) as gateway:
        pod.set_fault(Fault(FaultKind.ERROR_EVENT, after=2))
        ended = await chat(gateway, "hi")
    assert ended.code == 1
    assert ended.out.endswith("\n")
    assert "Traceback" not in ended.err


async def test_ctrl_c_frees_the_pod_at_once() -> None:
    async with (
        ScriptedPod([[STREAM_HEAD, chunk(TOKEN), Hang]]) as pod,
        running([pod]) as gateway,
        spoken("hi", gateway=gateway) as process,
        asyncio.timeout(SECONDS),
    ):
        assert process.stdout is not None
        assert await process.stdout.readexactly(3) == b"Hel"
        process.send_signal(signal.SIGINT)
        await pod.peer_left.wait()
        out, err = await process.communicate()
        assert (process.returncode, out, err) == (130, b"\n", b"")
        assert (await gateway.last_line())["outcome"] == "client_left"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("http://127.0.0.1:1", "nothing answers at http://127.0.0.1:1: is the gateway running"),
        ("localhost:8000", "localhost:8000 is no URL: give the gateway as http://HOST:PORT"),
    ],
)
async def test_where_no_gateway_is_that_is_told(where: str, words: str) -> None:
    assert_failed(await command("chat", "hi", "--url", where), words)


BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


async def said(at: str, silence_seconds: float = SECONDS) -> str:
    """A chat, to its end."""
    async with connect(at, "key", silence_seconds) as client:
        return "".join([piece async for piece in stream(client, BODY, Answered())])


EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply("502 Bad Gateway", b"<html>"), "answers with status 502: is this a gateway's public port?"),
        (reply("200 OK", b"<html>"), "the answer was cut"),
        (EVENTS + TOKEN, "the answer was cut: it ended before it was whole"),
        (EVENTS + b"data: [1]\n\n", "what comes is no stream of a chat"),
        (EVENTS + b"data: {\n\n", "what comes is no stream of a chat"),
        (EVENTS + b"x" * (1 << 21), "what comes is no stream of events"),
        (EVENTS + b'data: {"error": {"message": "no", "code": "upstream_stalled"}}\n\n', "upstream_stalled: no"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"", "breaks off, or does not speak HTTP (RemoteProtocolError): is it https://?"),
    ],
)
async def test_an_answer_that_is_no_chat_is_told_in_words(answer: bytes, words: str) -> None:
    async with answering(answer) as at:
        with pytest.raises(Unanswered) as caught:
            await said(at)
    assert words in str(caught.value)


async def test_silence_is_not_waited_for() -> None:
    async with answering(None) as at:
        with pytest.raises(Unanswered, match=r"nothing came from .* for 0\.5 seconds"):
            await said(at, 0.5)


@pytest.mark.parametrize(
    ("body", "words"),
    [(b'{"data": []}', "lists no model for this key"), (b"{}", "does not list models"), (b"[", "does not list models")],
)
async def test_without_a_model_there_is_no_chat(body: bytes, words: str) -> None:
    async with answering(reply("200 OK", body)) as at, connect(at, None) as client:
        with pytest.raises(Unanswered, match=words):
            await first_model(client)


async def test_thinking_counts_as_the_first_token_and_is_not_printed() -> None:
    async with (
        SimulatedPod(PodSettings(model="m", reasoning_parser="x")) as pod,
        running([pod]) as gateway,
        connect(url(gateway), gateway.key) as client,
    ):
        pieces = [piece async for piece in stream(client, {**BODY, "max_tokens": 40}, Answered())]
    assert pieces[0] == ""
