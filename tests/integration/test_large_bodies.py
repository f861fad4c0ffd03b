"""What a large body costs those who ask for something else meanwhile: a few milliseconds at a time."""

import asyncio
import gc
import json
import socket
from contextlib import suppress
from time import thread_time

import pytest

from gateway.core.errors import PoolgateError
from gateway.pipeline.intake import look
from gateway.pipeline.operations import CHAT
from tests.door import GOOD
from tests.fakes import ScriptedPod
from tests.raw import request
from tests.running import running

BYTES = 6 << 20


def body_of(*members: str) -> bytes:
    """Of a model that nobody has, so that nothing follows the look."""
    return f'{{"model":"nobody",{",".join(members)}}}'.encode()


KINDS = {
    "short messages": body_of(
        f'"messages":[{",".join([json.dumps({"role": "user", "content": "Hello there"})] * (BYTES // 45))}]'
    ),
    "numbers": body_of('"messages":[]', f'"x":[{",".join(["1"] * (BYTES // 2))}]'),
    "brackets": body_of(f'"messages":[{",".join(["[[[[]]]]"] * 30_000)}]', f'"x":{json.dumps("[" * BYTES)}'),
}


async def longest_turn(until: "asyncio.Task[bytes]") -> float:
    """The most CPU that the loop's thread takes from one turn to the next."""
    longest, before = 0.0, thread_time()
    while not until.done():
        await asyncio.sleep(0)
        longest, before = max(longest, thread_time() - before), thread_time()
    return longest


def ask(port: int, data: bytes) -> bytes:
    """The beginning of what is said to it."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(data)
        return client.recv(12)


def seconds_at_once(body: bytes) -> float:
    """The CPU that a look takes which nothing interrupts."""
    began = thread_time()
    with suppress(PoolgateError):
        look(body, CHAT)
    return thread_time() - began


@pytest.mark.parametrize("kind", KINDS)
async def test_others_have_many_turns_while_a_large_body_is_looked_at(kind: str) -> None:
    body = KINDS[kind]
    # What others do to the processor only adds.
    cost = min(seconds_at_once(body) for _ in range(3))
    gc.disable()
    try:
        async with ScriptedPod([[GOOD]]) as pod, running([pod]) as gateway:
            held: list[float] = []
            while not held or (min(held) >= 0.6 * cost and len(held) < 10):
                asking = asyncio.create_task(asyncio.to_thread(ask, gateway.port, request(body, key=gateway.key)))
                held.append(await longest_turn(asking))
                assert (await asking)[9:] in (b"404", b"400")
    finally:
        gc.enable()
    assert min(held) < 0.6 * cost
