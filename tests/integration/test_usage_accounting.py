"""Usage is accounted for: what callers are charged is what pods made, however requests end.

A crowd of clients asks for all sorts of answers; many leave, pods are killed and come back, answers break. Each request
bears an id, by which three witnesses are compared: the client, which counts what it saw; the pod, whose engine knows
what it made; and the gateway, in its access line and in what it told its store.
"""

import asyncio
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from gateway.limits.bucket import DAY
from gateway.limits.memory_store import MemoryStore
from loadtest.simulator import Fault, FaultKind, PodSettings, SimulatedPod, Task, TimeModel
from loadtest.simulator.connection import Exchange
from loadtest.simulator.engine import Sequence
from tests.discovering import eventually
from tests.fakes import Hands
from tests.integration.test_limits import CHAT, COMPLETIONS, EMBEDDINGS, Recording, recording
from tests.raw import RawClient, request
from tests.running import NO_LIMITS, Running, Side, running

REQUESTS = int(os.environ.get("ACCOUNTING_REQUESTS", "10000"))
CLIENTS = 64
CHATTING = 5
"""Pods that chat."""
KILLS = 12
"""Of them, one after the other, evenly over the time; each is back before the next."""
TOKENS_PER_DAY = 10**8
"""Nobody is refused."""
EVENT, OPENING = b'"choices":[{', b'"delta":{"role":'
"""Stand in each event of a stream that bears a piece of an answer or opens one; in those that open one."""


@dataclass
class Wish:
    """What a client asks for, and how long it stays."""

    id: str
    path: str
    body: dict[str, Any]
    leaves: str = ""
    """`sent`: at once. `arrived`: when a pod has the request. `reading`: after some `pieces`. Empty: it stays."""
    pieces: int = 0

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def prompt_estimate(self) -> int:
        return len(json.dumps(self.body)) // 4


@dataclass
class Seen:
    """What a client saw of an answer."""

    wish: Wish
    pieces: int = 0
    """Of a stream: its events that bear a token."""
    usage: tuple[int, int] | None = None
    """(prompt, completion), where the answer told it."""


@dataclass
class Made:
    """What a pod's engine made for one attempt: its sequences, of which each prompt has so many."""

    choices: int = 1
    sequences: list[Sequence] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        return sum(sequence.prompt.tokens for sequence in self.sequences[:: self.choices])

    @property
    def completion_tokens(self) -> int:
        return sum(sequence.produced for sequence in self.sequences)


class Counting(SimulatedPod):
    """A pod that tells what it made for each request, by the id that it was told."""

    def __init__(self, settings: PodSettings, arrived: dict[str, asyncio.Event]) -> None:
        super().__init__(settings)
        self.made: dict[str, Made] = {}
        self._arrived = arrived
        self._at_hand = Made()

    async def start(self) -> None:
        await super().start()
        submit = self.engine.submit

        def noted(sequences: Iterable[Sequence]) -> None:
            self._at_hand.sequences = list(sequences)
            submit(self._at_hand.sequences)

        self.engine.submit = noted  # type: ignore[method-assign]  # the engine is made anew with each start

    async def kill(self) -> None:
        """Die; but not while connections are half accepted: asyncio would forget those, and not close them."""
        assert self._server is not None
        for listener in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listener.fileno())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.die()

    def serve(self, exchange: Exchange) -> None:
        told = exchange.request.header("x-request-id")
        if told is not None:
            body = json.loads(exchange.request.body)
            self._at_hand = self.made[told] = Made(body.get("n") or 1)
            if (event := self._arrived.get(told.partition("-")[0])) is not None:
                event.set()
        super().serve(exchange)


