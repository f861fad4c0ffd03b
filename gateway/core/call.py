"""One request, as values: what was asked, what it used, how it ended, and the trail of what happened.

Values that are made for every request are named tuples: a frozen dataclass takes three times as long to make.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from gateway.core.caller import Tenant
from gateway.core.trace import Trace


class Outcome(StrEnum):
    """How a request ended; a closed set, and a metric label."""

    COMPLETED = "completed"
    CLIENT_LEFT = "client_left"
    UPSTREAM_FAILED = "upstream_failed"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    INTERNAL = "internal"


FAULTS = frozenset({Outcome.UPSTREAM_FAILED, Outcome.UPSTREAM_TIMEOUT, Outcome.TRUNCATED, Outcome.INTERNAL})
"""The pods' fault, or the gateway's: not the caller's."""
BLAMELESS = frozenset({"completed", "client_left", "refused", "abandoned"})
"""How an attempt may end without a fault of its pod's."""


class Usage(NamedTuple):
    """Tokens of one answer. `estimated` when the pod's own count never came."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    estimated: bool = False


class Call(NamedTuple):
    """What was asked, read once from the body. Below intake nobody asks whether a field exists."""

    model: str
    """The name in the body: the one asked for, or that of the model which an alias of that name led to."""
    stream: bool
    wants_usage: bool
    """The caller asked for the usage chunk itself (`stream_options.include_usage`)."""
    choices: int | None
    """How many indices must finish: `n` times the prompts; None: as many as are seen (`prompt_embeds`)."""
    body: list[bytes | memoryview]
    """The body to send, in parts; together they are one JSON object, or one form. Emptied when the answer has begun:
    streams are long, and bodies may be large."""
    body_length: int
    content_type: bytes
    """The body's, with the boundary of a form's parts."""
    prompt_tokens_estimate: int
    max_tokens: int | None = None
    """Of each answer, as asked for."""
    says_priority: bool = False
    """The body has a priority of its own for the pod, which a header of ours would override."""
    model_at: tuple[int, int] | None = None
    """Where in the body the model's name begins and ends, with its quotes; None: that was not looked for."""


class Attempt(NamedTuple):
    """One attempt at one pod, for who asks why it went there (`poolgate explain`)."""

    pod: str
    decision: str
    """Why this pod, in one word of a closed set."""
    candidates: tuple[str, ...]
    """The pods that were weighed, by name."""
    costs: Sequence[float]
    """What each would have cost, in their order; empty where nothing was weighed."""
    cached_tokens: int
    """How many of the prompt's tokens were believed cached there."""
    ended: str
    """How it ended: an outcome, or a kind of failure."""
    model: str = ""
    """What the pod was asked for: the name the caller said, or one that an alias of that name led to."""
    started_at: float = 0.0
    """Its times are noted for traces only."""
    ended_at: float = 0.0


class Trail:
    """What happened to one request, written as it happens by its one coroutine, and observed once at its end.

    Times are monotonic seconds; None where the moment never came. What is not written is the class's own value, which
    costs nothing: most requests have one attempt, no retry and no code.
    """

    pod_request_id = ""
    """What pods are told, with the attempt's number behind it: never twice the same, whatever ids callers send."""
    trace: Trace | None = None
    """Where it stands in a trace; None: tracing is off, or its caller's trace is not recorded."""
    operation = "other"
    tenant: Tenant | None = None
    model = ""
    served_model = False
    """Whether `model` names a model that is served: only then may it be a metric label."""
    pool = ""
    pod = ""
    stream = False
    status = 0
    outcome = Outcome.INTERNAL
    code = ""
    usage: Usage | None = None
    finish = ""
    attempts = 0
    decision = ""
    """Why the last attempt went where it went: one word of a closed set."""
    tried: tuple[Attempt, ...] = ()
    queue_seconds = 0.0
    """Waited for a pod with room, over all attempts."""
    content_events = 0
    sent_at: float | None = None
    """The last attempt's request left for its pod."""
    first_content_at: float | None = None
    opened = False
    """The answer's head left with a comment of ours, before anything of the answer."""
    committed_at: float | None = None
    """The answer, and as a rule its head, left for the client."""
    ended_at = 0.0
    attempt_outcomes: tuple[tuple[str, str], ...] = ()
    """(pool, outcome) of each attempt, for the attempts metric."""
    retries: tuple[tuple[str, str], ...] = ()
    """(pool, reason) of each retry."""

    def __init__(self, request_id: str, received_at: float) -> None:
        self.request_id = request_id
        self.received_at = received_at

    @property
    def trace_id(self) -> str:
        """By which its spans are found; empty: there are none."""
        return f"{self.trace.trace_id:032x}" if self.trace is not None and self.trace.sampled else ""

    @property
    def duration_seconds(self) -> float:
        """From the whole request to the last byte of its answer."""
        return self.ended_at - self.received_at

    @property
    def ttft_seconds(self) -> float | None:
        """From the whole request to its stream's first content event."""
        if not self.stream or self.first_content_at is None:
            return None
        return self.first_content_at - self.received_at

    @property
    def inter_token_seconds(self) -> float | None:
        """The mean time between a stream's content events."""
        if not self.stream or self.first_content_at is None or self.content_events < 2:
            return None
        return (self.ended_at - self.first_content_at) / (self.content_events - 1)

    @property
    def overhead_seconds(self) -> float | None:
        """What the gateway itself took: until the request left, without the wait for a pod with room, and from the
        pod's first content to ours.

        None after several attempts: the time between them is the pods'.
        """
        if self.attempts != 1 or self.sent_at is None or self.first_content_at is None or self.committed_at is None:
            return None
        return self.sent_at - self.received_at - self.queue_seconds + self.committed_at - self.first_content_at
