"""What it costs to choose a pod: `python -m loadtest.bench.choice`; the method is in docs/performance.md.

The gateway's own code of the choice, in a loop without sockets, over pods that are busy: each choice adds a request,
and the oldest ones end. All cases take turns within a round, in short batches, so that a slow moment of the host does
not meet one of them alone. Between the rest of a request's work the same code finds the caches of the processor
colder than in such a loop.
"""

import argparse
import gc
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

from gateway.balancing.affinity import (
    BLOCK_BYTES,
    KEY_BYTES,
    PrefixIndex,
    Seed,
    beginning_key,
    blocks_of,
    ends_of,
    uid_key,
)
from gateway.balancing.policy import POLICIES, Choice, Standing, View, Wish, learn
from loadtest.bench.__main__ import listen_for_signals, publish
from loadtest.bench.processes import alone
from loadtest.bench.report import Cell, Round, host_facts, quartiles, written

PODS: Final = (8, 64, 512)
REQUEST_US: Final = 65.0
"""CPU µs of a whole request: the figure of docs/performance.md, from the scenario `requests` of `make bench`."""
BATCH: Final = 100
"""Choices in one reading of the clock."""
RUNNING: Final = 4
"""Requests of ours at a pod, on average."""
UNANSWERED: Final = 8
"""One in so many of them still waits for its first token."""
ROOM: Final = 128
"""Of a pod: the gateway's default."""
MOST_OTHERS: Final = 4
"""Requests of other callers at a pod."""
CONVERSATIONS: Final = 2
"""Of each length, per pod. A prompt repeats one of them but for its end."""
NEW_PART: Final = 4
"""One block in so many is new with each prompt."""
BYTES_PER_TOKEN: Final = 4
ANSWER: Final = b'"assistant"'
"""Where an earlier answer begins, as `gateway.pipeline.wish` looks for it."""
LETTERS: Final = b"etaoin shrdlu etaoin ,."
WARM_UP: Final = 200
"""Choices per pod before the first reading, and not more than `MOST_WARM_UP`: with the long prompts among them, as much
is believed cached then as there may be."""
MOST_WARM_UP: Final = 12_000
READING: Final = "reading"
SEED: Final[Seed] = ("qwen3-8b", b"")


class Case(NamedTuple):
    """Choices that are alike."""

    policy: str
    prompt: str
    blocks: int = 0
    """Of the prompt, for a policy that looks at them."""
    key: bool = False
    """Whether the policy is told what the request belongs to."""

    @property
    def name(self) -> str:
        return f"{self.policy}, {self.prompt}"


PROMPTS: Final = {"2 KB": 4, "48 KB": 96}
"""By their blocks."""
CASES: Final = (
    Case("auto", "less than a block"),
    *(Case("auto", title, blocks, key=True) for title, blocks in PROMPTS.items()),
    Case("session", "any", key=True),
    Case("prefix", "any", key=True),
    Case("least", "any"),
    Case("p2c", "any"),
    Case("round_robin", "any"),
)


class BusyPods:
    """Pods under a steady load. A choice is made and counted as in `Balancer.lease_nowait`."""

    def __init__(self, policy: str, pods: int, rng: Random) -> None:
        self.standings = []
        for number in range(pods):
            uid = f"{rng.getrandbits(128):032x} 10.0.{number >> 8}.{number & 255}:8000"
            standing = Standing(uid, f"vllm-{number}", uid_key(uid))
            standing.room = ROOM
            standing.others = rng.randint(0, MOST_OTHERS)
            self.standings.append(standing)
        self.cache = PrefixIndex()
        self.view = View(self.cache, rng.random)
        self._policy = POLICIES[policy]
        self._running: deque[Standing] = deque()
        self._unanswered: deque[tuple[Standing, int]] = deque()
        self._most_running = RUNNING * pods
        self._most_unanswered = self._most_running // UNANSWERED

    def choose(self, wish: Wish) -> Choice:
        """One request more; the oldest one ends, and an older one gets its first token."""
        room = [standing for standing in self.standings if standing.in_flight + standing.others < standing.room]
        choice = self._policy(room, wish, self.view)
        learn(self.view, wish, choice)
        standing = choice.standing
        standing.in_flight += 1
        tokens = max(0, wish.tokens - choice.cached_tokens)
        standing.pending_tokens += tokens
        if wish.blocks:
            self.cache.sent(standing.uid, wish.blocks)
        running, unanswered = self._running, self._unanswered
        running.append(standing)
        if len(running) > self._most_running:
            running.popleft().in_flight -= 1
        unanswered.append((standing, tokens))
        if len(unanswered) > self._most_unanswered:
            standing, tokens = unanswered.popleft()
            standing.pending_tokens -= tokens
        return choice


class Wishes:
    """What the requests of a case bring: conversations that were begun before, each with a new end."""

    def __init__(self, case: Case, pods: int, rng: Random) -> None:
        self._case = case
        self._rng = rng
        self._keys = [rng.getrandbits(64) | 1 for _ in range(CONVERSATIONS * pods)]
        self._turns = 0

    def take(self, count: int) -> list[Wish]:
        """The next so many. Their hashes are numbers like those of `blocks_of`, made anew as those are: a look-up
        of the very same object would be cheaper."""
        case = self._case
        tokens = max(case.blocks, 1) * BLOCK_BYTES // BYTES_PER_TOKEN
        old = case.blocks - case.blocks // NEW_PART
        wishes = []
        for key in self._rng.choices(self._keys, k=count):
            self._turns += 1
            beginning = [hash((key, number)) for number in range(old)]
            end = [hash((key, number, self._turns)) for number in range(old, case.blocks)]
            wishes.append(Wish(tokens, ends_of((*beginning, *end)), key if case.key else 0))
        return wishes