def wishes(count: int, rng: Random) -> list[Wish]:
    """A mix: chats, completions and embeddings, streams or not, bounded or not, of clients that stay and others."""
    made = []
    for number in range(count):
        words = " ".join(rng.choice("abcdefgh") * rng.randint(1, 6) for _ in range(rng.randint(1, 12)))
        path = rng.choices((CHAT, COMPLETIONS, EMBEDDINGS), (6, 3, 1))[0]
        body: dict[str, Any] = {"model": "e", "input": [words, words]}
        if path != EMBEDDINGS:
            content = {"messages": [{"role": "user", "content": words}]} if path == CHAT else {"prompt": [words, "x"]}
            body = {"model": "m", **content}
            if rng.random() < 0.6:
                body["max_tokens"] = rng.randint(1, 12)
            if rng.random() < 0.1:
                body["n"] = 2
            if rng.random() < 0.65:
                body["stream"] = True
                if rng.random() < 0.3:
                    body["stream_options"] = {"include_usage": True}
        wish = Wish(f"r{number}", path, body)
        if rng.random() < 0.3:
            ways = ("sent", "arrived", "reading") if wish.stream else ("sent", "arrived")
            wish.leaves, wish.pieces = rng.choice(ways), rng.randint(1, 8)
        made.append(wish)
    return made


def pieces_in(text: bytes) -> int:
    """Of a stream, as far as it has come. In an answer that is none, nothing is counted."""
    return text.count(EVENT) - text.count(OPENING) if b"data: {" in text else 0


async def play(wish: Wish, gateway: Running, arrived: asyncio.Event) -> Seen:
    """Ask, and stay as long as is wished."""
    seen = Seen(wish)
    client = await RawClient.connect(gateway.port)
    headers = {"X-Request-Id": wish.id, "Connection": "close"}
    client.send(request(wish.body, key=gateway.key, path=wish.path, headers=headers))
    if wish.leaves == "sent":
        await client.writer.drain()
    elif wish.leaves == "arrived":
        # It may be answered without: where no pod can be reached.
        reading = asyncio.create_task(client.reader.read(1))
        reached = asyncio.create_task(arrived.wait())
        await asyncio.wait((reading, reached), return_when=asyncio.FIRST_COMPLETED)
        for task in (reading, reached):
            task.cancel()
        await asyncio.gather(reading, reached, return_exceptions=True)
    elif wish.leaves == "reading":
        begun = b""
        while pieces_in(begun) < wish.pieces and (data := await client.reader.read(65536)):
            begun += data
        seen.pieces = pieces_in(begun)
    else:
        came = await client.answer(60)
        seen.pieces = pieces_in(came.body)
        if came.clean and b'"usage":{' in came.body:
            usage, _ = json.JSONDecoder().raw_decode(came.body.rpartition(b'"usage":')[2].decode())
            seen.usage = usage["prompt_tokens"], usage.get("completion_tokens") or 0
    client.leave()
    return seen


@asynccontextmanager
async def pods(arrived: dict[str, asyncio.Event]) -> AsyncIterator[list[Counting]]:
    """Those that chat, of which two break some of their answers, and one that embeds."""
    faults = {
        0: (Fault(FaultKind.CUT, after=4, share=0.02), Fault(FaultKind.RESET, after=2, share=0.02, path=CHAT)),
        1: (Fault(FaultKind.ERROR_EVENT, after=3, share=0.02), Fault(FaultKind.CLOSE, share=0.01, path=COMPLETIONS)),
    }
    async with AsyncExitStack() as stack:
        made = [
            Counting(
                PodSettings(
                    model="m",
                    seed=place,
                    time=TimeModel(step_seconds=0.001),
                    natural_tokens=(2, 12),
                    faults=faults.get(place, ()),
                ),
                arrived,
            )
            for place in range(CHATTING)
        ]
        made.append(Counting(PodSettings(model="e", task=Task.EMBED, embedding_dimensions=8), arrived))
        for pod in made:
            await stack.enter_async_context(pod)
        yield made


