"""`/tokenize` and `/detokenize`: four bytes of text are a token, and its id is those bytes as a number.

So a prompt of token ids is the text they were made of, and finds it in the prefix cache.
"""

from __future__ import annotations

import msgspec
import orjson

from loadtest.simulator import refusals, schema
from loadtest.simulator.asked import Refused
from loadtest.simulator.connection import ReceivedRequest
from loadtest.simulator.prompts import BYTES_PER_TOKEN, render_chat, render_token_ids
from loadtest.simulator.settings import PodSettings
from loadtest.simulator.wire import Reply


class _Part(msgspec.Struct):
    text: str | None = None


class _Turn(msgspec.Struct):
    role: str = ""
    content: str | list[_Part] | None = None


class _TokenizeBody(msgspec.Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[_Turn] | None = None
    return_token_strs: bool | None = None


class _DetokenizeBody(msgspec.Struct, kw_only=True):
    model: str | None = None
    tokens: list[int]


def tokenize(request: ReceivedRequest, settings: PodSettings) -> Reply:
    """Raises Refused."""
    body = schema.read(request.body, request.raw_header(b"content-type"), _TokenizeBody)
    if body.prompt is None and body.messages is None:
        value = schema.read_object(request.body)
        raise schema.unfit([schema.missing("prompt", value), schema.missing("messages", value)])
    _check_model(body.model, settings)
    if body.prompt is not None:
        text = body.prompt.encode("utf-8", "surrogatepass")
    else:
        text = render_chat([(turn.role, _text_of(turn)) for turn in body.messages or []])
    pieces = [text[start : start + BYTES_PER_TOKEN] for start in range(0, len(text), BYTES_PER_TOKEN)]
    told = {
        "count": len(pieces),
        "max_model_len": settings.max_model_len_tokens,
        "tokens": [int.from_bytes(piece, "little") for piece in pieces],
        "token_strs": [piece.decode("utf-8", "replace") for piece in pieces] if body.return_token_strs else None,
    }
    return Reply(200, orjson.dumps(told))


def detokenize(request: ReceivedRequest, settings: PodSettings) -> Reply:
    """Raises Refused."""
    body = schema.read(request.body, request.raw_header(b"content-type"), _DetokenizeBody)
    _check_model(body.model, settings)
    text = b"".join(render_token_ids([token_id]).rstrip(b"\0") for token_id in body.tokens)
    return Reply(200, orjson.dumps({"prompt": text.decode("utf-8", "replace")}))


def _check_model(model: str | None, settings: PodSettings) -> None:
    if model is not None and model not in settings.served_names:
        raise Refused(refusals.unknown_model(model, (settings.model, *settings.aliases)))


def _text_of(turn: _Turn) -> str:
    if isinstance(turn.content, list):
        return "\n".join(part.text or "" for part in turn.content)
    return turn.content or ""
