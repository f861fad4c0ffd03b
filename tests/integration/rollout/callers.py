"""Callers that chat through a service all the time, and the verdict on each answer they get.

A simulated pod's tokens depend on the prompt alone, so every pod's answer to a caller is known beforehand, to the byte.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random

from loadtest.simulator import PodSettings, SimulatedPod
from tests.integration.rollout.lines import Answer, Line
from tests.raw import request

MODEL = "m"
_DIFFERS = re.compile(rb'"id":"[^"]*"|"created":\d+')
"""From one answer to the next."""
_DONE = b"data: [DONE]\n\n"


class How(StrEnum):
    """How a request ended."""

    WHOLE = "whole"
    REFUSED = "no connection"
    UNANSWERED = "no byte of an answer"
    TURNED_AWAY = "an error instead of an answer"
    TOLD = "cut, and told so"
    CUT = "cut without a word"
    WRONG = "other bytes than the pod's"


BEFORE_THE_FIRST_BYTE = frozenset({How.REFUSED, How.UNANSWERED, How.TURNED_AWAY})


@dataclass(frozen=True)
class Wanted:
    """A request, and the answer it must get."""

    body: bytes
    answer: bytes
    """Without what differs from one answer to the next."""


@dataclass(frozen=True)
class Heard:
    """One request of a caller's, with times of the loop."""

    how: How
    told: str
    """The error's code."""
    port: int
    """Of the gateway."""
    pod: str
    sent_at: float
    begun_at: float
    """0: no byte of the answer's body came."""
    ended_at: float

    def spans(self, moment: float) -> bool:
        """Its answer was on its way then."""
        return self.begun_at != 0 and self.begun_at < moment < self.ended_at


def judge(answer: Answer, wanted: Wanted) -> tuple[How, str]:
    """(how it ended, the code of the error if there is one)."""
    if not answer.status:
        return How.UNANSWERED, ""
    body = _DIFFERS.sub(b"", answer.body)
    if answer.status != 200:
        return How.TURNED_AWAY, _code(body)
    if answer.clean and body == wanted.answer:
        return How.WHOLE, ""
    *whole, last = body.removesuffix(_DONE).removesuffix(b"\n\n").split(b"\n\n")
    if not wanted.answer.startswith(b"".join(event + b"\n\n" for event in whole)):
        return How.WRONG, ""
    if answer.clean and body.endswith(_DONE) and last.startswith(b'data: {"error"'):
        return How.TOLD, _code(last.removeprefix(b"data: "))
    return How.WRONG if answer.clean else How.CUT, ""


def _code(told: bytes) -> str:
    try:
        return str(json.loads(told)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return told[:200].decode("latin-1")


async def wanted_chats(callers: int, tokens: Sequence[int], *, stream: bool = True) -> list[list[Wanted]]:
    """For each caller a chat of every length, the prompts all different."""
    async with SimulatedPod(PodSettings(model=MODEL)) as pod:
        line = await Line.connect(pod.port)
        try:
            prompts = [f"caller {number}" for number in range(callers)]
            return [[await _wanted(line, prompt, count, stream) for count in tokens] for prompt in prompts]
        finally:
            line.leave()


async def _wanted(line: Line, prompt: str, tokens: int, stream: bool) -> Wanted:
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
    }
    if stream:
        asked["stream_options"] = {"include_usage": True}
    body = json.dumps(asked).encode()
    answer = await line.ask(request(body))
    assert (answer.status, answer.clean) == (200, True)
    return Wanted(body, _DIFFERS.sub(b"", answer.body))


@dataclass
class Load:
    """What the callers have heard so far."""

    heard: list[Heard] = field(default_factory=list)
    over: bool = False
    """No caller begins another request."""
    asked_since: dict[int, float] = field(default_factory=dict)
    """When each caller has begun the request at hand, or the one before."""

    @property
    def counts(self) -> Counter[str]:
        """How many requests ended how, and with which error."""
        return Counter(f"{heard.how}: {heard.told}" if heard.told else str(heard.how) for heard in self.heard)

    def ended(self, *hows: How) -> list[Heard]:
        return [heard for heard in self.heard if heard.how in hows]

    async def all_ask_anew(self, within_seconds: float) -> None:
        """Wait until what was asked before this call has ended, and every caller asks something new."""
        now = asyncio.get_running_loop().time()
        async with asyncio.timeout(within_seconds):
            while min(self.asked_since.values()) <= now:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def calling(
    connect: Callable[[], Awaitable[Line]],
    key: str,
    chats: Sequence[Sequence[Wanted]],
    *,
    pause_seconds: Callable[[Random], float] = lambda chance: chance.uniform(0.0, 0.05),
) -> AsyncIterator[Load]:
    """One caller for each list of chats, all through the block; at its end every one finishes the request at hand."""
    load = Load()
    tasks = [
        asyncio.create_task(_call(load, number, connect, key, each, Random(number), pause_seconds))
        for number, each in enumerate(chats)
    ]
    try:
        yield load
        load.over = True
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _call(
    load: Load,
    number: int,
    connect: Callable[[], Awaitable[Line]],
    key: str,
    chats: Sequence[Wanted],
    chance: Random,
    pause_seconds: Callable[[Random], float],
) -> None:
    """One caller: a connection, used as long as it can be; one request after another on it."""
    line: Line | None = None
    try:
        while not load.over:
            if line is not None and not line.usable:
                line.leave()
                line = None
            wanted = chance.choice(chats)
            load.asked_since[number] = asyncio.get_running_loop().time()
            line, heard = await ask(line, connect, key, wanted)
            load.heard.append(heard)
            await asyncio.sleep(pause_seconds(chance))
    finally:
        if line is not None:
            line.leave()


async def ask(
    line: Line | None, connect: Callable[[], Awaitable[Line]], key: str, wanted: Wanted
) -> tuple[Line | None, Heard]:
    """One request, on this connection or a new one; and the connection."""
    now = asyncio.get_running_loop().time
    if line is None:
        sent_at = now()
        try:
            line = await connect()
        except OSError:
            return None, Heard(How.REFUSED, "", 0, "", sent_at, 0.0, now())
    sent_at = now()
    answer = await line.ask(request(wanted.body, key=key))
    how, told = judge(answer, wanted)
    pod = answer.headers.get("x-poolgate-pod", "")
    return line, Heard(how, told, line.port, pod, sent_at, answer.begun_at, answer.ended_at)
