"""A gateway before one scripted pod, and a client that sends it bytes as they are."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from gateway.core.clock import Clock
from gateway.edge.bounds import Bounds
from tests.fakes import STREAM_HEAD, ScriptedPod, answer, chunk
from tests.raw import Answer, RawClient, chat, request
from tests.running import Running, running

WHOLE = b'{"choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
GOOD = answer(WHOLE)
EVENTS = (
    b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)
STREAM = STREAM_HEAD + chunk(EVENTS) + b"0\r\n\r\n"
BODY = json.dumps(chat()).encode()
SMUGGLED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: smuggled\r\nContent-Length: 0\r\n\r\n"
QUICK = Bounds(head_seconds=0.3, body_seconds=0.3, idle_seconds=0.3, linger_seconds=0.3, stalled_seconds=0.3)
PATIENT = Bounds(head_seconds=30, body_seconds=30, idle_seconds=30, linger_seconds=0.3, stalled_seconds=30)


class Door(NamedTuple):
    """A gateway before one scripted pod, and a connection to it."""

    pod: ScriptedPod
    gateway: Running
    client: RawClient

    @property
    def key(self) -> bytes:
        return self.gateway.key.encode()

    @property
    def asked(self) -> int:
        """Requests that reached the pod."""
        return len(self.pod.requests)

    @property
    def bodies(self) -> list[bytes]:
        """Their bodies."""
        return [raw.partition(b"\r\n\r\n")[2] for raw in self.pod.requests]

    def chat(self, **more: Any) -> bytes:
        """The bytes of a good request."""
        return request(chat(**more), key=self.gateway.key)

    def post(self, *lines: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
        """A request with a good key and these header lines besides; nothing is added to them."""
        start = b"POST /v1/chat/completions " + version
        fields = (b"Host: test", b"Content-Type: application/json", b"Authorization: Bearer " + self.key, *lines)
        return b"\r\n".join((start, *fields, b"", body))


@asynccontextmanager
async def door(
    *script: Any, bounds: Bounds | None = None, clock: Clock | None = None, **server: Any
) -> AsyncIterator[Door]:
    """A gateway, its pod (which plays `script` each time, or answers well), and one connection."""
    async with (
        ScriptedPod([script or (GOOD,)]) as pod,
        running([pod], bounds=bounds, server=server, clock=clock) as gateway,
        visitor(gateway) as client,
    ):
        yield Door(pod, gateway, client)


@asynccontextmanager
async def visitor(gateway: Running) -> AsyncIterator[RawClient]:
    """One connection more."""
    client = await RawClient.connect(gateway.port)
    try:
        yield client
    finally:
        client.leave()


async def turn_the_loop() -> None:
    """Let the gateway, which runs on the same loop, read what was sent: loopback delivers at once."""
    for _ in range(3):
        await asyncio.sleep(0)


async def refused(at: Door, status: int, code: str) -> Answer:
    """The answer is this error in full, says that it closes, closes, and no pod was asked."""
    came = await at.client.answer()
    assert (came.status, came.error["code"], came.clean) == (status, code, True)
    assert came.headers["connection"] == "close"
    assert came.headers["x-request-id"]
    assert await at.client.closed()
    assert at.asked == 0
    return came
