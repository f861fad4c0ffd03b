"""One run: a cell's requests, from one seed, under one policy. Nothing in it depends on anything but these three.

Events in order of time: requests come and go to a replica by chance; pods reach the end of a step; replicas read the
pods' `/load`. Chance is drawn apart for the workload, the clients and each replica, so that a policy that asks for more
of it changes nothing for the others: all policies of a seed see the same requests at the same replicas.
"""

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from gateway.balancing.policy import Policy
from gateway.discovery.rounds import Pace
from loadtest.policysim.cells import SLOWNESS, Cell, Condition
from loadtest.policysim.engine import Engine, Job
from loadtest.policysim.replica import Replica, Sent
from loadtest.policysim.workloads import WORKLOADS, Asked, drawn

READ_JITTER = 0.2
"""A replica reads a pod's `/load` as often as the gateway does (`Pace`), give or take this part of it."""
JOINS_AT = 0.4
"""When a cold pod joins, as a part of the time in which requests come."""
PAUSE_SECONDS = 0.5
"""What a client takes at least from the last token of an answer to its next turn."""


class _Kind(IntEnum):
    ARRIVAL = 0
    STEP = 1
    READING = 2
    JOIN = 3


@dataclass(frozen=True, slots=True)
class Run:
    """What came out. The lists go by the request's number."""

    first_token_seconds: Sequence[float]
    prompt_tokens: int
    cached_tokens: int
    pod_seconds: Sequence[float]
    """For each pod: the sum over its requests of the time each spent there."""
    arrived_seconds: float
    """When the last request came."""
    begun_seconds: float
    """When the last first token came."""


def asked_of(cell: Cell, seed: int) -> Asked:
    """What is asked in a cell, the same for every policy."""
    return drawn(
        WORKLOADS[cell.workload],
        cell.profile,
        seed=seed,
        count=cell.requests,
        pods=cell.pods,
        speed=cell.speed,
        load=cell.load,
    )


def run(cell: Cell, policy: Policy, asked: Asked, seed: int) -> Run:
    """Every request is sent, answered and counted once."""
    return _World(cell, policy, asked, seed).run()


