"""What is asked of the pods, drawn from a seed: when, how long the prompts and the answers are, and what they share.

Lengths are log-normal, with medians and means near those that public traces of chat, code and agent services have
(Azure 2023: chat prompts 1,020 tokens at the median and answers 129, code 1,500 and 13; Mooncake 2025: conversations
of 12,000 tokens in the mean, two fifths of them seen before). Arrivals come in bursts: their gaps are Gamma with a
coefficient of variation of 1.5, as BurstGPT found. No trace is used itself.

How fast requests come is given as a share of what the pods can do: of the rate at which a balancer that knows nothing
and spreads evenly would just keep all of them busy. That rate is computed from the very requests (`blind`), before any
policy has seen them.
"""

import math
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gateway.balancing.affinity import ends_of
from gateway.balancing.policy import Wish
from loadtest.policysim.engine import TOKENS_PER_BLOCK
from loadtest.policysim.profiles import Profile, pairs

BURSTINESS = 1.5
ESTIMATE_ERROR = 0.2
"""Sigma of what the gateway's estimate of a prompt's tokens is wrong by: it counts bytes, not tokens."""


class Request(NamedTuple):
    """One request. `at` is when it comes, in seconds; but not before an answer to the request whose number is `after`
    (the turn before), if that is not negative."""

    at: float
    prompt_tokens: int
    answer_tokens: int
    chain: tuple[int, ...]
    """A name for each full block of prompt and answer: equal where all tokens up to its end are equal."""
    wish: Wish
    after: int = -1


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal, in tokens."""

    median: float
    sigma: float

    def draw(self, rng: random.Random) -> float:
        return self.median * math.exp(rng.gauss(0.0, self.sigma))


class _Text:
    """Tokens in a row, by the names of their blocks; it grows at its end. `shared`: the whole blocks it begins with."""

    def __init__(self, rng: random.Random, shared: Sequence[int] = ()) -> None:
        self._rng = rng
        self._blocks = list(shared)

    def first(self, tokens: int) -> tuple[int, ...]:
        blocks = tokens // TOKENS_PER_BLOCK
        while len(self._blocks) < blocks:
            self._blocks.append(self._rng.getrandbits(64))
        return tuple(self._blocks[:blocks])


class Draw:
    """Makes the requests of one seed for one kind of pod."""

    def __init__(self, rng: random.Random, profile: Profile) -> None:
        self.rng = rng
        self._profile = profile

    def arrivals(self, rate: float, count: int) -> Iterator[float]:
        shape = 1 / BURSTINESS**2
        at = 0.0
        for _ in range(count):
            at += self.rng.gammavariate(shape, 1 / (shape * rate))
            yield at

    def length(self, lengths: Lengths) -> int:
        return max(int(lengths.draw(self.rng) * self._profile.prompt_scale), 1)

    def text(self, shared: Sequence[int] = ()) -> _Text:
        return _Text(self.rng, shared)

    def request(self, at: float, text: _Text, prompt: int, answer: int, key: int) -> Request:
        prompt = min(max(prompt, 2), self._profile.max_prompt_tokens)
        answer = min(max(answer, 1), self._profile.max_answer_tokens)
        chain = text.first(prompt + answer)
        estimate = max(int(prompt * math.exp(self.rng.gauss(0.0, ESTIMATE_ERROR))), 1)
        blocks = ends_of(chain[: prompt // TOKENS_PER_BLOCK])
        # Without a session the prompt's beginning is the key: a block of it, or all there is.
        key = key or (blocks[0] if blocks else self.rng.getrandbits(64))
        return Request(at, prompt, answer, chain, Wish(estimate, blocks, key | 1))


@dataclass(frozen=True, slots=True)
class Workload:
    """A way of asking. `draw(draw, count, rate)` makes about `count` requests at `rate` a second, in order of time."""

    name: str
    what: str
    draw: Callable[[Draw, int, float], list[Request]]
    shares: bool = False
    """Whether many prompts share a beginning that does not fit into every pod's cache: the only case where the choice
    of a pod decides on what is found there."""


def _chats(draw: Draw, count: int, rate: float) -> list[Request]:
    systems = [draw.text().first(256) for _ in range(20)]
    requests = []
    for at in draw.arrivals(rate, count):
        shared = draw.rng.choice(systems) if draw.rng.random() < 0.3 else ()
        prompt = len(shared) * TOKENS_PER_BLOCK + draw.length(Lengths(400, 1.0))
        requests.append(draw.request(at, draw.text(shared), prompt, draw.length(Lengths(130, 0.9)), 0))
    return requests


def _long(draw: Draw, count: int, rate: float) -> list[Request]:
    return [
        draw.request(at, draw.text(), draw.length(Lengths(6000, 0.7)), draw.length(Lengths(150, 0.9)), 0)
        for at in draw.arrivals(rate, count)
    ]


def _mixed(draw: Draw, count: int, rate: float) -> list[Request]:
    requests = []
    for at in draw.arrivals(rate, count):
        lengths = Lengths(8000, 0.6) if draw.rng.random() < 0.12 else Lengths(400, 1.0)
        requests.append(draw.request(at, draw.text(), draw.length(lengths), draw.length(Lengths(130, 0.9)), 0))
    return requests


THINKING_SECONDS = 12.0
MORE_TURNS = 0.8
LONGEST_SESSION = 16


def _sessions(draw: Draw, count: int, rate: float) -> list[Request]:
    """Sessions go on since before the first request and after the last, so that any time is like any other."""
    rng = draw.rng
    systems = [draw.text().first(draw.length(Lengths(512, 0.5))) for _ in range(8)]
    turns_in_mean = (1 - MORE_TURNS**LONGEST_SESSION) / (1 - MORE_TURNS)
    before = LONGEST_SESSION * THINKING_SECONDS
    span = count / rate
    turns: list[tuple[float, int, int, Request]] = []
    for session, began in enumerate(draw.arrivals(rate / turns_in_mean, int((before + span) * rate / turns_in_mean))):
        shared = rng.choice(systems)
        text, key = draw.text(shared), rng.getrandbits(64)
        tokens = len(shared) * TOKENS_PER_BLOCK + draw.length(Lengths(1000, 1.0))
        at = began - before
        for turn in range(LONGEST_SESSION):
            request = draw.request(at, text, tokens, draw.length(Lengths(180, 0.8)), key)
            turns.append((at, session, turn, request))
            if rng.random() > MORE_TURNS:
                break
            tokens = request.prompt_tokens + request.answer_tokens + draw.length(Lengths(100, 1.0))
            at += rng.gammavariate(2.0, THINKING_SECONDS / 2)
    numbers: dict[tuple[int, int], int] = {}
    requests: list[Request] = []
    for at, session, turn, request in sorted(turns, key=lambda each: each[:3]):
        if 0 <= at < span:
            numbers[session, turn] = len(requests)
            requests.append(request._replace(after=numbers.get((session, turn - 1), -1)))
    return requests


def _one_system(draw: Draw, count: int, rate: float) -> list[Request]:
    system = draw.text().first(draw.length(Lengths(3000, 0.0)))
    return [_after(draw, at, system, Lengths(150, 0.9), Lengths(100, 0.9)) for at in draw.arrivals(rate, count)]


def _tenants(draw: Draw, count: int, rate: float) -> list[Request]:
    systems = [draw.text().first(draw.length(Lengths(6000, 0.4))) for _ in range(100)]
    popularity = [1 / place for place in range(1, len(systems) + 1)]
    return [
        _after(draw, at, draw.rng.choices(systems, popularity)[0], Lengths(200, 0.9), Lengths(100, 0.9))
        for at in draw.arrivals(rate, count)
    ]


def _after(draw: Draw, at: float, system: Sequence[int], tail: Lengths, answer: Lengths) -> Request:
    prompt = len(system) * TOKENS_PER_BLOCK + draw.length(tail)
    return draw.request(at, draw.text(system), prompt, draw.length(answer), 0)


WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("chats", "short chats; a third begin with one of 20 short system prompts", _chats),
        Workload("long", "long prompts that share nothing", _long),
        Workload("mixed", "short chats, every eighth prompt long; nothing shared", _mixed),
        Workload("sessions", "conversations: each turn's prompt begins with all turns before", _sessions, shares=True),
        Workload("system", "one system prompt of 3,000 tokens before every question", _one_system),
        Workload("tenants", "100 tenants, a few of them busy, each with its system prompt", _tenants, shares=True),
    )
}


class Sharing(NamedTuple):
    """The part of all prompt tokens that is found in a cache, and the seconds of work a request makes."""

    found: float
    seconds: float


class Asked(NamedTuple):
    """All that is asked in a run."""

    history: Sequence[Request]
    """What went before: it is in the caches, as a balancer that spreads evenly has left it there. Without it the pods
    would begin with several times the work that `load` means, and be busy for long with what that piled up."""
    requests: Sequence[Request]


HISTORY_PER_POD = 150


def blind(asked: Asked, profile: Profile, pods: int, *, kv_tokens: int | None = None) -> Sharing:
    """If they went to the pods in turn, each with a cache of its own. With one pod and the memory of all of them
    (`kv_tokens`): what sharing there is at all."""
    capacity = (kv_tokens or profile.kv_tokens) // TOKENS_PER_BLOCK
    caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(pods)]
    for number, request in enumerate(asked.history):
        _look_up(caches[number % pods], request, capacity)
    requests, time = asked.requests, profile.time
    cached = [_look_up(caches[number % pods], request, capacity) for number, request in enumerate(requests)]
    prompts = sum(request.prompt_tokens for request in requests)
    answers = sum(request.answer_tokens for request in requests)
    # What they share is in memory once.
    together = min(profile.max_num_seqs, profile.kv_tokens * len(requests) / (prompts - sum(cached) + answers))
    seconds = 0.0
    for request, found in zip(requests, cached, strict=True):
        tokens = request.prompt_tokens - found
        # A step's fixed part is shared by those it serves: a full batch, or a full budget of prompt tokens.
        steps = max(request.answer_tokens / together, tokens / profile.max_num_batched_tokens)
        seconds += time.step * steps + time.per_sequence * request.answer_tokens
        seconds += time.per_token * tokens + time.per_pair * pairs(found, tokens)
    return Sharing(sum(cached) / prompts, seconds / len(requests))


def _look_up(cache: OrderedDict[int, None], request: Request, capacity: int) -> int:
    found = 0
    for block in request.chain[: (request.prompt_tokens - 1) // TOKENS_PER_BLOCK]:
        if block not in cache:
            break
        found += 1
    for block in reversed(request.chain):
        cache[block] = None
        cache.move_to_end(block)
    while len(cache) > capacity:
        cache.popitem(last=False)
    return found * TOKENS_PER_BLOCK


def drawn(
    workload: Workload, profile: Profile, *, seed: int, count: int, pods: int, speed: float, load: float
) -> Asked:
    """About `count` requests, as fast as makes `load` of what pods of the speed `speed` together can do.

    The rate follows from the requests, and the requests (of sessions, that overlap the more the faster they come)
    from the rate; so they are drawn again and again, the first time at a guess.
    """
    rate = load * speed
    for _ in range(3):
        rate *= load * speed / busy_pods(_at_rate(workload, profile, seed, count, pods, rate), profile, pods)
    return _at_rate(workload, profile, seed, count, pods, rate)


def busy_pods(asked: Asked, profile: Profile, pods: int) -> float:
    """How many pods all that is asked keeps busy, if it is spread over so many."""
    return blind(asked, profile, pods).seconds * len(asked.requests) / asked.requests[-1].at


def _at_rate(workload: Workload, profile: Profile, seed: int, count: int, pods: int, rate: float) -> Asked:
    draw = Draw(random.Random(f"{workload.name}/{profile.name}/{seed}"), profile)
    before = HISTORY_PER_POD * pods
    drawn = workload.draw(draw, before + count, rate)
    history, requests = drawn[:before], drawn[before:]
    began = history[-1].at
    return Asked(
        history,
        [request._replace(at=request.at - began, after=max(request.after - before, -1)) for request in requests],
    )
