#!/usr/bin/env python3
"""Writes docs/openapi.json, the public port's API as OpenAPI 3.1, from the table of operations and the errors; a test
fails when it is stale.

Bodies are OpenAI's, Anthropic's and vLLM's: of them it says only what the gateway itself reads and refuses.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gateway import __version__  # noqa: E402  # below the path to it
from gateway.core import errors  # noqa: E402
from gateway.pipeline.dialects import ANTHROPIC  # noqa: E402
from gateway.pipeline.operations import (  # noqa: E402
    CHAT,
    COMPLETIONS,
    MODELS,
    OPERATIONS,
    RESPONSES_API,
    Body,
    Operation,
)

PAGE = ROOT / "docs" / "openapi.json"

SAYS = {
    "chat": "A chat, as OpenAI's Chat Completions API has it.",
    "completions": "Text that goes on, as OpenAI's Completions API has it.",
    "responses": "An answer, as OpenAI's Responses API has it; nothing is remembered between two of them.",
    "messages": "A message, as Anthropic's Messages API has it.",
    "count_tokens": "How many tokens a message has, as Anthropic's Messages API has it.",
    "embeddings": "Embeddings, as OpenAI's API has them.",
    "rerank": "Documents in the order in which they fit a query, as Jina's and Cohere's APIs have it.",
    "score": "How well texts fit each other, as vLLM has it.",
    "transcriptions": "Speech as text, as OpenAI's API has it.",
    "translations": "Speech as English text, as OpenAI's API has it.",
    "tokenize": "A text's tokens, as vLLM has it.",
    "detokenize": "Tokens' text, as vLLM has it.",
    "models": "The models that this caller may use, aliases among them.",
}
"""What each operation is, by its label."""
IN_STREAMS = {
    errors.StreamTruncated,
    errors.StreamReset,
    errors.StreamStalled,
    errors.StreamDraining,
    errors.PodRefusal,
}
"""Errors that no answer of ours has as a whole."""
FORBIDDEN = ("model_not_allowed", "field_not_allowed")
MODEL = "qwen3-8b"
HELLO = [{"role": "user", "content": "Hello"}]
EXAMPLES: dict[str, dict[str, Any]] = {
    "chat": {"messages": HELLO, "max_tokens": 5},
    "completions": {"prompt": "Hello", "max_tokens": 5},
    "responses": {"input": "Hello", "max_output_tokens": 5},
    "messages": {"messages": HELLO, "max_tokens": 5},
    "count_tokens": {"messages": HELLO},
    "embeddings": {"input": ["Hello", "world"]},
    "rerank": {"query": "Hello", "documents": ["Hello", "world"]},
    "score": {"text_1": "Hello", "text_2": ["Hello", "world"]},
    "tokenize": {"prompt": "Hello"},
    "detokenize": {"tokens": [1, 2, 3]},
}
"""What makes a body whole, beside its model."""
PODS_OWN = (422,)
"""Statuses of pods' refusals beside those that are ours too."""
REQUEST_ID = {
    "description": "The request's id: the caller's own, if it is one, or ours. Support wants it.",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
}
RETRY_AFTER = {
    "description": "Whole seconds to wait, where waiting helps.",
    "schema": {"type": "string", "pattern": "^[0-9]+$"},
}