def named(prompt: bytes) -> tuple[Sequence[int], int]:
    """A prompt's blocks and its key, read as `gateway.pipeline.wish` does for `auto`."""
    begun = prompt.find(ANSWER)
    start, end = (0, KEY_BYTES) if begun < 0 else (max(0, begun - KEY_BYTES), begun)
    return blocks_of(prompt, SEED), beginning_key(prompt[start:end], SEED)


class Lane(NamedTuple):
    """Something to be measured over and over: `do` is called with each of the `inputs`."""

    column: str
    row: str
    do: Callable[[Any], object]
    inputs: Callable[[], Sequence[Any]]

    def cpu_us(self) -> float:
        """CPU time of one call, in µs, over one batch."""
        do, inputs = self.do, self.inputs()
        before = time.thread_time_ns()
        for each in inputs:
            do(each)
        return (time.thread_time_ns() - before) / len(inputs) / 1000


def choosing(pods: int, rng: Random) -> Iterator[Lane]:
    """Every case over so many pods. Prompts of all lengths go to the same ones."""
    crowds = {case.policy: BusyPods(case.policy, pods, rng) for case in CASES}
    for case in CASES:
        crowd, wishes = crowds[case.policy], Wishes(case, pods, rng)
        for wish in wishes.take(min(WARM_UP * pods, MOST_WARM_UP)):
            crowd.choose(wish)
        yield Lane(f"{pods} pods", case.name, crowd.choose, partial(wishes.take, BATCH))


def reading(rng: Random) -> Iterator[Lane]:
    """Reading prompts that hold no earlier answer: such a prompt is searched to its end."""
    for title, blocks in PROMPTS.items():
        prompts = [bytes(rng.choices(LETTERS, k=blocks * BLOCK_BYTES)) for _ in range(10)] * (BATCH // 10)
        yield Lane(READING, title, named, lambda prompts=prompts: prompts)  # type: ignore[misc]


# --- the report -----------------------------------------------------------------------------------------------


def over(rounds: Sequence[Round], column: str, row: str) -> Cell:
    """The median and the quartiles of all rounds."""
    found = [r.values["cpu_us"] for r in rounds if (r.scenario, r.target) == (column, row)]
    return Cell(statistics.median(found), *quartiles(found), len(found))


def table(rounds: Sequence[Round], request_us: float) -> str:
    """Two Markdown tables: choosing, and reading a prompt for it."""

    def shown(column: str, row: str) -> str:
        cell = over(rounds, column, row)
        return f"{written(cell, '.1f')}: {cell.median / request_us:.0%}"

    columns = list(dict.fromkeys(r.scenario for r in rounds if r.scenario != READING))
    rows = [["policy", "prompt", *columns], ["---"] * (2 + len(columns))]
    rows += [[f"`{case.policy}`", case.prompt, *(shown(each, case.name) for each in columns)] for case in CASES]
    more = [["prompt", "read for `auto`"], ["---"] * 2]
    more += [[title, shown(READING, title)] for title in PROMPTS]
    return "\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in part) for part in (rows, more))


def notes(rounds: int, request_us: float) -> list[str]:
    """What a reader of the tables must know."""
    return [
        f"CPU µs, median of {rounds} rounds [quartiles]: how much that is of a whole request of {request_us:g} µs.",
        "A choice: who has room, the policy, what it learns, counting and giving back, noting what is cached where.",
        "Reading: the hashes of a prompt's blocks, the search for an earlier answer (there is none), and a key.",
    ]


# --- the command ----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.choice", description="what choosing a pod costs")
    parser.add_argument("--rounds", type=int, default=60, metavar="N", help="default 60: about 10 s")
    parser.add_argument(
        "--request-us", type=float, default=REQUEST_US, metavar="N", help=f"CPU of a request, default {REQUEST_US:g}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round's figures, as JSON")
    asked = parser.parse_args(arguments)
    if asked.rounds < 1 or asked.request_us <= 0:
        parser.error("--rounds and --request-us are more than 0")
    listen_for_signals()
    with alone():
        results = measured(asked.rounds)
    facts = host_facts({}, {})
    said = [*notes(asked.rounds, asked.request_us), *facts]
    text = "\n".join([table(results, asked.request_us), "", *(f"- {line}" for line in said)])
    return publish("choice", text, facts, results, asked.json, None)


def measured(rounds: int, pods: Sequence[int] = PODS, seed: int = 1) -> list[Round]:
    """Every lane once a round, in an order that turns with each."""
    rng = Random(seed)
    lanes = [*(lane for count in pods for lane in choosing(count, rng)), *reading(rng)]
    # Nothing here makes cycles, and a collection would walk over all that is believed of 512 caches.
    gc.disable()
    try:
        return [
            Round(lane.column, number, lane.row, {"cpu_us": lane.cpu_us()}, 0.0, True)
            for number in range(1, rounds + 1)
            for lane in (lanes if number % 2 else reversed(lanes))
        ]
    finally:
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
