"""One request, as values: what was asked, what it used, how it ended, and the trail of what happened."""

from dataclasses import dataclass, field
from enum import StrEnum

from gateway.core.caller import Tenant


class Outcome(StrEnum):
    """How a request ended; a closed set, and a metric label."""

    COMPLETED = "completed"
    CLIENT_LEFT = "client_left"
    UPSTREAM_FAILED = "upstream_failed"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. `estimated` when the pod's own count never came."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """What was asked, read once from the body. Below intake nobody asks whether a field exists."""

    model: str
    stream: bool
    wants_usage: bool
    """The caller asked for the usage chunk itself (`stream_options.include_usage`)."""
    choices: int | None
    """How many indices must finish: `n` times the prompts; None: as many as are seen (`prompt_embeds`)."""
    body: tuple[bytes | memoryview, ...]
    """The body to send, in parts; together they are one JSON object."""
    body_length: int
    prompt_tokens_estimate: int


@dataclass(slots=True)
class Trail:
    """What happened to one request, written as it happens by its one task, and observed once at its end.

    Times are monotonic seconds; None where the moment never came.
    """

    request_id: str
    received_at: float
    operation: str = "other"
    tenant: Tenant | None = None
    model: str = ""
    served_model: bool = False
    """Whether `model` names a model that is served: only then may it be a metric label."""
    pool: str = ""
    pod: str = ""
    stream: bool = False
    status: int = 0
    outcome: Outcome = Outcome.INTERNAL
    code: str = ""
    usage: Usage | None = None
    finish: str = ""
    attempts: int = 0
    decision: str = ""
    content_events: int = 0
    sent_at: float | None = None
    """The last attempt's request left for its pod."""
    first_content_at: float | None = None
    committed_at: float | None = None
    """The answer's head left for the client."""
    ended_at: float | None = None
    attempt_outcomes: list[tuple[str, str]] = field(default_factory=list)
    """(pool, outcome) of each attempt, for the attempts metric."""
    retries: list[tuple[str, str]] = field(default_factory=list)
    """(pool, reason) of each retry."""

    @property
    def duration_seconds(self) -> float:
        """From the whole request to the last byte of its answer."""
        return 0.0 if self.ended_at is None else self.ended_at - self.received_at

    @property
    def ttft_seconds(self) -> float | None:
        """From the whole request to its stream's first content event."""
        if not self.stream or self.first_content_at is None:
            return None
        return self.first_content_at - self.received_at

    @property
    def inter_token_seconds(self) -> float | None:
        """The mean time between a stream's content events."""
        if not self.stream or self.first_content_at is None or self.ended_at is None or self.content_events < 2:
            return None
        return (self.ended_at - self.first_content_at) / (self.content_events - 1)

    @property
    def overhead_seconds(self) -> float | None:
        """What the gateway itself took: until the request left, and from the pod's first content to ours.

        None after several attempts: the time between them is the pods'.
        """
        if self.attempts != 1 or self.sent_at is None or self.first_content_at is None or self.committed_at is None:
            return None
        return self.sent_at - self.received_at + self.committed_at - self.first_content_at
