"""Comments of the gateway's own, before the first event and between two: each SDK reads over them."""

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from pydantic import SecretStr

from tests.clients.with_node import FOLDER
from tests.fakes import STREAM_HEAD, ScriptedPod, Step, chunk
from tests.integration.balancing.scenes import Scene, scene
from tests.raw import chat, request
from tests.running import Side, captured_events

HELLO: Any = [{"role": "user", "content": "Hello"}]
CHAT = captured_events("12-chat-stream-usage.http")
MESSAGES = captured_events("79-messages-stream.http")
RESPONSES = captured_events("75-responses-stream.http")


def words(pattern: str, events: Sequence[bytes]) -> str:
    """What the events say together."""
    told: str = json.loads(f'"{"".join(re.findall(pattern, b"".join(events).decode()))}"')
    return told


WORDS = {
    "/v1/chat/completions": words(r'"content":"((?:[^"\\]|\\.)*)"', CHAT),
    "/v1/messages": words(r'"text_delta","text":"((?:[^"\\]|\\.)*)"', MESSAGES),
    "/v1/responses": words(r'"delta":"((?:[^"\\]|\\.)*)"', RESPONSES),
}
SECONDS = 5.0
SECONDS_TO_START = 60.0
"""For a process, Node's among them: a machine may be busy."""
COMMENT = b": keep-alive\n"
NODE = """
import OpenAI from "openai";
const [baseURL, apiKey] = process.argv.slice(1);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const stream = await client.chat.completions.create({
  model: "m", messages: [{ role: "user", content: "Hello" }], stream: true,
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
"""


@pytest.fixture(params=["edge", "asgi"])
def side(request: pytest.FixtureRequest) -> Side:
    found: Side = request.param
    return found


Ask = Callable[[Scene], Coroutine[Any, Any, str]]


async def heard(side: Side, ask: Ask, path: str, *parts: Sequence[bytes]) -> str:
    """What a client makes of a stream whose pod is silent before each part of it.

    A second client, that reads bytes, tells whether there were comments.
    """
    gates = [asyncio.Event() for _ in parts]
    steps: list[Step] = []
    for gate, part in zip(gates, parts, strict=True):
        steps += [gate, b"".join([chunk(event) for event in part])]
    async with (
        ScriptedPod([[STREAM_HEAD, *steps, b"0\r\n\r\n"]]) as pod,
        scene([pod], side=side, server={"keep_alive_comments_seconds": SECONDS}) as found,
    ):
        asking = asyncio.create_task(ask(found))
        found.sent += 1
        await found.until(lambda: len(pod.requests) == 1, SECONDS_TO_START)
        body = chat(stream=True) | {"input": "Hello"}
        witness = await found.send(request(body, key=found.running.key, path=path))
        await found.until(lambda: len(pod.requests) == 2)
        for gate in gates:
            # What was sent before is noted by a sweep, and the silence after it by another.
            await found.swept()
            found.leap(SECONDS)
            await found.swept()
            gate.set()
        async with asyncio.timeout(SECONDS_TO_START):
            seen = await witness.answer()
            assert seen.body.count(COMMENT) == len(gates)
            return await asking


def openai_of(found: Scene) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=found.running.base_url, api_key=found.running.key, max_retries=0)


async def chat_with_openai(found: Scene) -> str:
    async with openai_of(found) as client:
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        return "".join([each.choices[0].delta.content or "" async for each in stream])


async def chat_with_langchain(found: Scene) -> str:
    async with DefaultAsyncHttpxClient() as http:
        model = ChatOpenAI(
            model="m",
            base_url=found.running.base_url,
            api_key=SecretStr(found.running.key),
            max_retries=0,
            http_async_client=http,
        )
        return "".join([str(each.content) async for each in model.astream("Hello")])


async def chat_with_node(found: Scene) -> str:
    command = ("node", "--input-type=module", "-e", NODE, found.running.base_url, found.running.key)
    process = await asyncio.create_subprocess_exec(*command, cwd=FOLDER, stdout=asyncio.subprocess.PIPE)
    told, _ = await process.communicate()
    assert process.returncode == 0
    return told.decode()


async def message_with_anthropic(found: Scene) -> str:
    url = found.running.base_url.removesuffix("/v1")
    async with (
        AsyncAnthropic(base_url=url, api_key=found.running.key, max_retries=0) as client,
        client.messages.stream(model="m", messages=HELLO, max_tokens=9) as stream,
    ):
        return "".join([text async for text in stream.text_stream])


async def response_with_openai(found: Scene) -> str:
    async with openai_of(found) as client:
        stream = await client.responses.create(model="m", input="Hello", stream=True)
        return "".join([each.delta async for each in stream if each.type == "response.output_text.delta"])


CLIENTS = [
    (chat_with_openai, CHAT, "/v1/chat/completions"),
    (chat_with_langchain, CHAT, "/v1/chat/completions"),
    pytest.param(chat_with_node, CHAT, "/v1/chat/completions", marks=pytest.mark.program("node")),
    (message_with_anthropic, MESSAGES, "/v1/messages"),
    (response_with_openai, RESPONSES, "/v1/responses"),
]


@pytest.mark.parametrize(("ask", "events", "path"), CLIENTS)
async def test_comments_are_read_over(side: Side, ask: Ask, events: list[bytes], path: str) -> None:
    text = await heard(side, ask, path, events[:1], events[1:4], events[4:5], events[5:])
    assert len(text) > 9
    assert text == WORDS[path]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_failure_behind_a_comment_is_an_exception(side: Side, path: str) -> None:
    ask = chat_with_openai if path == "/v1/chat/completions" else message_with_anthropic
    with pytest.raises((openai.APIError, anthropic.APIStatusError), match="the pod"):
        await heard(side, ask, path, [b": nothing more\n\n"])
