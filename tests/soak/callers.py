"""Mixed traffic: streams and answers, embeddings, lists of models, messages; slow readers, leavers, and nonsense.

Requests come by chance at a steady rate, whatever becomes of those before. A caller takes a gateway that is in
rotation; one that a gateway sends away because it is draining, or that finds no one listening, asks another one, as
SDKs do.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from loadtest.invariants import ClientSide, RequestSent, Shape
from loadtest.invariants.hearing import Hear
from loadtest.invariants.pieces import shape_of
from tests.raw import request
from tests.soak.line import Line

CANARY = "canary-7d41"
"""In every prompt."""
CHAT_MODEL, EMBEDDING_MODEL = "m", "e"
MOST_AT_ONCE = 400
PROMPTS = 200
OPEN_KEY, TIGHT_KEY, BAD_KEY = "open", "tight", "bad"
ASKED_AGAIN = 3


class Door(NamedTuple):
    """A gateway that callers may take."""

    name: str
    port: int


class Wish(NamedTuple):
    """One request, as a caller would have it."""

    kind: str
    path: str
    body: bytes | dict[str, Any]
    method: str = "POST"
    shape: Shape = Shape.WHOLE
    choices: int = 1
    wants_usage: bool = False
    to_pods: bool = True
    key: str = OPEN_KEY
    leaves_after: float | None = None
    """Seconds."""
    pause_seconds: float = 0.0


def _chat(chance: Random, **more: Any) -> dict[str, Any]:
    # So few that gateways soon believe to know where each is cached: a run shows growth, and not how a cache fills.
    number = chance.randrange(PROMPTS)
    words = " ".join(f"w{number}" for _ in range(5 + number % 60))
    return {
        "model": CHAT_MODEL,
        "messages": [{"role": "user", "content": f"{CANARY} {words}"}],
        "max_tokens": chance.randrange(5, 40),
        "ignore_eos": True,
        **more,
    }


def _stream(chance: Random, kind: str = "stream", **more: Any) -> Wish:
    wants_usage = chance.random() < 0.5
    asked: dict[str, Any] = {"stream": True}
    if wants_usage:
        asked["stream_options"] = {"include_usage": True}
    choices = 2 if chance.random() < 0.1 else 1
    if choices > 1:
        asked["n"] = choices
    body = _chat(chance, **asked)
    return Wish(kind, "/v1/chat/completions", body, shape=Shape.CHAT, choices=choices, wants_usage=wants_usage, **more)


def _leaver(chance: Random) -> Wish:
    return _stream(chance, "leaver", leaves_after=chance.uniform(0.0, 0.8))


def _slow(chance: Random) -> Wish:
    return _stream(chance, "slow reader", pause_seconds=chance.uniform(0.05, 0.4))


def _tight(chance: Random) -> Wish:
    return _stream(chance, "tight key", key=TIGHT_KEY)


def _answer(chance: Random) -> Wish:
    return Wish("answer", "/v1/chat/completions", _chat(chance))


def _embedding(chance: Random) -> Wish:
    texts = [f"{CANARY} {chance.randrange(PROMPTS)}" for _ in range(chance.randrange(1, 8))]
    return Wish("embedding", "/v1/embeddings", {"model": EMBEDDING_MODEL, "input": texts})


def _models(chance: Random) -> Wish:
    return Wish("models", "/v1/models", b"", "GET", to_pods=False)


def _message(chance: Random) -> Wish:
    stream = chance.random() < 0.7
    body = {
        "model": CHAT_MODEL,
        "max_tokens": chance.randrange(5, 30),
        "messages": [{"role": "user", "content": f"{CANARY} {chance.randrange(PROMPTS)}"}],
        "stream": stream,
    }
    return Wish("message", "/v1/messages", body, shape=shape_of("/v1/messages", stream=stream), choices=0)


def _nonsense(chance: Random) -> Wish:
    chat = "/v1/chat/completions"
    return chance.choice(
        (
            Wish("nonsense", chat, b'{"model": "m", "messages": [' + CANARY.encode()),
            Wish("nonsense", chat, _chat(chance, model="nobody")),
            Wish("nonsense", chat, _chat(chance), key=BAD_KEY),
            Wish("nonsense", chat, _chat(chance, n=100_000)),
            Wish("nonsense", chat, _chat(chance, max_tokens=10**7)),
            Wish("nonsense", f"/v1/{CANARY}", _chat(chance), to_pods=False),
            Wish("nonsense", chat, b"", "GET", to_pods=False),
            Wish("nonsense", "/v1/models/nobody", b"", "GET", to_pods=False),
        )
    )


WISHES: Sequence[tuple[Callable[[Random], Wish], int]] = (
    (_stream, 44), (_leaver, 8), (_slow, 4), (_tight, 4), (_answer, 14), (_embedding, 8), (_models, 6), (_message, 6),
    (_nonsense, 6),
)  # fmt: skip


@dataclass
class Book:
    """What callers know: their keys by name, and the gateways in rotation."""

    keys: dict[str, str]
    doors: list[Door]


class Callers:
    """`run` until cancelled; `close` when all is over."""

    def __init__(
        self,
        book: Book,
        hear: Hear,
        clock: Callable[[], float],
        chance: Random,
        rps: float,
        wishes: Sequence[tuple[Callable[[Random], Wish], int]] = WISHES,
    ) -> None:
        self.book = book
        self.rps = rps
        self.counts: Counter[str] = Counter()
        """How many requests of each kind were sent."""
        self.refused: Counter[str] = Counter()
        """Connections that nobody took, by gateway."""
        self._wishes = [make for make, _ in wishes]
        self._weights = [weight for _, weight in wishes]
        self._hear = hear
        self._clock = clock
        self._chance = chance
        self._idle: dict[str, list[Line]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent = 0

    async def run(self) -> None:
        """One request after another, at moments that chance names."""
        due = self._clock()
        while True:
            due += self._chance.expovariate(self.rps)
            await asyncio.sleep(max(0.0, due - self._clock()))
            if len(self._tasks) < MOST_AT_ONCE:
                # Drawn here, one after the other, so that a seed draws the same ones again.
                (make,) = self._chance.choices(self._wishes, self._weights)
                wish, number = make(self._chance), self._chance.randrange(2**32)
                task = asyncio.create_task(self._ask(wish, number))
                self._tasks.add(task)
                task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        task.result()

    async def settled(self) -> None:
        """Wait for every answer that is on its way."""
        await asyncio.gather(*self._tasks)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for lines in self._idle.values():
            for line in lines:
                line.leave()

    async def _ask(self, wish: Wish, number: int) -> None:
        doors = list(self.book.doors)
        Random(number).shuffle(doors)
        for door in doors[:ASKED_AGAIN]:
            if await self._ask_at(door, wish):
                return

    async def _ask_at(self, door: Door, wish: Wish) -> bool:
        """Whether that was an answer: of a gateway that is not about to go."""
        line = self._line(door.name)
        if line is None:
            try:
                line = await Line.connect(door.name, door.port, self._hear, self._clock)
            except OSError:
                self.refused[door.name] += 1
                return False
        self._sent += 1
        self.counts[wish.kind] += 1
        request_id = f"soak-{self._sent}"
        data = request(
            wish.body,
            key=self.book.keys[wish.key],
            path=wish.path,
            method=wish.method,
            headers={"X-Request-Id": request_id},
        )
        sent = RequestSent(
            self._clock(), request_id, door.name, wish.shape, wish.choices, wish.wants_usage, wish.to_pods, wish.key
        )
        side = ClientSide(self._hear, self._clock, sent)
        over = line.send(request_id, data, side, wish.pause_seconds)
        try:
            async with asyncio.timeout(wish.leaves_after):
                await over
        except TimeoutError:
            line.leave()
            return True
        if line.usable:
            self._idle.setdefault(door.name, []).append(line)
        else:
            line.leave()
        return side.code != "draining"

    def _line(self, gateway: str) -> Line | None:
        """An idle connection that can be used; the oldest ones fall behind and are closed by the gateway."""
        lines = self._idle.get(gateway, [])
        while lines:
            line = lines.pop()
            if line.usable:
                return line
            line.leave()
        return None


def keys_file(entries: Sequence[dict[str, Any]]) -> str:
    """JSON is YAML."""
    return json.dumps({"keys": list(entries)})
