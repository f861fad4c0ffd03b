"""The table of operations: which paths exist, and what each needs.

Paths are compared raw, repeated slashes read as one, and nothing else is normalised: `/v1/../x` and `/v1%2Fmodels`
are not found. What does not stand here never reaches a pod: vLLM has routes that load adapters, that put it to sleep,
and one that chats without asking for a key.
"""

import re
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import unquote_to_bytes

from gateway.core.errors import MethodNotAllowed, NotFound
from gateway.pipeline.dialects import ANTHROPIC, OPENAI, RESPONSES, Dialect
from gateway.upstream.named_events import MessagesReader, ResponsesReader
from gateway.upstream.usage import AnswerReader, ChoicesReader, EventReader, TranscriptReader

_SLASHES = re.compile(rb"/{2,}")
_MODELS = b"/v1/models"
_MESSAGES = b"/v1/messages"

JSON = b"application/json"
BYTES = b"application/octet-stream"


class Body(Enum):
    """What a request brings."""

    NONE = "none"
    JSON = "json"
    FORM = "multipart/form-data"


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of request. `label` is what metrics and the access line call it."""

    label: str
    path: bytes
    reader: type[AnswerReader] = AnswerReader
    """Follows the answer; an `EventReader` where it may be a stream."""
    dialect: Dialect = OPENAI
    body: Body = Body.JSON
    answers: tuple[bytes, ...] = (JSON,)
    """Media types of answers that are not streams."""
    asks_usage: bool = False
    """Whether a stream tells its usage only when asked, in `stream_options`."""
    takes_tokens: bool = True
    """Whether the model runs: where the pod does not say what it took, it is estimated."""
    method: bytes = b"POST"
    streams: bool = field(init=False)
    """Whether `stream: true` means something here. Elsewhere vLLM ignores it, and so do we."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", issubclass(self.reader, EventReader))


CHAT = Operation("chat", b"/v1/chat/completions", ChoicesReader, asks_usage=True)
COMPLETIONS = Operation("completions", b"/v1/completions", ChoicesReader, asks_usage=True)
RESPONSES_API = Operation("responses", b"/v1/responses", ResponsesReader, RESPONSES)
MESSAGES = Operation("messages", _MESSAGES, MessagesReader, ANTHROPIC)
COUNT_TOKENS = Operation("count_tokens", b"/v1/messages/count_tokens", dialect=ANTHROPIC, takes_tokens=False)
EMBEDDINGS = Operation("embeddings", b"/v1/embeddings", answers=(JSON, BYTES))
RERANK = Operation("rerank", b"/v1/rerank")
SCORE = Operation("score", b"/v1/score")
TRANSCRIPTIONS = Operation("transcriptions", b"/v1/audio/transcriptions", TranscriptReader, body=Body.FORM)
TRANSLATIONS = Operation("translations", b"/v1/audio/translations", TranscriptReader, body=Body.FORM)
TOKENIZE = Operation("tokenize", b"/tokenize", takes_tokens=False)
DETOKENIZE = Operation("detokenize", b"/detokenize", takes_tokens=False)
MODELS = Operation("models", _MODELS, body=Body.NONE, takes_tokens=False, method=b"GET")

OPERATIONS = (
    CHAT,
    COMPLETIONS,
    RESPONSES_API,
    MESSAGES,
    COUNT_TOKENS,
    EMBEDDINGS,
    RERANK,
    SCORE,
    TRANSCRIPTIONS,
    TRANSLATIONS,
    TOKENIZE,
    DETOKENIZE,
    MODELS,
)
_BY_PATH = {operation.path: operation for operation in OPERATIONS}


def find(method: bytes, target: bytes) -> tuple[Operation, str | None]:
    """The operation of a request line, and the model id that `/v1/models/{id}` names, decoded once.

    Raises `NotFound` and `MethodNotAllowed`.
    """
    operation = _BY_PATH.get(target)
    if operation is not None and operation.method == method:
        return operation, None
    path = _path(target)
    operation = _BY_PATH.get(path)
    model_id = None
    if operation is None and path.startswith(_MODELS + b"/"):
        operation = MODELS
        model_id = unquote_to_bytes(path[len(_MODELS) + 1 :]).decode("utf-8", "replace")
    if operation is None:
        raise NotFound("this route does not exist: see /v1/models and /v1/chat/completions")
    if operation.method != method:
        raise MethodNotAllowed(f"use {operation.method.decode()} for this route", allow=operation.method)
    return operation, model_id


def dialect_at(target: bytes) -> Dialect:
    """In which words a refusal at this target is told, whether there is such a route or not."""
    path = _path(target)
    return ANTHROPIC if path == _MESSAGES or path.startswith(_MESSAGES + b"/") else OPENAI


def _path(target: bytes) -> bytes:
    return _SLASHES.sub(b"/", target.partition(b"?")[0])