async def test_of_thousands_of_requests_that_end_in_every_way_callers_are_charged_what_pods_made(
    side: Side, caplog: pytest.LogCaptureFixture
) -> None:
    count = REQUESTS if side == "edge" else REQUESTS // 10
    rng = Random(7)
    asked = wishes(count, rng)
    arrived = {wish.id: asyncio.Event() for wish in asked if wish.leaves == "arrived"}
    limits = {
        "default": NO_LIMITS | {"concurrent": 10 * CLIENTS},
        "rules": [{"per": "tenant", "tokens_per_day": TOKENS_PER_DAY}],
    }
    async with (
        pods(arrived) as given,
        running(given, side=side, limits=limits, pool={"queue_wait_seconds": 0.5}) as gateway,
    ):
        # Its time stands still: what is spent does not come back.
        store = MemoryStore(Hands())
        told = recording(gateway, store)
        seen: list[Seen] = []
        left = iter(asked)

        async def client() -> None:
            for wish in left:
                seen.append(await play(wish, gateway, arrived.get(wish.id) or asyncio.Event()))
                await kill_and_revive(len(seen))

        async def kill_and_revive(ended: int) -> None:
            step = max(1, count // (KILLS + 1))
            if ended % step == 0 and 1 <= ended // step <= KILLS:
                await given[ended // step % CHATTING].kill()
            elif ended % step == step // 2 and 1 <= ended // step <= KILLS:
                await given[ended // step % CHATTING].start()

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        # Who left at once may be heard of later.
        await eventually(lambda: len(gateway.lines()) == count, 20)
        await gateway.settled(10)
        lines = {line["request_id"]: line for line in gateway.lines()}
        made = made_by(given)
        tally = Counter(judge(each, lines.pop(each.wish.id), made[each.wish.id]) for each in seen)
        print(f"{count} requests over {side}: {dict(tally)}, {told.used[3]} tokens")
        assert not lines
        assert tally["completed"] > count / 3
        assert min(tally["cut by a pod"], tally["left"], tally["left before its first token"]) > count / 1000
        assert_all_know_the_same(gateway, told)
        assert store.book.held == {}
        (tat,) = store.book.tats.values()
        assert (tat - store.since * 1e6) / (DAY / TOKENS_PER_DAY) == pytest.approx(told.used[3])
        assert len(told.taken) == len(told.settled)
        assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def made_by(given: Iterable[Counting]) -> defaultdict[str, dict[int, Made]]:
    """What pods made for each request, by its id and the number of the attempt."""
    made: defaultdict[str, dict[int, Made]] = defaultdict(dict)
    for pod in given:
        for told, each in pod.made.items():
            id_, _, rest = told.partition("-")
            made[id_][int(rest.rpartition("-")[2])] = each
    return made


def judge(seen: Seen, line: dict[str, Any], made: dict[int, Made]) -> str:
    """Compare what the three say of one request. Returns how it ended."""
    wish, outcome = seen.wish, line["outcome"]
    charged = line["prompt_tokens"], line["completion_tokens"]
    at = (wish, seen, line, made)
    if outcome == "completed" and seen.usage is not None:
        assert seen.usage == charged, at
    if line["usage_source"] == "reported":
        last = made[line["attempts"]]
        assert charged == (last.prompt_tokens, last.completion_tokens), at
        assert outcome in ("completed", "client_left", "truncated", "upstream_failed"), at
        return "completed" if outcome == "completed" else "cut behind its usage"
    assert outcome != "completed", at
    if line["usage_source"] is None:
        # Nothing came of it: no piece of an answer was relayed.
        assert charged == (None, None), at
        assert seen.pieces == 0, at
        if outcome == "client_left":
            return "left before a pod had it"
        assert outcome in ("refused", "upstream_failed", "truncated"), at
        return "failed"
    last = made.get(line["attempts"], Made())
    assert charged[0] == wish.prompt_estimate, at
    assert seen.pieces <= charged[1] <= last.completion_tokens, at
    if outcome == "client_left":
        return "left" if charged[1] else "left before its first token"
    assert outcome in ("truncated", "upstream_failed"), at
    return "cut by a pod"


def assert_all_know_the_same(gateway: Running, told: Recording) -> None:
    """The same sums stand in the access lines, in the metrics and in the store."""
    lines = [line for line in gateway.lines() if line["usage_source"] is not None]
    prompt, completion = (sum(line[name] for line in lines) for name in ("prompt_tokens", "completion_tokens"))
    assert told.used[1:] == (prompt, completion, prompt + completion)
    for kind, tokens in (("prompt", prompt), ("completion", completion)):
        sums = [gateway.sample("poolgate_tokens_total", model=model, kind=kind, tenant="tests") for model in "me"]
        assert sum(sums) == tokens
