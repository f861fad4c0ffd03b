"""A scenario: a YAML file that says what is asked, of what, and what a good answer would be.

    name: burst                     # as the file
    question: one sentence; the run answers it with yes or no
    seed: 10                        # everything that is drawn is drawn from it
    seconds: 60                     # for so long requests are sent; their answers may last longer

    arrivals: {kind: constant, rate: 20}                         # a second; kinds: constant, poisson, gamma
    arrivals: {kind: poisson, rates: [10, 20, 40]}               # steps of equal length
    arrivals: {kind: gamma, ramp: [5, 60], burstiness: 1.5}      # a steady rise, told as ten steps
    arrivals: {closed: 8, requests: 400}                         # eight ask at once, each as soon as it can

    mix:                            # each request is of one kind; how many of each is by `share`, exactly
      - kind: chat                  # a name of your own
        share: 3                    # a weight; default 1
        key: acme                   # the caller; default: the kind
        callers: 20                 # default 1; more: acme-0, acme-1 …, each with a key of its own
        path: /v1/chat/completions  # the default; also /v1/completions, /v1/embeddings, /v1/responses, /v1/messages
        model: qwen3-8b
        stream: true                # the default where the path has streams
        prompt:
          tokens: LENGTHS           # of what is new in each request
          families: 20              # default 0: nothing shared; else so many system prompts …
          system_tokens: LENGTHS    # … each so long (default 256) …
          popularity: even          # … all asked alike (even), or the first most (zipf: the n-th 1/n as often)
          turns: 8                  # default 1; more: conversations, each prompt begins with all said before …
          conversations: 50         # … so many at once (default 10) …
          thinking_seconds: 2       # … and so long between two turns at least (open loop; default 0)
        answer: {tokens: LENGTHS}   # becomes max_tokens; not for embeddings
        leave: {share: 0.3, after_seconds: [0.1, 2]}      # so many clients leave, drawn evenly between the two
        leave: {share: 0.3, after_tokens: [1, 50]}        # … or after so many tokens (streams)
        extra: {ignore_eos: true}   # further fields of the body; real pods need this one for answers of that length

    objectives:                     # a request is good if it is whole and within each of these
      ttft_ms: 500
      tpot_ms: 50
      e2e_ms: 20000
      goodput: 0.99                 # at least this share is good; default 0.99
      errors: 0                     # at most this share does not end whole (leaving is no error); default 0
      late_ms: 50                   # the generator's own lateness, p99; more and the run proves nothing; default 50

    stand:                          # what is measured, if it is not an existing gateway (--url)
      pods: [{model: qwen3-8b, count: 4, task: generate, pool: NAME, flags: {step-ms: 8, ends-early: true}}]
                                    # flags: of `python -m loadtest.simulator`, without their dashes
                                    # pool: default the model's name
      gateways: 1
      redis: false
      kubernetes: false             # pods found through a test API server; default: listed in the configuration
      direct: false                 # true: the same schedule is also played straight to a pod, interleaved
      keys: {acme: {requests_per_minute: 60}}             # fields of keys.yaml; a key not named here has no limits
      config: {pools: {qwen3-8b: {policy: least}}}        # laid over the gateway's configuration

    faults:                         # default none
      - {at: 20, what: kill_pod, pod: qwen3-8b-0}         # SIGKILL; `back_after: 5` starts it again
      - {at: 20, what: restart_pods, grace_seconds: 5}    # one after the other, drained first
      - {at: 20, what: slow_pod, pod: qwen3-8b-0, factor: 4, seconds: 20}
      - {at: 20, what: stop_redis, seconds: 10}
      - {at: 20, what: replace_gateways}                  # one after the other, a new one first

    expect: {only_told_endings: true}                     # what must be true beside the objectives: `EXPECTATIONS`

LENGTHS is a number of tokens; `{from: 10, to: 50}`, all alike likely; `{median: 400, sigma: 1.0}`, log-normal; the name
of a profile (`loadtest.load.lengths.PROFILES`); or `{profile: NAME, scale: 0.25}`. The log-normal ones take `at_least`
and `at_most`, to which what falls outside is set; a profile has an `at_most` of its own.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from loadtest.load.arrivals import ClosedLoop, OpenLoop
from loadtest.load.lengths import Fixed, Lengths

FAULTS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "kill_pod": ("pod", "back_after"),
        "restart_pods": ("grace_seconds",),
        "slow_pod": ("pod", "factor", "seconds"),
        "stop_redis": ("seconds",),
        "replace_gateways": (),
    }
)
"""What can be done to the stand, and what each may be told beside `at`."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: `tokens` are new in each request, the rest is shared; see `loadtest.load.prompts`."""

    tokens: Lengths
    families: int = 0
    system_tokens: Lengths = field(default_factory=lambda: Fixed(256))
    popularity: str = "even"
    turns: int = 1
    conversations: int = 10
    thinking_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Leave:
    """This share of the clients leaves, after so many seconds or tokens, drawn evenly between the two."""

    share: float
    after_seconds: tuple[float, float] | None = None
    after_tokens: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the mix: requests that are alike."""

    kind: str
    share: float
    key: str
    callers: int
    path: str
    model: str
    stream: bool
    prompt: Prompt
    answer: Lengths | None
    """None for embeddings."""
    leave: Leave | None
    extra: Mapping[str, Any]

    @property
    def caller_names(self) -> tuple[str, ...]:
        if self.callers == 1:
            return (self.key,)
        return tuple(f"{self.key}-{number}" for number in range(self.callers))


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a good request is, and how many must be good. None: no such bound."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    goodput: float = 0.99
    errors: float = 0.0
    late_ms: float = 50.0


@dataclass(frozen=True, slots=True)
class PodPlan:
    """Pods that are alike. `flags` are the simulator's, ready for its command line."""

    model: str
    count: int
    task: str
    pool: str
    flags: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.pool}-{number}" for number in range(self.count))


