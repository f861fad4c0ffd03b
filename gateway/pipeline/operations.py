"""The table of operations: which paths exist, and what each needs.

Paths are compared raw, repeated slashes read as one, and nothing else is normalised: `/v1/../x` and `/v1%2Fmodels`
are not found. What does not stand here never reaches a pod.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from gateway.core.errors import MethodNotAllowed, NotFound

_SLASHES = re.compile(rb"/{2,}")
_MODELS = b"/v1/models"


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of request. `label` is what metrics and the access line call it."""

    label: str
    path: bytes
    method: bytes = b"POST"
    has_body: bool = True
    """Whether a body is read and sent to a pod."""


CHAT = Operation("chat", b"/v1/chat/completions")
COMPLETIONS = Operation("completions", b"/v1/completions")
MODELS = Operation("models", _MODELS, b"GET", has_body=False)

_BY_PATH = {operation.path: operation for operation in (CHAT, COMPLETIONS, MODELS)}


def find(method: bytes, target: bytes) -> tuple[Operation, str | None]:
    """The operation of a request line, and the model id that `/v1/models/{id}` names, decoded once.

    Raises `NotFound` and `MethodNotAllowed`.
    """
    operation = _BY_PATH.get(target)
    if operation is not None and operation.method == method:
        return operation, None
    path = _SLASHES.sub(b"/", target.partition(b"?")[0])
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