def reference(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def codes() -> Mapping[int, list[str]]:
    """The codes that an answer may bear, by status; pods' own are not known."""
    found: defaultdict[int, set[str]] = defaultdict(set, {status: set() for status in PODS_OWN})
    waiting: list[type[errors.PoolgateError]] = [errors.PoolgateError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if "code" in kind.__dict__ and kind not in IN_STREAMS:
            found[kind.status].add(kind.code)
    found[errors.Forbidden.status] |= set(FORBIDDEN)
    return {status: sorted(told) for status, told in sorted(found.items())}


def refusals(operation: Operation) -> dict[str, Any]:
    """An operation's answers that are errors, by reference."""
    kind = "Anthropic" if operation.dialect is ANTHROPIC else "OpenAI"
    return {str(status): reference("responses", f"{kind}{status}") for status in codes()}


def refused(kind: str) -> dict[str, Any]:
    """What is referred to."""
    return {
        f"{kind}{status}": {
            "description": f"`{'`, `'.join(told)}`" if told else "The pod's own refusal.",
            "headers": {"x-request-id": reference("headers", "RequestId")}
            | ({"retry-after": reference("headers", "RetryAfter")} if status in (429, 503) else {}),
            "content": {"application/json": {"schema": error_of(kind, status)}},
        }
        for status, told in codes().items()
    }


def error_of(kind: str, status: int) -> dict[str, Any]:
    """The shape of an error. vLLM refuses some messages in OpenAI's shape, and that passes as it is."""
    one = reference("schemas", f"{kind}Error")
    return {"anyOf": [one, reference("schemas", "OpenAIError")]} if kind == "Anthropic" and status < 500 else one


def answer(operation: Operation) -> dict[str, Any]:
    """A good answer."""
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    for media in operation.answers:
        if media != b"application/json":
            content[media.decode()] = {"schema": {"type": "string"}}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    if operation.body is Body.FORM:
        # With response_format: text, srt or vtt.
        content["text/plain"] = {"schema": {"type": "string"}}
    return {
        "description": "The pod's answer, as it came.",
        "headers": {"x-request-id": reference("headers", "RequestId")},
        "content": content,
    }


def fields(operation: Operation) -> dict[str, Any]:
    """What the gateway reads of a body."""
    found: dict[str, Any] = {"model": {"type": "string", "description": "One of `/v1/models`."}}
    if operation.streams:
        found["stream"] = {"type": ["boolean", "null"], "description": "Whether to answer piece by piece."}
    if operation in (CHAT, COMPLETIONS):
        found["n"] = {"type": ["integer", "null"], "minimum": 1, "description": "How many answers."}
        found["stream_options"] = {
            "type": ["object", "null"],
            "properties": {"include_usage": {"type": ["boolean", "null"]}},
        }
    if operation is RESPONSES_API:
        found["previous_response_id"] = {"type": "null", "description": "Kept by no pod: anything else is a 400."}
        found["background"] = {"enum": [False, None]}
    return found


def described(operation: Operation, path: str) -> dict[str, Any]:
    """One operation, as OpenAPI has it."""
    one = path != operation.path.decode()
    told: dict[str, Any] = {
        "operationId": f"{operation.label}{'_one' if one else ''}",
        "summary": "One of the models." if one else SAYS[operation.label],
        "responses": {"200": answer(operation), **refusals(operation)},
    }
    if one:
        told["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    if operation.body is Body.JSON:
        schema = {"type": "object", "required": ["model"], "properties": fields(operation)}
        example = {"model": MODEL, **EXAMPLES[operation.label]}
        content = {"application/json": {"schema": schema, "example": example}}
        told["requestBody"] = {"required": True, "content": content}
    elif operation.body is Body.FORM:
        form = {"model": {"type": "string"}, "file": {"type": "string", "contentMediaType": "audio/wav"}}
        schema = {"type": "object", "required": ["model", "file"], "properties": form}
        told["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    return told


def paths() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each path, with what it does."""
    for operation in OPERATIONS:
        path = operation.path.decode()
        yield path, {operation.method.decode().lower(): described(operation, path)}
    one = f"{MODELS.path.decode()}/{{id}}"
    yield one, {"get": described(MODELS, one)}


def error_schema(members: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": sorted(members), "properties": dict(members)}


def document() -> dict[str, Any]:
    """The whole document."""
    text, code = {"type": "string"}, {"type": ["string", "integer", "null"]}
    inside = {"message": text, "type": text, "param": {"type": ["string", "null"]}, "code": code}
    anthropic = {"type": "object", "required": ["message", "type"], "properties": {"message": text, "type": text}}
    anthropic["properties"] |= {"code": code}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Poolgate",
            "version": __version__,
            "description": "The public port. Written by scripts/write_openapi.py.",
        },
        "security": [{"bearer": []}, {"key": []}],
        "paths": dict(paths()),
        "components": {
            "headers": {"RequestId": REQUEST_ID, "RetryAfter": RETRY_AFTER},
            "responses": refused("OpenAI") | refused("Anthropic"),
            "schemas": {
                "OpenAIError": error_schema({"error": error_schema(inside)}),
                "AnthropicError": error_schema({"type": {"const": "error"}, "error": anthropic}),
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def page() -> str:
    """The file's text."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
