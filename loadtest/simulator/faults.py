"""Every way a pod can be made to misbehave: a closed set, and how one is written down.

A fault comes from the command line (`--fault stall:3`), from one request (the body field `sim_fault`, which a
gateway passes on as it does any unknown field), from the control route (`POST /sim/fault`) or from a test. In
JSON it is an object with the fields of `Fault`; as text it is `KIND`, `KIND:ARG` or
`KIND:field=value,field=value`. What each kind does to an answer is in `sabotage`.
"""

from __future__ import annotations

import enum

import msgspec


class BadFault(ValueError):
    """The text says what is wrong and what would be right."""


class FaultKind(enum.StrEnum):
    NEVER_ANSWER = "never_answer"
    """The request is read and nothing comes back."""
    CLOSE = "close"
    """The request is read and the connection closed without a byte."""
    STALL = "stall"
    """Silence after `after` events (0: after the head). The sequence keeps its batch slot."""
    DRIP = "drip"
    """One token every `seconds_per_token`."""
    RESET = "reset"
    """RST: before the head, or after `after` events."""
    CUT = "cut"
    """After `after` events, half of the next one, then a close. Without a stream: half of the body."""
    NO_DONE = "no_done"
    """The body ends properly, `[DONE]` is missing; with `after`, it ends after so many events."""
    NO_FINISH = "no_finish"
    """No finish reason before `[DONE]`; with `after`, `[DONE]` comes after so many events."""
    ERROR_EVENT = "error_event"
    """An error event and `[DONE]` within the 200, after `after` events. Without a stream: a 500."""
    ENGINE_DEATH = "engine_death"
    """The engine dies: every open request of the pod gets its error, /health turns 503, the pod exits."""
    SILENCE = "silence"
    """As SIGTERM in vLLM's default: the port closes, open requests hang."""
    DIE = "die"
    """As SIGKILL: listener and connections close at once."""
    GARBAGE = "garbage"
    """Bytes that are wrong on the level `what` names."""
    STATUS = "status"
    """The answer is `status` with `body`, or with what vLLM says at that status."""
    DRAINING = "draining"
    """500 "cannot schedule new futures after shutdown", as a vLLM in its drain answers new requests."""


class Garbage(enum.StrEnum):
    NOT_HTTP = "not_http"
    BAD_CHUNK_SIZE = "bad_chunk_size"
    JUNK_BODY = "junk_body"


OF_THE_WHOLE_POD = frozenset({FaultKind.ENGINE_DEATH, FaultKind.SILENCE, FaultKind.DIE})
"""Set on a running pod without `after`, these strike at once instead of waiting for a request."""

# The field that a bare argument sets: `drip:0.5`, `status:503`. All others: `after`.
_BARE_ARGUMENT = {FaultKind.DRIP: "seconds_per_token", FaultKind.STATUS: "status", FaultKind.GARBAGE: "what"}


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One fault. `after` counts the events sent before it strikes, the role event included."""

    kind: FaultKind
    after: int | None = None  # None: as early as the kind allows
    count: int | None = None  # so many requests, then no more; None: until cleared
    share: float = 1.0  # of the requests it could strike, drawn from the seed
    path: str | None = None  # None: those the engine computes for; "*": any but /sim; else this path
    seconds_per_token: float = 1.0  # drip
    status: int = 503  # status
    body: str | None = None  # status; garbage: the junk
    content_type: str = "application/json"  # status
    retry_after_seconds: int | None = None  # status
    location: str | None = None  # status
    message: str | None = None  # error_event, status
    code: int = 500  # error_event
    what: Garbage = Garbage.NOT_HTTP  # garbage
    exit_seconds: float | None = None  # engine_death

    def __post_init__(self) -> None:
        if self.after is not None and self.after < 0:
            raise ValueError(f"after counts events, got {self.after}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"count is a number of requests, got {self.count}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is above 0 and at most 1, got {self.share}")
        if self.seconds_per_token < 0 or (self.exit_seconds or 0) < 0:
            raise ValueError("seconds cannot be negative")
        if not 200 <= self.status <= 599:
            raise ValueError(f"status is a final HTTP status, got {self.status}")


def fault_from_json(text: bytes | msgspec.Raw) -> Fault:
    """Raises BadFault."""
    try:
        return msgspec.json.decode(text, type=Fault)
    except msgspec.MsgspecError as error:
        raise _explained(error) from None


def fault_from_text(text: str) -> Fault:
    """`stall`, `stall:3`, `status:status=503,retry_after_seconds=2`, or a JSON object. Raises BadFault."""
    if text.lstrip().startswith("{"):
        return fault_from_json(text.encode())
    name, _, argument = text.partition(":")
    kind = _kind(name)
    fields: dict[str, str] = {"kind": name}
    if argument and "=" not in argument:
        fields[_BARE_ARGUMENT.get(kind, "after")] = argument
    elif argument:
        for pair in argument.split(","):
            field, _, value = pair.partition("=")
            fields[field.strip()] = value.strip()
    try:
        return msgspec.convert(fields, type=Fault, strict=False)
    except msgspec.MsgspecError as error:
        raise _explained(error) from None


def _kind(name: str) -> FaultKind:
    try:
        return FaultKind(name)
    except ValueError:
        raise BadFault(f"unknown fault kind {name!r}; known kinds: {_kinds()}") from None


def _explained(error: msgspec.MsgspecError) -> BadFault:
    text = str(error)
    if "$.kind" in text or "`kind`" in text:
        return BadFault(f"a fault needs one of the known kinds ({_kinds()}): {text}")
    return BadFault(f"not a fault: {text}; fields: {', '.join(Fault.__struct_fields__)}")


def _kinds() -> str:
    return ", ".join(FaultKind)
