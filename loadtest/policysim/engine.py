"""A pod: vLLM's scheduler and its prefix cache, in steps, without a clock of its own.

As in vLLM's V1 scheduler, first come first served: a step gives each sequence that decodes one token, goes on with the
prompts under way, and admits from the waiting line while the step's budget of tokens, a place in the batch and memory
are left. A block of the prompt can be found by others from the step on in which it is computed. A request that comes
during a step waits for the next one.

Two simplifications. Memory for the whole answer is taken at admission, so nothing is ever preempted. And as long as
nothing but decoding goes on, the steps up to the next end are one event (`next_at`): they are all alike.
"""

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Sequence

from loadtest.policysim.profiles import Profile, StepTime, pairs

TOKENS_PER_BLOCK = 128
"""Of the prefix cache and of what the gateway hashes: coarser than vLLM's 16, and the same for every policy."""


class Cache:
    """The KV cache, in blocks. Those that nobody uses keep their content until room is needed, the least recently used
    goes first; and of one job its tail, which is less likely to be shared than its head."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._users: dict[int, int] = {}
        self._unnamed = 0

    @property
    def in_use(self) -> int:
        return len(self._users) + self._unnamed

    def found(self, chain: Sequence[int]) -> int:
        """How many blocks of the chain, from its start, are there."""
        count = 0
        for block in chain:
            if block not in self._users and block not in self._idle:
                break
            count += 1
        return count

    def has_room(self, found: Sequence[int], blocks: int) -> bool:
        """For a job of so many blocks, the first of which were found. One alone may be larger than all there is."""
        shared = sum(1 for block in found if block in self._users)
        return not self.in_use or self.in_use + blocks - shared <= self.capacity

    def take(self, found: Sequence[int], blocks: int) -> None:
        for block in found:
            self._use(block)
        self._unnamed += blocks - len(found)
        self._evict()

    def name(self, blocks: Sequence[int]) -> None:
        """Blocks taken are computed now: they can be found. What another computed meanwhile is kept once."""
        for block in blocks:
            self._use(block)
        self._unnamed -= len(blocks)

    def give_back(self, named: Sequence[int], unnamed: int, answer: Sequence[int]) -> None:
        """What a job held; `answer` are those of the unnamed that can be found from now on."""
        self._unnamed -= unnamed
        for block in reversed(answer):
            if block not in self._users:
                self._idle[block] = None
                self._idle.move_to_end(block)
        for block in reversed(named):
            users = self._users[block] - 1
            if users:
                self._users[block] = users
            else:
                del self._users[block]
                self._idle[block] = None
        self._evict()

    def remember(self, chain: Sequence[int]) -> None:
        """These were computed some time ago."""
        for block in reversed(chain):
            self._idle[block] = None
            self._idle.move_to_end(block)
        self._evict()

    def _use(self, block: int) -> None:
        users = self._users.get(block, 0)
        if not users:
            self._idle.pop(block, None)
        self._users[block] = users + 1

    def _evict(self) -> None:
        while self._idle and len(self._idle) + self.in_use > self.capacity:
            self._idle.popitem(last=False)


class Job:
    """One request's way through a pod. `chain` names the full blocks of its prompt, then of its answer."""

    __slots__ = ("answer_tokens", "blocks", "cached_tokens", "chain", "computed", "named", "number", "prompt_tokens")

    def __init__(self, number: int, prompt_tokens: int, answer_tokens: int, chain: tuple[int, ...]) -> None:
        self.number = number
        self.prompt_tokens = prompt_tokens
        self.answer_tokens = answer_tokens
        self.chain = chain
        self.cached_tokens = 0
        self.computed = 0  # of the prompt, those found in the cache included
        self.named = 0  # blocks of the chain, from its start, that it uses and others can find
        self.blocks = -(-(prompt_tokens + answer_tokens) // TOKENS_PER_BLOCK)


class Engine:
    """`submit` a job, and call `advance` at `next_at`, whenever that is, until it is infinite."""

    def __init__(self, profile: Profile, slowness: float = 1.0) -> None:
        self.cache = Cache(profile.kv_tokens // TOKENS_PER_BLOCK)
        self.count = 0
        """All requests in the pod, waiting or running: what its `/load` says."""
        self.next_at = math.inf
        self._time: StepTime = profile.time.times(slowness)
        self._budget = profile.max_num_batched_tokens
        self._max_num_seqs = profile.max_num_seqs
        self._waiting: deque[Job] = deque()
        self._prefilling: list[Job] = []
        self._decoding: list[tuple[int, int, Job]] = []  # a heap, by the step that ends it
        self._steps_done = 0
        self._planned = 0  # steps until next_at
        self._begun_at = 0.0
        self._step_seconds = 0.0

    def submit(self, job: Job, now: float) -> None:
        self.count += 1
        self._waiting.append(job)
        if self.next_at == math.inf:
            self._begin(now)
        elif self._planned > 1:
            # The steps ahead were planned as decoding alone; the one under way is the last of these.
            begun = max(math.ceil((now - self._begun_at) / self._step_seconds), 1)
            if begun < self._planned:
                self._planned = begun
                self.next_at = self._begun_at + begun * self._step_seconds

    def advance(self, now: float) -> tuple[list[Job], list[Job]]:
        """The planned steps are over: (jobs that got their first token, jobs that ended)."""
        self._steps_done += self._planned
        first, prefilling = [], []
        for job in self._prefilling:
            if job.computed < job.prompt_tokens:
                prefilling.append(job)
            else:
                first.append(job)
                heapq.heappush(self._decoding, (self._steps_done + job.answer_tokens - 1, job.number, job))
        self._prefilling = prefilling
        ended = []
        while self._decoding and self._decoding[0][0] <= self._steps_done:
            ended.append(heapq.heappop(self._decoding)[2])
        for job in ended:
            answer = job.chain[job.named :]
            self.cache.give_back(job.chain[: job.named], job.blocks - job.named, answer)
        self.count -= len(ended)
        self._begin(now)
        return first, ended

    def _begin(self, now: float) -> None:
        budget = max(self._budget - len(self._decoding), 1)
        tokens, token_pairs = 0, 0.0
        for job in self._prefilling:
            share = min(job.prompt_tokens - job.computed, budget - tokens)
            if share > 0:
                token_pairs += pairs(job.computed, share)
                tokens += share
                self._compute(job, share)
        while self._waiting and tokens < budget and self._admit(self._waiting[0]):
            job = self._waiting.popleft()
            share = min(job.prompt_tokens - job.computed, budget - tokens)
            token_pairs += pairs(job.computed, share)
            tokens += share
            self._compute(job, share)
        if not self._prefilling and not self._decoding:
            self.next_at = math.inf
            return
        self._planned = 1 if self._prefilling else self._decoding[0][0] - self._steps_done
        self._begun_at = now
        self._step_seconds = self._time.seconds(len(self._decoding), tokens, token_pairs)
        self.next_at = now + self._planned * self._step_seconds

    def _admit(self, job: Job) -> bool:
        if len(self._prefilling) + len(self._decoding) >= self._max_num_seqs:
            return False
        # The last token is always computed: the answer's first comes out of it.
        found = job.chain[: self.cache.found(job.chain[: (job.prompt_tokens - 1) // TOKENS_PER_BLOCK])]
        if not self.cache.has_room(found, job.blocks):
            return False
        self.cache.take(found, job.blocks)
        job.named = len(found)
        job.cached_tokens = job.computed = len(found) * TOKENS_PER_BLOCK
        self._prefilling.append(job)
        return True

    def _compute(self, job: Job, share: int) -> None:
        job.computed += share
        full = job.computed // TOKENS_PER_BLOCK
        self.cache.name(job.chain[job.named : full])
        job.named = full
