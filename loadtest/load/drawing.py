"""A scenario becomes its schedule: the same seed, the same bytes at the same seconds.

Each thing that is drawn has a seed of its own, made of the scenario's and its name: so to change the prompts of one
kind leaves the arrivals and all others as they were, and two runs differ in what was meant to differ.

Shares are exact: how many requests each kind gets is computed and only their order is drawn, so a kind of a short run
is never left out by chance.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from loadtest.load.arrivals import MAX_REQUESTS, ClosedLoop
from loadtest.load.plan import Entry, Scenario
from loadtest.load.prompts import Message, Sea, Talk
from loadtest.load.schedule import Planned, Schedule, Step
from loadtest.load.section import BadScenario

MAX_BYTES = 512 * 1024 * 1024
"""Of all bodies together: the whole schedule is in memory before the start."""
MARK_TOKENS = 5
"""What a chat template adds to each message, about."""
UNMARKED = ("/v1/completions", "/v1/embeddings")


def draw(scenario: Scenario) -> Schedule:
    """Raises BadScenario if there are none, or they do not fit into memory."""
    times, steps, workers = _times(scenario)
    if not times:
        raise BadScenario(
            f"{scenario.name}: no request comes within {scenario.seconds:g} s; give it more time or scale"
        )
    kinds = _kinds(scenario, len(times))
    sea = Sea(_rng(scenario, "text"))
    counts = Counter(entry.kind for entry in kinds)
    drawing = {entry.kind: _Drawing(scenario, entry, sea, counts[entry.kind]) for entry in scenario.mix}
    requests, size = [], 0
    for number, (at, entry) in enumerate(zip(times, kinds, strict=True)):
        planned = drawing[entry.kind].next(number, at, _step(at, steps))
        size += len(planned.body)
        if size > MAX_BYTES:
            raise BadScenario(
                f"{scenario.name}: its requests are more than {MAX_BYTES >> 20} MiB together; "
                "ask for fewer, shorter prompts, or fewer turns"
            )
        requests.append(planned)
    return Schedule(tuple(requests), steps, workers, scenario.seconds)


def _times(scenario: Scenario) -> tuple[Sequence[float | None], Sequence[Step], int | None]:
    arrivals = scenario.arrivals
    if isinstance(arrivals, ClosedLoop):
        whole = Step(f"{arrivals.workers} at once", 0.0, scenario.seconds, None)
        return [None] * min(arrivals.requests, MAX_REQUESTS), (whole,), arrivals.workers
    if arrivals.expected(scenario.seconds) > MAX_REQUESTS:
        raise BadScenario(
            f"{scenario.name}: makes {arrivals.expected(scenario.seconds):.0f} requests, "
            f"more than {MAX_REQUESTS}; give it less time or scale"
        )
    return arrivals.times(scenario.seconds, _rng(scenario, "arrivals")), arrivals.steps(scenario.seconds), None


def _step(at: float | None, steps: Sequence[Step]) -> int:
    """Steps are of equal length."""
    return 0 if at is None else min(int(at / steps[-1].end * len(steps)), len(steps) - 1)


def _kinds(scenario: Scenario, count: int) -> list[Entry]:
    total = sum(entry.share for entry in scenario.mix)
    exact = [count * entry.share / total for entry in scenario.mix]
    counts = [int(each) for each in exact]
    by_rest = sorted(range(len(exact)), key=lambda place: counts[place] - exact[place])
    for place in by_rest[: count - sum(counts)]:
        counts[place] += 1
    kinds = [entry for entry, many in zip(scenario.mix, counts, strict=True) for _ in range(many)]
    _rng(scenario, "mix").shuffle(kinds)
    return kinds


def _rng(scenario: Scenario, *what: str) -> random.Random:
    # A text as seed is hashed by SHA-512: the same on every machine.
    return random.Random(":".join((str(scenario.seed), *what)))


class _Drawing:
    """The requests of one kind, in their order."""

    def __init__(self, scenario: Scenario, entry: Entry, sea: Sea, count: int) -> None:
        self._entry = entry
        self._talk = Talk(entry.prompt, entry.caller_names, sea, _rng(scenario, entry.kind, "talk"))
        self._answers = _rng(scenario, entry.kind, "answers")
        self._leaving = _rng(scenario, entry.kind, "leaving")
        leavers = round(count * entry.leave.share) if entry.leave else 0
        self._leaves = [True] * leavers + [False] * (count - leavers)
        self._leaving.shuffle(self._leaves)

    def next(self, number: int, at: float | None, step: int) -> Planned:
        entry = self._entry
        answer = entry.answer.draw(self._answers) if entry.answer else 0
        caller, messages = self._talk.speak(at, answer)
        seconds, tokens = self._leave()
        marks = 0 if entry.path in UNMARKED else MARK_TOKENS
        return Planned(
            number=number,
            at=at,
            step=step,
            kind=entry.kind,
            key=caller,
            path=entry.path,
            body=orjson.dumps({**_body(entry, messages, answer), **entry.extra}),
            stream=entry.stream,
            prompt_tokens=sum(message.tokens + marks for message in messages),
            max_tokens=answer,
            leave_after=seconds,
            leave_after_tokens=tokens,
        )

    def _leave(self) -> tuple[float | None, int | None]:
        leave = self._entry.leave
        if leave is None or not self._leaves.pop():
            return None, None
        if leave.after_seconds is not None:
            return self._leaving.uniform(*leave.after_seconds), None
        if leave.after_tokens is not None:
            return None, self._leaving.randint(*leave.after_tokens)
        return None, None


def _body(entry: Entry, messages: Sequence[Message], answer: int) -> Mapping[str, Any]:
    """What the path wants. Usage is asked for in streams: it is the pod's own count of tokens."""
    spoken = [{"role": message.role, "content": message.text} for message in messages]
    plain = " ".join(message.text for message in messages)
    usage = {"stream": True, "stream_options": {"include_usage": True}} if entry.stream else {}
    stream = {"stream": True} if entry.stream else {}
    match entry.path:
        case "/v1/chat/completions":
            return {"model": entry.model, "messages": spoken, "max_tokens": answer, **usage}
        case "/v1/completions":
            return {"model": entry.model, "prompt": plain, "max_tokens": answer, **usage}
        case "/v1/responses":
            return {"model": entry.model, "input": spoken, "max_output_tokens": answer, **stream}
        case "/v1/messages":
            system = {"system": spoken.pop(0)["content"]} if messages[0].role == "system" else {}
            return {"model": entry.model, **system, "messages": spoken, "max_tokens": answer, **stream}
        case _:
            return {"model": entry.model, "input": plain}
