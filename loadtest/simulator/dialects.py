"""What a chat's answer is in the events and words of another API.

vLLM itself serves `/v1/messages` by asking its own chat completions and translating each event; so do we, for
`/v1/responses` and audio too. A dialect is one request's translator: it is given the chat's events as they
are made, and says what goes out instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from hashlib import blake2b

import msgspec

from loadtest.simulator.bodies import Identity
from loadtest.simulator.wire import DONE, Reply

Counts = tuple[int, int, int, int]
"""Prompt, completion, cached and newly cached tokens."""


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: Function = msgspec.field(default_factory=Function)


class Said(msgspec.Struct):
    """A delta of a stream, or a whole message."""

    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct):
    delta: Said = msgspec.field(default_factory=Said)
    message: Said = msgspec.field(default_factory=Said)
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: dict[str, int | None] | None = None


class ChatError(msgspec.Struct):
    message: str
    code: int


class ChatAnswer(msgspec.Struct):
    """A chat's event or its whole body, as far as anyone translates it."""

    choices: list[Choice] = msgspec.field(default_factory=list)
    usage: Usage | None = None
    error: ChatError | None = None


_decoder = msgspec.json.Decoder(ChatAnswer)


def read_answer(text: bytes) -> ChatAnswer:
    return _decoder.decode(text)


def named_event(name: str, payload: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), payload)


def derived_id(prefix: str, *origin: object) -> str:
    """Sixteen hex digits, the same for the same origin."""
    return prefix + blake2b("/".join(map(str, origin)).encode(), digest_size=8).hexdigest()


class Dialect(ABC):
    """Stateful where it translates a stream; one request's own."""

    id_prefix = "chatcmpl-"
    own_id: str | None = None
    """The answer's whole id, if neither the pod nor X-Request-Id has a say in it."""
    takes_request_id = True
    """Whether X-Request-Id becomes part of the answer's id."""

    def begin(self, identity: Identity) -> None:
        self.identity = identity

    def opening(self) -> list[bytes]:
        """What goes out with the head, before anything is generated."""
        return []

    @abstractmethod
    def told(self, event: bytes, counts: Callable[[], Counts]) -> list[bytes]:
        """What one event of the chat becomes: `data: {…}` or `[DONE]`, in SSE framing on both sides."""

    @abstractmethod
    def whole(self, body: bytes, counts: Callable[[], Counts]) -> bytes: ...

    def refused(self, reply: Reply) -> Reply:
        """A refusal out of vLLM's handler, as this API's clients get it."""
        return reply

    def failure(self, message: str, status: int) -> list[bytes] | None:
        """The events that end a stream after its 200 with an error. None: the chat's own, translated."""
        return None

    def death(self) -> list[bytes] | None:
        """The same if the engine has died; empty if vLLM just ends the connection then."""
        return None

    def is_last(self, event: bytes) -> bool:
        return event is DONE

    def last(self) -> bytes:
        """The event that says the stream is over, whatever came before."""
        return DONE
