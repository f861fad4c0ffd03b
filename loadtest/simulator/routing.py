"""Which paths a pod of each task has, and what serves them. As vLLM registers them: a path of another task's
is a plain 404."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from loadtest.simulator import asked, audio, bodies, messages, pooling, refusals, responses, schema, tokenizing
from loadtest.simulator.asked import Asked, Refused
from loadtest.simulator.connection import ReceivedRequest
from loadtest.simulator.dialects import Dialect
from loadtest.simulator.pooling import Pooled
from loadtest.simulator.settings import PodSettings, Task
from loadtest.simulator.wire import Reply

JSON = b"application/json"


class Wanted(NamedTuple):
    """A generation, and how its answer is to be written."""

    asked: Asked
    shape: bodies.Shape
    dialect: Dialect | None = None


class Generates(NamedTuple):
    """`read` raises Refused; `refused` is how the route words what is refused later."""

    read: Callable[[ReceivedRequest, PodSettings], Wanted]
    refused: Callable[[Reply], Reply] = lambda reply: reply


class Pools(NamedTuple):
    read: Callable[[ReceivedRequest, PodSettings], Pooled]


class Told(NamedTuple):
    """Answered at once. `reply` raises Refused."""

    method: str
    reply: Callable[[ReceivedRequest, PodSettings], Reply]
    needs_engine: bool = False


def _chat(request: ReceivedRequest, settings: PodSettings) -> Wanted:
    return Wanted(asked.read_chat(request.body, request.raw_header(b"content-type"), settings), bodies.CHAT)


def _completion(request: ReceivedRequest, settings: PodSettings) -> Wanted:
    read = asked.read_completion(request.body, request.raw_header(b"content-type"), settings)
    return Wanted(read, bodies.COMPLETION)


def _translated(read: Callable[[ReceivedRequest, PodSettings], tuple[Asked, Dialect]]) -> Generates:
    def wanted(request: ReceivedRequest, settings: PodSettings) -> Wanted:
        chat, dialect = read(request, settings)
        return Wanted(chat, bodies.CHAT, dialect)

    return Generates(wanted)


def _batch(request: ReceivedRequest, settings: PodSettings) -> Wanted:
    """Several conversations, each a choice of one answer. There is no stream of these."""
    schema.check_content_type(request.raw_header(b"content-type"))
    body = schema.read_object(request.body)
    conversations = body.get("messages")
    if not isinstance(conversations, list):
        text = "Input should be a valid list"
        raise schema.unfit([schema.Problem("list_type", "body.messages", text, conversations)])
    body |= {"stream": False, "stream_options": None}
    chats = [asked.read_chat(schema.written({**body, "messages": each}), JSON, settings) for each in conversations]
    if not chats:
        raise Refused(refusals.bad_request("messages must not be empty"))
    prompts = tuple(prompt for chat in chats for prompt in chat.prompts)
    return Wanted(msgspec.structs.replace(chats[0], prompts=prompts), bodies.CHAT)


def _invoked_object(request: ReceivedRequest) -> dict[str, object]:
    """The body of SageMaker's route, which reads it itself and says so in its own words. Raises Refused."""
    schema.check_content_type(request.raw_header(b"content-type"))
    try:
        value = schema.json_value(request.body)
    except ValueError as error:
        raise Refused(refusals.nested(400, f"JSON decode error: {error}", "Bad Request")) from None
    return value if isinstance(value, dict) else {}


def _invocation(request: ReceivedRequest, settings: PodSettings) -> Wanted:
    read = _chat if "messages" in _invoked_object(request) else _completion
    return read(request, settings)


def _pooling_invocation(request: ReceivedRequest, settings: PodSettings) -> Pooled:
    body = _invoked_object(request)
    if "query" in body:
        return pooling.read_rerank(request, settings)
    if settings.task == Task.EMBED and ("input" in body or "messages" in body):
        return pooling.read_embeddings(request, settings)
    return pooling.read_score(request, settings)


def _needs(*fields: str) -> Told:
    """A route nobody generates with: vLLM's refusal of a body that lacks a field, or ours."""

    def reply(request: ReceivedRequest, settings: PodSettings) -> Reply:
        schema.check_content_type(request.raw_header(b"content-type"))
        body = schema.read_object(request.body)
        problems = [schema.missing(field, body) for field in fields if field not in body]
        if problems:
            raise schema.unfit(problems)
        return refusals.nested(501, f"the simulator does not serve {request.path}", "NotImplementedError")

    return Told("POST", reply)


def _scale_out_is_off(request: ReceivedRequest, settings: PodSettings) -> Reply:
    message = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
    return refusals.nested(403, message, "PermissionDeniedError")


def _no_elastic_scaling(request: ReceivedRequest, settings: PodSettings) -> Reply:
    return Reply(200, b'{"is_scaling_elastic_ep":false}')


_GENERATE = {
    "/v1/chat/completions": Generates(_chat),
    "/v1/completions": Generates(_completion),
    "/v1/chat/completions/batch": Generates(_batch),
    "/v1/responses": _translated(responses.read_responses),
    "/v1/messages": _translated(messages.read_messages)._replace(refused=messages.anthropic),
    "/invocations": Generates(_invocation),
}
_TRANSCRIPTION = {
    "/v1/audio/transcriptions": _translated(audio.read_transcription),
    "/v1/audio/translations": _translated(audio.read_translation),
}
_SCORE = {
    "/score": Pools(pooling.read_score),
    "/v1/score": Pools(pooling.read_score),
    "/rerank": Pools(pooling.read_rerank),
    "/v1/rerank": Pools(pooling.read_rerank),
    "/v2/rerank": Pools(pooling.read_rerank),
    "/invocations": Pools(_pooling_invocation),
}
_EVERYWHERE = {
    "/tokenize": Told("POST", tokenizing.tokenize),
    "/detokenize": Told("POST", tokenizing.detokenize),
    "/v1/systemone": _needs("state", "questions"),
}

GENERATING: Mapping[Task, Mapping[str, Generates]] = {
    Task.GENERATE: _GENERATE,
    Task.EMBED: {},
    Task.SCORE: {},
    Task.TRANSCRIPTION: _TRANSCRIPTION,
}
POOLING: Mapping[Task, Mapping[str, Pools]] = {
    Task.GENERATE: {},
    Task.EMBED: {"/v1/embeddings": Pools(pooling.read_embeddings), **_SCORE},
    Task.SCORE: _SCORE,
    Task.TRANSCRIPTION: {},
}
TOLD: Mapping[Task, Mapping[str, Told]] = {
    Task.GENERATE: {
        **_EVERYWHERE,
        "/v1/messages/count_tokens": Told("POST", messages.count_tokens, needs_engine=True),
        "/v1/chat/completions/render": Told("POST", _scale_out_is_off),
        "/generative_scoring": _needs("label_token_ids"),
        "/is_scaling_elastic_ep": Told("POST", _no_elastic_scaling),
    },
    Task.EMBED: _EVERYWHERE,
    Task.SCORE: _EVERYWHERE,
    Task.TRANSCRIPTION: _EVERYWHERE,
}


def told_below(task: Task, path: str) -> Told | None:
    """`/v1/responses/{id}` and `/v1/responses/{id}/cancel`."""
    parts = path.split("/")
    if task != Task.GENERATE or parts[:3] != ["", "v1", "responses"] or len(parts) < 4 or not parts[3]:
        return None
    if len(parts) == 4:
        return Told("GET", lambda request, settings: responses.unknown_response(parts[3]))
    if parts[4:] == ["cancel"]:
        return Told("POST", lambda request, settings: responses.unknown_response(parts[3]))
    return None