class _World:
    """The state of one run."""

    def __init__(self, cell: Cell, policy: Policy, asked: Asked, seed: int) -> None:
        self._cell = cell
        self._history = asked.history
        requests = self._requests = asked.requests
        self._events: list[tuple[float, int, _Kind, int, int]] = []
        self._pushed = 0
        self._replicas = [
            Replica(policy, random.Random(f"replica/{replica}/{seed}").random) for replica in range(cell.replicas)
        ]
        clients = random.Random(f"clients/{seed}")
        self._replica_of = [clients.randrange(cell.replicas) for _ in requests]
        self._jitter = random.Random(f"readings/{seed}")
        self._read_seconds = Pace().count_seconds(cell.pods, cell.replicas)
        self._engines: list[Engine] = []
        self._pod_of: dict[str, int] = {}
        self._sent: list[Sent | None] = [None] * len(requests)
        self._arrived = [0.0] * len(requests)
        self._first_token = [math.nan] * len(requests)
        self._sent_at = [math.nan] * len(requests)
        self._turn_after = {request.after: number for number, request in enumerate(requests) if request.after >= 0}
        self._open = len(requests)
        self._cached_tokens = 0
        self._pod_seconds = [0.0] * cell.pods

    def run(self) -> Run:
        cell = self._cell
        late = 1 if cell.condition is Condition.COLD else 0
        for _ in range(cell.pods - late):
            self._join(0.0, new=False)
        for number, request in enumerate(self._history):
            pod = number % len(self._engines)
            self._engines[pod].cache.remember(request.chain)
            # Not `number % replicas` too: each replica would have sent to a few of the pods only.
            self._replicas[number // len(self._engines) % cell.replicas].remember(f"pod-{pod}", request.wish)
        if late:
            self._push(self._requests[-1].at * JOINS_AT, _Kind.JOIN)
        for number, request in enumerate(self._requests):
            if request.after < 0:
                self._push(request.at, _Kind.ARRIVAL, number)
        while self._open:
            now, _, kind, first, second = heapq.heappop(self._events)
            if kind is _Kind.STEP:
                if now == self._engines[first].next_at:  # else it was planned anew since
                    self._step(first, now)
            elif kind is _Kind.ARRIVAL:
                self._arrive(first, now)
            elif kind is _Kind.READING:
                self._read(first, second, now)
            else:
                self._join(now, new=True)
        return Run(
            first_token_seconds=self._first_token,
            prompt_tokens=sum(request.prompt_tokens for request in self._requests),
            cached_tokens=self._cached_tokens,
            pod_seconds=self._pod_seconds,
            arrived_seconds=max(self._arrived),
            begun_seconds=max(map(sum, zip(self._arrived, self._first_token, strict=True))),
        )

    def _push(self, at: float, kind: _Kind, first: int = 0, second: int = 0) -> None:
        self._pushed += 1
        heapq.heappush(self._events, (at, self._pushed, kind, first, second))

    def _join(self, now: float, *, new: bool) -> None:
        pod, cell = len(self._engines), self._cell
        slow = cell.condition is Condition.SLOW and pod == 0
        self._engines.append(Engine(cell.profile, SLOWNESS if slow else 1.0))
        uid = f"pod-{pod}"
        self._pod_of[uid] = pod
        for number, replica in enumerate(self._replicas):
            replica.join(uid, cell.profile.kv_tokens, now, new=new)
            self._push(now + self._jitter.random() * self._read_seconds, _Kind.READING, number, pod)

    def _arrive(self, number: int, now: float) -> None:
        self._arrived[number] = now
        replica = self._replicas[self._replica_of[number]]
        sent = replica.send(number, self._requests[number].wish)
        if sent is not None:
            self._submit(sent, now)

    def _submit(self, sent: Sent, now: float) -> None:
        number = sent.number
        request = self._requests[number]
        self._sent[number] = sent
        self._sent_at[number] = now
        pod = self._pod_of[sent.standing.uid]
        engine = self._engines[pod]
        planned = engine.next_at
        engine.submit(Job(number, request.prompt_tokens, request.answer_tokens, request.chain), now)
        if engine.next_at != planned:
            self._push(engine.next_at, _Kind.STEP, pod)

    def _step(self, pod: int, now: float) -> None:
        engine = self._engines[pod]
        first, ended = engine.advance(now)
        if engine.next_at != math.inf:
            self._push(engine.next_at, _Kind.STEP, pod)
        for job in first:
            self._first_token[job.number] = now - self._arrived[job.number]
            self._cached_tokens += job.cached_tokens
            self._replicas[self._replica_of[job.number]].first_token(self._sent_of(job))
        for job in ended:
            self._end(job, pod, now)

    def _end(self, job: Job, pod: int, now: float) -> None:
        number = job.number
        replica = self._replicas[self._replica_of[number]]
        replica.ended(self._sent_of(job))
        self._sent[number] = None
        self._pod_seconds[pod] += now - self._sent_at[number]
        self._open -= 1
        follower = self._turn_after.get(number)
        if follower is not None:
            request = self._requests[follower]
            self._push(max(request.at, now + PAUSE_SECONDS), _Kind.ARRIVAL, follower)
        self._hand_out(replica, now)

    def _hand_out(self, replica: Replica, now: float) -> None:
        while (sent := replica.next_sent()) is not None:
            self._submit(sent, now)

    def _read(self, replica: int, pod: int, now: float) -> None:
        count = 0 if self._cell.condition is Condition.UNREAD else self._engines[pod].count
        self._replicas[replica].read(f"pod-{pod}", count, now)
        self._hand_out(self._replicas[replica], now)
        wait = self._read_seconds * (1 + READ_JITTER * (2 * self._jitter.random() - 1))
        self._push(now + wait, _Kind.READING, replica, pod)

    def _sent_of(self, job: Job) -> Sent:
        sent = self._sent[job.number]
        assert sent is not None  # an engine ends only what it was given, and once
        return sent