@dataclass(frozen=True, slots=True)
class StandPlan:
    """What is measured."""

    pods: tuple[PodPlan, ...]
    gateways: int = 1
    redis: bool = False
    kubernetes: bool = False
    direct: bool = False
    keys: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By caller: fields of keys.yaml. All callers of the mix are in it."""
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens to the stand at a second of the run. What it is not told is None."""

    at: float
    what: str
    pod: str | None = None
    back_after: float | None = None
    grace_seconds: float | None = None
    factor: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A file, checked."""

    name: str
    question: str
    seed: int
    seconds: float
    arrivals: OpenLoop | ClosedLoop
    mix: tuple[Entry, ...]
    objectives: Objectives
    stand: StandPlan
    faults: tuple[Fault, ...]
    expect: Mapping[str, Any]
    text: str = ""
    """The file itself."""

    def lasting(self, seconds: float) -> "Scenario":
        """The same at the same rates, but over after `seconds`; what happens by the clock happens as much earlier or
        later."""
        ratio = seconds / self.seconds
        arrivals = self.arrivals
        if isinstance(arrivals, ClosedLoop):
            arrivals = replace(arrivals, requests=max(round(arrivals.requests * ratio), arrivals.workers))
        return replace(
            self,
            seconds=seconds,
            arrivals=arrivals,
            faults=tuple(
                replace(
                    fault,
                    at=fault.at * ratio,
                    seconds=None if fault.seconds is None else fault.seconds * ratio,
                    back_after=None if fault.back_after is None else fault.back_after * ratio,
                )
                for fault in self.faults
            ),
        )

    def scaled(self, factor: float) -> "Scenario":
        """The same with `factor` times as many requests at once or per second."""
        return replace(self, arrivals=self.arrivals.scaled(factor))


class Takes(enum.Enum):
    """What an expectation is told."""

    TRUE = "true"
    NUMBER = "a number, 0 or more"
    SHARE = "a share, 0 to 1"
    NUMBER_BY_KEY = "a number for each key, such as {acme: 500}"
    SHARE_BY_KEY = "a share for each key, such as {acme: 0.99}"
    SHARE_BY_POD = "a share for each pod, such as {qwen3-8b-0: 0.1}"


@dataclass(frozen=True, slots=True)
class Expectation:
    takes: Takes
    meaning: str


EXPECTATIONS: Mapping[str, Expectation] = MappingProxyType(
    {
        "up_to_per_second": Expectation(
            Takes.NUMBER, "the objectives hold at each rate up to this; beyond it nothing is asked of them"
        ),
        "only_whole_endings": Expectation(Takes.TRUE, "every answer ends whole, unless its client left"),
        "only_told_endings": Expectation(
            Takes.TRUE, "every answer ends whole or with an error that is told: none cut, refused or timed out"
        ),
        "only_codes": Expectation(Takes.TRUE, "every error that is told bears a code of the contract"),
        "refusals_say_when": Expectation(Takes.TRUE, "every 429 and 503 says when to come again"),
        "admitted_over_limit_at_most": Expectation(
            Takes.SHARE, "no caller has more requests admitted than its requests per minute allow, give or take"
        ),
        "admitted_under_limit_at_most": Expectation(
            Takes.SHARE, "a caller that asks for more than its limit gets all of the limit, give or take"
        ),
        "extra_bursts_at_most": Expectation(
            Takes.NUMBER, "what a caller has more than its requests per minute allow, in bursts of that limit"
        ),
        "always_in_redis": Expectation(
            Takes.TRUE, "no replica finds Redis slow or away, and counts limits by itself meanwhile"
        ),
        "true_waits_within_seconds": Expectation(
            Takes.NUMBER, "who waits as a 429 says is let in, and nobody sooner, give or take so many seconds"
        ),
        "share_of_key_at_least": Expectation(Takes.SHARE_BY_KEY, "so many of a key's answers are whole"),
        "ttft_p95_of_key_ms": Expectation(Takes.NUMBER_BY_KEY, "95 in 100 of a key's answers begin within it"),
        "ttft_p50_of_key_at_least_ms": Expectation(
            Takes.NUMBER_BY_KEY, "half of a key's answers begin later: it was queued in truth"
        ),
        "share_of_pod_at_most": Expectation(Takes.SHARE_BY_POD, "a pod gets no more of the requests than this"),
        "share_of_pod_at_least": Expectation(
            Takes.SHARE_BY_POD, "a pod gets so many of the requests; one that was killed, when it is back"
        ),
        "busiest_pod_at_most": Expectation(
            Takes.NUMBER, "requests of the busiest pod of a pool, by the mean of its pods"
        ),
        "recovers_within_seconds": Expectation(Takes.NUMBER, "so long after a fault every answer that begins is whole"),
        "leaving_seen_within_seconds": Expectation(Takes.NUMBER, "so long after clients left no pod computes for them"),
        "prefix_hits_at_least": Expectation(Takes.SHARE, "so many of the prompt tokens came from a pod's cache"),
        "prefix_hits_over_others_at_least": Expectation(
            Takes.NUMBER_BY_KEY, "a key's share of cached prompt tokens, by the best of the other keys"
        ),
        "added_p50_ms_at_most": Expectation(Takes.NUMBER, "what the gateway adds to TTFT at the median (stand.direct)"),
        "added_p99_ms_at_most": Expectation(Takes.NUMBER, "the difference of the 99th percentiles (stand.direct)"),
        "itl_p99_ms_at_most": Expectation(Takes.NUMBER, "99 in 100 gaps between two tokens are no longer"),
        "kib_per_stream_at_most": Expectation(Takes.NUMBER, "memory of the gateways for each stream that is open"),
        "redis_again_within_seconds": Expectation(
            Takes.NUMBER, "so long after Redis is back all gateways count in it again"
        ),
        "ttft_p99_without_redis_ms": Expectation(Takes.NUMBER, "while Redis is away 99 in 100 answers begin within it"),
        "in_flight_at_end": Expectation(Takes.NUMBER, "requests the gateways think they hold when all is over"),
        "memory_growth_mib_at_most": Expectation(
            Takes.NUMBER, "what each gateway grew by between first and last tenth"
        ),
    }
)
"""What can be expected beside the objectives. Each can be answered with no."""
